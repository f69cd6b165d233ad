"""A function of the user's, as TensorFlow runs it: in its graph, or outside of it.

NumPy, scikit-learn, ONNX Runtime and PyTorch want values, which a graph that is being traced
does not have. Such a function is called from the graph, with each batch as it comes.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

#: What an axis of no known size is in an example that is made up.
_SIZE = 32


class UserFunction:
    """A function from a batch to tensors or arrays, which may leave TensorFlow.

    It is run in the graph where it can be traced. Where it cannot, or answers with arrays,
    it is called outside of the graph: a copy of each batch to the host and back, one call
    at a time, for which the step waits, and which XLA cannot compile. The structure, ranks
    and dtypes of its first answer are those of all; float64 becomes float32. So are its
    axes but the batch's, where the inputs have those of the first batch.

    Args:
        function: from a batch of tensors to tensors, arrays, or what turns into them; or
            from a batch of arrays, which it is given if it refuses tensors.
        description: str, for messages.
    """

    def __init__(self, function: Callable[[Any], Any], description: str) -> None:
        self.function = function
        self.description = description
        #: Specs of the inputs and of the answer for the first batch; `None` before.
        self._seen: tuple[list[tf.TensorSpec], Any] | None = None
        #: Whether it refused tensors.
        self._takes_arrays = False
        #: Whether it is known that it is called outside of the graph.
        self.leaves_graph = False
        # Not every library may be called by two replicas at once.
        self._turn = threading.RLock()

    @property
    def accepts_nan(self) -> bool:
        """Whether the function says so, by this attribute."""
        return bool(getattr(self.function, "accepts_nan", False))

    @property
    def is_seen(self) -> bool:
        """Whether it has answered a batch."""
        return self._seen is not None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_turn": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _turn=threading.RLock())

    @tf.autograph.experimental.do_not_convert
    def __call__(self, x: Any) -> Any:
        """Returns the answer for a batch, concrete or of a graph."""
        if tf.executing_eagerly():
            return self._now(x)
        if not self.leaves_graph:
            found = self._in_graph(x)
            if found is not None:
                return found
        if self._seen is None:
            with tf.init_scope():
                answer = self._now(made_up(x))
            if self._seen is None:
                return answer  # it is none
            return self(x)
        self.leaves_graph = True
        return self._from_graph(x)

    def _in_graph(self, x: Any) -> Any:
        """Returns the answer as a part of the graph; `None` if that cannot be."""
        try:
            answer = self.function(x)
        except Exception:  # it may do with values
            return None
        parts = tf.nest.flatten(answer)
        if not all(map(tf.is_tensor, parts)):
            return None
        if self._seen is None:
            shapes = [getattr(part, "shape", tf.TensorShape(None)) for part in parts]
            is_known = all(s.rank is not None and None not in s[1:] for s in shapes)
            return tf.nest.map_structure(_as_tensor, answer) if is_known else None
        tf.nest.assert_same_structure(answer, self._seen[1])
        return tf.nest.map_structure(_of_known_shape, answer, self._shapes(x))

    def _now(self, x: Any) -> Any:
        """Returns the answer for a concrete batch."""
        tensors = tf.nest.map_structure(_converted, x)
        answer = tf.nest.map_structure(_as_tensor, self._asked(tensors))
        parts = tf.nest.flatten(answer)
        if (
            self._seen is None
            and parts
            and all(isinstance(p, tf.Tensor) for p in parts)
        ):
            specs = tf.nest.map_structure(_spec, answer)
            self._seen = list(map(_spec, _flat(tensors))), specs
        return answer

    def _asked(self, tensors: Any) -> Any:
        with self._turn:
            if self._takes_arrays:
                return self.function(_arrays(tensors))
            try:
                answer = self.function(tensors)
            except Exception:
                answer = None if self._seen else self._of_arrays(tensors)
                if answer is None:  # what it says of tensors, as it is asked first
                    raise
                self._takes_arrays = self.leaves_graph = True
            if not all(map(_is_of_tensorflow, tf.nest.flatten(answer))):
                self.leaves_graph = True
            return answer

    def _of_arrays(self, tensors: Any) -> Any:
        try:
            return self.function(_arrays(tensors))
        except Exception:
            return None

    def _from_graph(self, x: Any) -> Any:
        """Returns the answer of a call outside of the graph."""
        assert self._seen is not None
        specs = tf.nest.flatten(self._seen[1])
        _leaving.add(self)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync

        def run(*arrays: np.ndarray) -> list[np.ndarray]:
            try:
                tensors = tf.nest.pack_sequence_as(
                    x, list(map(tf.constant, arrays)), expand_composites=True
                )
                with _room_for_functions(replicas):
                    return self._as_before(self._asked(tensors))
            except Exception as error:
                raise ValueError(_noted(error)) from error

        found = tf.numpy_function(run, _flat(x), [spec.dtype for spec in specs])
        shapes = tf.nest.flatten(self._shapes(x))
        for part, spec in zip(found, shapes, strict=True):
            part.set_shape(spec.shape)
        return tf.nest.pack_sequence_as(self._seen[1], found)

    def _as_before(self, answer: Any) -> list[np.ndarray]:
        """Returns an answer as arrays; refuses one of another kind than the first."""
        assert self._seen is not None
        answer = tf.nest.map_structure(_as_tensor, answer)
        tf.nest.assert_same_structure(answer, self._seen[1])
        arrays = []
        for part, spec in zip(
            tf.nest.flatten(answer), tf.nest.flatten(self._seen[1]), strict=True
        ):
            rank = len(part.shape)
            if rank != len(spec.shape) or part.shape[1:][-1:] != spec.shape[1:][-1:]:
                raise ValueError(
                    f"the {self.description} answered its first batch with shape "
                    f"{tuple(spec.shape)} and a later one with {tuple(part.shape)}; the "
                    "last axis must be the same each time."
                )
            arrays.append(tf.cast(part, spec.dtype).numpy())
        return arrays

    def _shapes(self, x: Any) -> Any:
        """Returns specs of the answer, with sizes free where those of the inputs are."""
        assert self._seen is not None
        inputs, answer = self._seen
        now = [_spec(part).shape.as_list() for part in _flat(x)]
        is_alike = now == [spec.shape.as_list() for spec in inputs]

        def freed(spec: tf.TensorSpec) -> tf.TensorSpec:
            batch, *others = spec.shape
            if not is_alike:
                others[:-1] = [None] * len(others[:-1])
            return tf.TensorSpec([batch, *others], spec.dtype)

        return tf.nest.map_structure(freed, answer)


#: Functions that are called outside of a graph.
_leaving: weakref.WeakSet[UserFunction] = weakref.WeakSet()


@contextlib.contextmanager
def _room_for_functions(replicas: int) -> Iterator[None]:
    """Has a `tf.function` in a function run where few threads would leave it none.

    Each call from a graph holds one of TensorFlow's threads, which such a function, as in
    `keras.Model.predict`, needs another of: it would wait for ever.
    """
    threads = int(os.environ.get("TF_NUM_INTEROP_THREADS") or 0)
    threads = tf.config.threading.get_inter_op_parallelism_threads() or threads
    is_full = (threads or os.cpu_count() or 1) <= replicas * len(_leaving)
    before = tf.config.functions_run_eagerly()
    if is_full and not before:
        tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        if is_full and not before:
            tf.config.run_functions_eagerly(False)


def _flat(x: Any) -> list[tf.Tensor]:
    return tf.nest.flatten(x, expand_composites=True)


def _spec(part: Any) -> tf.TensorSpec:
    """Returns the spec of a batch, its size free."""
    return tf.TensorSpec([None, *part.shape[1:]][: part.shape.rank], part.dtype)


def _arrays(tensors: Any) -> Any:
    """Returns tensors as arrays that may be written to."""
    return tf.nest.map_structure(
        lambda part: np.array(part) if isinstance(part, tf.Tensor) else part, tensors
    )


def _converted(part: Any) -> Any:
    return part if part is None or tf.is_tensor(part) else tf.convert_to_tensor(part)


def _is_of_tensorflow(part: Any) -> bool:
    return tf.is_tensor(part) or isinstance(part, tf.Variable)


def _as_tensor(part: Any) -> Any:
    """Returns an array of whatever library as a tensor; what is none as it is."""
    if not _is_of_tensorflow(part) and hasattr(part, "__array__"):
        array = np.asarray(part)
        if array.dtype.kind not in "OM":
            part = tf.convert_to_tensor(array)
    is_double = isinstance(part, tf.Tensor) and part.dtype == tf.float64
    return tf.cast(part, tf.float32) if is_double else part


def _of_known_shape(part: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    """Returns a tensor whose rank and last axis are known."""
    part = _as_tensor(part)
    if part.shape.rank is None or (part.shape.rank and part.shape[-1] is None):
        return tf.ensure_shape(part, spec.shape)
    return part


def made_up(x: Any) -> Any:
    """Returns a concrete batch like one of a graph: two examples of numbers from 0 to 1.

    Integers are 0, strings empty; an axis of no known size has 32.
    """

    def part(like: Any) -> tf.Tensor:
        shape = [2, *(size or _SIZE for size in like.shape[1:])][: len(like.shape)]
        dtype = tf.as_dtype(like.dtype)
        if dtype.is_floating:
            random = np.random.default_rng(0).uniform(size=shape)
            return tf.cast(random, dtype)
        return tf.zeros(shape, dtype)

    return tf.nest.map_structure(part, x)


# What a function raises outside of the graph comes back as TensorFlow's error ----------

_ERRORS: dict[str, Exception] = {}
_MARK = "a function outside of the graph failed"


def _noted(error: Exception) -> str:
    """Notes an error, so that it can be found by the message that is returned."""
    if len(_ERRORS) > 100:
        _ERRORS.clear()
    key = uuid.uuid4().hex
    _ERRORS[key] = error
    return f"{_MARK} ({key}): {type(error).__name__}: {error}"


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raises what was raised in or outside of a graph, not what TensorFlow made of it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        cause = error.__context__
        if cause is None or not hasattr(cause, "ag_error_metadata"):
            raise
        # Autograph has put the way to the error before what it says.
        raise cause from None
    except tf.errors.OpError as error:
        found = re.search(rf"{_MARK} \((\w+)\)", str(error))
        original = _ERRORS.pop(found[1], None) if found else None
        if original is None:
            raise
        raise original from error
