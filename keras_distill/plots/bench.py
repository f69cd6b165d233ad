"""A picture of how fast exports answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, StrMethodFormatter

from keras_distill.arguments import check_each, check_float, check_int, shown
from keras_distill.plots.style import COLORS, LINES, new_figure, plain

_COUNTS = ("batch_size", "threads")
_FIGURES = ("p50_ms", "p99_ms", "examples_per_second")
_SPREAD = 0.5  # of the lines at one batch size, in powers of two
_MARKERS = "osD^vPX"


def latency_and_throughput(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws what a batch takes, and how many examples that is a second, over batch sizes.

    Both scales are logarithmic. Each export has a colour, each number of threads a kind of
    line; above each median a whisker goes up to the 99th percentile.

    Args:
        rows: a dict for each measurement: `export`, a name; `batch_size` and `threads`, int
            >= 1; `p50_ms` and `p99_ms`, a batch's time in ms; and `examples_per_second`.

    Returns:
        The figure.

    Raises:
        ValueError: if they are something else, or there are none.

    Example:
    >>> row = {"export": "student.onnx", "batch_size": 8, "threads": 1}
    >>> row |= {"p50_ms": 0.4, "p99_ms": 0.5, "examples_per_second": 2e4}
    >>> figure = latency_and_throughput([row])
    """
    rows = check_each("rows", rows, _row, "the rows of a benchmark", 1)
    names = list(dict.fromkeys(row["export"] for row in rows))
    threads = sorted({row["threads"] for row in rows})
    sizes = sorted({row["batch_size"] for row in rows})
    figure, _ = new_figure(9.6, 4.2)
    figure.clear()
    left, right = figure.subplots(1, 2)
    for i, name in enumerate(names):
        for j, count in enumerate(threads):
            of = [r for r in rows if r["export"] == name and r["threads"] == count]
            if not of:
                continue
            of.sort(key=lambda row: row["batch_size"])
            x = [row["batch_size"] for row in of]
            p50 = [row["p50_ms"] for row in of]
            tails = [row["p99_ms"] - row["p50_ms"] for row in of]
            looks: dict[str, Any] = {
                "color": COLORS[i % len(COLORS)],
                "linestyle": LINES[j % len(LINES)],
                "marker": _MARKERS[i % len(_MARKERS)],
                "markersize": 5,
            }
            up = [[0.0] * len(of), tails]
            # Beside each other, or whiskers would hide whiskers.
            step = (i * len(threads) + j + 0.5) / (len(names) * len(threads)) - 0.5
            beside = [size * 2 ** (_SPREAD * step) for size in x]
            left.errorbar(beside, p50, yerr=up, capsize=3, elinewidth=1, **looks)
            what = f"{plain(name)}, {count} thread{'s' * (count > 1)}"
            right.plot(
                x, [row["examples_per_second"] for row in of], label=what, **looks
            )
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, list(map(str, sizes)))
        axes.xaxis.set_minor_locator(NullLocator())
        low, high = axes.dataLim.intervaly
        bottom, top = np.floor(np.log10([low, high]))
        axes.set_ylim(10**bottom, 10 ** (top + 1))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("batch size (log scale)")
    left.set(title="A batch: median, up to p99", ylabel="ms (log scale)")
    right.set(title="Throughput", ylabel="examples/s (log scale)")
    figure.legend(
        *right.get_legend_handles_labels(),
        frameon=False,
        loc="outside lower center",
        ncols=2 if len(names) * len(threads) > 1 else 1,
        fontsize=9,
    )
    return figure


def _row(name: str, given: Any) -> dict[str, Any]:
    keys = ("export", *_COUNTS, *_FIGURES)
    if not isinstance(given, Mapping) or not all(key in given for key in keys):
        raise ValueError(
            f"{name} must be a dict of {', '.join(keys)}, got {shown(given)}; give the rows "
            "of a benchmark."
        )
    found: dict[str, Any] = {"export": str(given["export"])}
    for key in _COUNTS:
        found[key] = check_int(f"{name}[{key!r}]", given[key], 1)
    for key in _FIGURES:
        found[key] = check_float(
            f"{name}[{key!r}]", given[key], "a finite number > 0", lambda n: n > 0
        )
    if found["p99_ms"] < found["p50_ms"]:
        raise ValueError(
            f"{name}['p99_ms'] must be >= p50_ms, {found['p50_ms']}, got "
            f"{shown(given['p99_ms'])}."
        )
    return found
