"""What stands before a small network, by the kind of its examples."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import keras_distill as kd
from keras_distill import progress

#: Vectors of so many numbers are taken for sound.
_LEAST_SAMPLES = 1000
_MOST_WORDS, _MOST_VALUES = 20_000, 100
#: Examples of which vocabularies, means and variances are learned.
_MOST_LOOKED_AT = 100_000
#: Images, of which each has many pixels.
_MOST_IMAGES = 5_000
_MEL_BINS = 40
#: In Hz, where the data does not say it.
_SAMPLE_RATE = 16_000

#: Inputs of a network, and what its hidden layers are put on.
Front = Callable[[], tuple[Any, Any]]


def kind_of(data: kd.datasets.Data) -> str:
    """Returns "images", "sound", "vectors", "sequences", "text" or "columns".

    Args:
        data: not in batches.

    Raises:
        ValueError: if built-in networks take no such examples.
    """
    spec = data.train.element_spec[0]
    if isinstance(spec, dict):
        if all(
            isinstance(s, tf.TensorSpec) and s.shape.rank == 0 for s in spec.values()
        ):
            return "columns"
    elif isinstance(spec, tf.TensorSpec):
        if spec.dtype == tf.string:
            if spec.shape.rank == 0:
                return "text"
        elif spec.shape.rank == 1:
            size = spec.shape[0]
            is_long = size is not None and size >= _LEAST_SAMPLES
            is_sound = data.sample_rate is not None or (
                is_long and data.column_names is None
            )
            return "sound" if is_sound else "vectors"
        elif spec.shape.rank == 2:
            return "sequences"
        elif spec.shape.rank == 3:
            return "images"
    raise ValueError(
        f"the built-in networks do not take examples of {described(spec)}; give your own "
        "network, as module:function or a .keras file."
    )


def described(spec: Any) -> str:
    """Returns what an example is, for messages."""
    if isinstance(spec, dict):
        return f"the columns {', '.join(map(str, spec))}"
    if not isinstance(spec, tf.TensorSpec):
        return str(spec)
    if spec.dtype == tf.string:
        return "text"
    return f"numbers of shape {tuple(spec.shape)}"


def front(
    name: str, kind: str, data: kd.datasets.Data, sizes: list[int]
) -> Front | None:
    """Returns what builds the inputs and the first layers; `None` if there is none.

    Args:
        name: "cnn" or "mlp".
        kind: of `kind_of`, no images.
        data: not in batches.
        sizes: filters or units.
    """
    spec = data.train.element_spec[0]
    inputs = data.train.take(_MOST_LOOKED_AT).map(lambda x, *_: x).batch(1024)
    if kind == "text":
        return _text(name, inputs, sizes)
    if kind == "sound":
        return _sound(name, tuple(spec.shape), data.sample_rate or _SAMPLE_RATE, sizes)
    if kind == "sequences" and name == "cnn":
        return _convolved_sequences(tuple(spec.shape), inputs, sizes)
    if name == "cnn":
        return None
    return _columns(spec, inputs) if kind == "columns" else _numbers(spec, inputs)


def normalization(data: kd.datasets.Data) -> Callable[[], keras.layers.Layer]:
    """Returns what builds the layer that brings each channel of images to mean 0, variance 1.

    Of images that are bright all over, one step of training moves what a convolution gives
    further than batch normalisation's running means follow, and validation figures jump.

    Args:
        data: of images, not in batches.
    """
    images = data.train.take(_MOST_IMAGES).map(lambda x, *_: x).batch(32)
    mean, variance = _moments(_looked_at(images))
    return lambda: _normalized(mean, variance)


def _looked_at(inputs: tf.data.Dataset) -> Any:
    """Yields the batches as arrays, with progress."""
    return progress.each(
        inputs.as_numpy_iterator(), "looking at the training data", "batch", None, True
    )


def _moments(batches: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and variance by feature (the last axis), of finite numbers."""
    total, squares, count = 0.0, 0.0, 0.0
    for batch in batches:
        flat = np.asarray(batch, "float64").reshape(-1, batch.shape[-1])
        is_finite = np.isfinite(flat)
        flat = np.where(is_finite, flat, 0.0)
        total, squares = total + flat.sum(0), squares + np.square(flat).sum(0)
        count = count + is_finite.sum(0)
    mean = total / np.maximum(count, 1)
    variance = squares / np.maximum(count, 1) - np.square(mean)
    # A feature that never changes says nothing, and is not to be blown up.
    return mean, np.where(variance > 1e-12, variance, 1.0)


def _numbers(spec: Any, inputs: tf.data.Dataset) -> Front:
    mean, variance = _moments(_looked_at(inputs))

    def build() -> tuple[Any, Any]:
        x = inputs_ = keras.Input(spec.shape, name="features")
        x = _normalized(mean, variance)(x)
        return inputs_, keras.layers.Flatten()(x) if x.ndim > 2 else x

    return build


def _normalized(mean: np.ndarray, variance: np.ndarray) -> keras.layers.Layer:
    return keras.layers.Normalization(mean=mean.tolist(), variance=variance.tolist())


