"""Variables that a teacher shares with the student, and that training would change."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_distill.keras_compat import own_variables
from keras_distill.teacher import Teacher
from keras_distill.user_functions import UserFunction


def check_shares_nothing(
    student: keras.Model, teacher: Any, role: str = "teacher", remedy: str = ""
) -> None:
    """Refuses a teacher that training the student would change.

    Variables are compared, not models: a layer may be shared through a nested model or a
    list of teachers. A frozen layer may be shared, and so may one that training leaves as
    it is, such as `keras.layers.Normalization`. What a function reads is known when it
    runs: `check_reads_nothing`.

    Args:
        student: `keras.Model`; one without variables yet shares none.
        teacher: as it was given.
        role: what the error calls the teacher.
        remedy: what to do, a sentence; by default, to copy the model.

    Raises:
        ValueError: naming the variable and its layer.
    """
    trained = None
    for model in layers_in(teacher):
        if model is student:
            raise ValueError(
                f"student and {role} are the same object, so there is nothing to learn; "
                + (
                    remedy
                    or "build a smaller student, or copy the model with "
                    "keras.models.clone_model."
                )
            )
        if trained is None:
            trained = {
                id(variable): (variable, layer)
                for layer, variable in _changed_by_training(student)
            }
        for variable in model.variables:
            if id(variable) in trained:
                _, layer = trained[id(variable)]
                raise _shared(variable, layer, role, remedy)


def check_reads_nothing(student: keras.Model, read: Iterable[tf.Variable]) -> None:
    """Refuses a teacher that read a variable of the student's when it answered.

    Args:
        student: built.
        read: variables, as `tf.GradientTape.watched_variables` has them.

    Raises:
        ValueError: naming the variable and its layer.
    """
    seen = {id(variable) for variable in read}
    for layer, variable in _changed_by_training(student):
        if id(variable.value) in seen:
            raise _shared(variable, layer, "teacher", "")


def _shared(variable: Any, layer: keras.Layer, role: str, remedy: str) -> ValueError:
    return ValueError(
        f"the {role} shares the variable {variable.path!r} of the layer {layer.name!r} with "
        "the student, so it would be trained with it; "
        + (
            remedy
            or "copy the model by keras.models.clone_model and set_weights, or freeze the "
            "layer (layer.trainable = False)."
        )
    )


def _changed_by_training(model: keras.Model) -> Iterator[tuple[keras.Layer, Any]]:
    """Yields each variable that a training step changes, with its layer.

    Among them moving averages; the state of a dropout's seed is none of a layer's own.
    """
    for layer, variables in own_variables(model):
        if is_changed_by_training(layer):
            yield from ((layer, variable) for variable in variables)


def is_changed_by_training(layer: keras.Layer) -> bool:
    """Tells whether a training step changes a layer's own variables."""
    # The mean and variance of a Normalization are of `adapt`.
    return layer.trainable and not isinstance(layer, keras.layers.Normalization)


def layers_in(teacher: Any) -> Iterator[keras.Layer]:
    """Yields the models and layers in what may teach, as far as they can be seen.

    Not the attributes of other objects: one that holds the teacher may well hold the
    student too.
    """
    return _layers_in(teacher, depth=3, seen=set())


def _layers_in(value: Any, depth: int, seen: set[int]) -> Iterator[keras.Layer]:
    if id(value) in seen or depth < 0:
        return
    seen.add(id(value))
    if isinstance(value, keras.Layer):
        yield value
        return
    if isinstance(value, (list, tuple)):
        parts = list(value)
    elif isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif inspect.ismethod(value):
        parts = [value.__self__]
    elif isinstance(value, Teacher):
        parts = [value.model, value.function, *getattr(value, "members", ())]
    elif isinstance(value, UserFunction):
        yield from _layers_in(value.function, depth, seen)
        return
    else:
        parts = []
    for part in parts:
        yield from _layers_in(part, depth - 1, seen)


def warn_of_order(student: keras.Model, teacher: Teacher) -> None:
    """Warns of a student that is larger than its teacher, once both are built.

    Args:
        student: `keras.Model`.
        teacher: that is bound to it; it is told once of each.
    """
    size = teacher.parameters
    if teacher.order_is_checked or not student.built or size is None:
        return
    teacher.order_is_checked = True
    if student.count_params() > size:
        warnings.warn(
            f"the student has {student.count_params()} parameters, more than the "
            f"teacher's {size}: the order is Distiller(student, teacher), and in "
            "keras.distillation.Distiller the other way round. Of a student that is meant "
            "to be the larger one, this says nothing.",
            UserWarning,
            stacklevel=2,
        )
