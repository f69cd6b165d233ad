"""Features by path: any layer of any model, recorded while the model runs once."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill import features, recorded_calls
from tests.conftest import SPARSE, largest_difference

CLASSES = 5


def layers_of_backbone(name):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="c1")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.MaxPooling2D(name="p1")(x)
    x = keras.layers.Conv2D(8, 3, padding="same", name="c2")(x)
    return keras.Model(inputs, x, name=name)


def functional():
    inputs = keras.Input((12, 12, 3))
    x = layers_of_backbone("backbone")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


def sequential():
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            keras.Sequential(
                [
                    keras.layers.Conv2D(8, 3, padding="same", name="c1"),
                    keras.layers.MaxPooling2D(),
                    keras.layers.Conv2D(8, 3, padding="same", name="c2"),
                ],
                name="backbone",
            ),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(CLASSES),
        ]
    )


@keras.saving.register_keras_serializable("test_features")
class Subclassed(keras.Model):
    outputs_are_logits = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.backbone = layers_of_backbone("backbone")
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.blocks = [keras.layers.Dense(8, name="block") for _ in range(2)]
        self.head = keras.layers.Dense(CLASSES)

    def call(self, x, training=None):
        x = self.pool(self.backbone(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.blocks[0](x))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return (
        rng.uniform(size=(32, 12, 12, 3)).astype("float32"),
        rng.integers(0, CLASSES, 32),
    )


def fitted(student, teacher, loss, data, epochs=1, **compiled):
    distiller = kd.Distiller(
        student,
        teacher,
        distillation_loss=loss,
        alpha=0.0,
        student_from_logits=True,
        teacher_from_logits=None if teacher is None else True,
    )
    distiller.compile(keras.optimizers.SGD(0.1), SPARSE, **compiled)
    arrays = (data,) if isinstance(data, tf.data.Dataset) else data
    history = distiller.fit(*arrays, epochs=epochs, shuffle=False, verbose=0)
    return distiller, history.history


@pytest.mark.sampled(1)
@pytest.mark.parametrize("way", ["graph", "eager", "jit"])
@pytest.mark.parametrize("make", [functional, sequential, Subclassed])
def test_a_layer_of_a_nested_backbone_is_matched(make, way, images):
    """Equal to models that give the feature beside their outputs, step by step."""
    x, _ = images
    student, teacher = make(), functional()
    student(x[:2])
    backbone = (
        student.get_layer("backbone") if make is not Subclassed else student.backbone
    )
    start = student.get_weights()
    compiled = {"run_eagerly": way == "eager", "jit_compile": way == "jit"}
    loss = kd.FeatureLoss("backbone/c2", "backbone/c1")
    with pytest.raises(ValueError, match="resolution|shape"):
        fitted(student, teacher, loss, images)
    loss = kd.FeatureLoss("backbone/c2", "backbone/c2")
    distiller, _ = fitted(student, teacher, loss, images, **compiled)
    student.set_weights(start)
    logs = distiller.train_on_batch(*images, return_dict=True)
    after = [variable.numpy() for variable in backbone.trainable_variables]
    student.set_weights(start)

    target = teacher.get_layer("backbone")(x)
    with tf.GradientTape() as tape:
        given = backbone(x, training=True)
        expected = tf.reduce_mean(tf.square(given - target))
    keras.optimizers.SGD(0.1).apply(
        tape.gradient(expected, backbone.trainable_variables),
        backbone.trainable_variables,
    )
    assert logs["soft_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert largest_difference(after, backbone.trainable_variables) < 1e-5


def test_paths_and_shapes_of_a_subclassed_model(images):
    model = Subclassed()
    with pytest.raises(
        ValueError, match=r"give a batch: feature_paths\(model, inputs\)"
    ):
        kd.feature_paths(model)
    found = kd.feature_paths(model, images[0])
    assert found["backbone/c1"] == (None, 12, 12, 8)
    assert found["backbone"] == (None, 6, 6, 8)
    # Two layers have one name, and one of them is called twice.
    assert [path for path in found if "block" in path] == [
        "blocks.0:0",
        "blocks.1",
        "blocks.0:1",
    ]
    assert not any(path.startswith("_") for path in found)
    assert "backbone/c1" in str(found)
    for path, shape in found.items():  # each can be named, and is what it says
        assert features.shapes_of_features(model, [path], "teacher", images[0]) == {
            path: shape
        }


def recurrent():
    tokens = keras.Input((7,), name="tokens")
    x = keras.layers.Embedding(10, 4, mask_zero=True, name="embedding")(tokens)
    a, h, _ = keras.layers.LSTM(
        6, return_sequences=True, return_state=True, name="lstm"
    )(x)
    shared = keras.layers.Dense(6, name="shared")
    x = keras.layers.GlobalAveragePooling1D()(shared(a)) + shared(h)
    return keras.Model(tokens, keras.layers.Dense(3)(x))


@pytest.mark.slow
def test_calls_and_outputs_of_a_layer(images):
    x = np.random.default_rng(0).integers(1, 10, (16, 7))
    x[:, 5:] = 0
    y = np.arange(16) % 3
    student, teacher = recurrent(), recurrent()
    found = kd.feature_paths(teacher)
    assert found["lstm[0]"] == (None, 7, 6)
    assert found["lstm[2]"] == (None, 6)
    assert found["shared:1"] == (None, 6)
    # Called outside of the loop for its shape only, and in it for what counts.
    assert "lstm/lstm_cell[0]" not in found
    expected = {}
    for path in ("shared:1", "lstm[-1]", "lstm[0]"):
        part = [
            features.Recorder(m, [path], "teacher")(lambda m=m: m(x))[1][path]
            for m in (student, teacher)
        ]
        squares = np.mean(np.square(part[0] - part[1]), -1)
        if squares.ndim == 2:  # masked steps do not count
            squares = squares * (x != 0) * x.size / np.sum(x != 0)
        expected[path] = np.mean(squares)
    for path, value in expected.items():
        clone = keras.models.clone_model(student)
        clone.set_weights(student.get_weights())
        _, history = fitted(clone, teacher, kd.FeatureLoss(path, path), (x, y))
        assert history["soft_loss"][0] == pytest.approx(value, rel=1e-4), path


class Several(keras.layers.Layer):
    """Gives a dict of maps, as a feature pyramid does, and numbers that are no feature."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(4, name="inner")
        self.again = keras.layers.TimeDistributed(keras.layers.Dense(4, name="step"))

    def call(self, x):
        @tf.function
        def own(x):
            return self.dense(x)

        return {"P3": own(x), "P4": x * 2.0, "ids": tf.argmax(x, -1)}


