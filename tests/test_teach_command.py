"""`keras-distill teach`, and what a training says where nobody looks at a terminal."""

import io
import json
import pathlib
import signal
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill import progress
from keras_distill.commands import epoch_batches, teach, training
from keras_distill.commands.main import main
from keras_distill.run_directory import RunDirectory
from tests import forking
from tests.forking import wait_for

COMMAND = ["teach", "digits", "mlp:8", "--epochs", "3", "--patience", "2"]


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teach")
    return folder, main([*COMMAND, "--output", str(folder / "teacher.keras")])


@pytest.mark.slow
def test_a_teacher_is_trained_judged_and_saved(taught, capsys, monkeypatch):
    folder, status = taught
    assert status == 0
    monkeypatch.chdir(folder)
    teacher = keras.saving.load_model("teacher.keras")
    x, y = kd.datasets.to_arrays(kd.datasets.load("digits").test)
    right = (teacher.predict(x, verbose=0).argmax(-1) == y).mean()
    judged = json.loads(pathlib.Path("teacher.keras.teach/judged.json").read_text())
    assert judged["accuracy"] == pytest.approx(right)
    # Again, with all that may not be done twice out of reach.
    monkeypatch.setattr(kd.Distiller, "fit", None)
    monkeypatch.setattr(kd, "evaluate", None)
    assert main([*COMMAND, "--output", "teacher.keras"]) == 0
    said = capsys.readouterr().out
    assert "going on with the training in teacher.keras.teach" in said
    assert f"teacher.keras: {right:.2%} of 540 are right" in said
    assert "keras-distill distill teacher.keras digits mlp:4" in said
    assert main([*COMMAND, "--output", "teacher.keras", "--seed", "1"]) == 1
    assert "--seed is 0, not 1" in capsys.readouterr().err


