"""Parts of the distiller's step that are neither objective nor teacher."""

from __future__ import annotations

import math
import types
from typing import Any, NamedTuple

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill import checks


class DistillationInputs(NamedTuple):
    """Model inputs joined with the teacher's kept answer for them.

    A dataset that yields `(DistillationInputs(x, soft_targets), y)` trains a `Distiller`
    that has no teacher in memory. `evaluate` and `predict` use `inputs` alone.

    Attributes:
        inputs: what the student takes, batch first.
        soft_targets: the teacher's logits, float `(batch, ..., classes)`, in the
            structure of the student's outputs.
    """

    inputs: Any
    soft_targets: Any


class Knob:
    """A number in a variable, so that changing it does not retrace; or a schedule."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.schedule: LearningRateSchedule | None = None
        checks.knob(name, value)
        start = 1.0 if isinstance(value, LearningRateSchedule) else value
        self.variable = keras.Variable(
            start, trainable=False, dtype="float32", name=name
        )
        self.set(value)

    @property
    def value(self) -> Any:
        """The number or the schedule, as it was set."""
        return self.number if self.schedule is None else self.schedule

    def set(self, value: Any) -> bool:
        """Sets it; returns whether traces made before are no longer right."""
        checks.knob(self.name, value)
        had_schedule = self.schedule is not None
        if isinstance(value, LearningRateSchedule):
            self.schedule = value
            return True
        self.schedule = None
        self.number = float(value)
        self.variable.assign(self.number)
        return had_schedule

    def at(self, optimizer: Any) -> Any:
        """Returns the float32 scalar in force at the optimizer's step."""
        if self.schedule is None:
            return ops.convert_to_tensor(self.variable)
        return ops.cast(self.schedule(optimizer.iterations), "float32")

    def config(self) -> Any:
        """Returns it serialised."""
        return keras.saving.serialize_keras_object(self.value)


class TeacherWatch(keras.callbacks.Callback):
    """Stops the run at the batch for which the teacher's outputs were not finite."""

    def __init__(self, untracked: types.SimpleNamespace) -> None:
        super().__init__()
        self.untracked = untracked
        self.epoch = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Forgets an earlier run."""
        self.untracked.non_finite.reset_state()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch, for the message."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Raises `ValueError` if this batch had such outputs."""
        if self.untracked.teacher is None:
            return
        bad = float(ops.convert_to_numpy(self.untracked.non_finite.result()))
        if bad > 0 or math.isnan(bad):
            raise ValueError(
                checks.not_finite(f"batch {batch} of epoch {self.epoch + 1}")
            )
