"""Features of different shapes, and the losses that compare them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.losses import adapters
from tests.conftest import CLASSES, SPARSE, mlp


def convnet(width, strides=1, size=8, kind=2, pool=True):
    conv = getattr(keras.layers, f"Conv{kind}D")
    inputs = keras.Input((size,) * kind + (2,))
    maps = conv(width, 3, strides, "same", activation="relu", name="maps")(inputs)
    vector = getattr(keras.layers, f"GlobalAveragePooling{kind}D")(name="pool")(maps)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(vector))


def unit(x, axis=-1):
    length = np.sqrt((x * x).sum(axis, keepdims=True))
    return x / np.where(length > 0, length, 1)


def huber(x):
    return np.where(abs(x) < 1, 0.5 * x * x, abs(x) - 0.5)


def of_attention(t, s, p=2):
    q = [unit((abs(x) ** p).sum(-1).reshape(len(x), -1)) for x in (t, s)]
    return ((q[0] - q[1]) ** 2).mean()


def of_similarity(t, s):
    flat = [x.reshape(len(x), -1) for x in (t, s)]
    g = [unit(x @ x.T) for x in flat]
    return ((g[0] - g[1]) ** 2).sum() / len(t) ** 2


def of_relation(t, s):
    found = []
    for x in (t, s):
        x = x.reshape(len(x), -1, x.shape[-1]).mean(1)
        e = x[None] - x[:, None]
        d = np.sqrt((e * e).sum(-1))
        cosines = np.stack([unit(row) @ unit(row).T for row in e])
        found.append((d / d[d > 0].mean(), cosines))
    (d_t, a_t), (d_s, a_s) = found
    return 25 * huber(d_s - d_t).mean() + 50 * huber(a_s - a_t).mean()


def of_normalized(t, s):
    t, s = ((x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) for x in (t, s))
    return ((t - s) ** 2).mean() / 2


LOSSES = {
    "attention": (kd.AttentionTransferLoss(), of_attention),
    "attention p=1": (
        kd.AttentionTransferLoss(p=1.0),
        lambda t, s: of_attention(t, s, 1),
    ),
    "similarity": (kd.SimilarityLoss(), of_similarity),
    "relation": (kd.RelationLoss(), of_relation),
    "normalized": (kd.NormalizedFeatureLoss(), of_normalized),
    "cosine": (kd.CosineLoss(), lambda t, s: 1 - (unit(t) * unit(s)).sum(-1).mean()),
    "features": (kd.FeatureLoss(), lambda t, s: ((t - s) ** 2).mean()),
    "mae": (kd.FeatureLoss(loss="mae"), lambda t, s: abs(t - s).mean()),
    "huber": (
        kd.FeatureLoss(loss=keras.losses.Huber(reduction="sum")),
        lambda t, s: huber(t - s).mean(),
    ),
}


def value_and_gradient(loss, t, s, **also):
    s = tf.constant(s)
    with tf.GradientTape() as tape:
        tape.watch(s)
        value = tf.reduce_mean(loss.loss_per_example(t, s, **also))
    return float(value), tape.gradient(value, s).numpy()


@pytest.mark.parametrize("shape", [(5, 6), (4, 3, 5), (3, 2, 3, 4)])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_equal_float64(name, shape):
    if "attention" in name and len(shape) == 2:
        pytest.skip("vectors have no positions")
    loss, reference = LOSSES[name]
    t, s = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    value, gradient = value_and_gradient(loss, t, s)
    wide = t.astype("float64"), s.astype("float64")
    assert value == pytest.approx(reference(*wide), rel=1e-5)
    expected = np.zeros(shape)
    for index in np.ndindex(shape):
        step = np.zeros(shape)
        step[index] = 1e-5
        ends = [reference(wide[0], wide[1] + sign * step) for sign in (1, -1)]
        expected[index] = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("name", LOSSES)
def test_degenerate_features_give_finite_values_and_gradients(name):
    loss, _ = LOSSES[name]
    some = np.random.default_rng(1).normal(size=(3, 4, 5)).astype("float32")
    equal = np.repeat(some[:1], 3, 0)
    for t, s in (
        (some, 0 * some),
        (0 * some, some),
        (0 * some, 0 * some),
        (some, equal),
        (equal, some),
        (some[:1], some[1:2]),
        ((300 * some).astype("float16"), (1000 * some[::-1]).astype("float16")),
        (some, some),
    ):
        value, gradient = value_and_gradient(loss, t, s)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        if loss.compares_examples and len(t) == 1:
            assert value == 0.0
            assert abs(gradient).max() == 0.0
    assert value == pytest.approx(0.0, abs=1e-6)
    if name not in ("features", "mae", "huber"):  # whose gradients square sizes, too
        far, _ = value_and_gradient(loss, 1e25 * some, 1e25 * some[::-1])
        near, _ = value_and_gradient(loss, some, some[::-1])
        assert far == pytest.approx(near, rel=1e-4)


@pytest.mark.parametrize("loss", [kd.SimilarityLoss(), kd.RelationLoss()])
def test_examples_and_positions_of_weight_0_count_for_nothing(loss):
    t, s = np.random.default_rng(2).normal(size=(2, 6, 3, 5)).astype("float32")
    few = loss.loss_per_example(t[:4], s[:4])
    weight = np.array([1, 2, 1, 1, 0, 0], "float32")
    s[4:] = np.inf
    student = tf.constant(s)
    with tf.GradientTape() as tape:
        tape.watch(student)
        many = loss.loss_per_example(t, student, weight=weight)
        total = tf.reduce_sum(many * weight)
    np.testing.assert_allclose(many[:4], few, rtol=1e-5)
    assert np.abs(tape.gradient(total, student)[4:]).max() == 0.0
    s = s[:4]
    by_position = np.ones((4, 3), "float32")
    by_position[:, 2] = 0.0
    short = loss.loss_per_example(t[:4, :2], s[:, :2])
    s[:, 2] = 99.0
    masked = loss.loss_per_example(t[:4], s, weight=by_position)
    assert masked.shape == (4, 3)
    np.testing.assert_allclose(masked[:, 0], short, rtol=1e-5)
    padded = tf.constant(s)
    padded._keras_mask = tf.constant(by_position > 0)
    by_mask = loss.loss_per_example(t[:4], padded, weight=np.ones(4, "float32"))
    np.testing.assert_allclose(by_mask, short, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(8, 4), (5, 3), (3, 7), (6, 6)])
@pytest.mark.parametrize("known", [True, False])
def test_grids_meet_at_the_smaller_size_by_area(sizes, known):
    big, small = np.random.default_rng(3).normal(size=(2, 2, 12, 12, 3))
    one = big[:, : sizes[0], : sizes[1]]
    other = small[:, : sizes[1], : sizes[0]]
    spec = [tf.TensorSpec((None, None, None, 3), "float64")] * 2
    call = adapters.to_one_grid if known else tf.function(adapters.to_one_grid, spec)
    for found, given in zip(call(one, other), (one, other), strict=True):
        smaller = min(sizes)
        assert found.shape == (2, smaller, smaller, 3)
        expected = given
        for axis in (1, 2):  # each repeated to a common multiple, then averaged
            size = expected.shape[axis]
            parts = np.repeat(expected, smaller, axis)
            shape = (*expected.shape[:axis], smaller, size, *expected.shape[axis + 1 :])
            expected = parts.reshape(shape).mean(axis + 1)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


SHAPES = {
    "wider map": ((None, 8, 8, 4), (None, 8, 8, 6)),
    "free sizes": ((None, None, None, 4), (None, None, None, 6)),
    "other grid": ((None, 8, 6, 4), (None, 4, 12, 4)),
    "volume": ((None, 4, 4, 4, 2), (None, 2, 2, 2, 3)),
    "vector of map": ((None, 8, 8, 4), (None, 6)),
    "map of vector": ((None, 6), (None, 8, 8, 4)),
    "sequence": ((None, None, 4), (None, 9, 6)),
}


@pytest.mark.parametrize(
    "kind", [kd.FeatureLoss, kd.NormalizedFeatureLoss, kd.CosineLoss]
)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_auto_brings_shapes_together(shapes, kind):
    with pytest.raises(ValueError, match='pass adapter="auto"'):
        kind("a", "b").bind(*shapes)
    loss = kind("a", "b", adapter="auto")
    loss.bind(None, None)
    assert loss.trainable_layers == []
    loss.bind(shapes[0], None)
    loss.bind(*shapes)
    loss.bind(*shapes)
    assert len(loss.trainable_layers) == (shapes[0][-1] != shapes[1][-1])
    s, t = (
        np.random.normal(size=[size or 9 for size in (3, *shape[1:])]).astype("float16")
        for shape in shapes
    )
    values = loss.loss_per_example(t, s)
    assert values.dtype == "float32"
    assert values.shape[0] == 3
    wide = (*shapes[1][:-1], 99)
    with pytest.raises(ValueError, match="make a new distiller for this teacher"):
        loss.bind(shapes[0], wide)
    again = kind.from_config(loss.get_config())
    again.bind(None, None)
    assert [layer.units for layer in again.trainable_layers] == [
        layer.units for layer in loss.trainable_layers
    ]


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        (((None, 5, 4), (None, 6, 4)), "sequences of different lengths"),
        (((None, 5, 4), (None, 6)), "of different kinds; give an adapter"),
        (((None, 5, 4), (None, 6, 6, 4)), "of different kinds; give an adapter"),
        (((None, 4, None), (None, 4, 3)), "needs to know how many channels"),
    ],
)
def test_what_auto_cannot_is_refused(shapes, sentence):
    with pytest.raises(ValueError, match=sentence):
        kd.FeatureLoss("a", "b", adapter="auto").bind(*shapes)


@pytest.mark.parametrize("shapes", [((2, 1), (2, 5)), ((2, 4, 4, 1), (2, 4, 4, 3))])
@pytest.mark.parametrize(
    "kind", [kd.FeatureLoss, kd.NormalizedFeatureLoss, kd.CosineLoss]
)
def test_nothing_is_compared_by_broadcasting(shapes, kind):
    s, t = map(np.ones, shapes)
    with pytest.raises(ValueError, match="before its adapter is made; call"):
        kind("a", "b", "auto").loss_per_example(t, s)
    with pytest.raises(ValueError, match="compares features of one shape, got some"):
        kind().loss_per_example(t, s)


def test_projection_is_no_argument():
    with pytest.raises(TypeError, match="projection"):
        kd.FeatureLoss("a", "b", projection=True)


def test_channels_first():
    loss = kd.FeatureLoss("a", "b", adapter="auto")
    attention = kd.AttentionTransferLoss()
    s, t = np.random.normal(size=(3, 4, 8, 8)), np.random.normal(size=(3, 6, 4, 4))
    last = [np.moveaxis(x, 1, -1) for x in (t, s)]
    expected = attention.loss_per_example(*last)
    keras.config.set_image_data_format("channels_first")
    try:
        loss.bind((None, 4, 8, 8), (None, 6, 4, 4))
        assert loss.trainable_layers[0].kernel.shape == (4, 6)
        assert loss.loss_per_example(t, s).shape == (3, 4, 4)
        np.testing.assert_allclose(attention.loss_per_example(t, s), expected)
    finally:
        keras.config.set_image_data_format("channels_last")


OWN = {
    "layer": lambda: keras.layers.Conv2D(6, 3, 2, "same"),
    "model": lambda: keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            keras.layers.Conv2D(6, 1, 2),
            keras.layers.BatchNormalization(),
        ]
    ),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("adapter", ["auto", *OWN])
def test_adapters_are_trained_saved_and_belong_to_one_distiller(adapter, tmp_path):
    x = np.random.normal(size=(8, 8, 8, 2)).astype("float32")
    y = np.arange(8) % CLASSES
    given = OWN[adapter]() if adapter in OWN else adapter
    hint = kd.FeatureLoss("maps", "maps", given, loss=keras.losses.Huber())
    student, teacher = convnet(4), convnet(6, 2)
    one, other = (
        kd.Distiller(student, teacher, distillation_loss=kd.SoftTargetLoss() + hint)
        for _ in range(2)
    )
    layer, theirs = (each.loss_layers[0] for each in (one, other))
    assert layer is not theirs
    assert layer is not given
    assert hint.trainable_layers == []
    assert not {id(v) for v in student.variables} & {id(v) for v in layer.variables}
    before = layer.get_weights()
    one.compile(keras.optimizers.Adam(gradient_accumulation_steps=2), SPARSE)
    one.fit(x, y, batch_size=4, verbose=0)
    assert all(
        np.abs(a - b).max() > 0
        for a, b in zip(before, layer.get_weights(), strict=True)
    )
    one.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    for a, b in zip(
        layer.get_weights(), loaded.loss_layers[0].get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    loaded.teacher = teacher
    logs = loaded.train_on_batch(x, y, return_dict=True)
    with pytest.raises(ValueError, match="new distiller|all axes but the batch"):
        loaded.teacher = convnet(7, 2)
    assert np.isfinite(logs["soft_loss"])


def test_an_adapter_that_does_not_fit_is_refused():
    wrong = keras.layers.Dense(5)
    with pytest.raises(
        ValueError, match=r"the adapter 'dense.*' gives features of shape"
    ):
        kd.FeatureLoss("a", "b", wrong).bind((None, 4), (None, 6))
    with pytest.raises(ValueError, match="does not take the student's features"):
        kd.FeatureLoss("a", "b", keras.layers.Conv2D(6, 1)).bind((None, 4), (None, 6))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("setting", ["eager", "jit", "mixed", "replicas"])
def test_every_loss_trains(setting, mirrored):
    x = np.random.default_rng(4).normal(size=(8, 8, 8, 2)).astype("float32")
    y = np.arange(8) % CLASSES
    total = kd.SoftTargetLoss()
    for loss in (
        kd.FeatureLoss("maps", "maps", "auto", loss="mae"),
        kd.AttentionTransferLoss("maps", "maps"),
        kd.SimilarityLoss("maps", "pool"),
        kd.RelationLoss("pool", "pool"),
        kd.NormalizedFeatureLoss("maps", "pool", "auto"),
        kd.CosineLoss("pool", "pool", "auto"),
    ):
        total = total + 0.1 * loss
    if setting == "mixed":
        keras.config.set_dtype_policy("mixed_float16")

    def make():
        distiller = kd.Distiller(convnet(4), convnet(6, 2), distillation_loss=total)
        distiller.compile(
            keras.optimizers.SGD(0.01),
            SPARSE,
            run_eagerly=setting == "eager",
            jit_compile=setting == "jit",
        )
        return distiller

    if setting == "replicas":
        with mirrored.scope():
            distiller = make()
    else:
        distiller = make()
    before = [layer.get_weights()[0] for layer in distiller.loss_layers]
    assert len(before) == 3
    weight = np.array([1, 1, 1, 0, 1, 1, 1, 0], "float32")
    logs = distiller.fit(x, y, sample_weight=weight, batch_size=8, verbose=0).history
    assert np.isfinite(logs["soft_loss"][0])
    for layer, start in zip(distiller.loss_layers, before, strict=True):
        assert layer.kernel.dtype == "float32"
        assert np.isfinite(layer.get_weights()[0]).all()
        assert np.abs(layer.get_weights()[0] - start).max() > 0


@pytest.mark.parametrize(
    "loss",
    [
        kd.AttentionTransferLoss("a", "b", p=3.0),
        kd.SimilarityLoss("a", "b"),
        kd.RelationLoss("a", "b", 1.0, 2.0),
        kd.NormalizedFeatureLoss("a", "b", "auto"),
        kd.CosineLoss("a", "b", "auto"),
        kd.FeatureLoss("a", "b", loss="mae"),
        kd.FeatureLoss(
            "a", "b", keras.layers.Dense(3), keras.losses.mean_absolute_error
        ),
        kd.FeatureLoss("a", "b", loss=keras.losses.Huber(0.3)),
    ],
)
def test_config_is_whole(loss):
    saved = keras.saving.serialize_keras_object(2.0 * loss)
    ((weight, again),) = keras.saving.deserialize_keras_object(saved).terms
    assert weight == 2.0
    assert type(again) is type(loss)
    assert keras.saving.serialize_keras_object(again) == saved["config"]["terms"][0][1]
    assert type(loss.copied()) is type(loss)


@pytest.mark.slow
def test_from_cached_layers_and_on_outputs(tmp_path, data):
    x, y = data
    teacher = mlp(9)
    pairs = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    soft = kd.SoftTargets.write(tmp_path / "soft", teacher, pairs, layers=["hidden"])
    total = kd.SoftTargetLoss() + kd.CosineLoss("hidden", "hidden", "auto")
    total = total + kd.SimilarityLoss("hidden", "hidden") + kd.RelationLoss()
    distiller = kd.Distiller(mlp(6), distillation_loss=total)
    distiller.compile("adam", SPARSE)
    logs = distiller.fit(soft.join(pairs.unbatch()).batch(16), verbose=0).history
    assert np.isfinite(logs["soft_loss"][0])
    assert distiller.loss_layers[0].units == 9
