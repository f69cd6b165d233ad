"""The look at the first batch: what it tells before any training."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill import keras_compat
from keras_distill.arguments import check_model
from keras_distill.faults import check_labels, losses_that_check
from keras_distill.inputs import inputs_for
from keras_distill.last_layers import (
    judges_direction,
    kind_of_loss,
    loss_name,
    symbolic_outputs,
    takes_logits,
)
from keras_distill.losses.features import FeatureLoss, is_on_features
from keras_distill.losses.matching import check_mean_at_one_temperature
from keras_distill.losses.weights import class_weight_table
from keras_distill.outputs import (
    agreed_kinds,
    gives_logits,
    is_settled,
    kind_of_other,
    kinds_of,
    last_layers,
    look_like_probabilities,
    losses_by_key,
    remember_kinds,
    settle,
    settled_kinds,
    shapes_of,
)
from keras_distill.own_loss import has_own_loss
from keras_distill.reading import not_read
from keras_distill.resizing import is_map
from keras_distill.several_logits import MeanLogits, MemberLogits, one_mean
from keras_distill.sharing import (
    check_reads_nothing,
    check_shares_nothing,
    warn_of_order,
)
from keras_distill.soft_targets.distillation_inputs import (
    DistillationInputs,
    kinds_taught,
    without_soft_targets,
)
from keras_distill.step_state import StepState
from keras_distill.structures import (
    answer_for,
    by_output,
    has_several,
    in_structure_of,
    keyed,
    keys_of,
    single,
)
from keras_distill.teachers import nan_by_example, nan_in_inputs
from keras_distill.top_k import TopKLogits
from keras_distill.training_watch import EMPTY, NOT_FINITE, OTHER_ROWS

NOTHING_TEACHES = (
    "nothing teaches: the distiller has no teacher and the batches bring no soft "
    "targets. Pass teacher=... (after loading a distiller: distiller.teacher = ...), or "
    "join cached soft targets to the data."
)


NO_LABELS_TO_COMPARE_BY = (
    "the distillation loss compares by the label, as DecoupledLoss does, and the batches have "
    "no labels; give them, or use SoftTargetLoss."
)

CACHED_WITHOUT_LAYERS = (
    "the distillation loss matches hidden layers, which cached soft targets do not hold: give the "
    "distiller its teacher too."
)


def loss_of_labels(
    student: keras.Model, state: StepState, loss: Any, y: Any, shapes: dict
) -> Any:
    """Returns what labels are checked by: the loss, or else what a distillation loss takes."""
    by = state.matching.compared_by_label(list(shapes))
    if y is None or not by:
        return loss
    return losses_that_check(loss, losses_by_key(student, loss), y, shapes, by)


def check_first_batch(
    student: keras.Model,
    state: StepState,
    loss: Any,
    teacher_from_logits: Any,
    x: Any,
    y: Any,
    sample_weight: Any = None,
) -> None:
    """Refuses what a first batch shows to be wrong; settles what only it can tell.

    Args:
        student: built.
        state: of the distiller.
        loss: as given to `compile`.
        teacher_from_logits: as given to the distiller.
        x: of the batch.
        y: labels of the batch, or of all the data.
        sample_weight: likewise.

    Raises:
        ValueError: if it cannot be trained on, with what to do.
    """
    inputs = inputs_for(student, without_soft_targets(x), "student")
    outputs = _student_outputs(student, state, inputs)
    shapes = {key: tuple(output.shape) for key, output in by_output(outputs)}
    is_own = has_own_loss(student, loss)
    find_kinds(student, state, loss, None if is_own else y, shapes, kinds_taught(x))
    _settle_logits(student, state, inputs)
    matching = state.matching
    check_loss_takes_outputs(
        loss, state.student_from_logits, matching.kinds, matching.outputs_with_classes
    )
    _check_teaching(student, state, teacher_from_logits, shapes, x)
    check_shares_nothing(student, state.given_teacher)  # now that both are built
    if state.teacher is not None:
        warn_of_order(student, state.teacher)
    alpha = state.alpha.value
    if is_own and y is not None and not matching.takes_labels:
        return
    check_labels(
        y, shapes, loss_of_labels(student, state, loss, y, shapes), sample_weight
    )
    if y is None or is_own:
        if matching.takes_labels and alpha != 1.0:
            raise ValueError(NO_LABELS_TO_COMPARE_BY)
        if alpha == 1.0:
            raise ValueError(
                "the batches have no labels and alpha is 1.0, so there is nothing to "
                "learn; set alpha=0."
            )
        if alpha != 0.0 and not state.said_unlabelled:
            state.said_unlabelled = True
            warnings.warn(
                f"the batches have no labels, so alpha={alpha} has no hard loss to "
                "weigh: the loss is (1 - alpha) * soft_loss. Set alpha=0 to train on "
                "soft targets alone.",
                UserWarning,
                stacklevel=2,
            )
        return
    if loss is None and alpha != 0.0:
        overrides = type(student).compute_loss is not keras.Model.compute_loss
        raise ValueError(
            f"alpha is {alpha} but compile() was given no loss for the labels; give one, "
            "or set alpha=0."
            + " Or compile the student, for its own compute_loss."
            * overrides
        )
    if state.class_weight:
        if len(shapes) > 1:
            raise ValueError(
                "class_weight is for students with one output; give sample weights."
            )
        shape = next(iter(shapes.values()))
        class_weight_table(state.class_weight, shape, state.matching.kinds)


def known_outputs(student: keras.Model, state: StepState) -> Any:
    """Returns symbolic outputs, or `None` where only a batch will say them."""
    if state.student_outputs is None and getattr(student, "outputs", None):
        state.student_outputs = symbolic_outputs(student)
    return state.student_outputs


def _student_outputs(student: keras.Model, state: StepState, inputs: Any) -> Any:
    """Returns symbolic outputs, seen on a batch only where nothing else says them."""
    if known_outputs(student, state) is None:
        outputs = student(_as_tensors(inputs), training=False)
        state.student_outputs = keras.tree.map_structure(
            lambda out: keras.KerasTensor((None, *out.shape[1:]), out.dtype), outputs
        )
    return state.student_outputs


def _settle_logits(student: keras.Model, state: StepState, inputs: Any) -> None:
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
        if (*shape[-1:], count) in _OF_ONE[our] or is_unknown:
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


def cached_logits(cached: Any, state: StepState, temperature: Any) -> Any:
    """Returns the logits that cached answers stand for, by output.

    Args:
        cached: of a batch.
        state: of the distiller.
        temperature: float scalar > 0, that in force.
    """
    kinds, outputs = state.matching.kinds, state.student_outputs
    ours = {key: tuple(out.shape) for key, out in by_output(outputs)}
    means = {}
    for key, one in by_output(cached):
        theirs = one.logits if isinstance(one, MemberLogits) else one
        shape = tuple(getattr(theirs, "shape", ()))
        kind = kind_of_other(answer_for(kinds, key), ours.get(key, ()), shape)
        means[key] = one_mean(one, temperature, kind)
    if not has_several(cached):
        return means[None]
    return means if isinstance(cached, dict) else type(cached)(means.values())


def _check_teaching(
    student: keras.Model,
    state: StepState,
    from_logits: Any,
    student_shapes: dict,
    x: Any,
) -> None:
    cached = x.soft_targets if isinstance(x, DistillationInputs) else None
    teacher, matching = state.teacher, state.matching
    if cached is None and teacher is None:
        if state.alpha.value != 1.0:
            raise ValueError(NOTHING_TEACHES)
        return
    state.temperature.check_also(lambda number: None)
    if cached is not None:
        now = state.temperature.value_at(0)
        several, cached = cached, cached_logits(cached, state, now)
        hold_to_kinds(x, student, state)
        check_cached_are_logits(
            cached, from_logits, matching.kinds, bool(kinds_taught(x))
        )
        check_finite(x.layers, "batch 0")
        bind_features(state, x)
        check_top_k_can_be_matched(cached, matching.terms, state.temperature)
        check_cached_temperature(x, state)
        hold_to_temperature(several, state)
        answer: Any = cached
        shapes = {key: shape_of_logits(part) for key, part in by_output(cached)}
    elif teacher is None or teacher.has_answered:  # an earlier run has looked
        return
    else:
        inputs = keras.tree.map_structure(ops.convert_to_tensor, x)
        teacher.look_at(
            inputs, matching.outputs_with_classes, matching.kinds, student_shapes
        )
        if not teacher.accepts_nan and bool(
            ops.any(nan_by_example(teacher.inputs_of(inputs)))
        ):
            raise ValueError(nan_in_inputs("for batch 0"))
        bind_features(state, inputs)
        with tf.GradientTape() as tape:
            outputs = teacher(inputs, state.temperature.value_at(0))
        check_reads_nothing(student, tape.watched_variables())
        check_finite(outputs, "batch 0")
        answer = outputs.logits
        shapes = {key: tuple(part.shape) for key, part in by_output(answer)}
        teacher.has_answered = True
    check_rows(student, without_soft_targets(x), answer)
    check_same_shapes(
        student_shapes, shapes, matching.outputs_with_classes, matching.kinds
    )


def check_rows(student: keras.Model, x: Any, answer: Any) -> None:
    """Refuses a teacher that does not answer with a row for each example of a batch.

    Args:
        student: whose outputs say how many there are, where the inputs do not.
        x: of the batch.
        answer: the teacher's.
    """
    answered = {tuple(part.shape[:1]) for part in keras.tree.flatten(answer)}
    rows = tuple(keras.tree.flatten(x)[0].shape[:1])
    if answered != {rows}:
        inputs = inputs_for(student, x, "student")
        outputs = student(keras.tree.map_structure(ops.convert_to_tensor, inputs))
        rows = tuple(keras.tree.flatten(outputs)[0].shape[:1])
    for wrong in answered - {rows, ()}:
        where = f"batch 0, of {rows[0]} examples"
        raise ValueError(OTHER_ROWS.format(value=wrong[0], where=where))


def check_student_and_teacher(student: Any, teacher: Any) -> None:
    """Refuses a student that is no model, and a teacher that is trained with it."""
    check_model("student", student)
    check_shares_nothing(student, teacher)


#: Last axes of student and teacher, by the student's kind, that mean the same though they
#: differ: one yes/no, and its two classes.
_OF_ONE: dict[Any, tuple] = {
    "softmax": ((2, 1),),
    "sigmoid": ((1, 2),),
    "values": (),
}


def check_same_shapes(
    student: dict, teacher: dict, distilled: set | None, kinds: Any = "softmax"
) -> None:
    """Refuses a student whose distilled outputs are not shaped like the teacher's.

    Args:
        student: shape by output, with `None` for an axis that is not known.
        teacher: likewise.
        distilled: keys of the outputs that must agree; `None` for all.
        kinds: of the student's outputs.

    Raises:
        ValueError: if classes or other axes differ, or there is a single class.
    """
    keys = student if distilled is None else distilled
    for key in keys:
        name = "" if key is None else f" in output {key!r}"
        kind = answer_for(kinds, key)
        if kind == "softmax" and key in student and student[key][-1:] == (1,):
            raise ValueError(
                f"the student has 1 class{name}: a softmax over it is always 1, so there "
                "is nothing to learn. For a yes or no end it in a sigmoid, or use "
                "keras.losses.BinaryCrossentropy(from_logits=True)."
            )
        if not student or not teacher:
            continue
        if key not in teacher:
            given = ", ".join(map(repr, teacher))
            raise ValueError(
                f"the teacher gives several outputs ({given}) and the student one; pass "
                "a callable that picks one, as in lambda x: teacher(x)['name']."
                if key is None
                else f"the student's output {key!r} has no counterpart in the teacher; "
                "give a distillation loss per output, with None for outputs that are not "
                "distilled."
            )
        if key not in student:
            raise ValueError(
                f"the distillation loss names the output {key!r}, which the student does not "
                f"have; its outputs are {', '.join(map(repr, student))}."
            )
        ours, theirs = student[key], teacher[key]
        if not (ours and theirs):
            continue
        of_one = (ours[-1], theirs[-1]) in _OF_ONE.get(kind, ((2, 1), (1, 2)))
        if None not in (ours[-1], theirs[-1]) and ours[-1] != theirs[-1] and not of_one:
            what = {"sigmoid": "questions", "values": "values"}.get(kind, "classes")
            raise ValueError(
                f"the student has {ours[-1]} {what}{name} and the teacher {theirs[-1]}; "
                f"build the student with {theirs[-1]}"
                + (
                    ", or say which of the teacher's it learns, by "
                    "as_teacher(teacher, classes=[...])."
                    if theirs[-1] > ours[-1]
                    else "."
                )
            )
        # Maps of classes are resized; what values would be between pixels is not known.
        if kind != "values" and is_map(ours) and len(ours) == len(theirs):
            continue
        if len(ours) != len(theirs) or any(
            a is not None and b is not None and a != b
            for a, b in zip(
                ours[1 : -1 if of_one else None],
                theirs[1 : -1 if of_one else None],
                strict=True,
            )
        ):
            raise ValueError(
                f"the student's outputs{name} have shape {tuple(ours)} and the teacher's "
                f"{tuple(theirs)}; all axes must agree."
                + (
                    " Only maps of classes are resized: end the student in a "
                    "keras.layers.Resizing or UpSampling2D."
                    if is_map(ours) and len(ours) == len(theirs)
                    else ""
                )
            )


def check_same_kinds(
    shapes: dict, ours: Any, shapes_of_other: dict, theirs: Any
) -> None:
    """Refuses classes that exclude each other beside yes/no questions, but for two classes.

    Args:
        shapes: of the student's outputs, by key.
        ours: kinds of these.
        shapes_of_other: of the teacher's outputs, where they are known.
        theirs: kinds of these.
    """
    for key, shape in shapes.items():
        our, their = answer_for(ours, key), answer_for(theirs, key)
        is_alike = shapes_of_other.get(key, ())[-1:] == shape[-1:] != (None,)
        may_be_one = not is_alike and shape[-1:] in ((1,), (2,), (None,))
        if our and their and our != their and not may_be_one:
            name = "" if key is None else f" in output {key!r}"
            what = {
                "softmax": "classes that exclude each other",
                "sigmoid": "yes/no questions",
                "values": "values",
            }
            raise ValueError(
                f"the student's {shape[-1]} numbers{name} are {what[our]}, and the teacher's "
                f"{what[their]}: what they say cannot be matched. Use one kind of last layer "
                "and loss for both."
            )


def check_loss_takes_outputs(
    loss: Any, student_from_logits: Any, kinds: Any = None, matched: set | None = None
) -> None:
    """Refuses a cross-entropy whose `from_logits` disagrees with the student.

    Args:
        loss: as given to `compile`.
        student_from_logits: bool or `None`, or a dict of them by output.
        kinds: of the student's outputs.
        matched: keys of the outputs that are distilled; `None` for all. The others' losses
            are taken as Keras takes them.
    """
    for key, one in by_output(loss):
        if matched is not None and key not in matched:
            continue
        gives, takes = answer_for(student_from_logits, key), takes_logits(one)
        if gives is None or takes is None or takes == gives:
            continue
        is_binary = kind_of_loss(one) == "sigmoid"
        if takes:
            raise ValueError(
                f"loss {loss_name(one)} has from_logits=True but the student ends in a "
                f"{answer_for(kinds, key) or 'softmax'}; use from_logits=False, or take the "
                "activation off."
            )
        names = (
            "keras.losses.BinaryCrossentropy(from_logits=True)"
            if is_binary
            else "keras.losses.SparseCategoricalCrossentropy(from_logits=True) or "
            "CategoricalCrossentropy(from_logits=True)"
        )
        raise ValueError(
            f"loss {loss_name(one)} expects probabilities (from_logits=False) but "
            f"the student ends in logits; use {names}."
        )


def check_finite(outputs: Any, where: str) -> None:
    """Refuses concrete outputs with NaN or infinity."""
    for output in keras.tree.flatten(outputs):
        if not np.isfinite(ops.convert_to_numpy(ops.cast(output, "float32"))).all():
            raise ValueError(NOT_FINITE.format(where=where))


def check_cached_are_logits(
    cached: Any, from_logits: Any, kinds: Any = None, of_store: bool = False
) -> None:
    """Refuses cached soft targets that are not finite, or look like probabilities.

    Args:
        cached: of a batch.
        from_logits: what the user said of them.
        kinds: of the student's outputs.
        of_store: whether they are of a `SoftTargets` store, which has logits.
    """
    check_finite(cached, "batch 0")
    are_probabilities = all(
        not isinstance(part, TopKLogits)
        and answer_for(kinds, key) != "values"
        and look_like_probabilities(part, answer_for(kinds, key))
        for key, part in by_output(cached)
    )
    if from_logits is False and not are_probabilities:
        raise ValueError(
            "teacher_from_logits is False, but the cached soft targets are not "
            "probabilities; SoftTargets keeps logits whatever the teacher gives, so leave "
            "it out."
        )
    if from_logits is None and are_probabilities and not of_store:
        raise ValueError(
            "the cached soft targets of the first batch are >= 0 and sum to 1, or of yes/no "
            "questions from 0 to 1: they are probabilities, where logits are expected. Keep "
            "logits, or pass teacher_from_logits=False; or True, if they are logits."
        )


def check_cached_temperature(x: Any, state: StepState) -> None:
    """Refuses cached answers of several teachers at a temperature they are not for.

    Args:
        x: of a batch, or its specs.
        state: of the distiller.
    """
    if not isinstance(x, DistillationInputs):
        return
    for _, part in by_output(x.soft_targets):
        if isinstance(part, MemberLogits):
            check_mean_at_one_temperature(state.matching.terms)
        if isinstance(part, MeanLogits):
            for own in _temperatures(state):
                _check_mean(part, state.temperature.value if own is None else own)


def _temperatures(state: StepState) -> list[float | None]:
    """Returns the temperatures of all soft losses; `None` for the distiller's."""
    terms = [t for t in state.matching.terms if not is_on_features(t)]
    return [getattr(term, "temperature", None) for term in terms]


