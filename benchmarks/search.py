"""What a search costs beside its trainings, and what a second process brings.

1. Trials per minute of one process and of two, each with one thread, start included.
2. Seconds of a trial beside `fit`, with a student of one layer and one epoch.
3. Seconds until the next trial is proposed, over 200 trials of Bayesian search.

    python benchmarks/search.py
    python benchmarks/search.py --quick
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_tuner
import numpy as np
import tensorflow as tf

import keras_distill as kd
from keras_distill.tuning.oracles import BayesianOracle


def digits():
    data = kd.datasets.load("digits", shuffle=False)
    return kd.datasets.to_arrays(data.train), kd.datasets.to_arrays(data.validation)


def search_with(workers, trials, epochs):
    """One search by processes of one thread each, by this one if there is one."""
    if workers == 1:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    teacher = kd.models.mlp((8, 8, 1), 10, (64,))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        result = kd.search(
            lambda hp: kd.models.mlp((8, 8, 1), 10, (512, 512)),
            *digits(), teacher=teacher, max_trials=trials, epochs=epochs, patience=None,
            n_jobs=workers, threads=None if workers == 1 else 1, directory=folder,
            algorithm="random", verbose=False,
        )  # fmt: skip
        seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "trials_per_minute": 60 * trials / seconds,
        "busy": list(result.workers["busy"]),
    }


def in_a_process(workers, trials, epochs):
    call = [sys.executable, __file__, "--one", json.dumps([workers, trials, epochs])]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def overhead(trials):
    """Seconds of a trial, and of the `fit` in it."""
    fits = []

    plain = keras_tuner.HyperModel.fit

    def timed(self, *args, **kwargs):
        began = time.perf_counter()
        try:
            return plain(self, *args, **kwargs)
        finally:
            fits.append(time.perf_counter() - began)

    keras_tuner.HyperModel.fit = timed
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(256, 8)).astype("float32"), rng.integers(5, size=256)

    def build(hp):
        return keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])

    with tempfile.TemporaryDirectory() as folder:
        result = kd.search(
            build, (x, y), (x, y), teacher=build(None), max_trials=trials, epochs=1,
            directory=folder, algorithm="random", verbose=False,
        )  # fmt: skip
    keras_tuner.HyperModel.fit = plain
    ends = (result.trials["began"] + result.trials["seconds"]).to_numpy()
    # From the end of a trial to the end of the next, so that nothing is left out.
    return float(np.median(np.diff(ends))), statistics.median(fits[1:])


def proposals(trials, hyperparameters):
    """Seconds for each proposal of a Bayesian search."""
    hp = keras_tuner.HyperParameters()
    hp.Float("temperature", 1.0, 20.0, sampling="log")
    hp.Float("alpha", 0.0, 1.0)
    for number in range(hyperparameters - 2):
        hp.Float(f"other_{number}", 1e-4, 1e-2, sampling="log")
    oracle = BayesianOracle(
        objective=keras_tuner.Objective("val_accuracy", "max"), max_trials=trials,
        hyperparameters=hp, fixed_points=[], seed=1,
    )  # fmt: skip
    rng, seconds = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        oracle._set_project_dir(folder, "trials")
        for _ in range(trials):
            began = time.perf_counter()
            trial = oracle.propose()
            seconds.append(time.perf_counter() - began)
            values = trial.hyperparameters.values
            score = 0.98 - 0.01 * np.log(values["temperature"] / 4) ** 2
            noisy = score - 0.02 * values["alpha"] ** 2 + rng.normal() * 0.002
            oracle.finish(trial, {"val_accuracy": float(noisy)})
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="of each search")
    parser.add_argument("--quick", action="store_true", help="tiny, to see it run")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(search_with(*json.loads(args.one))))
        return
    trials, epochs, rounds = (4, 2, 1) if args.quick else (24, 60, args.rounds)

    print("| workers | trials per minute, rounds | busy |\n|---|---|---|")
    runs = {1: [], 2: []}
    for _ in range(rounds):
        for workers, done in runs.items():
            done.append(in_a_process(workers, trials, epochs))
    for workers, done in runs.items():
        rates = ", ".join(f"{run['trials_per_minute']:.1f}" for run in done)
        busy = ", ".join(f"{100 * b:.0f} %" for b in done[-1]["busy"])
        print(f"| {workers} | {rates} | {busy} |")
    ratios = [
        two["trials_per_minute"] / one["trials_per_minute"]
        for one, two in zip(runs[1], runs[2], strict=True)
    ]
    print(f"two workers / one: {statistics.median(ratios):.2f}")

    whole, fit = overhead(4 if args.quick else 40)
    print(
        f"a trial takes {whole:.3f} s, its fit {fit:.3f} s: {whole - fit:.3f} s beside"
    )

    for count in (2, 4):
        seconds = proposals(12 if args.quick else 200, count)
        print(
            f"{count} hyperparameters, {len(seconds)} trials: a proposal takes "
            f"{statistics.mean(seconds):.2f} s, at most {max(seconds):.2f} s"
        )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
