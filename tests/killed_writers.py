"""Kills processes that write soft targets, at random moments; a program, not a test.

    python -m tests.killed_writers PATH KILLS

Every process is forked from this one, which has imported TensorFlow but runs none of it,
so that a kill costs no import. The last one is left to finish. Prints a line of JSON.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras

import keras_distill as kd
from keras_distill.soft_targets import shards, writing

EXAMPLES, FEATURES, CLASSES = 1280, 8, 5


def write(path, log=None):
    keras.utils.set_random_seed(0)
    teacher = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES)])
    x = np.random.default_rng(0).normal(size=(EXAMPLES, FEATURES)).astype("float32")
    if log is not None:
        wrote = shards.write

        def logged(path, view, shard, rows):
            wrote(path, view, shard, rows)
            with open(log, "a") as file:
                file.write(f"{os.getpid()} {view} {shard}\n")
            time.sleep(0.02)  # as a teacher that has something to do

        writing.shards.write = logged
    kd.SoftTargets.write(path, teacher, x, batch_size=16, shard_size=32, verbose=False)


def forked(function, *arguments):
    pid = os.fork()
    if pid == 0:
        try:
            function(*arguments)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def main(path, kills):
    rng = random.Random(0)
    log = path + ".log"
    opened = done = 0
    while done < kills:
        pid = forked(write, path, log)
        time.sleep(rng.uniform(0.3, 1.6))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            done += 1
        finished = os.path.exists(os.path.join(path, "manifest.json"))
        if not finished:
            try:
                kd.SoftTargets.open(path)
                opened += 1
            except FileNotFoundError:
                pass
        if finished:  # faster than the kills: begin another
            for name in os.listdir(path):
                os.remove(os.path.join(path, name))
            pathlib.Path(log).write_text("")
    os.waitpid(forked(write, path, log), 0)
    os.waitpid(forked(write, path + "-unbroken"), 0)
    names = sorted(n for n in os.listdir(path) if n.startswith("view-"))
    same = all(
        pathlib.Path(path, n).read_bytes()
        == pathlib.Path(path + "-unbroken", n).read_bytes()
        for n in names
    )
    counts: dict[str, int] = {}
    for line in pathlib.Path(log).read_text().splitlines():
        counts[line.split(" ", 1)[1]] = counts.get(line.split(" ", 1)[1], 0) + 1
    print(
        json.dumps(
            {
                "kills": done,
                "same_bytes": same and len(names) == EXAMPLES // 32,
                "most_shards_redone": sum(counts.values()) - len(counts),
                "unfinished_opened": opened,
                "left_over": [n for n in os.listdir(path) if n.startswith(".tmp")],
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
