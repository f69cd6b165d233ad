"""Sample weights and masks of outputs, for hidden layers at other positions."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.losses.weights import weight_at_positions

RNG = np.random.default_rng(0)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def soft_loss(loss, student, teacher, x, y, weight=None):
    distiller = kd.Distiller(student, teacher, alpha=0.0, distillation_loss=loss)
    distiller.compile(keras.optimizers.SGD(0.0), CROSS_ENTROPY, jit_compile=False)
    return distiller.train_on_batch(x, y, weight, return_dict=True)["soft_loss"]


def feature(model, name, x):
    return keras.Model(model.input, model.get_layer(name).output)(x).numpy()


@pytest.mark.slow
def test_weights_of_pixels_reach_smaller_grid_and_vector():
    def segmenter(width):
        inputs = keras.Input((8, 8, 3))
        small = layers.Conv2D(4, 3, 2, padding="same", name="small")(inputs)
        pooled = layers.GlobalAveragePooling2D(name="pooled")(small)
        by = layers.Reshape((1, 1, 4))(pooled)
        hidden = layers.UpSampling2D()(layers.Multiply()([small, by]))
        return keras.Model(inputs, layers.Dense(3)(layers.Dense(width)(hidden)))

    student, teacher = segmenter(4), segmenter(8)
    x = RNG.normal(size=(6, 8, 8, 3)).astype("float32")
    y = RNG.integers(0, 3, (6, 8, 8))
    weight = RNG.random((6, 8, 8)).astype("float32")
    for name, of_cells in (
        ("small", weight.reshape(6, 4, 2, 4, 2).mean((2, 4))),
        ("pooled", weight.mean((1, 2))),
    ):
        squared = np.square(feature(student, name, x) - feature(teacher, name, x))
        found = soft_loss(kd.FeatureLoss(name, name), student, teacher, x, y, weight)
        assert found == pytest.approx((squared.mean(-1) * of_cells).mean(), rel=1e-5)
    of_examples = np.arange(6.0, dtype="float32")
    found = soft_loss(
        kd.FeatureLoss("pooled", "pooled"), student, teacher, x, y, of_examples
    )
    expected = (squared.mean(-1) * of_examples).mean()
    assert found == pytest.approx(expected, rel=1e-5)


def test_weights_at_positions():
    values = np.zeros((2, 3, 5), "float32")
    found = weight_at_positions(RNG.random((2, 2, 7)), values)
    assert found.shape == values.shape
    whole = np.repeat(np.repeat(np.arange(8.0).reshape(2, 2, 2), 3, 1), 5, 2)
    fine = np.kron(whole, np.ones((1, 2, 2)))
    np.testing.assert_allclose(
        weight_at_positions(fine, np.zeros((2, 6, 10), "float32")), whole, rtol=1e-6
    )
    mask = np.ones((2, 4), bool)
    np.testing.assert_allclose(
        weight_at_positions([[0.2, 0.4], [1.0, 0.0]], mask),
        [[0.3] * 4, [0.5] * 4],
        rtol=1e-6,
    )


@pytest.mark.parametrize("kind", [kd.FeatureLoss, kd.SimilarityLoss])
def test_tokens_written_have_weights_of_tokens_read_by_example(kind):
    def translator():
        read, written = (
            keras.Input((None,), dtype="int32", name=name) for name in ("read", "write")
        )
        encoded = layers.Embedding(9, 4, mask_zero=True, name="encoded")(read)
        decoded = layers.Embedding(9, 4)(written)
        decoded = layers.Attention()([decoded, encoded])
        return keras.Model({"read": read, "write": written}, layers.Dense(5)(decoded))

    student, teacher = translator(), translator()
    x = {"read": RNG.integers(1, 9, (6, 7)), "write": RNG.integers(1, 9, (6, 3))}
    x["read"][0, 4:] = 0
    y = RNG.integers(0, 5, (6, 3))
    loss = kind("encoded", "encoded")
    by_example = np.arange(6.0, dtype="float32") / 6 + 0.1
    found, expected = (
        soft_loss(loss, student, teacher, x, y, np.repeat(weight[:, None], 3, 1))
        for weight in (by_example, np.ones_like(by_example))
    )
    assert abs(found - expected) > 1e-7
    if kind is kd.FeatureLoss:
        ours, theirs = (feature(one, "encoded", x) for one in (student, teacher))
        counts = (x["read"] > 0) * by_example[:, None]
        squared = np.square(ours - theirs).mean(-1)
        expected = (squared * counts).sum() / (x["read"] > 0).sum()
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_adapter_that_pools_sees_the_mask(dtype):
    inputs = keras.Input((7,), dtype="int32")
    tokens = layers.Embedding(9, 4, mask_zero=True, name="tokens", dtype=dtype)(inputs)
    pooled = layers.GlobalAveragePooling1D(name="pooled")(tokens)
    student = keras.Model(inputs, layers.Dense(3)(pooled))
    teacher = keras.models.clone_model(student)
    teacher.set_weights([w + 0.1 * RNG.random(w.shape) for w in student.get_weights()])
    x = RNG.integers(1, 9, (7, 7))  # as many examples as positions
    x[0, 4:] = x[1, 2:] = 0
    loss = kd.FeatureLoss("tokens", "pooled", layers.GlobalAveragePooling1D())
    found = soft_loss(loss, student, teacher, x, np.arange(7) % 3)
    ours = (feature(one, "pooled", x) for one in (student, teacher))
    squared = np.square(np.subtract(*(one.astype("float64") for one in ours)))
    assert found == pytest.approx(squared.mean(), rel=2e-3)


class Subclassed(keras.Model):
    def __init__(self, width):
        super().__init__()
        self.hidden = layers.Dense(width)
        self.head = layers.Dense(3)

    def call(self, inputs):
        return self.head(self.hidden(inputs))


@pytest.mark.parametrize("is_built", [False, True])
def test_train_on_batch_makes_the_adapter_of_subclassed_models(is_built):
    x, y = RNG.normal(size=(6, 5)).astype("float32"), np.arange(6) % 3
    student, teacher = Subclassed(4), Subclassed(8)
    if is_built:
        student(x), teacher(x)
    logits = {"student_from_logits": True, "teacher_from_logits": True}
    pairs = [("hidden", "hidden")]
    distiller = kd.Distiller(student, teacher, features=pairs, **logits)
    distiller.compile("adam", CROSS_ENTROPY)
    assert np.isfinite(distiller.train_on_batch(x, y)).all()
    assert len(distiller.trainable_variables) == 6  # four, and the adapter's
