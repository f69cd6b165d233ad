"""A teacher must not be trained with the student; variables are compared, not models."""

import functools
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from tests.conftest import CLASSES, FEATURES, SPARSE, copy_of, mlp

SHARES = r"the teacher shares the variable '.*' of the layer '.*' with the student"
SAME = "student and teacher are the same object"


def head_on(trunk, name=None):
    return keras.Sequential(
        [keras.Input((FEATURES,)), trunk, keras.layers.Dense(CLASSES)], name=name
    )


def pair(layer):
    """A student and a teacher on one layer."""
    return head_on(layer), head_on(layer)


def trunk(**kwargs):
    return keras.layers.Dense(7, name="trunk", **kwargs)


class Holder:
    """What holds both models, as a user's class may."""

    def __init__(self, student, teacher):
        self.student, self.teacher = student, teacher

    def teach(self, x):
        return self.teacher(x)


def ensemble_with(student):
    return kd.SpecialistEnsemble(
        student, [mlp(3), mlp(3)], [[0, 1], [2, 3]], head="all"
    )


@pytest.mark.parametrize(
    ("teacher_of", "message"),
    [
        (lambda student, teacher: teacher, "trunk/kernel' of the layer 'trunk'"),
        (lambda student, teacher: [mlp(9), teacher], SHARES),
        (lambda student, teacher: head_on(head_on(student)), SHARES),
        (lambda student, teacher: functools.partial(teacher, training=False), SHARES),
        (lambda student, teacher: teacher.call, SHARES),
        (lambda student, teacher: kd.as_teacher(teacher), SHARES),
        (lambda student, teacher: kd.as_teacher([mlp(9), teacher]), SHARES),
        (lambda student, teacher: student, SAME),
        (lambda student, teacher: ensemble_with(student), SHARES),
    ],
    ids=range(9),
)
def test_a_teacher_that_shares_what_is_trained(teacher_of, message):
    student, teacher = pair(trunk())
    teacher = teacher_of(student, teacher)
    with pytest.raises(ValueError, match=message):
        kd.Distiller(student, teacher, teacher_from_logits=True)
    distiller = kd.Distiller(student, teacher_from_logits=True)
    with pytest.raises(ValueError, match=message):
        distiller.teacher = teacher


class Wrapper:
    """A teacher as a user writes it."""

    def __init__(self, model):
        self.parts = {"model": model}

    def __call__(self, x):
        return self.parts["model"](x, training=False)


@pytest.mark.parametrize("entrance", ["fit", "train_on_batch"])
@pytest.mark.parametrize(
    "teacher_of",
    [
        lambda student, teacher: lambda x: teacher(x),
        lambda student, teacher: lambda x: student(x),
        lambda student, teacher: tf.function(lambda x: teacher(x)),
        lambda student, teacher: Wrapper(teacher),
        lambda student, teacher: Wrapper(student).__call__,
        lambda student, teacher: [mlp(9), tf.function(Wrapper(teacher))],
        lambda student, teacher: kd.as_teacher(Wrapper(teacher)),
    ],
    ids=range(7),
)
def test_what_a_function_reads_is_seen_before_the_first_step(
    data, teacher_of, entrance
):
    student, teacher = pair(trunk())
    teacher = teacher_of(student, teacher)
    distiller = kd.Distiller(student, teacher, teacher_from_logits=True)
    distiller.compile("adam", SPARSE)
    before = student.get_weights()
    with pytest.raises(ValueError, match=SHARES):
        getattr(distiller, entrance)(*data)
    for then, now in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(then, now)


