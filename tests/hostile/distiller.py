"""Wrong uses of the distiller and its losses."""

import functools

import keras
import numpy as np

import keras_distill as kd
from tests.hostile import Row
from tests.hostile.things import CLASSES, data, model, student, teacher

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ONE_HOT = keras.losses.CategoricalCrossentropy(from_logits=True)
NAN, INF = float("nan"), float("inf")


def _with(**arguments):
    return lambda: kd.Distiller(student(), teacher(), **arguments)


@functools.cache
def _distiller(one_hot=False):
    """A distiller that no row may train."""
    distiller = kd.Distiller(student(), teacher())
    distiller.compile("sgd", ONE_HOT if one_hot else SPARSE)
    return distiller


def _set(name, value):
    return lambda: setattr(_distiller(), name, value)


def _compile(*args, **kwargs):
    return lambda: kd.Distiller(student(), teacher()).compile("sgd", *args, **kwargs)


def _changed(values, wrong):
    values = np.array(values, np.result_type(np.asarray(values), np.asarray(wrong)))
    values[3] = wrong
    return values


def _one_hot(wrong=None):
    rows = np.eye(CLASSES, dtype="float32")[data()[1]]
    return rows if wrong is None else _changed(rows, wrong)


def _weights(wrong):
    return _changed(np.ones(24, "float32"), wrong)


def _sharing():
    layer = keras.layers.Dense(3)
    both = [
        keras.Sequential([keras.Input((5,)), layer, keras.layers.Dense(CLASSES)])
        for _ in range(2)
    ]
    return both


def _calls(labels, sentence, weight=None, one_hot=False):
    """Yields the same wrong data for each entrance that takes it."""
    x, _ = data()

    def call(name):
        def wrong():
            arguments = {"sample_weight": weight}
            if name in ("fit", "evaluate"):
                arguments["verbose"] = 0
            getattr(_distiller(one_hot), name)(x, labels, **arguments)

        return wrong

    for name in ("fit", "train_on_batch", "evaluate"):
        yield Row(f"Distiller.{name}", call(name), sentence)


def _fit(sentence, *args, **kwargs):
    return Row(
        "Distiller.fit", lambda: _distiller().fit(*args, verbose=0, **kwargs), sentence
    )


def _loss(name, call, sentence):
    return Row(name, call, sentence)


X, Y = data()
TEMPERATURE = "temperature must be a finite number > 0"
RANGE = "float32 can neither square nor divide"
ALPHA = "alpha must be a number from 0 to 1"
WEIGHTS = "sample weights must be finite numbers >= 0"


def _matching(loss):
    """Returns a call that matches classes by a loss that is not for them."""
    return lambda: kd.Distiller(student(), teacher(), distillation_loss=loss).compile(
        "sgd", SPARSE
    )


