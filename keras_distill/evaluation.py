"""An honest evaluation: what a model knows, how sure it is, and what it costs."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_distill import progress, run_directory, user_functions
from keras_distill.arguments import check_bool, check_names, check_path, check_verbose
from keras_distill.distiller import Distiller
from keras_distill.keras_compat import mask_of
from keras_distill.labels import as_labelled, classes_of, weights_of
from keras_distill.metrics import binned
from keras_distill.outputs import has_several
from keras_distill.soft_targets.sources import specs_of
from keras_distill.teachers import Teacher, as_teacher

# Column name, unit and format of each figure, in the order of a printed table.
_COLUMNS = {
    "parameters": ("parameters", "{:,.0f}"),
    "file_bytes": ("file, MB", "{:.2f}"),
    "accuracy": ("accuracy", "{:.2%}"),
    "top5_accuracy": ("top-5", "{:.2%}"),
    "nll": ("NLL, nats", "{:.4f}"),
    "calibration_error": ("ECE", "{:.2%}"),
    "teacher_agreement": ("agreement", "{:.2%}"),
    "latency_p50_ms": ("p50, ms", "{:.2f}"),
    "latency_p99_ms": ("p99, ms", "{:.2f}"),
    "throughput": ("examples/s", "{:,.0f}"),
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The figures of one model on one dataset; `None` where one does not apply.

    Attributes:
        name: str.
        examples: number of labels judged; with more than one axis, every position.
        parameters: number of weights of the Keras model.
        file_bytes: size of a file of its weights, without optimizer state.
        accuracy: from 0 to 1.
        top5_accuracy: from 0 to 1, where there are more than 10 classes.
        nll: mean negative log-likelihood of the labels at T = 1, in nats.
        calibration_error: expected calibration error, from 0 to 1.
        teacher_agreement: how often the teacher chooses the same class, from 0 to 1.
        latency_p50_ms: median time of one example, in milliseconds.
        latency_p99_ms: 99th percentile of the same.
        throughput: examples per second at a batch size of 64.
    """

    name: str
    examples: int
    parameters: int | None
    file_bytes: int | None
    accuracy: float
    top5_accuracy: float | None
    nll: float
    calibration_error: float
    teacher_agreement: float | None
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    throughput: float | None = None


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several evaluations side by side; prints as a table.

    Attributes:
        evaluations: one per model, in the order given.
    """

    evaluations: tuple[Evaluation, ...]

    def __getitem__(self, name: str) -> Evaluation:
        """Returns the evaluation of a model by its name."""
        for evaluation in self.evaluations:
            if evaluation.name == name:
                return evaluation
        names = ", ".join(e.name for e in self.evaluations)
        raise KeyError(f"no model {name!r}; there are {names}")

    def _rows(self) -> list[list[str]]:
        every = [vars(e) for e in self.evaluations]
        shown = [f for f in _COLUMNS if any(values[f] is not None for values in every)]
        rows = [["model", *(_COLUMNS[field][0] for field in shown)]]
        for e in self.evaluations:
            values = {**vars(e), "file_bytes": e.file_bytes and e.file_bytes / 1e6}
            cells = (_cell(values[field], _COLUMNS[field][1]) for field in shown)
            rows.append([e.name, *cells])
        return rows

    def __str__(self) -> str:
        rows = self._rows()
        first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = [
            "  ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)])
            for row in rows
        ]
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """Returns the table in Markdown."""
        rows = self._rows()
        rule = ["---", *["---:"] * (len(rows[0]) - 1)]
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        lines = (" | ".join(row) for row in [rows[0], rule, *rows[1:]])
        return "\n".join(f"| {line} |" for line in lines)

    def to_json(self) -> str:
        """Returns the figures as a JSON list of objects, unrounded."""
        return json.dumps([dataclasses.asdict(e) for e in self.evaluations], indent=2)

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


@user_functions.plain_errors()
def evaluate(
    model: Any,
    dataset: Any,
    *,
    name: str | None = None,
    teacher: Any = None,
    from_logits: bool | None = None,
    timing: bool = True,
) -> Evaluation:
    """Judges one model on one dataset.

    Args:
        model: a `keras.Model`, a `Distiller` (its student is judged), or anything else
            that may teach: a path, a list, a callable.
        dataset: finite `tf.data.Dataset` of `(x, y)` or `(x, y, sample_weight)`
            batches, or a tuple of such arrays; y integers `(batch, ...)`, one-hot, or the
            share of each class (judged by the largest; their NLL is the cross-entropy).
            Positions that Keras masks, or of weight 0, are not judged; the others
            count by their weight.
        name: str; by default the model's.
        teacher: anything that may teach, to count the agreement with; or `None`.
        from_logits: bool, whether the model gives logits; `None` (default) finds out.
        timing: whether to measure latency and throughput, about two seconds.

    Returns:
        `Evaluation`.

    Raises:
        TypeError: if the dataset is neither.
        ValueError: if the dataset is empty, endless or brings no labels, labels are no
            classes of the model, weights are negative or not finite, or the model answers
            NaN or infinity.

    Example:
    >>> from keras_distill import datasets, models
    >>> data = datasets.load("digits")
    >>> model = models.mlp(data.input_shape, data.classes, (16,))
    >>> evaluate(model, data.test, timing=False).examples
    540
    """
    dataset = as_labelled(dataset, "evaluation dataset", 64)
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a str, got {name!r}.")
    timing = check_bool("timing", timing)
    judged = _judge(model, from_logits)
    judges = [judged] if teacher is None else [judged, _judge(teacher, None)]
    parts: list[_Judged] = []
    # One pass: an iterator left unfinished can cut short a dataset's cache.
    for batch in dataset:
        if not len(keras.tree.flatten(batch[0])[0]):
            continue
        if not parts:
            first = batch[0]
            answers = [_compiled(one, first, dataset.element_spec[0]) for one in judges]
        figures, classes = _judge_batch(batch, *answers)
        parts.append(figures)
    if not parts:
        raise ValueError("the evaluation dataset is empty; check how it was split.")
    found = _Judged(*map(np.concatenate, zip(*parts, strict=True)))
    if not found.weight.sum() > 0:
        raise ValueError("all sample weights are 0, so there is nothing to judge.")
    if bad := int(np.isnan(found.confidence).sum()):
        raise ValueError(
            f"the model{f' {name!r}' if name else ''} answers NaN or infinity for {bad} of "
            f"{len(found.weight)} labels; look at its weights, and for NaN in the inputs."
        )
    weight = found.weight / found.weight.sum()
    _, accuracy, confidence, share = binned(found.confidence, found.correct, 15, weight)
    keras_model = judged.model
    return Evaluation(
        name=name or (keras_model.name if keras_model is not None else "model"),
        examples=len(weight),
        parameters=None if keras_model is None else keras_model.count_params(),
        file_bytes=None if keras_model is None else _file_bytes(keras_model),
        accuracy=float(weight @ found.correct),
        top5_accuracy=float(weight @ found.in_top5) if classes > 10 else None,
        nll=float(weight @ found.nll),
        calibration_error=float(share @ np.abs(accuracy - confidence)),
        teacher_agreement=None if teacher is None else float(weight @ found.agreed),
        **(_timings(answers[0], first) if timing else {}),
    )


class _Judged(NamedTuple):
    """Figures of each label that counts; its confidence is NaN where the model's answer is."""

    weight: np.ndarray
    correct: np.ndarray
    in_top5: np.ndarray
    nll: np.ndarray
    confidence: np.ndarray
    agreed: np.ndarray


