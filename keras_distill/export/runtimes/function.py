"""A function that was written as the `answer` of a SavedModel, run by TensorFlow alone."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

NAME = "TensorFlow function"


class Model:
    """The function.

    Args:
        path: of the SavedModel.
        threads: that one batch is computed by, in a process that has not run TensorFlow yet.
    """

    def __init__(self, path: str, threads: int) -> None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self._loaded = tf.saved_model.load(path)

    def __call__(self, batch: Any) -> list:
        """Returns the answers for a batch, in whatever structure the function takes."""
        tensors = tf.nest.map_structure(tf.constant, batch)
        answers = tf.nest.flatten(self._loaded.answer(tensors))
        return [part.numpy() for part in answers if part is not None]
