"""What is dropped is gone: nothing of ours keeps a distiller, its student or its teacher.

TensorFlow keeps the graph of every step that it has traced, in a plain Keras model's `fit`
as here: 4.4 MB for each model that is built, compiled and fitted, 3.5 MB for a distiller.
"""

import collections
import gc
import weakref

import keras
import pytest
import tensorflow as tf

import keras_distill as kd
from tests.conftest import SPARSE, mlp

LIVES_ON: list = []


def constructed(data, teacher):
    distiller = kd.Distiller(mlp(6), teacher)
    return distiller, distiller.student, distiller._state, distiller._state.teacher


def trained(data, teacher, **kwargs):
    distiller = kd.Distiller(mlp(6), teacher, **kwargs)
    metrics = ["accuracy", kd.TeacherAgreement()]
    distiller.compile(keras.optimizers.SGD(0.1), SPARSE, metrics=metrics)
    distiller.fit(*data, validation_data=data, verbose=0)
    distiller.predict(data[0], verbose=0)
    return (
        distiller,
        distiller.student,
        distiller._state,
        distiller._state.teacher,
        distiller.optimizer,
    )


def matching_features(data, teacher):
    loss = kd.SoftTargetLoss() + kd.FeatureLoss("hidden", "hidden", adapter="auto")
    return trained(data, teacher, distillation_loss=loss)


def of_several_teachers(data, teacher):
    return trained(data, [teacher, mlp(9)])


def refused(data, teacher):
    distiller = kd.Distiller(mlp(6), teacher, alpha=0.5)
    distiller.compile("sgd", SPARSE)
    x, y = data
    try:
        distiller.fit(x, y + 100, verbose=0)
    except ValueError:
        return distiller, distiller.student, distiller._state.watch or distiller._state
    raise AssertionError("labels out of range were accepted")


def with_another_teacher(data, teacher):
    """The first is taken out of a distiller that lives on."""
    distiller = kd.Distiller(mlp(6), mlp(9))
    first = distiller.teacher, distiller._state.teacher
    distiller.teacher = teacher
    LIVES_ON.append(distiller)
    return first


def evaluated(data, teacher):
    model = mlp(6)
    kd.evaluate(model, data, teacher=teacher, timing=False)
    return (model,)


def an_ensemble(data, teacher):
    ensemble = kd.SpecialistEnsemble(mlp(6), [mlp(6, classes=3)], [[0, 1]])
    ensemble.predict(data[0], verbose=0)
    return ensemble, ensemble.generalist, *ensemble.specialists


MADE = (
    constructed,
    trained,
    matching_features,
    of_several_teachers,
    refused,
    with_another_teacher,
    evaluated,
    an_ensemble,
)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("make", MADE)
def test_what_is_dropped_is_collected(make, data):
    teacher = mlp(32)
    kept = [weakref.ref(thing) for thing in make(data, teacher)]
    gc.collect()
    alive = [type(ref()).__name__ for ref in kept if ref() is not None]
    LIVES_ON.clear()
    assert not alive


def of_ours():
    gc.collect()
    return collections.Counter(
        type(one).__qualname__
        for one in gc.get_objects()
        if str(type(one).__module__).startswith("keras_distill")
    )


@pytest.mark.slow
def test_no_object_of_ours_is_left_by_a_loop(data):
    teacher = mlp(32)
    trained(data, teacher)
    before = of_ours()
    for _ in range(3):
        trained(data, teacher)
    assert of_ours() == before


@pytest.mark.slow
def test_constructing_grows_by_no_more_than_a_plain_model(data):
    """In Python's objects; each is what 100 rounds leave, without the teacher's own."""
    teacher = mlp(32)

    def left_by(make):
        make()
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(100):
            make()
        gc.collect()
        return len(gc.get_objects()) - before

    plain = left_by(lambda: mlp(6))
    assert left_by(lambda: kd.Distiller(mlp(6), teacher)) <= plain + 50


def test_no_data_is_kept_after_a_fit(data):
    """TensorFlow keeps what a dataset of a generator was made of, for ever."""
    x, y = data
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    distiller = kd.Distiller(mlp(6), mlp(32))
    distiller.compile("sgd", SPARSE, steps_per_execution=4)
    distiller.fit(dataset, verbose=0)
    kept = weakref.ref(dataset)
    del dataset
    keras.utils.clear_session()
    gc.collect()
    assert kept() is None
