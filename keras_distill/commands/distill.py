"""The main job, from a teacher's file to a small student: `keras-distill distill`."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from typing import Any

import keras_tuner

import keras_distill as kd
from keras_distill.arguments import check_float, check_int, check_path, check_scalar
from keras_distill.commands import export, students
from keras_distill.commands.distillation import FOLDERS, Distillation, Job
from keras_distill.commands.input_layers import names_may_differ
from keras_distill.commands.options import (
    DATA_DIR,
    DATA_OPTIONS,
    DATASET,
    SEED,
    add_command,
    as_path,
    data_words,
    loader,
)
from keras_distill.commands.training import (
    Plan,
    default_batch_size,
    default_epochs,
    default_learning_rate,
)
from keras_distill.processes import seeded
from keras_distill.run_directory import (
    RunDirectory,
    architecture_fingerprint,
    file_digest,
    teacher_fingerprint,
)
from keras_distill.soft_targets.sources import as_dataset
from keras_distill.teacher import Teacher
from keras_distill.teachers import as_teacher

_SETTINGS = "distill.json"
_LABELS = {
    "teacher": "TEACHER",
    "data": "DATA",
    "data_version": "the version of the data",
    "sizes": "the number of examples",
    "classes": "the class names",
    "student": "STUDENT",
    "architecture": "the student's architecture",
    "temperature": "--temperature",
    "alpha": "--alpha",
    "search": "--search",
    "epochs": "--epochs",
    "batch_size": "--batch-size",
    "learning_rate": "--learning-rate",
    "patience": "--patience",
    "seed": "--seed",
    "baseline": "the baseline (without --no-baseline)",
    **{name: f"--{name.replace('_', '-')}" for name in DATA_OPTIONS},
    "format": "--format",
}
_REMEDY = "Give the same to go on, or another --output."
_DEFAULT_TEMPERATURE, _DEFAULT_ALPHA = 4.0, 0.1


def add_parser(commands: Any) -> None:
    """Adds the command to the command line."""
    parser = add_command(
        commands,
        "distill",
        run,
        "distil a teacher's file into a small student, and judge and export it",
        "Caches a teacher's soft targets, trains the student on them, and the same student on "
        "labels alone for as many steps; judges both and the teacher once on test data, draws "
        "pictures, exports the student that is better on validation data, and writes "
        "report.html. The epoch that counts is the best there, too. Started again after a kill, it goes on.",
        {
            "teacher": "a .keras or .h5 file, a SavedModel directory, a .tflite or .onnx "
            "file; or several, with commas between them",
            "dataset": DATASET,
            "student": students.HELP,
        },
        [
            ("--output", as_path, "keras-distill-output", "folder for all results"),
            (
                "--temperature",
                float,
                None,
                f"T, > 0; default {_DEFAULT_TEMPERATURE:g}, or searched",
            ),
            (
                "--alpha",
                float,
                None,
                f"weight of the hard loss, 0 to 1; default {_DEFAULT_ALPHA:g}, or searched",
            ),
            ("--search", int, None, "trials that search T and alpha first, at least 2"),
            (
                "--epochs",
                int,
                None,
                "of each training; default 15 to 300, fewer of more data",
            ),
            (
                "--batch-size",
                int,
                None,
                "examples of a step; default 32, or 128 of 10 000 examples and more",
            ),
            (
                "--learning-rate",
                float,
                None,
                "Adam's, which falls to 0 by a cosine; default 0.01 for cnn and mlp of up to "
                "64 units a layer, 0.003 for wider ones, else 0.001",
            ),
            (
                "--patience",
                int,
                None,
                "epochs without a better validation accuracy after which the training "
                "stops; default never",
            ),
            ("--no-baseline", bool, False, "leave out the student on labels alone"),
            DATA_DIR,
            SEED,
        ],
        goes_on=True,
    )
    parser.add_argument(
        "--format", nargs="+", default=["savedmodel"], metavar="FORMAT",
        help=f"of the export: one or several of {', '.join(export.FORMATS)}",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Distils, or goes on with it; prints what it does.

    Raises:
        FileNotFoundError: if there is no such teacher or student.
        ImportError: without the package that a format needs.
        ValueError: if an option is out of range; the teacher or the student do not fit the
            data; or the output holds a distillation of other settings.
        BlockingIOError: if another process is at work in the output.
    """
    began = time.monotonic()
    formats = _check_options(options)
    paths = _teacher_paths(options.teacher)
    with names_may_differ():
        teacher = as_teacher(paths[0] if len(paths) == 1 else paths)
    data = loader(options)(None)
    count = _check_data(data, options.dataset)
    _check_teacher(teacher, options.teacher, data)
    build = students.builder("student", options.student, data)
    plan = Plan(
        options.epochs or default_epochs(count),
        options.batch_size or default_batch_size(count),
        options.learning_rate or default_learning_rate(options.student),
        options.patience,
        options.seed,
    )
    is_searched = options.search is not None
    with seeded(options.seed):
        architecture = build(keras_tuner.HyperParameters())
    settings = {
        "teacher": [_digest(path) for path in paths],
        "data": options.dataset,
        "data_version": data.version,
        **{name: getattr(options, name) for name in DATA_OPTIONS},
        "sizes": data.sizes,
        "classes": data.class_names,
        "student": students.fingerprint(options.student),
        "architecture": architecture_fingerprint(architecture),
        "temperature": _given_or(
            options.temperature, _DEFAULT_TEMPERATURE, is_searched
        ),
        "alpha": _given_or(options.alpha, _DEFAULT_ALPHA, is_searched),
        "search": options.search,
        "baseline": not options.no_baseline,
        "format": formats,
        **vars(plan),
    }
    folder = RunDirectory(options.output, "the distillation", _LABELS)
    _check_folder(folder)
    _check_room(folder.path, data, count, len(paths))
    folder.make()
    with folder.lock():
        if folder.claim(settings, _SETTINGS, _REMEDY):
            print(f"going on with the distillation in {folder.path}")
        folder.remove_temporary()
        job = Job(
            folder=folder,
            teacher=teacher,
            data=data,
            build=build,
            plan=plan,
            settings=settings,
            formats=formats,
            command=_command(options),
        )
        Distillation(job).run(began)


