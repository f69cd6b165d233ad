"""What `keras-distill export`, `inspect` and `bench` write and say."""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill import datasets, models
from keras_distill.commands import bench, main
from keras_distill.export import (
    check,
    fresh,
    litert,
    onnx,
    onnx_converter,
    probe,
    questions,
)
from keras_distill.export.signature import signature_of
from tests.forking import answer_here
from tests.litert_models import convert_here

# The kind of the models here is not said, and of no matter.
pytestmark = pytest.mark.filterwarnings("ignore:nothing says whether:UserWarning")

NAMES = [f"digit {n}" for n in range(10)]


def command(capsys, *words):
    """Returns the exit status of a command, its lines, and what it said of an error."""
    status = main.main([str(word) for word in words])
    written = capsys.readouterr()
    return status, written.out.splitlines(), written.err


@pytest.fixture(autouse=True)
def _here(request, monkeypatch):
    """Converts and answers in the test's process, where a fresh one is not the point."""
    if request.node.get_closest_marker("fresh_process") is None:
        _in_this_process(monkeypatch)


def _in_this_process(monkeypatch):
    monkeypatch.setattr(check, "ask_fresh_process", answer_here)
    monkeypatch.setattr(litert, "_in_a_child", convert_here)
    monkeypatch.setattr(
        onnx, "_in_a_child", lambda name, *given: getattr(onnx_converter, name)(*given)
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a model's exports, and what the command printed."""
    folder = tmp_path_factory.mktemp("exports")
    models.mlp((8, 8, 1), 10, (6,)).save(folder / "student.keras")
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    written = io.StringIO()
    with contextlib.redirect_stdout(written), pytest.MonkeyPatch.context() as patch:
        _in_this_process(patch)
        patch.chdir(folder)
        command = (
            "export student.keras --format savedmodel litert litert:int8 onnx onnx"
        )
        command += " --calibration digits --calibration-examples 40 --output out"
        assert main.main([*command.split(), "--class-names", "names.txt"]) == 0
    return folder, written.getvalue().splitlines()


@pytest.fixture
def here(exported, monkeypatch):
    """The folder of the exports, in which paths are relative."""
    monkeypatch.chdir(exported[0])
    return exported[0]


PATHS = {
    "savedmodel": "out/savedmodel/1",
    "litert": "out/student.tflite",
    "litert:int8": "out/student.int8.tflite",
    "onnx": "out/student.onnx",
}


# export --------------------------------------------------------------------------------


@pytest.mark.slow
def test_export_writes_each_format_once_and_ends_with_a_table(exported):
    folder, lines = exported
    assert lines[0].split() == ["format", "path", "size"]
    table = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert {name: path for name, (path, *_) in table.items()} == PATHS
    for name, (path, number, unit) in table.items():
        size = sum(p.stat().st_size for p in (folder / path).rglob("*") if p.is_file())
        size = size or (folder / path).stat().st_size
        assert unit == "kB", name
        assert float(number) == pytest.approx(size / 1e3, abs=0.06)
    assert len(list((folder / "out").glob("*.onnx"))) == 1


def test_every_format_answers_by_the_names_of_the_text_file(here):
    x = np.random.default_rng(0).uniform(size=(5, 8, 8, 1)).astype("float32")
    right = keras.saving.load_model("student.keras").predict(x, verbose=0).argmax(-1)
    for path in PATHS.values():
        export = signature_of(path)
        (name,) = export.inputs
        labels = export.runtime.Model(path)({name: x})["label"]
        told = [label.decode() for label in labels]
        if "int8" in path:
            assert set(told) <= set(NAMES)
        else:
            assert told == [NAMES[i] for i in right]


@pytest.fixture
def calls(monkeypatch):
    """What the exporters are called with, in place of exporting."""
    made = []

    def spy(name):
        def export(model, path, **given):
            made.append((name, str(path), given))
            warnings.warn("it is slow.", UserWarning, stacklevel=1)
            warnings.warn("of no matter", DeprecationWarning, stacklevel=1)
            if len(made) == 3:
                raise ValueError("ONNX cannot take it.")
            pathlib.Path(path).parent.mkdir(exist_ok=True)
            pathlib.Path(path).write_bytes(bytes(1500))
            return path

        return export

    for name in ("export_savedmodel", "export_litert", "export_onnx"):
        monkeypatch.setattr(kd, name, spy(name))
    return made


def test_options_reach_the_exporters_and_what_was_written_before_an_error_is_said(
    here, calls, capsys
):
    words = "export student.keras --format savedmodel litert:int8 onnx --output spied"
    words += " --calibration digits --calibration-examples 30 --class-names digits"
    words += " --keep 2 --threshold 0.25 --output-kinds softmax"
    status, lines, said = command(capsys, *words.split())
    assert status == 1
    assert said.splitlines() == [
        "keras-distill: warning: it is slow.",
        "keras-distill: error: ONNX cannot take it.",
    ]
    assert [line.split()[0] for line in lines] == [
        "format",
        "savedmodel",
        "litert:int8",
    ]
    assert [name for name, *_ in calls] == [
        "export_savedmodel", "export_litert", "export_onnx",
    ]  # fmt: skip
    first, second, third = (given for *_, given in calls)
    train = datasets.load("digits", batch_size=None, shuffle=False).train
    x, _ = datasets.to_arrays(train.take(30).batch(30))
    np.testing.assert_array_equal(second.pop("calibration"), x)
    for given in (first, second, third):
        np.testing.assert_array_equal(given.pop("example"), x[:8])
        assert given.pop("class_names") == [str(n) for n in range(10)]
        assert given.pop("threshold") == 0.25
        assert given.pop("output_kinds") == "softmax"
    assert (first, second, third) == ({"keep": 2}, {"quantize": "int8"}, {})


@pytest.mark.parametrize("form", ["litert:float16", "litert:dynamic"])
def test_other_quantizations_need_no_calibration(here, calls, capsys, form):
    assert command(capsys, "export", "student.keras", "--format", form)[0] == 0
    ((name, path, given),) = calls
    assert name == "export_litert"
    kind = form.partition(":")[2]
    assert path == f"keras-distill-export/student.{kind}.tflite"
    assert given.pop("output_kinds") is None
    assert given == {"quantize": kind, "calibration": None, "threshold": 0.5}


@pytest.mark.parametrize(
    ("package", "form"), [("tf2onnx", "onnx"), ("ai_edge_litert", "litert:float16")]
)
def test_what_a_later_format_lacks_is_said_before_the_first_is_written(
    here, calls, capsys, monkeypatch, package, form
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == package else find(name),
    )
    words = f"export student.keras --format savedmodel {form} --output other"
    status, _, said = command(capsys, *words.split())
    assert status == 1
    assert package.replace("_", "-") in said
    assert not calls


def test_where_a_later_format_cannot_be_written_is_said_before_the_first_is(
    here, calls, capsys, tmp_path
):
    (tmp_path / "student.onnx").mkdir()
    words = f"export student.keras --format litert onnx --output {tmp_path}"
    status, _, said = command(capsys, *words.split())
    assert status == 1
    assert "student.onnx' is a folder" in said
    assert not calls


def test_a_model_that_rounds_is_not_quantized_again_after_other_formats(
    tmp_path, calls, capsys
):
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    kd.quantize_aware(dense, activations=None).save(tmp_path / "aware.keras")
    words = f"export {tmp_path}/aware.keras --format savedmodel litert:dynamic"
    status, _, said = command(capsys, *words.split())
    assert status == 1
    assert "leave it out" in said
    assert not calls


@pytest.mark.filterwarnings("error:nothing says whether:UserWarning")
def test_the_loss_in_a_model_file_says_what_its_outputs_are(tmp_path, capsys):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    model.save(tmp_path / "several questions.keras")
    status, _, said = command(
        capsys, "export", tmp_path / "several questions.keras", "--format", "litert",
        "--output", tmp_path,
    )  # fmt: skip
    assert (status, said) == (0, "")
    with open(tmp_path / "several questions.tflite.card.json") as file:
        card = json.load(file)
    assert card["model"]["outputs"]["output"]["kind"] == "sigmoid"


def test_files_may_be_where_tensorflow_sees_a_pattern(here, tmp_path, capsys):
    folder = tmp_path / "runs [1] *"
    words = "export student.keras --format litert onnx --output"
    status, _, said = command(capsys, *words.split(), folder)
    assert status == 0, said
    found = {one.name for one in folder.iterdir() if "card" not in one.name}
    assert found == {"student.tflite", "student.onnx"}


def test_a_reader_that_has_enough_ends_a_command_quietly(here, capsys, monkeypatch):
    def print_to_nobody(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("builtins.print", print_to_nobody)
    status = main.main(["inspect", "out/student.onnx"])
    monkeypatch.undo()
    assert status == 141
    assert capsys.readouterr().err == ""


def test_help_says_the_defaults_that_there_are(capsys):
    with pytest.raises(SystemExit):
        main.main(["export", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "(default: savedmodel)" in said
    assert "None" not in said


def test_a_dataset_is_no_calibration_of_several_inputs(here, calls, capsys):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    model = keras.Model([a, b], keras.layers.Concatenate()([a, b]))
    model.save("two.keras")
    words = "export two.keras --format litert:int8 --calibration digits"
    status, lines, said = command(capsys, *words.split())
    assert (status, lines, calls) == (1, [], [])
    assert "the model takes the inputs a, b, and --calibration is of one" in said


# inspect -------------------------------------------------------------------------------


def facts(lines):
    """Returns what `inspect` printed, by what it says."""
    found = {}
    for line in lines[1:]:
        name, told = line.split(maxsplit=1)
        found.setdefault(name, []).append(" ".join(told.split()))
    return found


@pytest.mark.parametrize(
    ("path", "runtime"),
    [
        ("out/savedmodel", "SavedModel"),
        ("out/student.int8.tflite", "LiteRT file"),
        ("out/student.onnx", "ONNX file"),
    ],
)
def test_inspect_says_what_an_export_takes_and_that_it_works(
    here, capsys, path, runtime
):
    status, lines, said = command(capsys, "inspect", path)
    assert (status, said) == (0, "")
    assert lines[0] == ("out/savedmodel/1" if path == "out/savedmodel" else path)
    told = facts(lines)
    assert told["runtime"] == [runtime]
    assert told["size"][0].endswith(" kB")
    (taken,) = told["input"]
    assert taken.endswith("float32 (batch, 8, 8, 1)")
    assert sorted(told["output"]) == [
        "label string (batch)",
        "logits float32 (batch, 10)",
        "probabilities float32 (batch, 10)",
    ]
    assert any(line.startswith("model: ") for line in told["card"])
    assert any(line.startswith("format: ") for line in told["card"])
    (checked,) = told["check"]
    assert checked.startswith(
        "4 random examples in a fresh process: finite, the same twice, "
    )


def test_inspect_takes_the_newest_whole_version_and_its_warm_up_requests(
    here, tmp_path, capsys
):
    model = keras.saving.load_model("student.keras")
    x = np.zeros((2, 8, 8, 1), "float32")
    for warmup in (None, x):
        kd.export_savedmodel(model, tmp_path / "m", warmup=warmup, verbose=False)
    (tmp_path / "m" / "9").mkdir()  # nothing in it
    status, lines, _ = command(capsys, "inspect", tmp_path / "m")
    assert status == 0
    assert lines[0] == str(tmp_path / "m" / "2")
    assert facts(lines)["check"][0].startswith("1 warm-up request in a fresh process")
    requests = tmp_path / "m" / "2" / "assets.extra" / "tf_serving_warmup_requests"
    requests.write_bytes(requests.read_bytes()[:-3])
    status, _, said = command(capsys, "inspect", tmp_path / "m")
    assert status == 1
    assert "are damaged, and would keep TensorFlow Serving from loading" in said


def test_inspect_says_the_card_s_main_lines(here, tmp_path, capsys):
    path = tmp_path / "a.onnx"
    path.write_bytes((here / PATHS["onnx"]).read_bytes())
    card = json.loads((here / f"{PATHS['onnx']}.card.json").read_text())
    card["teacher"] = {"name": "large", "parameters": 28714}
    card["distillation"] = {"temperature": 8.0, "alpha": 0.0}
    card["data"] = {"name": "digits", "version": "1.7"}
    card["evaluation"] = [{"name": "student", "accuracy": 0.98, "nll": 0.0654321098}]
    file = tmp_path / "a.onnx.card.json"
    file.write_text(json.dumps(card))
    told = facts(command(capsys, "inspect", path)[1])["card"]
    assert told[1:] == [
        "teacher: large, parameters 28714",
        "distilled: temperature 8, alpha 0",
        "data: digits, version 1.7",
        "format: ONNX",
        "student: accuracy 0.98, nll 0.0654321",
    ]
    for damage, sentence in (("{", "is damaged"), ("[]", "is no keras_distill model")):
        file.write_text(damage)
        status, lines, _ = command(capsys, "inspect", path)
        assert status == 0
        assert sentence in facts(lines)["card"][0]
    file.unlink()
    assert "card" not in facts(command(capsys, "inspect", path)[1])


def module(tmp_path, function, *specs):
    """Returns the path of a SavedModel of a function, with or without a signature."""
    made = tf.Module()
    made.serve = tf.function(function, specs or None)
    path = str(tmp_path / "m")
    tf.saved_model.save(made, path, signatures=made.serve if specs else None)
    return path


X = tf.TensorSpec([3, 4], name="x")


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (
            lambda x: {"y": tf.math.log(x - 2.0)},
            "answers 3 random examples by NaN or inf",
        ),
        (
            lambda x: {"y": tf.random.uniform([3])},
            "gives other 'y' when it is asked the",
        ),
        (
            lambda x: {"y": tf.reshape(x, [5 + tf.cast(x[0, 0], tf.int32)])},
            "does not answer 3 random examples in a fresh process",
        ),
    ],
)
def test_inspect_ends_with_what_is_wrong(
    tmp_path, capsys, monkeypatch, function, sentence
):
    def ask(*given):
        try:
            return answer_here(*given)
        except tf.errors.OpError as error:
            raise RuntimeError(f"it ended:\n{error.message}") from error

    monkeypatch.setattr(check, "ask_fresh_process", ask)
    status, lines, said = command(capsys, "inspect", module(tmp_path, function, X))
    assert status == 1
    assert facts(lines)["input"] == ["x float32 (3, 4)"]
    assert sentence in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("function", "spec"),
    [
        (
            lambda x: {"y": tf.strings.length(x)},
            tf.TensorSpec([None, 2], tf.string, "x"),
        ),
        (
            lambda x: {
                "y": tf.map_fn(lambda b: tf.io.decode_png(b)[0, 0, 0], x, tf.uint8)
            },
            tf.TensorSpec([None], tf.string, "image_bytes"),
        ),
        (
            lambda x: {"y": tf.gather([1.0, 2.0], x)},
            tf.TensorSpec([None, 5], tf.int32, "x"),
        ),
        (lambda x: {"y": x + 1.0}, tf.TensorSpec(None, name="x")),
        (lambda x: {"y": x + 1.0}, tf.TensorSpec([], name="x")),
    ],
)
def test_inputs_of_other_kinds_are_asked_too(tmp_path, capsys, function, spec):
    status, lines, said = command(capsys, "inspect", module(tmp_path, function, spec))
    assert (status, said) == (0, "")
    assert facts(lines)["check"][0].startswith("4 random examples")


@pytest.mark.parametrize(
    ("export", "ending"), [(kd.export_litert, "tflite"), (kd.export_onnx, "onnx")]
)
def test_a_file_of_a_fixed_batch_is_asked_at_its_size(
    here, tmp_path, capsys, export, ending
):
    model = keras.saving.load_model("student.keras")
    x = tf.TensorSpec([3, 8, 8, 1], name="x")
    path = export(model, tmp_path / f"a.{ending}", input_signature=x, verbose=False)
    status, lines, said = command(capsys, "inspect", path)
    assert (status, said) == (0, "")
    told = facts(lines)
    assert told["input"] == ["x float32 (3, 8, 8, 1)"]
    assert "label int64 (3)" in told["output"]
    assert told["check"][0].startswith("3 random examples in a fresh process")
    words = ["bench", path, "--threads", "1", "--seconds", "0.01"]
    status, lines, _ = command(capsys, *words)
    assert status == 0
    assert [line.split()[1] for line in lines] == ["batch", "3"]


def test_what_is_no_signature_or_damaged_is_one_sentence(here, tmp_path, capsys):
    bare = module(tmp_path, lambda x: x)
    assert "has no signature 'serving_default'" in command(capsys, "inspect", bare)[2]
    graph = pathlib.Path(bare, "saved_model.pb")
    graph.write_bytes(graph.read_bytes()[:-50])
    (tmp_path / "a.tflite").write_bytes((here / PATHS["litert"]).read_bytes()[:900])
    (tmp_path / "a.onnx").write_bytes((here / PATHS["onnx"]).read_bytes()[:-9])
    for path in (bare, tmp_path / "a.tflite", tmp_path / "a.onnx"):
        status, lines, said = command(capsys, "inspect", path)
        assert (status, lines) == (1, [])
        assert "it is damaged" in said
        assert len(said.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.fresh_process
def test_inspect_asks_a_real_fresh_process(here, capsys):
    for path in PATHS.values():
        status, lines, _ = command(capsys, "inspect", path)
        assert status == 0
        assert "the same twice" in facts(lines)["check"][0]
    (here / "out" / "savedmodel" / "2").mkdir()
    assert command(capsys, "inspect", "out/savedmodel")[1][0] == PATHS["savedmodel"]


# bench ---------------------------------------------------------------------------------


def test_bench_measures_every_batch_size_and_number_of_threads(here, capsys):
    paths = PATHS["litert"], PATHS["onnx"]
    words = ["bench", *paths, "--batch-sizes", "4", "1", "4", "--threads", "1"]
    words += ["--seconds", "0.02", "--output", "speed"]
    status, lines, said = command(capsys, *words)
    assert (status, said) == (0, "")
    content = json.loads((here / "speed" / "bench.json").read_text())
    assert (here / "speed" / "bench.png").stat().st_size > 5000
    assert set(content["packages"]) == {"ai-edge-litert", "onnxruntime"}
    cells = [(r["export"], r["batch_size"], r["threads"]) for r in content["rows"]]
    assert cells == [(path, size, 1) for path in paths for size in (1, 4)]
    for row, line in zip(content["rows"], lines[1:], strict=False):
        assert row["batches"] >= 3
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert line.split()[0] == row["export"]
        shown = float(line.split()[3].replace(",", ""))
        assert shown == pytest.approx(row["p50_ms"], rel=0.005)
    assert lines[0].split("  ")[0] == "export"
    assert lines[-2:] == [os.path.join("speed", n) for n in ("bench.json", "bench.png")]


def test_figures_are_those_of_the_times(here, monkeypatch):
    times = [0.001] * 51 + [0.002] * 49 + [0.149]
    monkeypatch.setattr(bench, "times_of", lambda *_: times)
    row = bench.measured("a", signature_of(PATHS["onnx"]), 8, 2, 1.0)
    assert row["p50_ms"] == pytest.approx(1.0)
    assert row["p99_ms"] == pytest.approx(2.0)
    assert row["examples_per_second"] == pytest.approx(8 * 101 / 0.298)
    assert (row["batch_size"], row["threads"], row["batches"]) == (8, 2, 101)


def test_a_fixed_batch_is_asked_at_its_own_size_alone(tmp_path, capsys, monkeypatch):
    asked = []

    def run(program, words, given):
        (_, _, batch, threads, seconds) = given
        asked.append((batch["x"].shape, threads, seconds))
        return [0.001] * 3

    path = module(tmp_path, lambda x: {"y": x + 1.0}, X)
    monkeypatch.setattr(questions.fresh, "run", run)
    status, lines, _ = command(capsys, "bench", path, "--seconds", "0.5")
    assert status == 0
    assert asked == [((3, 4), 1, 0.5), ((3, 4), 2, 0.5)]
    assert [line.split()[1:3] for line in lines[1:]] == [["3", "1"], ["3", "2"]]


def test_a_free_batch_is_asked_at_every_size_and_a_failure_is_said(
    tmp_path, capsys, monkeypatch
):
    asked = []

    def run(program, words, given):
        asked.append(len(given[2]["x"]))
        if asked[-1] == 64:
            raise fresh.FreshProcessError(-9, "")
        return [0.001] * 3

    path = module(
        tmp_path, lambda x: {"y": x + 1.0}, tf.TensorSpec([None, 2], name="x")
    )
    monkeypatch.setattr(questions.fresh, "run", run)
    status, _, said = command(capsys, "bench", path, "--threads", "1")
    assert asked == [1, 8, 64]
    assert status == 1
    assert "a batch of 64 on 1 thread: it was ended by SIGKILL." in said


RUNTIME = """
import time
class Model:
    def __init__(self, path, threads):
        assert (path, threads) == ("a path", 7)
    def __call__(self, batch):
        time.sleep(batch["x"])
"""


def test_a_slow_export_is_asked_three_times_and_a_fast_one_for_the_seconds(tmp_path):
    runtime = tmp_path / "runtime.py"
    runtime.write_text(RUNTIME)
    slow = probe.measure(str(runtime), "a path", {"x": 0.02}, 7, 0.001)
    assert len(slow) == 3
    assert min(slow) >= 0.02
    fast = probe.measure(str(runtime), "a path", {"x": 0.001}, 7, 0.05)
    assert 3 < len(fast) <= 50
    assert sum(fast) >= 0.045


@pytest.mark.slow
@pytest.mark.fresh_process
def test_bench_of_a_saved_model_has_the_threads_that_were_asked_for(here, capsys):
    words = ["bench", PATHS["savedmodel"], "--batch-sizes", "1", "--seconds", "0.1"]
    status, lines, said = command(capsys, *words)
    assert (status, said) == (0, "")
    assert [line.split()[1:3] for line in lines[1:]] == [["1", "1"], ["1", "2"]]
    program = (
        fresh.PREAMBLE
        + """
import tensorflow as tf
runpy.run_path(sys.argv[1])["Model"](sys.argv[2], 3)
threading = tf.config.threading
pickle.dump((threading.get_intra_op_parallelism_threads(),
             threading.get_inter_op_parallelism_threads()), answer)
answer.close()
os._exit(0)
"""
    )
    export = signature_of(PATHS["savedmodel"])
    assert fresh.run(program, [export.runtime.__file__, export.path], None) == (3, 1)
