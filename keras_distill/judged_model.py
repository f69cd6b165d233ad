"""A model that is judged: what its outputs are, and which labels are theirs."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np

from keras_distill.arguments import MOST, check_int, check_output_kinds
from keras_distill.distiller import Distiller
from keras_distill.labels import in_numbers, weights_of
from keras_distill.last_layers import kind_of_loss
from keras_distill.logits_or_probabilities import kind_of_other
from keras_distill.outputs import agreed_kinds, losses_by_key, settled_kinds
from keras_distill.structures import answer_for, has_several, keyed, keys_of
from keras_distill.tallies import TALLIES, Tally
from keras_distill.teacher import Teacher
from keras_distill.teachers import as_teacher


class JudgedModel:
    """A model that is judged; a first batch says what its outputs are.

    Args:
        model: a `keras.Model`, a `Distiller`, or anything that may teach.
        from_logits: as for `evaluate`.
        output_kinds: as for `evaluate`.
        ignore_class: as for `evaluate`.
        ignored_by_others: label that is left out where neither `ignore_class` nor the loss
            says it; `None` for none.
    """

    def __init__(
        self,
        model: Any,
        from_logits: Any = None,
        output_kinds: Any = None,
        ignore_class: Any = None,
        ignored_by_others: int | None = None,
    ) -> None:
        self.said = check_output_kinds("output_kinds", output_kinds)
        self.ignored = _check_ignored("ignore_class", ignore_class)
        self.ignored_by_others = ignored_by_others
        self.loss = getattr(model, "loss", None)
        model = model.student if isinstance(model, Distiller) else model
        self.judge = as_teacher(model, from_logits, output_kinds=self.said)
        if self.judge is not model:
            for one in getattr(self.judge, "members", [self.judge]):
                one.called = ("model", "from_logits")
        self.keys: list = []
        self._names: list[str] = []

    def name_of(self, key: Any) -> str:
        """Returns the name of an output: its key in a dict, its layer's in a list."""
        names = dict(zip(self.keys, self._names, strict=False))
        return key if isinstance(key, str) else str(names.get(key, key))

    def by_key(self, y: Any, weight: Any = None) -> tuple[dict, dict]:
        """Returns labels and sample weights of each output; `None` for none.

        Raises:
            ValueError: if there is one array for several outputs.
        """
        if len(self.keys) > 1 and not has_several(y):
            names = [self.name_of(key) for key in self.keys]
            raise ValueError(
                f"the model has the outputs {', '.join(map(repr, names))}; give labels for "
                f"each, as in {{{names[0]!r}: ..., {names[1]!r}: ...}}, or a callable that "
                "picks one output, as in lambda x: model(x)['name']."
            )
        return (
            keyed(y, self.keys, self._names, "the labels"),
            keyed(weight, self.keys, self._names, "the sample weights"),
        )

    def tallies(
        self, x: Any, y: Any, weight: Any = None, teach: Teacher | None = None
    ) -> dict[Any, Tally]:
        """Returns a tally for each output that has labels, by its key.

        Args:
            x: of a first batch.
            y: labels of it.
            weight: sample weights of it.
            teach: the teacher, or `None`.

        Raises:
            ValueError: if last layer, loss, labels and teacher contradict each other.
        """
        shapes = _shapes(self.judge, x)
        self.keys = list(shapes)
        names = keys_of(self.judge.model)[1]
        self._names = names if len(names) == len(self.keys) else []
        labels, weights = self.by_key(y, weight)
        shapes = {key: shapes[key] for key in shapes if labels[key] is not None}
        if not shapes:
            raise ValueError(
                "the evaluation dataset brings no labels; it must yield (x, y)."
            )
        kinds = self._kinds(shapes, teach, {} if teach is None else _shapes(teach, x))
        ignored = self._ignored_by_key()
        seen: dict[Any, Any] = {}
        rows: dict[Any, tuple] = {}
        for key in shapes:
            rows[key] = (None, *shapes[key][-1:]) if shapes[key][1:] else (None,)
            counted = _that_count(labels[key], shapes[key], weights[key], ignored[key])
            seen[key] = counted
        found = settled_kinds(kinds, rows, self.judge.model, seen, "of evaluate")
        self.judge.look_at(x, None, found, shapes)
        if teach is not None:
            teach.look_at(x, None, found, shapes)
        tallies = {}
        for key in shapes:
            kind = answer_for(found, key)
            where = f" of output {self.name_of(key)!r}" if len(self.keys) > 1 else ""
            left_out = None if kind == "values" else ignored[key]
            tallies[key] = TALLIES[kind](where, left_out)
        said = {} if self.ignored is None else ignored
        values = [key for key, tally in tallies.items() if tally.kind == "values"]
        is_for_all = not isinstance(self.ignored, dict)
        if any(said.get(key) is not None for key in values) and (
            len(values) == len(tallies) or not is_for_all
        ):
            raise ValueError(
                "ignore_class is of labels that are classes, and the model's output is of "
                "values; give the examples without a label a sample weight of 0."
            )
        return tallies

    def _kinds(self, shapes: dict, teach: Teacher | None, theirs: dict) -> dict:
        """Returns what layers, losses and the teacher say each output is, or `None`."""
        losses = losses_by_key(self.judge.model, self.loss)
        said = keyed(self.said, self.keys, self._names, "output_kinds")
        kinds: dict[Any, str | None] = {}
        taught = {key: counterpart(theirs, key, len(self.keys)) for key in shapes}
        for key, shape in shapes.items():
            of_loss = kind_of_loss(losses.get(key, losses.get(None)))
            kind = answer_for(self.judge.kinds, key)
            is_open = said[key] is None and (kind, of_loss) == ("sigmoid", "values")
            # A value between 0 and 1, or the probability of a yes: the labels say.
            kinds[key] = None if is_open else kind or of_loss
            if teach is not None and taught[key] and not (is_open or kinds[key]):
                other = answer_for(teach.kinds, key)
                kinds[key] = kind_of_other(other, taught[key], shape)
        if teach is None:
            return kinds
        both = [key for key in shapes if taught[key]]
        if not both:
            ours = ", ".join(repr(self.name_of(key)) for key in shapes)
            raise ValueError(
                f"the teacher has none of the model's outputs {ours}, so there is nothing to "
                "agree with; give a teacher with outputs of these names."
            )
        agreed_kinds(kinds, teach.kinds, "the teacher's are", both)
        return kinds

    def _ignored_by_key(self) -> dict:
        if self.ignored is not None:
            return keyed(self.ignored, self.keys, self._names, "ignore_class")
        losses = losses_by_key(self.judge.model, self.loss)
        found = {
            key: _ignored_by(losses.get(key, losses.get(None))) for key in self.keys
        }
        if all(one is None for one in found.values()):
            return dict.fromkeys(self.keys, self.ignored_by_others)
        return found


