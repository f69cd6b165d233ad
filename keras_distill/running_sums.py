"""What is added up batch by batch: confusion of classes, and moments of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np


class Confusion:
    """How often each class was taken for each, added up batch by batch.

    Args:
        classes: number of them.
    """

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes))

    def add(self, right: np.ndarray, chosen: np.ndarray, weight: np.ndarray) -> None:
        """Adds labels.

        Args:
            right: int `(labels,)`.
            chosen: int `(labels,)`, what the model says.
            weight: float `(labels,)`.
        """
        classes = len(self.counts)
        found = np.bincount(right * classes + chosen, weight, classes * classes)
        self.counts += found.reshape(classes, classes)

    @property
    def mean_iou(self) -> float:
        """The mean over the classes of intersection over union, from 0 to 1.

        Of class k `c[k, k] / (sum_j c[k, j] + sum_j c[j, k] - c[k, k])`; classes that neither
        labels nor answers have are left out, as in Keras's `MeanIoU`.
        """
        both = np.diag(self.counts)
        either = self.counts.sum(0) + self.counts.sum(1) - both
        return float(np.mean(both[either > 0] / either[either > 0]))


class Moments:
    """Weighted means, variances and covariances of examples, added up batch by batch.

    Reference: Chan, Golub and LeVeque, *Algorithms for Computing the Sample Variance*, 1983.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self.means: Any = 0.0
        self.products: Any = 0.0

    def add(self, rows: np.ndarray, weight: np.ndarray) -> None:
        """Adds examples.

        Args:
            rows: float64 `(parts, examples, ...)`.
            weight: float64 `(examples,)`.
        """
        total = weight.sum()
        if not total > 0:
            return
        means = np.einsum("pe...,e->p...", rows, weight) / total
        off = rows - means[:, None]
        products = np.einsum("pe...,qe...,e->pq...", off, off, weight)
        moved = means - self.means
        share = self.weight * total / (self.weight + total)
        self.products = self.products + products + share * moved[:, None] * moved[None]
        self.means = self.means + moved * total / (self.weight + total)
        self.weight += total

    @property
    def correlation(self) -> float | None:
        """Pearson's, of two parts of single numbers; `None` where one does not vary."""
        if not self.weight or not self.varies.all():
            return None
        (one, both), (_, other) = self.products
        return float(np.clip(both / np.sqrt(one) / np.sqrt(other), -1.0, 1.0))

    @property
    def varies(self) -> np.ndarray:
        """Tells of each number whether it has any variance, beyond rounding."""
        variance = np.diagonal(self.products).T / self.weight
        return variance > np.square(1e-14 * self.means)
