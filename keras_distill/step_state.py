"""StepState: what a distiller's step needs and Keras must not track, train or save."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from keras_distill.losses.matching import Matching
from keras_distill.schedules import ScheduledScalar
from keras_distill.teachers import Teacher
from keras_distill.training_watch import BatchCounter, TrainingWatch


@dataclasses.dataclass(eq=False)
class StepState:
    """What a distiller's step needs and Keras must not track, train or save.

    Attributes:
        matching: the distillation losses.
        temperature: T.
        alpha: weight of the hard loss.
        student_from_logits: whether the student gives logits; by output where they differ.
        student_runs: the student, with its matched layers beside its outputs; `None`
            where none is matched.
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
        watch: of the running `fit`.
    """

    matching: Matching
    temperature: ScheduledScalar
    alpha: ScheduledScalar
    student_from_logits: Any
    student_runs: Callable[..., Any] | None = None
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
    watch: TrainingWatch | None = None
