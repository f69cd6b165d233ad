import contextlib
import gc
import inspect
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request
import warnings

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.tuning import keras_tuner_compat, tensorboard
from keras_distill.tuning.oracles import BayesianOracle, RandomOracle

from .conftest import CLASSES, FEATURES, SPARSE, copy_of, mlp

N = 160


def make_data(seed=0, n=N):
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(7).normal(size=(FEATURES, CLASSES))
    x = rng.normal(size=(n, FEATURES)).astype("float32")
    return x, (x @ weights + rng.normal(size=(n, CLASSES))).argmax(-1)


TRAIN, VALIDATION = make_data(0), make_data(1, 60)


def build(hp):
    """A student that is trained eagerly: tracing would take most of a tiny trial."""
    return eager(mlp(hp.Int("width", 4, 12)))


def eager(model, optimizer="adam", loss=SPARSE):
    model.compile(optimizer, loss, run_eagerly=True)
    return model


def deeper(width):
    """A student with the hyperparameters of `build`, and another architecture."""
    layers = [keras.layers.Dense(width), keras.layers.Dense(CLASSES)]
    return keras.Sequential([keras.Input((FEATURES,)), *layers])


def teacher():
    keras.utils.set_random_seed(3)
    return mlp(32)


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """Soft targets for TRAIN, written once."""
    path = tmp_path_factory.mktemp("targets") / "targets"
    return kd.SoftTargets.write(path, teacher(), TRAIN, verbose=False)


@pytest.fixture(scope="module")
def search(targets):
    """`kd.search` with everything given that a test does not speak of."""

    def search(directory, build_student=build, **kwargs):
        if "teacher" not in kwargs:
            kwargs.setdefault("soft_targets", targets)
        settings = {"max_trials": 3, "epochs": 2, "batch_size": 80, "verbose": False}
        data = kwargs.pop("train", TRAIN), kwargs.pop("validation", VALIDATION)
        return kd.search(
            build_student, *data, directory=directory, **(settings | kwargs)
        )  # fmt: skip

    return search


@pytest.fixture(scope="module")
def found(tmp_path_factory, search):
    directory = tmp_path_factory.mktemp("found")
    return search(
        directory, max_trials=6, epochs=2, executions_per_trial=2, teacher=teacher()
    )


def test_the_fixed_points_are_always_among_the_trials(found):
    kinds = list(found.trials["kind"])
    assert kinds == ["hard labels", "T = 4, alpha = 0.1", *["searched"] * 4]
    assert found.trials.loc[0, "alpha"] == 1.0
    assert tuple(found.trials.loc[1, ["temperature", "alpha"]]) == (4.0, 0.1)
    scores = found.trials["val_accuracy"]
    assert found.score == scores.max() >= max(scores[0], scores[1])


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("algorithm", ["bayesian", "random"])
def test_fixed_points_out_of_range_are_tried_too(tmp_path, algorithm, search):
    result = search(
        tmp_path, temperature=(6.0, 8.0), alpha=(0.3, 0.4), epochs=1,
        algorithm=algorithm, max_trials=9,
    )  # fmt: skip
    points = result.trials[["temperature", "alpha"]].to_numpy()
    assert points[:2].tolist() == [[4.0, 1.0], [4.0, 0.1]]
    assert ((points[2:] >= [6.0, 0.3]) & (points[2:] <= [8.0, 0.4])).all()
    fixed = search(tmp_path / "fixed", temperature=9.0, alpha=0.5, epochs=1)
    points = fixed.trials[["temperature", "alpha"]].to_numpy()
    assert points.tolist() == [[4.0, 1.0], [4.0, 0.1], [9.0, 0.5]]


def test_the_table_has_a_row_for_each_trial(found):
    columns = list(found.trials.columns)
    assert columns == [
        "kind", "status", "temperature", "alpha", "width", "val_accuracy", "val_loss",
        "val_nll", "best_epoch", "epochs", "worker", "began", "seconds", "message",
    ]  # fmt: skip
    assert (found.trials["status"] == "COMPLETED").all()
    assert (found.trials["seconds"] > 0).all()
    assert list(found.trials.index) == list(range(6))


