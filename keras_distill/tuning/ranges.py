"""What may be searched, as a user writes it: a number, a range, or a list of choices."""

from __future__ import annotations

from typing import Any

import keras
import keras_tuner

from keras_distill.arguments import check_float, check_scalar

SAMPLINGS = ("linear", "log")


def check(name: str, given: Any, sampling: str = "linear") -> None:
    """Refuses what is neither a number, a range nor a list of numbers, or out of range.

    Args:
        name: "temperature", "alpha", or another number >= 0.
        given: number, `(low, high)`, `(low, high, "linear" or "log")`, or list.
        sampling: of a range that does not say.

    Raises:
        ValueError: saying what it may be.
    """
    if isinstance(given, tuple):
        is_range = len(given) == 2 or (
            len(given) == 3 and isinstance(given[2], str) and given[2] in SAMPLINGS
        )
        if not is_range:
            raise ValueError(
                f"{name} must be a number, a range (low, high) or (low, high, 'log'), or "
                f"a list of values, got {given!r}."
            )
        values = list(given[:2])
    elif isinstance(given, list):
        if not given:
            raise ValueError(f"{name} is an empty list; give at least one value.")
        values = given
    else:
        values = [given]
    for value in values:
        _check_number(name, value)
    if isinstance(given, tuple):
        low, high = values
        if low > high:
            raise ValueError(
                f"{name} is a range from {low} down to {high}; give (low, high)."
            )
        if (given[2] if len(given) == 3 else sampling) == "log" and low <= 0:
            raise ValueError(
                f"{name} is a logarithmic range, so it must begin above 0, got {given!r}; "
                f"give ({low}, {high}, 'linear')."
            )


def _check_number(name: str, value: Any) -> None:
    is_schedule = isinstance(value, keras.optimizers.schedules.LearningRateSchedule)
    if name in ("temperature", "alpha") and not is_schedule:
        check_scalar(name, value)
    else:
        check_float(name, value, "finite numbers >= 0", lambda number: number >= 0)


def phrase(config: dict[str, Any]) -> str:
    """Returns in words what a hyperparameter's configuration says."""
    kind = config["kind"]
    if kind == "Choice":
        return f"one of {', '.join(map(str, config['values']))}"
    if kind == "Fixed":
        return f"fixed at {config['value']}"
    if kind == "Boolean":
        return "True or False"
    step = "" if config.get("step") in (None, 1) else f" in steps of {config['step']}"
    whole = " whole numbers" if kind == "Int" else ""
    by = " by its logarithm" if config.get("sampling") == "log" else ""
    return f"{config['min_value']} to {config['max_value']}{whole}{step}{by}"


def declare(
    hp: keras_tuner.HyperParameters,
    name: str,
    given: Any,
    default: float | None = None,
    sampling: str = "linear",
) -> float:
    """Declares a hyperparameter and returns its value.

    Args:
        hp: of the trial.
        name: of the hyperparameter.
        given: as for `check`.
        default: taken if it is in range.
        sampling: of a range that does not say.
    """
    if isinstance(given, list):
        values = [float(value) for value in given]
        kept = default if default in values else values[0]
        return hp.Choice(name, values, default=kept, ordered=values == sorted(values))
    if isinstance(given, tuple) and given[0] < given[1]:
        low, high = map(float, given[:2])
        inside = default is not None and low <= default <= high
        return hp.Float(
            name,
            low,
            high,
            sampling=given[2] if len(given) == 3 else sampling,
            default=default if inside else None,
        )
    value = given[0] if isinstance(given, tuple) else given
    return hp.Fixed(name, float(value))
