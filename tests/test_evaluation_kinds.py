"""Outputs of every kind are judged by their own figures, which are scikit-learn's."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit, log_softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)
from sklearn.metrics.pairwise import paired_cosine_distances

import keras_distill as kd
from keras_distill.metrics import calibration_error, reliability
from tests.conftest import FEATURES, mlp

close = functools.partial(pytest.approx, rel=1e-6, abs=1e-6)
judge = functools.partial(kd.evaluate, timing=False)
BINARY = keras.losses.BinaryCrossentropy(from_logits=True)


def examples(count=96, seed=0):
    return np.random.default_rng(seed).normal(size=(count, FEATURES)).astype("float32")


def compiled(model, loss):
    model.compile("sgd", loss)
    return model


def logits_of(model, x):
    """Returns the model's outputs in float64."""
    return model.predict(x, verbose=0).astype("float64")


def own_ece(p, y, weight):
    index = np.clip(np.ceil(p * 15).astype(int) - 1, 0, 14)
    total = sum(
        abs(weight[index == b] @ (y[index == b] - p[index == b])) for b in range(15)
    )
    return total / weight.sum()


# Yes/no questions --------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "sigmoid"])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_yes_or_no_equals_scikit_learn(activation, weighted):
    rng = np.random.default_rng(0)
    x, y = examples(), rng.integers(2, size=96)
    logits, teacher = mlp(6, classes=1), mlp(9, classes=1)
    model = mlp(6, classes=1, activation=activation)
    model.set_weights(logits.get_weights())
    if activation is None:
        compiled(model, BINARY)
    weight = rng.uniform(0, 2, 96).round() * rng.uniform(size=96) if weighted else None
    given = (x, y) if weight is None else (x, y, weight)
    found = judge(model, given, teacher=teacher)
    z = logits_of(logits, x)[:, 0]
    w = np.ones(96) if weight is None else weight
    assert found.kind == "sigmoid"
    assert found.examples == (w > 0).sum()
    assert found.accuracy == close(accuracy_score(y, z > 0, sample_weight=w))
    assert found.auc == close(roc_auc_score(y, z, sample_weight=w))
    assert found.nll == close(log_loss(y, expit(z), sample_weight=w))
    assert found.calibration_error == close(own_ece(expit(z), y, w))
    same = (logits_of(teacher, x)[:, 0] > 0) == (z > 0)
    assert found.teacher_agreement == close(np.average(same, weights=w))
    assert found.top5_accuracy is found.mae is found.r2 is None


def test_labels_of_a_yes_or_no_of_every_form():
    x, y = examples(), np.random.default_rng(1).integers(2, size=96)
    model = mlp(6, classes=1, activation="sigmoid")
    wanted = judge(model, (x, y))
    for form in (
        y[:, None],
        y.astype(bool),
        y.astype("float32"),
        y[:, None].astype("float16"),
        tf.cast(y, tf.bfloat16),
    ):
        assert judge(model, (x, form)) == wanted
    # Smoothed labels are judged by the larger side; their NLL is the cross-entropy.
    smooth = judge(model, (x, 0.9 * y + 0.05))
    assert smooth.accuracy == wanted.accuracy
    assert smooth.auc == wanted.auc
    loss = keras.losses.BinaryCrossentropy()
    assert smooth.nll == close(float(loss(0.9 * y + 0.05, model(x)[:, 0])))


def test_questions_equal_scikit_learn_one_by_one():
    rng = np.random.default_rng(0)
    x, y = examples(), rng.integers(2, size=(96, 3))
    model = compiled(mlp(6, classes=3), BINARY)
    weight = rng.uniform(0.5, 2.0, 96)
    teacher = mlp(9, classes=3)
    found = judge(model, (x, y, weight), teacher=teacher)
    z = logits_of(model, x)
    each = range(3)
    accuracies = [
        accuracy_score(y[:, k], z[:, k] > 0, sample_weight=weight) for k in each
    ]
    losses = [log_loss(y[:, k], expit(z[:, k]), sample_weight=weight) for k in each]
    assert (found.kind, found.examples) == ("sigmoid", 96)
    assert found.accuracy == close(np.mean(accuracies))
    assert found.auc == close(
        roc_auc_score(y, z, average="macro", sample_weight=weight)
    )
    assert found.nll == close(np.mean(losses))
    repeated = np.repeat(weight, 3)
    ece = own_ece(expit(z).ravel(), y.ravel(), repeated)
    assert found.calibration_error == close(ece)
    same = (logits_of(teacher, x) > 0) == (z > 0)
    assert found.teacher_agreement == close(np.average(same.ravel(), weights=repeated))


