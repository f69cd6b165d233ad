"""Training specialists by one process and by two, each with one thread.

Six specialists of one size on synthetic images; whole runs, in turns, each in a fresh
process, the start of the workers included.

    python benchmarks/specialist_workers.py            about eight minutes
    python benchmarks/specialist_workers.py --quick    about half a minute
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

CLASSES, CLUSTERS = 24, 6


def train(workers, epochs, picture):
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_distill as kd
    from keras_distill import models, plots

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    y = np.arange(2400 if epochs > 1 else 240) % CLASSES
    x = rng.uniform(size=(len(y), 32, 32, 3)).astype("float32")
    generalist = models.cnn((32, 32, 3), CLASSES, (16, 32, 64))
    clusters = np.array_split(np.arange(CLASSES), CLUSTERS)
    builder = kd.SpecialistBuilder(generalist, clusters)
    start = time.perf_counter()
    ensemble = builder.fit(
        (x, y), hard_epochs=epochs, soft_epochs=epochs, n_jobs=workers, threads=1,
        verbose=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if picture:
        plots.training_by_worker(builder.records).savefig(picture)
    weights = [w for m in ensemble.specialists for w in m.get_weights()]
    print(seconds, sum(float(np.abs(w).sum()) for w in weights))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=24, help="of each stage")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--picture", help="of the last run with two workers")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.epochs, args.rounds = 1, 1
    if args.child:
        train(args.child, args.epochs, args.picture)
        return
    ratios = []
    for _ in range(args.rounds):
        seconds, sums = {}, set()
        for workers in (1, 2):
            command = [sys.executable, __file__, "--child", str(workers)]
            command += ["--epochs", str(args.epochs)]
            if args.picture and workers == 2:
                command += ["--picture", str(pathlib.Path(args.picture).absolute())]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, check=True,
            )  # fmt: skip
            time_taken, total = done.stdout.split()[-2:]
            seconds[workers] = float(time_taken)
            sums.add(total)
        ratios.append(seconds[2] / seconds[1])
        print(
            f"one worker {seconds[1]:.1f} s, two {seconds[2]:.1f} s, ratio "
            f"{ratios[-1]:.2f}, same weights: {len(sums) == 1}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
