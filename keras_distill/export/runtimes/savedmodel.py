"""A SavedModel, run by TensorFlow alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

NAME = "SavedModel"


class Model:
    """The signature `serving_default` of one version.

    Args:
        path: of the version.
        threads: that one batch is computed by, in a process that has not run TensorFlow yet;
            `None` (default) leaves them as they are.
    """

    def __init__(self, path: str, threads: int | None = None) -> None:
        if threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        self._loaded = tf.saved_model.load(path)
        self._serve = self._loaded.signatures["serving_default"]
        taken, given = (
            self._serve.structured_input_signature[1],
            self._serve.structured_outputs,
        )
        self.inputs, self.outputs = _shapes(taken), _shapes(given)
        self.input_dtypes = {name: spec.dtype.name for name, spec in taken.items()}
        self.output_dtypes = {name: spec.dtype.name for name, spec in given.items()}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the answers for a batch, by name."""
        tensors = {name: tf.constant(value) for name, value in batch.items()}
        return {n: value.numpy() for n, value in self._serve(**tensors).items()}


def _shapes(specs: dict[str, Any]) -> dict[str, tuple[int | None, ...] | None]:
    return {
        name: None if spec.shape.rank is None else tuple(spec.shape)
        for name, spec in specs.items()
    }
