"""What a model's outputs are: logits or probabilities; one, or a dict or list of them.

Treating a softmax's output as logits is the commonest silent error of distillation:
every model of `keras.applications` ends in one.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill.arguments import check_from_logits
from keras_distill.keras_compat import logits_of, made_by
from keras_distill.several_logits import ONE_OUTPUT


class ModelOutputs(NamedTuple):
    """What one model says about a batch.

    Attributes:
        outputs: as the model gives them, a tensor or a dict or list of them.
        logits: the same structure as logits.
        layers: outputs of the matched hidden layers, by name.
    """

    outputs: Any
    logits: Any
    layers: dict[str, Any]


def has_several(structure: Any) -> bool:
    """Tells whether this is a dict or list of outputs, as opposed to a single one."""
    is_nest = isinstance(structure, (dict, list, tuple))
    return is_nest and not isinstance(structure, ONE_OUTPUT)


def by_output(structure: Any) -> Iterator[tuple[Any, Any]]:
    """Yields `(key, value)` of a dict, list or single output; a single one has no key."""
    if isinstance(structure, dict):
        yield from structure.items()
    elif has_several(structure):
        yield from enumerate(structure)
    else:
        yield None, structure


def each_output(function: Callable[[Any], Any], structure: Any) -> Any:
    """Returns the structure with a function of each output in its place."""
    if isinstance(structure, dict):
        return {key: function(output) for key, output in structure.items()}
    if has_several(structure):
        return type(structure)(map(function, structure))
    return function(structure)


def at(structure: Any, key: Any) -> Any:
    """Returns one output of a structure; all of it for `...` or a single output."""
    if key is None or key is ... or not has_several(structure):
        return structure
    return structure[key]


# Layers that pass on what they are given, so that the one before them decides.
_PASSES_ON = (
    keras.layers.Dropout,
    keras.layers.Identity,
    keras.layers.Reshape,
    keras.layers.Flatten,
)


_SOFTMAX = (keras.activations.softmax, keras.ops.softmax, tf.nn.softmax)


_SIGMOID = (keras.activations.sigmoid, keras.ops.sigmoid, tf.nn.sigmoid)


_LOGITS = (
    keras.activations.linear,
    keras.activations.log_softmax,
    keras.ops.log_softmax,
    tf.nn.log_softmax,
)


def gives_logits(model: Any, outputs: Collection | None = None) -> Any:
    """Tells from a model's last layers whether its outputs are logits.

    Args:
        model: any model; a subclassed one does not say, unless it has an attribute
            `outputs_are_logits`, a bool.
        outputs: keys of the outputs that matter; the others, which may be features,
            are answered by `True`: they are left as they are. `None` for all.

    Returns:
        `True` for logits, `False` for probabilities, `None` where the layers do not
        say (a subclassed model, a Lambda layer, an activation that is not known). If
        several outputs differ, a dict of these answers by the output's key.

    Raises:
        ValueError: if an output that matters ends in a sigmoid, whose classes do not
            exclude each other, so that there is no softmax to distil.
    """
    if not getattr(model, "outputs", None):
        # A subclassed model may say it by an attribute of this name.
        return getattr(model, "outputs_are_logits", None)
    answers = {
        key: (outputs is not None and key not in outputs)
        or _is_logits(output, model.name)
        for key, output in by_output(symbolic_outputs(model))
    }
    first = next(iter(answers.values()))
    return first if all(answer is first for answer in answers.values()) else answers


def symbolic_outputs(model: keras.Model) -> Any:
    """Returns the outputs of a built model in the structure that a batch has."""
    outputs = model.outputs if isinstance(model, keras.Sequential) else model.output
    is_list_of_one = isinstance(outputs, (list, tuple)) and len(outputs) == 1
    return outputs[0] if is_list_of_one else outputs


def is_settled(from_logits: Any) -> bool:
    """Tells whether an answer of `gives_logits` leaves nothing open."""
    if isinstance(from_logits, dict):
        return None not in from_logits.values()
    return from_logits is not None


def said_or_found(
    said: Any, model: Any, outputs: Collection | None, argument: str = "from_logits"
) -> Any:
    """Returns whether a model gives logits: what the user says of it, or its layers.

    Args:
        said: bool, or a dict of bools by output; `None` to ask the layers.
        model: any model; `None` where there is none.
        outputs: keys of the outputs that matter, as in `gives_logits`.
        argument: by which it was said, for the error.

    Raises:
        ValueError: if it is neither, or the last layer plainly says otherwise.
    """
    said = check_from_logits(argument, said)
    if model is None:
        return said
    if said is None:
        return gives_logits(model, outputs)
    for key, (is_logits, layer) in _plainly_said(model).items():
        ours = said.get(key) if isinstance(said, dict) else said
        matters = outputs is None or key in outputs
        if matters and ours is not None and ours is not is_logits:
            name = "" if key is None else f" of output {key!r}"
            kind = "logits" if is_logits else "probabilities"
            raise ValueError(
                f"{argument} is {ours}, but the last layer {layer!r}{name} of "
                f"{model.name!r} gives {kind}; leave {argument} out."
            )
    return said


def _plainly_said(model: Any) -> dict[Any, tuple[bool, str]]:
    """Returns what no user can say otherwise, by output, and the layer that shows it.

    A layer that is not Keras's own may be called like one and do something else.
    """
    if not getattr(model, "outputs", None):
        answer = getattr(model, "outputs_are_logits", None)
        return {} if answer is None else {None: (answer, type(model).__name__)}
    found = {}
    for key, output in by_output(symbolic_outputs(model)):
        layer = _decided_by(output)
        of_keras = type(layer).__module__.startswith("keras.")
        says_so = getattr(layer, "outputs_are_logits", None) is not None
        last = (-1, len(output.shape) - 1)
        if (of_keras and getattr(layer, "axis", -1) in last) or says_so:
            with contextlib.suppress(ValueError):  # a sigmoid
                answer = _is_logits(output, model.name)
                if answer is not None:
                    found[key] = answer, layer.name
    return found


def _decided_by(tensor: Any) -> Any:
    """Returns the layer or operation that says what a symbolic output is, or `None`."""
    operation, tensor_index, inputs = made_by(tensor)
    if isinstance(operation, keras.Model):
        outputs = getattr(operation, "outputs", None)
        return _decided_by(outputs[tensor_index]) if outputs else None
    if isinstance(operation, _PASSES_ON) or (
        isinstance(operation, keras.layers.Activation)
        and operation.activation is keras.activations.linear
    ):
        return _decided_by(inputs[0])
    if isinstance(operation, keras.layers.TimeDistributed):
        return operation.layer
    return operation


def _is_logits(tensor: Any, model_name: str) -> bool | None:
    operation = _decided_by(tensor)
    if operation is None or isinstance(operation, keras.layers.InputLayer):
        return None
    # The layer, or the operation of keras.ops.
    if type(operation).__name__ == "Softmax":
        return False
    return _activation_answer(operation, model_name)


def _activation_answer(layer: Any, model_name: str) -> bool | None:
    said = getattr(layer, "outputs_are_logits", None)
    if said is not None:
        return said
    activation = getattr(layer, "activation", None)
    if activation is None or isinstance(layer, keras.layers.RNN):
        return None
    if activation in _SIGMOID:
        raise ValueError(
            f"the last layer {layer.name!r} of {model_name!r} is a sigmoid: its classes "
            "do not exclude each other, so there is no softmax over them. Give a model "
            "that ends in logits or softmax (for two classes: two outputs), or say "
            "from_logits yourself."
        )
    if activation in _SOFTMAX:
        return False
    return True if activation in _LOGITS else None


def to_logits(outputs: Any, from_logits: Any) -> Any:
    """Returns logits for outputs that are logits or probabilities.

    Probabilities made by a Keras softmax in the same trace give back the logits they
    were made from, exactly. Others give their logarithm, which is the logits up to a
    constant that a softmax removes; below 1e-38 it is cut off, as float32 is.

    Args:
        outputs: `(batch, ..., classes)`, or a dict or list of such.
        from_logits: bool, whether they are logits already; or a dict of bools by the
            output's key.

    Returns:
        The same structure.
    """
    if from_logits is True:
        return outputs
    if from_logits is False:
        return keras.tree.map_structure(_log_probabilities, outputs)
    logits = {
        key: output if from_logits[key] else _log_probabilities(output)
        for key, output in by_output(outputs)
    }
    return logits if isinstance(outputs, dict) else list(logits.values())


def _log_probabilities(probabilities: Any) -> Any:
    logits = logits_of(probabilities)
    if logits is not probabilities:
        return logits
    tiny = float(np.finfo("float32").tiny)
    return ops.log(ops.maximum(ops.cast(probabilities, "float32"), tiny))


def settle(outputs: Any, from_logits: Any, who: str, argument: str) -> Any:
    """Settles from values what the layers left open, and says so in a warning.

    Args:
        outputs: concrete `(batch, ..., classes)`, or a dict or list of such.
        from_logits: an answer of `gives_logits`.
        who: "teacher" or "student", for the message.
        argument: the argument by which the user can say it, for the message.

    Returns:
        The answer with each `None` replaced: by `False` if every row of the output is
        >= 0 and sums to 1, else by `True`.
    """
    if is_settled(from_logits):
        return from_logits
    if not isinstance(outputs, (dict, list, tuple)):
        return _values_are_logits(outputs, who, argument)
    known = from_logits or {}
    return {
        key: _values_are_logits(output, f"{who}'s output {key!r}", argument)
        if known.get(key) is None
        else known[key]
        for key, output in by_output(outputs)
    }


def look_like_probabilities(outputs: Any) -> bool:
    """Tells whether every row of concrete outputs is >= 0 and sums to 1."""
    outputs = ops.convert_to_tensor(outputs)
    is_half = keras.backend.standardize_dtype(outputs.dtype) in ("float16", "bfloat16")
    values = ops.convert_to_numpy(ops.cast(outputs, "float32"))
    sums_to_one = np.allclose(values.sum(-1), 1.0, atol=2e-2 if is_half else 1e-3)
    return bool(values.min() >= 0.0 and sums_to_one)


def _values_are_logits(outputs: Any, who: str, argument: str) -> bool:
    are_probabilities = look_like_probabilities(outputs)
    kind = "probabilities" if are_probabilities else "logits"
    reason = "are >= 0 and sum to 1" if are_probabilities else "do not sum to 1"
    warnings.warn(
        f"the layers of the {who} do not say whether it gives logits or probabilities; "
        f"its values on the first batch {reason}, so they are taken as {kind}. Pass "
        f"{argument}={not are_probabilities} to settle it.",
        UserWarning,
        stacklevel=2,
    )
    return not are_probabilities


def shapes_of(model: keras.Model) -> dict[Any, tuple]:
    """Returns the shape of each output, by its key; {} if unknown."""
    if not getattr(model, "outputs", None):
        return {}
    return {key: tuple(out.shape) for key, out in by_output(symbolic_outputs(model))}
