"""Checks of arguments, at the door: one for each kind, whoever takes it.

Each returns the value in its plain form (an int, a float, a path without `~`), so that what
comes after meets one kind. NumPy's numbers are numbers; `True` is none. Nothing here imports
TensorFlow or Keras before it must: pictures are drawn without.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import keras

_T = TypeVar("_T")

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
            f"{name} must be a whole number {limits}{too_big}, got {shown(value)}."
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
    try:
        number = float(value) if is_number else math.nan
    except OverflowError:  # an int that no float holds
        number = math.inf
    if not math.isfinite(number) or not holds(number):
        raise ValueError(
            f"{name} must be {limits}, got {shown(value)}. {advice}".rstrip()
        )
    return number


def check_bool(name: str, value: Any) -> bool:
    """Returns `True` or `False` of any kind as a bool.

    Raises:
        ValueError: if it is neither.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {shown(value)}.")
    return bool(value)


def check_verbose(value: Any) -> bool:
    """Returns whether to show progress: `True`, or 1, 2 or "auto", as Keras's `fit` says it.

    Raises:
        ValueError: if it is none of these, nor `False` or 0.
    """
    is_bool = isinstance(value, (bool, np.bool_))
    is_level = isinstance(value, numbers.Integral) and int(value) in (0, 1, 2)
    if (
        not is_bool
        and not is_level
        and not (isinstance(value, str) and value == "auto")
    ):
        raise ValueError(
            f"verbose must be True or False, or as in Keras's fit, got {shown(value)}."
        )
    return bool(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Returns one of several words.

    Raises:
        ValueError: naming them.
    """
    if not isinstance(value, str) or value not in choices:
        words = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name} must be {words}, got {shown(value)}.")
    return value


def check_path(name: str, value: Any) -> str:
    """Returns a path as a str, with `~` replaced; `file://` is taken off.

    Other schemes (`gs://...`) are left as they are.

    Raises:
        ValueError: if it is no path, empty, or has a NUL.
    """
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    path = path.removeprefix("file://") if isinstance(path, str) else ""
    if not path.strip() or "\0" in path:
        raise ValueError(f"{name} must be a path, got {shown(value)}.")
    return path if "://" in path else os.path.expanduser(path)


def check_each(
    name: str,
    value: Any,
    check: Callable[[str, Any], _T],
    kind: str,
    least: int = 0,
    most: int = MOST,
) -> list[_T]:
    """Returns a list, each of whose entries was checked.

    Args:
        name: of the argument; `name[0]` is that of its first entry.
        value: list, tuple, array or other sequence.
        check: function of a name and an entry, which returns the entry.
        kind: what the entries are, as in "whole numbers".
        least: how many there must be.
        most: how many there may be.

    Raises:
        ValueError: if it is a str, a dict, a set or no sequence, of another length, or has
            a wrong entry.
    """
    unordered = (str, bytes, Mapping, set, frozenset)
    try:
        entries = None if isinstance(value, unordered) else list(value)
    except TypeError:  # a number, or an array without axes
        entries = None
    if entries is None or not least <= len(entries) <= most:
        counts = f"{most} " if least == most else ""
        few = f", {least} at least" if least and least != most else ""
        raise ValueError(
            f"{name} must be a list of {counts}{kind}{few}, got {shown(value)}."
        )
    return [check(f"{name}[{i}]", entry) for i, entry in enumerate(entries)]


def check_str(name: str, value: Any) -> str:
    """Returns a str of any kind as a str.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a str, got {shown(value)}.")
    return str(value)


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
    names = check_each(name, value, lambda _, one: one, "str")
    if not all(isinstance(one, str) for one in names):
        raise ValueError(f"{name} must be a list of str, got {shown(value)}.")
    if count is not None and len(names) != count:
        raise ValueError(
            f"{name} must be {count} str, got {len(names)}: {shown(names)}."
        )
    return [str(one) for one in names]


def check_array(
    name: str,
    value: ArrayLike,
    axes: int,
    kind: str,
    *,
    shape: tuple[int, ...] | None = None,
    is_finite: bool = True,
) -> np.ndarray:
    """Returns numbers of any kind as a float64 array.

    Args:
        name: of the argument.
        value: array, or nested lists.
        axes: how many it must have, none of them of size 0.
        kind: what it is, as in "logits of one example, `(classes,)`".
        shape: that it must have, where it is known.
        is_finite: whether NaN and infinity are refused.

    Raises:
        ValueError: if it is no such array, or ragged.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind in "bcSUOMm":  # not bfloat16, which is "V"
            raise TypeError("no numbers")
        array = array.astype("float64")
    except (TypeError, ValueError) as error:  # also ragged
        raise ValueError(f"{name} must be {kind}, got {shown(value)}.") from error
    if array.ndim != axes or not array.size or (shape or array.shape) != array.shape:
        wanted = "" if shape is None else f" of shape {shape}"
        raise ValueError(
            f"{name} must be {kind}{wanted}, got an array of shape {array.shape}."
        )
    if is_finite and not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {shown(value)}.")
    return array


def shown(value: Any) -> str:
    """Returns a value for a sentence, cut short."""
    try:
        text = repr(value)
    except Exception:  # of a broken class, or an int of thousands of digits
        text = f"one {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."


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
            f"{name} must be from {least:g} to {most:g}, got {shown(temperature)}: float32 can "
            "neither square nor divide by others."
        )
    return value


def check_scalar(name: str, value: Any) -> Any:
    """Returns a temperature or alpha as a float, a schedule as it is.

    Raises:
        ValueError: if it is out of range, or neither.
    """
    from keras.optimizers.schedules import LearningRateSchedule

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
    """Refuses a path that is no file of a Keras model.

    Raises:
        FileNotFoundError: naming the role.
    """
    if not os.path.isfile(path) or not path.endswith((".keras", ".h5", ".hdf5")):
        raise FileNotFoundError(
            f"the {role} {path!r} is not there or not a .keras or .h5 file; save it with "
            f"model.save('{role}.keras')."
        )


def check_backend() -> None:
    """Refuses any backend of Keras but TensorFlow.

    Raises:
        RuntimeError: naming the one that is set.
    """
    import keras

    if keras.config.backend() != "tensorflow":
        raise RuntimeError(
            f"keras_distill trains and runs models with TensorFlow, but Keras's backend is "
            f"{keras.config.backend()!r}; set the environment variable "
            "KERAS_BACKEND=tensorflow before keras is imported, or "
            '"backend": "tensorflow" in ~/.keras/keras.json.'
        )


def check_model(name: str, value: Any, advice: str = "") -> keras.Model:
    """Returns a model that says by its call alone what it says of data.

    Args:
        name: of the argument.
        value: what was given.
        advice: a further sentence, for a KerasHub task.

    Raises:
        TypeError: if it is no `keras.Model`.
        ValueError: if it is a KerasHub task that carries a preprocessor, which its own
            `fit`, `predict` and `evaluate` apply and nothing else does.
        RuntimeError: if Keras's backend is not TensorFlow.
    """
    import keras

    check_backend()
    if not isinstance(value, keras.Model):
        advice = " Give an instance of it." if isinstance(value, type) else ""
        raise TypeError(f"{name} must be a keras.Model, got {value!r}.{advice}")
    # KerasHub is not imported for this; a user's own `preprocessor` is none of its.
    is_task = any(
        base.__module__.split(".")[0] in ("keras_hub", "keras_nlp")
        for base in type(value).__mro__
    )
    preprocessor = getattr(value, "preprocessor", None) if is_task else None
    if preprocessor is not None:
        raise ValueError(
            f"{name} {type(value).__name__} {value.name!r} carries a preprocessor "
            f"({type(preprocessor).__name__}), which only its own fit, predict and evaluate "
            "apply. Build it with preprocessor=None, or set its preprocessor to None, and "
            f"give preprocessed data. {advice}".rstrip()
        )
    return value


def check_from_logits(name: str, value: Any) -> Any:
    """Returns whether outputs are logits: a bool, `None`, or a dict of them by output.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(value, dict):
        return {key: check_from_logits(f"{name}[{key!r}]", value[key]) for key in value}
    if value is None:
        return None
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(
            f"{name} must be True, False, None to find out, or a dict of these by output; "
            f"got {value!r}."
        )
    return bool(value)


#: What the numbers of an output may describe.
KINDS = ("softmax", "sigmoid", "values")


def check_output_kinds(name: str, value: Any) -> Any:
    """Returns the kind of outputs: a str, `None`, or a dict of them by output.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(value, dict):
        return {
            key: check_output_kinds(f"{name}[{key!r}]", value[key]) for key in value
        }
    if value is None:
        return None
    if not isinstance(value, str) or value not in KINDS:
        raise ValueError(
            f"{name} must be {', '.join(map(repr, KINDS[:-1]))} or {KINDS[-1]!r}, None to find "
            f"out, or a dict of these by output; got {value!r}."
        )
    return value
