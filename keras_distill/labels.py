"""Labels and weights of batches that are judged, as each kind has them, or refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill import reading

#: How far the sum of a one-hot row may be from 1: what float16 makes of 1000 classes.
_ONE = 1e-2


def as_labelled(data: Any, what: str, batch_size: int) -> tf.data.Dataset:
    """Returns a finite dataset of `(x, y)` or `(x, y, sample_weight)` batches.

    Args:
        data: such a dataset, or what else `reading.read` takes.
        what: it is, for messages.
        batch_size: of arrays.

    Raises:
        TypeError: if it is of no kind that can be read.
        ValueError: if it is endless, brings no labels, or arrays differ in length.
    """
    if isinstance(data, tuple) and len(data) > 1 and data[1] is None:
        raise ValueError(f"the {what} brings no labels; it must yield (x, y).")
    data = reading.read(data, what)
    if isinstance(data, tuple):
        data = tf.data.Dataset.from_tensor_slices(data).batch(batch_size)
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            f"the {what} is endless; give it before repeat(), or take(n) batches of it."
        )
    spec = data.element_spec
    if not isinstance(spec, tuple) or len(spec) < 2 or spec[1] is None:
        raise ValueError(f"the {what} brings no labels; it must yield (x, y).")
    parts = [part for part in tf.nest.flatten(spec) if isinstance(part, tf.TensorSpec)]
    if any(part.shape.rank is None for part in parts):
        raise ValueError(
            f"the {what} does not say the shapes of its elements; give it shapes with "
            "tf.ensure_shape."
        )
    if any(part.shape.rank == 0 for part in parts):
        raise ValueError(
            f"the {what} gives single examples; give batches of them, by .batch(64)."
        )
    return data


def in_numbers(values: Any) -> np.ndarray:
    """Returns an array; what NumPy does not know as float, such as bfloat16, as float32."""
    values = np.asarray(values)
    return values.astype("float32") if values.dtype.name == "bfloat16" else values


def classes_of(
    y: Any, shape: tuple, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the class of each label that counts.

    Args:
        y: labels of a batch: whole numbers `shape[:-1]` (a last axis of 1 is taken off),
            or one-hot or soft rows of `shape`, which sum to 1.
        shape: of the model's outputs, `(batch, ..., classes)`.
        counts: bool `shape[:-1]`, which positions are judged; labels of others may be
            anything.

    Returns:
        int64 `(judged,)`, and the rows, float64 `(judged, classes)`, where they were given.

    Raises:
        ValueError: if they are not numbers, of another shape, or out of range.
    """
    y = in_numbers(y)
    classes = shape[-1]
    if y.dtype.kind not in "iufb":
        raise ValueError(
            f"labels must be numbers, got dtype {y.dtype}; map class names to integers "
            f"from 0 to {classes - 1}."
        )
    if y.shape == shape and classes > 1:
        rows = y[counts].astype("float64")
        wrong = ~((rows >= 0).all(-1) & (np.abs(rows.sum(-1) - 1) <= _ONE))
        if wrong.any():
            raise ValueError(
                "one-hot labels must be >= 0 and sum to 1 over the classes, got "
                f"{rows[wrong][0].tolist()}. Labels with several classes at once are no "
                'softmax\'s; they are for outputs of the kind "sigmoid".'
            )
        return rows.argmax(-1), rows
    if y.shape == (*shape[:-1], 1):
        y = y[..., 0]
    if y.shape != shape[:-1]:
        raise ValueError(
            f"labels must be whole numbers of shape {shape[:-1]} or one-hot of shape "
            f"{shape}, as the model's outputs have, got shape {y.shape}."
        )
    y = y[counts]
    if not np.isfinite(y).all() or (y != np.round(y)).any():
        wrong = y[~np.isfinite(y) | (y != np.round(y))][0]
        raise ValueError(
            f"labels must be whole numbers from 0 to {classes - 1}, got {wrong!s}."
        )
    outside = (y < 0) | (y >= classes)
    if outside.any():
        raise ValueError(
            f"labels must be from 0 to {classes - 1}, since the model has {classes} "
            f"classes; got {y[outside][0]!s}."
        )
    return y.astype("int64"), None