@contextlib.contextmanager
def names_may_differ() -> Iterator[None]:
    """Has Keras not warn of columns by a table's names, which are no names of inputs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "When providing `inputs` as a dict")
        yield


def input_names(columns: Iterable[str]) -> dict[str, str]:
    """Returns what the input of each column is called: what a server can ask for."""
    names: dict[str, str] = {}
    for column in columns:
        name = re.sub(r"\W+", "_", column, flags=re.ASCII).strip("_")
        name = name if name.isidentifier() else f"column_{name}".rstrip("_")
        while name in names.values():
            name += "_"
        names[column] = name
    return names


def _columns(spec: dict[str, Any], inputs: tf.data.Dataset) -> Front:
    texts = [name for name, one in spec.items() if one.dtype == tf.string]
    numbers = [name for name in spec if name not in texts]
    values: dict[str, dict[Any, int]] = {name: {} for name in texts}
    rows = []
    for batch in _looked_at(inputs):
        rows.append(np.stack([np.asarray(batch[n], "float64") for n in numbers], -1)
                    if numbers else np.zeros((1, 0)))  # fmt: skip
        for name in texts:
            for value, count in zip(
                *np.unique(batch[name], return_counts=True), strict=True
            ):
                values[name][value] = values[name].get(value, 0) + int(count)
    mean, variance = _moments(rows)
    known = {
        name: [
            value.decode("utf-8", "replace")
            for value in sorted(counts, key=lambda v: (-counts[v], v))[:_MOST_VALUES]
        ]
        for name, counts in values.items()
    }

    names = input_names(spec)

    def build() -> tuple[Any, Any]:
        given = {
            name: keras.Input((), dtype=one.dtype.name, name=names[name])
            for name, one in spec.items()
        }
        parts = []
        if numbers:
            as_rows = [
                ops.expand_dims(ops.cast(given[name], "float32"), -1)
                for name in numbers
            ]
            joined = as_rows[0] if len(as_rows) == 1 else ops.concatenate(as_rows, -1)
            parts.append(_normalized(mean, variance)(joined))
        for name in texts:
            lookup = keras.layers.StringLookup(
                vocabulary=known[name], output_mode="one_hot"
            )
            parts.append(lookup(ops.expand_dims(given[name], -1)))
        return given, parts[0] if len(parts) == 1 else ops.concatenate(parts, -1)

    return build


def _text(name: str, inputs: tf.data.Dataset, sizes: list[int]) -> Front:
    learned = keras.layers.TextVectorization(max_tokens=_MOST_WORDS)
    learned.adapt(inputs)
    vocabulary = learned.get_vocabulary(include_special_tokens=False)

    def build() -> tuple[Any, Any]:
        text = keras.Input((), dtype="string", name="text")
        words = keras.layers.TextVectorization(vocabulary=vocabulary, name="words")(
            text
        )
        words = ops.pad(words, ((0, 0), (0, 1)))  # of an empty text there are none
        x = keras.layers.Embedding(len(vocabulary) + 2, max(32, sizes[0]))(words)
        # Not Keras's mask, whose mean of an empty text is not a number.
        is_word = ops.expand_dims(ops.cast(ops.not_equal(words, 0), "float32"), -1)
        for filters in sizes if name == "cnn" else []:
            convolved = keras.layers.Conv1D(
                filters, 3, padding="same", activation="relu"
            )
            x = convolved(x * is_word)
        total = ops.sum(x * is_word, axis=1)
        return text, total / ops.maximum(ops.sum(is_word, axis=1), 1.0)

    return build


def _sound(name: str, shape: tuple, sample_rate: int, sizes: list[int]) -> Front:
    (samples,) = shape
    stride = 2 ** max(4, int(math.log2(samples / 48)))

    def build() -> tuple[Any, Any]:
        sound = keras.Input(shape, name="sound")
        # In decibels Keras's layer makes the loudest of a batch the measure of all.
        power = keras.layers.MelSpectrogram(
            fft_length=2 * stride,
            sequence_stride=stride,
            sampling_rate=sample_rate,
            num_mel_bins=_MEL_BINS,
            power_to_db=False,
            name="mel",
        )(sound)
        x = ops.expand_dims(ops.log(power + 1e-6), -1)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        if name == "cnn":
            return sound, _convolved(x, sizes)
        mean, most = ops.mean(x, axis=2), ops.max(x, axis=2)
        return sound, keras.layers.Flatten()(ops.concatenate([mean, most], -1))

    return build


def _convolved_sequences(
    shape: tuple, inputs: tf.data.Dataset, sizes: list[int]
) -> Front:
    mean, variance = _moments(_looked_at(inputs))

    def build() -> tuple[Any, Any]:
        sequence = keras.Input(shape, name="sequence")
        x = _normalized(mean, variance)(sequence)
        for filters in sizes:
            x = keras.layers.Conv1D(filters, 3, padding="same", use_bias=False)(x)
            x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
            x = keras.layers.MaxPooling1D(2, padding="same")(x)
        return sequence, keras.layers.GlobalAveragePooling1D()(x)

    return build


def _convolved(x: Any, sizes: list[int]) -> Any:
    for filters in sizes:
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
        x = keras.layers.MaxPooling2D(2, padding="same")(x)
    return keras.layers.GlobalAveragePooling2D(name="features")(x)
