import os
import signal
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

import keras_distill as kd
from keras_distill.distiller import Distiller
from keras_distill.export import check
from keras_distill.export.savedmodel import export_savedmodel
from tests.conftest import CLASSES, FEATURES, mlp
from tests.forking import Process, answer_here, run, wait_for

# The kind of most models here is not said, and of no matter.
pytestmark = pytest.mark.filterwarnings("ignore:nothing says whether:UserWarning")


@pytest.fixture(autouse=True)
def _answers_here(request, monkeypatch):
    """Two tests ask a fresh process, one of them for an example that is text."""
    if request.node.get_closest_marker("fresh_process") is None:
        monkeypatch.setattr(check, "ask_fresh_process", answer_here)


def serve(path, **inputs):
    signature = tf.saved_model.load(path).signatures["serving_default"]
    return {name: value.numpy() for name, value in signature(**inputs).items()}


def named(width=6, activation=None, classes=CLASSES):
    return keras.Sequential(
        [
            keras.Input((FEATURES,), name="features"),
            keras.layers.Dense(width, activation="relu"),
            keras.layers.Dense(classes, activation=activation),
        ]
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "activation", [None, pytest.param("softmax", marks=pytest.mark.fresh_process)]
)
def test_signature_answers_at_temperature_one(data, tmp_path, activation):
    x, _ = data
    model = named(activation=activation)
    distiller = Distiller(model, mlp(32), temperature=20.0)
    path = export_savedmodel(distiller, tmp_path / "m", verbose=False)
    answer = serve(path, features=tf.constant(x))
    assert set(answer) == {"logits", "probabilities", "label"}
    outputs = model.predict(x, verbose=0)
    expected = outputs if activation else softmax(outputs, -1)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
    np.testing.assert_allclose(softmax(answer["logits"], -1), expected, atol=1e-5)
    np.testing.assert_array_equal(answer["label"], outputs.argmax(-1))
    assert answer["label"].dtype == np.int64


def test_class_names_and_preprocessing_are_in_the_graph(tmp_path):
    model = named()
    names = ["ant", "bee", "cat", "dog", "eel"]
    path = export_savedmodel(
        model,
        tmp_path,
        class_names=names,
        preprocess=lambda raw: tf.cast(raw, tf.float32) / 255.0,
        input_signature=tf.TensorSpec([None, FEATURES], tf.uint8, name="raw"),
        verbose=False,
    )
    raw = np.arange(2 * FEATURES, dtype="uint8").reshape(2, FEATURES)
    answer = serve(path, raw=tf.constant(raw))
    expected = model.predict(raw.astype("float32") / 255.0, verbose=0)
    np.testing.assert_allclose(answer["logits"], expected, atol=1e-5)
    assert [label.decode() for label in answer["label"]] == [
        names[i] for i in expected.argmax(-1)
    ]


