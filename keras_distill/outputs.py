"""What a model's outputs are: of which kind, and whether logits or probabilities.

The kind is what the numbers of an output describe: "softmax", classes that exclude each
other; "sigmoid", yes/no questions; "values", real numbers. Everything asks here. One output
has one answer; several have a dict of answers by key: the name in a dict, the index in a list.

Treating a softmax's output as logits is the commonest silent error of distillation:
every model of `keras.applications` ends in one.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Collection, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill.arguments import check_from_logits, check_output_kinds
from keras_distill.keras_compat import logits_of
from keras_distill.last_layers import (
    LastLayer,
    kind_of_loss,
    last_layer,
    loss_name,
    symbolic_outputs,
)
from keras_distill.structures import (
    ModelOutputs,
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
    """
    layers = last_layers(model)
    if not layers:
        # A subclassed model may say it by an attribute of this name.
        return getattr(model, "outputs_are_logits", None)
    return single(
        {
            key: layer.is_logits if outputs is None or key in outputs else True
            for key, layer in layers.items()
        }
    )


def is_settled(from_logits: Any) -> bool:
    """Tells whether an answer of `gives_logits` or `kinds_of` leaves nothing open."""
    if isinstance(from_logits, dict):
        return None not in from_logits.values()
    return from_logits is not None


def said_or_found(
    said: Any, model: Any, outputs: Collection | None, argument: str = "from_logits"
) -> Any:
    """Returns whether a model gives logits: what the user says of it, or its layers.

    Args:
        said: bool, or a dict of bools by output name; `None` to ask the layers.
        model: any model; `None` where there is none.
        outputs: keys of the outputs that matter, as in `gives_logits`.
        argument: by which it was said, for the error.

    Raises:
        ValueError: if it is neither, or the last layer plainly says otherwise.
    """
    said = by_key(check_from_logits(argument, said), model, argument)
    if model is None:
        return said
    found = gives_logits(model, outputs)
    if said is None:
        return found
    for key, (is_logits, layer) in _plainly_said(model).items():
        ours = answer_for(said, key)
        matters = outputs is None or key in outputs
        if matters and ours is not None and ours is not is_logits:
            name = "" if key is None else f" of output {key!r}"
            kind = "logits" if is_logits else "probabilities"
            raise ValueError(
                f"{argument} is {ours}, but the last layer {layer!r}{name} of "
                f"{model.name!r} gives {kind}; leave {argument} out."
            )
    keys, _ = keys_of(model)
    if not isinstance(said, dict) or keys == [None]:
        return said
    # What is left out is found out.
    return {key: said.get(key, answer_for(found, key)) for key in keys}


def _plainly_said(model: Any) -> dict[Any, tuple[bool, str]]:
    """Returns what no user can say otherwise, by output, and the layer that shows it.

    A layer that is not Keras's own may be called like one and do something else.
    """
    layers = last_layers(model)
    if not layers:
        answer = getattr(model, "outputs_are_logits", None)
        return {} if answer is None else {None: (answer, type(model).__name__)}
    return {
        key: (layer.is_logits, layer.name)
        for key, layer in layers.items()
        if layer.is_plain and layer.is_logits is not None
    }


def to_logits(outputs: Any, from_logits: Any, kinds: Any = "softmax") -> Any:
    """Returns logits for outputs that are logits or probabilities; values as they are.

    Probabilities made by a softmax or sigmoid in the same graph give back the logits they
    were made from, exactly. Others give their logarithm, which is the logits up to a constant
    that a softmax removes, cut off below 1e-38; or, of a sigmoid, `log(p / (1 - p))`, cut off
    where float32 has no number between p and 1.

    Args:
        outputs: `(batch, ..., classes)`, or a dict or list of such.
        from_logits: bool, whether they are logits already; or a dict of bools by the
            output's key.
        kinds: of the outputs, or a dict of them by key. Default "softmax".

    Returns:
        The same structure.
    """
    if from_logits is True or kinds == "values":
        return outputs
    logits = {
        key: output
        if answer_for(from_logits, key) or answer_for(kinds, key) == "values"
        else _logits_of_probabilities(output, answer_for(kinds, key))
        for key, output in by_output(outputs)
    }
    if not has_several(outputs):
        return logits[None]
    return logits if isinstance(outputs, dict) else list(logits.values())


