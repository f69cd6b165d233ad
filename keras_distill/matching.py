"""The soft loss of a step: which objective is applied to which tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops

from keras_distill import checks
from keras_distill.objectives import (
    HiddenLayerLoss,
    Objective,
    WeightedSum,
    by_output,
    has_several,
    weighted_terms,
)


class Answer(NamedTuple):
    """What one model says about a batch.

    Attributes:
        outputs: as the model gives them, a tensor or a dict or list of them.
        logits: the same structure as logits.
        layers: outputs of the matched hidden layers, by name.
    """

    outputs: Any
    logits: Any
    layers: dict[str, Any]


class Matching:
    """Applies the objectives of a distiller to the answers of its two models.

    Args:
        objective: a distillation loss, or a dict or list of them, one per output.

    Raises:
        TypeError: if it is none of these.
    """

    def __init__(self, objective: Any) -> None:
        # Copies: a projection belongs to one distiller.
        self.objective = _copied(checks.objective(objective))
        self.reduce = Reduce()

    @property
    def is_by_output(self) -> bool:
        """Whether each output has an objective of its own."""
        return isinstance(self.objective, (dict, list, tuple))

    @property
    def terms(self) -> list[Any]:
        """All objectives, without their weights."""
        return [term for _, _, term in self._terms([None])]

    @property
    def trainable_layers(self) -> list[keras.layers.Layer]:
        """Layers of the objectives that are learned with the student."""
        ours = [term for term in self.terms if isinstance(term, Objective)]
        return [layer for term in ours for layer in term.trainable_layers]

    def layer_names(self, role: str) -> list[str]:
        """Names of the hidden layers that are matched, of the "student" or "teacher"."""
        names = [getattr(term, f"{role}_layer_name", None) for term in self.terms]
        return list(dict.fromkeys(name for name in names if name is not None))

    @property
    def outputs_with_classes(self) -> set | None:
        """Keys of the outputs whose classes must be the teacher's; `None` for all."""
        keys = {
            key
            for key, _, term in self._terms([None])
            if not isinstance(term, HiddenLayerLoss)
        }
        return keys if self.is_by_output or not keys else None

    def bind(self, student: keras.Model, teacher: keras.Model | None) -> None:
        """Checks the objectives against the models, and makes their layers.

        Raises:
            ValueError: if a layer does not exist, or shapes do not fit.
        """
        for term in self.terms:
            if isinstance(term, HiddenLayerLoss):
                term.bind(student, teacher)
            elif not isinstance(term, Objective) and teacher is not None:
                term.validate_model_compatibility(teacher, student)

    def check_kept_layers(self, layers: dict[str, Any], student: keras.Model) -> None:
        """Checks kept hidden layers against the student, as `bind` does a teacher's.

        Raises:
            ValueError: if shapes do not fit.
        """
        for term in self.terms:
            if isinstance(term, HiddenLayerLoss) and term.teacher_layer_name in layers:
                term.check_kept(layers[term.teacher_layer_name].shape, student)

    def __call__(
        self, teacher: Answer, student: Answer, sample_weight: Any, temperature: Any
    ) -> Any:
        """Returns the soft loss of a batch, a float32 scalar.

        Args:
            teacher: its answer, a constant.
            student: its answer.
            sample_weight: `None`, or in the structure of the student's outputs.
            temperature: float32 scalar > 0.
        """
        outputs = [key for key, _ in by_output(student.outputs)]
        total = ops.zeros((), "float32")
        for key, weight, term in self._terms(outputs):
            value = self._term_loss(
                term,
                _seen_by(term, teacher, "teacher", key),
                _seen_by(term, student, "student", key),
                # The tensor that carries the Keras mask, if there is one.
                _masked(term, student, key),
                _weight_at(sample_weight, key),
                temperature,
            )
            total += weight * ops.cast(value, "float32")
        return total

    def _terms(self, outputs: list) -> Iterator[tuple[Any, float, Any]]:
        """Yields the key of an output (`...` for all at once), weight and objective."""
        if self.is_by_output:
            for key, objective in by_output(self.objective):
                for weight, term in weighted_terms(objective):
                    if term is not None:
                        yield key, weight, term
            return
        for weight, term in weighted_terms(self.objective):
            names_layers = getattr(term, "student_layer_name", None) is not None
            # Keras's own objectives take all outputs in one structure.
            at_once = names_layers or not isinstance(term, Objective)
            for key in [...] if at_once else outputs:
                yield key, weight, term

    def _term_loss(
        self,
        term: Any,
        target: Any,
        prediction: Any,
        masked: Any,
        sample_weight: Any,
        temperature: Any,
    ) -> Any:
        """Returns one term's mean over the batch, divided by the replicas."""
        if isinstance(term, Objective):
            values = term.loss_per_example(target, prediction, temperature)
            weight = checks.weight_for(sample_weight, len(values.shape))
            return self.reduce(values, masked, weight)
        # One of Keras's own: loss objects in it divide by the replicas, functions do not.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        divided = checks.divides_by_replicas(term) if replicas > 1 else True
        term.validate_outputs(target, prediction)
        has_mask = any(
            getattr(tensor, "_keras_mask", None) is not None
            for tensor in keras.tree.flatten(masked)
        )
        if sample_weight is None and not has_mask:
            value = term.compute_loss(target, prediction)
            return value if divided else value / replicas
        checks.keras_term_splits_by_example(term)
        values = ops.vectorized_map(
            lambda pair: term.compute_loss(
                *keras.tree.map_structure(lambda one: one[None], pair)
            ),
            (target, prediction),
        )
        if divided:
            values = values * replicas
        return self.reduce(values, masked, sample_weight)


def _copied(objective: Any) -> Any:
    if isinstance(objective, dict):
        return {key: _copied(part) for key, part in objective.items()}
    if isinstance(objective, (list, tuple)):
        return [_copied(part) for part in objective]
    if isinstance(objective, WeightedSum):
        return WeightedSum([(w, _copied(term)) for w, term in objective.terms])
    if isinstance(objective, HiddenLayerLoss):
        return HiddenLayerLoss(**objective.get_config())
    return objective


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


def at(structure: Any, key: Any) -> Any:
    """Returns one output of a structure; all of it for `...` or a single output."""
    if key is None or key is ... or not has_several(structure):
        return structure
    return structure[key]


def _weight_at(sample_weight: Any, key: Any) -> Any:
    """Returns the sample weights of one output; the first ones for all at once."""
    if key is ... and sample_weight is not None:
        return keras.tree.flatten(sample_weight)[0]
    return at(sample_weight, key)


def _seen_by(term: Any, answer: Answer, role: str, key: Any) -> Any:
    layer = getattr(term, f"{role}_layer_name", None)
    if layer is not None:
        return answer.layers[layer]
    if isinstance(term, HiddenLayerLoss):
        return at(answer.outputs, key)
    return keras.tree.map_structure(_in_float32, at(answer.logits, key))


def _in_float32(logits: Any) -> Any:
    dtype = keras.backend.standardize_dtype(logits.dtype)
    return ops.cast(logits, keras.backend.result_type(dtype, "float32"))


def _masked(term: Any, student: Answer, key: Any) -> Any:
    layer = getattr(term, "student_layer_name", None)
    return at(student.outputs, key) if layer is None else student.layers[layer]
