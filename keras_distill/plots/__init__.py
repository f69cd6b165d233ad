"""Pictures: one function each, returning a matplotlib Figure.

Nothing here imports TensorFlow or Keras, and nothing touches pyplot's global state.
"""

from keras_distill.plots.answers import predicted_against_true, roc_curves
from keras_distill.plots.bench import latency_and_throughput
from keras_distill.plots.models import (
    reliability_diagram,
    size_against_accuracy,
    soft_targets,
    temperature_curves,
    training_curves,
)
from keras_distill.plots.search import best_so_far, parallel_coordinates, search_plane
from keras_distill.plots.specialists import (
    accuracy_by_cluster,
    accuracy_by_coverage,
    class_covariance,
    training_by_worker,
)

__all__ = [
    "accuracy_by_cluster",
    "accuracy_by_coverage",
    "best_so_far",
    "class_covariance",
    "latency_and_throughput",
    "parallel_coordinates",
    "predicted_against_true",
    "reliability_diagram",
    "roc_curves",
    "search_plane",
    "size_against_accuracy",
    "soft_targets",
    "temperature_curves",
    "training_by_worker",
    "training_curves",
]
