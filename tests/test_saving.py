import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.distiller import Distiller
from keras_distill.losses.features import FeatureLoss
from keras_distill.losses.kl import SoftTargetLoss
from keras_distill.metrics import TeacherAgreement
from tests.conftest import FEATURES, SPARSE, copy_of, largest_difference, mlp


def make(teacher, width=64, **kwargs):
    student = mlp(width)
    distiller = Distiller(student, teacher, **kwargs)
    distiller.compile(
        keras.optimizers.Adam(0.01), SPARSE, metrics=["accuracy", TeacherAgreement()]
    )
    return distiller


def bytes_of(array_list):
    return sum(np.asarray(a).nbytes for a in array_list)


@pytest.mark.slow
def test_reloaded_distiller_continues_exactly(data, tmp_path):
    x, y = data
    teacher = mlp(256)
    schedule = keras.optimizers.schedules.ExponentialDecay(4.0, 10, 0.5)
    hint = SoftTargetLoss() + 0.1 * FeatureLoss("hidden", "hidden", adapter="auto")
    distiller = make(teacher, temperature=schedule, alpha=0.3, distillation_loss=hint)
    distiller.fit(x, y, epochs=2, verbose=0)
    distiller.alpha = 0.6
    distiller.save(tmp_path / "d.keras")

    again = keras.models.load_model(tmp_path / "d.keras")
    assert isinstance(again, Distiller)
    assert again.teacher is None
    with pytest.raises(ValueError, match="nothing teaches"):
        again.fit(x, y, verbose=0)
    again.teacher = teacher
    assert again.alpha == pytest.approx(0.6)
    assert int(again.optimizer.iterations) == 4
    for model in (distiller, again):
        model.reset_metrics()
    expected = distiller.train_on_batch(x, y, return_dict=True)
    assert again.train_on_batch(x, y, return_dict=True) == pytest.approx(
        expected, rel=1e-6
    )
    assert largest_difference(distiller.get_weights(), again.get_weights()) < 1e-6


@pytest.mark.sampled(1)
@pytest.mark.parametrize("distiller_kwargs", [{}, {"alpha": 1.0}])
def test_files_hold_the_student_and_no_teacher(data, tmp_path, distiller_kwargs):
    x, y = data
    distiller = make(mlp(4096), width=2048, **distiller_kwargs)
    student = distiller.student
    plain = copy_of(student)
    plain.compile(keras.optimizers.Adam(0.01), SPARSE, metrics=["accuracy"])
    for model in (distiller, plain):
        model.fit(x, y, verbose=0)
    for name in ("model.keras", "model.weights.h5"):
        ours, theirs = tmp_path / f"ours-{name}", tmp_path / f"plain-{name}"
        for model, path in ((distiller, ours), (plain, theirs)):
            model.save(path) if name.endswith(".keras") else model.save_weights(path)
        assert os.path.getsize(ours) == pytest.approx(os.path.getsize(theirs), rel=0.05)
    # and the student alone, once trained, is a plain model
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    assert largest_difference(loaded.get_weights(), distiller.get_weights()) == 0.0


def test_distillers_weights_load_into_another(data, tmp_path):
    teacher = mlp(32)
    first, second = make(teacher), make(teacher)
    first.fit(*data, verbose=0)
    first.save_weights(tmp_path / "d.weights.h5")
    second.load_weights(tmp_path / "d.weights.h5")
    assert largest_difference(first.get_weights(), second.get_weights()) == 0.0


def test_unbuilt_student_saves_and_loads(data, tmp_path):
    student = keras.Sequential(
        [keras.layers.Dense(6, activation="relu"), keras.layers.Dense(5)]
    )
    distiller = Distiller(student, mlp(32), student_from_logits=True)
    distiller.compile("adam", SPARSE)
    distiller.fit(*data, verbose=0)
    distiller.save(tmp_path / "d.keras")
    again = keras.models.load_model(tmp_path / "d.keras")
    np.testing.assert_allclose(
        again.predict(data[0], verbose=0), distiller.predict(data[0], verbose=0)
    )


def test_objectives_per_output_are_saved(tmp_path):
    def heads():
        inputs = keras.Input((FEATURES,))
        return keras.Model(
            inputs,
            {
                "a": keras.layers.Dense(3, name="a")(inputs),
                "b": keras.layers.Dense(4, name="b")(inputs),
            },
        )

    objective = {"a": SoftTargetLoss(2.0), "b": 0.5 * kd.LogitLoss()}
    distiller = Distiller(heads(), heads(), distillation_loss=objective)
    distiller.save(tmp_path / "d.keras")
    again = keras.models.load_model(tmp_path / "d.keras")
    assert again.distillation_loss["a"].temperature == 2.0
    assert again.distillation_loss["b"].terms[0][0] == 0.5


def test_keras_objective_is_saved(tmp_path):
    objective = keras.distillation.LogitsDistillation(temperature=7.0)
    distiller = Distiller(mlp(), mlp(9), distillation_loss=objective)
    distiller.save(tmp_path / "d.keras")
    again = keras.models.load_model(tmp_path / "d.keras")
    assert isinstance(again.distillation_loss, keras.distillation.LogitsDistillation)
    assert again.distillation_loss.temperature == 7.0


