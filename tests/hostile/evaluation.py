"""Wrong uses of evaluation."""

import functools
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
from tests.hostile import Row
from tests.hostile.things import CLASSES, data, model

X, Y = data()
ONE_HOT = np.eye(CLASSES)[Y]
NAN = float("nan")


@functools.cache
def classifier():
    """Returns a model whose loss says that its outputs are a softmax's."""
    one = model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    one.compile("sgd", loss)
    return one


def evaluated(dataset=(X, Y), judged=None, **arguments):
    """Returns a call of `evaluate`; a function among the arguments makes its value."""

    def call():
        one = classifier() if judged is None else judged()
        given = dataset() if callable(dataset) else dataset
        kd.evaluate(one, given, **{"timing": False, **arguments})

    return call


def compared(models=None, dataset=(X, Y), **arguments):
    def call():
        named = {"a": classifier()} if models is None else models
        quiet = {"timing": False, "verbose": False}
        kd.compare(named, dataset, **{**quiet, **arguments})

    return call


def batches(*parts):
    return tf.data.Dataset.from_tensor_slices(parts or (X, Y)).batch(8)


@functools.cache
def comparison():
    """Returns a comparison of one model."""
    figures = kd.Evaluation("a", 9, 1, 1, 0.5, None, 0.1, 0.1, None)
    return kd.Comparison((figures,))


def but(array, value, index=3):
    """Returns floats of which one is another."""
    array = np.array(array, "float64")
    array[index] = value
    return array


def several():
    """Returns a model of two outputs."""
    x = keras.Input((5,))
    outputs = {n: keras.layers.Dense(CLASSES, name=n)(x) for n in "ab"}
    return keras.Model(x, outputs)


