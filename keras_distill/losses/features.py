"""FeatureLoss: the squared difference of hidden layers' outputs."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.arguments import check_int
from keras_distill.features import shapes_of_features
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
    >>> hint = FeatureLoss("s", "t", projection=True)
    >>> hint.bind((None, 3), (None, 8))
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

    def bind(self, student_shape: tuple | None, teacher_shape: tuple | None) -> None:
        """Makes the projection for features of these shapes; checks that they fit.

        Called when the models are known, and again on the first batch, which knows more.

        Args:
            student_shape: of the student's layer, batch first, `None` for a free axis; `None`
                if it is not known yet, or the output itself is matched.
            teacher_shape: likewise, of the teacher's layer or of cached features.

        Raises:
            ValueError: if the shapes do not fit, or the widths differ and there is no
                projection.
        """
        if student_shape is None or self.student_layer_name is None:
            return
        teacher_width = None if isinstance(self.projection, bool) else self.projection
        if teacher_shape is not None:
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
        student_shape, teacher_shape = (
            None if name is None else shapes_of_features(model, [name], role)[name]
            for model, name, role in (
                (student, self.student_layer_name, "student"),
                (teacher, self.teacher_layer_name, "teacher"),
            )
        )
        self.bind(student_shape, teacher_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "student_layer_name": self.student_layer_name,
            "teacher_layer_name": self.teacher_layer_name,
            "projection": self.projection,
        }
