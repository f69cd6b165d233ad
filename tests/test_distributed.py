import contextlib
import json
import socket

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.distiller import Distiller
from keras_distill.losses.features import FeatureLoss
from keras_distill.losses.kl import SoftTargetLoss
from keras_distill.metrics import TeacherAgreement
from tests.conftest import SPARSE, largest_difference, mlp
from tests.forking import Process


def train(strategy, data, distillation_loss=None, make_teacher=None, **fit_arguments):
    """Weights and history of two epochs of one student under a strategy."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        student = mlp(6)
        teacher = mlp(32) if make_teacher is None else make_teacher()
        distiller = Distiller(
            student, teacher, alpha=0.3, distillation_loss=distillation_loss
        )
        distiller.compile(
            keras.optimizers.Adam(0.01),
            SPARSE,
            metrics=["accuracy", TeacherAgreement()],
        )
    assert len(distiller.weights) == len(student.weights) + 2 * bool(distillation_loss)
    x, y = data
    weight = np.random.default_rng(1).uniform(0.5, 2.0, len(y)).astype("float32")
    dataset = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(16)
    history = distiller.fit(
        dataset, validation_data=dataset, epochs=2, verbose=0, **fit_arguments
    ).history
    return distiller.get_weights(), history


@pytest.mark.sampled(1)
@pytest.mark.parametrize("matched", [False, True])
def test_two_replicas_equal_one(data, matched, mirrored):
    def objective():
        hint = FeatureLoss("hidden", "hidden", adapter="auto")
        return SoftTargetLoss() + 0.1 * hint if matched else None

    one, logs_one = train(tf.distribute.get_strategy(), data, objective())
    two, logs_two = train(mirrored, data, objective())
    assert largest_difference(one, two) < 1e-5
    assert set(logs_one) == set(logs_two)
    for name, values in logs_one.items():
        assert values == pytest.approx(logs_two[name], rel=1e-5), name


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("loss", ["mse", keras.losses.KLDivergence()])
@pytest.mark.parametrize("weighted", [False, True])
def test_two_replicas_with_a_keras_objective(data, mirrored, loss, weighted):
    if weighted:
        data = (*data, np.linspace(0.5, 2.0, 64).astype("float32"))
    results = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            student = mlp(6)
            distillation_loss = keras.distillation.LogitsDistillation(loss=loss)
            distiller = Distiller(student, mlp(32), distillation_loss=distillation_loss)
            distiller.compile(keras.optimizers.SGD(0.1), SPARSE)
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(16)
        history = distiller.fit(dataset, epochs=2, verbose=0).history
        results.append((student.get_weights(), history))
    assert largest_difference(results[0][0], results[1][0]) < 1e-5
    assert results[0][1]["soft_loss"] == pytest.approx(
        results[1][1]["soft_loss"], rel=1e-5
    )


@pytest.mark.slow
def test_teacher_made_outside_the_strategy(data, mirrored):
    keras.utils.set_random_seed(5)
    teacher = mlp(32)
    one, _ = train(tf.distribute.get_strategy(), data, make_teacher=lambda: teacher)
    two, _ = train(mirrored, data, make_teacher=lambda: teacher)
    assert largest_difference(one, two) < 1e-5


@pytest.mark.slow
def test_cached_soft_targets_under_two_replicas(data, mirrored):
    x, y = data
    keras.utils.set_random_seed(5)
    cached = kd.DistillationInputs(x, mlp(32).predict(x, verbose=0))
    dataset = tf.data.Dataset.from_tensor_slices((cached, y)).batch(16)
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            distiller = Distiller(mlp(6))
            distiller.compile(keras.optimizers.SGD(0.1), SPARSE)
        distiller.fit(dataset, epochs=2, verbose=0)
        weights.append(distiller.get_weights())
    assert largest_difference(*weights) < 1e-5


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def run_workers(folder, ports, what):
    """Runs one process per port (one without a cluster if there are none)."""
    joined = ",".join(map(str, ports))
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(
                Process(["-m", "tests.multi_worker", folder, index, joined, what])
            )
            for index in range(max(1, len(ports)))
        ]
        return [w.wait(180) for w in workers], [w.stderr for w in workers]


def result(folder, index):
    with np.load(folder / f"weights{index}.npz") as weights:
        arrays = [weights[name] for name in weights.files]
    history = json.loads((folder / f"history{index}.json").read_text())
    return arrays, history


@pytest.mark.sampled(1)
@pytest.mark.parametrize("what", ["ours", "cached"])
def test_two_worker_processes_equal_one_process(tmp_path, what):
    if what == "cached":
        x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        kd.SoftTargets.write(
            tmp_path / "cached", mlp(32), x, shard_size=16, batch_size=16
        )
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    codes, errors = run_workers(alone, [], what)
    assert codes == [0], errors
    codes, errors = run_workers(together, free_ports(2), what)
    assert codes == [0, 0], errors
    one, logs_one = result(alone, 0)
    assert (logs_one.pop("replicas")) == 1
    for worker in (0, 1):
        two, logs_two = result(together, worker)
        assert logs_two.pop("replicas") == 2
        assert largest_difference(one, two) < 1e-5
        assert set(logs_one) == set(logs_two)
        for name, values in logs_one.items():
            assert values == pytest.approx(logs_two[name], rel=1e-5), name


def test_keras_itself_cannot_fit_with_two_workers(tmp_path):
    """When this fails, Keras can, and that of TrainerFixes can go."""
    codes, errors = run_workers(tmp_path, free_ports(2), "plain")
    assert 0 not in codes
    assert "PerReplica" in errors[0]


@pytest.mark.slow
def test_the_correlation_of_two_replicas_is_that_of_one(data, mirrored):
    x, _ = data
    y, found = x[:, :1], []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            student, teacher = mlp(6, classes=1), mlp(32, classes=1)
            distiller = Distiller(student, teacher)
            distiller.compile("sgd", "mse", metrics=[TeacherAgreement()])
        found.append(distiller.evaluate(x, y, batch_size=24, verbose=0)[-1])
    answers = [model.predict(x, verbose=0).ravel() for model in (student, teacher)]
    assert found == pytest.approx([np.corrcoef(answers)[0, 1]] * 2, rel=1e-5)
