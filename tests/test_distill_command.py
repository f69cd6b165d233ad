"""`keras-distill distill`: what it leaves, refuses, and goes on with after a kill."""

import json
import os
import pathlib
import re
import shlex
import signal
import warnings

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.commands import distillation, next_steps, training
from keras_distill.commands.distillation import Distillation
from keras_distill.commands.main import main
from keras_distill.commands.training import Outcome
from keras_distill.export import check, litert
from keras_distill.run_directory import RunDirectory
from tests import forking
from tests.forking import answer_here, wait_for
from tests.litert_models import convert_here
from tests.test_report_page import Page

ARGUMENTS = ["distill", "teacher.keras", "digits", "mlp:8", "--epochs", "3"]


@pytest.fixture(autouse=True)
def _asked_here(monkeypatch):
    monkeypatch.setattr(check, "ask_fresh_process", answer_here)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill")
    data = kd.datasets.load("digits", batch_size=32)
    teacher = kd.models.mlp(data.input_shape, data.classes, (32,))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile("adam", loss)
    teacher.fit(data.train, epochs=3, verbose=0)
    teacher.save(folder / "teacher.keras")
    kd.models.mlp((8, 8, 1), 3, (4,)).save(folder / "three.keras")
    kd.models.mlp((8, 9, 1), 10, (4,)).save(folder / "wide.keras")
    kd.models.mlp((8, 8, 3), 10, (4,)).save(folder / "colour.keras")
    (folder / "taken").write_text("")
    (folder / "other" / "savedmodel").mkdir(parents=True)
    (folder / "my_networks.py").write_text(NETWORKS)
    return folder


NETWORKS = """
import keras

def layers(*last):
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), *last])

def plain():
    return layers(keras.layers.Dense(10))

def sized(input_shape, classes):
    assert input_shape == (8, 8, 1)
    return layers(keras.layers.Dense(classes, "softmax"))

def of_hp(hp):
    return layers(keras.layers.Dense(hp.Int("width", 8, 16), "relu"), keras.layers.Dense(10))

def few():
    return layers(keras.layers.Dense(4))

def of_three(a, b, c):
    return None

def no_model():
    return 7

def fails():
    raise KeyError("width")
"""


@pytest.fixture(scope="module")
def done(folder):
    """A distillation by a process that nothing interrupts."""
    return forking.command([*ARGUMENTS, "--output", "out"], folder)


def figures(path):
    keys = ("name", "accuracy", "nll", "calibration_error", "teacher_agreement")
    rows = json.loads((path / "comparison.json").read_text())
    return [[row[key] for key in keys] for row in rows]


def test_it_leaves_a_folder_that_explains_itself(folder, done):
    assert done.returncode == 0, done.stderr
    out = folder / "out"
    names = {path.name for path in out.iterdir()}
    assert {"student.keras", "baseline.keras", "report.html", "soft_targets"} <= names
    assert not [name for name in names if name.startswith(".tmp")]
    assert [row[0] for row in figures(out)] == [
        "teacher", "student, distilled", "student, hard labels",
    ]  # fmt: skip
    x, y = kd.datasets.to_arrays(kd.datasets.load("digits").test)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        student = keras.saving.load_model(out / "student.keras")
    assert student.evaluate(x, y, verbose=0)[1] == pytest.approx(figures(out)[1][1])
    right = student.predict(x, verbose=0).argmax(-1) == y
    assert figures(out)[1][1] == pytest.approx(right.mean())
    card = json.loads((out / "savedmodel" / "1" / "model_card.json").read_text())
    distilled, labels = (
        max(RunDirectory(str(out / "training" / name), "it").read_json("training.json")
            ["history"]["val_accuracy"])
        for name in ("student", "baseline")
    )  # fmt: skip
    assert (card["distillation"].get("temperature") == 4.0) == (distilled >= labels)
    assert card["evaluation"] == json.loads((out / "comparison.json").read_text())
    assert bool(card.get("teacher")) == (distilled >= labels)
    for noise in ("WARNING", "UserWarning", "Traceback", "retracing"):
        assert noise not in done.stderr
    steps = done.stdout.split("What to do next")[1].splitlines()
    assert len([line for line in steps if line.startswith("- ")]) == 3


