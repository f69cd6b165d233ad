"""Data by name: any TFDS classification dataset, and scikit-learn's digits.

Every dataset comes as `Data`: batched train, validation and test splits, with the
validation split taken from the training examples, never from test.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill import progress
from keras_distill.arguments import (
    check_bool,
    check_each,
    check_float,
    check_int,
    check_names,
    check_path,
    check_str,
    check_verbose,
    shown,
)

_PROBE_SECONDS = 10.0
_IN_MEMORY_BYTES = 1_000_000_000
_MOST_PIXELS = 2**16  # in a row


@dataclasses.dataclass(frozen=True)
class Data:
    """A classification dataset, ready for `fit`.

    Attributes:
        name: str.
        train: `tf.data.Dataset` of `(x, y)` batches, shuffled anew each epoch; x float32
            `(batch, *input_shape)`, y int64 `(batch,)`.
        validation: likewise, in a fixed order; taken from the training examples.
        test: likewise, in a fixed order.
        class_names: one str per class.
        input_shape: of one example, without the batch axis.
        sizes: number of examples by split name.
        version: of the dataset, str; `None` where it has none.

    Raises:
        TypeError: if a split is no dataset, or the sizes are no dict.
        ValueError: if another attribute is of another kind.
    """

    name: str
    train: tf.data.Dataset
    validation: tf.data.Dataset
    test: tf.data.Dataset
    class_names: list[str]
    input_shape: tuple[int, ...]
    sizes: dict[str, int]
    version: str | None = None

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
        checked = {
            "class_names": check_names("class_names", self.class_names),
            "input_shape": tuple(
                check_each("input_shape", self.input_shape, _size, "whole numbers")
            ),
            "sizes": {
                split: check_int(f"sizes[{split!r}]", size, 0, 2**63)
                for split, size in self.sizes.items()
            },
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

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


def _size(name: str, value: Any) -> int | None:
    return None if value is None else check_int(name, value, 1)


def _check_dataset(
    name: str, value: Any, kinds: tuple[type, ...] = (tf.data.Dataset,)
) -> None:
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be a tf.data.Dataset, got {shown(value)}.")


def load(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    batch_size: int | None = 128,
    validation_fraction: float = 0.1,
    image_size: tuple[int, int] | None = None,
    normalize: bool = True,
    shuffle: bool = True,
    seed: int = 0,
    verbose: bool = True,
) -> Data:
    """Loads a classification dataset by its name.

    Args:
        name: "digits" (1797 images of 8x8, shipped with scikit-learn, no network), or a
            TFDS name such as "mnist" or "cifar100:3.0.2".
        data_dir: where TFDS keeps prepared data; `None` (default) is TFDS's own default,
            which `TFDS_DATA_DIR` sets. `~` is the home directory.
        batch_size: int, default 128; `None` for single examples.
        validation_fraction: part of the training examples kept for validation, between
            0 and 1, default 0.1.
        image_size: `(height, width)` in pixels to resize images to, for datasets whose
            images differ in size.
        normalize: whether integer images become float32 in [0, 1]. Default `True`.
        shuffle: whether training examples come in a new order each epoch. Default
            `True`; `False` to write soft targets for them.
        seed: of the shuffling; the splits are the same for every seed.
        verbose: whether to show progress bars.

    Returns:
        `Data`.

    Raises:
        ValueError: if the name is unknown, the dataset has no class labels, or an
            argument is out of range.
        ConnectionError: if the data is not prepared yet and its source does not answer.

    Example:
    >>> data = load("digits", batch_size=32)
    >>> data.input_shape, data.classes, sum(data.sizes.values())
    ((8, 8, 1), 10, 1797)
    """
    name, data_dir, image_size = _check_source(name, data_dir, image_size)
    validation_fraction = check_float(
        "validation_fraction",
        validation_fraction,
        "between 0 and 1",
        lambda fraction: 0.0 < fraction < 1.0,
        "0.1 keeps a tenth of the training examples.",
    )
    if batch_size is not None:
        batch_size = check_int("batch_size", batch_size, 1)
    seed = check_int("seed", seed, 0)
    normalize = check_bool("normalize", normalize)
    shuffle = check_bool("shuffle", shuffle)
    verbose = check_verbose(verbose)
    if name == "digits":
        if not normalize:
            raise ValueError(_DIGITS)
        datasets, class_names, shape, version, prepare = _digits(validation_fraction)
    else:
        datasets, class_names, shape, version, prepare = _tfds(
            name, data_dir, validation_fraction, image_size, normalize, verbose
        )
    sizes = {split: int(dataset.cardinality()) for split, dataset in datasets.items()}
    for split, dataset in datasets.items():
        if split == "train" and shuffle:
            dataset = dataset.shuffle(min(sizes[split], 100_000), seed=seed)
        if prepare is not None:
            dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
        if batch_size is not None:
            dataset = dataset.batch(batch_size)
        datasets[split] = dataset.prefetch(tf.data.AUTOTUNE)
    return Data(
        name=name,
        class_names=class_names,
        input_shape=shape,
        sizes=sizes,
        version=version,
        **datasets,
    )


_DIGITS = (
    "digits are 8x8 images in [0, 1]; image_size and normalize are for TFDS datasets."
)


def _check_source(
    name: Any, data_dir: Any, image_size: Any
) -> tuple[str, str | None, tuple[int, int] | None]:
    """Returns what says which data; a directory without `~`."""
    if not isinstance(name, str) or not name:
        raise ValueError(
            f'name must be "digits" or the name of a TFDS dataset, got {shown(name)}.'
        )
    if data_dir is not None:
        data_dir = check_path("data_dir", data_dir)
        if os.path.isfile(data_dir):
            raise NotADirectoryError(
                f"data_dir {data_dir!r} is a file; give the directory of TFDS's data."
            )
    if image_size is not None:
        if name == "digits":
            raise ValueError(_DIGITS)
        pixels = lambda what, one: check_int(what, one, 1, _MOST_PIXELS)  # noqa: E731
        kind = "whole numbers, (height, width)"
        height, width = check_each("image_size", image_size, pixels, kind, 2, 2)
        image_size = (height, width)
    return name, data_dir, image_size


#: Unbatched splits, class names, the shape of an example, a version, and what prepares one.
_Parts = tuple[
    dict[str, tf.data.Dataset], list[str], tuple[int, ...], str, Callable | None
]


def _digits(validation_fraction: float) -> _Parts:
    import sklearn
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype("float32").reshape(-1, 8, 8, 1)
    y = y.astype("int64")
    held_out = math.ceil(1257 * validation_fraction)  # of seven tenths of 1797
    if not 10 <= held_out <= 1247:
        raise ValueError(
            f"validation_fraction={validation_fraction} of 1257 digits leaves fewer than one "
            "of each class for training or for validation; 0.1 keeps a tenth for validation."
        )
    # The splits are the same for every seed, as those of TFDS are.
    split = functools.partial(train_test_split, random_state=0)
    x, x_test, y, y_test = split(x, y, stratify=y, test_size=0.3)
    x, x_val, y, y_val = split(x, y, stratify=y, test_size=validation_fraction)
    arrays = {"train": (x, y), "validation": (x_val, y_val), "test": (x_test, y_test)}
    datasets = {k: tf.data.Dataset.from_tensor_slices(v) for k, v in arrays.items()}
    version = f"scikit-learn {sklearn.__version__}"  # which brings them
    return datasets, [str(digit) for digit in range(10)], (8, 8, 1), version, None


def _tfds(
    name: str,
    data_dir: str | os.PathLike | None,
    validation_fraction: float,
    image_size: tuple[int, int] | None,
    normalize: bool,
    verbose: bool,
) -> _Parts:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise ValueError(
            f'there is no dataset {name!r}; give "digits" or a name of '
            "tensorflow_datasets.list_builders()."
        ) from error
    except (AssertionError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0].rstrip(".: ")
        raise ValueError(
            f"no dataset can be made of the name {name!r}: {reason}. Names are as in "
            '"cifar100" or "cifar100:3.0.2".'
        ) from error
    if builder.info.supervised_keys is None:
        raise ValueError(
            f"{name!r} names no input and label (its supervised_keys are None); build a "
            "tf.data.Dataset of (x, y) with tensorflow_datasets and use that."
        )
    input_key, label_key = builder.info.supervised_keys[:2]
    label = builder.info.features[label_key]
    if not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(
            f"{name!r} is not a classification dataset: its {label_key!r} is a "
            f"{type(label).__name__}, not a ClassLabel."
        )
    _prepare(builder)
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    splits = _split_names(counts, validation_fraction)
    datasets = builder.as_dataset(split=splits, as_supervised=True, shuffle_files=False)
    feature = builder.info.features[input_key]
    shape, prepare = _preparation(name, feature, image_size, normalize)
    # Cached whole where it is small: an in-memory cache of tf.data can be cut short by
    # an iterator that is not read to its end.
    sizes = (int(d.cardinality()) * bytes_of(d.element_spec) for d in datasets.values())
    if sum(sizes) <= _IN_MEMORY_BYTES:
        for split, dataset in datasets.items():
            description = f"reading {name} {split}" if verbose else None
            arrays = to_arrays(dataset.batch(1000), description)
            datasets[split] = tf.data.Dataset.from_tensor_slices(arrays)
    class_names = [label.int2str(i) for i in range(label.num_classes)]
    return datasets, class_names, shape, str(builder.info.version), prepare


def _split_names(
    available: dict[str, int], validation_fraction: float
) -> dict[str, str]:
    """Returns TFDS split expressions; validation comes out of train alone.

    Args:
        available: number of examples by split.
        validation_fraction: of the training examples.
    """
    if "train" not in available:
        raise ValueError(f"the dataset has no train split, only {list(available)}.")
    held_out = next((s for s in ("test", "validation") if s in available), None)
    # Without a test split, the last fifth of train becomes one.
    end = available["train"] if held_out else available["train"] * 4 // 5
    boundary = end - max(1, round(end * validation_fraction))
    if boundary < 1:
        raise ValueError(
            f"validation_fraction={validation_fraction} of {end} examples leaves none to "
            "train on; 0.1 keeps a tenth for validation."
        )
    return {
        "train": f"train[:{boundary}]",
        "validation": f"train[{boundary}:{end}]",
        "test": held_out or f"train[{end}:]",
    }


def _preparation(
    name: str, feature: Any, image_size: tuple[int, int] | None, normalize: bool
) -> tuple[tuple[int, ...], Callable]:
    """Returns the shape of an example and the function that prepares one."""
    shape = feature.shape
    is_image = len(shape) == 3 and feature.np_dtype == np.uint8
    if image_size is not None and not is_image:
        raise ValueError(
            f"the inputs of {name!r} are no images of 8 bits, but {feature}; leave image_size "
            "out."
        )
    if is_image and image_size is not None:
        shape = (*image_size, shape[-1])
    if None in shape:
        raise ValueError(
            f"the inputs of {name!r} have shape {shape}, so they do not batch; pass "
            "image_size=(height, width)."
        )

    def prepare(x: Any, y: Any) -> tuple[Any, Any]:
        if is_image and image_size is not None:
            x = tf.image.resize(x, image_size)
        if x.dtype != tf.string:
            x = tf.cast(x, tf.float32)
            if is_image and normalize:
                x = x / 255.0
        return x, y

    return tuple(shape), prepare


def _prepare(builder: Any) -> None:
    """Downloads and prepares a dataset, after making sure that its source answers."""
    import tensorflow_datasets as tfds

    if builder.is_prepared():
        return
    url = next((url for url in builder.url_infos if url.startswith("http")), None)
    if url and (reason := _why_unreachable(url)):
        raise ConnectionError(
            f"{builder.info.full_name!r} is not prepared in {builder.data_dir}, and its "
            f"source {url} does not answer ({reason}). Prepare it where there is a network, "
            f"with tensorflow_datasets.load({builder.name!r}, data_dir=...), copy that folder "
            "here and pass it as data_dir or set TFDS_DATA_DIR; or use 'digits', offline."
        )
    if not progress.is_live():
        tfds.disable_progress_bar()
    builder.download_and_prepare()


def _why_unreachable(url: str) -> str | None:
    """Returns why a source does not answer within ten seconds, or `None` if it does.

    TFDS itself retries for over three minutes before it says so.
    """
    reason: list[str | None] = [f"no answer within {_PROBE_SECONDS:g} s"]

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
                reason[0] = None
        except urllib.error.HTTPError:
            reason[0] = None  # it answered; what it says of HEAD does not matter
        except OSError as error:
            reason[0] = str(getattr(error, "reason", error))

    # A name server that does not answer ignores the timeout: hence the thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return reason[0]


def loader(
    name: str,
    data_dir: str | os.PathLike | None = None,
    image_size: tuple[int, int] | None = None,
) -> Callable[..., Data]:
    """Returns `fn(batch_size=256)` that loads a dataset in order, in any process.

    Args:
        name: as for `load`.
        data_dir: as for `load`.
        image_size: as for `load`.

    Raises:
        ValueError: if an argument is of another kind or out of range.
    """
    name, data_dir, image_size = _check_source(name, data_dir, image_size)
    main_process = os.getpid()
    in_order = functools.partial(
        load, name, data_dir=data_dir, image_size=image_size, shuffle=False
    )

    def load_here(batch_size: int | None = 256) -> Data:
        return in_order(batch_size=batch_size, verbose=os.getpid() == main_process)

    return load_here


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