def heads():
    inputs = keras.Input((6,))
    found = Several(name="neck")(inputs)
    outputs = {
        "a": keras.layers.Dense(3, name="a")(found["P3"]),
        "b": keras.layers.Dense(2, name="b")(found["P4"]),
    }
    return keras.Model(inputs, outputs)


def test_outputs_by_key_and_what_cannot_be_matched():
    assert list(kd.feature_paths(heads())) == ["neck[P3]", "neck[P4]", "b", "a"]
    wrong = {
        "neck": r"several outputs; say which: \"neck\[P3\]\", \"neck\[P4\]\"",
        "neck[P5]": "names the output 'P5'; it has 'P3', 'P4', 'ids'",
        "neck[ids]": "gives int64, and a feature is a dense tensor of floats",
        "neck/inner": "runs inside a loop or a function of its own",
        "neck:1[P3]": r"names call 1, but it is called 1 time\(s\)",
        "neck/again": "is not called when the teacher runs",
        "nek": "no layer 'nek'; the closest are 'neck'",
        "a/b": "no layer 'a/b'; the closest are",
    }
    for path, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            kd.Distiller(heads(), heads(), distillation_loss=kd.FeatureLoss("a", path))


@pytest.mark.slow
def test_an_unbuilt_student_is_looked_up_on_the_first_batch(images):
    for path, message in (
        ("backbone/c7", "the student has no layer 'backbone/c7'; the closest are"),
        ("backbone/p1", None),
        ("backbone/c1", "shape|resolution"),
    ):
        loss = kd.FeatureLoss(path, "backbone/c2")
        if message is None:
            fitted(Subclassed(), functional(), loss, images)
        else:
            with pytest.raises(ValueError, match=message):
                fitted(Subclassed(), functional(), loss, images)


