"""Labels, weights and answers that are wrong: before training, and in a later batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.losses.base import DistillationLoss
from tests.conftest import (
    CLASSES,
    SPARSE,
    copy_of,
    largest_difference,
    mlp,
    tagger,
)

ONE_HOT = keras.losses.CategoricalCrossentropy(from_logits=True)
BAD = 5  # the batch of eight that is wrong, of eight examples


def compiled(loss=SPARSE, student=None, teacher=None, run=None, **kwargs):
    distiller = kd.Distiller(student or mlp(6), teacher or mlp(32), **kwargs)
    distiller.compile(keras.optimizers.SGD(0.1), loss, **(run or {}))
    return distiller


def with_one(values, wrong):
    values = np.array(values)
    values[8 * BAD + 3] = wrong
    return values


def rows(y):
    return np.eye(CLASSES, dtype="float32")[y]


# Kind of fault: labels and weights of y, loss, and the sentence.
FAULTS = {
    "label": (
        lambda y: (with_one(y, 9), None), SPARSE,
        "labels must be from 0 to 4, since the student has 5 classes; got 9",
    ),
    "negative label": (
        lambda y: (with_one(y, -1), None), SPARSE, "labels must be from 0 to 4.* got -1"
    ),
    "part of a label": (
        lambda y: (with_one(y.astype("float32"), 0.5), None), SPARSE,
        "labels must be whole numbers from 0 to 4, got 0.5",
    ),
    "label of no number": (
        lambda y: (with_one(y.astype("float32"), np.nan), None), SPARSE,
        "labels must be whole numbers from 0 to 4, got nan",
    ),
    "NaN in one-hot": (
        lambda y: (with_one(rows(y), np.nan), None), ONE_HOT,
        "one-hot labels must sum to 1, got a row with the sum nan",
    ),
    "sum": (
        lambda y: (with_one(rows(y), 0.4), None), ONE_HOT,
        "one-hot labels must sum to 1, got a row with the sum 2",
    ),
    "nothing": (
        lambda y: (with_one(rows(y), 0.0), None), ONE_HOT,
        "one-hot labels must sum to 1, got a row with the sum 0",
    ),
    "negative": (
        lambda y: (with_one(rows(y), [-1, 1, 1, 0, 0]), None), ONE_HOT,
        "one-hot labels must be >= 0, got -1",
    ),
    "NaN weight": (
        lambda y: (y, with_one(np.ones(64, "float32"), np.nan)), SPARSE,
        "sample weights must be finite numbers >= 0, got nan",
    ),
    "infinite weight": (
        lambda y: (y, with_one(np.ones(64, "float32"), np.inf)), SPARSE,
        "sample weights must be finite numbers >= 0, got inf",
    ),
    "negative weight": (
        lambda y: (y, with_one(np.ones(64, "float32"), -0.5)), SPARSE,
        "sample weights must be finite numbers >= 0, got -0.5",
    ),
}  # fmt: skip
EIGHT = f" in batch {BAD} of "


def dataset(x, y, weight):
    parts = (x, y) if weight is None else (x, y, weight)
    return tf.data.Dataset.from_tensor_slices(parts).batch(8)


def generator(x, y, weight):
    parts = (x, y) if weight is None else (x, y, weight)
    return (tuple(p[i : i + 8] for p in parts) for i in range(0, 64, 8))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", FAULTS)
def test_a_later_batch_stops_the_run_and_teaches_nothing(data, kind):
    x, y = data
    spoil, loss, sentence = FAULTS[kind]
    student = mlp(6)
    same = copy_of(student)
    distiller = compiled(loss, student)
    with pytest.raises(ValueError, match=sentence + EIGHT + "epoch 1"):
        distiller.fit(dataset(x, *spoil(y)), verbose=0)
    # All but the batch have taught.
    kept = np.delete(np.arange(64), np.s_[8 * BAD : 8 * BAD + 8])
    compiled(SPARSE, same, distiller.teacher).fit(
        x[kept], y[kept], batch_size=8, shuffle=False, verbose=0
    )
    assert largest_difference(student.get_weights(), same.get_weights()) < 1e-6
    with pytest.raises(ValueError, match=sentence + EIGHT + "the evaluation data"):
        distiller.evaluate(dataset(x, *spoil(y)), verbose=0)


@pytest.mark.parametrize("kind", FAULTS)
def test_arrays_are_looked_at_whole_before_training(data, kind):
    x, y = data
    spoil, loss, sentence = FAULTS[kind]
    labels, weight = spoil(y)
    distiller = compiled(loss)
    good = (x, rows(y) if loss is ONE_HOT else y)
    for call in (
        lambda: distiller.fit(x, labels, sample_weight=weight, verbose=0),
        lambda: distiller.train_on_batch(x, labels, weight),
        lambda: distiller.test_on_batch(x, labels, weight),
        lambda: distiller.evaluate(x, labels, sample_weight=weight, verbose=0),
        lambda: distiller.fit(*good, validation_data=(x, labels, weight), verbose=0),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    assert int(distiller.optimizer.iterations) == 0


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("run", "make"),
    [
        ({"jit_compile": True}, dataset),
        ({"run_eagerly": True}, dataset),
        ({"steps_per_execution": 3}, dataset),
        ({}, generator),
    ],
)
@pytest.mark.parametrize("kind", ["label", "sum", "NaN weight"])
def test_however_it_is_run(data, run, make, kind):
    x, y = data
    spoil, loss, sentence = FAULTS[kind]
    with pytest.raises(ValueError, match=sentence + EIGHT + "epoch 1"):
        compiled(loss, run=run).fit(make(x, *spoil(y)), verbose=0)


@pytest.mark.slow
def test_a_fault_of_one_replica(data, mirrored):
    x, y = data
    with mirrored.scope():
        distiller = compiled()
    with pytest.raises(ValueError, match="got 9 in batch 5 of epoch 1"):
        distiller.fit(dataset(x, with_one(y, 9), None), verbose=0)
    assert all(np.isfinite(w).all() for w in distiller.student.get_weights())


# What is no fault --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "bool"])
def test_labels_that_are_right(data, dtype):
    x, y = data
    soft = rows(y)
    if "float" in dtype:
        soft = 0.7 * soft + 0.3 * soft[::-1]  # as mixup makes them
    distiller = compiled(ONE_HOT)
    history = distiller.fit(x, soft.astype(dtype), verbose=0).history
    assert np.isfinite(history["loss"]).all()


@pytest.mark.slow
def test_a_row_of_zeros_where_nothing_counts(data):
    x, y = data
    labels, weight = with_one(rows(y), 0.0), with_one(np.ones(64), 0.0)
    distiller = compiled(ONE_HOT)
    distiller.fit(x, labels, sample_weight=weight, verbose=0)
    distiller.fit(dataset(x, labels, weight), verbose=0)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 20, (16, 7))  # 0 is masked
    tags = np.eye(CLASSES)[rng.integers(CLASSES, size=tokens.shape)]
    tags[tokens == 0] = 0.0
    distiller = compiled(ONE_HOT, tagger(4), tagger(16))
    distiller.fit(tokens, tags, verbose=0)
    tags[tokens == tokens.max()] = 0.0
    with pytest.raises(ValueError, match="the sum 0 in batch 0 of epoch 1"):
        distiller.fit(tokens, tags, verbose=0)


def test_what_other_losses_make_of_labels_is_theirs(data):
    x, y = data

    def masked(labels, z):
        known = tf.where(tf.math.is_nan(labels), 0.0, labels)
        return keras.losses.categorical_crossentropy(known, z, from_logits=True)

    labels = with_one(rows(y), np.nan)
    history = compiled(masked).fit(x, labels, verbose=0).history
    assert np.isfinite(history["loss"]).all()


# Alpha of 0 or 1 ---------------------------------------------------------------------


def infinite(*args):
    """A loss of infinity, with a gradient that is no number."""
    return keras.ops.log(0.0 * keras.ops.sum(args[-1], -1) ** 2) ** 2


class Infinite(DistillationLoss):
    def loss_per_example(self, teacher_outputs, student_outputs, temperature=1.0):
        return infinite(student_outputs)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("run", [{}, {"jit_compile": True}, {"run_eagerly": True}])
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_alpha_0_or_1_leaves_the_other_term_out(data, run, activation):
    x, y = data
    student = mlp(6, activation=activation)
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=not activation)
    for alpha, hard, soft in ((0.0, infinite, None), (1.0, sparse, Infinite())):
        one, same = copy_of(student), copy_of(student)
        distiller = compiled(hard, one, alpha=alpha, distillation_loss=soft, run=run)
        history = distiller.fit(x, y, shuffle=False, verbose=0).history
        name = "soft_loss" if alpha == 0.0 else "hard_loss"
        assert history["loss"] == pytest.approx(history[name], rel=1e-6)
        assert not np.isfinite(history["hard_loss" if alpha == 0.0 else "soft_loss"])
        compiled(sparse, same, distiller.teacher, alpha=alpha).fit(
            x, y, shuffle=False, verbose=0
        )
        assert largest_difference(one.get_weights(), same.get_weights()) < 1e-6


def test_alpha_becomes_0_between_epochs_without_a_new_trace(data):
    traces = []

    class Traced(kd.Distiller):
        def train_step(self, data):
            traces.append(1)
            return super().train_step(data)

    class ToZero(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.alpha = 0.0

    distiller = Traced(mlp(6), mlp(32), alpha=0.5)
    distiller.compile("sgd", infinite)
    history = distiller.fit(*data, epochs=2, callbacks=[ToZero()], verbose=0).history
    assert len(traces) == 1
    assert np.isfinite(history["loss"]).all()


# What a teacher answers --------------------------------------------------------------


def test_a_teacher_that_answers_one_row_for_all(data):
    x, y = data
    teacher = mlp(32)
    targets = teacher.predict(x, verbose=0)
    joined = kd.DistillationInputs(x, targets)
    one_each = tf.data.Dataset.from_tensor_slices((joined, y)).batch(8)
    for distiller, given in (
        (compiled(teacher=lambda v: teacher(v)[:1], teacher_from_logits=True), x),
        (
            compiled(
                teacher=[mlp(9), lambda v: teacher(v)[:1]], teacher_from_logits=True
            ),
            x,
        ),
        (kd.Distiller(mlp(6)), None),
    ):
        distiller.compile("sgd", SPARSE)
        batches = (given, y) if given is not None else (
            one_each.map(lambda d, y: (d._replace(soft_targets=d.soft_targets[:1]), y)),
        )  # fmt: skip
        with pytest.raises(
            ValueError, match=r"answers? (for )?\d+ |answer different numbers of rows"
        ):
            distiller.fit(*batches, verbose=0)
        assert int(distiller.optimizer.iterations) == 0


@pytest.mark.parametrize("answered", [0, 1, 5, 11])
def test_a_teacher_that_answers_for_others_later(data, answered):
    x, y = data
    teacher = mlp(32)
    x = with_one(x, 99.0)

    def answers(batch):
        z = teacher(batch)
        few = tf.concat([z, z], 0)[:answered]
        return tf.cond(tf.reduce_any(batch > 90.0), lambda: few, lambda: z)

    distiller = compiled(teacher=answers, teacher_from_logits=True)
    with pytest.raises(
        ValueError, match=rf"answers {answered} row\(s\) for batch 5 of epoch 1"
    ):
        distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0)


@pytest.mark.slow
def test_a_schedule_that_leaves_its_range_between_the_ends_of_an_epoch(data):
    class Bump(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return tf.where(tf.cast(step, tf.int32) == BAD, np.float32(-3.0), 0.5)

        def get_config(self):
            return {}

    for name in ("temperature", "alpha"):
        distiller = compiled(**{name: Bump()})
        with pytest.raises(
            ValueError, match=f"{name} must be from .* gives -3 for batch 5 of epoch 1"
        ):
            distiller.fit(*data, batch_size=8, verbose=0)
        assert all(np.isfinite(w).all() for w in distiller.student.get_weights())


# Shapes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "labels", "weight", "sentence"),
    [
        (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1),
            rows, None, "the labels are one-hot but the loss is sparse",
        ),
        (SPARSE, lambda y: np.stack([y, y, y], 1), None, r"got labels of shape \(\w+, 3"),
        (ONE_HOT, lambda y: y, None, "takes one-hot labels with 5 columns"),
        (SPARSE, lambda y: y, np.ones((64, 3)), r"sample weights must have the shape"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", ["fit", "evaluate"])
@pytest.mark.parametrize("as_dataset", [False, True])
def test_shapes_that_no_loss_takes(
    data, call, loss, labels, weight, sentence, as_dataset
):
    x, y = data
    distiller = compiled(loss)
    given = {"x": x, "y": labels(y), "sample_weight": weight}
    if as_dataset:
        given = {"x": dataset(x, labels(y), weight)}
    with pytest.raises(ValueError, match=sentence):
        getattr(distiller, call)(**given, verbose=0)
    assert int(distiller.optimizer.iterations) == 0


def test_class_weight_of_one_batch_of_a_sequence():
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 20, (4, 3)), rng.integers(CLASSES, size=(4, 3))
    student, teacher = tagger(4), tagger(16)
    same = copy_of(student)
    compiled(SPARSE, student, teacher).train_on_batch(
        x, y, class_weight={0: 5.0, 2: 0.0}
    )
    weight = np.select([y == 0, y == 2], [5.0, 0.0], 1.0).astype("float32")
    compiled(SPARSE, same, teacher).train_on_batch(x, y, weight)
    assert largest_difference(student.get_weights(), same.get_weights()) < 1e-6
