"""RelationalLoss: the correlation of predictions, over the classes and over the batch."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.arguments import check_float
from keras_distill.losses.base import PACKAGE, in_float, unit
from keras_distill.losses.tempered import TemperedLoss


@keras.saving.register_keras_serializable(PACKAGE)
class RelationalLoss(TemperedLoss):
    r"""Match how predictions relate, not what they are: a strong teacher's sharpness is free.

        T**2 * (inter_weight * (1 - mean_i corr(p_i, q_i))
                + intra_weight * (1 - mean_c corr(p[:, c], q[:, c])))

    with `p = softmax(z_teacher / T)` and `q` the student's `(N, K)`: Pearson's correlation over
    the classes of an example, and over the examples of a batch for a class. Where one of the
    two is constant, its correlation is 0. All positions of a sequence or map are examples.
    Under `tf.distribute` the batch is a replica's.

    The paper calls the weights beta and gamma and has 2 and 2 at T = 4 for CIFAR-100, 1 and 1
    at T = 1 for ImageNet.

    Args:
        inter_weight: float >= 0, default 1.
        intra_weight: float >= 0, default 1.
        temperature: float > 0, or `None` (default) for the distiller's own.

    Raises:
        ValueError: if a weight is negative or not finite, or the temperature not > 0.

    Example:
    >>> loss = RelationalLoss(temperature=1.0)
    >>> teacher = ops.array([[2.0, 0.0, 1.0], [0.0, 2.0, 0.5]])
    >>> print(f"{float(loss.compute_loss(teacher, teacher)):.3f}")
    0.000

    Reference: Huang et al., *Knowledge Distillation from A Stronger Teacher* (DIST),
    arXiv:2205.10536.
    """

    compares_examples = True
    kinds = ("softmax",)

    def __init__(
        self,
        inter_weight: float = 1.0,
        intra_weight: float = 1.0,
        temperature: float | None = None,
    ) -> None:
        super().__init__(temperature)
        self.inter_weight, self.intra_weight = (
            check_float(
                name, weight, "a finite number >= 0", lambda number: number >= 0
            )
            for name, weight in (
                ("inter_weight", inter_weight),
                ("intra_weight", intra_weight),
            )
        )

    def loss_per_example(
        self,
        teacher_outputs: Any,
        student_outputs: Any,
        temperature: Any = 1.0,
        weight: Any = None,
    ) -> Any:
        """Returns the loss of each example, shape `(batch, ...)`; intra-class, of all.

        Args:
            teacher_outputs: float `(batch, ..., K)`, logits.
            student_outputs: likewise.
            temperature: float scalar > 0, where it has none of its own.
            weight: float `(batch, ...)` of the examples; `None` for 1.
        """
        t = self.temperature_or(temperature)
        teacher = ops.stop_gradient(in_float(teacher_outputs))
        student = in_float(student_outputs)
        t = ops.cast(t, student.dtype)
        by_row, by_column = [], []
        for logits in (ops.cast(teacher, student.dtype), student):
            rows, deviations = _probabilities(logits, t)
            by_row.append(unit(rows))
            flat = ops.reshape(deviations, (-1, logits.shape[-1]))
            by_column.append(_standard_columns(flat, weight))
        inter = 1.0 - ops.sum(by_row[0] * by_row[1], -1)
        intra = 1.0 - ops.mean(ops.sum(by_column[0] * by_column[1], 0))
        return t * t * (self.inter_weight * inter + self.intra_weight * intra)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "inter_weight": self.inter_weight,
            "intra_weight": self.intra_weight,
            **super().get_config(),
        }


def _probabilities(logits: Any, temperature: Any) -> tuple[Any, Any]:
    """Returns `softmax(z / T) - 1 / K`, up to a factor for each row, and as it is.

    By `exp(x) - 1`, which at a high T keeps what probabilities near `1 / K` round away.
    """
    largest = ops.max(logits, -1, keepdims=True)
    exponents = ops.expm1((logits - largest) / temperature)
    deviations = exponents - ops.mean(exponents, -1, keepdims=True)
    total = ops.sum(exponents + 1.0, -1, keepdims=True)
    return deviations, deviations / total


def _standard_columns(values: Any, weight: Any) -> Any:
    """Returns `(N, K)` with each column's weighted mean taken off, and of weighted length 1."""
    if weight is None:
        centred = values - ops.mean(values, 0, keepdims=True)
    else:
        weight = ops.cast(ops.reshape(weight, (-1, 1)), values.dtype)
        total = ops.sum(weight)
        share = weight / ops.where(total > 0.0, total, 1.0)
        centred = values - ops.sum(share * values, 0, keepdims=True)
        centred = ops.sqrt(share) * centred
    return unit(centred, axis=0)
