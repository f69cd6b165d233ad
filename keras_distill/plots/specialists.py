"""Pictures of specialists: clusters, what they bring, who trained them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from keras_distill.arguments import (
    check_array,
    check_each,
    check_float,
    check_int,
    check_names,
    shown,
)
from keras_distill.plots.style import COLORS, new_figure, plain


def class_covariance(
    covariance: ArrayLike,
    clusters: Sequence[Sequence[int]],
    *,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draws which classes are predicted together, the classes in order of clusters.

    Args:
        covariance: float `(classes, classes)`; drawn as correlations.
        clusters: class numbers of each; framed. A class in several is drawn in the first,
            classes in none come last.
        class_names: one str per class.

    Returns:
        The figure.

    Raises:
        ValueError: if an argument is of another shape or kind, or out of range.
    """
    c = check_array("covariance", covariance, 2, "finite numbers `(classes, classes)`")
    if c.shape != (len(c), len(c)) or len(c) < 2 or (np.diag(c) < 0).any():
        raise ValueError(
            "covariance must be `(classes, classes)` of 2 classes at least, with variances "
            f">= 0 on its diagonal, got shape {c.shape}; give what kd.class_covariance returns."
        )
    clusters = _clusters(clusters, len(c))
    names = [str(i) for i in range(len(c))]
    if class_names is not None:
        names = check_names("class_names", class_names, len(c))
    order = list(dict.fromkeys([*(i for s in clusters for i in s), *range(len(c))]))
    deviation = np.sqrt(np.maximum(np.diag(c), 1e-300))
    correlation = (c / deviation / deviation[:, None])[np.ix_(order, order)]
    np.fill_diagonal(correlation, np.nan)  # always 1
    size = max(5.0, min(16.0, 0.15 * len(c) + 2.0))
    figure = Figure(figsize=(size, size * 0.95), dpi=120, layout="constrained")
    axes = figure.subplots()
    limit = float(np.nanpercentile(np.abs(correlation), 99.5)) or 1.0
    cmap = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.85")
    image = axes.imshow(correlation, cmap=cmap, vmin=-limit, vmax=limit)
    figure.colorbar(image, ax=axes, label="correlation of predictions", shrink=0.6)
    start = 0
    seen: set[int] = set()
    for cluster in clusters:
        new = len(set(cluster) - seen)
        seen.update(cluster)
        axes.add_patch(
            Rectangle((start - 0.5, start - 0.5), new, new, fill=False, linewidth=1.2)
        )
        start += new
    if len(c) <= 150:
        labels = [_label(names[i]) for i in order]
        axes.set_xticks(range(len(c)), labels, rotation=90, fontsize=5.5)
        axes.set_yticks(range(len(c)), labels, fontsize=5.5)
    axes.set_title(f"{len(c)} classes in {len(clusters)} clusters")
    return figure


def accuracy_by_coverage(shares: Sequence[Any]) -> Figure:
    """Draws accuracy by the number of specialists that know the right class.

    Args:
        shares: `by_coverage` of a `SpecialistReport`.

    Returns:
        The figure.

    Raises:
        ValueError: if they are something else.
    """
    shares = _shares(shares, "by_coverage")
    figure, axes = new_figure()
    _before_and_after(axes, shares, [f"{s.of}\n({s.examples:,})" for s in shares])
    axes.set(
        title="Accuracy by the number of specialists covering the correct class",
        xlabel="specialists covering the correct class (examples)",
    )
    return figure