@pytest.mark.slow
@pytest.mark.fresh_process
def test_preprocessing_layer_with_text_input(tmp_path):
    vectorize = keras.layers.TextVectorization(output_sequence_length=4)
    vectorize.adapt(["a good film", "a bad film"])
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int64"),
            keras.layers.Embedding(20, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    signature = tf.TensorSpec([None], tf.string, name="text")
    with pytest.raises(
        ValueError, match="no random example can be made for input 'text'"
    ):
        export_savedmodel(
            model, tmp_path, preprocess=vectorize, input_signature=signature
        )
    path = export_savedmodel(
        model,
        tmp_path,
        preprocess=vectorize,
        input_signature=signature,
        example=[b"a good film", b"not UTF-8: \xff\x00"],
        verbose=False,
    )
    answer = serve(path, text=tf.constant(["a bad film"]))
    expected = model.predict(vectorize(["a bad film"]), verbose=0)
    np.testing.assert_allclose(answer["logits"], expected, atol=1e-5)


@pytest.mark.parametrize("as_dict", [False, True])
def test_several_inputs_and_outputs(tmp_path, as_dict):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    joined = keras.layers.Concatenate()([a, b])
    outputs = {"u": keras.layers.Dense(3)(joined), "v": keras.layers.Dense(4)(joined)}
    model = keras.Model({"a": a, "b": b} if as_dict else [a, b], outputs)
    path = export_savedmodel(model, tmp_path, verbose=False)
    xa, xb = np.ones((2, 3), "float32"), 2 * np.ones((2, 2), "float32")
    answer = serve(path, a=tf.constant(xa), b=tf.constant(xb))
    assert {"u_logits", "u_probabilities", "u_label", "v_logits"} <= set(answer)
    given = {"a": xa, "b": xb} if as_dict else [xa, xb]
    expected = model.predict(given, verbose=0)
    np.testing.assert_allclose(answer["v_logits"], expected["v"], atol=1e-5)


def test_versions_count_up_past_gaps_and_strangers(tmp_path):
    for name in ("3", "notes", ".writing-old"):
        (tmp_path / name).mkdir()
    path = export_savedmodel(named(), tmp_path, verbose=False)
    assert os.path.basename(path) == "4"


def test_two_exports_at_once_get_two_versions(tmp_path):
    models, paths = [named(), named(), named()], []
    threads = [
        threading.Thread(
            target=lambda m=m: paths.append(
                export_savedmodel(m, tmp_path, verbose=False)
            )
        )
        for m in models
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(os.path.basename, paths)) == ["1", "2", "3"]
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "3"]


def test_wrong_answer_in_the_fresh_process_leaves_nothing(tmp_path, monkeypatch):
    def lies(*asked):
        (answer,) = answer_here(*asked)
        answer["logits"] = answer["logits"] + 1e-3
        return [answer]

    monkeypatch.setattr(check, "ask_fresh_process", lies)
    with pytest.raises(RuntimeError, match="gives other logits in a fresh process"):
        export_savedmodel(named(), tmp_path, verbose=False)
    assert os.listdir(tmp_path) == []


def test_a_layer_that_keeps_state_is_named(tmp_path):
    x = keras.Input(batch_shape=(2, 5, 4), name="x")
    inner = keras.Sequential([keras.layers.LSTM(3, stateful=True, name="memory")])
    model = keras.Model(x, inner(x))
    for export in (kd.export_savedmodel, kd.export_litert, kd.export_onnx):
        end = {"export_litert": ".tflite", "export_onnx": ".onnx"}
        path = tmp_path / f"m{end.get(export.__name__, '')}"
        with pytest.raises(ValueError, match="layer 'memory' is stateful.*=False and"):
            export(model, path, output_kinds="values")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "other"), [("x-y.z", "x_y_z"), ("class", "class_"), ("1 x", "input_1_x")]
)
def test_a_name_that_nobody_can_ask_by_is_told_another(tmp_path, name, other):
    model = keras.Sequential([keras.Input((4,), name=name), keras.layers.Dense(3)])
    said = rf"TensorSpec\(\[None, 4\], tf.float32, name='{other}'\)"
    with pytest.raises(ValueError, match=f"the input '{name}' cannot .*{said}"):
        export_savedmodel(model, tmp_path / "m")
    x = keras.Input((4,), name=name)
    model = keras.Model([x, keras.Input((2,), name="b")], keras.layers.Dense(3)(x))
    given = {"output_kinds": "values"}
    with pytest.raises(ValueError, match=f"a list of .* of each input.*{said}"):
        export_savedmodel(model, tmp_path / "m", **given)
    specs = [tf.TensorSpec([None, n], name=s) for n, s in ((4, other), (2, "b"))]
    path = export_savedmodel(model, tmp_path / "m", input_signature=specs, **given)
    serve = tf.saved_model.load(path).signatures["serving_default"]
    batch = {other: tf.ones((2, 4)), "b": tf.ones((2, 2))}
    np.testing.assert_allclose(serve(**batch)["values"], model(list(batch.values())))


