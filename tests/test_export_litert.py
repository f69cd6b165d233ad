"""A .tflite file is whole and right, or refused in a sentence, and nothing else is left."""

import os
import signal
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_distill.export import check, fresh, litert
from keras_distill.export.calibration import batches_of, calibration_arrays
from keras_distill.export.inputs import Inputs
from keras_distill.export.runtimes import litert as runtime
from tests.conftest import mlp
from tests.forking import Process, answer_here, run, wait_for
from tests.litert_models import (
    FILES,
    IMAGES,
    RNG,
    Reader,
    convert_here,
    depthwise,
    ensemble,
    export,
    numbers,
    of,
    spec,
    two_inputs_three_outputs,
    words,
)

# The kind of most models here is not said, and of no matter.
pytestmark = pytest.mark.filterwarnings("ignore:nothing says whether:UserWarning")


@pytest.fixture(autouse=True)
def _here(request, monkeypatch):
    """Converts and answers in the test's process, where a fresh one is not the point."""
    if request.node.get_closest_marker("fresh_process") is None:
        monkeypatch.setattr(check, "ask_fresh_process", answer_here)
        monkeypatch.setattr(litert, "_in_a_child", convert_here)


@pytest.mark.slow
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


@pytest.mark.slow
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
    with pytest.raises(
        RuntimeError, match=f"{sentence}.* most is 'wide'. Give more.*quantize_aware"
    ):
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
        (iter([numbers(3, 4)]), "calibration must be .*, got list_iterator, which can be read once"),
        (np.zeros((3, 4)), "the calibration is one number throughout"),
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


class Column(layers.Layer):
    def call(self, x):
        return x[..., None]


def of_weights(dtype):
    return of(layers.Dense(3, dtype=dtype), shape=(4,), dtype="float32")


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
        (
            lambda: of(Column(), layers.Flatten(), shape=(2, 2, 2, 2, 1)),
            {"output_kinds": "values"},
            "no kernel for StridedSlice.*Write tensor.* as keras.ops.expand_dims.*Do that work",
        ),
        *(
            (
                lambda dtype=dtype: of_weights(dtype),
                {},
                rf"the model has {dtype} \(.*kernel.*in which LiteRT does not compute; build",
            )
            for dtype in ("float64", "bfloat16")
        ),
        (lambda: of(layers.Dense(3), shape=(4,), dtype="float64"), {}, r"has float64 \(x\)"),
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
    assert sorted(os.listdir(tmp_path)) == FILES
    assert any(quantization[0] for quantization in scales(path).values())


@pytest.mark.fresh_process
def test_a_converter_that_ends_its_process_leaves_nothing(tmp_path, monkeypatch):
    ends = "\nopen(given[1], 'w').write('part'); os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(fresh, "CALL", fresh.PREAMBLE + ends)
    with pytest.raises(
        RuntimeError, match="converter was ended by SIGSEGV on this model"
    ):
        export(mlp(), tmp_path / "new")
    assert os.listdir(tmp_path) == []


class Loop(layers.Layer):
    """A loop that is no RNN layer of Keras's, so that it stays one."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]))

    def call(self, x):
        def step(time, state):
            return time + 1, tf.tanh(x[:, time] + state @ self.kernel)

        begin = 0, tf.zeros_like(x[:, 0])
        return tf.while_loop(lambda time, state: time < 5, step, begin)[1]


@pytest.mark.slow
@pytest.mark.fresh_process
def test_the_converter_really_ends_its_process(tmp_path):
    model = of(Loop(), layers.Dense(3), shape=(5, 4))
    given = {"quantize": "int8", "calibration": numbers(40, 5, 4), **spec(1, 5, 4)}
    with pytest.raises(
        RuntimeError, match="converter was ended by SIGSEGV on this model"
    ):
        export(model, tmp_path / "new", **given)
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
    fresh.CALL = STAYS
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
    assert set(os.listdir(folder)) == {*FILES, child.name}


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
