"""Checks of arguments, at the door: one for each kind, whoever takes it.

Each returns the value in its plain form (an int, a float, a path without `~`), so that what
comes after meets one kind. NumPy's numbers are numbers; `True` is none.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

# What float32 can square and divide logits by, with room for logits of 1e20.
TEMPERATURES = (1e-18, 1e18)
# More than any memory holds, and what int32 indices hold.
MOST = 2**31 - 1


def check_int(name: str, value: Any, least: int, most: int = MOST) -> int:
    """Returns a whole number of any kind as an int.

    Raises:
        ValueError: if it is none, or out of range.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or not least <= value <= most:
        limits = f">= {least}" if most == MOST else f"from {least} to {most}"
        too_big = f" (at most {MOST})" if is_whole and value > most == MOST else ""
        raise ValueError(
            f"{name} must be a whole number {limits}{too_big}, got {value!r}."
        )
    return int(value)


def check_float(
    name: str,
    value: Any,
    limits: str,
    holds: Callable[[float], bool],
    advice: str = "",
) -> float:
    """Returns a finite number of any kind as a float.

    Args:
        name: of the argument.
        value: what was given.
        limits: what it must be, as in "a number > 0".
        holds: function that tells of a finite float whether it is that.
        advice: a further sentence for the error.

    Raises:
        ValueError: if it is no number, not finite, or out of range.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not holds(float(value)):
        raise ValueError(f"{name} must be {limits}, got {value!r}. {advice}".rstrip())
    return float(value)


def check_bool(name: str, value: Any) -> bool:
    """Returns `True` or `False` of any kind as a bool.

    Raises:
        ValueError: if it is neither.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Returns one of several words.

    Raises:
        ValueError: naming them.
    """
    if not isinstance(value, str) or value not in choices:
        words = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name} must be {words}, got {value!r}.")
    return value


def check_path(name: str, value: Any) -> str:
    """Returns a path as a str, with `~` replaced; `file://` is taken off.

    Other schemes (`gs://...`) are left as they are.

    Raises:
        ValueError: if it is no path, empty, or has a NUL.
    """
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise ValueError(f"{name} must be a path, got {value!r}.")
    path = path.removeprefix("file://")
    return path if "://" in path else os.path.expanduser(path)


def check_names(name: str, value: Any, count: int | None = None) -> list[str]:
    """Returns a list of names, one str each.

    Args:
        name: of the argument.
        value: list, tuple, array or other sequence of str.
        count: how many there must be; `None` for any number.

    Raises:
        ValueError: if it is a str, a dict, a set, or has something else in it, or is of
            another length.
    """
    is_sequence = isinstance(value, Iterable) and not isinstance(
        value, (str, bytes, dict, set, frozenset)
    )
    names = list(value) if is_sequence else []
    if not is_sequence or not all(isinstance(one, str) for one in names):
        raise ValueError(f"{name} must be a list of str, got {value!r}.")
    if count is not None and len(names) != count:
        raise ValueError(f"{name} must be {count} str, got {len(names)}: {names!r}.")
    return [str(one) for one in names]


def check_temperature(temperature: Any, name: str = "temperature") -> float:
    """Returns a temperature as a float.

    Raises:
        ValueError: if it is not a finite number > 0, or float32 cannot reckon with it.
    """
    value = check_float(
        name,
        temperature,
        "a finite number > 0",
        lambda number: number > 0,
        "T = 1 is the plain softmax; 2 to 20 is usual in distillation.",
    )
    least, most = TEMPERATURES
    if not least <= value <= most:
        raise ValueError(
            f"{name} must be from {least:g} to {most:g}, got {temperature!r}: float32 can "
            "neither square nor divide by others."
        )
    return value


def check_scalar(name: str, value: Any) -> Any:
    """Returns a temperature or alpha as a float, a schedule as it is.

    Raises:
        ValueError: if it is out of range, or neither.
    """
    if isinstance(value, LearningRateSchedule):
        return value
    if name == "temperature":
        return check_temperature(value)
    return check_float(
        name,
        value,
        "a number from 0 to 1",
        lambda number: 0.0 <= number <= 1.0,
        "It weighs the hard loss; 1 - alpha weighs the soft loss.",
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
