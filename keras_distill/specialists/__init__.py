"""Specialists: clusters of confusable classes, a model for each, one answer."""

from keras_distill.specialists.builder import SpecialistBuilder
from keras_distill.specialists.clusters import cluster_classes
from keras_distill.specialists.covariance import class_covariance
from keras_distill.specialists.ensemble import SpecialistEnsemble
from keras_distill.specialists.report import SpecialistReport, specialist_report

__all__ = [
    "SpecialistBuilder",
    "SpecialistEnsemble",
    "SpecialistReport",
    "class_covariance",
    "cluster_classes",
    "specialist_report",
]
