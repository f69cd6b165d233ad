import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from scipy.special import log_softmax, softmax

from keras_distill.distiller import Distiller
from keras_distill.losses.base import SumOfLosses
from keras_distill.losses.features import FeatureLoss
from keras_distill.losses.kl import SoftTargetLoss, tempered_kl
from keras_distill.losses.logits import LogitLoss
from tests.conftest import CLASSES, SPARSE, mlp

TEMPERATURES = [0.5, 1.0, 4.0, 20.0, 100.0]


def logits(shape=(16, 10), seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    teacher, student = rng.normal(scale=scale, size=(2, *shape)).astype("float32")
    return teacher, student


def numpy_kl(teacher, student, temperature):
    """T**2 * KL in float64, straight from the definition."""
    t, s = teacher.astype("float64"), student.astype("float64")
    log_p, log_q = log_softmax(t / temperature, -1), log_softmax(s / temperature, -1)
    return temperature**2 * np.sum(np.exp(log_p) * (log_p - log_q), -1)


def soft_gradient(teacher, student, temperature):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = tf.reduce_mean(tempered_kl(teacher, student, temperature))
    return tape.gradient(loss, student).numpy()


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1, [0.00032, 0.04741, 0.95227]),
        (5, [0.11532, 0.31348, 0.57120]),
        (10, [0.20516, 0.33825, 0.45659]),
        (20, [0.26484, 0.34006, 0.39510]),
    ],
)
def test_softmax_reference_table(temperature, expected):
    # KL(p || uniform) = log N - entropy(p), so the loss is held to the table's p.
    x = np.array([[2.0, 7.0, 10.0]], "float32")
    p = ops.convert_to_numpy(ops.softmax(x / temperature))[0]
    np.testing.assert_allclose(p, expected, atol=5e-6)
    loss = float(tempered_kl(x, np.zeros_like(x), temperature)[0]) / temperature**2
    p = np.array(expected)
    np.testing.assert_allclose(loss, np.log(3) + np.sum(p * np.log(p)), atol=1e-4)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_soft_loss_equals_numpy_float64(temperature, scale):
    teacher, student = logits(scale=scale)
    ours = ops.convert_to_numpy(tempered_kl(teacher, student, temperature))
    np.testing.assert_allclose(ours, numpy_kl(teacher, student, temperature), rtol=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_whole_loss_equals_numpy_float64(temperature, alpha):
    """The loss that fit logs, with teacher and student that pass logits through."""
    teacher, student = logits()
    labels = np.random.default_rng(1).integers(10, size=16)
    # Inputs hold both logits; each model takes its half, times weights of 1.
    inputs = keras.Input((20,))
    half = keras.layers.Lambda(lambda x: x[:, :10], output_shape=(10,))(inputs)
    scale = keras.layers.Dense(10, use_bias=False, kernel_initializer="identity")
    model = keras.Model(inputs, scale(half))
    distiller = Distiller(
        model, lambda x: x[:, 10:], temperature=temperature, alpha=alpha,
        teacher_from_logits=True,
    )  # fmt: skip
    distiller.compile(keras.optimizers.SGD(0.0), SPARSE)
    logs = distiller.train_on_batch(
        np.concatenate([student, teacher], 1), labels, return_dict=True
    )
    log_q = log_softmax(student.astype("float64"), -1)
    hard = -np.mean(log_q[np.arange(16), labels])
    soft = np.mean(numpy_kl(teacher, student, temperature))
    np.testing.assert_allclose(logs["hard_loss"], hard, rtol=1e-6)
    np.testing.assert_allclose(logs["soft_loss"], soft, rtol=1e-6)
    expected = alpha * hard + (1 - alpha) * soft
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_gradient_is_t_times_q_minus_p(temperature, alpha):
    teacher, student = logits(seed=2)
    p = softmax(teacher.astype("float64") / temperature, -1)
    q = softmax(student.astype("float64") / temperature, -1)
    expected = (1 - alpha) * temperature * (q - p) / len(p)
    ours = (1 - alpha) * soft_gradient(teacher, student, temperature)
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=tolerance)


