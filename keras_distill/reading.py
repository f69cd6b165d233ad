"""The one reader of data: of whatever Keras's `fit` takes, arrays or a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import keras_compat

#: Examples of a batch of sparse arrays, which are made dense batch by batch.
_SPARSE_ROWS = 128

TAKEN = (
    "(x, y) arrays, pandas tables or tensors, a tf.data.Dataset, a keras.utils.PyDataset, a "
    "torch DataLoader, or a function that returns such a dataset"
)


def read(data: Any, what: str = "dataset") -> Any:
    """Returns data as dense arrays, or as a dataset of dense tensors that can be read again.

    As Keras has it, a tuple is `(x,)`, `(x, y)` or `(x, y, sample_weight)`; a list is
    several inputs.

    Args:
        data: arrays, tables or tensors in such a tuple, or of inputs alone; a
            `tf.data.Dataset`, a `PyDataset` or a torch `DataLoader`; or a function that
            returns one.
        what: it is, for messages.

    Returns:
        A `tf.data.Dataset`; or, of arrays, a tuple `(x,)`, `(x, y)` or `(x, y,
        sample_weight)` of NumPy arrays and tensors of one length, lists in it as tuples.
        Of sparse arrays a dataset of batches.

    Raises:
        TypeError: if it is none of these, or can be read only once.
        ValueError: if arrays differ in length, or hold neither numbers nor strings; or it
            is ragged or endless.
    """
    if callable(data):
        data = data()
        if not (isinstance(data, tf.data.Dataset) or keras_compat.is_batches(data)):
            raise TypeError(
                f"the function given as {what} must return a tf.data.Dataset, got "
                f"{type(data).__name__}."
            )
    if isinstance(data, tf.data.Dataset):
        return _dense(data, what)
    if keras_compat.is_batches(data):
        return _dense(_of_batches(data, what), what)
    if isinstance(data, Iterator):
        raise TypeError(
            f"the {what} is a generator, which can be read only once; give arrays, a "
            "keras.utils.PyDataset, or a tf.data.Dataset of it that says its end, as "
            "tf.data.Dataset.from_generator(make_generator, output_signature=...).apply("
            "tf.data.experimental.assert_cardinality(n))."
        )
    return _arrays(data, what)


def inputs_of(element: Any) -> Any:
    """Returns x of an element `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`."""
    return element[0] if isinstance(element, tuple) else element


def are_batches(element: Any, shapes: Any) -> bool:
    """Tells a dataset of batches from one of examples.

    As Keras has it, an axis of 1 at the end of an input may be left out, or be too much.

    Args:
        element: specs of an element.
        shapes: of the inputs with the batch axis, or only how many axes they have: a list,
            or a dict by the input's name.

    Raises:
        ValueError: if it is neither, or does not say.
    """
    x, names = inputs_of(element), list(shapes) if isinstance(shapes, dict) else []
    if names and isinstance(x, Mapping) and set(names) <= set(x):
        x = [x[name] for name in names]
    wanted = shapes.values() if names else shapes
    wanted = [(None,) * s if isinstance(s, int) else tuple(s) for s in wanted]
    given = [spec.shape for spec in tf.nest.flatten(x)]
    if any(shape.rank is None for shape in given):
        raise ValueError(
            "the dataset does not say the shapes of its elements; say batched=True or "
            "False, or give it shapes with tf.ensure_shape."
        )
    ranks, more = sorted(map(len, given)), sorted(map(len, wanted))
    if ranks == more:
        return True
    labels = tf.nest.flatten(element[1]) if len(_parts(element)) > 1 else []
    is_single = any(spec.shape.rank == 0 for spec in labels)
    as_batch = not is_single and _fit(given, wanted)
    if ranks == [rank - 1 for rank in more]:
        # Of inputs (batch, 1), these may be batches without the last axis.
        return as_batch and any(shape[:1] != [1] for shape in given)
    if as_batch or _fit([tf.TensorShape([None, *s]) for s in given], wanted):
        return bool(as_batch)
    raise ValueError(
        f"the dataset's inputs have {ranks} axes; batches would have {more}, examples one "
        "less. Give the inputs as at writing, or say batched=True or False."
    )


def _parts(element: Any) -> tuple:
    return element if isinstance(element, tuple) else (element,)


def _fit(given: list, wanted: list) -> bool:
    """Tells whether Keras would take batches of such shapes, for the axes they have."""
    return len(given) == len(wanted) and all(
        len(a) == len(b)
        or (len(a) == len(b) - 1 and b[-1] == 1)
        or (len(a) == len(b) + 1 and a[-1] == 1)
        for a, b in zip(given, wanted, strict=True)
    )


def check_lengths(arrays: Any, what: str) -> int:
    """Returns the number of examples of arrays.

    Raises:
        ValueError: if their lengths differ.
    """
    lengths = {int(array.shape[0]) for array in keras.tree.flatten(arrays)}
    if len(lengths) > 1:
        raise ValueError(
            f"the arrays of the {what} have different lengths: {sorted(lengths)}."
        )
    return lengths.pop()


def _arrays(data: Any, what: str) -> Any:
    parts = data if isinstance(data, tuple) else (data,)
    while len(parts) > 1 and parts[-1] is None:
        parts = parts[:-1]
    if not 1 <= len(parts) <= 3:
        raise TypeError(
            f"the {what} must be (x,), (x, y) or (x, y, sample_weight), got a tuple of "
            f"{len(parts)}; several inputs are a list: ([a, b], y)."
        )
    if len(parts) > 1 and parts[1] is None:
        raise ValueError(
            f"the {what} has sample weights but no labels; it must be (x, y, sample_weight)."
        )
    parts = tuple(map(_of_tuples, parts))
    flat = keras.tree.flatten(parts)
    if not flat or not all(map(keras_compat.is_array, flat)):
        kinds = ", ".join(dict.fromkeys(type(part).__name__ for part in flat))
        raise TypeError(f"the {what} must be {TAKEN}; got {_kinds(data) or kinds}.")
    parts = keras.tree.map_structure(lambda one: _plain(one, what), parts)
    count = check_lengths(parts, what)
    if not any(map(_is_sparse, keras.tree.flatten(parts))):
        return parts
    return _dense_batches(parts, count)


def _kinds(data: Any) -> str:
    name = type(data).__name__
    if not isinstance(data, tuple):
        return name
    return f"{name} of {', '.join(type(part).__name__ for part in data)}"


def _of_tuples(structure: Any) -> Any:
    """Returns inputs or labels in which lists are tuples, which tf.data takes."""
    if isinstance(structure, (list, tuple)):
        return tuple(map(_of_tuples, structure))
    if isinstance(structure, Mapping):
        return {key: _of_tuples(part) for key, part in structure.items()}
    return structure


def _is_sparse(array: Any) -> bool:
    return isinstance(array, tf.SparseTensor)


def _plain(array: Any, what: str) -> Any:
    """Returns a NumPy array, a dense tensor or a sparse one."""
    if isinstance(array, tf.RaggedTensor):
        raise ValueError(_RAGGED.format(what))
    if isinstance(array, (tf.Variable, keras.Variable)):
        array = tf.convert_to_tensor(array)
    if not (isinstance(array, tf.SparseTensor) or tf.is_tensor(array)):
        try:
            array = keras_compat.as_numpy_or_sparse(array)
        except (TypeError, ValueError) as error:
            dtypes = keras_compat.dtypes_of(array)
            raise ValueError(not_read(f"the {what}", dtypes)) from error
    if not array.shape:
        raise ValueError(
            f"the {what} holds a single number; give arrays of one row per example."
        )
    if not isinstance(array, np.ndarray):
        return array
    is_text = array.dtype == object and all(
        isinstance(one, (str, bytes)) for one in array.reshape(-1)
    )
    if array.dtype == object and not is_text:
        raise ValueError(
            f"the {what} has an array of dtype object that does not hold strings; give it "
            "as numbers, as by .astype('float32'), or text as str."
        )
    if array.dtype.kind in "mM":
        raise ValueError(
            f"the {what} has dtype {array.dtype}; give dates and times as numbers, as "
            "seconds."
        )
    if array.dtype.kind not in "OSU":
        try:
            keras.backend.standardize_dtype(array.dtype)
        except ValueError as error:
            raise ValueError(not_read(f"the {what}", str(array.dtype))) from error
    return array


def not_read(what: str, dtypes: str) -> str:
    """Returns the message for arrays or tables of a dtype that Keras does not read."""
    return (
        f"{what} of dtype {dtypes} cannot be read by Keras; give numbers, as by "
        ".astype('float32'), after filling missing values and numbering categories and dates."
    )


_RAGGED = (
    "the {} is ragged: its examples differ in shape. Pad them to one, as with x.to_tensor() "
    "or map(lambda x, y: (x.to_tensor(shape=[None, length]), y))."
)


def _dense_batches(parts: tuple, count: int) -> tf.data.Dataset:
    """Returns batches of arrays some of which are sparse, made dense one by one."""
    slices = keras.tree.map_structure(
        lambda a: (
            keras_compat.rows_of(a)
            if _is_sparse(a)
            else lambda first, last: a[first:last]
        ),
        parts,
    )
    specs = keras.tree.map_structure(
        lambda a: tf.TensorSpec((None, *a.shape[1:]), a.dtype), parts
    )
    batches = tf.data.Dataset.from_generator(
        lambda: (
            keras.tree.map_structure(
                lambda rows, start=start: rows(start, min(start + _SPARSE_ROWS, count)),
                slices,
            )
            for start in range(0, count, _SPARSE_ROWS)
        ),
        output_signature=specs,
    )
    number = -(-count // _SPARSE_ROWS)
    return batches.apply(tf.data.experimental.assert_cardinality(number))


def _of_batches(data: Any, what: str) -> tf.data.Dataset:
    """Returns the batches of a `PyDataset` or a `DataLoader`, as Keras reads them."""
    dataset, count = keras_compat.dataset_of(data)
    if count is None:
        raise ValueError(
            f"the {what} does not say how many batches it has, and may be endless; give it "
            "a length."
        )
    return dataset.apply(tf.data.experimental.assert_cardinality(count))


def _dense(dataset: tf.data.Dataset, what: str) -> tf.data.Dataset:
    """Returns a dataset of dense tensors."""
    spec = dataset.element_spec
    if isinstance(spec, tuple) and not 1 <= len(spec) <= 3:
        raise ValueError(
            f"the {what} yields tuples of {len(spec)}; it must yield x, (x, y) or (x, y, "
            "sample_weight), several inputs as one dict or tuple x."
        )
    flat = tf.nest.flatten(spec)
    if any(isinstance(one, tf.RaggedTensorSpec) for one in flat):
        raise ValueError(_RAGGED.format(what))
    if not any(isinstance(one, tf.SparseTensorSpec) for one in flat):
        return dataset

    def densified(*element: Any) -> Any:
        element = element if isinstance(spec, tuple) else element[0]
        return tf.nest.map_structure(
            lambda one: (
                tf.sparse.to_dense(tf.sparse.reorder(one)) if _is_sparse(one) else one
            ),
            element,
        )

    return dataset.map(densified)
