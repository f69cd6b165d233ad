"""Locks that keep a second writer out, and what files say in plain errors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf


@contextlib.contextmanager
def lock(path: str, part: tuple[int, int] | None) -> Iterator[None]:
    """Keeps a second writer out, by a lock that dies with the process.

    Writers of different parts share the store. Only for local paths: other file systems
    have no locks.
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
                    f"another process is writing soft targets to {path!r}; wait for it, "
                    "or choose another path."
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
def file_errors(path: str) -> Iterator[None]:
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
            f"soft targets could not be written to {path!r}: {error.message}"
        ) from error