def answers_of(y: Any, shape: tuple, counts: np.ndarray) -> np.ndarray:
    """Returns the label of each yes/no question.

    Args:
        y: labels of a batch: 0, 1, bools, or the probability of a yes, in `shape`; for a
            single question the last axis may be left out.
        shape: of the model's outputs, `(batch, ..., questions)`.
        counts: bool of `shape`, which are judged; others may be anything.

    Returns:
        float64 of `shape`, 0 where it does not count.

    Raises:
        ValueError: if they are not numbers, of another shape, or out of range.
    """
    y = _one_for_each(y, shape, "yes/no questions")
    with np.errstate(invalid="ignore"):
        wrong = counts & ~((y >= 0) & (y <= 1))
    if wrong.any():
        raise ValueError(
            f"labels of yes/no questions must be from 0 to 1, got {y[wrong][0]:.7g}; if the "
            'output is of values, say output_kinds="values".'
        )
    return np.where(counts, y, 0.0)


def values_of(y: Any, shape: tuple, counts: np.ndarray) -> np.ndarray:
    """Returns the labels that count of an output of values.

    Args:
        y: numbers in `shape`; for single values the last axis may be left out.
        shape: of the model's outputs, `(batch, ..., values)`.
        counts: bool `shape[:-1]`, which positions are judged; others may be anything.

    Returns:
        float64 `(judged, values)`.

    Raises:
        ValueError: if they are not numbers, of another shape, or not finite.
    """
    y = _one_for_each(y, shape, "values")[counts]
    if not np.isfinite(y).all():
        raise ValueError(f"labels must be finite, got {y[~np.isfinite(y)][0]}.")
    return y


def _one_for_each(y: Any, shape: tuple, what: str) -> np.ndarray:
    y = in_numbers(y)
    if y.dtype.kind not in "iufb":
        raise ValueError(
            f"labels must be numbers, got dtype {y.dtype}; they are compared with the "
            f"model's {what}."
        )
    if shape[-1] == 1 and y.shape == shape[:-1]:
        y = y[..., None]
    if y.shape != shape:
        advice = '; if its classes exclude each other, say output_kinds="softmax"'
        advice = advice if shape[-1] > 1 else ""
        raise ValueError(
            f"labels must have the shape {shape} of the model's {what}, got shape "
            f"{y.shape}{advice}."
        )
    return y.astype("float64")


def is_ignored(y: Any, shape: tuple, ignored: int, by_question: bool) -> np.ndarray:
    """Tells which labels are of the class that is left out.

    Args:
        y: labels of a batch.
        shape: of the model's outputs, `(batch, ..., classes)`.
        ignored: the class, or another number that stands for no label.
        by_question: whether each of the outputs has a label of its own.

    Returns:
        bool `shape[:-1]`, or of `shape` by question; of one-hot rows, which have this class.
    """
    y = in_numbers(y)
    wanted = shape if by_question else shape[:-1]
    if y.dtype.kind not in "iufb":  # refused elsewhere
        return np.zeros(wanted, bool)
    if not by_question and y.shape == shape and shape[-1] > 1:
        one_hot = 0 <= ignored < shape[-1]
        return y[..., ignored] == 1 if one_hot else np.zeros(wanted, bool)
    found = y == ignored
    return (
        found.reshape(wanted) if y.size == math.prod(wanted) else np.zeros(wanted, bool)
    )


def weights_of(weight: Any, shape: tuple) -> np.ndarray:
    """Returns a weight for each position of a batch.

    Args:
        weight: float `(batch,)`, `(batch, 1)`, or any leading axes of `shape`; or `None`.
        shape: of the labels, `(batch, ...)`.

    Raises:
        ValueError: if they are of another shape, negative, or not finite.
    """
    if weight is None:
        return np.ones(shape)
    weight = in_numbers(weight)
    if weight.dtype.kind not in "iufb":
        raise ValueError(f"sample weights must be numbers, got dtype {weight.dtype}.")
    given, weight = weight.shape, weight.astype("float64")
    if weight.ndim > 1 and weight.shape[-1] == 1:
        weight = weight[..., 0]
    if weight.shape != shape[: weight.ndim] or not weight.ndim:
        whole = f" or {shape}" if len(shape) > 1 else ""
        raise ValueError(
            f"sample weights must have shape {shape[:1]}{whole}, one per label, got "
            f"{given}."
        )
    if not np.isfinite(weight).all() or (weight < 0).any():
        wrong = weight[~np.isfinite(weight) | (weight < 0)][0]
        raise ValueError(f"sample weights must be finite and >= 0, got {wrong!s}.")
    weight = weight.reshape(weight.shape + (1,) * (len(shape) - weight.ndim))
    return np.broadcast_to(weight, shape)
