"""A search over students of every kind of output."""

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import roc_auc_score

import keras_distill as kd
from keras_distill.tuning.by_kind import (
    QuestionsAUC,
    YesNoAccuracy,
    YesNoLikelihood,
)

rng = np.random.default_rng(0)
x = rng.normal(size=(60, 4)).astype("float32")
z = (x @ rng.normal(size=(4, 3)) + 0.3).astype("float32")
YES = (z > 0).astype("float32")
CLASSES = z.argmax(-1)


def dense(units, activation=None, loss=None, seed=1):
    start = keras.initializers.RandomNormal(seed=seed)
    layer = keras.layers.Dense(units, activation, kernel_initializer=start)
    model = keras.Sequential([keras.Input((4,)), layer])
    if loss is not None:
        model.compile("sgd", loss)
    return model


def search(path, student, y, **kwargs):
    given = {"max_trials": 2, "epochs": 1, "verbose": False, "batch_size": 20}
    return kd.search(
        lambda hp: student(), (x[:40], y[:40]), (x[40:], y[40:]),
        directory=path, **{**given, **kwargs},
    )  # fmt: skip


class NoTraining(keras.optimizers.SGD):
    def apply_gradients(self, *_, **__):
        raise AssertionError("a step was taken")


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("teacher", "student", "y", "objective", "loss"),
    [
        (lambda: dense(3), lambda: dense(3), CLASSES, "val_accuracy",
         keras.losses.SparseCategoricalCrossentropy),
        (lambda: dense(1, "sigmoid"), lambda: dense(1), YES[:, 0].astype(int),
         "val_accuracy", keras.losses.BinaryCrossentropy),
        (lambda: dense(3, None, "bce"), lambda: dense(3, "sigmoid"), YES, "val_auc",
         keras.losses.BinaryCrossentropy),
        (lambda: dense(3), lambda: dense(3), YES, "val_auc",
         keras.losses.BinaryCrossentropy),
        (lambda: dense(2, None, "mae"), lambda: dense(2), z[:, :2],
         "val_mean_squared_error", keras.losses.MeanSquaredError),
        (lambda: dense(1), lambda: dense(1), z[:, 0], "val_mean_squared_error",
         keras.losses.MeanSquaredError),
    ],
)  # fmt: skip
def test_the_kind_decides(tmp_path, teacher, student, y, objective, loss):
    result = search(tmp_path, student, y, teacher=teacher())
    assert result.objective == objective
    assert type(result.distiller.loss) is loss
    is_values = loss is keras.losses.MeanSquaredError
    kinds = ["hard labels", "alpha = 0.1" if is_values else "T = 4, alpha = 0.1"]
    assert result.trials["kind"].tolist() == kinds
    assert ("temperature" in result.trials) is not is_values
    assert result.trials["alpha"].tolist() == [1.0, 0.1]
    best = result.trials[objective].min if is_values else result.trials[objective].max
    assert result.score == best()
    assert f"best {objective}" in str(result)
    assert f"against {kinds[1]}: {result.trials[objective][1]:.5g}" in str(result)
    if objective != "val_accuracy":
        return
    predicted = result.student.predict(x[40:], verbose=0)
    if predicted.shape[-1] == 1:
        right = (predicted[:, 0] > 0) == (y[40:] == 1)
        assert np.isclose(result.score, right.mean(), atol=1e-6)


def test_values_have_no_temperature_to_search(tmp_path):
    with pytest.raises(ValueError, match=r"temperature=3.0 was given, but .* 'values'"):
        search(
            tmp_path, lambda: dense(1), z[:, 0], teacher=dense(1, None, "mse"),
            temperature=3.0, optimizer=NoTraining(),
        )  # fmt: skip
    hypermodel = kd.DistillationHyperModel(lambda hp: dense(1), dense(1, None, "mse"))
    hp = keras_tuner.HyperParameters()
    distiller = hypermodel.build(hp)
    assert hp.values == {"alpha": 0.1}
    assert distiller.output_kinds == "values"
    hypermodel = kd.DistillationHyperModel(
        lambda hp: dense(1), loss="mse", temperature=2.0
    )
    with pytest.raises(ValueError, match="whose distillation loss has no temperature"):
        hypermodel.build(keras_tuner.HyperParameters())


def test_a_single_number_of_which_nothing_says_what_it_is():
    hypermodel = kd.DistillationHyperModel(lambda hp: dense(1))
    with pytest.raises(
        ValueError, match=r'give loss=, as "binary_crossentropy" or "mse"'
    ):
        hypermodel.build(keras_tuner.HyperParameters())
    for given in (
        {"loss": "mse"},
        {"output_kinds": "values"},
        {"teacher": dense(1, None, "mse")},
    ):
        made = kd.DistillationHyperModel(lambda hp: dense(1), **given)
        assert made.build(keras_tuner.HyperParameters()).output_kinds == "values"


