"""A student on the grid of its file: rounding, folding, the walk over layers, the file."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.quantization import fake_quantize, folding
from keras_distill.quantization.fake_quantize import FakeQuantize, rounds_weights
from keras_distill.quantization.litert import convert

L = keras.layers
SIZE = 8


def images(count=24, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, SIZE, SIZE, 3)).astype("float32")


def settled(model, seed=0):
    """Gives every batch normalisation something to fold."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            for weight in layer.weights:
                low = -0.3 if weight.name in ("beta", "moving_mean") else 0.3
                weight.assign(rng.uniform(low, 0.8, weight.shape))
        if hasattr(layer, "layers"):
            settled(layer, seed + 1)
    return model


def normed(x, layer, activation=None):
    x = L.BatchNormalization()(layer(x))
    return x if activation is None else activation(x)


def every_kind():
    """One of each kind of layer that is computed in integers."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = L.ZeroPadding2D(1)(image)
    x = L.Conv2D(8, 3, use_bias=False, name="stem")(x)
    x = L.ReLU(6.0)(L.BatchNormalization(name="norm")(x))
    y = normed(x, L.DepthwiseConv2D(3, padding="same", name="depthwise"))
    y = L.Activation("hard_silu")(y)
    y = normed(y, L.Conv2D(8, 1, name="project"))
    x = L.Add()([x, y])
    z = L.Conv2D(4, 3, padding="same", activation="relu", name="branch")(x)
    z = L.Dropout(0.2)(L.Concatenate()([L.AveragePooling2D(2)(x), L.MaxPool2D(2)(z)]))
    z = L.SeparableConv2D(6, 3, activation="relu", name="separable")(z)
    flat = L.Concatenate()([L.Flatten()(z), L.GlobalAveragePooling2D()(z)])
    hidden = normed(flat, L.Dense(12, name="hidden"), L.ReLU())
    return settled(keras.Model(image, L.Dense(5, name="logits")(hidden)))


@pytest.fixture(scope="module")
def student():
    keras.utils.set_random_seed(0)
    return every_kind()


@pytest.fixture(scope="module")
def files(student, tmp_path_factory):
    """Models and files, as if trained a little, by bits of weights and of activations."""
    x, made, rng = images(32), {}, np.random.default_rng(3)
    for bits in ((8, 8), (4, 8), (4, None)):
        model = kd.quantize_aware(
            student, weights=bits[0], activations=bits[1], calibration=x
        )
        for one in model.trainable_variables:
            one.assign(one * rng.uniform(0.9, 1.1, one.shape))
        path = str(tmp_path_factory.mktemp("served"))
        model.export(path, format="tf_saved_model", verbose=False)
        made[bits] = model, convert(path, *bits)
    return made


def trained(model, teacher, x, **options):
    distiller = kd.Distiller(model, teacher=teacher)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(loss=loss, **options)
    distiller.fit(x, np.zeros(len(x)), batch_size=8, verbose=0)


def integers(file):
    """Returns what a file holds: by name, type, scales and, of constants, the numbers."""
    utils = pytest.importorskip("ai_edge_litert.tools.flatbuffer_utils")
    from ai_edge_litert import schema_py_generated as schema

    kinds = {number: name for name, number in vars(schema.TensorType).items()}
    model = utils.read_model_from_bytearray(bytearray(file))
    for tensor in model.subgraphs[0].tensors:
        kind, data = kinds[tensor.type], model.buffers[tensor.buffer].data
        scales = getattr(tensor.quantization, "scale", None)
        values = None
        if data is not None and kind in ("INT8", "INT4"):
            values = np.asarray(data, "uint8").view("int8")
            if kind == "INT4":  # two in a byte, the lower first
                both = np.stack([(values << 4) >> 4, values >> 4], -1).reshape(-1)
                values = both[: np.prod(tensor.shape)]
            values = values.reshape(tensor.shape)
        yield kind, scales, values


def answers(file, x):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    runner = interpreter.Interpreter(model_content=file)
    (given,), (taken,) = runner.get_input_details(), runner.get_output_details()
    runner.resize_tensor_input(given["index"], x.shape)
    runner.allocate_tensors()
    runner.set_tensor(given["index"], x)
    runner.invoke()
    return runner.get_tensor(taken["index"])


def unrounded(model, x):
    with fake_quantize.observed():
        return np.asarray(model(x))


# Formulas ---------------------------------------------------------------------------------


def test_activations_are_rounded_to_steps_of_a_range_that_holds_zero():
    layer = FakeQuantize()
    layer.build((None, 3))
    layer.low.assign(-0.5)
    layer.high.assign(1.55)
    scale = 2.05 / 255
    zero = round(0.5 / scale)
    x = np.float32([[-2.0, 0.0, 0.3], [1.0, 9.0, 0.004]])
    steps = np.clip(np.round(x / scale), -zero, 255 - zero)
    np.testing.assert_allclose(layer(x), steps * scale, atol=1e-6)
    assert layer(x)[0, 1] == 0.0
    assert layer.scale == pytest.approx(scale)
    layer.low.assign(0.3)  # a range without 0 is taken to it
    assert layer.range == (0.0, pytest.approx(1.55))


def test_the_gradient_passes_in_the_range_and_moves_its_ends():
    layer = FakeQuantize()
    layer.build((None, 4))
    x = tf.constant([[-3.0, 0.5, 2.0, 5.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(layer(x) * [1.0, 2.0, 3.0, 4.0])
    of_x, of_low, of_high = tape.gradient(y, [x, layer.low.value, layer.high.value])
    np.testing.assert_allclose(of_x, [[0.0, 2.0, 0.0, 0.0]])
    factor = 1 / np.sqrt(127 * 4)
    np.testing.assert_allclose([of_low, of_high], [1 * factor, 7 * factor], rtol=1e-5)


def test_weights_are_rounded_per_channel_with_the_gradients_of_lsq():
    kernel = tf.constant([[0.7, 0.2], [-0.33, -0.9], [0.1, 0.5]])
    log_range = tf.math.log([0.35, 99.0])  # one clips, one is wider than the weights
    with tf.GradientTape() as tape:
        tape.watch([kernel, log_range])
        y = fake_quantize.round_weights(kernel, log_range, 4)
        total = tf.reduce_sum(y)
    scale = np.array([0.05, 0.9 / 7])
    steps = np.clip(np.round(kernel / scale), -7, 7)
    np.testing.assert_allclose(y, steps * scale, rtol=1e-5)
    of_kernel, of_range = tape.gradient(total, [kernel, log_range])
    np.testing.assert_array_equal(of_kernel, [[0, 1], [1, 1], [1, 1]])
    inside = np.array([[0, 1], [1, 1], [1, 1]])
    expected = np.sum(steps - inside * kernel / scale, 0) * scale / np.sqrt(7 * 3)
    np.testing.assert_allclose(of_range, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        L.Conv2D(4, 3, strides=2, padding="same"),
        L.Conv2D(4, 1, use_bias=False),
        L.DepthwiseConv2D(3, depth_multiplier=2),
        L.Dense(6),
    ],
)
@pytest.mark.parametrize("options", [{}, {"scale": False, "center": False}])
def test_folded_weights_give_what_layer_and_normalisation_gave(layer, options):
    x = images(4)
    x = x.reshape(4, -1) if isinstance(layer, L.Dense) else x
    layer = type(layer).from_config(layer.get_config())
    norm = L.BatchNormalization(**options)
    settled(keras.Sequential([keras.Input(x.shape[1:]), layer, norm]))
    if layer.bias is not None:
        layer.bias.assign(np.linspace(-1, 1, layer.bias.shape[0]))
    expected = norm(layer(x), training=False)
    folded = type(layer).from_config({**layer.get_config(), "use_bias": True})
    folded.build(x.shape)
    folded.set_weights(folding.fold(layer, norm))
    np.testing.assert_allclose(folded(x), expected, atol=1e-5)


# The walk over the student ----------------------------------------------------------------


def test_every_layer_is_named_with_how_it_is_computed(student):
    table = kd.quantize_aware(student, calibration=images()).quantization
    assert not table.stays_float
    lines = str(table).splitlines()
    assert lines[0].split() == ["layer", "kind", "computed", "note"]
    (stem,) = [line for line in lines if line.startswith("stem")]
    assert "int8 weights  norm is folded into it" in stem
    weights = [row.layer for row in table.rows if row.computed == "int8 weights"]
    assert weights == [
        "stem", "depthwise", "project", "branch", "separable", "hidden", "logits",
    ]  # fmt: skip


@pytest.mark.parametrize("bits", [(8, 8), (8, None)])
def test_at_eight_bits_it_begins_close_to_the_float_student(student, bits):
    x = images(64)
    model = kd.quantize_aware(
        student, weights=bits[0], activations=bits[1], calibration=x
    )
    exact = student.predict(x, verbose=0)
    error = np.abs(model.predict(x, verbose=0) - exact).max() / exact.std()
    assert 0 < error < 0.15


def test_the_student_is_untouched_and_no_batch_normalisation_is_left(student):
    x = images()
    weights, before = student.get_weights(), student.predict(x, verbose=0)
    model = kd.quantize_aware(student, weights=4, calibration=x)
    assert not any(isinstance(one, L.BatchNormalization) for one in model.layers)
    for one in model.trainable_variables:
        one.assign(one * 2.0)
    for old, new in zip(weights, student.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(before, student.predict(x, verbose=0))


@pytest.mark.slow
def test_ranges_are_those_of_all_that_is_calibrated_with(student):
    x = images(300)
    x[-1] *= 10
    model = kd.quantize_aware(student, calibration=x)
    layer = model.get_layer("image_range")
    assert layer.range == (pytest.approx(x.min()), pytest.approx(x.max()))
    for given in (
        tf.data.Dataset.from_tensor_slices((x, np.zeros(300))),
        tf.data.Dataset.from_tensor_slices(x).batch(7),
    ):
        again = kd.quantize_aware(student, calibration=given)
        for one, other in zip(model.layers, again.layers, strict=True):
            if isinstance(one, FakeQuantize):
                assert one.range == pytest.approx(other.range, rel=1e-5)


def nested():
    """A backbone in a model in a model, one called twice, and outputs by name."""
    inner = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            L.Conv2D(4, 3, name="conv"),
            L.BatchNormalization(),
            L.ReLU(),
        ]
    )
    image = keras.Input((SIZE, SIZE, 3))
    backbone = keras.Model(image, L.GlobalMaxPooling2D()(inner(image)))
    one, two = (keras.Input((SIZE, SIZE, 3), name=name) for name in ("one", "two"))
    both = L.Concatenate()([backbone(one), backbone(two)])
    outputs = {
        "digit": L.Dense(3, name="conv")(both),
        "same": L.Dense(1, activation="sigmoid", name="same")(both),
    }
    return settled(keras.Model({"one": one, "two": two}, outputs))


def test_nested_and_shared_models_are_taken_apart():
    model, x = of_two_inputs()
    aware = kd.quantize_aware(model, calibration=x)
    # Two calls of the backbone share weights, with what is folded into them.
    assert len([one for one in aware.layers if rounds_weights(type(one))]) == 3
    assert list(aware.quantization.stays_float) == ["same_activation"]
    expected = model.predict(x, verbose=0)
    for key, value in aware.predict(x, verbose=0).items():
        assert np.abs(value - expected[key]).max() < 0.05 * np.ptp(expected[key])


def with_islands():
    """What is computed in integers among what is not, a batch of three, probabilities."""
    image = keras.Input((SIZE, SIZE, 4), batch_size=3, name="image")
    x = L.Rescaling(0.5)(image)
    x = L.Conv2D(4, 3, groups=2, name="groups")(x)
    x = L.Conv2D(4, 3, dilation_rate=2, name="dilated")(x)
    x = L.Conv2D(4, 1, activation="gelu", name="gelu")(x)
    x = L.Add(name="sum")([x, L.LayerNormalization(name="norm")(x)])
    x = keras.ops.multiply(x, 2.0)
    x = L.Reshape((-1, 4))(x)
    x = L.Dense(3, name="rows")(x)
    model = keras.Model(image, L.Softmax()(L.Dense(4)(L.Flatten()(x))))
    x = np.random.default_rng(0).normal(size=(3, SIZE, SIZE, 4)).astype("float32")
    return model, {"image": x}


def with_sums():
    """Three in a sum, a gate, an activation on its own, several yes/no questions."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = L.Conv2D(4, 3, padding="same")(image)
    x = L.Add()([x, L.Conv2D(4, 1)(image), L.Conv2D(4, 1, activation="relu")(image)])
    x = L.ReLU()(x)
    x = L.Multiply()([x, L.GlobalAveragePooling2D(keepdims=True)(x)])
    x = L.Dense(3, activation="hard_silu")(L.GlobalMaxPooling2D()(x))
    return keras.Model(image, L.Dense(3, activation="sigmoid")(x)), {"image": images(5)}