def test_random_layer_is_found_out(tmp_path):
    class Noise(keras.layers.Layer):
        def call(self, x):
            return x + tf.random.normal(tf.shape(x))

    model = keras.Sequential([keras.Input((4,)), Noise(), keras.layers.Dense(3)])
    with pytest.raises(
        RuntimeError, match="other logits when asked twice .* cannot be served"
    ):
        export_savedmodel(model, tmp_path, from_logits=True, verbose=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.fresh_process
def test_fresh_process_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_FRESH_PROCESS", "raise SystemExit('no disk')")
    with pytest.raises(RuntimeError, match="does not run in a fresh process:\nno disk"):
        export_savedmodel(named(), tmp_path, verbose=False)
    assert os.listdir(tmp_path) == []


def test_half_written_version_is_never_visible(tmp_path, monkeypatch):
    seen = []

    def look(*asked):
        seen.extend(name for name in os.listdir(tmp_path) if name.isdigit())
        return answer_here(*asked)

    monkeypatch.setattr(check, "ask_fresh_process", look)
    export_savedmodel(named(), tmp_path, verbose=False)
    assert seen == []
    assert os.listdir(tmp_path) == ["1"]


def test_saved_model_cli_runs_it(data, tmp_path):
    x, _ = data
    model = named()
    path = export_savedmodel(model, tmp_path / "m", verbose=False)
    np.save(tmp_path / "x.npy", x[:3])
    done = run(
        [
            "-m", "tensorflow.python.tools.saved_model_cli", "run", "--dir", path,
            "--tag_set", "serve", "--signature_def", "serving_default",
            "--inputs", f"features={tmp_path / 'x.npy'}",
            "--outdir", tmp_path / "out",
        ]
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        np.load(tmp_path / "out" / "logits.npy"),
        model.predict(x[:3], verbose=0),
        atol=1e-5,
    )


def test_subclassed_model_needs_a_signature(tmp_path):
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    model = Mine()
    with pytest.raises(ValueError, match="pass input_signature=tf.TensorSpec"):
        export_savedmodel(model, tmp_path)
    model(np.ones((1, 4), "float32"))
    spec = tf.TensorSpec([None, 4], tf.float32, name="x")
    path = export_savedmodel(
        model, tmp_path, input_signature=spec, from_logits=True, verbose=False
    )
    assert serve(path, x=tf.ones((2, 4)))["logits"].shape == (2, 3)


IMAGE = tf.TensorSpec([None, 4], tf.float32, name="image")
WORDS = tf.TensorSpec([None, 3], tf.int32, name="words")


class Reader(keras.Model):
    """Reads an image and words; how they are given is for its kinds to say."""

    def __init__(self):
        super().__init__()
        self.see, self.read = keras.layers.Dense(3), keras.layers.Embedding(20, 3)

    def both(self, image, words):
        return self.see(image) + keras.ops.mean(self.read(words), 1)


class ReaderOfDict(Reader):
    def call(self, inputs, training=None):
        return self.both(inputs["image"], inputs["words"])


class ReaderOfList(Reader):
    def call(self, inputs):
        image, words = inputs
        return self.both(image, words)


class ReaderOfArguments(Reader):
    def call(self, image, words, training=False):
        return self.both(image, words)


class ReaderOfOptionalWords(Reader):
    def call(self, image, words=None):
        return self.see(image) if words is None else self.both(image, words)


class ReaderOfNest(Reader):
    def call(self, inputs):
        return self.both(inputs["seen"], inputs["read"][0])


@pytest.mark.parametrize(
    ("made", "signature", "taken"),
    [
        (ReaderOfDict, {"image": IMAGE, "words": WORDS}, None),
        (ReaderOfList, [IMAGE, WORDS], None),
        (ReaderOfList, (IMAGE, WORDS), None),
        (ReaderOfArguments, [IMAGE, WORDS], None),
        (
            ReaderOfArguments,
            [tf.TensorSpec([None, 4]), tf.TensorSpec([None, 3], tf.int32)],
            None,
        ),
        (ReaderOfArguments, {"words": WORDS, "image": IMAGE}, None),
        (ReaderOfOptionalWords, [IMAGE, WORDS], None),
        (ReaderOfOptionalWords, {"image": IMAGE, "words": WORDS}, None),
        (ReaderOfNest, {"seen": IMAGE, "read": [WORDS]}, "seen"),
    ],
)
def test_a_subclassed_model_of_several_inputs(tmp_path, made, signature, taken):
    """Called as its call says, whether it was built before or not."""
    model, rng = made(), np.random.default_rng(0)
    image, words = rng.normal(size=(5, 4)), rng.integers(20, size=(5, 3))
    image, words = image.astype("float32"), words.astype("int32")
    path = export_savedmodel(
        model,
        tmp_path,
        input_signature=signature,
        example=[image, words] if isinstance(signature, list) else None,
        from_logits=True,
        verbose=False,
    )
    answer = serve(path, **{taken or "image": image, "words": words})
    expected = model.both(image, words).numpy()
    np.testing.assert_allclose(answer["logits"], expected, atol=1e-6)
    np.testing.assert_array_equal(answer["label"], expected.argmax(-1))


def test_a_subclassed_model_takes_a_dict_of_one_input(tmp_path):
    class Of(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs["image"])

    signature = {"image": IMAGE}
    path = export_savedmodel(
        Of(), tmp_path, input_signature=signature, from_logits=True, verbose=False
    )
    assert serve(path, image=tf.ones((2, 4)))["logits"].shape == (2, 3)


def test_raw_inputs_come_as_the_signature_has_them(tmp_path):
    model = ReaderOfArguments()
    path = export_savedmodel(
        model,
        tmp_path,
        input_signature=[IMAGE, WORDS],
        preprocess=lambda raw: (raw[0] / 2.0, raw[1] + 1),
        from_logits=True,
        verbose=False,
    )
    image, words = np.ones((2, 4), "float32"), np.ones((2, 3), "int32")
    answer = serve(path, image=image, words=words)["logits"]
    expected = model.both(image / 2.0, words + 1)
    np.testing.assert_allclose(answer, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("made", "signature", "message"),
    [
        (
            ReaderOfDict,
            [IMAGE, WORDS],
            r"fails on \[image, words\], as input_signature",
        ),
        (ReaderOfList, IMAGE, "fails on image, as input_signature has them"),
        (ReaderOfArguments, [IMAGE], r"fails on image, as input_signature"),
        (ReaderOfArguments, {"image": IMAGE}, "fails on its arguments {image: image}"),
        (ReaderOfDict, {}, "input_signature is empty, got {}; give a tf.TensorSpec"),
        (
            ReaderOfDict,
            {"image": None},
            "must be a tf.TensorSpec or a dict, .* got None",
        ),
    ],
)
def test_a_signature_that_the_model_does_not_take(tmp_path, made, signature, message):
    with pytest.raises((ValueError, TypeError), match=message):
        export_savedmodel(
            made(), tmp_path / "m", input_signature=signature, verbose=False
        )
    assert not (tmp_path / "m").exists()


def test_a_signature_for_a_functional_model_of_several_inputs(tmp_path):
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    specs = [tf.TensorSpec([None, 2], name="x"), tf.TensorSpec([None, 3], name="y")]
    model = keras.Model(
        [a, b], keras.layers.Dense(3)(keras.ops.concatenate([a, b], -1))
    )
    path = export_savedmodel(model, tmp_path, input_signature=specs, verbose=False)
    answer = serve(path, x=tf.ones((2, 2)), y=tf.ones((2, 3)))["logits"]
    expected = model([tf.ones((2, 2)), tf.ones((2, 3))])
    np.testing.assert_allclose(answer, expected, atol=1e-6)
    named = {"a": specs[0], "c": specs[1]}
    with pytest.raises(
        ValueError, match="input_signature has 'a', 'c', but .* 'a', 'b'"
    ):
        export_savedmodel(model, tmp_path, input_signature=named, verbose=False)


def test_models_that_cannot_be_served(tmp_path):
    with pytest.raises(ValueError, match="the model has 1 class: a softmax over it is"):
        export_savedmodel(named(classes=1, activation="softmax"), tmp_path / "m")
    broken = named()
    broken.set_weights([np.full_like(w, np.nan) for w in broken.get_weights()])
    with pytest.raises(ValueError, match="for the example are not all finite"):
        export_savedmodel(broken, tmp_path / "m")
    vectorize = keras.layers.TextVectorization(output_sequence_length=4)
    vectorize.adapt(["a good film"])
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Rescaling(1.0), keras.layers.Dense(2)]
    )
    with pytest.raises(ValueError, match="pass the Keras layer itself"):
        export_savedmodel(
            model,
            tmp_path / "m",
            preprocess=lambda text: vectorize(text),
            input_signature=tf.TensorSpec([None], tf.string, name="text"),
            example=["a film"],
            verbose=False,
        )
    assert not (tmp_path / "m").exists()


