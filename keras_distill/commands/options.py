"""What the commands share: options, the files they are given, the folder they fill."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

import keras_distill as kd
from keras_distill.arguments import check_int, check_keras_file, check_path
from keras_distill.inputs import shapes_of_inputs
from keras_distill.named_functions import function_named
from keras_distill.teacher_files import load_model_file

#: Name, kind (a type, a list of choices, or `bool` for a flag), default and help.
Option = tuple[str, Any, Any, str]


def as_path(text: str) -> str:
    """Returns a path of the command line, with `~` replaced, as in `--output=~/x`.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    try:
        return check_path("it", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _pixels(text: str) -> int:
    try:
        return check_int("it", int(text), 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"it must be a whole number >= 1, got {text!r}."
        ) from error


#: Arguments that are paths, wherever a command takes them.
_PATHS = ("teacher", "generalist", "path", "model")

DATA_DIR: Option = ("--data-dir", as_path, None, "where TFDS keeps prepared datasets")
#: What a dataset may be, for the help of a command.
DATASET = (
    '"digits", a TFDS dataset such as mnist, a folder of images or .wav files by class, a '
    ".csv, .tsv or .parquet file, or module:function"
)
#: What else may be said of a command's data, by the names of arguments.
DATA_OPTIONS = ("image_size", "color_mode", "label", "seconds", "sample_rate")
SEED: Option = ("--seed", int, 0, "makes the run repeatable")
BATCH_SIZE: Option = ("--batch-size", int, 128, "examples of a training step")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says the defaults that there are, as they are written on a command line."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if isinstance(default, list):
            return f"{action.help} (default: {' '.join(map(str, default))})"
        if default is None or isinstance(default, bool):
            return action.help
        return super()._get_help_string(action)


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], Any],
    help: str,
    description: str,
    positional: Mapping[str, str],
    options: Iterable[Option],
    goes_on: bool = False,
) -> argparse.ArgumentParser:
    """Adds a command with its arguments to the command line, and returns its parser.

    `goes_on` tells whether it does so, started again after it was stopped.
    """
    parser = commands.add_parser(
        name,
        help=help,
        description=description,
        formatter_class=_Formatter,
    )
    parser.set_defaults(run=run, parser=parser, goes_on=goes_on)
    for argument, text in positional.items():
        kind = as_path if argument in _PATHS else str
        parser.add_argument(argument, type=kind, help=text)
    for option, kind, default, text in options:
        if kind is bool:
            parser.add_argument(option, action="store_true", help=text)
        elif isinstance(kind, list):
            parser.add_argument(option, choices=kind, default=default, help=text)
        else:
            parser.add_argument(option, type=kind, default=default, help=text)
    # Not for the demo, which takes its dataset as an option.
    if "dataset" in positional:
        add_data_options(parser)
    return parser


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Adds what kinds of data take each, as `kd.datasets.load` has it."""
    add_image_size(parser)
    modes = ["grayscale", "rgb", "rgba"]
    parser.add_argument(
        "--color-mode", choices=modes, help="of a folder of images; default as they are"
    )
    parser.add_argument(
        "--label",
        help="column of a table's labels, by its name or place (0 is the first, -1 the "
        "last); default label",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="length to cut or fill recordings to; default the longest in training",
    )
    parser.add_argument(
        "--sample-rate", type=int, help="in Hz, to which recordings are resampled"
    )


def add_image_size(parser: argparse.ArgumentParser) -> None:
    """Adds what a dataset's images are resized to."""
    parser.add_argument(
        "--image-size", type=_pixels, nargs=2, metavar=("HEIGHT", "WIDTH"),
        help="to resize images to, where they differ in size",
    )  # fmt: skip


def loader(
    options: argparse.Namespace, dataset: str | None = None
) -> Callable[..., kd.datasets.Data]:
    """Returns `fn(batch_size=256)` that loads the command's dataset, or another, in order."""
    return kd.datasets.loader(
        dataset or options.dataset,
        options.data_dir,
        options.image_size,
        color_mode=options.color_mode,
        label=options.label,
        seconds=options.seconds,
        sample_rate=options.sample_rate,
    )


def text_example(model: keras.Model, data: kd.datasets.Data) -> Any:
    """Returns inputs for the check of an export, which makes up numbers but no text.

    Returns:
        Eight of the test examples' inputs, as `export_savedmodel(example=)` takes them; `None`
        where none of them is text.
    """
    x, _ = next(iter(data.test.take(1)))
    if not any(part.dtype == tf.string for part in tf.nest.flatten(x)):
        return None
    # Arrays, of which whole numbers become floats where a model takes such.
    x = tf.nest.map_structure(lambda part: part[:8].numpy(), x)
    shapes = shapes_of_inputs(model)
    if shapes is None:
        return x
    if not isinstance(x, Mapping):
        x = dict.fromkeys(shapes, x)
    # Columns are of shape (batch,), which a model may take as (batch, 1).
    return {
        name: x[name].reshape(-1, 1) if len(shape) == 2 else x[name]
        for name, shape in shapes.items()
    }


def data_words(options: argparse.Namespace) -> list[str]:
    """Returns what says how the command's data is loaded, as it is typed."""
    words: list[str] = []
    for name in ("data_dir", *DATA_OPTIONS):
        value = getattr(options, name, None)
        if value is not None:
            parts = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, parts)]
    return words


def load_model(role: str, path: str) -> keras.Model:
    """Returns the model of a `.keras` file.

    Raises:
        FileNotFoundError: naming the role, if there is none.
        ValueError: if it cannot be read.
    """
    check_keras_file(role, path)
    return load_model_file(role, path)


def function_of(path: str, role: str = "student") -> Callable:
    """Returns the function that "module:function" names, to build a network.

    Raises:
        ValueError: naming its role, if there is no such module or function.
    """
    example = "my_models:build for the function build(hp) of my_models.py"
    return function_named(path, role, example, f"to build a {role}")


def heading(text: str) -> None:
    """Prints the heading of a part of what a command does."""
    print(f"\n{text}\n{'=' * len(text)}", flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as lines, the first column to the left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def save_results(
    folder: str, comparison: kd.Comparison, pictures: Mapping[str, Any]
) -> None:
    """Writes a comparison and pictures into a folder, and says where the pictures are."""
    for ending in ("json", "md"):
        comparison.save(os.path.join(folder, f"comparison.{ending}"))
    for name, figure in pictures.items():
        path = os.path.join(folder, f"{name}.png")
        figure.savefig(path)
        print(path)


def best_on(data: Any, models: Mapping[str, keras.Model]) -> str:
    """Returns the name of the model that is best on data: its accuracy, then its NLL."""
    judged = kd.compare(models, data, timing=False, verbose=False)

    def goodness(e: kd.Evaluation) -> tuple[float, float]:
        assert e.accuracy is not None  # the data has classes
        assert e.nll is not None
        return e.accuracy, -e.nll

    return max(judged.evaluations, key=goodness).name