NO_DATASET = "evaluation dataset must be .x, y. arrays"
NO_LABELS = "the evaluation dataset brings no labels; it must yield .x, y."
LABELS = [
    (X, NO_LABELS),
    (None, NO_DATASET),
    ("digits", NO_DATASET),
    ([X, Y], NO_LABELS),
    ({"x": X, "y": Y}, NO_LABELS),
    ((X,), NO_LABELS),
    ((X, None), NO_LABELS),
    (lambda: iter(batches()), "generator, which can be read only once"),
    (lambda: batches(X).map(lambda x: x), NO_LABELS),
    (lambda: batches().repeat(), "is endless; give it before repeat.., or take.n."),
    (lambda: batches().take(0), "the evaluation dataset is empty; check how it was"),
    ((X[:0], Y[:0]), "the evaluation dataset is empty; check how it was"),
    ((X, Y[:-1]), r"have different lengths: \[23, 24\]"),
    ((X, but(Y, 0.5)), "labels must be whole numbers from 0 to 3, got 0.5"),
    ((X, but(Y, NAN)), "labels must be whole numbers from 0 to 3, got nan"),
    (
        (X, but(Y, 4)),
        "labels must be from 0 to 3, since the model has 4 classes; got 4",
    ),
    (
        (X, but(Y, -1)),
        "labels must be from 0 to 3, since the model has 4 classes; got -",
    ),
    ((X, np.array(list("abcd") * 6)), "labels must be numbers.*map class names to int"),
    ((X, np.ones((24, 3))), "labels must be whole numbers of shape .* got shape"),
    ((X, ONE_HOT * 2), "one-hot labels must be >= 0 and sum to 1 over the classes"),
    ((X, ONE_HOT * NAN), "one-hot labels must be >= 0 and sum to 1"),
    ((X, ONE_HOT * 3 - 0.5), "one-hot labels must be >= 0 and sum to 1"),
    ((X, np.ones_like(ONE_HOT)), "Labels with several classes at once are no softmax"),
    ((X, Y, -np.ones(24)), "sample weights must be finite and >= 0, got -1"),
    ((X, Y, but(np.ones(24), NAN)), "sample weights must be finite and >= 0, got nan"),
    ((X, Y, but(np.ones(24), np.inf)), "sample weights must be finite and >= 0, got i"),
    ((X, Y, np.zeros(24)), "all sample weights are 0, so there is nothing to judge"),
    ((X, Y, np.ones((24, 2))), "sample weights must have shape .* one per label"),
    ((X, Y, np.array(["a"] * 24)), "sample weights must be numbers, got dtype"),
]
MODELS = [
    (lambda: None, "teacher must be a keras.Model, a list of teachers, a path"),
    (several, "the model has the outputs 'a', 'b'; give labels for each, as in"),
    (lambda: model()(X), "teacher must be a keras.Model, a list of teachers, a path"),
    (
        lambda: kd.as_teacher(lambda x: x * NAN, True),
        "answers NaN or infinity for 24 of 24 labels; look at",
    ),
]
EVALUATE = (
    [Row("evaluate", evaluated(wrong), sentence) for wrong, sentence in LABELS]
    + [Row("evaluate", evaluated(judged=one), sentence) for one, sentence in MODELS]
    + [
        Row("evaluate", evaluated(**{name: value}), sentence)
        for name, value, sentence in [
            ("name", 3, "name must be a str, got 3"),
            ("timing", "yes", "timing must be True or False, got 'yes'"),
            ("timing", None, "timing must be True or False, got None"),
            ("from_logits", "yes", "from_logits must be True, False, None"),
            ("from_logits", 1, "from_logits must be True, False, None"),
            (
                "output_kinds",
                "multi-label",
                "output_kinds must be 'softmax', 'sigmoid'",
            ),
            (
                "output_kinds",
                ["softmax"],
                "output_kinds must be 'softmax', 'sigmoid' or",
            ),
            ("output_kinds", {"out": "softmax"}, "output_kinds names the output 'out'"),
            ("ignore_class", 0.5, "ignore_class must be a whole number"),
            (
                "ignore_class",
                "void",
                "ignore_class must be a whole number .*got 'void'",
            ),
            ("ignore_class", {"b": 1}, "ignore_class names the output 'b', which the"),
            (
                "teacher",
                kd.as_teacher(lambda x: x[:, :3], True),
                "only models of the same classes can agree",
            ),
            (
                "teacher",
                kd.as_teacher(lambda x: x[:, :4] * NAN, True),
                "the teacher answers NaN",
            ),
        ]
    ]
)
COMPARE = [
    Row("compare", compared(**{name: value}), sentence)
    for name, value, sentence in [
        ("models", {}, "there are no models to compare; give a dict of at least one"),
        ("models", [1], "models must be a dict of models by name, got list"),
        ("models", model(), "models must be a dict of models by name, got Sequential"),
        ("models", {1: None}, "the names of the models must be a list of str"),
        (
            "models",
            {"a": 3},
            "teacher must be a keras.Model, a list of teachers, a path",
        ),
        ("dataset", None, NO_DATASET),
        ("dataset", (X, Y[1:]), r"have different lengths: \[23, 24\]"),
        ("dataset", (X, but(Y, 9)), "labels must be from 0 to 3"),
        ("teacher", "no/such.keras", "does not exist; give a .keras or .h5 file"),
        (
            "output_kinds",
            "values",
            "labels must have the shape .* of the model's values",
        ),
        ("ignore_class", NAN, "ignore_class must be a whole number"),
        ("timing", 1, "timing must be True or False, got 1"),
        ("verbose", "no", "verbose must be True or False, .*got 'no'"),
    ]
]


COMPARISON = [
    *[
        Row("Comparison.save", lambda wrong=wrong: comparison().save(wrong), sentence)
        for wrong, sentence in [
            ("figures.csv", "the path must end in .json or .md, got 'figures.csv'"),
            ("figures", "the path must end in .json or .md, got 'figures'"),
            (pathlib.Path("a.JSON"), "the path must end in .json or .md, got 'a.JSON'"),
            ("", "path must be a path, got ''"),
            (None, "path must be a path, got None"),
            (3, "path must be a path, got 3"),
            (b"a.json", "path must be a path, got b'a.json'"),
            ("a\0.json", "path must be a path"),
        ]
    ],
]
AGREEMENT = [
    Row(
        "TeacherAgreement",
        lambda: kd.TeacherAgreement(kind="classes"),
        'kind must be "softmax" or "sigmoid" or "values", got \'classes\'',
    ),
    Row(
        "TeacherAgreement.update_state",
        lambda: kd.TeacherAgreement().update_state(ONE_HOT, ONE_HOT, np.ones(24)),
        "TeacherAgreement has no sample weights; leave them out",
    ),
]
ROWS = [*EVALUATE, *COMPARE, *COMPARISON, *AGREEMENT]
