"""Wrong calls of methods of Keras's that the distiller has too, and of the search."""

import functools

import keras

import keras_distill as kd
from tests.hostile import Row
from tests.hostile.things import data, model, student, teacher

X, Y = data()


def distiller(is_compiled=True):
    made = kd.Distiller(student(), teacher())
    if is_compiled:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        made.compile("sgd", loss)
    return made


def searched(**changes):
    """Returns a call of `search` with one wrong argument."""
    good = {
        "build_student": lambda hp: model(),
        "train": (X, Y),
        "validation": (X, Y),
        "teacher": teacher(),
        "max_trials": 2,
        "directory": "search",
        "verbose": False,
    }
    return lambda: kd.search(**{**good, **changes})


def compiled(*args, **kwargs):
    return lambda: distiller(False).compile(*args, **kwargs)


ROWS = [
    *[
        Row(f"Distiller.{name}", functools.partial(setattr_, name, wrong), sentence)
        for setattr_ in [lambda name, wrong: setattr(distiller(), name, wrong)]
        for name, wrong, sentence in [
            ("temperature", 0, "temperature must be a finite number > 0, got 0"),
            ("temperature", 1e20, "float32 can neither square nor divide"),
            ("temperature", "4", "temperature must be a finite number > 0, got '4'"),
            ("alpha", 2, "alpha must be a number from 0 to 1, got 2"),
            ("alpha", True, "alpha must be a number from 0 to 1, got True"),
            ("teacher", 3, "teacher must be a keras.Model, a list of teachers, a path"),
        ]
    ],
    *[
        Row(
            f"Distiller.{name}",
            lambda name=name: getattr(distiller(False), name)(X, Y),
            "You must call `compile",
        )
        for name in ("fit", "evaluate", "train_on_batch", "test_on_batch")
    ],
    Row(
        "Distiller.evaluate",
        lambda: distiller().evaluate(X, verbose=0),
        "the evaluation data has no labels; give them, or compile with metrics",
    ),
    Row(
        "Distiller.predict",
        lambda: distiller().predict("digits", verbose=0),
        "Unrecognized data type: x=digits",
    ),
    Row(
        "Distiller.export",
        lambda: distiller().export("model", format="nope"),
        "Unrecognized format=nope",
    ),
    Row(
        "Distiller.compile",
        compiled("sgd", "mse", metrics={"a": kd.TeacherAgreement()}),
        "TeacherAgreement goes into compile.metrics=",
    ),
    Row(
        "TeacherAgreement",
        compiled("sgd", "mse", weighted_metrics=[kd.TeacherAgreement()]),
        "TeacherAgreement goes into compile.metrics=",
    ),
    *[
        Row("SoftTargetLoss", lambda wrong=wrong: kd.SoftTargetLoss(wrong), sentence)
        for wrong, sentence in [
            (0, "must be a finite number > 0, got 0"),
            ("4", "must be a finite number > 0, got '4'"),
        ]
    ],
    Row(
        "LogitLoss",
        lambda: kd.LogitLoss() + 3,
        "only distillation losses add up|unsupported operand",
    ),
    Row(
        "SumOfLosses",
        lambda: kd.SumOfLosses([(1.0, "kl")]),
        "only distillation losses",
    ),
    *[
        Row("search", searched(**{name: value}), sentence)
        for name, value, sentence in [
            ("build_student", 3, "build_student must be"),
            ("seed", -1, "seed must be a whole number >= 0, got -1"),
            ("max_trials", 0, "max_trials must be"),
            ("alpha", (0.0, 2.0), "alpha must be a number from 0 to 1"),
            ("temperature", 0, "temperature must be a finite number > 0"),
            ("epochs", 0, "epochs must be"),
            ("batch_size", 0, "batch_size must be"),
        ]
    ],
    *[
        Row(
            "DistillationHyperModel",
            lambda changes=changes: kd.DistillationHyperModel(
                **{"build_student": lambda hp: model(), "teacher": teacher(), **changes}
            ),
            sentence,
        )
        for changes, sentence in [
            ({"build_student": 3}, "build_student must be"),
            ({"temperature": 0}, "temperature must be a finite number > 0"),
            ({"alpha": (0, 2)}, "alpha must be a number from 0 to 1"),
        ]
    ],
    *[
        Row(
            "SearchResult.save",
            lambda wrong=wrong: kd.SearchResult.save(
                object.__new__(kd.SearchResult), wrong
            ),
            "folder must be a path, got",
        )
        for wrong in ("", None, 3)
    ],
]
