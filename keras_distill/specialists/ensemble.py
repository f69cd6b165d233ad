"""SpecialistEnsemble: a generalist and its specialists as one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill.arguments import (
    MOST,
    check_bool,
    check_choice,
    check_each,
    check_float,
    check_int,
    check_model,
)
from keras_distill.inputs import inputs_for
from keras_distill.logits_or_probabilities import to_logits
from keras_distill.losses.base import PACKAGE
from keras_distill.outputs import symbolic_outputs
from keras_distill.showing import model_in_brief
from keras_distill.specialists.clusters import check_clusters, clusters_in_brief
from keras_distill.specialists.combination import combine
from keras_distill.specialists.heads import HEADS, outputs_of, settled_logits


@keras.saving.register_keras_serializable(PACKAGE)
class SpecialistEnsemble(keras.Model):
    """Answers with log-probabilities over all classes, from all that know something.

    For each example the generalist's `n` most likely classes choose the specialists: those
    whose cluster holds one of them are active. The answer is `log q`, where q minimises

        KL(g || q) + sum over active m of KL(p_m || q)

    and q's probability of a specialist's dustbin is its sum over the classes outside that
    cluster (`combine` has the fixed point). Only active specialists run, and only on the
    examples for which they are, so that the cost of an example does not grow with the
    number of specialists. All of it is in the graph.

    It can be evaluated, predicted, saved, exported and used as a teacher like any model.
    It is not trained as a whole. `specialists`, `clusters` and `generalist` can be read.

    Args:
        generalist: `keras.Model` with logits or probabilities `(batch, classes)`.
        specialists: `keras.Model`s, each with logits `(batch, len(cluster) + 1)`, dustbin
            last; with `head="all"`, `(batch, classes)`.
        clusters: the class numbers of each specialist.
        n: int >= 1, how many of the generalist's most likely classes choose; default 1.
            `None`: all specialists are active for every example.
        head: "dustbin" (default) or "all", what the specialists' outputs are.
        routed: whether only active specialists run (default). `False` runs all on all
            examples, the same answer at more cost, for XLA, which cannot compile shapes
            that depend on values.
        tolerance: an example is done when none of its probabilities changes by more;
            default 1e-6.
        max_iterations: int >= 1, the most updates of the fixed point; default 100.
        name: str.
        **kwargs: passed to `keras.Model`.

    Raises:
        TypeError: if something is not a model.
        ValueError: if numbers of clusters, specialists, outputs or classes do not fit, or
            a number is out of range.

    Example:
    >>> def model(outputs):
    ...     return keras.Sequential([keras.Input((8,)), keras.layers.Dense(outputs)])
    >>> ensemble = SpecialistEnsemble(model(5), [model(3)], [[0, 1]])
    >>> ensemble.predict(np.zeros((4, 8), "float32"), verbose=0).shape
    (4, 5)

    Reference: arXiv:1503.02531, section 5.4.
    """

    #: Read by `gives_logits`: log-probabilities are logits.
    outputs_are_logits = True
    #: Read by `kinds_of`.
    output_kinds = "softmax"

    def __init__(
        self,
        generalist: keras.Model,
        specialists: Sequence[keras.Model] = (),
        clusters: Sequence[Sequence[int]] = (),
        *,
        n: int | None = 1,
        head: str = "dustbin",
        routed: bool = True,
        tolerance: float = 1e-6,
        max_iterations: int = 100,
        name: str = "specialist_ensemble",
        **kwargs: Any,
    ) -> None:
        # Its models cast their inputs themselves.
        super().__init__(name=name, **{"dtype": "float32", "autocast": False, **kwargs})
        classes = classes_of(generalist)
        n, max_iterations = check_settings(n, head, tolerance, max_iterations, classes)
        self.clusters = [list(c) for c in check_clusters(clusters, classes, 0)]
        specialists = check_each("specialists", specialists, lambda _, m: m, "models")
        routed = check_bool("routed", routed)
        _check_specialists(specialists, self.clusters, head, classes)
        self.generalist = generalist
        self.specialists = list(specialists)
        self.classes = classes
        self.n = n
        self.head = head
        self.routed = routed
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        # Routing has shapes that depend on values, which XLA cannot compile.
        self.supports_jit = not routed
        self._from_logits = [settled_logits(m) for m in (generalist, *specialists)]
        #: Whether a cluster, the row, holds a class.
        self.member = np.zeros((len(self.clusters), classes), "float32")
        for row, cluster in zip(self.member, self.clusters, strict=True):
            row[cluster] = 1.0
        self.built = True

    def __repr__(self) -> str:
        if not self.built:
            return super().__repr__()
        return (
            f"<SpecialistEnsemble name={self.name}, generalist="
            f"{model_in_brief(self.generalist)}, specialists for "
            f"{clusters_in_brief(self.clusters, self.classes)}>"
        )

    __str__ = __repr__

    @property
    def inputs(self) -> Any:
        """The generalist's inputs."""
        return self.generalist.inputs

    @property
    def input(self) -> Any:
        """The generalist's inputs, in the structure that `call` takes."""
        model = self.generalist
        is_sequential = isinstance(model, keras.Sequential)
        return model.inputs[0] if is_sequential else model.input

    def call(self, inputs: Any) -> Any:
        """Returns log-probabilities, float32 `(batch, classes)`.

        Args:
            inputs: a batch, as the generalist takes it.
        """
        log_g = self._log_probabilities(0, inputs)
        if not self.specialists:
            return log_g
        active = self.active(log_g)
        numbers = range(len(self.specialists))
        answers = [self._answer(m, inputs, active[:, m]) for m in numbers]
        if self.head == "dustbin":
            dustbin = ops.stack([p[:, -1] for p in answers], 1)
            columns = np.concatenate(self.clusters)
            kept = ops.transpose(ops.concatenate([p[:, :-1] for p in answers], 1))
            # Sums the columns of one class.
            special = ops.transpose(ops.segment_sum(kept, columns, self.classes))
            outside = 1.0 - self.member
        else:
            dustbin = ops.zeros_like(active)
            special = sum(answers[1:], answers[0])
            outside = np.zeros_like(self.member)
        limits = (self.tolerance, self.max_iterations)
        return combine(log_g, special, dustbin, active, outside, *limits)

    def active(self, log_g: Any) -> Any:
        """Returns which specialists are active, float32 `(batch, specialists)`.

        Args:
            log_g: the generalist's logits or log-probabilities `(batch, classes)`.
        """
        if self.n is None:
            return ops.ones((ops.shape(log_g)[0], len(self.specialists)), "float32")
        likely = ops.top_k(log_g, self.n, sorted=False)[1]
        hits = ops.sum(ops.take(self.member.T.copy(), likely, axis=0), 1)
        return ops.cast(hits > 0, "float32")

    def _log_probabilities(self, index: int, inputs: Any) -> Any:
        model = self.generalist if index == 0 else self.specialists[index - 1]
        outputs = model(inputs_for(model, inputs), training=False)
        logits = to_logits(outputs, self._from_logits[index])
        return ops.log_softmax(ops.cast(logits, "float32"), -1)

    def _answer(self, m: int, inputs: Any, active: Any) -> Any:
        """Returns the probabilities of a specialist, 0 in rows where it is not active."""
        if not self.routed or self.n is None:
            return ops.exp(self._log_probabilities(m + 1, inputs)) * active[:, None]
        rows = tf.where(active > 0)
        width = outputs_of(self.head, self.clusters[m], self.classes)
        shape = tf.cast((tf.shape(active)[0], width), tf.int64)

        def some() -> Any:
            taken = keras.tree.map_structure(lambda x: tf.gather(x, rows[:, 0]), inputs)
            p = tf.exp(self._log_probabilities(m + 1, taken))
            return tf.scatter_nd(rows, p, shape)

        return tf.cond(tf.size(rows) > 0, some, lambda: tf.zeros(shape, tf.float32))

    def with_specialist(
        self, specialist: keras.Model, cluster: Sequence[int]
    ) -> SpecialistEnsemble:
        """Returns an ensemble of the same models and one more.

        Args:
            specialist: with outputs as those of the others.
            cluster: its class numbers.
        """
        clusters = [*self.clusters, list(cluster)]
        return self._of([*self.specialists, specialist], clusters)

    def without_specialist(self, index: int) -> SpecialistEnsemble:
        """Returns an ensemble of the same models but one.

        Args:
            index: of the specialist to leave out.

        Raises:
            IndexError: if there is none.
        """
        index = check_int("index", index, -MOST)
        if not 0 <= index < len(self.specialists):
            raise IndexError(
                f"there is no specialist {index}; they are 0 to "
                f"{len(self.specialists) - 1}."
            )
        parts = (self.specialists, self.clusters)
        specialists, clusters = ([*p[:index], *p[index + 1 :]] for p in parts)
        return self._of(specialists, clusters)

    def with_settings(self, **settings: Any) -> SpecialistEnsemble:
        """Returns an ensemble of the same models with other settings.

        Args:
            **settings: `n`, `routed`, `tolerance` or `max_iterations`.

        Raises:
            TypeError: for anything else.
            ValueError: if one is out of range.
        """
        if unknown := set(settings) - {"n", "routed", "tolerance", "max_iterations"}:
            raise TypeError(
                f"an ensemble has no setting {' or '.join(map(repr, sorted(unknown)))}; "
                "they are n, routed, tolerance and max_iterations."
            )
        return self._of(self.specialists, self.clusters, **settings)

    def _of(self, specialists: list, clusters: list, **settings: Any) -> Any:
        return SpecialistEnsemble(
            self.generalist, specialists, clusters, **{**self._settings(), **settings}
        )

    def _settings(self) -> dict[str, Any]:
        names = ("n", "head", "routed", "tolerance", "max_iterations")
        return {name: getattr(self, name) for name in names}

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments; models as their own configurations."""
        models = (self.generalist, *self.specialists)
        weights = [model.weights for model in models]
        if len({id(w) for own in weights for w in own}) < sum(map(len, weights)):
            raise ValueError(
                "models of the ensemble share layers, which Keras would save once and "
                "could not load; give copies, as keras.models.clone_model makes them."
            )
        configs = map(keras.saving.serialize_keras_object, models)
        generalist, *specialists = map(_without_compilation, configs)
        return {
            "name": self.name,
            "generalist": generalist,
            "specialists": specialists,
            "clusters": self.clusters,
            **self._settings(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Returns an ensemble made from `get_config`."""
        return cls(**keras.saving.deserialize_keras_object(config, custom_objects))