def of_two_inputs():
    return nested(), {"one": images(5), "two": images(5, 2)}


def test_a_distiller_stands_for_its_student_whatever_the_global_policy_is(student):
    x, distiller = images(), kd.Distiller(student)
    expected = kd.quantize_aware(student, calibration=x)
    keras.config.set_dtype_policy("mixed_float16")
    model = kd.quantize_aware(distiller, calibration=x)
    layers = [one for one in model.layers if not isinstance(one, L.InputLayer)]
    assert {layer.dtype_policy.name for layer in layers} == {"float32"}
    np.testing.assert_array_equal(model(x), expected(x))


def test_what_is_not_computed_in_integers_stays_float_and_says_why():
    model, x = with_islands()
    aware = kd.quantize_aware(model, calibration=x["image"])
    assert aware.quantization.stays_float == {
        "rescaling": "Rescaling is not computed in integers here",
        "groups": "it has 2 groups",
        "dilated": "it is dilated",
        "gelu_activation": "gelu is not computed in integers here",
        "norm": "LayerNormalization is not computed in integers here",
        "multiply": "Multiply is not computed in integers here",
        "reshape": "its input is float",
        "rows": "its input has not 2 axes",
        "flatten": "its input is float",
        "softmax": "float in training; a file of int8 weights rounds it to steps of 1/256",
    }
    difference = aware(x["image"]) - model(x["image"])
    assert np.abs(difference).max() < 0.05


