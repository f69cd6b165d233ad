"""What a model's outputs are: of which kind, and whether logits or probabilities.

The kind is what the numbers of an output describe: "softmax", classes that exclude each
other; "sigmoid", yes/no questions; "values", real numbers. Everything asks here. One output
has one answer; several have a dict of answers by key: the name in a dict, the index in a list.

Treating a softmax's output as logits is the commonest silent error of distillation:
every model of `keras.applications` ends in one.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill.arguments import check_output_kinds
from keras_distill.last_layers import (
    LastLayer,
    kind_of_loss,
    last_layer,
    loss_name,
    symbolic_outputs,
)
from keras_distill.structures import (
    answer_for,
    by_key,
    by_output,
    has_several,
    keyed,
    keys_of,
    single,
)

# Kinds -------------------------------------------------------------------------------


def kinds_of(
    model: Any,
    loss: Any = None,
    said: Any = None,
    outputs: Collection | None = None,
    argument: str = "output_kinds",
) -> Any:
    """Returns the kind of each output, found from its last layer and its loss.

    A softmax or sigmoid says its own; a layer that gives logits leaves it to the loss: a
    categorical cross-entropy is for "softmax", a binary one for "sigmoid", any other of Keras
    for "values".

    Args:
        model: any; a subclassed one says nothing, unless it has an attribute `output_kinds`.
            `None` where there is none.
        loss: as given to `compile`; `None` (default) takes that which the model was compiled
            with, which does not contradict a last layer that says its kind, or what a
            `Distiller` has found of its student.
        said: by the user: a kind, or a dict of kinds by output name; `None` for nothing.
        outputs: keys of the outputs that matter; the others have no kind. `None` for all.
        argument: by which it was said, for the error.

    Returns:
        A kind, or `None` where nothing says it; a dict of these by key, where they differ.

    Raises:
        ValueError: if last layer, loss and what was said contradict each other.
    """
    said = by_key(check_output_kinds(argument, said), model, argument)
    is_at_hand = loss is not None
    if not is_at_hand:
        loss = getattr(model, "loss", None)
    if said is None:
        said = check_output_kinds("output_kinds", getattr(model, "output_kinds", None))
    remembered = None if is_at_hand or model is None else _FOUND.get(model)
    losses = losses_by_key(model, loss)
    for one in (said, remembered):
        if list(losses) == [None] and isinstance(one, dict):
            losses = dict.fromkeys(one, loss)
    layers = last_layers(model)
    found = {
        key: _kind(
            layers.get(key),
            one if is_at_hand or not _says_kind(layers.get(key)) else None,
            answer_for(said, key) or answer_for(remembered, key),
            "" if key is None else f" of output {key!r}",
            argument,
        )
        if outputs is None or key in outputs
        else None
        for key, one in losses.items()
    }
    # Of a model that does not say its outputs there may be others.
    return found if not layers and None not in found else single(found)


def losses_by_key(model: Any, loss: Any) -> dict:
    """Returns the loss of each output, by its key, as far as the outputs are known."""
    keys, names = keys_of(model)
    if keys == [None] and not names and has_several(loss):
        return dict(by_output(loss))
    return keyed(loss, keys, names, "loss")


#: What distillers have found of students, which are not compiled themselves, and what was
#: handed on.
_FOUND: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def remember_kinds(model: Any, kinds: Any, loss: Any) -> None:
    """Keeps the kinds of a model's outputs for as long as it lives in this process.

    Args:
        model: any.
        kinds: of the outputs that are distilled; the others are what layer and loss say.
        loss: as given to `compile`.
    """
    layers, losses = last_layers(model), losses_by_key(model, loss)
    _FOUND[model] = single(
        {
            key: answer_for(kinds, key)
            or kind_unless_open(layers.get(key), losses.get(key))
            for key in (kinds if isinstance(kinds, dict) else losses)
        }
    )


def hand_on_kinds(kinds: Any, model: Any) -> None:
    """Keeps the kinds of a model's outputs, until a distiller finds them or `None` is given.

    Args:
        kinds: of `kinds_of` another model with the same outputs.
        model: any.
    """
    if kinds is None:
        _FOUND.pop(model, None)
    else:
        _FOUND[model] = kinds


def kind_unless_open(layer: LastLayer | None, loss: Any) -> str | None:
    """Returns the kind that layer or loss says; `None` where only labels would say it."""
    of_layer, of_loss = None if layer is None else layer.kind, kind_of_loss(loss)
    if of_layer in (None, "values"):
        return of_loss or of_layer
    return None if of_loss == "values" else of_layer


def _says_kind(layer: LastLayer | None) -> bool:
    return layer is not None and layer.kind in ("softmax", "sigmoid")


def last_layers(model: Any) -> dict[Any, LastLayer]:
    """Returns what the last layers of a model say, by output; {} if they are not known."""
    if not getattr(model, "outputs", None):
        return {}
    return {key: last_layer(one) for key, one in by_output(symbolic_outputs(model))}


def _kind(
    layer: LastLayer | None, loss: Any, said: str | None, where: str, argument: str
) -> str | None:
    of_layer = None if layer is None else layer.kind
    of_loss = kind_of_loss(loss)
    axis = -1 if layer is None else layer.axis
    if layer is not None and of_loss == "softmax" and axis == -1:
        axis = getattr(loss, "axis", -1)
        axis = -1 if axis == layer.axes - 1 else axis
    if layer is not None and axis != -1:
        if "softmax" in (said, of_loss):
            raise ValueError(
                f"the classes{where} are on axis {axis} by the last layer {layer.name!r} or "
                "the loss, and must be on the last one; move them there by "
                "keras.layers.Permute before the softmax, and leave axis out."
            )
        if of_loss != "sigmoid":  # which contradicts a softmax over any axis
            return said or "values"
    for kind, one, takes in (
        ("softmax", "sigmoid", "each class for a yes/no question of its own"),
        ("sigmoid", "softmax", "the classes for ones that exclude each other"),
    ):
        if of_layer == kind and one in (said, of_loss):
            assert layer is not None
            other = "sigmoid" if kind == "softmax" else "softmax"
            what = (
                f"{argument} says {said!r}"
                if said == one
                else f"loss {loss_name(loss)} takes {takes}"
            )
            fit = "categorical" if kind == "softmax" else "binary"
            if said == kind:  # the user knows
                continue
            raise ValueError(
                f"the last layer {layer.name!r}{where} is a {kind}, but {what}; end the "
                f"model in a {other}, or use a {fit} cross-entropy."
            )
        if said == kind and of_loss == one and of_layer in (None, "values"):
            raise ValueError(
                f"{argument}{where} says {said!r}, but loss {loss_name(loss)} takes {takes}; "
                "use a loss for that kind of output, or leave it out."
            )
    if said is not None or of_layer in (None, "values"):
        return said or of_loss or of_layer
    # Values between 0 and 1, or the probability of a yes: the labels say.
    return None if (of_layer, of_loss) == ("sigmoid", "values") else of_layer


def settled_kinds(kinds: Any, shapes: dict, model: Any, y: Any, argument: str) -> Any:
    """Returns the kinds with each that was left open, settled by the labels.

    Integer or one-hot labels are for "softmax", labels of 0 and 1 for several questions at
    once, or for a single output, for "sigmoid", others for "values". Without labels, a
    sigmoid is one, and two or more outputs are a softmax's.

    Args:
        kinds: of `kinds_of`.
        shapes: of the outputs, by key.
        model: whose outputs they are.
        y: labels, in the structure of the outputs; `None` for none.
        argument: by which a kind can be said, for the error.

    Raises:
        ValueError: if there is a single output of which nothing says what it is.
    """
    layers, labels = last_layers(model), dict(by_output(y))
    return single(
        {
            key: answer_for(kinds, key)
            or _kind_by_labels(shape, layers.get(key), labels.get(key), key, argument)
            for key, shape in shapes.items()
        }
    )


def _kind_by_labels(
    shape: tuple, layer: LastLayer | None, y: Any, key: Any, argument: str
) -> str:
    if y is None or not hasattr(y, "__array__") or tf.is_symbolic_tensor(y):
        if layer is not None and layer.kind is not None:
            return layer.kind
        if len(shape) > 1 and shape[-1] != 1:
            return "softmax"
        name = "" if key is None else f" {key!r}"
        raise ValueError(
            f"nothing says what the single number of the output{name} is: a yes/no question "
            'or a value. Compile with a loss for it, or say output_kinds="sigmoid" or '
            f'"values" ({argument}).'
        )
    y = np.asarray(y)
    if y.dtype.kind not in "iufb" and y.dtype.name != "bfloat16":
        return "softmax"  # refused elsewhere, in words
    y = y.astype("float64")
    is_yes_or_no = bool(np.isin(y, (0.0, 1.0)).all())
    if len(shape) < 2 or shape[-1] == 1:
        return "sigmoid" if is_yes_or_no else "values"
    if y.ndim == len(shape) and y.shape[-1] == shape[-1]:
        if bool((y >= 0).all()) and np.allclose(y.sum(-1), 1.0, atol=1e-2):
            return "softmax"
        return "sigmoid" if is_yes_or_no else "values"
    return "softmax"


def agreed_kinds(ours: Any, theirs: Any, who: str, keys: Sequence) -> Any:
    """Returns our kinds, those left open taken from another model.

    Args:
        ours: the student's, of `kinds_of`.
        theirs: the teacher's, likewise.
        who: says theirs, for the error.
        keys: of the outputs.

    Raises:
        ValueError: if they contradict each other.
    """
    found = {}
    for key in keys:
        our, their = answer_for(ours, key), answer_for(theirs, key)
        # One yes/no and two classes mean the same; shapes are compared elsewhere.
        if our and their and our != their and "values" in (our, their):
            name = "" if key is None else f" of output {key!r}"
            raise ValueError(
                f"the student's numbers{name} are of the kind {our!r} and {who} {their!r}: "
                "what they say cannot be matched. Use one loss for both, or say "
                "output_kinds=."
            )
        found[key] = our or their
    return single(found)


# Logits or probabilities -------------------------------------------------------------


def shapes_of(model: keras.Model) -> dict[Any, tuple]:
    """Returns the shape of each output, by its key; {} if unknown."""
    if not getattr(model, "outputs", None):
        return {}
    return {key: tuple(out.shape) for key, out in by_output(symbolic_outputs(model))}
