"""SoftTargetLoss: the divergence of two tempered distributions, of classes or yes and no."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import PACKAGE
from keras_distill.losses.chunks import loss_with_slope
from keras_distill.losses.tempered import TemperedLoss
from keras_distill.top_k import TopKLogits


@keras.saving.register_keras_serializable(PACKAGE)
class SoftTargetLoss(TemperedLoss):
    r"""Match the teacher's tempered probabilities.

        T**2 * KL(p || q),  p = softmax(z_teacher / T),  q = softmax(z_student / T)

    in nats. The factor `T**2` keeps the gradient of one size as T changes. Written
    as `sum p * (exp(r) - 1 - r)`, with `r = log q - log p`, every term is >= 0: no
    cancellation, so float32 is exact to about 1e-7 relative at any T, however close
    student and teacher are. The gradient `T * (q - p)` is exact in the same way, and
    a student that is confidently wrong gets all of it: nothing is clipped.

    Of an output of K yes/no questions, it is the mean over K of the same for each question,
    with `p = sigmoid(z_teacher / T)`: the KL of two classes with the logits [0, z]. The mean,
    because Keras's `BinaryCrossentropy` takes the mean.

    Of maps of classes `(batch, height, width, K)` of two resolutions, the student's logits are
    resized to the teacher's grid in a `Distiller`, bilinear, with pixels' centres at half
    numbers. A teacher's larger grid is so asked whole; on a smaller one each pixel is the
    mean of the student's around it, weighted by a triangle twice its width (as
    `tf.image.resize` with `antialias=True`), for a teacher that says nothing finer cannot
    teach it. Sample weights follow in the same way, and pixels of weight 0 take no part.

    For a teacher's `TopKLogits`, the KL is that over k + 1 outcomes, the last being all
    other classes together: never more than the full KL, by the data processing
    inequality, and equal to it if k is the number of classes.

    Args:
        temperature: float > 0, or `None` (default) for the distiller's own. In
            `keras.distillation.Distiller`, give it one.

    Raises:
        ValueError: if the temperature is not > 0.

    Example:
    >>> loss = SoftTargetLoss(temperature=1.0)
    >>> teacher = ops.array([[40.0, 0.0, -5.0]])
    >>> student = ops.array([[-60.0, 0.0, 0.0]])
    >>> print(f"{float(loss.compute_loss(teacher, student)):.2f}")
    60.69

    Reference: Hinton, Vinyals, Dean, arXiv:1503.02531, section 2.
    """

    takes_top_k = True
    kinds = ("softmax", "sigmoid")
    is_over_classes = True

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns `T**2 * KL(p || q)`, shape `(batch, ...)`, in nats."""
        temperature = self.temperature_or(temperature)
        if isinstance(teacher_outputs, TopKLogits):
            return _top_k_kl(teacher_outputs, student_outputs, temperature)
        return tempered_kl(teacher_outputs, student_outputs, temperature)


def _top_k_kl(teacher: TopKLogits, student_logits: Any, temperature: Any) -> Any:
    """Returns `T**2 * KL` over k + 1 outcomes, the last being all other classes.

    The logit of the rest is `T * logsumexp(z / T)`: divided by T and put through a
    softmax, it has the rest's probability.
    """
    temperature = ops.cast(temperature, "float32")
    values = teacher.values
    if teacher.has_rest:
        rest = temperature * ops.expand_dims(teacher.rest_at(temperature), -1)
        values = ops.concatenate([values, rest], -1)
    return loss_with_slope(
        _of_top_k, (values, teacher.indices), student_logits, temperature, "float32"
    )


def _of_top_k(
    teacher: Any, indices: Any, student: Any, temperature: Any
) -> tuple[Any, Any]:
    """Returns the KL over k + 1 outcomes, and its slope `q - p` by the student's classes."""
    student, k = ops.cast(student, "float32"), indices.shape[-1]
    top = ops.take_along_axis(student, indices, axis=-1)
    if teacher.shape[-1] == k:
        loss, slope = _kl_and_slope(teacher, top, temperature)
        return loss, _placed(ops.zeros_like(student), indices, slope)
    # Of the rest alone, not of all less the k, which may have all but nothing left.
    others = _placed(student, indices, ops.full_like(top, -math.inf)) / temperature
    largest = ops.max(others, -1, keepdims=True)
    others = ops.exp(others - largest)
    mass = ops.sum(others, -1, keepdims=True)
    rest = temperature * (largest + ops.log(mass))
    loss, slope = _kl_and_slope(teacher, ops.concatenate([top, rest], -1), temperature)
    return loss, _placed(others * (slope[..., k:] / mass), indices, slope[..., :k])


