import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
import weakref

import keras
import pytest
import tensorflow as tf

import keras_distill
from keras_distill import datasets, models
from keras_distill.commands import cache, main, search, specialists
from keras_distill.commands import demo as demo_command
from keras_distill.export import check
from keras_distill.soft_targets.store import SoftTargets
from tests import forking
from tests.forking import answer_here, wait_for


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, forking.command(["demo", "--epochs", "2", "--seed", "3"], folder)


def test_demo_tells_the_whole_story(demo):
    folder, done = demo
    assert done.returncode == 0, done.stderr
    results = folder / "keras-distill-demo-digits"
    assert {path.name for path in results.iterdir()} == {
        "comparison.json", "comparison.md", "savedmodel", "temperature_curves.png",
        "soft_targets.png", "training_curves.png", "reliability.png",
        "size_against_accuracy.png", "teacher.keras",
    }  # fmt: skip
    assert (results / "savedmodel" / "1" / "saved_model.pb").exists()
    card = json.loads((results / "savedmodel" / "1" / "model_card.json").read_text())
    assert card["evaluation"] == json.loads((results / "comparison.json").read_text())
    assert card["data"]["name"] == "digits"
    assert card["seeds"] == [4]
    for words in (
        "digits: 10 classes of (8, 8, 1)",
        "student, hard labels",
        "student, distilled",
        "a fresh process that imports only TensorFlow answers:",
        "What to do next",
    ):
        assert words in done.stdout
    next_steps = done.stdout.split("What to do next")[1].splitlines()
    assert len([line for line in next_steps if line.startswith("- ")]) == 3


def test_demo_is_quiet(demo):
    _, done = demo
    for noise in ("oneDNN", "WARNING", "Warning", "cuda", "retracing"):
        assert noise not in done.stderr
        assert noise not in done.stdout


@pytest.mark.slow
def test_what_the_demo_says_to_do_next_works_as_typed(demo):
    folder, done = demo
    next_steps = done.stdout.split("What to do next")[1].splitlines()
    for line in next_steps[-3:]:
        name, *words = shlex.split(line.partition(":")[2])
        assert name == "keras-distill"
        words = ["2" if word == "20" else word for word in words]  # trials
        typed = forking.command(words, folder)
        assert typed.returncode == 0, typed.stderr


@pytest.mark.slow
def test_same_seed_gives_the_same_figures(demo, tmp_path):
    folder, _ = demo
    done = forking.command(
        ["demo", "--epochs", "2", "--seed", "3", "--output", "again"], tmp_path
    )
    assert done.returncode == 0, done.stderr

    def figures(path):
        keys = ("accuracy", "nll", "calibration_error", "teacher_agreement")
        return [[row[key] for key in keys] for row in json.loads(path.read_text())]

    first = figures(folder / "keras-distill-demo-digits" / "comparison.json")
    for one, other in zip(
        first, figures(tmp_path / "again" / "comparison.json"), strict=True
    ):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
