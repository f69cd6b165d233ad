"""The soft loss of a step: which distillation loss is applied to which tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill.arguments import KINDS
from keras_distill.keras_compat import mask_of
from keras_distill.logits_or_probabilities import as_pairs, to_probabilities
from keras_distill.losses.base import DistillationLoss, SumOfLosses, weighted_terms
from keras_distill.losses.features import FeatureLoss, is_on_features
from keras_distill.losses.keras_own import (
    check_splits_by_example,
    divides_by_replicas,
)
from keras_distill.losses.kl import SoftTargetLoss
from keras_distill.losses.maps import on_teachers_grid
from keras_distill.losses.names import check_distillation_loss
from keras_distill.losses.values import CosineLoss, SquaredErrorLoss
from keras_distill.losses.weights import (
    weight_at_positions,
    weight_for,
    weight_in_shape,
    weights_by_example,
)
from keras_distill.structures import ModelOutputs, answer_for, at, by_output

#: What to use for a kind of output, in messages.
_COMPARES = {
    "softmax": "SoftTargetLoss() or LogitLoss()",
    "sigmoid": "SoftTargetLoss() or LogitLoss()",
    "values": "SquaredErrorLoss() or CosineLoss()",
}


class Matching:
    """Applies the distillation losses of a distiller to the answers of its two models.

    Args:
        distillation_loss: a distillation loss, or a dict or list of them, one per output
            (`None` for an output that is not matched); `None` for that of each output's
            kind: `SoftTargetLoss`, or `SquaredErrorLoss` for values.
        features: what is matched beside it: a `FeatureLoss` of named layers or a sum of
            such; `None` for nothing.

    Raises:
        TypeError: if it is none of these.
    """

    def __init__(self, distillation_loss: Any = None, features: Any = None) -> None:
        # Copies: an adapter belongs to one distiller.
        self.given = _copied(check_distillation_loss(distillation_loss))
        self.features = _copied(features)
        self.distillation_loss = SoftTargetLoss() if self.given is None else self.given
        self.reduce = Reduce()
        #: Of the student's outputs, once they are known; see `outputs.kinds_of`.
        self.kinds: Any = None
        #: Keys of outputs whose own loss looks at the direction of a vector alone.
        self.directions: set = set()

    @property
    def is_by_output(self) -> bool:
        """Whether each output has a distillation loss of its own."""
        return isinstance(self.distillation_loss, (dict, list, tuple))

    @property
    def terms(self) -> list[Any]:
        """All distillation losses, without their weights."""
        keys = list(self.kinds) if isinstance(self.kinds, dict) else [None]
        return [term for _, _, term in self._terms(keys)]

    def by_output(self, outputs: list) -> dict[Any, list[tuple[float, Any]]]:
        """Returns weights and losses of each output, by its key; `...` is all at once."""
        found: dict[Any, list[tuple[float, Any]]] = {}
        for key, weight, term in self._terms_of_outputs(outputs):
            found.setdefault(key, []).append((weight, term))
        return found

    @property
    def takes_labels(self) -> bool:
        """Whether a loss compares by the label."""
        return any(getattr(term, "takes_labels", False) for term in self.terms)

    def compared_by_label(self, outputs: list) -> list:
        """Returns those keys of outputs that a loss compares by the label."""
        found = [
            key
            for key, _, term in self._terms(outputs)
            if getattr(term, "takes_labels", False)
        ]
        return list(dict.fromkeys(found))

    @property
    def trainable_layers(self) -> list[keras.layers.Layer]:
        """Layers of the distillation losses that are learned with the student."""
        ours = [term for term in self.terms if isinstance(term, DistillationLoss)]
        return [layer for term in ours for layer in term.trainable_layers]

    @property
    def waits_for_shapes(self) -> bool:
        """Whether an adapter is not made yet, as no batch has told the features' shapes."""
        return any(
            isinstance(t, FeatureLoss) and t.waits_for_shapes for t in self.terms
        )

    def layer_names(self, role: str) -> list[str]:
        """Names of the hidden layers that are matched, of the "student" or "teacher"."""
        names = [getattr(term, f"{role}_layer_name", None) for term in self.terms]
        return list(dict.fromkeys(name for name in names if name is not None))

    def kinds_compared(self) -> dict[Any, tuple[str, ...]]:
        """Returns the kinds that the losses given for an output compare, by its key."""
        found: dict[Any, tuple[str, ...]] = {}
        for key, _, term in [] if self.given is None else self._terms([None]):
            if not is_on_features(term) and hasattr(term, "kinds"):
                before = found.get(key, KINDS)
                found[key] = tuple(kind for kind in before if kind in term.kinds)
        return found

    def check_kinds(self) -> None:
        """Refuses a distillation loss that does not compare what an output is.

        Raises:
            ValueError: if there is one.
        """
        by_itself = self.kinds if isinstance(self.kinds, dict) else {None: self.kinds}
        distilled = self.outputs_with_classes
        for key, _, term in self._terms(list(by_itself)):
            by = getattr(term, "weight_by", None)
            kind = by_itself.get(by, "values")
            is_left_out = distilled is not None and by not in distilled
            if by is not None and self.kinds and (kind == "values" or is_left_out):
                raise ValueError(
                    f"{type(term).__name__} has weight_by={by!r}, which must be a distilled "
                    "output of classes or yes/no questions; the outputs are "
                    f"{', '.join(f'{name!r} ({of})' for name, of in by_itself.items())}."
                )
            kinds = (
                set(by_itself.values()) if key is ... else {answer_for(self.kinds, key)}
            )
            takes = getattr(term, "kinds", KINDS)
            if isinstance(term, keras.distillation.LogitsDistillation):
                takes = ("softmax",)
            for kind in kinds - {None, *takes}:
                name = "" if key in (None, ...) else f" {key!r}"
                raise ValueError(
                    f"{type(term).__name__} does not compare outputs of the kind {kind!r}, as "
                    f"the student's output{name} is; use {_COMPARES[kind]}, or leave "
                    "distillation_loss out."
                )

    @property
    def outputs_with_classes(self) -> set | None:
        """Keys of the outputs that are matched to the teacher's; `None` for all.

        Features, and outputs that are not matched, may be anything.
        """
        keys = {key for key, _, term in self._terms([None]) if not is_on_features(term)}
        return keys if self.is_by_output or not keys else None

    def bind(self, student: dict[Any, tuple], teacher: dict[Any, tuple]) -> None:
        """Checks the features that are matched, and makes what is learned with them.

        Args:
            student: shapes of the student's matched layers by name, as far as they are known.
            teacher: likewise, of the teacher's or of cached features.

        Raises:
            ValueError: if shapes do not fit.
        """
        for term in self.terms:
            if isinstance(term, FeatureLoss):
                term.bind(
                    student.get(term.student_layer_name),
                    teacher.get(term.teacher_layer_name),
                )

    def check_models(self, student: keras.Model, teacher: keras.Model) -> None:
        """Has Keras's own distillation losses check the two models.

        Raises:
            ValueError: if they do.
        """
        for term in self.terms:
            if not isinstance(term, DistillationLoss):
                term.validate_model_compatibility(teacher, student)

    def __call__(
        self,
        teacher: ModelOutputs,
        student: ModelOutputs,
        sample_weight: Any,
        temperature: Any,
        labels: Any = None,
    ) -> Any:
        """Returns the soft loss of a batch, a float32 scalar.

        Args:
            teacher: its answer, a constant.
            student: its answer.
            sample_weight: `None`, or in the structure of the student's outputs.
            temperature: float32 scalar > 0.
            labels: class numbers by output, int32 `(batch, ...)`, -1 for none; `None` where
                no loss takes them.
        """
        outputs = [key for key, _ in by_output(student.outputs)]
        total = ops.zeros((), "float32")
        for key, weight, term in self._terms(outputs):
            target = self._seen_by(term, teacher, "teacher", key)
            prediction = self._seen_by(term, student, "student", key)
            # The tensor that carries the Keras mask, if there is one.
            masked = _masked(term, student, key)
            of_term, numbers = _weight_at(sample_weight, key), answer_for(labels, key)
            if self._compares_classes(term, key):
                prediction, masked, of_term, numbers = on_teachers_grid(
                    target, prediction, masked, of_term, numbers
                )
            is_pairs = self._compares_pairs(term, key)
            if is_pairs:
                target, prediction = as_pairs(target), as_pairs(prediction)
            value = self._term_loss(
                term,
                target,
                prediction,
                masked,
                of_term,
                temperature,
                is_pairs,
                numbers,
                self._confidence(term, teacher, prediction),
            )
            total += weight * ops.cast(value, "float32")
        return total

    def _terms(self, outputs: list) -> Iterator[tuple[Any, float, Any]]:
        """Yields the key of an output (`...` for all at once), weight and distillation loss."""
        if self.features is not None:
            for weight, term in weighted_terms(self.features):
                yield ..., weight, term
        yield from self._terms_of_outputs(outputs)

    def _terms_of_outputs(self, outputs: list) -> Iterator[tuple[Any, float, Any]]:
        if self.is_by_output:
            for key, loss in by_output(self.distillation_loss):
                for weight, term in weighted_terms(loss):
                    if term is not None:
                        yield key, weight, term
            return
        for weight, term in weighted_terms(self.distillation_loss):
            names_layers = getattr(term, "student_layer_name", None) is not None
            # Keras's own distillation losses take all outputs in one structure.
            at_once = names_layers or not isinstance(term, DistillationLoss)
            for key in [...] if at_once else outputs:
                yield key, weight, self._of_kind(term, key)

    def _of_kind(self, term: Any, key: Any) -> Any:
        """Returns the loss of an output's kind in place of the default."""
        if self.given is not None or answer_for(self.kinds, key) != "values":
            return term
        return CosineLoss() if key in self.directions else SquaredErrorLoss()

    def _seen_by(self, term: Any, answer: ModelOutputs, role: str, key: Any) -> Any:
        """Returns what a loss compares of a model's answer."""
        layer = getattr(term, f"{role}_layer_name", None)
        if layer is not None:
            return answer.layers[layer]
        if is_on_features(term):
            return at(answer.outputs, key)
        seen = at(answer.logits, key)
        if type(term) is not SoftTargetLoss:  # which casts a few rows at a time
            seen = keras.tree.map_structure(_in_float, seen)
        if len(getattr(seen, "shape", (0, 0))) == 1:  # one number for each example
            seen = ops.expand_dims(seen, -1)
        return seen

    def _compares_classes(self, term: Any, key: Any) -> bool:
        is_ours = isinstance(term, DistillationLoss) and not isinstance(
            term, FeatureLoss
        )
        return is_ours and answer_for(self.kinds, key) != "values"

    def _confidence(self, term: Any, teacher: ModelOutputs, compared: Any) -> Any:
        """Returns the teacher's confidence in what a loss is weighed by; `None` for none."""
        key = getattr(term, "weight_by", None)
        if key is None:
            return None
        logits = _in_float(at(teacher.logits, key))
        check_weight_by(key, logits.shape[:-1], compared.shape[:-1])
        p = to_probabilities(logits, answer_for(self.kinds, key))
        return ops.stop_gradient(ops.max(p, -1))

    def _compares_pairs(self, term: Any, key: Any) -> bool:
        is_over_classes = getattr(term, "is_over_classes", False)
        return is_over_classes and answer_for(self.kinds, key) == "sigmoid"

    def _term_loss(
        self,
        term: Any,
        target: Any,
        prediction: Any,
        masked: Any,
        sample_weight: Any,
        temperature: Any,
        is_pairs: bool,
        labels: Any,
        confidence: Any,
    ) -> Any:
        """Returns one term's mean over the batch, divided by the replicas."""
        if isinstance(term, DistillationLoss):
            also: dict[str, Any] = {}
            if term.takes_labels:
                also["labels"] = labels
            of_layers = term.compares_examples and isinstance(term, FeatureLoss)
            if term.compares_examples:
                # Layers are compared by example, outputs by position.
                if of_layers and mask_of(masked) is not None:
                    sample_weight = weight_at_positions(sample_weight, mask_of(masked))
                shape = ops.shape(prediction)[: 1 if of_layers else -1]
                also["weight"] = _weight_of(masked, sample_weight, shape)
            values = term.loss_per_example(target, prediction, temperature, **also)
            if of_layers:
                # The mask is of positions, the values are of examples.
                counts = weights_by_example(
                    sample_weight, mask_of(masked), ops.shape(values)
                )
                return self.reduce(values, values, counts)
            if is_pairs:  # the mean over the questions
                values = ops.mean(values, -1)
            if confidence is not None:
                values = values * ops.cast(confidence, values.dtype)
            if isinstance(term, FeatureLoss):
                weight = weight_at_positions(sample_weight, values)
                mask = mask_of(masked)
                if mask is not None and not _are_leading(mask.shape, values.shape):
                    # An adapter of one's own has averaged over positions.
                    weight = weights_by_example(weight, mask, ops.shape(values)[:1])
                    masked, weight = values, weight_for(weight, len(values.shape))
                return self.reduce(values, masked, weight)
            weight = weight_for(sample_weight, len(values.shape))
            return self.reduce(values, masked, weight)
        # One of Keras's own: loss objects in it divide by the replicas, functions do not.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        divided = divides_by_replicas(term) if replicas > 1 else True
        term.validate_outputs(target, prediction)
        has_mask = any(
            mask_of(tensor) is not None for tensor in keras.tree.flatten(masked)
        )
        if sample_weight is None and not has_mask:
            value = term.compute_loss(target, prediction)
            return value if divided else value / replicas
        check_splits_by_example(term)
        values = ops.vectorized_map(
            lambda pair: term.compute_loss(
                *keras.tree.map_structure(lambda one: one[None], pair)
            ),
            (target, prediction),
        )
        if divided:
            values = values * replicas
        return self.reduce(values, masked, sample_weight)


