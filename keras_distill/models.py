"""Small reference architectures for the demo, the examples and the tests."""

from __future__ import annotations

from collections.abc import Sequence

import keras


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
        dropout: rate after each hidden layer, from 0 to 1.
        input_dropout: rate on the inputs, from 0 to 1.
        max_norm: largest norm of a unit's incoming weights, or `None` for no limit.
        name: str.

    Example:
    >>> mlp((28, 28, 1), 10, (1200, 1200), dropout=0.5).count_params()
    2395210

    Reference: the MNIST networks of arXiv:1503.02531, section 3.
    """
    constraint = None if max_norm is None else keras.constraints.MaxNorm(max_norm)
    layers: list[keras.layers.Layer] = [
        keras.Input(tuple(input_shape), name="image"),
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
        input_shape: `(height, width, channels)`, in pixels.
        classes: number of logits.
        filters: filters of each convolution.
        dense: units of the hidden layer.
        dropout: rate before the hidden layer and before the logits, from 0 to 1.
        name: str.

    Example:
    >>> cnn((8, 8, 1), 10, (16, 32)).output_shape
    (None, 10)
    """
    layers: list[keras.layers.Layer] = [keras.Input(tuple(input_shape), name="image")]
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
