"""What a teacher is given of a batch, where that is not what the student is given."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill.arguments import check_each, check_int, check_names
from keras_distill.run_directory import architecture_fingerprint, arrays_fingerprint
from keras_distill.user_functions import UserFunction


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Makes a teacher's inputs of a batch's: picked by name, resized, preprocessed.

    Args:
        inputs: names of the inputs that it takes of a dict; `None` for all.
        resize: height and width of images `(batch, h, w, c)`, bilinear, as float; `None`.
        preprocess: function or Keras layer, from these inputs to the teacher's; `None`.

    Raises:
        TypeError: if `preprocess` cannot be called.
        ValueError: if an argument is not of its kind.
    """

    inputs: Sequence[str] | None
    resize: Sequence[int] | None
    preprocess: Callable[[Any], Any] | None

    def __post_init__(self) -> None:
        given = self.preprocess
        if given is not None and (not callable(given) or isinstance(given, type)):
            raise TypeError(
                f"preprocess must be a function or a Keras layer, got {given!r}."
            )
        if self.resize is not None:
            size = check_each(
                "resize", self.resize, lambda n, v: check_int(n, v, 1), "pixels", 2, 2
            )
            object.__setattr__(self, "resize", size)
        if self.inputs is not None:
            names = check_names("inputs", self.inputs)
            if not names:
                raise ValueError("inputs must name one input at least, got [].")
            object.__setattr__(self, "inputs", names)

    @functools.cached_property
    def function(self) -> UserFunction | None:
        """What preprocesses, which may leave TensorFlow."""
        given = self.preprocess
        if given is None:
            return None
        if isinstance(given, keras.Layer):
            return UserFunction(lambda x: given(x, training=False), "preprocess")
        return UserFunction(given, f"preprocess {given!r}")

    def __call__(self, x: Any) -> Any:
        """Returns the teacher's inputs of a batch's."""
        if self.inputs is not None:
            x = self._picked(x)
        if self.resize is not None:
            x = self._resized(x)
        if self.function is None:
            return x
        x = self.function(x)
        if x is None:
            raise ValueError(
                f"{self.function.description} returned None; it must return the teacher's "
                "inputs."
            )
        return x

    def _picked(self, x: Any) -> Any:
        assert self.inputs is not None
        has = list(x) if isinstance(x, Mapping) else None
        if has is None or not set(self.inputs) <= set(has):
            found = (
                "no dict" if has is None else f"the inputs {', '.join(map(repr, has))}"
            )
            raise ValueError(
                f"the teacher's inputs are {', '.join(map(repr, self.inputs))} of a dict of "
                f"inputs by name, and the data has {found}; give a dict with these."
            )
        if len(self.inputs) == 1:
            return x[self.inputs[0]]
        return {name: x[name] for name in self.inputs}

    def _resized(self, x: Any) -> Any:
        parts = tf.nest.flatten(x)
        if not any(len(part.shape) == 4 for part in parts):
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise ValueError(
                f"resize is for images (batch, height, width, channels), and the teacher's "
                f"inputs have shape {shapes}; make them so in preprocess."
            )

        def resized(part: Any) -> Any:
            if len(part.shape) != 4:
                return part
            if not keras.backend.is_float_dtype(part.dtype):
                part = keras.ops.cast(part, "float32")
            return keras.ops.image.resize(
                part, self.resize, "bilinear", data_format="channels_last"
            )

        return tf.nest.map_structure(resized, x)

    def fingerprint(self) -> dict[str, Any]:
        """Returns what identifies it, of what was given."""
        given = {
            "inputs": self.inputs,
            "resize": self.resize,
            "preprocess": self.preprocess and function_fingerprint(self.preprocess),
        }
        return {key: value for key, value in given.items() if value is not None}


def function_fingerprint(function: Any) -> str:
    """Returns a hex digest of a function by its code and what it reads, or of a layer.

    What it reads are its defaults, and the numbers, texts, arrays, functions and layers of
    its closure and module; other things count by their type.
    """
    return hashlib.sha256("\n".join(_parts(function, set())).encode()).hexdigest()[:32]


def _parts(value: Any, seen: set[int]) -> list[str]:
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return [repr(value)]
    if id(value) in seen:
        return ["again"]
    seen.add(id(value))
    if isinstance(value, (list, tuple)):
        return [part for one in value for part in _parts(one, seen)]
    if isinstance(value, Mapping):
        items = sorted(value.items(), key=lambda item: repr(item[0]))
        return [part for item in items for part in _parts(item, seen)]
    if isinstance(value, (np.ndarray, np.generic, tf.Tensor, tf.Variable)):
        return [arrays_fingerprint([np.asarray(value)])]
    if isinstance(value, keras.Layer):
        weights = [keras.ops.convert_to_numpy(v) for v in value.weights]
        return [architecture_fingerprint(value), arrays_fingerprint(weights)]
    if isinstance(value, functools.partial):
        return _parts([value.func, value.args, value.keywords], seen)
    if inspect.ismethod(value):
        return _parts([value.__func__, value.__self__], seen)
    if isinstance(value, types.FunctionType):
        read = inspect.getclosurevars(value)
        return [
            *_code(value.__code__),
            *_parts([value.__defaults__, value.__kwdefaults__], seen),
            *_parts([read.nonlocals, read.globals], seen),
        ]
    named = value if hasattr(value, "__qualname__") else type(value)
    name = f"{named.__module__}.{named.__qualname__}"
    own = vars(value) if named is type(value) and hasattr(value, "__dict__") else {}
    call = getattr(type(value), "__call__", None)  # noqa: B004
    is_object = named is type(value) and isinstance(call, types.FunctionType)
    return [name, *(_parts([call, own], seen) if is_object else [])]


def _code(code: types.CodeType) -> list[str]:
    parts = [code.co_code.hex(), repr(code.co_names)]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            parts += _code(constant)
        elif isinstance(constant, frozenset):
            parts.append(repr(sorted(map(repr, constant))))
        else:
            parts.append(repr(constant))
    return parts
