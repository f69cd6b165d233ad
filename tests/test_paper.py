"""The paper's experiments: each runs, and goes on where it was interrupted."""

import concurrent.futures
import importlib
import json
import pathlib
import re
import sys
import threading
import time

import numpy as np
import pytest

from tests import forking

PAPER = pathlib.Path(__file__).parent.parent / "examples" / "paper"
EXPERIMENTS = sorted(
    path.stem for path in PAPER.glob("*.py") if "write(\n" in path.read_text() or
    "write(args" in path.read_text()
)  # fmt: skip


@pytest.fixture
def records(examples_path):
    examples_path(PAPER)
    return importlib.import_module("records")


def quick(name, folder):
    """Runs an experiment, and returns what it wrote."""
    done = forking.run([PAPER / f"{name}.py", "--quick"], folder)
    assert done.returncode == 0, done.stderr
    written = pathlib.Path(done.stdout.splitlines()[-1].removeprefix("written to "))
    assert written != PAPER / "results"
    results = [json.loads(path.read_text()) for path in written.glob("*.json")]
    assert len(results) == 1
    assert results[0]["quick"] is True
    assert next(written.glob("*.md")).read_text().startswith("| ")
    return results[0]


def test_an_experiment_runs_quickly(tmp_path):
    result = quick("calibration", tmp_path)
    (teacher,) = result["networks"]["MNIST, teacher"]
    assert teacher["NLL calibrated"] < teacher["NLL"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n != "calibration"])
def test_every_experiment_runs_quickly(name, tmp_path):
    quick(name, tmp_path)


def test_what_was_done_is_not_done_again(records, tmp_path, capsys):
    record = records.Record(tmp_path)
    assert record.run("a", lambda: {"errors": 3})["errors"] == 3
    with pytest.raises(KeyboardInterrupt):
        record.run("b", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    again = records.Record(tmp_path)
    assert again.run("a", lambda: {"errors": 4})["errors"] == 3
    assert again.run("b", lambda: {"errors": 5})["errors"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_two_runs_beside_each_other_train_once(records, tmp_path):
    calls, began = [], threading.Event()

    def train():
        calls.append(0)
        began.set()
        time.sleep(0.3)
        return {"errors": len(calls)}

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: records.Record(tmp_path).run("a", train))
        assert began.wait(10)
        second = pool.submit(lambda: records.Record(tmp_path).run("a", train))
        assert first.result()["errors"] == second.result()["errors"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--output", "/dev/null"], "--output /dev/null cannot be written to"),
        (["--seeds", "1", "1"], "--seeds are different numbers from 0 on"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(
    records, monkeypatch, tmp_path, capsys, given, told
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mnist.py", *given])
    with pytest.raises(SystemExit):
        records.arguments("Doc.", 2)
    assert told in capsys.readouterr().err


def test_what_must_be_run_before_is_named(records, monkeypatch, tmp_path):
    calibration = importlib.import_module("calibration")
    given = ["--work", str(tmp_path), "--output", str(tmp_path), "--seeds", "4"]
    monkeypatch.setattr(sys, "argv", ["calibration.py", *given])
    with pytest.raises(SystemExit, match=r"labels-4.keras is not there: run mnist.py"):
        calibration.main()


def test_calibration_keeps_figures_by_seed(records, monkeypatch, tmp_path):
    calibration = importlib.import_module("calibration")
    digits = importlib.import_module("digits")
    given = ["--quick", "--seeds", "4"]
    monkeypatch.setattr(sys, "argv", ["calibration.py", *given])
    monkeypatch.setattr(digits, "load", lambda args: None)
    nets = {"MNIST, labels": {4: None}}
    monkeypatch.setattr(calibration, "trained", lambda args, data: nets)
    kept = []
    monkeypatch.setattr(
        records.Record, "run", lambda self, name, train: kept.append(name)
    )
    with pytest.raises(TypeError):  # there are no figures to show
        calibration.main()
    assert kept == ["MNIST, labels-4"]


def test_the_interval_of_pairs_is_students(records):
    # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t of 2 degrees 4.3027.
    assert records.paired([2, 4, 6], [1, 2, 3], 2) == "+2.00 [-0.48, +4.48]"
    assert records.paired([2], [1]) == "+1.0"
    assert records.spread([1, 3], 2) == "2.00 ± 1.41"


def test_views_are_others_in_every_epoch_and_the_same_for_a_seed(records):
    images = importlib.import_module("images")
    x = np.arange(2 * 16 * 16 * 3, dtype="float32").reshape(2, 16, 16, 3)
    y = np.array([0, 1])
    data = images.views(x, y)
    first, second = (next(iter(data)) for _ in range(2))
    assert not np.array_equal(first[0], second[0])
    seed = np.array([1, 2])
    assert np.array_equal(images.moved(x[0], seed), images.moved(x[0], seed))


def test_jitter_moves_by_two_pixels_at_most(records):
    digits = importlib.import_module("digits")
    x = np.zeros((200, 28, 28, 1), "float32")
    x[:, 14, 14] = 1.0
    moved, _ = digits.jitter(x, np.zeros(200))
    found = np.argwhere(np.asarray(moved)[..., 0])[:, 1:] - 14
    assert len(found) == 200
    assert found.min() == -2
    assert found.max() == 2


def test_the_page_shows_the_tables_as_they_were_written(records):
    page = (PAPER / "README.md").read_text()
    assert importlib.import_module("page").filled(page) == page
    shown = re.findall(r"results/(\w+\.png)", page)
    there = {path.name for path in (PAPER / "results").glob("*.png")}
    assert there <= set(shown)
