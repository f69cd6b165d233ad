"""Pictures of a search: where the best was, by what, and when it was found."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from keras_distill.arguments import check_bool, check_names, check_str, shown
from keras_distill.plots.style import COLORS, new_figure, note, plain

if TYPE_CHECKING:
    import pandas as pd

_MARKERS = ("s", "D")


def search_plane(
    trials: pd.DataFrame, *, objective: str = "val_accuracy", is_max: bool = True
) -> Figure:
    """Draws temperature against alpha: trials over a surface that is fitted to them.

    The surface is the mean of a Gaussian process with a Matern kernel and noise, over the
    logarithm of the temperature and over alpha; other hyperparameters count as noise.

    Args:
        trials: `SearchResult.trials`.
        objective: name of the column to colour by.
        is_max: whether more is better.

    Returns:
        The figure.

    Raises:
        TypeError: if the trials are no DataFrame.
        ValueError: if no trial was completed, columns are missing, or temperatures are not
            > 0 or alphas not from 0 to 1.
    """
    is_max = check_bool("is_max", is_max)
    done = _completed(trials, objective, "kind", "temperature", "alpha")
    t = done["temperature"].to_numpy("float64")
    alpha = done["alpha"].to_numpy("float64")
    if not (t > 0).all() or not np.isfinite(t).all():
        raise ValueError(f"temperatures of the trials must be > 0, got {shown(t)}.")
    if not ((alpha >= 0) & (alpha <= 1)).all():
        raise ValueError(
            f"alphas of the trials must be from 0 to 1, got {shown(alpha)}."
        )
    score = done[objective].to_numpy("float64")
    figure, axes = new_figure(7.4, 5.0)
    axes.grid(False)
    mappable = _mappable(score, is_max)
    margin = max(1.05, (t.max() / t.min()) ** 0.04)
    grid_t = np.geomspace(t.min() / margin, t.max() * margin, 80)
    grid_a = np.linspace(-0.03, 1.03, 80)
    if len(done) >= 4 and t.max() > t.min():
        surface = _surface(np.log(t), alpha, score, np.log(grid_t), grid_a)
        # Halfway to white, so that points stand out on it.
        pale = ListedColormap(0.5 + 0.5 * mappable.cmap(np.linspace(0.0, 1.0, 256)))
        low, high = mappable.get_clim()
        axes.pcolormesh(
            grid_t, grid_a, surface, cmap=pale, vmin=low, vmax=high, shading="gouraud"
        )
    best = done[objective].idxmax() if is_max else done[objective].idxmin()
    kinds = done["kind"].to_numpy()
    for kind, marker in zip(
        ("searched", *_fixed_points(done)), ("o", *_MARKERS), strict=False
    ):
        of_kind = kinds == kind
        axes.scatter(
            t[of_kind], alpha[of_kind], c=mappable.to_rgba(score[of_kind]), s=60,
            marker=marker, edgecolors="black", linewidths=0.8, label=kind, zorder=3,
        )  # fmt: skip
    axes.scatter(
        [done.loc[best, "temperature"]], [done.loc[best, "alpha"]], s=260,
        facecolors="none", edgecolors=COLORS[1], linewidths=2.2, zorder=4,
        label=f"best, {done.loc[best, objective]:.4g}",
    )  # fmt: skip
    axes.set_xscale("log")
    ticks = [v for v in (0.5, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50) if (
        grid_t[0] <= v <= grid_t[-1]
    )]  # fmt: skip
    axes.set_xticks(ticks, [f"{v:g}" for v in ticks])
    axes.minorticks_off()
    axes.set(
        title=f"{_readable(objective)} of {len(done)} trials",
        xlabel="temperature T (logarithmic)",
        ylabel="alpha, weight of the hard loss",
        xlim=(grid_t[0], grid_t[-1]),
        ylim=(grid_a[0], grid_a[-1]),
    )
    figure.colorbar(mappable, ax=axes, label=_readable(objective), extend="both")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4,
        frameon=False, fontsize=9,
    )  # fmt: skip
    return figure


def _surface(
    x: np.ndarray,
    y: np.ndarray,
    score: np.ndarray,
    grid_x: np.ndarray,
    grid_y: np.ndarray,
) -> np.ndarray:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    width = max(float(np.ptp(grid_x)), 1e-9)
    points = np.stack([(x - grid_x[0]) / width, y], -1)
    kernel = ConstantKernel(1.0) * Matern([0.4, 0.4], (0.1, 10.0), nu=2.5)
    process = GaussianProcessRegressor(
        kernel + WhiteKernel(0.1, (1e-3, 1.0)),
        normalize_y=True,
        n_restarts_optimizer=3,
        random_state=0,
    )
    with warnings.catch_warnings():
        # A length at its bound is a flat direction, which is an answer too.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(points, score)
    mesh = np.stack(np.meshgrid((grid_x - grid_x[0]) / width, grid_y), -1)
    return process.predict(mesh.reshape(-1, 2)).reshape(mesh.shape[:2])


def parallel_coordinates(
    trials: pd.DataFrame,
    hyperparameters: Sequence[str],
    *,
    objective: str = "val_accuracy",
    is_max: bool = True,
) -> Figure:
    """Draws each trial as a line through its hyperparameters, to its result.

    Args:
        trials: `SearchResult.trials`.
        hyperparameters: names of columns; numbers, booleans or texts.
        objective: name of the column to colour by, the last axis.
        is_max: whether more is better.

    Returns:
        The figure.

    Raises:
        TypeError: if the trials are no DataFrame.
        ValueError: if no trial was completed, or columns are missing.
    """
    is_max = check_bool("is_max", is_max)
    hyperparameters = check_names("hyperparameters", hyperparameters)
    done = _completed(trials, objective, *hyperparameters).sort_values(
        objective, ascending=is_max
    )
    names = [*hyperparameters, objective]
    figure, axes = new_figure(1.8 + 1.7 * len(names), 4.6)
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    columns = []
    for place, name in enumerate(names):
        heights, ticks = _axis(done[name])
        columns.append(heights)
        axes.axvline(place, color="0.4", linewidth=1.0)
        for height, text in ticks:
            box = {
                "boxstyle": "square,pad=0.1",
                "fc": "white",
                "ec": "none",
                "alpha": 0.7,
            }
            looks = {"fontsize": 8, "va": "center", "color": "0.15", "zorder": 5}
            note(axes, text, (place, height), (4, 0), bbox=box, **looks)
    score = done[objective].to_numpy("float64")
    mappable = _mappable(score, is_max)
    lines = np.stack(columns, -1)
    for line, color in zip(lines, mappable.to_rgba(score, alpha=0.8), strict=True):
        axes.plot(line, "-", color=color, linewidth=1.1, zorder=2)
    # The last is the best, drawn over the others.
    axes.lines[-1].set(
        color=COLORS[1], linewidth=2.6, alpha=1.0, label="best", zorder=4
    )
    axes.set_xticks(range(len(names)), [_readable(name) for name in names])
    axes.tick_params(axis="x", length=0)
    axes.set_yticks([])
    axes.set(title=f"{len(done)} trials, the best in orange", ylim=(-0.06, 1.06))
    axes.set_xlim(-0.15, len(names) - 1 + 0.45)
    return figure


def _axis(values: pd.Series) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Returns heights from 0 to 1, and what to write at which; logs where that suits."""
    if values.dtype.kind not in "if":
        texts = values.map(plain)
        kinds = sorted(set(texts))
        places = np.linspace(0.0, 1.0, len(kinds)) if len(kinds) > 1 else [0.5]
        height = dict(zip(kinds, places, strict=True))
        return texts.map(height).to_numpy("float64"), [
            (h, k) for k, h in height.items()
        ]
    numbers = values.to_numpy("float64")
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    if high == low:
        return np.full(len(numbers), 0.5), [(0.5, f"{low:.4g}")]
    is_log = low > 0 and high / low >= 15
    scale = np.log if is_log else np.asarray
    heights = (scale(numbers) - scale(low)) / (scale(high) - scale(low))
    marks = np.geomspace(low, high, 5) if is_log else np.linspace(low, high, 5)
    # A hyperparameter that a trial did not have ends its line at the bottom.
    return np.nan_to_num(heights, nan=0.0), [
        (float(h), f"{m:.4g}") for h, m in zip(np.linspace(0, 1, 5), marks, strict=True)
    ]


