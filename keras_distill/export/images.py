"""Inputs that are served as the bytes of image files, decoded in the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill.arguments import (
    check_bool,
    check_choice,
    check_each,
    check_float,
    check_int,
    shown,
)
from keras_distill.export import check
from keras_distill.export.inputs import Inputs

#: What the bytes of an image are called; of several inputs each "<name>_bytes".
NAME = "image_bytes"
#: Channels by the names that Keras has for them.
COLOR_MODES = {"grayscale": 1, "rgb": 3, "rgba": 4}
INTERPOLATIONS = (
    "bilinear",
    "nearest",
    "bicubic",
    "area",
    "lanczos3",
    "lanczos5",
    "gaussian",
    "mitchellcubic",
)
_OPTIONS = (
    "image_size",
    "color_mode",
    "interpolation",
    "crop_to_aspect_ratio",
    "pad_to_aspect_ratio",
    "scale",
    "offset",
)
# Images of a request that are decoded at once.
_PARALLEL = 8


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDecoder:
    """From the bytes of image files to a batch of images, in the graph.

    Attributes:
        name: of the input, for the error.
        spec: of the images, `(batch, height, width, channels)`.
        interpolation: as in `tf.image.resize`.
        crops: whether it keeps the aspect ratio by cropping.
        pads: whether it keeps the aspect ratio by zeros at the sides.
        scale: what 0 to 255 is multiplied by, a number or one for each channel.
        offset: what is then added, likewise.
    """

    name: str
    spec: tf.TensorSpec
    interpolation: str
    crops: bool
    pads: bool
    scale: Any
    offset: Any

    def __call__(self, encoded: Any) -> Any:
        """Returns the images for bytes, str `(batch,)`.

        Raises:
            tf.errors.InvalidArgumentError: naming those of the batch that are no images.
        """
        images = self._decoded(encoded) * tf.constant(self.scale, tf.float32)
        images += tf.constant(self.offset, tf.float32)
        if self.spec.dtype.is_integer:
            return tf.saturate_cast(tf.round(images), self.spec.dtype)
        return tf.cast(images, self.spec.dtype)

    def _one(self, encoded: Any) -> Any:
        """Returns one image as `keras.utils.image_dataset_from_directory` reads it."""
        _, height, width, channels = self.spec.shape
        size = (height, width)
        image = tf.io.decode_image(encoded, channels, expand_animations=False)
        image = tf.ensure_shape(image, [None, None, channels])
        if self.crops:
            image = keras.preprocessing.image.smart_resize(
                image, size, self.interpolation, "channels_last"
            )
        elif self.pads:
            image = tf.image.resize_with_pad(image, *size, self.interpolation)
        else:
            image = tf.image.resize(image, size, self.interpolation)
        return tf.ensure_shape(tf.cast(image, tf.float32), [*size, channels])

    def _decoded(self, encoded: Any) -> Any:
        """Returns float32 images from 0 to 255.

        A pipeline, since an operation that fails inside a loop does not say for which
        element: it leaves out what fails, and what is missing is then named. The last element
        of its one batch is none of them, so that it is never empty.
        """
        count = tf.shape(encoded)[0]
        numbers = tf.range(count)
        found = tf.data.Dataset.from_tensor_slices((numbers, encoded))
        found = found.map(
            lambda number, one: (number, self._one(one)),
            num_parallel_calls=_PARALLEL,
            deterministic=True,
        ).ignore_errors()
        last = (count, tf.zeros(self.spec.shape[1:]))
        found = found.concatenate(tf.data.Dataset.from_tensors(last))
        options = tf.data.Options()
        options.autotune.enabled = False  # its thread would outlast the request
        found = found.batch(tf.cast(count, tf.int64) + 1).with_options(options)
        ok, images = found.get_single_element()
        is_ok = tf.reduce_any(numbers[:, tf.newaxis] == ok[tf.newaxis], 1)
        bad = tf.where(~is_ok)[:, 0]
        channels = self.spec.shape[3]
        message = tf.strings.format(
            f"{self.name}{{}} cannot be decoded as an image of {channels} channel(s), of a "
            "batch of {}; give the bytes of a PNG or JPEG file",
            (bad, count),
        )
        with tf.control_dependencies(
            [tf.debugging.Assert(tf.reduce_all(is_ok), [message])]
        ):
            return tf.ensure_shape(images[:-1], self.spec.shape)


@dataclasses.dataclass(frozen=True)
class EncodedInputs(Inputs):
    """Inputs some of which are served as the bytes of image files.

    Attributes:
        decoders: by the name under which the bytes are served.
        decoded: specs of the inputs as `Inputs` has them, by name.
        names: of the inputs, by the name under which each is served.
    """

    decoders: dict[str, ImageDecoder] = dataclasses.field(default_factory=dict)
    decoded: dict[str, tf.TensorSpec] = dataclasses.field(default_factory=dict)
    names: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def over(cls, inputs: Inputs, options: dict[str, Any]) -> EncodedInputs:
        """Returns inputs with bytes in place of images.

        Args:
            inputs: whose images are served as bytes.
            options: as `check_serving_bytes` returns them.

        Raises:
            ValueError: if none is an image, or its size or channels are not known or not
                those that were said.
        """
        images = {
            name: _image_spec(spec, options)
            for name, spec in inputs.specs.items()
            if _is_image(spec, options)
        }
        if not images:
            raise ValueError(
                "serving_bytes needs an input of images (batch, height, width, channels) with "
                f"1, 3 or 4 channels, got {_listed(inputs.specs)}; say it by input_signature=, "
                "and make what the model takes of it by preprocess=."
            )
        decoded = {**inputs.specs, **images}
        served = {
            name: name if name not in images else _name(name, len(images))
            for name in inputs.specs
        }
        if len(set(served.values())) < len(served):
            raise ValueError(
                f"serving_bytes serves images as {NAME!r}, which is the name of another input "
                "too; name that otherwise by input_signature=."
            )
        specs, decoders = {}, {}
        for name, spec in decoded.items():
            if name in images:
                spec = tf.TensorSpec(spec.shape[:1], tf.string)
                decoders[served[name]] = _decoder(served[name], images[name], options)
            specs[served[name]] = tf.TensorSpec(spec.shape, spec.dtype, served[name])
        names = {theirs: ours for ours, theirs in served.items()}
        return cls(
            specs, inputs.raw, inputs.taken, inputs.arguments, decoders, decoded, names
        )

    def call(
        self, model: keras.Model, named: dict[str, Any], preprocess: Callable | None
    ) -> Any:
        """Returns the model's outputs for inputs by the names that are served."""
        decoded = {
            ours: self.decoders[name](named[name])
            if name in self.decoders
            else named[name]
            for name, ours in self.names.items()
        }
        return super().call(model, decoded, preprocess)

    def check(
        self, model: keras.Model, named: dict[str, Any], preprocess: Callable | None
    ) -> None:
        """Runs a subclassed model once, which may also build it.

        Raises:
            ValueError: if it does not take such inputs, or the example is no image.
        """
        for name, decoder in self.decoders.items():
            try:
                # In a graph, whose message is the same as of what is served.
                tf.function(decoder)(named[name])
            except tf.errors.InvalidArgumentError as error:
                raise ValueError(f"example: {reason(error)}.") from None
        super().check(model, named, preprocess)

    def by_name(self, example: Any) -> Any:
        """Returns an example by the names that are served; `None` is random images."""
        if example is None:
            return self._random()
        found = super().by_name(example)
        if found is example:
            return example
        return {name: found[ours] for name, ours in self.names.items()}

    def _random(self) -> dict[str, Any]:
        batch = check.example_batch(self.decoded, None)
        rng = np.random.default_rng(0)
        for name in self.decoders:
            count, *_, channels = batch[self.names[name]].shape
            size = (count, 40, 30, channels)
            batch[self.names[name]] = [
                tf.io.encode_png(one).numpy()
                for one in rng.integers(0, 256, size, dtype="uint8")
            ]
        return {name: batch[ours] for name, ours in self.names.items()}


