"""Wrong teachers, whichever function is handed one."""

import functools
import os
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
from tests.hostile import Row
from tests.hostile.things import CLASSES, data, model, student, teacher


@functools.cache
def folder():
    """Returns a folder of files that are no teachers."""
    path = tempfile.mkdtemp()
    whole = os.path.join(path, "whole.keras")
    model().save(whole)
    content = pathlib.Path(whole).read_bytes()
    for name, part in {
        "cut.keras": content[: len(content) // 2],
        "empty.keras": b"",
        "text.keras": b"no model",
        "empty.h5": b"",
        "model.onnx": b"",
        "model.tflite": b"no model",
        "notes.txt": b"",
    }.items():
        pathlib.Path(path, name).write_bytes(part)
    inputs = keras.Input((5,))
    lambda_ = keras.layers.Lambda(lambda x: x[:, :CLASSES])
    with_lambda = keras.Model(inputs, lambda_(inputs))
    with_own = keras.Model(inputs, Own()(inputs))
    for name, one in {
        "lambda.keras": with_lambda,
        "lambda.h5": with_lambda,
        "own.keras": with_own,
        "own.hdf5": with_own,
    }.items():
        one.save(os.path.join(path, name))
    model().save_weights(os.path.join(path, "only.weights.h5"))
    for name in ("folder", "folder.keras", "damaged", "served/1"):
        os.makedirs(os.path.join(path, name))
    pathlib.Path(path, "damaged", "saved_model.pb").write_bytes(b"no graph")
    tf.saved_model.save(tf.Module(), os.path.join(path, "nothing_served"))
    return path


class Own(keras.layers.Dense):
    """A layer that no other process knows."""

    def __init__(self, units=CLASSES, **kwargs):
        super().__init__(units, **kwargs)


class Subclassed(keras.Model):
    """A model of no Functional graph."""

    def call(self, x):
        return None


@functools.cache
def stored():
    """Returns the path of soft targets."""
    path = os.path.join(tempfile.mkdtemp(), "soft")
    kd.SoftTargets.write(path, teacher(), data()[0], verbose=False)
    return path


def file(name):
    return os.path.join(folder(), name)


@functools.cache
def distillable():
    """Returns a compiled distiller that no row may train."""
    distiller = kd.Distiller(student(), alpha=0.0)
    distiller.compile("sgd")
    return distiller


def fitted(answer, **arguments):
    """Returns a call of `fit` under a callable teacher."""

    def call():
        distiller = distillable()
        distiller.teacher = kd.as_teacher(answer, **{"from_logits": True, **arguments})
        distiller.fit(data()[0], verbose=0)

    return call


def logits(x):
    return tf.ones((tf.shape(x)[0], CLASSES))


NO_TEACHER = "teacher must be a keras.Model, a list of teachers, a path"
# Each kind of thing that is no teacher, and what is said of it.
THINGS = [
    (lambda: 3, NO_TEACHER),
    (lambda: True, NO_TEACHER),
    (lambda: {"a": teacher()}, NO_TEACHER),
    (lambda: {teacher()}, NO_TEACHER),
    (lambda: np.ones((2, 3)), NO_TEACHER),
    (lambda: tf.ones((2, 3)), NO_TEACHER),
    (lambda: b"teacher.keras", NO_TEACHER),
    (lambda: keras.Sequential, "got <class .*Sequential.*Give an instance of it"),
    (lambda: Subclassed, "got <class .*Subclassed.*Give an instance of it"),
    (lambda: [], "empty list; give at least one model"),
    (lambda: (), "empty list; give at least one model"),
    (lambda: [None], NO_TEACHER),
    (lambda: [teacher(), 3], NO_TEACHER),
    (
        lambda: [teacher(), [teacher()]],
        "a list of teachers within a list.*give one flat list",
    ),
    (
        lambda: [kd.as_teacher([teacher()])],
        "a list of teachers within a list.*give one flat list",
    ),
    (lambda: [teacher(), model(3)], "different numbers of classes"),
    (lambda: "", "teacher must be a path, got ''"),
    (lambda: "a\0b", "teacher must be a path"),
    (lambda: "no/such.keras", "does not exist; give a .keras or .h5 file"),
    (lambda: "~/no/such.keras", "/no/such.keras' does not exist"),
    (lambda: [teacher(), "no/such.keras"], "does not exist; give a .keras or .h5 file"),
    (lambda: file("cut.keras"), "cannot be read: it is damaged"),
    (lambda: file("empty.keras"), "cannot be read: it is damaged"),
    (lambda: file("text.keras"), "cannot be read: it is damaged"),
    (lambda: file("folder.keras"), "cannot be read: it is damaged"),
    (lambda: file("lambda.keras"), "holds code of its own.*if you trust it"),
    (lambda: file("own.keras"), "needs classes or functions of your own"),
    (lambda: file("empty.h5"), "cannot be read: it is damaged"),
    (lambda: file("only.weights.h5"), "holds weights and no model; build the model"),
    (lambda: file("lambda.h5"), "holds code of its own.*if you trust it"),
    (lambda: file("own.hdf5"), "needs classes or functions of your own"),
    (lambda: file("model.onnx"), "cannot be read by ONNX Runtime; it is damaged"),
    (lambda: file("model.tflite"), "cannot be read by LiteRT; it is damaged"),
    (lambda: file("notes.txt"), "neither a .keras or .h5 file.*give the model itself"),
    (lambda: file("folder"), "neither a .keras or .h5 file.*holds numbered versions"),
    (lambda: file("served"), "neither a .keras or .h5 file.*holds numbered versions"),
    (lambda: file("damaged"), "cannot be read; it is damaged or not whole"),
    (lambda: file("nothing_served"), "has no signature 'serving_default'"),
]

# Each function that takes a teacher, and a wrong one of each kind for it.
TAKES_ONE = {
    "as_teacher": lambda wrong: kd.as_teacher(wrong),
    "Distiller": lambda wrong: kd.Distiller(student(), wrong),
    "SoftTargets.write": lambda wrong: kd.SoftTargets.write(
        "soft", wrong, data()[0], verbose=False
    ),
    "SoftTargets.open": lambda wrong: kd.SoftTargets.open(stored(), teacher=wrong),
    "evaluate": lambda wrong: kd.evaluate(wrong, data(), timing=False),
    "compare": lambda wrong: kd.compare(
        {"model": student()}, data(), teacher=wrong, timing=False, verbose=False
    ),
}
REFUSED_FIRST = (0, 7, 9, 12, 13, 15, 16, 18, 21, 25, 26, 28, 29, 35)


def given_to(name, wrong):
    return lambda: TAKES_ONE[name](wrong())


ANSWERS = [
    (lambda x: None, "must return floats .* got NoneType"),
    (lambda x: "cat", "must return floats .* got str"),
    (lambda x: 1.0, "must return floats .* got float"),
    (lambda x: [], r"must return floats .* got \[\]"),
    (lambda x: {}, r"must return floats .* got \{\}"),
    (lambda x: [1.0, 2.0], "must return floats .* got float"),
    (lambda x: {"a": {"b": logits(x)}}, "must return floats .* got dict"),
    (lambda x: tf.RaggedTensor.from_tensor(logits(x)), "got RaggedTensor"),
    (lambda x: tf.sparse.from_dense(logits(x)), "got SparseTensor"),
    (lambda x: tf.argmax(logits(x), -1), "got dtype int64; a class number is no"),
    (lambda x: tf.cast(logits(x), tf.int32), "got dtype int32"),
    (lambda x: logits(x) > 0, "got dtype bool"),
    (lambda x: tf.cast(logits(x), tf.complex64), "got dtype complex64"),
    (lambda x: logits(x)[:, 0], "has 4 classes and the teacher 1"),
    (lambda x: tf.ones(()), r"got shape \(\)"),
    (lambda x: logits(x)[:1], "answers for 1 examples, but was asked for 24"),
    (lambda x: logits(x)[1:], "answers for 23 examples, but was asked for 24"),
    (lambda x: logits(x)[None], "answers for 1 examples"),
    (lambda x: logits(x)[:, None], "all axes must agree"),
    (lambda x: logits(x)[:, 1:], "has 4 classes and the teacher 3"),
    (lambda x: [logits(x), logits(x)], "gives several outputs .* pass a callable"),
    (lambda x: {"a": logits(x)}, "gives several outputs .* pass a callable"),
    (lambda x: logits(x) * np.nan, "not all finite"),
    (lambda x: logits(x) / 0.0, "not all finite"),
    (Subclassed(), "must return floats .* got NoneType"),
]

ROWS = (
    [Row("as_teacher", given_to("as_teacher", w), said) for w, said in THINGS]
    + [
        Row(name, given_to(name, THINGS[index][0]), THINGS[index][1])
        for name in list(TAKES_ONE)[1:]
        for index in REFUSED_FIRST
    ]
    + [Row("Distiller.fit", fitted(answer), said) for answer, said in ANSWERS]
    + [
        Row("as_teacher", lambda wrong=wrong: kd.as_teacher(teacher(), wrong), said)
        for wrong, said in {
            "yes": "teacher_from_logits must be True, False, None",
            1: "teacher_from_logits must be True, False, None",
        }.items()
    ]
    + [
        Row(
            "as_teacher",
            lambda: kd.as_teacher(teacher(), {"a": "no"}),
            r"teacher_from_logits\['a'\] must be True, False",
        ),
        Row(
            "Distiller",
            lambda: kd.Distiller(student(), teacher(), teacher_from_logits="yes"),
            "teacher_from_logits must be True, False, None",
        ),
        Row(
            "Distiller",
            lambda: kd.Distiller(student(), teacher(), student_from_logits="yes"),
            "student_from_logits must be True, False, None",
        ),
        *[
            Row(
                "as_teacher",
                lambda wrong=wrong: kd.as_teacher([teacher()], average=wrong),
                'teacher_average must be "probabilities" or "logits"',
            )
            for wrong in ("median", None, 0, ["logits"])
        ],
        *[
            Row(
                "as_teacher",
                lambda given=given: kd.as_teacher(teacher(), **given),
                said,
            )
            for given, said in (
                (
                    {"preprocess": 3},
                    "preprocess must be a function or a Keras layer, got 3",
                ),
                (
                    {"preprocess": keras.layers.Dense},
                    "preprocess must be a function or",
                ),
                ({"resize": 32}, "resize must be a list of 2 pixels, got 32"),
                ({"resize": (32,)}, "resize must be a list of 2 pixels"),
                (
                    {"resize": (32, 0)},
                    r"resize\[1\] must be a whole number >= 1, got 0",
                ),
                ({"inputs": "image"}, "inputs must be a list of str, got 'image'"),
                ({"inputs": []}, "inputs must name one input at least"),
                (
                    {"classes": []},
                    "classes must be a list of class numbers, 1 at least",
                ),
                ({"classes": 2}, "classes must be a list of class numbers"),
                ({"classes": [0, -1]}, r"classes\[1\] must be a whole number >= 0"),
                ({"classes": [0, 0]}, r"must name each class once, got \[0, 0\]"),
                ({"classes": [0, 4]}, "names the class 4, and the .* has 4; they are"),
            )
        ],
        Row(
            "as_teacher",
            lambda: kd.as_teacher(teacher(), resize=(2, 2))(np.ones((2, 5)), 1.0),
            "resize is for images .batch, height, width, channels., and",
        ),
        Row(
            "as_teacher",
            lambda: kd.as_teacher(teacher(), outputs="logits"),
            "outputs must be a list of str, got 'logits'",
        ),
    ]
    + [
        Row(
            "feature_paths", lambda: kd.feature_paths("model.keras"), "model must be a"
        ),
        Row(
            "feature_paths",
            lambda: kd.feature_paths(student(), {"other": np.ones((2, 5))}),
            "takes the inputs",
        ),
    ]
    + [
        Row("Distiller", lambda wrong=wrong: kd.Distiller(wrong), said)
        for wrong, said in (
            (None, "student must be a keras.Model, got None"),
            ("student.keras", "student must be a keras.Model, got 'student.keras'"),
            (keras.Sequential, "student must be a keras.Model.*Give an instance of it"),
            (keras.layers.Dense(3), "student must be a keras.Model, got <Dense"),
            ([], r"student must be a keras.Model, got \[\]"),
        )
    ]
    + [
        Row(
            "FeatureLoss",
            lambda layer=layer: kd.Distiller(
                student(), teacher(), distillation_loss=kd.FeatureLoss(layer, layer)
            ),
            f"has no layer '{layer}'; it has",
        )
        for layer in ("no such", "")
    ]
    + [
        Row(
            "FeatureLoss",
            lambda wrong=wrong: kd.Distiller(
                student(),
                wrong(),
                distillation_loss=kd.FeatureLoss(
                    student().layers[0].name, "hidden", "auto"
                ),
            ),
            said,
        )
        for wrong, said in (
            (lambda: [teacher()], "layers hidden of the teacher are to be matched"),
            (lambda: logits, "layers hidden of the teacher are to be matched"),
        )
    ]
)
