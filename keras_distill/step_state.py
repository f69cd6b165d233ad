"""StepState: what a distiller's step needs and Keras must not track, train or save."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_distill.arguments import TEMPERATURES
from keras_distill.faults import Fault
from keras_distill.features import Recorder
from keras_distill.losses.matching import Matching
from keras_distill.schedules import ScheduledScalar
from keras_distill.teacher import Teacher
from keras_distill.training_watch import BatchCounter, TrainingWatch


@dataclasses.dataclass(eq=False)
class StepState:
    """What a distiller's step needs and Keras must not track, train or save.

    Attributes:
        matching: the distillation losses.
        temperature: T.
        alpha: weight of the hard loss.
        student_from_logits: whether the student gives logits; by output where they differ.
        output_kinds: of the student, as the user said.
        kinds_settled: whether a first batch has said what was left open of them.
        student_recorder: of the student's layers that are matched; `None` where none is.
        student_features: shapes of these, as far as they are known.
        given_teacher: as the user gave it.
        teacher: the same, bound to what is matched.
        student_outputs: symbolic, once a batch was seen.
        teacher_metrics: metrics that are given the teacher's outputs.
        user_metrics: as given to `compile`.
        class_weight: as given to the running `fit`.
        said_unlabelled: whether the user knows that there are no labels.
        labelled: whether the data of the last `fit` has labels.
        judges_labels: whether that of the last `evaluate` has.
        counter: of batches.
        judging_counter: of those of `evaluate`.
        watch: of the running `fit`.
        jit_compile: as given to `compile`.
        inputs: symbolic, of the batch that a student was built by.
    """

    matching: Matching
    temperature: ScheduledScalar
    alpha: ScheduledScalar
    student_from_logits: Any
    output_kinds: Any = None
    kinds_settled: bool = False
    student_recorder: Recorder | None = None
    student_features: dict[str, tuple] = dataclasses.field(default_factory=dict)
    given_teacher: Any = None
    teacher: Teacher | None = None
    student_outputs: Any = None
    teacher_metrics: list[keras.metrics.Metric] = dataclasses.field(
        default_factory=list
    )
    user_metrics: Any = None
    class_weight: dict[int, float] | None = None
    said_unlabelled: bool = False
    labelled: bool = True
    judges_labels: bool = True
    counter: BatchCounter = dataclasses.field(default_factory=BatchCounter)
    judging_counter: BatchCounter = dataclasses.field(default_factory=BatchCounter)
    watch: TrainingWatch | None = None
    jit_compile: Any = "auto"
    inputs: Any = None

    def scalars_at(self, optimizer: Any) -> tuple[Any, Any, list[Fault]]:
        """Returns temperature and alpha of a step, in their ranges, and what was not."""
        values, faults = [], []
        for scalar, (least, most) in (
            (self.temperature, TEMPERATURES),
            (self.alpha, (0.0, 1.0)),
        ):
            value = scalar.at(optimizer)
            if scalar.schedule is not None:
                slack = 1e-6 * least if least else 1e-6  # what float32 rounds
                is_bad = ~((value >= least - slack) & (value <= most * (1.0 + 1e-6)))
                sentence = (
                    f"{scalar.name} must be from {least:g} to {most:g}, and its schedule "
                    "gives {value} for {where}."
                )
                faults.append(Fault(sentence, is_bad, value))
                value = ops.where(is_bad, 1.0, ops.clip(value, least, most))
            values.append(value)
        return values[0], values[1], faults