def test_a_function_may_speak_of_the_student(data):
    student, teacher = mlp(6), mlp(32, classes=CLASSES + 2)
    distiller = kd.Distiller(
        student,
        lambda x: teacher(x)[:, : student.output_shape[-1]],
        teacher_from_logits=True,
    )
    distiller.compile("adam", SPARSE)
    distiller.fit(*data, verbose=0)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "layer",
    [
        lambda: trunk(trainable=False),
        lambda: keras.layers.Normalization(mean=0.0, variance=1.0),
        lambda: keras.layers.Dropout(0.5),
        lambda: keras.layers.BatchNormalization(trainable=False),
    ],
    ids=["frozen", "normalization", "dropout", "frozen batchnorm"],
)
def test_what_training_leaves_as_it_is_may_be_shared(data, layer):
    student, teacher = pair(layer())
    answer = teacher(data[0])
    distiller = kd.Distiller(student, teacher)
    distiller.compile("adam", SPARSE)
    distiller.fit(*data, verbose=0)
    np.testing.assert_array_equal(teacher(data[0]), answer)


def test_moving_averages_are_trained_too():
    layer = keras.layers.BatchNormalization(center=False, scale=False)
    with pytest.raises(ValueError, match="batch_normalization/moving_mean'"):
        kd.Distiller(*pair(layer))


def test_an_object_that_holds_both_models_teaches():
    holder = Holder(mlp(6), mlp(32))
    kd.Distiller(holder.student, holder.teach, teacher_from_logits=True)
    kd.Distiller(holder.student, lambda x: holder.teacher(x), teacher_from_logits=True)


class Late(keras.Model):
    """Has no variables before its first batch."""

    def __init__(self, layer):
        super().__init__()
        self.trunk, self.out = layer, keras.layers.Dense(CLASSES)

    def call(self, x):
        return self.out(self.trunk(x))


def test_models_that_are_built_on_the_first_batch(data):
    layer = trunk()
    distiller = kd.Distiller(
        Late(layer), Late(layer), student_from_logits=True, teacher_from_logits=True
    )
    distiller.compile("sgd", SPARSE)
    with pytest.raises(ValueError, match="'trunk' with the student"):
        distiller.fit(*data, verbose=0)
    assert int(distiller.optimizer.iterations) == 0


def test_a_layer_that_is_frozen_no_longer(data):
    student, teacher = pair(trunk(trainable=False))
    distiller = kd.Distiller(student, teacher)
    distiller.compile("sgd", SPARSE)
    distiller.fit(*data, verbose=0)
    student.layers[0].trainable = True
    distiller.compile("sgd", SPARSE)
    with pytest.raises(ValueError, match=SHARES):
        distiller.fit(*data, verbose=0)


def test_a_copy_shares_nothing():
    student = mlp(6)
    kd.Distiller(student, copy_of(student))


ORDER = r"the student has (\d+) parameters, more than the teacher's (\d+): the order is"


def trained(student, teacher, data):
    distiller = kd.Distiller(student, teacher)
    distiller.compile("sgd", SPARSE)
    distiller.fit(*data, verbose=0)


@pytest.mark.parametrize("teacher", [lambda: mlp(4), lambda: [mlp(1), mlp(2)]])
def test_a_student_that_is_larger_than_its_teacher_is_said_once(teacher, data):
    given = teacher()
    small = sum(model.count_params() for model in keras.tree.flatten(given))
    with pytest.warns(UserWarning, match=ORDER) as warned:
        trained(mlp(32), given, data)
    found = [re.search(ORDER, str(one.message)) for one in warned]
    sizes = [tuple(map(int, one.groups())) for one in found if one]
    assert sizes == [(mlp(32).count_params(), small)]


def test_a_student_that_is_built_by_data_is_measured_then(data):
    student = keras.Sequential([keras.layers.Dense(40), keras.layers.Dense(CLASSES)])
    distiller = kd.Distiller(student, mlp(4), student_from_logits=True)
    distiller.compile("sgd", SPARSE)
    with pytest.warns(UserWarning, match=ORDER):
        distiller.fit(*data, verbose=0)


def test_a_student_of_the_same_size_is_not_warned_of(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trained(mlp(8), mlp(8), data)
        kd.Distiller(mlp(8), lambda x: x[:, :CLASSES])
