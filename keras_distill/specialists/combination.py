"""One distribution per example from a generalist and its active specialists."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

#: Stands for the logarithm of 0.
_NEVER = -1e30
#: Where the fixed point starts for a class that the generalist all but excludes, so that a
#: specialist's dustbin has something to grow from; and the least mass to divide by.
_LOG_LEAST = -60.0
_LEAST_MASS = 1e-33


def combine(
    log_generalist: Any,
    special: Any,
    dustbin: Any,
    active: Any,
    outside: Any,
    tolerance: float = 1e-6,
    max_iterations: int = 100,
) -> Any:
    """Returns log q, where q is nearest to the generalist and the active specialists.

        q minimises  KL(g || q) + sum over active m of KL(p_m || q)

    where q's dustbin for m is its sum over the classes outside m's cluster. By the
    fixed point

        q(c) <- [g(c) + sum_m p_m(c) if c in S_m
                              p_m(dustbin) q(c) / q(outside S_m) otherwise] / (1 + active)

    from q = g, which is the EM update for grouped multinomials: the divergence never rises,
    and there is no learning rate. It is run on logarithms, so that no class is lost to
    underflow. No gradient passes.

    Args:
        log_generalist: log g, float `(batch, classes)`.
        special: sum over active m of p_m(c) with c in S_m, float `(batch, classes)`.
        dustbin: p_m(dustbin), float `(batch, specialists)`; 0 where m is not active or
            has no dustbin.
        active: whether m is active, bool or float `(batch, specialists)`.
        outside: 1 where class c is not in S_m, else 0, float `(specialists, classes)`.
        tolerance: an example is done when none of its probabilities changes by more.
        max_iterations: int >= 1, the most updates.

    Returns:
        float `(batch, classes)`, of the generalist's dtype. With no active specialist it
        is `log_generalist` itself.

    Reference: arXiv:1503.02531, section 5.4, which minimises it by gradient descent.
    """
    given = map(ops.convert_to_tensor, (log_generalist, special, dustbin))
    log_generalist, special, dustbin = map(ops.stop_gradient, given)
    dtype = log_generalist.dtype
    outside = ops.cast(outside, dtype)
    log_size = ops.log1p(ops.sum(ops.cast(active, dtype), -1, keepdims=True))
    log_fixed = _log_of_sum(log_generalist, _log(special))

    def update(log_q: Any, change: Any, iteration: Any) -> tuple:
        q = ops.exp(log_q)
        mass = ops.maximum(ops.matmul(q, ops.transpose(outside)), _LEAST_MASS)
        log_factor = _log(ops.matmul(dustbin / mass, outside))
        log_new = _log_of_sum(log_fixed, log_q + log_factor) - log_size
        # A row is done by itself, so that an example's answer is not its batch's.
        log_new = ops.where(change > tolerance, log_new, log_q)
        change = ops.max(ops.abs(ops.exp(log_new) - q), -1, keepdims=True)
        # A row that is NaN must not go on.
        change = ops.where(ops.isnan(change), 0.0, change)
        # A loop's variables keep their static shapes; a batch of one has them.
        return (
            ops.reshape(log_new, ops.shape(log_q)),
            ops.reshape(change, ops.shape(log_size)),
            iteration + 1,
        )

    def goes_on(log_q: Any, change: Any, iteration: Any) -> Any:
        return ops.logical_and(ops.any(change > tolerance), iteration < max_iterations)

    log_start = ops.maximum(log_generalist, _LOG_LEAST)
    start = (log_start, ops.full_like(log_size, np.inf), ops.cast(0, "int32"))
    return ops.stop_gradient(ops.while_loop(goes_on, update, start)[0])


def _log(x: Any) -> Any:
    # NaN is not 0: it must be seen in the answer.
    is_zero = x == 0
    return ops.where(is_zero, _NEVER, ops.log(ops.where(is_zero, 1.0, x)))


def _log_of_sum(a: Any, b: Any) -> Any:
    """Returns log(exp(a) + exp(b)), and `a` to the bit where b is the log of 0."""
    larger = ops.maximum(a, b)
    return larger + ops.log1p(ops.exp(-ops.abs(a - b)))