def test_a_channel_that_is_dead_does_not_spoil_the_others():
    layer = L.Conv2D(3, 1, name="conv")
    model = keras.Sequential([keras.Input((SIZE, SIZE, 3)), layer, L.Flatten()])
    kernel, _ = layer.get_weights()
    kernel[..., 1] = 0.0
    layer.set_weights([kernel, np.float32([0.1, 3.0, -0.1])])
    x = images(4)
    aware = kd.quantize_aware(model, weights=4, calibration=x)
    exact = model.predict(x, verbose=0)
    assert np.abs(aware.predict(x, verbose=0) - exact).max() < 0.1 * exact.std() + 0.1


# Training and saving ----------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_from_the_float_student_with_weights_of_four_bits():
    layers = [L.Flatten(), L.Dense(16, activation="relu"), L.Dense(5)]
    student = keras.Sequential([keras.Input((SIZE, SIZE, 3)), *layers])
    # What is in few directions of many, as pictures are, can be rounded together.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 6)) @ rng.normal(size=(6, SIZE * SIZE * 3)) / 3
    x = x.reshape(-1, SIZE, SIZE, 3).astype("float32")
    model = kd.quantize_aware(student, weights=4, calibration=x)
    before = [np.asarray(one).copy() for one in model.trainable_variables]

    def error():
        difference = model.predict(x, verbose=0) - student.predict(x, verbose=0)
        return np.var(difference, -1).mean()

    first = error()
    rate = keras.optimizers.schedules.CosineDecay(1e-3, 320)
    loss = kd.LogitLoss()
    distiller = kd.Distiller(model, student, alpha=0.0, distillation_loss=loss)
    distiller.compile(keras.optimizers.Adam(rate))
    distiller.fit(x, batch_size=16, epochs=20, verbose=0)
    assert error() < 0.4 * first
    # Weights, biases and ranges are trained; of all activations some have no negative ones.
    stayed = [
        one.path
        for one, old in zip(model.trainable_variables, before, strict=True)
        if np.array_equal(one, old)
    ]
    assert "dense_range/low" in stayed
    assert all("_range/" in path for path in stayed), stayed


