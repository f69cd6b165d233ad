"""How fast exports answer, over batch sizes and threads: `keras-distill bench`."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version
from typing import Any

import numpy as np

import keras_distill as kd
from keras_distill import progress
from keras_distill.arguments import check_float, check_int
from keras_distill.commands.options import add_command, as_path, table
from keras_distill.export.questions import times_of
from keras_distill.export.signature import Signature, signature_of
from keras_distill.units import three_digits

#: What runs an export, as PyPI calls it, by what the export is called.
_PACKAGES = {
    "SavedModel": "tensorflow",
    "LiteRT file": "ai-edge-litert",
    "ONNX file": "onnxruntime",
}


def add_parser(commands: Any) -> None:
    """Adds the command to the command line."""
    parser = add_command(
        commands,
        "bench",
        run,
        "measure how fast exports answer",
        "Measures exports on the CPU, each by its own runtime: the median and the 99th "
        "percentile of a batch's time, and examples per second. Each row of the table is "
        "measured in a fresh process, on random examples; an export of a fixed batch at its "
        "own size alone.",
        {},
        [
            ("--seconds", float, 1.0, "of measuring for each row"),
            ("--output", as_path, None, "folder for bench.json and bench.png"),
        ],
    )
    parser.add_argument(
        "paths", type=as_path, nargs="+", metavar="path",
        help="a SavedModel version, a directory of them, a .tflite or .onnx file",
    )  # fmt: skip
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 8, 64], metavar="SIZE",
        help="of a request",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], metavar="COUNT",
        help="that one batch is computed by",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Measures, prints a table, and writes it with a picture where a folder is given.

    Raises:
        FileNotFoundError: if there is no such export.
        ImportError: without the package that runs it.
        ValueError: if it is none, or damaged, or an option is out of range.
        RuntimeError: if it does not answer.
    """
    sizes = _counts("batch_sizes", options.batch_sizes)
    threads = _counts("threads", options.threads)
    seconds = check_float(
        "seconds", options.seconds, "a finite number > 0", lambda number: number > 0
    )
    output = options.output
    if output is not None and os.path.isfile(output):
        raise NotADirectoryError(f"the output {output!r} is a file; give a folder.")
    exports = {path: signature_of(path) for path in options.paths}
    cells = [
        (path, size, count)
        for path, export in exports.items()
        for size in ([export.fixed_batch] if export.fixed_batch else sizes)
        for count in threads
    ]
    rows = [
        measured(path, exports[path], size, count, seconds)
        for path, size, count in progress.each(cells, "bench", "row", len(cells), True)
    ]
    print(table([_HEAD, *map(_shown, rows)]))
    if output is not None:
        _save(output, rows, exports)


_HEAD = ["export", "batch", "threads", "p50, ms", "p99, ms", "examples/s"]


def _counts(name: str, given: list[int]) -> list[int]:
    return sorted({check_int(name, one, 1) for one in given})


def measured(
    path: str, export: Signature, size: int, threads: int, seconds: float
) -> dict[str, Any]:
    """Returns the figures of one export at one batch size and number of threads."""
    times = np.array(times_of(export, size, threads, seconds))
    return {
        "export": path,
        "runtime": export.runtime.NAME,
        "batch_size": size,
        "threads": threads,
        "p50_ms": float(1e3 * np.percentile(times, 50)),
        "p99_ms": float(1e3 * np.percentile(times, 99)),
        "examples_per_second": float(size * len(times) / times.sum()),
        "batches": len(times),
    }


def _shown(row: dict[str, Any]) -> list[str]:
    return [
        row["export"],
        str(row["batch_size"]),
        str(row["threads"]),
        three_digits(row["p50_ms"]),
        three_digits(row["p99_ms"]),
        f"{row['examples_per_second']:,.0f}",
    ]


def _save(
    folder: str, rows: list[dict[str, Any]], exports: dict[str, Signature]
) -> None:
    os.makedirs(folder, exist_ok=True)
    names = {_PACKAGES[export.runtime.NAME] for export in exports.values()}
    content = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "system": platform.platform(),
        },
        "packages": {name: version(name) for name in sorted(names)},
        "rows": rows,
    }
    path = os.path.join(folder, "bench.json")
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1) + "\n")
    figure = kd.plots.latency_and_throughput(rows)
    picture = os.path.join(folder, "bench.png")
    figure.savefig(picture)
    print(f"{path}\n{picture}")
