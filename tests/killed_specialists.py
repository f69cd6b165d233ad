"""Kills processes that train specialists, at random moments; a program, not a test.

    python -m tests.killed_specialists WORK_DIR KILLS

Every process is forked from this one, which has imported TensorFlow but runs none of it.
A run that was begun is always finished, and compared with one that was never
interrupted. Prints a line of JSON.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time
import traceback

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import tensorflow as tf

import keras_distill as kd

CLUSTERS = [[0, 1], [2, 3], [4, 5], [0, 2, 4]]


def train(work_dir, result):
    tf.config.run_functions_eagerly(True)  # a few steps cost less than a trace
    keras.utils.set_random_seed(0)
    generalist = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(8, "relu"),
            keras.layers.Dropout(0.2, seed=7),
            keras.layers.Dense(6),
        ]
    )
    y = np.arange(240) % 6
    x = np.random.default_rng(0).normal(size=(240, 8)).astype("float32")
    model = kd.SpecialistBuilder(generalist, CLUSTERS).fit(
        (x, y), hard_epochs=1, soft_epochs=0, work_dir=work_dir, verbose=False
    )
    weights = [w for m in model.specialists for w in m.get_weights()]
    np.savez(result, *weights, answer=model.predict(x, verbose=0))


def forked(*arguments):
    pid = os.fork()
    if pid == 0:
        try:
            train(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def finished(work_dir):
    """Content of each specialist that is done."""
    files = sorted(pathlib.Path(work_dir).glob("specialist-*.json"))
    models = [file.with_suffix(".keras") for file in files]
    return {m.name: (m.read_bytes(), m.stat().st_mtime_ns) for m in models}


def wait_for_a_specialist(pid, work_dir, before):
    """Waits until a run has finished one more, or has ended."""
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while len(finished(work_dir)) <= before and os.waitid(os.P_PID, pid, ended) is None:
        time.sleep(0.005)


def main(work_dir, kills):
    rng = random.Random(0)
    unbroken, broken = work_dir + "-unbroken.npz", work_dir + "-broken.npz"
    began = time.monotonic()
    os.waitpid(forked(work_dir + "-unbroken", unbroken), 0)
    length = time.monotonic() - began
    wanted = np.load(unbroken)
    result = {"kills": 0, "partial": 0, "runs": 0, "touched": 0, "same_bits": True}
    before = {}
    while result["kills"] < kills or before:
        pid = forked(work_dir, broken)
        if result["kills"] < kills:
            if result["kills"] % 2:  # else also while it is starting
                wait_for_a_specialist(pid, work_dir, len(before))
                time.sleep(rng.uniform(0.0, 0.3) * length)
            else:
                time.sleep(rng.uniform(0.0, 0.8) * length)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        was_killed = os.WIFSIGNALED(status)
        assert was_killed or os.WEXITSTATUS(status) == 0
        result["kills"] += was_killed
        after = finished(work_dir)
        result["touched"] += sum(after[name] != before[name] for name in before)
        result["partial"] += was_killed and 0 < len(after) < len(CLUSTERS)
        before = after
        if not was_killed:
            result["runs"] += 1
            found = np.load(broken)
            result["same_bits"] &= all(
                np.array_equal(found[key], wanted[key]) for key in wanted.files
            )
            shutil.rmtree(work_dir)
            before = {}
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
