"""The numbered versions of an export, as TensorFlow Serving watches them."""

from __future__ import annotations

import os
import re
import shutil
import uuid
import warnings

import tensorflow as tf

from keras_distill.export.files import HIDDEN

# The largest number that is one to a server.
_LAST = 2**63 - 1
# Without it a folder is no SavedModel.
_MODEL = "saved_model.pb"


def _versions(directory: str) -> list[tuple[int, str]]:
    """Returns number and name of what a server takes for versions, in their order."""
    names = tf.io.gfile.listdir(directory) if tf.io.gfile.isdir(directory) else []
    found = [re.fullmatch("([0-9]+)/?", name) for name in names]
    numbers = [(int(match[1]), match[1]) for match in found if match]
    return sorted(one for one in numbers if one[0] <= _LAST)


def next_version(directory: str) -> int:
    """Returns the number after the highest version in a directory, from 1.

    Raises:
        ValueError: if there is none.
    """
    found = _versions(directory)
    last = found[-1][0] if found else 0
    if last == _LAST:
        raise ValueError(
            f"{directory!r} has the version {last}, after which there is none for a server; "
            "export to another directory."
        )
    return last + 1


def newest_version(directory: str) -> str | None:
    """Returns the path of the newest whole version in a directory; `None` without one."""
    for _, name in reversed(_versions(directory)):
        path = os.path.join(directory, name)
        if tf.io.gfile.exists(os.path.join(path, _MODEL)):
            return path
    return None


def publish(hidden: str, directory: str) -> str:
    """Renames the finished export to the next free version; another may be faster."""
    while True:
        path = os.path.join(directory, str(next_version(directory)))
        try:
            tf.io.gfile.rename(hidden, path)
        except (tf.errors.AlreadyExistsError, tf.errors.FailedPreconditionError):
            if not tf.io.gfile.exists(path):
                raise
        else:
            return path


def prune(path: str, keep: int) -> None:
    """Removes versions before one that is in place, but for the newest of them.

    Never that one, nor a later one of another export; nor what is not a number, or has no
    SavedModel in it.

    Args:
        path: of the version in place.
        keep: how many stay, itself among them; >= 1.
    """
    directory, own = os.path.split(path)
    older = [
        name
        for number, name in _versions(directory)
        if number < int(own)
        and tf.io.gfile.exists(os.path.join(directory, name, _MODEL))
    ]
    for name in older[: max(len(older) - (keep - 1), 0)]:
        try:
            _remove(directory, name)
        except tf.errors.NotFoundError:  # another export was faster
            continue
        except (tf.errors.OpError, OSError) as error:
            warnings.warn(
                f"the old version {os.path.join(directory, name)!r} could not be removed, "
                f"and is left to you: {error}",
                UserWarning,
                stacklevel=3,
            )


def _remove(directory: str, name: str) -> None:
    """Removes a version at once for every reader; a link goes, and not what it is to."""
    path = os.path.join(directory, name)
    if "://" in directory:
        # Renaming there is copying file by file, so it is none before the rest goes.
        tf.io.gfile.remove(os.path.join(path, _MODEL))
        tf.io.gfile.rmtree(path)
    elif os.path.islink(path):
        os.unlink(path)
    else:
        hidden = os.path.join(directory, f"{HIDDEN}{uuid.uuid4().hex}")
        tf.io.gfile.rename(path, hidden)
        # Another export may be at it as well; what is left goes with the next.
        shutil.rmtree(hidden, ignore_errors=True)
