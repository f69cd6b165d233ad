"""Maps of classes on another grid: bilinear, by one small matrix for each axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops


def bilinear(given: Any, wanted: Any, xp: Any = np) -> Any:
    """Returns the matrix `(wanted, given)` that resizes an axis, its rows summing to 1.

    The pixels' centres are at half numbers. On a smaller grid each pixel is the mean of those
    that it covers, weighted by a triangle, so that none is left out: as `tf.image.resize`
    with `antialias=True`.

    Args:
        given: int or int32 scalar, size of the axis.
        wanted: likewise, size that it is to have.
        xp: `numpy` (default, in float64), or `keras.ops` (in float32) for scalars of a graph.
    """
    dtype = "float64" if xp is np else "float32"
    step = (
        xp.cast(given, dtype) / xp.cast(wanted, dtype) if xp is ops else given / wanted
    )
    reach = xp.maximum(step, 1.0)
    centre = (xp.arange(wanted, dtype=dtype) + 0.5) * step
    pixel = xp.arange(given, dtype=dtype) + 0.5
    weight = xp.maximum(1.0 - xp.abs(pixel[None] - centre[:, None]) / reach, 0.0)
    return weight / xp.sum(weight, -1, keepdims=True)


def is_map(shape: Sequence | None) -> bool:
    """Tells whether an output `(batch, ..., classes)` has two axes of space or more."""
    return shape is not None and len(shape) >= 4


def are_maps_of_two_sizes(ours: Sequence, theirs: Sequence) -> bool:
    """Tells whether two maps of classes differ in nothing but space, or may do.

    Args:
        ours: static shape `(batch, ..., classes)`, `None` for an axis that is not known.
        theirs: likewise.
    """
    if not is_map(ours) or len(ours) != len(theirs):
        return False
    return any(
        a is None or a != b for a, b in zip(ours[1:-1], theirs[1:-1], strict=True)
    )


def resize(values: Any, sizes: Sequence) -> Any:
    """Returns a batch of maps on another grid.

    Args:
        values: tensor `(batch, *space, ...)`.
        sizes: of the axes of space that are wanted: ints, or scalars of a graph.
    """
    for axis, wanted in enumerate(sizes, 1):
        given = values.shape[axis]
        if isinstance(given, int) and isinstance(wanted, int):
            if given != wanted:
                matrix = bilinear(given, wanted)
                values = _times(ops.cast(matrix, values.dtype), values, axis)
            continue
        given = ops.shape(values)[axis]
        matrix = ops.cast(bilinear(given, wanted, ops), values.dtype)
        values = ops.cond(
            ops.equal(given, wanted),
            lambda values=values: values,
            lambda values=values, matrix=matrix, axis=axis: _times(
                matrix, values, axis
            ),
        )
    return values


def _times(matrix: Any, values: Any, axis: int) -> Any:
    shape = list(ops.shape(values))
    inner = ops.shape(matrix)[0]
    # (before, axis, after): no transposition.
    flat = ops.reshape(values, (-1, shape[axis], _product(shape[axis + 1 :])))
    return ops.reshape(
        ops.matmul(matrix, flat), (*shape[:axis], inner, *shape[axis + 1 :])
    )


def _product(sizes: Sequence) -> Any:
    product: Any = 1
    for size in sizes:
        product = product * size
    return product


def resized_array(values: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Returns a batch of maps on another grid, as `resize` does.

    Args:
        values: `(batch, *space, ...)`.
        sizes: of the axes of space that are wanted.
    """
    for axis, wanted in enumerate(sizes, 1):
        if (given := values.shape[axis]) != wanted:
            matrix = bilinear(given, wanted).astype(values.dtype)
            moved = np.tensordot(matrix, values, (1, axis))
            values = np.moveaxis(moved, 0, axis)
    return values


def nearest(labels: Any, sizes: Sequence) -> Any:
    """Returns maps of whole numbers on another grid, each pixel that nearest to its centre.

    Args:
        labels: tensor `(batch, *space)`.
        sizes: of the axes of space that are wanted.
    """
    for axis, wanted in enumerate(sizes, 1):
        given = ops.shape(labels)[axis]
        # floor((i + 1/2) * given / wanted), in whole numbers.
        pixel = (2 * ops.arange(wanted, dtype="int32") + 1) * given // (2 * wanted)
        labels = ops.take(labels, pixel, axis)
    return labels
