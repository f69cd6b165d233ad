"""Where an export is written before anybody can see it, and how it becomes seen."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from keras_distill.arguments import check_path
from keras_distill.run_directory import RunDirectory

# TensorFlow Serving ignores names that are not numbers.
HIDDEN = ".writing-"
# Of a file's card, which stands beside it.
CARD_ENDINGS = (".card.json", ".card.md")


@contextlib.contextmanager
def hidden_folder(directory: str) -> Iterator[str]:
    """Yields a folder in a directory that no reader sees, and removes it at the end.

    It also removes those that nobody holds, which killed exports left. A local one is held
    by a lock on itself, which ends with the process.

    Args:
        directory: local, or any path that `tf.io.gfile` takes; made if it is not there, and
            then removed if nothing is in it at the end.

    Raises:
        OSError: if it cannot be written.
    """
    is_new = not tf.io.gfile.exists(directory)
    is_local = "://" not in directory
    if is_local and os.path.isdir(directory):
        _remove_left(directory)
    try:
        while True:
            hidden = os.path.join(directory, f"{HIDDEN}{uuid.uuid4().hex}")
            tf.io.gfile.makedirs(hidden)
            with contextlib.ExitStack() as stack:
                # Between its making and its lock another export may have taken it away.
                if is_local and not stack.enter_context(_held(hidden)):
                    continue
                try:
                    yield hidden
                finally:
                    if tf.io.gfile.exists(hidden):
                        tf.io.gfile.rmtree(hidden)
                return
    finally:
        if is_new and tf.io.gfile.isdir(directory):
            with contextlib.suppress(tf.errors.OpError, OSError):
                if not tf.io.gfile.listdir(directory):
                    tf.io.gfile.rmtree(directory)


def _remove_left(directory: str) -> None:
    for name in os.listdir(directory):
        if name.startswith(HIDDEN):
            path = os.path.join(directory, name)
            with _held(path) as is_ours:
                if is_ours:
                    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _held(path: str) -> Iterator[bool]:
    """Yields whether this process alone holds a local folder."""
    import fcntl  # not on every system

    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_there = os.path.isdir(path) and os.path.samestat(
            os.fstat(file), os.stat(path)
        )
    except OSError:
        is_there = False
    try:
        yield is_there
    finally:
        os.close(file)


def check_file(name: str, value: Any, ending: str) -> str:
    """Returns the local path of a file that is to be written.

    Raises:
        IsADirectoryError: if there is a folder.
        ValueError: if it is no local path, or ends otherwise.
    """
    path = check_path(name, value)
    if "://" in path:
        raise ValueError(
            f"{name} must be a local path, got {path!r}; export there, and copy the "
            "file with tf.io.gfile.copy."
        )
    if not path.endswith(ending) or os.path.basename(path) == ending:
        raise ValueError(f'{name} must end in "{ending}", got {path!r}.')
    if os.path.isdir(path):
        raise IsADirectoryError(
            f"{name} must be a file, but {path!r} is a folder; give the path of a "
            "file in it."
        )
    return path


#: What TensorFlow takes for a pattern when it loads variables.
PATTERN = frozenset("[]*?\\")


@contextlib.contextmanager
def saved_model_for(hidden: str) -> Iterator[str]:
    """Yields where the SavedModel that a file is made of is written: beside it, if it can be.

    Args:
        hidden: path of the file, of `whole_file`.
    """
    if not set(os.path.abspath(hidden)) & PATTERN:
        yield os.path.join(os.path.dirname(hidden), "saved_model")
        return
    with tempfile.TemporaryDirectory(prefix="keras_distill-") as folder:
        yield os.path.join(folder, "saved_model")


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[str]:
    """Yields a path that no reader sees; what is written to it becomes the file at the end.

    It is alone in a folder of its own, in which whatever else is made on the way may be: it
    goes with the folder. Its card, if one is written beside it, comes with it. A file that
    was there before is replaced by the finished one. If anything fails, it stays and nothing
    else is left.

    Args:
        path: as `check_file` returns it; its folder is made if it is not there.

    Raises:
        OSError: if it cannot be written.
    """
    directory, name = os.path.split(path)
    folder = RunDirectory(directory or ".", "the export")
    with folder.errors(), hidden_folder(folder.path) as hidden:
        whole = os.path.join(hidden, name)
        yield whole
        for ending in (*CARD_ENDINGS, ""):  # a file that can be seen has its card
            if os.path.exists(whole + ending):
                os.replace(whole + ending, path + ending)
