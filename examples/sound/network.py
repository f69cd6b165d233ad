"""The network of teachers and students, from log-mel spectrograms to digits."""

import keras
from sound.log_mel import BANDS, FRAMES, SAMPLES, LogMel


def network(filters, dropout=0.0):
    """Returns a model from spectrograms `(batch, 61, 32, 1)` to the logits of ten digits.

    Pitch tells digits apart as well as time: only time is averaged over at the end.
    """
    layers = [keras.Input((FRAMES, BANDS, 1))]
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


def of_samples(model):
    """Returns a model of spectrograms as one of raw samples `(batch, 8000)`."""
    samples = keras.Input((SAMPLES,), name="samples")
    return keras.Sequential([samples, LogMel(), *model.layers])
