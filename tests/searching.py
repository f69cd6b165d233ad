"""Searches, to be killed and started again; a program, not a test.

    python -m tests.searching DIRECTORY TRIALS WORKERS

Goes on where it was stopped. KerasTuner's variables make it one process of a search on
many hosts. Prints a line of JSON: the trials by their status, and who ran them.
"""

import json
import os
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np

import keras_distill as kd


def build_student(hp):
    # In place of training, so that there is a middle of a trial to be killed in.
    time.sleep(float(os.environ.get("BUILD_SECONDS", "0.5")))
    width = hp.Int("width", 4, 12)
    return keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(5)]
    )


def main(directory, trials, workers):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(96, 8)).astype("float32"), rng.integers(5, size=96)
    keras.utils.set_random_seed(0)
    teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    result = kd.search(
        build_student,
        (x[:64], y[:64]),
        (x[64:], y[64:]),
        teacher=teacher,
        max_trials=trials,
        epochs=1,
        workers=workers,
        worker_timeout=10,
        directory=directory,
        resume=True,
        verbose=False,
    )
    print(
        json.dumps(
            {
                "status": list(result.trials["status"]),
                "workers": sorted(set(result.trials["worker"])),
                "best": result.best_trial,
                "parameters": result.student.count_params(),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
