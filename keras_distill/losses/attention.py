"""AttentionTransferLoss: where a network looks, whatever its channels."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.arguments import check_float
from keras_distill.keras_compat import mask_of
from keras_distill.losses import adapters
from keras_distill.losses.base import PACKAGE, in_float
from keras_distill.losses.features import FeatureLoss


@keras.saving.register_keras_serializable(PACKAGE)
class AttentionTransferLoss(FeatureLoss):
    """Match where the student's features are large to where the teacher's are.

        (q_s / |q_s| - q_t / |q_t|)**2,  q = sum_c |h[..., c]|**p

    at each position of a map `(batch, ..., channels)` or sequence; the loss is the mean over
    the positions, as in the authors' code (whose `q` is the mean over c: the same, once of
    length 1). The paper's beta, halved, is the weight there: 1000 / 2 for it and four
    stages. Channels may differ; of two maps the larger grid is averaged over areas to the
    smaller one, and sequences must be of one length. Padding that a Keras mask hides has no
    attention.

    Args:
        student_layer_name: str, or `None` (default) for the output itself.
        teacher_layer_name: likewise.
        p: float >= 1, the power; default 2.

    Raises:
        ValueError: if `p` is below 1 or not finite.

    Example:
    >>> loss = AttentionTransferLoss()
    >>> teacher, student = ops.array([[[3.0], [0.0]]]), ops.array([[[0.0, 0.0], [1.0, 2.0]]])
    >>> print(loss.loss_per_example(teacher, student))  # doctest: +ELLIPSIS
    tf.Tensor([[1. 1.]], shape=(1, 2), dtype=float32)

    Reference: Zagoruyko and Komodakis, *Paying More Attention to Attention*,
    arXiv:1612.03928.
    """

    def __init__(
        self,
        student_layer_name: str | None = None,
        teacher_layer_name: str | None = None,
        p: float = 2.0,
    ) -> None:
        super().__init__(student_layer_name, teacher_layer_name)
        self.p = check_float(
            "p", p, "a finite number >= 1", lambda number: number >= 1.0
        )

    def _check_shapes(self, student: tuple, teacher: tuple) -> None:
        _check_has_positions(student, teacher)
        if len(student) == 3 and self._differs(student[1:2], teacher[1:2]):
            super()._check_shapes(student, teacher)

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns the loss of each position, `(batch, ...)`."""
        mask = mask_of(student_outputs)
        teacher, student = (
            adapters.channels_last(in_float(one))
            for one in (teacher_outputs, student_outputs)
        )
        _check_has_positions(student.shape, teacher.shape)
        teacher = ops.cast(ops.stop_gradient(teacher), student.dtype)
        teacher, student = (self._attention(one) for one in (teacher, student))
        teacher, student = adapters.to_one_grid(teacher, student)
        teacher, student = (
            _of_length_1(one[..., 0], mask) for one in (teacher, student)
        )
        return ops.square(student - teacher)

    def _attention(self, features: Any) -> Any:
        # Scaled first: a power of a large float32 is infinite. Lengths are taken out anyway.
        axes = list(range(1, len(features.shape)))
        largest = ops.max(ops.abs(features), axes, keepdims=True)
        largest = ops.stop_gradient(ops.where(largest > 0.0, largest, 1.0))
        features = features / largest
        size = ops.square(features) if self.p == 2.0 else ops.abs(features) ** self.p
        return ops.mean(size, -1, keepdims=True)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "student_layer_name": self.student_layer_name,
            "teacher_layer_name": self.teacher_layer_name,
            "p": self.p,
        }


def _of_length_1(attention: Any, mask: Any) -> Any:
    if mask is not None and len(mask.shape) == len(attention.shape):
        attention = attention * ops.cast(mask, attention.dtype)
    axes = list(range(1, len(attention.shape)))
    length = ops.sum(ops.square(attention), axes, keepdims=True)
    return attention * ops.rsqrt(ops.maximum(length, 1e-24))


def _check_has_positions(student: tuple, teacher: tuple) -> None:
    if len(student) != len(teacher) or len(student) < 3:
        raise ValueError(
            f"AttentionTransferLoss compares two maps or two sequences, got features of shapes "
            f"{tuple(student)} and {tuple(teacher)} of student and teacher; choose layers "
            "before the pooling."
        )
