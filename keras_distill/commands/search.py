"""From a teacher's file to the best student's export: `keras-distill search`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import keras_distill as kd
from keras_distill import progress
from keras_distill.commands.options import (
    BATCH_SIZE,
    DATA_DIR,
    DATASET,
    SEED,
    add_command,
    as_path,
    function_of,
    load_model,
    loader,
    save_results,
    text_example,
)


def add_parser(commands: Any) -> None:
    """Adds the command to the command line."""
    add_command(
        commands,
        "search",
        run,
        "search temperature and alpha, and what else a student has",
        "Caches a teacher's soft targets, tries temperatures and alphas, and whatever the "
        "student's function asks for, each trial by its validation data at T = 1; "
        "judges the best student on test data, draws pictures and exports it.",
        {
            "teacher": "a .keras file",
            "dataset": DATASET,
            "student": "module:function, with a function of hp that returns a model",
        },
        [
            (
                "--temperature",
                str,
                None,
                "T: a number, LOW:HIGH, LOW:HIGH:log, or A,B,C; default 1:20:log, where it "
                "has a meaning",
            ),
            ("--alpha", str, "0:1", "weight of the hard loss, likewise"),
            ("--trials", int, 30, "at least 2"),
            ("--executions", int, 1, "trainings averaged in each trial"),
            ("--epochs", int, 20, "of a training, at most"),
            ("--patience", int, 5, "epochs without a better result"),
            (
                "--objective",
                str,
                None,
                '"accuracy", "nll", "auc" or "mean_squared_error", on validation data; '
                "default by the kind of output",
            ),
            ("--algorithm", str, "bayesian", '"bayesian" or "random"'),
            ("--workers", int, 1, "processes, each with a GPU of its own"),
            BATCH_SIZE,
            ("--directory", as_path, "keras-distill-search", "folder for all results"),
            ("--resume", bool, False, "go on with the search in the directory"),
            ("--overwrite", bool, False, "delete the search in the directory"),
            ("--retrain", bool, False, "train the best student once more"),
            DATA_DIR,
            SEED,
        ],
    )


def run(options: argparse.Namespace) -> None:
    """Searches, prints a row for each trial, judges the best student and exports it.

    Raises:
        FileNotFoundError: if there is no such teacher.
        ValueError: if there is no such function, an option is out of range, or no trial
            was completed.
    """
    given = options.temperature
    temperature = None if given is None else parse_range(given)
    alpha = parse_range(options.alpha)
    build_student = function_of(options.student)
    model = load_model("teacher", options.teacher)
    load, directory = loader(options), options.directory
    data = load()
    if kd.datasets.fits_in_memory(data):
        train: Any = kd.datasets.to_arrays(data.train)
        validation: Any = kd.datasets.to_arrays(data.validation)
    else:
        train, validation = lambda: load(None).train, lambda: load().validation
    try:
        result = kd.search(
            build_student,
            train,
            validation,
            teacher=model,
            directory=directory,
            on_trial_end=Table().show,
            temperature=temperature,
            alpha=alpha,
            max_trials=options.trials,
            executions_per_trial=options.executions,
            epochs=options.epochs,
            patience=options.patience,
            objective=options.objective,
            algorithm=options.algorithm,
            n_jobs=options.workers,
            batch_size=options.batch_size,
            resume=options.resume,
            overwrite=options.overwrite,
            retrain=options.retrain,
            seed=options.seed,
        )
    except KeyboardInterrupt:
        print("\nGo on with the same command and --resume.", file=sys.stderr)
        raise
    print(f"\n{result}\n")
    comparison = kd.compare(
        {"teacher": model, "best student": result.student}, data.test, teacher=model
    )
    print(f"on test data:\n{comparison}\n")
    result.save(directory)
    save_results(directory, comparison, result.figures())
    exported = kd.export_savedmodel(
        result.student,
        os.path.join(directory, "savedmodel"),
        example=text_example(result.student, data),
        class_names=data.class_names,
        card=kd.ModelCard(result, data=data, evaluation=comparison),
    )
    saved = os.path.join(directory, "student.keras")
    print(f"the best student is in {saved}, and for TensorFlow Serving in {exported}")


def parse_range(text: str) -> Any:
    """Returns what a range on the command line means.

    Args:
        text: "4", "1:20", "1:20:log", or "1,2,4".

    Raises:
        ValueError: if it is none of these.
    """
    try:
        if ":" in text:
            low, high, *sampling = text.split(":")
            if sampling not in ([], ["linear"], ["log"]):
                raise ValueError
            return (float(low), float(high), *sampling)
        if "," in text:
            return [float(part) for part in text.split(",")]
        return float(text)
    except ValueError:
        raise ValueError(
            f"a range is a number, LOW:HIGH, LOW:HIGH:log, or a list A,B,C; got {text!r}."
        ) from None


class Table:
    """Prints a row for each trial as it ends, above the progress bar."""

    _LEFT_OUT = ("kind", "status", "val_loss", "best_epoch", "began", "message")

    def __init__(self) -> None:
        self.columns: list[str] = []

    def show(self, row: dict[str, Any]) -> None:
        """Prints the row of a trial, and before the first the names of the columns."""
        shown = {name: v for name, v in row.items() if name not in self._LEFT_OUT}
        if row["status"] == "FAILED" and not self.columns:
            # It has no results, so their columns are not known yet.
            progress.write(f"failed: {row['message']}")
            return
        if not self.columns:
            self.columns = list(shown)
            self.widths = [max(len(name), 9) for name in self.columns]
            progress.write(self._line(self.columns))
        line = self._line([_cell(shown.get(name)) for name in self.columns])
        failed = f"  failed: {row['message']}" if row["status"] == "FAILED" else ""
        fixed = f"  {row['kind']}" if row["kind"] != "searched" else ""
        progress.write(line + fixed + failed)

    def _line(self, cells: list[str]) -> str:
        pairs = zip(cells, self.widths, strict=True)
        return "  ".join(cell.rjust(width) for cell, width in pairs)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.3g}"
    return str(value)
