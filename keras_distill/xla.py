"""What XLA cannot compile in a teacher: then the student's step runs without it.

Keras asks the layers of the model that it compiles, and a teacher is no part of that.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_distill.keras_compat import layer_without_xla
from keras_distill.sharing import layers_in
from keras_distill.teacher import Teacher
from keras_distill.training_watch import whole_again
from keras_distill.user_functions import UserFunction


def why_not(teacher: Teacher | None) -> str | None:
    """Returns why XLA cannot compile a teacher, as far as that is known before it runs."""
    for function in _functions_in(teacher):
        if function.leaves_graph:
            return f"the {function.description} leaves TensorFlow"
    for model in layers_in(teacher):
        layer = layer_without_xla(model)
        if layer is not None:
            return (
                f"the teacher's layer {layer.name!r} ({type(layer).__name__}) cannot be"
            )
    return None


def _functions_in(teacher: Teacher | None) -> Iterator[UserFunction]:
    if teacher is None:
        return
    for member in getattr(teacher, "members", [teacher]):
        for function in (
            member.function,
            *(one.function for one in member.preparations),
        ):
            if isinstance(function, UserFunction):
                yield function


def refused(reason: str) -> ValueError:
    """Returns the error for a step that the user wants compiled."""
    return ValueError(
        f"jit_compile is True, but XLA cannot compile this step: {reason}. Leave "
        'jit_compile out: at its default, "auto", the step then runs without XLA.'
    )


class Fallback:
    """Runs a step that XLA compiles; without XLA, where that says that it cannot.

    It says so of the first batch, before anything of it is run.

    Args:
        model: whose step it is.
        asked: whether the user wants XLA, as given to `compile`; called when it fails.
        function: that runs an execution, given an iterator of batches.
        made_anew: returns the function that runs it without XLA.
    """

    def __init__(
        self,
        model: keras.Model,
        asked: Callable[[], Any],
        function: Callable[[Any], Any],
        made_anew: Callable[[], Callable[[Any], Any]],
    ) -> None:
        self._model, self._asked = model, asked
        self._function, self._made_anew = function, made_anew
        self._is_compiled = False

    def __call__(self, batches: Any) -> Any:
        """Returns what the function returns of an execution's batches.

        Raises:
            ValueError: if XLA cannot compile the step and the user has asked for it.
        """
        is_distributed = isinstance(batches, tf.distribute.DistributedIterator)
        if self._is_compiled or not self._model.jit_compile or is_distributed:
            return self._function(batches)
        steps = self._model.steps_per_execution
        taken = list(itertools.islice(batches, steps))
        if not taken:
            return self._function(batches)
        try:
            logs = self._function(whole_again(taken, batches, steps))
        except tf.errors.OpError as error:
            if not re.search("XLA|Xla", str(error)):
                raise
            if self._asked() is True:
                raise refused(_operations_in(error)) from error
            self._model.jit_compile = False
            return self._made_anew()(whole_again(taken, batches, steps))
        self._is_compiled = True
        return logs


def _operations_in(error: Exception) -> str:
    """Returns what XLA says of operations, in short."""
    text = " ".join(str(error).split())
    found = re.findall(r"(\w+) \(No registered", text)
    if found:
        return f"it has no {', '.join(dict.fromkeys(found))}"
    return text[:200].rstrip(". ")
