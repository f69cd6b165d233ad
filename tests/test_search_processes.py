"""Searches by several real processes, some of which are killed."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.tuning import worker

ROOT = pathlib.Path(__file__).parent.parent
PROGRAM = [sys.executable, "-m", "tests.searching"]


def start(directory, trials, workers=1, **environment):
    return subprocess.Popen(
        [*PROGRAM, str(directory), str(trials), str(workers)],
        cwd=ROOT,
        env={**os.environ, "KERAS_DISTILL_QUIET": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, timeout=120):
    output, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


def children(pid):
    """Worker processes of a search, by their name."""
    found = {}
    for line in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in line.read_text().split():
            try:
                environment = pathlib.Path(f"/proc/{child}/environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            for entry in environment.split(b"\0"):
                if entry.startswith(b"KERASTUNER_TUNER_ID="):
                    found[entry.split(b"=")[1].decode()] = int(child)
    return found


def ended(directory):
    """Trials that have ended, and when their students were written."""
    students = {}
    for path in pathlib.Path(directory, "trials").glob("trial_*/trial.json"):
        if json.loads(path.read_text())["status"] in ("COMPLETED", "FAILED"):
            students[path.parent.name] = (
                (path.parent / "student.weights.h5").stat().st_mtime_ns
            )
    return students


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def is_gone(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return True
    return state[0] == "Z"


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(96, 8)).astype("float32"), rng.integers(5, size=96)
    return (x[:64], y[:64]), (x[64:], y[64:])


def test_killed_workers_are_replaced_and_their_trials_tried_again(
    tmp_path, data, monkeypatch
):
    seen = tmp_path / "seen"
    seen.mkdir()

    def build_student(hp):
        import keras

        deadly = hp.Choice("deadly", [False, True])
        if name := os.environ.get("KERASTUNER_TUNER_ID"):
            (seen / name).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
            time.sleep(0.5)
            if deadly:  # as the kernel does it for want of memory
                os.kill(os.getpid(), signal.SIGKILL)
        return keras.Sequential(
            [keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(5)]
        )

    killed = []

    def kill_the_other(row):
        others = {k: v for k, v in children(os.getpid()).items() if k != row["worker"]}
        if not killed:
            time.sleep(0.3)
            killed.extend(others)
            os.kill(others[killed[0]], signal.SIGKILL)

    import keras

    keras.utils.set_random_seed(0)
    teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    # As on a host with two GPUs.
    real = tf.config.list_physical_devices

    def two_gpus(kind=None):
        return ["GPU:0", "GPU:1"] if kind == "GPU" else real(kind)

    monkeypatch.setattr(tf.config, "list_physical_devices", two_gpus)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda *_: None)
    with pytest.warns(UserWarning, match=r"the process that ran it died 3 times"):
        result = kd.search(
            build_student, *data, teacher=teacher, max_trials=6, epochs=1, workers=2,
            algorithm="random", directory=tmp_path / "s", on_trial_end=kill_the_other,
            verbose=False, seed=2,
        )  # fmt: skip
    assert len(result.trials) == 6
    failed = result.trials["status"] == "FAILED"
    assert (failed == result.trials["deadly"]).all()
    assert 0 < failed.sum() < 4
    assert (result.trials["status"][~failed] == "COMPLETED").all()
    assert {path.name: path.read_text() for path in seen.iterdir()} == {
        "worker-0": "0",
        "worker-1": "1",
    }
    deaths = result.tuner.oracle._deaths
    assert deaths.pop(str(failed.idxmax())) == 3
    assert len(killed) == 1
    assert sum(deaths[i] for i in deaths if not failed[int(i)]) >= 1
    busy = result.workers["busy"]
    assert list(result.workers.index) == ["worker-0", "worker-1"]
    assert ((busy > 0) & (busy <= 1)).all()
    assert not children(os.getpid())


def test_workers_let_their_gpu_s_memory_grow(monkeypatch):
    grown = []
    monkeypatch.setattr(tf.config, "list_physical_devices", {"GPU": ["a", "b"]}.get)
    monkeypatch.setattr(
        tf.config.experimental, "set_memory_growth", lambda *call: grown.append(call)
    )
    worker.grow_gpu_memory()
    assert grown == [("a", True), ("b", True)]


def test_control_c_then_a_killed_chief_then_the_end(tmp_path):
    trials = 8
    chief = start(tmp_path, trials, workers=2)
    wait_for(lambda: len(ended(tmp_path)) >= 2)
    workers = children(chief.pid)
    assert sorted(workers) == ["worker-0", "worker-1"]
    began = time.monotonic()
    chief.send_signal(signal.SIGINT)
    chief.wait(timeout=30)
    assert all(map(is_gone, workers.values()))
    assert time.monotonic() - began < 10
    assert chief.returncode != 0
    done = ended(tmp_path)

    chief = start(tmp_path, trials, workers=2)
    wait_for(lambda: len(ended(tmp_path)) >= len(done) + 2)
    workers = children(chief.pid)
    chief.kill()
    chief.wait()
    wait_for(lambda: all(map(is_gone, workers.values())), seconds=10)
    done_later = ended(tmp_path)
    assert done.items() <= done_later.items()

    found = finish(start(tmp_path, trials, workers=2))
    assert found["status"] == ["COMPLETED"] * trials
    assert done_later.items() <= ended(tmp_path).items()  # none was trained again


def test_three_processes_as_on_many_hosts(tmp_path):
    trials = 8
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hosts = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(port)}

    def member(name):
        return start(tmp_path, trials, KERASTUNER_TUNER_ID=name, **hosts)

    early = member("early-worker")  # before there is a chief to ask
    time.sleep(6)
    assert early.poll() is None
    chief, doomed = member("chief"), member("doomed-worker")
    wait_for(lambda: len(ended(tmp_path)) >= 2)
    chief.kill()
    chief.wait()
    done = ended(tmp_path)
    assert early.poll() is None
    chief = member("chief")
    wait_for(lambda: len(ended(tmp_path)) > len(done) + 1)
    doomed.kill()
    doomed.wait()
    found = [finish(process) for process in (chief, early)]
    assert found[0] == found[1]
    assert found[0]["status"] == ["COMPLETED"] * trials
    assert "early-worker" in found[0]["workers"]
    assert done.items() <= ended(tmp_path).items()


def test_workers_that_cannot_start_say_why(tmp_path, data):
    import keras

    class Refuses:
        """Cannot be read back in another process."""

        def __call__(self, hp):
            return keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])

        def __reduce__(self):
            return int, ("not a number",)

    teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    with pytest.raises(
        RuntimeError, match=r"(?s)end before they run a trial.*not a numb"
    ):
        kd.search(
            Refuses(), *data, teacher=teacher, max_trials=2, workers=2,
            directory=tmp_path, verbose=False,
        )  # fmt: skip
    assert not children(os.getpid())


def test_what_cannot_be_sent_is_said(tmp_path, data):
    import threading

    import keras

    lock = threading.Lock()

    def build_student(hp):
        with lock:
            return keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])

    teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    with pytest.raises(TypeError, match="something of it cannot be: .*lock"):
        kd.search(
            build_student, *data, teacher=teacher, max_trials=2, workers=2,
            directory=tmp_path, verbose=False,
        )  # fmt: skip


def test_incomplete_environment_is_refused(tmp_path, data, monkeypatch):
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    arguments = (lambda hp: None, *data)
    with pytest.raises(ValueError, match="KERASTUNER_ORACLE_PORT is not"):
        kd.search(*arguments, teacher=len, directory=tmp_path)
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "0")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker-3")
    with pytest.raises(ValueError, match="leave workers at 1"):
        kd.search(*arguments, teacher=len, directory=tmp_path, workers=2)
