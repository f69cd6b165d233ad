"""Pictures: one function each, returning a matplotlib Figure.

Nothing here imports TensorFlow or Keras, and nothing touches pyplot's global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from scipy.special import softmax

# Okabe and Ito: told apart by colour-blind readers too.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_LINES = ["-", "--", "-.", ":"]


def _figure(width: float = 7.0, height: float = 4.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _shades(count: int) -> np.ndarray:
    """Returns colours from dark to light, in order, for an ordered quantity."""
    import matplotlib

    cmap: Colormap = matplotlib.colormaps["viridis"]
    return cmap(np.linspace(0.0, 0.85, count))


def temperature_curves(
    temperatures: Sequence[float] = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0),
    *,
    classes: int = 50,
    low: float = -10.0,
    high: float = 10.0,
    seed: int = 0,
    log_scale: bool = False,
) -> Figure:
    """Draws softmax(z / T) of random logits, sorted: curves that flatten as T grows.

    Args:
        temperatures: each > 0.
        classes: number of random logits.
        low: smallest logit.
        high: largest logit.
        seed: of the random logits, uniform in [low, high].
        log_scale: whether probabilities are on a logarithmic axis, where the curves are
            lines of slope 1 / T.

    Returns:
        The figure.

    Raises:
        ValueError: if a temperature is not > 0.
    """
    if min(temperatures) <= 0:
        raise ValueError(f"temperatures must be > 0, got {min(temperatures)}.")
    logits = np.sort(np.random.default_rng(seed).uniform(low, high, classes))
    figure, axes = _figure()
    for index, (temperature, color) in enumerate(
        zip(temperatures, _shades(len(temperatures)), strict=True)
    ):
        axes.plot(
            logits,
            softmax(logits / temperature),
            color=color,
            linestyle=_LINES[index % 4],
            marker="o",
            markersize=3,
            label=f"T = {temperature:g}",
        )
    axes.axhline(1.0 / classes, color="0.5", linewidth=1)
    axes.annotate(
        f"uniform, 1/{classes}",
        (low, 1.0 / classes),
        textcoords="offset points",
        xytext=(0, 4),
        color="0.35",
        fontsize=9,
    )
    axes.set(
        title=f"Softmax of {classes} random logits flattens as T grows",
        xlabel="logit z",
        ylabel="probability softmax(z / T)",
        **(
            {"yscale": "log", "ylim": (1e-6, 1.5)} if log_scale else {"ylim": (0, None)}
        ),
    )
    axes.legend(frameon=False)
    return figure


def soft_targets(
    logits: Sequence[float],
    temperatures: Sequence[float] = (1.0, 4.0, 20.0),
    *,
    class_names: Sequence[str] | None = None,
    image: np.ndarray | None = None,
    label: int | None = None,
) -> Figure:
    """Draws the soft targets of one example as bars, one panel per temperature.

    Args:
        logits: float `(classes,)`, the teacher's, for one example.
        temperatures: each > 0.
        class_names: one str per class.
        image: `(height, width)` or `(height, width, channels)` of the example, shown at
            the left.
        label: its class number, drawn in another colour.

    Returns:
        The figure.
    """
    z = np.asarray(logits, dtype="float64")
    names = list(class_names or map(str, range(len(z))))
    panels = len(temperatures) + (image is not None)
    figure = Figure(
        figsize=(2.7 * panels, max(2.8, 0.24 * len(z))), dpi=120, layout="constrained"
    )
    axes_row = list(np.atleast_1d(figure.subplots(1, panels)))
    if image is not None:
        axes = axes_row.pop(0)
        axes.imshow(np.squeeze(image), cmap="gray_r")
        axes.set_axis_off()
        axes.set_title("the example" if label is None else f'labelled "{names[label]}"')
    for index, (axes, temperature) in enumerate(
        zip(axes_row, temperatures, strict=True)
    ):
        p = softmax(z / temperature)
        is_label = [COLORS[1] if c == label else COLORS[0] for c in range(len(z))]
        bars = axes.barh(names, p, color=is_label)
        axes.bar_label(bars, [f"{v:.3f}" for v in p], padding=2, fontsize=8)
        axes.set(title=f"T = {temperature:g}", xlim=(0, 1.25), xlabel="soft target")
        axes.set_xticks([0.0, 0.5, 1.0])
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        if index:
            axes.set_yticklabels([])
    return figure


def training_curves(
    histories: Mapping[str, Mapping[str, Sequence[float]]],
    metric: str = "val_accuracy",
) -> Figure:
    """Draws one metric over the epochs, one line per model.

    Args:
        histories: `History.history` by the name of the model.
        metric: key of the histories.

    Returns:
        The figure.

    Raises:
        KeyError: if no history has the metric.
    """
    figure, axes = _figure()
    drawn = False
    for index, (name, history) in enumerate(histories.items()):
        if metric not in history:
            continue
        drawn = True
        values = history[metric]
        axes.plot(
            np.arange(1, len(values) + 1),
            values,
            color=COLORS[index % len(COLORS)],
            linestyle=_LINES[index % 4],
            label=f"{name} (last {values[-1]:.4g})",
        )
    if not drawn:
        known = sorted({key for history in histories.values() for key in history})
        raise KeyError(f"no history has {metric!r}; there are {', '.join(known)}")
    readable = metric.replace("val_", "validation ").replace("_", " ")
    axes.set(title=f"{readable} during training", xlabel="epoch", ylabel=readable)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def reliability_diagram(
    edges: ArrayLike,
    accuracy: ArrayLike,
    confidence: ArrayLike,
    weight: ArrayLike,
    *,
    name: str = "model",
) -> Figure:
    """Draws accuracy against confidence, with the share of examples below.

    Args:
        edges: upper edge of each bin of the confidence.
        accuracy: of the examples in each bin, from 0 to 1.
        confidence: mean confidence in each bin, from 0 to 1.
        weight: share of the examples in each bin; all as `evaluation.reliability` gives.
        name: of the model, for the title.

    Returns:
        The figure.
    """
    edges, accuracy, confidence, weight = map(
        np.asarray, (edges, accuracy, confidence, weight)
    )
    width = 1.0 / len(edges)
    centers = edges - width / 2
    error = float(np.sum(weight * np.abs(accuracy - confidence)))
    figure = Figure(figsize=(5.2, 5.6), dpi=120, layout="constrained")
    top, bottom = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]}
    )
    full = weight > 0
    top.bar(
        centers[full], accuracy[full], width * 0.9, color=COLORS[0], label="accuracy"
    )
    top.vlines(
        confidence[full],
        accuracy[full],
        confidence[full],
        color=COLORS[1],
        linewidth=3,
        label="gap to the mean confidence",
    )
    top.plot([0, 1], [0, 1], "--", color="0.4", label="perfectly calibrated")
    top.set(
        title=f"Reliability of {name}: ECE {error:.2%}",
        ylabel="accuracy in the bin",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    bottom.bar(centers, weight, width * 0.9, color="0.5")
    bottom.set(xlabel="confidence (largest probability)", ylabel="share of examples")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def size_against_accuracy(evaluations: Sequence[Any]) -> Figure:
    """Draws accuracy against the number of parameters, one point per model.

    Args:
        evaluations: with `name`, `parameters` and `accuracy`, as `evaluation.Evaluation`.

    Returns:
        The figure.
    """
    figure, axes = _figure()
    shown = [e for e in evaluations if e.parameters]
    for index, e in enumerate(shown):
        axes.scatter(
            e.parameters,
            100 * e.accuracy,
            s=70,
            color=COLORS[index % len(COLORS)],
            marker="osD^vPX"[index % 7],
            zorder=3,
        )
        axes.annotate(
            f"{e.name}\n{100 * e.accuracy:.2f} %",
            (e.parameters, 100 * e.accuracy),
            textcoords="offset points",
            xytext=(8, 4 if index % 2 else -18),
            fontsize=9,
        )
    sizes = [e.parameters for e in shown]
    scores = [100 * e.accuracy for e in shown]
    room = max(0.3, 0.25 * (max(scores) - min(scores)))
    axes.set(
        title="What accuracy costs in size",
        xlabel="parameters (log scale)",
        ylabel="test accuracy, %",
        xscale="log",
        xlim=(min(sizes) / 2, max(sizes) * 5),
        ylim=(min(scores) - room, max(scores) + room),
    )
    return figure


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
    image = axes.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit)
    image.cmap.set_bad("0.85")
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
    figure, axes = _figure()
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

    figure, axes = _figure(max(7.0, 0.9 * len(shares)), 4.6)
    _before_and_after(axes, shares, [name(clusters[s.of]) for s in shares])
    axes.set(title="Accuracy within each cluster", xlabel="cluster")
    axes.tick_params(axis="x", labelsize=8)
    return figure


def _before_and_after(axes: Axes, shares: Sequence[Any], names: list[str]) -> None:
    x = np.arange(len(shares))
    for offset, (label, values) in enumerate(
        {
            "generalist": [100 * s.generalist / s.examples for s in shares],
            "ensemble": [100 * s.ensemble / s.examples for s in shares],
        }.items()
    ):
        bars = axes.bar(
            x + 0.4 * offset - 0.2, values, 0.38, color=COLORS[offset], label=label
        )
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
    figure, axes = _figure(8.0, 1.8 + 0.5 * len(workers))
    for record in records:
        row = workers.index(record["worker"])
        seconds = record["ended"] - record["began"]
        axes.barh(
            row,
            seconds,
            left=record["began"] - start,
            color=COLORS[row % len(COLORS)],
            edgecolor="white",
            linewidth=2,
        )
        axes.annotate(
            str(record["specialist"]),
            (record["began"] - start + seconds / 2, row),
            ha="center",
            va="center",
            color="white",
            fontsize=9,
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


def search_plane(trials, **k): ...
def parallel_coordinates(trials, searched, **k): ...
def best_so_far(trials, **k): ...
