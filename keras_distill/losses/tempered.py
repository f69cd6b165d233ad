"""TemperedLoss: a distillation loss that has a temperature, the distiller's or its own."""

from __future__ import annotations

from typing import Any

from keras_distill.arguments import check_temperature
from keras_distill.losses.base import DistillationLoss


class TemperedLoss(DistillationLoss):
    """A distillation loss of tempered distributions.

    Args:
        temperature: float > 0, or `None` (default) for the distiller's own. In
            `keras.distillation.Distiller`, give it one.

    Raises:
        ValueError: if the temperature is not > 0.
    """

    def __init__(self, temperature: float | None = None) -> None:
        self.temperature = (
            None if temperature is None else check_temperature(temperature)
        )

    def temperature_or(self, temperature: Any) -> Any:
        """Returns its own temperature, or else that of the distiller."""
        return temperature if self.temperature is None else self.temperature

    def compute_loss(
        self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any
    ) -> Any:
        """Returns the mean over all examples, at its own temperature."""
        self._require_temperature()
        return super().compute_loss(teacher_outputs, student_outputs, **kwargs)

    def validate_model_compatibility(self, teacher: Any, student: Any) -> None:
        """Called by `keras.distillation.Distiller` with its two models."""
        super().validate_model_compatibility(teacher, student)
        self._require_temperature()

    def _require_temperature(self) -> None:
        if self.temperature is None:
            name = type(self).__name__
            raise ValueError(
                f"{name}() takes its temperature from keras_distill.Distiller; "
                f"outside it, give one: {name}(temperature=4.0)."
            )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {"temperature": self.temperature}
