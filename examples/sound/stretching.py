"""Log-mel spectrograms of a longer or shorter throat, spoken faster or slower."""

import keras
import numpy as np
import tensorflow as tf
from sound.log_mel import BANDS, LogMel
from sound.recordings import augment


def stretcher(size, factor, fixed):
    """Returns the matrix `(size, size)` that stretches a line of points about a fixed one."""
    asked = np.clip((np.arange(size) - fixed) * factor + fixed, 0, size - 1)
    return np.maximum(0, 1 - np.abs(asked[:, None] - np.arange(size))).astype("float32")


def stretched(spectrograms, rng):
    """Returns `(batch, frames, bands, 1)`, each one stretched at random in time and pitch."""
    frames = spectrograms.shape[1]
    return np.stack([
        stretcher(frames, rng.uniform(0.75, 1.3), frames // 2)
        @ one[..., 0]
        @ stretcher(BANDS, rng.uniform(0.85, 1.15), -4).T
        for one in spectrograms
    ])[..., None]  # fmt: skip


def in_other_voices(samples, labels, copies):
    """Returns spectrograms of copies of recordings, all in other voices, and their labels."""
    rng, listen = np.random.default_rng(0), LogMel()
    found = [
        stretched(listen(augment(samples, labels, seed=seed)[0]).numpy(), rng)
        for seed in range(copies)
    ]
    return np.concatenate(found), np.tile(labels, copies)


class Throat(keras.layers.Layer):
    """Spectrograms as of a speaker whose throat is shorter by a factor."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, spectrograms):
        """Returns `(batch, frames, bands, 1)`."""
        matrix = stretcher(BANDS, self.factor, -4)
        return tf.einsum("btmc,nm->btnc", spectrograms, matrix)
