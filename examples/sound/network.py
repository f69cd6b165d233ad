"""The network of teacher and students, from raw samples to digits."""

import keras
from sound.log_mel import SAMPLES, LogMel


def network(filters, dropout=0.0):
    """Returns a model from raw samples `(batch, 8000)` to the logits of ten digits.

    Pitch tells digits apart as well as time: only time is averaged over at the end.
    """
    layers = [keras.Input((SAMPLES,), name="samples"), LogMel()]
    for count in filters:
        layers += [
            keras.layers.Conv2D(count, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(2),
        ]
    return keras.Sequential([
        *layers,
        keras.layers.Conv2D(2 * filters[-1], (3, 4), activation="relu"),  # all pitches
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dropout(dropout),
        keras.layers.Dense(10),
    ])  # fmt: skip
