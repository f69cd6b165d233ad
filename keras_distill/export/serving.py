"""The function that every export serves, whatever its format."""

from __future__ import annotations

import dataclasses
import keyword
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill.arguments import (
    check_from_logits,
    check_model,
    check_output_kinds,
)
from keras_distill.distiller import Distiller
from keras_distill.export import check
from keras_distill.export.answers import (
    Answer,
    answers_of,
    check_class_names,
    check_threshold,
    known_kinds,
    served_kinds,
)
from keras_distill.export.check import TOLERANCE
from keras_distill.export.images import EncodedInputs, check_serving_bytes
from keras_distill.export.inputs import Inputs
from keras_distill.keras_compat import own_variables
from keras_distill.logits_or_probabilities import is_settled, said_or_found, settle
from keras_distill.outputs import shapes_of
from keras_distill.structures import answer_for, by_output, keys_of


@dataclasses.dataclass(frozen=True)
class Serving:
    """What is served: raw inputs by name in, answers by name out.

    Attributes:
        model: that answers.
        preprocess: from raw inputs to what the model takes; `None` for nothing.
        inputs: the raw inputs.
        answers: how each output is served, by its key.
        from_logits: whether the model gives logits, or a dict of bools by output.
        function: the `tf.function` that is served, traced for `inputs.specs`.
        batch: tensors by the name of the input, for the check.
        expected: arrays by name, what an export must answer for the batch.
    """

    model: keras.Model
    preprocess: Callable | None
    inputs: Inputs
    answers: dict[Any, Answer]
    from_logits: Any
    function: Callable
    batch: dict[str, tf.Tensor]
    expected: dict[str, np.ndarray]

    @classmethod
    def of(
        cls,
        model: Any,
        *,
        class_names: Sequence[str] | dict[str, Sequence[str]] | None,
        preprocess: Callable[[Any], Any] | None,
        input_signature: Any,
        example: Any,
        from_logits: Any,
        output_kinds: Any,
        threshold: Any,
        exporter: str,
        serving_bytes: Any = None,
    ) -> Serving:
        """Returns what the arguments of an export say, checked; see `export_savedmodel`.

        `exporter` is the name of the public function, for the errors.
        """
        distiller = model if isinstance(model, Distiller) else None
        if isinstance(model, Distiller):
            model = model.student
        advice = "An image preprocessor can be exported with it: preprocess=..."
        check_model("model", model, advice)
        _check_keeps_no_state(model)
        from_logits = check_from_logits("from_logits", from_logits)
        output_kinds = check_output_kinds("output_kinds", output_kinds)
        threshold = check_threshold("threshold", threshold)
        class_names = check_class_names("class_names", class_names)
        images = check_serving_bytes("serving_bytes", serving_bytes)
        if preprocess is not None and not callable(preprocess):
            raise TypeError(
                f"preprocess must be a function or layer, got {preprocess!r}."
            )
        inputs = Inputs.of(model, input_signature, preprocess is not None)
        _check_input_names(inputs.specs)
        if images is not None:
            inputs = EncodedInputs.over(inputs, images)
        batch = check.example_batch(inputs.specs, inputs.by_name(example))
        inputs.check(model, batch, preprocess)
        from_logits = said_or_found(from_logits, model, None)
        kinds, shapes = known_kinds(model, distiller, output_kinds), shapes_of(model)
        outputs = None
        if not (shapes and is_settled(from_logits)):
            outputs = inputs.call(model, batch, preprocess)
            shapes = {key: tuple(part.shape) for key, part in by_output(outputs)}
        kinds = served_kinds(kinds, shapes, model, exporter)
        from_logits = settle(outputs, from_logits, "model", "from_logits", kinds)
        answers = answers_of(kinds, shapes, keys_of(model)[1], class_names, threshold)
        function = _function(model, preprocess, answers, from_logits, inputs, batch)
        expected = check.expected_answer(function, batch, ties_of(answers))
        return cls(
            model, preprocess, inputs, answers, from_logits, function, batch, expected
        )

    def retraced(self) -> Serving:
        """Returns the same, of a function traced anew: layers may do it in another way."""
        function = _function(
            self.model,
            self.preprocess,
            self.answers,
            self.from_logits,
            self.inputs,
            self.batch,
        )
        return dataclasses.replace(self, function=function)

    def check(
        self, answer: dict[str, np.ndarray], when: str, tolerance: float = TOLERANCE
    ) -> None:
        """Refuses an answer for the batch that is not the expected one.

        Args:
            answer: arrays by name.
            when: it was asked, for the error.
            tolerance: relative and absolute.

        Raises:
            RuntimeError: naming what differs.
        """
        ties = ties_of(self.answers)
        check.check_same(self.expected, answer, when, ties, tolerance)

    def asked(self, batch: dict[str, tf.Tensor], what: str) -> Serving:
        """Returns the same with another batch for the check.

        Args:
            batch: tensors by the name of the input.
            what: it is, for the error.

        Raises:
            ValueError: if the model's answers are not finite.
        """
        expected = check.expected_answer(
            self.function, batch, ties_of(self.answers), what
        )
        return dataclasses.replace(self, batch=batch, expected=expected)

    @property
    def traced(self) -> Callable:
        """The function as it was traced, whatever the layers are told since."""
        function: Any = self.function
        return function.get_concrete_function(**self.inputs.specs)

    @property
    def fixed_batch(self) -> int | None:
        """The size of batch that the signature fixes, or `None`."""
        specs = self.inputs.specs.values()
        sizes = [spec.shape[0] for spec in specs if spec.shape.rank]
        return next((size for size in sizes if size), None)

    def check_sizes(
        self, ask: Callable[[list], list], when: str, tolerance: float, **given: Any
    ) -> None:
        """Refuses other answers than the function's in batches of 1 and 3, or the fixed one.

        Args:
            ask: returns the answers for several batches.
            when: as for `check`.
            tolerance: as for `check_same`.
            **given: `of_range` and `advice` of `check_same`.

        Raises:
            RuntimeError: naming what differs.
        """
        ties, batches = ties_of(self.answers), [self.batch]
        if self.fixed_batch is None:
            batches = [check.first_examples(self.batch, count) for count in (1, 3)]
        for batch, answer in zip(batches, ask(batches), strict=True):
            expected = check.expected_answer(self.traced, batch, ties)
            check.check_same(expected, answer, when, ties, tolerance, **given)

    def write(self, path: str) -> None:
        """Writes a SavedModel whose signature `serving_default` is the function.

        Raises:
            OSError: if it cannot be written.
            ValueError: if `preprocess` holds what the export cannot see.
        """
        archive = keras.export.ExportArchive()
        archive.track(self.model)
        if isinstance(self.preprocess, keras.layers.Layer):
            archive.track(self.preprocess)
        archive.add_endpoint("serve", self.function)
        try:
            archive.write_out(path, verbose=False)
        except AssertionError as error:
            raise ValueError(
                "preprocess uses a layer or a lookup table that the export cannot see; "
                "pass the Keras layer itself, or a keras.Sequential of layers."
            ) from error
        except tf.errors.OpError as error:
            raise OSError(
                f"the export could not be written to {path!r}: {error.message}."
            ) from error


