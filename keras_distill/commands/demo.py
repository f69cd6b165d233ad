"""The story of the package in one run: `keras-distill demo`."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import keras

import keras_distill as kd
from keras_distill.arguments import check_int, check_scalar
from keras_distill.commands import next_steps, pictures
from keras_distill.commands.options import (
    DATA_DIR,
    SEED,
    add_command,
    add_image_size,
    as_path,
    best_on,
    data_words,
    heading,
    save_results,
)
from keras_distill.commands.training import default_epochs, showing_progress

_EXAMPLES_SHOWN = 8
_EXAMPLES_SEEN, _LEAST_EPOCHS = 68_000, 5


def add_parser(commands: Any) -> None:
    """Adds the command to the command line."""
    parser = add_command(
        commands,
        "demo",
        run,
        "a teacher, a student and its baseline on real handwritten digits",
        "Trains a teacher, distils it into a student, trains the same student on hard "
        "labels, judges all three on test data, draws pictures, exports the student that "
        "is better on validation data, and asks it from a fresh process. On digits it "
        "needs no network and takes about a minute.",
        {},
        [
            (
                "--dataset",
                str,
                "digits",
                '"digits", a TFDS image dataset such as mnist, or a folder of images by '
                "class",
            ),
            DATA_DIR,
            (
                "--output",
                as_path,
                None,
                "folder for results; keras-distill-demo-DATASET",
            ),
            ("--temperature", float, 4.0, "T, > 0"),
            ("--alpha", float, 0.1, "weight of the hard loss, 0 to 1"),
            ("--epochs", int, None, "of each training; fits the dataset"),
            SEED,
        ],
    )
    add_image_size(parser)


def run(options: argparse.Namespace) -> None:
    """Trains, judges, draws, exports and asks; prints what it does.

    Raises:
        ValueError: if an option is out of range or the dataset has no images.
        NotADirectoryError: if the output is a file.
    """
    start = time.monotonic()
    dataset, epochs = options.dataset, options.epochs
    output = options.output
    seed = check_int("seed", options.seed, 0)
    check_scalar("temperature", options.temperature)
    check_scalar("alpha", options.alpha)
    if epochs is not None:
        check_int("epochs", epochs, 1)
    if output and os.path.isfile(output):
        raise NotADirectoryError(f"the output {output!r} is a file; give a folder.")

    def load() -> kd.datasets.Data:
        batch_size = 32 if dataset == "digits" else 128
        return kd.datasets.load(
            dataset,
            data_dir=options.data_dir,
            batch_size=batch_size,
            image_size=options.image_size,
            seed=seed,
        )

    data = load()
    shape = data.input_shape
    if isinstance(shape, dict) or len(shape) != 3:
        raise ValueError(
            f"the demo shows images, but an example of {dataset!r} has shape "
            f"{shape}; see examples/ for other data."
        )
    output = output or f"keras-distill-demo-{data.name}"
    if os.path.exists(output) and not os.path.isdir(output):
        raise NotADirectoryError(f"the output {output!r} is a file; give a folder.")
    os.makedirs(output, exist_ok=True)
    epochs = epochs or default_epochs(
        data.sizes["train"], _EXAMPLES_SEEN, _LEAST_EPOCHS
    )
    heading("Data")
    sizes = ", ".join(f"{count:,} {split}" for split, count in data.sizes.items())
    print(f"{data.name}: {data.classes} classes of {shape}; {sizes}")

    heading("Training")
    keras.utils.set_random_seed(seed)
    # One stage more for larger images.
    large = shape[0] >= 16
    wide, narrow = ((16, 32, 64), (8, 16, 16)) if large else ((32, 64), (8, 16))
    teacher = kd.models.cnn(shape, data.classes, wide, dropout=0.3, name="teacher")
    histories = {"teacher": _train(teacher, data, epochs, "teacher")}
    teacher.save(os.path.join(output, "teacher.keras"))
    students, trained = {}, {}
    for name in ("hard labels", "distilled"):
        # The same initial weights for both, and the same order of batches.
        keras.utils.set_random_seed(seed + 1)
        data = load()
        student = kd.models.cnn(shape, data.classes, narrow, dense=16, name="student")
        # At alpha = 1 a distiller without a teacher is plain training.
        model = (
            kd.Distiller(
                student, teacher, temperature=options.temperature, alpha=options.alpha
            )
            if name == "distilled"
            else kd.Distiller(student, alpha=1.0)
        )
        histories[name] = _train(model, data, epochs, name)
        students[name], trained[name] = student, model

    heading("Test data, each model judged once")
    judged = {f"student, {name}": student for name, student in students.items()}
    comparison = kd.compare({"teacher": teacher, **judged}, data.test, teacher=teacher)
    print(comparison)

    heading("Pictures")
    drawn = pictures.draw(
        data.test.unbatch().batch(pictures.BATCH_SIZE),
        data.class_names,
        teacher,
        students["distilled"],
        comparison,
        histories,
    )
    save_results(output, comparison, drawn)

    heading("Export of the student that is better on validation data")
    best = best_on(data.validation, students)
    path = kd.export_savedmodel(
        students[best],
        os.path.join(output, "savedmodel"),
        class_names=data.class_names,
        card=kd.ModelCard(
            trained[best], data=data, seeds=seed + 1, evaluation=comparison
        ),
    )
    print(f"the {best} student is in {path}, as TensorFlow Serving takes it")
    _ask_fresh_process(path, data)

    heading(f"Done in {time.monotonic() - start:.0f} s. What to do next")
    steps = next_steps.after_demo(output, path, dataset, data_words(options))
    print(next_steps.as_lines(steps))


def _train(
    model: keras.Model, data: kd.datasets.Data, epochs: int, name: str
) -> dict[str, list[float]]:
    steps = epochs * int(data.train.cardinality())
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    with showing_progress(name, model, steps) as shown:
        history = model.fit(
            data.train,
            validation_data=data.validation,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=[shown],
        ).history
    print(f"{name:<12} val accuracy {history['val_accuracy'][-1]:.2%}", flush=True)
    return history


def _ask_fresh_process(path: str, data: kd.datasets.Data) -> None:
    from keras_distill.export.check import ask_fresh_process
    from keras_distill.export.runtimes import savedmodel

    x, y = (part[:_EXAMPLES_SHOWN] for part in kd.datasets.to_arrays(data.test))
    (answer,) = ask_fresh_process(savedmodel, path, [{"image": x}])
    print("\na fresh process that imports only TensorFlow answers:")
    rows = [
        ["test example", *map(str, range(len(y)))],
        ["label", *(data.class_names[i] for i in y)],
        ["answer", *(value.decode() for value in answer["label"])],
        ["probability", *(f"{p.max():.2f}" for p in answer["probabilities"])],
    ]
    width = max(len(cell) for row in rows for cell in row[1:])
    for row in rows:
        print(f"  {row[0]:<13}" + "  ".join(cell.rjust(width) for cell in row[1:]))
