"""Students of other kinds of layers and calls, on the grid of their file."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.export import check, onnx, onnx_converter
from keras_distill.export.runtimes import onnx as onnx_runtime
from keras_distill.outputs import kinds_of
from keras_distill.quantization.fake_quantize import FakeQuantize
from keras_distill.quantization.litert import convert
from tests.forking import answer_here
from tests.test_quantization import answers, images, integers

L = keras.layers
SIZE = 8


@pytest.fixture(scope="module")
def of_all_kinds():
    """A student, with layers of weights that stay float between those of integers."""
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3), name="image")
    noisy = L.GaussianNoise(0.1)(image)
    x = L.Conv2D(4, 1, activation=L.ReLU(6.0), name="stem")(noisy)
    shared = L.Conv2D(4, 3, padding="same", activation=tf.nn.relu, name="shared")
    x = shared(shared(x))
    x = L.Conv2D(4, 3, padding="same", groups=2, name="groups")(x)
    x = L.Conv2D(4, 3, padding="same", dilation_rate=2, name="dilated")(x)
    x = L.Conv2DTranspose(4, 3, padding="same", activation="relu")(x)
    x = L.Conv2D(4, 1, activation=keras.ops.relu, name="middle")(x)
    x = L.Maximum()([x, L.Conv2D(4, 1, name="other")(x)])
    x = L.Softmax()(L.Cropping2D(1)(x))
    y = L.Conv1D(4, 3, name="steps")(L.Reshape((36, 4))(x))
    y = L.Dense(4, activation=L.PReLU(shared_axes=[1]), name="rows")(y)
    return keras.Model(image, L.Dense(5)(L.Flatten()(L.Permute((2, 1))(y))))


def outputs_of(student):
    return np.asarray(student(images(4)))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("weights", [8, 4])
def test_what_stays_float_between_integers_is_in_the_file_too(
    of_all_kinds, weights, tmp_path
):
    x = images(16)
    before = outputs_of(of_all_kinds)
    model = kd.quantize_aware(of_all_kinds, weights=weights, calibration=x)
    for layer in model.layers:  # as if trained
        if isinstance(layer, FakeQuantize):
            layer.high.assign(layer.high * np.random.default_rng(1).uniform(0.8, 1.0))
    told = set(model.quantization.stays_float)
    assert {"groups", "maximum"} <= told
    assert not {"stem_activation", "gaussian_noise"} & told
    model.export(tmp_path, format="tf_saved_model", verbose=False)
    file = convert(tmp_path, weights, 8)
    exact = np.asarray(model(x))
    difference = answers(file, x) - exact
    assert np.sqrt(np.mean(difference**2)) < 0.05 * np.std(exact)
    found = [one for _, one, _ in integers(file) if one is not None]
    scales = np.concatenate([np.ravel(one) for one in found])
    for layer in model.layers:
        if isinstance(layer, FakeQuantize):
            assert np.isclose(scales, layer.scale, rtol=1e-5).any(), layer.name
    np.testing.assert_array_equal(outputs_of(of_all_kinds), before)


def test_an_activation_is_known_by_whatever_it_is_called():
    given = [
        "relu", tf.nn.relu, keras.ops.relu, L.ReLU(), L.Activation("relu"),
        tf.nn.relu6, keras.ops.relu6, L.ReLU(6.0), "hard_swish", keras.ops.hard_swish,
        L.Activation("hard_silu"),
    ]  # fmt: skip
    layers = [keras.Input((4,))] + [L.Dense(4, activation=one) for one in given]
    aware = kd.quantize_aware(
        keras.Sequential(layers), calibration=np.ones((2, 4), "float32")
    )
    assert aware.quantization.stays_float == {}


def test_what_the_outputs_are_is_handed_on_until_it_is_compiled(tmp_path):
    inputs = keras.Input((4,))
    student = keras.Model(inputs, [L.Dense(3)(inputs), L.Dense(3)(inputs)])
    student.compile(
        loss=[
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            keras.losses.BinaryCrossentropy(from_logits=True),
        ]
    )
    aware = kd.quantize_aware(student, activations=None)
    said = {0: "softmax", 1: "sigmoid"}
    assert kinds_of(aware) == said
    aware.save(tmp_path / "aware.keras")
    assert kinds_of(keras.saving.load_model(tmp_path / "aware.keras")) == said
    aware.compile(loss=["mse", "mse"])
    assert kinds_of(aware) == "values"
    taught = kd.quantize_aware(kd.Distiller(student), activations=None)
    assert kinds_of(taught) == said


def test_a_clone_knows_its_bits_and_layers():
    student = keras.Sequential([keras.Input((4,)), L.Dense(3, name="rows")])
    aware = kd.quantize_aware(student, weights=4, calibration=np.ones((2, 4)))
    table = keras.models.clone_model(aware).quantization
    assert (table.weights, table.activations) == (4, 8)
    assert [row[:3] for row in table.rows] == [("rows", "Dense", "int4 weights")]


def test_a_calibration_by_other_names_is_refused():
    student = keras.Sequential([keras.Input((4,), name="x"), L.Dense(3)])
    with pytest.raises(ValueError, match="calibration has 'y', but the student takes"):
        kd.quantize_aware(student, calibration={"y": np.ones((2, 4))})


@pytest.mark.slow
def test_a_model_that_rounds_is_an_onnx_file_too(monkeypatch, tmp_path):
    pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(check, "ask_fresh_process", answer_here)
    monkeypatch.setattr(
        onnx, "_in_a_child", lambda name, *given: getattr(onnx_converter, name)(*given)
    )
    keras.utils.set_random_seed(0)
    layers = [L.Conv2D(16, 3, activation="relu"), L.Flatten(), L.Dense(10)]
    student = keras.Sequential([keras.Input((SIZE, SIZE, 3), name="x"), *layers])
    x = images(200)
    aware = kd.quantize_aware(student, calibration=x[:50])
    path = kd.export_onnx(
        aware, tmp_path / "a.onnx", output_kinds="softmax", example=x, verbose=False
    )
    served = answer_here(onnx_runtime, path, [{"x": x}])[0]["logits"]
    step = aware.layers[-1].scale
    difference = np.abs(served - aware.predict(x, verbose=0))
    assert (
        0.5 * step < difference.max() < 4 * step
    )  # some numbers fall to the other side
    assert difference.mean() < 0.1 * step


def test_a_layer_that_is_dead_has_its_range_in_the_file(tmp_path):
    dead = L.Dense(
        4, activation="relu", bias_initializer=keras.initializers.Constant(-9)
    )
    student = keras.Sequential([keras.Input((3,)), dead, L.Dense(2)])
    x = images(4).reshape(-1, 3)
    model = kd.quantize_aware(student, calibration=x)
    model.export(tmp_path, format="tf_saved_model", verbose=False)
    found = [one for _, one, _ in integers(convert(tmp_path, 8, 8)) if one is not None]
    scales = np.concatenate([np.ravel(one) for one in found])
    for layer in model.layers:
        if isinstance(layer, FakeQuantize):
            assert np.isclose(scales, layer.scale, rtol=1e-5, atol=0).any(), layer.name
