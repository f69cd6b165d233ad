"""The data of a search, made ready once in each process."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill import datasets, reading
from keras_distill.keras_compat import batch_size_of
from keras_distill.run_directory import arrays_fingerprint, examples_fingerprint
from keras_distill.soft_targets import joining, sources
from keras_distill.soft_targets.distillation_inputs import DistillationInputs
from keras_distill.soft_targets.store import SoftTargets

#: Data up to this size is kept in memory, so that a trial pays for training only.
_IN_MEMORY_BYTES = 2_000_000_000
#: Examples among which larger data is shuffled.
_SHUFFLE_EXAMPLES = 10_000
_VALIDATION_BATCH = 512

EMPTY_VALIDATION = "the validation data is empty; check how it was split."


@dataclasses.dataclass
class SearchData:
    """Training data with cached soft targets, and validation data; can be pickled.

    Args:
        train: `(x, y)` or `(x, y, sample_weight)` arrays, a `tf.data.Dataset` of
            examples or batches in the order of the soft targets, or a function that
            returns one.
        validation: likewise.
        soft_targets: path of the store.
        augment: the function that made its views; `None` for none.
    """

    train: Any
    validation: Any
    soft_targets: str
    augment: Callable | None

    def __getstate__(self) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(self)]
        return {name: self.__dict__[name] for name in names}

    @functools.cached_property
    def store(self) -> SoftTargets:
        """The soft targets, opened."""
        return SoftTargets.open(self.soft_targets, augment=self.augment)

    @functools.cached_property
    def _joined(self) -> tf.data.Dataset:
        return self.store.join(self.train)

    @property
    def _input_shapes(self) -> list[tuple]:
        """Of batches of the inputs."""
        return [(None, *shape) for shape, _ in self.store.manifest["inputs"]]

    def check_labelled(self) -> None:
        """Refuses training data without labels.

        Raises:
            ValueError: if there are none.
        """
        spec = self._joined.element_spec
        if isinstance(spec, DistillationInputs) or len(spec) < 2:
            raise ValueError(
                "train brings no labels, which one of the trials, hard labels alone, "
                "needs; give (x, y), or use a Distiller with alpha=0."
            )

    @functools.cached_property
    def _is_batched(self) -> bool:
        x, *rest = self._joined.element_spec
        return reading.are_batches((x.inputs, *rest), self._input_shapes)

    @functools.cached_property
    def _training(self) -> Any:
        """Arrays where they fit into memory, else the joined dataset."""
        examples = self._joined.unbatch() if self._is_batched else self._joined
        size = len(self.store) * datasets.bytes_of(examples.element_spec)
        if self.store.manifest["views"] > 1 or size > _IN_MEMORY_BYTES:
            return examples
        batches = self._joined if self._is_batched else self._joined.batch(1024)
        return datasets.to_arrays(batches)

    def first_training_batch(self, batch_size: int) -> tuple:
        """Returns the first examples with their soft targets, checked."""
        joined = self.store.join(self.train, epoch=0)
        batches = joined if self._is_batched else joined.batch(batch_size)
        with joining.plain_errors():
            return next(iter(batches.take(1)))

    def training(self, batch_size: int, seed: int) -> dict[str, Any]:
        """Returns the arguments of `fit` for the training data.

        Args:
            batch_size: int.
            seed: of the shuffling, where it is not Keras's own.
        """
        data = self._training
        if not isinstance(data, tf.data.Dataset):
            names = ("x", "y", "sample_weight")
            return {
                **dict(zip(names, data, strict=False)),
                "batch_size": batch_size,
            }
        buffer = min(len(self.store), _SHUFFLE_EXAMPLES)
        shuffled = data.shuffle(buffer, seed=seed)
        return {"x": shuffled.batch(batch_size).prefetch(tf.data.AUTOTUNE)}

    def check_training_labels(self, check: Callable[[tuple], None]) -> None:
        """Calls a check with the training data, where that is kept in memory."""
        if not isinstance(self._training, tf.data.Dataset):
            check(self._training)

    def labels_fingerprint(self) -> str | None:
        """Returns a fingerprint of the training labels and weights, kept in memory.

        The inputs are known by the soft targets.
        """
        if isinstance(self._training, tf.data.Dataset):
            return None
        labels = [np.asarray(part) for part in tf.nest.flatten(self._training[1:])]
        return arrays_fingerprint(labels)

    @functools.cached_property
    def validating(self) -> dict[str, Any]:
        """The arguments of `fit` for the validation data."""
        data = self.validation_batches
        count, size = int(data.cardinality()), batch_size_of(data)
        each = datasets.bytes_of(data.unbatch().element_spec)
        if count >= 0 and size is not None and count * size * each <= _IN_MEMORY_BYTES:
            arrays = datasets.to_arrays(data)
            return {
                "validation_data": arrays,
                "validation_batch_size": _VALIDATION_BATCH,
            }
        return {"validation_data": data}

    @functools.cached_property
    def validation_batches(self) -> tf.data.Dataset:
        """The validation data in batches.

        Raises:
            TypeError: if it is of no kind that can be read.
            ValueError: if it has no labels, or is endless or empty.
        """
        data = sources.as_dataset(self.validation, True, "validation data")
        if not isinstance(data.element_spec, tuple) or len(data.element_spec) < 2:
            raise ValueError(
                "the validation data brings no labels; it must yield (x, y), since the "
                "best temperature and alpha are chosen by its accuracy."
            )
        count = int(data.cardinality())
        if count == 0:
            raise ValueError(EMPTY_VALIDATION)
        if reading.are_batches(data.element_spec, self._input_shapes):
            return data
        return data.batch(_VALIDATION_BATCH)


def fingerprint(
    batches: tf.data.Dataset, look: Callable[[tuple], None] = lambda batch: None
) -> list:
    """Returns the number of examples, and a number that does not depend on their order.

    Args:
        batches: of examples; labels and weights count too.
        look: called with each.
    """
    count, total = 0, 0
    for batch in batches:
        look(batch)
        parts = [
            tf.strings.as_string(part) if part.dtype == tf.bool else part
            for part in tf.nest.flatten(batch)
        ]
        values = examples_fingerprint(parts).numpy().view("uint64")
        count += len(values)
        total = (total + int(values.sum(dtype="uint64"))) % 2**64
    return [count, f"{total:016x}"]


def check_sendable(train: Any, validation: Any) -> None:
    """Refuses what cannot be sent to another process.

    Raises:
        TypeError: if something is a dataset object.
    """
    for name, data in (("train", train), ("validation", validation)):
        if isinstance(data, tf.data.Dataset):
            raise TypeError(
                f"{name} is a tf.data.Dataset, which cannot be sent to other processes; "
                "with n_jobs > 1 pass (x, y) arrays, or a function without arguments "
                "that returns the dataset."
            )


def check_kind(train: Any) -> None:
    """Refuses training data of an unknown kind, or without labels.

    Raises:
        TypeError: if it is of no kind that can be read, or inputs alone.
        ValueError: if there are no labels, or arrays differ in length.
    """
    if callable(train):
        return
    data = reading.read(train, "training data")
    if isinstance(data, tuple) and len(data) < 2:
        error = ValueError if isinstance(train, tuple) else TypeError
        raise error("train brings no labels; train must be (x, y).")
