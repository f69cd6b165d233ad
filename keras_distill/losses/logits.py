"""LogitLoss: the squared difference of logits."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import PACKAGE, DistillationLoss


@keras.saving.register_keras_serializable(PACKAGE)
class LogitLoss(DistillationLoss):
    """Match the teacher's logits themselves.

        1 / (2 N) * sum_c (z_student[c] - z_teacher[c])**2

    with the logits of both centred over the N classes, because a constant added to
    all logits of an example changes no probability. It is the limit of
    `SoftTargetLoss` as T grows, and has no temperature. Of K yes/no questions, the mean over K
    of the same for the logits [0, z]: `(z_student - z_teacher)**2 / 8`.

    Example:
    >>> loss = LogitLoss()
    >>> teacher, student = ops.array([[1.0, -1.0]]), ops.array([[7.0, 7.0]])
    >>> print(float(loss.compute_loss(teacher, student)))
    0.5

    Reference: Hinton, Vinyals, Dean, arXiv:1503.02531, section 2.1; Ba and Caruana,
    arXiv:1312.6184.
    """

    kinds = ("softmax", "sigmoid")
    is_over_classes = True

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns the loss of each example, shape `(batch, ...)`."""
        difference = ops.cast(student_outputs, "float32") - ops.cast(
            teacher_outputs, "float32"
        )
        difference = difference - ops.mean(difference, -1, keepdims=True)
        return 0.5 * ops.mean(ops.square(difference), -1)
