"""What an export takes: tensors by name, and the way they go into the model."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_distill.soft_targets.sources import specs_of


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The raw inputs of an export.

    Attributes:
        specs: of each raw input, by its name.
        raw: names in the structure in which `preprocess` takes the raw inputs.
        taken: names in the structure in which the model takes them; `None` where only
            `preprocess` makes what it takes.
        arguments: names of the parameters of `call` that each take a part of the
            structure; empty where the first takes all of it.
    """

    specs: dict[str, tf.TensorSpec]
    raw: Any
    taken: Any
    arguments: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: keras.Model, signature: Any, is_preprocessed: bool) -> Inputs:
        """Returns the inputs that `input_signature` says, or else the model's own.

        Args:
            model: that is exported.
            signature: a `tf.TensorSpec`, or a dict, list or tuple of them; `None` for the
                model's own inputs.
            is_preprocessed: whether a function makes what the model takes of them.

        Raises:
            TypeError: if the signature holds something else.
            ValueError: if it does not fit the model, or none is known.
        """
        own = _own_inputs(model)
        if signature is None:
            if own is None:
                raise ValueError(
                    f"the inputs of the subclassed model {model.name!r} are not known; pass "
                    "input_signature=tf.TensorSpec([None, ...], tf.float32, name=...), or a "
                    "dict, list or tuple of them, as its call takes them."
                )
            taken = keras.tree.map_structure(lambda t: t.name, own)
            specs = {t.name: specs_of(t, 1, None) for t in keras.tree.flatten(own)}
            specs = {n: tf.TensorSpec(s.shape, s.dtype, n) for n, s in specs.items()}
            return cls(specs, _alone_or_by_name(list(specs)), taken)
        parameters = [] if own is not None else _parameters(model)
        arguments = _arguments(signature, parameters)
        specs, raw = _named(signature, arguments)
        if own is None:
            # tf.function writes one argument as a list of one.
            is_listed = not arguments and len(specs) == 1 and not isinstance(raw, dict)
            taken = next(iter(specs)) if is_listed else raw
        else:
            taken = None if is_preprocessed else _as_taken(model, own, list(specs), raw)
        if len(specs) == 1:
            raw = next(iter(specs))
        return cls(specs, raw, taken, arguments)

    def call(
        self, model: keras.Model, named: dict[str, Any], preprocess: Callable | None
    ) -> Any:
        """Returns the model's outputs for raw inputs by name."""
        if preprocess is not None:
            values = preprocess(keras.tree.map_structure(named.get, self.raw))
        else:
            values = keras.tree.map_structure(named.get, self.taken)
        if not self.arguments:
            return model(values, training=False)
        if not isinstance(values, dict):
            return model(*values, training=False)
        first = values[self.arguments[0]]
        rest = {name: values[name] for name in values if name != self.arguments[0]}
        return model(first, training=False, **rest)

    def check(
        self, model: keras.Model, named: dict[str, Any], preprocess: Callable | None
    ) -> None:
        """Runs a subclassed model once, which may also build it.

        Raises:
            ValueError: if it does not take such inputs.
        """
        if _own_inputs(model) is not None:
            return
        if preprocess is not None:
            self.call(model, named, preprocess)
            return
        try:
            self.call(model, named, None)
        except Exception as error:
            how = "its arguments " if self.arguments else ""
            raise ValueError(
                f"{model.name!r} fails on {how}{_shown(self.taken)}, as input_signature has "
                "them; give the structure that its call takes, a tf.TensorSpec or a dict, "
                f"list or tuple of them. {type(error).__name__}: {error}"
            ) from error

    def by_name(self, example: Any) -> Any:
        """Returns an example in the structure of the inputs by their names."""
        if isinstance(self.raw, list | tuple) and isinstance(example, list | tuple):
            if len(example) == len(self.raw) and all(
                isinstance(name, str) for name in self.raw
            ):
                return dict(zip(self.raw, example, strict=True))
            try:
                keras.tree.assert_same_structure(self.raw, example)
            except ValueError:
                return example
            names = keras.tree.flatten(self.raw)
            return dict(zip(names, keras.tree.flatten(example), strict=True))
        return example


def _own_inputs(model: keras.Model) -> Any:
    """Returns a model's symbolic inputs as it takes them; `None` if it has none."""
    if not getattr(model, "inputs", None):
        return None
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def _shown(structure: Any) -> str:
    return repr(structure).replace("'", "")


def _alone_or_by_name(names: list[str]) -> Any:
    return names[0] if len(names) == 1 else {name: name for name in names}


def _parameters(model: keras.Model) -> list[inspect.Parameter]:
    """Returns the parameters of `call` that can take inputs by their position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [
        parameter
        for name, parameter in inspect.signature(model.call).parameters.items()
        if parameter.kind in kinds and name not in ("training", "mask")
    ]


def _arguments(signature: Any, parameters: list[inspect.Parameter]) -> tuple[str, ...]:
    """Returns the names of the parameters that each take one part of a signature."""
    names = [parameter.name for parameter in parameters]
    needed = sum(
        parameter.default is inspect.Parameter.empty for parameter in parameters
    )
    if isinstance(signature, dict):
        if names[:1] and names[0] in signature and set(signature) <= set(names):
            return tuple(name for name in names if name in signature)
    elif isinstance(signature, list | tuple):
        said = [getattr(part, "name", None) for part in signature]
        if 1 < needed <= len(signature) <= len(names) or (
            len(said) > 1 and said == names[: len(said)]
        ):
            return tuple(names[: len(said)])
    return ()


def _named(
    signature: Any, arguments: tuple[str, ...]
) -> tuple[dict[str, tf.TensorSpec], Any]:
    """Returns the specs of a signature by name, and its structure of names."""
    names, specs = [], []
    for path, spec in keras.tree.flatten_with_path(signature):
        key = path[-1] if path else None
        name = key if isinstance(key, str) else getattr(spec, "name", None)
        if name is None and arguments and len(path) == 1:
            name = arguments[path[0]]
        names.append(name or "inputs")
        specs.append(spec)
    if not names:
        raise ValueError(
            f"input_signature is empty, got {signature!r}; give a tf.TensorSpec of each "
            "input."
        )
    if len(set(names)) < len(names):
        raise ValueError(
            "the specs in input_signature must have names of their own, as in "
            "tf.TensorSpec([None, 8], tf.float32, name='image')."
        )
    for name, spec in zip(names, specs, strict=True):
        if not isinstance(spec, tf.TensorSpec):
            raise TypeError(
                "input_signature must be a tf.TensorSpec or a dict, list or tuple of them, "
                f"got {spec!r} for {name!r}."
            )
    named = {
        n: tf.TensorSpec(s.shape, s.dtype, n) for n, s in zip(names, specs, strict=True)
    }
    return named, keras.tree.pack_sequence_as(signature, names)


def _as_taken(model: keras.Model, own: Any, names: list[str], raw: Any) -> Any:
    """Returns the names of a signature in the structure that a Functional model takes."""
    tensors = [tensor.name for tensor in keras.tree.flatten(own)]
    if set(names) == set(tensors):
        return keras.tree.map_structure(lambda tensor: tensor.name, own)
    if isinstance(own, dict) and isinstance(raw, dict) and set(own) == set(raw):
        return raw
    if len(names) == len(tensors) and not (isinstance(raw, dict) and len(names) > 1):
        return keras.tree.pack_sequence_as(own, names)
    raise ValueError(
        f"input_signature has {', '.join(map(repr, names))}, but {model.name!r} takes "
        f"{', '.join(map(repr, tensors))}; give a spec of each, by these names, or "
        "preprocess=..., which makes them."
    )