@pytest.mark.slow
@pytest.mark.parametrize(
    "bits", [(4, 8), pytest.param((8, None), marks=pytest.mark.slow)]
)
def test_a_step_compiled_by_xla_is_the_same_step(bits):
    layers = [L.DepthwiseConv2D(3, activation="relu6"), L.Flatten(), L.Dense(5)]
    student = keras.Sequential([keras.Input((SIZE, SIZE, 3)), *layers])
    x, after = images(8), []
    for jit in (False, True):
        model = kd.quantize_aware(
            student, weights=bits[0], activations=bits[1], calibration=x
        )
        trained(model, student, x, jit_compile=jit, optimizer=keras.optimizers.SGD(0.1))
        after.append(model.get_weights())
    # A number between two steps may be rounded the other way.
    atol = 1e-5 if bits[1] is None else 1e-3
    for one, other in zip(*after, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


def test_it_is_saved_and_read_in_safe_mode(student, tmp_path):
    x = images()
    model = kd.quantize_aware(student, weights=4, calibration=x)
    model.save(tmp_path / "aware.keras")
    read = keras.saving.load_model(tmp_path / "aware.keras", safe_mode=True)
    np.testing.assert_array_equal(read(x), model(x))
    assert read.quantization == model.quantization
    assert unrounded(model, x).tolist() != model(x).numpy().tolist()


# The file ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("bits", [(8, 8), (4, 8)])
def test_the_file_has_the_trained_ranges_and_nothing_float(files, bits):
    model, file = files[bits]
    scales = {one.scale for one in model.layers if isinstance(one, FakeQuantize)}
    tensors = list(integers(file))
    assert [kind for kind, *_ in tensors].count("FLOAT32") == 2  # input and output
    found = {s[0] for kind, s, values in tensors if kind == "INT8" and values is None}
    for scale in scales:
        assert min(abs(one / scale - 1) for one in found) < 1e-5
    for one in found:
        assert min(abs(one / scale - 1) for scale in scales) < 1e-5


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, None)])
def test_the_files_weights_are_the_trained_ones(files, bits):
    model, file = files[bits]
    layers = [one for one in model.layers if rounds_weights(type(one))]
    assert len(layers) == 8  # a separable convolution is two
    stored = [one for one in integers(file) if one[2] is not None]
    assert len(stored) == len(layers)
    for layer in layers:
        kernel = np.asarray(layer.rounded_kernel())
        kernel = kernel.reshape(-1, kernel.shape[-1])
        differences = []
        for kind, scales, values in stored:
            is_first = len(scales) == values.shape[0]
            rows = values.reshape(len(scales), -1).T if is_first else values
            rows = rows.reshape(-1, len(scales)) * np.float32(scales)
            if rows.shape == kernel.shape:
                differences.append((np.abs(rows - kernel).max(), kind))
        difference, kind = min(differences)
        assert difference < 1e-6 * np.abs(kernel).max()
        is_float = isinstance(layer, L.DepthwiseConv2D) and bits[1] is None
        assert kind == ("INT8" if bits[0] == 8 or is_float else "INT4")


