"""The offsets and the temperature that fit labelled logits best; numbers only.

The errors of one offset are a step function of it, whose steps are at the margins of the
examples: sorted, they give the best interval exactly. The negative log-likelihood (NLL) is
convex in offsets, and in 1/T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit, logsumexp

#: Of what float32 logits are told apart by.
_EPSILON = float(np.finfo("float32").eps)
#: Logits that are looked at together, for the memory of their probabilities.
_AT_ONCE = 1 << 22


class Rows(NamedTuple):
    """Examples as offsets see them: the k classes that get one, and all others as one.

    Attributes:
        special: logits `(n, k)` of the classes that get an offset.
        rest: the largest of the other logits, `(n,)`; -infinity where there is none.
        rest_total: log of the sum of their exponentials, `(n,)`.
        label: `(n,)`, the right one of the k, or -1.
        rest_is_right: bool `(n,)`, whether the largest of the others is the right class.
        shares: `(n, k)`, the label's share of each of the k; 1 for the right one.
        weight: `(n,)`, > 0.
    """

    special: np.ndarray
    rest: np.ndarray
    rest_total: np.ndarray
    label: np.ndarray
    rest_is_right: np.ndarray
    shares: np.ndarray
    weight: np.ndarray

    def alone(self, index: int, offsets: np.ndarray) -> Rows:
        """Returns the same with one class whose offset is open, those of others given."""
        others = np.arange(len(offsets)) != index
        moved = self.special[:, others] + offsets[others]
        best = moved.max(-1, initial=-np.inf)
        is_right = self.rest_is_right
        if moved.shape[1]:
            named = np.flatnonzero(others)[moved.argmax(-1)] == self.label
            is_right = np.where(best > self.rest, named, self.rest_is_right)
        return Rows(
            special=self.special[:, [index]],
            rest=np.maximum(self.rest, best),
            rest_total=np.logaddexp(
                self.rest_total, np.logaddexp.reduce(moved, axis=-1, initial=-np.inf)
            ),
            label=np.where(self.label == index, 0, -1),
            rest_is_right=is_right,
            shares=self.shares[:, [index]],
            weight=self.weight,
        )

    def errors(self, offsets: np.ndarray) -> float:
        """Returns the weight of the examples that are wrong."""
        moved = self.special + offsets
        is_right = np.where(
            moved.max(-1) > self.rest,
            moved.argmax(-1) == self.label,
            self.rest_is_right,
        )
        return float(self.weight @ ~is_right)


def shared_offset(rows: Rows, by: str) -> float:
    """Returns the one number that is best added to all k logits.

    Args:
        rows: some labels among the k classes, some not.
        by: "errors" or "nll".
    """
    # softmax over [the k, the others]: the k have the share sigmoid(offset - start).
    start = rows.rest_total - np.logaddexp.reduce(rows.special, axis=-1)
    # Where all classes of one side are masked, by logits of minus infinity, none matters.
    is_open = np.isfinite(start)
    start, share = start[is_open], rows.shares[is_open].sum(-1)
    weight = rows.weight[is_open] / rows.weight[is_open].sum()
    level = logit(weight @ share)
    low, high = start.min() + level, start.max() + level
    offset = _root(lambda b: weight @ (expit(b - start) - share), low, high)
    if by == "nll":
        return offset

    def nll(b: float) -> float:
        return float(weight @ (np.logaddexp(0.0, b - start) - share * b))

    best = _intervals_of_fewest_errors(rows)
    at = [nll(min(max(offset, low), high)) for low, high, _ in best]
    low, high, clear = best[int(np.argmin(at))]
    if np.isfinite(low) and np.isfinite(high):
        return (low + high) / 2
    # On a side without end the NLL says how far, at least clear of the last margin.
    return float(np.clip(offset, low + clear, high - clear))


def _intervals_of_fewest_errors(rows: Rows) -> list[tuple[float, float, float]]:
    """Returns low, high, and how far from a margin it does not matter in float32."""
    special_is_wrong = rows.special.argmax(-1) != rows.label
    step = rows.weight * (special_is_wrong * 1.0 - ~rows.rest_is_right)
    largest = rows.special.max(-1)
    margins = rows.rest - largest
    matters = (step != 0) & np.isfinite(margins)
    order = np.flatnonzero(matters)[np.argsort(margins[matters], kind="stable")]
    edges = np.concatenate([[-np.inf], margins[order], [np.inf]])
    # From the errors below the first margin on; which they are matters not.
    errors = np.concatenate([[0.0], np.cumsum(step[order])])
    # What float32 makes of two logits that are nearly equal.
    size = np.maximum(np.abs(rows.rest), np.abs(largest))[order]
    blur = 2 * _EPSILON * np.concatenate([[0.0], size, [0.0]])
    blur = blur[:-1] + blur[1:]
    errors = np.where(np.diff(edges) > blur, errors, np.inf)
    least = errors.min() + 1e-9 * rows.weight.sum()
    return [
        (edges[i], edges[i + 1], max(0.5, 2 * blur[i]))
        for i in np.flatnonzero(errors <= least)
    ]


def separate_offsets(rows: Rows, by: str) -> np.ndarray:
    """Returns an offset for each of the k logits.

    By errors: from the best by NLL on, one offset at a time by the exact step, as long as
    there are fewer errors; so that no single offset can be bettered.

    Args:
        rows: labels of each of the k classes, and others if there are other classes.
        by: "errors" or "nll".
    """
    weight = rows.weight / rows.weight.sum()

    def nll(offsets: np.ndarray) -> tuple[float, np.ndarray]:
        moved = rows.special + offsets
        total = np.logaddexp(rows.rest_total, logsumexp(moved, axis=-1))
        value = weight @ (total - rows.shares @ offsets)
        return value, weight @ (np.exp(moved - total[:, None]) - rows.shares)

    start = np.zeros(rows.special.shape[1])
    precise = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 10_000, "maxfun": 20_000}
    offsets = minimize(nll, start, jac=True, method="L-BFGS-B", options=precise).x
    if by == "nll":
        return offsets
    fewest, is_better = rows.errors(offsets), True
    while is_better:
        is_better = False
        for index in range(len(offsets)):
            tried = offsets.copy()
            tried[index] = shared_offset(rows.alone(index, offsets), "errors")
            errors = rows.errors(tried)
            if errors < fewest - 1e-9 * rows.weight.sum():
                offsets, fewest, is_better = tried, errors, True
    return offsets


def temperature(logits: np.ndarray, at_label: np.ndarray, weight: np.ndarray) -> float:
    """Returns the T whose softmax has the least NLL.

    With b = 1/T, the NLL's slope is the mean of E[z] - z[y], which grows with b.

    Args:
        logits: `(n, classes)`; minus infinity for a class that is masked.
        at_label: `(n,)`, the right class's logit; of soft labels their mean.
        weight: `(n,)`.

    Returns:
        0 if every label has the largest logit: the smaller T, the better; infinity if the
        mean of the labels' logits is no larger than that of all.
    """
    weight = weight / weight.sum()
    rows = max(1, _AT_ONCE // logits.shape[1])

    def slope(b: float) -> float:
        total = 0.0
        for first in range(0, len(logits), rows):
            part = slice(first, first + rows)
            z = logits[part].astype("float64")
            z -= z.max(-1, keepdims=True)
            is_masked = np.isneginf(z)
            z[is_masked] = 0.0
            p = np.exp(b * z)
            p[is_masked] = 0.0
            mean = (p * z).sum(-1) / p.sum(-1)
            largest = logits[part].max(-1).astype("float64")
            total += weight[part] @ (mean + (largest - at_label[part]))
        return float(total)

    if not slope(0.0) < 0:
        return np.inf
    if not weight @ (logits.max(-1) - at_label) > 0:
        return 0.0
    low = high = 1.0
    while slope(high) < 0:
        low, high = high, high * 2
    while slope(low) > 0:
        low, high = low / 2, low
    return 1.0 / _root(slope, low, high)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Returns where a function that grows from low to high is 0."""
    if not function(low) < 0:
        return low
    if not function(high) > 0:
        return high
    return float(brentq(function, low, high, xtol=1e-12, rtol=1e-14))
