"""Export for serving: a versioned SavedModel, checked in a fresh process."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_distill import progress
from keras_distill.arguments import (
    check_from_logits,
    check_model,
    check_names,
    check_path,
    check_verbose,
)
from keras_distill.distiller import Distiller
from keras_distill.export import check
from keras_distill.export.inputs import Inputs
from keras_distill.outputs import (
    by_output,
    is_settled,
    said_or_found,
    settle,
    to_logits,
)
from keras_distill.run_directory import RunDirectory


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
    can be seen is whole and right. If anything fails, nothing is left. What a killed export
    left in a local directory is removed by the next.

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
            `keras.ops`, or a Keras layer; kept in the graph. It is given what
            `input_signature` says, or else the model's own inputs, several as a dict.
        input_signature: `tf.TensorSpec` of the raw inputs, with a name, or a dict, list or
            tuple of them; by default the model's own inputs, batch size free. A subclassed
            model is called with that structure, or with one part for each argument where
            its `call` takes several, a list by their order, a dict by their names.
        example: a batch of raw inputs for the check, by name or in the structure of
            `input_signature`; by default random numbers.
        from_logits: bool, whether the model gives logits; `None` (default) finds out.
        verbose: whether to show a progress bar.

    Returns:
        The path of the new version.

    Raises:
        NotADirectoryError: if `directory` is a file.
        OSError: if it cannot be written.
        TypeError: if `model` is not a `keras.Model`, or another argument of another kind.
        ValueError: if the class names, the example or the input signature do not fit, or
            no input signature is known.
        RuntimeError: if the fresh process fails or gives other outputs.

    Example:
    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = export_savedmodel(model, folder, verbose=False)
    ...     os.path.basename(path)
    '1'
    """
    if isinstance(model, Distiller):
        model = model.student
    check_model(
        "model", model, "An image preprocessor can be exported with it: preprocess=..."
    )
    directory = check_path("directory", directory)
    if set(directory) & set("[]*?\\"):
        raise ValueError(
            f"directory must be without [, ], *, ? and \\, which TensorFlow takes for a "
            f"pattern when it loads the variables, got {directory!r}."
        )
    from_logits = check_from_logits("from_logits", from_logits)
    verbose = check_verbose(verbose)
    if class_names is not None:
        class_names = check_names("class_names", class_names)
    if preprocess is not None and not callable(preprocess):
        raise TypeError(f"preprocess must be a function or layer, got {preprocess!r}.")
    if tf.io.gfile.exists(directory) and not tf.io.gfile.isdir(directory):
        raise NotADirectoryError(
            f"the export directory {directory!r} is a file; give a directory, in which "
            "the numbered versions go."
        )
    next_version(directory)  # or there is none
    inputs = Inputs.of(model, input_signature, preprocess is not None)
    batch = check.example_batch(inputs.specs, inputs.by_name(example))
    inputs.check(model, batch, preprocess)
    from_logits = said_or_found(from_logits, model, None)
    if not is_settled(from_logits):
        outputs = inputs.call(model, batch, preprocess)
        from_logits = settle(outputs, from_logits, "model", "from_logits")
    serve = _serving_function(
        model, preprocess, class_names, from_logits, inputs, batch
    )
    expected = check.expected_answer(serve, batch)

    is_new, path = not tf.io.gfile.exists(directory), None
    folder = RunDirectory(directory, "the export")
    try:
        with (
            folder.errors(),
            _hidden(directory) as hidden,
            progress.bar("export", "stage", 3, verbose) as shown,
        ):
            archive = keras.export.ExportArchive()
            archive.track(model)
            if isinstance(preprocess, keras.layers.Layer):
                archive.track(preprocess)
            archive.add_endpoint("serve", serve)
            _write(archive, hidden)
            shown.update()
            answer = check.ask_fresh_process(hidden, batch)
            check.check_same(expected, answer, "in a fresh process")
            shown.update()
            path = _publish(hidden, directory)
            shown.update()
    finally:
        if path is None and is_new and tf.io.gfile.isdir(directory):
            with contextlib.suppress(tf.errors.OpError, OSError):
                if not tf.io.gfile.listdir(directory):
                    tf.io.gfile.rmtree(directory)
    return path


# TensorFlow Serving ignores names that are not numbers.
_HIDDEN = ".writing-"


@contextlib.contextmanager
def _hidden(directory: str) -> Iterator[str]:
    """Yields a folder that no server sees, and removes it, and those that nobody holds.

    A local one is held by a lock on itself, which ends with the process.
    """
    is_local = "://" not in directory
    if is_local and os.path.isdir(directory):
        for name in os.listdir(directory):
            if name.startswith(_HIDDEN):
                path = os.path.join(directory, name)
                with _held(path) as is_ours:
                    if is_ours:
                        shutil.rmtree(path, ignore_errors=True)
    while True:
        hidden = os.path.join(directory, f"{_HIDDEN}{uuid.uuid4().hex}")
        tf.io.gfile.makedirs(hidden)
        with contextlib.ExitStack() as stack:
            # Between its making and its lock another export may have taken it away.
            if is_local and not stack.enter_context(_held(hidden)):
                continue
            try:
                yield hidden
            finally:
                if tf.io.gfile.exists(hidden):
                    tf.io.gfile.rmtree(hidden)
            return


@contextlib.contextmanager
def _held(path: str) -> Iterator[bool]:
    """Yields whether this process alone holds a local folder."""
    import fcntl  # not on every system

    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_there = os.path.isdir(path) and os.path.samestat(
            os.fstat(file), os.stat(path)
        )
    except OSError:
        is_there = False
    try:
        yield is_there
    finally:
        os.close(file)


def _write(archive: keras.export.ExportArchive, path: str) -> None:
    try:
        archive.write_out(path, verbose=False)
    except AssertionError as error:
        raise ValueError(
            "preprocess uses a layer or a lookup table that the export cannot see; pass "
            "the Keras layer itself, or a keras.Sequential of layers."
        ) from error
    except tf.errors.OpError as error:
        raise OSError(
            f"the export could not be written to {path!r}: {error.message}."
        ) from error


def next_version(directory: str) -> int:
    """Returns the number after the highest version in a directory, from 1."""
    names = tf.io.gfile.listdir(directory) if tf.io.gfile.isdir(directory) else []
    found = [re.fullmatch("([0-9]+)/?", name) for name in names]
    numbers = [int(match[1]) for match in found if match]
    # Those past int64 are none to a server.
    last = max((n for n in numbers if n < 2**63), default=0)
    if last == 2**63 - 1:
        raise ValueError(
            f"{directory!r} has the version {last}, after which there is none for a server; "
            "export to another directory."
        )
    return last + 1


def _serving_function(
    model: keras.Model,
    preprocess: Callable | None,
    class_names: Sequence[str] | None,
    from_logits: bool,
    inputs: Inputs,
    batch: dict[str, Any],
) -> Callable:
    names = None if class_names is None else tf.constant(list(class_names))

    def serve(**named: Any) -> dict[str, Any]:
        outputs = to_logits(inputs.call(model, named, preprocess), from_logits)
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
            label = label if names is None else tf.gather(names, label)
            answer[f"{prefix}logits"] = logits
            answer[f"{prefix}probabilities"] = tf.nn.softmax(logits)
            answer[f"{prefix}label"] = label
        return answer

    function = tf.function(serve)
    try:
        function.get_concrete_function(**inputs.specs)
    except Exception:
        serve(**batch)  # says the same without the traceback of a graph, if it says it
        raise
    return function


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