def test_a_question_of_one_answer_has_no_auc():
    x, y = examples(), np.random.default_rng(0).integers(2, size=(96, 2))
    model = compiled(mlp(6, classes=2), BINARY)
    z = logits_of(model, x)
    y[:, 1] = 1
    assert judge(model, (x, y)).auc == close(roc_auc_score(y[:, 0], z[:, 0]))
    assert judge(model, (x, np.ones_like(y))).auc is None


def test_equal_scores_count_half_as_in_scikit_learn():
    rng = np.random.default_rng(0)
    score, y = rng.integers(4, size=(60, 1)).astype("float32"), rng.integers(2, size=60)
    weight = rng.uniform(size=60)
    found = judge(
        lambda x: x, (score, y, weight), output_kinds="sigmoid", from_logits=True
    )
    assert found.auc == close(roc_auc_score(y, score[:, 0], sample_weight=weight))


def unet():
    inputs = keras.Input((4, 6, 2))
    return keras.Model(inputs, keras.layers.Conv2D(1, 3, padding="same")(inputs))


@pytest.mark.parametrize("trailing", [False, True])
def test_masks_and_pixels_without_a_label(trailing):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 4, 6, 2)).astype("float32")
    y = rng.choice([0, 1, 255], size=(10, 4, 6, 1)).astype("uint8")
    model = unet()  # the labels alone say that it is a yes or no
    found = judge(model, (x, y if trailing else y[..., 0]), ignore_class=255)
    z, counts = logits_of(model, x).ravel(), y.ravel() != 255
    assert (found.kind, found.examples) == ("sigmoid", counts.sum())
    assert found.auc == close(roc_auc_score(y.ravel()[counts], z[counts]))
    assert found.nll == close(log_loss(y.ravel()[counts], expit(z[counts])))
    # The same by weights, of which a pixel has one.
    clean = np.where(y == 255, 0, y)
    weighted = judge(model, (x, clean, (y != 255)[..., 0].astype("float32")))
    assert weighted == found


def test_a_question_without_a_label_is_left_out_by_itself():
    x, rng = examples(), np.random.default_rng(0)
    y = rng.choice([0, 1, -1], size=(96, 3))
    model = compiled(mlp(6, classes=3), BINARY)
    found = judge(model, (x, y), ignore_class=-1)
    z, counts = logits_of(model, x), y != -1
    assert found.examples == counts.any(-1).sum()
    assert found.accuracy == close(np.mean((z > 0)[counts] == y[counts]))
    areas = [roc_auc_score(y[c, k], z[c, k]) for k, c in enumerate(counts.T)]
    assert found.auc == close(np.mean(areas))


# Values ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("loss", ["mse", "huber", None])
def test_values_equal_scikit_learn(width, loss):
    rng = np.random.default_rng(0)
    x, y = examples(), 40 + 5 * rng.normal(size=(96, width))
    model, teacher = mlp(6, classes=width), mlp(9, classes=width)
    if loss is not None:
        compiled(model, loss)
    weight = rng.uniform(0.5, 2.0, 96)
    given = (x, y[:, 0] if width == 1 else y, weight)
    found = judge(model, given, teacher=teacher)
    z, t = logits_of(model, x), logits_of(teacher, x)
    assert (found.kind, found.examples) == ("values", 96)
    assert found.mae == close(mean_absolute_error(y, z, sample_weight=weight))
    squares = np.square(y - z).mean(-1)
    assert found.rmse == close(np.sqrt(np.average(squares, weights=weight)))
    assert found.r2 == close(r2_score(y, z, sample_weight=weight))
    covariance = np.cov(z.ravel(), t.ravel(), aweights=np.repeat(weight, width))
    r = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert found.teacher_correlation == close(r)
    assert found.accuracy is found.nll is found.teacher_agreement is None
    if width == 1:
        assert found.cosine is None
        assert found.rmse == close(root_mean_squared_error(y, z, sample_weight=weight))
    else:
        cosines = 1 - paired_cosine_distances(y, z)
        assert found.cosine == close(np.average(cosines, weights=weight))


