"""Sentiment of sentences: a BERT of four layers into one of two, both of KerasHub.

python examples/text.py --data sst2
python examples/text.py --data sst2 --quick
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from sentences.sst2 import LENGTH, load

import keras_distill as kd

TEMPERATURE, ALPHA = 2.0, 0.3
ARMS = (
    "labels",
    "labels, from the teacher's layers",
    "distilled, from the teacher's layers",
)


def bert(layers, words, seed):
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.BertBackbone(
        words, layers, 2, 64, 128, dropout=0.3, max_sequence_length=LENGTH, name="backbone"
    )  # fmt: skip
    return keras_hub.models.BertTextClassifier(backbone, 2, preprocessor=None, dropout=0.3)  # fmt: skip


def fit(model, data, epochs):
    """Trains, and keeps the epoch that is best on dev.tsv; returns the accuracy there."""
    train, dev = map(tf.data.Dataset.from_tensor_slices, (data["train"], data["dev"]))
    train, dev = train.shuffle(10_000).batch(64), dev.batch(256)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, epochs * len(train))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(rate), loss, metrics=["accuracy"])
    best = keras.callbacks.EarlyStopping(
        "val_accuracy", patience=epochs, mode="max", restore_best_weights=True
    )
    model.fit(train, epochs=epochs, verbose=0, validation_data=dev, callbacks=[best])
    return best.best


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
