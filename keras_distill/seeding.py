"""Seeds for one piece of work, that leave the caller's own random numbers alone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import keras
import numpy as np


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
