"""Training data in batches whose order a later run can have again, epoch by epoch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill import datasets
from keras_distill.processes import seeded

_IN_MEMORY_BYTES = 2_000_000_000
#: What a text is taken to need in memory, and how many are shuffled where not all are.
_TEXT_BYTES, _SHUFFLE_EXAMPLES = 1000, 10_000


class EpochBatches:
    """Training data in batches, each epoch in an order of its own that a seed says.

    Args:
        examples: `(x, y)` in any structure, not in batches, in a fixed order.
        count: how many there are.
        batch_size: int.
        seed: int >= 0.

    Attributes:
        epoch: of the pass that begins next.
        steps: in an epoch.
    """

    def __init__(
        self, examples: tf.data.Dataset, count: int, batch_size: int, seed: int
    ) -> None:
        self.epoch, self.steps = 0, math.ceil(count / batch_size)
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._arrays: Any = None
        self._examples = examples
        if count * _bytes_of(examples.element_spec) <= _IN_MEMORY_BYTES:
            arrays = datasets.to_arrays(examples.batch(1024), "reading the data")
            self._arrays = tf.nest.map_structure(tf.convert_to_tensor, arrays)

    def dataset(self) -> tf.data.Dataset:
        """Returns the batches; every pass asks anew for the epoch."""
        start = tf.data.Dataset.from_tensors(0)
        if self._arrays is not None:
            order = start.map(lambda _: self._asked(self._order, [self._count]))
            found = order.flat_map(tf.data.Dataset.from_tensor_slices)
            found = found.batch(self._batch_size).map(self._gathered)
        else:
            buffer = min(self._count, _SHUFFLE_EXAMPLES)
            # Of this seed shuffle's depends too; 0 it takes for none.
            with seeded(self._seed + 1):
                found = start.map(lambda _: self._asked(self._epoch_seed, [])).flat_map(
                    lambda seed: self._examples.shuffle(
                        buffer, seed=seed, reshuffle_each_iteration=False
                    )
                )
            found = found.batch(self._batch_size)
        found = found.apply(tf.data.experimental.assert_cardinality(self.steps))
        return found.prefetch(tf.data.AUTOTUNE)

    def _asked(self, function: Any, shape: list[int]) -> tf.Tensor:
        found = tf.numpy_function(function, [], tf.int64)
        found.set_shape(shape)
        return found

    def _order(self) -> np.ndarray:
        return np.random.default_rng([self._seed, self.epoch]).permutation(self._count)

    def _epoch_seed(self) -> np.int64:
        return np.int64(1_000_003 * (self._seed + 1) + self.epoch)

    def _gathered(self, indices: tf.Tensor) -> Any:
        return tf.nest.map_structure(
            lambda all_: tf.gather(all_, indices), self._arrays
        )


def _bytes_of(example: Any) -> float:
    """Returns how much memory an example takes, of texts about."""
    specs = tf.nest.flatten(example)
    texts = [
        s
        for s in specs
        if isinstance(s, tf.TensorSpec)
        and s.dtype == tf.string
        and s.shape.is_fully_defined()
    ]
    others = [s for s in specs if not any(s is text for text in texts)]
    counted = sum(s.shape.num_elements() for s in texts) * _TEXT_BYTES
    return counted + (datasets.bytes_of(others) if others else 0)
