"""Callbacks for `Distiller.fit`."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill.arguments import check_int, check_names, check_path, shown
from keras_distill.distiller import Distiller
from keras_distill.plots import soft_targets
from keras_distill.structures import has_several
from keras_distill.teacher import Teacher
from keras_distill.teachers import as_teacher

_MOST_EXAMPLES, _MOST_CLASSES = 32, 20


class SoftTargetPictures(keras.callbacks.Callback):
    """Pictures of what teacher and student say of a few examples, in TensorBoard.

    For each example the bars of `softmax(z / T)`, the teacher's beside the student's, at the
    temperature in force at the end of the epoch: under Images, in a run of its own called
    "soft_targets". Of more than 20 classes, those are drawn that the teacher, or without one
    the student, finds the most likely.

    Args:
        x: a few examples, 32 at most, as `fit` takes a batch of inputs.
        log_dir: folder of the logs, as of `keras.callbacks.TensorBoard`; default "logs".
        labels: their class numbers, int `(examples,)`, drawn in another colour; `None`
            (default) for none.
        class_names: one str per class; default the class numbers.
        teacher: anything that may teach. `None` (default) for the distiller's own; where
            soft targets are cached and none is given, the student is drawn alone.
        update_freq: in epochs, int >= 1; default 1.

    Raises:
        ValueError: if an argument is out of range, or at the begin of the training, if the
            model is no `Distiller`, or its student has several outputs, or one that is not of
            two classes or more.

    Example:
    >>> import keras_distill as kd
    >>> logs = [
    ...     keras.callbacks.TensorBoard("logs"),
    ...     kd.callbacks.SoftTargetPictures(np.zeros((1, 8, 8, 1)), "logs", labels=[3]),
    ... ]
    """

    def __init__(
        self,
        x: Any,
        log_dir: str | os.PathLike = "logs",
        *,
        labels: Any = None,
        class_names: Sequence[str] | None = None,
        teacher: Any = None,
        update_freq: int = 1,
    ) -> None:
        super().__init__()
        parts = keras.tree.flatten(x)
        counts = {len(part) if np.ndim(part) else 0 for part in parts}
        count = counts.pop() if len(counts) == 1 else 0
        if not 1 <= count <= _MOST_EXAMPLES:
            raise ValueError(
                f"x must be a batch of 1 to {_MOST_EXAMPLES} examples, got "
                f"{shown(x)}; give a few, as test_images[:8]."
            )
        self.x = keras.tree.map_structure(ops.convert_to_tensor, x)
        self.log_dir = check_path("log_dir", log_dir)
        self.labels: list[int] | None = None
        if labels is not None:
            given = np.ravel(np.asarray(labels))
            if given.dtype.kind not in "iu" or len(given) != count:
                raise ValueError(
                    f"labels must be the class numbers of the {count} examples, got "
                    f"{shown(labels)}."
                )
            self.labels = [int(one) for one in given]
        self.class_names = (
            None if class_names is None else check_names("class_names", class_names)
        )
        self.update_freq = check_int("update_freq", update_freq, 1)
        self.teacher = None if teacher is None else as_teacher(teacher)
        self._writer: Any = None
        self._count = count

    def __repr__(self) -> str:
        return f"<SoftTargetPictures of {self._count} examples in {self.log_dir!r}>"

    def on_train_begin(self, logs: Any = None) -> None:
        """Refuses a model whose soft targets cannot be drawn."""
        distiller = self.model
        if not isinstance(distiller, Distiller):
            raise ValueError(
                "SoftTargetPictures is for the fit of a Distiller, got "
                f"{type(distiller).__name__}."
            )
        for who, model in self._models().items():
            classes = self._logits(model, 1.0).shape[-1]
            names, labels = self.class_names, self.labels or [0]
            if names is not None and len(names) != classes:
                raise ValueError(
                    f"class_names has {len(names)} names, and the {who} {classes} classes."
                )
            if not 0 <= min(labels) <= max(labels) < classes:
                raise ValueError(
                    f"labels must be from 0 to {classes - 1}, got {self.labels}."
                )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Draws, after every `update_freq` epochs."""
        if (epoch + 1) % self.update_freq:
            return
        temperature = self._temperature()
        said = {
            who: self._logits(model, temperature)
            for who, model in self._models().items()
        }
        if self._writer is None:
            folder = os.path.join(self.log_dir, "soft_targets")
            self._writer = tf.summary.create_file_writer(folder)
        with self._writer.as_default():
            for number in range(len(said["student"])):
                of_one = {who: z[number] for who, z in said.items()}
                picture = self._drawn(of_one, number, temperature)
                tf.summary.image(f"example {number}", picture[None], step=epoch)
        self._writer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the file of the logs."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _models(self) -> dict[str, Teacher]:
        """Returns what is drawn, the teacher first if there is one."""
        distiller: Any = self.model
        given = self.teacher if self.teacher is not None else distiller.teacher
        models = {} if given is None else {"teacher": as_teacher(given)}
        return {**models, "student": as_teacher(distiller.student)}

    def _temperature(self) -> float:
        distiller: Any = self.model
        temperature = distiller.temperature
        if isinstance(temperature, LearningRateSchedule):
            temperature = temperature(distiller.optimizer.iterations)
        return float(temperature)

    def _logits(self, model: Teacher, temperature: float) -> np.ndarray:
        logits = model(self.x, temperature).logits
        if has_several(logits) or len(logits.shape) != 2 or logits.shape[-1] < 2:
            raise ValueError(
                "SoftTargetPictures draws one output of two classes or more, which this "
                "model does not have; leave the callback out."
            )
        return ops.convert_to_numpy(ops.cast(logits, "float32"))

    def _drawn(
        self, logits: dict[str, np.ndarray], number: int, temperature: float
    ) -> tf.Tensor:
        """Returns the picture of one example, uint8 `(height, width, 4)`."""
        first = next(iter(logits.values()))
        kept = np.sort(np.argsort(first)[-_MOST_CLASSES:])
        names = self.class_names or [str(c) for c in range(len(first))]
        label = None if self.labels is None else self.labels[number]
        if len(kept) < len(first):  # a softmax of some has their ratios
            logits = {who: z[kept] for who, z in logits.items()}
            label = kept.tolist().index(label) if label in kept else None
        figure = soft_targets(
            logits,
            (temperature,),
            class_names=[names[c] for c in kept],
            image=self._image(number),
            label=label,
        )
        file = io.BytesIO()
        figure.savefig(file, format="png")
        return tf.io.decode_png(file.getvalue(), 4)

    def _image(self, number: int) -> np.ndarray | None:
        """Returns an example as an image, if it is one that can be shown."""
        x = self.x
        if keras.tree.is_nested(x) or len(x.shape) != 4 or x.shape[-1] not in (1, 3):
            return None
        image = np.asarray(x[number], "float32")
        low, high = float(image.min()), float(image.max())
        return (image - low) / (high - low) if low < high else None
