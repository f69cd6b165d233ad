"""What all pictures share: colours, lines, an empty figure."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

# Okabe and Ito: told apart by colour-blind readers too.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
LINES = ["-", "--", "-.", ":"]


def new_figure(width: float = 7.0, height: float = 4.2) -> tuple[Figure, Axes]:
    """Returns an empty figure with one pair of axes; sizes in inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_prop_cycle(color=COLORS * len(LINES), linestyle=LINES * len(COLORS))
    return figure, axes


def note(axes: Axes, text: str, at: tuple, offset: tuple, **looks: Any) -> None:
    """Writes small text beside a point; the offset in points."""
    looks = {"fontsize": 9, **looks}
    axes.annotate(text, at, textcoords="offset points", xytext=offset, **looks)


def plain(name: Any) -> str:
    """Returns a name that is drawn as it stands: its $ begins no formula.

    A label that begins with _ is left out of legends, hence the space.
    """
    text = str(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def shades(count: int) -> np.ndarray:
    """Returns colours from dark to light, in order, for an ordered quantity."""
    cmap: Colormap = matplotlib.colormaps["viridis"]
    return cmap(np.linspace(0.0, 0.85, count))
