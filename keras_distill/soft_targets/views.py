"""Views: what a stateless augmentation makes of an example, the same every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_distill.soft_targets.sources import specs_of

#: The epoch of the running `fit`, which `Distiller` sets; outside, 0.
epoch = 0


def of_epoch(views: int) -> tf.Tensor:
    """Returns the view of the running epoch, read each time that this is executed."""
    current = tf.numpy_function(lambda: epoch, [], tf.int64)
    current.set_shape(())
    return current % views


def seed_of(seed: int, view: Any, index: Any) -> tf.Tensor:
    """Returns the seed of a view of an example: `[65536 * seed + view, index]`, int64."""
    first = tf.cast(view, tf.int64) + (seed << 16)
    return tf.stack([first, tf.cast(index, tf.int64)])


def augmented(
    augment: Callable, inputs: Any, seed: int, view: Any, first_index: Any
) -> Any:
    """Returns the view of each example of a batch.

    Examples are augmented one by one, so that a batch of any size gives the same bits.

    Args:
        augment: from an example and an int64 seed `(2,)` to an example.
        inputs: tensors, batch first.
        seed: int.
        view: scalar int.
        first_index: scalar int64, the place of the batch's first example in the data.
    """
    count = tf.shape(tf.nest.flatten(inputs)[0], tf.int64)[0]
    traced = tf.function(augment)

    def one(example: Any) -> Any:
        inputs, index = example
        return traced(inputs, seed_of(seed, view, index))

    specs = output_specs(augment, inputs)
    indices = first_index + tf.range(count)
    return tf.map_fn(one, (inputs, indices), fn_output_signature=specs)


def output_specs(augment: Callable, inputs: Any) -> Any:
    """Returns the tensor specs of an augmented example.

    Args:
        augment: as above.
        inputs: tensors or specs, batch first.
    """
    seed = tf.TensorSpec((2,), tf.int64)
    traced = tf.function(augment).get_concrete_function(specs_of(inputs, 1), seed)
    return specs_of(traced.structured_outputs, 0)
