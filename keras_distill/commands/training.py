"""Trainings that go on after a kill and end with the same figures, and say how far they are."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
from keras_distill import progress
from keras_distill.commands import built_in
from keras_distill.commands.epoch_batches import EpochBatches
from keras_distill.run_directory import RunDirectory
from keras_distill.tuning.by_kind import default_loss, default_metrics

_STATE = "training.json"
#: Between two checkpoints; what was trained since the last is trained again after a kill.
_SECONDS_BETWEEN_CHECKPOINTS = 5.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a network is trained: Adam, its rate falling to 0 by a cosine.

    Attributes:
        epochs: at most.
        batch_size: examples of a step.
        learning_rate: at the beginning.
        patience: epochs without a better result on validation data after which a training
            stops; `None` for never.
        seed: of weights, dropout and the order of examples.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    patience: int | None
    seed: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a training has come to; the network has the weights of its best epoch.

    Attributes:
        history: by metric, one value an epoch.
        best_epoch: the best on validation data, from 0.
        seconds: that the training took.
    """

    history: dict[str, list[float]]
    best_epoch: int
    seconds: float

    @property
    def epochs(self) -> int:
        """How many were trained."""
        return len(self.history["loss"])

    @property
    def accuracy(self) -> float:
        """On validation data."""
        return self.history["val_accuracy"][self.best_epoch]


def default_epochs(examples: int, seen: int = 150_000, least: int = 15) -> int:
    """Returns so many epochs that so many examples are seen, between the least and 300."""
    return int(np.clip(seen / examples, least, 300))


def default_batch_size(examples: int) -> int:
    """Returns 32 examples, or 128 where there are 10 000 to be seen."""
    return 32 if examples < 10_000 else 128


