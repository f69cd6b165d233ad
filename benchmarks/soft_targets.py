"""What cached soft targets cost: writing, bytes, memory, joining, and how that grows.

python benchmarks/soft_targets.py --json cost.json     about fifteen minutes, two cores
python benchmarks/soft_targets.py --quick              under a minute
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
from keras_distill import models
from keras_distill.run_directory import examples_fingerprint

FEATURES, BATCH, TOP_K = 32, 128, 10
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def exhaust(dataset):
    for _ in dataset:
        pass


def linear(classes):
    return keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(classes)])


def made(examples):
    """Returns a dataset that holds nothing in memory: examples are made as they come."""
    base = tf.data.Dataset.range(examples // 1000 or 1)

    def block(number):
        seed = tf.stack([number, 7])
        x = tf.random.stateless_normal((min(1000, examples), FEATURES), seed)
        return x, tf.zeros((min(1000, examples),), tf.int32)

    return base.map(block).unbatch()


def write(folder, examples, classes, **kwargs):
    return kd.SoftTargets.write(
        folder, linear(classes), made(examples), top_k=min(TOP_K, classes),
        verbose=False, **kwargs,
    )  # fmt: skip


def writing_rate(args):
    """Returns ratios, by round, of the writing rate to that of `teacher.predict`."""
    widths = (64, 64) if args.quick else (1200, 1200)
    teacher = models.mlp((28, 28, 1), 10, widths)
    x = np.random.default_rng(0).random((args.mnist_examples, 28, 28, 1), "float32")
    # Several times over, so that what a call costs once does not decide.
    data = tf.data.Dataset.from_tensor_slices(x).batch(BATCH)
    data = tf.data.Dataset.range(args.times).flat_map(lambda _: data).prefetch(2)
    teacher.predict(data, verbose=0)
    ratios, seconds = [], []
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            runs = {
                "predict": lambda: teacher.predict(data, verbose=0),
                "write": lambda folder=folder: kd.SoftTargets.write(
                    folder, teacher, data, verbose=False
                ),
            }
            order = list(runs) if number % 2 else list(runs)[::-1]
            spent = {name: timed(runs[name]) for name in order}
        ratios.append(spent["predict"] / spent["write"])
        seconds.append(spent)
    return {"ratios": ratios, "median": float(np.median(ratios)), "seconds": seconds}


def check_cost(args):
    """Returns the fingerprints' part of a plain training step, in processor time."""
    x = np.random.default_rng(0).random((12_800, 28, 28, 1), "float32")
    y = np.zeros(len(x), "int32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    student = models.mlp((28, 28, 1), 10, (800, 800))
    student.compile("adam", LOSS)

    @tf.function
    def with_check(x, expected):
        return tf.reduce_all(examples_fingerprint(x) == expected)

    batches = [(b, examples_fingerprint(b)) for b, _ in data]
    student.fit(data, verbose=0, shuffle=False)
    with_check(*batches[0])
    shares = []
    for _ in range(args.rounds):
        start = time.process_time()
        for batch in batches:
            with_check(*batch)
        check = time.process_time() - start
        start = time.process_time()
        student.fit(data, verbose=0, shuffle=False)
        shares.append(check / (time.process_time() - start))
    return {"shares": shares, "median": float(np.median(shares))}


def peak_memory(examples):
    """Returns the peak resident memory, in MB, of a process that writes them."""
    code = (
        "import sys, tempfile; sys.path.insert(0, sys.argv[1])\n"
        "import soft_targets\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    soft_targets.write(folder, int(sys.argv[2]), 1000)\n"
        # Not getrusage: that goes on counting from the parent's peak.
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    here = str(pathlib.Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, here, str(examples)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout) / 1024


def big_store(args):
    """Writes many examples of 1000 classes and reads them, joined, shuffled, batched."""
    with tempfile.TemporaryDirectory() as folder:
        spent = timed(lambda: write(folder, args.big, 1000))
        targets = kd.SoftTargets.open(folder)
        x = np.concatenate([b[0].numpy() for b in made(args.big).batch(10_000)])
        y = np.zeros(len(x), "int32")
        data = tf.data.Dataset.from_tensor_slices((x, y))
        shuffled = targets.join(data).shuffle(10_000).batch(256).prefetch(4)
        blocks = targets.join(data.batch(256)).shuffle(40).prefetch(4)
        plain = data.shuffle(10_000).batch(256).prefetch(4)
        rates = {
            "data alone": [],
            "join, shuffle, batch": [],
            "batch, join, shuffle": [],
        }
        for _ in range(args.rounds):
            for name, dataset in zip(rates, (plain, shuffled, blocks), strict=True):
                rates[name].append(
                    args.big / timed(lambda dataset=dataset: exhaust(dataset))
                )
        return {
            "examples": args.big,
            "bytes_per_example": targets.bytes_per_example,
            "write_examples_per_second": args.big / spent,
            "examples_per_second": {k: float(np.median(v)) for k, v in rates.items()},
        }


def growth(args, log):
    """Returns microseconds per example of writing, joining and a step."""
    rows = []
    for classes in args.classes:
        for examples in args.growth:
            with tempfile.TemporaryDirectory() as folder:
                spent = timed(lambda f=folder, c=classes, e=examples: write(f, e, c))
                targets = kd.SoftTargets.open(folder)
                joined = targets.join(made(examples).batch(BATCH)).prefetch(2)
                exhaust(joined)
                reading = timed(lambda j=joined: exhaust(j))
                alone = timed(lambda e=examples: exhaust(made(e).batch(BATCH)))
                distiller = kd.Distiller(linear(classes), alpha=0.0)
                distiller.compile("sgd")
                distiller.fit(joined.take(4), verbose=0)
                fit = timed(lambda d=distiller, j=joined: d.fit(j, verbose=0))
            rows.append(
                {
                    "classes": classes,
                    "examples": examples,
                    "write_us": 1e6 * spent / examples,
                    "join_us": 1e6 * (reading - alone) / examples,
                    "step_us": 1e6 * fit / examples,
                    "bytes": targets.bytes_per_example,
                }
            )
            log(f"growth {rows[-1]}")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to see it run")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    args.mnist_examples, args.big, args.memory = 60_000, 200_000, 20_000
    args.times = 4
    args.classes, args.growth = (10, 100, 1000, 10_000), (1000, 10_000, 100_000)
    if args.quick:
        args.mnist_examples, args.big, args.memory, args.rounds = 2000, 5000, 1000, 3
        args.classes, args.growth = (10, 100), (1000,)
    began = time.monotonic()

    def log(text):
        print(f"[{time.monotonic() - began:6.0f} s] {text}", flush=True)

    result = {"writing": writing_rate(args)}
    log(f"writing rate / teacher.predict: {result['writing']['median']:.3f}")
    result["check"] = check_cost(args)
    log(f"check / plain MNIST step: {100 * result['check']['median']:.2f} %")
    few, many = peak_memory(args.memory), peak_memory(10 * args.memory)
    result["memory_mb"] = {args.memory: few, 10 * args.memory: many}
    log(
        f"peak memory {few:.0f} MB, ten times the examples {many:.0f} MB: {many / few:.3f}"
    )
    result["big"] = big_store(args)
    log(f"{result['big']}")
    result["growth"] = growth(args, log)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))

    print("\n| classes | examples | write, us | join, us | step, us | bytes |")
    print("|---:|---:|---:|---:|---:|---:|")
    for row in result["growth"]:
        print(
            f"| {row['classes']} | {row['examples']} | {row['write_us']:.1f} | "
            f"{row['join_us']:.1f} | {row['step_us']:.1f} | {row['bytes']:.1f} |"
        )
    print(
        "us are microseconds of two cores per example, top_k = 10, joined in batches."
    )


if __name__ == "__main__":
    main()
