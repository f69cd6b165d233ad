"""What labels and weights must be: looked at on the host before a run, and in each step.

A `Fault` holds for arrays and for tensors of a graph alike: its formula is written once,
for NumPy or for `keras.ops`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill.arguments import check_float, check_int
from keras_distill.last_layers import is_of_keras, kind_of_loss, loss_name
from keras_distill.structures import at, by_output, has_several


class Fault(NamedTuple):
    """What is wrong with data, where it is.

    Attributes:
        sentence: with `{value}` and `{where}` to be filled in.
        is_bad: bool array of any shape.
        value: what is said of it; of the same shape.
    """

    sentence: str
    is_bad: Any
    value: Any


def said(sentence: str, value: float, where: str) -> str:
    """Returns the message of a fault."""
    return sentence.format(value=f"{value:.7g}", where=where)


def check_labels(
    y: Any, shapes: dict, loss: Any, sample_weight: Any = None, where: str = "the data"
) -> None:
    """Refuses labels of another kind than the loss takes, or out of range, and weights.

    Args:
        y: one array, or a dict or list of them; `None` for no labels.
        shapes: of the student's outputs, by output.
        loss: as given to `compile`.
        sample_weight: array, or a dict or list of them; `None` for none.
        where: they stand, for the error.

    Raises:
        ValueError: naming what is wrong, and where.
    """
    y = keras.tree.map_structure(_as_array, y)
    for fault in faults_of(
        y, shapes, loss, keras.tree.map_structure(_as_array, sample_weight)
    ):
        is_bad = np.asarray(fault.is_bad)
        if is_bad.any():
            value = np.broadcast_to(fault.value, is_bad.shape)[is_bad].flat[0]
            raise ValueError(said(fault.sentence, float(value), where))


def losses_that_check(loss: Any, losses: dict, y: Any, shapes: dict, by: list) -> Any:
    """Returns losses by which labels are checked, also those that no loss of Keras takes.

    Args:
        loss: as given to `compile`.
        losses: the same by output.
        y: labels in the structure of the outputs.
        shapes: of the student's outputs, by output.
        by: keys of the outputs that are compared by the label.

    Returns:
        As `faults_of` takes them.
    """
    checked = dict(losses)
    for key, labels in by_output(y):
        one, shape = losses.get(key), shapes.get(key)
        if key not in by or shape is None or (one is not None and is_of_keras(one)):
            continue
        if _axes_of(labels) is None:
            continue
        ours = tuple(labels.shape)
        if len(ours) == len(shape) and ours[-1] == shape[-1] > 1:
            continue  # rows, of whatever: the largest is the class
        checked[key] = keras.losses.SparseCategoricalCrossentropy(
            ignore_class=-1 if one is None else getattr(one, "ignore_class", None)
        )
    return checked if checked != losses else loss


def whole_if_small(values: Any) -> Any:
    """Returns arrays that are quickly looked at whole; `None` for others."""
    sizes = [
        math.prod(getattr(part, "shape", ())) for part in keras.tree.flatten(values)
    ]
    return values if sum(sizes) <= 2**24 else None


def _as_array(values: Any) -> Any:
    return None if values is None else np.asarray(values)


def faults_of(
    y: Any, shapes: dict, loss: Any, sample_weight: Any, masks: Any = None
) -> Iterator[Fault]:
    """Yields what may be wrong with labels and weights.

    Args:
        y: one array or tensor, or a dict or list of them, or `None`.
        shapes: of the student's outputs, by output.
        loss: as given to `compile`.
        sample_weight: in the structure of `y`, or one for all; `None` for none.
        masks: Keras mask by output; `None` on the host, where none is known.

    Raises:
        ValueError: if shapes or dtypes already tell that the loss cannot take the labels.
    """
    for weight in keras.tree.flatten(sample_weight):
        if weight is not None:
            weight = _in_float(weight)
            if isinstance(weight, np.ndarray):  # as the step will have it
                with np.errstate(over="ignore"):
                    weight = weight.astype("float32")
            yield Fault(
                "sample weights must be finite numbers >= 0, got {value} in {where}, as float32.",
                ~((weight >= 0) & (weight < math.inf)),
                weight,
            )
    losses = dict(by_output(loss)) if has_several(loss) else None
    for key, values in by_output(y):
        one = loss if losses is None else losses.get(key)
        first = next(iter(shapes.values()), None) if key is None else None
        shape = shapes.get(key, first)
        is_dense = isinstance(values, (np.ndarray, tf.Tensor))
        if one is None or not is_dense or shape is None:
            continue
        _check_shape_of_weights(weight := at(sample_weight, key), tuple(shape))
        mask = None if masks is None else masks.get(key, masks.get(None))
        yield from _of_one_output(
            values, tuple(shape), one, weight, mask, on_host=masks is None
        )


def _of_one_output(
    y: Any, shape: tuple, loss: Any, weight: Any, mask: Any, on_host: bool
) -> Iterator[Fault]:
    name = loss_name(loss).lower()
    dtype, axes = _dtype_of(y), _axes_of(y)
    is_float = "float" in dtype
    if not is_of_keras(loss):  # it may take whatever it likes
        return
    if not ("crossentropy" in name and "categorical" in name):
        kind = kind_of_loss(loss)
        if kind in ("sigmoid", "values"):
            _check_shape_of_numbers(y, dtype, shape, kind)
        if is_float:
            yield _not_finite(y)
        if kind == "sigmoid" and dtype != "bool":
            yield _of_yes_or_no(y)
        return
    classes = shape[-1]
    if not ("int" in dtype or is_float or dtype == "bool"):
        raise ValueError(
            f"labels must be numbers, got dtype {dtype}; map class names to integers "
            f"from 0 to {classes - 1}."
        )
    if axes is None:  # what a py_function gives
        return
    if "sparse" in name:
        _check_shape_of_integers(tuple(y.shape), shape)
        yield from _of_integers(
            y, classes, getattr(loss, "ignore_class", None), is_float
        )
        return
    if axes < 2 or y.shape[-1] != classes:
        raise ValueError(
            f"the loss takes one-hot labels with {classes} columns, got labels of shape "
            f"{tuple(y.shape)}; for integer labels use "
            "keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
        )
    is_half = dtype in ("float16", "bfloat16")
    yield from _of_rows(y, weight, mask, 2e-2 if is_half else 1e-3, on_host)


def _check_shape_of_integers(ours: tuple, outputs: tuple) -> None:
    """Refuses labels that cannot be one integer for each softmax."""
    classes, axes = outputs[-1], len(ours)
    if axes == len(outputs) and ours[-1] == classes > 1:
        raise ValueError(
            "the labels are one-hot but the loss is sparse; use "
            "keras.losses.CategoricalCrossentropy(from_logits=True), or integer labels."
        )
    inner = ours[:-1] if axes == len(outputs) and ours[-1] == 1 else ours
    if len(inner) != len(outputs) - 1 or any(
        a is not None and b is not None and a != b
        for a, b in zip(inner[1:], outputs[1:-1], strict=True)
    ):
        wanted = ("batch", *outputs[1:-1])
        raise ValueError(
            f"the loss takes one integer label for each softmax, in the shape {wanted}, "
            f"got labels of shape {ours}."
        )


def _check_shape_of_numbers(y: Any, dtype: str, outputs: tuple, kind: str) -> None:
    """Refuses labels that are not one number for each of the outputs'."""
    ours = "yes/no questions" if kind == "sigmoid" else "values"
    if not ("int" in dtype or "float" in dtype or dtype == "bool"):
        raise ValueError(
            f"labels must be numbers, got dtype {dtype}; the loss compares them with the "
            f"student's {ours}."
        )
    shape = None if _axes_of(y) is None else tuple(y.shape)
    if shape is None or len(outputs) < 2 or outputs[-1] in (None, 1):
        return
    if len(shape) < len(outputs) or shape[-1] not in (None, outputs[-1]):
        raise ValueError(
            f"the student's outputs are {outputs[-1]} {ours}, so that labels must have the "
            f"shape {('batch', *outputs[1:])}, got {shape}. For classes that exclude each other "
            "use keras.losses.SparseCategoricalCrossentropy or CategoricalCrossentropy."
        )