@pytest.mark.slow
def test_executions_are_averaged(tmp_path, search):
    one, two, both = (
        search(tmp_path / str(i), max_trials=2, executions_per_trial=e, seed=seed)
        for i, (e, seed) in enumerate([(1, 5), (1, 6), (2, 5)])
    )
    mean = (one.trials["val_nll"] + two.trials["val_nll"]) / 2
    assert both.trials["val_nll"].to_numpy() == pytest.approx(mean.to_numpy(), 1e-6)
    assert abs(one.trials["val_nll"][0] - two.trials["val_nll"][0]) > 1e-4


def test_the_best_student_is_that_of_the_best_epoch(found):
    judged = kd.evaluate(found.student, VALIDATION, timing=False)
    # The better of two executions whose mean is the score.
    assert judged.accuracy >= found.score - 1e-6
    assert found.student.get_layer("hidden").units == found.best_values["width"]


@pytest.mark.slow
def test_single_execution_scores_what_the_student_does(tmp_path, search):
    result = search(tmp_path, objective="nll")
    judged = kd.evaluate(result.student, VALIDATION, timing=False)
    assert judged.nll == pytest.approx(result.score, rel=1e-5)
    assert result.score == result.trials["val_nll"].min()


@pytest.mark.slow
def test_equal_accuracies_are_decided_by_the_likelihood(tmp_path, search):
    def slow(hp):  # so slow that no prediction changes
        return eager(mlp(4), keras.optimizers.SGD(1e-5))

    result = search(tmp_path, slow, max_trials=5)
    best = result.trials[result.trials["val_accuracy"] == result.score]
    assert len(best) > 1
    assert best["val_nll"].nunique() > 1
    assert best["val_nll"].idxmin() == result.best_trial


class CountingTeacher:
    """Counts the examples it is asked for."""

    def __init__(self):
        self.model, self.seen = teacher(), tf.Variable(0, dtype=tf.int64)

    def __call__(self, x):
        self.seen.assign_add(tf.shape(x, tf.int64)[0])
        return self.model(x, training=False)


@pytest.mark.slow
def test_the_teacher_is_asked_once_for_each_example(tmp_path, search):
    counting = CountingTeacher()

    def ask(x):
        return counting(x)

    asked = kd.as_teacher(ask, from_logits=True)
    search(tmp_path, teacher=asked, max_trials=3, executions_per_trial=2)
    # And the first batch twice: to see what a function gives, and that teacher and data are
    # still the same.
    assert int(counting.seen) == N + 2 * 128


@pytest.mark.slow
def test_kept_soft_targets_need_no_teacher(tmp_path, search):
    data = tf.data.Dataset.from_tensor_slices(TRAIN)
    targets = kd.SoftTargets.write(tmp_path / "t", teacher(), data, verbose=False)
    one = search(tmp_path / "1", soft_targets=targets, train=data)
    batches = data.batch(32)
    other = search(
        tmp_path / "2", soft_targets=str(tmp_path / "t"), train=lambda: batches,
        validation=tf.data.Dataset.from_tensor_slices(VALIDATION),
    )  # fmt: skip
    columns = ["temperature", "alpha", "val_nll"]
    np.testing.assert_allclose(one.trials[columns], other.trials[columns], rtol=1e-5)


def test_the_same_seed_gives_the_same_search(tmp_path, search):
    one, other = (search(tmp_path / i, seed=0, max_trials=4) for i in "12")
    columns = ["temperature", "alpha", "width", "val_nll"]
    np.testing.assert_allclose(one.trials[columns], other.trials[columns], rtol=1e-4)


@pytest.mark.slow
def test_one_hot_labels(tmp_path, search):
    def build_student(hp):
        return mlp(4)

    (x, y), (vx, vy) = TRAIN, VALIDATION
    eye = np.eye(CLASSES, dtype="float32")
    one = search(
        tmp_path / "1", build_student, train=(x, eye[y]), validation=(vx, eye[vy]),
        max_trials=2, epochs=1,
    )  # fmt: skip
    other = search(tmp_path / "2", build_student, max_trials=2, epochs=1)
    assert one.trials["val_nll"][0] == pytest.approx(other.trials["val_nll"][0], 1e-4)


@pytest.mark.slow
def test_views_are_those_of_the_epoch(tmp_path, search):
    def shift(x, seed):
        return x + 0.1 * tf.random.stateless_normal(tf.shape(x), seed)

    targets = kd.SoftTargets.write(
        tmp_path / "t", teacher(), TRAIN, views=2, augment=shift, verbose=False
    )
    result = search(tmp_path / "s", soft_targets=targets, max_trials=2)
    assert (result.trials["status"] == "COMPLETED").all()