@pytest.mark.parametrize(("bits", "most"), [((8, 8), 4), ((4, 8), 6), ((4, None), 0)])
def test_the_file_answers_what_the_model_does(files, bits, most):
    (model, file), x = files[bits], images(3, 7)
    expected = model.predict(x, verbose=0)
    if bits[1] is None:  # activations are quantised while it runs, not as Keras does
        np.testing.assert_allclose(answers(file, x), expected, atol=0.1)
        return
    step = model.get_layer("logits_range").scale
    difference = np.abs(answers(file, x) - expected) / step
    assert difference.max() < most + 0.01
    assert np.mean(difference) < 1.5


@pytest.mark.slow
def test_a_recipe_of_four_bits_finds_the_same_integers(files, tmp_path):
    quantizer = pytest.importorskip("ai_edge_quantizer.quantizer")
    recipe = pytest.importorskip("ai_edge_quantizer.recipe")
    model, ours = files[4, None]
    path = str(tmp_path / "served")
    model.export(path, format="tf_saved_model", verbose=False)
    plain = tmp_path / "float.tflite"
    plain.write_bytes(tf.lite.TFLiteConverter.from_saved_model(path).convert())
    made = quantizer.Quantizer(str(plain), recipe.dynamic_wi4_afp32())
    theirs = made.quantize(enable_progress_report=False).quantized_model
    of_both = [
        [values for kind, _, values in integers(file) if kind == "INT4"]
        for file in (ours, bytes(theirs))
    ]
    assert len(of_both[0]) == 6  # their recipe leaves depthwise convolutions float
    for one, other in itertools.zip_longest(*of_both):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (8, None), (4, None)])