def hold_to_temperature(cached: Any, state: StepState) -> None:
    """Holds the temperature, when it is set later, to that of a cached mean."""
    temperature = state.temperature
    for _, part in by_output(cached):
        if isinstance(part, MeanLogits) and None in _temperatures(state):
            before = temperature.further_check

            def check(number: float, part: Any = part, before: Any = before) -> None:
                before(number)
                _check_mean(part, number)

            temperature.check_also(check)
            return


def _check_mean(mean: Any, temperature: Any) -> None:
    of = mean.temperature
    is_number = isinstance(temperature, (int, float))
    if not is_number or not math.isclose(temperature, of, rel_tol=1e-6):
        raise ValueError(
            f"these soft targets are the mean of several teachers' probabilities at T = {of:g}, "
            f"which is no mean at another; the temperature is {temperature!r}. Train at "
            f"temperature={of:g}; or write them without temperature=, which keeps each "
            "teacher's logits for any temperature."
        )


def shape_of_logits(logits: Any) -> tuple:
    """Returns the shape of a batch of logits or `TopKLogits`, its first axis free."""
    if not isinstance(logits, TopKLogits):
        return (None, *logits.shape[1:])
    classes = logits.k
    if logits.has_rest:  # at b = 0 it is the log of how many there are
        classes += round(float(np.exp(np.asarray(logits.rest).flat[0])))
    return (None, *logits.packed.shape[1:-1], classes)


