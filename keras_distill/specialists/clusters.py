"""Clusters of classes that a generalist confuses, one for each specialist."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse

from keras_distill.arguments import check_array, check_bool, check_each, check_int

Cluster = tuple[int, ...]


def cluster_classes(
    covariance: Any,
    n_clusters: int,
    *,
    max_size: int | None = None,
    clusters_per_class: int = 1,
    correlation: bool = True,
    seed: int = 0,
) -> list[Cluster]:
    """Returns clusters of classes that are predicted together.

    K-means on the columns of the correlation matrix. Then every cluster is given at
    least two and at most `max_size` classes: what is too much goes to the next nearest
    centre that has room. No labels are needed.

    Args:
        covariance: float `(classes, classes)`, dense or a `scipy.sparse` array, as
            `class_covariance` returns it.
        n_clusters: int >= 2.
        max_size: largest number of classes of a cluster; `None` (default) for no limit.
        clusters_per_class: how many clusters each class is put in, those with the nearest
            centres; default 1, that is clusters that do not overlap. Where room is short
            it may be fewer.
        correlation: whether covariances are divided by the two classes' standard
            deviations, so that classes that are often predicted do not count for more.
            Default `True`; `False` takes the columns as they are.
        seed: of K-means; the same seed gives the same clusters.

    Returns:
        `n_clusters` ascending tuples of class numbers, those with the smallest class first.

    Raises:
        ValueError: if the covariance is not square and finite, or the classes do not fit
            into so many clusters.

    Example:
    >>> confused = np.kron(np.eye(2), np.ones((3, 3)))
    >>> cluster_classes(confused, 2)
    [(0, 1, 2), (3, 4, 5)]

    Reference: arXiv:1503.02531, section 5.3.
    """
    from sklearn.cluster import KMeans  # takes half a second, so only where it is used

    columns = _columns(covariance, check_bool("correlation", correlation))
    classes = columns.shape[0]
    n_clusters = check_int("n_clusters", n_clusters, 2, classes // 2)
    least = max(2, -(-classes // n_clusters))
    room = classes if max_size is None else check_int("max_size", max_size, least)
    seed = check_int("seed", seed, 0)
    per_class = check_int("clusters_per_class", clusters_per_class, 1, n_clusters - 1)
    means = KMeans(n_clusters, n_init=10 if classes <= 2000 else 1, random_state=seed)
    distances = means.fit(columns).transform(columns)
    members = _assign(distances, room)
    if per_class > 1:
        _overlap(members, distances, room, per_class)
    return sorted(tuple(sorted(map(int, cluster))) for cluster in members)


def _columns(covariance: Any, correlation: bool) -> Any:
    """Returns the columns as rows, float64, for K-means."""
    is_sparse = scipy.sparse.issparse(covariance)
    if is_sparse:
        c: Any = scipy.sparse.csr_array(covariance, dtype="float64")
    else:
        kind = "numbers `(classes, classes)`, as kd.class_covariance gives"
        c = check_array("covariance", covariance, 2, kind, is_finite=False)
    if c.ndim != 2 or c.shape[0] != c.shape[1]:
        raise ValueError(
            f"the covariance must have shape (classes, classes), got {c.shape}."
        )
    if not np.isfinite(c.data if is_sparse else c).all():
        raise ValueError("the covariance is not finite; check the predictions.")
    if correlation:
        # A class that is never predicted has no variance, and no company.
        std = np.sqrt(np.maximum(c.diagonal(), 0.0))
        scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)
        if is_sparse:
            scaling = scipy.sparse.diags_array(scale)
            c = (scaling @ c @ scaling).tocsr()
        else:
            c = c * scale * scale[:, None]
    if not is_sparse:
        return c
    # scikit-learn takes 32-bit indices.
    indices, starts = c.indices.astype("int32"), c.indptr.astype("int32")
    return scipy.sparse.csr_array((c.data, indices, starts), shape=c.shape)


def _assign(distances: np.ndarray, room: int) -> list[set[int]]:
    """Puts each class into the nearest cluster with room, nearest classes first."""
    n_clusters = distances.shape[1]
    members: list[set[int]] = [set() for _ in range(n_clusters)]
    preferences = np.argsort(distances, axis=1, kind="stable")
    for c in np.argsort(distances.min(1), kind="stable"):
        home = next(m for m in preferences[c] if len(members[m]) < room)
        members[home].add(int(c))
    for m in range(n_clusters):
        while len(members[m]) < 2:
            donors = {
                c: i for i, own in enumerate(members) if len(own) > 2 for c in own
            }
            nearest = min(donors, key=lambda c: (distances[c, m], c))
            members[donors[nearest]].remove(nearest)
            members[m].add(nearest)
    return members


def _overlap(
    members: list[set[int]], distances: np.ndarray, room: int, per_class: int
) -> None:
    """Puts classes into their next nearest clusters too, the closest pairs first."""
    counts = np.ones(len(distances), int)
    order = np.argsort(distances, axis=None, kind="stable")
    for c, m in zip(*np.unravel_index(order, distances.shape), strict=True):
        has_room = len(members[m]) < room and c not in members[m]
        if has_room and counts[c] < per_class:
            members[m].add(int(c))
            counts[c] += 1


def clusters_in_brief(clusters: Sequence[Sequence[int]], classes: int) -> str:
    """Returns how many clusters there are, and of how many classes, in a few words."""
    sizes = sorted(map(len, clusters)) or [0]
    size = str(sizes[0]) if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
    return f"{len(clusters)} clusters of {size} of {classes} classes"


def check_clusters(
    clusters: Sequence[Sequence[int]], classes: int, minimum: int = 2
) -> list[Cluster]:
    """Returns clusters given by hand as tuples, in the order given.

    Args:
        clusters: each of at least two different class numbers; they may overlap.
        classes: number of classes of the generalist.
        minimum: smallest number of clusters.

    Raises:
        ValueError: for fewer clusters, a cluster of fewer than two classes or of all
            classes, or a class that does not exist or is named twice in one cluster.
        TypeError: for anything but class numbers.

    Warns:
        UserWarning: once, if some classes are in no cluster: only the generalist answers
            for them.
    """
    checked = []
    given = check_each("clusters", clusters, lambda _, c: c, "lists of class numbers")
    for index, cluster in enumerate(given):
        is_sequence = isinstance(cluster, (Sequence, set, np.ndarray))
        numbers = np.asarray(list(cluster) if is_sequence else cluster)
        if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu"):
            raise TypeError(
                f"cluster {index} must be a sequence of class numbers, got {cluster!r}."
            )
        if len(numbers) < 2:
            raise ValueError(
                f"cluster {index} is {list(map(int, numbers))}, but a specialist tells "
                "at least two classes apart; join it to another cluster or leave it out."
            )
        outside = numbers[(numbers < 0) | (numbers >= classes)]
        if len(outside):
            raise ValueError(
                f"cluster {index} names the class {outside[0]}, but the generalist has "
                f"the classes 0 to {classes - 1}."
            )
        if len(set(cluster)) < len(numbers):
            raise ValueError(f"cluster {index} names a class twice: {list(cluster)}.")
        if len(numbers) == classes:
            raise ValueError(
                f"cluster {index} holds all {classes} classes, so its specialist would be "
                "another generalist; give it fewer."
            )
        checked.append(tuple(map(int, numbers)))
    if len(checked) < minimum:
        raise ValueError(
            f"specialists need at least {minimum} clusters, got {len(checked)}; see "
            "cluster_classes."
        )
    left_out = sorted(set(range(classes)).difference(*checked))
    if left_out and minimum > 1:
        shown = ", ".join(map(str, left_out[:10])) + ", ..." * (len(left_out) > 10)
        warnings.warn(
            f"{len(left_out)} of {classes} classes are in no cluster ({shown}): the "
            "generalist alone answers for them.",
            stacklevel=3,
        )
    return checked