def test_wrong_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file; give a directory"):
        export_savedmodel(named(), tmp_path / "file")
    with pytest.raises(
        ValueError, match="class_names has 2 names, but the model has 5"
    ):
        export_savedmodel(named(), tmp_path / "m", class_names=["a", "b"])
    with pytest.raises(TypeError, match="model must be a keras.Model"):
        export_savedmodel("model.keras", tmp_path / "m")
    assert not (tmp_path / "m").exists()


# Killed, and beside others ---------------------------------------------------------------

EXPORT = """
import sys
import keras
import numpy as np
from keras_distill.export import check, savedmodel
from keras_distill.export.serving import Serving

if sys.argv[2] == "writing":  # it stays in the middle of writing, as a slow disk would
    import time
    Serving.write = lambda serving, path: (print(path, flush=True), time.sleep(600))
elif sys.argv[2] == "checking":
    check._FRESH_PROCESS = check._FRESH_PROCESS.replace(
        "model = runpy",
        "import time; print('asked', os.getpid(), file=sys.stderr, flush=True);"
        f"open({sys.argv[1]!r} + '.pid', 'w').write(str(os.getpid())); time.sleep(600); runpy",
    )
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
savedmodel.export_savedmodel(model, sys.argv[1], verbose=False)
"""


def hidden_in(folder):
    names = os.listdir(folder) if folder.exists() else []
    return [name for name in names if name.startswith(".writing-")]


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["writing", "checking"])
def test_what_a_killed_export_left_goes_with_the_next(tmp_path, stage, number):
    folder, child = tmp_path / "m", tmp_path / "m.pid"
    with Process(["-c", EXPORT, folder, stage]) as process:
        wait_for(lambda: hidden_in(folder) and (stage == "writing" or child.exists()))
        left = hidden_in(folder)
        # While it lives, another export leaves its copy alone.
        assert (
            os.path.basename(export_savedmodel(named(), folder, verbose=False)) == "1"
        )
        assert hidden_in(folder) == left
        process.send_signal(number)
        process.wait(30)
    if stage == "checking":
        wait_for(child.read_text)
        wait_for(lambda: not is_alive(int(child.read_text())))
    assert hidden_in(folder) == left
    export_savedmodel(named(), folder, verbose=False)
    assert sorted(os.listdir(folder)) == ["1", "2"]