_TINY = float(np.finfo("float32").tiny)
_LEAST_NO = 2.0**-25  # half of what float32 has between 1 and the number before it


def _logits_of_probabilities(probabilities: Any, kind: str | None) -> Any:
    logits = logits_of(probabilities)
    if logits is not probabilities:
        return logits
    p = ops.cast(probabilities, "float32")
    log_p = ops.log(ops.maximum(p, _TINY))
    return (
        log_p - ops.log(ops.maximum(1.0 - p, _LEAST_NO)) if kind == "sigmoid" else log_p
    )


def to_probabilities(logits: Any, kinds: Any) -> Any:
    """Returns probabilities for logits at T = 1; values as they are.

    Args:
        logits: `(batch, ..., classes)`, or a dict or list of such.
        kinds: of the outputs, or a dict of them by key.
    """
    functions = {"softmax": ops.softmax, "sigmoid": ops.sigmoid}
    found = {
        key: functions.get(answer_for(kinds, key), lambda value: value)(one)
        for key, one in by_output(logits)
    }
    if not has_several(logits):
        return found[None]
    return found if isinstance(logits, dict) else list(found.values())


def as_pairs(logits: Any) -> Any:
    """Returns the logits of K yes/no questions as those of K softmaxes over [no, yes].

    Args:
        logits: `(..., K)`.

    Returns:
        `(..., K, 2)`, `[0, z]`: the same probabilities at any temperature.
    """
    return ops.stack([ops.zeros_like(logits), logits], -1)


def in_form_of(logits: Any, ours: tuple, kind: str | None) -> Any:
    """Returns a teacher's logits in the form of the student's: one yes/no, or two classes.

    Args:
        logits: `(batch, ..., classes)`.
        ours: shape of the student's output.
        kind: of the student's output.
    """
    if not hasattr(logits, "shape") or kind not in ("softmax", "sigmoid"):
        return logits
    theirs = logits.shape[-1]
    if kind == "softmax" and ours[-1] == 2 and theirs == 1:
        return as_pairs(logits)[..., 0, :]
    if kind == "sigmoid" and ours[-1] == 1 and theirs == 2:
        return logits[..., 1:] - logits[..., :1]
    return logits


def in_students_form(
    teacher: ModelOutputs | None, y_pred: Any, kinds: Any
) -> ModelOutputs | None:
    """Returns a teacher's answer with its logits in the form of the student's outputs.

    Args:
        teacher: its answer.
        y_pred: the student's outputs.
        kinds: of these.
    """
    if teacher is None or not ({"softmax", "sigmoid"} & _among(kinds)):
        return teacher
    ours = {key: tuple(output.shape) for key, output in by_output(y_pred)}
    found = {
        key: in_form_of(one, ours[key], answer_for(kinds, key)) if key in ours else one
        for key, one in by_output(teacher.logits)
    }
    logits = teacher.logits
    if not has_several(logits):
        return teacher._replace(logits=found[None])
    whole = found if isinstance(logits, dict) else type(logits)(found.values())
    return teacher._replace(logits=whole)


def _among(kinds: Any) -> set:
    return set(kinds.values()) if isinstance(kinds, dict) else {kinds}


def kind_of_other(kind: str | None, ours: tuple, theirs: tuple) -> str | None:
    """Returns the kind of another model's output that teaches one of ours.

    That of ours, unless one is a yes/no and the other its two classes.

    Args:
        kind: of our output.
        ours: its shape.
        theirs: the shape of the other's.
    """
    if kind == "softmax" and theirs[-1:] == (1,) and ours[-1:] == (2,):
        return "sigmoid"
    if kind == "sigmoid" and theirs[-1:] == (2,) and ours[-1:] == (1,):
        return "softmax"
    return kind


