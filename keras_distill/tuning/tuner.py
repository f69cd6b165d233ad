"""The tuner that runs the trials of `search`, alone or as one worker of many."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import keras
import keras_tuner
import numpy as np
import tensorflow as tf
from keras_tuner.engine.trial import Trial
from keras_tuner.errors import FailedTrialError
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_client import OracleClient
from keras_tuner.src.engine.tuner import maybe_distribute

from keras_distill import run_directory
from keras_distill.distiller import Distiller
from keras_distill.processes import seeded
from keras_distill.tuning import tensorboard
from keras_distill.tuning.data import SearchData

FAILURE = "failure.txt"
_WEIGHTS = "student.weights.h5"
_BEAT_SECONDS = 5.0
_IDLE_SECONDS = 0.5


@dataclasses.dataclass
class Training:
    """How every trial is trained.

    Attributes:
        epochs: at most.
        patience: epochs without a better objective after which training stops; `None`
            for never.
        executions: how often each trial is trained, with seeds that are the same for all.
        seed: of the first execution.
    """

    epochs: int
    patience: int | None
    executions: int
    seed: int


class SearchTuner(keras_tuner.Tuner):
    """Runs trials: builds, trains, judges, and keeps the best student of each.

    Args:
        training: how.
        data: what on.
        logs: folder for TensorBoard.
        **kwargs: of `keras_tuner.Tuner`.
    """

    oracle: Any  # a SearchOracle, or the client of a distant one

    def __init__(
        self, *, training: Training, data: SearchData, logs: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.training, self.data, self.logs = training, data, logs
        self.after_trial: Callable[[], None] = lambda: None
        #: As this process would declare it.
        self.space = kwargs["oracle"].get_space()
        if isinstance(self.oracle, OracleClient):
            self.oracle = PatientClient(self.oracle._oracle)

    def search(self, *args: Any, **kwargs: Any) -> None:
        """Runs trials until there are no more."""
        with _short_collections():
            super().search(*args, **kwargs)

    def run_trial(self, trial: Trial, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trains a trial and returns the mean of its executions' best epochs."""
        best: float | None = None
        results, curves = [], []
        with self._signs_of_life(trial.trial_id), self._failing(trial):
            for execution in range(self.training.executions):
                with seeded(self.training.seed + execution):
                    distiller = self._try_build(trial.hyperparameters)
                    history = self._fit(trial, distiller, execution)
                epoch = self._best_epoch(history)
                score = history[self.oracle.objective.name][epoch]
                if best is None or self.oracle.objective.better_than(score, best):
                    best = score
                    self._save_student(trial, distiller)
                results.append(
                    {
                        **{n: v[epoch] for n, v in history.items() if _is_judged(n)},
                        "best_epoch": epoch + 1.0,
                        "epochs": float(len(history["loss"])),
                    }
                )
                curves.append(history)
        means = {
            name: float(np.mean([r[name] for r in results])) for name in results[0]
        }
        tensorboard.write_trial(self.logs, trial, means, curves)
        return means

    def on_trial_end(self, trial: Trial) -> None:
        """Reports the end of a trial."""
        super().on_trial_end(trial)
        self.after_trial()

    def _fit(self, trial: Trial, distiller: Distiller, execution: int) -> dict:
        objective = self.oracle.objective
        watch = _Watch()
        callbacks: list[keras.callbacks.Callback] = [watch]
        callbacks.append(
            keras.callbacks.EarlyStopping(
                objective.name,
                mode=objective.direction,
                patience=self.training.patience or self.training.epochs,
                restore_best_weights=True,
            )
        )
        history = self.hypermodel.fit(
            trial.hyperparameters,
            distiller,
            **self.data.training(self.training.seed + execution),
            **self.data.validating,
            epochs=self.training.epochs,
            callbacks=callbacks,
            verbose=0,
        ).history
        if watch.diverged is not None:
            raise FailedTrialError(
                f"the training diverged: the loss of epoch {watch.diverged + 1} is not "
                "finite. Lower the learning rate, or its range."
            )
        if objective.name not in history:
            names = ", ".join(name for name in history if _is_judged(name))
            raise ValueError(
                f"the objective {objective.name!r} is not among what validation gives: "
                f"{names}."
            )
        return history

    def _best_epoch(self, history: dict) -> int:
        values = np.asarray(history[self.oracle.objective.name])
        best = (
            np.nanargmax if self.oracle.objective.direction == "max" else np.nanargmin
        )
        return int(best(values))

    def _try_build(self, hp: keras_tuner.HyperParameters) -> Distiller:
        # As KerasTuner does it, which also clears the policy; the hypermodel sets that.
        keras.utils.clear_session()
        return self._build_hypermodel(hp)

    @contextlib.contextmanager
    def _failing(self, trial: Trial) -> Iterator[None]:
        """Writes down why a trial failed: KerasTuner's protocol does not send it."""
        path = os.path.join(self.get_trial_dir(trial.trial_id), FAILURE)
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        try:
            yield
        except Exception as error:
            run_directory.write_text(path, _reason(error))
            tensorboard.write_trial(self.logs, trial, {}, [], failed=True)
            raise

    @contextlib.contextmanager
    def _signs_of_life(self, trial_id: str) -> Iterator[None]:
        """Tells a distant chief again and again that the trial is being run."""
        if not isinstance(self.oracle, PatientClient):
            yield
            return
        # Not `progress.watching`: that waits for its last call, and a chief that is gone
        # would hold up Ctrl-C by it.
        over = threading.Event()

        def tell() -> None:
            while not over.wait(_BEAT_SECONDS):
                with contextlib.suppress(grpc.RpcError):
                    OracleClient.get_trial(self.oracle, trial_id)

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()

    def _save_student(self, trial: Trial, distiller: Distiller) -> None:
        folder = self.get_trial_dir(trial.trial_id)
        temporary = os.path.join(
            folder, f"{run_directory.TEMPORARY}{os.getpid()}.weights.h5"
        )
        distiller.student.save_weights(temporary)
        os.replace(temporary, os.path.join(folder, _WEIGHTS))

    def train_again(self, trial: Trial) -> keras.Model:
        """Returns a student trained anew with the values of a trial and a fresh seed."""
        execution = self.training.executions
        with seeded(self.training.seed + execution):
            distiller = self._try_build(trial.hyperparameters)
            self._fit(trial, distiller, execution)
        return distiller.student

    def load_model(self, trial: Trial) -> Distiller:
        """Returns the distiller of a trial with its best student."""
        distiller = self._try_build(trial.hyperparameters)
        student = distiller.student
        with maybe_distribute(self.distribution_strategy):
            if not student.built:
                x, *_ = next(iter(self.data.validation_batches.take(1)))
                student(x)
            student.load_weights(
                os.path.join(self.get_trial_dir(trial.trial_id), _WEIGHTS)
            )
        return distiller

    def save(self) -> None:
        """The oracle is saved by whoever has it; a tuner has no state of its own."""

    def reload(self) -> None:
        """See `save`."""


