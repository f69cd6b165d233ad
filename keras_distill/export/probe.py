"""What an export takes and how fast it is: a program that imports nothing of ours.

It is run by its path in a fresh process, which loads the export's runtime alone.
"""

from __future__ import annotations

import runpy
import time
from typing import Any

_FEWEST = 3  # batches, however slow they are


def describe(runtime: str, path: str) -> dict[str, dict[str, Any]]:
    """Returns shapes and dtypes of an export's signature.

    Args:
        runtime: path of a file of `export.runtimes`.
        path: of the export.

    Returns:
        `inputs` and `outputs`, shapes by name, and `input_dtypes` and `output_dtypes`.
    """
    model = runpy.run_path(runtime)["Model"](path)
    parts = ("inputs", "outputs", "input_dtypes", "output_dtypes")
    return {part: getattr(model, part) for part in parts}


def measure(
    runtime: str, path: str, batch: dict[str, Any], threads: int, seconds: float
) -> list[float]:
    """Returns how long an export took for a batch, again and again, in seconds each.

    Args:
        runtime: path of a file of `export.runtimes`.
        path: of the export.
        batch: arrays by input name.
        threads: that one batch is computed by.
        seconds: of measuring, after a fifth as many of warming up; at least three batches
            each.
    """
    model = runpy.run_path(runtime)["Model"](path, threads)
    _asked(model, batch, seconds / 5)
    return _asked(model, batch, seconds)


def measure_each(
    jobs: list[tuple[str, str, list[Any]]], threads: int, seconds: float
) -> list[list[list[float]] | None]:
    """Returns of several exports how long each took for each of some batches, as `measure`.

    Args:
        jobs: of each export its runtime and path, as for `measure`, and batches.
        threads: as for `measure`.
        seconds: as for `measure`, for each batch.

    Returns:
        Of each export the times for each batch; `None` for one that fails.
    """
    found: list[list[list[float]] | None] = []
    for runtime, path, batches in jobs:
        times = []
        try:
            model = runpy.run_path(runtime)["Model"](path, threads)
            for batch in batches:
                _asked(model, batch, seconds / 5)
                times.append(_asked(model, batch, seconds))
        except Exception:  # of many kinds, a set for each runtime
            found.append(None)
        else:
            found.append(times)
    return found


def _asked(model: Any, batch: dict[str, Any], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _FEWEST or time.perf_counter() < end:
        began = time.perf_counter()
        model(batch)
        times.append(time.perf_counter() - began)
    return times
