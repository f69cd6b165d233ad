"""Kills processes that write soft targets, at random moments; a program, not a test.

    python -m tests.killed_writers PATH KILLS

Every process is forked from this one, which has imported TensorFlow but runs none of it,
so that a kill costs no import. A store that was begun is always finished, and compared
with one that was never interrupted. Prints a line of JSON.
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

import keras_distill as kd
from keras_distill.soft_targets import shards

EXAMPLES, FEATURES, CLASSES, SHARD = 960, 8, 5, 16


def write(path, log=None):
    keras.utils.set_random_seed(0)
    teacher = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES)])
    x = np.random.default_rng(0).normal(size=(EXAMPLES, FEATURES)).astype("float32")
    if log is not None:
        wrote = shards.write

        def logged(folder, view, shard, rows):
            wrote(folder, view, shard, rows)
            with open(log, "a") as file:
                file.write(f"{view} {shard}\n")
            time.sleep(0.02)  # as a teacher that has something to do

        shards.write = logged
    kd.SoftTargets.write(
        path, teacher, x, batch_size=16, shard_size=SHARD, verbose=False
    )


def forked(function, *arguments):
    pid = os.fork()
    if pid == 0:
        try:
            function(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def opens(path):
    try:
        kd.SoftTargets.open(path)
    except FileNotFoundError:
        return False
    return True


def same_shards(path, other):
    return all(
        pathlib.Path(path, shards.name(*one)).read_bytes()
        == pathlib.Path(other, shards.name(*one)).read_bytes()
        for one in shards.existing(other)
    )


def wait_for_a_shard(pid, log):
    """Waits until a run has written its first shard, or has ended."""
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while not log.read_text() and os.waitid(os.P_PID, pid, ended) is None:
        time.sleep(0.005)


def main(path, kills):
    rng = random.Random(0)
    unbroken, log = path + "-unbroken", pathlib.Path(path + ".log")
    os.waitpid(forked(write, unbroken), 0)
    result = {"kills": 0, "partial": 0, "finished": 0, "same_bytes": True}
    result.update(most_shards_redone=0, unfinished_opened=0)
    begun = 0  # shards on disk before a run
    while result["kills"] < kills or begun:
        log.write_text("")
        pid = forked(write, path, log)
        if result["kills"] < kills:
            if result["kills"] % 4:  # else also while it is starting
                wait_for_a_shard(pid, log)
            time.sleep(rng.uniform(0.0, 0.4))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        result["kills"] += os.WIFSIGNALED(status)
        there = len(shards.existing(path)) if os.path.isdir(path) else 0
        # What a run wrote beyond what it added was there before: work done twice.
        redone = len(log.read_text().splitlines()) - (there - begun)
        result["most_shards_redone"] = max(result["most_shards_redone"], redone)
        is_finished = os.path.exists(os.path.join(path, "manifest.json"))
        result["unfinished_opened"] += opens(path) and not is_finished
        result["partial"] += os.WIFSIGNALED(status) and 0 < there < EXAMPLES // SHARD
        begun = there
        if is_finished:
            result["finished"] += 1
            result["same_bytes"] &= same_shards(path, unbroken)
            result["left_over"] = [n for n in os.listdir(path) if n.startswith(".tmp")]
            shutil.rmtree(path)
            begun = 0
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