def reason(error: tf.errors.OpError) -> str:
    """Returns what an `Assert` of the graph says, of TensorFlow's message around it."""
    _, found, text = str(error.message).partition("assertion failed: [")
    return text.partition("]\n")[0].rstrip("]") if found else str(error.message)


def _name(name: str, images: int) -> str:
    return NAME if images == 1 else f"{name}_bytes"


def _listed(specs: dict[str, tf.TensorSpec]) -> str:
    return ", ".join(f"{name!r} {spec.shape}" for name, spec in specs.items())


def _is_image(spec: tf.TensorSpec, options: dict[str, Any]) -> bool:
    if spec.shape.rank != 4 or spec.dtype in (tf.string, tf.bool):
        return False
    channels = spec.shape[3]
    is_said = options["color_mode"] is not None
    return channels in COLOR_MODES.values() or (channels is None and is_said)


def _image_spec(spec: tf.TensorSpec, options: dict[str, Any]) -> tf.TensorSpec:
    """Returns the spec of an input with its size and channels; what is said must fit."""
    count, *size, channels = spec.shape
    said = options["image_size"]
    if said is not None and any(
        a not in (None, b) for a, b in zip(size, said, strict=True)
    ):
        raise ValueError(
            f"serving_bytes has the image_size {tuple(said)}, but {spec.name!r} takes "
            f"{tuple(size)}; leave it out, or say by input_signature= what preprocess takes."
        )
    size = size if said is None else said
    if None in size:
        raise ValueError(
            f"the input {spec.name!r} takes images of any size, {spec.shape}; give one, "
            "which all are resized to: serving_bytes=(height, width)."
        )
    color_mode = options["color_mode"]
    if color_mode is not None:
        if channels not in (None, COLOR_MODES[color_mode]):
            raise ValueError(
                f"serving_bytes has the color_mode {color_mode!r}, but {spec.name!r} takes "
                f"{channels} channel(s); leave it out, or change it in preprocess=."
            )
        channels = COLOR_MODES[color_mode]
    return tf.TensorSpec([count, *size, channels], spec.dtype, spec.name)


