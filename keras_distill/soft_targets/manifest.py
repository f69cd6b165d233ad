"""The manifest of a store: what made it, and what is in it."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from keras_distill.soft_targets import shards
from keras_distill.soft_targets.locks import file_errors

FORMAT = "keras_distill soft targets"
VERSION = 1
FINISHED = "manifest.json"
SETTINGS = "settings.json"

#: What must agree for shards to be of one store.
KEYS = (
    "teacher",
    "from_logits",
    "outputs",
    "classes",
    "dtype",
    "top_k",
    "layers",
    "views",
    "augment",
    "seed",
    "temperature",
    "inputs",
    "examples",
    "shard_size",
    "batch_size",
)


def write(path: str, name: str, content: dict[str, Any]) -> None:
    """Writes JSON under a temporary name, then renames it; with its own checksum."""
    content = {**content, "checksum": _checksum(content)}
    temporary = os.path.join(path, f"{shards.TEMPORARY}{uuid.uuid4().hex}")
    with file_errors(path):
        with tf.io.gfile.GFile(temporary, "w") as file:
            file.write(json.dumps(content, indent=1))
        tf.io.gfile.rename(temporary, os.path.join(path, name), overwrite=True)


def read(path: str, name: str) -> dict[str, Any] | None:
    """Returns the content, or `None` if there is no such file.

    Raises:
        ValueError: if it is damaged, or of a newer format.
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
        raise ValueError(
            f"{file_name} is damaged; delete {path!r} and write the soft targets anew."
        )
    if content["format_version"] > VERSION:
        raise ValueError(
            f"{path!r} has format version {content['format_version']}, this keras_distill "
            f"reads up to {VERSION}; install a newer one."
        )
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def differences(found: Mapping, wanted: Mapping) -> list[str]:
    """Returns a phrase for each value that differs, of the keys of `wanted`."""
    phrases = []
    for key, value in wanted.items():
        value = json.loads(json.dumps(value))  # tuples are lists there
        if found.get(key) == value:
            continue
        if key == "teacher":
            phrases.append(_teachers_differ(found.get(key), value))
        else:
            phrases.append(f"{key} is {found.get(key)!r}, not {value!r}")
    return phrases


def _teachers_differ(found: Any, wanted: Any) -> str:
    for part in ("kind", "name", "architecture", "weights", "members", "average"):
        a, b = (teacher and teacher.get(part) for teacher in (found, wanted))
        if a != b:
            return f"the teacher's {part} differ ({a}, not {b})"
    return f"the teacher is {found!r}, not {wanted!r}"


def unfinished(path: str) -> str:
    """Returns the message for a store without a manifest."""
    if not tf.io.gfile.isdir(path):
        return (
            f"there are no soft targets at {path!r}; write them with "
            "SoftTargets.write(path, teacher, dataset)."
        )
    done = len(shards.existing(path))
    return (
        f"{path!r} holds no finished soft targets, {done} shards so far; run "
        "SoftTargets.write again with the same arguments, it goes on where it stopped."
    )
