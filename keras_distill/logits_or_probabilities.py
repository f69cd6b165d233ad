"""Whether outputs are logits or probabilities, and each from the other."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.arguments import check_from_logits
from keras_distill.keras_compat import logits_of
from keras_distill.outputs import last_layers
from keras_distill.structures import (
    ModelOutputs,
    answer_for,
    by_key,
    by_output,
    has_several,
    keys_of,
    single,
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