def settle(
    outputs: Any, from_logits: Any, who: str, argument: str, kinds: Any = None
) -> Any:
    """Settles from values what the layers left open, and says so in a warning.

    Args:
        outputs: concrete `(batch, ..., classes)`, or a dict or list of such.
        from_logits: an answer of `gives_logits`.
        who: "teacher" or "student", for the message.
        argument: the argument by which the user can say it, for the message.
        kinds: of the outputs, as far as they are known.

    Returns:
        The answer with each `None` replaced: by `False` if every row of the output is
        >= 0 and sums to 1, or for a sigmoid if all is from 0 to 1; else by `True`.
    """
    if is_settled(from_logits):
        return from_logits
    known = from_logits if isinstance(from_logits, dict) else {}
    found = {}
    for key, output in by_output(outputs):
        name = who if key is None else f"{who}'s output {key!r}"
        found[key] = known.get(key)
        if found[key] is None:
            kind = answer_for(kinds, key)
            found[key] = _values_are_logits(output, name, argument, kind)
    return found if has_several(outputs) else found[None]


def look_like_probabilities(outputs: Any, kind: str | None = None) -> bool:
    """Tells whether every row of concrete outputs is >= 0 and sums to 1.

    Of a sigmoid, whether every number is from 0 to 1.
    """
    outputs = ops.convert_to_tensor(outputs)
    is_half = keras.backend.standardize_dtype(outputs.dtype) in ("float16", "bfloat16")
    values = ops.convert_to_numpy(ops.cast(outputs, "float32"))
    if kind == "sigmoid":
        return bool(((values >= 0.0) & (values <= 1.0)).all())
    sums_to_one = np.allclose(values.sum(-1), 1.0, atol=2e-2 if is_half else 1e-3)
    return bool(values.min() >= 0.0 and sums_to_one)


class NotToldApartError(ValueError):
    """Answers may be a sigmoid's probabilities, or logits."""


def check_told_apart(outputs: Any, from_logits: Any, kinds: Any, who: str) -> None:
    """Refuses answers that may be a sigmoid's probabilities, or logits.

    Args:
        outputs: concrete, `(batch, ..., classes)`, or a dict or list of such.
        from_logits: whether they are logits, as far as it is known.
        kinds: of them, as far as they are known.
        who: gave them, for the error.

    Raises:
        NotToldApartError: if nothing says what they are, and they are all from 0 to 1.
    """
    for key, part in by_output(outputs):
        if (
            answer_for(from_logits, key) is None
            and answer_for(kinds, key) is None
            and look_like_probabilities(part, "sigmoid")
            and not look_like_probabilities(part)
        ):
            name = "" if key is None else f" of output {key!r}"
            raise NotToldApartError(
                f"the answers of the {who}{name} on the first batch are all from 0 to 1 and "
                "do not sum to 1: probabilities of yes/no questions, values or logits. Say "
                'which: output_kinds="sigmoid" with teacher_from_logits=False; '
                'output_kinds="values"; or teacher_from_logits=True.'
            )


def kinds_of_probabilities(outputs: Any, from_logits: Any, kinds: Any) -> Any:
    """Returns the kinds of outputs, those of probabilities that were open found by values.

    A softmax's rows sum to 1; others are a sigmoid's.

    Args:
        outputs: concrete, `(batch, ..., classes)`, or a dict or list of such.
        from_logits: whether they are logits.
        kinds: as far as they are known.
    """
    found = {key: answer_for(kinds, key) for key, _ in by_output(outputs)}
    for key, output in by_output(outputs):
        if found[key] is None and answer_for(from_logits, key) is False:
            is_softmax = look_like_probabilities(output)
            found[key] = "softmax" if is_softmax else "sigmoid"
    return single(found)


def _values_are_logits(outputs: Any, who: str, argument: str, kind: str | None) -> bool:
    if kind == "values":
        return True
    are_probabilities = look_like_probabilities(outputs, kind)
    what = "probabilities" if are_probabilities else "logits"
    reason = "are >= 0 and sum to 1" if are_probabilities else "do not sum to 1"
    if kind == "sigmoid":
        reason = f"are {'' if are_probabilities else 'not '}all from 0 to 1"
    warnings.warn(
        f"the layers of the {who} do not say whether it gives logits or probabilities; "
        f"its values on the first batch {reason}, so they are taken as {what}. Pass "
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