def _decoder(name: str, spec: tf.TensorSpec, options: dict[str, Any]) -> ImageDecoder:
    for option in ("scale", "offset"):
        value = options[option]
        if np.ndim(value) and len(value) != spec.shape[3]:
            raise ValueError(
                f"serving_bytes[{option!r}] has {len(value)} numbers, but the images have "
                f"{spec.shape[3]} channel(s); give one for each, or one for all."
            )
    return ImageDecoder(
        name,
        spec,
        options["interpolation"],
        options["crop_to_aspect_ratio"],
        options["pad_to_aspect_ratio"],
        options["scale"],
        options["offset"],
    )


def check_serving_bytes(name: str, value: Any) -> dict[str, Any] | None:
    """Returns how images are read, by the names of Keras's options; `None` for not at all.

    Args:
        name: of the argument.
        value: `None` or `False`, `True`, a size, or a dict of options.

    Raises:
        ValueError: if it is none of these, or an option is unknown or out of range.
    """
    if value is None or (isinstance(value, (bool, np.bool_)) and not value):
        return None
    if isinstance(value, dict):
        if unknown := [key for key in value if key not in _OPTIONS]:
            raise ValueError(
                f"{name} has no option {unknown[0]!r}; there are {', '.join(_OPTIONS)}."
            )
        given = dict(value)
    elif isinstance(value, (bool, np.bool_)):
        given = {}
    else:
        given = {"image_size": value}
    size = given.get("image_size")
    color_mode = given.get("color_mode")
    crops, pads = (
        check_bool(f"{name}[{option!r}]", given.get(option, False))
        for option in ("crop_to_aspect_ratio", "pad_to_aspect_ratio")
    )
    if crops and pads:
        raise ValueError(
            f"{name} has crop_to_aspect_ratio and pad_to_aspect_ratio, which exclude each "
            "other; say one of them."
        )
    interpolation = given.get("interpolation", "bilinear")
    return {
        "image_size": None if size is None else _check_size(name, size),
        "color_mode": color_mode
        and check_choice(f"{name}['color_mode']", color_mode, [*COLOR_MODES]),
        "interpolation": check_choice(
            f"{name}['interpolation']", interpolation, INTERPOLATIONS
        ),
        "crop_to_aspect_ratio": crops,
        "pad_to_aspect_ratio": pads,
        "scale": _check_factor(f"{name}['scale']", given.get("scale", 1.0)),
        "offset": _check_factor(f"{name}['offset']", given.get("offset", 0.0)),
    }


def _check_size(name: str, value: Any) -> list[int]:
    try:
        if np.ndim(value) == 0 and not isinstance(value, (str, bytes)):
            return [check_int(name, value, 1)] * 2
        return check_each(
            name, value, lambda n, one: check_int(n, one, 1), "numbers", 2, 2
        )
    except ValueError as error:
        raise ValueError(
            f"{name} must be True, (height, width) or a dict of options, with whole numbers "
            f">= 1 for height and width; got {shown(value)}."
        ) from error


def _check_factor(name: str, value: Any) -> Any:
    def number(label: str, one: Any) -> float:
        return check_float(label, one, "a finite number", lambda _: True)

    if isinstance(value, (list, tuple)) or np.ndim(value):
        return check_each(name, value, number, "numbers", 1)
    return number(name, value)
