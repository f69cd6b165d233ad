"""The classifier of teachers and students, and how both are trained."""

import keras
import keras_hub
import tensorflow as tf
from sentences.sst2 import LENGTH


def bert(layers, words, seed):
    """Returns a BERT of so many layers, of width 64, from word pieces to two logits."""
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.BertBackbone(
        words,
        layers,
        num_heads=2,
        hidden_dim=64,
        intermediate_dim=128,
        dropout=0.3,
        max_sequence_length=LENGTH,
        name="backbone",
    )
    return keras_hub.models.BertTextClassifier(
        backbone, 2, preprocessor=None, dropout=0.3
    )


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