def bind_features(state: StepState, x: Any = None) -> None:
    """Checks the features that are matched, as far as their shapes are known.

    Args:
        state: of the distiller.
        x: of a first batch, which tells what a subclassed model gives, and what is cached.

    Raises:
        ValueError: if shapes do not fit, or a layer does not exist.
    """
    student, teacher = state.student_recorder, state.teacher
    if student is not None and not state.student_features:
        inputs = None if x is None else without_soft_targets(x)
        state.student_features = student.shapes(inputs)
    cached = x.layers if isinstance(x, DistillationInputs) else {}
    found: dict[str, tuple] = {
        name: (None, *part.shape[1:]) for name, part in cached.items()
    }
    if teacher is not None and teacher.recorder is not None and not found:
        if not teacher.features:
            inputs = None if x is None else teacher.inputs_of(without_soft_targets(x))
            teacher.features = teacher.recorder.shapes(inputs)
        found = teacher.features
    state.matching.bind(state.student_features, found)


def check_top_k_can_be_matched(cached: Any, terms: list, temperature: Any) -> None:
    """Refuses `TopKLogits` for a distillation loss or a temperature they are not made for."""
    top_k = [part for _, part in by_output(cached) if isinstance(part, TopKLogits)]
    if not top_k:
        return
    for term in terms:
        if isinstance(term, FeatureLoss) and term.teacher_layer_name is not None:
            continue
        if not getattr(term, "takes_top_k", False):
            raise ValueError(
                f"{type(term).__name__} needs all of the teacher's logits, and these soft "
                "targets were cached with top_k; write them without it, or use "
                "SoftTargetLoss."
            )
    if not any(part.has_rest for part in top_k):
        return
    for term in terms:
        if getattr(term, "temperature", None) is not None:
            check_hot_enough_for_top_k(term.temperature)
    temperature.check_also(check_hot_enough_for_top_k)