def test_values_far_from_zero_and_values_that_do_not_vary():
    rng = np.random.default_rng(0)
    x = (1e4 + rng.normal(size=(200, 1))).astype("float32")

    def one(x):
        return x

    same = judge(one, (x, x), teacher=lambda x: 3 * x, output_kinds="values")
    assert (same.r2, same.mae) == (1.0, 0.0)
    assert same.teacher_correlation == close(1.0)
    flat = judge(one, (x * 0 + 0.1, x), teacher=lambda x: x, output_kinds="values")
    assert flat.teacher_correlation is None
    assert flat.r2 == close(r2_score(x, x * 0 + 0.1))
    assert judge(one, (x, x * 0 + 0.1), output_kinds="values").r2 == 0.0


def test_images_of_values():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 4, 6, 2)).astype("float32")
    y = rng.normal(size=(10, 4, 6, 1))
    model = compiled(unet(), "mse")
    found, z = judge(model, (x, y)), logits_of(model, x)
    assert found.examples == 240
    assert found.r2 == close(r2_score(y.ravel(), z.ravel()))


# What an output is -------------------------------------------------------------------


def test_labels_say_what_layer_and_loss_leave_open():
    x, rng = examples(), np.random.default_rng(0)
    yes_or_no, real = rng.integers(2, size=96), rng.uniform(size=96)
    single = mlp(classes=1)
    assert judge(single, (x, yes_or_no)).kind == "sigmoid"
    assert judge(single, (x, real)).kind == "values"
    assert judge(single, (x, yes_or_no), output_kinds="values").kind == "values"
    assert judge(compiled(mlp(classes=1), "mse"), (x, yes_or_no)).kind == "values"
    bounded = compiled(mlp(classes=1, activation="sigmoid"), "mse")
    assert judge(bounded, (x, real)).kind == "values"
    assert judge(bounded, (x, yes_or_no)).kind == "sigmoid"
    several = mlp(classes=3)
    tags = rng.integers(2, size=(96, 3))
    assert judge(several, (x, tags)).kind == "sigmoid"
    assert judge(several, (x, np.eye(3)[tags[:, 0]])).kind == "softmax"
    assert judge(several, (x, tags + 0.5)).kind == "values"
    # What does not count says nothing.
    hidden = np.where(np.arange(96) < 9, -7, yes_or_no), np.arange(96) >= 9
    assert judge(single, (x, *hidden)).kind == "sigmoid"


def test_a_distiller_knows_what_its_student_is():
    x = examples()
    student, y = mlp(classes=1), np.random.default_rng(0).integers(2, size=96)
    distiller = kd.Distiller(student, compiled(mlp(9, classes=1), "mse"))
    distiller.compile("sgd", "mse")
    assert judge(distiller, (x, y)).kind == "values"
    assert judge(student, (x, y)).kind == "values"
    hinted = kd.Distiller(
        mlp(classes=1), mlp(), distillation_loss=kd.FeatureLoss("hidden", "hidden")
    )
    hinted.compile("sgd", BINARY)
    assert judge(hinted, (x, y)).kind == "sigmoid"


@pytest.mark.parametrize("ours", ["sigmoid", "softmax"])
def test_a_yes_or_no_and_two_classes_agree(ours):
    x, y = examples(), np.random.default_rng(0).integers(2, size=96)
    one = mlp(classes=1, activation="sigmoid")
    two = mlp(classes=2, activation="softmax")
    model, teacher = (one, two) if ours == "sigmoid" else (two, one)
    found = judge(model, (x, y), teacher=teacher)
    classes = two.predict(x, verbose=0).argmax(-1)
    assert found.kind == ours
    assert found.teacher_agreement == close(
        np.mean((one.predict(x, verbose=0)[:, 0] > 0.5) == classes)
    )
    open_one = mlp(classes=1)  # its teacher says what it is
    assert judge(open_one, (x, y), teacher=two).kind == "sigmoid"


# Several outputs ---------------------------------------------------------------------


def heads(width=6, as_dict=True, activation="softmax"):
    x = keras.Input((FEATURES,))
    h = keras.layers.Dense(width, activation="relu")(x)
    outputs = {
        "digit": keras.layers.Dense(3, activation=activation, name="digit")(h),
        "tags": keras.layers.Dense(2, activation="sigmoid", name="tags")(h),
        "age": keras.layers.Dense(1, name="age")(h),
    }
    return keras.Model(x, outputs if as_dict else list(outputs.values()), name="heads")


def labels_of_heads():
    rng = np.random.default_rng(0)
    return {
        "digit": rng.integers(3, size=96),
        "tags": rng.integers(2, size=(96, 2)),
        "age": rng.normal(size=96),
    }