def prefix(key: Any) -> str:
    """Returns what precedes the names of an output's answers."""
    return "" if key is None else f"{key}_"


def ties_of(answers: dict[Any, Answer]) -> dict[str, Callable]:
    """Returns by the name of each label what tells where rounding may turn it."""
    return {prefix(key) + "label": one.is_tie for key, one in answers.items()}


def _check_keeps_no_state(model: keras.Model) -> None:
    kept = [one.name for one, _ in own_variables(model) if getattr(one, "stateful", 0)]
    if kept:
        raise ValueError(
            f"the layer {kept[0]!r} is stateful: it goes on where the last batch ended, and "
            "whoever asks an export is not the one who asked before; build the model with "
            "stateful=False and take over its weights by set_weights(get_weights())."
        )


def _check_input_names(specs: dict[str, tf.TensorSpec]) -> None:
    for name, spec in specs.items():
        if name.isidentifier() and not keyword.iskeyword(name):
            continue
        other = re.sub(r"\W", "_", name)
        other = other if other.isidentifier() else f"input_{other}"
        other = f"{other}_" if keyword.iskeyword(other) else other
        said = (
            f"tf.TensorSpec({list(spec.shape)}, tf.{spec.dtype.name}, name={other!r})"
        )
        several = "a list of a tf.TensorSpec of each input, of which one is "
        raise ValueError(
            f"the input {name!r} cannot be asked by a name that is no Python argument; call "
            f"it {other!r} by input_signature={several if len(specs) > 1 else ''}{said}."
        )


def _function(
    model: keras.Model,
    preprocess: Callable | None,
    answers: dict[Any, Answer],
    from_logits: Any,
    inputs: Inputs,
    batch: dict[str, Any],
) -> Callable:
    def serve(**named: Any) -> dict[str, Any]:
        outputs = inputs.call(model, named, preprocess)
        return {
            prefix(key) + name: tensor
            for key, output in by_output(outputs)
            for name, tensor in answers[key](
                output, answer_for(from_logits, key)
            ).items()
        }

    function = tf.function(serve)
    try:
        function.get_concrete_function(**inputs.specs)
    except Exception:
        serve(**batch)  # says the same without the traceback of a graph, if it says it
        raise
    return function
