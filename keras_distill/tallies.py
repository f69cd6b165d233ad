"""The figures of one output, added up batch by batch: a tally for each kind of output."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from keras_distill.labels import (
    answers_of,
    classes_of,
    is_ignored,
    values_of,
    weights_of,
)
from keras_distill.logits_or_probabilities import in_form_of
from keras_distill.metrics import binned
from keras_distill.resizing import is_map, resized_array
from keras_distill.running_sums import Confusion, Moments

_BINS = 15


class Tally:
    """What is known of the judged labels of one output.

    Args:
        where: " of output 'name'", for messages; "" for a single output.
        ignored: label that is left out; `None` for none.
    """

    kind = ""

    def __init__(self, where: str = "", ignored: int | None = None) -> None:
        self.where = where
        self.ignored = ignored
        #: Number of labels judged; with more than one axis, every position.
        self.examples = 0
        self.total_weight = 0.0
        #: Of how many the model's answer is NaN or infinity.
        self.bad = 0
        self.has_teacher = False

    def add(self, z: Any, y: Any, weight: Any, mask: Any, teacher: Any = None) -> None:
        """Adds a batch.

        Args:
            z: the model's logits or values `(batch, ..., classes)`, or `(batch,)`.
            y: labels.
            weight: sample weights, or `None`.
            mask: Keras mask of the output, or `None`.
            teacher: the teacher's logits or values, or `None`.

        Raises:
            ValueError: if labels or weights are wrong, or the teacher's answer is of another
                shape or not finite.
        """
        z = np.asarray(z)
        z = z[:, None] if z.ndim == 1 else z
        if self.kind != "values":
            z = self._on_grid_of_labels(z, y, mask)
        weight = weights_of(weight, z.shape[:-1])
        if mask is not None:
            weight = weight * np.asarray(mask)
        if teacher is not None:
            self.has_teacher = True
            teacher = self._of_teacher(teacher, z.shape)
        self._add(z, y, weight, teacher)

    def _on_grid_of_labels(self, z: np.ndarray, y: Any, mask: Any) -> np.ndarray:
        shape = np.shape(y)
        sizes = shape[1:-1] if len(shape) == z.ndim else shape[1:]
        # A row for each label: else they are refused, by their shape.
        is_alike = (
            len(sizes) == z.ndim - 2 and 0 not in sizes and shape[:1] == z.shape[:1]
        )
        if not is_map(z.shape) or not is_alike or sizes == z.shape[1:-1]:
            return z
        if mask is not None:
            raise ValueError(
                f"the model's outputs{self.where} have shape {z.shape} and the labels "
                f"{shape}: a map is not resized under a Keras mask."
            )
        return resized_array(z, sizes)

    def _of_teacher(self, teacher: Any, shape: tuple) -> np.ndarray:
        teacher = np.asarray(in_form_of(np.asarray(teacher), shape, self.kind))
        teacher = teacher[:, None] if teacher.ndim == 1 else teacher
        is_alike = is_map(shape) and teacher.ndim == len(shape)
        if self.kind != "values" and is_alike:
            teacher = resized_array(teacher, shape[1:-1])
        if teacher.shape != shape:
            what = "values" if self.kind == "values" else "classes"
            raise ValueError(
                f"the model's outputs{self.where} have shape {shape} and the teacher's "
                f"{teacher.shape}; only models of the same {what} can agree."
            )
        return teacher

    def _check_teacher(self, is_good: Any) -> None:
        if not np.all(is_good):
            raise ValueError(
                f"the teacher answers NaN or infinity{self.where}, so there is nothing to "
                "agree with."
            )

    def _add(self, z: np.ndarray, y: Any, weight: np.ndarray, teacher: Any) -> None:
        raise NotImplementedError

    def check(self, name: str | None) -> None:
        """Refuses a model that answered NaN, and data of which nothing counts.

        Args:
            name: of the model, where it was given one.
        """
        if not self.total_weight > 0:
            left_out = (
                ""
                if self.ignored is None
                else f", or all labels are {self.ignored}, which is left out"
            )
            raise ValueError(
                f"all sample weights{self.where} are 0{left_out}, so there is nothing to judge."
            )
        if self.bad:
            raise ValueError(
                f"the model{f' {name!r}' if name else ''} answers NaN or infinity{self.where} "
                f"for {self.bad} of {self.examples} labels; look at its weights, and for NaN "
                "in the inputs."
            )

    def figures(self) -> dict[str, Any]:
        """Returns the fields of `Evaluation` that are of this kind."""
        raise NotImplementedError


class _Judged(NamedTuple):
    """Figures of each label that counts; its confidence is NaN where the answer is."""

    weight: np.ndarray
    correct: np.ndarray
    in_top5: np.ndarray
    nll: np.ndarray
    confidence: np.ndarray
    agreed: np.ndarray


class SoftmaxTally(Tally):
    """Accuracy, top-5, NLL, calibration, agreement of classes that exclude each other."""

    kind = "softmax"

    def __init__(self, where: str = "", ignored: int | None = None) -> None:
        super().__init__(where, ignored)
        self._parts: list[_Judged] = []
        self._classes = 0
        self._confusion: Confusion | None = None

    def _add(self, z: np.ndarray, y: Any, weight: np.ndarray, teacher: Any) -> None:
        classes = self._classes = z.shape[-1]
        if classes < 2:
            raise ValueError(
                f"evaluate judges a softmax of at least 2 classes, got outputs{self.where} of "
                f'shape {z.shape}; a yes or no is output_kinds="sigmoid".'
            )
        if self.ignored is not None:
            weight = weight * ~is_ignored(y, z.shape, self.ignored, False)
        counts = weight > 0
        right, shares = classes_of(y, z.shape, counts)
        agreed = np.zeros(counts.shape, bool)
        if teacher is not None:
            with np.errstate(invalid="ignore"):
                total = np.logaddexp.reduce(teacher[counts].astype("float64"), axis=-1)
            self._check_teacher(np.isfinite(total))
            agreed = teacher.argmax(-1) == z.argmax(-1)
        z = z[counts].astype("float64")
        with np.errstate(invalid="ignore"):  # infinity - infinity: NaN, counted later
            log_p = z - np.logaddexp.reduce(z, axis=-1, keepdims=True)
        at_right = np.take_along_axis(log_p, right[:, None], -1)[:, 0]
        if shares is not None:  # a class of no share counts nothing, also at -infinity
            at_right = np.where(shares > 0, shares * log_p, 0.0).sum(-1)
        best = np.argpartition(z, -min(5, classes), axis=-1)[:, -5:]
        found = _Judged(
            weight=weight[counts],
            correct=z.argmax(-1) == right,
            in_top5=(best == right[:, None]).any(-1),
            nll=-at_right,
            confidence=np.exp(log_p.max(-1)),
            agreed=agreed[counts],
        )
        self._parts.append(found)
        if len(counts.shape) > 2:
            self._confusion = self._confusion or Confusion(classes)
            self._confusion.add(right, z.argmax(-1), found.weight)
        self.examples += len(right)
        self.total_weight += float(weight.sum())
        self.bad += int(np.isnan(found.confidence).sum())

    def figures(self) -> dict[str, Any]:
        """Returns the fields of `Evaluation` that are of this kind."""
        found = _Judged(*map(np.concatenate, zip(*self._parts, strict=True)))
        weight = found.weight / found.weight.sum()
        _, accuracy, confidence, share = binned(
            found.confidence, found.correct, _BINS, weight
        )
        return {
            "accuracy": float(weight @ found.correct),
            "top5_accuracy": float(weight @ found.in_top5)
            if self._classes > 10
            else None,
            "mean_iou": self._confusion and self._confusion.mean_iou,
            "nll": float(weight @ found.nll),
            "calibration_error": float(share @ np.abs(accuracy - confidence)),
            "teacher_agreement": float(weight @ found.agreed)
            if self.has_teacher
            else None,
        }


class _Answers(NamedTuple):
    """What is kept of each position: of its questions, or one weight for all of them."""

    weight: np.ndarray
    logit: np.ndarray
    label: np.ndarray
    agreed: np.ndarray


class SigmoidTally(Tally):
    """Accuracy at 0.5, AUC, NLL, calibration, agreement of yes/no questions."""

    kind = "sigmoid"

    def __init__(self, where: str = "", ignored: int | None = None) -> None:
        super().__init__(where, ignored)
        self._parts: list[_Answers] = []
        self._is_map = False

    def _add(self, z: np.ndarray, y: Any, weight: np.ndarray, teacher: Any) -> None:
        weight = weight[..., None]
        if self.ignored is not None:
            weight = weight * ~is_ignored(y, z.shape, self.ignored, True)
        counts = np.broadcast_to(weight > 0, z.shape)
        label = answers_of(y, z.shape, counts)
        agreed = np.zeros(z.shape, bool)
        if teacher is not None:
            # As [0, z]: a question may be ruled out, by -infinity.
            self._check_teacher(teacher[counts] < np.inf)
            agreed = (teacher > 0) == (z > 0)
        rows = counts.any(-1)
        self._is_map = is_map(z.shape)
        found = _Answers(
            weight[rows], z[rows], label[rows].astype("float32"), agreed[rows]
        )
        if (found.label != label[rows]).any():  # soft labels that float32 does not hold
            found = found._replace(label=label[rows])
        self._parts.append(found)
        self.examples += int(rows.sum())
        self.total_weight += float(np.broadcast_to(weight, z.shape).sum())
        self.bad += int((~(z < np.inf) & counts).any(-1).sum())

    def figures(self) -> dict[str, Any]:
        """Returns the fields of `Evaluation` that are of this kind."""
        found = _Answers(*map(np.concatenate, zip(*self._parts, strict=True)))
        z, y = found.logit.astype("float64"), found.label.astype("float64")
        weight = np.broadcast_to(found.weight, z.shape)
        weight = weight / weight.sum()
        is_yes = y >= 0.5
        areas = [
            area_under_roc(z[:, k], is_yes[:, k], weight[:, k])
            for k in range(z.shape[1])
        ]
        known = [area for area in areas if area is not None]
        # An answer of no share counts nothing, also at infinity.
        nll = np.where(y > 0, y * np.logaddexp(0, -z), 0.0)
        nll += np.where(y < 1, (1 - y) * np.logaddexp(0, z), 0.0)
        _, rate, confidence, share = binned(
            expit(z).ravel(), y.ravel(), _BINS, weight.ravel()
        )
        confusion = None
        if self._is_map and z.shape[1] == 1:
            confusion = Confusion(2)
            right, chosen = (part[:, 0].astype("int64") for part in (is_yes, z > 0))
            confusion.add(right, chosen, weight[:, 0])
        return {
            "accuracy": float(np.vdot(weight, (z > 0) == is_yes)),
            "auc": float(np.mean(known)) if known else None,
            "mean_iou": confusion and confusion.mean_iou,
            "nll": float(np.vdot(weight, nll)),
            "calibration_error": float(share @ np.abs(rate - confidence)),
            "teacher_agreement": float(np.vdot(weight, found.agreed))
            if self.has_teacher
            else None,
        }


def area_under_roc(
    score: np.ndarray, is_yes: np.ndarray, weight: np.ndarray
) -> float | None:
    """Returns the area under the ROC curve: how often a yes has the higher score of two.

    Equal scores count half, as in scikit-learn's `roc_auc_score`.

    Args:
        score: `(examples,)`.
        is_yes: bool `(examples,)`.
        weight: float `(examples,)`.

    Returns:
        From 0 to 1; `None` where all are yes, or none.
    """
    order = np.argsort(score)
    score, is_yes, weight = score[order], is_yes[order], weight[order]
    first = np.flatnonzero(np.diff(score, prepend=np.nan) != 0)  # of equal ones
    yes = np.add.reduceat(weight * is_yes, first)
    no = np.add.reduceat(weight * ~is_yes, first)
    pairs = yes.sum() * no.sum()
    if not pairs > 0:
        return None
    return float(yes @ (np.cumsum(no) - no / 2) / pairs)


class ValuesTally(Tally):
    """Errors, R2, cosine, and the correlation with the teacher, of real numbers."""

    kind = "values"

    def __init__(self, where: str = "", ignored: int | None = None) -> None:
        super().__init__(where, ignored)
        self._absolute = self._cosine = 0.0
        self._squared: Any = 0.0
        self._labels, self._with_teacher = Moments(), Moments()
        self._values = 0

    def _add(self, z: np.ndarray, y: Any, weight: np.ndarray, teacher: Any) -> None:
        counts = weight > 0
        self._values = z.shape[-1]
        y, weight = values_of(y, z.shape, counts), weight[counts]
        z = z[counts].astype("float64")
        self.examples += len(y)
        self.total_weight += float(weight.sum())
        is_bad = ~np.isfinite(z).all(-1)
        if is_bad.any():  # there will be no figures
            self.bad += int(is_bad.sum())
            return
        self._absolute += float(weight @ np.abs(z - y).mean(-1))
        self._squared = self._squared + weight @ np.square(z - y)
        self._cosine += float(weight @ _cosine(z, y))
        self._labels.add(y[None], weight)
        if teacher is not None:
            teacher = teacher[counts].astype("float64")
            self._check_teacher(np.isfinite(teacher))
            pairs = np.stack([z.ravel(), teacher.ravel()])
            self._with_teacher.add(pairs, np.repeat(weight, self._values))

    def figures(self) -> dict[str, Any]:
        """Returns the fields of `Evaluation` that are of this kind."""
        squared = self._squared / self.total_weight
        variance = self._labels.products[0, 0] / self.total_weight
        # As in scikit-learn: labels that do not vary are met, or not.
        is_varied = self._labels.varies[0]
        r2 = np.where(squared > 0, 0.0, 1.0)
        r2[is_varied] = 1.0 - squared[is_varied] / variance[is_varied]
        return {
            "mae": self._absolute / self.total_weight,
            "rmse": float(np.sqrt(squared.mean())),
            "r2": float(r2.mean()) if self.examples > 1 else None,
            "cosine": self._cosine / self.total_weight if self._values > 1 else None,
            "teacher_correlation": self._with_teacher.correlation
            if self.has_teacher
            else None,
        }


def _cosine(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the cosine of each pair of rows; 0 for a row of length 0."""
    z, y = (
        rows / np.maximum(np.abs(rows).max(-1, keepdims=True), 1e-300)
        for rows in (z, y)
    )
    lengths = np.linalg.norm(z, axis=-1) * np.linalg.norm(y, axis=-1)
    return (z * y).sum(-1) / np.where(lengths > 0, lengths, 1.0)


#: The tally for each kind of output.
TALLIES: dict[str, type[Tally]] = {
    one.kind: one for one in (SoftmaxTally, SigmoidTally, ValuesTally)
}
