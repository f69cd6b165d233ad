"""An honest evaluation: what a model knows, how sure it is, and what it costs."""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import progress, user_functions
from keras_distill.arguments import check_bool, check_names, check_verbose
from keras_distill.distiller import Distiller
from keras_distill.exported import Exported, size_on_disk
from keras_distill.figures import Comparison, Evaluation
from keras_distill.judged_model import JudgedModel, counterpart, ignored_by_loss
from keras_distill.keras_compat import mask_of, traced_quietly
from keras_distill.labels import as_labelled
from keras_distill.latency import Timed, timings
from keras_distill.soft_targets.sources import specs_of
from keras_distill.structures import by_output
from keras_distill.tallies import Tally
from keras_distill.teacher import Teacher
from keras_distill.teachers import as_teacher


def evaluate(
    model: Any,
    dataset: Any,
    *,
    name: str | None = None,
    teacher: Any = None,
    from_logits: Any = None,
    output_kinds: Any = None,
    ignore_class: Any = None,
    timing: bool = True,
) -> Evaluation:
    """Judges one model on one dataset.

    What an output is, and with it the figures, its last layer, the loss that the model (or
    its `Distiller`) was compiled with, the teacher and the labels say, in this order.

    Args:
        model: a `keras.Model`, a `Distiller` (its student is judged), or anything else
            that may teach: a list, a callable, or a path, also of an export: a SavedModel
            version, a `.tflite` or an `.onnx` file, each run by its own runtime. One with
            several inputs takes them by its own names.
        dataset: finite `tf.data.Dataset` of `(x, y)` or `(x, y, sample_weight)`
            batches, or a tuple of such arrays. For classes that exclude each other y are
            integers `(batch, ...)`, one-hot, or the share of each class (judged by the
            largest; their NLL is the cross-entropy); for yes/no questions 0 and 1, bools or
            the probability of a yes, and for values numbers, both in the shape of the
            outputs, whose last axis may be left out if it is 1. For several outputs a dict
            by output name, or a list of them in their order; outputs that are left out are
            not judged. Maps of classes `(batch, height, width, K)` are judged at the
            resolution of their labels, to which logits (also the teacher's) are resized,
            bilinear. Positions that Keras masks, or of weight 0, are not judged; the
            others count by their weight.
        name: str; by default the model's.
        teacher: anything that may teach, to count the agreement with; or `None`. It may
            answer a yes or no by two classes, and the reverse.
        from_logits: bool, whether the model gives logits, or a dict of these by output name;
            `None` (default) finds out.
        output_kinds: what the numbers describe: "softmax", "sigmoid" or "values", or a dict of
            these by output name; `None` (default) finds out.
        ignore_class: int, the label of classes or yes/no questions that is left out, or a
            dict of these by output name; `None` (default) takes that of the loss which the
            model, or its `Distiller`, was compiled with.
        timing: whether to measure latency and throughput, some ten seconds: by one thread,
            of Keras models and SavedModels in a fresh process. On a GPU, and of a callable,
            they are measured in this process, by as many threads as it has.

    Returns:
        `Evaluation`; of a model with several outputs with one for each in `outputs`.

    Raises:
        TypeError: if the dataset is neither.
        ValueError: if the dataset is empty, endless or brings no labels, labels are not what
            the output is, weights are negative or not finite, the model answers NaN or
            infinity, or last layer, loss and labels contradict each other.

    Example:
    >>> from keras_distill import datasets, models
    >>> data = datasets.load("digits")
    >>> model = models.mlp(data.input_shape, data.classes, (16,))
    >>> evaluate(model, data.test, timing=False).examples
    540
    """
    timing = check_bool("timing", timing)
    judged = _evaluated(
        model, dataset, name, teacher, from_logits, output_kinds, ignore_class
    )
    return _with_timings([judged], timing, False)[0]


@user_functions.plain_errors()
def _evaluated(
    model: Any,
    dataset: Any,
    name: str | None,
    teacher: Any,
    from_logits: Any,
    output_kinds: Any,
    ignore_class: Any,
    ignored_by_others: int | None = None,
) -> tuple[Evaluation, Timed]:
    dataset = as_labelled(dataset, "evaluation dataset", 64)
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a str, got {name!r}.")
    subject = JudgedModel(
        model, from_logits, output_kinds, ignore_class, ignored_by_others
    )
    judge = subject.judge
    if isinstance(teacher, Distiller):
        teacher = teacher.student
    teach = None if teacher is None else as_teacher(teacher)
    tallies: dict[Any, Tally] = {}
    # One pass: an iterator left unfinished can cut short a dataset's cache.
    for x, y, *rest in dataset:
        if not len(keras.tree.flatten(x)[0]):
            continue
        weight = rest[0] if rest else None
        if not tallies:
            tallies = subject.tallies(x, y, weight, teach)
            first, spec = x, dataset.element_spec[0]
            answer = Answering(judge, spec)
            teaching = None if teach is None else Answering(teach, spec)
        labels, weights = subject.by_key(y, weight)
        found = answer(x)
        theirs = {} if teaching is None else teaching(x)
        for key, tally in tallies.items():
            z, mask = found[key]
            taught, _ = counterpart(theirs, key, len(found)) or (None, None)
            tally.add(z, labels[key], weights[key], mask, taught)
    if not tallies:
        raise ValueError("the evaluation dataset is empty; check how it was split.")
    for tally in tallies.values():
        tally.check(name)
    model = judge.model
    export = judge.exported
    whole = Evaluation(
        name=name or (model.name if model is not None else "model"),
        examples=sum(tally.examples for tally in tallies.values()),
        parameters=None if model is None else model.count_params(),
        file_bytes=_size(judge),
        runtime="Keras" if model is not None else getattr(export, "runtime", None),
    )
    timed = answer.timed(first)
    if len(found) == 1:
        (only,) = tallies.values()
        return dataclasses.replace(whole, kind=only.kind, **only.figures()), timed
    each = tuple(
        dataclasses.replace(
            whole,
            name=f"{whole.name} / {subject.name_of(key)}",
            output=subject.name_of(key),
            examples=tally.examples,
            kind=tally.kind,
            **tally.figures(),
        )
        for key, tally in tallies.items()
    )
    return dataclasses.replace(whole, outputs=each), timed