def _without_compilation(config: Any) -> Any:
    """Leaves out what `compile` was given, which need not be there when it is loaded."""
    if isinstance(config, dict):
        kept = {key: config[key] for key in config if key != "compile_config"}
        return {key: _without_compilation(value) for key, value in kept.items()}
    if isinstance(config, list):
        return [_without_compilation(value) for value in config]
    return config


def classes_of(generalist: Any) -> int:
    """Returns the number of classes of a generalist.

    Raises:
        TypeError: if it is not a `keras.Model`.
        ValueError: if it does not have one output `(batch, classes)` that can be seen.
    """
    check_model("generalist", generalist)
    outputs = getattr(generalist, "outputs", None)
    if not outputs:
        raise ValueError(
            f"the outputs of {generalist.name!r} are not known; give a Functional or "
            "built Sequential model, as with keras.Model(inputs, model(inputs))."
        )
    is_alone = len(outputs) == 1 and hasattr(symbolic_outputs(generalist), "shape")
    if not is_alone or len(outputs[0].shape) != 2 or outputs[0].shape[-1] is None:
        shapes = [tuple(output.shape) for output in outputs]
        raise ValueError(
            f"the generalist must have one output (batch, classes), got {shapes}."
        )
    if outputs[0].shape[-1] < 2:
        raise ValueError("the generalist has 1 class: a softmax over it is always 1.")
    return int(outputs[0].shape[-1])


