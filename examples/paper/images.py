"""CIFAR-100 and the network for the experiments of sections 4 and 5.

A tenth of the training images is kept for choices. All nets see flipped and shifted views,
other ones in every epoch. `--quick` takes scikit-learn's digits, which need no download.
"""

import types

import keras
import tensorflow as tf
from keras import layers
from records import Record, dataset

import keras_distill as kd

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BATCH = 128
EPOCHS = 40


def load(args):
    """Returns the splits as arrays, and how large everything shall be."""
    name = "digits" if args.quick else "cifar100"
    data = kd.datasets.load(name, data_dir=args.data_dir, shuffle=False, verbose=False)
    splits = {
        split: kd.datasets.to_arrays(getattr(data, split))
        for split in ("train", "validation", "test")
    }
    return types.SimpleNamespace(
        shape=data.input_shape, classes=data.classes, names=data.class_names,
        filters=(8,) if args.quick else (16, 32, 96, 192),
        epochs=6 if args.quick else EPOCHS, quick=args.quick, **splits,
    )  # fmt: skip


def network(data, filters=None):
    """Returns an untrained net: for each width a halving convolution and a residual one."""
    image = hidden = keras.Input(data.shape, name="image")
    for width in filters or data.filters:
        for strides in (2, 1):
            before = hidden
            hidden = layers.Conv2D(
                width, 3, strides, padding="same", use_bias=False
            )(hidden)  # fmt: skip
            hidden = layers.BatchNormalization(momentum=0.9)(hidden)
            hidden = layers.ReLU()(hidden)
        hidden = layers.Add()([hidden, before])
    hidden = layers.GlobalAveragePooling2D()(hidden)
    return keras.Model(image, layers.Dense(data.classes, name="logits")(hidden))


def moved(x, seed):
    """Mirrors an image or not, and moves it by up to an eighth; all chance from the seed."""
    by = x.shape[0] // 8
    x = tf.where(tf.random.stateless_uniform((), seed) < 0.5, x[:, ::-1], x)
    start = tf.random.stateless_uniform((2,), seed + 1, 0, 2 * by + 1, tf.int32)
    padded = tf.pad(x, [[by, by], [by, by], [0, 0]])
    return tf.slice(padded, tf.concat([start, [0]], 0), x.shape)


def views(x, y):
    """Returns a dataset of batches that shows other views of the images in every epoch."""
    seeds = tf.data.Dataset.random(rerandomize_each_iteration=True).batch(2)
    data = tf.data.Dataset.zip((dataset(x, y).shuffle(len(x)), seeds))
    data = data.map(lambda example, seed: (moved(example[0], seed), example[1]))
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.batch(BATCH).prefetch(2).with_options(options)


def compiled(model, steps, rate=0.1, loss=LOSS):
    """Compiles it with momentum, the learning rate falling to 0 along a cosine."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, max(1, steps))
    optimizer = keras.optimizers.SGD(schedule, 0.9, nesterov=True, weight_decay=5e-4)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def steps_of(x, epochs):
    return epochs * -(-len(x) // BATCH)


def teacher(args, data, seed):
    """Returns a net of this seed, trained on labels, with views."""
    record = Record(args.work / "nets")

    def train():
        keras.utils.set_random_seed(seed)
        model = compiled(network(data), steps_of(data.train[0], data.epochs))
        history = model.fit(
            views(*data.train), epochs=data.epochs, shuffle=False, verbose=0,
            validation_data=data.validation, validation_freq=min(4, data.epochs),
            callbacks=[keras.callbacks.BackupAndRestore(record.folder / f"backup-{seed}")],
        ).history  # fmt: skip
        record.run(f"history-{seed}", lambda: history)
        return model

    return record.model(f"cifar100-{seed}", train)


def logits_of(model, x):
    return model.predict(x, batch_size=500, verbose=0)


def accuracy(model, split):
    """Returns the accuracy on a split, in percent."""
    x, y = split
    return 100.0 * float((logits_of(model, x).argmax(-1) == y).mean())


def continued(data, model, epochs, rate, seed, batches=None):
    """Returns a copy of a net after more epochs on labels, with views."""
    keras.utils.set_random_seed(seed)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    compiled(copy, steps_of(data.train[0], epochs), rate)
    copy.fit(batches or views(*data.train), epochs=epochs, shuffle=False, verbose=0)
    return copy
