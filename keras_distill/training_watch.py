"""TrainingWatch: one run of `fit`, its first batch and what is wrong with later ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill.faults import Fault, said
from keras_distill.schedules import ScheduledScalar
from keras_distill.soft_targets.views import Run
from keras_distill.structures import ModelOutputs
from keras_distill.teacher import Teacher

EMPTY = "the training data is empty; check the filters and the split that made it."

#: Batches after which the host looks at what the step noted: a look waits for the device.
_EVERY = 100


class BatchCounter:
    """Counts batches, and remembers the first with a fault.

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
            for name, value in (("batches_done", 0.0), ("first_bad", _NO_FAULT))
        )
        self._sentences: list[str] = []

    def reset(self) -> None:
        """Begins anew, with batch 0."""
        self._done.assign(0.0)
        self._first_bad.assign(_NO_FAULT)

    @property
    def first_bad(self) -> tuple[int, str, float] | None:
        """Number, fault and its value of the first batch that has one, or `None`."""
        # Half the time of ops.convert_to_numpy.
        number, code, value = self._first_bad.value.numpy()
        return (int(number), self._sentences[int(code) - 1], value) if code else None

    def noted(self, faults: Iterable[Fault]) -> Any:
        """Counts a batch; returns whether it has none of these faults, a bool scalar."""
        code = value = ops.zeros((), "float32")
        for fault in faults:
            if fault.sentence not in self._sentences:
                self._sentences.append(fault.sentence)
            number = 1.0 + self._sentences.index(fault.sentence)
            worst = ops.max(ops.where(fault.is_bad, fault.value, -math.inf))
            # Which XLA's maximum passes over.
            has_nan = ops.any(fault.is_bad & ops.isnan(fault.value))
            worst = ops.where(has_nan, math.nan, ops.cast(worst, "float32"))
            is_new = ops.any(fault.is_bad) & (code == 0)
            code = ops.where(is_new, number, code)
            value = ops.where(is_new, worst, value)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            ours = ops.arange(replicas) == context.replica_id_in_sync_group
            row = ops.where(ours[:, None], ops.stack([code, value]), 0.0)
            rows = context.all_reduce("SUM", row)
            code, value = ops.unstack(
                rows[ops.argmax(ops.cast(rows[:, 0] > 0, "int32"))]
            )
        done, first = map(
            tf.convert_to_tensor, (self._done.value, self._first_bad.value)
        )
        found = tf.stack([done, code, value])
        self._first_bad.assign(ops.where((first[1] == 0) & (code > 0), found, first))
        self._done.assign(done + 1.0)
        return code == 0


#: What `first_bad` holds: number of the batch, which fault (from 1 on), and its value.
_NO_FAULT = (-1.0, 0.0, 0.0)


def teachers_faults(
    teacher: ModelOutputs | None, y_pred: Any, bound: Teacher | None
) -> tuple[ModelOutputs | None, list[Fault]]:
    """Returns a teacher's answer for a batch, of the batch's size, and its faults.

    Args:
        teacher: its answer, or `None`.
        y_pred: the student's outputs.
        bound: the teacher itself; a Keras model answers for each example.
    """
    if teacher is None:
        return None, []
    # One tensor may be both output and logits.
    tensors = {id(value): value for value in keras.tree.flatten(teacher)}
    all_finite = ops.all(
        ops.stack([ops.all(ops.isfinite(value)) for value in tensors.values()])
    )
    found = [Fault(NOT_FINITE, ~all_finite, 0.0)]
    if bound is not None and bound.answers_each_example:
        return teacher, found
    rows = keras.tree.flatten(y_pred)[0].shape[0]
    answered = {value.shape[0] for value in tensors.values() if value.shape.rank}
    if rows is not None and answered == {rows}:
        return teacher, found
    if rows is None or None in answered:
        rows = ops.shape(keras.tree.flatten(y_pred)[0])[0]
    for key, value in tensors.items():
        if value.shape.rank:
            theirs = ops.shape(value)[0]
            is_bad = ops.convert_to_tensor(theirs != rows)
            found.append(Fault(OTHER_ROWS, is_bad, ops.cast(theirs, "float32")))
            # Or the step fails, or takes one row for all.
            padding = [[0, ops.maximum(rows - theirs, 0)]] + [[0, 0]] * (
                value.shape.rank - 1
            )
            tensors[key] = tf.pad(value[:rows], padding)
    return keras.tree.map_structure(lambda value: tensors[id(value)], teacher), found


