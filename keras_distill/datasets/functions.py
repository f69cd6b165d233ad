"""Data that a function of the user's returns."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill.arguments import shown
from keras_distill.datasets.data import Data
from keras_distill.datasets.parts import SPLITS, Parts
from keras_distill.datasets.splits import check_class_names, draw_missing
from keras_distill.named_functions import function_named
from keras_distill.showing import in_brief

_TAKEN = (
    "return a Data, arrays (x, y), or three splits (train, validation, test), each a "
    "tf.data.Dataset of (x, y) or arrays (x, y), or None"
)
_MOST_CLASSES = 2**20
# Namespaces of TFDS, as in "huggingface:glue".
_NAMESPACES = ("huggingface", "kubric", "robotics")


def is_function(name: str) -> bool:
    """Tells whether a name is "module:function"; versions follow TFDS's colons."""
    module, colon, function = name.partition(":")
    dotted = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
    return bool(
        colon
        and module not in _NAMESPACES
        and re.fullmatch(dotted, module)
        and re.fullmatch(r"[^\W\d]\w*", function)
    )


def function_parts(name: str, validation_fraction: float) -> Parts:
    """Returns the data of a function without arguments.

    Raises:
        ValueError: if there is no such function, it raises, or returns something else.
    """
    example = "my_data:load for the function load() of my_data.py"
    function = function_named(name, "data", example, "to load data")
    try:
        returned = function()
    except (Exception, SystemExit) as error:  # whatever a user's function may raise
        said = " ".join(str(error).split()).rstrip(".") or "without a word"
        raise ValueError(
            f"the data's function {name}, called without arguments, raised "
            f"{type(error).__name__}: {said}."
        ) from error
    if isinstance(returned, Data):
        return _of_data(name, returned)
    return _of_splits(name, _splits(name, returned), validation_fraction)


def _of_data(name: str, data: Data) -> Parts:
    if not {*SPLITS} <= set(data.sizes):
        raise ValueError(
            f"the Data of {name} has the sizes {data.sizes}; say those of {', '.join(SPLITS)}."
        )
    check_class_names(f"the Data of {name}", data.class_names)
    if data.classes < 2:
        raise ValueError(
            f"the Data of {name} has the class names {data.class_names}; give two at least."
        )
    splits = {}
    for split in SPLITS:
        dataset = _single(_checked(name, split, getattr(data, split)))
        splits[split] = _counted(dataset, data.sizes[split])
    _check_same_inputs(name, splits)
    spec = splits["train"].element_spec[0]
    shape = data.input_shape
    is_single = isinstance(spec, tf.TensorSpec) and not isinstance(shape, Mapping)
    if is_single and not spec.shape.is_compatible_with(shape):
        raise ValueError(
            f"the Data of {name} has the input_shape {shape}, and its examples are "
            f"{in_brief(spec)}; say their shape."
        )
    return Parts(
        splits,
        data.class_names,
        data.input_shape,
        {split: data.sizes[split] for split in SPLITS},
        version=data.version,
        column_names=data.column_names,
        sample_rate=data.sample_rate,
    )


def _splits(name: str, returned: Any) -> dict[str, Any]:
    """Returns what was returned, by split: a dataset or a pair of arrays each."""

    def is_pair(value: Any, kinds: Any = (tuple, list)) -> bool:
        is_two = isinstance(value, kinds) and len(value) == 2
        return is_two and not any(isinstance(v, tf.data.Dataset) for v in value)

    given = [returned]
    if isinstance(returned, (tuple, list)) and not (
        is_pair(returned) and not all(is_pair(value, tuple) for value in returned)
    ):
        given = list(returned)
        if (
            all(map(is_pair, given)) and len(given) == 2
        ):  # as keras.datasets.mnist.load_data()
            given.insert(1, None)
    is_split = lambda v: isinstance(v, tf.data.Dataset) or is_pair(v)  # noqa: E731
    if (
        len(given) not in (1, 3)
        or not is_split(given[0])
        or not all(value is None or is_split(value) for value in given[1:])
    ):
        raise ValueError(
            f"the data's function {name} returned {_described(returned)}; {_TAKEN}."
        )
    pairs = zip(SPLITS, given, strict=False)
    return {split: value for split, value in pairs if value is not None}


