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
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill import teacher_files
from keras_distill.arguments import (
    check_backend,
    check_choice,
    check_each,
    check_from_logits,
    check_int,
    check_model,
    check_names,
    check_output_kinds,
    check_path,
)
from keras_distill.features import Recorder
from keras_distill.inputs import inputs_for, shapes_of_inputs
from keras_distill.outputs import (
    check_told_apart,
    gives_logits,
    is_settled,
    kind_of_other,
    kinds_of,
    kinds_of_probabilities,
    said_or_found,
    settle,
    shapes_of,
    to_logits,
)
from keras_distill.preparation import Preparation
from keras_distill.several_logits import mean_of_members
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
        self._check_classes(logits.shape[-1])
        return ops.take(logits, self.classes, axis=-1)

    def _check_classes(self, count: int | None) -> None:
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


class _Ensemble(Teacher):
    """Several teachers as one: the mean of their tempered probabilities or logits."""

    def __init__(self, members: list[Teacher], average: str) -> None:
        super().__init__(self._no_function, True, None, f"list of {len(members)}")
        self.members = members
        self.average = average
        self.input_shapes = next(filter(None, (m.input_shapes for m in members)), None)

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
        found = self.by_member(x, temperature)
        kinds = self.members[0].kinds
        means = {
            key: mean_of_members(
                one,
                temperature,
                "values" if self.average == "logits" else answer_for(kinds, key),
            )
            for key, one in by_output(found)
        }
        logits = keras.tree.pack_sequence_as(found, list(means.values()))
        return ModelOutputs(logits, logits, {})

    def by_member(self, x: Any, temperature: Any) -> Any:
        """Returns the members' logits `(batch, ..., members, classes)`, by output."""
        answers = [member(x, temperature).logits for member in self.members]
        rows = {part.shape[0] for part in keras.tree.flatten(answers)} - {None}
        if len(rows) > 1:
            raise ValueError(
                "the teachers of a list answer different numbers of rows for one batch: "
                f"{', '.join(map(str, sorted(rows)))}; each must give one for each example."
            )
        return keras.tree.map_structure(lambda *parts: ops.stack(parts, -2), *answers)

    def forget_kinds(self) -> None:
        super().forget_kinds()
        for member in self.members:
            member.forget_kinds()

    def take_values(self, kinds: Any) -> None:
        super().take_values(kinds)
        for member in self.members:
            member.take_values(kinds)

    def inputs_of(self, x: Any) -> Any:
        return [member.inputs_of(x) for member in self.members]

    @property
    def accepts_nan(self) -> bool:
        return all(member.accepts_nan for member in self.members)

    @property
    def answers_each_example(self) -> bool:
        return all(member.answers_each_example for member in self.members)

    @property
    def averages_probabilities(self) -> bool:  # type: ignore[override]
        return self.average == "probabilities" and len(self.members) > 1

    @property
    def parameters(self) -> int | None:
        sizes = [member.parameters for member in self.members]
        return None if None in sizes else sum(filter(None, sizes))

    @property
    def is_known(self) -> bool:
        return all(member.is_known for member in self.members)

    def look_at(
        self,
        x: Any,
        outputs: Collection | None = None,
        kinds: Any = None,
        shapes: dict | None = None,
        is_strict: bool = False,
    ) -> None:
        for member in self.members:
            member.look_at(x, outputs, kinds, shapes, is_strict)
            member.kinds = kinds if member.kinds is None else member.kinds
        self.kinds = self.members[0].kinds

    @property
    def shapes(self) -> dict[Any, tuple]:
        return self.members[0].shapes