def _given_or(value: float | None, default: float, is_searched: bool) -> float | None:
    return value if value is not None or is_searched else default


def _check_options(options: argparse.Namespace) -> list[str]:
    """Returns the formats, after a look at all that needs no data.

    Raises:
        ValueError: if an option is out of range.
        OSError: if the output is a file, or cannot take an export.
        ImportError: without the package that a format needs.
    """
    if options.temperature is not None:
        check_scalar("temperature", options.temperature)
    if options.alpha is not None:
        check_scalar("alpha", options.alpha)
    for name in ("epochs", "patience", "batch_size"):
        if getattr(options, name) is not None:
            check_int(name, getattr(options, name), 1)
    check_int("seed", options.seed, 0)
    if options.learning_rate is not None:
        rate = options.learning_rate
        check_float("learning_rate", rate, "a finite number > 0", lambda n: n > 0)
    if options.search is not None:
        if options.search < 2:
            raise ValueError(
                f"--search must be at least 2 trials, got {options.search}: the first two "
                "are what one would try without a search; 20 are a good number."
            )
        if options.temperature is not None and options.alpha is not None:
            raise ValueError(
                "--search has nothing to search where --temperature and --alpha are both "
                "given; leave one of them out."
            )
    if os.path.exists(options.output) and not os.path.isdir(options.output):
        raise NotADirectoryError(
            f"the output {options.output!r} is a file; give a folder."
        )
    formats = export.formats_of(options.format)
    export.check_before_work(formats, options.output, "student")
    return formats


def _teacher_paths(text: str) -> list[str]:
    """Returns the paths of one teacher, or of several with commas between them."""
    if os.path.exists(text):
        return [text]
    return [check_path("teacher", part) for part in text.split(",")]


def _digest(path: str) -> str:
    if os.path.isfile(path):
        return file_digest(path)[:32]
    return teacher_fingerprint(path)["weights"]


def _check_data(data: kd.datasets.Data, name: str) -> int:
    """Returns the number of training examples; refuses data that cannot be cached."""
    as_dataset(data.train, what=f"training data of {name!r}")
    for split in ("train", "validation", "test"):
        if not data.sizes.get(split, 1):
            raise ValueError(
                f"{name!r} has no examples for {split}; the student needs some to learn "
                "from, to choose its best epoch by, and to be judged on."
            )
    count = data.sizes.get("train", int(data.train.cardinality()))
    if count < 1:
        raise ValueError(
            f"{name!r} does not say how many training examples it has, so that no soft "
            "targets can be cached; use dataset.apply("
            "tf.data.experimental.assert_cardinality(n))."
        )
    return count


def _check_teacher(teacher: Teacher, name: str, data: kd.datasets.Data) -> None:
    x = next(iter(data.train.batch(2).take(1)))[0]
    members = getattr(teacher, "members", [teacher])
    for member in members:
        students.check_answers(
            f"the teacher {name!r}",
            lambda x, m=member: m(x, 1.0).outputs,
            x,
            data.classes,
            member.model,
        )


def _check_folder(folder: RunDirectory) -> None:
    """Refuses a folder of something else, whose files would be taken for ours."""
    if folder.has(_SETTINGS) or not os.path.isdir(folder.path):
        return
    if taken := sorted(set(os.listdir(folder.path)) & set(FOLDERS)):
        raise FileExistsError(
            f"the output {folder.path!r} has a {taken[0]} that is of no distillation; give "
            "another --output."
        )


def _check_room(path: str, data: kd.datasets.Data, count: int, teachers: int) -> None:
    """Refuses soft targets that do not fit on the disk."""
    needed = count * (2 * data.classes + 12) * teachers
    there = os.path.abspath(path)
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OSError(
            f"the soft targets of {count:,} examples and {data.classes:,} classes take "
            f"{needed / 1e9:,.1f} GB, and {there!r} has {free / 1e9:,.1f} GB left; give "
            "another --output, or train in Python with a live teacher: "
            "kd.Distiller(student, teacher)."
        )


def _command(options: argparse.Namespace) -> list[str]:
    """Returns the command line without output and search, for what to do next."""
    words = ["keras-distill", "distill", options.teacher, options.dataset]
    return [*words, options.student, *data_words(options)]
