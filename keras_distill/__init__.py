"""Knowledge distillation for Keras and TensorFlow."""

from importlib.metadata import version as _version

from keras_distill.distiller import Distiller, DistillationInputs, TeacherAgreement
from keras_distill.objectives import (
    HiddenLayerLoss,
    LogitMatchingLoss,
    Objective,
    SoftTargetLoss,
    WeightedSum,
)
from keras_distill.teachers import as_teacher

__version__ = _version("keras-distill")

__all__ = [
    "DistillationInputs",
    "Distiller",
    "HiddenLayerLoss",
    "LogitMatchingLoss",
    "Objective",
    "SoftTargetLoss",
    "TeacherAgreement",
    "WeightedSum",
    "as_teacher",
]