def test_control_c_leaves_nothing(tmp_path):
    folder, child = tmp_path / "m", tmp_path / "m.pid"
    with Process(["-c", EXPORT, folder, "checking"]) as process:
        wait_for(lambda: child.exists() and child.read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(30) != 0
    wait_for(lambda: not is_alive(int(child.read_text())))
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("²", "1"),
        ("\uff11", "1"),  # a digit to Python, none to a server
        ("-1", "1"),
        ("1.5", "1"),
        (" 3", "1"),
        ("99999999999999999999", "1"),
        ("7", "8"),
        ("03", "4"),
    ],
)
def test_strange_names_are_no_versions(tmp_path, name, version):
    (tmp_path / name).mkdir()
    path = export_savedmodel(named(), tmp_path, verbose=False)
    assert os.path.basename(path) == version


def test_after_the_last_number_there_is_none(tmp_path):
    (tmp_path / str(2**63 - 1)).mkdir()
    with pytest.raises(ValueError, match="after which there is none for a server"):
        export_savedmodel(named(), tmp_path, verbose=False)


def test_a_file_may_have_the_name_of_a_version(tmp_path):
    (tmp_path / "1").write_text("mine")
    path = export_savedmodel(named(), tmp_path, verbose=False)
    assert os.path.basename(path) == "2"
    assert (tmp_path / "1").read_text() == "mine"


