"""Pictures of predictions, of training, and of models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from scipy.special import softmax

from keras_distill.arguments import (
    check_array,
    check_bool,
    check_choice,
    check_each,
    check_float,
    check_int,
    check_names,
    check_str,
    check_temperature,
    shown,
)
from keras_distill.plots.style import COLORS, new_figure, note, plain, shades
from keras_distill.units import size_unit

_MOST_LOGITS = 100_000
_LEADER = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "relpos": (0, 0.5)}


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
        classes: number of random logits, 2 at least.
        low: smallest logit.
        high: largest logit.
        seed: of the random logits, uniform in [low, high].
        log_scale: whether probabilities are on a logarithmic axis, where the curves are
            lines of slope 1 / T.

    Returns:
        The figure.

    Raises:
        ValueError: if a temperature is not > 0, or another argument out of range.
    """
    temperatures = _temperatures(temperatures)
    classes = check_int("classes", classes, 2, _MOST_LOGITS)
    low = check_float("low", low, "a finite number", np.isfinite)
    limits = f"a finite number > low, {low:g}"
    high = check_float("high", high, limits, lambda number: low < number)
    seed = check_int("seed", seed, 0)
    log_scale = check_bool("log_scale", log_scale)
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
    logits: ArrayLike | Mapping[str, ArrayLike],
    temperatures: Sequence[float] = (1.0, 4.0, 20.0),
    *,
    class_names: Sequence[str] | None = None,
    image: np.ndarray | None = None,
    label: int | None = None,
) -> Figure:
    """Draws the soft targets of one example as bars, one panel per temperature.

    Args:
        logits: float `(classes,)`, the teacher's, for one example; or a dict of such by the
            names of models, which are drawn side by side.
        temperatures: each > 0.
        class_names: one str per class.
        image: `(height, width)` or `(height, width, channels)` of the example, shown at
            the left.
        label: its class number, drawn in another colour.

    Returns:
        The figure.

    Raises:
        ValueError: if an argument is of another shape or kind, or out of range.
    """
    of_models = _logits_by_model(logits)
    temperatures = _temperatures(temperatures)
    classes = len(next(iter(of_models.values())))
    names = [str(c) for c in range(classes)]
    if class_names is not None:
        names = [plain(n) for n in check_names("class_names", class_names, classes)]
    if label is not None:
        label = check_int("label", label, 0, classes - 1)
    if image is not None:
        image = _image(image)
    shown_as = [(model, t) for t in temperatures for model in of_models]
    panels = len(shown_as) + (image is not None)
    figure = Figure(
        figsize=(2.7 * panels, max(2.8, 0.24 * classes)), dpi=120, layout="constrained"
    )
    axes_row = list(np.atleast_1d(figure.subplots(1, panels)))
    if image is not None:
        axes = axes_row.pop(0)
        axes.imshow(image, cmap="gray_r")
        axes.set_axis_off()
        axes.set_title("the example" if label is None else f'labelled "{names[label]}"')
    for index, (axes, (model, temperature)) in enumerate(
        zip(axes_row, shown_as, strict=True)
    ):
        p = softmax(of_models[model] / temperature)
        is_label = [COLORS[1] if c == label else COLORS[0] for c in range(classes)]
        # By their places: classes of one name would be drawn over each other.
        bars = axes.barh(range(classes), p, color=is_label)
        axes.bar_label(bars, [f"{v:.3f}" for v in p], padding=2, fontsize=8)
        of_model = f"{plain(model)}, " if model else ""
        title = f"{of_model}T = {temperature:g}"
        axes.set(title=title, xlim=(0, 1.25), xlabel="soft target")
        axes.set_xticks([0.0, 0.5, 1.0])
        axes.set_yticks(range(classes), [] if index else names)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _logits_by_model(given: Any) -> dict[str, np.ndarray]:
    kind = "finite logits `(classes,)` of one example"
    if not isinstance(given, Mapping):
        return {"": check_array("logits", given, 1, kind)}
    if not given:
        raise ValueError(
            'logits has no model to draw; give logits, or {"teacher": logits}.'
        )
    found: dict[str, np.ndarray] = {}
    for name, one in given.items():
        shape = next((z.shape for z in found.values()), None)
        found[check_str("a name in logits", name)] = check_array(
            f"logits[{name!r}]", one, 1, kind, shape=shape
        )
    return found


def _temperatures(given: Any) -> list[float]:
    return check_each(
        "temperatures",
        given,
        lambda name, one: check_temperature(one, name),
        "temperatures",
        1,
    )