@pytest.mark.parametrize("as_dict", [True, False])
def test_each_output_is_judged_as_what_it_is(as_dict, tmp_path):
    x, y = examples(), labels_of_heads()
    model, teacher = heads(as_dict=as_dict), heads(9, as_dict)
    models, quiet = {"small": model, "big": teacher}, {"timing": False, "verbose": 0}
    result = kd.compare(models, (x, y), teacher=teacher, **quiet)
    small = result["small"]
    kinds = {e.output: e.kind for e in small.outputs}
    assert kinds == {"digit": "softmax", "tags": "sigmoid", "age": "values"}
    assert small.kind is small.accuracy is None
    assert (small.examples, small["age"].examples) == (288, 96)
    answers = model.predict(x, verbose=0)
    p = answers if as_dict else dict(zip(y, answers, strict=True))
    assert small["digit"].accuracy == close(
        np.mean(p["digit"].argmax(-1) == y["digit"])
    )
    assert small["tags"].auc == close(
        roc_auc_score(y["tags"], p["tags"], average="macro")
    )
    assert small["age"].r2 == close(r2_score(y["age"], p["age"]))
    assert result["big / digit"].teacher_agreement == 1.0
    assert result["big / age"].teacher_correlation == close(1.0)
    lines = str(result).splitlines()
    assert len(lines) == 8
    assert lines[2].startswith(f"small / {small.outputs[0].output}")
    result.save(tmp_path / "c.json")
    rows = json.loads((tmp_path / "c.json").read_text())
    assert len(rows) == 6
    (row,) = [r for r in rows if r["name"] == "small / age"]
    assert (row["output"], row["mae"]) == ("age", small["age"].mae)
    assert "outputs" not in row
    assert "| small / age |" in result.to_markdown()
    with pytest.raises(KeyError, match="no output 'x'; there are .*digit"):
        small["x"]


def test_labels_and_weights_by_output():
    x, y = examples(), labels_of_heads()
    model = heads(as_dict=False)
    whole = judge(model, (x, y))
    data = tf.data.Dataset.from_tensor_slices((x, tuple(y.values()))).batch(64)
    assert judge(model, data) == whole
    # An output that has no labels is not judged.
    part = judge(model, (x, {"age": y["age"]}))
    assert [e.output for e in part.outputs] == ["age"]
    assert part["age"] == whole["age"]
    weight = {"age": (np.arange(96) < 48).astype("float32"), "tags": np.ones(96)}
    weighted = judge(model, (x, y, weight))
    assert weighted["digit"] == whole["digit"]
    assert weighted["age"].examples == 48
    # A teacher of another number of outputs agrees on those that it has.
    named = keras.Model(model.inputs, {"tags": model.outputs[1]})
    found = judge(heads(), (x, y), teacher=named)
    assert found["tags"].teacher_agreement is not None
    assert found["digit"].teacher_agreement is None


# Labels that are left out ------------------------------------------------------------


@pytest.mark.parametrize("integer_rank", [1, 2])
def test_ignored_labels_are_left_out(integer_rank):
    x, y = examples(), np.random.default_rng(0).integers(-1, 5, size=96)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    student, teacher = mlp(), mlp(9)
    distiller = kd.Distiller(student, teacher)
    distiller.compile("sgd", loss)
    counts = y >= 0
    wanted = judge(student, (x[counts], y[counts]), name="a", teacher=teacher)
    labels = y if integer_rank == 1 else y[:, None]
    found = judge(distiller, (x, labels), name="a", teacher=teacher)
    assert found == wanted
    nll = -log_softmax(logits_of(student, x), -1)[counts, y[counts]].mean()
    assert found.nll == close(nll)
    said = judge(student, (x, labels), name="a", teacher=teacher, ignore_class=-1)
    assert said == wanted
    # What one was trained to leave out, the others leave out too.
    models = {"teacher": teacher, "student": distiller}
    result = kd.compare(models, (x, labels), timing=False, verbose=False)
    assert result["teacher"].examples == counts.sum()
    with pytest.raises(ValueError, match="labels must be from 0 to 4"):
        judge(student, (x, labels))
    none = np.full(96, -1)
    with pytest.raises(ValueError, match="or all labels are -1, which is left out"):
        judge(distiller, (x, none))


# Refusals ----------------------------------------------------------------------------


def nan_of(width):
    return kd.as_teacher(lambda x: x[:, :width] * np.nan, True)


