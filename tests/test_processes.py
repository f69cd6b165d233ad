"""Work in real processes, some of which are killed."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import joblib
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import processes
from keras_distill.processes import Seats, spread

ROOT = pathlib.Path(__file__).parent.parent


def is_gone(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return True
    return state[0] == "Z"


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


class Job:
    """Does what a task says, in whatever process it is called."""

    def __init__(self, folder, array=None):
        self.folder, self.array = pathlib.Path(folder), array

    def run(self, task):
        kind, *rest = task
        return getattr(self, kind)(*rest)

    def pid(self, *_):
        time.sleep(0.2)
        return os.getpid()

    def die(self, times, name="died"):
        with open(self.folder / name, "a") as file:
            file.write(".")
        if (self.folder / name).stat().st_size <= times:
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    def fail(self):
        raise ArithmeticError("no such number")

    def settings(self):
        return {
            "policy": keras.config.dtype_policy().name,
            "threads": tf.config.threading.get_intra_op_parallelism_threads(),
            "custom": "test>Mine" in keras.saving.get_custom_objects(),
        }

    def pages(self):
        """Kilobytes of the array that this process has of its own, and its sum."""
        total = float(self.array.sum())
        lines = pathlib.Path("/proc/self/smaps").read_text().splitlines()
        at = next(i for i, line in enumerate(lines) if ".tmp-sent-" in line)
        own = [
            int(x.split()[1]) for x in lines[at : at + 25] if x.startswith("Anonymous:")
        ]
        self.array[0] = 7.0  # for this process alone
        return own[0], total, os.getpid()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """One run of two processes, in which a bit of everything happens."""
    folder = tmp_path_factory.mktemp("run")

    class Mine(keras.layers.Layer):
        pass

    objects = keras.saving.get_custom_objects()
    before = dict(objects)
    # Other test modules run TensorFlow when they are imported, before threads are set.
    for name, thing in before.items():
        if thing.__module__.startswith("tests."):
            del objects[name]
    keras.saving.register_keras_serializable("test")(Mine)
    keras.config.set_dtype_policy("mixed_bfloat16")
    array = np.ones(5_000_000)
    tasks = [
        ("pid", 0), ("die", 1), ("pid", 1), ("fail",), ("die", 9, "deadly"), ("pages",),
        *[("pid", i) for i in range(2, 6)], ("pages",), ("settings",),
    ]  # fmt: skip
    looks = []
    try:
        outcomes = list(
            spread(
                Job(folder, array).run, tasks, seats=Seats.of(2), folder=str(folder),
                threads=1, look=lambda: looks.append(1),
            )
        )  # fmt: skip
    finally:
        keras.config.set_dtype_policy("float32")
        objects.clear()
        objects.update(before)
    return outcomes, tasks, folder, looks, array


def of(outcomes, kind):
    return [outcome for outcome in outcomes if outcome.task[0] == kind]


def test_every_task_has_an_outcome(found):
    outcomes, tasks, folder, looks, _ = found
    assert sorted(map(str, tasks)) == sorted(str(outcome.task) for outcome in outcomes)
    assert {outcome.worker for outcome in outcomes} == {"worker-0", "worker-1"}
    assert all(outcome.seconds >= 0.2 for outcome in of(outcomes, "pid"))
    assert looks
    assert not list(folder.glob(".tmp-*"))


def test_a_task_whose_process_dies_is_tried_again_three_times_at_most(found):
    outcomes, _, folder, *_ = found
    (once,) = [outcome for outcome in of(outcomes, "die") if len(outcome.task) == 2]
    assert (once.deaths, once.error) == (1, None)
    (deadly,) = [outcome for outcome in of(outcomes, "die") if len(outcome.task) == 3]
    assert deadly.deaths == 3 == (folder / "deadly").stat().st_size
    assert isinstance(deadly.error, ChildProcessError)
    assert "died 3 times" in str(deadly.error)


def test_what_the_function_raises_is_an_outcome_and_no_death(found):
    (outcome,) = of(found[0], "fail")
    assert isinstance(outcome.error, ArithmeticError)
    assert str(outcome.error) == "no such number"
    assert "in fail" in outcome.error.__notes__[0]  # where in the other process
    assert outcome.deaths == 0


def test_settings_travel(found):
    (outcome,) = of(found[0], "settings")
    assert outcome.value == {"policy": "mixed_bfloat16", "threads": 1, "custom": True}


def test_arrays_are_shared_not_copied(found):
    outcomes, *_, array = found
    for outcome in of(outcomes, "pages"):
        own, total, _ = outcome.value
        assert own < 1000 < array.nbytes // 1024
        assert total in (array.sum(), array.sum() + 6)  # of a process that wrote to it
    assert array[0] == 1.0


@pytest.mark.slow
def test_a_death_leaves_the_others_alone(tmp_path):
    tasks = iter([("pid",), ("die", 1), *[("pid",)] * 6])
    job = Job(tmp_path)
    outcomes = list(spread(job.run, tasks, seats=Seats.of(2), folder=str(tmp_path)))
    pids = [outcome.value for outcome in of(outcomes, "pid")]
    by_worker = {}
    for outcome in outcomes:
        by_worker.setdefault(outcome.worker, set()).add(outcome.value)
    # One process did all the tasks of its seat, the other was replaced.
    assert {len(found) for found in by_worker.values()} == {1}
    assert len(pids) == 7
    assert of(outcomes, "die")[0].deaths == 1
    assert all(map(is_gone, set(pids)))


def test_tasks_are_drawn_when_a_seat_is_free_and_see_what_has_ended(tmp_path):
    ended, seen = [], []

    def tasks():
        for number in range(4):
            seen.append(list(ended))
            yield number
            yield None  # nothing now

    for outcome in spread(str, tasks(), seats=Seats.of(1), folder=str(tmp_path)):
        ended.append(outcome.value)
    assert seen == [[], ["0"], ["0", "1"], ["0", "1", "2"]]


@pytest.mark.slow
def test_leaving_early_kills_what_runs(tmp_path):
    job = Job(tmp_path)
    run = spread(job.run, iter(lambda: ("pid",), 0), seats=Seats.of(2), folder=str(tmp_path))  # fmt: skip
    pids = set()
    with contextlib.closing(run) as outcomes:
        while (
            len(pids) < 2
        ):  # the first is done with several before the second has begun
            pids.add(next(outcomes).value)
    assert all(map(is_gone, pids))
    assert not list(tmp_path.glob(".tmp-*"))


PROGRAM = """
import os, pathlib, sys, time
print("once", flush=True)
from keras_distill.processes import Seats, spread

