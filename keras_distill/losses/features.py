"""FeatureLoss: the squared difference of hidden layers' outputs."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.arguments import check_int
from keras_distill.features import hidden_layer
from keras_distill.losses.base import PACKAGE, DistillationLoss


@keras.saving.register_keras_serializable(PACKAGE)
class FeatureLoss(DistillationLoss):
    """Match a hidden layer of the student to one of the teacher.

        1 / d * sum_i (P(h_student)[i] - h_teacher[i])**2

    over the `d` features of the last axis. P is the identity, or, with a projection,
    a linear map that is learned with the student and thrown away afterwards.

    Both models run forward once per step, however many layers are matched. The models
    must be Functional or Sequential, so that a layer can be found by its name. For a
    subclassed model return the features from `call`, beside the logits, and give one
    distillation loss per output: `distillation_loss={"logits": SoftTargetLoss(), "features":
    FeatureLoss()}`.

    Args:
        student_layer_name: str, or `None` (default) for the output itself.
        teacher_layer_name: str, or `None` (default) for the output itself.
        projection: bool or int. `True` learns a linear map from the student's width to
            the teacher's; an int says the teacher's width where it cannot be seen.

    Raises:
        ValueError: if a name is no str, or the projection neither a bool nor an int >= 1.

    Example:
    >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="s"),
    ...                             keras.layers.Dense(2)])
    >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="t"),
    ...                             keras.layers.Dense(2)])
    >>> hint = FeatureLoss("s", "t", projection=True)
    >>> hint.bind(student, teacher)
    >>> hint.trainable_layers[0].units
    8

    Reference: Romero et al., FitNets, arXiv:1412.6550.
    """

    def __init__(
        self,
        student_layer_name: str | None = None,
        teacher_layer_name: str | None = None,
        projection: bool | int = False,
    ) -> None:
        for role, name in (
            ("student", student_layer_name),
            ("teacher", teacher_layer_name),
        ):
            if name is not None and not isinstance(name, str):
                raise ValueError(
                    f"{role}_layer_name must be a str or None, got {name!r}."
                )
        is_bool = isinstance(projection, (bool, np.bool_))
        self.student_layer_name = student_layer_name
        self.teacher_layer_name = teacher_layer_name
        self.projection = (
            bool(projection) if is_bool else check_int("projection", projection, 1)
        )
        self._layer: keras.layers.Dense | None = None

    @property
    def trainable_layers(self) -> list[keras.layers.Layer]:
        """The projection, once the models are known."""
        return [] if self._layer is None else [self._layer]

    def bind(self, student: keras.Model, teacher: keras.Model | None) -> None:
        """Makes the projection for these two models; checks that the widths agree.

        Args:
            student: the model that owns the student layer.
            teacher: the model that owns the teacher layer, or `None` if it is not
                there yet (a distiller that was just loaded).

        Raises:
            ValueError: if a layer does not exist, or the widths differ and there is
                no projection.
        """
        if self.student_layer_name is None:
            return
        student_shape = hidden_layer(student, self.student_layer_name, "student").shape
        teacher_width = None if isinstance(self.projection, bool) else self.projection
        if teacher is not None and self.teacher_layer_name is not None:
            teacher_shape = hidden_layer(
                teacher, self.teacher_layer_name, "teacher"
            ).shape
            self._check_shapes(student_shape, teacher_shape)
            teacher_width = teacher_shape[-1]
        if self._layer is not None and self._layer.units != teacher_width:
            raise ValueError(
                f"the projection leads to {self._layer.units} features, but the teacher's "
                f"layer {self.teacher_layer_name!r} has {teacher_width}; make a new "
                "distiller for this teacher."
            )
        if self._layer is None and self.projection is not False and teacher_width:
            self.projection = teacher_width
            self._layer = keras.layers.Dense(
                teacher_width,
                dtype="float32",
                name=f"project_{self.student_layer_name}",
            )
            self._layer.build((None, student_shape[-1]))

    def check_cached(self, teacher_shape: tuple, student: keras.Model) -> None:
        """Checks the student's layer against a cached one of the teacher.

        Args:
            teacher_shape: batch first.
            student: the model that owns the student layer.

        Raises:
            ValueError: if shapes do not fit, or the projection has no width yet.
        """
        if self.student_layer_name is None:
            return
        student_shape = hidden_layer(student, self.student_layer_name, "student").shape
        self._check_shapes(student_shape, (None, *teacher_shape[1:]))
        width = teacher_shape[-1]
        if self.projection is not False and (
            self._layer is None or self._layer.units != width
        ):
            raise ValueError(
                f"the cached layer {self.teacher_layer_name!r} has {width} features, which "
                "without a teacher cannot be seen beforehand; pass "
                f"FeatureLoss(..., projection={width})."
            )

    def _check_shapes(self, student: tuple, teacher: tuple) -> None:
        names = f"{self.student_layer_name!r} and {self.teacher_layer_name!r}"
        if len(student) != len(teacher) or any(
            a is not None and b is not None and a != b
            for a, b in zip(student[1:-1], teacher[1:-1], strict=True)
        ):
            raise ValueError(
                f"the student and teacher layers {names} have shapes {student} and "
                f"{teacher}; all axes but the last must agree. Choose two layers at "
                "the same resolution."
            )
        if self.projection is False and student[-1] != teacher[-1]:
            raise ValueError(
                f"the student and teacher layers {names} have {student[-1]} and "
                f"{teacher[-1]} features; pass projection=True to learn a linear map "
                "between them."
            )

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns the mean squared difference of each example, `(batch, ...)`."""
        student_outputs = ops.cast(student_outputs, "float32")
        if self._layer is not None:
            student_outputs = self._layer(student_outputs)
        difference = student_outputs - ops.cast(teacher_outputs, "float32")
        return ops.mean(ops.square(difference), -1)

    def validate_model_compatibility(self, teacher: Any, student: Any) -> None:
        """Called by `keras.distillation.Distiller` with its two models."""
        if self.projection is not False:
            raise ValueError(
                "keras.distillation.Distiller does not train a projection; use "
                "keras_distill.Distiller, or two layers of one width."
            )
        self.bind(student, teacher)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "student_layer_name": self.student_layer_name,
            "teacher_layer_name": self.teacher_layer_name,
            "projection": self.projection,
        }