def ignored_by_loss(model: Any) -> set[int]:
    """Returns the labels that the losses leave out which a model was compiled with."""
    losses = keras.tree.flatten(getattr(model, "loss", None))
    return {one for one in map(_ignored_by, losses) if one is not None}


def _ignored_by(loss: Any) -> int | None:
    given = loss.keywords if isinstance(loss, functools.partial) else {}
    return given.get("ignore_class", getattr(loss, "ignore_class", None))


def _check_ignored(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _check_ignored(f"{name}[{key!r}]", value[key]) for key in value}
    return None if value is None else check_int(name, value, -MOST)


def _shapes(judge: Teacher, x: Any) -> dict[Any, tuple]:
    """Returns the shape of each output, seen on a batch where nothing else says it."""
    if judge.shapes:
        return judge.shapes
    return getattr(judge, "members", [judge])[0].shapes_on(x)


def counterpart(theirs: dict, key: Any, count: int) -> Any:
    """Returns what a teacher has for one of our outputs; its only one for our only one."""
    if count == len(theirs) == 1:
        return next(iter(theirs.values()))
    return theirs.get(key)


def _that_count(y: Any, shape: tuple, weight: Any, ignored: int | None) -> Any:
    """Returns the labels that count of a batch, one a row, to tell the kind by."""
    y = in_numbers(y)
    if y.dtype.kind not in "iufb":
        raise ValueError(
            f"labels must be numbers, got dtype {y.dtype}; map class names to integers from "
            "0 on."
        )
    is_by_number = y.ndim == len(shape) and y.shape[-1:] == shape[-1:]
    leading = y.shape[:-1] if is_by_number or y.shape[-1:] == (1,) else y.shape
    rows = y.reshape(-1, y.shape[-1]) if is_by_number else y.reshape(-1)
    if weight is not None and leading:
        rows = rows[np.ravel(weights_of(weight, leading)) > 0]
    if ignored is not None:
        is_left_out = rows == ignored
        rows = rows[~(is_left_out.any(-1) if is_by_number else is_left_out)]
    return rows