FULL = """
import os, resource, signal, sys
import keras
from keras_distill.export.savedmodel import export_savedmodel

model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(300)])
if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
else:
    os.setuid(65534)
try:
    export_savedmodel(model, sys.argv[1], verbose=False)
except OSError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("why", ["full", "read-only"])
def test_a_folder_that_cannot_be_written(tmp_path, why):
    folder = tmp_path / "m"
    if why == "read-only":
        if os.getuid():
            pytest.skip("only the superuser can become somebody else")
        for path in (tmp_path, *tmp_path.parents[:2]):
            path.chmod(0o755)
    done = run(["-c", FULL, folder, why])
    assert "the export could not be written to" in done.stdout, done.stderr
    assert not folder.exists()


def test_an_export_of_a_fixed_batch(tmp_path):
    spec = tf.TensorSpec([1, FEATURES], tf.float32, name="x")
    path = export_savedmodel(named(), tmp_path, input_signature=spec, verbose=False)
    assert serve(path, x=tf.ones((1, FEATURES)))["logits"].shape == (1, CLASSES)


def test_a_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert export_savedmodel(named(), "~/m", verbose=False) == str(tmp_path / "m" / "1")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"class_names": "abcde"}, "class_names must be a list of str, got 'abcde'"),
        ({"class_names": dict.fromkeys("abcde")}, "class_names names the output 'a'"),
        ({"class_names": set("abcde")}, "class_names must be a list of str"),
        ({"class_names": range(5)}, "class_names must be a list of str"),
        ({"class_names": list("abcd")}, "class_names has 4 names, but .* 5 classes"),
        ({"preprocess": 3}, "preprocess must be a function or layer"),
        (
            {"example": np.ones((2, 3))},
            r"example for input 'features' must be .*\(2, 3\)",
        ),
        ({"example": np.ones((0, FEATURES))}, "with one example at least"),
        (
            {"example": "text"},
            "example for input 'features' must be a batch of float32",
        ),
        (
            {"example": {"x": np.ones((2, FEATURES))}},
            "the example has 'x', but the model",
        ),
        ({"input_signature": "x"}, "input_signature must be a tf.TensorSpec"),
        (
            {"input_signature": [tf.TensorSpec([None, 8]), tf.TensorSpec([None, 8])]},
            "must have names of their own",
        ),
        ({"directory": "m[a-z]"}, "directory must be without"),
        ({"directory": ""}, "directory must be a path, got ''"),
        ({"directory": 3}, "directory must be a path, got 3"),
        ({"preprocess": lambda x: x[:, :3]}, "expected axis -1 of input shape to have"),
    ],
)
def test_wrong_arguments(tmp_path, given, message):
    with pytest.raises((ValueError, TypeError), match=message) as found:
        export_savedmodel(named(), **{"directory": tmp_path / "m", **given})
    assert "in user code" not in str(found.value)
    assert not (tmp_path / "m").exists()
