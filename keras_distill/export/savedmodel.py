"""Export for serving: a versioned SavedModel, checked in a fresh process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_distill import progress
from keras_distill.arguments import check_int, check_path, check_verbose
from keras_distill.export import check, versions
from keras_distill.export import warmup as warmup_requests
from keras_distill.export.answers import DEFAULT_THRESHOLD
from keras_distill.export.card import card_of, write_card
from keras_distill.export.files import PATTERN, hidden_folder
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
    serving_bytes: Any = None,
    warmup: Any = None,
    keep: int | None = None,
    card: Any = None,
    verbose: bool = True,
) -> str:
    """Writes `directory/<version>/`, the way TensorFlow Serving watches it.

    The version is the next free number. It is written under another name, loaded and
    run by a fresh Python process that imports only TensorFlow, compared with the Keras
    model (relative and absolute tolerance 1e-5), and only then renamed: a version that
    can be seen is whole and right. If anything fails, nothing is left. What a killed export
    left in a local directory is removed by the next. Beside the model a version has its card
    (`model_card.md` and `model_card.json`, see `ModelCard`), and the class names of each
    output that has some, one a line, in `assets/labels.txt` (of several outputs in
    `assets/<output>_labels.txt`).

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
        serving_bytes: serves images by the bytes of their files, so that a request is
            `image_bytes`, str `(batch,)` (of a model with several inputs of images
            `<input>_bytes` each): `True` for the size and channels that the model's input, or
            `input_signature`, has; `(height, width)` where that has none; or a dict with
            Keras's names `image_size`, `color_mode` ("grayscale", "rgb", "rgba"),
            `interpolation` ("bilinear"), `crop_to_aspect_ratio` and `pad_to_aspect_ratio`
            (`False`), and `scale` (1) and `offset` (0), numbers or one for each channel. In
            the graph, before `preprocess`,

                image = resize(decode(bytes)) * scale + offset

            where `resize(decode(bytes))` is float32 from 0 to 255, the same as from
            `keras.utils.image_dataset_from_directory` (which does not antialias): so the
            defaults suit a model trained on it as it is, and `scale=1/255` one trained on it
            divided by 255. PNG (of 16 bits the upper 8), JPEG, and in colour BMP, WebP and
            the first frame of a GIF. What cannot be decoded fails its request, by a message
            with its place in the batch; where a server joins requests to batches, also those
            it is joined with. An input of whole numbers gets them rounded.
        warmup: a batch of raw inputs, in the form of `example`, or a list of up to 1000 such:
            requests of the name of `directory` that TensorFlow Serving sends itself when it
            loads the version, in `assets.extra/tf_serving_warmup_requests`. Their answers
            are checked as that of the example. Needs `keras-distill[serving]`.
        keep: int >= 1, how many versions stay: older ones are removed after the new one is in
            place. Only whole versions, with numbers, before the new one. `None` (default)
            keeps all.
        card: what is known of the model beside what the exporter sees: a `ModelCard`, the
            `Distiller` or `SearchResult` that trained it, or a dict of `ModelCard`'s keywords.
            Of a `Distiller` as `model` the card is made by itself.
        verbose: whether to show a progress bar. Default `True`.

    Returns:
        The path of the new version.

    Raises:
        ImportError: if `warmup` is given and tensorflow-serving-api is not installed.
        NotADirectoryError: if `directory` is a file.
        OSError: if it cannot be written.
        TypeError: if `model` is not a `keras.Model`, or another argument of another kind.
        ValueError: if the class names, the threshold, the example or the input signature do
            not fit, or no input signature is known; if last layer, loss and `output_kinds`
            contradict each other, or nothing says of a single number what it is; if the
            images' size, `warmup` or `keep` does not fit, or `card` is of another model.
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
    directory = check_directory(directory)
    verbose = check_verbose(verbose)
    if keep is not None:
        keep = check_int("keep", keep, 1)
    versions.next_version(directory)  # or there is none
    if warmup is not None:
        warmup_requests.protos()  # or they are not installed
        name = warmup_requests.model_name(directory)
    serving = Serving.of(
        model,
        class_names=class_names,
        preprocess=preprocess,
        input_signature=input_signature,
        example=example,
        from_logits=from_logits,
        output_kinds=output_kinds,
        threshold=threshold,
        serving_bytes=serving_bytes,
        exporter="export_savedmodel",
    )
    asked = [] if warmup is None else warmup_requests.asked(serving, warmup)
    card = card_of(card, model)

    folder = RunDirectory(directory, "the export")
    with (
        folder.errors(),
        hidden_folder(directory) as hidden,
        progress.bar("export", "stage", 3, verbose) as shown,
    ):
        serving.write(hidden)
        _write_labels(serving, hidden)
        batches = [one.batch for one in asked]
        if batches:
            warmup_requests.write(hidden, batches, name)
        write_card(card, serving, hidden, savedmodel.NAME)
        shown.update()
        batches = [serving.batch, *batches]
        answers = check.ask_fresh_process(savedmodel, hidden, batches)
        for one, answer in zip([serving, *asked], answers, strict=True):
            one.check(answer, "in a fresh process")
        shown.update()
        path = versions.publish(hidden, directory)
        shown.update()
    if keep is not None:
        versions.prune(path, keep)
    return path


def check_directory(value: Any) -> str:
    """Returns the directory of versions of a SavedModel.

    Raises:
        NotADirectoryError: if it is a file.
        ValueError: if it is no path, or TensorFlow cannot load from it.
    """
    directory = check_path("directory", value)
    if set(directory) & PATTERN:
        raise ValueError(
            f"directory must be without [, ], *, ? and \\, which TensorFlow takes for a "
            f"pattern when it loads the variables, got {directory!r}."
        )
    if tf.io.gfile.exists(directory) and not tf.io.gfile.isdir(directory):
        raise NotADirectoryError(
            f"the export directory {directory!r} is a file; give a directory, in which "
            "the numbered versions go."
        )
    return directory


def _write_labels(serving: Serving, path: str) -> None:
    """Writes the class names of each output that has some, one a line."""
    for key, answer in serving.answers.items():
        if answer.class_names is None:
            continue
        # A name in a dict may be any, and that of a file may not.
        part = "" if key is None else str(key).replace("%", "%25").replace("/", "%2F")
        name = f"{part}_labels.txt" if part else "labels.txt"
        file = os.path.join(path, "assets", name)
        tf.io.gfile.makedirs(os.path.dirname(file))
        with tf.io.gfile.GFile(file, "w") as opened:
            opened.write("".join(f"{one}\n" for one in answer.class_names))
