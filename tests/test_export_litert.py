"""A .tflite file answers as the model does, in every form, or is refused in a sentence."""

import os
import signal
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill.export import check, fresh, litert, litert_converter
from keras_distill.export.calibration import batches_of, calibration_arrays
from keras_distill.export.inputs import Inputs
from keras_distill.export.runtimes import litert as runtime
from tests.conftest import mlp
from tests.forking import Process, answer_here, run, wait_for

# The kind of most models here is not said, and of no matter.
pytestmark = pytest.mark.filterwarnings("ignore:nothing says whether:UserWarning")


@pytest.fixture(autouse=True)
def _here(request, monkeypatch):
    """Converts and answers in the test's process, where a fresh one is not the point."""
    if request.node.get_closest_marker("fresh_process") is None:
        monkeypatch.setattr(check, "ask_fresh_process", answer_here)
        monkeypatch.setattr(litert, "_in_a_child", convert_here)


def convert_here(function, *given):
    return getattr(litert_converter, function)(*given)


def export(model, folder, **given):
    return kd.export_litert(model, folder / "m.tflite", **{"verbose": False, **given})


RNG = np.random.default_rng(0)


def numbers(*shape):
    return RNG.normal(size=shape).astype("float32")


# Kinds of models -------------------------------------------------------------------------


def of(*stack, shape, **given):
    return keras.Sequential([keras.Input(shape, name="x", **given), *stack])


def convolutions():
    return of(
        layers.Conv2D(8, 3, strides=2, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(5),
        shape=(12, 12, 3),
    )


def depthwise():
    return of(
        layers.Conv2D(8, 3),
        layers.DepthwiseConv2D(3, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(6.0),
        layers.GlobalAveragePooling2D(),
        layers.Dense(5, activation="softmax"),
        shape=(12, 12, 3),
    )


def unet():
    x = keras.Input((8, 8, 2), name="x")
    a = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    b = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.MaxPooling2D()(a))
    c = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(b)
    mask = layers.Conv2D(1, 1, activation="sigmoid")
    return keras.Model(x, mask(layers.Concatenate()([a, c])))


def transformer():
    tokens = keras.Input((6,), dtype="int32", name="x")
    e = layers.Embedding(10, 8, mask_zero=True)(tokens)
    h = layers.LayerNormalization()(e + layers.MultiHeadAttention(2, 4)(e, e))
    h = layers.LayerNormalization()(h + layers.Dense(8, activation="gelu")(h))
    return keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(h)))


def masked_lstm():
    return of(
        layers.Embedding(10, 4, mask_zero=True),
        layers.Bidirectional(layers.LSTM(3)),
        layers.Dense(3),
        shape=(5,),
        dtype="int32",
    )


def nested_gru():
    inner = keras.Sequential([keras.Input((5, 4)), layers.GRU(3), layers.Dense(3)])
    return of(layers.Dense(4), inner, shape=(5, 4))


class Reader(keras.Model):
    """A subclassed model with an RNN layer, which nobody can clone."""

    def __init__(self):
        super().__init__()
        self.read, self.answer = layers.GRU(3), layers.Dense(3)

    def call(self, x):
        return self.answer(self.read(x))


def two_inputs_three_outputs():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    h = layers.Dense(8, activation="relu")(layers.Concatenate()([a, b]))
    heads = {
        "kind": layers.Dense(3, activation="softmax")(h),
        "tags": layers.Dense(2, activation="sigmoid")(h),
        "size": layers.Dense(2, name="size")(h),
    }
    return keras.Model({"a": a, "b": b}, heads)


def ensemble():
    return kd.SpecialistEnsemble(
        mlp(), [mlp(classes=3), mlp(classes=4)], [[0, 1], [2, 3, 4]]
    )


def words(first=True):
    x = keras.Input((1,), dtype="string", name="x")
    h = layers.Embedding(4, 3)(layers.StringLookup(vocabulary=["ant", "bee"])(x))
    h = h[:, 0] if first else layers.GlobalAveragePooling1D()(h)
    return keras.Model(x, layers.Dense(3)(h))


def half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    return convolutions()


def spec(*shape, dtype=tf.float32):
    return {"input_signature": tf.TensorSpec(shape, dtype, name="x")}


def scaled(raw):
    return tf.image.resize(tf.cast(raw, tf.float32) / 255.0, (12, 12))


