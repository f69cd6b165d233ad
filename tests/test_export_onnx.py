"""An .onnx file is whole and right, or refused in a sentence, and nothing else is left."""

import json
import os
import signal
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill.export import check, fresh, onnx, onnx_converter, portable
from keras_distill.export.runtimes import onnx as runtime
from tests.conftest import mlp
from tests.forking import Process, answer_here, run, wait_for
from tests.litert_models import (
    NAMES,
    TOKENS,
    Reader,
    convolutions,
    depthwise,
    ensemble,
    masked_lstm,
    nested_gru,
    numbers,
    of,
    scaled,
    spec,
    transformer,
    two_inputs_three_outputs,
    unet,
    words,
)

# The kind of most models here is not said, and of no matter.
pytestmark = pytest.mark.filterwarnings("ignore:nothing says whether:UserWarning")


def convert_here(function, *given):
    return getattr(onnx_converter, function)(*given)


@pytest.fixture(autouse=True)
def _here(request, monkeypatch):
    """Converts and answers in the test's process, where a fresh one is not the point."""
    if request.node.get_closest_marker("fresh_process") is None:
        monkeypatch.setattr(check, "ask_fresh_process", answer_here)
        monkeypatch.setattr(onnx, "_in_a_child", convert_here)


@pytest.fixture
def servings(monkeypatch):
    """What is served by each export, as a list."""
    real, made = onnx.Serving.of, []

    def of(*given, **named):
        made.append(real(*given, **named))
        return made[-1]

    monkeypatch.setattr(onnx.Serving, "of", of)
    return made


def export(model, folder, **given):
    return kd.export_onnx(model, folder / "m.onnx", **{"verbose": False, **given})


class Positions(layers.Layer):
    """Adds a constant that the function captures."""

    def build(self, shape):
        self.positions = tf.constant(numbers(*shape[1:]))

    def call(self, x):
        return x + self.positions


def tanh_transformer():
    def gelu(x):
        return keras.activations.gelu(x, approximate=True)

    tokens = keras.Input((6,), dtype="int32", name="x")
    e = layers.Embedding(10, 8, mask_zero=True)(tokens)
    h = layers.LayerNormalization()(e + layers.MultiHeadAttention(2, 4)(e, e))
    h = layers.LayerNormalization()(h + layers.Dense(8, activation=gelu)(h))
    return keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(h)))


def out_of_order():
    z, a = keras.Input((3,), name="z"), keras.Input((2,), name="a")
    return keras.Model([z, a], layers.Dense(3)(layers.Concatenate()([z, a])))


def one_without_effect():
    z, a = keras.Input((3,), name="z"), keras.Input((2,), name="a")
    nothing = 0.0 * keras.ops.mean(a, -1, keepdims=True)
    return keras.Model([z, a], layers.Dense(3)(z) + nothing)


def one_output_twice():
    x = keras.Input((3,), name="x")
    h = layers.Dense(3)(x)
    return keras.Model(x, {"u": h, "v": h, "same": x})


def questions(count):
    return of(layers.Dense(count, activation="sigmoid"), shape=(4,))


def few_specialists():
    """Of five classes one has none, one has two."""
    models = [mlp(classes=3), mlp(classes=4)]
    return kd.SpecialistEnsemble(mlp(), models, [[0, 1], [1, 2, 3]])


def under(policy, make):
    def made():
        keras.config.set_dtype_policy(policy)
        return make()

    return made


def mobile():
    shape = (64, 64, 3)
    return keras.applications.MobileNetV3Small(shape, weights=None, classes=5)


