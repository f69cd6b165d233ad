"""Export for serving: a versioned SavedModel, checked in a fresh process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_distill import progress
from keras_distill.arguments import check_path, check_verbose
from keras_distill.export import check
from keras_distill.export.answers import DEFAULT_THRESHOLD
from keras_distill.export.files import hidden_folder
from keras_distill.export.runtimes import savedmodel
from keras_distill.export.serving import Serving
from keras_distill.run_directory import RunDirectory


def export_savedmodel(
    model: keras.Model,
    directory: str | os.PathLike,
    *,
    class_names: Sequence[str] | dict[str, Sequence[str]] | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    input_signature: Any = None,
    example: Any = None,
    from_logits: Any = None,
    output_kinds: Any = None,
    threshold: Any = DEFAULT_THRESHOLD,
    verbose: bool = True,
) -> str:
    """Writes `directory/<version>/`, the way TensorFlow Serving watches it.

    The version is the next free number. It is written under another name, loaded and
    run by a fresh Python process that imports only TensorFlow, compared with the Keras
    model (relative and absolute tolerance 1e-5), and only then renamed: a version that
    can be seen is whole and right. If anything fails, nothing is left. What a killed export
    left in a local directory is removed by the next.

    The signature `serving_default` takes the model's inputs by name and gives, at T = 1, for
    an output of K classes that exclude each other, or of K yes/no questions,

    - `logits`: float32 `(batch, ..., K)`;
    - `probabilities`: float32 `(batch, ..., K)`, their softmax, or each one's sigmoid;
    - `label`: int64, or str if `class_names` are given. Of K classes the likeliest,
      `(batch, ...)`. Of questions 1 for yes where `probabilities >= threshold`, as float32
      has both, so also where they are equal, else 0: of one question, `(batch, ..., 1)`, it
      is `(batch, ...)`; of K, `(batch, ..., K)`;

    and for an output of values

    - `values`: float32 `(batch, ...)`, as the model gives them.

    For a model with several outputs each name is preceded by the output's and "_": its name
    in a dict, its index in a list. Which kind an output is, the last layer says, or the loss
    that the model was compiled with, or the `Distiller` that trained it.

    Args:
        model: the `keras.Model` to serve; of a `Distiller`, its student. With logits,
            probabilities or values `(batch, ..., K)`, or a dict or list of them.
        directory: str or path; made if it does not exist. Local, or any path that
            `tf.io.gfile` takes.
        class_names: one str per class, kept in the graph; of one yes/no question two, of no
            and of yes; of K questions K, which `label` then has where the answer is yes, and
            "" where it is no. Or a dict of them by output name.
        preprocess: from raw inputs to what the model takes, in TensorFlow or
            `keras.ops`, or a Keras layer; kept in the graph. It is given what
            `input_signature` says, or else the model's own inputs, several as a dict.
        input_signature: `tf.TensorSpec` of the raw inputs, with a name, or a dict, list or
            tuple of them; by default the model's own inputs, batch size free. A subclassed
            model is called with that structure, or with one part for each argument where
            its `call` takes several, a list by their order, a dict by their names.
        example: a batch of raw inputs for the check, by name or in the structure of
            `input_signature`; by default random numbers.
        from_logits: bool, whether the model gives logits, or a dict of bools by output name;
            `None` (default) finds out.
        output_kinds: "softmax", "sigmoid" or "values", what the model's numbers describe; or
            a dict of these by output name. `None` (default) finds out; where nothing says
            it, two or more numbers are a softmax's, with a warning.
        threshold: float between 0 and 1, the probability from which a yes/no question is
            answered by yes, kept in the graph; or a list of one for each question; or a dict
            of these by output name. Default 0.5.
        verbose: whether to show a progress bar.

    Returns:
        The path of the new version.

    Raises:
        NotADirectoryError: if `directory` is a file.
        OSError: if it cannot be written.
        TypeError: if `model` is not a `keras.Model`, or another argument of another kind.
        ValueError: if the class names, the threshold, the example or the input signature do
            not fit, or no input signature is known; if last layer, loss and `output_kinds`
            contradict each other, or nothing says of a single number what it is.
        RuntimeError: if the fresh process fails or gives other outputs.

    Example:
    >>> import tempfile
    >>> dense = keras.layers.Dense(1, activation="sigmoid")
    >>> model = keras.Sequential([keras.Input((4,), name="x"), dense])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = export_savedmodel(model, folder, threshold=0.3, verbose=False)
    ...     serve = tf.saved_model.load(path).signatures["serving_default"]
    ...     sorted(serve(x=tf.ones((2, 4))))
    ['label', 'logits', 'probabilities']
    """
    directory = check_path("directory", directory)
    if set(directory) & set("[]*?\\"):
        raise ValueError(
            f"directory must be without [, ], *, ? and \\, which TensorFlow takes for a "
            f"pattern when it loads the variables, got {directory!r}."
        )
    verbose = check_verbose(verbose)
    if tf.io.gfile.exists(directory) and not tf.io.gfile.isdir(directory):
        raise NotADirectoryError(
            f"the export directory {directory!r} is a file; give a directory, in which "
            "the numbered versions go."
        )
    next_version(directory)  # or there is none
    serving = Serving.of(
        model,
        class_names=class_names,
        preprocess=preprocess,
        input_signature=input_signature,
        example=example,
        from_logits=from_logits,
        output_kinds=output_kinds,
        threshold=threshold,
        exporter="export_savedmodel",
    )

    folder = RunDirectory(directory, "the export")
    with (
        folder.errors(),
        hidden_folder(directory) as hidden,
        progress.bar("export", "stage", 3, verbose) as shown,
    ):
        serving.write(hidden)
        shown.update()
        (answer,) = check.ask_fresh_process(savedmodel, hidden, [serving.batch])
        serving.check(answer, "in a fresh process")
        shown.update()
        path = _publish(hidden, directory)
        shown.update()
    return path


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
