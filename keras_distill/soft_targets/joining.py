"""Joining cached soft targets to their data, each example checked by its fingerprint."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill import keras_compat, reading, user_functions
from keras_distill.run_directory import examples_fingerprint
from keras_distill.soft_targets import digests, shards, sources, views
from keras_distill.soft_targets.distillation_inputs import inputs_of_kinds
from keras_distill.soft_targets.rows import Rows
from keras_distill.soft_targets.settings import Settings

_MARK = "soft targets and data do not go together:"
_ADVICE = (
    "Give the data that they were written for, whole and in the same order: join before "
    "shuffle, take, skip, filter and repeat, and do those afterwards. If the data or its "
    "preparation has changed, write them anew with overwrite=True."
)
_UNREADABLE, _END = "soft targets cannot be read:", "Nothing was read."
# There is no Python control flow for AutoGraph to convert.
_as_is = tf.autograph.experimental.do_not_convert


@dataclasses.dataclass(frozen=True)
class Cached:
    """A store as it is read.

    Attributes:
        path: of its folder.
        content: of its manifest.
        augment: makes the views; `None` for none.
    """

    path: str
    content: Mapping[str, Any]
    augment: Callable | None

    @functools.cached_property
    def settings(self) -> Settings:
        """That it was written with."""
        return Settings.of_manifest(self.content)

    @functools.cached_property
    def rows(self) -> Rows:
        """The layout of its rows."""
        return Rows(self.settings)

    @functools.cached_property
    def inputs(self) -> list[tf.TensorSpec]:
        """Specs of one example's inputs, flat."""
        return [tf.TensorSpec(shape, dtype) for shape, dtype in self.settings.inputs]

    @functools.cached_property
    def _state(self) -> dict[str, Any]:
        return {}

    def check_current(self) -> None:
        """Refuses a store that was written anew since it was opened.

        Raises:
            ValueError: if it is.
        """
        known = self._state.get("manifest")
        found = digests.check_current(self.path, self.content, known)
        self._state["manifest"] = found

    @functools.cached_property
    def _entries(self) -> dict[str, dict[str, Any]]:
        return {entry["file"]: entry for entry in self.content["shards"]}

    def check_shard(self, file: str) -> None:
        """Refuses a file that is not the one that the manifest names.

        Raises:
            ValueError: if it is not.
        """
        digests.check_shard(file, self._entries[os.path.basename(file)])

    def _wrong(self, file: bytes) -> str:
        try:
            self.check_current()
            self.check_shard(os.fsdecode(file))
        except ValueError as error:
            # Of a record that is damaged TensorFlow's reader says so itself.
            return "" if shards.has_damage(os.fsdecode(file)) else str(error)
        return ""

    def checked(self, file: Any) -> Any:
        """Returns a path as it is, once the file is known to be the manifest's."""
        wrong = tf.numpy_function(self._wrong, [file], tf.string)
        checks = [_require(tf.equal(wrong, ""), wrong, mark=_UNREADABLE, advice=_END)]
        with tf.control_dependencies(checks):
            return tf.identity(file)

    def stream(self, view: Any) -> tf.data.Dataset:
        """Returns the records of a view, each shard checked when it is come to."""
        files = [self.file(view, n) for n in range(self.settings.shards_per_view)]
        paths = tf.data.Dataset.from_tensor_slices(files).map(_as_is(self.checked))
        return shards.stream(paths, self.rows.bytes)

    def file(self, view: Any, shard: Any) -> Any:
        """Returns the path of a shard, a tensor; of numbers or tensors."""
        view = tf.strings.as_string(view, width=3, fill="0")
        shard = tf.strings.as_string(shard, width=5, fill="0")
        prefix = os.path.join(self.path, "view-")
        return tf.strings.join([prefix, view, "-shard-", shard, ".tfrecord"])


def join(
    cached: Cached, dataset: tf.data.Dataset, epoch: int | None, batched: bool | None
) -> tf.data.Dataset:
    """Returns the dataset with soft targets; see `SoftTargets.join`."""
    spec = dataset.element_spec
    if batched is None:
        batched = reading.are_batches(spec, [(None, *i.shape) for i in cached.inputs])
    _check_specs(cached, reading.inputs_of(spec), batched)
    cardinality = int(dataset.cardinality())
    if batched:
        blocks, size = dataset, keras_compat.batch_size_of(dataset)
    else:
        _check_length(cached, cardinality, 1, False)
        size = sources.block_size(cached.inputs)
        blocks = dataset.batch(size)
    count = int(blocks.cardinality())
    if size is not None:
        has_one_size = tf.nest.flatten(blocks.element_spec)[0].shape[0] is not None
        _check_length(cached, count, size, may_drop=has_one_size)
    number = cached.settings.views
    one_pass = functools.partial(_one_pass, cached, blocks, size, count)
    if number == 1 or epoch is not None:
        joined = one_pass((epoch or 0) % number)
    else:
        passes = views.Passes()
        of_epoch = functools.partial(_view_of_epoch, passes, number)
        joined = passes.start().flat_map(_as_is(lambda _: one_pass(of_epoch())))
    if not batched:
        joined = joined.unbatch()
    if cardinality >= 0:
        joined = joined.apply(tf.data.experimental.assert_cardinality(cardinality))
    options = tf.data.Options()
    # By file would give a worker the files of other examples than its data's.
    by_data = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = by_data
    return joined.with_options(options)


