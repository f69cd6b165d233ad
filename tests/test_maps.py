"""Maps of classes whose student and teacher differ in resolution; mean IoU."""

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from scipy.special import log_softmax

import keras_distill as kd
from keras_distill.resizing import nearest, resize, resized_array
from tests.conftest import SPARSE, copy_of

CLASSES, SIDE = 3, 8
rng = np.random.default_rng(0)
X = rng.normal(size=(6, SIDE, SIDE, 3)).astype("float32")
Y = rng.integers(CLASSES, size=(6, SIDE, SIDE))


def at_scale(scale, activation=None, seed=0, classes=CLASSES, side=SIDE):
    """A model whose map of classes has `scale` times the resolution of its input."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((side, side, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    if scale > 1:
        x = layers.Conv2DTranspose(4, scale, strides=scale)(x)
    elif scale < 1:
        x = layers.AveragePooling2D(round(1 / scale))(x)
    outputs = layers.Conv2D(classes, 1, activation=activation, name="map")(x)
    return keras.Model(inputs, outputs)


def numpy_kl(teacher, student, temperature=4.0):
    log_p, log_q = (log_softmax(z / temperature, -1) for z in (teacher, student))
    return temperature**2 * np.sum(np.exp(log_p) * (log_p - log_q), -1)


def by_tensorflow(values, sides):
    return tf.image.resize(values, sides, "bilinear", antialias=True).numpy()


def soft_loss(student, teacher, x, y=None, weight=None, **kwargs):
    """The soft loss that training logs, nothing being learned."""
    compiled = {
        key: kwargs.pop(key) for key in ("run_eagerly", "jit_compile") if key in kwargs
    }
    loss = kwargs.pop("loss", SPARSE)
    distiller = kd.Distiller(student, teacher, **kwargs)
    distiller.compile(keras.optimizers.SGD(0.0), loss, **compiled)
    logs = distiller.train_on_batch(
        x, Y if y is None else y, sample_weight=weight, return_dict=True
    )
    return float(logs["soft_loss"])


@pytest.mark.parametrize("sides", [(16, 24), (7, 30), (4, 2), (5, 7), (8, 6), (1, 1)])
@pytest.mark.parametrize("known", [True, False])
def test_resizing_is_tensorflows(sides, known):
    values = rng.normal(size=(2, 8, 6, 3)).astype("float32")
    expected = by_tensorflow(values, sides)
    shape = (2, 8, 6, 3) if known else (None,) * 4
    spec = [tf.TensorSpec(shape, "float32"), tf.TensorSpec((2,), "int32")]

    @tf.function(input_signature=spec)
    def ours(values, wanted):
        return resize(values, list(sides) if known else tf.unstack(wanted))

    np.testing.assert_allclose(ours(values, np.array(sides)), expected, atol=2e-6)
    np.testing.assert_allclose(resized_array(values, sides), expected, atol=2e-6)


def test_nearest_pixels_are_tensorflows():
    labels = rng.integers(9, size=(2, 6, 5))
    for sides in [(12, 15), (3, 2), (7, 4), (6, 5)]:
        expected = tf.image.resize(labels[..., None], sides, "nearest")[..., 0]
        np.testing.assert_array_equal(nearest(ops.array(labels), sides), expected)


@pytest.mark.parametrize("of_teacher", [2, 0.5, 0.25])
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_soft_loss_is_on_the_teachers_grid(of_teacher, activation):
    student, teacher = at_scale(1), at_scale(of_teacher, seed=1)
    z, t = (m.predict(X, verbose=0).astype("float64") for m in (student, teacher))
    expected = numpy_kl(t, by_tensorflow(z, t.shape[1:3])).mean()
    if activation:  # probabilities go by the logits that they were made of
        student, teacher = (
            at_scale(s, activation, i) for i, s in enumerate((1, of_teacher))
        )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not activation)
    found = soft_loss(student, teacher, X, loss=loss)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("of_teacher", [2, 0.5])
def test_sample_weights_of_pixels_act_on_both_terms(of_teacher):
    student, teacher = at_scale(1), at_scale(of_teacher, seed=1)
    weight = rng.uniform(size=Y.shape).astype("float32") * (
        rng.uniform(size=Y.shape) > 0.4
    )
    z, t = (m.predict(X, verbose=0).astype("float64") for m in (student, teacher))
    sides, counts = t.shape[1:3], (weight > 0)[..., None].astype("float64")
    share = by_tensorflow(counts, sides)
    seen = by_tensorflow(z * counts, sides) / np.maximum(share, 1e-30)
    of_pixel = by_tensorflow(weight[..., None], sides)[..., 0]
    expected = np.mean(numpy_kl(t, seen) * of_pixel)
    assert soft_loss(student, teacher, X, weight=weight) == pytest.approx(
        expected, rel=1e-5
    )
    # Of a whole example, and of each class: as of pixels that share it.
    for given in (weight[:, 0, 0], np.ones(6, "float32")):
        whole = np.broadcast_to(given[:, None, None], Y.shape)
        kl = numpy_kl(t, by_tensorflow(z, sides)).mean((1, 2))
        found = [soft_loss(student, teacher, X, weight=w) for w in (given, whole)]
        assert found == pytest.approx([np.mean(kl * given)] * 2, rel=1e-5)


def test_pixels_of_weight_0_take_no_part_at_another_resolution():
    pixels = layers.Embedding(10, CLASSES, name="own")
    inputs = keras.Input((4, 4), dtype="int32")
    student = keras.Model(inputs, pixels(inputs))
    x = np.zeros((2, 4, 4), "int32")
    x[:, :2, 1:3] = 1
    weight = np.where(x == 1, 0.0, 1.0)
    distiller = kd.Distiller(student, lambda x: tf.random.stateless_normal(
        (tf.shape(x)[0], 8, 8, CLASSES), (1, 2)),
        teacher_from_logits=True, student_from_logits=True)  # fmt: skip
    distiller.compile(keras.optimizers.SGD(1.0), SPARSE)
    before = pixels.get_weights()[0]
    distiller.train_on_batch(x, np.zeros_like(x), weight)
    moved = np.abs(pixels.get_weights()[0] - before).sum(-1)
    assert moved[0] > 0
    assert moved[1] == 0


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "how",
    [
        {"run_eagerly": True},
        {"jit_compile": True},
        {"jit_compile": False},
        {"policy": "mixed_float16"},
        {"policy": "mixed_bfloat16"},
    ],
    ids=str,
)
@pytest.mark.parametrize("side", [SIDE, None])
def test_any_mode_gives_the_same_loss(how, side):
    how = dict(how)
    student, teacher = at_scale(1), at_scale(2, seed=1)
    expected = soft_loss(student, teacher, X)
    keras.config.set_dtype_policy(policy := how.pop("policy", "float32"))
    one, other = at_scale(1, side=side), at_scale(2, seed=1, side=side)
    found = soft_loss(one, other, X, **how)
    assert found == pytest.approx(expected, rel=1e-4 if policy == "float32" else 0.05)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("top_k", "of_teacher"), [(None, 0.5), (2, 2)])
def test_cached_soft_targets_train_as_the_teacher_does(tmp_path, top_k, of_teacher):
    student, teacher = at_scale(1), at_scale(of_teacher, seed=1)
    store = kd.SoftTargets.write(
        tmp_path / "soft", teacher, X, top_k=top_k, verbose=False
    )
    runs = {}
    for name in ("live", "cached"):
        one = copy_of(student)
        distiller = kd.Distiller(one, teacher if name == "live" else None)
        distiller.compile("sgd", SPARSE, metrics=[kd.TeacherAgreement()])
        data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)
        data = data if name == "live" else store.join(data)
        runs[name] = distiller.fit(data, shuffle=False, verbose=0).history
    live, cached = (runs[name]["soft_loss"][0] for name in ("live", "cached"))
    assert runs["live"]["teacher_agreement"] == runs["cached"]["teacher_agreement"]
    if top_k:
        assert 0 < cached <= live * (1 + 1e-6)
    else:
        assert cached == pytest.approx(live, rel=2e-3)  # stored in float16


def test_yes_or_no_of_each_pixel_and_two_classes_at_another_resolution():
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    student, teacher = at_scale(1, classes=1), at_scale(2, seed=1, classes=2)
    z, t = (m.predict(X, verbose=0).astype("float64") for m in (student, teacher))
    z = by_tensorflow(z, t.shape[1:3])
    expected = numpy_kl(t, np.concatenate([np.zeros_like(z), z], -1)).mean()
    y = (Y > 0)[..., None].astype("float32")
    found = soft_loss(student, as_softmax(teacher), X, y, loss=loss)
    assert found == pytest.approx(expected, rel=1e-5)


def as_softmax(model):
    return keras.Model(model.input, layers.Softmax()(model.output))


def test_loss_by_the_label_takes_the_nearest_pixels():
    student, teacher = at_scale(1), at_scale(2, seed=1)
    z, t = (m.predict(X, verbose=0) for m in (student, teacher))
    labels = np.repeat(np.repeat(Y, 2, 1), 2, 2)
    one = kd.DecoupledLoss()
    expected = one.loss_per_example(t, by_tensorflow(z, (16, 16)), 4.0, labels=labels)
    found = soft_loss(student, teacher, X, distillation_loss=one)
    assert found == pytest.approx(float(ops.mean(expected)), rel=1e-5)


def test_ignored_pixels_learn_from_the_teacher():
    student, teacher = at_scale(1), at_scale(2, seed=1)
    loss = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=255)
    y = np.where(rng.uniform(size=Y.shape) < 0.5, 255, Y)
    whole = soft_loss(student, teacher, X)
    assert soft_loss(student, teacher, X, y, loss=loss) == pytest.approx(
        whole, rel=1e-6
    )


def test_maps_of_values_of_two_sizes_are_refused():
    with pytest.raises(
        ValueError, match=r"Only maps of classes are resized: .*Resizing"
    ):
        kd.Distiller(at_scale(1), at_scale(2), output_kinds="values")
    with pytest.raises(ValueError, match="has 3 classes and the teacher 4"):
        kd.Distiller(at_scale(1), at_scale(2, classes=4))


def test_sequences_of_two_lengths_are_refused():
    def tagger(stride):
        return keras.Sequential(
            [keras.Input((8, 2)), layers.Conv1D(3, 2, stride, padding="same")]
        )

    with pytest.raises(ValueError, match="all axes must agree"):
        kd.Distiller(tagger(1), tagger(2), output_kinds="softmax")


# Mean IoU ----------------------------------------------------------------------------


@pytest.mark.parametrize("ignored", [None, 255, 0])
@pytest.mark.parametrize("weighted", [False, True])
def test_mean_iou_is_keras_own(ignored, weighted):
    model, classes = at_scale(1, classes=5), 5
    y = rng.integers(4, size=Y.shape)  # a class is in no label
    y[rng.uniform(size=Y.shape) < 0.3] = 0 if ignored is None else ignored
    weight = rng.integers(3, size=Y.shape) * 1.0 if weighted else None
    metric = keras.metrics.MeanIoU(
        classes, ignore_class=ignored, sparse_y_pred=False, dtype="float64"
    )
    metric.update_state(y, model.predict(X, verbose=0), weight)
    given = (X, y) if weight is None else (X, y, weight)
    data = tf.data.Dataset.from_tensor_slices(given).batch(4)
    found = kd.evaluate(model, data, ignore_class=ignored, timing=False)
    assert found.mean_iou == pytest.approx(float(metric.result()), abs=1e-6)


def test_mean_iou_leaves_out_classes_that_are_nowhere():
    z = np.zeros((1, 2, 2, 4), "float32")
    z[..., 0] = 1.0
    y = np.array([[[0, 0], [0, 1]]])
    found = kd.evaluate(
        lambda x: z, (np.zeros((1, 1)), y), from_logits=True, timing=False
    )
    assert found.mean_iou == pytest.approx((3 / 4 + 0) / 2)


def test_mean_iou_of_a_yes_or_no_map_is_keras_own():
    model = at_scale(1, "sigmoid", classes=1)
    model.get_layer("map").bias.assign([0.01])  # no logit is 0
    y = (Y > 1).astype("float32")
    metric = keras.metrics.BinaryIoU((0, 1), 0.5)
    metric.update_state(y[..., None], model.predict(X, verbose=0))
    for labels in (y, y[..., None]):
        found = kd.evaluate(model, (X, labels), timing=False)
        assert found.kind == "sigmoid"
        assert found.mean_iou == pytest.approx(float(metric.result()), abs=1e-6)


def test_comparison_is_at_the_resolution_of_the_labels():
    student, teacher = at_scale(0.5), at_scale(2, seed=1)
    found = kd.compare(
        {"student": student, "teacher": teacher, "same": at_scale(1)},
        (X, Y),
        teacher=teacher,
        timing=False,
        verbose=False,
    )
    z, t = (
        by_tensorflow(model.predict(X, verbose=0), (SIDE, SIDE))
        for model in (student, teacher)
    )
    metric = keras.metrics.MeanIoU(CLASSES, sparse_y_pred=False)
    metric.update_state(Y, z)
    assert found["student"].mean_iou == pytest.approx(float(metric.result()), abs=1e-6)
    assert found["student"].accuracy == pytest.approx((z.argmax(-1) == Y).mean())
    agreement = (z.argmax(-1) == t.argmax(-1)).mean()
    assert found["student"].teacher_agreement == pytest.approx(agreement)
    assert found["teacher"].teacher_agreement == pytest.approx(1.0)
    assert "mean IoU" in str(found)
    assert '"mean_iou"' in found.to_json()


def test_figures_of_what_is_no_map_have_no_mean_iou():
    tags = keras.Sequential([keras.Input((SIDE, 3)), layers.Dense(CLASSES)])
    found = kd.evaluate(tags, (X[:, 0], Y[:, 0]), timing=False)
    assert found.kind == "softmax"
    assert found.mean_iou is None


# Whole families ----------------------------------------------------------------------


def u_net(width, levels=2, is_whole=True, activation=None):
    """A U-Net; one that is not whole ends at half the resolution of its images."""
    inputs = keras.Input((64, 64, 3))
    skips, x = [], inputs
    for level in range(levels):
        x = layers.Conv2D(width << level, 3, padding="same", activation="relu")(x)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(width << levels, 3, padding="same", activation="relu")(x)
    for level in reversed(range(0 if is_whole else 1, levels)):
        x = layers.Conv2DTranspose(width << level, 2, strides=2)(x)
        x = layers.Concatenate()([x, skips[level]])
        x = layers.Conv2D(width << level, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Conv2D(CLASSES, 1, activation=activation)(x))


def deep_lab(depth, **kwargs):
    """Unmodified, but small."""
    hub = keras_hub.models
    encoder = hub.ResNetBackbone(
        [64], [7], [64, 16, 16], [depth] * 3, [1, 2, 2], "basic_block",
        image_shape=(64, 64, 3),
    )  # fmt: skip
    backbone = hub.DeepLabV3Backbone(
        encoder, "P4", 4, [1, 2], projection_filters=8, image_shape=(64, 64, 3)
    )
    return hub.DeepLabV3ImageSegmenter(backbone, num_classes=CLASSES, **kwargs)


PAIRS = {
    "U-Net, DeepLab": lambda: (u_net(4), deep_lab(1)),
    "half a U-Net, DeepLab": lambda: (u_net(4, is_whole=False), deep_lab(1)),
    "DeepLab, half a U-Net": lambda: (
        deep_lab(1, activation="softmax"),
        u_net(4, is_whole=False, activation="softmax"),
    ),
    "DeepLab, DeepLab": lambda: (deep_lab(1), deep_lab(2)),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("pair", PAIRS)
def test_segmenters_learn_from_one_another(pair, tmp_path):
    student, teacher = PAIRS[pair]()
    images = rng.normal(size=(4, 64, 64, 3)).astype("float32")
    sides = student.output_shape[1:3]
    y = rng.integers(CLASSES, size=(4, *sides))
    y[:, 0] = 255
    is_logits = student.layers[-1].activation is not keras.activations.softmax
    loss = keras.losses.SparseCategoricalCrossentropy(is_logits, ignore_class=255)
    store = kd.SoftTargets.write(tmp_path / "soft", teacher, images, verbose=False)
    data = tf.data.Dataset.from_tensor_slices((images, y)).batch(2)
    found = {}
    for name in ("live", "cached"):
        one = PAIRS[pair]()[0]
        one.set_weights(student.get_weights())
        distiller = kd.Distiller(one, teacher if name == "live" else None)
        distiller.compile(keras.optimizers.SGD(0.01), loss)
        joined = data if name == "live" else store.join(data)
        logs = distiller.fit(joined, epochs=2, shuffle=False, verbose=0).history
        assert np.isfinite(logs["loss"]).all()
        assert logs["soft_loss"][-1] < logs["soft_loss"][0]
        found[name] = logs["soft_loss"][0]
    assert found["cached"] == pytest.approx(found["live"], rel=0.01)
    table = kd.compare(
        {"student": one, "teacher": teacher},
        (images, y),
        teacher=teacher,
        ignore_class=255,
        timing=False,
        verbose=False,
    )
    assert 0 <= table["student"].mean_iou <= 1
    assert table["teacher"].teacher_agreement == pytest.approx(1.0)
    assert table["teacher"].examples == (y != 255).sum()


@pytest.mark.slow
def test_a_search_takes_maps_of_two_sizes(tmp_path):
    found = kd.search(
        lambda space: at_scale(1), (X, Y), (X, Y), teacher=at_scale(2, seed=1),
        loss=SPARSE, max_trials=2, epochs=1, directory=tmp_path / "search",
        n_jobs=1, verbose=False,
    )  # fmt: skip
    assert np.isfinite(found.score)
    assert len(found.trials) == 2
