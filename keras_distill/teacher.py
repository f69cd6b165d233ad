"""One teacher: its answers to batches, as logits, their shapes and what they mean.

A plain object, not a layer: whatever holds it does not track its variables, and nothing of
it is saved, trained or changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill.features import Recorder
from keras_distill.inputs import inputs_for, shapes_of_inputs
from keras_distill.logits_or_probabilities import (
    check_told_apart,
    gives_logits,
    is_settled,
    kind_of_other,
    kinds_of_probabilities,
    said_or_found,
    settle,
    to_logits,
)
from keras_distill.outputs import kinds_of, shapes_of
from keras_distill.preparation import Preparation
from keras_distill.showing import model_in_brief
from keras_distill.structures import (
    ModelOutputs,
    answer_for,
    by_output,
    each_output,
    single,
)
from keras_distill.user_functions import UserFunction, made_up


class Teacher:
    """A callable from a batch to logits, run for inference only.

    Args:
        function: from a batch of inputs to outputs.
        from_logits: bool, whether the outputs are logits; `None` if not known, to be
            settled by `look_at` on the first batch.
        model: the `keras.Model` behind the function, if there is one.
        description: str, for messages.
        kinds: of the outputs, as far as they are known; see `outputs.kinds_of`.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        from_logits: Any,
        model: keras.Model | None = None,
        description: str = "teacher",
        kinds: Any = None,
    ) -> None:
        self.function = function
        self.from_logits = from_logits
        self.kinds = self.own_kinds = kinds
        self.model = model
        self.description = description
        #: What it is called, and the argument that says `from_logits`, for warnings.
        self.called = ("teacher", "teacher_from_logits")
        #: Shapes of the inputs with their batch axis, or how many axes they have; by name
        #: where they have names, `None` if not known.
        self.input_shapes: Any = None if model is None else shapes_of_inputs(model)
        #: Whether it was asked on a first batch, and what it said was in order.
        self.has_answered = False
        #: As it was given to `as_teacher`; the model of a path.
        self.given: Any = model if model is not None else function
        #: The export behind the function, if there is one.
        self.exported: Any = None
        #: What makes its inputs of a batch's, in this order.
        self.preparations: list[Preparation] = []
        #: Which of its classes teach, in this order; `None` for all.
        self.classes: list[int] | None = None
        #: Fingerprints of the two, by the arguments of `as_teacher`.
        self.settings: dict[str, Any] = {}
        #: Whether it was compared with the student in size.
        self.order_is_checked = False
        #: Of the layers that are matched, if any are.
        self.recorder: Recorder | None = None
        #: Shapes of these, as far as they are known.
        self.features: dict[str, tuple] = {}

    def __repr__(self) -> str:
        model = self.model
        said = self.description if model is None else model_in_brief(model)
        return f"<Teacher: {said}>"

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
        bound.has_answered = bound.order_is_checked = False
        if from_logits is not None:
            bound.from_logits = said_or_found(from_logits, self.model, None)
        if not layer_names:
            return bound
        if self.model is None:
            raise ValueError(
                f"hidden layers {', '.join(layer_names)} of the teacher are to be "
                f"matched, but it is a {self.description}; give one keras.Model."
            )
        bound.recorder = Recorder(self.model, layer_names, "teacher")
        return bound

    def inputs_of(self, x: Any) -> Any:
        """Returns what the teacher takes of a batch: of a dict, by name.

        Raises:
            ValueError: if the batch lacks it.
        """
        for preparation in self.preparations:
            x = preparation(x)
        x = inputs_for(self.model, x, "teacher")
        check_sizes(self.model, x, self.description)
        return x

    def __call__(self, x: Any, temperature: Any) -> ModelOutputs:
        """Runs the teacher once, for inference.

        Args:
            x: a batch of inputs.
            temperature: float scalar > 0; only a mean of tempered probabilities
                depends on it.

        Returns:
            Its `ModelOutputs`: outputs, logits, matched layers.

        Raises:
            TypeError: if the answer is no tensor of numbers, or a dict or list of them.
            ValueError: if it is for another number of examples.
        """
        if not is_settled(self.from_logits):
            self._settle(x)
        if self.recorder is not None:
            outputs, layers = self.recorder(lambda: self._answer(x))
        else:
            outputs, layers = self._answer(x), {}
        logits = to_logits(outputs, self.from_logits, self.kinds)
        if self.classes is not None:
            logits = each_output(self._chosen, logits)
        return ModelOutputs(outputs, logits, layers)

    def _chosen(self, logits: Any) -> Any:
        assert self.classes is not None
        self.check_classes(logits.shape[-1])
        return ops.take(logits, self.classes, axis=-1)

    def check_classes(self, count: int | None) -> None:
        """Refuses classes beyond those that the model answers."""
        if self.classes and count is not None and max(self.classes) >= count:
            raise ValueError(
                f"classes names the class {max(self.classes)}, and the {self.description} "
                f"has {count}; they are numbered from 0 on."
            )

    def _settle(self, x: Any) -> None:
        if tf.executing_eagerly():
            self.look_at(x)
        else:  # there are no values to settle it by
            with tf.init_scope():
                self.look_at(made_up(x))

    def _answer(self, x: Any) -> Any:
        outputs = self.function(self.inputs_of(x))
        says_outputs = bool(getattr(self.model, "outputs", None))
        if not says_outputs:
            outputs = each_output(_with_an_axis, outputs)
        if not says_outputs or self.preparations:  # which may lose examples
            self._check_answer(x, outputs)
        return outputs

    def _check_answer(self, x: Any, outputs: Any) -> None:
        """Refuses what cannot be logits or probabilities of a batch."""
        parts = [part for _, part in by_output(outputs)]
        wanted = f"the {self.description} must return floats (batch, ..., classes)"
        for part in parts:
            is_sparse = isinstance(part, (tf.RaggedTensor, tf.SparseTensor))
            if is_sparse or not (tf.is_tensor(part) or isinstance(part, np.ndarray)):
                raise TypeError(
                    f"{wanted}, or a dict or list of such, got {type(part).__name__}."
                )
        dtypes = [part.dtype.name for part in parts]
        floats = [p for p, dtype in zip(parts, dtypes, strict=True) if "float" in dtype]
        if not floats:
            got = f"dtype {', '.join(dtypes)}" if parts else repr(outputs)
            raise TypeError(f"{wanted}, got {got}; a class number is no soft target.")
        first = next(iter(keras.tree.flatten(x)), None)
        examples = tf.TensorShape(getattr(first, "shape", None))[:1]
        for part in floats:
            shape = tf.TensorShape(part.shape)
            if shape.rank is not None and shape.rank < 2:
                raise ValueError(f"{wanted}, got shape {tuple(shape)}.")
            if not shape[:1].is_compatible_with(examples):
                raise ValueError(
                    f"the {self.description} answers for {shape[0]} examples, but was asked "
                    f"for {examples[0]}."
                )

    def forget_kinds(self) -> None:
        """Goes back to the kinds that it says by itself; asks again on a first batch."""
        self.kinds, self.has_answered = self.own_kinds, False

    def take_values(self, kinds: Any) -> None:
        """Takes outputs for values that the student's are matched as.

        Args:
            kinds: of the student's outputs.
        """
        if isinstance(kinds, dict):
            of = {
                key: kind if kind == "values" else answer_for(self.kinds, key)
                for key, kind in kinds.items()
            }
            self.kinds = of
        elif kinds == "values":
            self.kinds = kinds

    @property
    def parameters(self) -> int | None:
        """How many it has; `None` where that cannot be known, or not yet."""
        model = self.model
        return model.count_params() if model is not None and model.built else None

    #: Whether the answer depends on the temperature.
    averages_probabilities = False

    @property
    def accepts_nan(self) -> bool:
        """Whether it says of itself, by this attribute, that it is made for NaN in inputs.

        Others may answer NaN with a number, as `relu` does, which teaches nothing.
        """
        given = self.function if self.model is None else self.model
        return bool(getattr(given, "accepts_nan", False))

    @property
    def answers_each_example(self) -> bool:
        """Whether it is sure to give a row for each example, as a Keras model does."""
        is_prepared = any(one.function is not None for one in self.preparations)
        return self.model is not None and not is_prepared

    @property
    def is_known(self) -> bool:
        """Whether it is known what it gives, without a first batch."""
        functions = [self.function, *(one.function for one in self.preparations)]
        is_seen = all(
            function.is_seen
            for function in functions
            if isinstance(function, UserFunction)
        )
        return is_seen and self._is_settled

    @property
    def _is_settled(self) -> bool:
        # Of what is logits already, the kind changes nothing.
        return self.from_logits is True or (
            is_settled(self.from_logits) and is_settled(self.kinds)
        )

    def look_at(
        self,
        x: Any,
        outputs: Collection | None = None,
        kinds: Any = None,
        shapes: dict | None = None,
        is_strict: bool = False,
    ) -> None:
        """Settles on a first batch what nothing else did: kinds, logits or probabilities.

        Args:
            x: of the batch.
            outputs: keys of the outputs that matter; `None` for all.
            kinds: of the student's outputs.
            shapes: of these, by key.
            is_strict: whether to refuse what may be a sigmoid's probabilities, or logits.

        Raises:
            ValueError: if it is refused.
        """
        if self._is_settled:
            return
        answer = self._answer(x)
        if self.kinds is None and self.model is not None:
            self.kinds = kinds_of(self.model, outputs=outputs)
        self.kinds = single(
            {
                key: answer_for(self.kinds, key)
                or kind_of_other(
                    answer_for(kinds, key),
                    (shapes or {}).get(key, ()),
                    tuple(getattr(part, "shape", ())),
                )
                for key, part in by_output(answer)
            }
        )
        if self.from_logits is None and self.model is not None:
            # Its layers may say it now that it is built.
            self.from_logits = gives_logits(self.model, outputs)
        if is_strict:
            check_told_apart(answer, self.from_logits, self.kinds, self.description)
        self.from_logits = settle(answer, self.from_logits, *self.called, self.kinds)
        self.kinds = kinds_of_probabilities(answer, self.from_logits, self.kinds)

    @property
    def shapes(self) -> dict[Any, tuple]:
        """Shape by output, `None` for a free axis; empty where it cannot be seen."""
        return self._of_classes({} if self.model is None else shapes_of(self.model))

    def shapes_on(self, x: Any) -> dict[Any, tuple]:
        """Returns the shape by output, as seen on a batch."""
        answer = by_output(self._answer(x))
        return self._of_classes({key: tuple(part.shape) for key, part in answer})

    def _of_classes(self, found: dict[Any, tuple]) -> dict[Any, tuple]:
        if self.classes is None:
            return found
        return {key: (*s[:-1], len(self.classes)) for key, s in found.items()}


