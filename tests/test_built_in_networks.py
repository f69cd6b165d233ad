"""Networks by name, and one's own: built for whatever the examples are."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.commands import built_in, input_layers, students

N = 24


def data_of(x, classes=3, **known):
    """Not in batches, as the commands have it."""
    y = np.arange(N) % classes
    split = tf.data.Dataset.from_tensor_slices((x, y))
    shape = tf.nest.map_structure(lambda s: tuple(s.shape), split.element_spec[0])
    if isinstance(x, dict):
        shape = {name: tuple(one.shape) for name, one in split.element_spec[0].items()}
    else:
        shape = tuple(split.element_spec[0].shape)
    names = [str(c) for c in range(classes)]
    sizes = dict.fromkeys(("train", "validation", "test"), N)
    return kd.datasets.Data("d", split, split, split, names, shape, sizes, **known)


def numbers(*shape):
    return np.random.default_rng(0).normal(3.0, 50.0, (N, *shape)).astype("float32")


COLUMNS = {
    "age": numbers(),
    "petal length (cm)": np.arange(N),
    "petal length [cm]": numbers(),
    "city": np.array(["rome", "oslo", ""] * 8),
}
TEXTS = np.array(["", "a fine film", "dull", "not a fine film at all", "!", "fine"] * 4)
SOUND = np.random.default_rng(0).uniform(-1, 1, (N, 1600)).astype("float32")
DATA = {
    "images": (data_of(np.abs(numbers(16, 16, 3)) / 500), ["cnn:4,8", "mlp:8"]),
    "text": (data_of(TEXTS), ["mlp:8,4", "cnn:4"]),
    "vectors": (data_of(numbers(5)), ["mlp:8", "mlp:8,4"]),
    "columns": (data_of(COLUMNS), ["mlp:8"]),
    "sound": (data_of(SOUND, sample_rate=8000), ["cnn:4,8", "mlp:8"]),
    "sequences": (data_of(numbers(20, 4)), ["cnn:4", "mlp:8"]),
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in DATA for name in DATA[kind][1]]
)
def test_every_kind_of_data_has_networks(kind, name, tmp_path):
    data = DATA[kind][0]
    assert input_layers.kind_of(data) == kind
    model = built_in.builder(name, data)()
    x = next(iter(data.train.batch(N)))[0]
    answer = model(x).numpy()
    assert answer.shape == (N, 3)
    assert np.isfinite(answer).all()
    # The answer for an example does not depend on those beside it.
    alone = np.concatenate(
        [model(part).numpy() for part, _ in data.train.batch(1).take(3)]
    )
    np.testing.assert_allclose(alone, answer[:3], atol=2e-5)
    # What was learned of the data goes with the file.
    model.save(tmp_path / "network.keras")
    with input_layers.names_may_differ():
        again = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_allclose(again(x).numpy(), answer, atol=1e-6)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model(x, training=True) ** 2)
    gradients = tape.gradient(total, model.trainable_variables)
    assert all(np.isfinite(tf.convert_to_tensor(g)).all() for g in gradients)


def test_numbers_are_normalized_by_training_data_alone():
    x = numbers(5)
    x[:, 2] = 7.0  # says nothing
    x[3, 1] = np.nan
    model = built_in.builder("mlp:8", data_of(x))()
    layer = next(one for one in model.layers if "normalization" in one.name)
    np.testing.assert_allclose(np.ravel(layer.mean), np.nanmean(x, 0), rtol=1e-5)
    variance = np.nanvar(x, 0)
    variance[2] = 1.0
    np.testing.assert_allclose(np.ravel(layer.variance), variance, rtol=1e-4)


def test_images_are_centred_by_channel_for_convolutions():
    x = np.abs(numbers(16, 16, 3)) / 500 + [0.0, 0.5, 2.0]
    model = built_in.builder("cnn:4", data_of(x.astype("float32")))()
    layer = model.layers[0]
    np.testing.assert_allclose(np.ravel(layer.mean), x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(np.ravel(layer.variance), x.var((0, 1, 2)), rtol=1e-4)
    assert model.inputs[0].name == "image"


def test_columns_are_asked_by_names_that_servers_take():
    names = input_layers.input_names(["a b", "a-b", "1st", "ü", "class", "x"])
    assert list(names.values()) == ["a_b", "a_b_", "column_1st", "column", "class", "x"]
    assert all(name.isidentifier() for name in names.values())


@pytest.mark.parametrize("channels", [1, 3])
def test_networks_of_keras_take_images_from_0_to_1(channels):
    data = data_of(np.ones((N, 32, 32, channels), "float32"))
    model = built_in.builder("applications:MobileNetV3Small", data)()
    assert model.output_shape == (None, 3)
    scaled = model.get_layer("scaled")
    assert scaled.scale == 2.0
    norms = [
        layer
        for layer in model.layers[-1].layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert {layer.momentum for layer in norms} == {0.9}


@pytest.mark.parametrize(
    ("name", "scale"), [("MobileNetV3Small", 2.0), ("EfficientNetB0", 255.0)]
)
def test_networks_that_divide_by_255_themselves_are_given_that(
    name, scale, monkeypatch
):
    """A network with what matters here of the real one, whose building takes seconds."""
    preprocessing = name.startswith("MobileNet")

    def fast(include_preprocessing=True, **given):
        image = keras.Input(given["input_shape"])
        divided = not preprocessing or include_preprocessing
        x = keras.layers.Rescaling(1 / 255.0)(image) if divided else image
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(image, keras.layers.Dense(given["classes"])(x))

    def without(**given):
        return fast(**given)

    monkeypatch.setattr(keras.applications, name, fast if preprocessing else without)
    data = data_of(np.ones((N, 32, 32, 1), "float32"))
    model = built_in.builder(f"applications:{name}", data)()
    assert model.get_layer("scaled").scale == scale


@pytest.mark.slow
@pytest.mark.parametrize("name", built_in.applications())
def test_every_network_of_keras_is_built(name):
    smallest = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}
    size = smallest.get(name, 32)
    if "XLarge" in name or name in ("EfficientNetB7", "NASNetLarge", "ConvNeXtLarge"):
        pytest.skip("takes gigabytes")
    data = data_of(np.ones((N, size, size, 1), "float32"))
    model = built_in.builder(f"applications:{name}", data)()
    answer = model(np.ones((1, size, size, 1), "float32")).numpy()
    assert answer.shape == (1, 3)
    assert np.isfinite(answer).all()
    keras.backend.clear_session()


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (
            "vectors",
            "cnn:8",
            "is for images, sound and text, and the examples are numb",
        ),
        ("columns", "cnn:8", "the columns age, petal"),
        ("text", "applications:VGG16", "is for images, and the examples are text"),
        ("images", "applications:Nothing", "there is no network 'Nothing'"),
        ("images", "applications:VGG16", "give a larger --image-size"),
        ("images", "cnn:4,4,4,4,4", "needs 32 x 32 pixels, and these are 16 x 16"),
        ("images", "cnn:8;16", "there is no built-in network 'cnn:8;16'"),
        ("images", "mlp", "there is no built-in network 'mlp'"),
        ("images", "mlp:0", "must be >= 1"),
    ],
)
def test_a_name_that_does_not_fit_is_a_sentence(kind, name, message):
    assert built_in.is_name(name)
    with pytest.raises(ValueError, match=message):
        built_in.builder(name, DATA[kind][0])()


def test_data_of_other_kinds_asks_for_a_network_of_ones_own():
    with pytest.raises(ValueError, match=r"numbers of shape \(2, 2, 2, 2\).*your own"):
        built_in.builder("mlp:8", data_of(numbers(2, 2, 2, 2)))


@pytest.mark.parametrize(
    ("text", "is_name"),
    [("cnn:8,16", True), ("cnn:", True), ("cnn", True), ("applications:VGG16", True),
     ("cnn:build", False), ("my.mlp:build", False), ("mlp.keras", False)],
)  # fmt: skip
def test_modules_called_as_networks_are_modules(text, is_name):
    assert built_in.is_name(text) is is_name


def test_functions_take_what_they_ask_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asked_for.py").write_text(
        """