def test_fresh_process_loads_in_safe_mode_without_custom_objects(data, tmp_path):
    hint = SoftTargetLoss() + 0.1 * FeatureLoss("hidden", "hidden", adapter="auto")
    distiller = make(mlp(32), distillation_loss=hint)
    distiller.fit(*data, verbose=0)
    distiller.save(tmp_path / "d.keras")
    np.save(tmp_path / "x.npy", data[0])
    code = (
        "import sys, json, numpy as np, keras, keras_distill\n"
        "d = keras.models.load_model(sys.argv[1])\n"
        "print(json.dumps(d.predict(np.load(sys.argv[2]), verbose=0).tolist()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "d.keras", tmp_path / "x.npy"],
        capture_output=True,
        text=True,
        check=True,
    )
    np.testing.assert_allclose(
        json.loads(done.stdout.splitlines()[-1]),
        distiller.predict(data[0], verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.slow
def test_model_checkpoint(data, tmp_path):
    x, y = data
    path = tmp_path / "best.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(
        path, monitor="val_accuracy", mode="max", save_best_only=True
    )
    distiller = make(mlp(32))
    history = distiller.fit(
        x, y, epochs=3, validation_data=(x, y), callbacks=[checkpoint], verbose=0
    ).history
    best = keras.models.load_model(path)
    best.teacher = distiller.teacher
    accuracy = best.evaluate(x, y, verbose=0, return_dict=True)["accuracy"]
    assert accuracy == pytest.approx(max(history["val_accuracy"]))


@pytest.mark.slow
def test_backup_and_restore_ends_like_an_unbroken_run(data, tmp_path):
    x, y = data

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("pulled the plug")

    teacher = mlp(32)
    unbroken = make(teacher)
    start = unbroken.get_weights()
    unbroken.fit(x, y, epochs=4, shuffle=False, verbose=0)

    def attempt(callbacks):
        distiller = make(teacher)
        distiller.set_weights(start)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        distiller.fit(
            x, y, epochs=4, shuffle=False, verbose=0, callbacks=[backup, *callbacks]
        )
        return distiller

    with pytest.raises(RuntimeError, match="pulled the plug"):
        attempt([Interrupt()])
    resumed = attempt([])
    assert int(resumed.optimizer.iterations) == int(unbroken.optimizer.iterations)
    assert largest_difference(resumed.get_weights(), unbroken.get_weights()) < 1e-6


# Of each kind -----------------------------------------------------------------------------


def linear(size):
    return keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(size)])


class OwnLoss(keras.losses.Loss):
    """Says nothing of what it is for."""

    def call(self, y, z):
        return keras.ops.mean(keras.ops.square(y - z), -1)


QUESTIONS = keras.losses.BinaryCrossentropy(from_logits=True)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("loss", "kind", "size"),
    [
        (QUESTIONS, "sigmoid", 3),
        ("mse", "values", 3),
        (keras.losses.CosineSimilarity(), "values", 3),
        (OwnLoss(), "sigmoid", 1),  # as the labels say
    ],
)
def test_a_distiller_of_each_kind_learns_on_after_loading(
    data, tmp_path, loss, kind, size
):
    x, y = data[0], (data[0][:, :size] > 0).astype("float32")
    teacher = linear(size)
    distiller = Distiller(linear(size), teacher)
    distiller.compile("sgd", loss)
    distiller.fit(x, y, verbose=0)
    distiller.save(tmp_path / "d.keras")
    again = keras.saving.load_model(
        tmp_path / "d.keras", custom_objects={"OwnLoss": OwnLoss}
    )
    assert again.output_kinds == distiller.output_kinds == kind
    again.teacher = teacher
    for model in (distiller, again):
        model.reset_metrics()
    expected = distiller.train_on_batch(x, y, return_dict=True)
    found = again.train_on_batch(x, y, return_dict=True)
    assert found == pytest.approx(expected, rel=1e-6)
    assert largest_difference(distiller.get_weights(), again.get_weights()) < 1e-6


@pytest.mark.parametrize("structure", [dict, list])
def test_kinds_of_several_outputs_are_saved(tmp_path, structure):
    inputs = keras.Input((FEATURES,))
    heads = {name: keras.layers.Dense(3, name=name)(inputs) for name in "abc"}
    outputs = heads if structure is dict else list(heads.values())
    distiller = Distiller(
        keras.Model(inputs, outputs),
        distillation_loss={"a": SoftTargetLoss(), "b": kd.CosineLoss()},
        output_kinds={"a": "sigmoid"},
    )
    distiller.compile("sgd", {"b": "mse", "c": "mae"})
    distiller.save(tmp_path / "d.keras")
    again = keras.saving.load_model(tmp_path / "d.keras")
    first, second, third = "abc" if structure is dict else range(3)
    kinds = {first: "sigmoid", second: "values", third: None}
    assert again.output_kinds == distiller.output_kinds == kinds
    losses = again.distillation_loss
    assert isinstance(losses[first], SoftTargetLoss)
    assert isinstance(losses[second], kd.CosineLoss)