def check_sizes(model: Any, x: Any, description: str) -> None:
    """Refuses inputs of other sizes than a model takes, which are known of its graph."""
    wanted = getattr(model, "inputs", None) or []
    parts = tf.nest.flatten(x)
    for spec, part in zip(wanted, parts, strict=False):
        ours, theirs = tuple(spec.shape), tuple(getattr(part, "shape", ()))
        differs = any(
            a is not None and b is not None and a != b
            for a, b in zip(ours[1:], theirs[1:], strict=False)
        )
        if len(ours) == len(theirs) and differs:
            remedy = "as_teacher(teacher, preprocess=fn)"
            if len(ours) == 4 and ours[3] == theirs[3] and None not in ours[1:3]:
                remedy = f"as_teacher(teacher, resize=({ours[1]}, {ours[2]}))"
            raise ValueError(
                f"the {description} takes inputs of shape {ours} and is given {theirs}; "
                f"give {remedy}, which makes the one of the other for the teacher alone."
            )


def _with_an_axis(output: Any) -> Any:
    """Returns one number for each example, as a regression gives it, as `(batch, 1)`."""
    is_tensor = isinstance(output, tf.Tensor) and output.dtype.is_floating
    return output[:, None] if is_tensor and output.shape.rank == 1 else output


def nan_by_example(inputs: Any) -> Any:
    """Tells of each example of a batch whether NaN is in its floating inputs.

    Infinity does not count: masks have it, and what it reaches is not finite.

    Returns:
        bool `(batch,)`.
    """
    parts = [_dense(part) for part in keras.tree.flatten(inputs)]
    found = ops.zeros(ops.shape(parts[0])[:1], "bool")
    for part in parts:
        if keras.backend.is_float_dtype(part.dtype):
            axes = list(range(1, len(part.shape)))
            found = found | ops.any(ops.isnan(part), axes)
    return found


def _dense(part: Any) -> Any:
    if isinstance(part, tf.SparseTensor):
        return tf.sparse.to_dense(part)
    if isinstance(part, tf.RaggedTensor):
        return part.to_tensor()
    return ops.convert_to_tensor(part)


def with_nan_of(inputs: Any, answer: ModelOutputs) -> ModelOutputs:
    """Returns a teacher's answer with NaN for logits if NaN is in its inputs."""
    has_nan = ops.any(nan_by_example(inputs))
    logits = keras.tree.map_structure(
        lambda z: ops.where(has_nan, ops.cast(float("nan"), z.dtype), z), answer.logits
    )
    return answer._replace(logits=logits)


def nan_in_inputs(where: str) -> str:
    """Returns the message for NaN in a teacher's inputs."""
    return (
        f"the teacher's inputs {where} have NaN, and layers such as relu answer it with a "
        "number that means nothing; clean the data, as with numpy.nan_to_num. If the teacher "
        "is made for missing values, say so: teacher.accepts_nan = True."
    )