def test_both_students_begin_alike_and_are_trained_as_long(folder, done):
    found = {}
    for name in ("student", "baseline"):
        run = RunDirectory(str(folder / "out" / "training" / name), "it")
        found[name] = run.read_json("training.json")
    assert found["student"]["epoch"] == found["baseline"]["epoch"] == 3
    for state in found.values():
        scores = [
            (accuracy, -nll)
            for accuracy, nll in zip(
                state["history"]["val_accuracy"],
                state["history"]["val_nll"],
                strict=True,
            )
        ]
        assert state["best_epoch"] == scores.index(max(scores))


def test_started_again_it_does_nothing_twice(folder, done, capsys, monkeypatch):
    def never(*_, **__):
        raise AssertionError("done before")

    monkeypatch.chdir(folder)
    before = figures(folder / "out")
    for thing, name in (
        (kd.Distiller, "fit"), (kd, "compare"), (kd, "export_savedmodel"),
        (distillation.pictures, "draw"),
    ):  # fmt: skip
        monkeypatch.setattr(thing, name, never)
    assert main([*ARGUMENTS, "--output", "out"]) == 0
    said = capsys.readouterr().out
    assert "going on with the distillation in out" in said
    assert "out/savedmodel/1" in said
    assert figures(folder / "out") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "2"], "--temperature is 4.0, not 2.0. Give the same"),
        (["--alpha", "0.5"], "--alpha is 0.1, not 0.5"),
        (["--epochs", "4"], "--epochs is 3, not 4"),
        (["--seed", "1"], "--seed is 0, not 1"),
        (["--batch-size", "64"], "--batch-size is 32, not 64"),
        (["--search", "4"], "--search is None, not 4"),
        (["--no-baseline"], "the baseline (without --no-baseline) is True, not False"),
        (["--format", "litert"], "--format is ['savedmodel'], not ['litert']"),
    ],
)
def test_other_settings_are_refused(
    folder, done, arguments, message, capsys, monkeypatch
):
    monkeypatch.chdir(folder)
    assert main([*ARGUMENTS, *arguments, "--output", "out"]) == 1
    assert message in capsys.readouterr().err


