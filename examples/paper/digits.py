"""MNIST, and the paper's two networks, for the experiments of section 3.

A tenth of the training images is kept for choices; nothing else is trained on them, and no
choice sees the test images. `--quick` takes scikit-learn's digits, which need no download.
"""

import types

import keras
import numpy as np
import tensorflow as tf
from records import Record, dataset

import keras_distill as kd

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BATCH = 256
TEACHER_EPOCHS = 200


def load(args):
    """Returns the splits as arrays, and how large everything shall be."""
    name = "digits" if args.quick else "mnist"
    data = kd.datasets.load(name, data_dir=args.data_dir, shuffle=False, verbose=False)
    splits = {
        split: kd.datasets.to_arrays(getattr(data, split))
        for split in ("train", "validation", "test")
    }
    big = (100, 100) if args.quick else (1200, 1200)
    small = (16, 16) if args.quick else (800, 800)
    return types.SimpleNamespace(
        shape=data.input_shape, big=big, small=small, quick=args.quick, **splits
    )


def jitter(x, y):
    """Moves each image of a batch by up to two pixels in any direction."""
    examples, height, width = tf.unstack(tf.shape(x)[:3])
    by = max(1, x.shape[1] // 14)
    x = tf.pad(x, [[0, 0], [by, by], [by, by], [0, 0]])
    for axis, size in ((1, height), (2, width)):
        start = tf.random.uniform([examples, 1], 0, 2 * by + 1, tf.int32)
        x = tf.gather(x, start + tf.range(size), batch_dims=1, axis=axis)
    return x, y


def jittered(x, y):
    """Returns a dataset that shows other views of the images in every epoch."""
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x))
    data = data.batch(BATCH).map(jitter, num_parallel_calls=1).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


def compiled(model, steps, rate=1e-3, loss=LOSS):
    """Compiles it with Adam, the learning rate falling to 0 along a cosine."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, max(1, steps))
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
    return model


def steps_of(x, epochs):
    return epochs * -(-len(x) // BATCH)


def teacher(args, data, seed):
    """Returns the big network: dropout, limited weights, jittered images."""
    epochs = 150 if data.quick else TEACHER_EPOCHS
    record = Record(args.work / "teachers")

    def train():
        keras.utils.set_random_seed(seed)
        model = kd.models.mlp(
            data.shape, 10, data.big, dropout=0.5, input_dropout=0.2, max_norm=4.0
        )
        compiled(model, steps_of(data.train[0], epochs), 1e-2 if data.quick else 1e-3)
        history = model.fit(
            jittered(*data.train), epochs=epochs, shuffle=False, verbose=0,
            validation_data=data.validation, validation_freq=10 if epochs > 10 else 1,
            callbacks=[keras.callbacks.BackupAndRestore(record.folder / f"backup-{seed}")],
        ).history  # fmt: skip
        record.run(f"history-{seed}", lambda: history)
        return model

    return record.model(f"mnist-{seed}", train)


def network(data, widths=None):
    """Returns the small network, untrained."""
    return kd.models.mlp(data.shape, 10, widths or data.small)


def student(
    data, seed, epochs, targets=None, *, temperature=20.0, alpha=0.0, train=None,
    widths=None, rate=1e-3, callbacks=(),
):  # fmt: skip
    """Returns the small network, without regularisation: on labels, or on soft targets.

    Same seed: the same initial weights and the same batches, whatever is taught.
    """
    train = train or data.train
    examples = dataset(*train)
    keras.utils.set_random_seed(seed)
    model = small = network(data, widths)
    if targets is not None:
        model = kd.Distiller(small, temperature=temperature, alpha=alpha)
        examples = targets.join(examples)
    compiled(model, steps_of(train[0], epochs), rate)
    batches = examples.shuffle(len(train[0]), seed=seed).batch(BATCH).prefetch(2)
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return small


def logits_of(model, x):
    return model.predict(x, batch_size=1000, verbose=0)


def errors(model, split):
    """Returns how many images of a split are taken for another digit."""
    x, y = split
    return int(np.sum(logits_of(model, x).argmax(-1) != y))


def probabilities(model, x):
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits_of(model, x)))