def check_settings(
    n: int | None, head: str, tolerance: float, max_iterations: int, classes: int
) -> tuple[int | None, int]:
    """Returns `n` and `max_iterations` as ints, after a look at all settings.

    Raises:
        ValueError: if one is out of range.
    """
    if n is not None:
        n = check_int("n, if it is not None for all specialists,", n, 1, classes)
    check_choice("head", head, HEADS)
    check_float("tolerance", tolerance, ">= 0", lambda number: number >= 0)
    return n, check_int("max_iterations", max_iterations, 1)


def _check_specialists(
    specialists: Sequence[Any], clusters: list[list[int]], head: str, classes: int
) -> None:
    if len(specialists) != len(clusters):
        raise ValueError(
            f"there are {len(specialists)} specialists and {len(clusters)} clusters; "
            "give one cluster for each."
        )
    for index, (model, cluster) in enumerate(zip(specialists, clusters, strict=True)):
        check_model(f"specialist {index}", model)
        check_outputs(model, outputs_of(head, cluster, classes), f"specialist {index}")


def check_outputs(model: keras.Model, wanted: int, who: str) -> None:
    """Refuses a specialist whose outputs are not of the wanted number.

    Raises:
        ValueError: with both numbers.
    """
    shapes = [tuple(output.shape) for output in getattr(model, "outputs", None) or []]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][-1] != wanted:
        raise ValueError(
            f"{who} must have one output (batch, {wanted}), for the classes of its cluster "
            f'and the dustbin, or for all classes with head="all"; got {shapes}.'
        )
