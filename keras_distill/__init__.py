"""Knowledge distillation for Keras and TensorFlow."""

from importlib.metadata import version as _version

# Before anything that imports TensorFlow.
from keras_distill import _quiet  # noqa: F401

# isort: split
from keras_distill import datasets, models
from keras_distill.distillation_inputs import DistillationInputs
from keras_distill.distiller import Distiller
from keras_distill.evaluation import Comparison, Evaluation, compare, evaluate
from keras_distill.export import export_savedmodel
from keras_distill.metrics import TeacherAgreement
from keras_distill.objectives import (
    HiddenLayerLoss,
    LogitMatchingLoss,
    Objective,
    SoftTargetLoss,
    TopKLogits,
    WeightedSum,
)
from keras_distill.soft_targets import SoftTargets
from keras_distill.specialists import (
    SpecialistBuilder,
    SpecialistEnsemble,
    SpecialistReport,
    class_covariance,
    cluster_classes,
    specialist_report,
)
from keras_distill.teachers import as_teacher
from keras_distill.tuning import DistillationHyperModel, SearchResult, search

__version__ = _version("keras-distill")

__all__ = [
    "Comparison",
    "DistillationHyperModel",
    "DistillationInputs",
    "Distiller",
    "Evaluation",
    "HiddenLayerLoss",
    "LogitMatchingLoss",
    "Objective",
    "SearchResult",
    "SoftTargetLoss",
    "SoftTargets",
    "SpecialistBuilder",
    "SpecialistEnsemble",
    "SpecialistReport",
    "TeacherAgreement",
    "TopKLogits",
    "WeightedSum",
    "as_teacher",
    "class_covariance",
    "cluster_classes",
    "compare",
    "datasets",
    "evaluate",
    "export_savedmodel",
    "models",
    "search",
    "specialist_report",
]
