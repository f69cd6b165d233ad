"""Students with a `compute_loss` of their own, such as detectors, which match boxes in it."""

from __future__ import annotations

import inspect
from typing import Any

import keras
from keras import ops

_NO_WEIGHTS = (
    "the hard loss is the compute_loss of the student {name!r} itself, which sample weights and "
    "class weights cannot be known to act on; leave them out."
)


def has_own_loss(student: keras.Model, loss: Any) -> bool:
    """Tells whether the hard loss is the student's own `compute_loss`.

    Args:
        student: any.
        loss: as given to the distiller's `compile`.
    """
    overrides = type(student).compute_loss is not keras.Model.compute_loss
    return loss is None and overrides and student.compiled


def own_loss(student: keras.Model, x: Any, y: Any, y_pred: Any, training: bool) -> Any:
    """Returns a student's own loss of a batch, a float32 scalar, with its regularisation."""
    takes = inspect.signature(student.compute_loss).parameters
    given = {"training": training} if "training" in takes else {}
    loss = student.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=None, **given)
    return ops.cast(loss, "float32")


def check_no_weights(student: keras.Model, *weights: Any) -> None:
    """Refuses sample and class weights, which a student's own loss cannot take.

    Raises:
        ValueError: if there are any.
    """
    if any(one is not None for one in weights):
        raise ValueError(_NO_WEIGHTS.format(name=student.name))


def check_own_loss(
    student: keras.Model, x: Any, y: Any, sample_weight: Any, class_weight: Any
) -> None:
    """Refuses what a student's own loss cannot take; has it make its variables.

    Args:
        student: built.
        x: of a first batch.
        y: its labels, as the student takes them; `None` for none.
        sample_weight: must be `None`.
        class_weight: must be `None`.

    Raises:
        ValueError: if there are weights, or the loss is no finite number.
    """
    check_no_weights(student, sample_weight, class_weight or None)
    if y is None:
        return
    loss = own_loss(student, x, y, student(x, training=False), training=False)
    if len(loss.shape) or not bool(ops.isfinite(loss)):
        raise ValueError(
            f"the compute_loss of the student {student.name!r} must give one finite number for "
            f"a batch, got {ops.convert_to_numpy(loss)!r}; look at the labels of batch 0."
        )
