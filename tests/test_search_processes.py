"""Searches by several real processes, some of which are killed."""

import json
import os
import pathlib
import signal
import time

import joblib
import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.processes import Outcome
from keras_distill.tuning.search import _ended

from . import forking
from .test_search import an_oracle


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(96, 8)).astype("float32"), rng.integers(5, size=96)
    return (x[:64], y[:64]), (x[64:], y[64:])


def small():
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])


def deadly_once(folder, parent):
    """A build function that kills the first process that builds it in each of two."""

    def build_student(hp):
        import keras

        if os.getpid() != parent:
            time.sleep(0.3)
            if not os.path.exists(folder / "killed"):
                (folder / "killed").write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)  # as for want of memory
        student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        student.compile("adam", loss, run_eagerly=True)  # tracing would take most of it
        return student

    return build_student


def listening(pids):
    """Sockets on which processes listen, by their inodes."""
    sockets = set()
    for pid in pids:
        for table in ("tcp", "tcp6"):
            lines = pathlib.Path(f"/proc/{pid}/net/{table}").read_text().splitlines()
            inodes = {x.split()[9] for x in lines[1:] if x.split()[3] == "0A"}
            for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
                try:
                    target = os.readlink(link)
                except OSError:
                    continue
                if target.removeprefix("socket:[").rstrip("]") in inodes:
                    sockets.add(target)
    return sockets


def test_two_processes_one_of_which_is_killed(tmp_path, data):
    opened, pids = [], set()
    before = listening([os.getpid()])

    def look(row):
        tasks = pathlib.Path("/proc/self/task").glob("*/children")
        pids.update(int(pid) for task in tasks for pid in task.read_text().split())
        alive = [pid for pid in pids if os.path.exists(f"/proc/{pid}/fd")]
        opened.append(listening([os.getpid(), *alive]) - before)

    result = kd.search(
        deadly_once(tmp_path, os.getpid()), *data, teacher=small(), max_trials=6,
        epochs=1, n_jobs=2, directory=tmp_path / "s", on_trial_end=look, verbose=False,
    )  # fmt: skip
    assert list(result.trials["status"]) == ["COMPLETED"] * 6
    records = result.tuner.oracle.records
    assert sorted(record["deaths"] for record in records.values()) == [0] * 5 + [1]
    assert list(result.workers.index) == ["worker-0", "worker-1"]
    busy = result.workers["busy"]
    assert ((busy > 0) & (busy <= 1)).all()
    assert len(opened) == 6
    assert not any(opened)  # no port, nor anything else that others could reach
    assert not list(pathlib.Path(tmp_path, "s").glob(".tmp-*"))


@pytest.mark.slow
def test_a_dask_cluster_one_worker_of_which_is_killed(tmp_path, data):
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None,
            local_directory=str(tmp_path / "dask"),
        ) as cluster,
        Client(cluster),
        joblib.parallel_config("dask"),
    ):  # fmt: skip
        result = kd.search(
            deadly_once(tmp_path, os.getpid()), *data, teacher=small(), max_trials=6,
            epochs=1, directory=tmp_path / "s", verbose=False,
        )  # fmt: skip
    assert list(result.trials["status"]) == ["COMPLETED"] * 6
    workers = {int(name.rpartition(":")[2]) for name in result.workers.index}
    assert int((tmp_path / "killed").read_text()) not in workers
    assert os.getpid() not in workers


@pytest.mark.slow
def test_control_c_then_kills_then_the_end(tmp_path):
    done = forking.run(["-m", "tests.searching", tmp_path / "s", "2"], timeout=180)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["interrupted"]
    assert found["workers"] >= 2
    assert found["workers_left"] == 0
    assert found["seconds_to_stop"] < 5
    assert found["kills"] == 2
    assert found["kills_within"] >= 1
    assert found["trained_again"] == 0
    trials, unbroken = found["trials"], found["unbroken"]
    assert trials["status"] == unbroken["status"] == ["COMPLETED"] * 8
    # The two fixed points are the same to the bit; what is proposed then depends on what
    # was known.
    assert trials["val_nll"][:2] == pytest.approx(unbroken["val_nll"][:2], rel=1e-5)


def test_a_trial_whose_processes_died_is_a_row_of_its_own(tmp_path):
    oracle = an_oracle(tmp_path)
    task = oracle.propose().get_state()
    error = ChildProcessError("the process that ran it died 3 times.")
    trial = _ended(oracle, Outcome(task, error=error, worker="worker-1", deaths=3))
    assert trial.status == oracle.trials["0"].status == "FAILED"
    assert trial.message == "the process that ran it died 3 times."
    assert oracle.records["0"]["worker"] == "worker-1"
    assert oracle.failure is None


def test_what_cannot_be_sent_is_said_before_anything_is_written(tmp_path, data):
    import threading

    lock = threading.Lock()

    def build_student(hp):
        with lock:
            return small()

    with pytest.raises(
        TypeError, match="cannot be sent to them: .*lock.* let functions"
    ):
        kd.search(
            build_student, *data, teacher=small(), max_trials=2, n_jobs=2,
            directory=tmp_path / "s", verbose=False,
        )  # fmt: skip
    assert not (tmp_path / "s").exists()


def test_a_chief_and_workers_are_another_thing_now(tmp_path, data, monkeypatch):
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    with pytest.raises(
        ValueError, match="no chief and workers.*joblib.parallel_config"
    ):
        kd.search(lambda hp: None, *data, teacher=len, directory=tmp_path)
