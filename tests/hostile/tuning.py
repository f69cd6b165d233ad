"""Wrong uses of the search and its hypermodel."""

import atexit
import functools
import itertools
import os
import shutil
import tempfile

import keras
import keras_tuner
import numpy as np
import tensorflow as tf

import keras_distill as kd
from tests.hostile import Row
from tests.hostile.things import CLASSES, data, model, teacher

NAN, INF = float("nan"), float("inf")
_numbers = itertools.count()


@functools.cache
def _folder():
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def build(hp):
    return model(width=hp.Int("width", 2, 4))


@functools.cache
def store():
    path = os.path.join(_folder(), "store")
    return kd.SoftTargets.write(path, teacher(), data(), verbose=False)


def search(build_student=build, train=None, validation=None, **wrong):
    """Returns a call of `search`, refused before it writes anything."""

    def call():
        given = {"teacher": teacher(), "max_trials": 2, "epochs": 1, "verbose": False}
        kd.search(
            build_student,
            data() if train is None else train(),
            data() if validation is None else validation(),
            **(given | wrong),
        )

    return call


def looked(*arguments, **wrong):
    """Returns a call of `search` that is refused after a look at the data."""

    def call():
        folder = os.path.join(_folder(), f"search-{next(_numbers)}")
        given = {"teacher": None, "soft_targets": store(), "directory": folder}
        search(*arguments, **(given | wrong))()

    return call


def hypermodel(build_student=build, **wrong):
    return lambda: kd.DistillationHyperModel(build_student, **wrong)


def built(build_student=build, **wrong):
    """Returns a call that builds a trial's model."""

    def call():
        made = kd.DistillationHyperModel(build_student, **wrong)
        made.build(keras_tuner.HyperParameters())

    return call


def labels(change):
    """Returns data whose last label is another."""

    def make():
        x, y = data()
        y = y.astype("float32")
        y[-1] = change
        return x, y

    return make


def weights(value):
    def make():
        given = np.ones(24, "float32")
        given[-1] = value
        return (*data(), given)

    return make


def endless():
    return tf.data.Dataset.from_tensor_slices(data()).repeat()


def generated():
    spec = (tf.TensorSpec((5,)), tf.TensorSpec((), tf.int64))
    return tf.data.Dataset.from_generator(
        lambda: zip(*data(), strict=True), output_signature=spec
    )


def generator():
    return (batch for batch in [data()])


SAME = model()
RANGE = "a number, a range|empty list|finite number|from 0 to 1|from 9|above 0|float32"
WRONG_RANGES = [
    (), (1,), (1, 2, 3), (1, 2, "cubic"), (1, 2, "log", 4), [], (9, 2), (NAN, 2), (1, INF),
    ("1", "2"), (True, 2), (1, None), "1:20", {"low": 1}, {1.0, 2.0}, [1, "2"], [True],
    [NAN], np.array([1.0, 2.0]), (1, 2, ["log"]), keras.optimizers.schedules.CosineDecay(1, 2),
]  # fmt: skip
COUNTS = ("max_trials", "epochs", "executions_per_trial", "batch_size", "patience")
OBJECTIVE = keras_tuner.Objective

