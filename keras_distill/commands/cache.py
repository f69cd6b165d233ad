"""A teacher's soft targets, written once: `keras-distill cache`."""

from __future__ import annotations

import argparse
from typing import Any

import keras_distill as kd
from keras_distill.commands.options import DATA_DIR, DATASET, add_command, loader

_SPLITS = ["train", "validation", "test"]
_DTYPES = ["float16", "bfloat16", "float32"]


def add_parser(commands: Any) -> None:
    """Adds the command to the command line."""
    add_command(
        commands,
        "cache",
        run,
        "cache a teacher's soft targets for a dataset on disk",
        "Runs a teacher once over a split of a dataset, in its own order, and caches its "
        "logits. Started again, it goes on after the last whole shard. In Python: "
        "SoftTargets.open(PATH).join(datasets.load(DATASET, shuffle=False, "
        "batch_size=None).train).",
        {
            "teacher": "a .keras or .h5 file, a SavedModel directory, a .tflite or .onnx file",
            "dataset": DATASET,
            "path": "folder for the soft targets",
        },
        [
            ("--split", _SPLITS, "train", "validation is a tenth of train's examples"),
            DATA_DIR,
            ("--top-k", int, None, "keep the k largest logits; default all"),
            ("--dtype", _DTYPES, "float16", "of the logits on disk"),
            ("--batch-size", int, 128, "examples the teacher sees at once"),
            ("--workers", int, 1, "processes that share the work"),
            ("--overwrite", bool, False, "replace soft targets of another kind"),
        ],
        goes_on=True,
    )


def run(options: argparse.Namespace) -> None:
    """Writes the soft targets and prints what they are."""
    load, split = loader(options), options.split
    targets = kd.SoftTargets.write(
        options.path,
        options.teacher,
        lambda: getattr(load(None), split),
        top_k=options.top_k,
        dtype=options.dtype,
        batch_size=options.batch_size,
        batched=False,
        n_jobs=options.workers,
        overwrite=options.overwrite,
    )
    print(targets)
