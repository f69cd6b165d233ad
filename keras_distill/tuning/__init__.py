"""Searching temperature and alpha, and whatever else a student has, with KerasTuner."""

from keras_distill.tuning.hypermodel import DistillationHyperModel
from keras_distill.tuning.result import SearchResult
from keras_distill.tuning.search import search

__all__ = ["DistillationHyperModel", "SearchResult", "search"]
