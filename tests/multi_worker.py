"""One worker of test_distributed: trains and writes its weights and history.

python -m tests.multi_worker FOLDER INDEX PORT,PORT ours|cached|plain
"""

import json
import os
import sys

folder, index, ports, what = sys.argv[1:]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
if ports:
    os.environ["TF_CONFIG"] = json.dumps(
        {
            "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports.split(",")]},
            "task": {"type": "worker", "index": int(index)},
        }
    )

import keras
import numpy as np
import tensorflow as tf

strategy = (
    tf.distribute.MultiWorkerMirroredStrategy()
    if ports
    else tf.distribute.get_strategy()
)

import keras_distill as kd  # after the strategy, which must come before any operation


def mlp(width):
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(width, activation="relu", kernel_regularizer="l2"),
            keras.layers.Dense(5),
        ]
    )


def main():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8)).astype("float32"), rng.integers(5, size=64)
    weight = rng.uniform(0.5, 2.0, 64).astype("float32")
    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    dataset = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(16)
    dataset = dataset.with_options(options)
    train = dataset
    if what == "cached":  # join chooses the policy by itself
        targets = kd.SoftTargets.open(os.path.join(os.path.dirname(folder), "cached"))
        train = tf.data.Dataset.from_tensor_slices((x, y, weight))
        train = targets.join(train).batch(16)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = mlp(6)
        if what == "ours":
            model = kd.Distiller(model, mlp(32), alpha=0.3)
        elif what == "cached":
            model = kd.Distiller(model, alpha=0.3)
        model.compile(
            keras.optimizers.Adam(0.01),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    history = model.fit(
        train, validation_data=dataset, epochs=2, shuffle=False, verbose=0
    ).history
    np.savez(os.path.join(folder, f"weights{index}.npz"), *model.get_weights())
    with open(os.path.join(folder, f"history{index}.json"), "w") as file:
        json.dump({**history, "replicas": strategy.num_replicas_in_sync}, file)


if __name__ == "__main__":
    main()