def _of_yes_or_no(y: Any) -> Fault:
    values = _in_float(y)
    return Fault(
        "labels of yes/no questions must be from 0 to 1, got {value} in {where}.",
        (values < 0) | (values > 1),
        values,
    )


def _check_shape_of_weights(weight: Any, outputs: tuple) -> None:
    """Refuses weights that are not one for each softmax, or for all of an example."""
    shape = getattr(weight, "shape", ())
    if getattr(shape, "rank", 0) is None:
        return
    axes, ours = tuple(outputs[1:-1]), tuple(shape)[1:]
    ours = ours[:-1] if len(ours) > len(axes) and ours[-1] == 1 else ours
    if len(ours) > len(axes) or any(
        a is not None and b is not None and a not in (1, b)
        for a, b in zip(ours, axes, strict=False)
    ):
        whole = ("batch", *axes)
        raise ValueError(
            f"sample weights must have the shape ('batch',){f' or {whole}' * bool(axes)}, "
            f"got {tuple(shape)}."
        )


def _of_integers(
    y: Any, classes: int, ignored: int | None, is_float: bool
) -> Iterator[Fault]:
    values = _in_float(y)
    # NaN passes no comparison, so that it is found with what is no whole number.
    outside = (values < 0) | (values >= classes)
    if ignored is not None:
        outside = outside & (values != ignored)
    if is_float:
        floor = np.floor if isinstance(values, np.ndarray) else ops.floor
        yield Fault(
            f"labels must be whole numbers from 0 to {classes - 1}, got {{value}} in "
            "{where}.",
            ~(values == floor(values)),
            values,
        )
    yield Fault(
        f"labels must be from 0 to {classes - 1}, since the student has {classes} "
        "classes; got {value} in {where}.",
        outside,
        values,
    )


