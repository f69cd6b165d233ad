"""A teacher where there is none yet: `keras-distill teach`."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import Any

import keras
import keras_tuner

import keras_distill as kd
from keras_distill.arguments import check_float, check_int
from keras_distill.commands import built_in, students
from keras_distill.commands.epoch_batches import EpochBatches
from keras_distill.commands.options import (
    DATA_DIR,
    DATA_OPTIONS,
    DATASET,
    SEED,
    add_command,
    as_path,
    data_words,
    heading,
    loader,
)
from keras_distill.commands.training import (
    Plan,
    compiled,
    default_batch_size,
    default_epochs,
    default_learning_rate,
    default_patience,
    train,
)
from keras_distill.processes import seeded
from keras_distill.run_directory import RunDirectory, architecture_fingerprint

_SETTINGS, _JUDGED, _TRAINING = "teach.json", "judged.json", "training"
_LABELS = {
    "data": "DATA",
    "data_version": "the version of the data",
    "sizes": "the number of examples",
    "classes": "the class names",
    "model": "MODEL",
    "architecture": "the model's architecture",
    **{name: f"--{name.replace('_', '-')}" for name in DATA_OPTIONS},
    "epochs": "--epochs",
    "batch_size": "--batch-size",
    "learning_rate": "--learning-rate",
    "patience": "--patience",
    "seed": "--seed",
}
_REMEDY = "Give the same to go on, or another --output, or delete it."


def add_parser(commands: Any) -> None:
    """Adds the command to the command line."""
    add_command(
        commands,
        "teach",
        run,
        "train a teacher where there is none",
        "Trains a network on labels, keeps the epoch that is best on validation data, says "
        "its accuracy on test data, once, and saves it, for `keras-distill distill`. Started "
        "again after a kill, it goes on: OUTPUT.teach holds what it has come to.",
        {"dataset": DATASET, "network": students.HELP},
        [
            ("--output", as_path, "teacher.keras", "the file, .keras"),
            ("--epochs", int, None, "at most; default 15 to 300, fewer of more data"),
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
                "epochs without a better validation accuracy after which it stops; default "
                "a third of all, at least 10",
            ),
            DATA_DIR,
            SEED,
        ],
        goes_on=True,
    )


def run(options: argparse.Namespace) -> None:
    """Trains, or goes on with it, judges and saves; prints what it does.

    Raises:
        FileExistsError: if the output is there, and not of this command.
        FileNotFoundError: if there is no such model.
        ValueError: if an option is out of range, the model does not fit the data, or the
            training that was begun had other settings.
        BlockingIOError: if another process is at work on the same output.
    """
    _check_options(options)
    folder = RunDirectory(f"{options.output}.teach", "the training", _LABELS)
    if os.path.exists(options.output) and not folder.has(_SETTINGS):
        raise FileExistsError(
            f"the output {options.output!r} is there already; give another --output."
        )
    data = loader(options)(None)
    build = students.builder("model", options.network, data)
    count = data.sizes["train"]
    epochs = options.epochs or default_epochs(count)
    plan = Plan(
        epochs,
        options.batch_size or default_batch_size(count),
        options.learning_rate or default_learning_rate(options.network),
        options.patience or default_patience(epochs),
        options.seed,
    )
    with seeded(plan.seed):
        model = build(keras_tuner.HyperParameters())
        if not model.built:
            model(next(iter(data.train.batch(2)))[0])
        settings = {
            "data": options.dataset,
            "data_version": data.version,
            **{name: getattr(options, name) for name in DATA_OPTIONS},
            "sizes": data.sizes,
            "classes": data.class_names,
            "model": students.fingerprint(options.network),
            "architecture": architecture_fingerprint(model),
            **vars(plan),
        }
        folder.make()
        with folder.lock():
            if folder.claim(settings, _SETTINGS, _REMEDY):
                print(f"going on with the training in {folder.path}")
            folder.remove_temporary()
            heading("Data")
            sizes = ", ".join(f"{n:,} {split}" for split, n in data.sizes.items())
            print(f"{data.name}: {data.classes} classes; {sizes}")
            heading("Training")
            _train(model, data, count, plan, folder)
            if not os.path.exists(options.output):
                _save(model, options.output)
            heading("Test data, judged once")
            found = _accuracy(model, data, plan, folder)
            print(f"{options.output}: {found:.2%} of {data.sizes['test']:,} are right")
    heading("What to do next")
    words = ["keras-distill", "distill", options.output, options.dataset]
    words += [_smaller(options.network, data.input_shape), *data_words(options)]
    print(f"- a smaller one:  {shlex.join(words)}")


def _check_options(options: argparse.Namespace) -> None:
    for name in ("epochs", "patience", "batch_size"):
        if getattr(options, name) is not None:
            check_int(name, getattr(options, name), 1)
    check_int("seed", options.seed, 0)
    if options.learning_rate is not None:
        rate = options.learning_rate
        check_float("learning_rate", rate, "a finite number > 0", lambda n: n > 0)
    if not options.output.endswith(".keras"):
        raise ValueError(
            f"the output must be a .keras file, got {options.output!r}; as in "
            "--output teacher.keras."
        )
    if os.path.isdir(options.output):
        raise IsADirectoryError(
            f"the output {options.output!r} is a folder; give a .keras file in it."
        )
    folder = os.path.dirname(options.output) or "."
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"the output's folder {folder!r} is not there; make it, or give another."
        )


def _train(
    model: keras.Model,
    data: kd.datasets.Data,
    count: int,
    plan: Plan,
    folder: RunDirectory,
) -> None:
    batches = EpochBatches(data.train, count, plan.batch_size, plan.seed)
    # At alpha = 1 a distiller without a teacher is plain training.
    distiller = kd.Distiller(model, alpha=1.0)
    compiled(distiller, plan, batches.steps, data.classes)
    outcome = train(
        distiller,
        batches,
        data.validation.batch(plan.batch_size),
        plan,
        RunDirectory(folder.file(_TRAINING), "the training"),
        "teacher",
    )
    print(
        f"epoch {outcome.best_epoch + 1} of {outcome.epochs} was the best, and is kept"
    )


def _save(model: keras.Model, output: str) -> None:
    path, name = os.path.split(output)
    with RunDirectory(path, "the teacher").whole(name) as temporary:
        model.save(temporary)


def _accuracy(
    model: keras.Model, data: kd.datasets.Data, plan: Plan, folder: RunDirectory
) -> float:
    """Returns the accuracy on test data, of which it is asked once."""
    found = folder.read_json(_JUDGED)
    if found is None:
        judged = kd.evaluate(model, data.test.batch(plan.batch_size), timing=False)
        found = {"accuracy": judged.accuracy}
        folder.write_json(_JUDGED, found)
    return found["accuracy"]


def _smaller(network: str, input_shape: Any) -> str:
    """Returns a student to begin with, smaller than a teacher."""
    if sizes := built_in.sizes_in(network):
        kind = network.partition(":")[0]
        return f"{kind}:" + ",".join(str(max(4, size // 4)) for size in sizes)
    is_image = isinstance(input_shape, tuple) and len(input_shape) == 3
    return "cnn:8,16" if is_image else "mlp:64"