@pytest.mark.slow
def test_hidden_layers_are_kept_for_the_objective(tmp_path, search):
    matching = [
        (1.0, kd.SoftTargetLoss()),
        ((0.1, 1.0), kd.FeatureLoss("hidden", "hidden", adapter="auto")),
    ]
    result = search(tmp_path, distillation_loss=matching, teacher=teacher())
    assert (result.trials["status"] == "COMPLETED").all()
    assert result.trials["feature_loss_weight"].between(0.1, 1.0).all()


@pytest.mark.slow
def test_retrained_student_has_a_seed_of_its_own(tmp_path, search):
    result = search(tmp_path, retrain=True, max_trials=2)
    first = result.distiller.student.get_weights()
    assert any(
        np.abs(a - b).max() > 1e-3
        for a, b in zip(first, result.student.get_weights(), strict=True)
    )


@pytest.mark.slow
def test_under_a_strategy(tmp_path, search, mirrored):
    replicas = []

    def counting(hp):
        replicas.append(tf.distribute.get_strategy().num_replicas_in_sync)
        return build(hp)

    result = search(tmp_path, counting, distribution_strategy=mirrored, max_trials=2)
    assert 2 in replicas
    assert (result.trials["status"] == "COMPLETED").all()
    plain = search(tmp_path / "plain", max_trials=2)
    assert result.trials["val_nll"].to_numpy() == pytest.approx(
        plain.trials["val_nll"].to_numpy(), rel=1e-3
    )


# Failures ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trial_that_diverges_is_recorded_and_the_search_goes_on(tmp_path, search):
    def sometimes(hp):
        rate = hp.Choice("rate", [0.01, 1e30])
        return eager(mlp(4), keras.optimizers.SGD(rate))

    with pytest.warns(UserWarning, match="trials failed; the first said: the training"):
        result = search(tmp_path, sometimes, max_trials=8, epochs=3)
    failed = result.trials[result.trials["status"] == "FAILED"]
    assert len(result.trials) == 8
    assert 0 < len(failed) < 8
    assert (failed["rate"] == 1e30).all()
    assert failed["message"].str.contains("is not finite").all()
    assert result.best_values["rate"] == 0.01


@pytest.mark.slow
def test_a_student_that_does_not_fit_into_memory_is_recorded(tmp_path, search):
    def sometimes(hp):
        hp.Choice("width", [4, 2_000_000_000])
        return eager(mlp(hp.get("width")))

    with pytest.warns(UserWarning, match="out of memory"):
        result = search(tmp_path, sometimes, max_trials=6, epochs=1)
    failed = result.trials[result.trials["status"] == "FAILED"]
    assert 0 < len(failed) < 6
    assert (failed["width"] == 2_000_000_000).all()


def running_trial():
    """Number of the trial that is being run, `None` outside of one."""
    for frame in inspect.stack():
        trial = frame.frame.f_locals.get("trial")
        if hasattr(trial, "trial_id"):
            return trial.trial_id
    return None


@pytest.mark.slow
def test_a_search_whose_trials_all_fail_is_stopped(tmp_path, search):
    def build_student(hp):
        if running_trial() is not None:
            raise ArithmeticError("no such width")
        return build(hp)

    with pytest.raises(RuntimeError, match="first 3 trials failed; .* no such width"):
        search(tmp_path, build_student, max_trials=9)


@pytest.mark.slow
def test_a_small_space_whose_trials_all_fail(tmp_path, search):
    def build_student(hp):
        if running_trial() is not None:
            raise ArithmeticError("no such width")
        return eager(mlp(4))

    with pytest.raises(RuntimeError, match="all of the 2 trials failed; .* such width"):
        search(tmp_path, build_student, temperature=4.0, alpha=0.1)


@pytest.mark.slow
def test_a_mended_student_is_tried_when_resumed(tmp_path, search):
    broken = [True]

    def build_student(hp):
        if running_trial() is not None and broken:
            raise ArithmeticError("no such width")
        return build(hp)

    with pytest.raises(RuntimeError, match="first 3 trials failed"):
        search(tmp_path, build_student, max_trials=4)
    broken.clear()
    result = search(tmp_path, build_student, max_trials=4, resume=True)
    assert list(result.trials["status"]) == ["COMPLETED"] * 4


