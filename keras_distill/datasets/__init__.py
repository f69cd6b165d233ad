"""Data by name or path: TFDS, folders of images or sound, tables, a function of one's own.

Every dataset comes as `Data`: batched train, validation and test splits, with the
validation split taken from the training examples where there is none, never from test.
"""

from keras_distill.datasets.data import Data, bytes_of, fits_in_memory, to_arrays
from keras_distill.datasets.loading import load, loader

__all__ = ["Data", "bytes_of", "fits_in_memory", "load", "loader", "to_arrays"]
