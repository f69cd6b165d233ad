"""What int8 may change in the answers of a model, and the layer that it changes most."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_distill.export.answers import Answer
from keras_distill.export.serving import prefix
from keras_distill.keras_compat import own_variables

# Of the labels of the calibration, int8 may change that many, and of values the root mean
# square of the error may be that share of their range.
_CHANGED, _ERROR = 0.01, 0.05
# A label instead of one of nearly the same probability says nothing of what int8 costs.
_NEAR = 0.05


def changes(
    answers: dict[Any, Answer],
    expected: dict[str, np.ndarray],
    found: dict[str, np.ndarray],
) -> str | None:
    """Says which output int8 has changed by more than it may; `None` if none.

    Args:
        answers: how each output is served, by its key.
        expected: of the model, for the calibration, by name.
        found: of the file, likewise.
    """
    for key, one in answers.items():
        where = prefix(key)
        if one.kind == "values":
            exact = expected[f"{where}values"]
            error = np.sqrt(np.mean((found[f"{where}values"] - exact) ** 2))
            span = np.ptp(exact)
            if not error <= _ERROR * span:
                return (
                    f"the root mean square error of {where}values on the calibration is "
                    f"{error:.3g}, more than {_ERROR:.0%} of their range of {span:.3g}"
                )
            continue
        labels, other = expected[f"{where}label"], found[f"{where}label"]
        changed = labels != other
        if one.kind == "softmax":
            exact, got = (each[f"{where}probabilities"] for each in (expected, found))
            changed &= _is_less_likely(exact, got)
        else:
            changed &= ~one.is_tie(expected[f"{where}probabilities"], _NEAR)
        # One of a few examples says nothing yet.
        if changed.sum() > max(1, _CHANGED * changed.size):
            return (
                f"{changed.sum()} of {changed.size} answers of {where}label on the "
                f"calibration, more than {_CHANGED:.0%}, are others"
            )
    return None


def _is_less_likely(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Tells where the class found is clearly less likely than the likeliest, by `expected`.

    Of many classes none may be likelier than `_NEAR`: there half as likely is clearly less.
    """
    best = expected.max(-1)
    chosen = np.take_along_axis(expected, found.argmax(-1)[..., None], -1)[..., 0]
    return best - chosen > np.minimum(_NEAR, 0.5 * best)


def layer_named(model: keras.Model, tensor: str | None) -> str | None:
    """Returns the layer of a tensor of the graph, as Keras calls it where that is seen.

    Args:
        model: that it is of.
        tensor: its name, or `None`.
    """
    if tensor is None:
        return None
    names = {layer.name for layer, _ in own_variables(model)}
    for part in reversed(tensor.split(";")[0].split("/")):
        # A graph numbers what is traced again.
        for name in (part, part.rpartition("_")[0]):
            if name in names - {model.name}:
                return repr(name)
    return "the last one" if "PartitionedCall" in tensor else repr(tensor)
