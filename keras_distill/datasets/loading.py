"""`load`: which source a name means, and the batches made of what it gives."""

from __future__ import annotations

import functools
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from keras_distill.arguments import (
    check_bool,
    check_choice,
    check_each,
    check_float,
    check_int,
    check_path,
    check_verbose,
    shown,
)
from keras_distill.datasets import digits, functions, images, sound, tables, tfds
from keras_distill.datasets.data import Data
from keras_distill.datasets.folders import listed, read_folder
from keras_distill.datasets.parts import Parts
from keras_distill.datasets.table_files import is_table

_MOST_PIXELS = 2**16  # in a row


class _Source(NamedTuple):
    """Which data, and what its kind takes; checked.

    Attributes:
        kind: "digits", "tfds", "function", "table" or "folder".
        name: for people.
        place: an absolute path, or the name.
    """

    kind: str
    name: str
    place: str
    data_dir: str | None
    image_size: tuple[int, int] | None
    color_mode: str | None
    label: str | int | None
    seconds: float | None
    sample_rate: int | None


def load(
    name: str | os.PathLike,
    *,
    data_dir: str | os.PathLike | None = None,
    batch_size: int | None = 128,
    validation_fraction: float = 0.1,
    image_size: tuple[int, int] | None = None,
    normalize: bool = True,
    shuffle: bool = True,
    seed: int = 0,
    verbose: bool = True,
    label: str | int | None = None,
    color_mode: str | None = None,
    seconds: float | None = None,
    sample_rate: int | None = None,
) -> Data:
    """Loads a classification dataset by its name, its path, or a function of one's own.

    Splits that the data lacks are drawn from its training examples, the same for every seed:
    of each class the same part, and one at least is left to train on. Test, where it is
    missing, gets a fifth of all (of TFDS, the last fifth), then validation its part of the
    rest. Training examples of files are in a fixed drawn order before they are shuffled;
    validation and test are in that of the files. What takes no more than 1 GB is held in
    memory, other files are read as they are needed.

    Args:
        name: one of:

            - "digits": 1797 images of 8x8, shipped with scikit-learn, no network.
            - a TFDS name, such as "mnist" or "cifar100:3.0.2". Recordings, as of
              "spoken_digit", come as those of a folder do.
            - a folder of images by class, as cats/1.jpg and dogs/2.png (JPEG, PNG, BMP, GIF,
              whose first picture is taken; decoded as by
              `keras.utils.image_dataset_from_directory`), or one with such folders in train,
              validation and test folders. x is float32 `(height, width, channels)`.
            - a folder of .wav files by class, likewise. x is a waveform, float32
              `(samples,)` in [-1, 1], or as they are in files of floats; the mean of the
              channels.
            - a table: .csv, .tsv or .parquet (`keras-distill[tables]`), or a folder of a train
              table, and perhaps validation and test. x is float32 `(columns,)` where all
              columns but the label's are numbers (or booleans); tf.string `()` where it is one
              column of text; else a dict of float32, int64 and tf.string `()` by the
              columns' names, as `keras.utils.FeatureSpace` takes it. In .tsv, quotes are text.
              A column of text whose cells look like numbers is warned of.
            - "module:function": a function without arguments of a module that can be
              imported or is in the working folder. It returns a `Data`; arrays `(x, y)`;
              `(train, test)` or `(train, validation, test)` of such arrays; or three
              `tf.data.Dataset` of `(x, y)`, batched or not, in the same order each time. A
              split that it lacks is `None`. y are indices of classes. x is as it returns it,
              in float32 if it is of floats or of 8 bits.

            A word that is both a TFDS name and a folder is the TFDS name, with a warning;
            "./mnist" is the folder, and so is a path with a separator that exists, or any
            `pathlib.Path`. `~` is the home directory.
        data_dir: where TFDS keeps prepared data; `None` (default) is TFDS's own default,
            which `TFDS_DATA_DIR` sets. `~` is the home directory.
        batch_size: int, default 128; `None` for single examples.
        validation_fraction: part of the training examples kept for validation, between
            0 and 1, default 0.1; without effect where the data has validation examples of
            its own, but for TFDS.
        image_size: `(height, width)` in pixels to resize images to, bilinearly, for datasets
            whose images differ in size.
        normalize: whether integer images become float32 in [0, 1], and a TFDS dataset's
            whole samples of sound in [-1, 1]; `False` leaves the numbers as they are. Default `True`.
        shuffle: whether training examples come in a new order each epoch. Default
            `True`; `False` to write soft targets for them.
        seed: of the shuffling; the splits are the same for every seed.
        verbose: whether to show progress bars. Default `True`.
        label: column of a table's labels, whole numbers, booleans or text: its name (default
            "label"), or its place, an int from 0, or from -1 backwards. A text file has no
            header if the label in its first line is among those of the others; it must be
            told by its place, or be the last and have few classes. Columns then are named by
            their places.
        color_mode: "grayscale", "rgb" or "rgba", of a folder of images; `None` (default) is
            grayscale if all are, else rgb.
        seconds: length of recordings, > 0: longer ones are cut at their end, shorter ones get
            zeros after it. `None` (default) for the longest in training. A mask of what is no
            padding: `tf.cumsum(tf.abs(x), axis=-1, reverse=True) > 0`.
        sample_rate: in Hz, to which recordings of another rate are resampled; `None` (default)
            where they have all the same.

    Returns:
        `Data`. Classes are sorted by their names; by value if all are numbers.

    Raises:
        ValueError: if the name is unknown, an argument is out of range or not for this kind of
            data; if the data has no class labels, one class only, a class without files,
            classes whose names differ in spaces alone or break the line, a file that is
            damaged or of another kind, images of different sizes without
            `image_size`, or missing values: naming the file, and the row and column. A file
            that is damaged after its header is found when it is first read, for data that is
            not held in memory by a `tf.errors.OpError` in training.
        FileNotFoundError: if there is no such file or folder.
        ConnectionError: if the data is not prepared yet and its source does not answer.
        ImportError: if `pyarrow` is not installed, for .parquet.

    Example:
    >>> load("digits", batch_size=32)
    Data('digits': 10 classes of (8, 8, 1); 1,131 train, 126 validation, 540 test)
    """
    source = _check_source(
        name, data_dir, image_size, color_mode, label, seconds, sample_rate
    )
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
    parts = _parts(source, validation_fraction, normalize, verbose)
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
        name=source.name,
        class_names=parts.class_names,
        input_shape=parts.input_shape,
        sizes=parts.sizes,
        version=parts.version,
        column_names=parts.column_names,
        sample_rate=parts.sample_rate,
        **splits,
    )


