"""Joining kept soft targets to their data, each example checked by its fingerprint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from keras_distill.distillation_inputs import DistillationInputs
from keras_distill.soft_targets import fingerprints, shards, sources, views
from keras_distill.soft_targets.rows import Rows

_MARK = "soft targets and data do not go together: "
_DAMAGED = "corrupted record"


@dataclasses.dataclass(frozen=True)
class Kept:
    """What joining needs to know of a store.

    Attributes:
        path: of the store.
        rows: layout.
        examples: how many.
        shards: number of shards of each view.
        views: how many.
        augment: makes the views; `None` for none.
        seed: of the views.
        inputs: specs of one example's inputs, flat.
    """

    path: str
    rows: Rows
    examples: int
    shards: int
    views: int
    augment: Callable | None
    seed: int
    inputs: list[tf.TensorSpec]


def join(
    kept: Kept, dataset: tf.data.Dataset, epoch: int | None, batched: bool | None
) -> tf.data.Dataset:
    """Returns the dataset with soft targets; see `SoftTargets.join`."""
    spec = dataset.element_spec
    sources.dense(spec)
    if batched is None:
        ranks = sorted(len(one.shape) + 1 for one in kept.inputs)
        batched = sources.is_batched(sources.inputs_of(spec), ranks)
    cardinality = int(dataset.cardinality())
    if cardinality == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "the dataset is endless; join soft targets before repeat():"
            " targets.join(data).repeat()."
        )
    _check_cardinality(kept, cardinality, spec, batched)
    blocks = dataset if batched else dataset.batch(sources.block_size(kept.inputs))
    if kept.views == 1 or epoch is not None:
        joined = _one_pass(
            kept, blocks, tf.constant((epoch or 0) % kept.views, tf.int64)
        )
    else:
        start = tf.data.Dataset.from_tensors(0)
        joined = start.flat_map(
            lambda _: _one_pass(kept, blocks, views.of_epoch(kept.views))
        )
    if not batched:
        joined = joined.unbatch()
    if cardinality >= 0:
        joined = joined.apply(tf.data.experimental.assert_cardinality(cardinality))
    options = tf.data.Options()
    # By file would give a worker the files of other examples than its data's.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return joined.with_options(options)


def _check_cardinality(kept: Kept, cardinality: int, spec: Any, batched: bool) -> None:
    """Refuses, before any reading, data of another length where it can be known."""
    if cardinality < 0:
        return
    size = tf.nest.flatten(spec)[0].shape[0] if batched else 1
    if size is None:
        return
    missing = kept.examples - cardinality * size
    # Batches of one size may have dropped the remainder.
    if missing < 0 or missing >= max(size, 1):
        raise ValueError(
            f"{_MARK}the data has {cardinality * size} examples, the soft targets in "
            f"{kept.path} are for {kept.examples}. {_ADVICE}"
        )


_ADVICE = (
    "Give the data that they were written for, whole and in the same order: join before "
    "shuffle, take, skip, filter and repeat, and do those afterwards. If the data or its "
    "preparation has changed, write them anew."
)


def _one_pass(kept: Kept, blocks: tf.data.Dataset, view: tf.Tensor) -> tf.data.Dataset:
    """Returns one pass over batches, with the soft targets of a view.

    Shards are read whole, one after the other, as the batches come to need them.
    """
    spec, count = blocks.element_spec, int(blocks.cardinality())
    if count < 0:
        # An empty batch at the end, to notice that data ends too early.
        end = tf.data.Dataset.from_tensors(tf.nest.map_structure(_empty, spec))
        blocks = blocks.concatenate(end)
    prefix = os.path.join(kept.path, "view-")

    def file(shard: Any) -> Any:
        view_text = tf.strings.as_string(view, width=3, fill="0")
        shard_text = tf.strings.as_string(shard, width=5, fill="0")
        return tf.strings.join([prefix, view_text, "-shard-", shard_text, ".tfrecord"])

    def take_rows(state: Any, batch: Any) -> Any:
        number, first, buffer, start, shard = state
        size = tf.shape(tf.nest.flatten(batch)[0], tf.int64)[0]

        def lacks_rows(buffer: Any, start: Any, shard: Any) -> Any:
            end = start + tf.shape(buffer, tf.int64)[0]
            return (end < first + size) & (shard < kept.shards)

        def read_on(buffer: Any, start: Any, shard: Any) -> Any:
            more = shards.load(file(shard), kept.rows.bytes)
            return tf.concat([buffer[first - start :], more], 0), first, shard + 1

        # The loop is entered only where it is needed: most batches are in the buffer.
        buffer, start, shard = tf.cond(
            lacks_rows(buffer, start, shard),
            lambda: tf.while_loop(
                lacks_rows,
                read_on,
                (buffer, start, shard),
                (tf.TensorShape((None, kept.rows.bytes)), start.shape, shard.shape),
            ),
            lambda: (buffer, start, shard),
        )
        rows = buffer[first - start : first - start + size]
        is_last = number == count - 1 if count >= 0 else size == 0
        fixed = tf.nest.flatten(spec)[0].shape[0] or 1
        with tf.control_dependencies(
            [
                _require(
                    tf.shape(rows, tf.int64)[0] == size,
                    f"the data has more than the {kept.examples} examples of {kept.path}. ",
                ),
                _require(
                    ~is_last | (first + size > kept.examples - fixed),
                    f"the data ends after #n# examples, {kept.path} has "
                    f"{kept.examples}. ",
                    first + size,
                ),
            ]
        ):
            rows = tf.identity(rows)
        rows.set_shape((tf.nest.flatten(spec)[0].shape[0], kept.rows.bytes))
        state = number + 1, first + size, buffer, start, shard
        return state, (batch, rows, first)

    zero = tf.zeros((), tf.int64)
    nothing = tf.zeros((0, kept.rows.bytes), tf.uint8)
    rows = blocks.scan((zero, zero, nothing, zero, zero), take_rows)
    if count < 0:
        rows = rows.filter(lambda batch, rows, first: tf.shape(rows)[0] > 0)
    return rows.map(
        lambda batch, rows, first: _checked(kept, batch, rows, first, view),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _checked(kept: Kept, batch: Any, rows: Any, first: Any, view: Any) -> tuple:
    """Returns a batch with its soft targets, after comparing fingerprints."""
    inputs = sources.inputs_of(batch)
    written, written_augmented = kept.rows.fingerprints(rows)
    checks = [
        _require_equal(
            fingerprints.of_examples(inputs),
            written,
            first,
            f"example #n# of the data is not the one that {kept.path} has the "
            "teacher's answer for. ",
        )
    ]
    if kept.augment is not None:
        inputs = views.augmented(kept.augment, inputs, kept.seed, view, first)
        checks.append(
            _require_equal(
                fingerprints.of_examples(inputs),
                written_augmented,
                first,
                "example #n# is the one that was written, but augment() makes another "
                "view of it than the teacher saw; it has changed, or does not draw all "
                "its randomness from the seed. ",
            )
        )
    with tf.control_dependencies(checks):
        rows = tf.identity(rows)
    with_targets = DistillationInputs(inputs, *kept.rows.decode(rows))
    rest = batch[1:] if isinstance(batch, tuple) else ()
    return (with_targets, *rest)


def _require_equal(found: Any, written: Any, first: Any, message: str) -> tf.Operation:
    same = tf.reduce_all(found == written, -1)
    index = first + tf.argmin(tf.cast(same, tf.int32))
    return _require(tf.reduce_all(same), message, index)


def _require(condition: Any, message: str, number: Any = 0) -> tf.Operation:
    """Fails with a message if a condition does not hold, "#n#" being the number."""

    def complain() -> tf.Tensor:
        text = tf.strings.regex_replace(
            f"{_MARK}{message}{_ADVICE}", "#n#", tf.strings.as_string(number)
        )
        with tf.control_dependencies([tf.debugging.Assert(False, [text])]):
            return tf.constant(False)

    return tf.cond(condition, lambda: tf.constant(True), complain).op


def _empty(spec: tf.TensorSpec) -> tf.Tensor:
    return tf.zeros([0, *(axis or 0 for axis in spec.shape[1:])], spec.dtype)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turns what a joined dataset says from inside a graph into a plain `ValueError`."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
        text = str(error)
        if _MARK in text:
            end = text.index(_ADVICE) + len(_ADVICE)
            raise ValueError(text[text.index(_MARK) : end]) from error
        if _DAMAGED in text or "truncated record" in text:
            raise ValueError(
                "a record of the kept soft targets is damaged: its checksum does not "
                "hold. SoftTargets.open(path).verify() says which file."
            ) from error
        raise
