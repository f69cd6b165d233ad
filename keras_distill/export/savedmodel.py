"""Export for serving: a versioned SavedModel, checked in a fresh process."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from keras_distill.distiller import Distiller
from keras_distill.outputs import by_output, gives_logits, is_settled, settle, to_logits

# Runs with TensorFlow alone: what a server would see.
_FRESH_PROCESS = """
import base64, json, sys
import tensorflow as tf
path, given, answer = sys.argv[1:]
serve = tf.saved_model.load(path).signatures["serving_default"]
inputs = {
    name: tf.io.parse_tensor(base64.b64decode(value), dtype)
    for name, (dtype, value) in json.load(open(given)).items()
}
outputs = {
    name: [value.dtype.name, base64.b64encode(tf.io.serialize_tensor(value).numpy()).decode()]
    for name, value in serve(**inputs).items()
}
json.dump(outputs, open(answer, "w"))
"""

TOLERANCE = 1e-5


def export_savedmodel(
    model: keras.Model,
    directory: str | os.PathLike,
    *,
    class_names: Sequence[str] | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    input_signature: Any = None,
    example: Any = None,
    from_logits: bool | None = None,
    verbose: bool = True,
) -> str:
    """Writes `directory/<version>/`, the way TensorFlow Serving watches it.

    The version is the next free number. It is written under another name, loaded and
    run by a fresh Python process that imports only TensorFlow, compared with the Keras
    model (relative and absolute tolerance 1e-5), and only then renamed: a version that
    can be seen is whole and right. If anything fails, nothing is left.

    The signature `serving_default` takes the model's inputs by name and gives, at T = 1,

    - `logits`: float32 `(batch, ..., classes)`;
    - `probabilities`: float32 `(batch, ..., classes)`, their softmax;
    - `label`: int64 `(batch, ...)`, or str if `class_names` are given.

    For a model with several outputs each name is preceded by the output's and "_".

    Args:
        model: the `keras.Model` to serve; of a `Distiller`, its student.
        directory: str or path; made if it does not exist. Local, or any path that
            `tf.io.gfile` takes.
        class_names: one str per class, kept in the graph.
        preprocess: from raw inputs to what the model takes, in TensorFlow or
            `keras.ops`, or a Keras layer; kept in the graph.
        input_signature: `tf.TensorSpec` of the raw inputs (or a dict of them), with
            names; by default the model's own inputs, batch size free.
        example: a batch of raw inputs for the check; by default random numbers of the
            input signature.
        from_logits: bool, whether the model gives logits; `None` (default) finds out.
        verbose: whether to show a progress bar.

    Returns:
        The path of the new version.

    Raises:
        NotADirectoryError: if `directory` is a file.
        TypeError: if `model` is not a `keras.Model`.
        ValueError: if the class names do not fit, or no input signature is known.
        RuntimeError: if the fresh process fails or gives other outputs.

    Example:
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = export_savedmodel(model, folder, verbose=False)
    ...     os.path.basename(path)
    '1'
    """
    if isinstance(model, Distiller):
        model = model.student
    if not isinstance(model, keras.Model):
        raise TypeError(f"model must be a keras.Model, got {model!r}.")
    directory = os.fspath(directory)
    if tf.io.gfile.exists(directory) and not tf.io.gfile.isdir(directory):
        raise NotADirectoryError(
            f"the export directory {directory!r} is a file; give a directory, in which "
            "the numbered versions go."
        )
    specs = _input_specs(model, input_signature)
    batch = _example(specs, example)
    if from_logits is None:
        from_logits = gives_logits(model)
    if not is_settled(from_logits):
        outputs = model(_for_model(batch, specs, preprocess), training=False)
        from_logits = settle(outputs, from_logits, "model", "from_logits")
    serve = _serving_function(model, preprocess, class_names, from_logits, specs)
    expected, again = (
        {name: value.numpy() for name, value in serve(**batch).items()}
        for _ in range(2)
    )
    for name, value in expected.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(
                f"the model's {name} for the example are not all finite (NaN or "
                "infinity); check its weights, or pass example= with typical inputs."
            )
    _compare(expected, again, "when asked twice")

    progress = tqdm(total=3, desc="export", unit="stage", ncols=90, disable=not verbose)
    # TensorFlow Serving ignores names that are not numbers.
    hidden = os.path.join(directory, f".writing-{uuid.uuid4().hex}")
    is_new = not tf.io.gfile.exists(directory)
    tf.io.gfile.makedirs(directory)
    path = None
    try:
        archive = keras.export.ExportArchive()
        archive.track(model)
        if isinstance(preprocess, keras.layers.Layer):
            archive.track(preprocess)
        archive.add_endpoint("serve", serve)
        _write(archive, hidden)
        progress.update()
        _compare(expected, ask_fresh_process(hidden, batch), "in a fresh process")
        progress.update()
        path = _publish(hidden, directory)
        progress.update()
    finally:
        progress.close()
        if tf.io.gfile.exists(hidden):
            tf.io.gfile.rmtree(hidden)
        if path is None and is_new and not tf.io.gfile.listdir(directory):
            tf.io.gfile.rmtree(directory)
    return path


def _write(archive: keras.export.ExportArchive, path: str) -> None:
    try:
        archive.write_out(path, verbose=False)
    except AssertionError as error:
        raise ValueError(
            "preprocess uses a layer or a lookup table that the export cannot see; pass "
            "the Keras layer itself, or a keras.Sequential of layers."
        ) from error


def next_version(directory: str) -> int:
    """Returns the number after the highest version in a directory, from 1."""
    names = tf.io.gfile.listdir(directory) if tf.io.gfile.isdir(directory) else []
    return 1 + max(
        (int(n.rstrip("/")) for n in names if n.rstrip("/").isdigit()), default=0
    )


def _input_specs(model: keras.Model, signature: Any) -> dict[str, tf.TensorSpec]:
    """Returns the inputs' specs by name."""
    if signature is None:
        if not getattr(model, "inputs", None):
            raise ValueError(
                f"the inputs of the subclassed model {model.name!r} are not known; pass "
                "input_signature=tf.TensorSpec([None, ...], tf.float32, name=...)."
            )
        return {
            tensor.name: tf.TensorSpec(
                (None, *tensor.shape[1:]), tensor.dtype, tensor.name
            )
            for tensor in model.inputs
        }
    specs = signature if isinstance(signature, dict) else None
    if specs is None:
        specs = {s.name or "inputs": s for s in keras.tree.flatten(signature)}
    return {
        name: tf.TensorSpec(spec.shape, spec.dtype, name)
        for name, spec in specs.items()
    }