def _with_timings(
    judged: list[tuple[Evaluation, Timed]], timing: bool, verbose: bool
) -> list[Evaluation]:
    """Returns evaluations, with latency and throughput if they are to be measured."""
    evaluations = [evaluation for evaluation, _ in judged]
    if not timing:
        return evaluations
    with progress.bar("timing", "model", len(judged), verbose):
        measured = timings([timed for _, timed in judged])
    return [
        _replaced(evaluation, figures)
        for evaluation, figures in zip(evaluations, measured, strict=True)
    ]


def _replaced(evaluation: Evaluation, figures: dict[str, Any]) -> Evaluation:
    outputs = tuple(_replaced(one, figures) for one in evaluation.outputs)
    return dataclasses.replace(evaluation, outputs=outputs, **figures)


def compare(
    models: Mapping[str, Any],
    dataset: Any,
    *,
    teacher: Any = None,
    output_kinds: Any = None,
    ignore_class: Any = None,
    timing: bool = True,
    verbose: bool = True,
) -> Comparison:
    """Judges several models on one dataset, side by side.

    Args:
        models: what `evaluate` takes, by the name to print.
        dataset: as for `evaluate`.
        teacher: as for `evaluate`.
        output_kinds: as for `evaluate`, of all models.
        ignore_class: as for `evaluate`, of all models; `None` (default) takes that of a model's
            own loss, or else of the others'.
        timing: as for `evaluate`.
        verbose: whether to show a progress bar. Default `True`.

    Returns:
        `Comparison`, which prints as a table and saves as JSON or Markdown; a model with
        several outputs has a row for each, "model / output".

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
    verbose, timing = check_verbose(verbose), check_bool("timing", timing)
    shown = progress.each(models.items(), "judging", "model", len(models), verbose)
    # What one was trained to leave out is no label for the others either.
    ignored = {one for model in models.values() for one in ignored_by_loss(model)}
    one = functools.partial(
        _evaluated,
        dataset=dataset,
        teacher=teacher,
        from_logits=None,
        output_kinds=output_kinds,
        ignore_class=ignore_class,
        ignored_by_others=ignored.pop() if len(ignored) == 1 else None,
    )
    judged = [one(model, name=name) for name, model in shown]
    return Comparison(tuple(_with_timings(judged, timing, verbose)))


class Answering:
    """Takes a batch and gives logits and Keras mask of each output, by key."""

    def __init__(self, judge: Teacher, spec: Any) -> None:
        self._judge, self._keys = judge, []  # type: Teacher, list
        #: What a batch is computed by; `None` for a file, which needs no graph of TensorFlow's.
        self.function: Any = None
        if not isinstance(judge.exported, Exported):
            # One trace for every batch size.
            self.function = traced_quietly(
                self._logits_and_masks, input_signature=[specs_of(spec, 1, None)]
            )

    def __call__(self, x: Any) -> dict:
        """Returns logits and mask, or `None`, of a batch's inputs by the output's key."""
        if self.function is None:
            return {key: (z, None) for key, z in by_output(self._judge(x, 1.0).logits)}
        return dict(zip(self._keys, self.function(x), strict=True))

    def _logits_and_masks(self, x: Any) -> Any:
        answer = self._judge(x, 1.0)
        outputs, logits = (
            dict(by_output(answer.outputs)),
            dict(by_output(answer.logits)),
        )
        self._keys[:] = logits
        return [
            (
                z if z.dtype == tf.float64 else tf.cast(z, tf.float32),
                mask_of(outputs[key]),
            )
            for key, z in logits.items()
        ]

    def timed(self, x: Any) -> Timed:
        """Returns what times it on a batch."""
        export = self._judge.exported
        if isinstance(export, Exported):
            return Timed(export.run, export.by_name(x))

        def answer(x: Any) -> None:
            for part in tf.nest.flatten(self.function(x)):
                if part is not None:  # no mask
                    part.numpy()

        members = getattr(self._judge, "members", [self._judge])
        held = [
            one.model
            if one.exported is None
            else getattr(one.exported, "loaded", None)  # other runtimes hold it
            for one in members
        ]
        is_whole = all(one is not None for one in held)
        return Timed(answer, x, self.function, held if is_whole else None)


def _size(judge: Teacher) -> int | None:
    if judge.exported is not None:
        return size_on_disk(judge.exported.path)
    return None if judge.model is None else _file_bytes(judge.model)


def _file_bytes(model: keras.Model) -> int:
    with tempfile.TemporaryDirectory() as folder:
        # Keras's own files hold the optimizer's state too, which is not served.
        path = os.path.join(folder, "weights.npz")
        np.savez(path, *model.get_weights())
        return os.path.getsize(path)
