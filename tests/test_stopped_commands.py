"""Every command, stopped in the middle: nothing is left, and a rerun works."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import pytest

from keras_distill import datasets, models
from tests import forking
from tests.forking import _COMMAND, wait_for

from .test_cli import STUDENT

# So much that it is stopped in the middle.
COMMANDS = {
    "demo": (["demo", "--epochs", "400", "--output", "out"], "out"),
    "cache": (["cache", "teacher.keras", "digits", "out", "--batch-size", "1"], "out"),
    "cache-2": (
        ["cache", "teacher.keras", "digits", "out", "--batch-size", "1", "--workers", "2"],
        "out",
    ),
    "specialists": (
        ["specialists", "teacher.keras", "digits", "--clusters", "3", "--work-dir", "out",
         "--hard-epochs", "400"],
        "out",
    ),
    "specialists-2": (
        ["specialists", "teacher.keras", "digits", "--clusters", "3", "--work-dir", "out",
         "--hard-epochs", "400", "--workers", "2"],
        "out",
    ),
    "distill": (
        ["distill", "teacher.keras", "digits", "cnn:8", "--epochs", "4000", "--output", "out"],
        "out/training/student",
    ),
    "teach": (
        ["teach", "digits", "cnn:8", "--epochs", "4000", "--patience", "4000", "--output",
         "new.keras"],
        "new.keras.teach/training",
    ),
    "search": (
        ["search", "teacher.keras", "digits", "my_models:build", "--directory", "out",
         "--trials", "200", "--patience", "20", "--resume"],
        "out/trials/trial_001",
    ),
    "search-2": (
        ["search", "teacher.keras", "digits", "my_models:build", "--directory", "out",
         "--trials", "200", "--patience", "20", "--resume", "--workers", "2"],
        "out/trials/trial_001",
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    data = datasets.load("digits")
    models.mlp(data.input_shape, data.classes, (16,)).save(tmp_path / "teacher.keras")
    (tmp_path / "my_models.py").write_text(STUDENT)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def environment(folder):
    """Of a command whose processes are known by its folder for temporary files."""
    return {**os.environ, "TMPDIR": str(folder / "tmp")}


def family(folder):
    """Processes that were started for the command, by what their environment says."""
    mark, found = f"TMPDIR={folder / 'tmp'}".encode(), set()
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def started(name, folder):
    """The command as a real process, in the middle of its work."""
    arguments, sign = COMMANDS[name]
    process = subprocess.Popen(
        [sys.executable, "-m", "keras_distill", *arguments], cwd=folder,
        env=environment(folder), stdout=subprocess.DEVNULL,
        stderr=(folder / "errors").open("w"), start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    wait_for(lambda: (folder / sign).exists() or process.poll() is not None, 120)
    assert process.poll() is None, (folder / "errors").read_text()
    return process


# Each takes a start of TensorFlow, and two more where there are workers.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_stopped_command_leaves_nothing(name, number, status, folder):
    shared = set(os.listdir("/dev/shm"))
    process = started(name, folder)
    time.sleep(1.0)
    process.send_signal(number)
    assert process.wait(60) == status
    wait_for(lambda: not family(folder), 5)
    errors = (folder / "errors").read_text()
    assert "keras-distill: stopped." in errors
    assert "Traceback" not in errors
    assert os.listdir(folder / "tmp") == []
    assert not list(folder.rglob(".tmp-*"))
    left = set(os.listdir("/dev/shm")) - shared
    assert not [one for one in left if str(process.pid) in one]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if name[-1] == "2"])
def test_the_processes_of_a_killed_command_end(name, folder):
    process = started(name, folder)
    wait_for(lambda: len(family(folder)) > 2, 60)
    process.kill()
    process.wait()
    wait_for(lambda: not family(folder), 20)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_search_ended_by_sigterm_is_gone_on_with(folder, workers):
    """Forked, so that it is cheap."""
    arguments = [
        "search", "teacher.keras", "digits", "my_models:build", "--directory", "out",
        "--epochs", "1", "--workers", str(workers), "--resume", "--trials",
    ]  # fmt: skip
    command = ["-c", _COMMAND, *arguments]
    with forking.Process([*command, "100"], folder, environment(folder)) as process:
        wait_for(lambda: (folder / "out/trials/trial_002").exists())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143, process.stderr
        assert "Go on with the same command and --resume." in process.stderr
        assert "Traceback" not in process.stderr
    wait_for(lambda: not list((folder / "tmp").iterdir()), 5)
    assert not list((folder / "out").rglob(".tmp-*"))
    begun = len(list((folder / "out/trials").glob("trial_*")))
    done = forking.run([*command, str(max(begun, 3))], folder, environment(folder))
    assert done.returncode == 0, done.stderr
    assert keras.saving.load_model(folder / "out/student.keras").built
