"""What wrong calls are made with: small models and data, made once."""

import functools

import keras
import numpy as np

CLASSES = 4


@functools.cache
def data():
    """Returns 24 examples of 5 numbers, and their labels."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 5)).astype("float32")
    return x, np.arange(24) % CLASSES


def model(classes=CLASSES, width=3, activation=None):
    """Returns a new MLP."""
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(width, activation="relu"),
            keras.layers.Dense(classes, activation=activation),
        ]
    )


@functools.cache
def student():
    """Returns a student that no row may train."""
    return model()


@functools.cache
def teacher():
    """Returns a teacher."""
    return model(width=8)