@pytest.mark.parametrize("kind", [with_islands, with_sums, of_two_inputs])
def test_files_of_other_models_answer_as_they_do(kind, bits, tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    student, x = kind()
    one = x if kind is of_two_inputs else x["image"]
    model = kd.quantize_aware(
        student, weights=bits[0], activations=bits[1], calibration=one
    )
    model.export(tmp_path, format="tf_saved_model", verbose=False)
    runner = interpreter.Interpreter(model_content=convert(tmp_path, *bits))
    serve, count = runner.get_signature_runner(), 3 if kind is with_islands else 1
    served = serve(**{name: part[:count] for name, part in x.items()})
    expected = keras.tree.flatten(
        model(keras.tree.map_structure(lambda a: a[:count], one))
    )
    assert len(served) == len(expected)
    for (_, value), exact in zip(sorted(served.items()), expected, strict=True):
        np.testing.assert_allclose(value, exact, atol=0.03 * max(np.ptp(exact), 0.3))


def test_export_litert_writes_the_trained_grid(tmp_path):
    student = keras.Sequential([keras.Input((6,), name="x"), L.Dense(5, name="logits")])
    x = images(8).reshape(-1, 6)
    model = kd.quantize_aware(student, weights=4, calibration=x)
    path = kd.export_litert(
        model, tmp_path / "a.tflite", output_kinds="softmax", example=x, verbose=False
    )
    with open(path, "rb") as file:
        tensors = list(integers(file.read()))
    ((_, scales, values),) = [one for one in tensors if one[0] == "INT4"]
    steps = values.reshape(5, 6).T * np.float32(scales)
    kernel = np.asarray(model.get_layer("logits").rounded_kernel()).reshape(6, 5)
    np.testing.assert_allclose(steps, kernel, atol=1e-6)
    (card,) = tmp_path.glob("*.md")
    assert "int4 weights, int8 activations" in card.read_text()