def _judge_batch(
    batch: tuple, answer: Any, teach: Callable | None = None
) -> tuple[_Judged, int]:
    """Returns the figures of a batch, and how many classes there are."""
    x, y, *rest = batch
    logits, mask = answer(x)
    z = logits.numpy()
    classes = z.shape[-1]
    if classes < 2:
        raise ValueError(
            f"evaluate judges models of at least 2 classes, got outputs of shape {z.shape}."
        )
    weight = weights_of(rest[0] if rest else None, z.shape[:-1])
    if mask is not None:
        weight = weight * mask.numpy()
    counts = weight > 0
    right, shares = classes_of(y, z.shape, counts)
    agreed = np.zeros(counts.shape, bool)
    if teach is not None:
        teacher_logits = teach(x)[0].numpy()
        if teacher_logits.shape != z.shape:
            raise ValueError(
                f"the model's outputs have shape {z.shape} and the teacher's "
                f"{teacher_logits.shape}; only models of the same classes can agree."
            )
        total = np.logaddexp.reduce(teacher_logits[counts].astype("float64"), axis=-1)
        if not np.isfinite(total).all():
            raise ValueError(
                "the teacher answers NaN or infinity, so there is nothing to agree with."
            )
        agreed = teacher_logits.argmax(-1) == z.argmax(-1)
    z = z[counts].astype("float64")
    with np.errstate(invalid="ignore"):  # infinity - infinity: NaN, counted later
        log_p = z - np.logaddexp.reduce(z, axis=-1, keepdims=True)
    at_right = np.take_along_axis(log_p, right[:, None], -1)[:, 0]
    if shares is not None:  # a class of no share counts nothing, also at -infinity
        at_right = np.where(shares > 0, shares * log_p, 0.0).sum(-1)
    best = np.argpartition(z, -min(5, classes), axis=-1)[:, -5:]
    found = _Judged(
        weight=weight[counts],
        correct=z.argmax(-1) == right,
        in_top5=(best == right[:, None]).any(-1),
        nll=-at_right,
        confidence=np.exp(log_p.max(-1)),
        agreed=agreed[counts],
    )
    return found, classes


