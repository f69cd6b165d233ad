"""The data that soft targets are written for: arrays, a dataset, or what makes one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import keras_compat, reading

#: Bytes of inputs that are put in one block.
_BLOCK_BYTES = 4_000_000


def as_dataset(
    data: Any,
    any_order: bool = False,
    what: str = "dataset",
    length_is_known: bool = False,
) -> tf.data.Dataset:
    """Returns a dataset of what was given, arrays as examples.

    Args:
        data: what `reading.read` takes.
        any_order: whether it may be shuffled anew each time.
        what: it is, for messages.
        length_is_known: whether something else tells where it must end.

    Raises:
        TypeError: if it is of no kind that can be read.
        ValueError: if it is endless, or of a Python generator and does not say its end, or
            known to be shuffled anew each time.
    """
    data = reading.read(data, what)
    if isinstance(data, tf.data.Dataset):
        if keras_compat.never_ends(data):
            raise ValueError(
                f"the {what} is endless; give it before repeat(). Soft targets are joined "
                "before it too: targets.join(data).repeat()."
            )
        if not length_is_known and keras_compat.ends_with_a_generator(data):
            raise ValueError(
                f"the {what} is made of a Python generator, which may never end; say how "
                "many elements it has, by dataset.apply("
                "tf.data.experimental.assert_cardinality(n)), or dataset.take(n)."
            )
        if not any_order and keras_compat.reshuffles(data):
            raise ValueError(
                "the dataset is shuffled anew each time, so soft targets could not be joined "
                "to it; write them before shuffle(), then targets.join(data).shuffle(...)."
            )
        return data
    return tf.data.Dataset.from_tensor_slices(data)


def check_one_shape(
    dataset: tf.data.Dataset, skipped: int, what: str = "dataset"
) -> None:
    """Refuses inputs of several shapes, which cannot be put into other batches.

    Reads all of the dataset, if it does not say its shapes.

    Args:
        dataset: of inputs.
        skipped: axes that may differ: 1 of batches, 0 of examples.
        what: it is, for messages.

    Raises:
        ValueError: if there are several.
    """
    specs = tf.nest.flatten(dataset.element_spec)
    if any(spec.shape.rank is None for spec in specs) or all(
        spec.shape[skipped:].is_fully_defined() for spec in specs
    ):
        return

    def shapes(x: Any) -> Any:
        return tf.concat([tf.shape(part)[skipped:] for part in tf.nest.flatten(x)], 0)

    def widened(least_and_most: tuple, *x: Any) -> tuple:
        now = shapes(x)
        return tf.minimum(least_and_most[0], now), tf.maximum(least_and_most[1], now)

    axes = sum(len(spec.shape[skipped:]) for spec in specs)
    start = tf.fill([axes], tf.int32.max), tf.fill([axes], -1)
    least, most = (sizes.numpy().tolist() for sizes in dataset.reduce(start, widened))
    if any(0 <= b != a for a, b in zip(least, most, strict=True)):
        raise ValueError(
            f"the examples of the {what} differ in shape, from {least} to {most}: batches of "
            "lengths of their own cannot be put into other ones. Pad all to one length, as by "
            "padded_batch(n, padded_shapes=([length], [])), and mask what is padding."
        )


def specs_of(structure: Any, skipped: int, *first: int | None) -> Any:
    """Returns tensor specs in which the sizes `first` replace the first axes.

    Args:
        structure: of tensors, arrays or specs.
        skipped: how many axes are replaced.
        *first: sizes, `None` for a free one.
    """

    def spec(part: Any) -> tf.TensorSpec:
        return tf.TensorSpec((*first, *part.shape[skipped:]), part.dtype)

    return tf.nest.map_structure(spec, structure)


class Source:
    """Gives the inputs of any range of examples, in batches that do not depend on it.

    Args:
        data: what `reading.read` takes.
        batched: whether a dataset's elements are batches; `None` finds out from the
            shapes, and takes them for batches where these are not known.
        shapes: of the teacher's inputs, as `reading.are_batches` takes them; `None` if
            not known.
        any_order: whether a dataset may be shuffled anew each time.
    """

    def __init__(
        self,
        data: Any,
        batched: bool | None,
        shapes: Any,
        any_order: bool = False,
    ) -> None:
        data = reading.read(data)
        self.arrays = None
        if not isinstance(data, tf.data.Dataset):
            self.arrays = reading.inputs_of(data)
            self.length: int | None = reading.check_lengths(data, "dataset")
            self.batched = False
            self.specs = keras.tree.map_structure(
                lambda a: tf.TensorSpec((None, *a.shape[1:]), np.asarray(a[:1]).dtype),
                self.arrays,
            )
        else:
            whole = as_dataset(data, any_order)
            # map() has unpacked the element, if it is a tuple.
            self.dataset = whole.map(lambda *element: element[0])
            if batched is None:
                batched = not shapes or reading.are_batches(whole.element_spec, shapes)
            self.batched = batched
            first = tf.nest.flatten(self.dataset.element_spec)[0]
            size = first.shape[0] if batched else 1
            count = int(self.dataset.cardinality())
            self.length = None if count < 0 else count and size and count * size
            check_one_shape(self.dataset, int(batched))
            self.specs = specs_of(self.dataset.element_spec, int(batched), None)
        if self.length == 0:
            raise ValueError("the dataset is empty; check what made it.")

    def count(self) -> int:
        """Returns the number of examples, by reading all where it is not known."""
        if self.length is None:

            def counted(total: Any, x: Any) -> Any:
                shape = tf.shape(tf.nest.flatten(x)[0], tf.int64)
                return total + (shape[0] if self.batched else 1)

            self.length = int(self.dataset.reduce(np.int64(0), counted))
        return self.length

    def batches(
        self, first: int, count: int | None, batch_size: int, shard_size: int
    ) -> tf.data.Dataset:
        """Returns batches of inputs; batches begin anew with each shard.

        Args:
            first: example to begin with, the first of a shard.
            count: number of shards; `None` for all that follow.
            batch_size: examples of a batch.
            shard_size: examples of a shard.
        """
        whole, rest = divmod(shard_size, batch_size)
        sizes = [batch_size] * whole + [rest] * (rest > 0)
        shard = first // shard_size
        if self.arrays is not None:
            last = len(keras.tree.flatten(self.arrays)[0])
            if count is not None:
                last = min(last, first + count * shard_size)
            return tf.data.Dataset.from_generator(
                lambda: self._slices(first, last, sizes), output_signature=self.specs
            )
        if self.batched:
            dataset = self.dataset.rebatch(sizes).skip(shard * len(sizes))
        else:
            dataset = self.dataset.skip(first).batch(batch_size)
            if rest:
                dataset = dataset.rebatch(sizes)
        return dataset if count is None else dataset.take(count * len(sizes))

    def _slices(self, first: int, last: int, sizes: list[int]) -> Iterator[Any]:
        turns = itertools.cycle(sizes)
        while first < last:
            rows = slice(first, min(first + next(turns), last))
            yield keras.tree.map_structure(
                lambda a, rows=rows: np.asarray(a[rows]), self.arrays
            )
            first = rows.stop


def block_size(example: list[tf.TensorSpec]) -> int:
    """Returns how many examples make a block of a few megabytes, at most 1024.

    Args:
        example: specs of one example's inputs.
    """
    if not all(spec.shape.is_fully_defined() for spec in example):
        return 32
    size = sum(s.shape.num_elements() * max(1, s.dtype.size) for s in example)
    return int(min(1024, max(1, _BLOCK_BYTES // max(1, size))))
