import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.distiller import Distiller
from keras_distill.losses.kl import SoftTargetLoss
from keras_distill.metrics import TeacherAgreement
from keras_distill.soft_targets.distillation_inputs import DistillationInputs
from tests.conftest import (
    CLASSES,
    FEATURES,
    SPARSE,
    copy_of,
    largest_difference,
    mlp,
    tagger,
)


def compiled(student=None, teacher=None, *, loss=SPARSE, optimizer=None, **kwargs):
    compile_arguments = {
        key: kwargs.pop(key)
        for key in ("metrics", "jit_compile", "run_eagerly", "steps_per_execution")
        if key in kwargs
    }
    distiller = Distiller(student or mlp(6), teacher or mlp(32), **kwargs)
    optimizer = optimizer or keras.optimizers.SGD(0.1)
    distiller.compile(optimizer, loss, **compile_arguments)
    return distiller


# What a batch may be ----------------------------------------------------------------


@pytest.mark.slow
def test_one_hot_labels_train_like_integers(data):
    x, y = data
    student, teacher = mlp(6), mlp(32)
    same = copy_of(student)
    compiled(student, teacher).fit(x, y, shuffle=False, verbose=0)
    one_hot = keras.losses.CategoricalCrossentropy(from_logits=True)
    compiled(same, teacher, loss=one_hot).fit(
        x, np.eye(CLASSES)[y], shuffle=False, verbose=0
    )
    assert largest_difference(student.get_weights(), same.get_weights()) < 1e-6


@pytest.mark.parametrize("reduction", ["sum", "mean_with_sample_weight"])
def test_weight_zero_equals_leaving_the_example_out(data, reduction):
    x, y = data
    x, y = x[:8], y[:8]
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=reduction
    )
    student, teacher = mlp(6), mlp(32)
    same = copy_of(student)
    weight = np.ones(8, "float32")
    weight[3] = 0.0
    compiled(student, teacher, loss=loss).train_on_batch(x, y, weight)
    compiled(same, teacher, loss=loss).train_on_batch(
        np.delete(x, 3, 0), np.delete(y, 3), np.ones(7, "float32")
    )
    assert largest_difference(student.get_weights(), same.get_weights()) < 1e-6


@pytest.mark.parametrize("how", ["fit", "train_on_batch"])
def test_a_loss_for_each_example_is_refused(data, how):
    loss = keras.losses.SparseCategoricalCrossentropy(True, reduction=None)
    distiller = compiled(loss=loss)
    with pytest.raises(ValueError, match="number for each example.*reduction=None"):
        getattr(distiller, how)(*data)
    assert int(distiller.optimizer.iterations) == 0


def test_weight_zero_under_kerass_default_reduction(data):
    """Keras divides by the batch size, zero weights counted: so does the soft term."""
    x, y = data
    x, y = x[:8], y[:8]
    teacher = mlp(32)
    distiller = compiled(mlp(6), teacher, optimizer=keras.optimizers.SGD(0.0))
    weight = np.ones(8, "float32")
    weight[3] = 0.0
    with_zero = distiller.train_on_batch(x, y, weight, return_dict=True)
    distiller.reset_metrics()
    without = distiller.train_on_batch(
        np.delete(x, 3, 0), np.delete(y, 3), return_dict=True
    )
    for name in ("loss", "hard_loss", "soft_loss"):
        assert 8 * with_zero[name] == pytest.approx(7 * without[name], rel=1e-5)


@pytest.mark.slow
def test_class_weight_acts_on_both_terms(data):
    x, y = data
    class_weight = {0: 0.0, 1: 3.0}
    weight = np.select([y == 0, y == 1], [0.0, 3.0], 1.0).astype("float32")
    student, teacher = mlp(6), mlp(32)
    same, unweighted = copy_of(student), copy_of(student)
    compiled(student, teacher, alpha=0.5).fit(
        x, y, class_weight=class_weight, shuffle=False, verbose=0
    )
    compiled(same, teacher, alpha=0.5).fit(
        x, y, sample_weight=weight, shuffle=False, verbose=0
    )
    compiled(unweighted, teacher, alpha=0.5).fit(x, y, shuffle=False, verbose=0)
    assert largest_difference(student.get_weights(), same.get_weights()) < 1e-6
    assert largest_difference(student.get_weights(), unweighted.get_weights()) > 1e-3


def test_sample_weight_acts_on_the_soft_term_alone_too(data):
    x, y = data
    teacher = mlp(32)
    distiller = compiled(
        mlp(6), teacher, alpha=0.0, optimizer=keras.optimizers.SGD(0.0)
    )
    half = np.repeat([1.0, 0.0], 32).astype("float32")
    weighted = distiller.train_on_batch(x, y, half, return_dict=True)["soft_loss"]
    distiller.reset_metrics()
    first = distiller.train_on_batch(x[:32], y[:32], return_dict=True)["soft_loss"]
    assert weighted == pytest.approx(first / 2, rel=1e-5)