FILES = ["m.onnx", "m.onnx.card.json", "m.onnx.card.md"]
RAW = tf.TensorSpec([None, 30, 40, 3], tf.uint8, name="raw")
ANY_SIZE = tf.TensorSpec([None, None, None, 3], tf.uint8, name="raw")
TEXT = np.array([["ant"], ["bée"], ["who"]])
SIZE = {"output_kinds": {"size": "values"}}
SLOW = pytest.mark.slow


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("make", "given", "inputs"),
    [
        (convolutions, {"class_names": NAMES}, {"x": ["batch", 12, 12, 3]}),
        (depthwise, {"preprocess": scaled, "input_signature": RAW}, {"raw": ["batch", 30, 40, 3]}),
        (depthwise, spec(1, 12, 12, 3), {"x": [1, 12, 12, 3]}),
        (unet, {}, {"x": ["batch", 8, 8, 2]}),
        (tanh_transformer, {"example": TOKENS}, {"x": ["batch", 6]}),
        (Reader, {**spec(None, None, 4), "from_logits": True}, {"x": ["batch", "x_1", 4]}),
        (
            two_inputs_three_outputs,
            {**SIZE, "class_names": {"kind": ["a", "b", "é"]}},
            {"a": ["batch", 3], "b": ["batch", 2]},
        ),
        (out_of_order, {}, {"z": ["batch", 3], "a": ["batch", 2]}),
        (one_without_effect, {"from_logits": True}, {"z": ["batch", 3], "a": ["batch", 2]}),
        (one_output_twice, {"output_kinds": {"same": "values"}}, {"x": ["batch", 3]}),
        (lambda: of(Positions(), layers.Dense(3), shape=(4,)), {}, {"x": ["batch", 4]}),
        (words, {"example": TEXT, "class_names": ["a", "b", "é"]}, {"x": ["batch", 1]}),
        (lambda: questions(3), {"class_names": ["a", "b", "é"]}, {"x": ["batch", 4]}),
        (lambda: questions(1), {"class_names": ["no", "yes"], "threshold": 0.3}, {"x": ["batch", 4]}),
        (under("mixed_float16", convolutions), {}, {"x": ["batch", 12, 12, 3]}),
        (under("float64", lambda: questions(3)), {}, {"x": ["batch", 4]}),
        # Others of the same kind.
        pytest.param(nested_gru, {}, {"x": ["batch", 5, 4]}, marks=SLOW),
        pytest.param(masked_lstm, {"example": TOKENS[:, 1:]}, {"x": ["batch", 5]}, marks=SLOW),
        pytest.param(mobile, {}, None, marks=SLOW),
        pytest.param(
            depthwise,
            {"preprocess": scaled, "input_signature": ANY_SIZE},
            {"raw": ["batch", "raw_1", "raw_2", 3]},
            marks=SLOW,
        ),
        pytest.param(under("mixed_bfloat16", convolutions), {}, {"x": ["batch", 12, 12, 3]}, marks=SLOW),
        pytest.param(under("float16", convolutions), {}, {"x": ["batch", 12, 12, 3]}, marks=SLOW),
        pytest.param(under("mixed_float16", tanh_transformer), {}, {"x": ["batch", 6]}, marks=SLOW),
        pytest.param(under("mixed_float16", masked_lstm), {}, {"x": ["batch", 5]}, marks=SLOW),
        pytest.param(under("float64", masked_lstm), {}, {"x": ["batch", 5]}, marks=SLOW),
        pytest.param(Reader, {**spec(1, 5, 4), "from_logits": True}, {"x": [1, 5, 4]}, marks=SLOW),
        pytest.param(lambda: words(first=False), {"example": TEXT}, {"x": ["batch", 1]}, marks=SLOW),
    ],
)  # fmt: skip
def test_inputs_and_answers_are_those_of_the_savedmodel(
    tmp_path, servings, make, given, inputs
):
    """The export compares the answers itself; here on other numbers, five at once."""
    path = export(make(), tmp_path, **given)
    assert sorted(os.listdir(tmp_path)) == FILES
    (serving,) = servings
    ask = runtime.Model(path)
    taken = {one.name: one.shape for one in ask._session.get_inputs()}
    assert inputs in (None, taken)
    batch, rng = {}, np.random.default_rng(1)
    for name, part in serving.inputs.specs.items():
        shape = [size or 5 for size in part.shape]
        numbers = rng.integers(0, 9, shape).astype(part.dtype.as_numpy_dtype)
        batch[name] = np.resize(TEXT, shape) if part.dtype == tf.string else numbers
    served = serving.function(**{n: tf.constant(v) for n, v in batch.items()})
    expected = {name: value.numpy() for name, value in served.items()}
    answer = ask(batch)
    assert set(answer) == set(expected)
    is_half = "float16" in keras.config.dtype_policy().name  # or bfloat16
    half = 0.1 if "b" in keras.config.dtype_policy().name else 0.01
    for name, value in expected.items():
        assert answer[name].shape == value.shape
        assert answer[name].dtype == value.dtype
        if value.dtype.kind == "f":
            tolerance = half * max(1.0, np.ptp(value)) if is_half else 1e-4
            np.testing.assert_allclose(answer[name], value, atol=tolerance, rtol=1e-5)
        elif not is_half:
            np.testing.assert_array_equal(answer[name], value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        few_specialists,
        pytest.param(ensemble, marks=SLOW),
        pytest.param(lambda: ensemble().with_settings(n=None), marks=SLOW),
        pytest.param(lambda: few_specialists().with_settings(n=2), marks=SLOW),
        pytest.param(lambda: ensemble().with_settings(routed=False), marks=SLOW),
    ],
)
def test_an_ensemble_answers_as_in_keras(tmp_path, make):
    model, x = make(), 3.0 * numbers(200, 8)
    ask = runtime.Model(export(model, tmp_path, class_names=NAMES))
    (name,) = ask._dtypes
    expected = model.predict(x, verbose=0)
    for rows in (x, x[:1]):
        answer = ask({name: rows})
        # The fixed point ends where no probability changes by more than 1e-6.
        exact = np.exp(expected[: len(rows)])
        np.testing.assert_allclose(answer["probabilities"], exact, atol=1e-6)
    labels = [NAMES[i].encode() for i in expected.argmax(-1)]
    assert list(ask({name: x})["label"]) == labels


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log1p_is_exact_to_the_last_bits(tmp_path, dtype):
    class Log(layers.Layer):
        def call(self, x):
            return keras.ops.log1p(x)

    model = of(Log(dtype=dtype), shape=(1,), dtype=dtype)
    path = export(model, tmp_path, output_kinds="values")
    x = np.geomspace(1e-37, 1e37, 2001, dtype=dtype)
    x = np.concatenate([x, -np.geomspace(1e-37, 0.999, 2001, dtype=dtype), [0, np.inf]])
    x = x.astype(dtype)[:, None]
    found = runtime.Model(path)({"x": x})["values"]
    np.testing.assert_allclose(found, np.log1p(x).astype("float32"), rtol=3e-7)


