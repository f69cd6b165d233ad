"""Knowledge distillation for Keras and TensorFlow."""

from importlib.metadata import version as _version

import lazy_loader as _lazy

# Before anything that imports TensorFlow.
from keras_distill import _quiet  # noqa: F401

# isort: split
# What Keras must know by name to read back what it saved. All other public
# names are imported on first use, from where __init__.pyi says.
import keras_distill.correction_layers
import keras_distill.distiller
import keras_distill.losses.logits
import keras_distill.losses.values
import keras_distill.quantization.aware
import keras_distill.specialists.ensemble
import keras_distill.tuning.by_kind  # noqa: F401

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
__version__ = _version("keras-distill")