def _placed(tensor: Any, indices: Any, values: Any) -> Any:
    """Returns the tensor with values in place of those at indices of its last axis."""
    classes, k = tensor.shape[-1], indices.shape[-1]
    flat = ops.reshape(indices, (-1, k))
    start = classes * ops.expand_dims(ops.arange(ops.shape(flat)[0], dtype="int32"), -1)
    found = ops.scatter_update(
        ops.reshape(tensor, (-1,)),
        ops.reshape(start + flat, (-1, 1)),
        ops.reshape(values, (-1,)),
    )
    return ops.reshape(found, ops.shape(tensor))


# 1/2!, 1/3!, ... : exp(r) - 1 - r = r**2 * sum_i r**i / (i + 2)!, to 4e-8 for
# |r| < 0.5; beyond, the sum itself loses no more than that.
_TAYLOR = [1.0 / math.factorial(i + 2) for i in range(7)]


def tempered_kl(teacher_logits: Any, student_logits: Any, temperature: Any) -> Any:
    """Returns `T**2 * KL(softmax(z_t / T) || softmax(z_s / T))` over the last axis.

    Args:
        teacher_logits: float `(..., classes)`, a constant to the gradient.
        student_logits: float `(..., classes)`.
        temperature: float scalar > 0.

    Returns:
        `(...)` in nats, in float32, or float64 if the logits are.
    """
    student_logits = ops.convert_to_tensor(student_logits)
    dtype = keras.backend.result_type(
        keras.backend.standardize_dtype(student_logits.dtype), "float32"
    )
    teacher_logits = ops.convert_to_tensor(teacher_logits)
    temperature = ops.cast(temperature, dtype)
    return loss_with_slope(
        _kl_and_slope, (teacher_logits,), student_logits, temperature, dtype
    )


def _kl_and_slope(
    teacher_logits: Any, student_logits: Any, temperature: Any
) -> tuple[Any, Any]:
    """Returns `T**2 * KL` over the last axis, and `q - p`, whose T-fold is its gradient."""
    dtype = temperature.dtype
    teacher_logits = ops.cast(teacher_logits, dtype)
    student_logits = ops.cast(student_logits, dtype)
    # Both shifted to a maximum of 0: exp cannot overflow, the sums are >= 1.
    t = (teacher_logits - ops.max(teacher_logits, -1, keepdims=True)) / temperature
    s = (student_logits - ops.max(student_logits, -1, keepdims=True)) / temperature
    exp_t, exp_s = ops.exp(t), ops.exp(s)
    sum_t = ops.sum(exp_t, -1, keepdims=True)
    sum_s = ops.sum(exp_s, -1, keepdims=True)
    p, q = exp_t / sum_t, exp_s / sum_s
    # r = (s - t) - log(sum_s / sum_t). The logarithm loses what is below 1e-7, which
    # at a high T is all: about its mean, s - t keeps it.
    far = s - t
    about_mean = far - ops.sum(p * far, -1, keepdims=True)
    is_small = ops.max(ops.abs(about_mean), -1, keepdims=True) < 0.5
    small = ops.where(is_small, about_mean, 0.0)
    r = ops.where(
        is_small,
        small - ops.log1p(ops.sum(p * ops.expm1(small), -1, keepdims=True)),
        far - ops.log(sum_s / sum_t),
    )
    is_near = ops.abs(r) < 0.5
    near = ops.where(is_near, r, 0.0)
    series = _TAYLOR[-1]
    for coefficient in reversed(_TAYLOR[:-1]):
        series = series * near + coefficient
    # T**2 goes in before what it makes up for is rounded away.
    scaled = temperature * near
    terms = ops.where(
        is_near,
        p * scaled * scaled * series,
        temperature * (temperature * ((q - p) - p * r)),
    )
    difference = ops.where(is_near, p * ops.expm1(near), q - p)
    return ops.sum(terms, -1), difference