def test_gradient_at_high_temperature_is_logit_matching():
    teacher, student = logits(seed=3)
    difference = student - teacher
    limit = (difference - difference.mean(-1, keepdims=True)) / 10 / len(student)
    ours = soft_gradient(teacher, student, 1000.0)
    assert np.linalg.norm(ours - limit) < 0.01 * np.linalg.norm(limit)
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = LogitLoss().compute_loss(teacher, student)
    np.testing.assert_allclose(
        tape.gradient(loss, student), limit, rtol=1e-4, atol=1e-8
    )


def test_size_of_soft_gradient_does_not_depend_on_temperature():
    teacher, student = logits((512, 10), seed=4)
    sizes = [
        np.linalg.norm(soft_gradient(teacher, student, t))
        for t in np.linspace(2, 50, 25)
    ]
    assert max(sizes) / min(sizes) < 1.10


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_soft_plus_hard_over_t_squared_is_parallel(temperature):
    teacher, student = logits(seed=5)
    labels = np.random.default_rng(5).integers(10, size=16)

    def gradient(loss):
        z = tf.constant(student)
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = loss(z)
        return tape.gradient(value, z).numpy().ravel()

    def hard(z):
        return SPARSE(labels, z)

    def soft(z):  # without the factor T**2
        return tf.reduce_mean(tempered_kl(teacher, z, temperature)) / temperature**2

    ours = gradient(lambda z: 0.5 * hard(z) + 0.5 * temperature**2 * soft(z))
    other = gradient(lambda z: soft(z) + hard(z) / temperature**2)
    cosine = ours @ other / np.linalg.norm(ours) / np.linalg.norm(other)
    assert cosine == pytest.approx(1.0, abs=1e-6)


def test_confidently_wrong_student_gets_its_gradient():
    teacher = np.array([[40.0, 0.0, -5.0]], "float32")
    student = np.array([[-60.0, 0.0, 0.0]], "float32")
    assert float(tempered_kl(teacher, student, 1.0)[0]) == pytest.approx(
        60.69, abs=5e-3
    )
    assert soft_gradient(teacher, student, 1.0)[0, 0] == pytest.approx(-1.0, abs=1e-6)


def test_extreme_logits_stay_finite():
    teacher = np.array([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]], "float32")
    student = np.array([[-1e4, 0.0, 1e4], [1e4, 1e4, 1e4]], "float32")
    loss = ops.convert_to_numpy(tempered_kl(teacher, student, 1.0))
    np.testing.assert_allclose(loss, [2e4, 0.0], rtol=1e-6)
    np.testing.assert_allclose(
        soft_gradient(teacher, student, 1.0), [[-0.5, 0, 0.5], [0, 0, 0]], atol=1e-6
    )


def test_half_precision_logits_are_computed_in_float32():
    teacher, student = logits(seed=6)
    half = student.astype("float16")
    loss = tempered_kl(teacher, tf.constant(half), 4.0)
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(
        loss, numpy_kl(teacher, half.astype("float32"), 4.0), rtol=1e-6
    )


def test_hidden_layer_loss_by_hand():
    loss = FeatureLoss().loss_per_example([[1.0, 3.0]], [[2.0, 1.0]])
    np.testing.assert_allclose(loss, [(1 + 4) / 2])


def test_adapter_maps_to_the_teachers_width_and_is_learned(data):
    x, y = data
    hint = FeatureLoss("hidden", "hidden", adapter="auto")
    distiller = Distiller(
        mlp(6), mlp(32), distillation_loss=SoftTargetLoss() + 0.5 * hint
    )
    (adapter,) = distiller.loss_layers
    assert hint.trainable_layers == []  # another distiller gets one of its own
    assert adapter.kernel.shape == (6, 32)
    before = adapter.kernel.numpy()
    distiller.compile("adam", SPARSE)
    distiller.fit(x, y, verbose=0)
    assert np.abs(adapter.kernel.numpy() - before).max() > 0