def check_weight_by(key: Any, ours: tuple, theirs: tuple) -> None:
    """Refuses confidence that is not one number for each position of what is compared."""
    known = zip(ours, theirs, strict=False)
    if len(ours) != len(theirs) or any(
        a is not None and b is not None and a != b for a, b in known
    ):
        raise ValueError(
            f"weight_by={key!r} is an output with positions {tuple(ours)}, and the values have "
            f"positions {tuple(theirs)}; they must agree."
        )


def _copied(distillation_loss: Any) -> Any:
    if isinstance(distillation_loss, dict):
        return {key: _copied(part) for key, part in distillation_loss.items()}
    if isinstance(distillation_loss, (list, tuple)):
        return [_copied(part) for part in distillation_loss]
    if isinstance(distillation_loss, SumOfLosses):
        return SumOfLosses([(w, _copied(term)) for w, term in distillation_loss.terms])
    if isinstance(distillation_loss, FeatureLoss):
        return distillation_loss.copied()
    return distillation_loss


class Reduce(keras.losses.Loss):
    """Reduces values per example as Keras reduces any loss.

    `Loss.__call__` applies sample weights, the Keras mask of its second argument, the
    reduction and the scaling for replicas.
    """

    def __init__(self, reduction: str = "sum_over_batch_size") -> None:
        super().__init__(name="soft_loss", reduction=reduction, dtype="float32")

    def call(self, values: Any, masked: Any) -> Any:
        """Returns the values: there is nothing left to compute."""
        return values


