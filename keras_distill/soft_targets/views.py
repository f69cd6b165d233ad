"""Views: what a stateless augmentation makes of an example, the same every time."""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import keras_compat
from keras_distill.run_directory import name_of
from keras_distill.soft_targets.sources import specs_of


class Passes:
    """Where the passes over one joined dataset begin, in whatever thread of TensorFlow."""

    def start(self) -> tf.data.Dataset:
        """Returns the one element that the joined dataset, and by it this, is known by."""
        start = tf.data.Dataset.from_tensors(0)
        _starts[start] = self
        return start

    def epoch(self) -> tf.Tensor:
        """Returns the epoch of the `fit` that reads, each time that this is executed.

        That is the newest of those that were given this dataset; of those that were given
        data that does not say what it is made of, if there is none; outside, 0. It is -1
        if several threads are at different epochs of these.
        """
        current = tf.numpy_function(self._epoch, [], tf.int64)
        current.set_shape(())
        return current

    def _epoch(self) -> np.int64:
        with _lock:
            runs = [r for r in _runs if self in r.passes] or [
                r for r in _runs if not r.passes
            ]
            epochs = set({run.thread: run.epoch for run in runs}.values())
        return np.int64(-1 if len(epochs) > 1 else next(iter(epochs), 0))


_starts: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_runs: list[Run] = []  # the newest last
_lock = threading.Lock()


class Run:
    """A running `fit`.

    Args:
        data: that it is given; what is no `tf.data.Dataset` does not count.
        epoch: int, that it begins with.
    """

    def __init__(self, data: list[Any], epoch: int) -> None:
        self.epoch = epoch
        self.thread = threading.get_ident()
        sets = [one for one in data if isinstance(one, tf.data.Dataset)]
        made_of = {id(p): p for one in sets for p in keras_compat.made_of(one)}
        starts = (_starts.get(part) for part in made_of.values())
        self.passes = {found for found in starts if found is not None}


@contextlib.contextmanager
def running(data: list[Any], epoch: int) -> Iterator[Run]:
    """Yields the `Run` whose epoch counts for the joined datasets among the data.

    Raises:
        ValueError: if a `fit` in another thread reads one of them, with several views.
    """
    run = Run(data, epoch)
    with _lock:
        if any(r.thread != run.thread and r.passes & run.passes for r in _runs):
            raise ValueError(
                "a fit in another thread is reading this joined dataset, which has another "
                "view each epoch; join the soft targets for each of them: "
                "targets.join(data)."
            )
        _runs.append(run)
    try:
        yield run
    finally:
        with _lock:
            _runs.remove(run)


def seed_of(seed: int, view: Any, index: Any) -> tf.Tensor:
    """Returns the seed of a view of an example: `[65536 * seed + view, index]`, int64."""
    first = tf.cast(view, tf.int64) + (seed << 16)
    return tf.stack([first, tf.cast(index, tf.int64)])


def name_of_augment(augment: Any) -> str | None:
    """Returns module and name of a function that makes views; `None` for none.

    Raises:
        TypeError: if it is no function of two arguments, or one of Keras's layers.
    """
    if augment is None:
        return None
    is_layer = isinstance(augment, keras.layers.Layer)
    if is_layer and type(augment).__module__.startswith("keras."):
        raise TypeError(
            f"augment is a layer, {augment.name!r}, which draws from a seed of its own; give a "
            "function of one example and an int64 seed (2,), of stateless operations "
            "(tf.image.stateless_random_flip_left_right)."
        )
    if not callable(augment) or not _takes_two(augment):
        raise TypeError(
            "augment must be a function of one example and an int64 seed (2,), got "
            f"{augment!r}."
        )
    return name_of(augment)


def _takes_two(function: Callable) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # one in C says nothing
        return True
    return True


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

    Raises:
        TypeError: if it returns no tensors.
        ValueError: if these do not say how many axes they have.
    """
    seed = tf.TensorSpec((2,), tf.int64)
    traced = tf.function(augment).get_concrete_function(specs_of(inputs, 1), seed)
    made = traced.structured_outputs
    for part in tf.nest.flatten(made):
        if not isinstance(getattr(part, "shape", None), tf.TensorShape):
            raise TypeError(
                "augment must return the inputs of one example, tensors; it returns "
                f"{made!r}."
            )
        if part.shape.rank is None:
            raise ValueError(
                "augment does not say the shape of what it makes; give it one by "
                "tf.ensure_shape."
            )
    return specs_of(made, 0)