def wait(name):
    pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else folder, name).write_text(str(os.getpid()))
    time.sleep(600)

folder = sys.argv[1]
list(spread(wait, ["a"], seats=Seats.of(2), folder=folder))
"""


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_their_parent(tmp_path, how):
    # Without an `if __name__ == "__main__"`: processes do not run the script again.
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    parent = subprocess.Popen(
        [sys.executable, script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A background shell has its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        start_new_session=True,
    )  # fmt: skip
    file = tmp_path / "a"
    wait_for(lambda: file.exists() and file.read_text(), 120)
    pid = int(file.read_text())
    # The terminal sends it to all processes of the group.
    os.killpg(parent.pid, how) if how == signal.SIGINT else parent.kill()
    output, errors = parent.communicate(timeout=20)
    assert output == "once\n"
    wait_for(lambda: is_gone(pid), 3)
    if how == signal.SIGINT:
        assert errors.count("KeyboardInterrupt") == 1
        assert not list(tmp_path.glob(".tmp-*"))


def test_what_cannot_be_sent_is_said_before_anything_is_written(tmp_path):
    import threading

    lock = threading.Lock()

    def locked(task):
        with lock:
            return task

    with pytest.raises(
        TypeError, match=r"cannot be sent to them: .*lock.*Let functions"
    ):
        spread(locked, [1], seats=Seats.of(2), folder=str(tmp_path))
    assert not list(tmp_path.iterdir())
    processes.check_can_be_sent([locked.__name__, np.ones(3)], "")


class Unreadable:
    """Cannot be read back in another process."""

    def __call__(self, task):
        return task

    def __reduce__(self):
        return int, ("not a number",)


def test_processes_that_cannot_read_say_why(tmp_path):
    with pytest.raises(
        RuntimeError, match=r"cannot read what it was sent.*not a number"
    ):
        list(spread(Unreadable(), [1], seats=Seats.of(2), folder=str(tmp_path)))
    assert not list(tmp_path.glob(".tmp-*"))


def test_threads_of_one_process_are_refused():
    with joblib.parallel_config("threading", n_jobs=2):
        with pytest.raises(ValueError, match='ThreadingBackend.*Choose "loky", "dask"'):
            Seats.of(None)
        assert Seats.of(1).is_here
    with joblib.parallel_config("multiprocessing", n_jobs=3):
        assert Seats.of(None) == Seats(3, "loky")
    assert Seats.of(None).is_here


@pytest.fixture
def two_gpus(monkeypatch):
    """As on a host with two GPUs; returns what was made visible, and what grows."""
    seen, grown = [], []
    monkeypatch.setattr(tf.config, "list_physical_devices", {"GPU": ["a", "b"]}.get)
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda gpu, kind: seen.append(gpu)
    )
    monkeypatch.setattr(
        tf.config.experimental, "set_memory_growth", lambda *call: grown.append(call)
    )
    return seen, grown


def test_each_process_has_a_gpu_of_its_own_while_there_are_enough(
    tmp_path, two_gpus, monkeypatch
):
    seen, grown = two_gpus
    held = []
    for _ in range(5):  # as five processes: each holds its lock
        monkeypatch.setattr(processes, "_gpu_lock", None)
        processes.claim_gpu(str(tmp_path))
        held.append(processes._gpu_lock)
    processes.claim_gpu(str(tmp_path))  # it has one
    assert seen == ["a", "b", "a", "b", "a"]
    assert grown[:2] == [("a", True), ("b", True)]
    held[1].close()  # as if it had died
    monkeypatch.setattr(processes, "_gpu_lock", None)
    processes.claim_gpu(str(tmp_path))
    assert seen[-1] == "b"
    for file in (*held, processes._gpu_lock):
        file.close()


@pytest.mark.slow
def test_a_dask_cluster_goes_on_without_a_killed_worker(tmp_path):
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None,
            local_directory=str(tmp_path / "dask"),
        ) as cluster,
        Client(cluster),
        joblib.parallel_config("dask"),
    ):  # fmt: skip
        seats = Seats.of(None)
        assert (seats.kind, seats.count) == ("dask", 2)
        job = Job(tmp_path, np.ones(100_000))
        tasks = [("pid",), ("die", 1), ("fail",), ("pid",), ("pages",), ("pid",)]
        outcomes = list(spread(job.run, tasks, seats=seats, folder=str(tmp_path)))
    assert len(outcomes) == 6
    failed = [outcome.task for outcome in outcomes if outcome.error]
    assert failed == [("fail",)]
    assert of(outcomes, "pages")[0].value[1] == 100_000
    assert all(":" in outcome.worker for outcome in outcomes)
    assert (tmp_path / "died").stat().st_size == 2
    assert json.dumps([outcome.value for outcome in outcomes])
    assert not list(tmp_path.glob(".tmp-*"))
