"""What may teach: a model, several, a path, a callable."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

import keras

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
from keras_distill.logits_or_probabilities import is_settled, said_or_found
from keras_distill.outputs import kinds_of, shapes_of
from keras_distill.preparation import Preparation
from keras_distill.showing import name_of_callable
from keras_distill.teacher import Teacher
from keras_distill.teacher_ensemble import TeacherEnsemble
from keras_distill.user_functions import UserFunction


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
            file; or a callable from a batch to outputs `(batch, ..., classes)`. One that
            leaves TensorFlow (NumPy, scikit-learn's `predict_proba`, ONNX Runtime) is called
            outside of the graph: the step waits for it, each batch is copied to the host and
            back, and XLA cannot compile the step; `SoftTargets.write` pays that once. Its
            first answer says the dtype and shape of all.
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
        description = f"callable {name_of_callable(teacher)}"
        function = UserFunction(teacher, description)
        bound = Teacher(function, from_logits, None, description)
        bound.given = teacher
    else:
        raise TypeError(
            "teacher must be a keras.Model, a list of teachers, a path to a .keras, .h5, "
            f".tflite or .onnx file or a SavedModel, or a callable from a batch to logits; got {teacher!r}."
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
    if isinstance(bound, TeacherEnsemble):
        bound.members = [_prepared(m, preparation, classes) for m in bound.members]
    else:
        bound.preparations = [preparation, *bound.preparations]
        bound.classes = bound.classes if chosen is None else chosen
        if bound.model is not None and chosen is not None:
            for shape in shapes_of(bound.model).values():
                bound.check_classes(shape[-1])
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
    if any(isinstance(member, TeacherEnsemble) for member in members):
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
    together = TeacherEnsemble(members, average)
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
