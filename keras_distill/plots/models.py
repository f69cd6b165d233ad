"""Pictures of predictions, of training, and of models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from scipy.special import softmax

from keras_distill.plots.style import COLORS, new_figure, note, shades


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
    figure, axes = new_figure()
    for t, color in zip(temperatures, shades(len(temperatures)), strict=True):
        p = softmax(logits / t)
        axes.plot(logits, p, color=color, marker="o", markersize=3, label=f"T = {t:g}")
    axes.axhline(1.0 / classes, color="0.5", linewidth=1)
    note(axes, f"uniform, 1/{classes}", (low, 1.0 / classes), (0, 4), color="0.35")
    axes.set(
        title=f"Softmax of {classes} random logits flattens as T grows",
        xlabel="logit z",
        ylabel="probability softmax(z / T)",
        yscale="log" if log_scale else "linear",
        ylim=(1e-6, 1.5) if log_scale else (0, None),
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
    figure, axes = new_figure()
    drawn = {name: h[metric] for name, h in histories.items() if metric in h}
    for name, values in drawn.items():
        epochs = np.arange(1, len(values) + 1)
        axes.plot(epochs, values, label=f"{name} (last {values[-1]:.4g})")
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
        weight: share of the examples in each bin; all as `metrics.reliability` gives.
        name: of the model, for the title.

    Returns:
        The figure.
    """
    share = np.asarray(weight)
    full = share > 0
    e, a, c = (np.asarray(values)[full] for values in (edges, accuracy, confidence))
    width = 1.0 / len(share)
    error = float(np.sum(share[full] * np.abs(a - c)))
    figure = Figure(figsize=(5.2, 5.6), dpi=120, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.bar(e - width / 2, a, width * 0.9, color=COLORS[0], label="accuracy")
    gap = "gap to the mean confidence"
    top.vlines(c, a, c, color=COLORS[1], linewidth=3, label=gap)
    top.plot([0, 1], [0, 1], "--", color="0.4", label="perfectly calibrated")
    top.set(
        title=f"Reliability of {name}: ECE {error:.2%}",
        ylabel="accuracy in the bin",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    bottom.bar(e - width / 2, share[full], width * 0.9, color="0.5")
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
    figure, axes = new_figure()
    shown = [e for e in evaluations if e.parameters]
    sizes = [e.parameters for e in shown]
    scores = [100 * e.accuracy for e in shown]
    for i, (e, x, y) in enumerate(zip(shown, sizes, scores, strict=True)):
        axes.scatter(x, y, s=70, color=COLORS[i % 7], marker="osD^vPX"[i % 7], zorder=3)
        note(axes, f"{e.name}\n{y:.2f} %", (x, y), (8, 4 if i % 2 else -18))
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