def best_so_far(
    trials: pd.DataFrame, *, objective: str = "val_accuracy", is_max: bool = True
) -> Figure:
    """Draws the best result so far over the time of the search, and the fixed points.

    Args:
        trials: `SearchResult.trials`.
        objective: name of the column.
        is_max: whether more is better.

    Returns:
        The figure.

    Raises:
        TypeError: if the trials are no DataFrame.
        ValueError: if no trial was completed and timed, or columns are missing.
    """
    is_max = check_bool("is_max", is_max)
    done = _completed(trials, objective, "kind", "began", "seconds")
    done = done.dropna(subset=["began", "seconds"])
    if done.empty:
        raise ValueError("no completed trial says when it began and how long it took.")
    ended = (done["began"] + done["seconds"]).to_numpy("float64")
    order = np.argsort(ended)
    ended, score = ended[order], done[objective].to_numpy("float64")[order]
    best = np.maximum.accumulate(score) if is_max else np.minimum.accumulate(score)
    figure, axes = new_figure()
    axes.scatter(ended, score, s=22, color="0.55", label="trials", zorder=2)
    axes.step(
        ended, best, where="post", color=COLORS[0], linewidth=2,
        label=f"best so far (last {best[-1]:.4g})", zorder=3,
    )  # fmt: skip
    low, high = _limits(score, is_max)
    shown = [low, high]
    for index, kind in enumerate(_fixed_points(done)):
        row = done[done["kind"] == kind]
        if not row.empty:
            value = float(row[objective].iloc[0])
            shown.append(value)
            axes.axhline(
                value, color=COLORS[1 + index], linestyle=("--", ":")[index],
                label=f"{kind} ({value:.4g})",
            )  # fmt: skip
    space = high - low
    axes.set_ylim(min(shown) - 0.25 * space, max(shown) + 0.25 * space)
    axes.set(
        title=f"{_readable(objective)} over the search",
        xlabel="seconds",
        ylabel=_readable(objective),
        xlim=(0, ended[-1] * 1.03),
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _limits(score: np.ndarray, is_max: bool) -> tuple[float, float]:
    """Returns between which results the picture tells apart: not the worst tenth."""
    low, high = np.quantile(score, [0.1, 1.0] if is_max else [0.0, 0.9])
    return low, max(high, low + 1e-6)


def _mappable(score: np.ndarray, is_max: bool) -> ScalarMappable:
    norm = Normalize(*_limits(score, is_max))
    return ScalarMappable(norm, "viridis" if is_max else "viridis_r")


def _completed(trials: Any, objective: Any, *columns: str) -> pd.DataFrame:
    """Returns the trials that have a result, which is a finite number."""
    if not hasattr(trials, "columns"):
        raise TypeError(
            f"trials must be a DataFrame, got {shown(trials)}; give result.trials."
        )
    objective = check_str("objective", objective)
    if missing := {"status", *columns} - set(trials.columns):
        raise ValueError(
            f"trials must have a column {' and '.join(map(repr, sorted(missing)))}; they "
            f"have {', '.join(map(str, trials.columns))}."
        )
    done = trials[trials["status"] == "COMPLETED"]
    if objective in done:
        if done[objective].dtype.kind not in "iuf":
            raise ValueError(
                f"objective must be a column of numbers, but {objective!r} is of "
                f"{done[objective].dtype}."
            )
        done = done[np.isfinite(done[objective])]
    if done.empty or objective not in done:
        raise ValueError(
            f"no trial was completed with {objective!r}, so there is nothing to draw."
        )
    return done


def _fixed_points(trials: pd.DataFrame) -> list[str]:
    """Returns what was tried first is called, hard labels before all."""
    kinds = [kind for kind in trials["kind"].unique() if kind != "searched"]
    return sorted(kinds, key=lambda kind: kind != "hard labels")[: len(_MARKERS)]


def _readable(name: str) -> str:
    short = {"val_accuracy": "validation accuracy", "val_nll": "validation NLL, nats"}
    return short.get(name, name.replace("val_", "validation ").replace("_", " "))
