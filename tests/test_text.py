"""Transformers of dict inputs, which teach smaller ones and other kinds of networks."""

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from tests.conftest import SPARSE

LENGTH, WORDS, PIECES = 6, 9, 11


def bert(layers, seed=0):
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.BertBackbone(
        PIECES,
        layers,
        2,
        4,
        8,
        dropout=0.0,
        max_sequence_length=LENGTH,
        name="backbone",
    )
    return keras_hub.models.BertTextClassifier(
        backbone, 2, preprocessor=None, dropout=0.0
    )


def taught(layers):
    """A teacher whose blocks do something, as those of initial weights do not."""
    model, rng = bert(layers), np.random.default_rng(1)
    for one in model.weights:
        one.assign(one + rng.normal(size=one.shape, scale=0.5))
    return model


def lstm():
    words = keras.Input((LENGTH - 2,), dtype="int32", name="words")
    hidden = keras.layers.Embedding(WORDS, 4, mask_zero=True)(words)
    hidden = keras.layers.LSTM(4)(hidden)
    return keras.Model(words, keras.layers.Dense(2)(hidden))


@pytest.fixture
def sentences():
    """Ten sentences in word pieces and in words, as one dict."""
    rng = np.random.default_rng(0)
    mask = (np.arange(LENGTH) < rng.integers(3, LENGTH + 1, size=(10, 1))).astype(
        "int32"
    )
    words = rng.integers(1, WORDS, size=(10, LENGTH - 2)).astype("int32")
    inputs = {
        "token_ids": (rng.integers(1, PIECES, size=(10, LENGTH)) * mask).astype(
            "int32"
        ),
        "segment_ids": np.zeros((10, LENGTH), "int32"),
        "padding_mask": mask,
        "words": words,
    }
    return inputs, (words[:, 0] > 4).astype("int32")


def kl(teacher, student, temperature):
    p, q = (
        np.asarray(tf.nn.log_softmax(one / temperature)) for one in (teacher, student)
    )
    return temperature**2 * np.mean(np.sum(np.exp(p) * (p - q), -1))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("is_cached", [False, True])
def test_a_bert_of_word_pieces_teaches_an_lstm_of_words(sentences, is_cached, tmp_path):
    x, y = sentences
    teacher, student = taught(2), lstm()
    pieces = {key: value for key, value in x.items() if key != "words"}
    expected = kl(
        teacher.predict(pieces, verbose=0), student.predict(x["words"], verbose=0), 2.0
    )
    assert expected > 0.01
    data = tf.data.Dataset.from_tensor_slices((x, y))
    if is_cached:
        targets = kd.SoftTargets.write(tmp_path / "soft", teacher, data, verbose=False)
        data, teacher = targets.join(data), None
    distiller = kd.Distiller(student, teacher, temperature=2.0, alpha=0.3)
    distiller.compile(keras.optimizers.SGD(0.0), SPARSE)
    history = distiller.fit(data.batch(10), verbose=0).history
    # Logits are kept in float16.
    tolerance = 1e-3 if is_cached else 1e-4
    np.testing.assert_allclose(history["soft_loss"], expected, rtol=tolerance)
    np.testing.assert_array_equal(
        distiller.predict({"words": x["words"]}, verbose=0),
        student.predict(x["words"], verbose=0),
    )


@pytest.mark.slow
def test_a_bert_teaches_one_of_half_its_blocks_that_starts_from_them(
    sentences, tmp_path
):
    x, y = sentences
    teacher, student = taught(4), bert(2)
    pairs = kd.suggest_feature_pairs(student, teacher)
    assert pairs == [
        (f"backbone/transformer_layer_{i}", f"backbone/transformer_layer_{2 * i + 1}")
        for i in range(2)
    ]
    names = [f"backbone/{part}_embedding" for part in ("token", "position", "segment")]
    copied = kd.copy_weights(
        student, teacher, [*pairs, *zip(names, names, strict=True)]
    )
    assert copied.not_copied == [
        "backbone/embeddings_layer_norm/gamma", "backbone/embeddings_layer_norm/beta",
        "backbone/pooled_dense/kernel", "backbone/pooled_dense/bias",
        "logits/kernel", "logits/bias",
    ]  # fmt: skip
    distiller = kd.Distiller(student, teacher, alpha=0.0, features=pairs)
    distiller.compile(keras.optimizers.Adam(0.01), SPARSE)
    losses = distiller.fit(x, y, epochs=10, verbose=0).history["soft_loss"]
    assert losses[-1] < 0.7 * losses[0]
    distiller.save(tmp_path / "distiller.keras")
    again = keras.models.load_model(tmp_path / "distiller.keras")
    again.teacher = teacher
    np.testing.assert_allclose(
        again.predict(x, verbose=0),
        distiller.predict(x, verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )
    assert again.fit(x, y, verbose=0).history["soft_loss"][0] < 0.7 * losses[0]
