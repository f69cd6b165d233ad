"""What brings features of different shapes together: a linear map, a grid, a pooling."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

AUTO = "auto"


def channels_last(features: Any) -> Any:
    """Returns maps with their channels last, where Keras is set to have them first."""
    if not _are_first(len(features.shape)):
        return features
    rank = len(features.shape)
    return ops.transpose(features, (0, *range(2, rank), 1))


def shape_channels_last(shape: tuple) -> tuple:
    """Returns the shape that `channels_last` gives."""
    return (shape[0], *shape[2:], shape[1]) if _are_first(len(shape)) else tuple(shape)


def _are_first(rank: int) -> bool:
    return rank > 3 and keras.config.image_data_format() == "channels_first"


def to_one_grid(one: Any, other: Any) -> tuple[Any, Any]:
    """Returns two maps `(batch, ..., channels)`, averaged over areas to the smaller size.

    Each cell is the mean of what it covers, by axis; of two sequences nothing is changed.
    """
    if len(one.shape) != len(other.shape) or len(one.shape) < 4:
        return one, other
    for axis in range(1, len(one.shape) - 1):
        sizes = [
            each.shape[axis] if each.shape[axis] is not None else ops.shape(each)[axis]
            for each in (one, other)
        ]
        if all(isinstance(size, int) for size in sizes):
            smaller = min(sizes)
        else:
            smaller = ops.minimum(*sizes)
        one, other = (
            _averaged(each, axis, size, smaller)
            for each, size in zip((one, other), sizes, strict=True)
        )
    return one, other


def _averaged(maps: Any, axis: int, size: Any, smaller: Any) -> Any:
    if isinstance(smaller, int) and size == smaller:
        return maps
    shape = list(ops.shape(maps))
    if isinstance(smaller, int) and size % smaller == 0:
        parts = [*shape[:axis], smaller, size // smaller, *shape[axis + 1 :]]
        return ops.mean(ops.reshape(maps, parts), axis + 1)
    # Cell i covers [i * size, (i + 1) * size), column j [j * smaller, (j + 1) * smaller).
    start = ops.expand_dims(ops.arange(smaller) * size, 1)
    column = ops.expand_dims(ops.arange(size) * smaller, 0)
    covered = ops.minimum(start + size, column + smaller) - ops.maximum(start, column)
    share = ops.cast(ops.maximum(covered, 0), maps.dtype) / ops.cast(size, maps.dtype)
    moved = ops.moveaxis(maps, axis, -1)
    return ops.moveaxis(ops.matmul(moved, ops.transpose(share)), -1, axis)


def pooled(features: Any) -> Any:
    """Returns the mean over all positions, `(batch, channels)`."""
    return ops.mean(features, list(range(1, len(features.shape) - 1)))


def cloned(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Returns a layer with weights of its own that start at the same values.

    Raises:
        ValueError: if the layer does not say how to make it again.
    """
    try:
        if isinstance(layer, keras.Model) and getattr(layer, "inputs", None):
            clone = keras.models.clone_model(layer)
        else:
            clone = type(layer).from_config(layer.get_config())
    except Exception as error:
        raise ValueError(
            f"adapter {layer.name!r} cannot be copied, and each distiller needs one of its "
            f"own ({error}); write get_config and from_config for {type(layer).__name__}."
        ) from error
    if layer.built and layer.variables:
        if not clone.built:
            clone.build_from_config(layer.get_build_config())
        clone.set_weights(layer.get_weights())
    return clone


def built_output_shape(layer: keras.layers.Layer, shape: tuple) -> tuple:
    """Builds a layer for features of this shape and returns the shape that it gives.

    Raises:
        ValueError: if it does not take them, or gives other than one tensor.
    """
    try:
        output = layer(keras.KerasTensor(shape, "float32"))
    except Exception as error:
        raise ValueError(
            f"adapter {layer.name!r} does not take the student's features, of shape "
            f"{shape} ({error}); give one that does."
        ) from error
    if not isinstance(output, keras.KerasTensor):
        raise ValueError(
            f"adapter {layer.name!r} must give one tensor, got {output!r}; give a layer "
            "with one output."
        )
    return tuple(output.shape)


def linear_map(student: int, teacher: int, layer_name: str) -> keras.layers.Dense:
    """Returns a built `Dense`, which on maps is a 1x1 convolution."""
    safe = "".join(c if c.isalnum() else "_" for c in layer_name)
    layer = keras.layers.Dense(teacher, dtype="float32", name=f"adapt_{safe}")
    layer.build((None, student))
    return layer
