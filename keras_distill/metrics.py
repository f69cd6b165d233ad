"""Metrics: agreement with the teacher, likelihood of the labels, calibration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.arguments import KINDS, check_choice, check_int
from keras_distill.keras_compat import mask_of
from keras_distill.labels import answers_of, classes_of, weights_of
from keras_distill.logits_or_probabilities import to_logits
from keras_distill.losses.base import PACKAGE
from keras_distill.losses.maps import on_teachers_grid
from keras_distill.losses.weights import weight_for
from keras_distill.top_k import TopKLogits


@keras.saving.register_keras_serializable(PACKAGE)
class TeacherAgreement(keras.metrics.Mean):
    """How far student and teacher agree.

    Of classes that exclude each other, how often both choose the same; of yes/no questions,
    how often both give the same answer at 0.5; from 0 to 1. Of values, Pearson's correlation
    of all numbers, from -1 to 1, in float64; 0 where one side does not vary:

        r = cov(t, s) / (std(t) std(s))

    In `Distiller.compile(metrics=[..., TeacherAgreement()])` it is given the teacher's
    outputs in place of labels, so the teacher runs in `evaluate` too; of several outputs with
    classes it is the mean over all answers (of maps of two sizes those on the teacher's grid), of several of values the correlation over all
    numbers, and of a model that has both the mean of these two. Outside, call
    `update_state(teacher_outputs, student_outputs)`, which are logits or values.

    Args:
        name: str.
        dtype: dtype of the result.
        kind: "softmax" (default), "sigmoid" or "values", of what `update_state` is given. A
            `Distiller` says it for each output itself.

    Raises:
        ValueError: if the kind is none of these.

    Example:
    >>> agreement = TeacherAgreement()
    >>> agreement.update_state([[0.0, 2.0], [1.0, 0.0]], [[0.0, 9.0], [0.0, 1.0]])
    >>> print(float(agreement.result()))
    0.5
    """

    def __init__(
        self,
        name: str = "teacher_agreement",
        dtype: Any = None,
        kind: str = "softmax",
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.kind = check_choice("kind", kind, KINDS)
        # Sums, which add up over replicas: of 1, t, s, t * t, s * s, t * s.
        self.sums = self.add_variable((6,), "zeros", dtype="float64", name="sums")

    def update_state(
        self, teacher_outputs: Any, student_outputs: Any, sample_weight: Any = None
    ) -> None:
        """Adds a batch.

        Args:
            teacher_outputs: logits or values `(batch, ..., classes)`, or `TopKLogits`.
            student_outputs: logits or values of the same shape.
            sample_weight: must be `None`: all count alike.

        Raises:
            ValueError: if there are sample weights.
        """
        if sample_weight is not None:
            raise ValueError("TeacherAgreement has no sample weights; leave them out.")
        self.add(teacher_outputs, student_outputs, self.kind)

    def add(
        self, teacher_logits: Any, student_logits: Any, kind: Any, mask: Any = None
    ) -> None:
        """Adds a batch of one output.

        Args:
            teacher_logits: logits or values `(batch, ..., classes)`, or `TopKLogits`.
            student_logits: logits or values of the same shape.
            kind: of the output; `None` for "softmax".
            mask: Keras mask of the output; `None` for that of the student's logits.
        """
        mask = mask_of(student_logits) if mask is None else mask
        if kind != "values":
            student_logits, *_ = on_teachers_grid(
                teacher_logits, student_logits, student_logits, None, None
            )
            same = _same_answer(teacher_logits, student_logits, kind)
            counts = None if mask is None else ops.cast(mask, "float32")
            super().update_state(same, counts)
            return
        t, s = (
            ops.cast(ops.convert_to_tensor(values), "float64")
            for values in (teacher_logits, student_logits)
        )
        t, counts = ops.reshape(t, ops.shape(s)), ops.ones_like(s)
        if mask is not None:
            counts = counts * weight_for(ops.cast(mask, "float64"), len(s.shape))
        t, s = (ops.where(counts > 0, values, 0.0) for values in (t, s))
        sums = [ops.sum(part) for part in (counts, t, s, t * t, s * s, t * s)]
        self.sums.assign_add(ops.stack(sums))

    def result(self) -> Any:
        """Returns the agreement; 0 before any batch."""
        number, t, s, tt, ss, ts = ops.unstack(ops.convert_to_tensor(self.sums))
        of_t, of_s = number * tt - t * t, number * ss - s * s
        # What rounding leaves of numbers that do not vary is no variance.
        varies = (of_t > 1e-13 * number * tt) & (of_s > 1e-13 * number * ss)
        scale = ops.sqrt(ops.where(varies, of_t, 1.0)) * ops.sqrt(
            ops.where(varies, of_s, 1.0)
        )
        correlation = ops.where(varies, (number * ts - t * s) / scale, 0.0)
        correlation = ops.cast(ops.clip(correlation, -1.0, 1.0), self.dtype)
        same = super().result()
        has_values = number > 0
        both = ops.where(self.count > 0, 0.5 * (same + correlation), correlation)
        return ops.where(has_values, both, same)

    def reset_state(self) -> None:
        """Forgets all batches."""
        super().reset_state()
        self.sums.assign(ops.zeros((6,), "float64"))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {"name": self.name, "dtype": self.dtype, "kind": self.kind}


def _same_answer(teacher_logits: Any, student_logits: Any, kind: Any) -> Any:
    """Returns 1 where the same class is chosen, `(batch, ...)`, or each question answered."""
    if kind == "sigmoid":  # a yes where the logit is above 0
        teacher_logits, student_logits = (
            ops.convert_to_tensor(logits) for logits in (teacher_logits, student_logits)
        )
        same = ops.equal(teacher_logits > 0.0, student_logits > 0.0)
        return ops.cast(same, "float32")
    teacher_class = (
        teacher_logits.indices[..., 0]
        if isinstance(teacher_logits, TopKLogits)
        else ops.argmax(teacher_logits, -1)
    )
    same = ops.equal(
        ops.cast(teacher_class, "int32"),
        ops.cast(ops.argmax(student_logits, -1), "int32"),
    )
    return ops.cast(same, "float32")


@keras.saving.register_keras_serializable(PACKAGE)
class NegativeLogLikelihood(keras.metrics.MeanMetricWrapper):
    """Mean negative log-likelihood of the labels at T = 1, in nats.

    Of yes/no questions the mean over all of them, `-y log p - (1 - y) log(1 - p)`. Unlike a
    loss it knows neither label smoothing nor regularisation, so it means the same whatever a
    student is trained on.

    Args:
        from_logits: whether the student gives logits, default `True`; probabilities
            otherwise; or a function without arguments that says it later.
        ignore_class: label of positions that do not count; `None` (default) for none.
        name: str.
        dtype: dtype of the result.
        kind: "softmax" (default) or "sigmoid", what the outputs are; or a function without
            arguments that says it later.

    Example:
    >>> nll = NegativeLogLikelihood()
    >>> nll.update_state([0, 1], [[0.0, 0.0], [0.0, 0.0]])
    >>> round(float(nll.result()), 4)
    0.6931
    """

    def __init__(
        self,
        from_logits: bool | Callable[[], bool] = True,
        ignore_class: int | None = None,
        name: str = "nll",
        dtype: Any = None,
        kind: str | Callable[[], str] = "softmax",
    ) -> None:
        super().__init__(self._of_labels, name=name, dtype=dtype)
        self.from_logits = from_logits
        self.ignore_class = ignore_class
        self.kind = kind

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Adds a batch; as in every Keras metric."""
        y_true = ops.convert_to_tensor(y_true)
        if self._says_kind() == "sigmoid":
            shape = ops.shape(ops.convert_to_tensor(y_pred))
            y_true = ops.reshape(y_true, shape)
            if sample_weight is not None:
                sample_weight = weight_for(sample_weight, len(y_true.shape))
        if self.ignore_class is not None:
            counts = ops.not_equal(y_true, self.ignore_class)
            y_true = ops.where(counts, y_true, ops.zeros_like(y_true))
            counts = ops.cast(counts, "float32")
            sample_weight = counts if sample_weight is None else counts * sample_weight
        return super().update_state(y_true, y_pred, sample_weight)

    def _says_kind(self) -> str:
        return self.kind() if callable(self.kind) else self.kind

    def _says_logits(self) -> bool:
        return self.from_logits() if callable(self.from_logits) else self.from_logits

    def _of_labels(self, y: Any, outputs: Any) -> Any:
        kind = self._says_kind()
        logits = ops.cast(to_logits(outputs, self._says_logits(), kind), "float32")
        if kind == "sigmoid":
            y = ops.cast(y, "float32")
            return y * ops.softplus(-logits) + (1.0 - y) * ops.softplus(logits)
        log_p = ops.log_softmax(logits, axis=-1)
        y = ops.convert_to_tensor(y)
        if len(y.shape) == len(log_p.shape) and y.shape[-1] == log_p.shape[-1]:
            return -ops.sum(ops.cast(y, "float32") * log_p, -1)
        y = ops.reshape(ops.cast(y, "int32"), ops.shape(log_p)[:-1])
        return -ops.take_along_axis(log_p, y[..., None], axis=-1)[..., 0]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "from_logits": self._says_logits(),
            "ignore_class": self.ignore_class,
            "name": self.name,
            "dtype": self.dtype,
            "kind": self._says_kind(),
        }