ROWS = [
    *[
        Row("Distiller", _with(temperature=wrong), TEMPERATURE)
        for wrong in (0, -1.0, NAN, INF, "4", None, True, [4], (1, 2))
    ],
    Row("Distiller", _with(temperature=1e20), RANGE),
    Row("Distiller", _with(temperature=1e-20), RANGE),
    *[
        Row("Distiller", _with(alpha=wrong), ALPHA)
        for wrong in (-0.1, 1.1, NAN, "0.5", None, True, [0.5])
    ],
    Row("Distiller.temperature", _set("temperature", 0), TEMPERATURE),
    Row("Distiller.temperature", _set("temperature", 1e30), RANGE),
    Row("Distiller.alpha", _set("alpha", 2), ALPHA),
    Row("Distiller.alpha", _set("alpha", NAN), ALPHA),
    Row("Distiller.teacher", _set("teacher", 3), "teacher must be a keras.Model"),
    Row("Distiller.teacher", _set("teacher", []), "teacher is an empty list"),
    Row("Distiller.teacher", lambda: setattr(_distiller(), "teacher", student()), "same"),
    Row("Distiller.teacher", lambda: setattr(_distiller(), "teacher", model(7)), "has 4"),
    # Models
    Row("Distiller", lambda: kd.Distiller("model", teacher()), "student must be a keras"),
    Row("Distiller", lambda: kd.Distiller(student(), student()), "are the same object"),
    Row("Distiller", lambda: kd.Distiller(*_sharing()), "teacher shares the variable"),
    Row("Distiller", lambda: kd.Distiller(student(), [teacher(), student()]), "same obj"),
    Row("Distiller", lambda: kd.Distiller(student(), functools.partial(student())), "same obj"),
    Row("Distiller", lambda: kd.Distiller(student(), model(7)), "student has 4 classes"),
    Row(
        "Distiller.compile", lambda: kd.Distiller(model(1), model(1)).compile("sgd", SPARSE),
        "a softmax over it is al",
    ),
    *[
        Row("Distiller", _with(output_kinds=wrong), "output_kinds.* must be 'softmax', 'sigm")
        for wrong in ("binary", 1, ["values"], {"a": "no"})
    ],
    Row("Distiller", _with(output_kinds={"a": "values"}), "output 'a', which the model"),
    Row("SquaredErrorLoss", lambda: kd.SquaredErrorLoss() + 3, "only distillation losses"),
    Row("SquaredErrorLoss", _matching(kd.SquaredErrorLoss()), "does not compare outputs of"),
    *[
        Row("SquaredErrorLoss", lambda wrong=wrong: kd.SquaredErrorLoss(wrong), "weight_by must")
        for wrong in (1.5, True, ["a"])
    ],
    Row(
        "SquaredErrorLoss", lambda: kd.Distiller(
            student(), teacher(), output_kinds="values",
            distillation_loss=kd.SquaredErrorLoss(weight_by="boxes"),
        ),
        "weight_by='boxes', which must be a distilled output",
    ),
    Row("CosineLoss", lambda: NAN * kd.CosineLoss(), "a weight must be a finite"),
    Row("CosineLoss", _matching(kd.CosineLoss()), "does not compare outputs of"),
    Row("Distiller", _with(distillation_loss="kl"), "there is no distillation loss .kl."),
    Row("Distiller", _with(distillation_loss={"a": SPARSE}), "must be a distillation lo"),
    Row(
        "Distiller", _with(distillation_loss={"a": kd.SoftTargetLoss()}),
        "no counterpart|the output 'a'",
    ),
    Row("Distiller", _with(teacher_average="median"), "teacher_average must be"),
    Row("Distiller", _with(teacher_from_logits=False), "'dense_?.*gives logits"),
    Row("Distiller", _with(student_from_logits=False), "'dense_?.*gives logits"),
    Row("Distiller", _with(teacher_from_logits="no"), "teacher_from_logits must be"),
    Row("Distiller", _with(student_from_logits=1), "student_from_logits must be"),
    Row(
        "Distiller",
        lambda: kd.Distiller(model(activation="softmax"), student_from_logits=True),
        "gives probabilities",
    ),
    # compile
    Row("Distiller.compile", _compile("sparse_categorical_crossentropy"), "ends in logits"),
    Row("Distiller.compile", _compile(keras.losses.CategoricalCrossentropy()), "in logits"),
    Row(
        "Distiller.compile",
        lambda: kd.Distiller(model(activation="softmax")).compile("sgd", SPARSE),
        "ends in a softmax",
    ),
    Row(
        "Distiller.compile", _compile(SPARSE, metrics={"a": [kd.TeacherAgreement()]}),
        "TeacherAgreement goes into",
    ),
    Row(
        "Distiller.compile", _compile(SPARSE, weighted_metrics=[kd.TeacherAgreement()]),
        "TeacherAgreement goes into",
    ),
    # Data
    *_calls(_changed(Y, 9), "labels must be from 0 to 3, .* got 9"),
    *_calls(_changed(Y, -1), "labels must be from 0 to 3, .* got -1"),
    *_calls(_changed(Y, 0.5), "labels must be whole numbers from 0 to 3, got 0.5"),
    *_calls(_changed(Y, NAN), "labels must be whole numbers from 0 to 3, got nan"),
    *_calls(_one_hot(), "labels are one-hot but the loss is sparse"),
    *_calls(np.stack([Y, Y, Y], 1), "takes one integer label for each softmax"),
    *_calls(Y, WEIGHTS, weight=_weights(NAN)),
    *_calls(Y, WEIGHTS, weight=_weights(-1.0)),
    *_calls(Y, WEIGHTS, weight=_weights(INF)),
    *_calls(Y, "sample weights must have the shape", weight=np.ones((24, 3))),
    *_calls(Y, "takes one-hot labels with 4 columns", one_hot=True),
    *_calls(_one_hot(NAN), "must sum to 1, got a row with the sum nan", one_hot=True),
    *_calls(_one_hot(0.5), "must sum to 1, got a row with the sum 2", one_hot=True),
    *_calls(_one_hot(0.0), "must sum to 1, got a row with the sum 0", one_hot=True),
    *_calls(_one_hot([2, -1, 0, 0]), "one-hot labels must be >= 0", one_hot=True),
    _fit("fit.. was given no data"),
    _fit("the training data is empty", X[:0], Y[:0]),
    _fit("labels must be numbers", X, np.array(["a"] * 24)),
    _fit("class_weight must be a dict", X, Y, class_weight=[1.0, 2.0]),
    _fit("class_weight.0. must be a finite", X, Y, class_weight={0: NAN}),
    _fit("class_weight.0. must be a finite", X, Y, class_weight={0: -1}),
    _fit("class in class_weight must be", X, Y, class_weight={"a": 1}),
    _fit("class_weight names the class 9", X, Y, class_weight={9: 1.0}),
    _fit("not both", X, Y, class_weight={0: 1.0}, sample_weight=np.ones(24)),
    _fit("got 9 in the validation data", X, Y, validation_data=(X, _changed(Y, 9))),
    _fit(
        "all finite|answers are not|not all finite",
        kd.DistillationInputs(X, _changed(np.zeros((24, CLASSES), "float32"), NAN)), Y,
    ),
    _fit(
        "is not|has 4 classes|7 classes",
        kd.DistillationInputs(X, np.zeros((24, 7), "float32")), Y,
    ),
    _fit(
        "probabilities, where logits are expected",
        kd.DistillationInputs(X, np.full((24, CLASSES), 0.25, "float32")), Y,
    ),
    # Losses
    *[
        Row("SoftTargetLoss", lambda t=wrong: kd.SoftTargetLoss(t), TEMPERATURE)
        for wrong in (0, -4, NAN, "4", True)
    ],
    Row("SoftTargetLoss", lambda: kd.SoftTargetLoss(1e20), RANGE),
    Row(
        "SoftTargetLoss",
        lambda: kd.SoftTargetLoss().compute_loss([[0.0, 1.0]], [[0.0, 1.0]]),
        "give one: SoftTargetLoss",
    ),
    *[
        Row("SumOfLosses", lambda w=wrong: w * kd.LogitLoss(), "a weight must be a finite")
        for wrong in (-1.0, NAN, INF, True)
    ],
    Row("SumOfLosses", lambda: kd.SumOfLosses([(1.0, "kl")]), "only distillation losses"),
    *[
        Row(
            of.__name__,
            lambda of=of, name=name, wrong=wrong: of(**{name: wrong}),
            said,
        )
        for of, name, said in (
            (kd.DecoupledLoss, "target_weight", "target_weight must be a finite"),
            (kd.DecoupledLoss, "other_weight", "other_weight must be a finite"),
            (kd.RelationalLoss, "inter_weight", "inter_weight must be a finite"),
            (kd.RelationalLoss, "intra_weight", "intra_weight must be a finite"),
            (kd.JensenShannonLoss, "weight", "weight must be from 0 to 1"),
            (kd.ReverseKLLoss, "temperature", "temperature must be"),
            (kd.LogitStandardizedLoss, "temperature", "temperature must be"),
        )
        for wrong in (-1.0, NAN, "2")
    ],
    Row("LogitLoss", lambda: kd.LogitLoss() + 3, "only distillation losses add up"),
    Row("LogitLoss", lambda: "2" * kd.LogitLoss(), "a weight must be a finite"),
    Row(
        "FeatureLoss", _with(distillation_loss=kd.FeatureLoss("no", "no")),
        "the student has no layer 'no'",
    ),
    *[
        Row("FeatureLoss", lambda a=wrong: kd.FeatureLoss("a", "b", adapter=a), "adapter must")
        for wrong in (-3, "1x1", True, keras.layers.Dense)
    ],
    Row("FeatureLoss", lambda: kd.FeatureLoss(adapter="auto"), "give student_layer_name and"),
    *[
        Row("FeatureLoss", lambda w=wrong: kd.FeatureLoss("a", "b", loss=w), "loss must be")
        for wrong in ("mse2", 3, lambda t, s: 0.0, keras.losses.SparseCategoricalCrossentropy())
    ],
    Row("AttentionTransferLoss", lambda: kd.AttentionTransferLoss("a", "b", p=0.5), "p must"),
    Row(
        "AttentionTransferLoss",
        lambda: kd.AttentionTransferLoss("a", "b").bind((None, 4), (None, 4)),
        "compares two maps or two sequences",
    ),
    Row("SimilarityLoss", lambda: kd.SimilarityLoss("a", 3), "teacher_layer_name must be"),
    Row("RelationLoss", lambda: kd.RelationLoss(distance_weight=-1), "distance_weight must"),
    Row("RelationLoss", lambda: kd.RelationLoss(angle_weight=NAN), "angle_weight must"),
    Row("NormalizedFeatureLoss", lambda: kd.NormalizedFeatureLoss("a", "b", 3), "adapter must"),
    Row("CosineLoss", lambda: kd.CosineLoss("a", "b", 3), "adapter must"),
    Row("FeatureLoss", lambda: kd.FeatureLoss(3, "b"), "student_layer_name must be"),
]  # fmt: skip
