"""The same work in other processes: settings and seeds that go along."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds all that Keras draws from, and gives Python and NumPy back theirs.

    TensorFlow's own seed cannot be read, so it stays as set here.
    """
    python, numpy = random.getstate(), np.random.get_state()
    keras.utils.set_random_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@dataclasses.dataclass
class ProcessSettings:
    """The settings of the process that makes this; can be pickled.

    Args:
        threads: of TensorFlow in a new process; `None` leaves them.
    """

    threads: int | None = None

    def __post_init__(self) -> None:
        self.dtype_policy = keras.dtype_policies.serialize(keras.config.dtype_policy())
        self.floatx = keras.config.floatx()
        self.image_data_format = keras.config.image_data_format()
        self.custom_objects: dict[str, Any] = {
            name: thing
            for name, thing in keras.saving.get_custom_objects().items()
            if not thing.__module__.startswith(("keras.", "keras_distill."))
        }

    def take(self) -> None:
        """Gives this process the settings of the one that made them."""
        if self.threads is not None:
            # A process that has run TensorFlow before keeps what it has.
            with contextlib.suppress(RuntimeError):
                tf.config.threading.set_intra_op_parallelism_threads(self.threads)
                tf.config.threading.set_inter_op_parallelism_threads(self.threads)
        policy = keras.dtype_policies.deserialize(self.dtype_policy)
        keras.config.set_dtype_policy(policy)
        keras.config.set_floatx(self.floatx)
        keras.config.set_image_data_format(self.image_data_format)
        keras.saving.get_custom_objects().update(self.custom_objects)
