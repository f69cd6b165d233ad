"""The figures of models: an `Evaluation` of one, a `Comparison` of several."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

from keras_distill import run_directory
from keras_distill.arguments import check_path
from keras_distill.showing import html_of
from keras_distill.units import size_unit, three_digits

# Column name, unit and format of each figure, in the order of a printed table.
_COLUMNS: dict[str, tuple[str, str | Callable[[Any], str]]] = {
    "runtime": ("runtime", "{}"),
    "parameters": ("parameters", "{:,.0f}"),
    "file_bytes": ("file, MB", "{:.2f}"),
    "accuracy": ("accuracy", "{:.2%}"),
    "top5_accuracy": ("top-5", "{:.2%}"),
    "mean_iou": ("mean IoU", "{:.2%}"),
    "auc": ("AUC", "{:.4f}"),
    "nll": ("NLL, nats", "{:.4f}"),
    "calibration_error": ("ECE", "{:.2%}"),
    "teacher_agreement": ("agreement", "{:.2%}"),
    "mae": ("MAE", "{:.4g}"),
    "rmse": ("RMSE", "{:.4g}"),
    "r2": ("R2", "{:.4f}"),
    "cosine": ("cosine", "{:.4f}"),
    "teacher_correlation": ("correlation", "{:.4f}"),
    "latency_p50_ms": ("p50, ms", three_digits),
    "latency_p99_ms": ("p99, ms", three_digits),
    "throughput": ("examples/s", "{:,.0f}"),
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The figures of one model on one dataset; `None` where one does not apply.

    Which there are depends on the kind of the output: of classes that exclude each other
    ("softmax") accuracy, top-5, NLL, calibration and agreement; of yes/no questions
    ("sigmoid") also the AUC; of real numbers ("values") errors, R2, correlation and cosine.

    Attributes:
        name: str.
        examples: number of labels judged; with more than one axis, every position.
        parameters: number of weights of the Keras model.
        file_bytes: size of a file of its weights, without optimizer state; of an export, all
            that it takes on disk.
        accuracy: from 0 to 1; of yes/no questions at 0.5, over all of them.
        top5_accuracy: from 0 to 1, where there are more than 10 classes.
        nll: mean negative log-likelihood of the labels at T = 1, in nats; of yes/no questions
            the mean over all of them.
        calibration_error: expected calibration error, from 0 to 1, in 15 bins of the
            confidence; of yes/no questions all together, in bins of the probability of a yes.
        teacher_agreement: how often the teacher chooses the same class, or gives the same
            answer to a yes/no question, from 0 to 1.
        latency_p50_ms: median time of one example, by one thread, in milliseconds.
        latency_p99_ms: 99th percentile of the same.
        throughput: examples per second at a batch size of 64, by one thread.
        kind: "softmax", "sigmoid" or "values"; `None` for a model with several outputs, whose
            figures are in `outputs`.
        output: name of the output, of a model with several.
        auc: mean over the questions of the area under the ROC curve, from 0 to 1, as
            scikit-learn's `roc_auc_score`; without questions whose labels are all yes, or
            all no.
        mae: mean absolute error, in the unit of the labels.
        rmse: root of the mean squared error, likewise.
        r2: share of the labels' variance that is explained, at most 1; the mean over the
            values of a label, as scikit-learn's `r2_score`.
        cosine: of vectors, the mean cosine of output and label, from -1 to 1.
        teacher_correlation: Pearson's correlation of all values with the teacher's, from -1
            to 1.
        mean_iou: of maps `(batch, height, width, K)` of classes, or of one yes/no question,
            the mean over the classes (of yes and no) of intersection over union, from 0 to 1,
            over the pixels of all data, as Keras's `MeanIoU`: classes that neither labels
            nor answers have are left out.
        outputs: of a model with several outputs, one evaluation of each.
        runtime: what ran it: "Keras", of an export "TensorFlow" (a SavedModel), "LiteRT" or
            "ONNX Runtime"; `None` for a callable or a list.
    """

    name: str
    examples: int
    parameters: int | None
    file_bytes: int | None
    accuracy: float | None = None
    top5_accuracy: float | None = None
    nll: float | None = None
    calibration_error: float | None = None
    teacher_agreement: float | None = None
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    throughput: float | None = None
    kind: str | None = None
    output: str | None = None
    auc: float | None = None
    mae: float | None = None
    rmse: float | None = None
    r2: float | None = None
    cosine: float | None = None
    teacher_correlation: float | None = None
    outputs: tuple[Evaluation, ...] = ()
    runtime: str | None = None
    mean_iou: float | None = None

    def __getitem__(self, output: str) -> Evaluation:
        """Returns the evaluation of an output by its name."""
        for evaluation in self.outputs:
            if evaluation.output == output:
                return evaluation
        names = ", ".join(str(e.output) for e in self.outputs)
        known = f"there are {names}" if names else "the model has a single one"
        raise KeyError(f"no output {output!r}; {known}")

    def __repr__(self) -> str:
        figures = {k: v for k, v in vars(self).items() if v is not None and v != ()}
        shown = (
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value!r}"
            for name, value in figures.items()
        )
        return f"Evaluation({', '.join(shown)})"


