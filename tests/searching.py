"""Searches that are killed, interrupted and taken up again; a program, not a test.

    python -m tests.searching DIRECTORY KILLS

Every search is forked from this process, which has imported TensorFlow but runs none of it,
so that a kill costs no import. Prints a line of JSON.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time
import traceback

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np

import keras_distill as kd
from keras_distill.tuning import search as _search  # noqa: F401 - before any fork

TRIALS = 8


def build_student(hp, pids):
    pathlib.Path(pids, str(os.getpid())).touch()
    # In place of training, so that there is a middle of a trial to be killed in.
    time.sleep(0.05)
    width = hp.Int("width", 4, 12)
    student = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(5)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile("adam", loss, run_eagerly=True)
    return student


def search(directory, n_jobs, result=None):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(96, 8)).astype("float32"), rng.integers(5, size=96)
    keras.utils.set_random_seed(0)
    teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    pids = directory + "-pids"
    os.makedirs(pids, exist_ok=True)
    found = kd.search(
        lambda hp: build_student(hp, pids), (x[:64], y[:64]), (x[64:], y[64:]), teacher=teacher,
        max_trials=TRIALS, epochs=1, n_jobs=n_jobs, directory=directory, resume=True,
        verbose=False,
    )  # fmt: skip
    if result is not None:
        columns = found.trials[["status", "val_nll", "worker"]]
        pathlib.Path(result).write_text(json.dumps(columns.to_dict("list")))


def forked(*arguments):
    pid = os.fork()
    if pid == 0:
        # A background shell has its children ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            search(*arguments)
        except KeyboardInterrupt:
            os._exit(3)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def ended(directory):
    """Trials that have ended, and when their students were written."""
    students = {}
    for path in pathlib.Path(directory, "trials").glob("trial_*/trial.json"):
        if json.loads(path.read_text())["status"] == "COMPLETED":
            weights = path.parent / "student.weights.h5"
            students[path.parent.name] = weights.stat().st_mtime_ns
    return students


def alive(pids):
    states = []
    for pid in pids:
        try:
            text = pathlib.Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            continue
        states.append(text.rsplit(")", 1)[1].split()[0])
    return sum(state != "Z" for state in states)


def main(directory, kills):
    rng = random.Random(0)
    result = {"kills": 0, "trained_again": 0, "kills_within": 0}
    # 1. Two processes, stopped by Ctrl-C.
    pid = forked(directory, 2)
    while len(ended(directory)) < 2:
        time.sleep(0.05)
    workers = {int(name) for name in os.listdir(directory + "-pids")} - {pid}
    began = time.monotonic()
    os.kill(pid, signal.SIGINT)
    _, status = os.waitpid(pid, 0)
    result["interrupted"] = os.waitstatus_to_exitcode(status) == 3
    result["workers"] = len(workers)
    result["seconds_to_stop"] = time.monotonic() - began
    time.sleep(0.2)
    result["workers_left"] = alive(workers)
    # 2. This process alone, killed again and again.
    done, file = ended(directory), directory + ".json"
    while not os.path.exists(file):
        pid = forked(directory, 1, file)
        if result["kills"] < kills:
            before = len(done)
            end = time.monotonic() + 60
            while len(ended(directory)) == before and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.15))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        result["kills"] += os.WIFSIGNALED(status)
        now = ended(directory)
        result["trained_again"] += sum(now.get(k) != when for k, when in done.items())
        result["kills_within"] += os.WIFSIGNALED(status) and 0 < len(now) < TRIALS
        done = now
    result["trials"] = json.loads(pathlib.Path(file).read_text())
    # 3. The same without an interruption.
    os.waitpid(forked(directory + "-unbroken", 1, file), 0)
    result["unbroken"] = json.loads(pathlib.Path(file).read_text())
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
