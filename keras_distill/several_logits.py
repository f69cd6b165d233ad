"""What cached answers of several teachers are, whose probabilities are averaged."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from keras import ops

from keras_distill.top_k import TopKLogits


class MemberLogits(NamedTuple):
    """The logits of each of several teachers.

    What stands for logits in a batch from a `SoftTargets` store of a list of teachers. The
    step takes the mean of their probabilities at the temperature in force.

    Attributes:
        logits: float32 `(batch, ..., members, classes)`.
    """

    logits: Any

    def mean_at(self, temperature: Any) -> Any:
        """Returns logits `(batch, ..., classes)`; see `mean_of_probabilities`."""
        return mean_of_probabilities(self.logits, temperature)


class MeanLogits(NamedTuple):
    """What averages several teachers' probabilities at one temperature, and at no other.

    Of a `SoftTargets` store written with `temperature=`. A class for each temperature, made
    by `mean_logits_at`: so it is known wherever the structure of a batch is.

    Attributes:
        logits: float32 `(batch, ..., classes)`, or `TopKLogits`.
    """

    logits: Any

    def __reduce__(self) -> tuple:
        return _mean_logits, (self.temperature, self.logits)  # type: ignore[attr-defined]


@functools.cache
def mean_logits_at(temperature: float) -> Any:
    """Returns the `MeanLogits` of a temperature."""
    content = {"temperature": temperature, "__slots__": ()}
    return type("MeanLogits", (MeanLogits,), content)


def _mean_logits(temperature: float, logits: Any) -> MeanLogits:
    return mean_logits_at(temperature)(logits)


#: What is one output, though a tuple.
ONE_OUTPUT = (TopKLogits, MemberLogits, MeanLogits)


def mean_of_probabilities(logits: Any, temperature: Any) -> Any:
    """Returns logits z with `softmax(z / T)` the mean of the members' at T.

    Args:
        logits: `(..., members, classes)`.
        temperature: float scalar > 0.

    Returns:
        float32 `(..., classes)`.
    """
    # T * log of the mean tempered probability.
    scaled = ops.cast(logits, "float32") / temperature
    log_p = ops.log_softmax(scaled, axis=-1)
    far = ops.logsumexp(log_p, -2) - ops.log(logits.shape[-2])
    # At a high T all is in what float32 rounds away beside log K: the same up to it.
    about_mean = scaled - ops.mean(scaled, -1, keepdims=True)
    is_small = ops.max(ops.abs(about_mean), (-2, -1), keepdims=True) < 0.5
    small = ops.where(is_small, about_mean, 0.0)
    small = small - ops.log1p(ops.mean(ops.expm1(small), -1, keepdims=True))
    near = ops.log1p(ops.mean(ops.expm1(small), -2))
    return temperature * ops.where(is_small[..., 0], near, far)


def one_mean(cached: Any, temperature: Any) -> Any:
    """Returns the logits or `TopKLogits` that a cached answer stands for.

    Args:
        cached: of one output.
        temperature: float scalar > 0, that in force.
    """
    if isinstance(cached, MemberLogits):
        return cached.mean_at(temperature)
    return cached.logits if isinstance(cached, MeanLogits) else cached
