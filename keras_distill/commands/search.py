"""From a teacher's file to the best student's export: `keras-distill search`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import keras
from tqdm.auto import tqdm

from keras_distill import datasets, evaluation
from keras_distill.arguments import check_keras_file
from keras_distill.export import savedmodel
from keras_distill.tuning.ranges import SAMPLINGS
from keras_distill.tuning.search import search


def run(
    teacher: str,
    dataset: str,
    student: str,
    *,
    directory: str,
    data_dir: str | None = None,
    image_size: tuple[int, int] | None = None,
    **settings: Any,
) -> evaluation.Comparison:
    """Searches, prints a row for each trial, judges the best student and exports it.

    Args:
        teacher: path of a `.keras` file.
        dataset: "digits", or the name of a TFDS dataset.
        student: "module:function", the function of the hyperparameters.
        directory: for all results.
        data_dir: where TFDS keeps prepared datasets.
        image_size: `(height, width)` for images that differ in size.
        **settings: of `search`.

    Returns:
        The comparison of teacher and best student on test data.

    Raises:
        FileNotFoundError: if there is no such teacher.
        ValueError: if there is no such function, or an argument is out of range.
    """
    build_student = student_function(student)
    check_keras_file("teacher", teacher)
    model = keras.saving.load_model(teacher, compile=False)
    load = datasets.loader(dataset, data_dir, image_size)
    data = load()
    if datasets.fits_in_memory(data):
        train: Any = datasets.to_arrays(data.train)
        validation: Any = datasets.to_arrays(data.validation)
    else:
        train, validation = lambda: load(None).train, lambda: load().validation
    result = search(
        build_student,
        train,
        validation,
        teacher=model,
        directory=directory,
        on_trial_end=Table().show,
        **settings,
    )
    print(f"\n{result}\n")
    comparison = evaluation.compare(
        {"teacher": model, "best student": result.student}, data.test, teacher=model
    )
    print(f"on test data:\n{comparison}\n")
    comparison.save(os.path.join(directory, "comparison.json"))
    comparison.save(os.path.join(directory, "comparison.md"))
    result.save(directory)
    for name in result.figures():
        print(os.path.join(directory, f"{name}.png"))
    exported = savedmodel.export_savedmodel(
        result.student,
        os.path.join(directory, "savedmodel"),
        class_names=data.class_names,
    )
    saved = os.path.join(directory, "student.keras")
    print(f"the best student is in {saved}, and for TensorFlow Serving in {exported}")
    return comparison


def student_function(path: str) -> Callable:
    """Returns the function that "module:function" names.

    Raises:
        ValueError: if there is no such module or function.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ValueError(
            f"the student must be module:function, got {path!r}; as in my_models:build "
            "for the function build(hp) of my_models.py."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the student's module cannot be imported: {error}; run the command in its "
            "folder, or install it."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{module_name} has no function {name!r} to build a student.")
    return function


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
            if len(sampling) > 1 or (sampling and sampling[0] not in SAMPLINGS):
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
            _write(f"failed: {row['message']}")
            return
        if not self.columns:
            self.columns = list(shown)
            self.widths = [max(len(name), 9) for name in self.columns]
            _write(self._line(self.columns))
        line = self._line([_cell(shown.get(name)) for name in self.columns])
        failed = f"  failed: {row['message']}" if row["status"] == "FAILED" else ""
        fixed = f"  {row['kind']}" if row["kind"] != "searched" else ""
        _write(line + fixed + failed)

    def _line(self, cells: list[str]) -> str:
        pairs = zip(cells, self.widths, strict=True)
        return "  ".join(cell.rjust(width) for cell, width in pairs)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.3g}"
    return str(value)


def _write(text: str) -> None:
    tqdm.write(text, file=sys.stdout)
