"""A model's logits on labelled data, all that count, with their labels and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_distill.evaluation import Answering
from keras_distill.judged_model import JudgedModel
from keras_distill.labels import answers_of, as_labelled, classes_of, is_ignored
from keras_distill.structures import answer_for
from keras_distill.tallies import Tally


class LabelledLogits(NamedTuple):
    """What the model says of the validation examples that count, n of them.

    Attributes:
        kind: "softmax" or "sigmoid".
        is_logits: whether the model gives logits.
        spec: of the inputs of a batch.
        z: logits `(n, K)`; of a softmax minus infinity for a class that is masked.
        label: the class, int `(n,)`; of yes/no questions float `(n, K)`.
        shares: `(n, K)` of soft labels, which sum to 1; `None` for whole numbers or one-hot.
        weight: `(n,)`; of yes/no questions `(n, K)`, 0 for one that does not count.
    """

    kind: str
    is_logits: bool
    spec: Any
    z: np.ndarray
    label: np.ndarray
    shares: np.ndarray | None
    weight: np.ndarray


class _Examples(Tally):
    """Logits, labels and weights of all examples that count.

    Args:
        kind: "softmax" or "sigmoid".
        ignored: label that is left out; `None` for none.
        check: function of the kind and the number of outputs, which refuses what does not fit.
    """

    def __init__(self, kind: str, ignored: int | None, check: Callable) -> None:
        super().__init__("", ignored)
        self.kind = kind
        self._check = check
        self._parts: list[tuple] = []
        #: Of how many a class is masked that is right.
        self.impossible = 0

    def _add(self, z: np.ndarray, y: Any, weight: np.ndarray, teacher: Any) -> None:
        is_sigmoid, count = self.kind == "sigmoid", z.shape[-1]
        if not is_sigmoid and count < 2:
            raise ValueError(
                "a softmax of 1 class is always 1, so nothing can correct it; a yes or no is "
                'output_kinds="sigmoid".'
            )
        self._check(self.kind, count)
        weight = np.broadcast_to(weight[..., None], z.shape) if is_sigmoid else weight
        if self.ignored is not None:
            weight = weight * ~is_ignored(y, z.shape, self.ignored, is_sigmoid)
        counts = weight > 0
        rows = counts.any(-1) if is_sigmoid else counts
        shares = None
        if is_sigmoid:
            label = answers_of(y, z.shape, counts)[rows]
        else:
            label, shares = classes_of(y, z.shape, counts)
        z, weight = z[rows], weight[rows]
        if shares is not None:  # rows of float16 sum to 1 nearly
            total = shares.sum(-1)
            weight, shares = weight * total, shares / total[:, None]
        self._parts.append((z, label, shares, weight))
        self.examples += len(z)
        self.total_weight += float(weight.sum())
        can = np.isfinite(z)
        if is_sigmoid:
            self.bad += int((~can).any(-1).sum())
            return
        # A class may be masked, by a logit of minus infinity, unless it is right.
        self.bad += int((~(can | np.isneginf(z)).all(-1) | ~can.any(-1)).sum())
        if shares is None:
            self.impossible += int(np.isneginf(z[np.arange(len(z)), label]).sum())
        else:
            self.impossible += int((np.isneginf(z) & (shares > 0)).any(-1).sum())

    def whole(self) -> tuple:
        """Returns logits, labels, shares and weights of all."""
        z, label, shares, weight = zip(*self._parts, strict=True)
        soft = None if shares[0] is None else np.concatenate(shares)
        if soft is not None and (soft.max(-1) == 1).all():
            soft = None
        return np.concatenate(z), np.concatenate(label), soft, np.concatenate(weight)


def read_logits(
    model: keras.Model,
    validation: Any,
    from_logits: bool | None,
    output_kinds: str | None,
    check: Callable = lambda kind, count: None,
) -> LabelledLogits:
    """Returns what the model says of the validation data, in one pass."""
    dataset = as_labelled(validation, "validation data", 64)
    subject = JudgedModel(model, from_logits, output_kinds)
    examples: _Examples | None = None
    for x, y, *rest in dataset:
        if not len(keras.tree.flatten(x)[0]):
            continue
        weight = rest[0] if rest else None
        if examples is None:
            tallies = subject.tallies(x, y, weight)
            if len(subject.keys) > 1:
                names = ", ".join(repr(subject.name_of(key)) for key in subject.keys)
                raise ValueError(
                    f"the model has the outputs {names}; correct one of them, of a model that "
                    "has it alone, as keras.Model(model.input, model.output[...])."
                )
            ((key, tally),) = tallies.items()
            if tally.kind == "values":
                raise ValueError(
                    "the model's output is of values, which have neither biases of classes nor "
                    'a temperature; if it is of classes, say output_kinds="softmax" or '
                    '"sigmoid".'
                )
            examples = _Examples(tally.kind, tally.ignored, check)
            answer = Answering(subject.judge, dataset.element_spec[0])
        labels, weights = subject.by_key(y, weight)
        z, mask = answer(x)[key]
        examples.add(z, labels[key], weights[key], mask)
    if examples is None:
        raise ValueError("the validation data is empty; check how it was split.")
    examples.check(None)
    if examples.impossible:
        raise ValueError(
            f"the model's logit of the right class is minus infinity for {examples.impossible} "
            f"of {examples.examples} labels, which no correction can change; leave these "
            "examples out, or mask classes otherwise."
        )
    is_logits = answer_for(subject.judge.from_logits, key)
    return LabelledLogits(
        examples.kind, bool(is_logits), dataset.element_spec[0], *examples.whole()
    )
