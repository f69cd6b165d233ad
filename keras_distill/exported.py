"""Exported files, by path: a .tflite or .onnx file that answers like a model."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_distill.served import served


class _Runtime(NamedTuple):
    """What runs a file.

    Attributes:
        name: for tables.
        module: of `export.runtimes`.
        needs: package.
        extra: of ours that has it.
    """

    name: str
    module: str
    needs: str
    extra: str


RUNTIMES = {
    ".tflite": _Runtime("LiteRT", "litert", "ai_edge_litert", "litert"),
    ".onnx": _Runtime("ONNX Runtime", "onnx", "onnxruntime", "onnx"),
}


def runtime_of(path: str) -> ModuleType:
    """Returns the module of `export.runtimes` that runs a .tflite or .onnx file.

    Raises:
        ImportError: without the package that it needs.
    """
    runtime = RUNTIMES[os.path.splitext(path)[1]]
    if importlib.util.find_spec(runtime.needs) is None:
        raise ImportError(
            f"{path!r} needs {runtime.needs.replace('_', '-')}: pip install "
            f"keras-distill[{runtime.extra}]"
        )
    # By name: it imports nothing of ours, and what it needs may not be there.
    return importlib.import_module(f"keras_distill.export.runtimes.{runtime.module}")


def unreadable(path: str, runtime: str, reason: Any) -> str:
    """Returns the sentence on a file that its runtime does not read."""
    return (
        f"the file {path!r} cannot be read by {runtime}; it is damaged, or of another "
        f"version: {' '.join(str(reason).split())[:200].rstrip('. ')}."
    )


class Exported:
    """A file that is run by its own runtime, by one thread.

    Args:
        path: of the file.

    Raises:
        ImportError: without the package that runs it.
        ValueError: if it cannot be read.
    """

    def __init__(self, path: str) -> None:
        runtime, module = RUNTIMES[os.path.splitext(path)[1]], runtime_of(path)
        try:
            self._model = module.Model(path)
        except Exception as error:  # of many kinds, one set for each runtime
            raise ValueError(unreadable(path, runtime.name, error)) from error
        self.path, self.runtime = path, runtime.name
        self._inputs: dict[str, tuple] = self._model.inputs
        outputs = {n: tf.TensorSpec(s) for n, s in self._model.outputs.items()}
        found = served(outputs)
        self._teaching = {key: name for key, (name, _) in found.items()}
        #: Whether it is an export of ours, which says what its answers are.
        self.has_logits = bool(found)
        kinds = {key: kind for key, (_, kind) in found.items()}
        #: Of the outputs, by key, of our own exports; `None` where nothing says them.
        self.kinds = kinds.get(None, kinds or None)
        first = next(iter(self._inputs.values()), ())
        self._size = first[0] if first else None

    @property
    def input_ranks(self) -> list[int]:
        """Ranks of the inputs with their batch axis, ascending."""
        return sorted(len(shape) for shape in self._inputs.values())

    def by_name(self, x: Any) -> dict[str, np.ndarray]:
        """Returns what the file takes of a batch.

        Raises:
            ValueError: if the batch lacks it.
        """
        names = list(self._inputs)
        is_alone = not isinstance(x, dict | list | tuple)
        if not (is_alone and len(names) == 1) and not (
            isinstance(x, dict) and set(names) <= set(x)
        ):
            got = ", ".join(map(repr, x)) if isinstance(x, dict) else type(x).__name__
            raise ValueError(
                f"{self.path!r} takes the inputs {', '.join(map(repr, names))}, but the data "
                f"has {got}; give a dict with these names."
            )
        given = dict.fromkeys(names, x) if is_alone else x
        batch = {name: np.asarray(given[name]) for name in names}
        for name, wanted in self._inputs.items():
            found = batch[name].shape
            fits = [a in (None, b) for a, b in zip(wanted[1:], found[1:], strict=False)]
            if len(found) != len(wanted) or not all(fits):
                raise ValueError(
                    f"{self.path!r} takes the input {name!r} of shape {wanted}, but the data "
                    f"has {found}; give what the export was made for."
                )
        return batch

    def run(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns all answers for a batch of any size, in the file's own where it is fixed."""
        count, size = len(next(iter(batch.values()))), self._size
        if size in (None, count):
            return self._model(batch)
        assert size is not None
        parts = []
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            parts.append(self._model({n: v[rows] for n, v in batch.items()}))
        return {
            name: np.concatenate([part[name] for part in parts])[:count]
            for name in parts[0]
        }

    def __call__(self, x: Any) -> Any:
        """Returns the answer for a batch: one array, or a dict or list of them."""
        batch = self.by_name(x)
        try:
            answer = self.run(batch)
        except Exception as error:  # of many kinds, one set for each runtime
            dtypes = ", ".join(f"{n!r} {v.dtype}" for n, v in batch.items())
            raise ValueError(
                f"{self.path!r} fails on the data, {dtypes}: "
                f"{' '.join(str(error).split())[:200].rstrip('. ')}."
            ) from error
        if self.has_logits:
            found = {key: answer[name] for key, name in self._teaching.items()}
            is_list = all(isinstance(key, int) for key in found)
            return found.get(None, list(found.values()) if is_list else found)
        answer = {key: out for key, out in answer.items() if out.dtype.kind == "f"}
        return next(iter(answer.values())) if len(answer) == 1 else answer


def size_on_disk(path: str) -> int:
    """Returns the bytes of a file, or of all files in a folder."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )
