"""Soft losses over many tokens and a large vocabulary: chunk by chunk, and as exact."""

import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.losses import chunks
from keras_distill.losses.kl import tempered_kl
from keras_distill.top_k import REST_BETAS
from tests.test_loss_properties import close, exact, kl

MODES = ("graph", "eager", "jit")
SHAPE = (3, 7, 40)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of four rows, of any tensor: 21 rows are five of them and one of the last."""
    monkeypatch.setattr(chunks, "_CHUNK", 4 * SHAPE[-1])
    monkeypatch.setattr(chunks, "_LARGE", -1)
    chunks._in_graph.cache_clear()
    yield
    chunks._in_graph.cache_clear()


def value_and_gradient(loss, mode, logits, upstream):
    def both(logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            values = loss(logits)
            total = tf.reduce_sum(tf.cast(upstream, values.dtype) * values)
        return values, tape.gradient(total, logits)

    logits = tf.convert_to_tensor(logits)
    if mode != "eager":
        unknown = tf.TensorSpec((None,) * (logits.shape.rank - 1) + (SHAPE[-1],))
        unknown = tf.TensorSpec(unknown.shape, logits.dtype)
        both = tf.function(
            both, jit_compile=mode == "jit", input_signature=[unknown], autograph=False
        )
    return both(logits)


def drawn(shape=SHAPE, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    upstream = rng.random(shape[:-1]).astype("f4")
    upstream.flat[:1] = 0.0  # a token that is masked
    return *rng.normal(scale=scale, size=(2, *shape)).astype("f4"), upstream


@pytest.mark.sampled(6)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shape", "scale", "temperature"),
    [(SHAPE, 3.0, 2.0), (SHAPE, 1e-3, 20.0), ((1, 40), 3.0, 1.0), ((0, 40), 1.0, 1.0)],
)
def test_chunks_are_as_exact_as_the_whole(
    small_chunks, mode, shape, scale, temperature
):
    teacher, student, upstream = drawn(shape, scale)
    loss, gradient = value_and_gradient(
        lambda z: tempered_kl(teacher, z, temperature), mode, student, upstream
    )
    expected, slope = kl(teacher, student, temperature)
    assert loss.shape == shape[:-1]
    assert gradient.shape == shape
    for row in np.ndindex(shape[:-1]):
        close(loss[row], expected[row], 2e-5, 1e-36)
        far = 2e-7 if scale > 0.1 else 1e-36
        upstream_of = exact(upstream[row])
        close(gradient[row], slope[row] * upstream_of, 2e-5, far * temperature)


def top_k_of(teacher, k):
    """Returns `TopKLogits` worked out in float64, and the order of the classes."""
    order = np.argsort(-teacher, -1)
    top = np.take_along_axis(teacher, order[..., :k], -1)
    rest = np.take_along_axis(teacher, order[..., k:], -1).astype("float64")
    if k < teacher.shape[-1]:
        mass = np.stack([np.log(np.exp(b * rest).sum(-1)) for b in REST_BETAS], -1)
    else:
        mass = np.zeros((*teacher.shape[:-1], 1))
    packed = np.concatenate([top, order[..., :k], mass], -1)
    return kd.TopKLogits(tf.constant(packed, "float32")), order


@pytest.mark.sampled(5)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [1, 5, 40])
def test_top_k_by_chunks_is_the_kl_over_k_classes_and_the_rest(small_chunks, mode, k):
    teacher, student, upstream = drawn()
    # In some tokens the k hold all but 1e-15 of the student's mass.
    found, order = top_k_of(teacher, k)
    np.put_along_axis(student[0], order[0, :, :1], 40.0, -1)
    temperature = 16 / 13  # at which the mass of the rest is exact
    loss, gradient = value_and_gradient(
        lambda z: kd.SoftTargetLoss().loss_per_example(found, z, temperature),
        mode,
        student,
        upstream,
    )

    def merged(z):
        z = np.take_along_axis(z.astype(exact), order, -1)
        if k == SHAPE[-1]:
            return z, None
        scaled = z[..., k:] / temperature
        largest = scaled.max(-1, keepdims=True)
        e = np.exp(scaled - largest)
        total = e.sum(-1, keepdims=True)
        rest = temperature * (largest + np.log(total))
        return np.concatenate([z[..., :k], rest], -1), e / total

    ours, share = merged(student)
    expected, slope = kl(merged(teacher)[0], ours, temperature)
    np.testing.assert_allclose(loss, expected.astype(float), rtol=1e-4, atol=1e-5)
    if share is not None:
        slope = np.concatenate([slope[..., :k], slope[..., k:] * share], -1)
    whole = np.zeros(SHAPE, exact)
    np.put_along_axis(whole, order, slope, -1)
    wanted = (whole * upstream[..., None]).astype(float)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_chunks_of_other_dtypes(small_chunks, dtype):
    teacher, student, upstream = drawn()
    teacher, student = tf.cast(teacher, dtype), tf.cast(student, dtype)
    loss, gradient = value_and_gradient(
        lambda z: tempered_kl(teacher, z, 2.0), "graph", student, upstream
    )
    assert loss.dtype == ("float64" if dtype == "float64" else "float32")
    assert gradient.dtype == dtype
    wide = [tf.cast(one, "float64").numpy() for one in (teacher, student, gradient)]
    expected, slope = kl(wide[0], wide[1], 2.0)
    np.testing.assert_allclose(loss, expected.astype(float), rtol=2e-6)
    rounding = {"float16": 1e-3, "bfloat16": 8e-3, "float64": 1e-9}[dtype]
    slope = (slope * upstream[..., None]).astype(float)
    np.testing.assert_allclose(wide[2], slope, rtol=rounding, atol=1e-7)


@pytest.mark.slow
def test_two_steps_do_not_share_a_gradient(small_chunks):
    """What is written in place is of one step alone."""
    teacher, student, upstream = drawn()
    for mode in MODES:
        one = value_and_gradient(
            lambda z: tempered_kl(teacher, z, 2.0), mode, student, upstream
        )
    both = tf.function(
        lambda z: tf.gradients(tempered_kl(teacher, z, 2.0) * upstream, z)[0]
    )
    first = both(tf.constant(student))
    before = first.numpy().copy()
    both(tf.constant(2 * student))
    np.testing.assert_array_equal(first, before)
    np.testing.assert_allclose(first, one[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "is_large"),
    [
        ((None, 10), False),
        ((None, 1000), False),
        ((256, 1000), False),
        ((None, 40, 2), False),  # forty yes/no questions
        ((None, None, 5), False),
        ((None, None, 32_000), True),
        ((None, 32_000), True),
        ((None, 512, 512, 21), True),
        ((8, 128, 32_000), True),
        ((None, None), False),
    ],
)
def test_a_small_loss_is_made_whole(shape, is_large):
    assert chunks._is_large(shape) == is_large


def test_no_vocabulary_beyond_a_chunk_in_the_graph_of_top_k():
    """But for the student's logits, and its gradient, written row by row."""
    classes, rows = 50_257, 64
    packed = tf.TensorSpec((rows, 2 * 50 + 8), "float32")
    logits = tf.TensorSpec((rows, classes), "float32")

    @tf.function(input_signature=[packed, logits])
    def step(packed, logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = tf.reduce_sum(
                kd.SoftTargetLoss().loss_per_example(kd.TopKLogits(packed), logits, 2.0)
            )
        return tape.gradient(loss, logits)

    graph = step.get_concrete_function().graph
    wide = {
        op.type
        for op in graph.get_operations()
        for out in op.outputs
        if out.consumers() and out.shape.rank and out.shape[-1] == classes
    }
    # What hands on, the loop, and the one product that is the gradient.
    assert wide <= {
        "Placeholder", "Identity", "IdentityN", "StopGradient", "Reshape", "Empty",
        "While", "StatelessWhile", "EnsureShape", "Mul", "Cast",
    }, wide  # fmt: skip
    assert {"Empty", "Mul"} <= wide
