"""Folders of files by class: which files there are, of which class, of which split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from keras_distill import progress
from keras_distill.datasets.parts import IN_MEMORY_BYTES
from keras_distill.datasets.splits import check_class_names, draw_missing, sort_names

_T = TypeVar("_T")

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
SOUND = (".wav",)
#: Names of the folders, or tables, of each split.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_OF_THE_SYSTEM = {"thumbs.db", "desktop.ini", "__macosx"}
_LAYOUT = (
    "put the files of each class into a folder of the class's name, as in cats/1.jpg "
    "and dogs/2.jpg; such folders may be in train, validation and test folders"
)


class Files(NamedTuple):
    """The files of one split, sorted by class and path.

    Attributes:
        paths: one str per file.
        labels: `(files,)`, int64, indices of classes.
    """

    paths: list[str]
    labels: np.ndarray


class Folder(NamedTuple):
    """What a folder holds.

    Attributes:
        kind: "images" or "sound".
        splits: `Files` by split; "train" always.
        class_names: sorted; by value if all are numbers.
        root: its path.
    """

    kind: str
    splits: dict[str, Files]
    class_names: list[str]
    root: str


def split_of(name: str) -> str | None:
    """Returns the split that a folder's or table's name stands for, if it does."""
    name = name.lower()
    return next((s for s, names in SPLIT_NAMES.items() if name in names), None)


def listed(folder: str) -> list[os.DirEntry]:
    """Returns what is in a folder, sorted, without what is hidden."""
    with os.scandir(folder) as entries:
        return sorted(
            (
                entry
                for entry in entries
                if not entry.name.startswith(".")
                and entry.name.lower() not in _OF_THE_SYSTEM
            ),
            key=lambda entry: entry.name,
        )


def read_folder(root: str) -> Folder:
    """Returns the files of a folder, of files by class or of such folders by split.

    Hidden files are left out; folders inside those of the classes are looked into, and
    links are followed.

    Raises:
        ValueError: if the folder is laid out otherwise, has a class without files, one
            class only, or files of several kinds; naming what is wrong.
    """
    by_split = _split_folders(root)
    if by_split is None:
        found = {"train": _classes(root)}
    else:
        found = {split: _classes(folder) for split, folder in by_split.items()}
    class_names = sort_names(found["train"])
    check_class_names(f"the folder {root!r}", class_names)
    if len(class_names) < 2:
        raise ValueError(
            f"{root!r} has one class only, the folder {class_names[0]!r}; give a folder with "
            "two at least, or that folder if the classes are in it."
        )
    for split, classes in found.items():
        for name, paths in classes.items():
            if name not in class_names:
                raise ValueError(
                    f"{paths[0]!r} is of the class {name!r}, which is among the classes of "
                    f"{split} but not of train; add training examples of it, or leave it out."
                )
    kind = _kind(
        root, [path for c in found.values() for paths in c.values() for path in paths]
    )
    splits = {}
    for split, classes in found.items():
        pairs = [
            (path, label)
            for label, name in enumerate(class_names)
            for path in classes.get(name, [])
        ]
        splits[split] = Files(
            [path for path, _ in pairs],
            np.array([label for _, label in pairs], "int64"),
        )
    return Folder(kind, splits, class_names, root)


def _split_folders(root: str) -> dict[str, str] | None:
    """Returns the folders of the splits; `None` where folders are classes."""
    folders = [entry for entry in listed(root) if entry.is_dir()]
    splits: dict[str, str] = {}
    for entry in folders:
        split = split_of(entry.name)
        if split in splits:
            raise ValueError(
                f"{splits[split]!r} and {entry.path!r} both are the {split} split; keep one."
            )
        if split is not None:
            splits[split] = entry.path
    other = next((e.path for e in folders if split_of(e.name) is None), None)
    # A class may be called "train"; then there are others, and it holds files.
    holds_classes = [
        path for path in splits.values() if any(e.is_dir() for e in listed(path))
    ]
    if not splits or (other and not holds_classes):
        return None
    if other:
        raise ValueError(
            f"{other!r} lies beside {holds_classes[0]!r}: folders are splits (train, "
            "validation, test) or classes, not both; move it away."
        )
    if splits.get("train") not in holds_classes:
        raise ValueError(
            f"{root!r} has no train folder with a folder of each class in it."
        )
    return splits


def _classes(folder: str) -> dict[str, list[str]]:
    """Returns the paths of the files by class."""
    entries = listed(folder)
    classes = {entry.name: entry.path for entry in entries if entry.is_dir()}
    for entry in entries:
        if not entry.is_dir() and entry.name.lower().endswith((*IMAGES, *SOUND)):
            raise ValueError(
                f"{entry.path!r} is in no folder of a class; {_LAYOUT}."
                + (f" {folder!r} has {len(classes)} such folders." if classes else "")
            )
    if not classes:
        raise ValueError(f"{folder!r} has no folder of a class; {_LAYOUT}.")
    for name, path in classes.items():
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the folder {path!r} has a name that is not UTF-8, and is a class; rename it."
            ) from error
    found = {name: _files_below(path, set()) for name, path in classes.items()}
    for name, paths in found.items():
        if not paths:
            raise ValueError(
                f"{classes[name]!r}, the folder of the class {name!r}, has no file; add some "
                "or delete it."
            )
    return found


def _files_below(folder: str, above: set[str]) -> list[str]:
    real = os.path.realpath(folder)
    if real in above:
        raise ValueError(f"{folder!r} is a link to a folder that it is in; delete it.")
    paths = []
    for entry in listed(folder):
        if entry.is_dir():
            paths += _files_below(entry.path, above | {real})
        elif entry.is_file():
            paths.append(entry.path)
        else:
            raise ValueError(
                f"{entry.path!r} is no file: a link that leads nowhere, say; delete it."
            )
    return paths


def _kind(root: str, paths: list[str]) -> str:
    """Returns which kind of files these are, all of them."""

    def kind(path: str) -> str | None:
        ending = os.path.splitext(path)[1].lower()
        return "images" if ending in IMAGES else "sound" if ending in SOUND else None

    kinds = Counter(map(kind, paths))
    most = max(("images", "sound"), key=lambda name: kinds[name])
    wanted = " ".join(IMAGES if most == "images" else SOUND)
    other = next((path for path in paths if kind(path) != most), None)
    if not kinds[most]:
        raise ValueError(
            f"{other!r} is neither an image ({' '.join(IMAGES)}) nor sound (.wav); {root!r} "
            "must hold one of these. For other data give module:function."
        )
    if other is not None:
        raise ValueError(
            f"{other!r} is no file of {most} ({wanted}), as the others of {root!r} are; "
            "convert it or move it away."
        )
    return most


def draw_splits(folder: Folder, validation_fraction: float) -> dict[str, Files]:
    """Returns the files of all three splits; `draw_missing` says how.

    Raises:
        ValueError: as `draw_missing`.
    """
    train = folder.splits["train"]
    drawn = draw_missing(
        train.labels,
        folder.splits,
        validation_fraction,
        folder.class_names,
        repr(folder.root),
    )
    splits = dict(folder.splits)
    for split, chosen in drawn.items():
        splits[split] = Files([train.paths[i] for i in chosen], train.labels[chosen])
    return {split: splits[split] for split in SPLIT_NAMES}


def read_headers(
    splits: dict[str, Files], read: Callable[[str], _T], description: str | None
) -> dict[str, _T]:
    """Returns what a function says of each file, by path: what it can before it is decoded."""
    paths = [path for files in splits.values() for path in files.paths]
    return dict(zip(paths, _each(read, paths, description), strict=True))


def _each(
    do: Callable[[Any], _T], items: list[Any], description: str | None
) -> Iterator[_T]:
    """Yields what a function returns for each; reading lets other threads run."""
    shown = (description or "", "file", len(items), description is not None)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            yield from progress.each(pool.map(do, items), *shown)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def datasets_of_files(
    splits: dict[str, Files],
    read: Callable[[str], np.ndarray],
    shape: tuple[int, ...],
    dtype: str,
    description: str | None,
) -> tuple[dict[str, tf.data.Dataset], Callable | None]:
    """Returns datasets of files, read once into memory if they are small, else as needed.

    Args:
        splits: `Files` by split.
        read: function of a path that returns an array of the shape and dtype, or raises
            an error that names the path.
        shape: of what it returns.
        dtype: likewise.
        description: of a progress bar; `None` for none.

    Returns:
        Datasets of `(x, y)`, and the function that makes such of them: `None` for those
        in memory; the others are of paths, for which shuffling costs no memory.
    """
    count = sum(len(files.paths) for files in splits.values())
    size = count * int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY_BYTES:
        held = _read_all(splits, read, shape, dtype, description)
        pairs: dict[str, Any] = {
            split: (held[split], files.labels) for split, files in splits.items()
        }
        prepare = None
    else:
        pairs = {
            # Bytes: not every name of a file is UTF-8.
            split: ([os.fsencode(path) for path in files.paths], files.labels)
            for split, files in splits.items()
        }

        def prepare(path: Any, label: Any) -> tuple[Any, Any]:
            # Outside of the graph, where what goes wrong can be said with the file's name.
            named = lambda one: read(os.fsdecode(one))  # noqa: E731
            x = tf.numpy_function(named, [path], dtype, stateful=False)
            return tf.ensure_shape(x, shape), label

    datasets = {
        s: tf.data.Dataset.from_tensor_slices(pair) for s, pair in pairs.items()
    }
    return datasets, prepare


def _read_all(
    splits: dict[str, Files],
    read: Callable[[str], np.ndarray],
    shape: tuple[int, ...],
    dtype: str,
    description: str | None,
) -> dict[str, np.ndarray]:
    held = {s: np.empty((len(f.paths), *shape), dtype) for s, f in splits.items()}
    jobs = [
        (held[split], i, path)
        for split, files in splits.items()
        for i, path in enumerate(files.paths)
    ]

    def put(job: tuple[np.ndarray, int, str]) -> None:
        array, i, path = job
        array[i] = read(path)

    for _ in _each(put, jobs, description):
        pass
    return held