@pytest.mark.slow
def test_the_exact_gelu_is_that_of_keras(tmp_path):
    model = of(layers.Activation("gelu"), shape=(1,))
    given = {"output_kinds": "values"}
    x = np.linspace(-9.0, 9.0, 999, dtype="float32")[:, None]
    answer = runtime.Model(export(model, tmp_path, **given))({"x": x})["values"]
    np.testing.assert_allclose(answer, model(x), rtol=1e-6, atol=2e-6)
    kd.export_onnx(transformer(), tmp_path / "t.onnx", example=TOKENS, verbose=False)


@pytest.mark.slow
def test_what_cudnn_does_is_left_out_while_it_is_traced(tmp_path, monkeypatch):
    gru, seen = layers.GRU(3), []
    model = of(gru, layers.Dense(3), shape=(5, 4))
    real = layers.GRU.inner_loop

    def look(self, *given, **named):
        seen.append((self.use_cudnn, self.unroll))
        return real(self, *given, **named)

    monkeypatch.setattr(layers.GRU, "inner_loop", look)
    export(model, tmp_path)
    assert (False, False) in seen
    assert gru.use_cudnn == "auto"
    members = ensemble()
    with portable.portable([members], False, routed=True) as is_other:
        assert members.routed
        assert not is_other


def test_several_threads_ask_one_model(tmp_path):
    ask = runtime.Model(export(mlp(activation="softmax"), tmp_path), threads=2)
    x, found = numbers(200, 8), {}
    (name,) = ask._dtypes

    def labels(thread):
        rows = [ask({name: x[i : i + 1 + i % 3]})["label"][0] for i in range(200)]
        found[thread] = np.array(rows)

    threads = [threading.Thread(target=labels, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread in range(3):
        np.testing.assert_array_equal(found[thread], ask({name: x})["label"])


def test_text_goes_in_as_str_or_bytes_and_comes_out_as_bytes(tmp_path):
    path = export(words(), tmp_path, example=TEXT, class_names=["é", "b", "c"])
    ask = runtime.Model(path)
    given = np.array([["ant"], ["bee"]])
    answers = [ask({"x": given.astype(d)})["logits"] for d in ("U", "S", object)]
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])
    assert ask({"x": given})["label"][0] in ("é".encode(), b"b", b"c")


