"""The examples whose values say how int8 counts, and the batches in which they are seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import keras_compat, reading
from keras_distill.export import check
from keras_distill.export.inputs import Inputs

# More at once would only take memory: the calibrator keeps the least and the greatest value
# over all batches.
_ROWS = 128


def calibration_arrays(inputs: Inputs, calibration: Any) -> dict[str, np.ndarray]:
    """Returns the examples of a calibration by the name of the input.

    Args:
        inputs: of the export.
        calibration: as for `export_litert`.

    Raises:
        TypeError: if it is data of no kind that can be read.
        ValueError: if it does not fit the inputs, is endless or not finite.
    """
    specs = {
        name: tf.TensorSpec([None, *spec.shape[1:]], spec.dtype, name)
        for name, spec in inputs.specs.items()
    }
    tensors = check.example_batch(
        specs, _raw(inputs, calibration, specs), "calibration"
    )
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    reading.check_lengths(arrays, "calibration")
    for name, array in arrays.items():
        if array.dtype.kind not in "iufb":
            raise ValueError(
                f'quantize="int8" needs inputs that are numbers, but {name!r} is of '
                f"{specs[name].dtype.name}; export the model of what the text becomes."
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(
                f"the calibration for input {name!r} has NaN or infinity; leave such "
                "examples out."
            )
    if all(array.size > 1 and np.ptp(array) == 0 for array in arrays.values()):
        raise ValueError(
            "the calibration is one number throughout, which says no range; give some "
            "hundred real examples."
        )
    return arrays


def _raw(inputs: Inputs, calibration: Any, specs: dict[str, tf.TensorSpec]) -> Any:
    """Returns a batch of all examples, as `check.example_batch` takes it."""
    is_data = (
        callable(calibration)
        or isinstance(calibration, tf.data.Dataset)
        or keras_compat.is_batches(calibration)
    )
    if is_data:
        return _of_dataset(inputs, reading.read(calibration, "calibration"), specs)
    if isinstance(calibration, Iterator):
        raise TypeError(
            f"calibration must be a batch or data, got {type(calibration).__name__}, which "
            "can be read once; give an array of its examples, or a tf.data.Dataset."
        )
    named = inputs.by_name(calibration)
    if isinstance(named, tuple) and 1 <= len(named) <= 3:  # (x, y), as for fit
        return _by_name(inputs, named[0])
    return _by_name(inputs, calibration)


def _of_dataset(
    inputs: Inputs, dataset: Any, specs: dict[str, tf.TensorSpec]
) -> dict[str, np.ndarray]:
    if keras_compat.never_ends(dataset):
        raise ValueError(
            "the calibration is endless; give take(n) batches of it, some hundred examples."
        )
    shapes = {name: tuple(spec.shape) for name, spec in specs.items()}
    if not reading.are_batches(dataset.element_spec, shapes):
        dataset = dataset.batch(_ROWS)
    parts: list[dict[str, Any]] = []
    for element in dataset:
        named = _by_name(inputs, reading.inputs_of(element))
        parts.append(check.example_batch(specs, named, "calibration"))
    if not parts:
        raise ValueError("the calibration is empty; give some hundred examples.")
    return {
        name: np.concatenate([np.asarray(part[name]) for part in parts])
        for name in specs
    }


def _by_name(inputs: Inputs, x: Any) -> Any:
    """Returns inputs by name; several in a list or tuple are in the model's order."""
    named = inputs.by_name(x)
    is_several = isinstance(named, (list, tuple)) and 1 < len(named) == len(
        inputs.specs
    )
    return dict(zip(inputs.specs, named, strict=True)) if is_several else named


def batches_of(
    arrays: dict[str, np.ndarray], size: int | None = None
) -> list[dict[str, np.ndarray]]:
    """Returns examples in batches of one size, the last filled up with the first examples.

    Args:
        arrays: by name.
        size: of a batch; `None` for what is free.
    """
    count = len(next(iter(arrays.values())))
    size = size or min(count, _ROWS)
    rows = np.arange(-(-count // size) * size) % count
    return [
        {name: array[rows[start : start + size]] for name, array in arrays.items()}
        for start in range(0, len(rows), size)
    ]


def joined(answers: list[dict[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    """Returns the answers for the batches of `count` examples as one."""
    return keras.tree.map_structure(
        lambda *parts: np.concatenate(parts)[:count], *answers
    )
