"""A Functional or Sequential model as one list of calls, whatever is nested in it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import keras

from keras_distill.keras_compat import call_of, is_graph_of_layers


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer or of an operation of `keras.ops`.

    Attributes:
        operation: that is called.
        inputs: keys of what it is given.
        outputs: keys of what it gives.
        arguments: function of values by key, that returns positional arguments and those by
            name.
    """

    operation: Any
    inputs: list[int]
    outputs: list[int]
    arguments: Callable[[dict[int, Any]], tuple[tuple, dict]]


class Graph:
    """The calls of a model in the order in which they can be made.

    Args:
        model: built, Functional or Sequential.

    Attributes:
        calls: of `Call`.
        inputs: keys of the model's inputs.
        outputs: keys of the model's outputs, flat.
        consumers: of each key, the calls that are given it; `None` for the model's output.
        times: how often each operation is called.
    """

    def __init__(self, model: keras.Model) -> None:
        self.calls: list[Call] = []
        self._count = 0
        self.inputs = [self.new_key() for _ in model.inputs]
        self.outputs = self._add(model, self.inputs)
        self.consumers: dict[int, list[Call | None]] = {}
        for call in self.calls:
            for key in call.inputs:
                self.consumers.setdefault(key, []).append(call)
        for key in self.outputs:
            self.consumers.setdefault(key, []).append(None)
        self.times = Counter(id(call.operation) for call in self.calls)

    def only_consumer(self, key: int) -> Call | None:
        """Returns the call that alone is given something, or `None`."""
        consumers = self.consumers.get(key, [])
        return consumers[0] if len(consumers) == 1 else None

    def new_key(self) -> int:
        """Returns a key that no tensor has yet."""
        self._count += 1
        return self._count

    def _add(self, model: keras.Model, given: list[int]) -> list[int]:
        """Appends a model's calls; returns the keys of its outputs."""
        keys = {id(one): key for one, key in zip(model.inputs, given, strict=True)}
        for tensor in _in_order(model):
            operation, inputs, outputs, fill_in = call_of(tensor)
            taken = [keys[id(one)] for one in inputs]
            if is_graph_of_layers(operation):
                made = self._add(operation, taken)
            else:
                made = [self.new_key() for _ in outputs]
                names = {id(one): keys[id(one)] for one in inputs}
                call = Call(operation, taken, made, _filled(fill_in, names))
                self.calls.append(call)
            keys.update({id(o): key for o, key in zip(outputs, made, strict=True)})
        return [keys[id(one)] for one in model.outputs]


def _filled(fill_in: Callable, names: dict[int, int]) -> Callable:
    return lambda values: fill_in({one: values[key] for one, key in names.items()})


def _in_order(model: keras.Model) -> list[Any]:
    """Returns an output of each call of a model, those it depends on first."""
    given = {id(one) for one in model.inputs}
    order: list[Any] = []
    done: set[int] = set()
    # Each entry twice: before what it depends on, and after. Recursion has a limit.
    stack = [(one, False) for one in reversed(model.outputs)]
    while stack:
        tensor, is_after = stack.pop()
        if id(tensor) in given or id(tensor) in done:
            continue
        _, inputs, outputs, _ = call_of(tensor)
        if is_after:
            done.update(map(id, outputs))
            order.append(tensor)
        else:
            stack.append((tensor, True))
            stack += [(one, False) for one in reversed(inputs)]
    return order
