"""What an export answers for each output, by the kind of the output."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_distill.arguments import check_each, check_float, check_names
from keras_distill.distiller import Distiller
from keras_distill.keras_compat import logits_of
from keras_distill.logits_or_probabilities import to_logits
from keras_distill.outputs import kinds_of, settled_kinds
from keras_distill.structures import answer_for, by_key, keyed, keys_of

#: The likelier of yes and no.
DEFAULT_THRESHOLD = 0.5


class Answer(NamedTuple):
    """How one output is served.

    Attributes:
        kind: of the output.
        class_names: as far as they were given.
        threshold: float32 `()`, or `(K,)`, of each question; for a "sigmoid" alone.
    """

    kind: str
    class_names: list[str] | None
    threshold: np.ndarray | None

    def __call__(self, output: Any, from_logits: bool) -> dict[str, tf.Tensor]:
        """Returns what is served, by name.

        Args:
            output: of the model, `(batch, ..., K)`.
            from_logits: whether it is logits.
        """
        logits = tf.cast(to_logits(output, from_logits, self.kind), tf.float32)
        if self.kind == "values":
            return {"values": logits}
        names = self.class_names and tf.constant(self.class_names)
        if self.kind == "softmax":
            label = tf.argmax(logits, -1)
            label = label if names is None else tf.gather(names, label)
            probabilities = tf.nn.softmax(logits)
        else:
            # What the model itself gives is at the threshold where it says so.
            is_own = not from_logits and logits_of(output) is output
            probabilities = (
                tf.cast(output, tf.float32) if is_own else tf.sigmoid(logits)
            )
            label = self._label(probabilities, names)
        return {"logits": logits, "probabilities": probabilities, "label": label}

    def _label(self, probabilities: Any, names: Any) -> Any:
        is_yes = probabilities >= tf.constant(self.threshold)
        if not is_one_question(probabilities.shape):
            label = tf.cast(is_yes, tf.int64)
            if names is None:
                return label
            # No choice between strings: some runtimes can only look them up.
            numbers = tf.range(1, len(self.class_names or ()) + 1, dtype=tf.int64)
            return tf.gather(tf.concat([[""], names], 0), label * numbers)
        label = tf.cast(is_yes if is_yes.shape.rank == 1 else is_yes[..., 0], tf.int64)
        return label if names is None else tf.gather(names, label)

    def is_tie(self, probabilities: np.ndarray, tolerance: float) -> np.ndarray:
        """Tells of each label whether rounding alone may turn it.

        Args:
            probabilities: as served.
            tolerance: of a probability.
        """
        if self.threshold is None:
            return np.ptp(np.sort(probabilities, -1)[..., -2:], -1) <= tolerance
        is_near = np.abs(probabilities - self.threshold) <= tolerance
        one = is_one_question(is_near.shape) and is_near.ndim > 1
        return is_near[..., 0] if one else is_near


def known_kinds(model: keras.Model, distiller: Distiller | None, said: Any) -> Any:
    """Returns the kinds of a model's outputs, as far as something says them.

    Args:
        model: to serve.
        distiller: that it is the student of, if it was given.
        said: by the user.
    """
    if distiller is None:
        return kinds_of(model, said=said)
    said, found = by_key(said, model, "output_kinds"), distiller.output_kinds
    parts = [one for one in (said, found) if isinstance(one, dict)]
    keys = set().union(keys_of(model)[0], *parts)
    both = {key: answer_for(said, key) or answer_for(found, key) for key in keys}
    return kinds_of(model, said=both if len(both) > 1 else both.popitem()[1])


def served_kinds(
    kinds: Any, shapes: dict[Any, tuple], model: keras.Model, exporter: str
) -> Any:
    """Returns a kind for each output; a warning says which is taken for granted.

    Args:
        kinds: as far as they are known.
        shapes: of the outputs, by key.
        model: whose outputs they are.
        exporter: the name of the public function, for the error.

    Raises:
        ValueError: if nothing says what a single number is.
    """
    settled = settled_kinds(kinds, shapes, model, None, f"of {exporter}")
    for key, shape in shapes.items():
        if answer_for(kinds, key) is None and answer_for(settled, key) == "softmax":
            where = "" if key is None else f" {key!r}"
            warnings.warn(
                f"nothing says whether the {shape[-1]} numbers of the model's output{where} "
                "are classes that exclude each other or yes/no questions; they are served as "
                'a softmax. Pass output_kinds="softmax", "sigmoid" or "values" to settle it.',
                UserWarning,
                stacklevel=4,
            )
    return settled


def is_one_question(shape: Any) -> bool:
    """Tells a yes/no `(batch, ..., 1)` or `(batch,)` from several, by the output's shape."""
    return len(shape) < 2 or shape[-1] == 1