def test_control_c_stops_a_fresh_process_calmly_and_quietly(tmp_path):
    """A real one: the start-up log of TensorFlow is part of what is kept quiet."""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    paths = tmp_path / "output", tmp_path / "errors"
    with paths[0].open("w") as output, paths[1].open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "keras_distill", "demo", "--epochs", "500"],
            cwd=tmp_path, env=environment, stdout=output, stderr=errors,
            # A shell's background children ignore it, and so would this one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        try:
            wait_for(lambda: "Training" in paths[0].read_text())
            time.sleep(4)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 130
        finally:
            process.kill()
    errors = paths[1].read_text()
    assert "keras-distill: stopped." in errors
    for noise in ("Traceback", "oneDNN", "WARNING", "cuda"):
        assert noise not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "0"], "temperature must be a finite number > 0, got 0.0"),
        (["--alpha", "2"], "alpha must be a number from 0 to 1, got 2.0"),
        (["--epochs", "0"], "epochs must be a whole number >= 1, got 0"),
        (["--dataset", "no_such"], "there is no dataset 'no_such'"),
        (["--output", "taken"], "the output 'taken' is a file"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("taken").write_text("")
    assert main.main(["demo", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("keras-distill: error: ")
    assert message in captured.err
    assert os.listdir(tmp_path) == ["taken"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--output="], "it must be a path, got ''"),
        (["demo", "--epochs", "x"], "invalid int value: 'x'"),
        (["demo", "--alpha", "x"], "invalid float value: 'x'"),
        (["cache", "", "digits", "kept"], "it must be a path, got ''"),
        (["cache", "t.keras", "digits", " "], "it must be a path, got ' '"),
        (["cache", "t.keras", "digits"], "are required: path"),
        (["cache", "t.keras", "digits", "kept", "--split", "x"], "invalid choice: 'x'"),
        (["cache", "t.keras", "digits", "k", "--dtype", "int8"], "invalid choice"),
        (
            ["cache", "t.keras", "digits", "k", "--image-size", "0", "9"],
            ">= 1, got '0'",
        ),
        (["specialists", "", "digits"], "it must be a path, got ''"),
        (["specialists", "g.keras", "digits", "--work-dir="], "it must be a path"),
        (["specialists", "g.keras", "digits", "--n", "1.5"], "invalid int value"),
        (["search", "t.keras", "digits", "a:b", "--directory="], "it must be a path"),
        (["search", "t.keras", "digits", "a:b", "--data-dir="], "it must be a path"),
        (
            ["search", "t.keras", "digits", "a:b", "--trials", "1.5"],
            "invalid int value",
        ),
        ([], "are required: COMMAND"),
        (["distil"], "there is no command 'distil'; did you mean distill?"),
        (["zzz"], "there is no command 'zzz'; there are demo, distill,"),
        (
            ["teach", "d", "cnn:4", "--temprature", "3"],
            "there is no option --temprature;",
        ),
        (["distill", "t", "d", "s", "--temprature=3"], "did you mean --temperature?"),
        (["teach", "d", "cnn:4", "more"], "'more' is one argument too many"),
    ],
)
def test_wrong_command_lines_exit_with_two(arguments, message, capsys):
    with pytest.raises(SystemExit) as found:
        main.main(arguments)
    assert found.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


class OddError(Exception):
    """Of no kind that is known."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("k must be\n  2."), "k must be 2."),
        (TypeError("no such kind."), "no such kind."),
        (RuntimeError("all failed."), "all failed."),
        (PermissionError(13, "no", "x"), "[Errno 13] no: 'x'"),
        (OSError(), "OSError"),
        (ImportError("no graphs."), "no graphs."),
        (MemoryError(), "out of memory: no more is known; give a smaller --batch-size"),
        (
            tf.errors.ResourceExhaustedError(
                None, None, "Graph execution error:\n\nOOM when allocating\nNode: x"
            ),
            "out of memory: OOM when allocating; give a smaller --batch-size",
        ),
        (
            tf.errors.InvalidArgumentError(None, None, "logits differ\nNode: x\n"),
            "TensorFlow stopped: logits differ",
        ),
        (
            tf.errors.UnknownError(
                None,
                None,
                "Graph execution error:\n\nDetected at node x\n"
                "FileNotFoundError: [Errno 2] No such file: 'a/1.png'\nTraceback",
            ),
            "[Errno 2] No such file: 'a/1.png'",
        ),
        (KeyError("width"), "KeyError: 'width' ("),
        (OddError("why.\nTraceback"), "OddError: why ("),
        (AssertionError(), "AssertionError: no more is known ("),
    ],
)
def test_every_error_is_one_sentence(error, said, capsys, monkeypatch):
    def run(options):
        raise error

    monkeypatch.setattr(cache, "run", run)
    assert main.main(["cache", "t.keras", "digits", "kept"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"keras-distill: error: {said}")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_is_no_traceback_and_leaves_the_handlers(
    number, status, capsys, monkeypatch
):
    cleared = []

    def run(options):
        try:
            signal.raise_signal(number)
        finally:
            cleared.append(1)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cache, "run", run)
    assert main.main(["cache", "t.keras", "digits", "kept"]) == status
    assert cleared
    said = "keras-distill: stopped. The same command goes on from here."
    assert capsys.readouterr().err.strip() == said
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_is_heard_after_a_finalizer_has_lost_it(
    number, status, capsys, monkeypatch
):
    went_on = []

    def run(options):
        things = [OddError(), OddError(), OddError()]
        references = [
            weakref.ref(thing, lambda _: signal.raise_signal(number))
            for thing in things
        ]
        while things:
            things.pop()  # Python drops what is raised here
        went_on.append(len(references))
        time.sleep(30)

    hook = sys.unraisablehook
    monkeypatch.setattr(cache, "run", run)
    began = time.monotonic()
    assert main.main(["cache", "t.keras", "digits", "kept"]) == status
    assert went_on
    assert time.monotonic() - began < 20
    said = "keras-distill: stopped. The same command goes on from here."
    assert capsys.readouterr().err.strip() == said
    assert sys.unraisablehook is hook
    time.sleep(0.2)  # what was lost twice is not said to whoever comes next


def test_paths_of_the_command_line_may_begin_at_home(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setenv("HOME", str(tmp_path))
    for command, path in (
        (demo_command, ["--output=~/x"]),
        (cache, ["~/t.keras", "digits", "~/x"]),
        (specialists, ["~/g.keras", "digits", "--work-dir=~/x"]),
        (search, ["~/t.keras", "digits", "a:b", "--directory=~/x", "--data-dir=~/y"]),
    ):
        monkeypatch.setattr(command, "run", lambda options: given.update(vars(options)))
        name = command.__name__.rpartition(".")[2]
        assert main.main([name, *path]) == 0
    for name in ("output", "path", "work_dir", "directory"):
        assert given[name] == str(tmp_path / "x")
    assert given["teacher"] == str(tmp_path / "t.keras")
    assert given["generalist"] == str(tmp_path / "g.keras")
    assert given["data_dir"] == str(tmp_path / "y")


def test_a_teacher_with_code_in_it_is_one_sentence(tmp_path, capsys):
    inputs = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(inputs)
    path = str(tmp_path / "lambda.keras")
    keras.Model(inputs, keras.layers.Lambda(lambda x: x[:, :10])(flat)).save(path)
    for command in (
        ["cache", path, "digits", str(tmp_path / "kept")],
        ["specialists", path, "digits"],
        ["search", path, "digits", "json:dumps"],
    ):
        assert main.main(command) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "holds code of its own (a Lambda layer)" in line


def test_help_is_useful(capsys):
    with pytest.raises(SystemExit):
        main.main(["demo", "--help"])
    text = capsys.readouterr().out
    for option in ("--dataset", "--data-dir", "--output", "--temperature", "--alpha",
                   "--epochs", "--seed"):  # fmt: skip
        assert option in text
    assert "weight of the hard loss" in text


def test_version(capsys):
    with pytest.raises(SystemExit):
        main.main(["--version"])
    assert capsys.readouterr().out.startswith("keras-distill ")


@pytest.mark.slow
def test_cache_keeps_the_soft_targets_of_a_file(tmp_path):
    data = datasets.load("digits", shuffle=False, batch_size=None)
    teacher = models.mlp(data.input_shape, data.classes, (16,))
    teacher.save(tmp_path / "teacher.keras")
    done = forking.command(
        ["cache", "teacher.keras", "digits", "kept", "--top-k", "3"], tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (
        "1,131 examples, 35.0 bytes each: top 3 of 10 logits as float16" in done.stdout
    )
    assert "oneDNN" not in done.stderr
    targets = SoftTargets.open(tmp_path / "kept", teacher=teacher)
    count = sum(len(batch[0].inputs) for batch in targets.join(data.train).batch(100))
    assert count == len(targets) == data.sizes["train"]

    assert main.main(["cache", str(tmp_path / "none.keras"), "digits", "x"]) == 1
    again = ["cache", str(tmp_path / "teacher.keras"), "digits", str(tmp_path / "kept")]
    assert main.main(again) == 1  # of another kind: all logits
    assert main.main([*again, "--overwrite", "--split", "test"]) == 0
    assert len(SoftTargets.open(tmp_path / "kept")) == data.sizes["test"]


@pytest.mark.slow
def test_specialists_from_a_file_to_an_export(tmp_path):
    data = datasets.load("digits")
    generalist = models.mlp(data.input_shape, data.classes, (16,))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    generalist.compile("adam", loss)
    generalist.fit(data.train, epochs=2, verbose=0)
    generalist.save(tmp_path / "generalist.keras")
    command = ["specialists", "generalist.keras", "digits", "--clusters", "3"]
    command += ["--work-dir", "out", "--hard-epochs", "1", "--soft-epochs", "1"]
    done = forking.command(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cluster 2: " in done.stdout
    assert "generalist" in done.stdout
    assert "specialists covering" in done.stdout
    for noise in ("oneDNN", "WARNING", "UserWarning", "retracing"):
        assert noise not in done.stderr
    out = tmp_path / "out"
    assert {path.name for path in out.glob("*.png")} == {
        "class_covariance.png",
        "accuracy_by_coverage.png",
        "accuracy_by_cluster.png",
        "training_by_worker.png",
    }
    judged = json.loads((out / "comparison.json").read_text())
    ensemble = keras.saving.load_model(out / "ensemble.keras")
    x, y = datasets.to_arrays(data.test)
    right = ensemble.predict(x, verbose=0).argmax(-1) == y
    assert judged[1]["accuracy"] == pytest.approx(right.mean())
    card = json.loads((out / "savedmodel" / "1" / "model_card.json").read_text())
    assert card["evaluation"] == judged
    assert card["model"]["class"] == "SpecialistEnsemble"
    other = [*command, "--alpha", "0.3"]
    other[1], other[6] = str(tmp_path / other[1]), str(out)
    assert main.main(other) == 1  # of another kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.keras", "digits"], "the generalist 'none.keras' is not there"),
        (["three.keras", "digits"], "has 3 outputs and digits has 10 classes"),
        (["ten.keras", "digits", "--clusters", "1"], "n_clusters must be a whole"),
        (["ten.keras", "digits", "--clusters", "6"], "from 2 to 5, got 6"),
    ],
)
def test_wrong_specialists_are_one_sentence(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    models.mlp((8, 8, 1), 3, (4,)).save("three.keras")
    models.mlp((8, 8, 1), 10, (4,)).save("ten.keras")
    assert main.main(["specialists", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("keras-distill: error: ")
    assert message in captured.err


STUDENT = """
import keras

def build(hp):
    return keras.Sequential([
        keras.Input((8, 8, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(hp.Int("width", 8, 32), "relu"),
        keras.layers.Dense(10),
    ])
"""


# With two, four processes share two cores for half a minute.
@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_search_from_a_teacher_s_file_to_the_best_student_s_export(
    tmp_path, capsys, monkeypatch, workers
):
    data = datasets.load("digits")
    teacher = models.mlp(data.input_shape, data.classes, (16,))
    teacher.save(tmp_path / "teacher.keras")
    (tmp_path / "my_models.py").write_text(STUDENT)
    command = ["search", "teacher.keras", "digits", "my_models:build", "--trials", "3"]
    command += ["--epochs", "1", "--temperature", "2:9:log", "--workers", workers]
    done = forking.command(command, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["temperature", "alpha", "width", "val_accuracy"]
    assert sum(line.endswith("hard labels") for line in lines[1:4]) == 1
    assert "3 trials, in " in done.stdout
    assert "against hard labels: " in done.stdout
    assert "best student" in done.stdout
    for noise in ("oneDNN", "WARNING", "UserWarning", "retracing", "Traceback"):
        assert noise not in done.stderr
    out = tmp_path / "keras-distill-search"
    best = json.loads((out / "best.json").read_text())
    assert {"temperature", "alpha", "width"} == set(best["values"])
    student = keras.saving.load_model(out / "student.keras")
    x, y = datasets.to_arrays(data.test)
    right = student.predict(x, verbose=0).argmax(-1) == y
    judged = json.loads((out / "comparison.json").read_text())
    assert judged[1]["accuracy"] == pytest.approx(right.mean())
    card = json.loads((out / "savedmodel" / "1" / "model_card.json").read_text())
    assert card["search"]["values"] == best["values"]
    assert card["evaluation"] == judged
    assert len(list(out.glob("*.png"))) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "ask_fresh_process", answer_here)
    assert main.main(command) == 1
    assert "there is a search of 3 trials" in capsys.readouterr().err
    more = command[: command.index("--workers")]
    assert main.main([*more, "--resume", "--trials", "4"]) == 0
    assert "4 trials, in " in capsys.readouterr().out


def test_workers_of_a_search_are_processes(tmp_path, monkeypatch):
    asked = {}

    def search(*_, **arguments):
        asked.update(arguments)
        raise RuntimeError("seen")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras_distill, "search", search)
    models.mlp((8, 8, 1), 10, (4,)).save("t.keras")
    command = ["search", "t.keras", "digits", "json:dumps", "--workers", "3"]
    assert main.main(command) == 1
    assert asked["n_jobs"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["none.keras", "digits", "json:dumps"],
            "the teacher 'none.keras' is not there",
        ),
        (["t.keras", "digits", "nowhere"], "must be module:function, got 'nowhere'"),
        (["t.keras", "digits", "no_such:f"], "module cannot be imported"),
        (["t.keras", "digits", "json:no_such"], "json has no function 'no_such'"),
        (
            ["t.keras", "digits", "json:dumps", "--alpha", "1:2:3"],
            "a range is a number",
        ),
        (
            ["t.keras", "digits", "json:dumps", "--alpha", "0:2"],
            "alpha must be a number",
        ),
        (["t.keras", "digits", "json:dumps", "--trials", "1"], "max_trials must be"),
        (
            ["t.keras", "digits", "json:dumps", "--objective", "loss"],
            "cannot be searched",
        ),
    ],
)
def test_wrong_searches_are_one_sentence(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    models.mlp((8, 8, 1), 10, (4,)).save("t.keras")
    assert main.main(["search", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("keras-distill: error: ")
    assert message in captured.err
