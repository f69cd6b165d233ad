"""The walk over a student's calls that makes the model that rounds."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_distill.quantization.fake_quantize import ROUNDED, FakeQuantize, StaysFloat
from keras_distill.quantization.folding import fold
from keras_distill.quantization.graph import Call, Graph
from keras_distill.quantization.rules import (
    FUSED,
    OF_ONE_SCALE,
    activation_of,
    can_be_folded,
    kind_of,
    name_of,
    split,
    why_float,
)
from keras_distill.quantization.table import Row

#: Not rounded: LiteRT computes it together with the activation after it, or rounds it as part
#: of what it is joined to.
_PENDING = "pending"

#: Of new layers, whatever policy is the global one.
_DTYPE = "float32"


class Rewriting:
    """Makes the tensors of the model that rounds, call by call.

    Args:
        model: the float student.
        weights: bits of weights, 8 or 4.
        has_ranges: whether activations are rounded too.

    Attributes:
        inputs: symbolic, of the new model, in the order of the student's.
        outputs: symbolic, flat.
        rows: of the table.
    """

    def __init__(self, model: keras.Model, weights: int, has_ranges: bool) -> None:
        self._graph = Graph(model)
        self._weights, self._has_ranges = weights, has_ranges
        self._values: dict[int, Any] = {}
        #: The layer on whose grid a tensor is; `None` for float.
        self._grids: dict[int, Any] = {}
        #: Of a float tensor, what integers are computed from: its rounded form.
        self._rounded: dict[int, tuple[Any, Any]] = {}
        #: Of a tensor on a grid, what is computed from in float.
        self._freed: dict[int, Any] = {}
        self._sources: dict[int, str] = {}
        self._copies: dict[int, Any] = {}
        self._names: set[str] = set()
        self._folded: set[int] = set()
        self._to_set: list[tuple[Any, list]] = []
        self._kept: list[Any] = []
        self.rows: list[Row] = []
        for key, one in zip(self._graph.inputs, model.inputs, strict=True):
            name = self._name(one.name)
            made = keras.Input(batch_shape=one.shape, dtype=one.dtype, name=name)
            self._give(key, made, name)
        self.inputs = [self._values[key] for key in self._graph.inputs]
        for call in self._graph.calls:
            if id(call) not in self._folded:
                kind, reason = kind_of(call)
                getattr(self, f"_add_{kind}")(call, reason)
        self.outputs = [self._values[key] for key in self._graph.outputs]

    def set_weights(self) -> None:
        """Gives the new layers the student's weights, folded where they are."""
        for layer, values in self._to_set:
            for variable, value in zip(layer.variables, values, strict=False):
                variable.assign(value)
            if hasattr(layer, "set_ranges"):
                layer.set_ranges()

    # What is added for a call, by its kind ------------------------------------------------

    def _add_weights(self, call: Call, reason: str) -> None:
        layer, key = call.operation, call.inputs[0]
        axes = 2 if isinstance(layer, keras.layers.Dense) else 4
        if len(self._values[key].shape) != axes:
            return self._add_float(call, f"its input has not {axes} axes")
        if not _is_float(self._values[key]):
            return self._add_float(call, "its input is not of floats")
        if self._weights < 8 and self._has_ranges and self._graph.times[id(layer)] > 1:
            # The converter makes the weights of both calls one, and then has no range of it.
            return self._add_float(call, "it is called more than once, with 4 bits")
        self._weigh(call, layer, key, self._norm_after(call))
        return None

    def _add_separable(self, call: Call, reason: str) -> None:
        layer, key = call.operation, call.inputs[0]
        if self._graph.times[id(layer)] > 1:
            return self._add_float(call, "it is called more than once")
        depthwise, pointwise = split(layer)
        middle = self._graph.new_key()
        self._give(
            middle,
            self._rounding(depthwise, None)(self._integers(key)[0]),
            depthwise.name,
        )
        self._round(middle)
        self._weigh(call, pointwise, middle, self._norm_after(call))
        return None

    def _add_activation(self, call: Call, reason: str) -> None:
        key = call.inputs[0]
        if self._has_ranges and self._grids[key] is None:
            return self._add_float(call, "its input is float")
        self._call(call)
        self._round(call.outputs[0])
        self._row(call.operation)
        return None

    def _add_passing(self, call: Call, reason: str) -> None:
        key = call.inputs[0]
        grid = self._grids[key]
        # What is only passed on is rounded before, else the file has it in float.
        if key in self._graph.inputs and _is_float(self._values[key]):
            value, grid = self._integers(key)
            self._call(call, {key: value})
        else:
            self._call(call)
        self._grids[call.outputs[0]] = grid
        self._row(call.operation, is_float=grid is None)

    def _add_averaging(self, call: Call, reason: str) -> None:
        key = call.inputs[0]
        value, grid = self._integers(key)
        self._call(call, {key: value})
        if grid is not None:
            out = call.outputs[0]
            self._values[out], self._grids[out] = grid(self._values[out]), grid
        self._row(call.operation)

    def _add_ranged(self, call: Call, reason: str) -> None:
        if len(set(call.inputs)) < len(call.inputs):
            return self._add_float(call, "it is given a tensor twice")
        values = {key: self._integers(key)[0] for key in call.inputs}
        is_sum = isinstance(call.operation, (keras.layers.Add, keras.layers.Multiply))
        if is_sum and len(values) > 2 and self._has_ranges:
            self._add_in_pairs(call, list(values.values()))
        else:
            self._call(call, values)
        self._end(call, fuses=type(call.operation).__name__ in ("Add", "Multiply"))
        self._row(call.operation)
        return None

    def _add_joining(self, call: Call, reason: str) -> None:
        """What is joined is on the grid of the whole: the file has one scale for all."""
        out, name = call.outputs[0], call.operation.name
        if not self._has_ranges:
            self._call(call)
        else:
            grid = FakeQuantize(name=self._name(f"{name}_range"), dtype=_DTYPE)
            # What is on another grid goes through that of the whole after it.
            waiting = [k for k in call.inputs if self._grids[k] in (None, _PENDING)]
            self._call(call, {key: grid(self._values[key]) for key in waiting})
            self._values[out], self._grids[out] = grid(self._values[out]), grid
        self._row(call.operation)

    def _add_in_pairs(self, call: Call, values: list) -> None:
        """LiteRT adds and multiplies two, and rounds between."""
        kind, name = type(call.operation), call.operation.name
        total = values[0]
        for one in values[1:-1]:
            key = self._graph.new_key()
            self._give(
                key,
                kind(name=self._name(f"{name}_part"), dtype=_DTYPE)([total, one]),
                name,
            )
            self._round(key)
            total = self._values[key]
        last = kind(name=self._name(name), dtype=_DTYPE)([total, values[-1]])
        self._give(call.outputs[0], last, name)

    def _add_float(self, call: Call, reason: str) -> None:
        kind = type(call.operation).__name__
        self._call(call, {key: self._free(key, kind) for key in call.inputs})
        self._row(call.operation, reason)

    # Parts of these -----------------------------------------------------------------------

    def _weigh(self, call: Call, layer: Any, key: int, norm: Call | None) -> None:
        """Adds a layer of weights, the normalisation in it, and its activation."""
        made = self._rounding(layer, norm)(self._integers(key)[0])
        end = call if norm is None else norm
        self._give(end.outputs[0], made, layer.name)
        name = name_of(layer.activation)
        note = "" if norm is None else f"{norm.operation.name} is folded into it"
        bits = self._copies[id(layer)].weight_bits
        kind = type(call.operation).__name__
        self.rows.append(Row(call.operation.name, kind, f"int{bits} weights", note))
        self._end(end, fuses=name == "linear")
        if name not in FUSED:
            self._activate(end.outputs[0], layer, name)

    def _activate(self, key: int, layer: Any, name: str | None) -> None:
        """Adds the activation of a layer that LiteRT does not compute with it."""
        own, label = layer.activation, self._name(f"{layer.name}_activation")
        if isinstance(own, keras.Layer) and name is None:
            activation = self._copy(own, label)  # it may have weights
        else:
            options = {"name": label, "dtype": _DTYPE}
            activation = keras.layers.Activation(name or own, **options)
        value = self._free(key) if name is None else self._values[key]
        self._give(key, activation(value), label)
        if name is not None:
            self._round(key)
        self._row(activation, "" if name is not None else why_float(activation))

    def _end(self, call: Call, fuses: bool) -> None:
        """Rounds what a call gives, unless that is done after the activation that follows."""
        key = call.outputs[0]
        after = self._graph.only_consumer(key)
        name = None if after is None else activation_of(after.operation)
        is_joined = after is not None and kind_of(after)[0] == "joining"
        if (fuses and name in ("relu", "relu6")) or is_joined:
            self._grids[key] = _PENDING
        else:
            self._round(key)

    def _round(self, key: int) -> None:
        self._values[key], self._grids[key] = self._through_a_range(key)

    def _through_a_range(self, key: int) -> tuple[Any, Any]:
        if not self._has_ranges:
            return self._values[key], None
        layer = FakeQuantize(
            name=self._name(f"{self._sources[key]}_range"), dtype=_DTYPE
        )
        return layer(self._values[key]), layer

    def _integers(self, key: int) -> tuple[Any, Any]:
        """Returns a tensor on a grid, and the layer whose grid it is."""
        if self._grids[key] is not None:
            return self._values[key], self._grids[key]
        if key not in self._rounded:
            self._rounded[key] = self._through_a_range(key)
        return self._rounded[key]

    def _free(self, key: int, kind: str = "") -> Any:
        """Returns a tensor as something of a kind takes it that stays float."""
        is_kept = self._weights < 8 or kind in OF_ONE_SCALE
        if self._grids[key] is None or not is_kept:
            return self._values[key]
        if key not in self._freed:
            label = self._name(f"{self._sources[key]}_float")
            layer = StaysFloat(name=label, dtype=_DTYPE)
            self._freed[key] = layer(self._values[key])
        return self._freed[key]

    def _norm_after(self, call: Call) -> Call | None:
        """Returns the batch normalisation that is folded into a call, if there is one."""
        norm = self._graph.only_consumer(call.outputs[0])
        if norm is None or name_of(call.operation.activation) != "linear":
            return None
        rank = len(self._values[call.inputs[0]].shape)
        # A layer that is called more than once, each time with the same normalisation after.
        calls = [c for c in self._graph.calls if c.operation is call.operation]
        after = [self._graph.only_consumer(c.outputs[0]) for c in calls]
        is_same = all(c is not None and c.operation is norm.operation for c in after)
        is_all = self._graph.times[id(norm.operation)] == len(calls)
        if not (is_same and is_all and can_be_folded(norm.operation, rank)):
            return None
        self._folded.add(id(norm))
        return norm

    def _rounding(self, layer: Any, norm: Call | None) -> Any:
        """Returns the layer that rounds its weights, one for all calls of a layer."""
        if id(layer) in self._copies:
            return self._copies[id(layer)]
        config = layer.get_config()
        activation = name_of(layer.activation)
        # A limit on the weights is not one on those that are folded.
        limits = (
            [] if norm is None else [name for name in config if "constraint" in name]
        )
        # The recipes for weights alone have no 4 bits for it.
        is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        bits = 8 if is_depthwise and not self._has_ranges else self._weights
        config |= {
            **dict.fromkeys(limits),
            "name": self._name(layer.name),
            "use_bias": layer.use_bias or norm is not None,
            "activation": activation if activation in FUSED else None,
            "dtype": _DTYPE,
            "weight_bits": bits,
            "has_ranges": self._has_ranges,
            "folded": None if norm is None else norm.operation.name,
        }
        config.pop("quantization_config", None)
        made = ROUNDED[type(layer)].from_config(config)
        values = [
            np.asarray(one) for one in (layer.kernel, layer.bias) if one is not None
        ]
        self._to_set.append(
            (made, values if norm is None else list(fold(layer, norm.operation)))
        )
        self._copies[id(layer)] = made
        self._kept.append(layer)  # or another would get its id
        return made

    def _call(self, call: Call, values: dict[int, Any] | None = None) -> None:
        """Makes a call of a copy of the operation."""
        args, kwargs = call.arguments({**self._values, **(values or {})})
        operation = self._copy(call.operation)
        outputs = keras.tree.flatten(operation(*args, **kwargs))
        for key, output in zip(call.outputs, outputs, strict=True):
            self._give(key, output, call.operation.name)

    def _copy(self, operation: Any, name: str | None = None) -> Any:
        if id(operation) not in self._copies:
            made = _copied(operation, name or self._name(operation.name))
            self._copies[id(operation)] = made
            if made is not operation and getattr(operation, "variables", None):
                values = [np.asarray(one) for one in operation.variables]
                self._to_set.append((made, values))
        return self._copies[id(operation)]

    def _give(self, key: int, value: Any, source: str) -> None:
        self._values[key], self._grids[key], self._sources[key] = value, None, source

    def _name(self, name: str) -> str:
        """Returns a name that no layer has yet: nested models have some twice."""
        found, count = name, 0
        while found in self._names:
            count += 1
            found = f"{name}_{count}"
        self._names.add(found)
        return found

    def _row(self, operation: Any, reason: str = "", is_float: bool = False) -> None:
        if not self._has_ranges and not reason:
            return  # all but weights is float, as was asked
        computed = "float" if reason or is_float else "int8"
        reason = reason or ("its input is float" if is_float else "")
        name = type(operation).__name__
        self.rows.append(Row(operation.name, name, computed, reason))


def _is_float(tensor: Any) -> bool:
    return keras.backend.is_float_dtype(tensor.dtype)


def _copied(operation: Any, name: str) -> Any:
    """Returns another operation of the same settings; its weights are its own.

    Raises:
        ValueError: if it has weights and cannot be made again of its config.
    """
    try:
        config = operation.get_config()
        named = {**config, "name": name} if "name" in config else config
        return type(operation).from_config(named)
    except Exception as error:
        if not getattr(operation, "variables", None):
            return operation  # as a function in a Lambda: nothing of it changes
        raise ValueError(
            f"student's layer {operation.name!r} ({type(operation).__name__}) cannot be made "
            "again of its get_config(), as the model that rounds needs it; give the class a "
            "get_config that returns all its arguments."
        ) from error
