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

from keras_distill.plots.style import COLORS, new_figure


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
    """
    c = np.asarray(covariance, "float64")
    order = list(dict.fromkeys([*(i for s in clusters for i in s), *range(len(c))]))
    deviation = np.sqrt(np.maximum(np.diag(c), 1e-300))
    shown = (c / deviation / deviation[:, None])[np.ix_(order, order)]
    np.fill_diagonal(shown, np.nan)  # always 1
    size = max(5.0, min(16.0, 0.15 * len(c) + 2.0))
    figure = Figure(figsize=(size, size * 0.95), dpi=120, layout="constrained")
    axes = figure.subplots()
    limit = float(np.nanpercentile(np.abs(shown), 99.5))
    cmap = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.85")
    image = axes.imshow(shown, cmap=cmap, vmin=-limit, vmax=limit)
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
    names = list(class_names or map(str, range(len(c))))
    if len(c) <= 150:
        labels = [names[i].replace("_", " ") for i in order]
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
    """
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
    """

    def name(cluster: Sequence[int]) -> str:
        names = [str(class_names[c] if class_names else c) for c in cluster]
        more = ["..."] if len(names) > 3 else []
        return "\n".join([n.replace("_", " ") for n in names[:3]] + more)

    figure, axes = new_figure(max(7.0, 0.9 * len(shares)), 4.6)
    _before_and_after(axes, shares, [name(clusters[s.of]) for s in shares])
    axes.set(title="Accuracy within each cluster", xlabel="cluster")
    axes.tick_params(axis="x", labelsize=8)
    return figure


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
    """
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
