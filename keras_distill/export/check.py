"""The one way to check an export: in a fresh process, against the Keras model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill.export import fresh

# What a server would see: a runtime alone, without this package.
_FRESH_PROCESS = (
    fresh.PREAMBLE
    + """
model = runpy.run_path(sys.argv[1])["Model"](sys.argv[2])
pickle.dump([model(batch) for batch in given], answer)
answer.close()
os._exit(0)
"""
)

TOLERANCE = 1e-5
_RANDOM = "A layer that is random, or keeps state, at inference cannot be served."


def expected_answer(
    serve: Callable,
    batch: dict[str, Any],
    ties: dict[str, Callable],
    what: str = "example",
) -> dict[str, np.ndarray]:
    """Returns what an export must answer, by name.

    Args:
        serve: takes the batch by name and gives tensors by name, before the export.
        batch: tensors by the name of the input.
        ties: see `check_same`.
        what: it is, for messages.

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
                f"the model's {name} for the {what} are not all finite (NaN or infinity); "
                "check its weights, or pass example= with typical inputs."
            )
    check_same(expected, again, "when asked twice", ties)
    return expected


def example_batch(
    specs: dict[str, tf.TensorSpec], example: Any, what: str = "example"
) -> dict[str, Any]:
    """Returns a batch by the name of the input: the example, or random numbers.

    Args:
        specs: of the inputs, by name.
        example: as for `export_savedmodel`.
        what: it is, for messages.

    Raises:
        ValueError: if the example does not fit the inputs, or none can be made.
    """
    if example is not None:
        if not isinstance(example, dict) and len(specs) > 1:
            raise ValueError(
                f"the model takes several inputs, {', '.join(specs)}; give the {what} "
                "as a dict by these names."
            )
        given = example if isinstance(example, dict) else dict.fromkeys(specs, example)
        if set(given) != set(specs):
            raise ValueError(
                f"the {what} has {', '.join(map(repr, given))}, but the model takes "
                f"{', '.join(map(repr, specs))}; give a batch of each."
            )
        return {n: _as_tensor(n, given[n], s, what) for n, s in specs.items()}
    rng = np.random.default_rng(0)
    batch = {}
    for name, spec in specs.items():
        if spec.dtype == tf.string or spec.shape.rank is None:
            raise ValueError(
                f"no random example can be made for input {name!r}, {spec}; pass "
                "example=, a batch of raw inputs, for the check."
            )
        shape = [size or (8 if i else 4) for i, size in enumerate(spec.shape)]
        values = rng.uniform(0.0, 1.0, shape)
        values = values if spec.dtype.is_floating else np.round(values)
        batch[name] = tf.cast(values, spec.dtype)
    return batch


def _as_tensor(name: str, value: Any, spec: tf.TensorSpec, what: str) -> tf.Tensor:
    try:
        tensor = tf.convert_to_tensor(value, spec.dtype)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the {what} for input {name!r} must be a batch of {spec.dtype.name}, got "
            f"{type(value).__name__}: {error}."
        ) from error
    if (
        not spec.shape.is_compatible_with(tensor.shape)
        or not tensor.shape[:1].num_elements()
    ):
        raise ValueError(
            f"the {what} for input {name!r} must be a batch of shape {spec.shape}, with "
            f"one example at least, got {tensor.shape}."
        )
    return tensor


def first_examples(batch: dict[str, Any], count: int) -> dict[str, tf.Tensor]:
    """Returns the first examples of a batch, again from the first where it has fewer."""
    return {
        name: tf.gather(tensor, np.arange(count) % tensor.shape[0])
        for name, tensor in batch.items()
    }


def ask_fresh_process(
    runtime: ModuleType, path: str, batches: Sequence[dict[str, Any]]
) -> list[dict[str, np.ndarray]]:
    """Runs an export in a new Python process that imports only its runtime.

    Args:
        runtime: module of `export.runtimes`.
        path: of the export.
        batches: tensors by the name of the input, each.

    Returns:
        Arrays by the name of the output, for each batch.

    Raises:
        RuntimeError: if the process fails, with the end of what it wrote.
    """
    assert runtime.__file__ is not None
    arrays = [{n: np.asarray(v) for n, v in batch.items()} for batch in batches]
    try:
        return fresh.run(_FRESH_PROCESS, [runtime.__file__, path], arrays)
    except fresh.FreshProcessError as error:
        raise RuntimeError(
            f"the {runtime.NAME} {path} does not run in a fresh process:\n{error.said}"
        ) from None


def check_same(
    expected: dict[str, Any],
    answer: dict[str, Any],
    when: str,
    ties: dict[str, Callable],
    tolerance: float = TOLERANCE,
    of_range: bool = False,
    advice: str = _RANDOM,
) -> None:
    """Refuses an answer that is not the expected one within the tolerance.

    Args:
        expected: arrays by name.
        answer: likewise.
        when: it was asked, for the error.
        ties: by the name of a label, what tells from its probabilities and a tolerance where
            rounding may turn it.
        tolerance: absolute; the relative one is no more than `TOLERANCE`.
        of_range: whether the absolute one is that of the range of an output's numbers, where
            that is more than 1.
        advice: a sentence for the error.

    Raises:
        RuntimeError: naming the output, and when it was asked.
    """
    for name, value in expected.items():
        got = answer[name]
        if name in ties:
            probabilities = expected[name.removesuffix("label") + "probabilities"]
            same = bool(np.all((got == value) | ties[name](probabilities, tolerance)))
            difference = f"{np.sum(got != value)} labels differ"
        else:
            span = max(1.0, float(np.ptp(value))) if of_range else 1.0
            relative = min(tolerance, TOLERANCE)
            same = np.allclose(got, value, rtol=relative, atol=tolerance * span)
            difference = f"largest difference {np.max(np.abs(got - value)):.2g}"
        if not same:
            raise RuntimeError(
                f"the model gives other {name} {when} ({difference}), so nothing is exported. "
                + advice
            )
