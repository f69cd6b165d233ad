"""Fingerprints of examples, teachers and files: short numbers that tell them apart."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any

import keras
import numpy as np
import tensorflow as tf

BYTES = 8


def of_examples(inputs: Any) -> tf.Tensor:
    """Returns the fingerprint of each example of a batch.

    FarmHash Fingerprint64 of the example's bytes, as `tf.fingerprint` has it; for several
    inputs, that of their fingerprints one after another, in the order of
    `tf.nest.flatten`. Labels do not count.

    Args:
        inputs: dense tensors, batch first.

    Returns:
        uint8 `(batch, 8)`.
    """
    parts = [tf.fingerprint(part) for part in tf.nest.flatten(inputs)]
    return parts[0] if len(parts) == 1 else tf.fingerprint(tf.concat(parts, 1))


def of_teacher(teacher: Any) -> dict[str, Any]:
    """Returns what identifies a teacher, as given to `Distiller`.

    Args:
        teacher: a `keras.Model`, a path, a callable, or a list of these.

    Returns:
        dict with `kind`, and where they can be known `architecture` and `weights`: hex
        digests that do not depend on layer names. A callable has only its name.
    """
    if isinstance(teacher, (list, tuple)):
        return {"kind": "list", "members": [of_teacher(member) for member in teacher]}
    if isinstance(teacher, (str, os.PathLike)):
        path = os.fspath(teacher)
        if path.endswith(".keras"):
            return of_teacher(keras.saving.load_model(path))
        return {"kind": "SavedModel", "weights": _of_folder(path)}
    if isinstance(teacher, keras.Model):
        return {
            "kind": "keras.Model",
            "architecture": of_architecture(teacher),
            "weights": _of_weights(teacher),
        }
    if isinstance(getattr(teacher, "model", None), keras.Model):  # of `as_teacher`
        return of_teacher(teacher.model)
    return {"kind": "callable", "name": name_of(teacher)}


def name_of(function: Any) -> str:
    """Returns the module and name of a function, or of the class of an object."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def of_architecture(model: keras.Model) -> str:
    """Returns a hex digest of a model's layers, whatever their names."""
    return _digest(_architecture(model).encode())


def of_arrays(arrays: list[np.ndarray]) -> str:
    """Returns a hex digest of arrays: their types, shapes and values."""
    digest = hashlib.sha256()
    for array in arrays:
        if array.dtype.kind == "O":  # strings; their bytes would be addresses
            array = array.astype(str)
        digest.update(f"{array.dtype}{array.shape}".encode())
        flat = array.reshape(-1)
        for start in range(0, len(flat), 1 << 22):  # a memory map need not fit
            digest.update(flat[start : start + (1 << 22)].tobytes())
    return digest.hexdigest()[:32]


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]


def _of_weights(model: keras.Model) -> str:
    return of_arrays([keras.ops.convert_to_numpy(v) for v in model.weights])


def _architecture(model: keras.Model) -> str:
    """Returns the configuration with layers numbered, since names count up by process."""
    try:
        config = json.dumps(model.get_config(), sort_keys=True, default=str)
    except NotImplementedError:  # a subclassed model
        shapes = [tuple(variable.shape) for variable in model.weights]
        return f"{name_of(type(model))} {shapes}"
    names = dict.fromkeys(re.findall(r'"name": "([^"]+)"', config))
    numbers = {name: f"#{number}" for number, name in enumerate(names)}
    return re.sub(
        r'"([^"]+)"', lambda m: f'"{numbers.get(m.group(1), m.group(1))}"', config
    )


def _of_folder(path: str) -> str:
    digest = hashlib.sha256()
    for folder, _, files in sorted(tf.io.gfile.walk(path)):
        for name in sorted(files):
            # Written anew by every save of the same model.
            if name == "fingerprint.pb":
                continue
            with tf.io.gfile.GFile(os.path.join(folder, name), "rb") as file:
                digest.update(name.encode())
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
    return digest.hexdigest()[:32]