def as_teacher(
    teacher: Any,
    from_logits: Any = None,
    average: str = "probabilities",
    outputs: Collection | None = None,
    output_kinds: Any = None,
    *,
    preprocess: Any = None,
    resize: Sequence[int] | None = None,
    inputs: Sequence[str] | None = None,
    classes: Sequence[int] | None = None,
) -> Teacher:
    """Makes a `Teacher` of anything that may teach, with inputs and classes of its own.

    Of a batch it is given the `inputs`, resized by `resize`, then put through `preprocess`;
    of its logits the `classes` teach. `SoftTargets` cached for it are of these too.

    Args:
        teacher: a `keras.Model`; a list of teachers; a path (str or `os.PathLike`) to a
            `.keras`, `.h5` or `.hdf5` file, a SavedModel directory, or a `.tflite` or `.onnx`
            file; or a callable from a batch to outputs `(batch, ..., classes)`. One that leaves TensorFlow (NumPy,
            scikit-learn's `predict_proba`, ONNX Runtime) is called outside of the graph:
            the step waits for it, each batch is copied to the host and back, and XLA cannot
            compile the step; `SoftTargets.write` pays that once. Its first answer says the
            dtype and shape of all.
        from_logits: bool, whether the outputs are logits (`True`) or probabilities
            (`False`); `None` (default) finds out from the model's last layer.
        average: for a list, "probabilities" (default) takes the mean of the members'
            probabilities at the distiller's temperature, "logits" the mean of logits.
        outputs: keys of the outputs that have classes, as opposed to features; `None`
            (default) for all.
        output_kinds: "softmax", "sigmoid" or "values", what the numbers describe; or a dict
            of these by output name. `None` (default) finds out from the model's last layer
            and the loss that it was compiled with.
        preprocess: function from a batch of inputs to the teacher's, or a Keras layer; it
            may leave TensorFlow, as the teacher may. Default `None`.
        resize: `(height, width)` that images `(batch, h, w, c)` are resized to, bilinear.
        inputs: names of the inputs that it takes of a dict; of one name, that input alone.
        classes: which of its K classes teach, in the order of the student's: of a softmax
            `p_c / sum of p over these`. Of a list of teachers, each one's.

    Returns:
        The `Teacher`.

    Raises:
        TypeError: if it is none of these.
        FileNotFoundError: if the path does not exist.
        ValueError: if the list is empty, nested, or its members differ in their number of
            classes; if the file cannot be read, or only by running code of its own; if
            the model is a KerasHub task with a preprocessor; or `average` is unknown.
        RuntimeError: if Keras's backend is not TensorFlow.

    Example:
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> as_teacher(model).from_logits
    True
    """
    check_backend()
    check_choice("teacher_average", average, ("probabilities", "logits"))
    from_logits = check_from_logits("teacher_from_logits", from_logits)
    if isinstance(outputs, str):
        check_names("outputs", outputs)
    output_kinds = check_output_kinds("output_kinds", output_kinds)
    if not all(one is None for one in (preprocess, resize, inputs, classes)):
        bound = as_teacher(teacher, from_logits, average, outputs, output_kinds)
        return _prepared(bound, Preparation(inputs, resize, preprocess), classes)
    if isinstance(teacher, Teacher):
        bound = teacher.matching((), from_logits)
    elif isinstance(teacher, keras.Model):
        bound = _model_teacher(teacher, from_logits, outputs)
    elif _is_prediction_of_a_model(teacher):
        bound = _model_teacher(teacher.__self__, from_logits, outputs)
    elif isinstance(teacher, (list, tuple)):
        return _ensemble(teacher, from_logits, average, outputs, output_kinds)
    elif isinstance(teacher, (str, os.PathLike)):
        path = check_path("teacher", teacher)
        bound = _teacher_from_path(path, from_logits, outputs)
    elif callable(teacher) and not isinstance(teacher, type):
        description = f"callable {teacher!r}"
        function = UserFunction(teacher, description)
        bound = Teacher(function, from_logits, None, description)
        bound.given = teacher
    else:
        raise TypeError(
            "teacher must be a keras.Model, a list of teachers, a path to a .keras or .h5 file "
            f"or a SavedModel, or a callable from a batch to logits; got {teacher!r}."
            f"{' Give an instance of it.' if isinstance(teacher, type) else ''}"
        )
    if output_kinds is not None or not is_settled(bound.kinds):
        bound.kinds = kinds_of(bound.model, None, output_kinds, outputs)
        bound.own_kinds = bound.kinds
    return bound