def interrupted_at(trial):
    """A build function that is interrupted the first time that trial is built."""
    armed = [True]

    def build_and_stop(hp):
        if running_trial() == trial and armed:
            armed.clear()
            raise KeyboardInterrupt
        return build(hp)

    return build_and_stop


def test_control_c_and_resume(tmp_path, search):
    stop = interrupted_at("2")
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, stop, max_trials=5)
    weights = {
        path: path.stat().st_mtime_ns
        for path in pathlib.Path(tmp_path, "trials").glob("trial_[01]/*.h5")
    }
    assert len(weights) == 2
    result = search(tmp_path, stop, max_trials=5, resume=True)
    assert len(result.trials) == 5
    assert (result.trials["status"] == "COMPLETED").all()
    assert all(path.stat().st_mtime_ns == when for path, when in weights.items())
    unbroken = search(tmp_path / "unbroken", max_trials=5)
    assert len(unbroken.trials) == 5
    np.testing.assert_allclose(
        result.trials["val_nll"][:2], unbroken.trials["val_nll"][:2], rtol=1e-4
    )


@pytest.mark.slow
def test_resuming_a_finished_search_trains_nothing(tmp_path, search):
    search(tmp_path, max_trials=3)
    built = []

    def counting(hp):
        built.append(1)
        return build(hp)

    result = search(tmp_path, counting, max_trials=3, resume=True)
    assert len(result.trials) == 3
    assert len(built) <= 4  # to look at it, none of them trained
    more = search(tmp_path, max_trials=5, resume=True)
    assert len(more.trials) == 5