def calibration_error(
    probabilities: np.ndarray,
    labels: np.ndarray,
    bins: int = 15,
    weights: np.ndarray | None = None,
    kind: str | None = None,
) -> float:
    """Returns the expected calibration error.

        sum_b  n_b / n * | accuracy_b - confidence_b |

    over bins of equal width of the confidence, that is the largest probability. Of yes/no
    questions the confidence is the probability of a yes, and in place of the accuracy stands
    how often a yes is right, as in scikit-learn's `calibration_curve`.

    Args:
        probabilities: float `(examples, classes)`; of yes/no questions `(examples,)` or
            `(examples, questions)`.
        labels: int `(examples,)`, or one-hot; of questions 0 or 1 in the same shape.
        bins: number of bins, default 15.
        weights: float `(examples,)`, or `None` (default) for all alike.
        kind: "softmax" or "sigmoid", what the probabilities are; `None` (default) takes a
            single column for the probability of a yes, more for a softmax's.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: if probabilities, labels or weights are of another shape, or out of
            range.

    Example:
    >>> round(calibration_error(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])), 3)
    0.4
    >>> round(calibration_error(np.array([0.9, 0.9]), np.array([0, 1])), 3)
    0.4

    Reference: Guo et al., arXiv:1706.04599.
    """
    _, accuracy, confidence, weight = reliability(
        probabilities, labels, bins, weights, kind
    )
    return float(np.sum(weight * np.abs(accuracy - confidence)))