def _example(specs: dict[str, tf.TensorSpec], example: Any) -> dict[str, Any]:
    if example is not None:
        if isinstance(example, dict):
            given = example
        elif len(specs) == 1:
            given = {next(iter(specs)): example}
        else:
            raise ValueError(
                f"the model takes several inputs, {', '.join(specs)}; give the example as "
                "a dict by these names."
            )
        return {
            name: tf.convert_to_tensor(given[name], spec.dtype)
            for name, spec in specs.items()
        }
    rng = np.random.default_rng(0)
    batch = {}
    for name, spec in specs.items():
        if spec.dtype == tf.string or spec.shape.rank is None:
            raise ValueError(
                f"no random example can be made for input {name!r}, {spec}; pass "
                "example=, a batch of raw inputs, for the check."
            )
        shape = [4 if i == 0 else size or 8 for i, size in enumerate(spec.shape)]
        values = rng.uniform(0.0, 1.0, shape)
        batch[name] = tf.cast(
            values if spec.dtype.is_floating else np.round(values), spec.dtype
        )
    return batch


def _for_model(
    named: dict[str, Any], specs: dict[str, Any], preprocess: Callable | None
) -> Any:
    """Returns what the model takes, from inputs by name."""
    values = dict(named) if len(specs) > 1 else next(iter(named.values()))
    return values if preprocess is None else preprocess(values)


def _serving_function(
    model: keras.Model,
    preprocess: Callable | None,
    class_names: Sequence[str] | None,
    from_logits: bool,
    specs: dict[str, tf.TensorSpec],
) -> Callable:
    names = None if class_names is None else tf.constant(list(class_names))

    def serve(**inputs: Any) -> dict[str, Any]:
        x = _for_model(inputs, specs, preprocess)
        if len(specs) > 1 and preprocess is None and isinstance(model.input, list):
            x = [inputs[tensor.name] for tensor in model.inputs]
        outputs = to_logits(model(x, training=False), from_logits)
        answer = {}
        for key, logits in by_output(outputs):
            prefix = "" if key is None else f"{key}_"
            logits = tf.cast(logits, tf.float32)
            if logits.shape[-1] == 1:
                raise ValueError(
                    "the model has 1 class: a softmax over it is always 1. Build it with "
                    "one output per class, 2 for a yes or no."
                )
            if names is not None and len(names) != logits.shape[-1]:
                raise ValueError(
                    f"class_names has {len(names)} names, but the model has "
                    f"{logits.shape[-1]} classes; give one name per class."
                )
            label = tf.argmax(logits, -1)
            answer[f"{prefix}logits"] = logits
            answer[f"{prefix}probabilities"] = tf.nn.softmax(logits)
            answer[f"{prefix}label"] = (
                label if names is None else tf.gather(names, label)
            )
        return answer

    function = tf.function(serve)
    function.get_concrete_function(**specs)
    return function


def ask_fresh_process(path: str, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    """Runs an export in a new Python process that imports only TensorFlow.

    Args:
        path: of one version.
        batch: tensors by the name of the input.

    Returns:
        Arrays by the name of the output.

    Raises:
        RuntimeError: if the process fails, with the end of what it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, answer = (os.path.join(folder, name) for name in ("given", "answer"))
        with open(given, "w") as file:
            json.dump({n: [v.dtype.name, _encode(v)] for n, v in batch.items()}, file)
        done = subprocess.run(
            [sys.executable, "-c", _FRESH_PROCESS, path, given, answer],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(
                f"the SavedModel {path} does not run in a fresh process:\n"
                f"{done.stderr[-2000:]}"
            )
        with open(answer) as file:
            return {
                name: tf.io.parse_tensor(base64.b64decode(value), dtype).numpy()
                for name, (dtype, value) in json.load(file).items()
            }


def _encode(tensor: tf.Tensor) -> str:
    return base64.b64encode(tf.io.serialize_tensor(tensor).numpy()).decode()


def _compare(expected: dict[str, Any], answer: dict[str, Any], when: str) -> None:
    for name, value in expected.items():
        got = answer[name]
        if name.endswith("label"):
            two_best = np.sort(expected[name[:-5] + "probabilities"], -1)[..., -2:]
            is_tie = np.ptp(two_best, -1) <= TOLERANCE
            same = bool(np.all((got == value) | is_tie))
            difference = f"{np.sum(got != value)} labels differ"
        else:
            same = np.allclose(got, value, rtol=TOLERANCE, atol=TOLERANCE)
            difference = f"largest difference {np.max(np.abs(got - value)):.2g}"
        if not same:
            raise RuntimeError(
                f"the model gives other {name} {when} ({difference}), so nothing was "
                "exported. A layer that is random, or keeps state, at inference cannot "
                "be served."
            )


def _publish(hidden: str, directory: str) -> str:
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
