"""The one way to check an export: in a fresh process, against the Keras model."""

from __future__ import annotations

import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

# Runs with TensorFlow alone: what a server would see.
_FRESH_PROCESS = """
import pathlib, pickle, sys
import tensorflow as tf
path, given, answer = sys.argv[1:]
serve = tf.saved_model.load(path).signatures["serving_default"]
inputs = pickle.loads(pathlib.Path(given).read_bytes())
outputs = serve(**{name: tf.constant(value) for name, value in inputs.items()})
outputs = {name: value.numpy() for name, value in outputs.items()}
pathlib.Path(answer).write_bytes(pickle.dumps(outputs))
"""

TOLERANCE = 1e-5


def expected_answer(serve: Callable, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns what an export must answer, by name.

    Args:
        serve: takes the batch by name and gives tensors by name, before the export.
        batch: tensors by the name of the input.

    Raises:
        ValueError: if an answer is NaN or infinite.
        RuntimeError: if it differs when asked twice.
    """
    expected, again = (
        {name: value.numpy() for name, value in serve(**batch).items()}
        for _ in range(2)
    )
    for name, value in expected.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(
                f"the model's {name} for the example are not all finite (NaN or "
                "infinity); check its weights, or pass example= with typical inputs."
            )
    check_same(expected, again, "when asked twice")
    return expected


def example_batch(specs: dict[str, tf.TensorSpec], example: Any) -> dict[str, Any]:
    """Returns a batch by the name of the input: the example, or random numbers.

    Raises:
        ValueError: if the example is for no input in particular, or none can be made.
    """
    if example is not None:
        if not isinstance(example, dict) and len(specs) > 1:
            raise ValueError(
                f"the model takes several inputs, {', '.join(specs)}; give the example as "
                "a dict by these names."
            )
        given = example if isinstance(example, dict) else dict.fromkeys(specs, example)
        return {n: tf.convert_to_tensor(given[n], s.dtype) for n, s in specs.items()}
    rng = np.random.default_rng(0)
    batch = {}
    for name, spec in specs.items():
        if spec.dtype == tf.string or spec.shape.rank is None:
            raise ValueError(
                f"no random example can be made for input {name!r}, {spec}; pass "
                "example=, a batch of raw inputs, for the check."
            )
        shape = [4 if i == 0 else size or 8 for i, size in enumerate(spec.shape)]
        values = rng.uniform(0.0, 1.0, shape)
        values = values if spec.dtype.is_floating else np.round(values)
        batch[name] = tf.cast(values, spec.dtype)
    return batch


def ask_fresh_process(path: str, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    """Runs an export in a new Python process that imports only TensorFlow.

    Args:
        path: of one version.
        batch: tensors by the name of the input.

    Returns:
        Arrays by the name of the output.

    Raises:
        RuntimeError: if the process fails, with the end of what it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, answer = (pathlib.Path(folder, name) for name in ("given", "answer"))
        given.write_bytes(pickle.dumps({n: v.numpy() for n, v in batch.items()}))
        command = [sys.executable, "-c", _FRESH_PROCESS, path, str(given), str(answer)]
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(
                f"the SavedModel {path} does not run in a fresh process:\n"
                f"{done.stderr[-2000:]}"
            )
        return pickle.loads(answer.read_bytes())


def check_same(expected: dict[str, Any], answer: dict[str, Any], when: str) -> None:
    """Refuses an answer that is not the expected one within the tolerance.

    Raises:
        RuntimeError: naming the output, and when it was asked.
    """
    for name, value in expected.items():
        got = answer[name]
        if name.endswith("label"):
            two_best = np.sort(expected[name[:-5] + "probabilities"], -1)[..., -2:]
            is_tie = np.ptp(two_best, -1) <= TOLERANCE
            same = bool(np.all((got == value) | is_tie))
            difference = f"{np.sum(got != value)} labels differ"
        else:
            same = np.allclose(got, value, rtol=TOLERANCE, atol=TOLERANCE)
            difference = f"largest difference {np.max(np.abs(got - value)):.2g}"
        if not same:
            raise RuntimeError(
                f"the model gives other {name} {when} ({difference}), so nothing is exported. "
                "A layer that is random, or keeps state, at inference cannot be served."
            )
