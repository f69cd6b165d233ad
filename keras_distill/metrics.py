"""Metrics: agreement with the teacher, likelihood of the labels, calibration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.arguments import check_int
from keras_distill.labels import classes_of, weights_of
from keras_distill.losses.base import PACKAGE
from keras_distill.outputs import as_pairs, to_logits
from keras_distill.top_k import TopKLogits


@keras.saving.register_keras_serializable(PACKAGE)
class TeacherAgreement(keras.metrics.MeanMetricWrapper):
    """How often student and teacher choose the same class, from 0 to 1.

    In `Distiller.compile(metrics=[..., TeacherAgreement()])` it is given the teacher's
    outputs in place of labels, so the teacher runs in `evaluate` too. Outside, call
    `update_state(teacher_outputs, student_outputs)`.

    Args:
        name: str.
        dtype: dtype of the result.

    Example:
    >>> agreement = TeacherAgreement()
    >>> agreement.update_state([[0.0, 2.0], [1.0, 0.0]], [[0.0, 9.0], [0.0, 1.0]])
    >>> print(float(agreement.result()))
    0.5
    """

    def __init__(self, name: str = "teacher_agreement", dtype: Any = None) -> None:
        super().__init__(_same_class, name=name, dtype=dtype)

    def add(self, teacher_logits: Any, student_logits: Any, kind: Any) -> None:
        """Adds a batch of one output of a kind."""
        if kind == "sigmoid":  # a yes where the logit is above 0
            teacher_logits, student_logits = map(
                as_pairs, (teacher_logits, student_logits)
            )
        self.update_state(teacher_logits, student_logits)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {"name": self.name, "dtype": self.dtype}


def _same_class(teacher_outputs: Any, student_outputs: Any) -> Any:
    teacher_class = (
        teacher_outputs.indices[..., 0]
        if isinstance(teacher_outputs, TopKLogits)
        else ops.argmax(teacher_outputs, -1)
    )
    same = ops.equal(
        ops.cast(teacher_class, "int32"),
        ops.cast(ops.argmax(student_outputs, -1), "int32"),
    )
    return ops.cast(same, "float32")


@keras.saving.register_keras_serializable(PACKAGE)
class NegativeLogLikelihood(keras.metrics.MeanMetricWrapper):
    """Mean negative log-likelihood of the labels at T = 1, in nats.

    Unlike a loss it knows neither label smoothing nor regularisation, so it means the
    same whatever a student is trained on.

    Args:
        from_logits: whether the student gives logits, default `True`; probabilities
            otherwise; or a function without arguments that says it later.
        ignore_class: label of positions that do not count; `None` (default) for none.
        name: str.
        dtype: dtype of the result.

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
    ) -> None:
        super().__init__(self._of_labels, name=name, dtype=dtype)
        self.from_logits = from_logits
        self.ignore_class = ignore_class

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Adds a batch; as in every Keras metric."""
        if self.ignore_class is not None:
            y_true = ops.convert_to_tensor(y_true)
            counts = ops.not_equal(y_true, self.ignore_class)
            y_true = ops.where(counts, y_true, ops.zeros_like(y_true))
            counts = ops.cast(counts, "float32")
            sample_weight = counts if sample_weight is None else counts * sample_weight
        return super().update_state(y_true, y_pred, sample_weight)

    def _says_logits(self) -> bool:
        return self.from_logits() if callable(self.from_logits) else self.from_logits

    def _of_labels(self, y: Any, outputs: Any) -> Any:
        logits = ops.cast(to_logits(outputs, self._says_logits()), "float32")
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
        }


def calibration_error(
    probabilities: np.ndarray,
    labels: np.ndarray,
    bins: int = 15,
    weights: np.ndarray | None = None,
) -> float:
    """Returns the expected calibration error.

        sum_b  n_b / n * | accuracy_b - confidence_b |

    over bins of equal width of the confidence, that is the largest probability.

    Args:
        probabilities: float `(examples, classes)`.
        labels: int `(examples,)`.
        bins: number of bins, default 15.
        weights: float `(examples,)`, or `None` (default) for all alike.

    Returns:
        From 0 to 1.

    Example:
    >>> round(calibration_error(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])), 3)
    0.4

    Reference: Guo et al., arXiv:1706.04599.
    """
    _, accuracy, confidence, weight = reliability(probabilities, labels, bins, weights)
    return float(np.sum(weight * np.abs(accuracy - confidence)))


def reliability(
    probabilities: np.ndarray,
    labels: np.ndarray,
    bins: int = 15,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns accuracy and confidence by bins of the confidence.

    Args:
        probabilities: float `(examples, classes)`.
        labels: int `(examples,)`.
        bins: number of bins of equal width.
        weights: float `(examples,)`, or `None` (default) for all alike.

    Returns:
        For each bin: its upper edge, the accuracy, the mean confidence and the share of
        the examples; zeros for an empty bin.
    """
    bins = check_int("bins", bins, 1)
    p, y = np.asarray(probabilities), np.asarray(labels)
    if p.ndim != 2 or not np.isfinite(p).all() or (p < 0).any() or (p > 1 + 1e-5).any():
        raise ValueError(
            "probabilities must be (examples, classes), from 0 to 1, got "
            f"{np.array2string(p, threshold=8)}."
        )
    y, _ = classes_of(y, p.shape, np.ones(len(p), bool))
    weight = weights_of(weights, (len(p),))
    return binned(p.max(-1), p.argmax(-1) == y, bins, weight)


def binned(
    confidence: np.ndarray, correct: np.ndarray, bins: int, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns what `reliability` does, of confidences `(examples,)`."""
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
