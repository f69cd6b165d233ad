"""DistillationLoss: what "match the teacher" means; one small class for each meaning.

A distillation loss is only its formula. Temperature, masks, sample weights and
replicas are handled once, in the distiller's step.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.arguments import KINDS, check_float
from keras_distill.keras_compat import logits_of
from keras_distill.outputs import last_layers
from keras_distill.showing import as_call, as_sum

PACKAGE = "keras_distill"


class DistillationLoss(keras.distillation.DistillationLoss):
    """A distillation loss that can also say its loss per example.

    Subclass it and write `loss_per_example`; the distiller then applies sample
    weights, class weights, Keras masks and the scaling for replicas to it.
    They add up and can be weighed: `SoftTargetLoss() + 0.1 * FeatureLoss(
    "student_layer", "teacher_layer")`.

    A distillation loss works in `keras.distillation.Distiller` too, by `compute_loss`.
    """

    #: Names of the layers whose outputs are compared; `None` is the model's output.
    student_layer_name: str | None = None
    teacher_layer_name: str | None = None
    #: Whether `teacher_outputs` may be `TopKLogits`.
    takes_top_k = False
    #: Kinds of outputs that it compares; any by default.
    kinds: tuple[str, ...] = KINDS
    #: Whether it compares distributions over the classes of the last axis: of K yes/no
    #: questions it is given `(batch, ..., K, 2)`, and its mean over K is taken.
    is_over_classes = False
    #: Whether it is also given `labels`: int32 `(batch, ...)`, class numbers, -1 for none.
    takes_labels = False
    #: Whether it is a relation between the examples of a batch, and is also given their
    #: `weight`: float32 `(batch, ...)`, sample weight times mask, or `None`. An example of
    #: weight 0 counts for nothing in it.
    compares_examples = False
    #: Output of classes or yes/no questions whose confidence, of the teacher, weighs the loss
    #: of each position; `None` for none.
    weight_by: Any = None

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns the loss of each example.

        With `takes_labels` it has an argument `labels` too, with `compares_examples` an
        argument `weight`.

        Args:
            teacher_outputs: float32 `(batch, ..., K)`, logits or values; or the teacher
                layer's output, for a distillation loss that names layers.
            student_outputs: the student's, of the same shape.
            temperature: float32 scalar > 0, the distiller's own.

        Returns:
            float32 `(batch, ...)`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss_per_example")

    def compute_loss(
        self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any
    ) -> Any:
        """Returns the mean over all examples, for `keras.distillation.Distiller`."""
        total = 0.0
        of = (lambda one: one) if self.kinds == ("values",) else logits_of
        for teacher, student in zip(
            keras.tree.flatten(teacher_outputs),
            keras.tree.flatten(student_outputs),
            strict=True,
        ):
            total += ops.mean(self.loss_per_example(of(teacher), of(student)))
        return total

    def validate_model_compatibility(self, teacher: Any, student: Any) -> None:
        """Called by `keras.distillation.Distiller` with its two models."""
        if self.takes_labels:
            raise ValueError(
                f"{type(self).__name__} needs the labels, which keras.distillation.Distiller "
                "does not give to a distillation loss; use keras_distill.Distiller."
            )
        if self.weight_by is not None:
            raise ValueError(
                f"{type(self).__name__} has weight_by, an output that keras.distillation.Distiller "
                "does not give to a distillation loss; use keras_distill.Distiller."
            )
        # Where the kinds are not known, a sigmoid's questions would be taken for classes.
        if self.is_over_classes or self.kinds == ("softmax",):
            for key, layer in last_layers(student).items():
                if layer.kind == "sigmoid":
                    name = "" if key is None else f" {key!r}"
                    raise ValueError(
                        f"{type(self).__name__} in keras.distillation.Distiller compares "
                        f"classes that exclude each other, and the student's output{name} "
                        "is of yes/no questions; use keras_distill.Distiller."
                    )

    @property
    def trainable_layers(self) -> list[keras.layers.Layer]:
        """Layers that are learned together with the student, such as adapters."""
        return []

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DistillationLoss:
        """Creates the distillation loss from `get_config`'s dict."""
        return cls(**config)

    def __repr__(self) -> str:
        return as_call(self, self.get_config())

    def __mul__(self, weight: float) -> SumOfLosses:
        return SumOfLosses([(weight, self)])

    __rmul__ = __mul__

    def __add__(self, other: Any) -> SumOfLosses:
        return SumOfLosses([(1.0, self), (1.0, other)])

    def __radd__(self, other: Any) -> Any:
        # sum() begins with 0.
        is_start = isinstance(other, int) and other == 0
        return self if is_start else SumOfLosses([(1.0, other), (1.0, self)])


