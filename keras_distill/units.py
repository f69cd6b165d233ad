"""Numbers as a reader takes them: sizes and times."""

from __future__ import annotations

import math
from collections.abc import Iterable


def three_digits(value: float) -> str:
    """Returns a number > 0 with at least three digits that say something, as "0.0123"."""
    above = math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{min(max(2 - above, 0), 9)}f}"


def size_unit(sizes: Iterable[float | None]) -> tuple[str, float]:
    """Returns the unit in which all of some sizes say something, and its bytes."""
    smallest = min((size for size in sizes if size), default=1e6)
    return ("MB", 1e6) if smallest >= 1e5 else ("kB", 1e3)


def size_shown(count: int) -> str:
    """Returns a number of bytes as a reader takes it, as in "12.3 kB"."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
