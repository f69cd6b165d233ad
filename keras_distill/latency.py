"""How long models take to answer, each by one thread."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_distill.export import fresh, probe
from keras_distill.export.runtimes import function as function_runtime

_SIZES = 1, 64  # of the batches whose times are the latency, and the throughput
_SECONDS = 1.0  # of measuring each


class Timed(NamedTuple):
    """A model that is to be timed.

    Attributes:
        answer: takes a batch and computes all answers to it.
        x: a batch.
        function: the `tf.function` behind it, of one batch; `None` for a file, which its own
            runtime runs by one thread in every process.
        tracked: what holds the variables and tables of the function; `None` where nothing is
            known to hold all.
    """

    answer: Callable[[Any], Any]
    x: Any
    function: Any = None
    tracked: Any = None


def timings(models: Sequence[Timed]) -> list[dict[str, float]]:
    """Returns p50 and p99 at batch 1, in ms, and examples per second at batch 64, of each.

    They are measured by one thread, those of TensorFlow in a fresh process: how many it has
    is settled when a process starts, and two can take three times as long for one example as
    one does. On a GPU, and what cannot be written for another process (as a callable), is
    measured in this one, by as many threads as it has.
    """
    found: list[list[list[float]] | None] = []
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            _job(model, os.path.join(folder, str(i))) for i, model in enumerate(models)
        ]
        asked = [job for job in jobs if job is not None]
        measured = _measured(asked)
        found = [None if job is None else next(measured) for job in jobs]
    return [
        _figures(times or [times_of(model.answer, model.x, n) for n in _SIZES])
        for model, times in zip(models, found, strict=True)
    ]


def times_of(answer: Callable[[Any], Any], x: Any, size: int) -> list[float]:
    """Returns the seconds that batches of a size take in this process."""
    batch = _of_size(x, size)
    for _ in range(5):
        answer(batch)
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end and len(times) < 1000:
        start = time.perf_counter()
        answer(batch)
        times.append(time.perf_counter() - start)
    return times


def _figures(times: Sequence[Sequence[float]]) -> dict[str, float]:
    single, many = times
    p50, p99 = 1e3 * np.percentile(single, [50, 99])
    return {
        "latency_p50_ms": float(p50),
        "latency_p99_ms": float(p99),
        "throughput": float(_SIZES[1] / np.median(many)),
    }


def _job(model: Timed, path: str) -> tuple[str, str, list] | None:
    """Returns what runs a model in another process, where it is, and batches for it."""
    batches = [_of_size(model.x, size) for size in _SIZES]
    if model.function is None or model.tracked is None or _has_gpu():
        return None
    if not all(map(tf.is_tensor, keras.tree.flatten(batches))):
        return None
    module = tf.Module()
    module.answer, module.tracked = model.function, model.tracked
    with contextlib.suppress(Exception):  # what it is made of cannot be written
        tf.saved_model.save(module, path)
        arrays = keras.tree.map_structure(lambda t: t.numpy(), batches)
        return str(function_runtime.__file__), path, arrays
    return None


def _measured(jobs: list) -> Any:
    """Yields the times of each job's batches, `None` where it does not run by itself."""
    if not jobs:
        return
    try:
        yield from fresh.run(
            fresh.CALL, [probe.__file__, "measure_each"], (jobs, 1, _SECONDS)
        )
    except fresh.FreshProcessError:
        yield from [None] * len(jobs)


def _has_gpu() -> bool:
    return bool(tf.config.list_logical_devices("GPU"))


def _of_size(x: Any, size: int) -> Any:
    """Returns as many examples of a batch, some several times where it has fewer."""

    def of_size(part: Any) -> Any:
        rows = np.repeat(np.arange(len(part)), -(-size // len(part)))[:size]
        return part[rows] if isinstance(part, np.ndarray) else tf.gather(part, rows)

    return keras.tree.map_structure(of_size, x)
