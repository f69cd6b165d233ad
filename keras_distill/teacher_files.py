"""Teachers on disk: files of Keras, and SavedModels. Nothing in them is run as Python."""

from __future__ import annotations

import os
import re
from typing import Any

import keras
import tensorflow as tf

#: Endings of the files that Keras writes.
ENDINGS = (".keras", ".h5", ".hdf5")


def read(role: str, path: str) -> keras.Model | SavedModel:
    """Returns the model of a path.

    Args:
        role: what it is, for the error.
        path: of a `.keras`, `.h5` or `.hdf5` file, or a SavedModel directory.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is neither, damaged, or can only be read by running code of its
            own.
    """
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(
            f"{role} path {path!r} does not exist; give a .keras or .h5 file, or a "
            "SavedModel directory."
        )
    if tf.io.gfile.exists(os.path.join(path, "saved_model.pb")):
        return SavedModel(path)
    if path.endswith(ENDINGS):
        return load_model_file(role, path)
    raise ValueError(
        f"{role} path {path!r} is neither a .keras or .h5 file nor a directory with a "
        "saved_model.pb. "
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

    def __init__(self, path: str) -> None:
        try:
            self._loaded = tf.saved_model.load(path)
        except Exception as error:  # of protobuf, and many of TensorFlow's
            raise ValueError(
                f"the SavedModel {path!r} cannot be read; it is damaged or not whole: "
                f"{' '.join(str(error).split())[:200].rstrip('. ')}."
            ) from error
        self.path = path
        self._signature = self._loaded.signatures.get("serving_default")
        if self._signature is None:
            raise ValueError(
                f"the SavedModel {path!r} has no signature 'serving_default'; give a "
                "callable that calls the one you mean."
            )
        self._inputs = self._signature.structured_input_signature[1]
        served = _served(self._signature.structured_outputs)
        self._teaching = {key: name for key, (name, _) in served.items()}
        #: Our own exports answer with logits, probabilities and label, or values: what
        #: teaches is known.
        self.has_logits = bool(served)
        kinds = {key: kind for key, (_, kind) in served.items()}
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


def _served(outputs: dict[str, Any]) -> dict[Any, tuple[str, str | None]]:
    """Returns what teaches in one of our own exports, and its kind, by output.

    Args:
        outputs: tensors or specs by the name of the answer.

    Returns:
        A name and a kind by the output's key; empty for what is none of ours.
    """
    if {"logits", "probabilities"} <= set(outputs):
        return {None: ("logits", _kind(outputs, ""))}
    found: dict[Any, tuple[str, str | None]] = {}
    others = set(outputs)
    for name in outputs:
        what = name.rpartition("_")[2]
        prefix = name.removesuffix(what)
        names = {"values": ["values"], "logits": ["logits", "probabilities", "label"]}
        answers = {prefix + one for one in names.get(what, [])}
        if answers and answers <= others:
            others -= answers
            kind = "values" if what == "values" else _kind(outputs, prefix)
            found[prefix[:-1] if prefix else None] = (name, kind)
    if others:
        return {}
    numbers = [str(i) for i in range(len(found))]  # of the outputs of a list
    is_list = len(found) > 1 and set(found) == set(numbers)
    return {int(key): found[key] for key in numbers} if is_list else found


def _kind(outputs: dict[str, Any], prefix: str) -> str | None:
    """Tells classes from yes/no questions, which have a label each."""
    logits, label = outputs[prefix + "logits"].shape, outputs.get(prefix + "label")
    if label is None or None in (label.shape.rank, logits.rank):
        return None
    has_one_each = label.shape.rank == logits.rank or logits[-1] == 1
    return "sigmoid" if has_one_each else "softmax"
