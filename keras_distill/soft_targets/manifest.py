"""The manifest of a store: what made it, and what is in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from keras_distill import run_directory
from keras_distill.soft_targets import shards

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
    """Writes a manifest whole or not at all."""
    run_directory.write_json(path, name, content)


def read(path: str, name: str) -> dict[str, Any] | None:
    """Returns the content, or `None` if there is no such file.

    Raises:
        ValueError: if it is damaged, or of a newer format.
    """
    content = run_directory.read_json(path, name)
    if content is not None and content["format_version"] > VERSION:
        raise ValueError(
            f"{path!r} has format version {content['format_version']}, this keras_distill "
            f"reads up to {VERSION}; install a newer one."
        )
    return content


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
