"""ReverseKLLoss and JensenShannonLoss: other divergences of two tempered distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_distill.arguments import check_float
from keras_distill.losses.base import PACKAGE, in_float
from keras_distill.losses.kl import tempered_kl
from keras_distill.losses.tempered import TemperedLoss


@keras.saving.register_keras_serializable(PACKAGE)
class ReverseKLLoss(TemperedLoss):
    r"""Match the teacher where the student puts its probability.

        T**2 * KL(q || p),  p = softmax(z_teacher / T),  q = softmax(z_student / T)

    in nats. The student is free to leave out classes, and is punished for what the teacher
    rules out: it seeks a mode, where `SoftTargetLoss` covers all. Of K yes/no questions, the
    mean over K of the same for each.

    Args:
        temperature: float > 0, or `None` (default) for the distiller's own.

    Raises:
        ValueError: if the temperature is not > 0.

    Example:
    >>> loss = ReverseKLLoss(temperature=1.0)
    >>> teacher, student = ops.array([[0.0, 0.0]]), ops.array([[9.0, 0.0]])
    >>> print(f"{float(loss.compute_loss(teacher, student)):.3f}")
    0.692

    Reference: Gu et al., *MiniLLM*, arXiv:2306.08543, section 2.1, over one position's
    classes.
    """

    kinds = ("softmax", "sigmoid")
    is_over_classes = True

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns `T**2 * KL(q || p)`, shape `(batch, ...)`, in nats."""
        t = self.temperature_or(temperature)
        return _reverse_kl(teacher_outputs, student_outputs, t)


