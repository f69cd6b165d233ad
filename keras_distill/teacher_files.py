"""Teachers on disk: files of Keras, and SavedModels. Nothing in them is run as Python."""

from __future__ import annotations

import os
import re
from typing import Any

import keras
import tensorflow as tf

from keras_distill.exported import RUNTIMES, Exported
from keras_distill.served import served

#: Endings of the files that Keras writes.
ENDINGS = (".keras", ".h5", ".hdf5")


def read(role: str, path: str) -> keras.Model | SavedModel | Exported:
    """Returns the model of a path.

    Args:
        role: what it is, for the error.
        path: of a `.keras`, `.h5` or `.hdf5` file, a SavedModel directory, or a `.tflite` or
            `.onnx` file.

    Raises:
        FileNotFoundError: if there is nothing.
        ImportError: without the package that runs the file.
        ValueError: if it is neither, damaged, or can only be read by running code of its
            own.
    """
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(
            f"{role} path {path!r} does not exist; give a .keras or .h5 file, a "
            "SavedModel directory, or a .tflite or .onnx file."
        )
    if tf.io.gfile.exists(os.path.join(path, "saved_model.pb")):
        return SavedModel(path)
    if path.endswith(ENDINGS):
        return load_model_file(role, path)
    if path.endswith(tuple(RUNTIMES)) and not tf.io.gfile.isdir(path):
        return Exported(path)
    raise ValueError(
        f"{role} path {path!r} is neither a .keras or .h5 file nor a directory with a "
        "saved_model.pb, nor a .tflite or .onnx file. "
        + (
            "An export directory holds numbered versions: give one of those, as in "
            "'savedmodels/mnist/1'."
            if tf.io.gfile.isdir(path)
            else "Of another format, give the model itself, or a callable that runs it."
        )
    )


def load_model_file(role: str, path: str) -> keras.Model:
    """Returns the model of a file that Keras wrote, read in Keras's safe mode.

    Raises:
        ValueError: if it is damaged, has code in it, has weights alone, or needs classes
            that are not there.
    """
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # of h5py, zipfile, json and Keras, whatever they raise
        reason = f"{type(error).__name__}: {error}"
        remedy = (
            "it is damaged, or of another version of Keras; save it anew with "
            "model.save('model.keras')"
        )
        if "unsafe" in reason or "safe_mode" in reason:
            remedy = (
                "it holds code of its own (a Lambda layer), which a file may not run; if "
                "you trust it, pass keras.saving.load_model(path, safe_mode=False)"
            )
        elif "No model config" in reason:
            remedy = (
                "it holds weights and no model; build the model, call its load_weights, "
                "and pass that"
            )
        elif re.search("Could not locate|Unknown (layer|object)", reason):
            remedy = (
                "it needs classes or functions of your own; import or register them, or "
                "pass keras.saving.load_model(path, custom_objects=...)"
            )
        raise ValueError(
            f"the {role} {path!r} cannot be read: {remedy}. Keras said: "
            f"{' '.join(reason.split())[:200].rstrip('. ')}."
        ) from error


class SavedModel:
    """The function that a SavedModel serves, from a batch to its floating outputs.

    Args:
        path: of its directory.

    Raises:
        ValueError: if it cannot be read, or serves nothing by default.
    """

    runtime = "TensorFlow"

    def __init__(self, path: str) -> None:
        try:
            self.loaded = tf.saved_model.load(path)
        except Exception as error:  # of protobuf, and many of TensorFlow's
            raise ValueError(
                f"the SavedModel {path!r} cannot be read; it is damaged or not whole: "
                f"{' '.join(str(error).split())[:200].rstrip('. ')}."
            ) from error
        self.path = path
        self._signature = self.loaded.signatures.get("serving_default")
        if self._signature is None:
            raise ValueError(
                f"the SavedModel {path!r} has no signature 'serving_default'; give a "
                "callable that calls the one you mean."
            )
        self._inputs = self._signature.structured_input_signature[1]
        found = served(self._signature.structured_outputs)
        self._teaching = {key: name for key, (name, _) in found.items()}
        #: Our own exports answer with logits, probabilities and label, or values: what
        #: teaches is known.
        self.has_logits = bool(found)
        kinds = {key: kind for key, (_, kind) in found.items()}
        #: Of the outputs, by key, of our own exports; `None` where nothing says them.
        self.kinds = kinds.get(None, kinds or None)

    @property
    def input_ranks(self) -> list[int] | None:
        """Ranks of the inputs with their batch axis, ascending; `None` if not known."""
        ranks = [spec.shape.rank for spec in self._inputs.values()]
        return None if None in ranks else sorted(ranks)

    def __call__(self, x: Any) -> Any:
        """Returns the answer for a batch: one tensor, or a dict of them."""
        inputs = self._inputs
        by_name = x if isinstance(x, dict) else dict.fromkeys(inputs, x)
        if set(by_name) != set(inputs) or (len(inputs) > 1 and by_name is not x):
            raise ValueError(
                f"the SavedModel {self.path!r} takes the inputs {', '.join(inputs)}; give "
                "a dict of them."
            )
        answer = self._signature(
            **{name: tf.cast(by_name[name], inputs[name].dtype) for name in inputs}
        )
        if self.has_logits:
            found = {key: answer[name] for key, name in self._teaching.items()}
            is_list = all(isinstance(key, int) for key in found)
            return found.get(None, list(found.values()) if is_list else found)
        answer = {key: out for key, out in answer.items() if out.dtype.is_floating}
        return next(iter(answer.values())) if len(answer) == 1 else answer
