"""`load`: which source a name means, and the batches made of what it gives."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_distill.arguments import (
    check_bool,
    check_each,
    check_float,
    check_int,
    check_path,
    check_verbose,
    shown,
)
from keras_distill.datasets import digits, tfds
from keras_distill.datasets.data import Data
from keras_distill.datasets.parts import Parts

_MOST_PIXELS = 2**16  # in a row


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
            raise ValueError(digits.NO_OPTIONS)
        parts = digits.digits_parts(validation_fraction)
    else:
        parts = tfds.tfds_parts(
            name, data_dir, validation_fraction, image_size, normalize, verbose
        )
    return _batched(name, parts, batch_size, shuffle, seed)


def _batched(
    name: str, parts: Parts, batch_size: int | None, shuffle: bool, seed: int
) -> Data:
    splits = {}
    for split, dataset in parts.splits.items():
        if split == "train" and shuffle:
            dataset = dataset.shuffle(min(parts.sizes[split], 100_000), seed=seed)
        if parts.prepare is not None:
            dataset = dataset.map(parts.prepare, num_parallel_calls=tf.data.AUTOTUNE)
        if batch_size is not None:
            dataset = dataset.batch(batch_size)
        splits[split] = dataset.prefetch(tf.data.AUTOTUNE)
    return Data(
        name=name,
        class_names=parts.class_names,
        input_shape=parts.input_shape,
        sizes=parts.sizes,
        version=parts.version,
        **splits,
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
            raise ValueError(digits.NO_OPTIONS)
        pixels = lambda what, one: check_int(what, one, 1, _MOST_PIXELS)  # noqa: E731
        kind = "whole numbers, (height, width)"
        height, width = check_each("image_size", image_size, pixels, kind, 2, 2)
        image_size = (height, width)
    return name, data_dir, image_size


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
