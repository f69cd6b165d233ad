"""The pictures of a distillation: what the soft targets say, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
from keras_distill.metrics import reliability
from keras_distill.teachers import as_teacher

BATCH_SIZE = 100
_MOST_BATCHES = 20
_CLASSES_SHOWN = 20

#: What each picture says, in a line.
CAPTIONS = {
    "temperature_curves": "What a temperature does, whatever the data: here to 50 random logits.",
    "soft_targets": "What the teacher says of the test example it was least sure of, among "
    "those it got right, at three temperatures.",
    "training_curves": "Accuracy on validation data, epoch by epoch; the best epoch is kept.",
    "reliability": "How sure the distilled student is, and how often it is right then.",
    "size_against_accuracy": "Accuracy on test data against the size of the weights.",
}


def draw(
    test: tf.data.Dataset,
    class_names: list[str],
    teacher: Any,
    student: keras.Model,
    comparison: kd.Comparison,
    histories: Mapping[str, dict],
) -> dict[str, Any]:
    """Returns figures by name.

    Args:
        test: batches of `BATCH_SIZE`, labelled.
        class_names: one a class.
        teacher: anything that may teach.
        student: that was distilled.
        comparison: of the models on test data.
        histories: of the trainings, by name.
    """
    taught, said, labels, inputs = [], [], [], []
    teach, answer = as_teacher(teacher), as_teacher(student)
    for x, y, *_ in test.take(_MOST_BATCHES):
        taught.append(_logits(teach(x, 1.0).logits))
        said.append(_logits(answer(x, 1.0).logits))
        labels.append(np.asarray(y))
        inputs.append(x)
    logits, y = np.concatenate(taught), np.concatenate(labels)
    p = tf.nn.softmax(logits).numpy()
    # The example with the most to say: the least sure of the teacher's right answers.
    sureness = np.where(logits.argmax(-1) == y, p.max(-1), np.inf)
    example = int(sureness.argmin())
    batch, place = divmod(example, BATCH_SIZE)
    p_student = tf.nn.softmax(np.concatenate(said)).numpy()
    of_one, names = logits[example], class_names
    label: int | None = int(y[example])
    if len(names) > _CLASSES_SHOWN:  # more bars than can be read
        kept = np.sort(np.argsort(of_one)[-_CLASSES_SHOWN:])
        of_one, names = of_one[kept], [names[c] for c in kept]
        label = kept.tolist().index(label) if label in kept else None
    return {
        "soft_targets": kd.plots.soft_targets(
            of_one,
            class_names=names,
            image=_image(inputs[batch], place),
            label=label,
        ),
        "temperature_curves": kd.plots.temperature_curves(),
        "training_curves": kd.plots.training_curves(histories),
        "size_against_accuracy": kd.plots.size_against_accuracy(comparison.evaluations),
        "reliability": kd.plots.reliability_diagram(
            *reliability(p_student, y), name="the distilled student"
        ),
    }


def _logits(logits: Any) -> np.ndarray:
    found = np.asarray(logits, "float32")
    # One yes/no question z is the two classes 0 and z.
    return np.pad(found, ((0, 0), (1, 0))) if found.shape[-1] == 1 else found


def _image(x: Any, place: int) -> np.ndarray | None:
    """Returns an example as an image, if it is one that can be shown."""
    if not isinstance(x, tf.Tensor) or x.shape.rank != 4 or x.shape[-1] not in (1, 3):
        return None
    image = x[place].numpy()
    return image if image.min() >= 0.0 and image.max() <= 1.0 else None
