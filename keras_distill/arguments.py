"""Checks of arguments, at the door: one for each kind, whoever takes it."""

from __future__ import annotations

import math
import numbers
import os
from typing import Any

import numpy as np
from keras.optimizers.schedules import LearningRateSchedule


def check_int(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Returns a whole number of any kind as an int.

    Raises:
        ValueError: if it is none, or out of range.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        limits = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {limits}, got {value!r}.")
    return int(value)


def check_temperature(temperature: Any) -> None:
    """Refuses a temperature that is not a finite number > 0."""
    is_number = isinstance(temperature, (int, float))
    if not is_number or not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature must be a finite number > 0, got {temperature!r}. "
            "T = 1 is the plain softmax; 2 to 20 is usual in distillation."
        )


def check_scalar(name: str, value: Any) -> None:
    """Refuses a temperature or alpha that is out of range, or not a number."""
    if isinstance(value, LearningRateSchedule):
        return
    if isinstance(value, (np.floating, np.integer)):
        value = value.item()
    if name == "temperature":
        check_temperature(value)
    elif isinstance(value, bool) or not (
        isinstance(value, (int, float)) and 0.0 <= value <= 1.0
    ):
        raise ValueError(
            f"alpha must be a number from 0 to 1, got {value!r}. It weighs the hard "
            "loss; 1 - alpha weighs the soft loss."
        )


def check_keras_file(role: str, path: str) -> None:
    """Refuses a path that is no `.keras` file.

    Raises:
        FileNotFoundError: naming the role.
    """
    if not os.path.isfile(path) or not path.endswith(".keras"):
        raise FileNotFoundError(
            f"the {role} {path!r} is not there or not a .keras file; save it with "
            f"model.save('{role}.keras')."
        )