def _view_of_epoch(passes: views.Passes, number: int) -> tf.Tensor:
    """Returns the view of the epoch of the `fit` that reads."""
    epoch = passes.epoch()
    unknown = (
        "several threads fit at different epochs, and which of them reads cannot be told; "
        "give each fit a tf.data.Dataset of its own, or say join(data, epoch=...)."
    )
    checks = [_require(epoch >= 0, unknown, mark=_UNREADABLE, advice=_END)]
    with tf.control_dependencies(checks):
        return tf.identity(epoch) % number


def _check_specs(cached: Cached, inputs: Any, batched: bool) -> None:
    """Refuses inputs of other shapes or dtypes: fingerprints are of the bytes alone."""
    found = sources.specs_of(tf.nest.flatten(inputs), int(batched))
    for one, written in zip(found, cached.inputs, strict=True):
        if not one.is_compatible_with(written):
            raise ValueError(
                f"{_MARK} an input is {one.dtype.name} {tuple(one.shape)}, the soft "
                f"targets in {cached.path} are for {written.dtype.name} "
                f"{tuple(written.shape)}. {_ADVICE}"
            )


def _check_length(cached: Cached, count: int, size: int, may_drop: bool) -> None:
    """Refuses, before any reading, data of another length where it can be known.

    Args:
        cached: the store.
        count: number of batches; negative if not known.
        size: of a batch; the last may be smaller.
        may_drop: whether a smaller last batch may have been left out.
    """
    smallest, largest = (count - 1) * size + 1, count * size + (size - 1) * may_drop
    if count >= 0 and not smallest <= cached.settings.examples <= largest:
        has = f"{count} examples" if size == 1 else f"{count} batches of {size}"
        raise ValueError(
            f"{_MARK} the data has {has}, the soft targets in {cached.path} are for "
            f"{cached.settings.examples} examples. {_ADVICE}"
        )