@keras.saving.register_keras_serializable(PACKAGE)
class SumOfLosses(DistillationLoss):
    """A weighted sum of distillation losses, made by `+` and `*`.

    Args:
        terms: list of `(weight, loss)`; the weight a finite float >= 0. Distillation losses
            of `keras.distillation` may be among them.

    Raises:
        TypeError: if a term is not a distillation loss.
        ValueError: if a weight is negative or not finite.

    Example:
    >>> from keras_distill import LogitLoss, SoftTargetLoss
    >>> total = SoftTargetLoss() + 0.1 * LogitLoss()
    >>> [weight for weight, _ in total.terms]
    [1.0, 0.1]
    """

    def __init__(self, terms: list[tuple[float, Any]]) -> None:
        for _, term in terms:
            if not isinstance(term, keras.distillation.DistillationLoss):
                raise TypeError(
                    f"only distillation losses add up, got {term!r}; use a "
                    "keras_distill distillation loss or a keras.distillation one."
                )
        self.terms = [
            (check_weight(weight) * inner_weight, inner)
            for weight, term in terms
            for inner_weight, inner in weighted_terms(term)
        ]

    def __repr__(self) -> str:
        return as_sum(self.terms)

    def __mul__(self, weight: float) -> SumOfLosses:
        weight = check_weight(weight)
        return SumOfLosses([(weight * w, term) for w, term in self.terms])

    __rmul__ = __mul__

    def compute_loss(
        self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any
    ) -> Any:
        """Returns the weighted sum of the terms' means."""
        return sum(
            weight * term.compute_loss(teacher_outputs, student_outputs)
            for weight, term in self.terms
        )

    def validate_model_compatibility(self, teacher: Any, student: Any) -> None:
        """Called by `keras.distillation.Distiller` with its two models."""
        for _, term in self.terms:
            if getattr(term, "student_layer_name", None) is not None:
                raise ValueError(
                    "keras.distillation.Distiller cannot see layer names inside a sum; "
                    "give it the terms as a list, with distillation_loss_weights."
                )
            term.validate_model_compatibility(teacher, student)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, serialised."""
        return {
            "terms": [
                (weight, keras.saving.serialize_keras_object(term))
                for weight, term in self.terms
            ]
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SumOfLosses:
        """Creates the sum from `get_config`'s dict."""
        return cls(
            [
                (weight, keras.saving.deserialize_keras_object(term))
                for weight, term in config["terms"]
            ]
        )


def in_float(values: Any) -> Any:
    """Returns float32, or float64 if the values are."""
    values = ops.convert_to_tensor(values)
    dtype = keras.backend.standardize_dtype(values.dtype)
    return ops.cast(values, keras.backend.result_type(dtype, "float32"))


_SHORTEST = 1e-12  # the squared length below which a vector is none


def unit(vectors: Any, axis: int = -1) -> Any:
    """Returns vectors of length 1 along an axis; 0 for one of length 0, with no gradient."""
    vectors = in_float(vectors)
    # Scaled first: the square of a large float32 is infinite, of a small one 0.
    largest = ops.stop_gradient(ops.max(ops.abs(vectors), axis, keepdims=True))
    vectors = vectors / ops.where(largest > 0.0, largest, 1.0)
    length = ops.sum(ops.square(vectors), axis, keepdims=True)
    return vectors * ops.rsqrt(ops.maximum(length, _SHORTEST))


def check_weight(weight: Any) -> float:
    """Returns the weight of a distillation loss as a float.

    Raises:
        ValueError: if it is not a finite number >= 0.
    """
    return check_float(
        "a weight", weight, "a finite number >= 0", lambda number: number >= 0
    )


def weighted_terms(distillation_loss: Any) -> list[tuple[float, Any]]:
    """Returns the distillation loss as a flat list of `(weight, loss)`."""
    if isinstance(distillation_loss, SumOfLosses):
        return distillation_loss.terms
    return [(1.0, distillation_loss)]
