"""Pictures of answers beside the labels: yes/no questions, and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from keras_distill.arguments import check_array, check_names, check_str, shown
from keras_distill.plots.style import COLORS, new_figure, plain

_MOST_POINTS = 5000


def roc_curves(
    scores: Mapping[str, ArrayLike], labels: ArrayLike | Mapping[str, ArrayLike]
) -> Figure:
    """Draws the ROC curve of yes/no answers: what share of the yes is found, at what price.

    Args:
        scores: by the name of the model (or question), probabilities or logits of a yes,
            `(examples,)` or `(examples, 1)`.
        labels: 0 or 1, or bool, likewise; or a dict of them by the same names.

    Returns:
        The figure, with the area under each curve.

    Raises:
        TypeError: if the scores are no dict.
        ValueError: if there are none, labels are others than 0 and 1 or all the same, or
            lengths differ.

    Example:
    >>> figure = roc_curves({"student": [0.1, 0.7, 0.6]}, [0, 1, 1])
    """
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"scores must be a dict by the name of the model, got {shown(scores)}; give "
            '{"student": probabilities}.'
        )
    if not scores:
        raise ValueError(
            'there are no scores to draw; give {"student": probabilities}.'
        )
    figure, axes = new_figure(5.4, 5.2)
    for name in scores:
        if isinstance(labels, Mapping) and name not in labels:
            raise ValueError(f"labels has no {name!r}, which scores has; give both.")
        of = labels[name] if isinstance(labels, Mapping) else labels
        score = _column(f"scores[{name!r}]", scores[name], "numbers `(examples,)`")
        is_yes = _yes_or_no("labels", of, score.shape)
        wrong, right = _roc(score, is_yes)
        area = 0.5 * float(np.diff(wrong) @ (right[1:] + right[:-1]))
        axes.plot(wrong, right, label=f"{plain(name)} (AUC {area:.4f})")
    axes.plot([0, 1], [0, 1], ":", color="0.5", label="by chance (AUC 0.5)")
    axes.set(
        title="ROC: every threshold at once",
        xlabel="share of the no that is taken for a yes",
        ylabel="share of the yes that is found",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        aspect="equal",
    )
    axes.legend(frameon=False, loc="lower right")
    return figure


def _roc(score: np.ndarray, is_yes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the shares of no and of yes above each threshold, from 0 to 1."""
    order = np.argsort(-score)
    last = np.flatnonzero(np.diff(score[order], append=np.nan) != 0)  # of equal ones
    yes = np.cumsum(is_yes[order])[last]
    no = 1 + last - yes
    return np.append(0.0, no / no[-1]), np.append(0.0, yes / yes[-1])


def _column(
    name: str, given: Any, kind: str, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    values = np.asarray(given) if hasattr(given, "__array__") else given
    if np.ndim(values) == 2 and np.shape(values)[1] == 1:
        values = np.asarray(values)[:, 0]
    return check_array(name, values, 1, kind, shape=shape)


def _yes_or_no(name: str, given: Any, shape: tuple[int, ...]) -> np.ndarray:
    if np.asarray(given).dtype.kind == "b":
        given = np.asarray(given).astype("int64")
    values = _column(name, given, "0 or 1 for each score", shape)
    if not np.isin(values, (0.0, 1.0)).all():
        raise ValueError(f"{name} must be 0 or 1 for each score, got {shown(given)}.")
    if values.min() == values.max():
        raise ValueError(
            f"{name} are all {values[0]:.0f}; a ROC curve needs a yes and a no at least."
        )
    return values > 0


def predicted_against_true(
    true: ArrayLike,
    predicted: ArrayLike,
    *,
    value_names: Sequence[str] | None = None,
    name: str = "model",
) -> Figure:
    """Draws each value that a model gives over its label, beside the line where they agree.

    Of more than 5000 examples, 5000 are drawn, evenly spaced; the figures in the title are of
    all of them.

    Args:
        true: labels, `(examples,)`, or `(examples, values)` with a colour for each value.
        predicted: what the model gives, likewise.
        value_names: one str per value.
        name: of the model, for the title.

    Returns:
        The figure, with R2 and the mean absolute error in its title: over several values
        their mean, as in `kd.evaluate`.

    Raises:
        ValueError: if they are no finite numbers of one shape.

    Example:
    >>> figure = predicted_against_true([1.0, 2.0, 4.0], [1.1, 2.0, 3.5])
    """
    name = plain(check_str("name", name))
    kind = "finite numbers `(examples,)` or `(examples, values)`"
    axes_of = 2 if np.ndim(true) == 2 else 1
    y = check_array("true", true, axes_of, kind)
    if np.ndim(predicted) != y.ndim and np.size(predicted) == y.size == len(y):
        predicted = np.reshape(
            np.asarray(predicted), y.shape
        )  # `(examples, 1)` for one
    s = check_array("predicted", predicted, y.ndim, kind, shape=y.shape)
    y, s = y.reshape(len(y), -1), s.reshape(len(s), -1)
    count = y.shape[1]
    names = [f"value {i}" for i in range(count)]
    if value_names is not None:
        names = [plain(one) for one in check_names("value_names", value_names, count)]
    spread = np.square(y - y.mean(0)).sum(0)
    errors = np.square(y - s).sum(0)
    r2 = np.where(errors > 0, 0.0, 1.0)
    r2[spread > 0] = 1.0 - errors[spread > 0] / spread[spread > 0]
    figure, axes = new_figure(5.6, 5.2)
    rows = np.linspace(0, len(y) - 1, min(len(y), _MOST_POINTS)).astype(int)
    size, alpha = (16, 0.7) if len(rows) <= 500 else (7, 0.35)
    for i, one in enumerate(names):
        looks: dict[str, Any] = {"color": COLORS[i % 7], "marker": "osD^vPX"[i % 7]}
        axes.scatter(
            y[rows, i],
            s[rows, i],
            s=size,
            alpha=alpha,
            linewidths=0,
            label=one,
            **looks,
        )
    low, high = min(y.min(), s.min()), max(y.max(), s.max())
    room = 0.03 * (high - low) or 0.5
    ends = (low - room, high + room)
    axes.plot(ends, ends, "--", color="0.4", linewidth=1)
    error = np.abs(y - s).mean()
    axes.set(
        title=f"{name}: R2 {r2.mean():.4f}, mean absolute error {error:.4g}",
        xlabel="true value",
        ylabel="predicted value",
        xlim=ends,
        ylim=ends,
        aspect="equal",
    )
    if count > 1:
        axes.legend(frameon=False, markerscale=1.5)
    return figure