import keras
def sized(input_shape, classes, width=3):
    return keras.Sequential([keras.Input(input_shape), keras.layers.Dense(classes)])
def of_hp(hp):
    width = hp.Int("width", 4, 8)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(width), keras.layers.Dense(3)])
class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.last = keras.layers.Dense(3)
    def call(self, x):
        return self.last(x)
def one(input_shape):
    pass
"""
    )
    data = DATA["vectors"][0]
    hp = students.keras_tuner.HyperParameters()
    for name in ("sized", "of_hp", "Subclassed"):
        build = students.builder("model", f"asked_for:{name}", data)
        assert build(hp)(numbers(5)).shape == (N, 3)
    assert hp.values == {"width": 4}
    with pytest.raises(
        ValueError, match=r"takes \(input_shape\); it must take nothing"
    ):
        students.builder("model", "asked_for:one", data)


def test_a_file_is_where_a_student_begins(tmp_path):
    path = str(tmp_path / "begun.keras")
    begun = kd.models.mlp((5,), 3, (4,))
    begun.save(path)
    build = students.builder("student", path, DATA["vectors"][0])
    for ours, theirs in zip(
        build(None).get_weights(), begun.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    first = students.fingerprint(path)
    kd.models.mlp((5,), 3, (4,)).save(path)
    assert students.fingerprint(path) != first