TOKENS = RNG.integers(1, 10, size=(40, 6)).astype("int32")
TOKENS[:, 4:] = 0  # padding
IMAGES = numbers(40, 12, 12, 3)
NAMES = ["ant", "bee", "cat", "dog", "eel"]
# Of each: the model, its raw inputs, what else the export is told, and whether int8 can.
KINDS = {
    "mlp": (lambda: of(layers.Dense(8, "relu"), layers.Dense(3), shape=(4,)), numbers(40, 4), {}, True),
    "convolutions": (convolutions, IMAGES, {"class_names": NAMES}, True),
    "depthwise": (depthwise, IMAGES, {}, True),
    "mask": (unet, numbers(40, 8, 8, 2), {"class_names": ["no", "yes"], "threshold": 0.4}, True),
    "tags": (
        lambda: of(layers.Dense(5, "sigmoid"), shape=(4,)),
        numbers(40, 4),
        {"class_names": NAMES, "threshold": [0.4, 0.5, 0.5, 0.5, 0.6]},
        True,
    ),
    "transformer": (transformer, TOKENS, {}, True),
    "masked lstm": (masked_lstm, TOKENS[:, 1:], {}, True),
    "nested gru": (nested_gru, numbers(40, 5, 4), {}, True),
    "convolutional lstm": (
        lambda: of(layers.ConvLSTM2D(2, 3), layers.Flatten(), layers.Dense(3), shape=(3, 6, 6, 2)),
        numbers(40, 3, 6, 6, 2),
        {},
        True,
    ),
    "subclassed": (Reader, numbers(40, 5, 4), {**spec(None, 5, 4), "from_logits": True}, True),
    "two inputs, three outputs": (
        two_inputs_three_outputs,
        {"a": numbers(40, 3), "b": numbers(40, 2)},
        {"output_kinds": {"size": "values"}, "class_names": {"kind": ["one", "two", "three"]}},
        True,
    ),
    "raw images": (
        convolutions,
        RNG.integers(256, size=(40, 20, 16, 3)).astype("uint8"),
        {"preprocess": scaled, **spec(None, 20, 16, 3, dtype=tf.uint8)},
        True,
    ),
    "fixed batch": (convolutions, IMAGES, spec(1, 12, 12, 3), True),
    "fixed batch of loops": (
        nested_gru, numbers(40, 5, 4), spec(2, 5, 4), True
    ),
    "mixed precision": (half_precision, IMAGES, {}, True),
    "ensemble": (ensemble, numbers(40, 8), spec(None, 8), False),
    "words": (words, np.array([["ant"], ["who"]] * 20, object), {}, False),
}  # fmt: skip
DEFAULT = {
    ("mlp", "dynamic"), ("convolutions", None), ("mask", "float16"), ("tags", None),
    ("transformer", None), ("masked lstm", None), ("subclassed", "int8"),
    ("two inputs, three outputs", None), ("raw images", "int8"), ("fixed batch", None),
    ("ensemble", None), ("words", None),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "quantize"),
    [
        pytest.param(
            kind, how, marks=[] if (kind, how) in DEFAULT else [pytest.mark.slow]
        )
        for kind in KINDS
        for how in (None, "float16", "dynamic", "int8")
        if how != "int8" or KINDS[kind][3]
    ],
)
def test_a_file_answers_as_the_saved_model_does(tmp_path, kind, quantize):
    make, x, given, _ = KINDS[kind]
    named = x if isinstance(x, dict) else {"x": x}
    if kind == "ensemble":
        named = {"x": x}
    model = make()
    few = {name: array[:4] for name, array in named.items()}
    size = given["input_signature"].shape[0] if "input_signature" in given else None
    example = {
        name: array[:size] if size else array[:4] for name, array in named.items()
    }
    more = {"calibration": x} if quantize == "int8" else {}
    path = export(model, tmp_path, quantize=quantize, example=example, **more, **given)
    assert os.listdir(tmp_path) == ["m.tflite"]
    given = {**given, "example": example, "verbose": False}
    saved = kd.export_savedmodel(model, tmp_path / "saved", **given)
    serve = tf.saved_model.load(saved).signatures["serving_default"]
    ask = runtime.Model(path)
    for count in [size] if size else [1, 3]:
        batch = {name: array[:count] for name, array in few.items()}
        expected = serve(**{n: tf.constant(value) for n, value in batch.items()})
        answer = ask(batch)
        assert set(answer) == set(expected)
        for name, value in expected.items():
            value = value.numpy()
            assert answer[name].dtype == value.dtype
            assert answer[name].shape == value.shape
            if name.endswith("label"):
                if quantize is None:  # others may turn where two classes are near
                    np.testing.assert_array_equal(answer[name], value)
                continue
            span = max(np.ptp(value), 1.0)
            limit = {None: 1e-4, "float16": 0.005, "dynamic": 0.05, "int8": 0.1}[
                quantize
            ]
            np.testing.assert_allclose(
                answer[name], value, atol=limit * span, rtol=1e-4
            )


