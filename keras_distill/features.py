"""Hidden layers by path, whose outputs are recorded while a model runs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_distill.arguments import check_backend, check_model
from keras_distill.inputs import symbolic_inputs
from keras_distill.keras_compat import layers_inside
from keras_distill.recorded_calls import Calls, is_feature, parts_of, recorded, traced


class FeaturePath(NamedTuple):
    """A path to what a layer gives, such as "encoder/lstm:1[0]".

    Attributes:
        layer: the layer or operation.
        call: which of its calls in a run of the model, from 0 on; `None` for its only one.
        output: which of its outputs, by position or key; `None` for its only one.
    """

    layer: Any
    call: int | None
    output: int | str | None


class FeaturePaths(dict):
    """Shape of each feature of a model by its path; prints as a table.

    Shapes are tuples, batch first, `None` for a free axis.
    """

    def __str__(self) -> str:
        widths = [max([len("path"), *map(len, self)]), len("shape")]
        rows = [("path", "shape"), ("-" * widths[0], "-" * widths[1])]
        rows += [(path, str(shape)) for path, shape in self.items()]
        return "\n".join(f"{path:<{widths[0]}}  {shape}" for path, shape in rows)


def feature_paths(model: keras.Model, inputs: Any = None) -> FeaturePaths:
    """Returns the hidden layers of a model that can be matched, by their paths.

    A path is the names of the layers that lead to a layer, as in "backbone/block4_conv2":
    through Functional, Sequential and subclassed models, and layers made of layers. Where
    two layers in one have the same name, or in place of any name, that of the attribute.
    What a layer gives when it is called several times in a run is "shared:0", "shared:1",
    ...; the outputs of a layer with several are "lstm[0]", "lstm[1]", ... or by key
    "backbone[P3]".

    The model is traced once, with `training=False`; it is not changed. Layers that it does
    not call, that give no floats, or that run inside a loop, as the cell of an RNN,
    are left out.

    Args:
        model: a `keras.Model`.
        inputs: a batch of inputs, for a subclassed model, which does not say what it takes.
            Default: the inputs of the Functional or Sequential model.

    Returns:
        A dict of shapes by path, in the order of their calls; `print` shows it as a table.

    Raises:
        TypeError: if it is not a `keras.Model`.
        ValueError: if a subclassed model is given without inputs.

    Example:
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"),
    ...                           keras.layers.Dense(2, name="b")])
    >>> print(feature_paths(model))
    path  shape
    ----  -----
    a     (None, 3)
    b     (None, 2)
    """
    check_backend()
    check_model("model", model)
    if inputs is None and symbolic_inputs(model) is None:
        what = "not built" if not model.built else "a subclassed model"
        raise ValueError(
            f"the {type(model).__name__} {model.name!r} is {what}, which does not say what it "
            "takes; give a batch: feature_paths(model, inputs)."
        )
    if inputs is not None and not model.built:
        model(keras.tree.map_structure(tf.convert_to_tensor, inputs), training=False)
    paths = _paths_of_layers(model)
    found = traced(model, list(paths.values()), inputs)
    shapes: list[tuple[int, str, tuple]] = []
    for path, layer in paths.items():
        calls = [] if id(layer) in found.inside else found.calls[id(layer)]
        for number, outputs in enumerate(calls):
            name = path if len(calls) == 1 else f"{path}:{number}"
            parts = parts_of(outputs.outputs)
            shapes += [
                (
                    outputs.order,
                    name if key is None else f"{name}[{key}]",
                    tuple(part.shape),
                )
                for key, part in parts.items()
                if is_feature(part)
            ]
    return FeaturePaths({path: shape for _, path, shape in sorted(shapes, key=_first)})


def _first(item: tuple) -> Any:
    return item[0]


def find_layer(model: Any, path: str, role: str) -> Any:
    """Returns the layer at a path such as "backbone/block4_conv2".

    Args:
        model: a `keras.Model`, or a layer made of layers.
        path: of the layer, without a call or an output.
        role: of the model, for messages: "student" or "teacher".

    Raises:
        ValueError: if there is none, naming the closest paths.
    """
    found = model
    for part in path.split("/"):
        found = _children(found).get(part)
        if found is None:
            raise ValueError(_no_such_layer(model, path, role))
    return found


def find_feature(model: Any, path: str, role: str) -> FeaturePath:
    """Returns the layer at a path, and which of its calls and outputs is meant.

    Raises:
        ValueError: if there is no such layer, naming the closest paths.
    """
    match = re.fullmatch(r"(.+?)(?::(\d+))?(?:\[([^\[\]]+)\])?", path, re.DOTALL)
    is_name = match is None or (match[2] is None and match[3] is None)
    if is_name or _is_layer(model, path):  # a name may have what stands for a call
        return FeaturePath(find_layer(model, path, role), None, None)
    assert match is not None
    layer = find_layer(model, match[1], role)
    output = match[3]
    is_position = output is not None and re.fullmatch(r"-?\d+", output)
    return FeaturePath(
        layer,
        None if match[2] is None else int(match[2]),
        int(output) if is_position else output,
    )


def _is_layer(model: Any, path: str) -> bool:
    for part in path.split("/"):
        model = _children(model).get(part)
        if model is None:
            return False
    return True


def _no_such_layer(model: Any, path: str, role: str) -> str:
    if not getattr(model, "built", True):
        return (
            f"the {role} {type(model).__name__} has no layer {path!r} yet: it is not built; "
            "call it once on a batch."
        )
    paths = _paths_of_layers(model)
    known, last = list(paths), path.rsplit("/", 1)[-1]
    closest = difflib.get_close_matches(path, known, 3, 0.6)
    closest += [
        one
        for one, layer in paths.items()
        if last in (one.rsplit("/", 1)[-1], layer.name)
    ][:3]
    shown = ", ".join(map(repr, dict.fromkeys(closest or known[:5])))
    what = "the closest are" if closest else "it has"
    others = "" if closest or len(known) <= 5 else ", ..."
    return (
        f"the {role} has no layer {path!r}; {what} {shown or 'no layers'}{others}. "
        f"print(keras_distill.feature_paths({role})) shows all."
    )


def _children(layer: Any) -> dict[str, Any]:
    """Returns the layers in a layer by name, and by attribute where no name says it."""
    inside = layers_inside(layer)
    names = [child.name for child in inside]
    found = {
        child.name: child
        for child in inside
        if names.count(child.name) == 1
        and not isinstance(child, keras.layers.InputLayer)
    }
    known = {id(child) for child in inside}
    for attribute, value in vars(layer).items():
        if attribute in _OF_KERAS:
            continue
        for name, child in _in_attribute(attribute, value):
            if id(child) in known:
                found.setdefault(name, child)
    return found


#: Attributes by which Keras itself holds layers.
_OF_KERAS = ("_layers", "_operations", "_functional", "nnx_operations")


def _in_attribute(attribute: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, keras.layers.Layer):
        yield attribute, value
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            if isinstance(child, keras.layers.Layer):
                yield f"{attribute}.{index}", child
    elif isinstance(value, dict):
        for key, child in value.items():
            if isinstance(child, keras.layers.Layer):
                yield f"{attribute}.{key}", child


def _paths_of_layers(model: Any) -> dict[str, Any]:
    """Returns all layers in a model by path, each once, those around others first."""
    paths: dict[str, Any] = {}
    seen = {id(model)}

    def add(layer: Any, prefix: str) -> None:
        for name, child in _children(layer).items():
            if id(child) not in seen:
                seen.add(id(child))
                paths[prefix + name] = child
                add(child, f"{prefix}{name}/")

    add(model, "")
    return paths


# What layers give while a model runs -------------------------------------------------


class Recorder:
    """Runs a model and gives the outputs of its layers at some paths.

    Args:
        model: a `keras.Model`.
        paths: as in `feature_paths`.
        role: of the model, for messages: "student" or "teacher".

    Raises:
        ValueError: if the model is built and has no such layer.
    """

    def __init__(self, model: keras.Model, paths: Sequence[str], role: str) -> None:
        self.model, self.paths, self.role = model, list(paths), role
        if model.built or symbolic_inputs(model) is not None:
            self._features()

    def _features(self) -> dict[str, FeaturePath]:
        return {path: find_feature(self.model, path, self.role) for path in self.paths}

    def __call__(self, run: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        """Runs the model once.

        Args:
            run: runs it, in the thread and graph of this call.

        Returns:
            What it returned; and the features by path.

        Raises:
            ValueError: if a path does not lead to one tensor of floats.
        """
        features = self._features()
        layers = [feature.layer for feature in features.values()]
        with recorded(self.model, layers) as calls:
            outputs = run()
        found = {
            path: self._chosen(path, feature, calls)
            for path, feature in features.items()
        }
        return outputs, found

    def _chosen(self, path: str, feature: FeaturePath, calls: Calls) -> Any:
        who = f"the {self.role}'s layer {path!r}"
        made = [call.outputs for call in calls.calls[id(feature.layer)]]
        if (
            id(feature.layer) in calls.inside
        ):  # and if it was called outside, for a shape
            raise ValueError(
                f"{who} runs inside a loop or a function of its own, out of which no feature "
                "comes; match the layer around it."
            )
        if not made:
            raise ValueError(f"{who} is not called when the {self.role} runs.")
        if feature.call is None and len(made) > 1:
            base = path.split("[")[0]
            raise ValueError(
                f"{who} is called {len(made)} times in a run; say which: "
                f'"{base}:0" to "{base}:{len(made) - 1}".'
            )
        number = feature.call or 0
        if number >= len(made):
            raise ValueError(
                f"{who} names call {number}, but it is called {len(made)} time(s) in a "
                "run, counted from 0 on."
            )
        parts = parts_of(made[number])
        if feature.output is None and len(parts) > 1:
            base = path.split("[")[0]
            raise ValueError(
                f"{who} has several outputs; say which: "
                + ", ".join(f'"{base}[{key}]"' for key in parts)
                + "."
            )
        key = feature.output if feature.output is not None else next(iter(parts), None)
        if isinstance(key, int) and key < 0:
            key += len(parts)
        if len(parts) == 1 and key in (0, None):
            key = next(iter(parts))
        if key not in parts:
            known = ", ".join(repr(one) for one in parts if one is not None)
            raise ValueError(
                f"{who} names the output {feature.output!r}; it has {known or 'a single one'}."
            )
        if not is_feature(parts[key]):
            what = getattr(parts[key], "dtype", type(parts[key]).__name__)
            what = getattr(what, "name", what)
            raise ValueError(
                f"{who} gives {what}, and a feature is a dense tensor of floats."
            )
        return parts[key]

    def shapes(self, inputs: Any = None) -> dict[str, tuple]:
        """Returns the shape of each feature by path, batch first; traces the model.

        Args:
            inputs: a batch, or its specs. Default: the model's own; without these, a
                subclassed model says nothing.

        Raises:
            ValueError: as a run does.
        """
        if not self.paths or (inputs is None and symbolic_inputs(self.model) is None):
            return {}
        if symbolic_inputs(self.model) is not None:
            known = self._said_by_layers()
            if known is not None:
                return known
        found = traced(self.model, [f.layer for f in self._features().values()], inputs)
        return {
            path: tuple(self._chosen(path, feature, found).shape)
            for path, feature in self._features().items()
        }

    def _said_by_layers(self) -> dict[str, tuple] | None:
        """Returns the shapes if layers of the model itself say them, without a trace."""
        found = {}
        for path, feature in self._features().items():
            try:
                output = feature.layer.output
            except (AttributeError, ValueError):  # called several times, or never
                return None
            is_direct = "/" not in path and feature[1:] == (None, None)
            if not (is_direct and isinstance(output, keras.KerasTensor)):
                return None
            if not keras.backend.is_float_dtype(output.dtype) or output.sparse:
                return None
            found[path] = tuple(output.shape)
        return found


def shapes_of_features(
    model: Any, paths: Sequence[str], role: str, inputs: Any = None
) -> dict[str, tuple]:
    """Returns the shape of each feature at a path, batch first; {} if it is not known yet.

    Args:
        model: a `keras.Model`, or `None`.
        paths: as in `feature_paths`.
        role: of the model, for messages.
        inputs: a batch, or its specs, for a subclassed model.

    Raises:
        ValueError: if there is no such layer, or it does not give one tensor of floats.
    """
    if model is None or not paths:
        return {}
    return Recorder(model, paths, role).shapes(inputs)
