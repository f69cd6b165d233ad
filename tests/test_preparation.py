"""Teachers whose inputs or classes are not the student's."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy.special import softmax

import keras_distill as kd
from keras_distill.preparation import function_fingerprint

from .conftest import CLASSES, SPARSE, largest_difference, mlp


def images(size, classes=CLASSES, name="image", activation=None):
    return keras.Sequential(
        [
            keras.Input((size, size, 3), name=name),
            layers.Conv2D(4, 3, strides=2, activation="relu", name="hidden"),
            layers.Flatten(),
            layers.Dense(classes, activation=activation),
        ]
    )


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (24, 8, 8, 3)).astype("uint8")
    return x, rng.integers(CLASSES, size=24)


def scaled(x):
    return keras.ops.cast(x, "float32") / 127.5 - 1.0


def in_numpy(x):
    return np.asarray(x, "float32") / 127.5 - 1.0


def by_hand(teacher, x, size):
    x = keras.ops.image.resize(x.astype("float32"), (size, size), "bilinear")
    return teacher(x / 127.5 - 1.0).numpy()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "preprocess", [scaled, in_numpy, layers.Rescaling(1 / 127.5, -1)]
)
@pytest.mark.parametrize("wrap", ["model", "path", "list", "callable"])
def test_a_teacher_of_another_resolution_teaches_live_and_cached(
    preprocess, wrap, pictures, tmp_path
):
    x, y = pictures
    model = images(16)
    model.save(tmp_path / "teacher.keras")
    given = {
        "model": model,
        "path": tmp_path / "teacher.keras",
        "list": [model],
        "callable": lambda x: model(x),
    }[wrap]
    from_logits = True if wrap == "callable" else None
    teacher = kd.as_teacher(given, from_logits, preprocess=preprocess, resize=(16, 16))
    expected = by_hand(model, x, 16)
    found = softmax(teacher(x, 1.0).logits, -1)
    np.testing.assert_allclose(found, softmax(expected, -1), rtol=1e-4, atol=1e-5)
    if wrap != "model" and preprocess is not in_numpy:
        return
    distiller = kd.Distiller(images(8), teacher, alpha=0.0)
    distiller.compile(keras.optimizers.SGD(0.0), SPARSE)
    soft = distiller.fit(x, y, verbose=0).history["soft_loss"][0]
    cached = kd.Distiller(distiller.student, temperature=4.0, alpha=0.0)
    cached.compile(keras.optimizers.SGD(0.0), SPARSE)
    targets = kd.SoftTargets.write(
        tmp_path / "soft", teacher, x, dtype="float32", verbose=False
    )
    joined = targets.join(tf.data.Dataset.from_tensor_slices((x, y))).batch(24)
    found = cached.fit(joined, verbose=0).history["soft_loss"][0]
    assert found == pytest.approx(soft, rel=1e-4)


def test_another_preparation_of_one_model_is_another_teacher(pictures, tmp_path):
    x, _ = pictures
    model = images(16)
    of = functools.partial(kd.as_teacher, model)
    given = {"preprocess": scaled, "resize": (16, 16), "classes": [2, 0]}
    write = functools.partial(kd.SoftTargets.write, tmp_path, verbose=False)
    write(of(**given), x)
    write(of(**given), x)  # is finished
    assert kd.SoftTargets.open(tmp_path, teacher=of(**given)).manifest["classes"] == 2
    others = {
        "preprocess": in_numpy,
        "classes": [0, 2],
    }
    for key, value in others.items():
        with pytest.raises(ValueError, match=f"the teacher's {key} differ"):
            write(of(**{**given, key: value}), x)
        with pytest.raises(ValueError, match=f"the teacher's {key} differ"):
            kd.SoftTargets.open(tmp_path, teacher=of(**{**given, key: value}))
    with pytest.raises(ValueError, match=r"the teacher's resize differs .*not none"):
        kd.SoftTargets.open(tmp_path, teacher=model)
    with pytest.raises(ValueError, match="the teacher's resize differs"):
        kd.SoftTargets.open(tmp_path, teacher=of(**{**given, "resize": (16, 17)}))


@pytest.mark.parametrize("activation", [None, "softmax"])
@pytest.mark.parametrize("several", [False, True])
def test_the_distribution_among_some_classes_teaches(activation, several, pictures):
    x = pictures[0].astype("float32") / 255.0
    model = images(8, 7, activation=activation)
    teacher = kd.as_teacher([model] if several else model, classes=[5, 1, 3])
    for temperature in (1.0, 4.0):
        z = teacher(x, temperature).logits.numpy().astype("float64")
        p = model(x).numpy().astype("float64")
        whole = p if activation is None else np.log(p)
        whole = softmax(whole / temperature, -1)[:, [5, 1, 3]]
        expected = whole / whole.sum(-1, keepdims=True)
        np.testing.assert_allclose(softmax(z / temperature, -1), expected, atol=1e-6)
    again = kd.as_teacher(teacher, classes=[2, 0])
    expected = softmax(np.asarray(teacher(x, 1.0).logits)[:, [2, 0]], -1)
    np.testing.assert_allclose(softmax(again(x, 1.0).logits, -1), expected, rtol=1e-5)


def test_a_student_of_some_classes_is_told_of_them(pictures):
    x, y = pictures
    message = r"has 3 classes and the teacher 7; .*as_teacher\(teacher, classes="
    with pytest.raises(ValueError, match=message):
        kd.Distiller(images(8, 3), images(8, 7))
    distiller = kd.Distiller(
        images(8, 3), kd.as_teacher(images(8, 7), classes=[6, 0, 2])
    )
    distiller.compile("sgd", SPARSE)
    assert np.isfinite(distiller.fit(x, y % 3, verbose=0).history["loss"][0])


def test_sizes_that_differ_are_told_of_resize(pictures, tmp_path):
    x, y = pictures
    distiller = kd.Distiller(images(8), images(16))
    distiller.compile("sgd", SPARSE)
    before = distiller.get_weights()
    said = r"give as_teacher\(teacher, resize=\(16, 16\)\)"
    with pytest.raises(ValueError, match=said):
        distiller.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match=said):
        kd.SoftTargets.write(tmp_path, images(16), x, verbose=False)
    assert largest_difference(before, distiller.get_weights()) == 0.0
    with pytest.raises(ValueError, match=r"give as_teacher\(teacher, preprocess=fn\)"):
        kd.as_teacher(mlp())(np.ones((2, 5), "float32"), 1.0)


def test_features_are_of_the_prepared_inputs(pictures):
    x, _ = pictures
    model = images(16)
    teacher = kd.as_teacher(model, preprocess=scaled, resize=(16, 16))
    loss = kd.FeatureLoss("hidden", "hidden", adapter="auto")
    bound = kd.Distiller(images(16), teacher, distillation_loss=loss)._state.teacher
    found = bound(x, 1.0).layers["hidden"]
    resized = keras.ops.image.resize(x.astype("float32"), (16, 16), "bilinear")
    expected = model.get_layer("hidden")(resized / 127.5 - 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_teacher_takes_some_of_a_dict_of_inputs(pictures, tmp_path):
    x, y = pictures
    data = {"picture": x, "age": np.full((24, 2), np.nan, "float32")}
    model = images(8)
    teacher = kd.as_teacher(model, inputs=["picture"])
    np.testing.assert_allclose(teacher(data, 1.0).logits, model(x), rtol=1e-5)
    parts = {"picture": keras.Input((8, 8, 3), name="picture")}
    student = keras.Model(
        parts, layers.Dense(CLASSES)(layers.Flatten()(parts["picture"]))
    )
    distiller = kd.Distiller(student, teacher)
    distiller.compile("sgd", SPARSE)
    assert np.isfinite(distiller.fit(data, y, verbose=0).history["loss"][0])
    with pytest.raises(
        ValueError, match="'image' of a dict .* has the inputs 'picture'"
    ):
        kd.as_teacher(model, inputs=["image"])(data, 1.0)
    with pytest.raises(ValueError, match="'image' of a dict .* the data has no dict"):
        kd.as_teacher(model, inputs=["image"])(x, 1.0)


def test_preprocess_may_clean_what_the_student_is_given_as_it_is():
    x = np.ones((8, 8), "float32")
    x[0, 0] = np.nan
    distiller = kd.Distiller(
        keras.Sequential([keras.Input((8,)), layers.Lambda(tf.zeros_like), mlp(4)]),
        kd.as_teacher(mlp(8), preprocess=np.nan_to_num),
        alpha=0.0,
    )
    distiller.compile("sgd")
    assert np.isfinite(distiller.fit(x, verbose=0).history["loss"][0])


def test_a_function_is_known_by_its_code_and_what_it_reads():
    def by(number):
        return lambda x: x / number

    same = function_fingerprint(by(255.0))
    assert same == function_fingerprint(by(255.0))
    others = [
        by(127.5),
        by(np.ones(3)),
        lambda x: x * 2,
        lambda x: x * 3,
        functools.partial(np.clip, a_min=0),
        functools.partial(np.clip, a_min=1),
        np.sqrt,
        np.exp,
        layers.Rescaling(2.0),
        layers.Rescaling(3.0),
        scaled,
    ]
    assert len({same, *map(function_fingerprint, others)}) == len(others) + 1
    assert function_fingerprint(layers.Rescaling(2.0)) == function_fingerprint(
        others[8]
    )


@pytest.mark.parametrize(
    ("preprocess", "sentence"),
    [
        (lambda x: x[:1], "answers for 1 examples, but was asked for 8"),
        (lambda x: None, "returned None; it must return the teacher's inputs"),
    ],
)
def test_a_preprocess_that_loses_the_examples_is_refused(
    preprocess, sentence, pictures
):
    x, y = pictures
    teacher = kd.as_teacher(images(8), preprocess=preprocess)
    distiller = kd.Distiller(images(8), teacher)
    distiller.compile("sgd", SPARSE)
    with pytest.raises(ValueError, match=sentence):
        distiller.fit(x, y, batch_size=8, verbose=0)
