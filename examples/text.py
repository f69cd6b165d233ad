"""Sentiment of sentences: a BERT of four layers into one of two, both of KerasHub.

Both are trained from scratch on 6 919 sentences of SST-2. T and alpha are
of one trial, of seed 0 on dev.tsv, beside which nothing was tried; there each training also
chooses its epoch. test.tsv is judged once, after all; accuracy in %, the teacher's 78.53 (all on
one core in 9 minutes):

    seed                                     0      1      2      3      4   mean
    labels                               77.32  77.43  76.39  78.20  77.87  77.44
    labels, from the teacher's layers    77.16  77.32  78.42  78.58  77.32  77.76
    distilled, from the teacher's layers 79.02  78.09  77.92  78.42  78.31  78.35

Distilled minus labels, paired by seed: +0.91 points, 95 % interval +0.08 to +1.74; minus labels
from the same start +0.59, -0.58 to +1.76, which five seeds do not tell from 0. A teacher that
is 1.1 points ahead has little to give; and its NLL is the worse one, 0.549 (distilled 0.542,
labels 0.487), as it is too sure of itself.

    python examples/text.py --data sst2
    python examples/text.py --data sst2 --quick
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from sentences.bert import bert, fit
from sentences.sst2 import load

import keras_distill as kd

TEMPERATURE, ALPHA = 2.0, 0.3
ARMS = (
    "labels",
    "labels, from the teacher's layers",
    "distilled, from the teacher's layers",
)


def with_layers_of(teacher, student):
    """Starts a student from every second block and the embeddings; returns the blocks."""
    pairs = kd.suggest_feature_pairs(student, teacher)
    names = [f"{part}_embedding" for part in ("token", "position", "segment")]
    same = [f"backbone/{name}" for name in (*names, "embeddings_layer_norm")]
    kd.copy_weights(student, teacher, [*pairs, *zip(same, same, strict=True)])
    return pairs


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="sst2", type=pathlib.Path, help="its folder")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny, to see it run")
    args = parser.parse_args()
    if not (args.data / "train.tsv").exists():
        parser.exit(
            1, f"there are no train.tsv, dev.tsv and test.tsv in {args.data}.\n"
        )
    epochs, seeds, most = ((1, 1), 1, 200) if args.quick else ((5, 3), args.seeds, None)
    data, words = load(args.data, most=most)

    # 1. The teacher, from scratch.
    teacher = bert(4, words, seed=100)
    print(f"teacher: {fit(teacher, data, epochs[0]):.2%} of dev.tsv", flush=True)

    # 2. Students. All take as many steps, and choose their epoch alike.
    judged = {"teacher": teacher}
    for arm in (f"{arm} {seed}" for seed in range(seeds) for arm in ARMS):
        student = learner = judged[arm] = bert(2, words, int(arm.split()[-1]))
        pairs = with_layers_of(teacher, student) if "layers" in arm else None
        if arm.startswith("distilled"):
            learner = kd.Distiller(
                student, teacher, temperature=TEMPERATURE, alpha=ALPHA, features=pairs
            )
        print(f"{arm}: {fit(learner, data, epochs[1]):.2%} of dev.tsv", flush=True)

    # 3. The test, once.
    table = kd.compare(judged, data["test"], teacher=teacher, timing=False)
    print(table)
    for arm in ARMS:
        found = [100 * table[f"{arm} {seed}"].accuracy for seed in range(seeds)]
        print(f"{arm}: {np.mean(found):.2f} %, {min(found):.2f} to {max(found):.2f}")


if __name__ == "__main__":
    main()