def test_layers_are_as_before_and_a_loop_stays_where_it_can(tmp_path):
    model = Reader()
    given = {**spec(None, 5, 4), "from_logits": True}
    unrolled = os.path.getsize(export(model, tmp_path, **given))
    assert model.read.unroll is False
    assert model.read.use_cudnn == "auto"
    given = {**spec(1, 5, 4), "from_logits": True}
    assert os.path.getsize(export(model, tmp_path, **given)) < unrolled


def test_each_thread_asks_by_a_model_of_its_own(tmp_path):
    path = export(mlp(activation="softmax"), tmp_path)
    x, found = numbers(200, 8), {}
    name = next(iter(runtime.Model(path)._dtypes))

    def ask(thread):
        answer = runtime.Model(path, threads=2)
        rows = [answer({name: x[i : i + 1 + i % 3]})["label"][0] for i in range(200)]
        found[thread] = np.array(rows)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = runtime.Model(path)({name: x})["label"]
    for thread in range(3):
        np.testing.assert_array_equal(found[thread], whole)


def test_text_goes_in_as_str_or_bytes_and_comes_out_as_bytes(tmp_path):
    example = np.array([["bee"], ["who"]])
    path = export(words(), tmp_path, example=example, class_names=["é", "b", "c"])
    ask = runtime.Model(path)
    answers = [
        ask({"x": np.array([["ant"], ["bee"]], dtype)})["logits"]
        for dtype in ("U", "S", object)
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])
    assert ask({"x": example})["label"][0] in ("é".encode(), b"b", b"c")


# int8 ------------------------------------------------------------------------------------


def scales(path):
    interpreter = tf.lite.Interpreter(model_path=path)
    return {d["name"]: d["quantization"] for d in interpreter.get_tensor_details()}


def test_ranges_are_of_all_examples_however_they_come(tmp_path):
    """The calibrator keeps the least and the greatest, over batches as within one."""
    model = depthwise()
    x = numbers(300, 12, 12, 3)
    x[7, 3, 3] = 9.0
    x[299, 5, 5] = -30.0
    singles = tf.data.Dataset.from_tensor_slices((x, np.zeros(300)))
    found = [
        scales(
            export(model, tmp_path, quantize="int8", calibration=calibration, **given)
        )
        for calibration, given in ((x, {}), (singles, spec(1, 12, 12, 3)))
    ]
    assert set(found[0].values()) == set(found[1].values())
    scale, zero = found[0]["tfl.quantize"]
    assert scale == pytest.approx(39.0 / 255, rel=1e-5)
    assert zero == round(-128 + 30.0 / scale)
    batches = batches_of({"x": x})
    assert [len(batch["x"]) for batch in batches] == [128, 128, 128]
    np.testing.assert_array_equal(
        np.concatenate([batch["x"] for batch in batches])[:300], x
    )