def _described(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        kinds = ", ".join(type(one).__name__ for one in value)
        return f"a {type(value).__name__} of {len(value)} ({kinds})"
    return "None" if value is None else f"one {type(value).__name__}"


def _of_splits(name: str, given: dict[str, Any], validation_fraction: float) -> Parts:
    splits: dict[str, Any] = {}
    labels = {}
    for split, value in given.items():
        if isinstance(value, tf.data.Dataset):
            splits[split] = _single(_checked(name, split, value))
            labels[split] = _read_labels(name, split, splits[split])
        else:
            x, y = (_array(name, split, part) for part in value)
            _check_lengths(name, split, x, y)
            labels[split] = _check_labels(name, split, y)
            splits[split] = x, labels[split]
    classes = int(max(y.max() for y in labels.values())) + 1
    if classes > _MOST_CLASSES:
        raise ValueError(
            f"the labels of {name} go up to {classes - 1:,}, which would be as many classes; "
            "number the classes from 0, as numpy.unique(y, return_inverse=True) does."
        )
    if (count := len(set(labels["train"].tolist()))) < 2:
        raise ValueError(
            f"the training data of {name} has {count} class; give two at least."
        )
    class_names = [str(i) for i in range(classes)]
    for split, found in labels.items():
        if len(unseen := np.setdiff1d(found, labels["train"])):
            warnings.warn(
                f"the {split} labels of {name} have the class {unseen[0]}, which those of "
                "train have not; a student is not taught it.",
                stacklevel=5,
            )
    drawn = draw_missing(
        labels["train"], labels, validation_fraction, class_names, name
    )
    if len(drawn) > 1 and isinstance(splits["train"], tf.data.Dataset):
        _check_order(name, splits["train"], labels["train"])
    train = splits["train"], labels["train"]
    for split, chosen in drawn.items():
        splits[split], labels[split] = _chosen(*train, chosen)
    for split, value in splits.items():
        if not isinstance(value, tf.data.Dataset):
            value = _dataset(name, split, value)
        splits[split] = _counted(value.map(_prepared), len(labels[split]))
    _check_same_inputs(name, splits)
    return Parts(
        {split: splits[split] for split in SPLITS},
        class_names,
        _shape(name, splits["train"].element_spec[0]),
        {split: len(labels[split]) for split in SPLITS},
    )


def _counted(dataset: tf.data.Dataset, size: int) -> tf.data.Dataset:
    """Returns a dataset that knows its size, which unbatch and filter do not."""
    return dataset.apply(tf.data.experimental.assert_cardinality(size))


def _read_labels(name: str, split: str, dataset: tf.data.Dataset) -> np.ndarray:
    """Returns all labels, which say the classes and the size; a `Data` would spare it."""
    try:
        found = list(dataset.map(lambda x, y: y).batch(4096).as_numpy_iterator())
    except tf.errors.OpError as error:
        raised = re.search(r"\b\w+: .+", error.message)  # what Python raised, if it did
        said = raised[0] if raised else error.message.split("\n")[0]
        raise ValueError(
            f"the {split} dataset of {name} cannot be read: {said.strip(' .')}."
        ) from error
    if not found:
        raise ValueError(
            f"the {split} dataset of {name} is empty; check how it is made."
        )
    return _check_labels(name, split, np.concatenate(found))


def _check_order(name: str, train: tf.data.Dataset, labels: np.ndarray) -> None:
    """Refuses a dataset in another order each time: what is drawn from it by place would mix."""
    first = train.take(1000)
    again = _read_labels(name, "train", first)
    if (again != labels[: len(again)]).any():
        raise ValueError(
            f"the train dataset of {name} comes in another order each time, so no "
            "validation or test can be kept from it; return it before shuffle(), or with "
            "reshuffle_each_iteration=False, or return all three splits."
        )


def _dataset(name: str, split: str, pair: Any) -> tf.data.Dataset:
    try:
        return tf.data.Dataset.from_tensor_slices(pair)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the {split} arrays of {name} make no tensors ({error}); give numbers or "
            "strings, of one kind in each array: of a table, dict(frame), the columns by name."
        ) from error


def _array(name: str, split: str, value: Any) -> Any:
    """Returns an array, or a dict of them.

    Raises:
        ValueError: if it is something else, as a generator.
    """
    if isinstance(value, Mapping):
        return {key: _array(name, split, part) for key, part in value.items()}
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of several lengths
        raise ValueError(
            f"the {split} arrays of {name} make no array ({error}); pad all examples to one "
            "size."
        ) from error
    if not array.ndim:
        raise ValueError(
            f"the {split} data of {name} has {_described(value)} where arrays belong; give "
            "arrays (x, y), dense and with as many examples."
        )
    if array.dtype.kind == "c":
        raise ValueError(
            f"the {split} arrays of {name} are {array.dtype}, which no layer takes; give their "
            "real and imaginary parts."
        )
    return array


