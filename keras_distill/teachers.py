"""What may teach: a model, several, a path, a callable.

A teacher is a plain object, not a layer: whatever holds it does not track its
variables, and nothing of it is saved, trained or changed.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill.features import layer_extractor
from keras_distill.outputs import (
    ModelOutputs,
    gives_logits,
    is_settled,
    settle,
    shapes_of,
    to_logits,
)
from keras_distill.several_logits import mean_of_probabilities


class Teacher:
    """A callable from a batch to logits, run for inference only.

    Args:
        function: from a batch of inputs to outputs.
        from_logits: bool, whether the outputs are logits; `None` if not known, to be
            settled by `look_at` on the first batch.
        model: the `keras.Model` behind the function, if there is one.
        description: str, for messages.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        from_logits: Any,
        model: keras.Model | None = None,
        description: str = "teacher",
    ) -> None:
        self.function = function
        self.from_logits = from_logits
        self.model = model
        self.description = description
        #: Ranks of the inputs with their batch axis, ascending; `None` if not known.
        self.input_ranks: list[int] | None = None
        if model is not None and getattr(model, "inputs", None):
            self.input_ranks = sorted(len(tensor.shape) for tensor in model.inputs)
        #: Whether it was asked on a first batch, and what it said was in order.
        self.has_answered = False
        self._extractor: keras.Model | None = None

    def matching(
        self, layer_names: Sequence[str] = (), from_logits: Any = None
    ) -> Teacher:
        """Returns this teacher for one user, who may want more of it than others do.

        Args:
            layer_names: layers whose outputs its answers hold too.
            from_logits: whether the outputs are logits; `None` for what is known.

        Raises:
            ValueError: if there is no single model, or it has no such layer.
        """
        bound = copy.copy(self)
        bound.has_answered = False
        if from_logits is not None:
            bound.from_logits = from_logits
        if not layer_names:
            return bound
        if self.model is None:
            raise ValueError(
                f"hidden layers {', '.join(layer_names)} of the teacher are to be "
                f"matched, but it is a {self.description}; give one keras.Model."
            )
        bound._extractor = layer_extractor(self.model, layer_names, "teacher")
        return bound

    def __call__(self, x: Any, temperature: Any) -> ModelOutputs:
        """Runs the teacher once, for inference.

        Args:
            x: a batch of inputs.
            temperature: float scalar > 0; only a mean of tempered probabilities
                depends on it.

        Returns:
            Its `ModelOutputs`: outputs, logits, matched layers.
        """
        if self._extractor is not None:
            found = self._extractor(x, training=False)
            outputs, layers = found["outputs"], found["layers"]
        else:
            outputs, layers = self.function(x), {}
        if not is_settled(self.from_logits):
            raise ValueError(
                f"the {self.description} does not say whether it gives logits or "
                "probabilities; pass teacher_from_logits=True or False."
            )
        return ModelOutputs(outputs, to_logits(outputs, self.from_logits), layers)

    #: Whether the answer depends on the temperature.
    averages_probabilities = False

    def look_at(self, x: Any, outputs: Collection | None = None) -> None:
        """Settles logits or probabilities on a first batch, where nothing else did."""
        if not is_settled(self.from_logits):
            answer = self.function(x)
            if self.from_logits is None and self.model is not None:
                # Its layers may say it now that it is built.
                self.from_logits = gives_logits(self.model, outputs)
            self.from_logits = settle(
                answer, self.from_logits, "teacher", "teacher_from_logits"
            )

    @property
    def shapes(self) -> dict[Any, tuple]:
        """Shape by output, `None` for a free axis; empty where it cannot be seen."""
        return {} if self.model is None else shapes_of(self.model)


class _Ensemble(Teacher):
    """Several teachers as one: the mean of their tempered probabilities or logits."""

    def __init__(self, members: list[Teacher], average: str) -> None:
        super().__init__(self._no_function, True, None, f"list of {len(members)}")
        self.members = members
        self.average = average
        self.input_ranks = next(filter(None, (m.input_ranks for m in members)), None)

    @staticmethod
    def _no_function(x: Any) -> Any:
        raise NotImplementedError

    def matching(
        self, layer_names: Sequence[str] = (), from_logits: Any = None
    ) -> Teacher:
        bound = super().matching(layer_names)
        assert isinstance(bound, _Ensemble)
        bound.members = [m.matching((), from_logits) for m in self.members]
        return bound

    def __call__(self, x: Any, temperature: Any) -> ModelOutputs:
        logits = keras.tree.map_structure(
            lambda logits: (
                ops.mean(ops.cast(logits, "float32"), -2)
                if self.average == "logits"
                else mean_of_probabilities(logits, temperature)
            ),
            self.by_member(x, temperature),
        )
        return ModelOutputs(logits, logits, {})

    def by_member(self, x: Any, temperature: Any) -> Any:
        """Returns the members' logits `(batch, ..., members, classes)`, by output."""
        answers = [member(x, temperature).logits for member in self.members]
        return keras.tree.map_structure(lambda *parts: ops.stack(parts, -2), *answers)

    @property
    def averages_probabilities(self) -> bool:  # type: ignore[override]
        return self.average == "probabilities" and len(self.members) > 1

    def look_at(self, x: Any, outputs: Collection | None = None) -> None:
        for member in self.members:
            member.look_at(x, outputs)

    @property
    def shapes(self) -> dict[Any, tuple]:
        return self.members[0].shapes