@keras.saving.register_keras_serializable(PACKAGE)
class JensenShannonLoss(TemperedLoss):
    r"""Match the teacher by the generalised Jensen-Shannon divergence.

        T**2 * (weight * KL(p || m) + (1 - weight) * KL(q || m))
        m = weight * p + (1 - weight) * q

    in nats, with `p = softmax(z_teacher / T)` and `q` the student's. It is bounded, so that
    one confidently wrong example cannot outweigh a batch. As the weight goes to 0, the
    divergence over the weight is that of `SoftTargetLoss`; as it goes to 1, over
    `1 - weight`, that of `ReverseKLLoss`. At exactly 0 and 1, where it would be 0, it is
    these two themselves. Of K yes/no questions, the mean over K of the same for each.

    Args:
        weight: float from 0 to 1, default 0.5: the paper's beta.
        temperature: float > 0, or `None` (default) for the distiller's own.

    Raises:
        ValueError: if the weight is not from 0 to 1, or the temperature not > 0.

    Example:
    >>> loss = JensenShannonLoss(temperature=1.0)
    >>> teacher, student = ops.array([[99.0, 0.0]]), ops.array([[0.0, 99.0]])
    >>> print(f"{float(loss.compute_loss(teacher, student)):.3f}")
    0.693

    Reference: Agarwal et al., *On-Policy Distillation of Language Models* (GKD),
    arXiv:2306.13649, section 2.
    """

    kinds = ("softmax", "sigmoid")
    is_over_classes = True

    def __init__(self, weight: float = 0.5, temperature: float | None = None) -> None:
        super().__init__(temperature)
        self.weight = check_float(
            "weight", weight, "from 0 to 1", lambda number: 0.0 <= number <= 1.0
        )

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns the divergence of each example, shape `(batch, ...)`, in nats."""
        t = self.temperature_or(temperature)
        if self.weight == 0.0:
            return tempered_kl(teacher_outputs, student_outputs, t)
        if self.weight == 1.0:
            return _reverse_kl(teacher_outputs, student_outputs, t)
        return _jensen_shannon(teacher_outputs, student_outputs, t, self.weight)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {"weight": self.weight, **super().get_config()}


def _reverse_kl(teacher_logits: Any, student_logits: Any, temperature: Any) -> Any:
    student_logits = in_float(student_logits)
    teacher_logits = ops.cast(ops.stop_gradient(teacher_logits), student_logits.dtype)
    temperature = ops.cast(temperature, student_logits.dtype)

    @ops.custom_gradient
    def divergence(student_logits: Any) -> tuple[Any, Callable]:
        loss = tempered_kl(student_logits, teacher_logits, temperature)

        def gradient(*args: Any, upstream: Any = None) -> Any:
            upstream = args[0] if upstream is None else upstream
            q = ops.softmax(student_logits / temperature)
            return (
                temperature
                * ops.expand_dims(upstream, -1)
                * _about_mean(q, (student_logits - teacher_logits) / temperature)
            )

        return loss, gradient

    return divergence(student_logits)


def _about_mean(q: Any, values: Any) -> Any:
    """Returns `q * (values - sum q * values)`; what is of no probability counts for nothing."""
    values = ops.where(q > 0.0, values, 0.0)
    return q * (values - ops.sum(q * values, -1, keepdims=True))


# x - log(1 + x) = x**2 / 2 - x**3 / 3 + ..., to 1e-7 for |x| < 0.1.
_SERIES = [(-1.0) ** i / (i + 2) for i in range(7)]


def _less_log(x: Any, direct: Any) -> Any:
    """Returns `x - log(1 + x)`, exact for small x; for others what is given."""
    is_near = ops.abs(x) < 0.1
    near = ops.where(is_near, x, 0.0)
    series = _SERIES[-1]
    for coefficient in reversed(_SERIES[:-1]):
        series = series * near + coefficient
    return ops.where(is_near, near * near * series, direct)


def _jensen_shannon(teacher: Any, student: Any, temperature: Any, weight: float) -> Any:
    student = in_float(student)
    teacher = ops.cast(ops.stop_gradient(teacher), student.dtype)
    temperature = ops.cast(temperature, student.dtype)
    log_weight, log_other = math.log(weight), math.log1p(-weight)

    @ops.custom_gradient
    def divergence(student: Any) -> tuple[Any, Callable]:
        p, log_p = _softmax(teacher, temperature)
        q, log_q = _softmax(student, temperature)
        # log q - log p: about its mean exact where the two are near, at a high T too.
        far = (student - teacher) / temperature
        about_mean = far - ops.sum(p * far, -1, keepdims=True)
        is_small = ops.max(ops.abs(about_mean), -1, keepdims=True) < 0.5
        small = ops.where(is_small, about_mean, 0.0)
        shift = ops.log1p(ops.sum(p * ops.expm1(small), -1, keepdims=True))
        r = ops.where(is_small, small - shift, log_q - log_p)
        # Of m to p, and of m to q, each less 1: bounded, where a product would overflow.
        bounded = ops.clip(r, -20.0, 20.0)
        to_p = (1.0 - weight) * ops.expm1(bounded)
        to_q = weight * ops.expm1(-bounded)
        log_to_p = ops.logaddexp(ops.cast(log_weight, r.dtype), log_other + r)
        log_to_q = ops.logaddexp(ops.cast(log_other, r.dtype), log_weight - r)
        of_p = ops.where(
            ops.abs(r) < 20.0,
            p * _less_log(to_p, to_p - log_to_p),
            (1.0 - weight) * (q - p) - _times(p, log_to_p),
        )
        of_q = ops.where(
            ops.abs(r) < 20.0,
            q * _less_log(to_q, to_q - log_to_q),
            weight * (p - q) - _times(q, log_to_q),
        )
        total = ops.sum(weight * of_p + (1.0 - weight) * of_q, -1)

        def gradient(*args: Any, upstream: Any = None) -> Any:
            upstream = args[0] if upstream is None else upstream
            log_near = ops.log1p(ops.where(ops.abs(to_q) < 0.5, to_q, 0.0))
            slope = ops.where(ops.abs(to_q) < 0.5, log_near, log_to_q)
            return (
                temperature
                * (1.0 - weight)
                * ops.expand_dims(upstream, -1)
                * _about_mean(q, -slope)
            )

        return temperature * temperature * total, gradient

    return divergence(student)


def _softmax(logits: Any, temperature: Any) -> tuple[Any, Any]:
    shifted = (logits - ops.max(logits, -1, keepdims=True)) / temperature
    exponents = ops.exp(shifted)
    total = ops.sum(exponents, -1, keepdims=True)
    return exponents / total, shifted - ops.log(total)


def _times(p: Any, log: Any) -> Any:
    """Returns `p * log`, 0 where p is 0."""
    return ops.where(p > 0.0, p * ops.where(p > 0.0, log, 0.0), 0.0)