def test_two_at_once_are_refused(folder, done, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    with RunDirectory("out", "the distillation").lock():
        assert main([*ARGUMENTS, "--output", "out"]) == 1
    assert "another process is at work on the distillation" in capsys.readouterr().err


KILLED = """
import sys
from keras_distill.commands import training
from keras_distill.commands.main import main
from keras_distill.commands.training import Outcome
from keras_distill.export import check, litert
from tests.forking import answer_here
check.ask_fresh_process = answer_here
training._SECONDS_BETWEEN_CHECKPOINTS = 0.0
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_figures(folder, done):
    command = ["-c", KILLED, *ARGUMENTS, "--output", "killed"]
    state = RunDirectory(str(folder / "killed" / "training" / "student"), "it")
    with forking.Process(command, folder) as process:
        wait_for(lambda: state.has("training.json") or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    assert process.returncode == -signal.SIGKILL
    begun = state.read_json("training.json")
    assert begun["epoch"] >= 1
    assert not (folder / "killed" / "comparison.json").exists()
    again = forking.run(command, folder)
    assert again.returncode == 0, again.stderr
    assert "going on with the distillation" in again.stdout
    # The epochs before the kill were not trained again.
    kept = state.read_json("training.json")["history"]
    for name, values in begun["history"].items():
        assert kept[name][: len(values)] == values
    assert figures(folder / "killed") == figures(folder / "out")
    for name in ("student.keras", "baseline.keras"):
        ours, theirs = (
            keras.saving.load_model(folder / path / name).get_weights()
            for path in ("killed", "out")
        )
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not list((folder / "killed").rglob(".tmp*"))


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_figures(folder, done):
    command = ["-c", KILLED, *ARGUMENTS, "--output", "often"]
    for seconds in (2, 5, 7, 8, 9, 10, 12, 5):
        with forking.Process(command, folder) as process:
            try:
                process.wait(seconds)
            except Exception:  # subprocess's, of one that is still at work
                process.send_signal(signal.SIGKILL)
                process.wait(20)
    again = forking.run(command, folder)
    assert again.returncode == 0, again.stderr
    assert figures(folder / "often") == figures(folder / "out")
    assert os.listdir(folder / "often" / "savedmodel") == ["1"]


@pytest.mark.slow
def test_the_next_steps_work_as_typed(folder, done, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(litert, "_in_a_child", convert_here)
    command = ["keras-distill", *ARGUMENTS[:4]]
    steps = next_steps.after_distill("out", ["out/savedmodel/1"], command, None)
    shown = next_steps.as_lines(steps)
    for line in shown.splitlines()[:2]:
        words = shlex.split(line.partition(":")[2])
        assert words[0] == "keras-distill"
        assert main(words[1:]) == 0
    # Nothing is asked that the student's file could have said.
    assert "output-kinds" not in capsys.readouterr().err


def test_the_report_asks_no_other_host(folder, done):
    text = (folder / "out" / "report.html").read_text()
    page = Page(text)
    images = [a for tag, a in page.found if tag == "img"]
    assert len(images) == 5
    assert all(a["src"].startswith("data:image/png;base64,") for a in images)
    assert all(a["alt"] for a in images)
    tags = {tag for tag, _ in page.found}
    assert not tags & {"script", "link", "iframe", "object", "base"}
    assert not re.search(r"https?://|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    for said in (
        "The distilled student is right on",
        "keras-distill bench",
        "accuracy",
    ):
        assert said in page.text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "three.keras digits cnn:4",
            "answers with 3 numbers for an example, and the data",
        ),
        ("wide.keras digits cnn:4", "give --image-size 8 9, or a network of this size"),
        # The size that the student takes is not the teacher's.
        (
            "teacher.keras digits wide.keras",
            "build it for these, which the teacher takes",
        ),
        ("colour.keras digits cnn:4", "as many channels, not 3"),
        ("teacher.keras no_such cnn:4", "there is no dataset 'no_such'"),
        (
            "teacher.keras digits three.keras",
            "the student 'three.keras' answers with 3",
        ),
        ("teacher.keras digits none.keras", "the student 'none.keras' is not there"),
        ("teacher.keras digits taken", "the student 'taken' is no .keras file"),
        ("teacher.keras digits cnn", "there are cnn:8,16 (filters"),
        (
            "teacher.keras digits applications:VGG16",
            "does not take images of (8, 8, 1)",
        ),
        ("teacher.keras digits my_networks:few", "answers with 4 numbers"),
        ("teacher.keras digits my_networks:of_three", "takes (a, b, c); it must take"),
        ("teacher.keras digits my_networks:no_model", "must return a keras.Model, and"),
        ("teacher.keras digits my_networks:fails", "failed: KeyError: 'width'"),
        ("teacher.keras digits cnn:4 --output other", "has a savedmodel that is of no"),
        (
            "teacher.keras digits cnn:4 --search 9 --temperature 2 --alpha 0.5",
            "nothing to search",
        ),
        ("teacher.keras digits cnn:4 --patience 0", "patience must be a whole number"),
        (
            "teacher.keras digits cnn:4 --learning-rate 0",
            "learning_rate must be a finite",
        ),
        ("teacher.keras digits cnn:4 --batch-size 0", "batch_size must be a whole"),
    ],
)
def test_wrong_distillations_are_one_sentence(
    folder, command, message, capsys, monkeypatch
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(training, "train", None)  # is never come to
    output = [] if "--output" in command else ["--output", "never"]
    assert main(["distill", *command.split(), *output]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("keras-distill: error: ")
    assert message in line
    assert not (folder / "never").exists()


def test_a_missing_package_is_named_before_the_training(folder, capsys, monkeypatch):
    def missing():
        raise ImportError("give pip install keras-distill[litert].")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(litert, "check_installed", missing)
    assert main([*ARGUMENTS, "--output", "never", "--format", "litert"]) == 1
    assert "keras-distill[litert]" in capsys.readouterr().err


@pytest.mark.slow
def test_a_format_that_is_refused_leaves_all_else_done(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(check, "ask_fresh_process", answer_here)
    monkeypatch.setattr(litert, "_in_a_child", convert_here)
    monkeypatch.setattr(litert, "changes", lambda *_: "all of them are others")
    words = ["--epochs", "1", "--output", "partly", "--format", "litert:int8", "savedmodel"]  # fmt: skip
    assert main(["distill", "teacher.keras", "digits", "mlp:4", *words]) == 1
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].startswith(
        "keras-distill: error: all is done but litert:int8: int8 changes the model: all of"
    )
    assert told.err.rstrip().endswith("or take --format litert:dynamic.")
    assert (folder / "partly" / "savedmodel" / "1").is_dir()
    assert "int8 changes the model: " in (folder / "partly" / "report.html").read_text()
    assert "What to do next" in told.out


@pytest.mark.parametrize(
    ("distilled", "labels", "best"), [(0.5, 0.6, "hard labels"), (0.6, 0.6, "distilled")]
)  # fmt: skip
def test_what_is_exported_is_better_on_validation_data(distilled, labels, best):
    found = object.__new__(Distillation)
    scores = {"distilled": distilled, "hard labels": labels}
    found.outcomes = {
        name: Outcome({"val_accuracy": [score]}, 0, 0.0)
        for name, score in scores.items()
    }
    assert found._best == best
    assert found._which_is_better().endswith(f"on validation data: {best}")


@pytest.mark.slow
def test_several_teachers_and_a_function_of_ones_own(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    command = ["distill", "teacher.keras,teacher.keras", "digits", "my_networks:plain"]
    command += ["--epochs", "1", "--no-baseline", "--output", "several"]
    assert main(command) == 0
    assert [row[0] for row in figures(pathlib.Path("several"))] == [
        "teacher",
        "student, distilled",
    ]
    assert capsys.readouterr().out.count("hard labels") == 0


def test_a_search_gets_the_cached_targets_and_what_is_fixed(folder, monkeypatch):
    asked = {}

    def search(*_, **arguments):
        asked.update(arguments)
        raise RuntimeError("seen")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(kd, "search", search)
    command = [*ARGUMENTS, "--search", "7", "--alpha", "0.3", "--output", "asked"]
    assert main(command) == 1
    assert len(asked["soft_targets"]) == 1131
    assert asked["temperature"] is None  # its own range
    assert (asked["alpha"], asked["max_trials"], asked["resume"]) == (0.3, 7, True)


@pytest.mark.slow
def test_search_first_and_then_train_with_what_it_found(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    command = [
        "distill",
        "teacher.keras",
        "digits",
        "my_networks:of_hp",
        "--epochs",
        "1",
    ]
    command += ["--search", "2", "--no-baseline", "--output", "searched"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "2 trials, in" in said
    found = json.loads(pathlib.Path("searched/searched.json").read_text())["values"]
    assert {"temperature", "alpha", "width"} == set(found)
    assert found["alpha"] in (1.0, 0.1)  # the two that one would try without a search
    student = keras.saving.load_model("searched/student.keras")
    assert student.layers[1].units == found["width"]
    card = json.loads(pathlib.Path("searched/savedmodel/1/model_card.json").read_text())
    assert card["distillation"]["alpha"] == pytest.approx(found["alpha"])
    page = pathlib.Path("searched/report.html").read_text()
    assert "What each trial of the search came to" in page