def _parts(
    source: _Source, validation_fraction: float, normalize: bool, verbose: bool
) -> Parts:
    """Returns the data of a source."""
    name, place = source.name, source.place

    def refuse(kind: str, *names: str) -> None:
        """Refuses what a kind of data does not take."""
        values = {**source._asdict(), "normalize": None if normalize else False}
        for one in names:
            if values[one] is not None:
                raise ValueError(
                    f"{one}={values[one]!r} is not for {kind}, which {name!r} is; leave it out."
                )

    of_images, of_sound = ("image_size", "color_mode"), ("seconds", "sample_rate")
    if source.kind == "digits":
        refuse("digits", "color_mode", "label", *of_sound)
        if not normalize:
            raise ValueError(digits.NO_OPTIONS)
        return digits.digits_parts(validation_fraction)
    if source.kind == "tfds":
        refuse("a TFDS dataset", "color_mode", "label")
        return tfds.tfds_parts(
            place,
            source.data_dir,
            validation_fraction,
            source.image_size,
            normalize,
            verbose,
            source.seconds,
            source.sample_rate,
        )
    if source.kind == "function":
        refuse("a function's data", *of_images, *of_sound, "label", "normalize")
        return functions.function_parts(place, validation_fraction)
    if source.kind == "table":
        paths = {"train": place}
    else:
        # Tables may lie beside folders of images, as a list of them.
        has_folders = any(entry.is_dir() for entry in listed(place))
        paths = {} if has_folders else tables.tables_of(place)
    if paths:
        refuse("a table", *of_images, *of_sound, "normalize")
        return tables.tables_parts(paths, source.label, validation_fraction)
    folder = read_folder(place)
    description = f"reading {name}" if verbose else None
    if folder.kind == "sound":
        refuse("a folder of sound", *of_images, "label", "normalize")
        return sound.sound_parts(
            folder,
            validation_fraction,
            source.seconds,
            source.sample_rate,
            description,
        )
    refuse("a folder of images", *of_sound, "label")
    return images.images_parts(
        folder,
        validation_fraction,
        source.image_size,
        source.color_mode,
        normalize,
        description,
    )


