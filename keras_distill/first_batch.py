"""The look at the first batch: what it tells before any training."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill import keras_compat
from keras_distill.cached_answers import (
    cached_logits,
    check_cached_are_logits,
    check_cached_temperature,
    check_finite,
    check_top_k_can_be_matched,
    hold_to_temperature,
    shape_of_logits,
)
from keras_distill.faults import check_labels, losses_that_check
from keras_distill.inputs import inputs_for
from keras_distill.losses.weights import class_weight_table
from keras_distill.model_pairs import (
    bind_features,
    check_loss_takes_outputs,
    check_same_shapes,
)
from keras_distill.outputs import losses_by_key
from keras_distill.own_loss import has_own_loss
from keras_distill.reading import not_read
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
from keras_distill.structures import by_output
from keras_distill.student_outputs import (
    find_kinds,
    hold_to_kinds,
    outputs_on,
    settle_logits,
)
from keras_distill.teacher import nan_by_example, nan_in_inputs
from keras_distill.training_watch import EMPTY, OTHER_ROWS

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
    outputs = outputs_on(student, state, inputs)
    shapes = {key: tuple(output.shape) for key, output in by_output(outputs)}
    is_own = has_own_loss(student, loss)
    find_kinds(student, state, loss, None if is_own else y, shapes, kinds_taught(x))
    settle_logits(student, state, inputs)
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
