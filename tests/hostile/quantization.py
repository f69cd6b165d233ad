"""Wrong uses of students on the grid of their file."""

import functools

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
from tests.hostile import Row
from tests.hostile.things import data, model, student

X, _ = data()


class Subclassed(keras.Model):
    """A model whose layers' order nobody knows."""

    def call(self, x):
        return x


class Unconfigured(keras.layers.Layer):
    """A layer with weights that its config does not tell of."""

    def __init__(self, units):
        super().__init__()
        self.inner = keras.layers.Dense(units)

    def call(self, x):
        return self.inner(x)


@functools.cache
def aware():
    return kd.quantize_aware(student(), calibration=X)


def half():
    layer = keras.layers.Dense(3, dtype="mixed_float16", name="half")
    return keras.Sequential([keras.Input((5,)), layer])


def called(name, make):
    """Returns a call with one wrong argument, made when it is needed."""
    return lambda: kd.quantize_aware(
        **{"student": student(), "calibration": X, name: make()}
    )


BITS = "must be 8 or"
NOT_FINITE = np.where(X > 0, np.nan, X)
WRONG = [
    ("student", lambda: None, "student must be a keras.Model, got None"),
    ("student", lambda: "model.keras", "student must be a keras.Model, got 'model"),
    ("student", lambda: keras.Sequential, "student must be a keras.Model, got <class"),
    (
        "student",
        Subclassed,
        "student 'subclassed.*' is a subclassed model, whose layers",
    ),
    (
        "student",
        lambda: keras.Sequential([keras.layers.Dense(2)]),
        "is not built; begin it",
    ),
    ("student", aware, "rounds already; give quantize_aware the float one"),
    ("student", half, "layer 'half' has the dtype policy 'mixed_float16'; rounding is"),
    (
        "student",
        lambda: keras.Sequential([keras.Input((5,)), keras.layers.ReLU()]),
        "has no layer whose weights can be rounded; it needs a Conv2D",
    ),
    (
        "student",
        lambda: keras.Sequential([keras.Input((5,)), Unconfigured(2), model()][:2]),
        "student's layer 'unconfigured.*' .Unconfigured. cannot be made again",
    ),
    *[
        ("weights", lambda wrong=wrong: wrong, rf"weights {BITS} 4, got")
        for wrong in (16, 0, -8, "8", None, True, 8.5, [8], float("nan"))
    ],
    *[
        ("activations", lambda wrong=wrong: wrong, rf"activations {BITS} None, got")
        for wrong in (4, 16, 0, "int8", False, [8])
    ],
    ("calibration", lambda: None, "calibration is missing: .*calibration=x.:1000., or"),
    ("calibration", lambda: "x", "the calibration must be .*got str"),
    ("calibration", lambda: iter([X]), "the calibration is a generator|must be"),
    ("calibration", lambda: X[:0], "calibration has no examples; give some"),
    (
        "calibration",
        lambda: NOT_FINITE,
        "calibration gives numbers that are not finite",
    ),
    (
        "calibration",
        lambda: X[:, :3],
        "calibration must be inputs of shape .None, 5., got",
    ),
    (
        "calibration",
        lambda: [X, X],
        "calibration must be inputs of shape .None, 5., got",
    ),
    (
        "calibration",
        lambda: tf.data.Dataset.from_tensor_slices(X).repeat(),
        "calibration is endless; give a part of it, as .take",
    ),
]
ROWS = [
    Row("quantize_aware", called(name, make), sentence)
    for name, make, sentence in WRONG
] + [
    Row(
        "export_litert",
        lambda how=how: kd.export_litert(
            aware(), "m.tflite", quantize=how, output_kinds="softmax", verbose=False
        ),
        f"quantize is '{how}', but the model is one of quantize_aware.*leave it out",
    )
    for how in ("float16", "dynamic")
]
