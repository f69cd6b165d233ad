"""The story of the package in one run: `keras-distill demo`."""

from __future__ import annotations

import os
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.special import softmax
from tqdm.auto import tqdm

from keras_distill import datasets, evaluation, models, plots
from keras_distill.arguments import check_scalar
from keras_distill.distiller import Distiller
from keras_distill.export import savedmodel

_EXAMPLES_SHOWN = 8


def run(
    dataset: str = "digits",
    *,
    data_dir: str | None = None,
    output: str = "keras-distill-demo-digits",
    temperature: float = 4.0,
    alpha: float = 0.1,
    epochs: int | None = None,
    seed: int = 0,
) -> evaluation.Comparison:
    """Trains, judges, draws, exports and asks; prints what it does.

    Args:
        dataset: "digits", or the name of a TFDS image dataset.
        data_dir: where TFDS keeps prepared datasets.
        output: folder for the results, made if it does not exist.
        temperature: T > 0 of the distillation.
        alpha: weight of the hard loss, from 0 to 1.
        epochs: of each training; `None` (default) fits the size of the dataset.
        seed: of all initial weights and shuffles.

    Returns:
        The comparison of the three models on test data.

    Raises:
        ValueError: if an argument is out of range or the dataset has no images.
        NotADirectoryError: if `output` is a file.
    """
    start = time.monotonic()
    check_scalar("temperature", temperature)
    check_scalar("alpha", alpha)
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}.")
    if os.path.exists(output) and not os.path.isdir(output):
        raise NotADirectoryError(f"the output {output!r} is a file; give a folder.")

    def load() -> datasets.Data:
        batch_size = 32 if dataset == "digits" else 128
        return datasets.load(
            dataset, data_dir=data_dir, batch_size=batch_size, seed=seed
        )

    data = load()
    if len(data.input_shape) != 3:
        raise ValueError(
            f"the demo shows images, but an example of {dataset!r} has shape "
            f"{data.input_shape}; see examples/ for other data."
        )
    os.makedirs(output, exist_ok=True)
    epochs = epochs or int(np.clip(70_000 / data.sizes["train"], 5, 60))
    _heading("Data")
    sizes = ", ".join(f"{count:,} {split}" for split, count in data.sizes.items())
    print(f"{data.name}: {data.classes} classes of {data.input_shape}; {sizes}")

    _heading("Training")
    keras.utils.set_random_seed(seed)
    wide, narrow = _filters(data.input_shape)
    teacher = models.cnn(
        data.input_shape, data.classes, wide, dropout=0.3, name="teacher"
    )
    histories = {"teacher": _train(teacher, data, epochs, "teacher")}
    students = {}
    for name in ("hard labels", "distilled"):
        # The same initial weights for both, and the same order of batches.
        keras.utils.set_random_seed(seed + 1)
        data = load()
        student = models.cnn(
            data.input_shape, data.classes, narrow, dense=16, name="student"
        )
        # At alpha = 1 a distiller without a teacher is plain training.
        model = (
            Distiller(student, teacher, temperature=temperature, alpha=alpha)
            if name == "distilled"
            else Distiller(student, alpha=1.0)
        )
        histories[name] = _train(model, data, epochs, name)
        students[name] = student

    _heading("Test data, each model judged once")
    comparison = evaluation.compare(
        {
            "teacher": teacher,
            "student, hard labels": students["hard labels"],
            "student, distilled": students["distilled"],
        },
        data.test,
        teacher=teacher,
    )
    print(comparison)
    comparison.save(os.path.join(output, "comparison.json"))
    comparison.save(os.path.join(output, "comparison.md"))

    _heading("Pictures")
    for name, figure in _pictures(
        data, teacher, students["distilled"], comparison, histories
    ).items():
        path = os.path.join(output, f"{name}.png")
        figure.savefig(path)
        print(path)

    _heading("Export of the student that is better on validation data")
    best = _better_on_validation(students, data)
    path = savedmodel.export_savedmodel(
        students[best],
        os.path.join(output, "savedmodel"),
        class_names=data.class_names,
    )
    print(f"the {best} student is in {path}, as TensorFlow Serving takes it")
    _ask_fresh_process(path, data)

    _heading(f"Done in {time.monotonic() - start:.0f} s. What to do next")
    served = os.path.abspath(os.path.dirname(path))
    print("- your own models:  keras_distill.Distiller(student, teacher), compile, fit")
    print(f"- serve it:         tensorflow_model_server --model_base_path={served}")
    print(f"- look at results:  {os.path.abspath(output)}")
    return comparison


def _filters(input_shape: tuple[int, ...]) -> tuple[tuple, tuple]:
    """Returns the filters of teacher and student: one stage more for larger images."""
    if input_shape[0] < 16:
        return (32, 64), (8, 16)
    return (16, 32, 64), (8, 16, 16)


def _heading(text: str) -> None:
    print(f"\n{text}\n{'=' * len(text)}", flush=True)


class _Bar(keras.callbacks.Callback):
    """One progress bar for a whole training."""

    def __init__(self, name: str, epochs: int) -> None:
        super().__init__()
        self.bar = tqdm(total=epochs, desc=f"{name:<12}", unit="epoch", ncols=90)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.bar.set_postfix_str(f"val accuracy {logs['val_accuracy']:.2%}", False)
        self.bar.update(1)

    def on_train_end(self, logs: Any = None) -> None:
        self.bar.close()


def _train(
    model: keras.Model, data: datasets.Data, epochs: int, name: str
) -> dict[str, list[float]]:
    steps = epochs * int(data.train.cardinality())
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model.fit(
        data.train,
        validation_data=data.validation,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[_Bar(name, epochs)],
    ).history


def _pictures(
    data: datasets.Data,
    teacher: keras.Model,
    student: keras.Model,
    comparison: evaluation.Comparison,
    histories: dict[str, dict],
) -> dict[str, Any]:
    x, y = datasets.to_arrays(data.test)
    logits = teacher.predict(x[:500], verbose=0)
    # The example with the most to say: the least sure of the teacher's right answers.
    p = softmax(logits, -1)
    sureness = np.where(logits.argmax(-1) == y[:500], p.max(-1), np.inf)
    example = int(sureness.argmin())
    p_student = softmax(student.predict(x, verbose=0), -1)
    return {
        "temperature_curves": plots.temperature_curves(),
        "soft_targets": plots.soft_targets(
            logits[example],
            class_names=data.class_names,
            image=x[example],
            label=int(y[example]),
        ),
        "training_curves": plots.training_curves(histories),
        "reliability": plots.reliability_diagram(
            *evaluation.reliability(p_student, y), name="the distilled student"
        ),
        "size_against_accuracy": plots.size_against_accuracy(comparison.evaluations),
    }


def _better_on_validation(students: dict[str, keras.Model], data: datasets.Data) -> str:
    judged = evaluation.compare(students, data.validation, timing=False, verbose=False)
    best = max(judged.evaluations, key=lambda e: (e.accuracy, -e.nll))
    return best.name


def _ask_fresh_process(path: str, data: datasets.Data) -> None:
    x, y = (part[:_EXAMPLES_SHOWN] for part in datasets.to_arrays(data.test))
    answer = savedmodel.ask_fresh_process(path, {"image": tf.constant(x)})
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