@pytest.mark.slow
def test_a_directory_with_another_search_is_refused(tmp_path, search):
    search(tmp_path, max_trials=2)
    with pytest.raises(FileExistsError, match="a search of 2 trials in .* resume=True"):
        search(tmp_path, max_trials=2)
    for change, words in (
        ({"epochs": 7}, "epochs is 2, not 7"),
        (
            {"alpha": 0.5},
            r"a search of another kind: hyperparameters' alpha differs \(0.0 to 1.0, not "
            r"fixed at 0.5\)",
        ),
        (
            {"temperature": (2, 9)},
            r"temperature differs \(1.0 to 20.0 by its logarithm, not 2.0 to 9.0 by its",
        ),
        ({"teacher": mlp(9)}, "the soft targets' teacher's architecture differ"),
        ({"seed": 4}, "seed is 0, not 4"),
        ({"validation": make_data(5, 60)}, "the fingerprint of the validation data is"),
        ({"train": (TRAIN[0], TRAIN[1][::-1])}, "the fingerprint of train's labels is"),
        ({"train": (*TRAIN, np.ones(N))}, "the fingerprint of train's labels is"),
        (
            {"build_student": lambda hp: mlp(3)},
            r"hyperparameters' width differs \(4 to 12 whole numbers, not none\)",
        ),
        (
            {"build_student": lambda hp: eager(deeper(hp.Int("width", 4, 12)))},
            "the architecture that build_student returns by default is",
        ),
        (
            {"build_student": lambda hp: eager(mlp(hp.Int("width", 4, 12)), "sgd")},
            "optimizer",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            search(tmp_path, max_trials=2, resume=True, **change)
    assert len(search(tmp_path, max_trials=3, overwrite=True, epochs=1).trials) == 3


@pytest.mark.slow
def test_a_search_stopped_before_its_first_trial_leaves_nothing_to_the_next(
    tmp_path, search, monkeypatch
):
    def stop(*_):
        raise KeyboardInterrupt  # as while processes start

    with monkeypatch.context() as patch:
        patch.setattr(tensorboard, "write_space", stop)
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, temperature=(1.0, 2.0))
    assert (tmp_path / "trials" / "oracle.json").exists()
    result = search(tmp_path, temperature=(6.0, 8.0), seed=5, epochs=1)
    assert result.trials.loc[2, "temperature"] >= 6.0
    assert result.tuner.oracle.seed == 6
    assert json.loads((tmp_path / "search.json").read_text())["seed"] == 5


@pytest.mark.slow
def test_trials_without_their_settings_are_not_gone_on_with(tmp_path, search):
    search(tmp_path, max_trials=2, epochs=1)
    (tmp_path / "search.json").unlink()
    with pytest.raises(
        FileExistsError, match=r"no search.json that says of what; pass o"
    ):
        search(tmp_path, max_trials=3, epochs=1, resume=True)


def test_two_searches_do_not_share_a_directory(tmp_path, search):
    def nested(hp):
        with pytest.raises(
            BlockingIOError, match="another process is at work on the search"
        ):
            search(tmp_path, max_trials=2, resume=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, nested, max_trials=2)


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"objective": "loss"}, ValueError, "the loss means something else"),
        ({"objective": "val_loss"}, ValueError, "cannot be searched for"),
        (
            {"objective": keras_tuner.Objective("soft_loss", "min")},
            ValueError,
            "cannot be searched for",
        ),
        ({"objective": "f1"}, ValueError, r"keras_tuner.Objective\(.val_f1"),
        (
            {"objective": keras_tuner.Objective("accuracy", "max")},
            ValueError,
            "is measured on the training data",
        ),
        ({"objective": 3}, TypeError, "objective must be"),
        ({"max_trials": 1}, ValueError, "max_trials must be a whole number >= 2"),
        ({"epochs": 0}, ValueError, "epochs must be a whole number >= 1"),
        ({"patience": 0}, ValueError, "patience must be"),
        ({"n_jobs": 0}, ValueError, "n_jobs must be"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"batch_size": 2.5}, ValueError, "batch_size must be"),
        ({"algorithm": "grid"}, ValueError, "keras_tuner.GridSearch"),
        ({"teacher": None}, ValueError, "got neither"),
        ({"threads": 2}, ValueError, "threads is for other processes"),
        ({"resume": True, "overwrite": True}, ValueError, "exclude each other"),
        ({"train": [1, 2]}, TypeError, "train(ing data)? must be"),
        ({"train": (TRAIN[0], TRAIN[1][:9])}, ValueError, "different lengths"),
        ({"validation": VALIDATION[0]}, ValueError, "brings no labels"),
        ({"validation": (VALIDATION[0][:0], VALIDATION[1][:0])}, ValueError, "empty"),
        (
            {"validation": (VALIDATION[0], VALIDATION[1] + 3)},
            ValueError,
            "labels must be from 0 to 4",
        ),
        (
            {"objective": keras_tuner.Objective("val_f1", "max")},
            ValueError,
            "'val_f1' is not among what validation gives: 'val_accuracy'",
        ),
        ({"train": TRAIN[0]}, TypeError, "train(ing data)? must be"),
        ({"train": (TRAIN[0],)}, ValueError, "train brings no labels"),
        (
            {"build_student": lambda hp: mlp(int(hp.Float("alpha", 1, 2)))},
            ValueError,
            "a hyperparameter 'alpha', a name that is taken",
        ),
        (
            {"build_student": lambda hp: mlp(hp.Int("epochs", 1, 2))},
            ValueError,
            "call it 'student_epochs'",
        ),
        (
            {"distillation_loss": kd.FeatureLoss("hidden", "hidden", adapter="auto")},
            ValueError,
            r"layer 'hidden', which the soft targets do not hold; .* layers=\['hidden'\]",
        ),
        ({"distillation_loss": 0.5}, TypeError, "must be a distillation loss"),
        (
            {"build_student": lambda hp: mlp(features=9)},
            ValueError,
            "does not take batches of shape",
        ),
        (
            {"build_student": lambda hp: mlp(classes=9)},
            ValueError,
            "the student has 9 classes and the teacher 5",
        ),
        (
            {"train": tf.data.Dataset.from_tensor_slices(TRAIN), "n_jobs": 2},
            TypeError,
            "cannot be sent to other processes",
        ),
        (
            {"distribution_strategy": tf.distribute.get_strategy(), "n_jobs": 2},
            TypeError,
            "give a function without arguments that makes it",
        ),
    ],
)
def test_wrong_input_is_refused_before_any_training(
    tmp_path, kwargs, error, words, search
):
    with pytest.raises(error, match=words):
        search(tmp_path, **kwargs)
    assert not list(pathlib.Path(tmp_path).glob("trials/trial_*"))


@pytest.mark.slow
def test_a_shuffled_validation_set_can_be_resumed(tmp_path, search):
    data = tf.data.Dataset.from_tensor_slices(VALIDATION).shuffle(60)
    search(tmp_path, max_trials=2, epochs=1, validation=data)
    result = search(tmp_path, max_trials=3, epochs=1, validation=data, resume=True)
    assert len(result.trials) == 3


