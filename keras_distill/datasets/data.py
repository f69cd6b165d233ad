"""`Data`: the shape in which every dataset comes, and what can be asked of datasets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill import progress
from keras_distill.arguments import (
    check_each,
    check_float,
    check_int,
    check_names,
    check_str,
    shown,
)


@dataclasses.dataclass(frozen=True, repr=False)
class Data:
    """A classification dataset, ready for `fit`.

    Attributes:
        name: str.
        train: `tf.data.Dataset` of `(x, y)` batches, shuffled anew each epoch; x float32 or
            tf.string `(batch, *input_shape)`, or a dict of columns by name, which float32,
            int64 or tf.string `(batch,)` fill; y int64 `(batch,)`, the index of a class.
        validation: likewise, in a fixed order.
        test: likewise, in a fixed order.
        class_names: one str per class.
        input_shape: tuple of int, of one example, without the batch axis; `()` for a text;
            for a dict of columns a dict of such tuples, by the same names.
        sizes: number of examples by split name.
        version: of the dataset, str; `None` where it has none.
        column_names: list of str: what the numbers of x are where they were a table's
            columns, in their order; the columns' names of a dict or a text. `None` for
            other data.
        sample_rate: of sound, int in Hz; `None` for other data.

    Raises:
        TypeError: if a split is no dataset, or the sizes are no dict.
        ValueError: if another attribute is of another kind, or the names of `input_shape`
            are not those of the inputs that `train` yields.
    """

    name: str
    train: tf.data.Dataset
    validation: tf.data.Dataset
    test: tf.data.Dataset
    class_names: list[str]
    input_shape: tuple[int, ...] | dict[str, tuple[int, ...]]
    sizes: dict[str, int]
    version: str | None = None
    column_names: list[str] | None = None
    sample_rate: int | None = None

    def __post_init__(self) -> None:
        check_str("name", self.name)
        if self.version is not None:
            check_str("version", self.version)
        kinds = (tf.data.Dataset, tf.distribute.DistributedDataset)
        for split in ("train", "validation", "test"):
            _check_dataset(split, getattr(self, split), kinds)
        if not isinstance(self.sizes, Mapping):
            raise TypeError(
                "sizes must be a dict of the number of examples by split, got "
                f"{shown(self.sizes)}."
            )
        names, rate = self.column_names, self.sample_rate
        checked = {
            "class_names": check_names("class_names", self.class_names),
            "input_shape": _check_input_shape(self.input_shape, self.train),
            "column_names": None
            if names is None
            else check_names("column_names", names),
            "sample_rate": None if rate is None else check_int("sample_rate", rate, 1),
            "sizes": {
                split: check_int(f"sizes[{split!r}]", size, 0, 2**63)
                for split, size in self.sizes.items()
            },
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{count:,} {split}" for split, count in self.sizes.items())
        shape: Any = self.input_shape
        if isinstance(shape, dict):
            shape = f"{len(shape)} columns"
        return f"Data({self.name!r}: {self.classes} classes of {shape}; {sizes})"

    def replace(self, **changes: Any) -> Data:
        """Returns the same data with some attributes replaced.

        Raises:
            TypeError: if there is no such attribute, or as the class says.
            ValueError: as the class says.
        """
        names = [field.name for field in dataclasses.fields(self)]
        if unknown := set(changes) - set(names):
            raise TypeError(
                f"Data has no {' or '.join(sorted(unknown))}; it has {', '.join(names)}."
            )
        return dataclasses.replace(self, **changes)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def _check_input_shape(value: Any, train: Any) -> Any:
    """Returns the shape of an example; by name, where the examples are dicts."""

    def shape(name: str, sizes: Any) -> tuple[int, ...]:
        size = lambda what, one: check_int(what, one, 1)  # noqa: E731
        return tuple(check_each(name, sizes, size, "whole numbers"))

    if not isinstance(value, Mapping):
        return shape("input_shape", value)
    spec = train.element_spec
    x = spec[0] if isinstance(spec, tuple) else spec
    if not value or not isinstance(x, Mapping) or set(x) != set(value):
        has = ", ".join(map(repr, x)) if isinstance(x, Mapping) else "no dict"
        raise ValueError(
            "input_shape by name must name the inputs that train yields, which are "
            f"{has}; got {shown(value)}."
        )
    return {name: shape(f"input_shape[{name!r}]", value[name]) for name in value}


def _check_dataset(
    name: str, value: Any, kinds: tuple[type, ...] = (tf.data.Dataset,)
) -> None:
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be a tf.data.Dataset, got {shown(value)}.")


def fits_in_memory(data: Data, limit: int = 2_000_000_000) -> bool:
    """Tells whether the training examples take no more bytes than the limit.

    Raises:
        TypeError: if it is no `Data`.
        ValueError: if the limit is no number of bytes.
    """
    if not isinstance(data, Data):
        raise TypeError(f"data must be what load returns, got {shown(data)}.")
    check_float("limit", limit, "a number of bytes >= 0", lambda count: count >= 0)
    spec = data.train.element_spec
    # Single examples, as batch_size=None loads them, have labels without axes.
    is_batched = all(part.shape.rank != 0 for part in tf.nest.flatten(spec))
    example = data.train.unbatch().element_spec if is_batched else spec
    return data.sizes["train"] * bytes_of(example) <= limit


def bytes_of(example: Any) -> float:
    """Returns how much memory an example takes; infinite where that is not fixed.

    Args:
        example: its specs, in any structure.

    Raises:
        TypeError: if they are no specs.
    """
    specs = tf.nest.flatten(example)
    if not all(isinstance(spec, tf.TypeSpec) for spec in specs):
        raise TypeError(
            f"example must be specs, as dataset.element_spec, got {shown(example)}."
        )
    if not all(isinstance(s, tf.TensorSpec) for s in specs):  # sparse, ragged
        return math.inf
    if any(s.dtype == tf.string or not s.shape.is_fully_defined() for s in specs):
        return math.inf
    return sum(spec.shape.num_elements() * spec.dtype.size for spec in specs)


def to_arrays(dataset: tf.data.Dataset, description: str | None = None) -> Any:
    """Returns all of a dataset of batches as arrays, in its order.

    Args:
        dataset: finite, of batches that fit into memory together.
        description: of a progress bar; `None` (default) for no bar.

    Returns:
        What the dataset yields, as `(x, y)`, with all examples on the first axis.

    Raises:
        TypeError: if it is no dataset.
        ValueError: if it is empty, endless, not batched, or its batches do not fit together.
    """
    _check_dataset("dataset", dataset)
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("the dataset is endless; give it before repeat(), or take(n).")
    specs = tf.nest.flatten(dataset.element_spec)
    if any(not isinstance(spec, tf.TensorSpec) for spec in specs):
        raise ValueError(
            "the dataset has sparse or ragged tensors, which are no arrays; map them to "
            "dense ones, as with tf.sparse.to_dense or to_tensor()."
        )
    if any(spec.shape.rank == 0 for spec in specs):
        raise ValueError("the dataset is not in batches; give dataset.batch(1000).")
    total = max(0, int(dataset.cardinality())) or None
    shown_as = (description or "", "batch", total, description is not None)
    parts = list(progress.each(dataset.as_numpy_iterator(), *shown_as))
    if not parts:
        raise ValueError("the dataset is empty; check how it was split.")
    try:
        return tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
    except ValueError as error:
        raise ValueError(
            f"the batches do not fit together: {error}; pad all to one shape."
        ) from error
