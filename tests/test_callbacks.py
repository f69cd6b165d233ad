import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import keras_distill as kd

from .conftest import CLASSES, mlp

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SCHEDULE = keras.optimizers.schedules.PiecewiseConstantDecay([1], [4.0, 2.0])


def fitted(distiller, x, y, pictures, epochs=1):
    distiller.compile("adam", LOSS)
    distiller.fit(
        x, y, batch_size=len(y), epochs=epochs, verbose=0, callbacks=[pictures]
    )


def steps(folder):
    """Returns by picture the epochs after which it was drawn."""
    events = EventAccumulator(str(folder / "soft_targets"), {"tensors": 0}).Reload()
    return {n: [e.step for e in events.Tensors(n)] for n in events.Tags()["tensors"]}


def test_pictures_of_each_example_every_other_epoch(data, tmp_path):
    x, y = data
    pictures = kd.callbacks.SoftTargetPictures(
        x[:2], tmp_path, labels=y[:2], update_freq=2
    )
    distiller = kd.Distiller(mlp(), mlp(width=9), temperature=SCHEDULE)
    fitted(distiller, x, y, pictures, epochs=4)
    fitted(distiller, x, y, pictures, epochs=2)  # and once more
    assert steps(tmp_path) == {"example 0": [1, 3, 1], "example 1": [1, 3, 1]}


@pytest.fixture
def drawn(monkeypatch):
    """What is given to be drawn: logits by model, temperatures, and how."""
    calls = []
    draw = kd.callbacks.soft_targets

    def noted(*args, **kwargs):
        calls.append((*args, kwargs))
        return draw(*args, **kwargs)

    monkeypatch.setattr(kd.callbacks, "soft_targets", noted)
    return calls


def test_drawn_are_the_logits_of_both_at_the_temperature_in_force(
    data, tmp_path, drawn
):
    x, y = data
    student, teacher = mlp(), keras.Sequential([mlp(width=9), keras.layers.Softmax()])
    pictures = kd.callbacks.SoftTargetPictures(
        x[:1], tmp_path, labels=y[:1], class_names=list("abcdefgh")[:CLASSES]
    )
    fitted(kd.Distiller(student, teacher, temperature=SCHEDULE), x, y, pictures, 3)
    assert [temperatures for _, temperatures, _ in drawn] == [(4.0,), (2.0,), (2.0,)]
    logits, _, how = drawn[-1]
    np.testing.assert_allclose(logits["student"], student(x[:1])[0], rtol=1e-5)
    p = tf.nn.softmax(logits["teacher"])
    np.testing.assert_allclose(p, teacher(x[:1])[0], rtol=1e-4)
    assert how["label"] == y[0]
    assert how["image"] is None


def test_of_many_classes_the_likeliest_are_drawn(tmp_path, drawn):
    def model(seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential([
            keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(50)
        ])  # fmt: skip

    x = np.random.default_rng(0).random((8, 4, 4, 1), "float32")
    teacher = model(1)
    y = np.asarray(teacher(x)).argsort()[:, [0, -2]]  # unlikely, likely
    pictures = kd.callbacks.SoftTargetPictures(
        x[:2], tmp_path, labels=[y[0, 0], y[1, 1]]
    )
    fitted(kd.Distiller(model(2), teacher), x, y[:, 1], pictures)
    (unlikely, _, first), (_, _, second) = drawn
    kept = np.sort(np.asarray(teacher(x[:1]))[0].argsort()[-20:])
    assert first["class_names"] == [str(c) for c in kept]
    np.testing.assert_allclose(unlikely["teacher"], np.asarray(teacher(x[:1]))[0, kept])
    assert first["label"] is None
    assert second["class_names"][second["label"]] == str(y[1, 1])
    assert first["image"].min() == 0.0
    assert first["image"].max() == 1.0


def test_cached_soft_targets_need_a_teacher_to_draw(data, tmp_path, drawn):
    x, y = data
    teacher = mlp(width=9)
    examples = tf.data.Dataset.from_tensor_slices((x, y))
    targets = kd.SoftTargets.write(tmp_path / "targets", teacher, examples.batch(8))
    joined = targets.join(examples.batch(8))
    for given, names in ((None, ["student"]), (teacher, ["teacher", "student"])):
        distiller = kd.Distiller(mlp())
        distiller.compile("adam", LOSS)
        pictures = kd.callbacks.SoftTargetPictures(x[:1], tmp_path, teacher=given)
        distiller.fit(joined, verbose=0, callbacks=[pictures])
        assert list(drawn.pop()[0]) == names


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"labels": [CLASSES]}, f"labels must be from 0 to {CLASSES - 1}"),
        ({"class_names": ["a"]}, "class_names has 1 names"),
        ({"teacher": mlp(classes=CLASSES + 1), "class_names": ["a"] * CLASSES}, "and the teacher"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_models_is_refused_before_a_step(
    data, tmp_path, wrong, sentence
):
    x, y = data
    distiller = kd.Distiller(mlp(), mlp(width=9))
    with pytest.raises(ValueError, match=sentence):
        fitted(
            distiller, x, y, kd.callbacks.SoftTargetPictures(x[:1], tmp_path, **wrong)
        )
    assert int(distiller.optimizer.iterations) == 0
    assert not list(pathlib.Path(tmp_path).iterdir())


def test_only_for_distillers_of_one_output_of_classes(data, tmp_path):
    x, y = data
    pictures = kd.callbacks.SoftTargetPictures(x[:1], tmp_path)
    plain = mlp()
    plain.compile("adam", LOSS)
    with pytest.raises(ValueError, match="for the fit of a Distiller, got Sequential"):
        plain.fit(x, y, verbose=0, callbacks=[pictures])
    distiller = kd.Distiller(mlp(classes=1), mlp(classes=1, width=9))
    distiller.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="one output of two classes or more"):
        distiller.fit(x, np.float32(y > 0), verbose=0, callbacks=[pictures])
