"""NormalizedFeatureLoss: features of any size, each vector standardised first."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import PACKAGE, unit
from keras_distill.losses.features import FeatureLoss


@keras.saving.register_keras_serializable(PACKAGE)
class NormalizedFeatureLoss(FeatureLoss):
    """Match hidden features up to their mean and size, so that weight 1 is a fair start.

        1 / (2 d) * sum_i (n(A(h_student))[i] - n(h_teacher)[i])**2,  n(h) = (h - mean) / std

    with mean and standard deviation over the `d` channels of the last axis, at each position.
    It equals 1 less Pearson's correlation, so it lies from 0 to 2 whatever the size of the
    features, and is 1 for unrelated ones. Features without any deviation count as 0.

    The reference standardises each channel over batch and positions; over the channels of a
    position, as here, no example depends on another, nor on the replicas.

    Args:
        student_layer_name: str, or `None` (default) for the output itself.
        teacher_layer_name: likewise.
        adapter: as of `FeatureLoss`.

    Example:
    >>> loss = NormalizedFeatureLoss()
    >>> teacher, student = ops.array([[1.0, 2.0, 3.0]]), ops.array([[10.0, 30.0, 50.0]])
    >>> print(f"{float(loss.loss_per_example(teacher, student)[0]):.3f}")
    0.000

    Reference: Cao et al., *PKD: General Distillation Framework for Object Detectors via
    Pearson Correlation Coefficient*, arXiv:2207.02039.
    """

    def __init__(
        self,
        student_layer_name: str | None = None,
        teacher_layer_name: str | None = None,
        adapter: Any = None,
    ) -> None:
        super().__init__(student_layer_name, teacher_layer_name, adapter)

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns the loss of each example and position, `(batch, ...)`."""
        teacher, student = (
            unit(one - ops.mean(one, -1, keepdims=True))
            for one in self.adapted(teacher_outputs, student_outputs)
        )
        return 0.5 * ops.sum(ops.square(student - teacher), -1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, and the shapes that an adapter is made for."""
        return self._config_of_layers()
