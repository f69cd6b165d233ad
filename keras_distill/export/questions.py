"""What is asked of an export on disk in fresh processes: whether it works, how fast it is."""

from __future__ import annotations

import numpy as np

from keras_distill.export import check, fresh, probe, warmup
from keras_distill.export.runtimes import savedmodel
from keras_distill.export.signature import Signature

_EXAMPLES = 4


def check_itself(export: Signature) -> str:
    """Asks an export twice in a fresh process that has its runtime alone.

    Returns:
        What it was asked: its warm-up requests where it has some, else random examples.

    Raises:
        ImportError: if it has warm-up requests, and tensorflow-serving-api is not installed.
        OSError: if they are damaged.
        RuntimeError: if it does not run, answers NaN or infinity, or another thing when
            asked the same twice.
    """
    batches = warmup.read(export.path) if export.runtime is savedmodel else []
    what = f"{len(batches)} warm-up request{'s' * (len(batches) > 1)}"
    if not batches:
        batches = [export.batch_of(_EXAMPLES)]
        count = export.fixed_batch or _EXAMPLES
        what = f"{count} random example{'s' * (count > 1)}"
    try:
        answers = check.ask_fresh_process(
            export.runtime, export.path, [*batches, *batches]
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].rstrip(".: ")
        raise RuntimeError(
            f"{export.path!r} does not answer {what} in a fresh process: {reason}."
        ) from error
    count = len(batches)
    for first, again in zip(answers[:count], answers[count:], strict=True):
        for name, value in first.items():
            _check_answer(export.path, name, value, again[name], what)
    return what


def _check_answer(
    path: str, name: str, value: np.ndarray, again: np.ndarray, what: str
) -> None:
    if value.dtype.kind != "f":
        is_same = np.array_equal(value, again)
    elif not np.isfinite(value).all():
        raise RuntimeError(f"{path!r} answers {what} by NaN or infinity in {name!r}.")
    else:
        is_same = np.allclose(value, again, check.TOLERANCE, check.TOLERANCE)
    if not is_same:
        raise RuntimeError(
            f"{path!r} gives other {name!r} when it is asked the same twice."
        )


def times_of(
    export: Signature, batch_size: int, threads: int, seconds: float
) -> list[float]:
    """Returns how long a batch took in a fresh process on the CPU, in seconds each.

    Args:
        export: that is asked.
        batch_size: of the batch, where it is free.
        threads: that one batch is computed by; what TensorFlow has of them is settled when a
            process starts, hence a process for each measurement, whatever the runtime.
        seconds: of measuring.

    Raises:
        RuntimeError: if it does not answer.
    """
    runtime, batch = export.runtime.__file__, export.batch_of(batch_size)
    try:
        return fresh.run(
            fresh.CALL,
            [probe.__file__, "measure"],
            (runtime, export.path, batch, threads, seconds),
        )
    except fresh.FreshProcessError as error:
        reason = (error.said.strip().splitlines() or [f"it {error.ended}"])[-1]
        raise RuntimeError(
            f"{export.path!r} does not answer a batch of {batch_size} on {threads} "
            f"thread{'s' * (threads > 1)}: {reason.rstrip('.')}."
        ) from None