@pytest.mark.slow
def test_choices_without_the_fixed_points(tmp_path, search):
    result = search(
        tmp_path, temperature=[1.0, 5.0], alpha=[0.2, 0.7], max_trials=13, epochs=1
    )
    searched = result.trials[result.trials["kind"] == "searched"]
    assert len(searched) == 11
    assert set(searched["temperature"]) <= {1.0, 5.0}


class Softmax(keras.Model):
    """Subclassed, so that it says what it gives only when it is built."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(CLASSES, activation="softmax")

    def call(self, x):
        return self.dense(x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the layers of the student do not say")
def test_nll_of_a_subclassed_softmax_student(tmp_path, search):
    loss = keras.losses.SparseCategoricalCrossentropy()
    result = search(tmp_path, lambda hp: Softmax(), loss=loss, objective="nll")
    p = result.student.predict(VALIDATION[0], verbose=0)
    nll = -np.log(p[np.arange(60), VALIDATION[1]]).mean()
    assert result.score == pytest.approx(nll, rel=1e-5)


@pytest.mark.slow
def test_integer_sequences_are_not_taken_for_one_hot(tmp_path, search):
    def sequence_model(hp=None):
        return keras.Sequential(
            [keras.Input((CLASSES, 3)), keras.layers.Dense(CLASSES)]
        )

    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, CLASSES, 3)).astype("float32")
    y = rng.integers(CLASSES, size=(40, CLASSES))
    result = search(
        tmp_path, sequence_model, teacher=sequence_model(), train=(x, y),
        validation=(x, y), max_trials=2, epochs=1,
    )  # fmt: skip
    assert (result.trials["status"] == "COMPLETED").all()


# The oracle --------------------------------------------------------------------------


def an_oracle(folder, trials=4, kind=RandomOracle):
    hp = keras_tuner.HyperParameters()
    hp.Float("temperature", 1, 20)
    oracle = kind(
        objective=keras_tuner.Objective("val_accuracy", "max"), max_trials=trials,
        hyperparameters=hp, fixed_points=[],
    )  # fmt: skip
    oracle._set_project_dir(folder, "trials")
    return oracle


@pytest.mark.parametrize("late", ["oracle.json", "trial_1/trial.json"])
def test_killed_between_two_files(tmp_path, late):
    oracle = an_oracle(tmp_path)
    oracle.finish(oracle.propose(), {"val_accuracy": 0.5})
    trial = oracle.propose()
    file = pathlib.Path(tmp_path, "trials", late)
    before = file.read_bytes()
    oracle.finish(trial, {"val_accuracy": 0.8})
    file.write_bytes(before)  # as if it had not been written yet
    again = an_oracle(tmp_path)
    again.resume(died=True)
    next_one = again.propose()
    if late == "oracle.json":  # the trial itself is whole
        assert again.end_order == ["0", "1"]
        assert again.trials["1"].score == 0.8
        assert next_one.trial_id == "2"
        assert again.records["1"]["ended"] >= again.records["1"]["began"]
    else:
        assert again.end_order == ["0"]
        assert next_one.trial_id == "1"
        again.finish(next_one, {"val_accuracy": 0.6})
        assert again.trials["1"].score == 0.6
        assert again.propose().trial_id == "2"


def test_trials_that_all_come_to_the_same_are_no_reason_to_warn(tmp_path):
    oracle = an_oracle(tmp_path, 8, BayesianOracle)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(8):
            oracle.finish(oracle.propose(), {"val_accuracy": 0.9783})


def test_a_trial_that_kills_its_process_three_times_is_given_up(tmp_path):
    oracle = an_oracle(tmp_path)
    deadly = oracle.propose()
    for deaths in range(1, 4):
        oracle = an_oracle(tmp_path)
        oracle.resume(died=True)
        trial = oracle.propose()
        assert trial.trial_id == ("0" if deaths < 3 else "1")
    given_up = oracle.trials[deadly.trial_id]
    assert given_up.status == "FAILED"
    assert "died 3 times" in given_up.message
    oracle.leave()  # as by Ctrl-C, which is no death
    again = an_oracle(tmp_path)
    again.resume(died=True)
    assert again._deaths["1"] == 0


def test_no_private_name_of_keras_tuner_has_moved():
    moved = [
        f"{owner!r} has no {name}"
        for owner, name in keras_tuner_compat.private_names()
        if not hasattr(owner, name)
    ]
    assert not moved


def test_soft_targets_of_other_data_are_refused(tmp_path, search):
    data = make_data(9)
    targets = kd.SoftTargets.write(tmp_path / "t", teacher(), data, verbose=False)
    with pytest.raises(ValueError, match="do not go together"):
        search(tmp_path / "s", soft_targets=targets)


def test_what_is_found_is_saved(found, tmp_path):
    found.save(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "trials.csv", "workers.csv", "best.json", "student.keras", "search_plane.png",
        "parallel_coordinates.png", "best_so_far.png",
    }  # fmt: skip
    student = keras.saving.load_model(tmp_path / "saved" / "student.keras")
    same = student.predict(VALIDATION[0], verbose=0)
    np.testing.assert_allclose(
        same, found.student.predict(VALIDATION[0], verbose=0), rtol=1e-5
    )
    for words in ("6 trials", "temperature = ", "against hard labels", "worker-0"):
        assert words in str(found)


@pytest.mark.slow
def test_tensorboard_shows_the_trials(found):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--host=127.0.0.1",
         f"--port={port}", "--logdir", os.path.join(found.directory, "logs")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def ask(what, **body):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/data/{what}",
            data=json.dumps(body).encode() if body else None,
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    try:
        end, runs = time.monotonic() + 60, []
        while len(runs) < 7 and time.monotonic() < end:
            time.sleep(0.3)
            with contextlib.suppress(OSError):
                runs = ask("runs")
        experiment = ask("plugin/hparams/experiment", experimentName="")
        groups = ask(
            "plugin/hparams/session_groups", experimentName="", startIndex=0,
            sliceSize=100, allowedStatuses=["STATUS_SUCCESS"], colParams=[],
        )["sessionGroups"]  # fmt: skip
    finally:
        server.terminate()
        server.wait()
    names = [info["name"] for info in experiment["hparamInfos"]]
    assert sorted(names) == ["alpha", "temperature", "width"]
    metrics = [info["name"]["tag"] for info in experiment["metricInfos"]]
    assert metrics == ["val_accuracy", "val_nll"]
    assert len(groups) == len(found.trials)
    for number, group in enumerate(groups):
        row = found.trials.loc[number]
        assert group["name"] == f"trial {number}"
        assert group["hparams"]["temperature"] == pytest.approx(row["temperature"])
        values = {m["name"]["tag"]: m["value"] for m in group["metricValues"]}
        assert values["val_accuracy"] == pytest.approx(row["val_accuracy"])


@pytest.mark.slow
def test_the_search_leaves_the_process_as_it_was(tmp_path, search):
    """Its environment, its collector, and its settings."""

    def state():
        return (
            dict(os.environ),
            gc.get_freeze_count() > 0,
            keras.config.dtype_policy().name,
            sorted(keras.saving.get_custom_objects()),
        )

    before = state()
    keras.config.set_dtype_policy("mixed_bfloat16")
    search(tmp_path, max_trials=2, epochs=1)
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    keras.config.set_dtype_policy("float32")
    assert state() == before


@pytest.mark.slow
def test_several_teachers_are_averaged_at_the_temperature_of_each_trial(
    tmp_path, search
):
    teachers = [mlp(16), mlp(24)]
    for one, scale in zip(teachers, (1.0, 6.0), strict=True):  # of different sureness
        one.set_weights([scale * w for w in one.get_weights()])
    result = search(tmp_path, teacher=teachers, max_trials=4, epochs=1)
    numbers = result.tuner.given.data
    losses = []
    for trial in result.tuner.oracle.trials.values():
        cached = result.tuner.load_model(trial)
        live = kd.Distiller(
            copy_of(cached.student), teachers, temperature=cached.temperature,
            alpha=cached.alpha,
        )  # fmt: skip
        live.compile("sgd", SPARSE, run_eagerly=True)
        kept, labels = numbers.first_training_batch(N)[:2]
        told = cached.train_on_batch(kept, labels, return_dict=True)["loss"]
        asked = live.train_on_batch(*TRAIN, return_dict=True)["loss"]
        assert told == pytest.approx(asked, rel=2e-3)
        if cached.alpha < 1:
            losses.append(cached.temperature)
    assert len(set(losses)) > 1