class PatientClient(OracleClient):
    """KerasTuner's client, which outlives a chief that is killed and started again."""

    def __init__(self, oracle: Any) -> None:
        super().__init__(oracle)
        address = f"{os.environ['KERASTUNER_ORACLE_IP']}:{os.environ['KERASTUNER_ORACLE_PORT']}"
        # gRPC's own waits between attempts grow to two minutes.
        options = [("grpc.max_reconnect_backoff_ms", 1000)]
        channel = grpc.insecure_channel(address, options)
        self.stub = protos.get_service_grpc().OracleStub(channel)

    def get_space(self) -> Any:
        """See `keras_tuner.Oracle`."""
        return _asked_again(super().get_space)

    def create_trial(self, tuner_id: str) -> Trial:
        """See `keras_tuner.Oracle`; waits a little where there is nothing to do yet."""
        trial = _asked_again(super().create_trial, tuner_id)
        if trial.status == "IDLE":
            time.sleep(_IDLE_SECONDS)
        return trial

    def get_trial(self, trial_id: str) -> Trial:
        """See `keras_tuner.Oracle`."""
        return _asked_again(super().get_trial, trial_id)

    def update_trial(self, trial_id: str, metrics: dict, step: int = 0) -> Trial:
        """See `keras_tuner.Oracle`."""
        return _asked_again(super().update_trial, trial_id, metrics, step)

    def end_trial(self, trial: Trial) -> None:
        """See `keras_tuner.Oracle`."""
        return _asked_again(super().end_trial, trial)


@contextlib.contextmanager
def _short_collections() -> Iterator[None]:
    """Spares Python's collector what is there already, TensorFlow above all.

    Keras collects before every trial, which takes 0.2 s otherwise, and 0.01 s so.
    """
    if gc.get_freeze_count():  # the user's own
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _asked_again(ask: Callable, *args: Any) -> Any:
    """Asks until there is an answer, though the chief may die in between."""
    while True:
        try:
            return ask(*args)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            time.sleep(_IDLE_SECONDS)


class _Watch(keras.callbacks.Callback):
    """Stops a training whose loss is no longer finite."""

    diverged: int | None = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not np.isfinite((logs or {}).get("loss", 0.0)):
            self.diverged = epoch
            self.model.stop_training = True


def _is_judged(name: str) -> bool:
    return name.startswith("val_")


def _reason(error: Exception) -> str:
    """Returns why a trial failed, in words for its row of the table."""
    if isinstance(error, FailedTrialError):
        return str(error)
    if isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError)):
        return f"out of memory: {str(error).partition(chr(10))[0]}"
    return f"{type(error).__name__}: {error}"
