"""What a student's outputs are: said by its loss, its last layers, the labels, the teacher."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.last_layers import judges_direction, kind_of_loss, symbolic_outputs
from keras_distill.logits_or_probabilities import (
    gives_logits,
    is_settled,
    kind_of_other,
    settle,
)
from keras_distill.model_pairs import (
    OF_ONE,
    check_loss_takes_outputs,
    check_same_kinds,
    check_same_shapes,
)
from keras_distill.outputs import (
    agreed_kinds,
    kinds_of,
    last_layers,
    losses_by_key,
    remember_kinds,
    settled_kinds,
    shapes_of,
)
from keras_distill.soft_targets.distillation_inputs import kinds_taught
from keras_distill.step_state import StepState
from keras_distill.structures import (
    answer_for,
    by_output,
    in_structure_of,
    keyed,
    keys_of,
    single,
)
from keras_distill.top_k import TopKLogits


def known_outputs(student: keras.Model, state: StepState) -> Any:
    """Returns symbolic outputs, or `None` where only a batch will say them."""
    if state.student_outputs is None and getattr(student, "outputs", None):
        state.student_outputs = symbolic_outputs(student)
    return state.student_outputs


def outputs_on(student: keras.Model, state: StepState, inputs: Any) -> Any:
    """Returns symbolic outputs, seen on a batch only where nothing else says them."""
    if known_outputs(student, state) is None:
        outputs = student(_as_tensors(inputs), training=False)
        state.student_outputs = keras.tree.map_structure(
            lambda out: keras.KerasTensor((None, *out.shape[1:]), out.dtype), outputs
        )
    return state.student_outputs


def settle_logits(student: keras.Model, state: StepState, inputs: Any) -> None:
    """Settles on a batch whether the student gives logits, where nothing else says it."""
    known = state.student_from_logits
    if known is None:  # its layers may say it now that it is built
        known = gives_logits(student, state.matching.outputs_with_classes)
    if not is_settled(known):
        outputs = student(_as_tensors(inputs), training=False)
        kinds = state.matching.kinds
        known = settle(outputs, known, "student", "student_from_logits", kinds)
    state.student_from_logits = known


def _as_tensors(inputs: Any) -> Any:
    return keras.tree.map_structure(ops.convert_to_tensor, inputs)


def find_kinds(
    student: keras.Model,
    state: StepState,
    loss: Any,
    y: Any = None,
    shapes: dict | None = None,
    taught: dict | None = None,
) -> None:
    """Finds what each output is, as far as it is known; a first batch settles the rest.

    Args:
        student: any.
        state: of the distiller.
        loss: as given to `compile`.
        y: labels of the first batch, or of all the data.
        shapes: of the student's outputs, by key; `None` before a first batch was seen.
        taught: kind that cached soft targets teach, by output.

    Raises:
        ValueError: if layers, losses, labels and the teacher contradict each other.
    """
    matching, teacher = state.matching, state.teacher
    matched = matching.outputs_with_classes
    known = shapes_of(student) if shapes is None else shapes
    if shapes is None and teacher is not None:
        teacher.forget_kinds()  # those of an earlier loss
    if shapes is None or not state.kinds_settled:
        kinds: Any = kinds_of(student, loss, state.output_kinds, matched)
        losses = losses_by_key(student, loss)
        keys = list(known) or list(losses)
        matching.directions = {k for k, one in losses.items() if judges_direction(one)}
        compared = matching.kinds_compared()
        kinds = {
            key: answer_for(kinds, key) or _only(compared.get(key, compared.get(None)))
            for key in keys
        }
        if teacher is not None:
            # What was said is of both; what labels will say, no sigmoid of theirs does.
            layers, said = last_layers(student), state.output_kinds
            theirs = {
                key: None
                if answer_for(said, key) or _is_open(layers.get(key), losses.get(key))
                else kind_of_other(
                    answer_for(teacher.kinds, key),
                    teacher.shapes.get(key, ()),
                    known.get(key, ()),
                )
                for key in keys
            }
            kinds = agreed_kinds(kinds, theirs, "the teacher's are", keys)
        if taught:
            layers = last_layers(student)
            said_by = {
                key: kind
                for key, kind in taught.items()
                if not _is_open(layers.get(key), losses.get(key))
            }
            kinds = {key: answer_for(kinds, key) for key in keys}
            kinds = _or_taught(kinds, said_by, known)
        if shapes is not None:
            mine = {k: v for k, v in shapes.items() if matched is None or k in matched}
            settled = settled_kinds(kinds, mine, student, y, "of the Distiller")
            kinds = {
                key: answer_for(settled, key) if key in mine else None for key in keys
            }
            state.kinds_settled = True
        matching.kinds = single(kinds) if isinstance(kinds, dict) else kinds
        matching.check_kinds()
        if teacher is not None:
            teacher.take_values(matching.kinds)
        remember_kinds(student, matching.kinds, loss)
    if shapes is None:
        check_loss_takes_outputs(
            loss, state.student_from_logits, matching.kinds, matched
        )
    shapes_of_teacher = {} if teacher is None else teacher.shapes
    check_same_shapes(known, shapes_of_teacher, matched, matching.kinds)
    if teacher is not None:
        check_same_kinds(known, matching.kinds, shapes_of_teacher, teacher.kinds)


def _is_open(layer: Any, loss: Any) -> bool:
    """Tells whether only labels say if an output is a yes/no or a value between 0 and 1."""
    is_sigmoid = layer is not None and layer.kind == "sigmoid"
    return is_sigmoid and kind_of_loss(loss) == "values"


def _or_taught(kinds: dict, taught: dict, shapes: dict) -> dict:
    """Returns kinds, those left open as cached soft targets say them."""
    found = {}
    for key, kind in kinds.items():
        their = taught.get(key)
        if their == "softmax" and shapes.get(key, ())[-1:] == (1,):
            their = "sigmoid"  # one yes/no of its two classes
        found[key] = kind or (None if their == "logits" else their)
    return found


def hold_to_kinds(x: Any, student: keras.Model, state: StepState) -> None:
    """Refuses cached soft targets of another kind than the student's outputs.

    What nothing has said of these until now, the soft targets say.

    Args:
        x: of a batch, or its specs.
        student: any.
        state: of the distiller.

    Raises:
        ValueError: if what they say cannot be matched.
    """
    taught, matching = kinds_taught(x), state.matching
    if not taught:
        return
    outputs = known_outputs(student, state)
    shapes = {key: tuple(one.shape) for key, one in by_output(outputs)}
    matched, keys = matching.outputs_with_classes, list(taught)
    ours = {key: answer_for(matching.kinds, key) for key in keys}
    ours = _or_taught(ours, taught, shapes)
    targets = dict(by_output(x.soft_targets))
    for key in keys if matched is None else [key for key in keys if key in matched]:
        our, their, shape = ours[key], taught[key], shapes.get(key, ())
        count = keras.tree.flatten(targets[key])[0].shape[-1]
        name = "" if key is None else f" of output {key!r}"
        if our != "softmax" and isinstance(targets[key], TopKLogits):
            raise ValueError(
                f"these soft targets were cached with top_k, which is for classes that exclude "
                f"each other; the student's numbers{name} are of the kind {our!r}. Write them "
                "without top_k."
            )
        if our is None or their in (None, our):
            continue
        if their == "logits" and our != "values":
            continue
        # One yes/no and its two classes mean the same.
        is_unknown = not shape and "values" not in (our, their)
        if (*shape[-1:], count) in OF_ONE[our] or is_unknown:
            continue
        what = "cached as logits" if their == "logits" else f"of the kind {their!r}"
        raise ValueError(
            f"the student's numbers{name} are of the kind {our!r} and the cached soft targets "
            f"{what}: they cannot be matched. Compile the student with a loss for the same "
            "kind; or, if it is the teacher that was taken for another, write them anew with "
            f"SoftTargets.write(output_kinds={our!r})."
        )
    if matching.kinds is None or isinstance(matching.kinds, dict):
        matching.kinds = single({**ours, **(matching.kinds or {})})


def _only(kinds: Any) -> str | None:
    return kinds[0] if kinds and len(kinds) == 1 else None


def losses_by_output(student: keras.Model, loss: Any, weights: Any) -> tuple[Any, Any]:
    """Returns losses and their weights, given by output name, as Keras takes them.

    A loss left out is none, a weight left out is 1.

    Args:
        student: any.
        loss: as given to `compile`.
        weights: as given to `compile`.

    Raises:
        ValueError: if an output is named that there is not.
    """
    if isinstance(weights, dict):
        keys, names = keys_of(student)
        if keys != [None] or names:
            loss = dict(
                zip(keys, keyed(loss, keys, names, "loss").values(), strict=True)
            )
            weights = keyed(weights, keys, names, "loss_weights")
            weights = {k: 1.0 if w is None else w for k, w in weights.items()}
    loss = in_structure_of(loss, student, "loss")
    return loss, in_structure_of(weights, student, "loss_weights", 1.0)
