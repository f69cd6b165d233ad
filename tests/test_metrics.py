"""Metrics of each kind of output, over batches and replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit
from sklearn.metrics import log_loss

import keras_distill as kd
from keras_distill.metrics import NegativeLogLikelihood
from tests.conftest import FEATURES, mlp

BINARY = keras.losses.BinaryCrossentropy(from_logits=True)


def examples(count=64):
    return np.random.default_rng(0).normal(size=(count, FEATURES)).astype("float32")


def agreement_of(student, teacher, loss, x, y):
    """Returns the agreement that `evaluate` of a distiller shows, over four batches."""
    distiller = kd.Distiller(student, teacher)
    distiller.compile("sgd", loss, metrics=[kd.TeacherAgreement()])
    found = distiller.evaluate(x, y, batch_size=20, verbose=0, return_dict=True)
    return found["teacher_agreement"]


@pytest.mark.parametrize("width", [1, 3])
def test_agreement_of_questions_is_at_one_half_over_all_of_them(width):
    x, y = examples(), np.zeros((64, width))
    student = mlp(6, classes=width, activation="sigmoid")
    teacher = mlp(9, classes=width)
    found = agreement_of(student, teacher, "binary_crossentropy", x, y)
    yes = student.predict(x, verbose=0) > 0.5, teacher.predict(x, verbose=0) > 0
    assert found == pytest.approx(np.mean(yes[0] == yes[1]))


@pytest.mark.parametrize("width", [1, 3])
def test_agreement_of_values_is_their_correlation(width):
    x, y = examples(), np.zeros((64, width))
    student, teacher = mlp(6, classes=width), mlp(9, classes=width)
    teacher.layers[-1].bias.assign([1e3] * width)  # what float32 sums would lose
    found = agreement_of(student, teacher, "mse", x, y)
    s, t = (model.predict(x, verbose=0).ravel() for model in (student, teacher))
    wanted = np.corrcoef(s.astype("float64"), t.astype("float64"))[0, 1]
    assert found == pytest.approx(wanted, rel=1e-5)


def test_agreement_of_a_model_that_has_both_is_their_mean():
    metric = kd.TeacherAgreement()
    metric.add([[0.0, 2.0], [1.0, 0.0]], [[0.0, 9.0], [0.0, 1.0]], "softmax")
    assert float(metric.result()) == 0.5
    metric.add([[1.0], [2.0]], [[-2.0], [-4.0]], "values")
    assert float(metric.result()) == -0.25
    metric.reset_state()
    assert float(metric.result()) == 0.0
    metric.add([[1.0], [2.0]], [[3.0], [3.0]], "values")
    assert float(metric.result()) == 0.0  # one side does not vary


def test_masked_values_do_not_agree():
    metric, values = kd.TeacherAgreement(kind="values"), np.arange(6.0).reshape(2, 3, 1)
    other = tf.constant(values)
    metric.add(
        np.where(values == 3, np.nan, values), other, "values", values[..., 0] != 3
    )
    assert float(metric.result()) == pytest.approx(1.0)
    assert kd.TeacherAgreement.from_config(metric.get_config()).kind == "values"


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("width", [1, 3])
def test_nll_of_yes_or_no(from_logits, width):
    rng = np.random.default_rng(0)
    z, y = 3 * rng.normal(size=(20, width)), rng.integers(2, size=(20, width))
    weight = rng.uniform(size=20)
    metric = NegativeLogLikelihood(from_logits, kind="sigmoid")
    outputs = z if from_logits else expit(z)
    labels = y[:, 0] if width == 1 else y
    for rows in (slice(0, 13), slice(13, 20)):
        metric.update_state(labels[rows], outputs[rows], weight[rows])
    losses = [
        log_loss(y[:, k], expit(z[:, k]), sample_weight=weight) for k in range(width)
    ]
    assert float(metric.result()) == pytest.approx(np.mean(losses), rel=1e-5)
    again = NegativeLogLikelihood.from_config(metric.get_config())
    assert again.get_config()["kind"] == "sigmoid"


def test_nll_of_yes_or_no_leaves_ignored_labels_out():
    metric = NegativeLogLikelihood(ignore_class=-1, kind=lambda: "sigmoid")
    metric.update_state([[-1, 0], [1, 1]], [[9.0, 0.0], [0.0, 0.0]])
    assert float(metric.result()) == pytest.approx(np.log(2), rel=1e-6)
