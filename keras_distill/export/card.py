"""Model cards: what was distilled from what, and how, beside every export."""

from __future__ import annotations

import inspect
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill.arguments import check_scalar, check_str, shown
from keras_distill.datasets import Data
from keras_distill.distiller import Distiller
from keras_distill.export.card_facts import (
    cell,
    check_evaluation,
    check_latency,
    check_loss,
    check_seeds,
    described,
    known,
    merged,
    of_distiller,
    of_search,
    of_teacher,
    table,
    weights_of,
)
from keras_distill.export.serving import Serving
from keras_distill.figures import Comparison, Evaluation
from keras_distill.run_directory import teacher_fingerprint

FORMAT, VERSION = "keras_distill model card", 1
#: What the card of a version is called; that of a file has the file's name before ".card".
NAME = "model_card"


class ModelCard:
    """What is known of a model, written beside its export as Markdown and as JSON.

    The exporter adds what it sees itself: fingerprints of the model's architecture and
    weights, its size, inputs and outputs, and the versions of packages. What is not known is
    left out.

    Args:
        source: what trained the model: a `Distiller`, of which the card has the teacher's
            fingerprints, temperature, alpha, losses, optimizer, steps and epochs as they are
            now, so after training; or a `SearchResult`, of which it has also the objective,
            the score and the values of the best trial, and its seeds. `None` (default) where
            nothing is said but the following, which goes before what the source says.
        teacher: anything that may teach, or the `SoftTargets` of it, for its fingerprints; or
            a dict of what is known.
        temperature: T, a float > 0, or a schedule.
        alpha: weight of the hard loss, from 0 to 1, or a schedule.
        loss: the hard loss: a name, or what `compile` takes.
        distillation_loss: a name, or what `Distiller` takes.
        data: name of the training data, or `keras_distill.datasets.Data`.
        data_version: str; by default that of `Data`.
        seeds: int, or a list of int.
        evaluation: a `Comparison`, with teacher and baseline, say; or an `Evaluation`.
        latency: dict of numbers or str, by what was measured, as in
            `{"p50, ms": 1.3, "device": "Pixel 8"}`. Those of an evaluation are in its table.
        notes: str, as Markdown.

    Raises:
        TypeError: if the source, the teacher or the evaluation is of another kind.
        ValueError: if another argument is of another kind or out of range.

    Attributes:
        facts: what is known, as JSON has it.

    Example:
    >>> print(ModelCard(temperature=4.0, alpha=0.1, data="MNIST", data_version="3.0.1"))
    # Model card
    <BLANKLINE>
    ## Distillation
    <BLANKLINE>
    | | |
    |---|---|
    | temperature | 4 |
    | alpha | 0.1 |
    <BLANKLINE>
    ## Data
    <BLANKLINE>
    | | |
    |---|---|
    | name | MNIST |
    | version | 3.0.1 |
    """

    def __init__(
        self,
        source: Any = None,
        /,
        *,
        teacher: Any = None,
        temperature: Any = None,
        alpha: Any = None,
        loss: Any = None,
        distillation_loss: Any = None,
        data: str | Data | None = None,
        data_version: str | None = None,
        seeds: int | Sequence[int] | None = None,
        evaluation: Comparison | Evaluation | None = None,
        latency: Mapping[str, float | str] | None = None,
        notes: str | None = None,
    ) -> None:
        name: Any = data
        if isinstance(data, Data):
            name, data_version = data.name, data_version or data.version

        def given(check: Callable, value: Any, *name: str) -> Any:
            return None if value is None else check(*name, value)

        self._student: str | None = None
        self._evaluation: Comparison | None = given(check_evaluation, evaluation)
        said = {
            "distillation": {
                "temperature": described(
                    given(check_scalar, temperature, "temperature")
                ),
                "alpha": described(given(check_scalar, alpha, "alpha")),
                "loss": given(check_loss, loss, "loss"),
                "distillation_loss": given(
                    check_loss, distillation_loss, "distillation_loss"
                ),
            },
            "data": {
                "name": given(check_str, name, "data"),
                "version": given(check_str, data_version, "data_version"),
            },
            "seeds": given(check_seeds, seeds, "seeds"),
            "latency": given(check_latency, latency, "latency"),
            "notes": given(check_str, notes, "notes"),
            "teacher": given(of_teacher, teacher),
        }
        found = {} if source is None else self._of(source)
        self.facts: dict[str, Any] = merged(found, known(said))

    def _of(self, source: Any) -> dict[str, Any]:
        if isinstance(source, Distiller):
            self._student = weights_of(source.student)
            return of_distiller(source)
        from keras_distill.tuning.result import SearchResult

        if isinstance(source, SearchResult):
            self._student = weights_of(source.student)
            return of_search(source)
        raise TypeError(
            "a card is made of a Distiller, a SearchResult or keywords, got "
            f"{shown(source)}."
        )

    def _over(self, other: ModelCard) -> ModelCard:
        """Returns a card with what another says where this one says nothing."""
        both = ModelCard()
        both.facts = merged(other.facts, self.facts)
        both._evaluation = self._evaluation or other._evaluation
        both._student = self._student or other._student
        return both

    def _check_is_of(self, model: keras.Model) -> None:
        """Refuses a card of another model, or of this one before it was trained further.

        Raises:
            ValueError: if its source's student has other weights.
        """
        if self._student is not None and self._student != weights_of(model):
            raise ValueError(
                f"card is of a student with other weights than {model.name!r} has; make it "
                "after the last training, of the Distiller or the search that trained this "
                "model, or say what is known by keywords: ModelCard(teacher=..., ...)."
            )

    def to_json(self) -> str:
        """Returns what is known as JSON."""
        return json.dumps(self._content({}), indent=1)

    def to_markdown(self) -> str:
        """Returns what is known as Markdown."""
        return self._markdown({})

    __str__ = __repr__ = to_markdown

    def _content(self, exported: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the exporter has seen, and what is known beside it."""
        judged = self._evaluation
        rows = None if judged is None else json.loads(judged.to_json())
        head = {"format": FORMAT, "format_version": VERSION}
        return known({**head, **exported, **self.facts, "evaluation": rows})

    def _markdown(self, exported: Mapping[str, Any]) -> str:
        content = self._content(exported)
        name = content.get("model", {}).get("name")
        parts = ["# Model card" + (f": {cell(name)}" if name else "")]
        order = ["model", "teacher", "distillation", "search", "data", "seeds"]
        order += ["evaluation", "latency", "export", "packages", "notes"]
        for key in (key for key in order if key in content):
            parts.append(f"## {key.capitalize()}")
            if key == "evaluation":
                assert self._evaluation is not None
                parts.append(self._evaluation.to_markdown())
            elif isinstance(content[key], dict):
                parts.append(table(content[key]))
            else:
                parts.append(content[key] if key == "notes" else cell(content[key]))
        return "\n\n".join(parts)


def card_of(card: Any, model: Any) -> ModelCard:
    """Returns the card that an exporter writes.

    Args:
        card: as given: a `ModelCard`, what one is made of, a dict of its keywords, or `None`.
        model: as given: of a `Distiller` the card is made by itself.

    Raises:
        TypeError: if it is none of these.
        ValueError: if it is of another model.
    """
    if isinstance(card, ModelCard):
        found = card
    elif isinstance(card, Mapping):
        keywords = inspect.signature(ModelCard).parameters
        if unknown := [key for key in card if key not in keywords or key == "source"]:
            raise TypeError(
                f"card has {unknown[0]!r}, which is no keyword of ModelCard."
            )
        found = ModelCard(**card)
    else:
        found = ModelCard(card)
    if not isinstance(model, Distiller):
        found._check_is_of(model)
        return found
    found._check_is_of(model.student)
    return found if found._student is not None else found._over(ModelCard(model))


def write_card(
    card: ModelCard,
    serving: Serving,
    path: str,
    form: str,
    packages: Sequence[str] = (),
) -> list[str]:
    """Writes a card as Markdown and JSON, in the folder of an export or beside its file.

    Args:
        card: of `card_of`.
        serving: what was exported.
        path: of the export, whole, but for its card. The card of a folder is
            `model_card.md` and `model_card.json` in it; that of a file `<file>.card.md` and
            `<file>.card.json`.
        form: what such an export is called, as in "SavedModel".
        packages: names on PyPI of further packages that made the export.

    Returns:
        The paths of the two files.
    """
    is_folder = tf.io.gfile.isdir(path)
    base = os.path.join(path, NAME) if is_folder else f"{path}.card"
    exported = {
        "model": {**_model(serving.model), "outputs": _outputs(serving)},
        "export": {
            "format": form,
            "bytes": _size(path),
            "inputs": {n: spec_shown(s) for n, s in serving.inputs.specs.items()},
            "outputs": {n: spec_shown(s) for n, s in _answers(serving).items()},
        },
        "packages": {
            "keras-distill": version("keras-distill"),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "numpy": np.__version__,
            **{name: version(name) for name in packages},
            "python": platform.python_version(),
        },
    }
    texts = {
        f"{base}.md": card._markdown(exported) + "\n",
        f"{base}.json": json.dumps(card._content(exported), indent=1) + "\n",
    }
    for file, text in texts.items():
        with tf.io.gfile.GFile(file, "w") as opened:
            opened.write(text)
    return list(texts)


def _model(model: keras.Model) -> dict[str, Any]:
    fingerprint = teacher_fingerprint(model)
    return {
        "name": model.name,
        "class": type(model).__name__,
        "parameters": model.count_params(),
        "architecture": fingerprint["architecture"],
        "weights": fingerprint["weights"],
    }


def _outputs(serving: Serving) -> dict[str, Any]:
    found = {}
    for key, answer in serving.answers.items():
        names, threshold = answer.class_names, answer.threshold
        found["output" if key is None else str(key)] = {
            "kind": answer.kind,
            "classes": None if names is None else len(names),
            "threshold": None if threshold is None else threshold.tolist(),
        }
    return found


def _answers(serving: Serving) -> dict[str, Any]:
    function: Any = serving.function
    return function.get_concrete_function(**serving.inputs.specs).structured_outputs


def spec_shown(spec: Any) -> str:
    """Returns dtype and shape of a spec, as in "float32 (batch, 8)"."""
    if spec.shape.rank is None:
        return f"{spec.dtype.name} of any shape"
    shape = ", ".join(
        "batch" if n is None and not i else str(n) for i, n in enumerate(spec.shape)
    )
    return f"{spec.dtype.name} ({shape})"


def read_card(path: str) -> dict[str, Any] | None:
    """Returns what the card of an export says, as JSON has it; `None` where it has none.

    Args:
        path: of a version, or of a file.

    Raises:
        ValueError: if it is damaged.
    """
    is_folder = tf.io.gfile.isdir(path)
    file = os.path.join(path, f"{NAME}.json") if is_folder else f"{path}.card.json"
    if not tf.io.gfile.exists(file):
        return None
    try:
        with tf.io.gfile.GFile(file) as opened:
            content = json.loads(opened.read())
    except ValueError as error:  # no text, or no JSON
        raise ValueError(f"the card {file!r} is damaged: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"the card {file!r} is no {FORMAT}.")
    return content


def _size(path: str) -> int:
    if not tf.io.gfile.isdir(path):
        return tf.io.gfile.stat(path).length
    return sum(
        tf.io.gfile.stat(os.path.join(folder, name)).length
        for folder, _, names in tf.io.gfile.walk(path)
        for name in names
    )
