"""TopKLogits: the k largest logits, and the mass of the rest at any temperature."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_distill.showing import in_brief


class TopKLogits(NamedTuple):
    """The k largest logits of each example, and how much mass all others have.

    What stands for logits in a batch from a `SoftTargets` store with `top_k`. One tensor,
    because a pipeline's cost goes by their number.

    Attributes:
        packed: float32 `(batch, ..., 2 k + 8)`: `values`, `indices` and `rest`, one after
            another; or `(batch, ..., 2 k + 1)` if there are no other classes.
    """

    packed: Any

    def __repr__(self) -> str:
        rest = " and the rest" if self.has_rest else ""
        return f"TopKLogits({in_brief(self.values)}{rest})"

    @property
    def k(self) -> int:
        """How many logits were kept."""
        return (self.packed.shape[-1] - (8 if self.has_rest else 1)) // 2

    @property
    def has_rest(self) -> bool:
        """Whether there are other classes than the k."""
        return self.packed.shape[-1] % 2 == 0

    @property
    def values(self) -> Any:
        """The k largest logits, float32 `(batch, ..., k)`, largest first."""
        return self.packed[..., : self.k]

    @property
    def indices(self) -> Any:
        """Their classes, int32 `(batch, ..., k)`; exact below 2**24 classes."""
        return ops.cast(self.packed[..., self.k : 2 * self.k], "int32")

    @property
    def rest(self) -> Any:
        """Mass of the others, float32 `(batch, ..., 8)`.

        `logsumexp(b * z)` over the logits `z` of all other classes, at the inverse
        temperatures b of `REST_BETAS`.
        """
        return self.packed[..., 2 * self.k :]

    def rest_at(self, temperature: Any) -> Any:
        """Returns `logsumexp(z / T)` over the other classes, `(batch, ...)`.

        The polynomial through `rest` at `1 / T`; exact where `1 / T` is one of
        `REST_BETAS`. Made for T >= 1.

        Args:
            temperature: float scalar >= 1.
        """
        # The Lagrange basis, one number per node.
        others = ~np.eye(len(REST_BETAS), dtype=bool)
        nodes = np.asarray(REST_BETAS, "float32")
        apart = np.where(others, nodes[:, None] - nodes[None, :], 1.0)
        beta = 1.0 / ops.cast(temperature, "float32")
        factors = ops.where(others, beta - nodes[None, :], 1.0) / apart
        return ops.sum(self.rest * ops.prod(factors, -1), -1)


#: Inverse temperatures at which `TopKLogits` says the mass of the rest. They lie close to
#: Chebyshev's points, so that the polynomial through them does not swing. Multiples of
#: 1/16, so that one exponential serves all.
REST_BETAS = (0.0, 1 / 16, 3 / 16, 6 / 16, 10 / 16, 13 / 16, 15 / 16, 1.0)