ROWS = (
    [
        Row(
            name,
            call(output_kinds=wrong),
            "^output_kinds.* must be 'softmax', 'sigmoid'",
        )
        for name, call in (("DistillationHyperModel", hypermodel), ("search", search))
        for wrong in ("multilabel", 3, {"a": "binary"}, True)
    ]
    + [
        Row(
            "DistillationHyperModel",
            hypermodel(temperature=wrong),
            f"^temperature .*({RANGE})",
        )
        for wrong in [*WRONG_RANGES, (0, 5), 0, -1, 1e20, (0.0, 5.0, "log")]
    ]
    + [
        Row("DistillationHyperModel", hypermodel(alpha=wrong), f"^alpha .*({RANGE})")
        for wrong in [*WRONG_RANGES[:-1], (0.0, 1.5), -0.1, (0.0, 1.0, "log"), None]
    ]
    + [
        Row(
            "DistillationHyperModel",
            hypermodel(distillation_loss=[(wrong, kd.SoftTargetLoss())]),
            "^a weight of distillation_loss ",
        )
        for wrong in [(-1, 2), NAN, True, "1", (2, 1), None, [], (1, 2, "up"), -1.0]
    ]
    + [
        Row("DistillationHyperModel", hypermodel(distillation_loss=wrong), said)
        for wrong, said in (
            ("kl", "there is no distillation loss .kl."),
            (3, "must be a distillation loss"),
            ([(1.0, "kl")], "there is no distillation loss .kl."),
            ([(1.0, None)], "must be a distillation loss"),
        )
    ]
    + [
        Row("DistillationHyperModel", hypermodel(wrong), "build_student must be a func")
        for wrong in (None, SAME, "build", [build], 3)
    ]
    + [
        Row(
            "DistillationHyperModel",
            hypermodel(metrics=wrong),
            "^metrics(.0.)? must be a ",
        )
        for wrong in ("accuracy", {"accuracy"}, [3], [None], keras.metrics.Mean())
    ]
    + [
        Row("DistillationHyperModel.build", built(wrong), said)
        for wrong, said in (
            (lambda hp: None, "does it end with a return statement"),
            (lambda hp: keras.Sequential, "must return a keras.Model"),
            (lambda hp: [model()], "must return a keras.Model"),
            (lambda hp: "student.keras", "must return a keras.Model"),
            (lambda hp: SAME, "returns the same model .* from trial to trial"),
            (
                lambda hp: model(width=hp.Int("epochs", 2, 3)),
                "call it 'student_epochs'",
            ),
            (lambda hp: model(width=hp.Int("val_x", 2, 3)), "call it 'student_val_x'"),
        )
    ]
    + [
        Row("search", search(**{name: wrong}), f"^{name} must be a whole number >= ")
        for name in COUNTS
        for wrong in (0, -1, 2.5, True, "3", NAN, 2**31)
    ]
    + [
        Row("search", search(seed=wrong), "^seed must be a whole number >= 0")
        for wrong in (-1, 0.5, True, "0", None)
    ]
    + [
        Row("search", search(n_jobs=wrong), "^n_jobs must be a whole number >= 1")
        for wrong in (0, -2, 1.5, True, "2")
    ]
    + [
        Row(
            "search", search(n_jobs=2, threads=wrong), "^threads must be a whole number"
        )
        for wrong in (0, -1, 1.5, True, "2")
    ]
    + [
        Row("search", search(**{name: wrong}), f"^{name} must be True or False")
        for name in ("resume", "overwrite", "retrain")
        for wrong in (1, None, "yes")
    ]
    + [
        Row("search", search(verbose=wrong), "^verbose must be True or False, or as")
        for wrong in (3, None, "yes")
    ]
    + [
        Row("search", search(directory=wrong), "^directory must be a path")
        for wrong in ("", " ", None, 3, b"x", "a\0b", ["x"])
    ]
    + [
        Row(
            "search",
            search(teacher=None, soft_targets=wrong),
            "^soft_targets must be a p",
        )
        for wrong in ("", 3, b"x", ["x"])
    ]
    + [
        Row("search", search(algorithm=wrong), "^algorithm must be one of")
        for wrong in ("grid", "", None, 3, ["random"], keras_tuner.RandomSearch)
    ]
    + [
        Row("search", search(on_trial_end=wrong), "^on_trial_end must be a function")
        for wrong in (3, "print", [print])
    ]
    + [
        Row("search", search(objective=wrong), said)
        for wrong, said in (
            ([], "objective must be"),
            (["accuracy"], "objective must be"),
            ([OBJECTIVE("val_nll", "min")], "objective must be"),
            (3, "objective must be"),
            ("", 'objective must be "accuracy" or "nll"'),
            ("f1", "for a metric of your own say"),
            ("loss", "cannot be searched for"),
            ("val_hard_loss", "cannot be searched for"),
            (OBJECTIVE("val_nll", "up"), "objective.direction must be"),
            (OBJECTIVE("val_nll", None), "objective.direction must be"),
            (OBJECTIVE(3, "min"), "objective.name must be a str"),
            (OBJECTIVE("accuracy", "max"), "is measured on the training data"),
        )
    ]
    + [
        Row(
            "search",
            search(train=lambda wrong=wrong: wrong),
            "^(the )?train.* (must be|brings no)",
        )
        for wrong in (None, 3, "digits", [1, 2], {}, (), (1, 2, 3, 4), np.ones((4, 5)))
        if wrong is not None
    ]
    + [
        Row("search", search(teacher=None), "got neither"),
        Row("search", search(soft_targets="kept"), "got both"),
        Row("search", search(resume=True, overwrite=True), "exclude each other"),
        Row("search", search(threads=2), "threads is for other processes"),
        Row("search", search(None), "build_student must be a function"),
        Row("search", search(temperature=(5, 1)), "from 5 down to 1"),
        Row("search", search(alpha=[0.5, 2.0]), "alpha must be a number from 0 to 1"),
        Row("search", search(metrics="accuracy"), "metrics must be a list"),
        Row("search", looked(lambda hp: SAME), "returns the same model"),
        Row("search", looked(train=generator), "training data is a generator"),
        Row("search", looked(validation=generator), "validation|dataset must be"),
        Row("search", looked(validation=endless), "validation data is endless"),
        Row("search", looked(validation=generated), "which may never end"),
        Row("search", looked(train=endless), "endless"),
        Row("search", looked(validation=lambda: data()[0]), "brings no labels"),
        Row("search", looked(train=lambda: data()[:1]), "brings no labels"),
        Row(
            "search", looked(train=lambda: (data()[0][:9], data()[1])), "different leng"
        ),
        Row(
            "search",
            looked(validation=lambda: (data()[0][:0], data()[1][:0])),
            "empty",
        ),
        Row("search", looked(lambda hp: model(9)), "has 9 classes and the teacher 4"),
        Row(
            "search",
            looked(objective=OBJECTIVE("val_f1", "max")),
            "'val_f1' is not among what validation gives",
        ),
    ]
    + [
        Row("search", looked(**{where: labels(wrong)}), "^labels must be .*from 0 to 3")
        for where, wrong in (
            ("train", NAN),
            ("train", -1),
            ("validation", CLASSES),
            ("validation", 0.5),
        )
    ]
)