def as_teacher(
    teacher: Any,
    from_logits: Any = None,
    average: str = "probabilities",
    outputs: Collection | None = None,
) -> Teacher:
    """Makes a `Teacher` of anything that may teach.

    Args:
        teacher: a `keras.Model`; a list of teachers; a path (str or `os.PathLike`) to a
            `.keras` file or a SavedModel directory; or a callable from a batch to
            outputs.
        from_logits: bool, whether the outputs are logits (`True`) or probabilities
            (`False`); `None` (default) finds out from the model's last layer.
        average: for a list, "probabilities" (default) takes the mean of the members'
            probabilities at the distiller's temperature, "logits" the mean of logits.
        outputs: keys of the outputs that have classes, as opposed to features; `None`
            (default) for all.

    Returns:
        The `Teacher`.

    Raises:
        TypeError: if it is none of these.
        FileNotFoundError: if the path does not exist.
        ValueError: if the list is empty, its members differ in their number of classes,
            or `average` is unknown.

    Example:
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> as_teacher(model).from_logits
    True
    """
    if average not in ("probabilities", "logits"):
        raise ValueError(
            f'teacher_average must be "probabilities" or "logits", got {average!r}.'
        )
    if isinstance(teacher, Teacher):
        return teacher.matching((), from_logits)
    if isinstance(teacher, keras.Model):
        return _model_teacher(teacher, from_logits, outputs)
    if isinstance(teacher, (list, tuple)):
        return _ensemble(teacher, from_logits, average, outputs)
    if isinstance(teacher, (str, os.PathLike)):
        return _teacher_from_path(os.fspath(teacher), from_logits, outputs)
    if callable(teacher):
        return Teacher(teacher, from_logits, None, f"callable {teacher!r}")
    raise TypeError(
        "teacher must be a keras.Model, a list of teachers, a path to a .keras file or "
        f"a SavedModel, or a callable from a batch to logits; got {teacher!r}."
    )


def _model_teacher(
    model: keras.Model, from_logits: Any, outputs: Collection | None
) -> Teacher:
    if from_logits is None:
        from_logits = gives_logits(model, outputs)
    return Teacher(
        lambda x: model(x, training=False),
        from_logits,
        model,
        f"{type(model).__name__} {model.name!r}",
    )


def _ensemble(
    teachers: Sequence, from_logits: Any, average: str, outputs: Collection | None
) -> Teacher:
    if not teachers:
        raise ValueError("teacher is an empty list; give at least one model.")
    members = [as_teacher(member, from_logits, average, outputs) for member in teachers]
    known = [
        [shape[-1] for shape in member.shapes.values()]
        for member in members
        if member.shapes
    ]
    if any(classes != known[0] for classes in known):
        counts = ", ".join(map(str, known))
        raise ValueError(
            f"the teachers have different numbers of classes: {counts}. Members of one "
            "list must share their classes."
        )
    return _Ensemble(members, average)


def _teacher_from_path(
    path: str, from_logits: Any, outputs: Collection | None
) -> Teacher:
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(
            f"teacher path {path!r} does not exist; give a .keras file or a SavedModel "
            "directory."
        )
    if tf.io.gfile.exists(os.path.join(path, "saved_model.pb")):
        return _saved_model_teacher(path, from_logits)
    if path.endswith(".keras"):
        return _model_teacher(keras.saving.load_model(path), from_logits, outputs)
    raise ValueError(
        f"teacher path {path!r} is neither a .keras file nor a directory with a "
        "saved_model.pb. An export directory holds numbered versions: give one of "
        "those, as in 'savedmodels/mnist/1'."
    )


def _saved_model_teacher(path: str, from_logits: Any) -> Teacher:
    loaded = tf.saved_model.load(path)
    signature = loaded.signatures.get("serving_default")
    if signature is None:
        raise ValueError(
            f"the SavedModel {path!r} has no signature 'serving_default'; give a "
            "callable that calls the one you mean."
        )
    inputs = signature.structured_input_signature[1]
    outputs = signature.structured_outputs
    # Our own exports answer with logits, probabilities and label: logits teach.
    has_logits = {"logits", "probabilities"} <= set(outputs)
    if has_logits:
        from_logits = True

    def function(x: Any) -> Any:
        by_name = x if isinstance(x, dict) else dict.fromkeys(inputs, x)
        if set(by_name) != set(inputs) or (len(inputs) > 1 and by_name is not x):
            raise ValueError(
                f"the SavedModel {path!r} takes the inputs {', '.join(inputs)}; give a "
                "dict of them."
            )
        answer = signature(
            **{name: tf.cast(by_name[name], inputs[name].dtype) for name in inputs}
        )
        if has_logits:
            return answer["logits"]
        return next(iter(answer.values())) if len(answer) == 1 else answer

    function.keep_alive = loaded  # type: ignore[attr-defined]
    teacher = Teacher(function, from_logits, None, f"SavedModel {path!r}")
    if all(spec.shape.rank is not None for spec in inputs.values()):
        teacher.input_ranks = sorted(spec.shape.rank for spec in inputs.values())
    return teacher
