"""Files that are whole or not there, locks, and what file systems say in plain errors."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

#: How the names of files begin that are not whole yet.
TEMPORARY = ".tmp-"


def write_text(path: str, text: str) -> None:
    """Writes a local file under a temporary name, then renames it."""
    unfinished = f"{path}.unfinished"
    with open(unfinished, "w") as file:
        file.write(text)
    os.replace(unfinished, path)


def write_json(
    path: str, name: str, content: Mapping[str, Any], what: str = "soft targets"
) -> None:
    """Writes JSON with a checksum of its own, under a temporary name, then renames it.

    Args:
        path: folder.
        name: of the file.
        content: without a key "checksum".
        what: is written, for the message of an error.

    Raises:
        OSError: if it cannot be written.
    """
    content = {**content, "checksum": _checksum(content)}
    temporary = os.path.join(path, f"{TEMPORARY}{uuid.uuid4().hex}")
    with file_errors(path, what):
        with tf.io.gfile.GFile(temporary, "w") as file:
            file.write(json.dumps(content, indent=1))
        tf.io.gfile.rename(temporary, os.path.join(path, name), overwrite=True)


def read_json(path: str, name: str) -> dict[str, Any] | None:
    """Returns what `write_json` wrote, or `None` if there is no such file.

    Raises:
        ValueError: if it is damaged.
    """
    file_name = os.path.join(path, name)
    if not tf.io.gfile.exists(file_name):
        return None
    with tf.io.gfile.GFile(file_name) as file:
        text = file.read()
    try:
        content = json.loads(text)
        is_whole = content.pop("checksum") == _checksum(content)
    except (ValueError, KeyError, AttributeError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{file_name} is damaged; delete {path!r} and begin anew.")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def remove_temporary(path: str, only: str | None = None) -> None:
    """Removes what killed processes left unfinished in a folder."""
    left = [only] if only else tf.io.gfile.glob(os.path.join(path, f"{TEMPORARY}*"))
    for file in left:
        if tf.io.gfile.exists(file):
            tf.io.gfile.remove(file)


@contextlib.contextmanager
def lock(
    path: str,
    part: tuple[int, int] | None = None,
    doing: str = "writing soft targets to",
) -> Iterator[None]:
    """Keeps a second process out of a folder, by a lock that dies with the process.

    Processes with different parts share the folder. Only for local paths: other file
    systems have no locks.

    Args:
        path: folder.
        part: `(i, n)`, or `None` for all.
        doing: what the other process is doing, for the message.

    Raises:
        BlockingIOError: if another process has it.
    """
    if "://" in path:
        yield
        return
    import fcntl  # not on every system, so only where something is written

    with contextlib.ExitStack() as stack:
        wanted = [(".lock", fcntl.LOCK_EX if part is None else fcntl.LOCK_SH)]
        if part is not None:
            wanted.append((f".lock-{part[0]}-of-{part[1]}", fcntl.LOCK_EX))
        for name, kind in wanted:
            file = stack.enter_context(open(os.path.join(path, name), "w"))
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(
                    f"another process is {doing} {path!r}; wait for it, or choose "
                    "another path."
                ) from error
        yield


@contextlib.contextmanager
def settling(path: str) -> Iterator[None]:
    """Lets one process at a time compare and write settings; others wait."""
    if "://" in path:
        yield
        return
    import fcntl

    with open(os.path.join(path, ".lock-settings"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def file_errors(path: str, what: str = "soft targets") -> Iterator[None]:
    """Turns what TensorFlow says of files into the standard `OSError`."""
    kinds = (
        tf.errors.ResourceExhaustedError,
        tf.errors.NotFoundError,
        tf.errors.PermissionDeniedError,
        tf.errors.FailedPreconditionError,
        tf.errors.UnavailableError,
    )
    try:
        yield
    except kinds as error:
        raise OSError(
            f"{what} could not be written to {path!r}: {error.message}"
        ) from error
