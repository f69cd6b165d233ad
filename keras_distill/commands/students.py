"""What STUDENT and MODEL are on the command line: a function, a file, a built-in name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import keras
import keras_tuner
import tensorflow as tf

import keras_distill as kd
from keras_distill.commands import built_in, input_layers
from keras_distill.commands.options import function_of
from keras_distill.processes import seeded
from keras_distill.run_directory import file_digest
from keras_distill.teacher import check_sizes
from keras_distill.teacher_files import ENDINGS, load_model_file

#: Builds a new network, of the values of hyperparameters, if it asks for any.
Build = Callable[[keras_tuner.HyperParameters], keras.Model]

HELP = (
    "module:function, a function of nothing, of hp or of (input_shape, classes) that "
    f"returns a model; a .keras file, whose weights are where it begins; or {built_in.NAMES}"
)


def builder(role: str, text: str, data: kd.datasets.Data) -> Build:
    """Returns what builds the network that a text names, checked on the data.

    Args:
        role: what it is, for messages: "student" or "model".
        text: of the command line.
        data: not in batches.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is no such network, or it does not fit the data.
    """
    if built_in.is_name(text):
        make = built_in.builder(text, data)
        build: Build = lambda hp: make()  # noqa: E731
    elif _is_file(text):
        build = _from_file(role, text)
    else:
        build = _from_function(role, text, data)
    _check_fits(role, text, build, data)
    return build


def fingerprint(text: str) -> str:
    """Returns what tells whether a network is the same as that of an earlier run."""
    return f"{text} ({file_digest(text)[:16]})" if _is_file(text) else text


def _is_file(text: str) -> bool:
    # "module:function" may be the name of a file, but hardly of one that is there.
    return text.endswith(ENDINGS) or os.sep in text or os.path.isfile(text)


def _from_file(role: str, path: str) -> Build:
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"the {role} {path!r} is not there; give a .keras file, module:function, or "
            f"{built_in.NAMES}."
        )
    if not path.endswith(ENDINGS):
        raise ValueError(
            f"the {role} {path!r} is no .keras file; give one, module:function, or "
            f"{built_in.NAMES}."
        )

    def build(hp: keras_tuner.HyperParameters) -> keras.Model:
        with input_layers.names_may_differ():
            return load_model_file(role, path)

    return build


def _from_function(role: str, text: str, data: kd.datasets.Data) -> Build:
    module, _, name = text.partition(":")
    if not (module and name):
        raise ValueError(
            f"there is no {role} {text!r}: give module:function, a .keras file, or "
            f"{built_in.NAMES}."
        )
    function = function_of(text, role)
    takes = _required(function)
    given = {"input_shape": data.input_shape, "classes": data.classes}
    if not takes:
        call: Build = lambda hp: function()  # noqa: E731
    elif len(takes) == 1 and takes[0] not in ("input_shape", "classes"):
        call = lambda hp: function(hp)  # noqa: E731
    elif set(takes) == set(given):
        call = lambda hp: function(**given)  # noqa: E731
    else:
        raise ValueError(
            f"the {role}'s function {text} takes ({', '.join(takes)}); it must take "
            "nothing, hp, or (input_shape, classes), and return a model."
        )

    def build(hp: keras_tuner.HyperParameters) -> keras.Model:
        try:
            model = call(hp)
        except Exception as error:  # whatever a user's function may raise
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                f"the {role}'s function {text} failed: {type(error).__name__}: {reason}."
            ) from error
        if not isinstance(model, keras.Model):
            raise ValueError(
                f"the {role}'s function {text} must return a keras.Model, and returned "
                f"{type(model).__name__}."
            )
        return model

    return build


def _required(function: Callable) -> list[str]:
    """Returns the names of the arguments that must be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of C
        return []
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]


def _check_fits(role: str, text: str, build: Build, data: kd.datasets.Data) -> None:
    """Refuses a network that does not answer such examples with a number for each class."""
    with seeded(0):
        model = build(keras_tuner.HyperParameters())
    x = next(iter(data.train.batch(2).take(1)))[0]
    check_answers(
        f"the {role} {text!r}",
        lambda x: model(x, training=False),
        x,
        data.classes,
        model,
    )


def check_answers(
    who: str, answer: Callable, x: Any, classes: int, model: keras.Model | None = None
) -> None:
    """Refuses what does not answer a batch with a number for each class.

    Raises:
        ValueError: naming who, what it takes or gives, and what to do.
    """
    spec = tf.nest.map_structure(
        lambda part: tf.TensorSpec(part.shape[1:], part.dtype), x
    )
    given = input_layers.described(spec)
    try:
        if model is not None:
            check_sizes(model, x, who)
        outputs = answer(x)
    except Exception as error:  # of Keras, TensorFlow and users' own
        raise ValueError(_does_not_fit(who, given, model, error)) from error
    if len(parts := tf.nest.flatten(outputs)) > 1:
        raise ValueError(
            f"{who} has {len(parts)} outputs, and the command line takes networks with one; "
            "use kd.Distiller in Python."
        )
    shape = tuple(parts[0].shape)
    # One yes/no question is two classes.
    if len(shape) != 2 or shape[-1] not in (
        {classes, 1} if classes == 2 else {classes}
    ):
        raise ValueError(
            f"{who} answers with {' x '.join(map(str, shape[1:])) or 'one'} numbers for an "
            f"example, and the data has {classes} classes; give one that was made for them."
        )


def _does_not_fit(who: str, given: str, model: Any, error: Exception) -> str:
    remedy = "give one that was made for such data"
    shapes = [tuple(one.shape) for one in getattr(model, "inputs", None) or []]
    if len(shapes) == 1 and len(shapes[0]) == 4 and None not in shapes[0][1:]:
        height, width, channels = shapes[0][1:]
        remedy = f"give --image-size {height} {width}, or a network of this size"
        if who.startswith("the student"):  # whose teacher takes these
            remedy = "build it for these, which the teacher takes"
        given += f"; it takes {(height, width, channels)}"
        if f", {channels})" not in given.partition(";")[0]:
            remedy = f"give one for images of as many channels, not {channels}"
        return f"{who} does not take the data's examples, {given}: {remedy}."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = (lines or [type(error).__name__])[0].rstrip(".:")
    return f"{who} does not take the data's examples, {given}: {remedy}. It said: {reason}."