def _check_same_inputs(name: str, splits: dict[str, tf.data.Dataset]) -> None:
    """Refuses splits of which one could not be judged by what another trained."""
    specs = {split: dataset.element_spec[0] for split, dataset in splits.items()}

    def is_alike(one: Any, other: Any) -> bool:
        if isinstance(one, Mapping) or isinstance(other, Mapping):
            are = isinstance(one, Mapping) and isinstance(other, Mapping)
            return (
                are
                and one.keys() == other.keys()
                and all(is_alike(one[key], other[key]) for key in one)
            )
        return isinstance(one, tf.TypeSpec) and one.is_compatible_with(other)

    for split, spec in specs.items():
        if not is_alike(spec, specs["train"]):
            raise ValueError(
                f"the {split} inputs of {name} are {in_brief(spec)} and those of train "
                f"{in_brief(specs['train'])}; prepare both alike."
            )


def _check_lengths(name: str, split: str, x: Any, y: Any) -> None:
    lengths = {len(part) if part.ndim else 0 for part in tf.nest.flatten((x, y))}
    if len(lengths) > 1 or lengths == {0}:
        raise ValueError(
            f"the {split} arrays of {name} have {' and '.join(map(str, sorted(lengths)))} "
            "examples; give x and y as many, and one at least."
        )


def _checked(name: str, split: str, dataset: tf.data.Dataset) -> tf.data.Dataset:
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ValueError(
            f"the {split} dataset of {name} yields {shown(spec)}; map it to pairs (x, y)."
        )
    if not isinstance(spec[1], tf.TensorSpec) or spec[1].shape.rank not in (0, 1):
        raise ValueError(
            f"the {split} labels of {name} are {shown(spec[1])}; give the index of a class "
            "each, in batches or single (of one-hot labels, argmax)."
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            f"the {split} dataset of {name} is endless; return it before repeat()."
        )
    return dataset


def _single(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns single examples, of batches or of such."""
    label = dataset.element_spec[1]
    return dataset.unbatch() if label.shape.rank else dataset


def _check_labels(name: str, split: str, y: np.ndarray) -> np.ndarray:
    """Returns the labels as int64, `(examples,)`."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    is_whole = y.dtype.kind in "biu" or (
        y.dtype.kind == "f" and bool((np.isfinite(y) & (y == np.floor(y))).all())
    )
    if y.ndim != 1 or not len(y) or not is_whole or y.min() < 0:
        raise ValueError(
            f"the {split} labels of {name} are {y.dtype} of shape {y.shape}, as "
            f"{shown(y[:1].tolist())}; give the index of a class each, >= 0 (of one-hot "
            "labels, argmax)."
        )
    return y.astype("int64")


def _prepared(x: Any, y: tf.Tensor) -> tuple[Any, tf.Tensor]:
    """Returns numbers as float32, but whole numbers of a dict or of more than 8 bits."""
    is_dict = isinstance(x, Mapping)

    def number(part: tf.Tensor) -> tf.Tensor:
        if part.dtype.is_floating or (part.dtype.size == 1 and not is_dict):
            return tf.cast(part, tf.float32)
        return part

    return tf.nest.map_structure(number, x), tf.cast(tf.reshape(y, ()), tf.int64)


def _chosen(train: Any, labels: np.ndarray, chosen: np.ndarray) -> tuple[Any, Any]:
    """Returns the examples of the places given: of a dataset in its own order."""
    if not isinstance(train, tf.data.Dataset):
        return tf.nest.map_structure(lambda a: a[chosen], train), labels[chosen]
    if len(chosen) == len(labels):
        return train, labels
    is_chosen = np.zeros(len(labels), bool)
    is_chosen[chosen] = True
    table = tf.constant(is_chosen)
    picked = train.enumerate().filter(lambda i, _: tf.gather(table, i))
    return picked.map(lambda _, pair: pair), labels[is_chosen]


def _shape(name: str, spec: Any) -> Any:
    if isinstance(spec, Mapping):
        return {key: _shape(name, part) for key, part in spec.items()}
    if not isinstance(spec, tf.TensorSpec) or not spec.shape.is_fully_defined():
        raise ValueError(
            f"an example of {name} is {spec}, whose size is not fixed; pad, crop or resize "
            "it, or return one dense tensor each."
        )
    return tuple(spec.shape)