def _image(given: Any) -> np.ndarray:
    """Returns an image as matplotlib takes one: grey, or of three or four channels."""
    kind = "an image `(height, width)` or `(height, width, channels)` of finite numbers"
    image = np.asarray(given) if hasattr(given, "__array__") else given
    if isinstance(image, np.ndarray) and image.dtype.kind == "b":
        image = image.astype("uint8")
    check_array("image", image, 2 if np.ndim(image) == 2 else 3, kind)
    image = np.asarray(image)
    if image.shape[2:] == (1,):
        return image[..., 0]
    if image.shape[2:] not in ((), (3,), (4,)):
        raise ValueError(
            f"image must have 1, 3 or 4 channels, on its last axis, got {image.shape}."
        )
    return image


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
        TypeError: if the histories are no dict of dicts.
        ValueError: if there are none, or one has something else than numbers.
        KeyError: if no history has the metric.
    """
    metric = check_str("metric", metric)
    _check_histories(histories)
    figure, axes = new_figure()
    drawn = {name: h[metric] for name, h in histories.items() if metric in h}
    if not drawn:
        known = sorted({str(key) for history in histories.values() for key in history})
        raise KeyError(f"no history has {metric!r}; there are {', '.join(known)}.")
    for name, given in drawn.items():
        what, kind = f"{metric} of {name!r}", "a list of numbers, one per epoch"
        values = check_array(what, given, 1, kind, is_finite=False)
        epochs = np.arange(1, len(values) + 1)
        axes.plot(epochs, values, label=f"{plain(name)} (last {values[-1]:.4g})")
    readable = metric.replace("val_", "validation ").replace("_", " ")
    axes.set(title=f"{readable} during training", xlabel="epoch", ylabel=readable)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def _check_histories(histories: Any) -> None:
    advice = 'give {"student": history.history}, of what fit returned'
    if not isinstance(histories, Mapping):
        raise TypeError(
            f"histories must be a dict by the name of the model, got {shown(histories)}; "
            f"{advice}."
        )
    if not histories:
        raise ValueError(f"there are no histories to draw; {advice}.")
    for name, history in histories.items():
        if not isinstance(history, Mapping):
            raise TypeError(
                f"histories[{name!r}] must be a dict of lists, got {shown(history)}; "
                f"{advice}."
            )


def reliability_diagram(
    edges: ArrayLike,
    accuracy: ArrayLike,
    confidence: ArrayLike,
    weight: ArrayLike,
    *,
    name: str = "model",
    kind: str = "softmax",
) -> Figure:
    """Draws accuracy against confidence, with the share of examples below.

    Of yes/no questions, how often it is a yes against the probability of a yes.

    Args:
        edges: upper edge of each bin of the confidence.
        accuracy: of the examples in each bin, from 0 to 1.
        confidence: mean confidence in each bin, from 0 to 1.
        weight: share of the examples in each bin; all as `metrics.reliability` gives.
        name: of the model, for the title.
        kind: "softmax" (default) or "sigmoid", what the probabilities were.

    Returns:
        The figure.

    Raises:
        ValueError: if they are no lists of one length, or out of range.
    """
    name = plain(check_str("name", name))
    is_yes = check_choice("kind", kind, ("softmax", "sigmoid")) == "sigmoid"
    rate = "share of yes" if is_yes else "accuracy"
    what = "probability of a yes" if is_yes else "confidence"
    share = _shares("weight", weight)
    bins = share.shape
    given = (("edges", edges), ("accuracy", accuracy), ("confidence", confidence))
    each = [_shares(what, values, bins) for what, values in given]
    widths = np.diff(each[0], prepend=0.0)
    if not (widths > 0).all():
        raise ValueError(f"edges must rise, from above 0, got {shown(edges)}.")
    if abs(share.sum() - 1.0) > 1e-3:
        raise ValueError(
            f"weight must sum to 1, got {share.sum():g}: it is the share of the examples in "
            "each bin, so divide their numbers by the sum."
        )
    full = share > 0
    (e, a, c), width = (values[full] for values in each), widths[full]
    error = float(np.sum(share[full] * np.abs(a - c)))
    figure = Figure(figsize=(5.2, 5.6), dpi=120, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.bar(e - width / 2, a, width * 0.9, color=COLORS[0], label=rate)
    gap = f"gap to the mean {what}"
    top.vlines(c, a, c, color=COLORS[1], linewidth=3, label=gap)
    top.plot([0, 1], [0, 1], "--", color="0.4", label="perfectly calibrated")
    top.set(
        title=f"Reliability of {name}: ECE {error:.2%}",
        ylabel=f"{rate} in the bin",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    bottom.bar(e - width / 2, share[full], width * 0.9, color="0.5")
    largest = "" if is_yes else " (largest probability)"
    of = "answers" if is_yes else "examples"
    bottom.set(xlabel=f"{what}{largest}", ylabel=f"share of {of}")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _shares(name: str, given: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    kind = "a list of numbers from 0 to 1, one per bin"
    values = check_array(name, given, 1, kind, shape=shape)
    if values.min() < 0.0 or values.max() > 1.0 + 1e-4:
        raise ValueError(f"{name} must be from 0 to 1, got {shown(given)}.")
    return values


def size_against_accuracy(evaluations: Sequence[Any]) -> Figure:
    """Draws accuracy against size, one point per model.

    Size is the number of parameters; with exports among them, which do not say it, what each
    takes on disk.

    Args:
        evaluations: with `name`, `parameters`, `file_bytes` and `accuracy`, as
            `kd.Evaluation`; those without a size are left out.

    Returns:
        The figure.

    Raises:
        ValueError: if they are something else, or none has a size.
    """
    found = check_each("evaluations", evaluations, _size_and_score, "kd.Evaluation", 1)
    on_disk = any(size and not count for _, count, size, _ in found)
    unit, one = size_unit(size for _, _, size, _ in found)
    points = [
        (name, size / one if on_disk else count, score)
        for name, count, size, score in found
    ]
    points = [point for point in points if point[1]]
    if not points:
        raise ValueError(
            "none of the evaluations has parameters, so there are no sizes to draw; give "
            "those of Keras models or exports."
        )
    figure, axes = new_figure()
    _, sizes, scores = zip(*points, strict=True)
    for i, (_, x, y) in enumerate(points):
        axes.scatter(x, y, s=70, color=COLORS[i % 7], marker="osD^vPX"[i % 7], zorder=3)
    room = max(0.3, 0.25 * (max(scores) - min(scores)))
    axes.set(
        title="What accuracy costs in size",
        xlabel=f"{f'size on disk, {unit}' if on_disk else 'parameters'} (log scale)",
        ylabel="test accuracy, %",
        xscale="log",
        xlim=(min(sizes) / 2, max(sizes) * 5),
        ylim=(min(scores) - room, max(scores) + room),
    )
    _write_names(axes, points)
    return figure


def _write_names(axes: Axes, points: list[tuple[str, float, float]]) -> None:
    """Writes name and accuracy beside each point, where no other's are yet."""
    # In points of 1/72 inch, as the offsets of notes are; nearly, the layout is not made yet.
    width, height, line = 420.0, 230.0, 12.0
    (left, right), (low, high) = np.log(axes.get_xlim()), axes.get_ylim()
    places = [
        (width * (np.log(x) - left) / (right - left), height * (y - low) / (high - low))
        for _, x, y in points
    ]
    # What is written already, and the points themselves: left, bottom, right, top.
    taken = [(px - 5, py - 5, px + 5, py + 5) for px, py in places]
    offsets = [4.0, -26.0, *(sign * n for n in range(32, 230, 14) for sign in (1, -1))]
    for (name, x, y), (px, py) in zip(points, places, strict=True):
        text = f"{name}\n{y:.2f} %"
        long = 5.2 * max(map(len, text.split("\n")))

        def box(up: float, at: tuple = (px, py), long: float = long) -> tuple:
            return (at[0] + 8, at[1] + up, at[0] + 8 + long, at[1] + up + 2 * line)

        free = (
            up
            for up in offsets
            if box(up)[1] >= 0
            and box(up)[3] <= height
            and not any(_overlap(box(up), other) for other in taken)
        )
        up = next(free, offsets[0])
        taken.append(box(up))
        is_far = abs(up) > 2 * line + 4
        looks = {"arrowprops": _LEADER} if is_far else {}
        note(axes, text, (x, y), (8, up), verticalalignment="bottom", **looks)


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _size_and_score(name: str, given: Any) -> tuple[str, float, float, float]:
    """Returns a model's name, parameters, size in bytes (both 0 for unknown), accuracy in %."""
    if not all(hasattr(given, part) for part in ("name", "parameters", "accuracy")):
        raise ValueError(
            f"{name} must be a kd.Evaluation, got {shown(given)}; give "
            "kd.compare(...).evaluations."
        )
    parameters = 0 if given.parameters is None else given.parameters
    check_int(f"{name}.parameters", parameters, 0, 10**15)
    accuracy = check_float(
        f"{name}.accuracy",
        given.accuracy,
        "a number from 0 to 1",
        lambda number: 0.0 <= number <= 1.0,
    )
    size = getattr(given, "file_bytes", None) or 0
    check_int(f"{name}.file_bytes", size, 0, 10**15)
    return plain(given.name), parameters, size, 100.0 * accuracy