def test_matched_layers_run_each_model_once(data):
    class Counted(keras.layers.Dense):
        calls = 0

        def call(self, inputs, training=None):
            type(self).calls += 1
            return super().call(inputs)

    class StudentDense(Counted):
        calls = 0

    class TeacherDense(Counted):
        calls = 0

    def model(dense):
        return keras.Sequential(
            [
                keras.Input((8,)),
                dense(6, name="one"),
                dense(6, name="two"),
                keras.layers.Dense(CLASSES),
            ]
        )

    objective = SoftTargetLoss() + FeatureLoss("one", "one") + FeatureLoss("two", "two")
    distiller = Distiller(
        model(StudentDense), model(TeacherDense), distillation_loss=objective
    )
    distiller.compile("sgd", SPARSE, run_eagerly=True)
    distiller.train_on_batch(*data)
    StudentDense.calls = TeacherDense.calls = 0
    distiller.train_on_batch(*data)
    assert (StudentDense.calls, TeacherDense.calls) == (2, 2)  # two layers, once each


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "make_loss",
    [
        lambda: keras.distillation.LogitsDistillation(
            temperature=3.0, loss=keras.losses.KLDivergence()
        ),
        lambda: keras.distillation.FeatureDistillation(
            teacher_layer_name="hidden", student_layer_name="hidden"
        ),
    ],
)
def test_keras_objectives_train_in_our_distiller(data, make_loss):
    x, y = data
    distiller = Distiller(mlp(6), mlp(6), distillation_loss=make_loss(), alpha=0.0)
    distiller.compile(keras.optimizers.SGD(0.05), SPARSE)
    history = distiller.fit(x, y, epochs=20, verbose=0).history
    assert history["soft_loss"][-1] < 0.8 * history["soft_loss"][0]


def test_keras_objective_says_the_same_with_unit_sample_weights(data):
    x, y = data
    losses = []
    for weight in (None, np.ones(64, "float32")):
        keras.utils.set_random_seed(1)
        student, teacher = mlp(6), mlp(32)
        distiller = Distiller(
            student, teacher, distillation_loss=keras.distillation.LogitsDistillation()
        )
        distiller.compile(keras.optimizers.SGD(0.0), SPARSE)
        losses.append(distiller.train_on_batch(x, y, weight, return_dict=True))
    assert losses[0]["soft_loss"] == pytest.approx(losses[1]["soft_loss"], rel=1e-5)


@pytest.mark.slow
def test_weight_of_a_keras_objective_counts(data):
    x, y = data
    student, teacher = mlp(6), mlp(32)

    def soft_loss(objective):
        distiller = Distiller(student, teacher, distillation_loss=objective)
        distiller.compile(keras.optimizers.SGD(0.0), SPARSE)
        return distiller.train_on_batch(x, y, return_dict=True)["soft_loss"]

    keras_loss = keras.distillation.FeatureDistillation()
    assert soft_loss(SumOfLosses([(0.25, keras_loss)])) == pytest.approx(
        soft_loss(keras_loss) / 4, rel=1e-5
    )
    assert soft_loss(SoftTargetLoss() + keras_loss) == pytest.approx(
        soft_loss(SoftTargetLoss()) + soft_loss(keras_loss), rel=1e-5
    )


def test_custom_keras_loss_refuses_sample_weights(data):
    class Mine(keras.distillation.DistillationLoss):
        def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
            return ops.mean(ops.square(teacher_outputs - student_outputs))

    distiller = Distiller(mlp(6), mlp(32), distillation_loss=Mine())
    distiller.compile("sgd", SPARSE)
    distiller.train_on_batch(*data)
    with pytest.raises(ValueError, match="write loss_per_example"):
        distiller.train_on_batch(*data, np.ones(64))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "make_loss",
    [
        lambda: SoftTargetLoss(temperature=4.0),
        LogitLoss,
        lambda: FeatureLoss("hidden", "hidden"),
        lambda: SoftTargetLoss(temperature=4.0) + 0.5 * LogitLoss(),
    ],
)
def test_our_objectives_train_in_keras_distiller(data, make_loss):
    x, y = data
    distiller = keras.distillation.Distiller(
        mlp(6), mlp(6), distillation_losses=make_loss(), student_loss_weight=0.0
    )
    distiller.compile(keras.optimizers.SGD(0.05), SPARSE)
    history = distiller.fit(x, y, epochs=20, verbose=0).history
    assert history["distillation_loss"][-1] < 0.8 * history["distillation_loss"][0]


