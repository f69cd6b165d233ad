"""A job: all that a process needs in order to write any shard of a store."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill import user_functions
from keras_distill.keras_compat import traced_quietly
from keras_distill.logits_or_probabilities import NotToldApartError, is_settled
from keras_distill.run_directory import examples_fingerprint, teacher_fingerprint
from keras_distill.soft_targets import shards, sources, views
from keras_distill.soft_targets.rows import TRIED_BETAS, Rows, laid_out
from keras_distill.soft_targets.settings import (
    VERSION,
    Settings,
    directory,
    read_settings,
)
from keras_distill.structures import by_output
from keras_distill.teacher import Teacher, nan_by_example, nan_in_inputs
from keras_distill.teachers import as_teacher

#: The largest error in the probability of all classes that `top_k` leaves out.
_REST_ERROR = 0.01
#: Bytes of a shard, where its size is not given.
_SHARD_BYTES = 16_000_000


@dataclasses.dataclass(repr=False)
class Job:
    """All that a process needs in order to write any shard; can be pickled.

    Attributes:
        path: of the store.
        settings: the store's, as far as they are known.
        teacher: as the user gave it.
        from_logits: whether it gives logits, as the user said.
        average: of a list of teachers.
        data: as the user gave it.
        batched: whether a dataset's elements are batches.
        augment: makes the views; `None` for none.
        output_kinds: of the teacher's outputs, as the user said, or as they are known.
    """

    path: str
    settings: Settings
    teacher: Any
    from_logits: Any
    average: str
    data: Any
    batched: bool | None
    augment: Callable | None
    output_kinds: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    # Made once in every process.

    @functools.cached_property
    def bound(self) -> Teacher:
        """The teacher."""
        bound = as_teacher(
            self.teacher,
            self.from_logits,
            self.average,
            output_kinds=self.output_kinds,
        )
        return bound.matching(self.settings.layers)

    @functools.cached_property
    def source(self) -> sources.Source:
        """The data."""
        return sources.Source(self.data, self.batched, self.bound.input_shapes)

    @functools.cached_property
    def next_rows(self) -> Callable[[Any], tuple]:
        """What `_next_rows` is, compiled."""
        self.look()
        return traced_quietly(self._next_rows, reduce_retracing=True)

    @property
    def rows(self) -> Rows:
        """The layout."""
        return Rows(self.settings)

    def settle(self) -> None:
        """Finds out what the settings do not say yet, before anything is written.

        Raises:
            ValueError: if teacher, data and settings do not go together.
        """
        self._settle_logits()
        s = self._laid_out()
        self.batched = self.source.batched
        self.output_kinds = self.bound.kinds  # for other processes
        teacher = teacher_fingerprint(self.teacher)
        if teacher["kind"] == "list":
            teacher["average"] = self.bound.average  # type: ignore[attr-defined]
        specs = tf.nest.flatten(self.source.specs)
        fitting = min(16_384, _SHARD_BYTES // s.row_bytes) // s.batch_size
        self.settings = dataclasses.replace(
            s,
            teacher=teacher,
            from_logits=_settled(self.bound),
            inputs=[[list(one.shape[1:]), one.dtype.name] for one in specs],
            examples=self.source.length,
            shard_size=s.shard_size or max(1, fitting) * s.batch_size,
        )

    def _settle_logits(self) -> None:
        """Finds out whether an unknown teacher gives logits, from the first batch."""
        if not self._averages_probabilities:  # it would mean nothing
            self.settings = dataclasses.replace(self.settings, temperature=None)
        if self.keeps_members:
            self._check_members()
        members = getattr(self.bound, "members", [self.bound])
        is_known = all(is_settled(member.from_logits) for member in members)
        self.look()
        if is_known:
            return
        found = [member.from_logits for member in members]
        if any(one != found[0] for one in found):
            raise ValueError(
                "some teachers give logits and some probabilities, and they do not say which; "
                "wrap each with keras_distill.as_teacher(teacher, from_logits=...)."
            )
        self.from_logits = found[0]  # for other processes

    def look(self) -> None:
        """Has the teacher answer the first batch, if only that tells what it answers."""
        if self.bound.is_known:
            return
        size = self.settings.batch_size
        inputs = next(iter(self.source.batches(0, 1, size, size)))
        if self.augment is not None:
            seed = self.settings.seed
            inputs = views.augmented(self.augment, inputs, seed, 0, np.int64(0))
        with self._said_of(inputs):
            self.bound.look_at(inputs, is_strict=True)
            self.bound(inputs, 1.0)

    @property
    def keeps_members(self) -> bool:
        """Whether each teacher's logits are cached, to be averaged at any temperature."""
        averages = self._averages_probabilities
        return averages and self.settings.temperature is None

    @property
    def _averages_probabilities(self) -> bool:
        """Whether the mean of several teachers depends on the temperature."""
        kinds = [kind for _, kind in by_output(self.bound.kinds)]
        return self.bound.averages_probabilities and set(kinds) != {"values"}

    def _check_members(self) -> None:
        members = self.bound.members  # type: ignore[attr-defined]
        either = 'pass teacher_average="logits"; or temperature=, the one T to train students at.'
        if self.settings.top_k is not None:
            raise ValueError(
                "top_k cannot be cached for several teachers whose probabilities are "
                f"averaged at any temperature; leave it out, or {either}"
            )
        self.settings = dataclasses.replace(
            self.settings, members=len(members), format_version=VERSION
        )

    def _laid_out(self) -> Settings:
        seen = self.source.specs
        if self.augment is not None:
            seen = sources.specs_of(views.output_specs(self.augment, seen), 0, None)
        with self._said_of(seen):
            traced = tf.function(self._answer).get_concrete_function(seen)
        logits, layers = traced.structured_outputs
        known = dict(by_output(self.output_kinds))
        keys = [key for key, _ in by_output(logits)]
        if known and None not in known and (unknown := [*known.keys() - set(keys)]):
            raise ValueError(
                f"output_kinds names the output {unknown[0]!r}, which the teacher does not "
                f"have; its outputs are {', '.join(map(repr, keys))}."
            )
        is_mean = self._averages_probabilities and not self.keeps_members
        return laid_out(self.settings, logits, layers, self.bound.kinds, is_mean)

    @contextlib.contextmanager
    def _said_of(self, inputs: Any) -> Iterator[None]:
        """Says of what a teacher raises what it was given, and what may be wrong."""
        try:
            yield
        except NotToldApartError:
            raise
        except Exception as error:  # whatever a function of the user's raises
            shapes = ", ".join(str(s.shape) for s in tf.nest.flatten(inputs))
            hint = "give it the data that it was made for"
            if self.batched is None and self.bound.input_shapes is None:
                hint = "pass batched=False if they are single examples, not batches"
            # Autograph tells the way to the error before what it says.
            said = re.split(r"\w+Error: ", str(error))[-1]
            said = " ".join(said.split())[:300].rstrip(". ")
            raise ValueError(
                f"the {self.bound.description} does not take batches of shape {shapes}; "
                f"{hint}. It said: {said}."
            ) from error

    def _answer(self, inputs: Any) -> Any:
        layers: dict[str, Any] = {}
        temperature = tf.constant(self.settings.temperature or 1.0)
        if self.keeps_members:
            logits = self.bound.by_member(inputs, temperature)  # type: ignore[attr-defined]
        else:
            _, logits, layers = self.bound(inputs, temperature)
        return list(logits) if isinstance(logits, tuple) else logits, layers

    def _next_rows(self, iterator: Any) -> tuple:
        """Returns rows of the next batch, which have NaN, are finite, errors; all are good.

        The iterator is read in the graph, which spares Python a call for every part.
        """
        inputs, fingerprint, augmented = next(iterator)
        logits, layers = self._answer(inputs)
        parts = [*(part for _, part in by_output(logits)), *layers.values()]
        known = [
            tf.reduce_all(tf.math.is_finite(p), range(1, p.shape.rank)) for p in parts
        ]
        finite = tf.reduce_all(tf.stack(known), 0)
        encoded, errors = self.rows.encode(fingerprint, augmented, logits, layers)
        has_nan = nan_by_example(self.bound.inputs_of(inputs))
        if self.bound.accepts_nan:
            has_nan = tf.zeros_like(has_nan)
        good = tf.reduce_all(finite & ~has_nan)
        good &= tf.reduce_max(errors) <= _REST_ERROR
        return encoded, has_nan, finite, errors, good

    def batches(self, view: int, first: int, count: int | None) -> tf.data.Dataset:
        """Returns batches of what the teacher sees, and the fingerprints."""
        s, augment = self.settings, self.augment

        @tf.autograph.experimental.do_not_convert
        def prepared(index: Any, inputs: Any) -> tuple:
            fingerprint = examples_fingerprint(inputs)
            if augment is None:
                return inputs, fingerprint, fingerprint
            inputs = views.augmented(augment, inputs, s.seed, view, index)
            return inputs, fingerprint, examples_fingerprint(inputs)

        @tf.autograph.experimental.do_not_convert
        def with_index(index: Any, inputs: Any) -> tuple:
            size = tf.shape(tf.nest.flatten(inputs)[0], tf.int64)[0]
            return index + size, (index, inputs)

        return (
            self.source.batches(first, count, s.batch_size, s.shard_size)
            .scan(tf.constant(first, tf.int64), with_index)
            .map(prepared, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .prefetch(tf.data.AUTOTUNE)
        )

    def write_piece(
        self, piece: list[tuple[int, int]], told: Callable[[int], Any] = lambda _: None
    ) -> None:
        """Writes those shards of a piece that are not there, in whatever process.

        Args:
            piece: view and number of each shard, ascending.
            told: called with the number of examples, after each batch.
        """
        missing = sorted(set(piece) - shards.existing(self.path))
        for view, first, count in _consecutive(missing):
            self.write(view, first, count, told)

    @user_functions.plain_errors()
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

        Raises:
            ValueError: if an answer is not finite, or spreads too widely for `top_k`.
        """
        size = self.settings.shard_size
        done, waiting, buffered = 0, [], 0
        batches = iter(self.batches(view, shard * size, count))
        while True:
            try:
                encoded, has_nan, finite, errors, good = self.next_rows(batches)
            except tf.errors.OutOfRangeError:
                break
            except (
                tf.errors.InvalidArgumentError,
                tf.errors.FailedPreconditionError,
            ) as error:
                if said := re.search(
                    "Input dataset was expected .*elements?", str(error)
                ):
                    raise ValueError(
                        "the data does not have the number of examples or batches that was "
                        f"said by assert_cardinality: {said[0]}."
                    ) from error
                if not re.search("Cannot (batch tensors|add tensor)", str(error)):
                    raise
                raise ValueError(
                    "the examples differ in shape, so they do not batch; pad or resize "
                    "them to one shape."
                ) from error
            if not good.numpy():
                first = shard * size + buffered
                if finite.numpy().all() and has_nan.numpy().any():
                    number = first + int(np.argmax(has_nan))
                    raise ValueError(
                        nan_in_inputs(f"for example {number} (view {view})")
                    )
                self._refuse(view, first, finite.numpy(), errors.numpy())
            waiting.append(encoded.numpy())
            buffered += len(waiting[-1])
            done += len(waiting[-1])
            if buffered == size:
                self._write_shard(view, shard, waiting)
                waiting, buffered, shard = [], 0, shard + 1
            told(encoded.shape[0])
        if waiting:
            self._write_shard(view, shard, waiting)
        return done

    def _write_shard(self, view: int, shard: int, parts: list[np.ndarray]) -> None:
        """Writes a shard, if the store is still the one that this job is for.

        A worker may outlive the process that started it, and that process's lock.
        """
        folder = directory(self.path)
        found = read_settings(folder)
        if found is None or folder.differences(found, self.settings.compared(found)):
            raise OSError(
                f"{self.path!r} has been given to soft targets of another kind meanwhile; "
                "this writer stops."
            )
        shards.write(folder, view, shard, np.concatenate(parts))

    def _refuse(
        self, view: int, first: int, finite: np.ndarray, errors: np.ndarray
    ) -> None:
        """Says which answer cannot be cached, and why."""
        if not finite.all():
            raise ValueError(
                f"the teacher's answer for example {first + int(np.argmin(finite))} (view "
                f"{view}) is not finite (NaN or infinity); check its inputs and weights."
            )
        example, output, tried = np.unravel_index(errors.argmax(), errors.shape)
        key, k = self.settings.outputs[output], self.settings.top_k
        name = "" if key is None else f" of output {key!r}"
        raise ValueError(
            f"the teacher's logits{name} for example {first + example} (view {view}) spread "
            f"too widely for top_k={k}: at T = {1 / TRIED_BETAS[tried]:.1f} the probability "
            f"of all other classes would be wrong by {errors.max():.3f}. Leave top_k out, "
            "enlarge it, or have the teacher clip its logits to within 30 of the largest."
        )


def _consecutive(missing: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yields view, first shard and count of each run of consecutive shards."""
    start = 0
    for i in range(1, len(missing) + 1):
        view, shard = missing[i - 1]
        if i == len(missing) or missing[i] != (view, shard + 1):
            yield view, missing[start][1], i - start
            start = i


def _settled(bound: Any) -> Any:
    """Returns whether a teacher's outputs are logits, as a value of the manifest."""
    members = getattr(bound, "members", None)
    if members is not None:
        return [_settled(member) for member in members]
    given = bound.from_logits
    return {str(k): v for k, v in given.items()} if isinstance(given, dict) else given
