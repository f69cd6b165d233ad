"""DistillationInputs: what a batch with cached soft targets has in place of x."""

from __future__ import annotations

from typing import Any, NamedTuple


class DistillationInputs(NamedTuple):
    """Model inputs joined with the teacher's cached answer for them.

    A dataset that yields `(DistillationInputs(x, soft_targets), y)` trains a `Distiller`
    that has no teacher in memory. `evaluate` and `predict` use `inputs` alone.

    Attributes:
        inputs: what the student takes, batch first.
        soft_targets: the teacher's logits, float `(batch, ..., classes)`, or its
            `TopKLogits`, in the structure of the student's outputs.
        layers: the teacher's hidden layers that a distillation loss matches, by name, batch
            first; none by default.
    """

    inputs: Any
    soft_targets: Any
    layers: dict[str, Any] = {}  # never changed
