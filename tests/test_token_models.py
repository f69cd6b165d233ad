"""A causal language model of KerasHub teaches a smaller one, token by token."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.losses import chunks
from tests.conftest import SPARSE
from tests.test_loss_properties import exact, kl

VOCABULARY, TIME, BATCH, K = 40, 6, 4, 5
TEMPERATURE = 16 / 13  # at which the mass of the rest is exact
COUNTS = np.arange(TIME) < np.array([[6], [3], [1], [5]])  # the others are padding


@pytest.fixture(autouse=True)
def _by_chunks(monkeypatch):
    """Of four rows: as a large vocabulary goes."""
    monkeypatch.setattr(chunks, "_CHUNK", 4 * VOCABULARY)
    monkeypatch.setattr(chunks, "_LARGE", -1)
    chunks._in_graph.cache_clear()
    yield
    chunks._in_graph.cache_clear()


@keras.saving.register_keras_serializable("tests")
class Padding(keras.layers.Layer):
    """Tells which tokens are no padding, as a Keras mask of the logits."""

    def call(self, inputs):
        return inputs[0]

    def compute_mask(self, inputs, mask=None):
        return keras.ops.cast(inputs[1], "bool")


def causal(width, seed, with_mask=False):
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_heads=2,
        hidden_dim=width,
        intermediate_dim=2 * width,
        max_sequence_length=TIME,
        dropout=0.0,
    )
    for weight in backbone.trainable_weights:  # so that answers are far apart
        weight.assign(20.0 * weight if "embeddings" in weight.path else weight)
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    if not with_mask:
        return model
    inputs = {
        name: keras.Input((None,), dtype="int32", name=name)
        for name in ("token_ids", "padding_mask")
    }
    return keras.Model(inputs, Padding()([model(inputs), inputs["padding_mask"]]))


def tokens(padding=0):
    """Returns inputs, labels and weights, `padding` added to tokens that do not count."""
    drawn = np.random.default_rng(0).integers(1, VOCABULARY, size=(BATCH, TIME + 1))
    x, y = drawn[:, :-1].copy(), drawn[:, 1:]
    x[~COUNTS] = (x[~COUNTS] + padding) % VOCABULARY
    x = {"token_ids": x.astype("int32"), "padding_mask": COUNTS.astype("int32")}
    return x, y.astype("int32"), COUNTS.astype("float32")


def merged(logits, order):
    """Returns logits of the classes in an order, those after the first K as one."""
    z = np.take_along_axis(logits.astype(exact), order, -1)
    rest = np.log(np.exp(z[..., K:] / TEMPERATURE).sum(-1, keepdims=True))
    return np.concatenate([z[..., :K], TEMPERATURE * rest], -1)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("way", "masked_by", "jit"),
    [
        ("live", "weights", True),
        ("live", "mask", False),
        ("cached", "weights", False),
        ("top_k", "mask", False),
        pytest.param("top_k", "weights", True, marks=pytest.mark.slow),
        pytest.param("cached", "mask", True, marks=pytest.mark.slow),
    ],
)
def test_only_tokens_that_count_teach(way, masked_by, jit, tmp_path):
    teacher, student = causal(8, 1), causal(4, 2, masked_by == "mask")
    x, y, _ = tokens()
    theirs, ours = teacher(x).numpy(), student(x).numpy()
    first = student.get_weights()
    distiller = kd.Distiller(
        student,
        teacher if way == "live" else None,
        temperature=TEMPERATURE,
        alpha=0.5,
        student_from_logits=True,
        teacher_from_logits=True,
    )
    distiller.compile(keras.optimizers.SGD(1.0), SPARSE, jit_compile=jit)
    moved = []
    for padding in (0, 7):
        arrays = tokens(padding)[: 3 if masked_by == "weights" else 2]
        data = tf.data.Dataset.from_tensor_slices(arrays).batch(BATCH)
        if way != "live":
            store = kd.SoftTargets.write(
                tmp_path / str(padding),
                teacher,
                data,
                dtype="float32",
                teacher_from_logits=True,
                top_k=K if way == "top_k" else None,
                verbose=False,
            )
            data = store.join(data)
        student.set_weights(first)
        logs = distiller.fit(data, verbose=0).history
        moved.append(student.get_weights())
    if way == "top_k":
        order = np.argsort(-theirs, -1)
        soft, _ = kl(merged(theirs, order), merged(ours, order), TEMPERATURE)
    else:
        soft, _ = kl(theirs, ours, TEMPERATURE)
    log_q = ours.astype(exact) - np.log(
        np.exp(ours.astype(exact)).sum(-1, keepdims=True)
    )
    hard = -np.take_along_axis(log_q, y[..., None], -1)[..., 0]
    # Keras takes the mean over all tokens where there are weights, else of those that count.
    count = COUNTS.size if masked_by == "weights" else COUNTS.sum()
    for name, values in (("soft_loss", soft), ("hard_loss", hard)):
        expected = float(values[COUNTS].sum() / count)
        assert expected > 0.1
        assert logs[name][0] == pytest.approx(expected, rel=1e-4), name
    for one, other in zip(*moved, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(moved[0][0], first[0])


def test_a_causal_model_learns_from_its_teacher():
    x, y, weight = tokens()
    teacher, student = causal(8, 1), causal(8, 2)
    distiller = kd.Distiller(
        student,
        teacher,
        temperature=2.0,
        alpha=0.0,
        student_from_logits=True,
        teacher_from_logits=True,
    )
    agreement = kd.TeacherAgreement()
    distiller.compile(
        keras.optimizers.Adam(0.03), SPARSE, metrics=[agreement], jit_compile=False
    )
    logs = distiller.fit(x, y, sample_weight=weight, epochs=30, verbose=0).history
    assert logs["soft_loss"][-1] < 0.1 * logs["soft_loss"][0]


BENCHMARK = pathlib.Path(__file__).parent.parent / "benchmarks" / "token_memory.py"


def peak(*case):
    """Returns the bytes that a case of the benchmark takes, in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARK.parent.parent)}
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--case", json.dumps(case)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])[0]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "eager", "jit"])
@pytest.mark.parametrize("shape", [(8, 128, 32_000), (4, 256, 50_257)])
def test_the_loss_takes_no_more_memory_than_a_cross_entropy(mode, shape):
    taken = {
        what: peak("loss", what, mode, shape, "float32", "")
        for what in ("keras", "ours", "top_k")
    }
    assert taken["ours"] <= 1.2 * taken["keras"]
    assert taken["top_k"] <= 1.2 * taken["keras"]


@pytest.mark.slow
def test_a_step_takes_little_more_than_the_logits_of_both(tmp_path):
    """Of plain Keras's step 2.3 times its logits; in a graph."""
    shape = (8, 128, 32_000)
    logits = 4 * np.prod(shape)
    live, top_k = (
        peak("fit", what, "graph", shape, "float32", str(tmp_path / what))
        for what in ("live", "top_k")
    )
    assert live < 3.3 * logits
    assert top_k < 2.3 * logits
