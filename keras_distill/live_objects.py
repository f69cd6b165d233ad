"""The user's own classes and functions in a live model: saved by name, and read back.

Keras writes a lambda's code into the file, and reads it back only unsafely, without the
modules it uses; and it looks for a class or a function by a name, which another may have.
Here a file has names alone. What they stand for is the live model's own, and goes to other
processes in a pickle of this run; so every file is read in Keras's safe mode.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import types
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_distill import keras_compat

# Of what Keras looks up by name before it asks whose name it is.
_KERAS = (
    keras.activations,
    keras.constraints,
    keras.initializers,
    keras.losses,
    keras.metrics,
    keras.ops,
    keras.regularizers,
)
#: Names are those of the objects themselves, in all threads.
_renaming = threading.RLock()


@contextlib.contextmanager
def named(model: keras.Model) -> Iterator[dict[str, Any]]:
    """Yields a model's own classes and functions by the names that it is saved with.

    Meanwhile each has a name that no other has. Of one architecture the names are always
    the same, in whatever process.

    Args:
        model: it is saved, or asked for its configuration, while this is open.
    """
    objects: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_renaming)
        for thing, is_of_compile in _own_things(model):
            name = keras.saving.get_registered_name(thing)
            is_function = isinstance(thing, types.FunctionType)
            if (
                name in objects
                or name == "<lambda>"
                or (is_function and any(hasattr(module, name) for module in _KERAS))
            ):
                name = f"keras_distill:{len(objects)}:{thing.__name__}"
                stack.callback(setattr, thing, "__name__", thing.__name__)
                thing.__name__ = name
            objects[name] = None if is_of_compile else thing
        yield {name: thing for name, thing in objects.items() if thing is not None}


def save(model: keras.Model, path: str, name: str) -> dict[str, Any]:
    """Writes a `.keras` file without the optimizer; returns what `load` needs of it.

    Args:
        model: any that Keras can save.
        path: of the file.
        name: of the model, for the error.

    Raises:
        ValueError: if Keras cannot write it.
    """
    try:
        with named(model) as objects:
            model.save(path, include_optimizer=False)
    except (NotImplementedError, TypeError, ValueError, AttributeError) as error:
        raise _not_copied(name, error) from error
    return objects


def load(path: str, objects: dict[str, Any], name: str) -> keras.Model:
    """Reads a file of `save` in safe mode, uncompiled.

    Args:
        path: of the file.
        objects: as `save` returned them, or another process's copies.
        name: of the model, for the error.

    Raises:
        ValueError: if Keras cannot make such a model.
    """
    try:
        return keras.saving.load_model(path, custom_objects=objects, compile=False)
    except (NotImplementedError, TypeError, ValueError, AttributeError) as error:
        raise _not_copied(name, error) from error


def _not_copied(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"{name} cannot be copied, which is done by Keras's own saving; give its layers a "
        "get_config, and a from_config where its values are no plain ones, that make them "
        f"anew. {type(error).__name__}: {str(error).strip()}"
    )


def function_digest(function: types.FunctionType) -> str:
    """Returns what tells a function from others of its name: its code and what it closes over.

    Not where it stands, nor what is only known by an address.
    """
    return hashlib.sha256(_told(function).encode()).hexdigest()[:16]


def _told(value: Any) -> str:
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return f"({_told(value.__code__)} {_told(value.__defaults__)} {_told(cells)})"
    if isinstance(value, types.CodeType):
        names = (value.co_names, value.co_varnames, value.co_freevars)
        return f"({value.co_code.hex()} {names} {_told(value.co_consts)})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_told, value))}]"
    if isinstance(value, dict):
        return f"[{', '.join(f'{_told(k)}: {_told(value[k])}' for k in value)}]"
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return (
            f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
        )
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    return type(value).__qualname__


def _own_things(model: keras.Model) -> Iterator[tuple[Any, bool]]:
    """Yields what is not Keras's own, once each, and whether only `compile` was given it."""
    seen: set[int] = set()

    def of(value: Any, is_of_compile: bool) -> Iterator[tuple[Any, bool]]:
        if id(value) in seen or isinstance(value, keras.Layer):
            return
        if isinstance(value, types.FunctionType):
            seen.add(id(value))
            if not _is_kerass(value):
                yield value, is_of_compile
        elif isinstance(value, list | tuple | set):
            for part in value:
                yield from of(part, is_of_compile)
        elif isinstance(value, dict):
            for part in list(value.values()):
                yield from of(part, is_of_compile)
        elif hasattr(value, "get_config") and not isinstance(value, type):
            seen.add(id(value))
            yield from of_object(value, is_of_compile)

    def of_object(value: Any, is_of_compile: bool) -> Iterator[tuple[Any, bool]]:
        cls = type(value)
        if id(cls) not in seen and not _is_kerass(cls):
            seen.add(id(cls))
            yield cls, is_of_compile
        if isinstance(value, keras.layers.Lambda) and _is_unknown(value.function):
            seen.add(id(value.function))
            yield value.function, is_of_compile
        for name, part in list(vars(value).items()):
            if hasattr(cls, name):  # Keras's wrappers of its methods
                continue
            is_compiled = isinstance(value, keras.Model) and (
                name in ("loss", "optimizer", "_metrics") or name.startswith("_compile")
            )
            yield from of(part, is_of_compile or is_compiled)

    layers = [layer for layer, _ in keras_compat.own_variables(model)]
    # What both the layers and `compile` have is the layers'.
    for is_of_compile in (False, True):
        seen.clear()
        for layer in layers:
            for thing, compiled in of_object(layer, False):
                if compiled is is_of_compile:
                    yield thing, compiled


def _is_unknown(function: Any) -> bool:
    """Tells whether Keras cannot find one of its own functions by its name."""
    return (
        isinstance(function, types.FunctionType)
        and _is_kerass(function)
        and getattr(keras.activations, function.__name__, None) is not function
    )


def _is_kerass(thing: Any) -> bool:
    return thing.__module__.split(".")[0] in ("keras", "keras_distill")
