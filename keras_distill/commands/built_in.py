"""Networks by name, for whatever an example is: `cnn:8,16`, `mlp:64`, `applications:NAME`."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras

import keras_distill as kd
from keras_distill import models
from keras_distill.commands import input_layers

#: What there is, for messages and `--help`.
NAMES = "cnn:8,16, mlp:64 or applications:MobileNetV3Small"
_SIZES = re.compile(r"(cnn|mlp):(\d+(?:,\d+)*)")
_LIKE_A_NAME = re.compile(r"(cnn|mlp|applications)(:.*)?")
#: Keras's own and those of its applications need more steps than a small dataset has.
_MOMENTUM = 0.9


def is_name(text: str) -> bool:
    """Tells whether a text is a built-in name, as opposed to module:function or a file.

    `cnn:build` is the function of a module of yours; `cnn:8` is built in.
    """
    if not _LIKE_A_NAME.fullmatch(text):
        return False
    kind, _, rest = text.partition(":")
    is_function = rest.isidentifier() and kind != "applications"
    return not is_function


def sizes_in(text: str) -> list[int]:
    """Returns the filters or units that the name of a cnn or an mlp says, else none."""
    found = _SIZES.fullmatch(text)
    return [] if found is None else [int(size) for size in found[2].split(",")]


def builder(text: str, data: kd.datasets.Data) -> Callable[[], keras.Model]:
    """Returns what builds a network that ends in logits, a new one each time.

    What is learned of the inputs, as a vocabulary or means, is learned here, once.

    Args:
        text: the name.
        data: not in batches.

    Raises:
        ValueError: if there is no such network, or it does not take such examples.
    """
    spec, classes = data.train.element_spec[0], data.classes
    kind = input_layers.kind_of(data)
    name, _, rest = text.partition(":")
    if name == "applications":
        return _application(rest, spec, kind, classes)
    sizes = sizes_in(text)
    if not sizes:
        raise _unknown(text)
    if min(sizes) < 1:
        raise ValueError(f"the sizes of {text!r} must be >= 1, as in {name}:8,16.")
    if kind == "images":
        return _of_images(name, text, data, sizes)
    front = input_layers.front(name, kind, data, sizes)
    if front is None:
        raise ValueError(
            f"{text!r} is for images, sound and text, and the examples are "
            f"{input_layers.described(spec)}; take mlp:64."
        )
    hidden = sizes if name == "mlp" else [2 * sizes[-1]]
    return functools.partial(_on, front, hidden, classes)


def _unknown(text: str) -> ValueError:
    return ValueError(
        f"there is no built-in network {text!r}; there are cnn:8,16 (filters of each 3x3 "
        "convolution), mlp:64 or mlp:64,32 (units of each hidden layer) and "
        "applications:NAME, with a NAME of keras.applications as MobileNetV3Small. Your own "
        "is module:function or a .keras file."
    )


def _of_images(
    name: str, text: str, data: kd.datasets.Data, sizes: list[int]
) -> Callable[[], keras.Model]:
    shape, classes = tuple(data.train.element_spec[0].shape), data.classes
    if name == "mlp":
        return lambda: models.mlp(shape, classes, sizes, name="mlp")
    least = 2 ** len(sizes)
    if any(pixels is not None and pixels < least for pixels in shape[:2]):
        raise ValueError(
            f"{text!r} halves the image {len(sizes)} times, for which it needs {least} x "
            f"{least} pixels, and these are {shape[0]} x {shape[1]}; give fewer filters, or "
            "a larger --image-size."
        )
    normalized = input_layers.normalization(data)

    def build() -> keras.Model:
        network = models.cnn(shape, classes, sizes, dense=2 * sizes[-1])
        layers = [type(one).from_config(one.get_config()) for one in network.layers]
        image = keras.Input(shape, name="image")
        return keras.Sequential([image, normalized(), *layers], name="cnn")

    return build


def _on(
    front: Callable[[], tuple[Any, Any]], hidden: list[int], classes: int
) -> keras.Model:
    """Returns hidden layers and logits on a front of layers."""
    inputs, x = front()
    for index, units in enumerate(hidden, 1):
        x = keras.layers.Dense(units, activation="relu", name=f"hidden_{index}")(x)
    logits = keras.layers.Dense(classes, name="logits")(x)
    with input_layers.names_may_differ():
        return keras.Model(inputs, logits)


def applications() -> list[str]:
    """Returns the names of the networks of keras.applications."""
    found = vars(keras.applications).items()
    return sorted(name for name, thing in found if inspect.isfunction(thing))


def _application(
    name: str, spec: Any, kind: str, classes: int
) -> Callable[[], keras.Model]:
    known = applications()
    if name not in known:
        raise ValueError(
            f"there is no network {name!r} in keras.applications; there are "
            f"{', '.join(known)}."
        )
    if kind != "images":
        raise ValueError(
            f"'applications:{name}' is for images, and the examples are "
            f"{input_layers.described(spec)}; take mlp:64."
        )
    shape = tuple(spec.shape)
    make = getattr(keras.applications, name)
    given: dict[str, Any] = {
        "weights": None,
        "classes": classes,
        "classifier_activation": None,
        "input_shape": shape,
    }
    if "include_preprocessing" in inspect.signature(make).parameters:
        given["include_preprocessing"] = False

    def build() -> keras.Model:
        try:
            network = make(**given)
        except ValueError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                f"'applications:{name}' does not take images of {shape}: {reason}; give a "
                "larger --image-size."
            ) from error
        for layer in _every_layer(network):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = _MOMENTUM
        image = keras.Input(shape, name="image")
        logits = network(_scaled_for(network, image))
        return keras.Model(image, logits, name=name)

    return build


def _every_layer(model: Any) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from _every_layer(layer)


def _scaled_for(network: keras.Model, image: Any) -> Any:
    """Returns an image in [0, 1] in the range that a network was made for.

    Some divide by 255 themselves and cannot be told not to; the others take -1 to 1.
    """
    scales = [
        layer.scale
        for layer in network.layers
        if isinstance(layer, keras.layers.Rescaling)
    ]
    if any(isinstance(scale, float) and scale < 0.01 for scale in scales):
        return keras.layers.Rescaling(255.0, name="scaled")(image)
    return keras.layers.Rescaling(2.0, -1.0, name="scaled")(image)
