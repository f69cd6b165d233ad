"""What an ensemble's answer costs: time per example against the generalist's own.

A convolutional generalist of 240 classes and 5, 20 or 60 specialists of its own
architecture for clusters that do not overlap; every class is as likely. The same batches
for all, in turns; median of several rounds.

    python benchmarks/specialist_routing.py            about three minutes
    python benchmarks/specialist_routing.py --quick    under a minute
"""

import argparse
import os
import statistics
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
from keras_distill import models
from keras_distill.specialists.heads import as_specialist

CLASSES = 240


def new_generalist(filters):
    """A network whose first pixel says which class is likely, so that all are."""
    image = keras.Input((32, 32, 3))
    logits = models.cnn((32, 32, 3), CLASSES, filters, dense=256)(image)
    said = keras.ops.cast(keras.ops.round(image[:, 0, 0, 0] * CLASSES), "int32")
    return keras.Model(image, logits + 20.0 * keras.ops.one_hot(said, CLASSES))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--filters", type=int, nargs="+", default=[16, 48, 128, 256])
    parser.add_argument("--specialists", type=int, nargs="+", default=[5, 20, 60])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    # The last operation, an addition, does not say that it gives logits.
    warnings.simplefilter("ignore", UserWarning)
    if args.quick:
        args.filters, args.specialists, args.batch, args.rounds = [4, 8], [5], 64, 2
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(args.batch, 32, 32, 3)).astype("float32")
    x[:, 0, 0, 0] = (np.arange(args.batch) % CLASSES) / CLASSES
    x = tf.constant(x)
    generalist = new_generalist(args.filters)
    print("| specialists | n | active per example | ms per example | / generalist |")
    print("|---:|---:|---:|---:|---:|")
    for count in args.specialists:
        clusters = np.array_split(np.arange(CLASSES), count)
        specialists = [
            as_specialist(
                keras.models.clone_model(generalist), "dustbin", cluster,
                [0.0] * (len(cluster) + 1), CLASSES, True,
            )
            for cluster in clusters
        ]  # fmt: skip
        ensemble = kd.SpecialistEnsemble(generalist, specialists, clusters)
        runs = {"generalist": tf.function(lambda x: generalist(x, training=False))}
        active = {}
        for n in (1, 3):
            model = ensemble.with_settings(n=n)
            runs[n] = tf.function(lambda x, model=model: model(x, training=False))
            choice = model.active(runs["generalist"](x))
            active[n] = float(np.mean(np.sum(choice, -1)))
        times = {name: [] for name in runs}
        for turn in range(args.rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                for _ in range(2):
                    run(x).numpy()
                if turn:  # the first traces
                    times[name].append((time.perf_counter() - start) / 2)
        base = times["generalist"]
        for n in (1, 3):
            ratio = statistics.median(
                a / b for a, b in zip(times[n], base, strict=True)
            )
            each = 1e3 * statistics.median(times[n]) / args.batch
            print(
                f"| {count} | {n} | {active[n]:.2f} | {each:.3f} | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