def _check_source(
    name: Any,
    data_dir: Any = None,
    image_size: Any = None,
    color_mode: Any = None,
    label: Any = None,
    seconds: Any = None,
    sample_rate: Any = None,
) -> _Source:
    """Returns what says which data; paths absolute, for other processes."""
    if data_dir is not None:
        data_dir = check_path("data_dir", data_dir)
        if os.path.isfile(data_dir):
            raise NotADirectoryError(
                f"data_dir {data_dir!r} is a file; give the directory of TFDS's data."
            )
    kind, shown_name, place = _kind_of(name, data_dir)
    if image_size is not None:
        if kind == "digits":
            raise ValueError(digits.NO_OPTIONS)
        pixels = lambda what, one: check_int(what, one, 1, _MOST_PIXELS)  # noqa: E731
        numbers = "whole numbers, (height, width)"
        height, width = check_each("image_size", image_size, pixels, numbers, 2, 2)
        image_size = (height, width)
    if color_mode is not None:
        check_choice("color_mode", color_mode, tuple(images.CHANNELS))
    if label is not None and not isinstance(label, str):
        label = check_int("label", label, -(10**6), 10**6)
    if label == "label":  # the default, said
        label = None
    if seconds is not None:
        seconds = check_float(
            "seconds", seconds, "a number > 0 and <= 86400", lambda s: 0 < s <= 86_400
        )
    if sample_rate is not None:
        sample_rate = check_int("sample_rate", sample_rate, 1, 10**6)
    return _Source(
        kind, shown_name, place, data_dir, image_size, color_mode, label, seconds,
        sample_rate,
    )  # fmt: skip


def _kind_of(name: Any, data_dir: str | None) -> tuple[str, str, str]:
    """Returns the kind of data that a name means, its name for people, and its place."""
    is_path = isinstance(name, os.PathLike)
    if not is_path and (not isinstance(name, str) or not name.strip() or "\0" in name):
        raise ValueError(
            'name must be "digits", the name of a TFDS dataset, a path, or module:function, '
            f"got {shown(name)}."
        )
    if name == "digits":
        return "digits", name, name
    if "://" in os.fspath(name) and not os.fspath(name).startswith("file://"):
        raise ValueError(
            f"data is read from local disks, not from {os.fspath(name)!r}; copy it here, or give "
            "module:function, which may read it from there."
        )
    path = os.path.abspath(check_path("name", name))
    is_path = is_path or name.startswith(("/", "~", "./", "../", "file://", os.sep))
    is_path = is_path or name in (".", "..") or is_table(name)
    if not is_path and not os.path.exists(path):
        kind = "function" if functions.is_function(name) else "tfds"
        return kind, name, name
    if not is_path and os.path.basename(name) == name and tfds.is_known(name, data_dir):
        warnings.warn(
            f"{name!r} is a TFDS dataset and a folder here; the dataset is taken. Give "
            f"{'./' + name!r} for the folder.",
            stacklevel=4,
        )
        return "tfds", name, name
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"there is no file or folder {os.fspath(name)!r}; give a folder of images or "
            ".wav files by class, or a .csv, .tsv or .parquet file."
        )
    if not os.path.isdir(path) and not is_table(path):
        raise ValueError(
            f"{os.fspath(name)!r} is no kind of data that is known; give a folder of images or "
            ".wav files by class, or a .csv, .tsv or .parquet file."
        )
    kind = "folder" if os.path.isdir(path) else "table"
    return kind, os.path.basename(path) or path, path


def loader(
    name: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    image_size: tuple[int, int] | None = None,
    *,
    label: str | int | None = None,
    color_mode: str | None = None,
    seconds: float | None = None,
    sample_rate: int | None = None,
) -> Callable[..., Data]:
    """Returns `fn(batch_size=256)` that loads a dataset in order, in any process.

    Args:
        name: as for `load`. What is here a path is loaded from there in any process.
        data_dir: as for `load`.
        image_size: as for `load`.
        label: as for `load`.
        color_mode: as for `load`.
        seconds: as for `load`.
        sample_rate: as for `load`.

    Raises:
        ValueError: if an argument is of another kind or out of range.
        FileNotFoundError: if there is no such file or folder.
    """
    options = (data_dir, image_size, color_mode, label, seconds, sample_rate)
    source = _check_source(name, *options)
    is_file = source.kind in ("folder", "table")
    given = source._asdict()
    main_process = os.getpid()
    in_order = functools.partial(
        load,
        pathlib.Path(source.place) if is_file else source.place,
        shuffle=False,
        **{key: given[key] for key in given if key not in ("kind", "name", "place")},
    )

    def load_here(batch_size: int | None = 256) -> Data:
        return in_order(batch_size=batch_size, verbose=os.getpid() == main_process)

    return load_here
