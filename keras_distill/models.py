"""Small reference architectures for the demo, the examples and the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill.arguments import check_each, check_float, check_int


def mlp(
    input_shape: Sequence[int],
    classes: int,
    hidden: Sequence[int] = (800, 800),
    *,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    max_norm: float | None = None,
    name: str | None = None,
) -> keras.Sequential:
    """Returns a fully connected network of rectified units that ends in logits.

    Args:
        input_shape: of one example; it is flattened.
        classes: number of logits.
        hidden: units of each hidden layer.
        dropout: rate after each hidden layer, from 0 to below 1.
        input_dropout: rate on the inputs, likewise.
        max_norm: largest norm of a unit's incoming weights, or `None` for no limit.
        name: str.

    Raises:
        ValueError: if an argument is of another kind or out of range.

    Example:
    >>> mlp((28, 28, 1), 10, (1200, 1200), dropout=0.5).count_params()
    2395210

    Reference: the MNIST networks of arXiv:1503.02531, section 3.
    """
    input_shape = _sizes("input_shape", input_shape)
    classes = check_int("classes", classes, 1)
    hidden = _sizes("hidden", hidden)
    dropout = _rate("dropout", dropout)
    input_dropout = _rate("input_dropout", input_dropout)
    if max_norm is not None:
        max_norm = check_float("max_norm", max_norm, "a number > 0", lambda n: n > 0)
    constraint = None if max_norm is None else keras.constraints.MaxNorm(max_norm)
    layers: list[keras.layers.Layer] = [
        keras.Input(input_shape, name="image"),
        keras.layers.Flatten(),
    ]
    if input_dropout:
        layers.append(keras.layers.Dropout(input_dropout))
    for index, units in enumerate(hidden):
        layers.append(
            keras.layers.Dense(
                units,
                activation="relu",
                kernel_constraint=constraint,
                name=f"hidden_{index + 1}",
            )
        )
        if dropout:
            layers.append(keras.layers.Dropout(dropout))
    layers.append(keras.layers.Dense(classes, name="logits"))
    return keras.Sequential(layers, name=name)


def cnn(
    input_shape: Sequence[int],
    classes: int,
    filters: Sequence[int] = (32, 64),
    *,
    dense: int = 128,
    dropout: float = 0.0,
    name: str | None = None,
) -> keras.Sequential:
    """Returns a small convolutional network that ends in logits.

    One 3x3 convolution with batch normalisation and 2x2 pooling for each entry of
    `filters`, then global average pooling and a hidden layer.

    Args:
        input_shape: `(height, width, channels)`, in pixels; height and width may be `None`.
        classes: number of logits.
        filters: filters of each convolution.
        dense: units of the hidden layer.
        dropout: rate before the hidden layer and before the logits, from 0 to below 1.
        name: str.

    Raises:
        ValueError: if an argument is of another kind or out of range, or the image is
            smaller than the poolings leave a pixel of.

    Example:
    >>> cnn((8, 8, 1), 10, (16, 32)).output_shape
    (None, 10)
    """
    filters = _sizes("filters", filters)
    image_shape = _image_shape(input_shape, len(filters))
    classes = check_int("classes", classes, 1)
    dense = check_int("dense", dense, 1)
    dropout = _rate("dropout", dropout)
    layers: list[keras.layers.Layer] = [keras.Input(image_shape, name="image")]
    for index, count in enumerate(filters):
        layers += [
            keras.layers.Conv2D(
                count, 3, padding="same", use_bias=False, name=f"conv_{index + 1}"
            ),
            # Keras's 0.99 needs more steps than a small dataset has.
            keras.layers.BatchNormalization(momentum=0.9, name=f"norm_{index + 1}"),
            keras.layers.ReLU(name=f"relu_{index + 1}"),
            keras.layers.MaxPooling2D(2, name=f"pool_{index + 1}"),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(name="features")]
    if dropout:
        layers.append(keras.layers.Dropout(dropout))
    layers.append(keras.layers.Dense(dense, activation="relu", name="hidden"))
    if dropout:
        layers.append(keras.layers.Dropout(dropout))
    layers.append(keras.layers.Dense(classes, name="logits"))
    return keras.Sequential(layers, name=name)


def _rate(name: str, value: Any) -> float:
    limits = "a number from 0 to below 1"
    return check_float(name, value, limits, lambda rate: 0.0 <= rate < 1.0)


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    check = lambda what, one: check_int(what, one, 1)  # noqa: E731
    return tuple(check_each(name, value, check, "whole numbers >= 1"))


def _image_shape(value: Any, poolings: int) -> tuple[int | None, ...]:
    def check(name: str, size: Any) -> int | None:
        return None if size is None else check_int(name, size, 1)

    kind = "whole numbers, (height, width, channels)"
    *image, channels = check_each("input_shape", value, check, kind, 3, 3)
    least = 2**poolings
    if any(size is not None and size < least for size in image):
        raise ValueError(
            f"input_shape must be an image of {least} x {least} pixels at least, which "
            f"{poolings} poolings halve to one, got {(*image, channels)}; give fewer filters."
        )
    return (*image, check_int("the channels of input_shape", channels, 1))