def reliability(
    probabilities: np.ndarray,
    labels: np.ndarray,
    bins: int = 15,
    weights: np.ndarray | None = None,
    kind: str | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns accuracy and confidence by bins of the confidence.

    Args:
        probabilities: as for `calibration_error`.
        labels: as for `calibration_error`.
        bins: number of bins of equal width.
        weights: float `(examples,)`, or `None` (default) for all alike.
        kind: as for `calibration_error`.

    Returns:
        For each bin: its upper edge, the accuracy (of yes/no questions, how often it is a
        yes), the mean confidence and the share of the examples (of the questions, all
        together); zeros for an empty bin.

    Raises:
        ValueError: as for `calibration_error`.
    """
    bins = check_int("bins", bins, 1)
    p, y = np.asarray(probabilities), np.asarray(labels)
    if p.ndim == 1:
        p = p[:, None]
    if p.ndim != 2 or not np.isfinite(p).all() or (p < 0).any() or (p > 1 + 1e-5).any():
        raise ValueError(
            "probabilities must be (examples, classes), from 0 to 1, got "
            f"{np.array2string(p, threshold=8)}."
        )
    if kind is None:
        kind = "sigmoid" if p.shape[1] == 1 else "softmax"
    weight = weights_of(weights, (len(p),))
    if check_choice("kind", kind, KINDS[:2]) == "sigmoid":
        is_yes = answers_of(y, p.shape, np.ones(p.shape, bool))
        weight = np.repeat(weight, p.shape[1])
        return binned(p.ravel(), is_yes.ravel(), bins, weight)
    y, _ = classes_of(y, p.shape, np.ones(len(p), bool))
    return binned(p.max(-1), p.argmax(-1) == y, bins, weight)


def binned(
    confidence: np.ndarray, correct: np.ndarray, bins: int, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns what `reliability` does, of confidences and what is right, `(examples,)`."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.clip(np.digitize(confidence, edges[1:-1], right=True), 0, bins - 1)
    weights = weights / max(weights.sum(), 1e-300)
    share = np.bincount(index, weights=weights, minlength=bins)
    size = np.where(share > 0, share, 1.0)
    return (
        edges[1:],
        np.bincount(index, weights=weights * correct, minlength=bins) / size,
        np.bincount(index, weights=weights * confidence, minlength=bins) / size,
        share,
    )


def check_teacher_metrics(metrics: Any, weighted_metrics: Any) -> None:
    """Refuses a `TeacherAgreement` anywhere but in a flat list of metrics."""
    is_flat = isinstance(metrics, (list, tuple)) and not any(
        isinstance(part, (dict, list, tuple)) for part in metrics
    )
    elsewhere = [weighted_metrics, None if is_flat else metrics]
    if any(isinstance(m, TeacherAgreement) for m in keras.tree.flatten(elsewhere)):
        raise ValueError(
            "TeacherAgreement goes into compile(metrics=[...]), a flat list: it judges "
            "all distilled outputs, without weights."
        )