def test_each_model_runs_forward_once_per_step(images):
    student, teacher = Subclassed(), Subclassed()
    student(images[0])
    teacher(images[0])
    runs = {"student": 0, "teacher": 0}
    for role, model in (("student", student), ("teacher", teacher)):
        conv = model.backbone.get_layer("c1")

        def call(x, role=role, original=conv.call):
            runs[role] += 1
            return original(x)

        conv.call = call
    loss = (
        kd.SoftTargetLoss()
        + kd.FeatureLoss("backbone/c1", "backbone/c1")
        + kd.FeatureLoss("blocks.0:1", "blocks.1")
    )
    distiller, _ = fitted(student, teacher, loss, images, run_eagerly=True)
    before = dict(runs)
    distiller.train_on_batch(*images)
    assert {role: runs[role] - before[role] for role in runs} == dict(
        student=1, teacher=1
    )
    # Nothing is left on the layers, also by a run that fails.
    with pytest.raises(ZeroDivisionError):
        features.Recorder(student, ["blocks.1", "backbone/c1"], "student")(
            lambda: 1 / 0
        )
    assert "call" not in vars(student.blocks[1])
    assert vars(student.backbone.get_layer("c1"))["call"].__name__ == "call"
    assert not recorded_calls._wrapped


@pytest.mark.slow
def test_cached_features_teach_as_live_ones_do(images, tmp_path):
    x, y = images
    teacher = Subclassed()
    teacher(x)
    start = functional()
    loss = kd.SoftTargetLoss() + kd.FeatureLoss("backbone/c2", "backbone/c2")
    data = tf.data.Dataset.from_tensor_slices((x, y))
    names = ["backbone/c2", "blocks.0:1"]
    targets = kd.SoftTargets.write(
        tmp_path / "t", teacher, data.batch(8), layers=names, dtype="float32",
        teacher_from_logits=True,
    )  # fmt: skip
    weights = []
    for one, batches in ((teacher, data), (None, targets.join(data))):
        student = functional()
        student.set_weights(start.get_weights())
        fitted(student, one, loss, batches.batch(16))
        weights.append(student.get_weights())
    assert largest_difference(*weights) < 1e-6


@pytest.mark.sampled(1)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_under_a_mixed_policy(policy, images):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        student = Subclassed()
    finally:
        keras.config.set_dtype_policy(before)
    loss = kd.FeatureLoss("backbone/c2", "backbone/c2")
    _, history = fitted(student, functional(), loss, images, epochs=5)
    assert history["soft_loss"][-1] < 0.9 * history["soft_loss"][0]


def test_two_replicas_equal_one(images, mirrored):
    teacher = sequential()
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            student = sequential()
            loss = kd.FeatureLoss("backbone/c2", "backbone/c2")
            fitted(student, teacher, loss, images)
        weights.append(student.get_weights())
    assert largest_difference(*weights) < 1e-6


@pytest.mark.slow
def test_a_saved_distiller_still_matches_its_paths(images, tmp_path):
    loss = kd.FeatureLoss("blocks.0:1", "blocks.1")
    teacher = Subclassed()
    distiller, _ = fitted(Subclassed(), teacher, loss, images)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    loaded.teacher = teacher
    one, two = (
        d.train_on_batch(*images, return_dict=True) for d in (distiller, loaded)
    )
    assert one["soft_loss"] == pytest.approx(two["soft_loss"], rel=1e-6)


@pytest.mark.slow
def test_in_a_search(images, tmp_path):
    result = kd.search(
        lambda hp: functional(),
        images,
        images,
        teacher=functional(),
        max_trials=2,
        distillation_loss=kd.FeatureLoss("backbone/c2", "backbone/c2"),
        loss=SPARSE,
        directory=tmp_path / "search",
        epochs=1,
        n_jobs=1,
        verbose=False,
    )
    assert (result.trials["status"] == "COMPLETED").all()
