"""What `Distiller.summary` prints below Keras's own table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from keras_distill.losses.base import weighted_terms
from keras_distill.losses.matching import Matching
from keras_distill.outputs import losses_by_key
from keras_distill.showing import aligned, as_sum, model_in_brief, name_of_loss
from keras_distill.step_state import StepState
from keras_distill.structures import answer_for


def lines_of(student: Any, state: StepState, loss: Any) -> Iterator[str]:
    """Yields the lines: both models and their ratio, T and alpha, and the losses by output.

    Args:
        student: a `keras.Model`.
        state: of its distiller.
        loss: as given to `compile`; `None` before.
    """
    matching = state.matching
    yield f" Student: {model_in_brief(student)}"
    yield f" Teacher: {teacher_in_brief(state.teacher, student)}"
    yield f" Temperature: {_scalar(state.temperature.value)}"
    yield f" Alpha, the weight of the hard loss: {_scalar(state.alpha.value)}"
    yield ""
    yield from (f" {line}" for line in aligned(_rows(student, matching, loss)))
    if matching.features is not None:
        yield f" Features: {as_sum(weighted_terms(matching.features))}"


def in_a_line(name: str, student: Any, state: StepState) -> str:
    """Returns what a distiller is, in a line."""
    teacher = state.teacher and teacher_in_brief(state.teacher, student)
    return (
        f"<Distiller name={name}, student={model_in_brief(student)}, teacher={teacher}, "
        f"temperature={_scalar(state.temperature.value)}, "
        f"alpha={_scalar(state.alpha.value)}>"
    )


def teacher_in_brief(teacher: Any, student: Any) -> str:
    """Returns what a teacher is, and how much larger, in a line."""
    if teacher is None:
        return "none; batches bring soft targets, or it is still to be given"
    said = teacher.description
    if teacher.model is not None:
        said = model_in_brief(teacher.model)
    size = teacher.parameters
    if size and teacher.model is None:
        said += f" ({size:,} parameters)"
    if teacher.classes is not None:
        said += f", {len(teacher.classes)} of its classes"
    if size and student.built and student.count_params():
        said += f", {size / student.count_params():.3g} times the student's size"
    return said


def _scalar(value: Any) -> str:
    if isinstance(value, float | int):
        return f"{value:g}"
    return f"{type(value).__name__} of the optimizer's step"


def _rows(student: Any, matching: Matching, loss: Any) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("Output", "Kind", "Hard loss", "Distillation loss")]
    hard = losses_by_key(student, loss) or {None: None}
    soft = matching.by_output(list(hard))
    for key, one in hard.items():
        kind = answer_for(matching.kinds, key)
        rows.append(
            (
                "output" if key is None else str(key),
                kind or "not known yet",
                name_of_loss(one),
                "by its kind"
                if matching.given is None and not kind
                else as_sum(soft.get(key) or soft.get(...) or []),
            )
        )
    return rows
