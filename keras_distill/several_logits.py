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

    def mean_at(self, temperature: Any, kind: str | None = None) -> Any:
        """Returns logits `(batch, ..., classes)`; see `mean_of_members`."""
        return mean_of_members(self.logits, temperature, kind)


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


def mean_of_members(logits: Any, temperature: Any, kind: str | None) -> Any:
    """Returns the mean of several teachers for one output of a kind.

    Of values their mean; else logits whose tempered probabilities are the mean of theirs.

    Args:
        logits: `(..., members, classes)`.
        temperature: float scalar > 0.
        kind: "softmax" (also for `None`), "sigmoid" or "values".

    Returns:
        float32 `(..., classes)`.
    """
    if kind == "values":
        return ops.mean(ops.cast(logits, "float32"), -2)
    if kind != "sigmoid":
        return mean_of_probabilities(logits, temperature)
    # Each question is two classes with the logits [0, z]: (..., classes, members, 2).
    pairs = ops.swapaxes(ops.stack([ops.zeros_like(logits), logits], -1), -3, -2)
    mean = mean_of_probabilities(pairs, temperature)
    return mean[..., 1] - mean[..., 0]


def one_mean(cached: Any, temperature: Any, kind: str | None = None) -> Any:
    """Returns the logits or `TopKLogits` that a cached answer stands for.

    Args:
        cached: of one output.
        temperature: float scalar > 0, that in force.
        kind: of the output; `None` for a softmax's.
    """
    if isinstance(cached, MemberLogits):
        return cached.mean_at(temperature, kind)
    return cached.logits if isinstance(cached, MeanLogits) else cached