def _prepared(
    teacher: Teacher, preparation: Preparation, classes: Sequence[int] | None
) -> Teacher:
    bound = teacher.matching()
    chosen = None
    if classes is not None:
        chosen = check_each(
            "classes", classes, lambda n, v: check_int(n, v, 0), "class numbers", 1
        )
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"classes must name each class once, got {chosen}.")
        if (before := bound.classes) is not None:
            if max(chosen) >= len(before):
                raise ValueError(
                    f"classes names the class {max(chosen)}, and this teacher already "
                    f"teaches {len(before)} of its own; they are numbered from 0 on."
                )
            chosen = [before[c] for c in chosen]
    if isinstance(bound, _Ensemble):
        bound.members = [_prepared(m, preparation, classes) for m in bound.members]
    else:
        bound.preparations = [preparation, *bound.preparations]
        bound.classes = bound.classes if chosen is None else chosen
        if bound.model is not None and chosen is not None:
            for shape in shapes_of(bound.model).values():
                bound._check_classes(shape[-1])
    if preparation.preprocess is not None or preparation.inputs is not None:
        bound.input_shapes = None  # of what the data has, not of what it makes of it
    bound.given = teacher
    bound.settings = preparation.fingerprint()
    if classes is not None:
        bound.settings["classes"] = list(map(int, classes))
    return bound


def _is_prediction_of_a_model(teacher: Any) -> bool:
    """Tells `model.predict`, which says batch by batch what the model itself does."""
    function = getattr(teacher, "__func__", None)
    ways = keras.Model.predict, keras.Model.predict_on_batch
    return function in ways and isinstance(teacher.__self__, keras.Model)


def _model_teacher(
    model: keras.Model, from_logits: Any, outputs: Collection | None
) -> Teacher:
    check_model(
        "the teacher",
        model,
        "To teach from raw data, pass the callable lambda x: "
        "task(task.preprocessor(x), training=False).",
    )
    description = f"{type(model).__name__} {model.name!r}"

    def function(x: Any) -> Any:
        return model(x, training=False)

    return Teacher(
        # The call of a subclassed model may do what a function of the user's does.
        function
        if getattr(model, "outputs", None)
        else UserFunction(function, description),
        said_or_found(from_logits, model, outputs),
        model,
        description,
    )


def _ensemble(
    teachers: Sequence,
    from_logits: Any,
    average: str,
    outputs: Collection | None,
    output_kinds: Any,
) -> Teacher:
    if not teachers:
        raise ValueError("teacher is an empty list; give at least one model.")
    members = [
        as_teacher(member, from_logits, average, outputs, output_kinds)
        for member in teachers
    ]
    if any(isinstance(member, _Ensemble) for member in members):
        raise ValueError(
            "teacher is a list of teachers within a list, and the inner mean would count as "
            "one teacher; give one flat list."
        )
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
    kinds = {str(member.kinds) for member in members if is_settled(member.kinds)}
    if len(kinds) > 1:
        raise ValueError(
            f"the teachers' outputs are of different kinds: {', '.join(sorted(kinds))}. "
            "Members of one list must say the same; output_kinds= says what."
        )
    together = _Ensemble(members, average)
    together.given = list(teachers)
    together.kinds = next((m.kinds for m in members if is_settled(m.kinds)), None)
    together.own_kinds = together.kinds
    for member in members:
        if not is_settled(member.kinds):
            member.kinds = member.own_kinds = together.kinds
    return together


def _teacher_from_path(
    path: str, from_logits: Any, outputs: Collection | None
) -> Teacher:
    loaded = teacher_files.read("teacher", path)
    if isinstance(loaded, keras.Model):
        return _model_teacher(loaded, from_logits, outputs)
    if loaded.has_logits and from_logits is False:
        raise ValueError(
            f"from_logits is False, but {path!r} answers with logits too, "
            "which teach; leave from_logits out."
        )
    what = "SavedModel" if isinstance(loaded, teacher_files.SavedModel) else "file"
    description = f"{what} {path!r}"
    teacher = Teacher(
        loaded if what == "SavedModel" else UserFunction(loaded, description),
        loaded.has_logits or from_logits,
        None,
        description,
        loaded.kinds,
    )
    teacher.exported = loaded
    teacher.input_shapes = loaded.input_ranks
    teacher.given = path
    return teacher