# Refused ---------------------------------------------------------------------------------


def of_text(**given):
    vectorize = layers.TextVectorization(output_sequence_length=4, **given)
    vectorize.adapt(["a good film"])
    stack = vectorize, layers.Embedding(9, 2), layers.Flatten(), layers.Dense(2)
    return of(*stack, shape=(1,), dtype="string")


@pytest.mark.parametrize(
    ("make", "given", "sentence"),
    [
        (
            lambda: of_text(),
            {"example": TEXT},
            r"no operation for StaticRegexReplace, StringSplitV2 \(in .*text_vectorization.*"
            "Do that to the text before the file is asked",
        ),
        (
            lambda: of(layers.Dense(3, activation=keras.ops.erfinv), shape=(4,)),
            {"from_logits": True},
            r"no operation for Erfinv \(in .*dense.*\). Do that work before",
        ),
        (
            lambda: keras.Sequential([keras.Input((4,), name="label"), layers.Dense(3)]),
            {},
            "the input 'label' has the name of an output, .* name='raw_label'",
        ),
        (words, {"example": [[b"\xff"]]}, r"example for input 'x' is not all UTF-8.*got b'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path, make, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        export(make(), tmp_path / "new", **given)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("make", "given", "sentence"),
    [
        (under("float64", convolutions), {}, "has float64, for which onnxruntime"),
        pytest.param(
            under("bfloat16", convolutions), {}, "has bfloat16, for which .*build it under", marks=SLOW
        ),
        pytest.param(
            lambda: of_text(standardize=None, split=None),
            {"example": TEXT},
            "running Cast node.*Build what it names in another way, or serve",
            marks=SLOW,
        ),
    ],
)  # fmt: skip
def test_what_does_not_run_is_refused_in_a_sentence(
    tmp_path, monkeypatch, make, given, sentence
):
    def ask(*asked):
        try:
            return answer_here(*asked)
        except Exception as error:
            raise RuntimeError(f"it does not run:\n{error}") from error

    monkeypatch.setattr(check, "ask_fresh_process", ask)
    with pytest.raises(RuntimeError, match=f"onnxruntime does not run .*{sentence}"):
        export(make(), tmp_path / "new", **given)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("missing", ["tf2onnx", "onnxruntime"])
def test_without_the_extra_it_is_named(tmp_path, monkeypatch, missing):
    monkeypatch.setattr(
        onnx.importlib.util, "find_spec", lambda name: None if name == missing else 1
    )
    sentence = rf"needs {missing}: pip install keras-distill\[onnx\]"
    with pytest.raises(ImportError, match=sentence):
        export(mlp(), tmp_path)


def test_other_answers_leave_the_file_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "m.onnx").write_text("before")

    def lies(*asked):
        return [{**one, "logits": one["logits"] + 3e-4} for one in answer_here(*asked)]

    monkeypatch.setattr(check, "ask_fresh_process", lies)
    sentence = "gives other logits as an ONNX file .* example="
    with pytest.raises(RuntimeError, match=sentence):
        export(mlp(), tmp_path)
    assert (tmp_path / "m.onnx").read_text() == "before"
    assert os.listdir(tmp_path) == ["m.onnx"]


# Processes -------------------------------------------------------------------------------


@pytest.mark.fresh_process
def test_it_is_converted_and_asked_in_fresh_processes(tmp_path, monkeypatch):
    asked = []
    real = fresh.run

    def look(program, arguments, given):
        asked.append((os.path.basename(arguments[0]), given))
        return real(program, arguments, given)

    monkeypatch.setattr(fresh, "run", look)
    path = export(mlp(), tmp_path)
    (converter, _), (ran, batches) = asked
    assert (converter, ran) == ("onnx_converter.py", "onnx.py")
    assert [len(next(iter(batch.values()))) for batch in batches] == [1, 3]
    assert path == str(tmp_path / "m.onnx")
    assert sorted(os.listdir(tmp_path)) == FILES
    card = json.loads((tmp_path / "m.onnx.card.json").read_text())
    assert card["export"]["format"] == "ONNX"
    assert {"tf2onnx", "onnxruntime"} <= set(card["packages"])


@pytest.mark.fresh_process
def test_a_converter_that_ends_its_process_leaves_nothing(tmp_path, monkeypatch):
    ends = "\nopen(given[1], 'w').write('part'); os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(fresh, "CALL", fresh.PREAMBLE + ends)
    sentence = "the ONNX converter was ended by SIGSEGV on this model"
    with pytest.raises(RuntimeError, match=sentence):
        export(mlp(), tmp_path / "new")
    assert os.listdir(tmp_path) == []


KILLED = """
import sys
import keras
from keras_distill.export import fresh, onnx

fresh.CALL = fresh.PREAMBLE + '''
open(%r, "w").write(str(os.getpid()))
ctypes.PyDLL(None).sleep(600)
''' % (sys.argv[1] + ".pid")
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
onnx.export_onnx(model, sys.argv[1], verbose=False)
"""


def test_a_killed_export_leaves_no_process_and_no_part(tmp_path):
    path, child = tmp_path / "m.onnx", tmp_path / "m.onnx.pid"
    with Process(["-c", KILLED, path]) as process:
        wait_for(lambda: child.exists() and child.read_text())
        pid = int(child.read_text())
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) != 0

    def is_over():
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    wait_for(is_over)
    assert not path.exists()
    export(mlp(), tmp_path)
    assert set(os.listdir(tmp_path)) == {*FILES, child.name}


FULL = """
import os, resource, signal, sys
import keras
from keras_distill.export import check, onnx, onnx_converter
from tests.forking import answer_here

onnx._in_a_child = lambda f, *given: getattr(onnx_converter, f)(*given)
check.ask_fresh_process = answer_here
if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
else:
    os.setuid(65534)
model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(300)])
try:
    onnx.export_onnx(model, sys.argv[1], verbose=False)
except OSError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
@pytest.mark.parametrize("why", ["full", "read-only"])
def test_a_folder_that_cannot_be_written(tmp_path, why):
    if why == "read-only":
        if os.getuid():
            pytest.skip("only the superuser can become somebody else")
        for path in (tmp_path, *tmp_path.parents[:2]):
            path.chmod(0o755)
    done = run(["-c", FULL, tmp_path / "new" / "m.onnx", why])
    assert "the export could not be written to" in done.stdout, done.stderr
    assert os.listdir(tmp_path) == []
