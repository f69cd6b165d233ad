"""Parts of the distiller's step that are neither objective nor teacher."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill import checks
from keras_distill.soft_targets import views


class Knob:
    """A number in a variable, so that changing it does not retrace; or a schedule."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.schedule: LearningRateSchedule | None = None
        self.further_check: Callable[[float], None] = lambda number: None
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
        if not isinstance(value, LearningRateSchedule):
            self.further_check(value)
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

    def check_also(self, check: Callable[[float], None]) -> None:
        """Holds the number, now and later, to a further check; a schedule by epoch."""
        self.further_check = check
        if self.schedule is None:
            check(self.number)

    def check_at(self, step: int) -> None:
        """Raises `ValueError` if a schedule is out of range at a step."""
        if self.schedule is not None:
            value = float(self.schedule(step))
            try:
                checks.knob(self.name, value)
                self.further_check(value)
            except ValueError as error:
                raise ValueError(f"the schedule at step {step}: {error}") from None

    def config(self) -> Any:
        """Returns it serialised."""
        return keras.saving.serialize_keras_object(self.value)


class TeacherWatch(keras.callbacks.Callback):
    """Stops the run at the batch for which the teacher's answer was not finite.

    It also holds schedules of temperature and alpha to their ranges, at both ends of
    each epoch, and tells kept soft targets which epoch it is.
    """

    def __init__(self, untracked: types.SimpleNamespace) -> None:
        super().__init__()
        self.untracked = untracked
        self.epoch = self.batch = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Forgets an earlier run."""
        self.untracked.non_finite.assign(0.0)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch; raises `ValueError` for a schedule out of its range."""
        self.epoch = views.epoch = epoch
        self.batch = 0
        self.check_schedules()

    def check_schedules(self) -> None:
        """Holds schedules to their ranges, at both ends of the epoch."""
        start = int(ops.convert_to_numpy(self.model.optimizer.iterations))
        for step in (start, start + (self.params.get("steps") or 1) - 1):
            for knob in (self.untracked.temperature, self.untracked.alpha):
                knob.check_at(step)

    def look(self, steps: int) -> None:
        """Raises `ValueError` if one of the last steps had such an answer.

        Not a callback's hook: those have Keras wait for all logs of every batch.

        Args:
            steps: how many steps were done at once.
        """
        first, self.batch = self.batch, self.batch + steps
        which = f"batch {first}"
        if steps > 1:
            which = f"one of the batches {first} to {self.batch - 1}"
        raise_if_not_finite(self.untracked, f"{which} of epoch {self.epoch + 1}")


def raise_if_not_finite(untracked: types.SimpleNamespace, where: str) -> None:
    """Raises `ValueError` if a batch since the last reset had NaN or infinity."""
    # Half the time of ops.convert_to_numpy, once a step.
    bad = float(untracked.non_finite.value.numpy())
    if bad > 0:
        untracked.non_finite.assign(0.0)
        raise ValueError(checks.not_finite(where))
