"""Variables that a teacher shares with the student, and that training would change."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_distill.keras_compat import own_variables
from keras_distill.teachers import Teacher


def check_shares_nothing(
    student: keras.Model, teacher: Any, role: str = "teacher"
) -> None:
    """Refuses a teacher that training the student would change.

    Variables are compared, not models: a layer may be shared through a nested model, a
    list of teachers, or what a function refers to. A frozen layer may be shared, and so
    may one that training leaves as it is, such as `keras.layers.Normalization`.

    Args:
        student: `keras.Model`; one without variables yet shares none.
        teacher: as it was given.
        role: what the error calls the teacher.

    Raises:
        ValueError: naming the variable and its layer.
    """
    trained = None
    for model in _layers_in(teacher, depth=3, seen=set()):
        if model is student:
            raise ValueError(
                f"student and {role} are the same object, so there is nothing to learn; "
                "build a smaller student, or copy the model with keras.models.clone_model."
            )
        if trained is None:
            trained = {
                id(variable): (variable, layer)
                for layer, variable in _changed_by_training(student)
            }
        for variable in model.variables:
            if id(variable) in trained:
                _, layer = trained[id(variable)]
                raise ValueError(
                    f"the {role} shares the variable {variable.path!r} of the layer "
                    f"{layer.name!r} with the student, so it would be trained with it; "
                    "copy the model by keras.models.clone_model and set_weights, or "
                    "freeze the layer (layer.trainable = False)."
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


def _layers_in(value: Any, depth: int, seen: set[int]) -> Iterator[keras.Layer]:
    """Yields the models and layers in what may teach, as far as they can be seen.

    Not the attributes of other objects: one that holds the teacher may well hold the
    student too.
    """
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
    elif inspect.isfunction(value):
        parts = [*inspect.getclosurevars(value).nonlocals.values()]
        # Its `globals` has those too that are called like an attribute.
        loaded = [i.argval for i in dis.get_instructions(value) if "GLOBAL" in i.opname]
        parts += [value.__globals__.get(name) for name in loaded]
        parts += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    elif isinstance(value, tf.types.experimental.PolymorphicFunction):
        parts = [value.python_function]
    elif isinstance(value, Teacher):
        parts = [value.model, value.function, *getattr(value, "members", ())]
    else:
        parts = []
    for part in parts:
        yield from _layers_in(part, depth - 1, seen)