def test_unlabelled_batches_train_on_the_soft_loss_and_say_so_once(data):
    x, _ = data
    teacher = mlp(32)
    distiller = compiled(mlp(6), teacher, alpha=0.25, metrics=["accuracy"])
    with pytest.warns(UserWarning, match="no labels, so alpha=0.25 has no hard loss"):
        history = distiller.fit(x, epochs=2, verbose=0).history
    assert history["loss"][0] == pytest.approx(0.75 * history["soft_loss"][0], rel=1e-5)
    assert history["hard_loss"] == [0.0, 0.0]
    assert history["loss"][1] < history["loss"][0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        distiller.fit(x, verbose=0)


def test_unlabelled_batches_without_a_loss_and_labelled_validation(data):
    distiller = Distiller(mlp(6), mlp(32), alpha=0.0)
    distiller.compile("sgd", metrics=["accuracy"])
    dataset = tf.data.Dataset.from_tensor_slices(data[0]).batch(16)
    history = distiller.fit(dataset, validation_data=data, epochs=2, verbose=0).history
    # Without a loss there is nothing that val_loss could be.
    assert set(history) == {"loss", "hard_loss", "soft_loss", "val_accuracy"}


def test_generator_is_not_robbed_of_its_first_batch(data):
    """Looking at the first batch leaves it in: the run is that of plain Keras."""
    x, y = data
    student = mlp(6)
    plain = copy_of(student)
    distiller = compiled(student, mlp(32), alpha=1.0)
    plain.compile(keras.optimizers.SGD(0.1), SPARSE)
    for model in (distiller, plain):
        halves = (pair for pair in [(x[:32], y[:32]), (x[32:], y[32:])])
        model.fit(halves, verbose=0, shuffle=False)
    assert largest_difference(student.get_weights(), plain.get_weights()) < 1e-6


def test_dataset_is_iterated_once_per_epoch_and_in_its_own_order(data):
    """No second iterator: shuffles, stateful sources and caches see plain Keras."""
    x, y = data
    starts, seen = [], {"plain": [], "ours": []}

    def batches():
        starts.append(1)
        for part in range(4):
            yield x[16 * part : 16 * part + 16], y[16 * part : 16 * part + 16]

    spec = (tf.TensorSpec([None, FEATURES]), tf.TensorSpec([None], tf.int64))
    student = mlp(6)
    plain = copy_of(student)
    plain.compile(keras.optimizers.SGD(0.1), SPARSE)
    for model, order in (
        (plain, seen["plain"]),
        (compiled(student, mlp(32), alpha=1.0), seen["ours"]),
    ):
        dataset = tf.data.Dataset.from_generator(batches, output_signature=spec)
        dataset = dataset.unbatch().shuffle(64, seed=3).batch(16)
        starts.clear()
        model.fit(dataset, epochs=3, shuffle=False, verbose=0)
        order.append(len(starts))
    assert seen["plain"] == seen["ours"] == [3]
    assert largest_difference(student.get_weights(), plain.get_weights()) < 1e-6


class Traced(Distiller):
    """Counts how often its step is traced; in eager mode, how often it is run."""

    steps = 0

    def train_step(self, data):
        type(self).steps += 1
        return super().train_step(data)


def in_batches(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(16)


KINDS_OF_DATA = {
    "arrays": lambda x, y: {"x": x, "y": y, "batch_size": 16},
    "arrays with a rest": lambda x, y: {"x": x, "y": y, "batch_size": 24},
    "dataset": lambda x, y: {"x": in_batches(x, y)},
    "dataset with a rest": lambda x, y: {"x": in_batches(x[:40], y[:40])},
    "dataset of fixed batches": lambda x, y: {
        "x": tf.data.Dataset.from_tensor_slices((x, y)).batch(16, drop_remainder=True)
    },
    "dataset of any length": lambda x, y: {
        "x": in_batches(x, y).map(
            lambda a, b: (tf.ensure_shape(a, (None, FEATURES)), b)
        )
    },
    "generator": lambda x, y: {
        "x": ((x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16))
    },
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", KINDS_OF_DATA)
@pytest.mark.parametrize("settings", [{}, {"steps_per_execution": 3}])
def test_a_fresh_fit_traces_the_step_once(data, kind, settings):
    Traced.steps = 0
    distiller = Traced(mlp(6), mlp(32))
    distiller.compile("adam", SPARSE, metrics=["accuracy"], **settings)
    distiller.fit(**KINDS_OF_DATA[kind](*data), verbose=0)
    assert Traced.steps == 1
    assert int(distiller.optimizer.iterations) >= 3


def test_a_second_fit_does_not_trace(data):
    Traced.steps = 0
    distiller = Traced(mlp(6), mlp(32))
    distiller.compile("adam", SPARSE)
    for _ in range(2):
        distiller.fit(in_batches(*data), epochs=2, verbose=0)
    assert Traced.steps == 1


def test_the_host_looks_at_the_teacher_every_100_steps_and_at_the_end(data):
    """A look waits for the device: the step only notes."""
    x, y = (np.tile(part, (4, *[1] * (part.ndim - 1))) for part in data)
    distiller, looks = compiled(), []
    counter = type(distiller._state.counter)

    class Watched(counter):
        @property
        def first_bad(self):
            looks.append(int(distiller.optimizer.iterations))
            return counter.first_bad.fget(self)

    distiller._state.counter = Watched()
    distiller.fit(x, y, batch_size=1, validation_data=data, verbose=0)
    assert looks == [100, 200, 256]


@pytest.mark.parametrize("rest", [(None,), (None, None)])
def test_a_generator_may_give_none_for_what_it_lacks(data, rest):
    x, _ = data
    student = mlp(6)
    same = copy_of(student)
    halves = ((part, *rest) for part in (x[:32], x[32:]))
    for one, given in ((student, {"x": halves}), (same, {"x": x, "batch_size": 32})):
        distiller = compiled(one, mlp(32), alpha=0.0)
        distiller.teacher.set_weights(
            [np.full_like(w, 0.1) for w in distiller.teacher.get_weights()]
        )
        distiller.fit(**given, shuffle=False, verbose=0)
    assert largest_difference(student.get_weights(), same.get_weights()) < 1e-6


def test_py_dataset(data):
    x, y = data

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            part = slice(32 * index, 32 * index + 32)
            return x[part], y[part]

    distiller = compiled()
    distiller.fit(Batches(), verbose=0)
    assert int(distiller.optimizer.iterations) == 2


# More than two axes ------------------------------------------------------------------


def test_masked_step_equals_a_shorter_sequence():
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 20, (4, 3)), rng.integers(CLASSES, size=(4, 3))
    student, teacher = tagger(4), tagger(16)
    same = copy_of(student)
    compiled(student, teacher, alpha=0.5).train_on_batch(x, y)
    padded = np.pad(x, [(0, 0), (0, 5)]), np.pad(y, [(0, 0), (0, 5)])
    compiled(same, teacher, alpha=0.5).train_on_batch(*padded)
    assert largest_difference(student.get_weights(), same.get_weights()) < 1e-6


def test_one_weight_per_example_spreads_over_the_sequence():
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 20, (4, 3)), rng.integers(CLASSES, size=(4, 3))
    weight = rng.uniform(0, 2, 4).astype("float32")
    student, teacher = tagger(4), tagger(16)
    same = copy_of(student)
    compiled(student, teacher).train_on_batch(x, y, weight)
    compiled(same, teacher).train_on_batch(x, y, np.repeat(weight[:, None], 3, 1))
    assert largest_difference(student.get_weights(), same.get_weights()) < 1e-6


class Subclassed(keras.Model):
    """A model that says nothing of its outputs before it has seen a batch."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, inputs):
        return self.model(inputs)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("as_dataset", [False, True])
@pytest.mark.parametrize("subclassed", [False, True])
def test_class_weight_of_a_sequence_is_by_position(as_dataset, subclassed):
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 20, (4, 3)), rng.integers(CLASSES, size=(4, 3))
    student, teacher = tagger(4), tagger(16)
    same = copy_of(student)
    if subclassed:
        student = Subclassed(student)
    data = (x, y)
    if as_dataset:
        data = (tf.data.Dataset.from_tensor_slices((x, y)).batch(4),)
    compiled(student, teacher, student_from_logits=True).fit(
        *data, class_weight={0: 5.0, 2: 0.0}, verbose=0
    )
    weight = np.select([y == 0, y == 2], [5.0, 0.0], 1.0).astype("float32")
    compiled(same, teacher).train_on_batch(x, y, weight)
    assert largest_difference(student.get_weights(), same.get_weights()) < 1e-6


def test_segmentation_shapes():
    def model(width):
        return keras.Sequential(
            [
                keras.Input((6, 6, 1)),
                keras.layers.Conv2D(width, 3, padding="same", activation="relu"),
                keras.layers.Conv2D(3, 1),
            ]
        )

    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 6, 6, 1)).astype("float32")
    y = rng.integers(3, size=(8, 6, 6))
    distiller = compiled(model(2), model(8))
    history = distiller.fit(x, y, epochs=5, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


# Several outputs ---------------------------------------------------------------------


def two_heads(width, as_list=False):
    inputs = keras.Input((FEATURES,))
    hidden = keras.layers.Dense(width, activation="relu")(inputs)
    first = keras.layers.Dense(CLASSES, name="first")(hidden)
    second = keras.layers.Dense(3, name="second")(hidden)
    outputs = [first, second] if as_list else {"first": first, "second": second}
    return keras.Model(inputs, outputs)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("as_list", [False, True])
def test_several_outputs_add_up(data, as_list):
    x, y = data
    y2 = y % 3
    teacher, student = two_heads(32, as_list), two_heads(6, as_list)
    labels = [y, y2] if as_list else {"first": y, "second": y2}
    loss = [SPARSE, SPARSE] if as_list else {"first": SPARSE, "second": SPARSE}

    def soft_loss(objective):
        distiller = compiled(
            student, teacher, loss=loss, distillation_loss=objective,
            optimizer=keras.optimizers.SGD(0.0),
        )  # fmt: skip
        logs = distiller.fit(x, labels, batch_size=64, verbose=0).history
        return logs["soft_loss"][0]

    both = soft_loss(None)
    if as_list:
        first = soft_loss([SoftTargetLoss(), None])
        second = soft_loss([None, SoftTargetLoss()])
    else:
        first = soft_loss({"first": SoftTargetLoss()})
        second = soft_loss({"second": SoftTargetLoss()})
    assert both == pytest.approx(first + second, rel=1e-5)
    assert first > 0
    assert second > 0


def test_metrics_by_output_name(data):
    x, y = data
    distiller = Distiller(two_heads(6), two_heads(32))
    distiller.compile(
        "sgd",
        {"first": SPARSE, "second": SPARSE},
        metrics={"first": ["accuracy"]},
    )
    history = distiller.fit(x, {"first": y, "second": y % 3}, verbose=0).history
    assert "first_accuracy" in history


@pytest.mark.slow
def test_probabilities_and_features_in_one_model(data):
    """Only what ends in softmax is turned into logits; features are matched raw."""
    x, y = data

    def model(activation):
        inputs = keras.Input((FEATURES,))
        features = keras.layers.Dense(6, activation="relu", name="features")(inputs)
        classes = keras.layers.Dense(CLASSES, activation=activation, name="classes")
        return keras.Model(inputs, {"c": classes(features), "f": features})

    objective = {"c": SoftTargetLoss(), "f": kd.FeatureLoss()}
    losses = []
    teachers = [model(None), model("softmax")]
    teachers[1].set_weights(teachers[0].get_weights())
    for activation, loss in (
        (None, SPARSE),
        ("softmax", "sparse_categorical_crossentropy"),
    ):
        keras.utils.set_random_seed(3)
        student = model(activation)
        for teacher in teachers:
            distiller = compiled(
                student, teacher, loss={"c": loss, "f": None}, distillation_loss=objective,
                optimizer=keras.optimizers.SGD(0.0),
            )  # fmt: skip
            labels = {"c": y, "f": np.zeros((64, 6))}
            history = distiller.fit(x, labels, batch_size=64, verbose=0).history
            losses.append(history["soft_loss"][0])
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
    difference = student.predict(x, verbose=0)["f"] - teacher.predict(x, verbose=0)["f"]
    assert losses[0] > np.mean(difference**2)


# What the step is --------------------------------------------------------------------


def test_alpha_one_is_plain_training(data):
    x, y = data
    student = mlp(6)
    plain = copy_of(student)
    distiller = Distiller(student, alpha=1.0)
    distiller.compile(keras.optimizers.Adam(0.01), SPARSE)
    distiller.fit(x, y, epochs=2, shuffle=False, verbose=0)
    plain.compile(keras.optimizers.Adam(0.01), SPARSE)
    plain.fit(x, y, epochs=2, shuffle=False, verbose=0)
    assert largest_difference(student.get_weights(), plain.get_weights()) < 1e-6


def test_regularisation_of_the_student_counts_whole(data):
    x, y = data
    student = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(
                6, kernel_regularizer=keras.regularizers.L2(0.1), name="hidden"
            ),
            keras.layers.Dense(
                CLASSES, activity_regularizer=keras.regularizers.L1(0.01)
            ),
        ]
    )
    student(x, training=True)
    penalty = float(sum(student.losses))  # Keras's own, of the same batch
    assert penalty > 0
    distiller = compiled(student, optimizer=keras.optimizers.SGD(0.0), alpha=0.3)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    expected = 0.3 * logs["hard_loss"] + 0.7 * logs["soft_loss"] + penalty
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)
    # with matched layers the student runs through another model: same penalty
    hint = SoftTargetLoss() + 0.0 * kd.FeatureLoss("hidden", "hidden")
    matched = compiled(
        student,
        mlp(6),
        optimizer=keras.optimizers.SGD(0.0),
        distillation_loss=hint,
        alpha=1.0,
    )
    logs = matched.train_on_batch(x, y, return_dict=True)
    assert logs["loss"] == pytest.approx(logs["hard_loss"] + penalty, rel=1e-5)


def test_evaluate_and_predict_never_run_the_teacher(data):
    x, y = data
    teacher = mlp(32)
    calls = []

    def counted(inputs):
        calls.append(1)
        return teacher(inputs, training=False)

    student = mlp(6)
    distiller = Distiller(student, counted, teacher_from_logits=True)
    distiller.compile("sgd", SPARSE, metrics=["accuracy"], run_eagerly=True)
    distiller.fit(x, y, batch_size=32, verbose=0)
    assert len(calls) == 3  # a look at the first batch, and two steps
    calls.clear()
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(
        distiller.predict(x, verbose=0), student.predict(x, verbose=0), rtol=1e-6
    )
    assert calls == []
    student.compile("sgd", SPARSE, metrics=["accuracy"])
    expected = student.evaluate(x, y, verbose=0, return_dict=True)
    assert logs == pytest.approx(expected, rel=1e-5)


def test_teacher_agreement(data):
    x, y = data
    student, teacher = mlp(6), mlp(32)
    distiller = compiled(
        student, teacher, metrics=["accuracy", TeacherAgreement()],
        optimizer=keras.optimizers.SGD(0.0),
    )  # fmt: skip
    expected = np.mean(
        student.predict(x, verbose=0).argmax(-1)
        == teacher.predict(x, verbose=0).argmax(-1)
    )
    history = distiller.fit(x, y, validation_data=(x, y), verbose=0).history
    assert history["teacher_agreement"][0] == pytest.approx(expected)
    assert history["val_teacher_agreement"][0] == pytest.approx(expected)


def test_evaluate_with_kept_soft_targets_in_the_batches(data):
    x, y = data
    teacher, student = mlp(32), mlp(6)
    kept = DistillationInputs(x, teacher.predict(x, verbose=0))
    distiller = Distiller(student)
    distiller.compile("sgd", SPARSE, metrics=[TeacherAgreement()])
    distiller.fit(kept, y, verbose=0)
    logs = distiller.evaluate(kept, y, verbose=0, return_dict=True)
    assert set(logs) == {"loss", "teacher_agreement"}


def test_metric_objects_are_counted_once_and_recompiling_starts_anew(data):
    x, y = data
    distiller = Distiller(mlp(6), mlp(32))
    for _ in range(2):
        distiller.compile(
            "sgd",
            SPARSE,
            metrics=[
                keras.metrics.SparseCategoricalAccuracy(name="right"),
                TeacherAgreement(),
            ],
        )
        history = distiller.fit(x, y, verbose=0).history
        assert set(history) == {
            "loss", "hard_loss", "soft_loss", "right", "teacher_agreement",
        }  # fmt: skip
        names = [metric.name for metric in distiller.metrics]
        assert sorted(names) == sorted(set(names))


# Temperature and alpha ---------------------------------------------------------------


def test_changing_temperature_and_alpha_changes_the_loss_without_retracing(data):
    x, y = data
    teacher = mlp(32)
    traces = []

    def counted(inputs):
        traces.append(1)
        return teacher(inputs, training=False)

    distiller = Distiller(mlp(6), counted, teacher_from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.0), SPARSE)
    first = distiller.train_on_batch(x, y, return_dict=True)
    count = len(traces)
    distiller.temperature, distiller.alpha = 1.0, 0.9
    distiller.reset_metrics()
    second = distiller.train_on_batch(x, y, return_dict=True)
    assert len(traces) == count
    assert first["soft_loss"] != pytest.approx(second["soft_loss"], rel=1e-3)
    expected = 0.9 * second["hard_loss"] + 0.1 * second["soft_loss"]
    assert second["loss"] == pytest.approx(expected, rel=1e-5)
    assert (distiller.temperature, distiller.alpha) == (1.0, 0.9)


def test_schedules_follow_the_optimizers_step(data):
    x, y = data
    alpha = keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 0.0])
    temperature = keras.optimizers.schedules.PiecewiseConstantDecay([0], [2.0, 8.0])
    distiller = compiled(
        mlp(6), mlp(32), temperature=temperature, alpha=alpha,
        optimizer=keras.optimizers.SGD(0.0),
    )  # fmt: skip
    soft = []
    for expected_key in ("hard_loss", "soft_loss"):  # step 0: alpha 1; step 1: alpha 0
        distiller.reset_metrics()
        logs = distiller.train_on_batch(x, y, return_dict=True)
        assert logs["loss"] == pytest.approx(logs[expected_key], rel=1e-5)
        soft.append(logs["soft_loss"])
    fixed = compiled(distiller.student, distiller.teacher, temperature=8.0)
    logs = fixed.train_on_batch(x, y, return_dict=True)
    assert soft[1] == pytest.approx(logs["soft_loss"], rel=1e-5)
    assert soft[0] != pytest.approx(soft[1], rel=1e-3)


def test_number_can_become_a_schedule(data):
    distiller = compiled(optimizer=keras.optimizers.SGD(0.0))
    distiller.train_on_batch(*data)
    distiller.alpha = keras.optimizers.schedules.ExponentialDecay(1.0, 100, 0.9)
    distiller.reset_metrics()
    logs = distiller.train_on_batch(*data, return_dict=True)
    assert logs["loss"] == pytest.approx(
        0.9 ** (1 / 100) * logs["hard_loss"]
        + (1 - 0.9 ** (1 / 100)) * logs["soft_loss"],
        rel=1e-5,
    )


# Ways to run -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ways", [{"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 8}]
)
def test_jit_eager_and_many_steps_agree_with_graph(data, ways):
    x, y = data
    hint = SoftTargetLoss() + 0.1 * kd.FeatureLoss("hidden", "hidden")
    student, teacher = mlp(6), mlp(6)
    same = copy_of(student)
    adam = keras.optimizers.Adam
    compiled(student, teacher, optimizer=adam(0.01), distillation_loss=hint).fit(
        x, y, batch_size=4, epochs=2, shuffle=False, verbose=0
    )
    other = compiled(
        same, teacher, optimizer=adam(0.01), distillation_loss=hint, **ways
    )
    other.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    assert int(other.optimizer.iterations) == 32
    assert largest_difference(student.get_weights(), same.get_weights()) < 1e-4


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("student_policy", "teacher_policy"),
    [
        ("mixed_float16", "float32"),
        ("float32", "mixed_float16"),
        ("mixed_bfloat16", "float32"),
        ("mixed_bfloat16", "mixed_bfloat16"),
    ],
)
def test_mixed_precision_trains(data, student_policy, teacher_policy):
    x, y = data
    keras.config.set_dtype_policy(teacher_policy)
    teacher = mlp(32)
    keras.config.set_dtype_policy(student_policy)
    student = mlp(6)
    keras.config.set_dtype_policy("float32")
    distiller = compiled(student, teacher)
    is_scaled = isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (student_policy == "mixed_float16")
    history = distiller.fit(x, y, epochs=10, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][-1] < history["loss"][0]
    assert teacher.dtype_policy.name == teacher_policy


@pytest.mark.slow
def test_mixed_float16_is_close_to_float32(data):
    x, y = data
    teacher, student = mlp(32), mlp(6)
    keras.config.set_dtype_policy("mixed_float16")
    half = mlp(6)
    half.set_weights(student.get_weights())
    keras.config.set_dtype_policy("float32")
    for model in (student, half):
        compiled(model, teacher).fit(x, y, epochs=2, shuffle=False, verbose=0)
    assert largest_difference(student.get_weights(), half.get_weights()) < 5e-3


@pytest.mark.slow
def test_gradient_accumulation_by_the_optimizer(data):
    x, y = data
    student, teacher = mlp(6), mlp(32)
    same = copy_of(student)
    accumulating = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
    compiled(student, teacher, optimizer=accumulating).fit(
        x, y, batch_size=16, shuffle=False, verbose=0
    )
    compiled(same, teacher).fit(x, y, batch_size=64, shuffle=False, verbose=0)
    assert largest_difference(student.get_weights(), same.get_weights()) < 1e-6


@pytest.mark.slow
def test_alpha_and_teacher_may_change_in_the_middle_of_fit(data):
    x, y = data
    distiller = Distiller(mlp(6), alpha=1.0)
    distiller.compile("sgd", SPARSE)
    teacher = mlp(32)

    class Anneal(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.teacher = teacher
            self.model.alpha = 1.0 - 0.5 * epoch

    history = distiller.fit(x, y, epochs=2, callbacks=[Anneal()], verbose=0).history
    assert history["soft_loss"][0] == 0.0
    assert history["soft_loss"][1] > 0.0


@pytest.mark.slow
def test_unlabelled_first_and_labelled_later(data):
    x, y = data
    distiller = compiled(alpha=0.0, metrics=["accuracy"])
    assert "accuracy" not in distiller.fit(x, verbose=0).history
    assert "accuracy" in distiller.fit(x, y, verbose=0).history


@pytest.mark.slow
def test_bare_kept_soft_targets_are_an_unlabelled_transfer_set(data):
    x, _ = data
    teacher, student = mlp(32), mlp(6)
    same = copy_of(student)
    kept = DistillationInputs(x, teacher.predict(x, verbose=0))
    dataset = tf.data.Dataset.from_tensor_slices(kept).batch(32)
    for one, data_of_one, its_teacher in ((student, dataset, None), (same, x, teacher)):
        distiller = Distiller(one, its_teacher, alpha=0.0)
        distiller.compile(keras.optimizers.SGD(0.1), metrics=[TeacherAgreement()])
        distiller.fit(data_of_one, shuffle=False, verbose=0)
        logs = distiller.evaluate(data_of_one, verbose=0, return_dict=True)
        assert set(logs) == {"teacher_agreement"}
    assert largest_difference(student.get_weights(), same.get_weights()) < 1e-6


@pytest.mark.slow
def test_kept_probabilities_are_noticed_and_can_be_declared(data):
    x, y = data
    teacher = mlp(32, activation="softmax")
    kept = DistillationInputs(x, teacher.predict(x, verbose=0))
    distiller = Distiller(mlp(6))
    distiller.compile(keras.optimizers.SGD(0.0), SPARSE)
    with pytest.raises(
        ValueError, match="they are probabilities, where logits are exp"
    ):
        distiller.fit(kept, y, verbose=0)
    declared = Distiller(distiller.student, teacher_from_logits=False)
    live = Distiller(distiller.student, teacher)
    losses = []
    for one, inputs in ((declared, kept), (live, x)):
        one.compile(keras.optimizers.SGD(0.0), SPARSE)
        losses.append(one.fit(inputs, y, verbose=0).history["soft_loss"][0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_export_is_the_students(data, tmp_path):
    distiller = compiled()
    distiller.fit(*data, verbose=0)
    distiller.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(
        served.serve(data[0]), distiller.predict(data[0], verbose=0), atol=1e-5
    )


def test_outputs_given_as_a_list_of_one(data):
    def model(width):
        inputs = keras.Input((FEATURES,))
        hidden = keras.layers.Dense(width, activation="relu")(inputs)
        return keras.Model(
            inputs=[inputs], outputs=[keras.layers.Dense(CLASSES)(hidden)]
        )

    history = compiled(model(6), model(32)).fit(*data, verbose=0).history
    assert history["soft_loss"][0] > 0


def test_ignored_class_is_no_wrong_label(data):
    x, y = data
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=255
    )
    y = np.where(y == 0, 255, y)
    assert np.isfinite(compiled(loss=loss).fit(x, y, verbose=0).history["loss"]).all()


@pytest.mark.slow
def test_layer_and_weights_with_several_outputs(data):
    x, y = data

    def model():
        inputs = keras.Input((FEATURES,))
        hidden = keras.layers.Dense(6, activation="relu", name="h")(inputs)
        return keras.Model(
            inputs,
            {"a": keras.layers.Dense(5)(hidden), "b": keras.layers.Dense(5)(hidden)},
        )

    hint = SoftTargetLoss() + kd.FeatureLoss("h", "h")
    distiller = compiled(
        model(), model(), loss={"a": SPARSE, "b": SPARSE}, distillation_loss=hint
    )
    labels = {"a": y, "b": y}
    logs = distiller.fit(x, labels, sample_weight=np.zeros(64), verbose=0).history
    assert logs["soft_loss"] == [0.0]


# Bad input ---------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), None])
def test_wrong_temperature(temperature):
    with pytest.raises(
        ValueError, match="temperature must be a finite number > 0, got"
    ):
        Distiller(mlp(), mlp(), temperature=temperature)
    distiller = Distiller(mlp(), mlp())
    with pytest.raises(
        ValueError, match="temperature must be a finite number > 0, got"
    ):
        distiller.temperature = temperature


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), "half"])
def test_wrong_alpha(alpha):
    with pytest.raises(ValueError, match="alpha must be a number from 0 to 1, got"):
        Distiller(mlp(), mlp(), alpha=alpha)


def test_different_numbers_of_classes():
    with pytest.raises(
        ValueError, match="student has 5 classes and the teacher 7; buil"
    ):
        Distiller(mlp(), mlp(classes=7))


def test_different_numbers_of_classes_seen_on_the_first_batch(data):
    teacher = mlp(classes=7)
    distiller = compiled(mlp(), lambda x: teacher(x), teacher_from_logits=True)
    with pytest.raises(ValueError, match="student has 5 classes and the teacher 7"):
        distiller.fit(*data, verbose=0)
    assert int(distiller.optimizer.iterations) == 0


def test_student_is_the_teacher():
    model = mlp()
    with pytest.raises(ValueError, match="student and teacher are the same object"):
        Distiller(model, model)
    distiller = Distiller(model)
    with pytest.raises(ValueError, match="student and teacher are the same object"):
        distiller.teacher = model


def test_student_is_no_model():
    with pytest.raises(TypeError, match="student must be a keras.Model, got"):
        Distiller(lambda x: x, mlp())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            lambda y: np.where(y == 0, CLASSES, y),
            "labels must be from 0 to 4, .* got 5",
        ),
        (lambda y: np.where(y == 0, -1, y), "labels must be from 0 to 4, .* got -1"),
        (lambda y: y + 0.5, "labels must be whole numbers from 0 to 4"),
        (lambda y: np.eye(CLASSES)[y], "labels are one-hot but the loss is sparse"),
        (lambda y: np.array(list("abcde"))[y], "labels must be numbers, got dtype"),
    ],
)
def test_wrong_labels(data, labels, message):
    x, y = data
    distiller = compiled()
    with pytest.raises(ValueError, match=message):
        distiller.fit(x, labels(y), verbose=0)
    assert int(distiller.optimizer.iterations) == 0


def test_integer_labels_for_a_one_hot_loss(data):
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match="takes one-hot labels with 5 columns"):
        compiled(loss=loss).fit(*data, verbose=0)


def test_wrong_labels_in_a_dataset(data):
    x, y = data
    dataset = tf.data.Dataset.from_tensor_slices((x, y + CLASSES)).batch(8)
    with pytest.raises(ValueError, match="labels must be from 0 to 4"):
        compiled().fit(dataset, verbose=0)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_not_finite_teacher_stops_the_run_and_names_the_batch(data, jit_compile):
    x, y = data
    teacher = mlp(32)
    x = x.copy()
    x[40, 0] = np.nan  # batch 5 of eight

    def answers_nan(inputs):
        return teacher(inputs, training=False) + 0.0 * inputs[:, :1]

    student = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Lambda(lambda v: tf.where(tf.math.is_nan(v), 0.0, v)),
            keras.layers.Dense(CLASSES),
        ]
    )
    distiller = compiled(
        student, answers_nan, teacher_from_logits=True, jit_compile=jit_compile
    )
    with pytest.raises(
        ValueError, match="outputs for batch 5 of epoch 1 are not all fin"
    ):
        distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert all(np.isfinite(w).all() for w in student.get_weights())


@pytest.mark.parametrize("part", ["kept", "layer"])
def test_not_finite_kept_targets_or_layers_stop_the_run(data, part):
    x, y = data
    teacher = mlp(6)
    if part == "kept":
        targets = teacher.predict(x, verbose=0)
        targets[40] = np.inf
        distiller = Distiller(mlp(6))
        inputs = DistillationInputs(x, targets)
    else:
        distiller = Distiller(
            mlp(6), teacher, distillation_loss=kd.FeatureLoss("hidden", "hidden")
        )
        inputs = x.copy()
        inputs[40] = 3e38
    distiller.compile("sgd", SPARSE)
    with pytest.raises(ValueError, match="batch 5 of epoch 1 are not all finite"):
        distiller.fit(inputs, y, batch_size=8, shuffle=False, verbose=0)


@pytest.mark.slow
def test_not_finite_teacher_with_several_steps_per_execution_and_by_hand(data):
    x, y = data
    teacher = mlp(32)
    x = x.copy()
    x[40, 0] = np.nan
    distiller = compiled(
        mlp(6), lambda v: teacher(v) + 0.0 * v[:, :1], teacher_from_logits=True,
        steps_per_execution=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match="outputs for batch 5 of epoch 1 are not all"):
        distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    with pytest.raises(ValueError, match="outputs for this batch are not all finite"):
        distiller.train_on_batch(x, y)


def test_not_finite_teacher_on_the_first_batch(data):
    x, y = data
    teacher = mlp(32)
    teacher.set_weights([np.full_like(w, np.inf) for w in teacher.get_weights()])
    distiller = compiled(mlp(), teacher)
    with pytest.raises(ValueError, match="outputs for batch 0 are not all finite"):
        distiller.fit(x, y, verbose=0)
    assert int(distiller.optimizer.iterations) == 0


@pytest.mark.parametrize(
    "empty",
    [
        lambda x, y: (x[:0], y[:0]),
        lambda x, y: (tf.data.Dataset.from_tensor_slices((x, y)).take(0).batch(8),),
        lambda x, y: ((pair for pair in ()),),
    ],
)
def test_empty_data(data, empty):
    with pytest.raises(
        ValueError, match="the training data is empty|an empty generator"
    ):
        compiled().fit(*empty(*data), verbose=0)


def test_nothing_teaches(data):
    distiller = Distiller(mlp())
    distiller.compile("sgd", SPARSE)
    with pytest.raises(
        ValueError, match="nothing teaches: the distiller has no teacher"
    ):
        distiller.fit(*data, verbose=0)
    with pytest.raises(ValueError, match="nothing teaches"):
        distiller.train_on_batch(*data)


def test_unlabelled_and_alpha_one(data):
    with pytest.raises(
        ValueError, match="no labels and alpha is 1.0, so there is nothi"
    ):
        compiled(alpha=1.0).fit(data[0], verbose=0)


def test_labels_without_a_loss(data):
    distiller = Distiller(mlp(), mlp(32), alpha=0.5)
    distiller.compile("sgd")
    with pytest.raises(
        ValueError, match="alpha is 0.5 but compile.. was given no loss"
    ):
        distiller.fit(*data, verbose=0)


@pytest.mark.parametrize(
    ("activation", "loss", "message"),
    [
        (
            None,
            "sparse_categorical_crossentropy",
            "expects probabilities .* ends in logi",
        ),
        (
            None,
            keras.losses.CategoricalCrossentropy(),
            "expects probabilities .* ends in",
        ),
        ("softmax", SPARSE, "has from_logits=True but the student ends in a softmax"),
    ],
)
def test_loss_disagrees_with_the_students_last_layer(activation, loss, message):
    distiller = Distiller(mlp(activation=activation), mlp(32))
    with pytest.raises(ValueError, match=message):
        distiller.compile("sgd", loss)


def test_no_trainable_weights(data):
    student = mlp()
    student.trainable = False
    with pytest.raises(ValueError, match="the student has no trainable weights"):
        compiled(student).fit(*data, verbose=0)


def test_objective_is_no_loss():
    with pytest.raises(
        TypeError, match="distillation_loss must be a distillation loss"
    ):
        Distiller(mlp(), mlp(), distillation_loss=3.0)


def test_kept_targets_do_not_hold_hidden_layers(data):
    x, y = data
    distiller = Distiller(mlp(6), distillation_loss=kd.FeatureLoss("hidden", "hidden"))
    distiller.compile("sgd", SPARSE)
    kept = DistillationInputs(x, np.zeros((64, CLASSES), "float32"))
    with pytest.raises(
        ValueError, match="matches hidden layers, which cached soft targets"
    ):
        distiller.train_on_batch(kept, y)


def test_missing_output_of_the_teacher():
    with pytest.raises(ValueError, match="output 'first' has no counterpart"):
        Distiller(two_heads(6), mlp(32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"temperature": keras.optimizers.schedules.CosineDecay(8.0, 4)},
            "the schedule at step 7: temperature must be a finite number > 0, got 0.0",
        ),
        (
            {"alpha": keras.optimizers.schedules.PolynomialDecay(3.0, 9)},
            "the schedule at step 0: alpha must be a number from 0 to 1, got 3.0",
        ),
    ],
)
def test_schedule_out_of_range(data, settings, message):
    with pytest.raises(ValueError, match=message):
        compiled(**settings).fit(*data, batch_size=8, epochs=2, verbose=0)


def test_one_class_is_no_softmax():
    distiller = Distiller(mlp(classes=1), mlp(classes=1))
    with pytest.raises(ValueError, match="has 1 class: a softmax over it is always 1"):
        distiller.compile("sgd", SPARSE)


def test_nothing_to_judge(data):
    distiller = compiled()
    with pytest.raises(ValueError, match="the evaluation data has no labels"):
        distiller.evaluate(data[0], verbose=0)


@pytest.mark.parametrize("where", ["weighted_metrics", "metrics"])
def test_agreement_in_the_wrong_place(where):
    metrics = [TeacherAgreement()]
    wrong = {where: metrics if where == "weighted_metrics" else {"a": metrics}}
    with pytest.raises(ValueError, match="TeacherAgreement goes into compile"):
        Distiller(mlp(), mlp(9)).compile("sgd", SPARSE, **wrong)


def test_student_among_its_teachers():
    student = mlp()
    with pytest.raises(ValueError, match="student and teacher are the same object"):
        Distiller(student, [mlp(9), student])


def test_other_axes_differ():
    sequence = keras.Sequential([keras.Input((3, 4)), keras.layers.Dense(CLASSES)])
    with pytest.raises(
        ValueError, match=r"\(None, 5\) and the teacher's \(None, 3, 5\)"
    ):
        Distiller(mlp(), sequence)


def test_mean_of_probabilities_with_another_temperature():
    with pytest.raises(ValueError, match="averaged at the distiller's temperature"):
        Distiller(
            mlp(), [mlp(9), mlp(9)], distillation_loss=SoftTargetLoss(temperature=1.0)
        )


def test_custom_loss_with_a_keras_like_name_is_trusted(data):
    def focal_crossentropy(y, z):
        return keras.losses.sparse_categorical_crossentropy(y, z, from_logits=True)

    compiled(loss=focal_crossentropy).fit(*data, verbose=0)


def test_class_weight_names_no_class():
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 20, (4, 3)), rng.integers(CLASSES, size=(4, 3))
    with pytest.raises(
        ValueError, match="class_weight names the class 9, but the clas"
    ):
        compiled(tagger(4), tagger(16)).fit(x, y, class_weight={9: 1.0}, verbose=0)


def test_class_weight_beside_sample_weights(data):
    x, y = data
    weighted = tf.data.Dataset.from_tensor_slices((x, y, np.ones(64))).batch(16)
    for arguments in ({"x": weighted}, {"x": x, "y": y, "sample_weight": np.ones(64)}):
        distiller = compiled()
        with pytest.raises(ValueError, match="class_weight"):
            distiller.fit(**arguments, class_weight={0: 2.0}, verbose=0)
        assert int(distiller.optimizer.iterations) == 0


def test_class_weight_of_several_outputs(data):
    x, y = data
    distiller = Distiller(two_heads(6), two_heads(32))
    distiller.compile("sgd", {"first": SPARSE, "second": SPARSE})
    labels = {"first": y, "second": y % 3}
    with pytest.raises(ValueError, match="class_weight is for students with one out"):
        distiller.fit(x, labels, class_weight={0: 2.0}, verbose=0)


# What Keras hands over ---------------------------------------------------------------


def test_a_callback_list_of_keras(data):
    seen = []
    own = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(epoch)
    )
    distiller = compiled()
    callbacks = keras.callbacks.CallbackList(
        [own], add_history=True, model=distiller, epochs=2
    )
    for _ in range(2):
        distiller.fit(*data, epochs=2, callbacks=callbacks, verbose=0)
    assert seen == [0, 1, 0, 1]
    assert own in callbacks.callbacks
    # Ours is gone from the user's list.
    assert [type(one).__name__ for one in callbacks.callbacks].count(
        "TrainingWatch"
    ) == 0


@pytest.mark.parametrize("as_dataset", [False, True])
def test_validation_data_of_bare_cached_soft_targets_has_no_labels(data, as_dataset):
    x, y = data
    cached = DistillationInputs(x, mlp(32).predict(x, verbose=0))
    validation = cached
    if as_dataset:
        validation = tf.data.Dataset.from_tensor_slices(cached).batch(32)
    distiller = Distiller(mlp(6))
    distiller.compile("sgd", SPARSE, metrics=["accuracy", TeacherAgreement()])
    history = distiller.fit(cached, y, validation_data=validation, verbose=0).history
    assert {name for name in history if name.startswith("val_")} == {
        "val_teacher_agreement"
    }


@pytest.mark.slow
def test_bare_cached_soft_targets_from_a_generator_are_no_labels(data):
    x, _ = data
    targets = mlp(32).predict(x, verbose=0)

    def batches():
        for i in range(0, 64, 16):
            yield DistillationInputs(x[i : i + 16], targets[i : i + 16])

    student = mlp(6)
    same = copy_of(student)
    for one, given in ((student, batches()), (same, DistillationInputs(x, targets))):
        distiller = Distiller(one, alpha=0.0)
        distiller.compile(keras.optimizers.SGD(0.1))
        distiller.fit(
            given, batch_size=None if one is student else 16, shuffle=False, verbose=0
        )
    assert largest_difference(student.get_weights(), same.get_weights()) < 1e-6


def test_recompiled_without_a_loss_forgets_the_first_one(data):
    x, y = data
    distiller = compiled(alpha=0.0)
    distiller.fit(x, y, verbose=0)
    distiller.compile("sgd")
    assert distiller.fit(x, y, verbose=0).history["hard_loss"] == [0.0]


# What one call leaves for the next ---------------------------------------------------


@pytest.mark.slow
def test_class_weights_are_of_one_fit_alone(data):
    x, y = data
    distiller = compiled(alpha=1.0, optimizer=keras.optimizers.SGD(0.0))
    plain = distiller.train_on_batch(x, y, return_dict=True)["loss"]
    weight = dict.fromkeys(range(CLASSES), 10.0)
    for factor in (10.0, 20.0):
        weight.update(dict.fromkeys(range(CLASSES), factor))
        history = distiller.fit(x, y, class_weight=weight, verbose=0).history
        assert history["hard_loss"][0] == pytest.approx(factor * plain, rel=1e-5)
    for sample_weight, loss in ((None, plain), (np.zeros(64), 0.0)):
        logs = distiller.train_on_batch(x, y, sample_weight, return_dict=True)
        assert logs["loss"] == pytest.approx(loss, rel=1e-5)
    distiller.check_first_batch((x, y, np.ones(64)))


def judged(distiller, *data):
    return distiller.evaluate(*data, verbose=0, return_dict=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the batches have no labels")
def test_data_without_labels_leaves_nothing_in_the_figures_of_labelled_data(data):
    x, y = data
    first, second = (x[:20], y[:20]), (x[20:], y[20:])
    metrics = ["accuracy", TeacherAgreement()]
    distiller = compiled(metrics=metrics, optimizer=keras.optimizers.SGD(0.0))
    truth = [judged(distiller, *part) for part in (first, second)]
    history = distiller.fit(*first, verbose=0).history
    for _ in range(2):
        assert set(judged(distiller, x)) == {"teacher_agreement"}
        for part, expected in zip((first, second), truth, strict=True):
            assert judged(distiller, *part) == pytest.approx(expected, rel=1e-5)
        distiller.fit(x, validation_data=(x,), verbose=0)
        again = distiller.fit(*first, validation_data=second, verbose=0).history
        assert again["accuracy"] == pytest.approx(history["accuracy"])
        assert again["val_loss"][0] == pytest.approx(truth[1]["loss"], rel=1e-5)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("call", ["fit", "evaluate", "train_on_batch", "test_on_batch"])
def test_labels_may_come_after_data_without_them(data, call):
    x, y = data
    distiller = compiled(alpha=0.0, metrics=["accuracy", TeacherAgreement()])
    quiet = {"verbose": 0} if call in ("fit", "evaluate") else {}
    for _ in range(2):
        getattr(distiller, call)(x, **quiet)
        getattr(distiller, call)(x, y, **quiet)


def test_batches_whose_parts_differ_in_length(data):
    """As of graphs, whose nodes and edges are counted apart."""
    x, y = data
    nodes, table = keras.Input((FEATURES,), name="nodes"), keras.Input((2,), name="t")
    mean = keras.layers.Lambda(
        lambda both: both[0] + tf.reduce_mean(both[1]), output_shape=(FEATURES,)
    )
    student = keras.Model(
        {"nodes": nodes, "t": table}, keras.layers.Dense(CLASSES)(mean([nodes, table]))
    )
    constant = np.ones((5, 2), "float32")
    batches = in_batches(x, y).map(lambda a, b: ({"nodes": a, "t": constant}, b))
    distiller = Distiller(student, alpha=1.0)
    distiller.compile("sgd", SPARSE)
    distiller.fit(batches, verbose=0)
    assert int(distiller.optimizer.iterations) == 4