def _one_pass(
    cached: Cached, blocks: tf.data.Dataset, size: int | None, count: int, view: Any
) -> tf.data.Dataset:
    """Returns one pass over batches, with the soft targets of a view.

    Args:
        cached: the store.
        blocks: batches.
        size: of every batch but the last; `None` if not known.
        count: number of batches; negative if not known.
        view: int, or a scalar int64 tensor.
    """
    spec = blocks.element_spec
    if count < 0:
        # An empty batch at the end, to notice that data ends too early.
        end = tf.nest.map_structure(
            lambda s: tf.zeros([0, *(n or 0 for n in s.shape[1:])], s.dtype), spec
        )
        blocks = blocks.concatenate(tf.data.Dataset.from_tensors(end))
    if size is None:
        pairs = _pairs_of_any_size(cached, blocks, count, view)
    else:
        pairs = _pairs_of_one_size(cached, blocks, size, view)
    fixed_size = tf.nest.flatten(spec)[0].shape[0]
    check = _as_is(lambda *pair: _checked(cached, view, fixed_size, *pair))
    joined = pairs.map(check, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    has_any = _as_is(lambda *batch: tf.shape(tf.nest.flatten(batch)[0])[0] > 0)
    return joined if count >= 0 else joined.filter(has_any)


def _pairs_of_one_size(
    cached: Cached, blocks: tf.data.Dataset, size: int, view: Any
) -> tf.data.Dataset:
    """Returns `(first index, batch, rows)`, the rows rebatched natively."""
    rows = cached.stream(view).rebatch(size)
    # Nothing more, for ever: data that goes on finds no rows.
    nothing = tf.data.Dataset.from_tensors(tf.zeros((0, cached.rows.bytes), tf.uint8))
    firsts = tf.data.Dataset.range(0, np.iinfo("int64").max, size)
    return tf.data.Dataset.zip(firsts, blocks, rows.concatenate(nothing.repeat()))


def _pairs_of_any_size(
    cached: Cached, blocks: tf.data.Dataset, count: int, view: Any
) -> tf.data.Dataset:
    """Returns `(first index, batch, rows)`.

    Shards are read whole, one after the other, as the batches come to need them.
    """

    def take_rows(state: Any, batch: Any) -> Any:
        number, first, buffer, start, shard = state
        size = tf.shape(tf.nest.flatten(batch)[0], tf.int64)[0]
        # The last batch takes all that are left: more than its own is an error.
        is_last = (size == 0) | (number == count - 1)
        wanted = size + tf.cast(is_last, tf.int64)

        def lacks_rows(buffer: Any, start: Any, shard: Any) -> Any:
            end = start + tf.shape(buffer, tf.int64)[0]
            return (end < first + wanted) & (shard < cached.settings.shards_per_view)

        def read_on(buffer: Any, start: Any, shard: Any) -> Any:
            more = shards.load(
                cached.checked(cached.file(view, shard)), cached.rows.bytes
            )
            return tf.concat([buffer[first - start :], more], 0), first, shard + 1

        buffer, start, shard = tf.while_loop(
            lacks_rows,
            read_on,
            (buffer, start, shard),
            (tf.TensorShape((None, cached.rows.bytes)), start.shape, shard.shape),
        )
        rows = buffer[first - start : first - start + wanted]
        return (number + 1, first + size, buffer, start, shard), (first, batch, rows)

    zero = tf.zeros((), tf.int64)
    nothing = tf.zeros((0, cached.rows.bytes), tf.uint8)
    return blocks.scan((zero, zero, nothing, zero, zero), _as_is(take_rows))


def _checked(
    cached: Cached, view: Any, fixed_size: int | None, first: Any, batch: Any, rows: Any
) -> tuple:
    """Returns a batch with its soft targets, after comparing fingerprints."""
    inputs = reading.inputs_of(batch)
    one = tf.nest.flatten(inputs)[0]
    path, examples = cached.path, cached.settings.examples
    size, found = (tf.shape(part, tf.int64)[0] for part in (one, rows))
    # At its end, data in batches of one size may have dropped a remainder.
    fits = (found == size) | (size == 0) & (found < (fixed_size or 1))
    too_many = f"the data has more than the {examples} examples of {path}."
    has = f"examples, {path} has {examples}."
    checks = [
        _require(size <= found, too_many),
        _require(fits, "the data ends after", first + size, has),
    ]
    with tf.control_dependencies(checks):
        rows = rows[:size]
    rows.set_shape((one.shape[0], cached.rows.bytes))
    written, written_augmented = cached.rows.fingerprints(rows)
    other = f"of the data is not the one that {path} has an answer of the teacher for."
    checks = [_require_same(inputs, written, first, "example", other)]
    if cached.augment is not None:
        seed = cached.settings.seed
        inputs = views.augmented(cached.augment, inputs, seed, view, first)
        before = "augment() makes another view of example"
        after = (
            "than the teacher saw; it has changed, or does not draw all its randomness "
            "from the seed."
        )
        checks.append(_require_same(inputs, written_augmented, first, before, after))
    with tf.control_dependencies(checks):
        rows = tf.identity(rows)
    taught = inputs_of_kinds(tuple(cached.settings.kinds_taught.items()))
    with_targets = taught(inputs, *cached.rows.decode(rows))
    rest = batch[1:] if isinstance(batch, tuple) else ()
    return (with_targets, *rest)


def _require_same(
    inputs: Any, written: Any, first: Any, before: str, after: str
) -> tf.Operation:
    same = tf.reduce_all(examples_fingerprint(inputs) == written, -1)
    # Padded, so that an empty batch has a first difference too.
    index = first + tf.argmin(tf.pad(tf.cast(same, tf.int32), [[0, 1]]))
    return _require(tf.reduce_all(same), before, index, after)


def _require(
    condition: Any, *message: Any, mark: str = _MARK, advice: str = _ADVICE
) -> tf.Operation:
    """Fails with a message of strings and numbers if a condition does not hold.

    The raw operation: what `tf.debugging` wraps around it costs every iterator 7 ms more,
    and Keras begins two an epoch.
    """
    return tf.raw_ops.Assert(condition=condition, data=[mark, *message, advice])


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turns what a joined dataset says from inside a graph into a plain `ValueError`."""
    try:
        with user_functions.plain_errors():
            yield
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
        text = str(error)
        for mark, advice in ((_MARK, _ADVICE), (_UNREADABLE, _END)):
            if mark in text:
                end = text.index(advice) + len(advice)
                message = text[text.index(mark) : end]
                raise ValueError(message.replace("] [", " ")) from error
        if "corrupted record" in text or "truncated record" in text:
            raise ValueError(
                "a record of the cached soft targets is damaged: its checksum does not "
                "hold. SoftTargets.open(path).verify() says which file."
            ) from error
        raise
