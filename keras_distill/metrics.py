"""Metrics that compare student and teacher."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.objectives import PACKAGE, TopKLogits


@keras.saving.register_keras_serializable(PACKAGE)
class TeacherAgreement(keras.metrics.MeanMetricWrapper):
    """How often student and teacher choose the same class, from 0 to 1.

    In `Distiller.compile(metrics=[..., TeacherAgreement()])` it is given the teacher's
    outputs in place of labels, so the teacher runs in `evaluate` too. Outside, call
    `update_state(teacher_outputs, student_outputs)`.

    Args:
        name: str.
        dtype: dtype of the result.

    Example:
    >>> agreement = TeacherAgreement()
    >>> agreement.update_state([[0.0, 2.0], [1.0, 0.0]], [[0.0, 9.0], [0.0, 1.0]])
    >>> print(float(agreement.result()))
    0.5
    """

    def __init__(self, name: str = "teacher_agreement", dtype: Any = None) -> None:
        super().__init__(_same_class, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {"name": self.name, "dtype": self.dtype}


def _same_class(teacher_outputs: Any, student_outputs: Any) -> Any:
    teacher_class = (
        teacher_outputs.indices[..., 0]
        if isinstance(teacher_outputs, TopKLogits)
        else ops.argmax(teacher_outputs, -1)
    )
    same = ops.equal(
        ops.cast(teacher_class, "int32"),
        ops.cast(ops.argmax(student_outputs, -1), "int32"),
    )
    return ops.cast(same, "float32")
