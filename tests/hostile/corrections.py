"""Wrong uses of the corrections of a trained model."""

import functools

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
from tests.hostile import Row
from tests.hostile.evaluation import several
from tests.hostile.things import data, model

X, Y = data()
NAN = float("nan")
SEEN = "so the offset that fits best is"


@functools.cache
def same(classes=4, activation=None):
    """Returns a model whose logits are its inputs."""
    dense = keras.layers.Dense(classes, activation, kernel_initializer="identity")
    return keras.Sequential([keras.Input((classes,)), dense])


@functools.cache
def trained():
    """Returns a model of this table's own: that of others is remembered by what they say."""
    return model()


def broken():
    """Returns a model that answers NaN."""
    one = model()
    one.layers[-1].bias.assign([NAN] * 4)
    return one


def of_values():
    """Returns a model that was compiled for values."""
    one = model()
    one.compile("sgd", "mse")
    return one


def corrected(name, value):
    def call():
        given = {"model": trained(), "validation": (X, Y), "classes": 1}
        made = value() if callable(value) and name == "model" else value
        kd.correct_bias(**{**given, name: made})

    return call


def calibrated(name, value):
    def call():
        given = {"model": trained(), "validation": (X, Y)}
        made = value() if callable(value) and name == "model" else value
        kd.calibrate_temperature(**{**given, name: made})

    return call


BOTH = [
    ("model", None, "model must be a keras.Model, got None"),
    ("model", "student.keras", "model must be a keras.Model, got 'student.keras'"),
    ("model", lambda: [model(), model()], "model must be a keras.Model, got"),
    ("model", broken, "answers NaN or infinity for 24 of 24 labels"),
    ("model", of_values, "output is of values, which have neither biases of classes"),
    ("validation", None, "validation data must be .x, y. arrays"),
    ("validation", X, "the validation data brings no labels; it must yield .x, y."),
    ("validation", (X, None), "the validation data brings no labels"),
    ("validation", (X[:0], Y[:0]), "the validation data is empty; check how it was"),
    ("validation", (X, Y[:-1]), r"have different lengths: \[23, 24\]"),
    ("validation", (X, Y + 4), "labels must be from 0 to 3, since the model has 4"),
    ("validation", (X, np.full(24, NAN)), "labels must be"),
    ("validation", (X, Y.astype(str)), "labels must be numbers"),
    ("validation", (X, Y, np.zeros(24)), "all sample weights are 0"),
    ("validation", (X, Y, -np.ones(24)), "weights must be finite and >= 0, got -1"),
    ("validation", (X[:, :3], Y), "."),
    (
        "validation",
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).repeat(),
        "the validation data is endless",
    ),
    ("output_kinds", "values", "output is of values, which have neither biases"),
    ("output_kinds", "classes", "output_kinds must be 'softmax'"),
    ("from_logits", "yes", "from_logits must be True, False, None"),
    ("from_logits", False, "from_logits is False, but the last layer"),
]
ROWS = [
    *(Row("correct_bias", corrected(*row), sentence) for *row, sentence in BOTH),
    *(
        Row("calibrate_temperature", calibrated(*row), sentence)
        for *row, sentence in BOTH
    ),
    *(
        Row("correct_bias", corrected(name, value), sentence)
        for name, value, sentence in [
            ("classes", None, "classes must be a list of class numbers, 1 at least"),
            ("classes", [], "classes must be a list of class numbers, 1 at least"),
            ("classes", "3", "classes must be a list of class numbers, 1 at least"),
            ("classes", True, "classes must be a list of class numbers, 1 at least"),
            ("classes", [1.5], r"classes\[0\] must be a whole number >= 0, got 1.5"),
            ("classes", -1, r"classes\[0\] must be a whole number >= 0, got -1"),
            (
                "classes",
                4,
                "classes must be from 0 to 3, since the model has 4 outputs",
            ),
            ("classes", [1, 2, 1], "classes has 1 twice; give each class once"),
            (
                "classes",
                [0, 1, 2, 3],
                "are all 4 of the model's, and one offset for all",
            ),
            ("shared", "yes", "shared must be True or False, got 'yes'"),
            ("by", "loss", 'by must be "errors" or "nll", got \'loss\''),
            (
                "validation",
                (X[Y != 1], Y[Y != 1]),
                f"no validation example is of class 1, {SEEN} minus infinity",
            ),
            (
                "validation",
                (X[1:2], Y[1:2]),
                f"no validation example is of another class, {SEEN} infinity",
            ),
        ]
    ),
    *(
        Row(
            "correct_bias",
            lambda y=y: kd.correct_bias(same(1), (np.ones((3, 1)), np.full(3, y)), 0),
            f"no validation example is a {word} question 0, {SEEN}",
        )
        for y, word in ((0, "yes to"), (1, "no to"))
    ),
    Row(
        "correct_bias",
        lambda: kd.correct_bias(several(), (X, {"a": Y, "b": Y}), 1),
        "the model has the outputs 'a', 'b'; correct one of them",
    ),
    Row(
        "calibrate_temperature",
        lambda: kd.calibrate_temperature(same(), (np.eye(4), np.arange(4))),
        "the model is right on every validation example, so the smaller T",
    ),
    Row(
        "calibrate_temperature",
        lambda: kd.calibrate_temperature(same(), (-np.eye(4), np.arange(4))),
        "are no larger than others on average, so the larger T",
    ),
]
