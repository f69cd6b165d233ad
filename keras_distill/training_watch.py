"""TrainingWatch: one run of `fit`, its first batch and its teacher's finiteness."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill.outputs import ModelOutputs
from keras_distill.schedules import ScheduledScalar
from keras_distill.soft_targets.views import Run

EMPTY = "the training data is empty; check the filters and the split that made it."

#: Batches after which the host looks at what the step noted: a look waits for the device.
_EVERY = 100


class BatchCounter:
    """Counts an epoch's batches, and remembers the first whose teacher was not finite.

    The step only writes it; whoever reads `first_bad` waits for the device.
    """

    def __init__(self) -> None:
        # Float: TensorFlow keeps small integers off the GPU. Exact to 2**24 batches.
        self._done, self._first_bad = (
            keras.Variable(
                value,
                trainable=False,
                dtype="float32",
                synchronization="on_read",
                aggregation="only_first_replica",
                name=name,
            )
            for name, value in (("batches_done", 0.0), ("first_bad_batch", -1.0))
        )

    def reset(self) -> None:
        """Begins anew, with batch 0."""
        self._done.assign(0.0)
        self._first_bad.assign(-1.0)

    @property
    def first_bad(self) -> int | None:
        """Number of the first batch that was not finite, or `None`."""
        # Half the time of ops.convert_to_numpy.
        number = int(self._first_bad.value.numpy())
        return number if number >= 0 else None

    def defused(self, outputs: ModelOutputs) -> ModelOutputs:
        """Counts a batch; returns its outputs, all 0 if one of them is not finite.

        The student outlives a broken teacher: its weights stay finite.
        """
        # One tensor may be both output and logits.
        tensors = {id(value): value for value in keras.tree.flatten(outputs)}
        all_finite = ops.all(
            ops.stack([ops.all(ops.isfinite(value)) for value in tensors.values()])
        )
        bad = ops.cast(~all_finite, "float32")
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            bad = tf.distribute.get_replica_context().all_reduce("SUM", bad)
        done, first = (ops.convert_to_tensor(v) for v in (self._done, self._first_bad))
        self._first_bad.assign(ops.where((first < 0) & (bad > 0), done, first))
        self._done.assign(done + 1.0)
        # Chosen by value: a branch in the graph was slower.
        for key, value in tensors.items():
            tensors[key] = ops.where(all_finite, value, ops.zeros((), value.dtype))
        return keras.tree.map_structure(lambda value: tensors[id(value)], outputs)


class TrainingWatch(keras.callbacks.Callback):
    """Looks at the first batch of a `fit`, and stops it if a teacher was not finite.

    The step only counts: the host looks every 100 batches and at the end of an epoch. The
    watch also holds schedules to their ranges, at both ends of each epoch, and tells
    cached soft targets which epoch it is.

    Args:
        counter: what the step writes.
        scalars: temperature and alpha.
        check: called with the first batch, before the first step.
    """

    def __init__(
        self,
        counter: BatchCounter,
        scalars: Sequence[ScheduledScalar],
        check: Callable[[Any], None],
    ) -> None:
        super().__init__()
        self.counter, self.scalars, self.check = counter, scalars, check
        self.has_looked = False
        self.epoch = self._unseen = 0
        #: What tells joined soft targets of the epoch.
        self.run: Run | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch; raises `ValueError` for a schedule out of its range."""
        self.epoch = epoch
        if self.run is not None:
            self.run.epoch = epoch
        self._unseen = 0
        self.counter.reset()
        self.check_schedules()

    def on_test_begin(self, logs: Any = None) -> None:
        """Looks at the end of an epoch, before anything is judged."""
        self._look()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Looks at the end of an epoch."""
        self._look()

    def check_schedules(self) -> None:
        """Holds schedules to their ranges, at both ends of the epoch."""
        start = int(ops.convert_to_numpy(self.model.optimizer.iterations))
        for step in (start, start + ((self.params or {}).get("steps") or 1) - 1):
            for scalar in self.scalars:
                scalar.check_at(step)

    def first(self, batch: Any) -> None:
        """Looks at the first batch that comes, once."""
        if not self.has_looked:
            self.check(batch)
            self.check_schedules()  # the first batch may have made further demands
            self.has_looked = True

    def begin(self, iterator: Iterator, steps: int) -> Iterator:
        """Looks at the first batch of an iterator; returns one that still has it.

        Args:
            iterator: that Keras gives its training function.
            steps: how many batches that takes, at most.

        Raises:
            ValueError: if there is none, or it is wrong.
        """
        if self.has_looked:
            return iterator
        batch = next(iterator, None)
        if batch is None:
            raise ValueError(EMPTY)
        # What a generator gives as None comes so.
        self.first(
            keras.tree.map_structure(
                lambda part: (
                    None if isinstance(part, tf.experimental.Optional) else part
                ),
                batch,
            )
        )
        return whole_again(batch, iterator, steps)

    def step_done(self, batches: int) -> None:
        """Notes that batches were trained on.

        Not a callback's hook: those have Keras wait for the logs of every batch.
        """
        self._unseen += batches
        if self._unseen >= _EVERY:
            self._look()

    def _look(self) -> None:
        if not self._unseen:
            return
        self._unseen = 0
        bad = self.counter.first_bad
        if bad is not None:
            raise ValueError(not_finite(f"batch {bad} of epoch {self.epoch + 1}"))


def not_finite(where: str) -> str:
    """Returns the message for a teacher's answer that is NaN or infinite."""
    return (
        f"the teacher's outputs for {where} are not all finite (NaN or infinity), so the "
        "run was stopped; check its inputs and weights."
    )


def whole_again(first: Any, rest: Iterator, steps: int) -> Iterator:
    """Returns the batches of one execution, the first of which was taken already.

    Of the same element spec, where it is TensorFlow's: so a step is traced once for both.

    Args:
        first: the batch.
        rest: where it was taken from.
        steps: how many batches an execution has, at most.
    """
    if not isinstance(rest, tf.data.Iterator) or any(
        isinstance(spec, tf.OptionalSpec) for spec in tf.nest.flatten(rest.element_spec)
    ):
        return itertools.chain([first], rest)
    # Tuning one batch takes as long as reading it, and its thread may be waited for.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    if steps == 1:  # two milliseconds; the general way costs thirty
        sizes = {tuple(part.shape[:1]) for part in tf.nest.flatten(first)}
        size, *_ = next(iter(sizes)) or [None]
        if len(sizes) == 1 and size:
            one = tf.data.Dataset.from_tensor_slices(first).batch(size)
            if one.element_spec == rest.element_spec:
                return iter(one.with_options(options))
    # No more than are trained on: the others are for the executions that follow.
    batches = itertools.islice(itertools.chain([first], rest), steps)
    dataset = tf.data.Dataset.from_generator(
        lambda: batches, output_signature=rest.element_spec
    )
    return iter(dataset.with_options(options))
