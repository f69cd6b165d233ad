"""DistillationInputs: what a batch with cached soft targets has in place of x."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_distill.showing import in_brief


class DistillationInputs(NamedTuple):
    """Model inputs joined with the teacher's cached answer for them.

    A dataset that yields `(DistillationInputs(x, soft_targets), y)` trains a `Distiller`
    that has no teacher in memory. `evaluate` and `predict` use `inputs` alone.

    Attributes:
        inputs: what the student takes, batch first.
        soft_targets: the teacher's logits, or values, float `(batch, ..., K)`, or its
            `TopKLogits`, in the structure of the student's outputs.
        layers: the teacher's hidden layers that a distillation loss matches, by name, batch
            first; none by default.
    """

    inputs: Any
    soft_targets: Any
    layers: dict[str, Any] = {}  # never changed

    def __repr__(self) -> str:
        fields = {k: v for k, v in self._asdict().items() if k != "layers" or v}
        said = (f"{name}={in_brief(value)}" for name, value in fields.items())
        return f"DistillationInputs({', '.join(said)})"


def kinds_taught(x: Any) -> dict[Any, str | None]:
    """Returns the kind that the soft targets of a batch may teach, by the output's key.

    As `SoftTargets.join` says it; {} for what a user made. "logits" is either of "softmax"
    and "sigmoid".
    """
    return dict(getattr(x, "kinds_taught", ()))


@functools.cache
def inputs_of_kinds(kinds: tuple) -> Any:
    """Returns the `DistillationInputs` whose soft targets teach outputs of these kinds.

    A class for each, so that it is known wherever the structure of a batch is.

    Args:
        kinds: pairs of an output's key and its kind.
    """

    def reduce(self: Any) -> tuple:
        return _inputs, (kinds, *self)

    content = {"kinds_taught": kinds, "__slots__": (), "__reduce__": reduce}
    return type("DistillationInputs", (DistillationInputs,), content)


def _inputs(kinds: tuple, *fields: Any) -> DistillationInputs:
    return inputs_of_kinds(kinds)(*fields)


def without_soft_targets(x: Any) -> Any:
    """Returns what the student takes."""
    return x.inputs if isinstance(x, DistillationInputs) else x


def unpacked(batch: Any) -> tuple[Any, Any, Any]:
    """Returns `x`, `y` and `sample_weight` of a batch, `None` for what it lacks.

    Bare `DistillationInputs` are `x`: Keras would take their fields for all three.
    """
    if isinstance(batch, DistillationInputs):
        return batch, None, None
    return keras.utils.unpack_x_y_sample_weight(batch)


def as_data(data: Any) -> Any:
    """Returns a dataset of bare `DistillationInputs` as 1-tuples, which Keras takes for `x`."""
    if isinstance(data, tf.data.Dataset) and isinstance(
        data.element_spec, DistillationInputs
    ):
        return data.map(lambda inputs: (inputs,))
    return data
