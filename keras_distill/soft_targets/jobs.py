"""A job: all that a process needs in order to write any shard of a store."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill.outputs import by_output
from keras_distill.soft_targets import fingerprints, manifest, shards, sources, views
from keras_distill.soft_targets.rows import Rows, rest_error
from keras_distill.teachers import as_teacher

#: The largest error in the probability of all classes that `top_k` leaves out.
_REST_ERROR = 0.01


@dataclasses.dataclass(repr=False)
class Job:
    """All that a process needs in order to write any shard; can be pickled.

    Attributes:
        path: of the store.
        teacher: as the user gave it.
        data: as the user gave it.
        batched: whether a dataset's elements are batches.
        augment: makes the views; `None` for none.
        options: the rest, by name.
        settings: what the store's own settings must be while it is written.
    """

    path: str
    teacher: Any
    data: Any
    batched: bool | None
    augment: Callable | None
    options: dict[str, Any]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def start(self) -> None:
        """Binds teacher and data; once in every process."""
        o = self.options
        self.bound = as_teacher(self.teacher, o["from_logits"], o["average"])
        self.bound.match_layers(o["layers"])
        self.source = sources.Source(self.data, self.batched, self.bound)
        self.rows = self._layout()
        self.next_rows = tf.function(self._next_rows, reduce_retracing=True)

    def __getstate__(self) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(self)]
        return {name: self.__dict__[name] for name in names}

    def _seen(self) -> Any:
        """Returns the specs of what the teacher sees, batch first."""
        specs = self.source.specs
        if self.augment is None:
            return specs
        return tf.nest.map_structure(
            lambda s: tf.TensorSpec((None, *s.shape), s.dtype),
            views.output_specs(self.augment, specs),
        )

    def _layout(self) -> Rows:
        try:
            traced = tf.function(self._answer).get_concrete_function(self._seen())
        except (TypeError, ValueError) as error:
            shapes = ", ".join(str(s.shape) for s in tf.nest.flatten(self._seen()))
            hint = "give it the data that it was made for"
            if self.batched is None and self.bound.input_ranks is None:
                hint = (
                    "the dataset's elements were taken for batches, pass batched=False "
                    "if they are single examples"
                )
            raise ValueError(
                f"the {self.bound.description} does not take batches of shape {shapes}; "
                f"{hint}."
            ) from error
        logits, layers = traced.structured_outputs
        return Rows.for_answer(
            logits,
            layers,
            self.options["dtype"],
            self.options["top_k"],
            self.augment is not None,
        )

    def _answer(self, inputs: Any) -> Any:
        temperature = tf.constant(self.options["temperature"] or 1.0)
        answer = self.bound(inputs, temperature)
        logits = answer.logits
        return list(logits) if isinstance(logits, tuple) else logits, answer.layers

    def _next_rows(self, iterator: Any) -> tuple:
        """Returns the rows of the next batch, which of its answers are finite, logits.

        The iterator is read in the graph, which spares Python a call for every part.
        """
        inputs, fingerprint, augmented = next(iterator)
        logits, layers = self._answer(inputs)
        finite = [
            tf.reduce_all(tf.math.is_finite(part), range(1, part.shape.rank))
            for part in [*(part for _, part in by_output(logits)), *layers.values()]
        ]
        rows = self.rows.encode(fingerprint, augmented, logits, layers)
        finite = tf.reduce_all(tf.stack(finite), 0)
        return rows, finite, tf.reduce_all(finite), logits

    def batches(self, view: int, first: int, count: int | None) -> tf.data.Dataset:
        """Returns batches of what the teacher sees, and the fingerprints."""
        seed, augment = self.options["seed"], self.augment

        @tf.autograph.experimental.do_not_convert
        def prepared(index: Any, inputs: Any) -> tuple:
            fingerprint = fingerprints.of_examples(inputs)
            if augment is None:
                return inputs, fingerprint, fingerprint
            inputs = views.augmented(augment, inputs, seed, view, index)
            return inputs, fingerprint, fingerprints.of_examples(inputs)

        @tf.autograph.experimental.do_not_convert
        def with_index(index: Any, inputs: Any) -> tuple:
            size = tf.shape(tf.nest.flatten(inputs)[0], tf.int64)[0]
            return index + size, (index, inputs)

        o = self.options
        return (
            self.source.batches(first, count, o["batch_size"], o["shard_size"])
            .scan(tf.constant(first, tf.int64), with_index)
            .map(prepared, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .prefetch(tf.data.AUTOTUNE)
        )

    def write(
        self, view: int, shard: int, count: int | None, told: Callable[[int], Any]
    ) -> int:
        """Writes consecutive shards of a view.

        Args:
            view: int.
            shard: the first.
            count: how many; `None` for all that the data has.
            told: called with the number of examples, after each batch.

        Returns:
            The number of examples.
        """
        size = self.options["shard_size"]
        done, rows, buffered = 0, [], 0
        batches = iter(self.batches(view, shard * size, count))
        while True:
            with _readable_errors():
                try:
                    part, finite, all_finite, logits = self.next_rows(batches)
                except tf.errors.OutOfRangeError:
                    break
            if not all_finite.numpy():
                bad = shard * size + buffered + int(np.argmin(finite))
                raise ValueError(
                    f"the teacher's answer for example {bad} (view {view}) is not finite "
                    "(NaN or infinity); check its inputs and weights."
                )
            if not done:
                self._check_rest(logits)
            rows.append(part.numpy())
            buffered += len(rows[-1])
            done += len(rows[-1])
            if buffered == size:
                self._write_shard(view, shard, rows)
                rows, buffered, shard = [], 0, shard + 1
            told(part.shape[0])
        if rows:
            self._write_shard(view, shard, rows)
        return done

    def _write_shard(self, view: int, shard: int, rows: list[np.ndarray]) -> None:
        """Writes a shard, if the store is still the one that this job is for.

        A worker may outlive the process that started it, and that process's lock.
        """
        now = manifest.read(self.path, manifest.SETTINGS)
        if now is None or manifest.differences(now, self.settings):
            raise OSError(
                f"{self.path!r} has been given to soft targets of another kind meanwhile; "
                "this writer stops."
            )
        shards.write(self.path, view, shard, np.concatenate(rows))

    def _check_rest(self, logits: Any) -> None:
        """Refuses logits whose rest is not well said by its mass at a few temperatures."""
        k = self.options["top_k"]
        if k is None:
            return
        for key, output in by_output(logits):
            if k == output.shape[-1]:
                continue
            error, temperature = rest_error(tf.cast(output, tf.float32), k)
            if error > _REST_ERROR:
                name = "" if key is None else f" of output {key!r}"
                raise ValueError(
                    f"the teacher's logits{name} spread too widely for top_k={k}: at "
                    f"T = {temperature} the probability of all other classes would be "
                    f"wrong by {error:.3f}. Leave top_k out, choose a larger one, or have "
                    "the teacher clip its logits to within about 30 of the largest."
                )


@contextlib.contextmanager
def _readable_errors() -> Iterator[None]:
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if "Cannot batch tensors" in str(error) or "Cannot add tensor" in str(error):
            raise ValueError(
                "the examples differ in shape, so they do not batch; pad or resize them "
                "to one shape."
            ) from error
        raise
