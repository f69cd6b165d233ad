"""Which layers of two models to match, suggested; and `features=`, which takes it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from tests.conftest import SPARSE, largest_difference, mlp

CLASSES = 3


def cnn(widths, size=16, name="c"):
    inputs = keras.Input((size, size, 3))
    x = layers.Rescaling(2.0)(inputs)
    for i, width in enumerate(widths):
        x = layers.Conv2D(width, 3, padding="same", name=f"{name}{i}_a")(x)
        x = layers.ReLU(name=f"{name}{i}_b")(x)
        x = layers.ZeroPadding2D()(x)
        x = layers.Conv2D(width, 3, 2, name=f"{name}{i}_down")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


class Block(layers.Layer):
    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, width // 2)
        self.mlp = layers.Dense(width)
        self.norm = layers.LayerNormalization()

    def build(self, shape):
        self.attention.build(shape, shape)
        self.mlp.build(shape)
        self.norm.build(shape)

    def call(self, x):
        return self.norm(self.mlp(x + self.attention(x, x)))


def transformer(width, blocks, length=6):
    inputs = keras.Input((length,))
    x = layers.Embedding(10, width)(inputs)
    for i in range(blocks):
        x = Block(width, name=f"block_{i}")(x)
    x = layers.GlobalAveragePooling1D(name="pooled")(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (
            lambda: cnn((4, 8)),
            lambda: cnn((8, 16, 32), name="t"),
            [("c0_b", "t0_b"), ("c1_b", "t1_b"), ("c1_down", "t2_b")],
        ),
        (  # of images of another size, by how often they were halved
            lambda: cnn((4, 8)),
            lambda: cnn((8, 16), 32, "t"),
            [("c0_b", "t0_b"), ("c1_b", "t1_b"), ("c1_down", "t1_down")],
        ),
        (
            lambda: transformer(4, 2),
            lambda: transformer(8, 4),
            [("block_0", "block_1"), ("block_1", "block_3")],
        ),
        (
            lambda: transformer(4, 1),
            lambda: transformer(8, 3),
            [("block_0", "block_2")],
        ),
        (
            lambda: transformer(4, 3),
            lambda: transformer(8, 3),
            [("block_0", "block_0"), ("block_1", "block_1"), ("block_2", "block_2")],
        ),
    ],
)
def test_by_stage_or_by_depth(student, teacher, expected):
    student, teacher = student(), teacher()
    pairs = kd.suggest_feature_pairs(student, teacher)
    assert pairs == expected
    first, _, *rows = str(pairs).splitlines()
    assert first.split() == ["student", "shape", "teacher", "shape"]
    assert len(rows) == len(expected)
    assert expected[0][0] in rows[0]
    kd.Distiller(student, teacher, features=pairs)  # all of them fit


def test_of_a_decoder_only_the_way_down_counts():
    def unet(width):
        inputs = keras.Input((None, None, 3))
        a = layers.Conv2D(width, 3, padding="same", name="a")(inputs)
        b = layers.Conv2D(width, 3, 2, padding="same", name="b")(a)
        up = layers.UpSampling2D(name="up")(b)
        x = layers.Concatenate(name="both")([a, up])
        return keras.Model(inputs, layers.Conv2D(CLASSES, 1, name="out")(x))

    assert kd.suggest_feature_pairs(unet(4), unet(8)) == [("a", "a"), ("b", "b")]


def test_what_has_nothing_in_common_is_refused():
    bare = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="no features that could be matched by stage"):
        kd.suggest_feature_pairs(bare, cnn((4,)))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(16, 16, 16, 3)).astype("float32")
    return x, np.arange(16) % CLASSES


@pytest.mark.slow
def test_features_auto_is_the_mean_over_the_pairs(images, tmp_path):
    student, teacher = cnn((4, 8)), cnn((8, 16), name="t")
    pairs = kd.suggest_feature_pairs(student, teacher)
    distiller = kd.Distiller(student, teacher, features="auto", alpha=0.0)
    assert [weight for weight, _ in distiller.features.terms] == [1 / 3] * 3
    distiller.compile(keras.optimizers.SGD(0.0), SPARSE)
    # Adapters are trained, and not in the student.
    assert len(distiller.trainable_variables) == len(student.trainable_variables) + 6
    logs = distiller.train_on_batch(*images, return_dict=True)
    by_hand = kd.SoftTargetLoss() + sum(
        (1 / 3) * kd.NormalizedFeatureLoss(*pair, adapter="auto") for pair in pairs
    )
    other = kd.Distiller(student, teacher, distillation_loss=by_hand, alpha=0.0)
    other.compile(keras.optimizers.SGD(0.0), SPARSE)
    for ours, theirs in zip(other.loss_layers, distiller.loss_layers, strict=True):
        ours.set_weights(theirs.get_weights())
    expected = other.train_on_batch(*images, return_dict=True)
    assert logs["soft_loss"] == pytest.approx(expected["soft_loss"], rel=1e-6)

    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    loaded.teacher = teacher
    again = loaded.train_on_batch(*images, return_dict=True)
    assert again["soft_loss"] == pytest.approx(logs["soft_loss"], rel=1e-6)


def test_features_beside_losses_by_output(data):
    x, y = data

    def heads(width):
        inputs = keras.Input((8,))
        hidden = layers.Dense(width, name="hidden")(inputs)
        outputs = {
            "a": layers.Dense(3, name="a")(hidden),
            "b": layers.Dense(1, name="b")(hidden),
        }
        return keras.Model(inputs, outputs)

    student, teacher = heads(4), heads(8)
    features = 0.5 * kd.FeatureLoss("hidden", "hidden", adapter="auto")
    distiller = kd.Distiller(student, teacher, features=features, alpha=0.0)
    distiller.compile(keras.optimizers.SGD(0.0), {"a": SPARSE, "b": "mse"})
    labels = {"a": y % 3, "b": np.ones(len(y), "float32")}
    logs = distiller.train_on_batch(x, labels, return_dict=True)
    without = kd.Distiller(student, teacher, alpha=0.0)
    without.compile(keras.optimizers.SGD(0.0), {"a": SPARSE, "b": "mse"})
    alone = without.train_on_batch(x, labels, return_dict=True)
    adapted = distiller.loss_layers[0](student.get_layer("hidden")(x))
    difference = adapted - teacher.get_layer("hidden")(x)
    expected = alone["soft_loss"] + 0.5 * float(tf.reduce_mean(difference**2))
    assert logs["soft_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_cached_features_of_pairs(images, tmp_path):
    teacher = cnn((8, 16), name="t")
    pairs = [("c1_b", "t1_b")]
    data = tf.data.Dataset.from_tensor_slices(images)
    targets = kd.SoftTargets.write(
        tmp_path / "t", teacher, data.batch(8), layers=["t1_b"], verbose=False
    )
    distiller = kd.Distiller(cnn((4, 8)), features=pairs)
    distiller.compile("adam", SPARSE)
    distiller.fit(targets.join(data).batch(8), verbose=0)
    assert len(distiller.loss_layers) == 1
    before = distiller.loss_layers[0].get_weights()
    distiller.fit(targets.join(data).batch(8), verbose=0)
    assert largest_difference(before, distiller.loss_layers[0].get_weights()) > 0


@pytest.mark.slow
def test_features_auto_in_a_search(data, tmp_path):
    def searched(directory, **arguments):
        return kd.search(
            lambda hp: mlp(6), data, data, max_trials=2, epochs=1, n_jobs=1,
            directory=tmp_path / directory, verbose=False, **arguments,
        )  # fmt: skip

    teacher = mlp(9)
    result = searched("one", teacher=teacher, features="auto")
    assert (result.trials["status"] == "COMPLETED").all()
    assert len(result.distiller.features.terms) == 1
    targets = kd.SoftTargets.write(tmp_path / "t", teacher, data[0], verbose=False)
    with pytest.raises(
        ValueError, match="the teacher is not one keras.Model; give pairs"
    ):
        searched("two", soft_targets=targets, features="auto")


def test_wrong_features_are_refused():
    for wrong, error, message in (
        ("all", ValueError, 'features must be "auto", got'),
        ([("hidden",)], ValueError, "must be 2 str"),
        ([], ValueError, "features must be"),
        (kd.SoftTargetLoss(), ValueError, "SoftTargetLoss, which names no layers"),
        (kd.FeatureLoss(), ValueError, "FeatureLoss, which names no layers"),
        ([("no", "hidden")], ValueError, "the student has no layer 'no'"),
    ):
        with pytest.raises(error, match=message):
            kd.Distiller(mlp(6), mlp(9), features=wrong)
    with pytest.raises(
        ValueError, match="the teacher is not one keras.Model; give pairs"
    ):
        kd.Distiller(mlp(6), features="auto")
    with pytest.raises(
        ValueError, match="the teacher is not one keras.Model; give pairs"
    ):
        kd.Distiller(mlp(6), [mlp(9), mlp(9)], features="auto")