def accuracy_by_cluster(
    shares: Sequence[Any],
    clusters: Sequence[Sequence[int]],
    *,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draws each cluster's accuracy before and after its specialist.

    Args:
        shares: `by_cluster` of a `SpecialistReport`.
        clusters: class numbers of each.
        class_names: one str per class.

    Returns:
        The figure.

    Raises:
        ValueError: if an argument is of another kind, or they do not fit together.
    """
    shares = _shares(shares, "by_cluster")
    clusters = _clusters(clusters)
    if wrong := [s.of for s in shares if not 0 <= s.of < len(clusters)]:
        raise ValueError(
            f"shares are of cluster {wrong[0]}, but there are {len(clusters)} clusters; give "
            "those that the report is of."
        )
    last = max(c for cluster in clusters for c in cluster)
    names = [str(c) for c in range(last + 1)]
    if class_names is not None:
        names = check_names("class_names", class_names)
        if len(names) <= last:
            raise ValueError(
                f"class_names must be one str per class, up to class {last}, got "
                f"{len(names)}: {shown(names)}."
            )

    def name(cluster: Sequence[int]) -> str:
        more = ["..."] if len(cluster) > 3 else []
        return "\n".join([_label(names[c]) for c in cluster[:3]] + more)

    figure, axes = new_figure(max(7.0, 0.9 * len(shares)), 4.6)
    _before_and_after(axes, shares, [name(clusters[s.of]) for s in shares])
    axes.set(title="Accuracy within each cluster", xlabel="cluster")
    axes.tick_params(axis="x", labelsize=8)
    return figure


def _label(name: str) -> str:
    return plain(name.replace("_", " "))


def _clusters(given: Any, classes: int | None = None) -> list[list[int]]:
    last = {} if classes is None else {"most": classes - 1}

    def one(name: str, cluster: Any) -> list[int]:
        number = lambda what, c: check_int(what, c, 0, **last)  # noqa: E731
        return check_each(name, cluster, number, "class numbers", 1)

    return check_each("clusters", given, one, "lists of class numbers", 1)


def _shares(given: Any, what: str) -> list[Any]:
    def one(name: str, share: Any) -> Any:
        parts = ("of", "examples", "generalist", "ensemble")
        if not all(hasattr(share, part) for part in parts):
            raise ValueError(
                f"{name} must be a share of a SpecialistReport, got {shown(share)}; give "
                f"report.{what}."
            )
        check_int(f"{name}.examples", share.examples, 1)
        return share

    return check_each("shares", given, one, f"shares, a report's {what}", 1)


def _before_and_after(axes: Axes, shares: Sequence[Any], names: list[str]) -> None:
    x = np.arange(len(shares))
    for offset, name in ((-0.2, "generalist"), (0.2, "ensemble")):
        values = [100 * getattr(s, name) / s.examples for s in shares]
        bars = axes.bar(x + offset, values, 0.38, label=name)
        axes.bar_label(bars, [f"{v:.1f}" for v in values], padding=2, fontsize=8)
    axes.set_xticks(x, names)
    axes.set(ylabel="accuracy, %")
    axes.margins(y=0.15)
    axes.legend(frameon=False, ncols=2, loc="upper right")


def training_by_worker(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws when each worker trained which specialist.

    Args:
        records: `SpecialistBuilder.records`.

    Returns:
        The figure.

    Raises:
        ValueError: if they are something else, or there are none yet.
    """
    records = check_each("records", records, _record, "builder.records after fit", 1)
    workers = list(dict.fromkeys(r["worker"] for r in records))
    start = min(r["began"] for r in records)
    figure, axes = new_figure(8.0, 1.8 + 0.5 * len(workers))
    for record in records:
        row = workers.index(record["worker"])
        seconds = record["ended"] - record["began"]
        color = COLORS[row % len(COLORS)]
        bar = axes.barh(row, seconds, left=record["began"] - start, color=color)
        bar[0].set(edgecolor="white", linewidth=2)
        axes.bar_label(
            bar, [record["specialist"]], label_type="center", color="white", fontsize=9
        )
    total = sum(r["ended"] - r["began"] for r in records)
    wall, busy_until = 0.0, start  # without the time between two runs
    for record in sorted(records, key=lambda r: r["began"]):
        wall += max(0.0, record["ended"] - max(record["began"], busy_until))
        busy_until = max(busy_until, record["ended"])
    axes.set_yticks(range(len(workers)), workers)
    axes.invert_yaxis()
    axes.set_xlim(0, None)
    axes.set(
        title=f"{len(records)} specialists: {total:.0f} s of training in {wall:.0f} s",
        xlabel="seconds",
    )
    return figure


def _record(name: str, given: Any) -> dict[str, Any]:
    keys = ("specialist", "worker", "began", "ended")
    if not isinstance(given, Mapping) or not all(key in given for key in keys):
        raise ValueError(
            f"{name} must be a dict of {', '.join(keys)}, got {shown(given)}; give "
            "builder.records."
        )
    began = check_float(f"{name}['began']", given["began"], "a time", lambda _: True)
    is_later = lambda time: time >= began  # noqa: E731
    limits = f"a time from {began!r} on"
    ended = check_float(f"{name}['ended']", given["ended"], limits, is_later)
    names = {key: plain(given[key]) for key in ("specialist", "worker")}
    return {**names, "began": began, "ended": ended}
