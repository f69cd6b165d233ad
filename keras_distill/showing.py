"""How objects show themselves: as the call that makes them, or as a table in a notebook."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def as_call(made: Any, config: dict[str, Any]) -> str:
    """Returns the call that makes an object, without the arguments that are the defaults.

    Args:
        made: the object.
        config: its constructor's arguments, by name.
    """
    parameters = inspect.signature(type(made)).parameters
    said, by_position = [], True
    for name, value in config.items():
        parameter = parameters.get(name)
        if parameter is None or _is_same(value, parameter.default):
            by_position = False
            continue
        required = parameter.default is parameter.empty
        by_position = by_position and required
        text = _shown(value)
        said.append(text if by_position else f"{name}={text}")
    return f"{type(made).__name__}({', '.join(said)})"


def _is_same(value: Any, default: Any) -> bool:
    if isinstance(value, list):
        value = tuple(value)
    return type(value) is type(default) and value == default


def _shown(value: Any) -> str:
    if (
        isinstance(value, dict) and "class_name" in value
    ):  # as Keras serialises an object
        is_function = value["class_name"] == "function"
        return str(value["config" if is_function else "class_name"])
    if isinstance(value, float):
        return f"{value:g}"
    return repr(value)


def model_in_brief(model: keras.Model) -> str:
    """Returns name, class and number of parameters of a model, in a line."""
    size = f"{model.count_params():,} parameters" if model.built else "not built"
    return f"{model.name} ({type(model).__name__}, {size})"


def as_sum(terms: Sequence[tuple[float, Any]]) -> str:
    """Returns a weighted sum of losses as it is written; "-" for none."""
    words = (
        ("" if weight == 1.0 else f"{weight:g} * ") + _loss_in_words(term)
        for weight, term in terms
    )
    return " + ".join(words) or "-"


def _loss_in_words(loss: Any) -> str:
    if type(loss).__repr__ is object.__repr__:  # Keras's own show their address
        return as_call(loss, loss.get_config() if hasattr(loss, "get_config") else {})
    return repr(loss)


def name_of_callable(function: Any) -> str:
    """Returns what a function is called in its file, or of what class an object is."""
    if isinstance(function, functools.partial):
        return f"partial of {name_of_callable(function.func)}"
    inner = getattr(function, "python_function", function)  # of a tf.function
    name = getattr(inner, "__qualname__", None)
    if name is None:
        return f"{type(function).__name__} object"
    return str(name).rpartition("<locals>.")[2]


def name_of_loss(loss: Any) -> str:
    """Returns what a loss given to `compile` is called; "-" for none."""
    if loss is None:
        return "-"
    if isinstance(loss, str):
        return loss
    return str(
        getattr(loss, "name", None) or getattr(loss, "__name__", type(loss).__name__)
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns a table of text as lines, the columns to the left, a rule below the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def in_brief(value: Any) -> str:
    """Returns dtype and shape of each array in a structure; of anything else its repr."""
    if isinstance(value, dict):
        parts = ", ".join(f"{k!r}: {in_brief(v)}" for k, v in value.items())
        return f"{{{parts}}}"
    if type(value) in (list, tuple):
        return f"[{', '.join(map(in_brief, value))}]"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        return repr(value)
    return f"{getattr(dtype, 'name', dtype)} {tuple(shape)}"


def html_of(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of text as HTML, the first row its head."""
    import pandas as pd

    head, *body = rows
    frame = pd.DataFrame(body, columns=list(head), dtype=str)
    return frame.to_html(index=False, border=0)
