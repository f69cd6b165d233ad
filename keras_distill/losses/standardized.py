"""LogitStandardizedLoss: the KL of logits that both models' own spread is taken out of."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import PACKAGE, in_float, unit
from keras_distill.losses.kl import tempered_kl
from keras_distill.losses.tempered import TemperedLoss


@keras.saving.register_keras_serializable(PACKAGE)
class LogitStandardizedLoss(TemperedLoss):
    r"""Match the teacher's logits up to their mean and spread.

        T**2 * KL(softmax(s(z_teacher) / T) || softmax(s(z_student) / T))
        s(z) = (z - mean(z)) / std(z), over the K classes (std with 1 / K)

    in nats. A student need not have logits as large as the teacher's: each example has the
    temperature `T * std(z)` for each of the two. Logits that are all equal have s = 0. Since s
    is from -sqrt(K) to sqrt(K), T is a base of another scale than that of `SoftTargetLoss`:
    the paper has 2, and weighs this loss by 9 and the hard loss by 0.1 (alpha = 0.011).

    Args:
        temperature: float > 0, or `None` (default) for the distiller's own.

    Raises:
        ValueError: if the temperature is not > 0.

    Example:
    >>> loss = LogitStandardizedLoss(temperature=1.0)
    >>> teacher, student = ops.array([[0.0, 10.0, 20.0]]), ops.array([[5.0, 6.0, 7.0]])
    >>> print(f"{float(loss.compute_loss(teacher, student)):.3f}")
    0.000

    Reference: Sun et al., *Logit Standardization in Knowledge Distillation*,
    arXiv:2403.01427.
    """

    kinds = ("softmax",)

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns the loss of each example, shape `(batch, ...)`, in nats."""
        standard = []
        for logits in (in_float(teacher_outputs), in_float(student_outputs)):
            # Divided first, as a mean of the largest float32 is infinite.
            largest = ops.stop_gradient(ops.max(ops.abs(logits), -1, keepdims=True))
            logits = logits / ops.where(largest > 0.0, largest, 1.0)
            centred = logits - ops.mean(logits, -1, keepdims=True)
            standard.append(unit(centred) * logits.shape[-1] ** 0.5)
        t = self.temperature_or(temperature)
        return tempered_kl(standard[0], standard[1], t)
