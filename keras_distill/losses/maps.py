"""Maps of classes whose student and teacher differ in resolution, put on one grid."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_distill.keras_compat import mask_of
from keras_distill.resizing import are_maps_of_two_sizes, nearest, resize
from keras_distill.top_k import TopKLogits

_SMALLEST = 1e-30  # a share of pixels below which there are none


def on_teachers_grid(
    teacher: Any, student: Any, masked: Any, weight: Any, labels: Any
) -> tuple[Any, Any, Any, Any]:
    """Returns student, what carries its mask, weights and labels, on the teacher's grid.

    Args:
        teacher: its logits `(batch, *space, classes)`, or `TopKLogits`.
        student: its logits, of any space.
        masked: tensor with the student's Keras mask, if there is one.
        weight: sample weights `(batch, *space)` of the student, or of axes of size 1, or
            `None`. Pixels of weight 0 have no part in what the others are resized to.
        labels: int `(batch, *space)` of the student, or `None`.

    Raises:
        ValueError: if there is a Keras mask.
    """
    theirs = teacher.packed if isinstance(teacher, TopKLogits) else teacher
    ours = getattr(student, "shape", ())
    if not are_maps_of_two_sizes(ours, getattr(theirs, "shape", ())):
        return student, masked, weight, labels
    if mask_of(masked) is not None:
        if None in (*ours[1:-1], *theirs.shape[1:-1]):
            return student, masked, weight, labels  # which must agree
        raise ValueError(
            f"the student's outputs have shape {tuple(ours)} and the teacher's "
            f"{tuple(theirs.shape)}, which cannot be resized under a Keras mask; give sample "
            "weights of 0 where there is nothing."
        )
    sizes = list(ops.shape(theirs))[1:-1]
    if weight is not None:
        if len(weight.shape) == len(ours):
            weight = ops.squeeze(weight, -1)
        weight = ops.cast(weight, student.dtype)
        if any(size != 1 for size in weight.shape[1:]):
            counts = ops.expand_dims(ops.cast(weight > 0.0, student.dtype), -1)
            share = ops.maximum(resize(counts, sizes), _SMALLEST)
            student = ops.where(counts > 0.0, student, 0.0)
            student = resize(student, sizes) / share
            weight = resize(weight, sizes)
        else:
            student = resize(student, sizes)
    else:
        student = resize(student, sizes)
    if labels is not None:
        labels = nearest(labels, sizes)
    return student, student, weight, labels
