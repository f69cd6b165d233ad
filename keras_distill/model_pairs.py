"""Whether a student and a teacher fit each other: shapes, kinds, features."""

from __future__ import annotations

from typing import Any

from keras_distill.arguments import check_model
from keras_distill.last_layers import kind_of_loss, loss_name, takes_logits
from keras_distill.resizing import is_map
from keras_distill.sharing import check_shares_nothing
from keras_distill.soft_targets.distillation_inputs import (
    DistillationInputs,
    without_soft_targets,
)
from keras_distill.step_state import StepState
from keras_distill.structures import answer_for, by_output

#: Last axes of student and teacher, by the student's kind, that mean the same though they
#: differ: one yes/no, and its two classes.
OF_ONE: dict[Any, tuple] = {
    "softmax": ((2, 1),),
    "sigmoid": ((1, 2),),
    "values": (),
}


def check_student_and_teacher(student: Any, teacher: Any) -> None:
    """Refuses a student that is no model, and a teacher that is trained with it."""
    check_model("student", student)
    check_shares_nothing(student, teacher)


def check_same_shapes(
    student: dict, teacher: dict, distilled: set | None, kinds: Any = "softmax"
) -> None:
    """Refuses a student whose distilled outputs are not shaped like the teacher's.

    Args:
        student: shape by output, with `None` for an axis that is not known.
        teacher: likewise.
        distilled: keys of the outputs that must agree; `None` for all.
        kinds: of the student's outputs.

    Raises:
        ValueError: if classes or other axes differ, or there is a single class.
    """
    keys = student if distilled is None else distilled
    for key in keys:
        name = "" if key is None else f" in output {key!r}"
        kind = answer_for(kinds, key)
        if kind == "softmax" and key in student and student[key][-1:] == (1,):
            raise ValueError(
                f"the student has 1 class{name}: a softmax over it is always 1, so there "
                "is nothing to learn. For a yes or no end it in a sigmoid, or use "
                "keras.losses.BinaryCrossentropy(from_logits=True)."
            )
        if not student or not teacher:
            continue
        if key not in teacher:
            given = ", ".join(map(repr, teacher))
            raise ValueError(
                f"the teacher gives several outputs ({given}) and the student one; pass "
                "a callable that picks one, as in lambda x: teacher(x)['name']."
                if key is None
                else f"the student's output {key!r} has no counterpart in the teacher; "
                "give a distillation loss per output, with None for outputs that are not "
                "distilled."
            )
        if key not in student:
            raise ValueError(
                f"the distillation loss names the output {key!r}, which the student does not "
                f"have; its outputs are {', '.join(map(repr, student))}."
            )
        ours, theirs = student[key], teacher[key]
        if not (ours and theirs):
            continue
        of_one = (ours[-1], theirs[-1]) in OF_ONE.get(kind, ((2, 1), (1, 2)))
        if None not in (ours[-1], theirs[-1]) and ours[-1] != theirs[-1] and not of_one:
            what = {"sigmoid": "questions", "values": "values"}.get(kind, "classes")
            raise ValueError(
                f"the student has {ours[-1]} {what}{name} and the teacher {theirs[-1]}; "
                f"build the student with {theirs[-1]}"
                + (
                    ", or say which of the teacher's it learns, by "
                    "as_teacher(teacher, classes=[...])."
                    if theirs[-1] > ours[-1]
                    else "."
                )
            )
        # Maps of classes are resized; what values would be between pixels is not known.
        if kind != "values" and is_map(ours) and len(ours) == len(theirs):
            continue
        if len(ours) != len(theirs) or any(
            a is not None and b is not None and a != b
            for a, b in zip(
                ours[1 : -1 if of_one else None],
                theirs[1 : -1 if of_one else None],
                strict=True,
            )
        ):
            raise ValueError(
                f"the student's outputs{name} have shape {tuple(ours)} and the teacher's "
                f"{tuple(theirs)}; all axes must agree."
                + (
                    " Only maps of classes are resized: end the student in a "
                    "keras.layers.Resizing or UpSampling2D."
                    if is_map(ours) and len(ours) == len(theirs)
                    else ""
                )
            )


def check_same_kinds(
    shapes: dict, ours: Any, shapes_of_other: dict, theirs: Any
) -> None:
    """Refuses classes that exclude each other beside yes/no questions, but for two classes.

    Args:
        shapes: of the student's outputs, by key.
        ours: kinds of these.
        shapes_of_other: of the teacher's outputs, where they are known.
        theirs: kinds of these.
    """
    for key, shape in shapes.items():
        our, their = answer_for(ours, key), answer_for(theirs, key)
        is_alike = shapes_of_other.get(key, ())[-1:] == shape[-1:] != (None,)
        may_be_one = not is_alike and shape[-1:] in ((1,), (2,), (None,))
        if our and their and our != their and not may_be_one:
            name = "" if key is None else f" in output {key!r}"
            what = {
                "softmax": "classes that exclude each other",
                "sigmoid": "yes/no questions",
                "values": "values",
            }
            raise ValueError(
                f"the student's {shape[-1]} numbers{name} are {what[our]}, and the teacher's "
                f"{what[their]}: what they say cannot be matched. Use one kind of last layer "
                "and loss for both."
            )


def check_loss_takes_outputs(
    loss: Any, student_from_logits: Any, kinds: Any = None, matched: set | None = None
) -> None:
    """Refuses a cross-entropy whose `from_logits` disagrees with the student.

    Args:
        loss: as given to `compile`.
        student_from_logits: bool or `None`, or a dict of them by output.
        kinds: of the student's outputs.
        matched: keys of the outputs that are distilled; `None` for all. The others' losses
            are taken as Keras takes them.
    """
    for key, one in by_output(loss):
        if matched is not None and key not in matched:
            continue
        gives, takes = answer_for(student_from_logits, key), takes_logits(one)
        if gives is None or takes is None or takes == gives:
            continue
        is_binary = kind_of_loss(one) == "sigmoid"
        if takes:
            raise ValueError(
                f"loss {loss_name(one)} has from_logits=True but the student ends in a "
                f"{answer_for(kinds, key) or 'softmax'}; use from_logits=False, or take the "
                "activation off."
            )
        names = (
            "keras.losses.BinaryCrossentropy(from_logits=True)"
            if is_binary
            else "keras.losses.SparseCategoricalCrossentropy(from_logits=True) or "
            "CategoricalCrossentropy(from_logits=True)"
        )
        raise ValueError(
            f"loss {loss_name(one)} expects probabilities (from_logits=False) but "
            f"the student ends in logits; use {names}."
        )


def bind_features(state: StepState, x: Any = None) -> None:
    """Checks the features that are matched, as far as their shapes are known.

    Args:
        state: of the distiller.
        x: of a first batch, which tells what a subclassed model gives, and what is cached.

    Raises:
        ValueError: if shapes do not fit, or a layer does not exist.
    """
    student, teacher = state.student_recorder, state.teacher
    if student is not None and not state.student_features:
        inputs = None if x is None else without_soft_targets(x)
        state.student_features = student.shapes(inputs)
    cached = x.layers if isinstance(x, DistillationInputs) else {}
    found: dict[str, tuple] = {
        name: (None, *part.shape[1:]) for name, part in cached.items()
    }
    if teacher is not None and teacher.recorder is not None and not found:
        if not teacher.features:
            inputs = None if x is None else teacher.inputs_of(without_soft_targets(x))
            teacher.features = teacher.recorder.shapes(inputs)
        found = teacher.features
    state.matching.bind(state.student_features, found)