def check_hot_enough_for_top_k(temperature: float) -> None:
    """Refuses a temperature at which `TopKLogits` do not know the mass of the rest.

    Far above 1000, float32 loses the others beside the rest's.
    """
    if not 1.0 <= temperature <= 1000.0:
        limit = "at least 1" if temperature < 1.0 else "at most 1000"
        raise ValueError(
            "soft targets cached with top_k know the mass of the other classes for "
            f"temperatures of {limit}, got {temperature}; choose another, or write them "
            "without top_k."
        )


def check_inputs(student: keras.Model, x: Any, *others: Any) -> None:
    """Refuses inputs that Keras would not read, or read only the first of.

    Args:
        student: any.
        x: as given to `fit`, `evaluate`, `predict` or `train_on_batch`.
        *others: labels and sample weights, likewise.

    Raises:
        ValueError: if there are none, arrays of a dtype that Keras does not read, or
            others than the student takes.
    """
    if x is None:
        raise ValueError("there is no data; give arrays or a tf.data.Dataset.")
    for part in keras.tree.flatten(x):
        if isinstance(part, np.ndarray) and part.dtype.kind in "US":
            raise ValueError(
                f"the inputs are a NumPy array of dtype {part.dtype}, which Keras does not "
                "read; give tf.constant(x)."
            )
    inputs_for(student, without_soft_targets(x), "student")
    named = zip(("the inputs", "the labels", "the sample weights"), (x, *others))  # noqa: B905
    for what, given in named:
        for part in keras.tree.flatten(given):
            if (dtypes := keras_compat.dtypes_not_read(part)) is not None:
                raise ValueError(not_read(what, dtypes))


def check_arrays(student: keras.Model, x: Any, y: Any, sample_weight: Any) -> None:
    """Refuses arrays that Keras would refuse to read, or not begin to.

    Raises:
        ValueError: if there is no example, or labels are not numbers.
    """
    if x is None:
        raise ValueError("fit() was given no data; pass arrays or a tf.data.Dataset.")
    if any(getattr(part, "shape", ())[:1] == (0,) for part in keras.tree.flatten(x)):
        raise ValueError(EMPTY)
    for part in [] if y is None else keras.tree.flatten(y):
        dtype = getattr(part, "dtype", None)
        if dtype == tf.string or getattr(dtype, "kind", "i") in "USO":
            raise ValueError(
                f"labels must be numbers, got dtype {dtype}; map class names to integers "
                "from 0 on."
            )
    check_inputs(student, x, y, sample_weight)
