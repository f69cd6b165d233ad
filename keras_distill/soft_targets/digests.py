"""Whether the files of a store are still those that its manifest names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from keras_distill.run_directory import file_digest
from keras_distill.soft_targets.settings import FINISHED, directory, read_settings

#: Files whose digest held in this process, as they were then.
_held: set[tuple] = set()
#: Keys of a manifest that differ although the soft targets are the same.
_OF_A_RUN = ("created", "seconds", "versions")


def check_shard(file: str, entry: Mapping[str, Any], anew: bool = False) -> None:
    """Holds a shard to its entry in the manifest; reads it once in a process.

    Args:
        file: its path.
        entry: `bytes`, and `digest` but in stores of before.
        anew: whether to read it though it was read before.

    Raises:
        ValueError: if it is another file, or none.
    """
    wanted, state = entry.get("digest"), _state(file)
    known = (file, state, wanted)
    if known in _held and not anew:
        return
    is_same = state is not None and state[0] == entry["bytes"]
    if not is_same or wanted not in (None, file_digest(file)):
        raise ValueError(
            f"{file} is not the file that {FINISHED} names: it is damaged, of another "
            "store, or written anew. Delete it and manifest.json, and write again with "
            "the same arguments: what is missing is written anew."
        )
    _held.add(known)


def check_current(path: str, content: Mapping[str, Any], known: Any = None) -> Any:
    """Refuses a store that is another than when it was opened.

    Args:
        path: its folder.
        content: of its manifest then.
        known: what an earlier call returned, which spares reading the manifest.

    Raises:
        ValueError: if it is.
    """
    state = _state(os.path.join(path, FINISHED))
    if state is not None and state == known:
        return state
    found = read_settings(directory(path), FINISHED)
    if found is None or _lasting(found) != _lasting(content):
        gone = "are gone" if found is None else "have been written anew"
        raise ValueError(
            f"the soft targets in {path} {gone} since they were opened; open them again "
            "with SoftTargets.open, or write them again."
        )
    return state


def _lasting(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: content[key] for key in content if key not in _OF_A_RUN}


def _state(file: str) -> tuple[int, ...] | None:
    """Returns size and time of a file, and what else tells it; `None` for no file."""
    try:
        if "://" not in file:
            known = os.stat(file)
            return known.st_size, known.st_mtime_ns, known.st_ino
        there = tf.io.gfile.stat(file)
        return there.length, there.mtime_nsec
    except (OSError, tf.errors.NotFoundError):
        return None