def default_patience(epochs: int) -> int:
    """Returns a third of the epochs, at least 10: while the rate is high, accuracy jumps about."""
    return max(10, epochs // 3)


def default_learning_rate(network: str) -> float:
    """Returns the rate at which a network begins, by its name on the command line.

    What `benchmarks/defaults.py` finds on validation data: up to 64 units or filters a layer
    0.01, for wider ones 0.003.
    """
    widths = built_in.sizes_in(network)
    if not widths:
        return 1e-3
    return 1e-2 if max(widths) <= 64 else 3e-3


def new_optimizer(plan: Plan, steps: int) -> keras.optimizers.Optimizer:
    """Returns the optimizer of a plan, for epochs of so many steps."""
    decay = keras.optimizers.schedules.CosineDecay(
        plan.learning_rate, plan.epochs * steps
    )
    return keras.optimizers.Adam(decay)


def compiled(distiller: kd.Distiller, plan: Plan, steps: int, classes: int) -> Any:
    """Compiles a distiller whose student answers a number for each class, and returns it.

    Args:
        distiller: whose student is built.
        plan: of its training.
        steps: in an epoch.
        classes: of the data; with two, one number is the yes of a yes/no question.
    """
    student = distiller.student
    count = (
        tf.nest.flatten(student.outputs)[0].shape[-1] if student.outputs else classes
    )
    kind = "sigmoid" if count == 1 else "softmax"
    distiller.compile(
        optimizer=new_optimizer(plan, steps),
        loss=default_loss(kind, distiller.student_from_logits, False),
        metrics=default_metrics(
            kind, count, lambda: distiller.student_from_logits is not False
        ),
    )
    return distiller


def say_loss(distiller: kd.Distiller) -> None:
    """Compiles the student of a distiller, so that its file says what its numbers are."""
    student: Any = distiller.student
    if not student.compiled:
        has_classes = not isinstance(distiller.loss, keras.losses.BinaryCrossentropy)
        metrics = ["accuracy"] if has_classes else []
        # Of Adam the file would be three times as large, or loaded with a warning.
        student.compile("sgd", distiller.loss, metrics=metrics)


def train(
    distiller: kd.Distiller,
    batches: EpochBatches,
    validation: tf.data.Dataset,
    plan: Plan,
    folder: RunDirectory,
    name: str,
    epochs: int | None = None,
) -> Outcome:
    """Trains, or goes on with a training, and gives the student its best epoch's weights.

    Args:
        distiller: compiled by `compiled`; seeded, as everything that draws.
        batches: what it is trained on.
        validation: batches by which the best epoch is chosen: accuracy, then NLL.
        plan: how.
        folder: for its state.
        name: for the progress.
        epochs: that are trained whatever their results; `None` (default) for the plan's, at
            most.

    Raises:
        ValueError: if the loss is not finite, or the state is damaged.
    """
    folder.make()
    folder.remove_temporary()
    patience = plan.patience if epochs is None else None
    state = _State(distiller, folder, batches, epochs or plan.epochs, patience)
    if not state.is_finished:
        total = state.epochs * batches.steps
        with showing_progress(name, distiller, total, state.last_said) as shown:
            distiller.fit(
                batches.dataset(),
                validation_data=validation,
                epochs=state.epochs,
                initial_epoch=state.epoch,
                shuffle=False,
                verbose=0,
                callbacks=[state, shown],
            )
    state.restore_best()
    say_loss(distiller)
    outcome = state.outcome()
    print(f"{name:<12} val accuracy {outcome.accuracy:.2%}", flush=True)
    return outcome


class _State(keras.callbacks.Callback):
    """The state of a training, written every few epochs and read back at its beginning."""

    def __init__(
        self,
        distiller: kd.Distiller,
        folder: RunDirectory,
        batches: EpochBatches,
        epochs: int,
        patience: int | None,
    ) -> None:
        super().__init__()
        self.distiller, self.folder, self.batches = distiller, folder, batches
        self.epochs, self.patience = epochs, patience
        self.epoch, self.best_epoch, self.seconds = 0, -1, 0.0
        self.history: dict[str, list[float]] = {}
        self.best: list[np.ndarray] = []
        self.is_finished = False
        distiller.optimizer.build(distiller.trainable_weights)
        self._read()
        self._began = self._written = time.monotonic()

    @property
    def last_said(self) -> str:
        """What is known of the last epoch."""
        found = self.history.get("val_accuracy")
        return _said(found[-1]) if found else ""

    def outcome(self) -> Outcome:
        return Outcome(self.history, self.best_epoch, self.seconds)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.batches.epoch = epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        self.epoch = epoch + 1
        if not np.isfinite(self.history["loss"][-1]):
            raise ValueError(
                f"the training diverged: the loss of epoch {self.epoch} is not finite. "
                "Give a lower --learning-rate."
            )
        if self.best_epoch < 0 or self._goodness(epoch) > self._goodness(
            self.best_epoch
        ):
            self.best_epoch, self.best = (
                epoch,
                _values(self.distiller.student.variables),
            )
        waited = epoch - self.best_epoch
        if self.patience is not None and waited >= self.patience:
            self.model.stop_training = True
        self.is_finished = self.epoch == self.epochs or self.model.stop_training
        now = time.monotonic()
        if self.is_finished or now - self._written >= _SECONDS_BETWEEN_CHECKPOINTS:
            self.seconds += now - self._began
            self._began = self._written = now
            self._write()

    def restore_best(self) -> None:
        """Gives the student the weights of the best epoch."""
        _assign(self.distiller.student.variables, self.best)

    def _goodness(self, epoch: int) -> tuple[float, float]:
        history = self.history
        return history["val_accuracy"][epoch], -history["val_nll"][epoch]

    def _files(self) -> dict[str, list[Any]]:
        """Returns the variables of a checkpoint by the stem of its file."""
        student, optimizer = self.distiller.student, self.distiller.optimizer
        return {
            f"best-{self.best_epoch + 1}": self.best,
            f"epoch-{self.epoch}": [*student.variables, *optimizer.variables],
        }

    def _write(self) -> None:
        files = self._files()
        for stem, values in files.items():
            if not self.folder.has(f"{stem}.npz"):
                with self.folder.whole(f"{stem}.npz") as path:
                    np.savez(path, *_values(values))
        content = ("epoch", "best_epoch", "seconds", "history", "is_finished")
        self.folder.write_json(_STATE, {name: getattr(self, name) for name in content})
        names = tf.io.gfile.listdir(self.folder.path)
        kept = {f"{stem}.npz" for stem in files}
        self.folder.remove(
            *(n for n in names if n.endswith(".npz") and n not in kept and n[0] != ".")
        )

    def _read(self) -> None:
        found = self.folder.read_json(_STATE)
        if found is None:
            return
        for name, value in found.items():
            setattr(self, name, value)
        student, optimizer = self.distiller.student, self.distiller.optimizer
        best, last = (self._loaded(stem) for stem in self._files())
        self.best = best
        _assign([*student.variables, *optimizer.variables], last)

    def _loaded(self, stem: str) -> list[np.ndarray]:
        path = self.folder.file(f"{stem}.npz")
        try:
            with np.load(path, allow_pickle=False) as file:
                return [file[name] for name in file.files]
        except Exception as error:  # of zipfile, and NumPy's many
            raise ValueError(
                f"the checkpoint {path!r} is gone or damaged; delete {self.folder.path!r} "
                "and begin this training anew."
            ) from error


def _values(variables: Sequence[Any]) -> list[np.ndarray]:
    arrays = [keras.ops.convert_to_numpy(variable) for variable in variables]
    # NumPy writes bfloat16 as bytes without a type.
    return [a.astype("float32") if a.dtype.kind == "V" else a for a in arrays]


def _assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


# Progress ----------------------------------------------------------------------------


def _said(accuracy: float) -> str:
    return f"val accuracy {accuracy:.2%}"


@contextlib.contextmanager
def showing_progress(
    name: str, model: keras.Model, steps: int, said: str = ""
) -> Iterator[keras.callbacks.Callback]:
    """Yields a callback of `fit`: one bar for a whole training, or lines in a log.

    Args:
        name: of the training.
        model: that is trained, compiled; its optimizer counts the steps.
        steps: of all epochs.
        said: of the epochs before.
    """
    optimizer: Any = model.optimizer

    def done() -> int:
        return int(optimizer.iterations.value)

    with progress.bar(name, "step", steps, True, initial=done()) as bar:
        bar.set_postfix_str(said, False)

        def on_epoch_end(epoch: int, logs: Any) -> None:
            bar.set_postfix_str(_said(logs["val_accuracy"]), False)
            bar.update(done() - bar.n)

        # Not at each batch's end, where Keras would wait for the device.
        with progress.watching(lambda: bar.update(done() - bar.n)):
            yield keras.callbacks.LambdaCallback(on_epoch_end=on_epoch_end)
