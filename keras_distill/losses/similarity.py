"""SimilarityLoss and RelationLoss: how the examples of a batch relate to each other."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.arguments import check_float
from keras_distill.keras_compat import mask_of
from keras_distill.losses import adapters
from keras_distill.losses.base import PACKAGE, in_float, unit
from keras_distill.losses.features import FeatureLoss


class _OfExamples(FeatureLoss):
    """What both have: features of any shapes, examples that count or do not."""

    takes_any_shapes = True
    compares_examples = True

    def __init__(
        self,
        student_layer_name: str | None = None,
        teacher_layer_name: str | None = None,
    ) -> None:
        super().__init__(student_layer_name, teacher_layer_name)

    def loss_per_example(
        self,
        teacher_outputs: Any,
        student_outputs: Any,
        temperature: Any = 1.0,
        weight: Any = None,
    ) -> Any:
        """Returns the loss of each example.

        Args:
            teacher_outputs: float `(batch, ...)`.
            student_outputs: float `(batch, ...)`, of any other shape.
            temperature: not used.
            weight: float `(batch,)`, or `(batch, ...)` of the student's positions; `None`
                for 1. Examples and positions of weight 0 count for nothing.

        Returns:
            float32, or float64, `(batch,)`; of the shape of `weight`, if there is one.
        """
        student = in_float(student_outputs)
        teacher = ops.cast(ops.stop_gradient(in_float(teacher_outputs)), student.dtype)
        counts = ops.ones(ops.shape(student)[:1], "bool")
        positions = None
        if weight is not None:
            positions = ops.convert_to_tensor(weight) > 0
            counts = ops.any(positions, list(range(1, len(positions.shape))))
            if len(positions.shape) == 1:
                positions = None
        by_position = positions
        # Padding is no part of what an example is.
        mask = mask_of(student_outputs)
        if positions is None and mask is not None and len(mask.shape) > 1:
            by_position = ops.cast(mask, "bool")
        teacher, student = (
            self._seen(
                _counted(_counted(one, counts, None), counts, by_position), by_position
            )
            for one in (teacher, student)
        )
        number = ops.sum(ops.cast(counts, student.dtype))
        values = self._compared(
            teacher, student, ops.cast(counts, student.dtype), number
        )
        # Of one example there is nothing to compare.
        values = ops.where(ops.logical_and(number > 1.0, counts), values, 0.0)
        if positions is not None:
            rank = len(positions.shape)
            values = ops.reshape(values, (-1, *[1] * (rank - 1)))
            values = values * ops.ones(ops.shape(positions), values.dtype)
        return values

    def _seen(self, features: Any, positions: Any) -> Any:
        raise NotImplementedError

    def _compared(self, teacher: Any, student: Any, counts: Any, number: Any) -> Any:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "student_layer_name": self.student_layer_name,
            "teacher_layer_name": self.teacher_layer_name,
        }


@keras.saving.register_keras_serializable(PACKAGE)
class SimilarityLoss(_OfExamples):
    """Match which examples of a batch the teacher finds alike.

        1 / b**2 * |G_s - G_t|**2,  G = F F^T with rows of length 1

    F `(b, ...)` flattened, so that student and teacher may have features of any two shapes.
    The paper's weight is 3000 in code, whose batch is 128. Under `tf.distribute` the batch is
    a replica's.

    Args:
        student_layer_name: str, or `None` (default) for the output itself.
        teacher_layer_name: likewise.

    Example:
    >>> loss = SimilarityLoss()
    >>> teacher, student = ops.array([[1.0], [1.0]]), ops.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(f"{float(ops.mean(loss.loss_per_example(teacher, student))):.3f}")
    0.293

    Reference: Tung and Mori, *Similarity-Preserving Knowledge Distillation*,
    arXiv:1907.09682.
    """

    def _seen(self, features: Any, positions: Any) -> Any:
        return ops.reshape(features, (ops.shape(features)[0], -1))

    def _compared(self, teacher: Any, student: Any, counts: Any, number: Any) -> Any:
        teacher, student = (
            unit(ops.matmul(one, ops.transpose(one)))
            for one in (_scaled(teacher), _scaled(student))
        )
        return ops.sum(ops.square(student - teacher), -1) / ops.maximum(number, 1.0)


@keras.saving.register_keras_serializable(PACKAGE)
class RelationLoss(_OfExamples):
    """Match the distances and angles between the examples of a batch.

        distance_weight * mean_ij H(d_ij(s) - d_ij(t)) + angle_weight * mean_ijk H(a_ijk(s) - a_ijk(t))

    with `d_ij = |f_i - f_j|`, divided by its mean over the pairs that differ; `a_ijk` the
    cosine of the angle at i between j and k; H Huber's loss, `x**2 / 2` up to 1 and
    `|x| - 1/2` beyond. The means are over all `b**2` and `b**3`, as in the authors' code. Of a
    map or sequence, f is the mean over its positions. Memory grows as `b**2 * (b + d)`. Under
    `tf.distribute` the batch is a replica's.

    Args:
        student_layer_name: str, or `None` (default) for the output itself.
        teacher_layer_name: likewise.
        distance_weight: float >= 0; default 25, the paper's.
        angle_weight: float >= 0; default 50, the paper's.

    Raises:
        ValueError: if a weight is negative or not finite.

    Example:
    >>> loss = RelationLoss(distance_weight=1.0, angle_weight=0.0)
    >>> teacher, student = ops.array([[0.0], [1.0], [2.0]]), ops.array([[0.0], [2.0], [4.0]])
    >>> print(f"{float(ops.mean(loss.loss_per_example(teacher, student))):.3f}")
    0.000

    Reference: Park et al., *Relational Knowledge Distillation*, arXiv:1904.05068.
    """

    def __init__(
        self,
        student_layer_name: str | None = None,
        teacher_layer_name: str | None = None,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
    ) -> None:
        super().__init__(student_layer_name, teacher_layer_name)
        self.distance_weight, self.angle_weight = (
            check_float(name, value, "a finite number >= 0", lambda number: number >= 0)
            for name, value in (
                ("distance_weight", distance_weight),
                ("angle_weight", angle_weight),
            )
        )

    def _seen(self, features: Any, positions: Any) -> Any:
        features = adapters.channels_last(features)
        rank = len(features.shape)
        if rank < 2:
            return ops.expand_dims(features, -1)
        if positions is None or len(positions.shape) != rank - 1:
            return adapters.pooled(features) if rank > 2 else features
        axes = list(range(1, rank - 1))
        number = ops.sum(ops.cast(positions, features.dtype), axes)
        total = ops.sum(features, axes)
        return total / ops.expand_dims(ops.maximum(number, 1.0), -1)

    def _compared(self, teacher: Any, student: Any, counts: Any, number: Any) -> Any:
        distances, directions = zip(
            *(_relations(_scaled(one), counts) for one in (teacher, student)),
            strict=True,
        )
        number = ops.maximum(number, 1.0)
        by_pair = _huber(distances[1] - distances[0]) * counts
        values = self.distance_weight * ops.sum(by_pair, -1) / number
        if self.angle_weight:
            of_teacher, of_student = (
                ops.matmul(one, ops.transpose(one, (0, 2, 1))) for one in directions
            )
            by_angle = _huber(of_student - of_teacher) * counts[:, None] * counts
            angle = ops.sum(by_angle, (1, 2)) / ops.square(number)
            values = values + self.angle_weight * angle
        return values

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "distance_weight": self.distance_weight,
            "angle_weight": self.angle_weight,
        }


def _counted(features: Any, counts: Any, positions: Any) -> Any:
    """Returns features that are 0, and have no gradient, where nothing counts."""
    rank = len(features.shape)
    is_by_position = positions is not None and len(positions.shape) == rank - 1
    kept = positions if is_by_position else counts
    if is_by_position and any(
        None not in pair and pair[0] != pair[1]
        for pair in zip(positions.shape, features.shape[:-1], strict=True)
    ):
        kept = counts  # of a teacher with another grid
    missing = rank - len(kept.shape)
    kept = ops.reshape(kept, (*ops.shape(kept), *[1] * missing))
    return ops.where(kept, features, 0.0)


def _scaled(features: Any) -> Any:
    """Returns features of at most 1: squares of large ones are infinite.

    The losses do not change with the size of all features.
    """
    largest = ops.stop_gradient(ops.max(ops.abs(features)))
    return features / ops.where(largest > 0.0, largest, 1.0)


def _relations(features: Any, counts: Any) -> tuple[Any, Any]:
    """Returns distances `(b, b)`, of mean 1, and directions `(b, b, d)` of length 1 or 0."""
    difference = features[None] - features[:, None]
    squared = ops.sum(ops.square(difference), -1)
    differs = squared > 0.0
    # The root's slope is infinite at 0.
    distance = ops.sqrt(ops.where(differs, squared, 1.0))
    directions = ops.where(differs[..., None], difference / distance[..., None], 0.0)
    valid = ops.cast(differs, features.dtype) * counts * counts[:, None]
    distance = distance * valid
    pairs = ops.maximum(ops.sum(valid), 1.0)
    mean = ops.sum(distance) / pairs
    return distance / ops.where(mean > 0.0, mean, 1.0), directions


def _huber(x: Any) -> Any:
    size = ops.abs(x)
    return ops.where(size < 1.0, 0.5 * ops.square(x), size - 0.5)