def channels_apart(names=("a",)):
    """A layer whose channels differ by 1e4, of which int8 with one scale loses all but one."""
    inputs = [keras.Input((8 // (n + 1),), name=name) for n, name in enumerate(names)]
    x = layers.Concatenate()(inputs) if len(names) > 1 else inputs[0]
    width = x.shape[-1]
    h = layers.Dense(8, activation="relu", name="wide")(x)
    model = keras.Model(inputs, layers.Dense(3, name="last")(h))
    kernel = np.eye(width, 8) * ([1e4] + [1.0] * 7)
    model.get_layer("wide").set_weights([kernel, np.zeros(8)])
    head = RNG.normal(size=(8, 3))
    head[0] = 0.0
    model.get_layer("last").set_weights([head, np.zeros(3)])
    return model


@pytest.mark.parametrize(
    ("kind", "names", "sentence"),
    [
        (
            "softmax",
            ["a"],
            r"\d+ of 200 answers of label on the calibration, more than 1%",
        ),
        (
            "values",
            ["b", "a"],
            "root mean square error of values on the calibration is .* than 5%",
        ),
    ],
)
def test_int8_that_ruins_a_model_names_the_layer(tmp_path, kind, names, sentence):
    (tmp_path / "m.tflite").write_text("before")
    x = {name: numbers(200, 8 // (n + 1)) for n, name in enumerate(names)}
    with pytest.raises(RuntimeError, match=f"{sentence}.* most is 'wide'. Give more"):
        export(
            channels_apart(names),
            tmp_path,
            quantize="int8",
            calibration=x,
            output_kinds=kind,
        )
    assert os.listdir(tmp_path) == ["m.tflite"]
    assert (tmp_path / "m.tflite").read_text() == "before"


@pytest.mark.parametrize("form", ["dataset", "examples", "x and y", "by name", "x"])
def test_calibration_is_a_batch_or_data(form):
    inputs = Inputs.of(of(layers.Dense(3), shape=(4,)), None, False)
    x, y = numbers(150, 4), np.zeros(150)
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    given = {
        "dataset": dataset.batch(64),
        "examples": dataset,
        "x and y": (x, y),
        "by name": {"x": x},
        "x": x.astype("float64"),
    }[form]
    found = calibration_arrays(inputs, given)
    np.testing.assert_array_equal(found["x"], x)


def test_calibration_of_several_inputs():
    inputs = Inputs.of(two_inputs_three_outputs(), None, False)
    x = {"a": numbers(20, 3), "b": numbers(20, 2)}
    y = {"kind": np.zeros(20)}
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    several = list(x.values())
    listed = tf.data.Dataset.from_tensor_slices((tuple(several), np.zeros(20))).batch(8)
    for given in (
        x,
        (x, y),
        several,
        (several, y),
        dataset,
        listed,
        listed.map(lambda x, y: (x,)),
    ):
        found = calibration_arrays(inputs, given)
        assert set(found) == {"a", "b"}
        np.testing.assert_array_equal(found["b"], x["b"])


@pytest.mark.parametrize(
    ("calibration", "sentence"),
    [
        (numbers(3, 5), r"the calibration for input 'x' must be a batch of shape \(None, 4\)"),
        (numbers(0, 4), "the calibration for input 'x' .* with one example at least"),
        (np.full((3, 4), np.nan), "the calibration for input 'x' has NaN or infinity"),
        ({"y": numbers(3, 4)}, "the calibration has 'y', but the model takes 'x'"),
        ("text", "the calibration for input 'x' must be a batch of float32"),
        (lambda: 3, "given as calibration must return a tf.data.Dataset"),
        (
            tf.data.Dataset.from_tensors(numbers(3, 4)).repeat(),
            r"the calibration is endless; give take\(n\) batches",
        ),
        (tf.data.Dataset.from_tensors(numbers(3, 4)).take(0), "the calibration is empty"),
        (
            tf.data.Dataset.from_tensors(numbers(3, 5)),
            r"the calibration for input 'x' must be a batch of shape \(None, 4\)",
        ),
    ],
)  # fmt: skip
def test_a_calibration_that_does_not_fit(calibration, sentence):
    inputs = Inputs.of(of(layers.Dense(3), shape=(4,)), None, False)
    with pytest.raises((ValueError, TypeError), match=sentence):
        calibration_arrays(inputs, calibration)


@pytest.mark.parametrize(
    "activation",
    [
        "hard_silu",
        pytest.param(
            lambda x: x * keras.ops.relu6(x + 3.0) / 6.0, marks=pytest.mark.slow
        ),
    ],
)
def test_hard_swish_in_int8_is_warned_of(tmp_path, activation):
    model = of(
        layers.Conv2D(4, 3, activation=activation),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3),
        shape=(12, 12, 3),
    )
    with pytest.warns(UserWarning, match="hard-swish, which is slower .* ReLU6"):
        export(model, tmp_path, quantize="int8", calibration=IMAGES)


# Refused ---------------------------------------------------------------------------------


def of_text():
    vectorize = layers.TextVectorization(output_sequence_length=4)
    vectorize.adapt(["a good film"])
    embed = layers.Embedding(9, 2)
    return of(
        vectorize, embed, layers.Flatten(), layers.Dense(2), shape=(1,), dtype="string"
    )


def of_doubles():
    return of(layers.Dense(3, dtype="float64"), shape=(4,), dtype="float64")


@pytest.mark.parametrize(
    ("make", "given", "sentence"),
    [
        (
            of_text,
            {"example": [["a film"]]},
            "cannot take this model with quantize=None: it has no kernel for .*StringLower"
            r".*\(in .*text_vectorization.*\). Do that work before the file is asked",
        ),
        (
            lambda: of(layers.Embedding(5, 3), layers.Flatten(), shape=(4,), dtype="bool"),
            {"output_kinds": "values"},
            r"the converter fails at Less \(in .*embedding.*\). Do that work before",
        ),
        (of_doubles, {}, r"has float64 \(.*kernel.*build it under .*float32"),
        (
            lambda: of(layers.LSTM(3), layers.Dense(2), shape=(None, 4)),
            {},
            r"RNN layer over any number of steps.* free batch; build it with .*Input\(\(steps",
        ),
        (
            lambda: of(layers.LSTM(3), layers.Dense(2), shape=(None, 4)),
            {**spec(1, 5, 4), "quantize": "int8", "calibration": numbers(9, 5, 4)},
            r"any number of steps.* in int8; build it with keras.Input\(\(steps, features\)\).$",
        ),
        (
            ensemble,
            {"quantize": "int8", "calibration": numbers(9, 8)},
            'SpecialistEnsemble cannot be exported with quantize="int8"',
        ),
        (
            words,
            {"quantize": "int8", "calibration": [["ant"]], "example": [["ant"]]},
            "needs inputs that are numbers, but 'x' is of string",
        ),
        (
            two_inputs_three_outputs,
            {"quantize": "int8", "calibration": numbers(9, 3), "output_kinds": {"size": "values"}},
            "takes several inputs, a, b; give the calibration as a dict",
        ),
        (
            two_inputs_three_outputs,
            {
                "quantize": "int8",
                "calibration": {"a": numbers(9, 3), "b": numbers(8, 2)},
                "output_kinds": {"size": "values"},
            },
            "arrays of the calibration have different lengths",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path, make, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        export(make(), tmp_path / "new", **given)
    assert os.listdir(tmp_path) == []


def test_what_does_not_run_is_refused_in_a_sentence(tmp_path):
    sentence = (
        "does not run the file .*XNNPack.* Look the text up before the file is asked"
    )
    with pytest.raises(RuntimeError, match=sentence):
        export(words(first=False), tmp_path / "new", example=[["ant"], ["who"]])
    assert os.listdir(tmp_path) == []


def test_without_the_extra_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(litert.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install keras-distill\[litert\]"):
        export(mlp(), tmp_path)


# Processes -------------------------------------------------------------------------------


@pytest.mark.fresh_process
def test_it_is_converted_and_asked_in_fresh_processes(tmp_path):
    x = numbers(64, 8)
    path = export(mlp(), tmp_path, quantize="int8", calibration=x)
    assert os.listdir(tmp_path) == ["m.tflite"]
    assert any(quantization[0] for quantization in scales(path).values())


@pytest.mark.fresh_process
def test_a_converter_that_ends_its_process_leaves_nothing(tmp_path, monkeypatch):
    ends = "\nopen(given[1], 'w').write('part'); os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(litert, "_CONVERT", fresh.PREAMBLE + ends)
    with pytest.raises(
        RuntimeError, match="converter was ended by SIGSEGV on this model"
    ):
        export(mlp(), tmp_path / "new")
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.fresh_process
def test_the_converter_really_ends_its_process(tmp_path):
    """A loop that is no layer of the model, in int8."""
    read = layers.GRU(3)
    model = of(layers.Dense(3), shape=(3,))
    with pytest.raises(
        RuntimeError, match="converter was ended by SIGSEGV on this model"
    ):
        export(
            model,
            tmp_path / "new",
            preprocess=keras.Sequential([keras.Input((5, 4)), read]).call,
            quantize="int8",
            calibration=numbers(40, 5, 4),
            **spec(1, 5, 4),
        )
    assert os.listdir(tmp_path) == []


def test_other_answers_leave_the_file_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "m.tflite").write_text("before")

    def lies(*asked):
        return [{**one, "logits": one["logits"] + 1e-3} for one in answer_here(*asked)]

    monkeypatch.setattr(check, "ask_fresh_process", lies)
    with pytest.raises(
        RuntimeError, match="gives other logits as a LiteRT file .* example="
    ):
        export(mlp(), tmp_path)
    assert (tmp_path / "m.tflite").read_text() == "before"
    assert os.listdir(tmp_path) == ["m.tflite"]


EXPORT = """
import sys
import keras
from keras_distill.export import check, fresh, litert

# The child keeps Python's lock, as a converter does.
STAYS = fresh.PREAMBLE + '''
open(%r, "w").write(str(os.getpid()))
ctypes.PyDLL(None).sleep(600)
''' % (sys.argv[1] + ".pid")
if sys.argv[2] == "converting":
    litert._CONVERT = STAYS
else:
    def converted(function, saved_model, path, *rest):
        open(path, "w").write("half a file")
        return {"operations": []}
    litert._in_a_child, check._FRESH_PROCESS = converted, STAYS
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
litert.export_litert(model, sys.argv[1], verbose=False)
"""


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("converting", signal.SIGKILL),
        ("checking", signal.SIGTERM),
        ("converting", signal.SIGINT),
        pytest.param("converting", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("checking", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("checking", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_killed_export_leaves_no_process_and_no_part(tmp_path, stage, number):
    folder = tmp_path / "new"
    path, child = folder / "m.tflite", folder / "m.tflite.pid"
    with Process(["-c", EXPORT, path, stage]) as process:
        wait_for(lambda: child.exists() and child.read_text())
        pid = int(child.read_text())
        assert is_alive(pid)
        assert not path.exists()
        process.send_signal(number)
        assert process.wait(30) != 0
    wait_for(lambda: not is_alive(pid))
    assert not path.exists()
    left = set(os.listdir(folder)) - {child.name}
    assert len(left) == (0 if number == signal.SIGINT else 1)
    export(mlp(), folder)
    assert set(os.listdir(folder)) == {"m.tflite", child.name}


FULL = """
import os, resource, signal, sys
import keras
from keras_distill.export import litert, litert_converter

litert._in_a_child = lambda f, *given: getattr(litert_converter, f)(*given)
if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
else:
    os.setuid(65534)
model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(300)])
try:
    litert.export_litert(model, sys.argv[1], verbose=False)
except OSError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("why", ["full", "read-only"])
def test_a_folder_that_cannot_be_written(tmp_path, why):
    if why == "read-only":
        if os.getuid():
            pytest.skip("only the superuser can become somebody else")
        for path in (tmp_path, *tmp_path.parents[:2]):
            path.chmod(0o755)
    done = run(["-c", FULL, tmp_path / "new" / "m.tflite", why])
    assert "the export could not be written to" in done.stdout, done.stderr
    assert os.listdir(tmp_path) == []


# Measured --------------------------------------------------------------------------------


def normed(layer):
    return keras.Sequential(
        [layer, layers.BatchNormalization(momentum=0.9), layers.ReLU(6.0)]
    )


def separable():
    """A student as phones have it: depthwise, with BatchNormalization and ReLU6."""
    stack = [normed(layers.Conv2D(32, 3, strides=2, use_bias=False))]
    for width, strides in ((64, 2), (128, 1), (256, 2)):
        stack += [
            normed(layers.DepthwiseConv2D(3, strides=strides, padding="same")),
            normed(layers.Conv2D(width, 1, use_bias=False)),
        ]
    stack += [layers.GlobalAveragePooling2D(), layers.Dense(10)]
    return of(*stack, shape=(28, 28, 1))


def pooled():
    stack = []
    for width in (32, 64):
        stack += [
            normed(layers.Conv2D(width, 3, padding="same")),
            layers.MaxPooling2D(),
        ]
    dense = layers.Dense(128, activation="relu")
    stack += [layers.Flatten(), dense, layers.Dense(10, activation="softmax")]
    return of(*stack, shape=(28, 28, 1))


@pytest.mark.slow
@pytest.mark.parametrize("make", [separable, pooled])
def test_what_quantizing_costs_on_digits(tmp_path, make):
    if not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "mnist")):
        pytest.skip("TFDS_DATA_DIR does not lead to a prepared mnist")
    data = kd.datasets.load("mnist")
    x, y = (
        np.concatenate(parts)
        for parts in zip(*data.train.as_numpy_iterator(), strict=True)
    )
    test, answers = (
        np.concatenate(parts)
        for parts in zip(*data.test.as_numpy_iterator(), strict=True)
    )
    model = make()
    from_logits = make is separable
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    model.compile(keras.optimizers.Adam(2e-3), loss)
    model.fit(x[:30000], y[:30000], batch_size=128, epochs=1, verbose=0)
    saved = kd.export_savedmodel(model, tmp_path / "saved", verbose=False)
    serve = tf.saved_model.load(saved).signatures["serving_default"]
    exact = {n: v.numpy() for n, v in serve(x=tf.constant(test)).items()}
    accuracy, size = {}, {}
    for how in (None, "float16", "dynamic", "int8"):
        more = {"calibration": x[:1000]} if how == "int8" else {}
        path = export(model, tmp_path, quantize=how, **more)
        size[how], ask = os.path.getsize(path), runtime.Model(path, threads=2)
        found = [ask({"x": test[i : i + 500]}) for i in range(0, len(test), 500)]
        labels = np.concatenate([one["label"] for one in found])
        logits = np.concatenate([one["logits"] for one in found])
        accuracy[how] = float(np.mean(labels == answers))
        error = np.abs(logits - exact["logits"]).max()
        print(how, size[how], accuracy[how], error, np.ptp(exact["logits"]))
        if how is None:
            assert error <= 1e-4
            nearest = np.sort(exact["logits"], -1)[:, -2:]
            assert np.all((labels == exact["label"]) | (np.ptp(nearest, -1) <= 1e-4))
        if how == "float16":
            assert error <= 0.005 * np.ptp(exact["logits"])
    assert accuracy[None] > 0.95
    assert accuracy["dynamic"] >= accuracy[None] - 0.001
    assert accuracy["int8"] >= accuracy[None] - 0.005
    if size[None] > 500_000:
        assert size["int8"] <= 0.35 * size[None]


def bert():
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=20,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=6,
    )
    return keras_hub.models.BertTextClassifier(
        backbone, num_classes=2, preprocessor=None
    )


APPLICATIONS = keras.applications
BIG = {
    "MobileNetV3Small": (
        lambda: APPLICATIONS.MobileNetV3Small((64, 64, 3), weights=None, classes=10),
        255 * RNG.uniform(size=(64, 64, 64, 3)).astype("float32"),
        1e-4,
    ),
    "EfficientNetB0": (
        lambda: APPLICATIONS.EfficientNetB0(weights=None, input_shape=(64, 64, 3), classes=10),
        255 * RNG.uniform(size=(64, 64, 64, 3)).astype("float32"),
        1e-4,
    ),
    "BertTextClassifier": (
        bert,
        {
            "token_ids": RNG.integers(20, size=(64, 6)).astype("int32"),
            "padding_mask": np.ones((64, 6), "int32"),
            "segment_ids": np.zeros((64, 6), "int32"),
        },
        1e-4,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", [None, "float16", "dynamic", "int8"])
@pytest.mark.parametrize("name", BIG)
def test_models_that_people_bring(tmp_path, name, how, recwarn):
    make, x, limit = BIG[name]
    model = make()
    more = {"calibration": x} if how == "int8" else {}
    example = keras.tree.map_structure(lambda array: array[:4], x)
    path = export(model, tmp_path, quantize=how, example=example, **more)
    if how is None:
        x = x if isinstance(x, dict) else {runtime_name(path): x}
        answer = runtime.Model(path)({name: array[:3] for name, array in x.items()})
        first = (
            {n: a[:3] for n, a in x.items()}
            if len(x) > 1
            else next(iter(x.values()))[:3]
        )
        outputs = model.predict(first, verbose=0)
        key = "probabilities" if name != "BertTextClassifier" else "logits"
        np.testing.assert_allclose(answer[key], outputs, atol=limit)
    said = [str(one.message) for one in recwarn if "hard-swish" in str(one.message)]
    assert bool(said) == (how == "int8" and name == "MobileNetV3Small")


def runtime_name(path):
    return next(iter(runtime.Model(path)._dtypes))
