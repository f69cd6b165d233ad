"""ScheduledScalar: a number in a variable, or a schedule of the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill.arguments import check_scalar


class ScheduledScalar:
    """A number in a variable, so that changing it does not retrace; or a schedule."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.schedule: LearningRateSchedule | None = None
        self.further_check: Callable[[float], None] = lambda number: None
        value = check_scalar(name, value)
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
        value = check_scalar(self.name, value)
        if not isinstance(value, LearningRateSchedule):
            self.further_check(value)
        had_schedule = self.schedule is not None
        if isinstance(value, LearningRateSchedule):
            self.schedule = value
            return True
        self.schedule = None
        self.number = value
        self.variable.assign(self.number)
        return had_schedule

    def at(self, optimizer: Any) -> Any:
        """Returns the float32 scalar in force at the optimizer's step."""
        if self.schedule is None:
            return ops.convert_to_tensor(self.variable)
        return ops.cast(self.schedule(optimizer.iterations), "float32")

    def value_at(self, step: int) -> float:
        """Returns the number in force at a step."""
        return self.number if self.schedule is None else float(self.schedule(step))

    def check_also(self, check: Callable[[float], None]) -> None:
        """Holds the number, now and later, to a further check; a schedule by epoch."""
        self.further_check = check
        if self.schedule is None:
            check(self.number)

    def check_at(self, step: int) -> None:
        """Raises `ValueError` if a schedule is out of range at a step."""
        if self.schedule is not None:
            value = self.value_at(step)
            try:
                check_scalar(self.name, value)
                self.further_check(value)
            except ValueError as error:
                raise ValueError(f"the schedule at step {step}: {error}") from None

    def config(self) -> Any:
        """Returns it serialised."""
        return keras.saving.serialize_keras_object(self.value)