def _of_rows(
    y: Any, weight: Any, mask: Any, tolerance: float, on_host: bool
) -> Iterator[Fault]:
    """Yields the faults of one-hot or soft labels."""
    values = _in_float(y)
    xp = np if isinstance(values, np.ndarray) else ops
    least, total = xp.min(values, -1), xp.sum(values, -1)
    yield Fault(
        "one-hot labels must be >= 0, got {value} in {where}.", least < -1e-5, least
    )
    # TensorFlow makes `a > b` of `~(a <= b)`, which NaN passes.
    off = (abs(total - 1.0) > tolerance) | ~xp.isfinite(total)
    # Rows of zeros stand where there is nothing to learn, if weight or mask say so.
    counts, axes = None, len(total.shape)
    if weight is not None:
        if len(weight.shape) > axes and weight.shape[-1] == 1:
            weight = weight[..., 0]
        counts = weight[(..., *[None] * (axes - len(weight.shape)))] != 0
    if mask is not None and len(mask.shape) == len(total.shape):
        mask = ops.cast(mask, "bool")
        counts = mask if counts is None else counts & mask
    if on_host and len(total.shape) > 1:  # masks are known in the step alone
        is_something = total != 0
        counts = is_something if counts is None else counts & is_something
    if counts is not None:
        off = off & (counts | ~xp.isfinite(total))
    yield Fault(
        "one-hot labels must sum to 1, got a row with the sum {value} in {where}; where "
        "there is no label, give a sample weight of 0.",
        off,
        total,
    )


def _not_finite(y: Any) -> Fault:
    values = _in_float(y)
    return Fault(
        "labels must be finite, got {value} in {where}.",
        ~(np if isinstance(values, np.ndarray) else ops).isfinite(values),
        values,
    )


def _dtype_of(values: Any) -> str:
    return getattr(values.dtype, "name", str(values.dtype))


def _axes_of(values: Any) -> int | None:
    shape = getattr(values, "shape", None)
    if shape is None or getattr(shape, "rank", 0) is None:
        return None
    return len(shape)


def _in_float(values: Any) -> Any:
    """Returns float64 of an array; float32, in which losses are, of a tensor."""
    if isinstance(values, np.ndarray):
        return np.asarray(values, "float64")
    return ops.cast(values, "float32")


def check_class_weight(class_weight: Any) -> dict[int, float] | None:
    """Returns class weights as a plain dict; `None` if there are none.

    Raises:
        ValueError: if it is no dict of finite weights >= 0 by class number.
    """
    if class_weight is None:
        return None
    if not isinstance(class_weight, dict):
        raise ValueError(
            "class_weight must be a dict from class number to weight, got "
            f"{class_weight!r}."
        )
    return {
        check_int("a class in class_weight", one, 0): check_float(
            f"class_weight[{one!r}]",
            weight,
            "a finite number >= 0",
            lambda number: number >= 0,
        )
        for one, weight in class_weight.items()
    }
