"""What an export on disk takes and answers, whatever its format, and batches to ask it."""

from __future__ import annotations

import dataclasses
import os
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill.export import check, fresh, probe
from keras_distill.export.runtimes import savedmodel
from keras_distill.export.versions import newest_version
from keras_distill.exported import RUNTIMES, runtime_of, unreadable

_SAVED_MODEL = "saved_model.pb"
_IMAGE = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class Signature:
    """The signature `serving_default` of an export.

    Attributes:
        path: of the version or the file.
        runtime: module of `export.runtimes` that runs it.
        inputs: specs by name.
        outputs: likewise.
    """

    path: str
    runtime: ModuleType
    inputs: dict[str, tf.TensorSpec]
    outputs: dict[str, tf.TensorSpec]

    @property
    def fixed_batch(self) -> int | None:
        """The size of batch that the inputs fix, or `None`."""
        sizes = [spec.shape[0] for spec in self.inputs.values() if spec.shape.rank]
        return next((size for size in sizes if size), None)

    def batch_of(self, count: int) -> dict[str, np.ndarray]:
        """Returns a batch of random examples, the same each time.

        Text is single letters, or for an input of `serving_bytes` files of images.

        Args:
            count: of examples, where the batch is free.
        """
        batch = {}
        for name, spec in self.inputs.items():
            if spec.dtype == tf.string:
                batch[name] = _text(name, spec, self.fixed_batch or count)
                continue
            shape = [count] if spec.shape.rank is None else list(spec.shape)
            if shape:
                shape[0] = shape[0] or count
            one = {name: tf.TensorSpec(shape, spec.dtype, name)}
            batch[name] = np.asarray(check.example_batch(one, None)[name])
        return batch


def _text(name: str, spec: tf.TensorSpec, count: int) -> np.ndarray:
    rank = 1 if spec.shape.rank is None else spec.shape.rank
    shape = [count, *(size or 1 for size in spec.shape[1:])] if rank > 1 else [count]
    rng = np.random.default_rng(0)
    if name == "image_bytes" or name.endswith("_bytes"):
        images = rng.integers(256, size=(count, *_IMAGE)).astype("uint8")
        texts = [tf.io.encode_png(image).numpy() for image in images]
    else:
        letters = rng.integers(26, size=int(np.prod(shape)))
        texts = [bytes([97 + letter]) for letter in letters]
    return np.array(texts, object).reshape(shape)


def signature_of(path: str) -> Signature:
    """Returns the signature of an export.

    Args:
        path: of a SavedModel version, of a directory of versions, for the newest of them, or
            of a `.tflite` or `.onnx` file.

    Raises:
        FileNotFoundError: if there is nothing.
        ImportError: without the package that runs the file.
        ValueError: if it is none of these, or damaged.
    """
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(
            f"the export {path!r} does not exist; give a SavedModel version, the directory "
            "of its versions, or a .tflite or .onnx file."
        )
    if tf.io.gfile.isdir(path):
        if not tf.io.gfile.exists(os.path.join(path, _SAVED_MODEL)):
            path = _newest(path)
        return _described(path, savedmodel, _saved_model(path))
    if not path.endswith(tuple(RUNTIMES)):
        raise ValueError(
            f"the export {path!r} is neither a .tflite or .onnx file nor a SavedModel "
            "directory; of a .keras file, keras-distill export makes one."
        )
    return _described(path, runtime_of(path), _file(path))


def _newest(directory: str) -> str:
    found = newest_version(directory)
    if found is None:
        raise ValueError(
            f"the directory {directory!r} holds neither a saved_model.pb nor a version, a "
            "folder with a number for a name that holds one."
        )
    return found


def _saved_model(path: str) -> dict[str, dict[str, Any]]:
    # Here, where TensorFlow is imported already.
    try:
        return probe.describe(str(savedmodel.__file__), path)
    except KeyError as error:
        raise ValueError(
            f"the SavedModel {path!r} has no signature 'serving_default', by which a server "
            "asks it; export it by kd.export_savedmodel."
        ) from error
    except Exception as error:  # of protobuf, and many of TensorFlow's
        raise ValueError(
            f"the SavedModel {path!r} cannot be read; it is damaged or not whole: "
            f"{' '.join(str(error).split())[:200].rstrip('. ')}."
        ) from error


def _file(path: str) -> dict[str, dict[str, Any]]:
    runtime = runtime_of(path)
    # Elsewhere: what is damaged may end the process that reads it.
    try:
        return fresh.run(
            fresh.CALL, [probe.__file__, "describe"], (runtime.__file__, path)
        )
    except fresh.FreshProcessError as error:
        reason = (error.said.strip().splitlines() or [f"its runtime {error.ended}"])[-1]
        raise ValueError(
            unreadable(path, RUNTIMES[os.path.splitext(path)[1]].name, reason)
        ) from None


def _described(path: str, runtime: ModuleType, found: dict[str, dict]) -> Signature:
    inputs, outputs = (
        {
            n: tf.TensorSpec(s, found[dtypes][n], n)
            for n, s in sorted(found[shapes].items())
        }
        for shapes, dtypes in (("inputs", "input_dtypes"), ("outputs", "output_dtypes"))
    )
    return Signature(path, runtime, inputs, outputs)