def test_keras_distiller_is_told_what_it_cannot_do():
    with pytest.raises(ValueError, match="give one: SoftTargetLoss"):
        keras.distillation.Distiller(mlp(), mlp(), distillation_losses=SoftTargetLoss())
    hint = FeatureLoss("hidden", "hidden", adapter="auto")
    with pytest.raises(ValueError, match="does not train an adapter"):
        keras.distillation.Distiller(mlp(), mlp(9), distillation_losses=hint)
    total = SoftTargetLoss(4.0) + FeatureLoss("hidden", "hidden")
    with pytest.raises(ValueError, match="give it the terms as a list"):
        keras.distillation.Distiller(mlp(), mlp(), distillation_losses=total)


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        (
            FeatureLoss("hiden", "hidden"),
            r"student has no layer 'hiden'; the closest are 'hidden'",
        ),
        (
            FeatureLoss("hidden", "x"),
            "teacher has no layer 'x'; it has 'hidden', ",
        ),
        (
            FeatureLoss("hidden", "hidden"),
            '6 and 32 features; pass adapter="auto"',
        ),
    ],
)
def test_wrong_layers_are_refused(hint, message):
    with pytest.raises(ValueError, match=message):
        Distiller(mlp(6), mlp(32), distillation_loss=hint)


@pytest.mark.slow
def test_subclassed_model_returns_features_and_learns_them(data):
    class Mine(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.hidden = keras.layers.Dense(width, activation="relu")
            self.out = keras.layers.Dense(CLASSES)

        def call(self, x):
            features = self.hidden(x)
            return {"logits": self.out(features), "features": features}

    x, y = data
    student, teacher = Mine(6), Mine(6)
    distiller = Distiller(
        student,
        teacher,
        distillation_loss={"logits": SoftTargetLoss(), "features": FeatureLoss()},
        student_from_logits=True,
        teacher_from_logits=True,
        alpha=0.0,
    )
    distiller.compile(keras.optimizers.SGD(0.05), {"logits": SPARSE, "features": None})
    history = distiller.fit(
        x, {"logits": y, "features": np.zeros((64, 6))}, epochs=20, verbose=0
    ).history
    assert history["soft_loss"][-1] < 0.8 * history["soft_loss"][0]


def test_weighted_sums_add_up():
    teacher, student = logits()
    total = 2.0 * SoftTargetLoss(4.0) + LogitLoss() * 3.0
    assert [weight for weight, _ in total.terms] == [2.0, 3.0]
    expected = 2 * np.mean(numpy_kl(teacher, student, 4.0)) + 3 * float(
        LogitLoss().compute_loss(teacher, student)
    )
    np.testing.assert_allclose(
        total.compute_loss(teacher, student), expected, rtol=1e-5
    )
    restored = SumOfLosses.from_config(total.get_config())
    np.testing.assert_allclose(
        restored.compute_loss(teacher, student), expected, rtol=1e-5
    )


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_wrong_weights_are_refused(weight):
    with pytest.raises(ValueError, match="a weight must be a finite number >= 0"):
        weight * SoftTargetLoss()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), "4"])
def test_wrong_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be a finite number > 0"):
        SoftTargetLoss(temperature)


def test_sums_of_sums_are_one_flat_sum():
    a, b = SoftTargetLoss(), LogitLoss()
    nested = SumOfLosses([(0.5, a + 2.0 * b), (1.0, b)])
    assert nested.terms == [(0.5, a), (1.0, b), (1.0, b)]
    assert sum([a, b]).terms == [(1.0, a), (1.0, b)]
    assert sum([a]) is a
    keras_loss = keras.distillation.LogitsDistillation()
    assert (keras_loss + a).terms == [(1.0, keras_loss), (1.0, a)]


@pytest.mark.slow
def test_a_nested_sum_trains(data):
    x, y = data
    loss = SumOfLosses([(0.5, SoftTargetLoss() + LogitLoss()), (1.0, LogitLoss())])
    distiller = Distiller(mlp(6), mlp(32), distillation_loss=loss)
    distiller.compile("sgd", SPARSE)
    assert np.isfinite(distiller.fit(x, y, verbose=0).history["soft_loss"][0])