@pytest.mark.parametrize(
    ("model", "labels", "arguments", "message"),
    [
        (1, lambda y: y + 0.5, {"output_kinds": "sigmoid"}, r"from 0 to 1, got \d\.5"),
        (1, lambda y: np.where(y, np.nan, 0), {"output_kinds": "sigmoid"}, "got nan"),
        (1, lambda y: y.astype(str), {}, "labels must be numbers"),
        (1, lambda y: np.stack([y, y], 1), {"output_kinds": "sigmoid"}, "got shape"),
        (3, lambda y: y, {"output_kinds": "sigmoid"}, 'output_kinds="softmax"'),
        (1, lambda y: np.where(y, np.nan, 0.5), {}, "labels must be finite, got nan"),
        (3, lambda y: y + 0.5, {"output_kinds": "values"}, r"shape \(64, 3\) of the"),
        (
            1,
            lambda y: y,
            {"output_kinds": "softmax"},
            "a softmax of at least 2 classes",
        ),
        (1, lambda y: y, {"output_kinds": "yes"}, "output_kinds must be 'softmax'"),
        (1, lambda y: y, {"output_kinds": {"x": "sigmoid"}}, "names the output 'x'"),
        (1, lambda y: y + 0.5, {"ignore_class": 3}, "ignore_class is of labels that"),
        (1, lambda y: y, {"ignore_class": 0.5}, "ignore_class must be a whole number"),
        (
            1,
            lambda y: y,
            {"ignore_class": {"x": 1}},
            "ignore_class names the output 'x'",
        ),
        (1, lambda y: y + 0.5, {"teacher": nan_of(1)}, "the teacher answers NaN"),
        (1, lambda y: y, {"teacher": nan_of(1)}, "the teacher answers NaN"),
        (1, lambda y: y, {"teacher": nan_of(3)}, "only models of the same classes can"),
        (1, lambda y: y + 0.5, {"teacher": nan_of(3)}, "of the same values can agree"),
    ],
)
def test_refused(model, labels, arguments, message):
    x, y = examples(), np.random.default_rng(0).integers(2, size=96)
    with pytest.raises(ValueError, match=message):
        judge(mlp(classes=model), (x, labels(y)), **arguments)


def test_kinds_that_contradict_are_refused():
    x, y = examples(), np.random.default_rng(0).integers(2, size=96)
    softmax = mlp(classes=2, activation="softmax")
    with pytest.raises(
        ValueError, match="is a softmax, but output_kinds says 'sigmoid'"
    ):
        judge(softmax, (x, y), output_kinds="sigmoid")
    regression = compiled(mlp(classes=2), "mse")
    with pytest.raises(
        ValueError, match="kind 'values' and the teacher's are 'softmax'"
    ):
        judge(regression, (x, np.eye(2)[y]), teacher=softmax)
    with pytest.raises(ValueError, match="has none of the model's outputs .*'digit'"):
        judge(heads(), (x, labels_of_heads()), teacher=softmax)
    with pytest.raises(ValueError, match="the labels names the output 'x'"):
        judge(heads(), (x, {"x": y}))


@pytest.mark.parametrize("kind", ["sigmoid", "values"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_answers_nan_is_not_judged(kind, value):
    x, y = examples(), np.random.default_rng(0).integers(2, size=96)
    wrong = lambda x: tf.where(x[:, :1] > 0, tf.constant(value, x.dtype), x[:, :1])  # noqa: E731
    count = (x[:, 0] > 0).sum()
    with pytest.raises(ValueError, match=f"NaN or infinity for {count} of 96 labels"):
        judge(wrong, (x, y), output_kinds=kind, from_logits=True)


def test_calibration_is_that_of_calibration_curve():
    rng = np.random.default_rng(0)
    p, y = rng.uniform(size=300), rng.integers(2, size=300)
    _, rate, confidence, share = reliability(p, y, bins=10)
    true, predicted = calibration_curve(y, p, n_bins=10)
    np.testing.assert_allclose(rate[share > 0], true, rtol=1e-12)
    np.testing.assert_allclose(confidence[share > 0], predicted, rtol=1e-12)
    error = calibration_error(p[:, None], y)
    assert error == close(own_ece(p, y, np.ones(300)))
    tags = np.stack([p, p], 1), np.stack([y, y], 1)
    assert calibration_error(*tags, kind="sigmoid") == close(error)
    with pytest.raises(ValueError, match="labels of yes/no questions must be from 0"):
        calibration_error(p, y + 1)
    with pytest.raises(ValueError, match='kind must be "softmax" or "sigmoid"'):
        calibration_error(p, y, kind="values")
