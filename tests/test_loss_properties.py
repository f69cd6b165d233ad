"""Loss and gradient of the whole step against float64, for whatever hypothesis thinks of.

Teacher and student pass logits through, so that the closed form is known: one trained
matrix, at first the identity, whose gradient is `logits.T @ d loss / d logits`.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_distill as kd
from keras_distill.arguments import TEMPERATURES
from keras_distill.losses.kl import tempered_kl
from keras_distill.top_k import REST_BETAS, TopKLogits
from tests.conftest import SPARSE

FIXED = settings(derandomize=True, deadline=None, max_examples=25, database=None)
FEW = settings(FIXED, max_examples=10)
exact = np.longdouble

temperatures = st.one_of(
    st.sampled_from([*TEMPERATURES, 1.0, 4.0, 20.0, 1e-3, 1e4]),
    st.floats(np.log(TEMPERATURES[0]), np.log(TEMPERATURES[1])).map(
        lambda log: float(np.clip(np.exp(log), *TEMPERATURES))
    ),
)
alphas = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0, width=32))
seeds = st.integers(0, 2**32 - 1)


def pair_of_logits(seed, shape, scale):
    return (
        np.random.default_rng(seed).normal(scale=scale, size=(2, *shape)).astype("f4")
    )


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def kl(teacher, student, temperature):
    """T**2 * KL and its gradient in extended precision, by the power series where near."""
    temperature = exact(np.float32(temperature))
    t, s = teacher.astype(exact) / temperature, student.astype(exact) / temperature
    p = np.exp(log_softmax(t))
    apart = s - t
    apart = apart - (p * apart).sum(-1, keepdims=True)
    near = np.abs(apart).max(-1, keepdims=True) < 1e-3
    u = np.where(near, apart, 0)
    small = u - np.log1p((p * np.expm1(u)).sum(-1, keepdims=True))
    r = np.where(near, small, log_softmax(s) - log_softmax(t))
    small = np.where(np.abs(r) < 1e-3, r, 0)
    q = np.exp(log_softmax(s))
    series = small**2 * (0.5 + small / 6 + small**2 / 24 + small**3 / 120)
    is_small = np.abs(r) < 1e-3
    terms = np.where(is_small, p * series, q - p - p * r)
    difference = np.where(is_small, p * np.expm1(small), q - p)
    return temperature**2 * terms.sum(-1), temperature * difference


def close(ours, expected, rtol, floor):
    """Whether all is right to `rtol` of the largest; `floor` is where float32 ends."""
    expected = np.asarray(expected, exact)
    error = np.abs(np.asarray(ours, exact) - expected)
    assert np.isfinite(np.asarray(ours)).all()
    assert (error <= rtol * np.abs(expected).max(initial=0) + floor).all(), (
        float(error.max()), float(np.abs(expected).max()),
    )  # fmt: skip


@FIXED
@given(
    seeds,
    st.tuples(st.integers(1, 4), st.integers(2, 40)),
    st.sampled_from([1e-2, 1.0, 10.0, 300.0]),
    temperatures,
)
def test_tempered_kl_is_exact_at_every_temperature(seed, shape, scale, temperature):
    teacher, student = pair_of_logits(seed, shape, scale)
    with tf.GradientTape() as tape:
        z = tf.constant(student)
        tape.watch(z)
        loss = tempered_kl(teacher, z, temperature)
    gradient = tape.gradient(loss, z)
    expected, slope = kl(teacher, student, temperature)
    # Probabilities below 1e-38 are none to float32, times logits of this size.
    floor = 1e-36 * temperature * max(temperature, 100 * scale)
    apart = np.abs(teacher - student).max(-1) / temperature
    for row in range(len(expected)):
        close(loss[row], expected[row], 2e-5, floor)
        # Probabilities near 1 are told apart to 2e-7, if logits differ by much.
        rounding = 2e-7 if apart[row] > 0.2 else 1e-36
        close(gradient[row], slope[row], 2e-5, rounding * temperature)
    assert (np.asarray(loss) >= 0).all()


@FIXED
@given(
    seeds,
    st.integers(2, 12),
    st.data(),
    st.sampled_from([1 / beta for beta in REST_BETAS[1:]]),
)
def test_top_k_is_the_kl_over_k_classes_and_the_rest(seed, classes, data, temperature):
    k = data.draw(st.integers(1, classes))
    teacher, student = pair_of_logits(seed, (3, classes), 3.0)
    order = np.argsort(-teacher, -1)
    top, others = order[:, :k], order[:, k:]

    def of(values, indices):
        return np.take_along_axis(values.astype("float64"), indices, -1)

    rest = of(teacher, others)
    if k < classes:
        mass = [np.log(np.exp(beta * rest).sum(-1)) for beta in REST_BETAS]
    else:
        mass = [np.zeros(3)]
    packed = np.concatenate([of(teacher, top), top, np.stack(mass, -1)], -1)
    ours = kd.SoftTargetLoss().loss_per_example(
        TopKLogits(tf.constant(packed, "float32")), student, temperature
    )

    def merged(values):
        kept = of(values, top)
        if k == classes:
            return kept
        one = np.log(np.exp(of(values, others) / temperature).sum(-1, keepdims=True))
        return np.concatenate([kept, temperature * one], -1)

    expected, _ = kl(merged(teacher), merged(student), temperature)
    np.testing.assert_allclose(ours, expected.astype(float), rtol=1e-4, atol=1e-5)


class Masks(keras.layers.Layer):
    """Takes the mask from the last feature."""

    def compute_mask(self, inputs, mask=None):
        return keras.ops.not_equal(inputs[..., -1], 0.0)

    def call(self, inputs):
        return inputs


def passing_through(shape, distillation_loss):
    """Returns a distiller: x holds the student's logits, the teacher's, and the mask."""
    *axes, classes = shape
    inputs = keras.Input((*axes, 2 * classes + 1))
    own = keras.layers.Lambda(
        lambda x: x[..., :classes], output_shape=(*axes, classes),
        mask=lambda x, mask: mask,
    )  # fmt: skip
    x = Masks()(inputs) if axes else inputs
    matrix = keras.layers.Dense(classes, use_bias=False, kernel_initializer="identity")
    student = keras.Model(inputs, matrix(own(x)))
    distiller = kd.Distiller(
        student,
        lambda x: x[..., classes : 2 * classes],
        distillation_loss=distillation_loss,
        teacher_from_logits=True,
    )
    distiller.compile(keras.optimizers.SGD(1.0), SPARSE)
    return distiller


@functools.cache
def distiller_for(shape, loss):
    return passing_through(
        shape, kd.SoftTargetLoss() if loss == "kl" else kd.LogitLoss()
    )


@pytest.mark.slow
@FEW
@given(
    seeds,
    st.sampled_from([(2,), (5,), (3, 4)]),
    st.sampled_from(["kl", "logits"]),
    st.one_of(st.sampled_from(TEMPERATURES), st.floats(0.25, 100.0)),
    alphas,
    st.sampled_from(["none", "sample", "class", "zero"]),
    st.sampled_from(["none", "some", "all"]),
)
def test_the_step_equals_float64(
    seed, shape, loss, temperature, alpha, weights, masked
):
    rng, batch = np.random.default_rng(seed), 6
    *axes, classes = shape
    teacher, student = pair_of_logits(seed, (batch, *shape), 2.0)
    labels = rng.integers(classes, size=(batch, *axes))
    weight = np.ones((batch, *axes))
    sample_weight = class_weight = None
    if weights in ("sample", "zero"):
        sample_weight = rng.uniform(0, 3, batch) * (rng.random(batch) < 0.7)
        sample_weight = 0 * sample_weight if weights == "zero" else sample_weight
        sample_weight = sample_weight.astype("float32")
        weight = weight * sample_weight.reshape(batch, *[1] * len(axes))
    elif weights == "class":
        class_weight = {0: 0.0, classes - 1: 2.5}
        weight = np.select([labels == 0, labels == classes - 1], [0.0, 2.5], 1.0)
    keep = np.ones((batch, *axes))
    if axes and masked != "none":
        keep = (rng.random((batch, *axes)) < 0.6) * (masked == "some")
    x = np.concatenate([student, teacher, keep[..., None]], -1).astype("float32")

    # Keras scales the mask so that its mean over what is kept is the loss's.
    counts = weight * keep * (keep.size / max(keep.sum(), 1e-7))
    log_q = log_softmax(student.astype(exact))
    hard = -np.take_along_axis(log_q, labels[..., None], -1)[..., 0]
    hard_slope = np.exp(log_q) - np.eye(classes)[labels]
    if loss == "kl":
        soft, soft_slope = kl(teacher, student, temperature)
    else:
        apart = student.astype(exact) - teacher
        apart = apart - apart.mean(-1, keepdims=True)
        soft, soft_slope = 0.5 * (apart**2).mean(-1), apart / classes
    alpha32 = exact(np.float32(alpha))
    means = [(counts * part).sum() / counts.size for part in (hard, soft)]
    slope = alpha32 * hard_slope + (1 - alpha32) * soft_slope
    slope = slope * (counts / counts.size)[..., None]
    expected = np.einsum(
        "bi,bo->io",
        student.reshape(-1, classes).astype(exact),
        slope.reshape(-1, classes),
    )

    distiller = distiller_for(shape, loss)
    distiller.temperature, distiller.alpha = temperature, alpha
    (kernel,) = distiller.student.trainable_variables
    kernel.assign(np.eye(classes))
    distiller.reset_metrics()
    logs = distiller.train_on_batch(
        x, labels, sample_weight, class_weight, return_dict=True
    )
    floor = 1e-30
    close(logs["hard_loss"], means[0], 2e-5, floor)
    close(logs["soft_loss"], means[1], 2e-5, floor)
    total = alpha32 * means[0] + (1 - alpha32) * means[1]
    close(logs["loss"], total, 2e-5, floor)
    # The step is 1, so that the matrix has moved by its gradient.
    close(np.eye(classes) - kernel.numpy(), expected, 2e-5, 3e-7)
