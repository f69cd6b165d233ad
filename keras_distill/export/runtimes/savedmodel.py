"""A SavedModel, run by TensorFlow alone."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

NAME = "SavedModel"


class Model:
    """The signature `serving_default` of one version.

    Args:
        path: of the version.
    """

    def __init__(self, path: str) -> None:
        self._loaded = tf.saved_model.load(path)
        self._serve = self._loaded.signatures["serving_default"]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the answers for a batch, by name."""
        tensors = {name: tf.constant(value) for name, value in batch.items()}
        return {n: value.numpy() for n, value in self._serve(**tensors).items()}