def _cell(value: float | str | None, form: str | Callable[[Any], str]) -> str:
    if value is None:
        return "-"
    return form.format(value) if isinstance(form, str) else form(value)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several evaluations side by side; prints as a table.

    Attributes:
        evaluations: one per model, in the order given.
    """

    evaluations: tuple[Evaluation, ...]

    def __getitem__(self, name: str) -> Evaluation:
        """Returns the evaluation of a model by its name, of an output by "model / output"."""
        found = [*self.evaluations, *by_output(self)]
        for evaluation in found:
            if evaluation.name == name:
                return evaluation
        names = ", ".join(dict.fromkeys(e.name for e in found))
        raise KeyError(f"no model {name!r}; there are {names}")

    def __str__(self) -> str:
        rows = rows_of(self)
        first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = [
            "  ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)])
            for row in rows
        ]
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_of(rows_of(self))

    def to_pandas(self) -> Any:
        """Returns the figures as a `pandas.DataFrame`, unrounded.

        A row for each model, or each output of one that has several, by its name; a column
        for each figure that any of them has, by the name of `Evaluation`'s attribute.
        """
        import pandas as pd

        rows = [vars(e) for e in by_output(self)]
        names = [field.name for field in dataclasses.fields(Evaluation)]
        frame = pd.DataFrame(rows, columns=names)
        frame = frame.set_index("name").drop(columns="outputs")
        return frame.dropna(axis="columns", how="all")

    def to_markdown(self) -> str:
        """Returns the table in Markdown."""
        rows = rows_of(self)
        rule = ["---", *["---:"] * (len(rows[0]) - 1)]
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        lines = (" | ".join(row) for row in [rows[0], rule, *rows[1:]])
        return "\n".join(f"| {line} |" for line in lines)

    def to_json(self) -> str:
        """Returns the figures as a JSON list of objects, one for each row, unrounded."""
        rows = [dataclasses.asdict(e) for e in by_output(self)]
        for row in rows:
            del row["outputs"]
        return json.dumps(rows, indent=2)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the figures to a `.json` file or the table to a `.md` file.

        Raises:
            ValueError: if the path ends in neither.
        """
        path = check_path("path", path)
        writers = {".json": self.to_json, ".md": self.to_markdown}
        ending = os.path.splitext(path)[1]
        if ending not in writers:
            raise ValueError(f"the path must end in .json or .md, got {path!r}.")
        run_directory.write_text(path, writers[ending]() + "\n")


def by_output(comparison: Comparison) -> list[Evaluation]:
    """Returns what is printed: a model with several outputs as one row for each."""
    return [one for e in comparison.evaluations for one in e.outputs or (e,)]


def rows_of(comparison: Comparison) -> list[list[str]]:
    """Returns a comparison as a table of text, its first row the head."""
    every = by_output(comparison)
    shown = [f for f in _COLUMNS if any(vars(e)[f] is not None for e in every)]
    if {e.runtime for e in every} <= {"Keras", None}:
        shown = [field for field in shown if field != "runtime"]
    unit, size = size_unit(e.file_bytes for e in every)
    columns = {**_COLUMNS, "file_bytes": (f"file, {unit}", "{:,.2f}")}
    rows = [["model", *(columns[field][0] for field in shown)]]
    for e in every:
        values = {**vars(e), "file_bytes": e.file_bytes and e.file_bytes / size}
        cells = (_cell(values[field], columns[field][1]) for field in shown)
        rows.append([e.name, *cells])
    return rows
