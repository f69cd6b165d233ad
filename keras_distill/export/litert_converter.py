"""The LiteRT converter, which may end its process: a program that imports nothing of ours.

It is run by its path in a fresh process, which loads TensorFlow and not this package.
"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf


def convert(
    saved_model: str,
    path: str,
    quantize: str | None,
    batches: list | None,
    grid: tuple[str, int, int | None] | None = None,
) -> dict[str, Any]:
    """Writes a SavedModel's signature `serving_default` as a .tflite file.

    Args:
        saved_model: its path.
        path: of the file.
        quantize: as for `export_litert`.
        batches: of the calibration, of one size, dicts of arrays by input name.
        grid: of a model of `quantize_aware`, the path of what converts it, and its bits of
            weights and of activations.

    Returns:
        A dict with `operations`, the names of the file's operations, for int8; or with
        `refused`, a sentence on what the converter cannot take; or with `unwritten`, why the
        file could not be written.
    """
    try:
        if grid is None:
            content = _converter(saved_model, quantize, batches).convert()
        else:
            content = runpy.run_path(grid[0])["convert"](saved_model, *grid[1:])
    except Exception as error:  # of many kinds, which differ between versions
        return {"refused": _sentence(str(error))}
    try:
        with open(path, "wb") as file:
            file.write(content)
    except OSError as error:
        return {"unwritten": error.strerror}
    return {"operations": _operations(content) if quantize == "int8" else []}


def _converter(saved_model: str, quantize: str | None, batches: list | None) -> Any:
    # TensorFlow's own operations are never allowed: the runtime alone cannot run them.
    converter = tf.lite.TFLiteConverter.from_saved_model(
        saved_model, signature_keys=["serving_default"]
    )
    if quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if batches is not None:
        converter.representative_dataset = lambda: iter(batches)
    return converter


def _sentence(text: str) -> str:
    """Returns what the converter's message says, without its thousand lines."""
    places = re.findall(r'\["(\w+):", "([^"@]*)', text)
    needed = re.findall(r"(?:TF Select|Custom) ops: ([^\n]+)", text)
    names = {name for line in needed for name in line.split(", ")}
    names |= set() if names else set(re.findall(r"'tf\.(\w+)' op", text))
    if "TensorList" in text:
        return (
            "it has a loop over time, which needs a batch of a fixed size (say it by "
            "input_signature=tf.TensorSpec([1, ...])), or an RNN layer with unroll=True"
        )
    if not names and places:
        operation, place = places[0]
        at = f" (in {place.rpartition('/')[0]})" if "/" in place else ""
        return f"the converter fails at {operation}{at}"
    if not names:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return "the converter says: " + (lines[0][:300] if lines else "nothing")
    where = sorted({p.rpartition("/")[0] for op, p in places if op in names} - {""})
    at = f" (in {', '.join(where[:5])})" if where else ""
    return f"it has no kernel for {', '.join(sorted(names))}{at}"


def _operations(content: bytes) -> list[str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        tf.lite.experimental.Analyzer.analyze(model_content=content)
    return sorted(set(re.findall(r"^  Op#\d+ (\w+)\(", said.getvalue(), re.MULTILINE)))


def worst_layer(saved_model: str, batches: list) -> str | None:
    """Returns the name, in the graph, of what int8 changes most; `None` if nothing says.

    That is where the root mean square of the error, of what comes in as int8 has it, is the
    largest share of the standard deviation of the float values, channel by channel.

    Args:
        saved_model: its path.
        batches: as for `convert`.
    """
    debugging = tf.lite.experimental
    order = _order(_converter(saved_model, None, None).convert())

    def in_order() -> Iterator[list]:
        return ([batch[name] for name in order] for batch in batches[:4])

    debugger = debugging.QuantizationDebugger(
        converter=_converter(saved_model, "int8", batches),
        debug_dataset=in_order,
        debug_options=debugging.QuantizationDebugOptions(
            layer_direct_compare_metrics={"relative_error": _relative_error}
        ),
    )
    debugger.run()
    found = {
        name: values["relative_error"]
        for name, values in debugger.layer_statistics.items()
    }
    # A softmax of what is lost already has the largest; outputs have the signature's name.
    lost = {n: e for n, e in found.items() if e > 0.1 and "PartitionedCall" not in n}
    found = lost or found
    return max(found, key=found.__getitem__) if found else None


def _order(content: bytes) -> list[str]:
    interpreter = tf.lite.Interpreter(model_content=content)
    details = interpreter.get_signature_runner("serving_default").get_input_details()
    return sorted(details, key=lambda name: details[name]["index"])


def _relative_error(exact: Any, quantized: Any, scale: float, zero: int) -> float:
    """Returns the mean over the channels: one of large numbers would hide the others."""
    error = exact - (quantized.astype("float32") - zero) * scale
    axes = tuple(range(max(exact.ndim - 1, 1)))
    spread = np.std(exact, axes)
    share = np.sqrt(np.mean(error**2, axes)) / np.where(spread > 0, spread, np.inf)
    return float(np.mean(share))
