"""What a student of a search is trained and judged by, for each kind of output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_distill.logits_or_probabilities import to_logits
from keras_distill.losses.base import PACKAGE
from keras_distill.metrics import NegativeLogLikelihood

#: Metrics of validation data that `search` knows, and which way is better.
DIRECTIONS = {
    "accuracy": "max",
    "nll": "min",
    "auc": "max",
    "mean_squared_error": "min",
    "cosine_similarity": "max",
}


def default_loss(kind: str, from_logits: Any, is_one_hot: bool) -> keras.losses.Loss:
    """Returns the hard loss of an output of a kind.

    Args:
        kind: "softmax", "sigmoid" or "values".
        from_logits: whether the student gives logits; `False` for probabilities.
        is_one_hot: whether labels of classes are rows, as opposed to class numbers.
    """
    if kind == "values":
        return keras.losses.MeanSquaredError()
    if kind == "sigmoid":
        return keras.losses.BinaryCrossentropy(from_logits=from_logits is not False)
    return (
        keras.losses.CategoricalCrossentropy
        if is_one_hot
        else keras.losses.SparseCategoricalCrossentropy
    )(from_logits=from_logits is not False)


def default_objective(kind: str, count: int, is_direction: bool) -> str:
    """Returns the metric by which trials are compared, for an output of a kind.

    Accuracy for a softmax and for one yes/no question, AUC for several questions, mean squared
    error for values; for vectors whose length the hard loss ignores, their cosine.

    Args:
        kind: "softmax", "sigmoid" or "values".
        count: classes, questions or values.
        is_direction: whether the hard loss looks at the direction of a vector alone.
    """
    if kind == "values":
        return "cosine_similarity" if is_direction else "mean_squared_error"
    return "auc" if kind == "sigmoid" and count > 1 else "accuracy"


def default_metrics(
    kind: str,
    count: int,
    gives_logits: Callable[[], bool],
    is_direction: bool = False,
    ignore_class: int | None = None,
) -> list:
    """Returns the metrics that each trial is judged by, for an output of a kind.

    Args:
        kind: "softmax", "sigmoid" or "values".
        count: classes, questions or values.
        gives_logits: says whether the student gives logits, once it is built.
        is_direction: as in `default_objective`.
        ignore_class: label of positions that do not count.
    """
    if kind == "values":
        cosine = [keras.metrics.CosineSimilarity()] if is_direction else []
        return [*cosine, keras.metrics.MeanSquaredError()]
    if kind == "softmax":
        return ["accuracy", NegativeLogLikelihood(gives_logits, ignore_class)]
    of_questions = [YesNoAccuracy(gives_logits), YesNoLikelihood(gives_logits)]
    auc = [QuestionsAUC(count, gives_logits)] if count > 1 else []
    return [*auc, *of_questions]


class _OfYesNo(keras.metrics.MeanMetricWrapper):
    """A mean over yes/no questions, of logits or probabilities."""

    def __init__(
        self,
        gives_logits: bool | Callable[[], bool] = True,
        name: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(self._of_questions, name=name, **kwargs)
        self.gives_logits = gives_logits

    def _of_questions(self, y: Any, outputs: Any) -> Any:
        outputs = ops.cast(outputs, "float32")
        y = ops.reshape(ops.cast(y, "float32"), ops.shape(outputs))
        return self.of(y, outputs, _says_logits(self.gives_logits))

    def of(self, y: Any, outputs: Any, are_logits: bool) -> Any:
        """Returns a value for each question."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "gives_logits": _says_logits(self.gives_logits),
            "name": self.name,
            "dtype": self.dtype,
        }


@keras.saving.register_keras_serializable(PACKAGE)
class YesNoAccuracy(_OfYesNo):
    """How often a yes or no is right, at the probability 0.5, also of logits."""

    def __init__(
        self,
        gives_logits: bool | Callable[[], bool] = True,
        name: str = "accuracy",
        **kwargs: Any,
    ) -> None:
        super().__init__(gives_logits, name, **kwargs)

    def of(self, y: Any, outputs: Any, are_logits: bool) -> Any:
        """Returns 1 where it is right."""
        says_yes = outputs > (0.0 if are_logits else 0.5)
        return ops.cast(ops.equal(says_yes, y > 0.5), "float32")


@keras.saving.register_keras_serializable(PACKAGE)
class YesNoLikelihood(_OfYesNo):
    """Mean negative log-likelihood of the answers at T = 1, in nats a question."""

    def __init__(
        self,
        gives_logits: bool | Callable[[], bool] = True,
        name: str = "nll",
        **kwargs: Any,
    ) -> None:
        super().__init__(gives_logits, name, **kwargs)

    def of(self, y: Any, outputs: Any, are_logits: bool) -> Any:
        """Returns `-log p` of each answer."""
        z = to_logits(outputs, are_logits, "sigmoid")
        return ops.softplus(z) - y * z


@keras.saving.register_keras_serializable(PACKAGE)
class QuestionsAUC(keras.metrics.AUC):
    """The mean over the questions of the area under each one's ROC curve."""

    def __init__(
        self,
        count: int,
        gives_logits: bool | Callable[[], bool] = True,
        name: str = "auc",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, multi_label=True, num_labels=count, **kwargs)
        self.count = count
        self.gives_logits = gives_logits

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Adds a batch; positions of a mask are examples."""
        outputs = ops.reshape(ops.cast(y_pred, "float32"), (-1, self.count))
        if _says_logits(self.gives_logits):
            outputs = ops.sigmoid(outputs)
        y = ops.reshape(ops.cast(y_true, "float32"), (-1, self.count))
        return super().update_state(y, outputs)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "count": self.count,
            "gives_logits": _says_logits(self.gives_logits),
            "name": self.name,
            "dtype": self.dtype,
        }


def _says_logits(given: bool | Callable[[], bool]) -> bool:
    return given() if callable(given) else given