def compare(
    models: Mapping[str, Any],
    dataset: Any,
    *,
    teacher: Any = None,
    timing: bool = True,
    verbose: bool = True,
) -> Comparison:
    """Judges several models on one dataset, side by side.

    Args:
        models: what `evaluate` takes, by the name to print.
        dataset: as for `evaluate`.
        teacher: as for `evaluate`.
        timing: as for `evaluate`.
        verbose: whether to show a progress bar.

    Returns:
        `Comparison`, which prints as a table and saves as JSON or Markdown.

    Raises:
        TypeError: if the models are no dict.
        ValueError: if there are none, or as `evaluate` says.
    """
    if not isinstance(models, Mapping):
        raise TypeError(
            f"models must be a dict of models by name, got {type(models).__name__}."
        )
    if not models:
        raise ValueError("there are no models to compare; give a dict of at least one.")
    check_names("the names of the models", list(models))
    dataset = as_labelled(dataset, "evaluation dataset", 64)
    verbose = check_verbose(verbose)
    shown = progress.each(models.items(), "judging", "model", len(models), verbose)
    one = functools.partial(evaluate, dataset=dataset, teacher=teacher, timing=timing)
    return Comparison(tuple(one(model, name=name) for name, model in shown))


def _judge(model: Any, from_logits: bool | None) -> Teacher:
    model = model.student if isinstance(model, Distiller) else model
    return as_teacher(model, from_logits)


def _compiled(teacher: Teacher, first: Any, spec: Any) -> Callable[[Any], Any]:
    teacher.look_at(first)

    # One trace for every batch size.
    @tf.function(input_signature=[specs_of(spec, 1, None)])
    def logits_and_mask(x: Any) -> Any:
        answer = teacher(x, 1.0)
        if has_several(answer.logits):
            return answer.logits, None
        return tf.cast(answer.logits, tf.float32), mask_of(answer.outputs)

    if has_several(logits_and_mask.get_concrete_function().structured_outputs[0]):
        raise ValueError(
            "evaluate judges one output; give a callable that picks it, as in lambda x: "
            "model(x)['name']."
        )
    return logits_and_mask


def _file_bytes(model: keras.Model) -> int:
    with tempfile.TemporaryDirectory() as folder:
        # Keras's own files hold the optimizer's state too, which is not served.
        path = os.path.join(folder, "weights.npz")
        np.savez(path, *model.get_weights())
        return os.path.getsize(path)


def _timings(answer: Callable[[Any], Any], x: Any) -> dict[str, float]:
    """Returns p50 and p99 at batch 1, in ms, and examples per second at batch 64."""
    single = np.array(_times(answer, x, 1)) * 1e3
    return {
        "latency_p50_ms": float(np.percentile(single, 50)),
        "latency_p99_ms": float(np.percentile(single, 99)),
        "throughput": float(64 / np.median(_times(answer, x, 64))),
    }


def _times(answer: Callable[[Any], Any], x: Any, size: int) -> list[float]:
    """Returns the seconds that batches of a size take, measured for one second."""
    x = keras.tree.map_structure(
        lambda a: tf.repeat(a, -(-size // int(a.shape[0])), axis=0)[:size], x
    )
    for _ in range(5):
        answer(x)
    times: list[float] = []
    end = time.perf_counter() + 1.0
    while time.perf_counter() < end and len(times) < 1000:
        start = time.perf_counter()
        answer(x)[0].numpy()
        times.append(time.perf_counter() - start)
    return times