@pytest.mark.parametrize("are_logits", [True, False])
def test_metrics_of_yes_or_no(are_logits):
    p = 1 / (1 + np.exp(-z.astype("float64")))
    y = (rng.uniform(size=p.shape) < p).astype("float32")
    outputs = z if are_logits else p.astype("float32")
    auc = QuestionsAUC(3, are_logits, num_thresholds=2000)
    accuracy, nll = YesNoAccuracy(are_logits), YesNoLikelihood(are_logits)
    for metric in (auc, accuracy, nll):
        metric.update_state(y[:30], outputs[:30])
        metric.update_state(y[30:], outputs[30:])
    assert np.isclose(auc.result(), roc_auc_score(y, p, average="macro"), atol=2e-3)
    assert np.isclose(accuracy.result(), ((p > 0.5) == (y > 0.5)).mean(), atol=1e-6)
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert np.isclose(nll.result(), expected, rtol=1e-5)
    again = type(auc).from_config(auc.get_config())
    again.update_state(y[:, None], outputs[:, None])  # masks
    assert np.isclose(again.result(), auc.result(), atol=1e-2)


def two_heads(loss=True):
    inputs = keras.Input((4,))
    heads = {
        "tag": keras.layers.Dense(2, "sigmoid", name="tag")(inputs),
        "age": keras.layers.Dense(1, name="age")(inputs),
    }
    model = keras.Model(inputs, heads)
    if loss:
        model.compile("sgd", {"tag": "binary_crossentropy", "age": "mse"})
    return model


@pytest.mark.slow
def test_several_outputs_must_say_what_decides(tmp_path):
    y = {"tag": YES[:, :2], "age": z[:, :1]}

    def run(path, **kwargs):
        train = ({k: v[:40] for k, v in y.items()}, {k: v[40:] for k, v in y.items()})
        return kd.search(
            lambda hp: two_heads(False), (x[:40], train[0]), (x[40:], train[1]),
            teacher=two_heads(), directory=path, max_trials=2, epochs=1, batch_size=20,
            verbose=False, **kwargs,
        )  # fmt: skip

    words = r"say by objective= .*'val_tag_auc', 'val_age_mean_squared_error'"
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "a", optimizer=NoTraining())
    decides = keras_tuner.Objective("val_age_mean_squared_error", "min")
    result = run(tmp_path / "b", objective=decides)
    assert {"temperature", "val_tag_auc", "val_tag_accuracy"} <= set(result.trials)
    assert result.score == result.trials["val_age_mean_squared_error"].min()


@pytest.mark.slow
def test_cached_targets_tell_the_kind_in_other_processes_and_when_resumed(tmp_path):
    targets = kd.SoftTargets.write(
        tmp_path / "s",
        dense(1),
        (x[:40], z[:40, 0]),
        output_kinds="values",
        verbose=False,
    )

    def run(**kwargs):
        return search(
            tmp_path / "search",
            lambda: dense(1),
            z[:, 0],
            soft_targets=targets,
            **kwargs,
        )

    run(n_jobs=2)
    result = run(resume=True, max_trials=3)
    assert result.objective == "val_mean_squared_error"
    assert result.trials["kind"].tolist() == ["hard labels", "alpha = 0.1", "searched"]
    result.save(tmp_path / "found")
    assert "search_plane" not in result.figures()


def test_another_kind_than_the_cached_is_refused_before_any_trial(tmp_path):
    targets = kd.SoftTargets.write(
        tmp_path / "s", dense(3, "softmax"), x[:40], verbose=False
    )
    with pytest.raises(
        ValueError, match="the cached soft targets of the kind 'softmax'"
    ):
        search(
            tmp_path / "search", lambda: dense(3), z, soft_targets=targets, loss="mse",
            optimizer=NoTraining(),
        )  # fmt: skip


def test_a_compiled_student_s_own_accuracy_is_right_for_logits():
    def build(hp):
        student = dense(1)
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        student.compile("sgd", loss, metrics=["accuracy"])
        return student

    distiller = kd.DistillationHyperModel(build).build(keras_tuner.HyperParameters())
    found = distiller.evaluate(x, YES[:, :1], verbose=0, return_dict=True)
    right = (distiller.student(x) > 0) == (YES[:, :1] == 1)
    assert np.isclose(found["accuracy"], tf.reduce_mean(tf.cast(right, "float32")))


def test_embeddings_are_compared_by_their_cosine():
    hypermodel = kd.DistillationHyperModel(
        lambda hp: dense(3), loss=keras.losses.CosineSimilarity()
    )
    distiller = hypermodel.build(keras_tuner.HyperParameters())
    assert hypermodel.objective(distiller) == "cosine_similarity"
    assert "cosine_similarity" in distiller.evaluate(x, z, verbose=0, return_dict=True)
