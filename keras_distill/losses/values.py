"""SquaredErrorLoss and CosineLoss: what matches real numbers, and embeddings."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.arguments import KINDS
from keras_distill.losses.base import PACKAGE, DistillationLoss, in_float, unit
from keras_distill.losses.features import FeatureLoss


@keras.saving.register_keras_serializable(PACKAGE)
class SquaredErrorLoss(DistillationLoss):
    """Match the teacher's values.

        1 / d * sum_i (s[i] - t[i])**2

    over the d values of the last axis, as Keras's `mean_squared_error`. It is the
    distillation loss of an output of values unless another is given, and has no
    temperature.

    With `weight_by` each position a, such as an anchor of a detector, counts by how sure the
    teacher is of another output there:

        c[a] / d * sum_i (s[a, i] - t[a, i])**2,  c[a] = max_k p_teacher[a, k] at T = 1

    a constant to the gradient, from 0 to 1. It is the mean over all positions, not divided by
    the sum of c: where the teacher sees nothing, nothing is learned of its boxes. With few
    objects among many anchors it is small; weigh it, as in
    `100 * SquaredErrorLoss(weight_by="cls_logits")`.

    Args:
        weight_by: name (or, of a list, number) of a distilled output of classes or yes/no
            questions, `(batch, ..., K)` where the values are `(batch, ..., d)`; `None`
            (default) for none. In `keras_distill.Distiller` alone.

    Example:
    >>> loss = SquaredErrorLoss()
    >>> teacher, student = ops.array([[1.0, 2.0]]), ops.array([[1.0, 4.0]])
    >>> print(float(loss.compute_loss(teacher, student)))
    2.0

    Reference: Chen et al., *Learning Efficient Object Detection Models with Knowledge
    Distillation*, NeurIPS 2017, section 3.3, without the bound.
    """

    kinds = ("values",)

    def __init__(self, weight_by: str | int | None = None) -> None:
        if isinstance(weight_by, bool) or not isinstance(
            weight_by, (str, int, type(None))
        ):
            raise TypeError(
                "weight_by must be the name of an output, its number, or None, got "
                f"{weight_by!r}."
            )
        self.weight_by = weight_by

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {"weight_by": self.weight_by}

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns the mean squared difference of each example, shape `(batch, ...)`."""
        difference = in_float(student_outputs) - in_float(teacher_outputs)
        return ops.mean(ops.square(difference), -1)


@keras.saving.register_keras_serializable(PACKAGE)
class CosineLoss(FeatureLoss):
    """Match the direction of the teacher's embedding, or of a hidden layer's features.

        1 - sum_i s[i] t[i] / (|s| |t|)

    over the last axis: 0 for one direction, 2 for opposite ones. For vectors of unit length
    it is half the squared distance. A vector of length 0 has no direction: its loss is 1.
    It is the distillation loss of an output that is compiled with Keras's
    `CosineSimilarity`, unless another is given, and has no temperature.

    Args:
        student_layer_name: str, or `None` (default) for an output of values.
        teacher_layer_name: likewise.
        adapter: as of `FeatureLoss`.

    Example:
    >>> loss = CosineLoss()
    >>> teacher, student = ops.array([[1.0, 0.0]]), ops.array([[3.0, 4.0]])
    >>> print(f"{float(loss.compute_loss(teacher, student)):.3f}")
    0.400

    Reference: Reimers and Gurevych, *Making Monolingual Sentence Embeddings Multilingual
    using Knowledge Distillation*, arXiv:2004.09813, with the direction in place of the
    squared difference.
    """

    kinds: tuple[str, ...] = ("values",)

    def __init__(
        self,
        student_layer_name: str | None = None,
        teacher_layer_name: str | None = None,
        adapter: Any = None,
    ) -> None:
        super().__init__(student_layer_name, teacher_layer_name, adapter)
        if not self.is_of_outputs:
            self.kinds = KINDS

    @property
    def is_of_outputs(self) -> bool:
        """Whether it is given an output of values, rather than a layer's features."""
        return self.student_layer_name is None and self.teacher_layer_name is None

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns 1 less the cosine of each example, shape `(batch, ...)`."""
        teacher, student = self.adapted(teacher_outputs, student_outputs)
        return 1.0 - ops.sum(unit(teacher) * unit(student), -1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, and the shapes that an adapter is made for."""
        return self._config_of_layers()
