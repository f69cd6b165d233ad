"""Sample and class weights, in the shapes that losses of any rank take."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.structures import at, by_output


def step_weights(
    sample_weight: Any, class_weight: Any, y: Any, y_pred: Any, kind: Any = None
) -> Any:
    """Returns the weights of a step's examples, by output; `None` for none.

    Args:
        sample_weight: that came with the batch.
        class_weight: dict of weights by class, as given to `fit`; in place of these.
        y: labels.
        y_pred: the student's outputs.
        kind: of the only output, where there are class weights.
    """
    if class_weight and y is not None:
        table = class_weight_table(class_weight, y_pred.shape, kind)
        sample_weight = weights_of_labels(table, y, y_pred)
    return weights_by_output(sample_weight, y_pred)


def weights_by_output(sample_weight: Any, y_pred: Any) -> Any:
    """Gives each output its sample weights, with trailing axes to broadcast.

    Keras multiplies `(batch,)` weights with `(batch, time)` losses as they stand, which
    fails, or is wrong where batch equals time.
    """
    if sample_weight is None:
        return None
    if not isinstance(y_pred, (dict, list, tuple)):
        weight = keras.tree.flatten(sample_weight)[0]
        return weight_for(weight, len(y_pred.shape) - 1)
    nested = isinstance(sample_weight, (dict, list, tuple))
    weights = {
        key: weight_for(
            sample_weight[key] if nested else sample_weight, len(output.shape) - 1
        )
        for key, output in by_output(y_pred)
    }
    return weights if isinstance(y_pred, dict) else list(weights.values())


def weight_for(weight: Any, rank: int) -> Any:
    """Returns the weight with axes of size 1 added at the end, up to `rank`."""
    if weight is None:
        return None
    weight = ops.convert_to_tensor(weight)
    missing = rank - len(weight.shape)
    return (
        ops.reshape(weight, (*ops.shape(weight), *[1] * missing))
        if missing > 0
        else (weight)
    )


def weight_in_shape(factors: list, shape: tuple) -> Any:
    """Returns the product of weights and masks, the mean over axes that a shape has not.

    Args:
        factors: of leading axes of the shape, longer ones, or `None`.
        shape: `(batch, ...)`.

    Returns:
        float32 of the shape, or `None` if all are.
    """
    factors = [ops.cast(one, "float32") for one in factors if one is not None]
    if not factors:
        return None
    rank = max([len(shape), *(len(one.shape) for one in factors)])
    # The product first: a position that either leaves out counts for nothing.
    found = math.prod(weight_for(one, rank) for one in factors)
    if rank > len(shape):
        found = ops.mean(found, [*range(len(shape), rank)])
    return ops.broadcast_to(found, shape)


def weight_at_positions(weight: Any, values: Any) -> Any:
    """Returns sample weights, which are of an output, for the positions of a hidden layer.

    A map's weights are averaged over the areas of the layer's grid. Where positions do not
    correspond, as of two sequences of different lengths, each example has its mean weight.

    Args:
        weight: `(batch, ...)`, or `None`.
        values: `(batch, ...)`, of the layer.

    Returns:
        float `(batch, ...)`, which broadcasts to `values`; or `None`.
    """
    if weight is None:
        return None
    weight = ops.convert_to_tensor(weight)
    while len(weight.shape) > 1 and weight.shape[-1] == 1:
        weight = ops.squeeze(weight, -1)
    ours, theirs = weight.shape[1:], values.shape[1:]
    shared = min(len(ours), len(theirs))
    if any(of_output != 1 for of_output in ours):
        weight = ops.cast(weight, "float32")
        if len(ours) > shared:
            weight = ops.mean(weight, [*range(1 + shared, len(weight.shape))])
        are_maps = len(ours) == len(theirs) > 1
        for axis in range(1, 1 + shared):
            sizes = weight.shape[axis], values.shape[axis]
            if None in sizes or sizes[0] != sizes[1]:
                sizes = tuple(
                    ops.shape(one)[axis] if size is None else size
                    for one, size in zip((weight, values), sizes, strict=True)
                )
                find = _areas if are_maps else _same_or_mean
                share = ops.cast(find(*sizes), weight.dtype)
                moved = ops.matmul(ops.moveaxis(weight, axis, -1), share)
                weight = ops.moveaxis(moved, -1, axis)
    return weight_for(weight, len(values.shape))


def _areas(given: Any, wanted: Any) -> Any:
    """Returns the share `(given, wanted)` of each wanted cell of an axis in a given one."""
    # Cell i covers [i * wanted, (i + 1) * wanted), column j [j * given, (j + 1) * given).
    start = ops.expand_dims(ops.arange(given) * wanted, 1)
    column = ops.expand_dims(ops.arange(wanted) * given, 0)
    covered = ops.minimum(start + wanted, column + given) - ops.maximum(start, column)
    return ops.maximum(covered, 0) / given


def _same_or_mean(given: Any, wanted: Any) -> Any:
    """Returns the matrix `(given, wanted)` of each position itself, or else of their mean."""
    positions = ops.expand_dims(ops.arange(given), 1)
    is_same = ops.equal(positions, ops.expand_dims(ops.arange(wanted), 0))
    mean = ops.ones_like(is_same, "float32") / ops.cast(given, "float32")
    return ops.where(ops.equal(given, wanted), ops.cast(is_same, "float32"), mean)


def weights_by_example(sample_weight: Any, mask: Any, shape: tuple) -> Any:
    """Returns the weights of values of whole examples, whose positions may have a mask.

    As Keras takes a mean: examples that are masked whole are not there.

    Args:
        sample_weight: `None`, or of leading axes of the layer's output.
        mask: bool `(batch, ...)`, or `None`.
        shape: of the values, `(batch,)`.

    Returns:
        float32 `(batch,)`, or `None`.
    """
    if mask is None:
        return weight_in_shape([sample_weight], shape)
    axes = [*range(1, len(mask.shape))]
    counts = ops.cast(ops.any(mask, axes) if axes else mask, "float32")
    size = ops.cast(shape[0], "float32")
    counts = counts * size / ops.maximum(ops.sum(counts), 1.0)
    return weight_in_shape([sample_weight, counts], shape)


def class_weight_table(
    class_weight: dict[int, float], shape: tuple, kind: Any = None
) -> np.ndarray:
    """Returns `class_weight` as float32 `(classes,)`, 1 where it says nothing.

    Args:
        class_weight: dict of weights by class; of a yes/no question, 0 is no and 1 yes.
        shape: of the output, `(batch, ..., classes)`.
        kind: of the output.

    Raises:
        ValueError: if it names a class that does not exist, or there are none.
    """
    classes = shape[-1]
    if kind == "sigmoid" and classes == 1:
        classes = 2
    elif kind in ("sigmoid", "values"):
        what = "values" if kind == "values" else f"{classes} yes/no questions"
        raise ValueError(
            f"class_weight is for classes that exclude each other, and the output is {what}; "
            "give sample weights."
        )
    outside = [c for c in class_weight if not 0 <= c < classes]
    if outside:
        raise ValueError(
            f"class_weight names the class {outside[0]}, but the classes go from 0 to "
            f"{classes - 1}."
        )
    table = np.ones(classes, "float32")
    table[list(class_weight)] = list(class_weight.values())
    return table


def weights_of_labels(table: np.ndarray, y: Any, y_pred: Any) -> Any:
    """Returns the weight of each label, `(batch, ...)`, for integer or one-hot labels.

    Keras takes the last axis of `(batch, time)` labels for one-hot classes.
    """
    y = _class_numbers(y, len(y_pred.shape), len(table))
    if len(table) == 2 and y_pred.shape[-1] == 1:  # labels that were smoothed, too
        y = ops.cast(y, "float32") >= 0.5
    return ops.take(ops.convert_to_tensor(table), ops.cast(y, "int32"))


def _class_numbers(y: Any, rank: int, classes: int) -> Any:
    """Returns labels that may be one-hot, or have a last axis of 1, as numbers of classes."""
    y = ops.convert_to_tensor(y)
    if len(y.shape) < rank:
        return y
    return ops.argmax(y, -1) if y.shape[-1] == classes else ops.squeeze(y, -1)


def class_numbers(y: Any, y_pred: Any, losses: dict, compared: list) -> dict[Any, Any]:
    """Returns the class of each label by output, int32 `(batch, ...)`.

    Args:
        y: labels, whole numbers or one-hot, in the structure of the outputs.
        y_pred: the student's outputs, `(batch, ..., classes)`.
        losses: by output; labels of their `ignore_class` are -1.
        compared: keys of the outputs whose labels are wanted.

    Raises:
        ValueError: if one of these outputs has no labels.
    """
    found = {}
    labels_by_output = dict(by_output(y))
    for key in compared:
        labels, output = labels_by_output.get(key), at(y_pred, key)
        if labels is None:
            raise ValueError(
                f"the distillation loss of the output {key!r} compares by the label, as "
                "DecoupledLoss does, and the batches have no labels of that output; give "
                "them, or another distillation loss."
            )
        numbers = _class_numbers(labels, len(output.shape), output.shape[-1])
        numbers = ops.cast(numbers, "int32")
        ignored = getattr(losses.get(key), "ignore_class", None)
        if ignored is not None:
            numbers = ops.where(numbers == ignored, -1, numbers)
        found[key] = numbers
    return found
