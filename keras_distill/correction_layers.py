"""Layers that correct a trained model's logits: an offset by class, and a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.arguments import KINDS, check_choice, check_each, check_float
from keras_distill.losses.base import PACKAGE


class _Correction(keras.layers.Layer):
    """A change of logits that says what they are of, also after loading."""

    outputs_are_logits = True

    def __init__(self, kind: str, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        #: "softmax" or "sigmoid", what the logits are of.
        self.output_kind = check_choice("kind", kind, KINDS[:2])
        self.supports_masking = True

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {**super().get_config(), "kind": self.output_kind}


@keras.saving.register_keras_serializable(PACKAGE)
class BiasCorrection(_Correction):
    """Adds an offset to the logit of each class: `z[c] + offsets[c]`.

    Args:
        offsets: one float per class, in nats; 0 for those that stay as they are.
        kind: "softmax" (default) or "sigmoid", what the logits are of.
        **kwargs: passed to `keras.layers.Layer`.

    Reference: arXiv:1503.02531, section 3.
    """

    def __init__(
        self, offsets: Sequence[float], kind: str = "softmax", **kwargs: Any
    ) -> None:
        super().__init__(kind, **kwargs)

        def number(name: str, value: Any) -> float:
            return check_float(name, value, "a finite number", lambda _: True)

        #: One float per class, as a list.
        self.offsets = check_each("offsets", offsets, number, "numbers", 1)

    def call(self, inputs: Any) -> Any:
        """Returns logits `(batch, ..., classes)`, of such logits."""
        return inputs + ops.cast(np.asarray(self.offsets), inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {**super().get_config(), "offsets": self.offsets}


@keras.saving.register_keras_serializable(PACKAGE)
class TemperatureScaling(_Correction):
    """Divides logits by a temperature: `z / T`.

    Args:
        temperature: T > 0.
        kind: "softmax" (default) or "sigmoid", what the logits are of.
        **kwargs: passed to `keras.layers.Layer`.

    Reference: arXiv:1706.04599.
    """

    def __init__(
        self, temperature: float, kind: str = "softmax", **kwargs: Any
    ) -> None:
        super().__init__(kind, **kwargs)
        #: T.
        self.temperature = check_float(
            "temperature", temperature, "a finite number > 0", lambda t: t > 0
        )

    def call(self, inputs: Any) -> Any:
        """Returns logits `(batch, ..., classes)`, of such logits."""
        return inputs / ops.cast(self.temperature, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {**super().get_config(), "temperature": self.temperature}
