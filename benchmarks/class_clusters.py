"""What it costs to find clusters of many classes: time, memory, and whether they are right.

A synthetic generalist with planted clusters of 50 classes (10 for the smallest): an
example's class, and to a lesser degree its cluster, has larger logits than the noise of all
others. Its answers are streamed, 100 000 of them, with the ten largest kept beyond 1000
classes. Each size runs in a process of its own, for its peak memory.

    python benchmarks/class_clusters.py              about five minutes
    python benchmarks/class_clusters.py --quick      a few seconds
"""

import argparse
import json
import os
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from sklearn.metrics import normalized_mutual_info_score

import keras_distill as kd


def generalist(classes, size):
    """Returns a function from seeds `(batch, 2)` to logits, and each class's cluster."""
    group = np.random.default_rng(0).permutation(np.arange(classes) // size)
    groups = tf.constant(group)

    def answer(seeds):
        true = seeds[:, 0] % classes
        noise = tf.random.stateless_normal((tf.shape(seeds)[0], classes), seeds[0])
        same = tf.gather(groups, true)[:, None] == groups[None]
        own = tf.one_hot(true, classes)
        return noise + 5.0 * tf.cast(same, tf.float32) + 2.0 * own

    return answer, group


def measure(classes, examples):
    size = 10 if classes < 1000 else 50
    answer, group = generalist(classes, size)
    seeds = np.stack([np.arange(examples), np.zeros(examples)], 1).astype("int32")
    began = time.perf_counter()
    covariance = kd.class_covariance(
        answer, seeds, top_k=None if classes <= 1000 else 10, from_logits=True,
        batched=True, verbose=False,
    )  # fmt: skip
    middle = time.perf_counter()
    clusters = kd.cluster_classes(covariance, classes // size, max_size=2 * size)
    ended = time.perf_counter()
    labels = np.zeros(classes, int)
    for index, cluster in enumerate(clusters):
        labels[list(cluster)] = index
    with open("/proc/self/status") as status:
        peak = next(int(s.split()[1]) for s in status if s.startswith("VmHWM"))
    return {
        "classes": classes,
        "clusters": len(clusters),
        "covariance_seconds": middle - began,
        "clusters_seconds": ended - middle,
        "peak_mb": peak / 1024,
        "nmi": float(normalized_mutual_info_score(group, labels)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[100, 1000, 5000, 15000]
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.examples, args.classes = 2000, [100]
    if args.child:
        print(json.dumps(measure(args.classes[0], args.examples)))
        return
    print("| classes | clusters | covariance, s | clusters, s | peak, MB | NMI |")
    print("|---:|---:|---:|---:|---:|---:|")
    for classes in args.classes:
        command = [sys.executable, __file__, "--child", "--classes", str(classes)]
        done = subprocess.run(
            [*command, "--examples", str(args.examples)],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        r = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {r['classes']} | {r['clusters']} | {r['covariance_seconds']:.1f} | "
            f"{r['clusters_seconds']:.1f} | {r['peak_mb']:.0f} | {r['nmi']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