def check_threshold(name: str, value: Any) -> Any:
    """Returns a threshold as a float, a list of floats, or a dict of these by output.

    Raises:
        ValueError: if one is not between 0 and 1.
    """
    if isinstance(value, dict):
        return {key: check_threshold(f"{name}[{key!r}]", value[key]) for key in value}
    if isinstance(value, (list, tuple)) or np.ndim(value):
        return check_each(name, value, check_threshold, "numbers", 1)
    return check_float(
        name,
        value,
        "a number between 0 and 1",
        lambda number: bool(0.0 < np.float32(number) < 1.0),
        "A question is answered by yes where its probability is at least that.",
    )


def check_class_names(name: str, value: Any) -> Any:
    """Returns names as a list of str, or a dict of such lists by output.

    Raises:
        ValueError: if they are neither, or a name has a line break in it.
    """
    if isinstance(value, dict) and not all(
        isinstance(one, str) for one in [*value.values()]
    ):
        return {key: check_class_names(f"{name}[{key!r}]", value[key]) for key in value}
    if value is None:
        return None
    names = check_names(name, value)
    for one in names:
        # Which is where a file of them, one a line, is split.
        if one.splitlines() not in ([one], []):
            raise ValueError(
                f"{name} has {one!r}, which has a line break in it; names are written one a "
                "line, so take it out."
            )
    return names


def answers_of(
    kinds: Any,
    shapes: dict[Any, tuple],
    names: Sequence[str],
    class_names: Any,
    threshold: Any,
) -> dict[Any, Answer]:
    """Returns how each output is served, by its key.

    Args:
        kinds: of the outputs.
        shapes: of the outputs, by key.
        names: of the outputs, in the same order, where they have names.
        class_names: as checked, for all outputs or by output name.
        threshold: as checked, for all outputs or by output name.

    Raises:
        ValueError: if names or thresholds do not fit an output, or it cannot be served.
    """
    by_name, thresholds = (
        keyed(given, list(shapes), names, what)
        if isinstance(given, dict)
        else dict.fromkeys(shapes, given)
        for given, what in ((class_names, "class_names"), (threshold, "threshold"))
    )
    is_for_one = isinstance(threshold, dict)
    is_asked = any(answer_for(kinds, key) == "sigmoid" for key in shapes)
    if not is_asked and not is_for_one and threshold != DEFAULT_THRESHOLD:
        raise _no_questions(threshold, kinds, "")
    found = {}
    for key, shape in shapes.items():
        kind, where = answer_for(kinds, key), "" if key is None else f" {key!r}"
        limit = thresholds[key]
        if kind != "sigmoid" and is_for_one and limit is not None:
            raise _no_questions(limit, kind, where)
        _check_output(kind, shape, by_name[key], where)
        if kind == "sigmoid":
            limit = _for_questions(
                DEFAULT_THRESHOLD if limit is None else limit, shape, where
            )
        found[key] = Answer(kind, by_name[key], limit if kind == "sigmoid" else None)
    return found


def _no_questions(threshold: Any, kinds: Any, where: str) -> ValueError:
    return ValueError(
        f"threshold is {threshold}, but the output{where} has no yes/no question: it is of "
        f'kind {kinds!r}. Leave it out, or say output_kinds="sigmoid".'
    )


def _for_questions(threshold: Any, shape: tuple, where: str) -> np.ndarray:
    questions = 1 if is_one_question(shape) else shape[-1]
    if np.ndim(threshold) and len(threshold) != questions:
        raise ValueError(
            f"threshold has {len(threshold)} numbers, but the output{where} answers "
            f"{questions} question(s); give one number for each, or one for all."
        )
    return np.asarray(threshold, "float32")


def _check_output(kind: str, shape: tuple, names: list[str] | None, where: str) -> None:
    if kind == "softmax" and is_one_question(shape):
        raise ValueError(
            f"the model has 1 class{where and f' in its output{where}'}: a softmax over it "
            "is always 1. Build it with one output per class, or with a sigmoid for a yes "
            "or no."
        )
    if names is None:
        return
    if kind == "values":
        raise ValueError(
            f"class_names are given, but the output{where} has values, which have no "
            "classes; leave them out, or give a dict of them by output name."
        )
    if kind == "sigmoid" and is_one_question(shape):
        if len(names) != 2:
            raise ValueError(
                f"class_names has {len(names)} names, but the output{where} answers one "
                "yes/no question; give two names, that of a no and that of a yes."
            )
        return
    if len(names) != shape[-1]:
        raise ValueError(
            f"class_names has {len(names)} names, but the model has {shape[-1]} "
            f"classes{where and f' in its output{where}'}; give one name per class."
        )