def defused(structure: Any, is_good: Any) -> Any:
    """Returns tensors as they are, or all 0 if their batch has a fault.

    The student outlives a broken teacher: its weights stay finite.
    """
    tensors = {id(value): value for value in keras.tree.flatten(structure)}
    for key, value in tensors.items():
        if value is not None:  # chosen by value: a branch in the graph was slower
            tensors[key] = ops.where(is_good, value, ops.zeros((), value.dtype))
    return keras.tree.map_structure(lambda value: tensors[id(value)], structure)


class TrainingWatch(keras.callbacks.Callback):
    """Looks at the first batch of a `fit`, and stops it at a batch with a fault.

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
        #: Whether a callback draws what each epoch's logs hold.
        self.is_drawn = False
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
        """Looks at the end of an epoch; says temperature and alpha where they are drawn."""
        self._look()
        shown = [s for s in self.scalars if self.is_drawn or s.schedule is not None]
        if shown and logs is not None:
            done = int(ops.convert_to_numpy(self.model.optimizer.iterations))
            for scalar in shown:  # of the last step
                logs[scalar.name] = scalar.value_at(max(0, done - 1))

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
        return whole_again([batch], iterator, steps)

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
        stop_if_bad(self.counter, f"epoch {self.epoch + 1}")


def stop_if_bad(counter: BatchCounter, what: str) -> None:
    """Raises `ValueError` if a batch had a fault; waits for the device.

    Args:
        counter: that the step wrote.
        what: the batches are of; "" for a single batch.
    """
    bad = counter.first_bad
    if bad is not None:
        number, sentence, value = bad
        where = f"batch {number} of {what}" if what else "this batch"
        raise ValueError(said(sentence, value, where))


OTHER_ROWS = (
    "the teacher answers {value} row(s) for {where}; it must give one for each example."
)

NOT_FINITE = (
    "the teacher's outputs for {where} are not all finite (NaN or infinity), so the run "
    "was stopped; check its inputs and weights."
)


def whole_again(taken: list, rest: Iterator, steps: int) -> Iterator:
    """Returns the batches of one execution, the first of which were taken already.

    Of the same element spec, where it is TensorFlow's: so a step is traced once for both.

    Args:
        taken: the batches, one at least.
        rest: where they were taken from.
        steps: how many batches an execution has, at most.
    """
    if not isinstance(rest, tf.data.Iterator) or any(
        isinstance(spec, tf.OptionalSpec) for spec in tf.nest.flatten(rest.element_spec)
    ):
        return itertools.chain(taken, rest)
    # Tuning one batch takes as long as reading it, and its thread may be waited for.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    first = taken[0]
    if any(part is None for part in tf.nest.flatten(first)):
        # Labels that the data does not have: no dataset is made of None.
        return itertools.chain(taken, rest)
    if steps == 1:  # two milliseconds; the general way costs thirty
        sizes = {tuple(part.shape[:1]) for part in tf.nest.flatten(first)}
        size, *_ = next(iter(sizes)) or [None]
        if len(sizes) == 1 and size:
            one = tf.data.Dataset.from_tensor_slices(first).batch(size)
            if one.element_spec == rest.element_spec:
                return iter(one.with_options(options))
    # No more than are trained on: the others are for the executions that follow.
    batches = [itertools.islice(itertools.chain(taken, rest), steps)]
    # TensorFlow keeps the function for ever: the data must not be in it.
    dataset = tf.data.Dataset.from_generator(
        lambda: batches.pop(), output_signature=rest.element_spec
    )
    return iter(dataset.with_options(options))
