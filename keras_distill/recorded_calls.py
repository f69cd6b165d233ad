"""Calls of layers, recorded while a model runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_distill.inputs import inputs_for, symbolic_inputs


class Call(NamedTuple):
    """What one call of a layer gave, and as which of all calls."""

    order: int
    outputs: Any


class Calls:
    """The calls of some layers in the last run of a model, by the `id` of the layer.

    Only those of its own graph: what runs in a loop is no tensor out of it.
    """

    def __init__(self, model: Any, layers: Sequence[Any]) -> None:
        self.model = model
        self.layers = {id(layer): layer for layer in layers}
        self.graph = _graph()
        self.begin()

    def begin(self) -> None:
        """Forgets the calls of an earlier run."""
        self.calls: dict[int, list[Call]] = {key: [] for key in self.layers}
        self.inside: set[int] = set()
        self._order = 0

    def add(self, layer: Any, outputs: Any) -> None:
        """Takes what a call gave, if it is of one of the layers."""
        if id(layer) not in self.layers:
            return
        if _graph() is not self.graph:
            self.inside.add(id(layer))
            return
        self.calls[id(layer)].append(Call(self._order, outputs))
        self._order += 1


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


# Replicas trace a model in threads of their own, each with its own calls.
_running = threading.local()
_lock = threading.RLock()
#: How many recordings have a layer wrapped, by its `id`.
_wrapped: dict[int, int] = {}


@contextlib.contextmanager
def recorded(model: Any, layers: Sequence[Any]) -> Iterator[Calls]:
    """Records the calls of layers, through their attribute `call`.

    The inner tensors of a nested model are not connected to the outer inputs, so that no
    Functional model could give them.
    """
    calls = Calls(model, layers)
    outer = getattr(_running, "calls", ())
    wrapped = {id(layer): layer for layer in [model, *layers]}.values()
    with _lock:
        for layer in wrapped:
            _wrap(layer)
    _running.calls = (*outer, calls)
    try:
        yield calls
    finally:
        _running.calls = outer
        with _lock:
            for layer in wrapped:
                _unwrap(layer)


_WAYS = ("call", "quantized_call")


def _wrap(layer: Any) -> None:
    count = _wrapped.get(id(layer), 0)
    _wrapped[id(layer)] = count + 1
    if count:
        return
    for way in _WAYS:
        before, original = vars(layer).get(way), getattr(layer, way)

        def call(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
            running = getattr(_running, "calls", ())
            for calls in running:
                if calls.model is layer and _graph() is calls.graph:
                    calls.begin()  # a function may be traced more than once
            outputs = _original(*args, **kwargs)
            for calls in running:
                calls.add(layer, outputs)
            return outputs

        call.before = before  # type: ignore[attr-defined]
        # Past Keras, which would look for what to track.
        vars(layer)[way] = call


def _unwrap(layer: Any) -> None:
    _wrapped[id(layer)] -= 1
    if _wrapped[id(layer)]:
        return
    del _wrapped[id(layer)]
    for way in _WAYS:
        before = vars(layer).pop(way).before
        if before is not None:
            vars(layer)[way] = before


def traced(model: keras.Model, layers: list[Any], inputs: Any) -> Calls:
    """Traces a model once; returns the symbolic calls of its layers."""
    inputs = inputs_for(model, inputs) if inputs is not None else symbolic_inputs(model)
    found: list[Calls] = []

    @tf.function(autograph=False)
    def run(x: Any) -> None:
        with recorded(model, layers) as calls:
            model(x, training=False)
        found.append(calls)

    run.get_concrete_function(keras.tree.map_structure(_spec, inputs))
    return found[-1]


def _spec(part: Any) -> Any:
    if getattr(part, "sparse", False) or isinstance(part, tf.SparseTensor):
        return tf.SparseTensorSpec((None, *part.shape[1:]), part.dtype)
    if isinstance(part, tf.RaggedTensor):
        return tf.RaggedTensorSpec.from_value(part)
    is_symbolic = isinstance(part, keras.KerasTensor)
    shape = part.shape if is_symbolic else (None, *part.shape[1:])
    return tf.TensorSpec(shape, part.dtype)


def parts_of(outputs: Any) -> dict[Any, Any]:
    """Returns the tensors of what a layer gave by key or position; a single one by `None`."""
    if isinstance(outputs, dict):
        parts = {key: part for key, part in outputs.items() if part is not None}
        if all(not isinstance(part, (dict, list, tuple)) for part in parts.values()):
            return parts
    flat = [part for part in keras.tree.flatten(outputs) if part is not None]
    if len(flat) == 1:
        return {None: flat[0]}
    return dict(enumerate(flat))


def is_feature(part: Any) -> bool:
    """Tells whether an output is floats with more than the batch axis."""
    return (
        isinstance(part, tf.Tensor) and part.dtype.is_floating and len(part.shape) > 1
    )
