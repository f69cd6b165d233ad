"""A model's file as what servers, phones and other runtimes take: `keras-distill export`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, cast

import keras

import keras_distill as kd
from keras_distill.arguments import check_int
from keras_distill.commands.options import (
    DATA_DIR,
    DATASET,
    add_command,
    add_data_options,
    as_path,
    load_model,
    loader,
    table,
)
from keras_distill.datasets.table_files import is_table
from keras_distill.export import litert, onnx, savedmodel
from keras_distill.export.answers import DEFAULT_THRESHOLD
from keras_distill.export.files import check_file
from keras_distill.exported import size_on_disk
from keras_distill.outputs import hand_on_kinds, kinds_of
from keras_distill.units import size_shown

#: Of each format: what the name of its file ends in, and how it is quantized.
_FILES = {
    "litert": (".tflite", None),
    "litert:float16": (".float16.tflite", "float16"),
    "litert:dynamic": (".dynamic.tflite", "dynamic"),
    "litert:int8": (".int8.tflite", "int8"),
    "onnx": (".onnx", None),
}
FORMATS = ("savedmodel", *_FILES)
INT8 = "litert:int8"
_KINDS = ["softmax", "sigmoid", "values"]
#: As Python says it, and as the command line does.
_SAID_OF_KINDS = (
    'output_kinds="softmax", "sigmoid" or "values"',
    "--output-kinds softmax, sigmoid or values",
)
_CHECKED = 8  # examples of the calibration, by which every format is checked


def add_parser(commands: Any) -> None:
    """Adds the command to the command line."""
    parser = add_command(
        commands,
        "export",
        run,
        "export a model for servers, phones and other runtimes",
        "Writes a Keras model in one format or several, each checked in a fresh process "
        "against the model before it can be seen: OUTPUT/savedmodel/VERSION, "
        "OUTPUT/NAME.tflite, OUTPUT/NAME.int8.tflite, OUTPUT/NAME.onnx, ... with the NAME of "
        "the model's file.",
        {"model": "a .keras or .h5 file"},
        [
            (
                "--calibration",
                str,
                None,
                f"data whose training examples say which range each layer of {INT8} has; "
                f"every format is checked on some of them: {DATASET}",
            ),
            ("--calibration-examples", int, 500, "of them, at most"),
            DATA_DIR,
            (
                "--class-names",
                as_path,
                None,
                "a text file, one name a line, or a dataset that has them",
            ),
            (
                "--output-kinds",
                _KINDS,
                None,
                "what the model's numbers describe, where its last layer does not say it",
            ),
            (
                "--threshold",
                float,
                DEFAULT_THRESHOLD,
                "probability from which a yes/no question is answered by yes",
            ),
            ("--keep", int, None, "versions of savedmodel that stay; default all"),
            ("--output", as_path, "keras-distill-export", "folder for all formats"),
        ],
    )
    parser.add_argument(
        "--format", nargs="+", default=["savedmodel"], metavar="FORMAT",
        help=f"one or several of {', '.join(FORMATS)}",
    )  # fmt: skip
    add_data_options(parser)


def run(options: argparse.Namespace) -> None:
    """Exports, and prints a table of what was written.

    Raises:
        FileNotFoundError: if there is no such model.
        ImportError: without the package that a format needs.
        ValueError: if there is no such format, or an option is wrong or missing.
        RuntimeError: if a format is not what the model is. Those before it stay.
    """
    formats = _checked(options)
    stem, _ = os.path.splitext(os.path.basename(options.model))
    check_before_work(formats, options.output, stem)
    load = _loader(options)
    model = load_model("model", options.model)
    student = model.student if isinstance(model, kd.Distiller) else model
    with _said_as_typed():
        for name in formats:
            if name in _FILES and name != "onnx":
                litert.check_quantize(student, _FILES[name][1])
    hand_on_kinds(kinds_of(student) or _kinds_of_file(student, options.model), student)
    given: dict[str, Any] = {
        "threshold": options.threshold,
        "output_kinds": options.output_kinds,
    }
    if options.class_names is not None:
        given["class_names"] = _class_names(options.class_names, load)
    calibration = None
    if options.calibration is not None:
        _check_has_one_input(model)
        examples = load(options.calibration).train.take(options.calibration_examples)
        calibration, _ = kd.datasets.to_arrays(examples.batch(256))
        given["example"] = calibration[:_CHECKED]
    rows = [["format", "path", "size"]]
    try:
        with warned_once():
            for name in formats:
                path = export_as(
                    name,
                    model,
                    path_of(name, options.output, stem),
                    calibration,
                    options.keep,
                    **given,
                )
                rows.append([name, path, size_shown(size_on_disk(path))])
    finally:
        if len(rows) > 1:
            print(table(rows))


@contextlib.contextmanager
def warned_once() -> Iterator[None]:
    """Has what every format warns of said once, and without a line of our code."""
    told = set()

    def tell(message: Warning | str, category: type[Warning], *_: Any) -> None:
        if str(message) not in told and issubclass(category, UserWarning):
            told.add(str(message))
            said = str(message).replace(*_SAID_OF_KINDS)
            print(f"keras-distill: warning: {said}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = cast(Any, tell)
        yield


def _checked(options: argparse.Namespace) -> list[str]:
    """Returns the formats, each once, of options that fit together.

    Raises:
        ValueError: if they do not.
    """
    formats = formats_of(options.format)
    check_int("calibration_examples", options.calibration_examples, 1)
    if INT8 in formats and options.calibration is None:
        raise ValueError(
            f"{INT8} needs --calibration, data whose training examples say which range each "
            "layer has, as the folder or table that the model was trained on; or take "
            "litert:dynamic."
        )
    if options.keep is not None:
        check_int("keep", options.keep, 1)
        if "savedmodel" not in formats:
            raise ValueError(
                "--keep is of versions, which only savedmodel has; leave it out."
            )
    if os.path.isfile(options.output):
        raise NotADirectoryError(
            f"the output {options.output!r} is a file; give a folder."
        )
    return formats


def formats_of(given: list[str]) -> list[str]:
    """Returns the formats of the command line, each once.

    Raises:
        ValueError: if there is no such format.
    """
    for name in given:
        if name not in FORMATS:
            raise ValueError(
                f"there is no format {name!r}; --format takes {', '.join(FORMATS)}."
            )
    return list(dict.fromkeys(given))


def check_before_work(formats: list[str], output: str, stem: str) -> None:
    """Refuses what any of the formats lacks, before the first is exported.

    Args:
        formats: of `formats_of`.
        output: folder for all.
        stem: of the names of files.

    Raises:
        ImportError: without the package that one needs.
        OSError: if one would be written where something else is.
        ValueError: if one cannot be written there.
    """
    for name in formats:
        path = path_of(name, output, stem)
        if name == "savedmodel":
            savedmodel.check_directory(path)
            continue
        (onnx if name == "onnx" else litert).check_installed()
        check_file("output", path, _FILES[name][0])


def _kinds_of_file(model: keras.Model, path: str) -> Any:
    """Returns what the loss says that the model of a file was compiled with, if it does."""
    try:
        with zipfile.ZipFile(path) as file:
            compiled = json.loads(file.read("config.json"))["compile_config"]
        loss = keras.saving.deserialize_keras_object(compiled["loss"])
        return kinds_of(model, loss)
    except Exception:  # of another format, of a class that is not there, of none
        return None


def _check_has_one_input(model: keras.Model) -> None:
    if isinstance(model, kd.Distiller):
        model = model.student
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) > 1:
        raise ValueError(
            f"the model takes the inputs {', '.join(one.name for one in inputs)}, and "
            "--calibration is of one; export it in Python, as with "
            "kd.export_litert(calibration={...})."
        )


def _loader(options: argparse.Namespace) -> Callable[[str], kd.datasets.Data]:
    """Returns what loads a dataset by name, in order and in single examples, once."""

    def load(name: str) -> kd.datasets.Data:
        return loader(options, name)(None)

    return functools.cache(load)


def _class_names(given: str, load: Callable[[str], kd.datasets.Data]) -> list[str]:
    if not os.path.isfile(given) or is_table(given):
        if not os.path.exists(given) and (os.sep in given or given.endswith(".txt")):
            raise FileNotFoundError(
                f"the class names {given!r} are not there; give a text file, one name a "
                "line, or the name of a dataset."
            )
        return load(given).class_names
    try:
        with open(given, encoding="utf-8-sig") as file:
            names = [line.rstrip("\n") for line in file]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the class names {given!r} are no text in UTF-8; give a text file, one name a "
            "line."
        ) from error
    if not names or "" in names:
        raise ValueError(
            f"the class names {given!r} have an empty line or none at all; give one name a "
            "line."
        )
    return names


def export_as(
    name: str,
    model: keras.Model,
    path: str,
    calibration: Any = None,
    keep: int | None = None,
    **given: Any,
) -> str:
    """Exports a model in a format, and returns the path of what was written.

    Args:
        name: of the format.
        model: what it is of.
        path: of `path_of`.
        calibration: examples, for litert:int8 alone.
        keep: versions of savedmodel that stay; `None` for all.
        **given: what all exporters take.
    """
    with _said_as_typed():
        if name == "savedmodel":
            return kd.export_savedmodel(model, path, keep=keep, **given)
        if name == "onnx":
            return kd.export_onnx(model, path, **given)
        return kd.export_litert(
            model,
            path,
            quantize=_FILES[name][1],
            calibration=calibration if name == INT8 else None,
            **given,
        )


@contextlib.contextmanager
def _said_as_typed() -> Iterator[None]:
    """Has errors name formats as the command line does, not as Python."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        said = re.sub(r'quantize="(\w+)"', r"--format litert:\1", str(error))
        if said == str(error) or type(error) not in (ValueError, RuntimeError):
            raise
        raise type(error)(said) from error


def path_of(name: str, output: str, stem: str) -> str:
    """Returns where a format is written: a folder of versions, or a file."""
    if name == "savedmodel":
        return os.path.join(output, name)
    return os.path.join(output, stem + _FILES[name][0])
