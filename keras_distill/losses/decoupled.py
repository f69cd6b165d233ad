"""DecoupledLoss: the KL of the labelled class against all others, and that among the others."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.arguments import check_float
from keras_distill.losses.base import PACKAGE, in_float
from keras_distill.losses.kl import tempered_kl
from keras_distill.losses.tempered import TemperedLoss


@keras.saving.register_keras_serializable(PACKAGE)
class DecoupledLoss(TemperedLoss):
    r"""Match the teacher's certainty of the labelled class, and what it says of the others.

        T**2 * (target_weight * KL(b_t || b_s) + other_weight * KL(o_t || o_s))

    in nats, with both models' `p = softmax(z / T)`, `b = [p_y, 1 - p_y]` for the label y, and
    `o` the distribution over the other classes, `p_c / (1 - p_y)`. `SoftTargetLoss` is the
    same with weights 1 and `1 - p_y` of the teacher: a teacher that is certain says little
    of the others there, and as much as any here. An example whose label is the hard loss's
    `ignore_class` has the loss of `SoftTargetLoss`.

    The paper calls the weights alpha and beta (not the distiller's alpha) and has 1 and 8 for
    CIFAR-100 at T = 4, with the hard loss at full weight: `Distiller(..., temperature=4.0,
    alpha=0.5)` has the same ratio of the two.

    Args:
        target_weight: float >= 0, default 1.
        other_weight: float >= 0, default 8.
        temperature: float > 0, or `None` (default) for the distiller's own.

    Raises:
        ValueError: if a weight is negative or not finite, or the temperature not > 0.

    Example:
    >>> loss = DecoupledLoss(other_weight=0.0, temperature=1.0)
    >>> teacher, student = ops.array([[0.0, 0.0, 0.0]]), ops.array([[0.0, 5.0, -5.0]])
    >>> value = loss.loss_per_example(teacher, student, labels=ops.array([0]))
    >>> print(f"{float(value[0]):.3f}")
    1.037

    Reference: Zhao et al., *Decoupled Knowledge Distillation*, arXiv:2203.08679.
    """

    takes_labels = True
    kinds = ("softmax",)

    def __init__(
        self,
        target_weight: float = 1.0,
        other_weight: float = 8.0,
        temperature: float | None = None,
    ) -> None:
        super().__init__(temperature)
        self.target_weight, self.other_weight = (
            check_float(
                name, weight, "a finite number >= 0", lambda number: number >= 0
            )
            for name, weight in (
                ("target_weight", target_weight),
                ("other_weight", other_weight),
            )
        )

    def loss_per_example(
        self,
        teacher_outputs: Any,
        student_outputs: Any,
        temperature: Any = 1.0,
        labels: Any = None,
    ) -> Any:
        """Returns the loss of each example, shape `(batch, ...)`, in nats.

        Args:
            teacher_outputs: float `(batch, ..., K)`, logits.
            student_outputs: likewise.
            temperature: float scalar > 0, where it has none of its own.
            labels: int `(batch, ...)`, -1 for none.
        """
        t = self.temperature_or(temperature)
        teacher, student = in_float(teacher_outputs), in_float(student_outputs)
        labels = ops.expand_dims(ops.cast(labels, "int32"), -1)
        target = ops.maximum(labels, 0)
        place = ops.arange(student.shape[-1] - 1)
        others = place + ops.cast(
            place >= target, "int32"
        )  # all classes but the label's
        pairs, rests = [], []
        for logits in (teacher, student):
            rest = ops.take_along_axis(logits, others, axis=-1)
            scaled = rest / ops.cast(t, rest.dtype)
            of_rest = t * ops.logsumexp(scaled, axis=-1, keepdims=True)
            chosen = ops.take_along_axis(logits, target, axis=-1)
            pairs.append(ops.concatenate([chosen, of_rest], -1))
            rests.append(rest)
        decoupled = self.target_weight * tempered_kl(pairs[0], pairs[1], t)
        decoupled += self.other_weight * tempered_kl(rests[0], rests[1], t)
        whole = tempered_kl(teacher, student, t)
        return ops.where(ops.squeeze(labels, -1) < 0, whole, decoupled)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "target_weight": self.target_weight,
            "other_weight": self.other_weight,
            **super().get_config(),
        }