KILLED = """
import sys
from keras_distill.commands import training
from keras_distill.commands.main import main
training._SECONDS_BETWEEN_CHECKPOINTS = 0.0
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_weights(taught):
    folder, _ = taught
    command = ["-c", KILLED, *COMMAND, "--output", "killed.keras"]
    state = RunDirectory(str(folder / "killed.keras.teach" / "training"), "it")
    with forking.Process(command, folder) as process:
        wait_for(lambda: state.has("training.json") or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    assert not (folder / "killed.keras").exists()
    again = forking.run(command, folder)
    assert again.returncode == 0, again.stderr
    for ours, theirs in zip(
        keras.saving.load_model(folder / "killed.keras").get_weights(),
        keras.saving.load_model(folder / "teacher.keras").get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["digits", "mlp:8", "--output", "there.keras"],
            "is there already; give another",
        ),
        (["digits", "mlp:8", "--output", "x.h5"], "must be a .keras file, got 'x.h5'"),
        (["digits", "mlp:8", "--output", "no/x.keras"], "folder 'no' is not there"),
        (["digits", "mlp:8", "--output", "folder.keras"], "is a folder; give a .keras"),
        (["digits", "mlp"], "there is no built-in network 'mlp'"),
        (["digits", "nothing:at"], "the model's module cannot be imported"),
        (["digits", "three.keras"], "the model 'three.keras' answers with 3 numbers"),
        (["no_such", "mlp:8"], "there is no dataset 'no_such'"),
        (["digits", "mlp:8", "--epochs", "0"], "epochs must be a whole number >= 1"),
        (["digits", "mlp:8", "--learning-rate", "0"], "learning_rate must be"),
    ],
)
def test_wrong_trainings_are_one_sentence(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(teach, "train", None)  # is never come to
    pathlib.Path("there.keras").write_text("")
    pathlib.Path("folder.keras").mkdir()
    kd.models.mlp((8, 8, 1), 3, (4,)).save("three.keras")
    assert main(["teach", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("keras-distill: error: ")
    assert message in line
    assert not list(tmp_path.glob("*.teach"))


# Trainings ---------------------------------------------------------------------------


def dataset(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y))


def examples(count=40):
    rng = np.random.default_rng(0)
    return dataset(rng.normal(size=(count, 5)).astype("float32"), np.arange(count) % 2)


@pytest.mark.parametrize(("in_memory", "seed"), [(True, 0), (False, 0), (False, 3)])
def test_each_epoch_has_an_order_of_its_own_that_can_be_had_again(
    in_memory, seed, monkeypatch
):
    if not in_memory:
        monkeypatch.setattr(epoch_batches, "_IN_MEMORY_BYTES", 0)
    every = dataset(np.arange(20.0), np.arange(20))

    def orders(epochs, first=0):
        batches = epoch_batches.EpochBatches(every, 20, 8, seed)
        read, found = batches.dataset(), []
        assert int(read.cardinality()) == batches.steps == 3
        for epoch in range(first, epochs):
            batches.epoch = epoch
            found.append([int(i) for _, y in read for i in y])
        return found

    whole = orders(3)
    assert all(sorted(one) == list(range(20)) for one in whole)
    assert len({tuple(one) for one in whole}) == 3
    assert orders(3) == whole
    assert orders(3, first=2) == whole[2:]


def trained(folder, epochs=6, patience=None, stop_after=None, learning_rate=0.01):
    """The weights of a training of a small network with dropout, perhaps interrupted."""
    keras.utils.set_random_seed(7)
    model = kd.models.mlp((5,), 2, (8,), dropout=0.5)
    batches = epoch_batches.EpochBatches(examples(), 40, 8, 1)
    plan = training.Plan(epochs, 8, learning_rate, patience, 1)
    distiller = training.compiled(kd.Distiller(model, alpha=1.0), plan, 5, 2)

    class Stopped(training._State):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == stop_after:
                raise KeyboardInterrupt
            super().on_epoch_begin(epoch, logs)

    original, training._State = training._State, Stopped
    try:
        outcome = training.train(
            distiller,
            batches,
            examples().batch(8),
            plan,
            RunDirectory(folder, "it"),
            "x",
        )
    finally:
        training._State = original
    return outcome, model.get_weights()


@pytest.mark.slow
def test_an_interrupted_training_ends_like_an_unbroken_one(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    whole, weights = trained(str(tmp_path / "whole"))
    folder = str(tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        trained(folder, stop_after=4)
    outcome, again = trained(folder)
    assert outcome.history == whole.history
    assert outcome.best_epoch == whole.best_epoch
    for ours, theirs in zip(again, weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    left = sorted(path.suffix for path in (tmp_path / "broken").iterdir())
    assert left == [".json", ".npz", ".npz"]


@pytest.mark.slow
def test_a_training_stops_when_nothing_gets_better(tmp_path):
    outcome, _ = trained(str(tmp_path), epochs=40, patience=2)
    assert outcome.epochs < 40
    assert outcome.epochs == outcome.best_epoch + 3


def test_a_damaged_checkpoint_is_a_sentence(tmp_path):
    trained(str(tmp_path), epochs=1)
    for path in tmp_path.glob("epoch-*.npz"):
        path.write_bytes(b"PK")
    with pytest.raises(ValueError, match="is gone or damaged; delete"):
        trained(str(tmp_path), epochs=1)


def test_a_training_that_diverges_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"not finite.*lower --learning-rate|diverge"):
        trained(str(tmp_path), epochs=3, learning_rate=1e38)


def test_a_training_says_where_it_is_every_30_seconds(tmp_path, monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        progress, "time", types.SimpleNamespace(monotonic=lambda: clock.now)
    )
    monkeypatch.setattr(
        progress, "_SECONDS_BETWEEN_LOOKS", 60.0
    )  # here the clock is ours
    log = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", log)
    before = training._State.on_epoch_end

    def on_epoch_end(self, epoch, logs=None):
        clock.now += 16.0  # so long takes an epoch
        before(self, epoch, logs)

    monkeypatch.setattr(training._State, "on_epoch_end", on_epoch_end)
    trained(str(tmp_path), epochs=6)
    lines = log.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("x:  33%")
    assert "10/30 [00:32<01:04" in lines[0]
    assert "val accuracy" in lines[0]
    assert "\r" not in log.getvalue()


@pytest.mark.parametrize(
    ("network", "shape", "student"),
    [
        ("cnn:32,64", (64, 64, 3), "cnn:8,16"),
        ("mlp:8", (5,), "mlp:4"),
        ("my_models:build", (64, 64, 3), "cnn:8,16"),
        ("applications:VGG16", (64, 64, 3), "cnn:8,16"),
        ("my_models:build", {"age": (), "city": ()}, "mlp:64"),
    ],
)
def test_the_student_that_is_offered_is_for_such_examples(network, shape, student):
    assert teach._smaller(network, shape) == student


@pytest.mark.parametrize(
    ("network", "rate"),
    [
        ("cnn:8,64", 0.01),
        ("mlp:64,65", 0.003),
        ("applications:MobileNetV3Small", 0.001),
        ("cnn:build", 0.001),
        ("student.keras", 0.001),
    ],
)
def test_the_rate_fits_the_network_s_width(network, rate):
    assert training.default_learning_rate(network) == rate


@pytest.mark.parametrize(
    ("examples", "epochs", "patience"),
    [(1, 300, 100), (497, 300, 100), (1257, 119, 39), (60_000, 15, 10)],
)
def test_few_examples_are_seen_often_and_waited_for(examples, epochs, patience):
    assert training.default_epochs(examples) == epochs
    assert training.default_patience(epochs) == patience
