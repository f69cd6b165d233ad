"""A teacher that XLA cannot compile, where Keras would compile the student's step by it.

A GPU is pretended while compile() decides; XLA for CPUs then stands for XLA for GPUs.
"""

import contextlib
import types
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd

from .conftest import SPARSE, largest_difference

IDS = list(range(10, 60))


@contextlib.contextmanager
def a_gpu():
    devices = [types.SimpleNamespace(device_type=kind) for kind in ("CPU", "GPU")]
    with mock.patch.object(tf.config, "list_physical_devices", return_value=devices):
        yield


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.integers(10, 60, (64, 4)), rng.integers(3, size=64)


def classifier(*first):
    return keras.Sequential(
        [
            keras.Input((4,), dtype="int64"),
            *first,
            layers.Embedding(64, 2),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def doubled(x):
    return tf.ensure_shape(tf.py_function(lambda a: a, [x], x.dtype), x.shape)


def lookup():
    return classifier(layers.IntegerLookup(vocabulary=IDS))


def nested():
    inputs = keras.Input((4,), dtype="int64")
    return keras.Model(inputs, lookup()(inputs))


def with_lambda():
    return classifier(layers.Lambda(doubled, output_shape=(4,)))


def numpy_callable():
    table = np.random.default_rng(0).normal(size=(64, 3))
    return kd.as_teacher(lambda x: table[np.asarray(x)[:, 0]], from_logits=True)


def tf_callable():
    model = with_lambda()
    return kd.as_teacher(lambda x: model(x), from_logits=True)


def path(folder):
    model = lookup()
    model.export(folder / "1", verbose=False)
    return kd.as_teacher(folder / "1", from_logits=True)


TEACHERS = {
    "lookup": lookup,
    "nested": nested,
    "list": lambda: [classifier(), nested()],
    "Lambda": with_lambda,
    "NumPy": numpy_callable,
    "callable": tf_callable,
}
KNOWN = ("lookup", "nested", "list")


def compiled(teacher, **kwargs):
    keras.utils.set_random_seed(3)
    distiller = kd.Distiller(classifier(), teacher)
    with a_gpu():
        distiller.compile(keras.optimizers.SGD(0.1), SPARSE, **kwargs)
    return distiller


def fit(distiller, data):
    distiller.fit(*data, batch_size=24, shuffle=False, verbose=0)


def train_on_batch(distiller, data):
    for start in (0, 24, 48):
        distiller.train_on_batch(*(part[start : start + 24] for part in data))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("name", "how", "kwargs"),
    [(name, fit, {}) for name in TEACHERS]
    + [("Lambda", fit, {"steps_per_execution": 2}), ("Lambda", train_on_batch, {})],
)
def test_the_student_s_step_runs_all_the_same(name, how, kwargs, data):
    teacher = TEACHERS[name]()
    distiller = compiled(teacher, **kwargs)
    assert distiller.jit_compile is (name not in KNOWN)
    how(distiller, data)
    assert distiller.jit_compile is False
    plain = compiled(teacher, jit_compile=False)
    fit(plain, data)
    found, expected = distiller.get_weights(), plain.get_weights()
    assert largest_difference(found, expected) < 1e-6
    assert distiller.optimizer.iterations == 3


@pytest.mark.slow
def test_it_runs_under_a_saved_model(data, tmp_path):
    distiller = compiled(path(tmp_path))
    fit(distiller, data)
    assert distiller.optimizer.iterations == 3


@pytest.mark.slow
def test_a_teacher_that_can_be_compiled_is(data):
    distiller = compiled(classifier())
    fit(distiller, data)
    assert distiller.jit_compile is True


@pytest.mark.slow
def test_it_judges(data):
    with a_gpu():
        distiller = kd.Distiller(classifier(), with_lambda())
        distiller.compile("sgd", SPARSE, metrics=[kd.TeacherAgreement()])
    assert distiller.jit_compile
    assert (
        distiller.evaluate(*data, verbose=0, return_dict=True)["teacher_agreement"] >= 0
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", TEACHERS)
def test_who_asks_for_xla_is_told_why_not(name, data):
    distiller = kd.Distiller(classifier(), TEACHERS[name]())
    before = distiller.student.get_weights()
    said = {
        "NumPy": "XLA cannot compile this step: the callable .* leaves TensorFlow",
        "Lambda": "it has no EagerPyFunc. Leave jit_compile out",
        "callable": "it has no EagerPyFunc. Leave jit_compile out",
    }.get(name, "the teacher's layer 'integer_lookup.*' .IntegerLookup. cannot be")

    def run():
        distiller.compile("sgd", SPARSE, jit_compile=True)
        distiller.fit(*data, verbose=0)

    with pytest.raises(ValueError, match=said):
        run()
    assert largest_difference(before, distiller.student.get_weights()) == 0.0
    distiller.compile("sgd", SPARSE)
    fit(distiller, data)


def test_a_teacher_that_is_set_later_is_asked_too(data):
    distiller = compiled(classifier())
    assert distiller.jit_compile
    distiller.teacher = lookup()
    assert distiller.jit_compile is False
    fit(distiller, data)
    other = kd.Distiller(classifier(), classifier())
    other.compile("sgd", SPARSE, jit_compile=True)
    before = other.teacher
    with pytest.raises(ValueError, match="jit_compile is True, but XLA cannot"):
        other.teacher = lookup()
    assert other.teacher is before
    assert other._state.teacher.model is before


@pytest.mark.slow
def test_a_student_that_cannot_be_compiled_is_not(data):
    keras.utils.set_random_seed(3)
    distiller = kd.Distiller(with_lambda(), classifier())
    with a_gpu():
        distiller.compile("sgd", SPARSE)
    assert distiller.jit_compile
    fit(distiller, data)
    assert distiller.jit_compile is False


def test_what_is_saved_is_what_was_asked(data, tmp_path):
    distiller = compiled(classifier())
    distiller.save(tmp_path / "d.keras")
    again = keras.saving.load_model(tmp_path / "d.keras")
    again.teacher = lookup()
    fit(again, data)


@pytest.mark.slow
def test_an_ensemble_of_specialists_teaches(data):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype("float32"), np.arange(60) % 4

    def model(width):
        return keras.Sequential(
            [keras.Input((4,)), layers.Dense(width, "relu"), layers.Dense(4)]
        )

    builder = kd.SpecialistBuilder(model(5), clusters=[(0, 1), (2, 3)])
    ensemble = builder.fit((x, y), hard_epochs=1, soft_epochs=0, verbose=False)
    distiller = kd.Distiller(model(3), ensemble)
    with a_gpu():
        distiller.compile("sgd", SPARSE)
    assert np.isfinite(distiller.fit(x, y, verbose=0).history["loss"][0])