def _weight_at(sample_weight: Any, key: Any) -> Any:
    """Returns the sample weights of one output; the first ones for all at once."""
    if key is ... and sample_weight is not None:
        return keras.tree.flatten(sample_weight)[0]
    return at(sample_weight, key)


def _weight_of(masked: Any, sample_weight: Any, shape: tuple) -> Any:
    """Returns mask times sample weight of what is compared, of a shape, or `None`."""
    return weight_in_shape(
        [mask_of(keras.tree.flatten(masked)[0]), sample_weight], shape
    )


def _are_leading(shape: tuple, of: tuple) -> bool:
    """Tells whether a shape is that of another's first axes, as far as they are known."""
    pairs = zip(shape, of, strict=False)
    return len(shape) <= len(of) and all(a == b or None in (a, b) for a, b in pairs)


def _in_float(logits: Any) -> Any:
    dtype = keras.backend.standardize_dtype(logits.dtype)
    return ops.cast(logits, keras.backend.result_type(dtype, "float32"))


def _masked(term: Any, student: ModelOutputs, key: Any) -> Any:
    layer = getattr(term, "student_layer_name", None)
    return at(student.outputs, key) if layer is None else student.layers[layer]


def check_mean_at_one_temperature(terms: list) -> None:
    """Refuses a mean of tempered probabilities for a distillation loss with its own T."""
    own = [getattr(t, "temperature", None) for t in terms]
    if any(t is not None for t in own):
        raise ValueError(
            "a list of teachers is averaged at the distiller's temperature, but a distillation "
            "loss has one of its own; give the temperature to the distiller, or "
            'pass teacher_average="logits".'
        )
