"""Running the trials of a search, in whatever process, and opening what they left."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from typing import Any

import h5py
import keras
import keras_tuner
import numpy as np
from keras_tuner.engine.trial import Trial
from keras_tuner.engine.tuner import maybe_distribute
from keras_tuner.errors import FailedTrialError

from keras_distill.distiller import Distiller
from keras_distill.processes import seeded
from keras_distill.run_directory import RunDirectory
from keras_distill.tuning import tensorboard
from keras_distill.tuning.data import SearchData
from keras_distill.tuning.hypermodel import DistillationHyperModel
from keras_distill.tuning.oracles import ORACLES, SearchOracle

TRIALS = "trials"
LOGS = "logs"
_WEIGHTS = "student.weights.h5"


@dataclasses.dataclass(frozen=True)
class Search:
    """All that a search was given; sent to every process that runs trials.

    Attributes:
        directory: of the search, which all processes share.
        hypermodel: builds the distillers.
        data: what they are trained on, and judged.
        objective: name and direction.
        algorithm: "bayesian" or "random".
        epochs: at most, of each training.
        patience: epochs without a better objective after which a training stops; `None`
            for never.
        executions_per_trial: trainings of each trial.
        batch_size: of training.
        seed: of the proposals, and of each trial's first training.
        distribution_strategy: a `tf.distribute` strategy, or a function that makes it.
    """

    directory: str
    hypermodel: DistillationHyperModel
    data: SearchData
    objective: tuple[str, str]
    algorithm: str
    epochs: int
    patience: int | None
    executions_per_trial: int
    batch_size: int
    seed: int
    distribution_strategy: Any

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    @property
    def settings(self) -> dict[str, Any]:
        """What all trials have in common, as far as it was said."""
        left_out = ("directory", "hypermodel", "data", "distribution_strategy")
        return {n: v for n, v in self.__getstate__().items() if n not in left_out}

    @functools.cached_property
    def strategy(self) -> Any:
        """The `tf.distribute` strategy, or `None`."""
        given = self.distribution_strategy
        return given() if callable(given) else given

    @property
    def logs(self) -> str:
        """The folder for TensorBoard."""
        return os.path.join(self.directory, LOGS)

    def run(
        self, state: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Any], str]:
        """Trains a trial, and keeps its best student.

        Args:
            state: of the trial.

        Returns:
            The mean of its executions' best epochs, the hyperparameters that its building
            asked for, and the digest of its student's file.
        """
        trial = Trial.from_state(state)
        folder = self._folder(trial)
        folder.make()
        folder.remove_temporary()  # of an attempt that was killed
        best, results, curves = None, [], []
        try:
            for execution in range(self.executions_per_trial):
                distiller, history, epoch = self._trained(trial, execution)
                score = history[self.objective[0]][epoch]
                if best is None or self._is_better(score, best):
                    best = score
                    with folder.whole(_WEIGHTS) as path:
                        distiller.student.save_weights(path)
                results.append(
                    {
                        **{n: v[epoch] for n, v in history.items() if _is_judged(n)},
                        "best_epoch": epoch + 1.0,
                        "epochs": float(len(history["loss"])),
                    }
                )
                curves.append(history)
        except Exception:
            tensorboard.write_trial(self.logs, trial, {}, [], failed=True)
            raise
        means = {
            name: float(np.mean([r[name] for r in results])) for name in results[0]
        }
        tensorboard.write_trial(self.logs, trial, means, curves)
        student = _digest(folder.file(_WEIGHTS))
        return means, trial.hyperparameters.get_config(), student

    def is_whole(self, trial: Trial, student: str | None) -> bool:
        """Tells whether a trial's student is there as it was written.

        Args:
            trial: that was completed.
            student: digest of its file; `None` where an earlier version wrote none.
        """
        path = self._folder(trial).file(_WEIGHTS)
        try:
            if student is None:
                h5py.File(path, "r").close()  # tells of one that was cut
            return student in (None, _digest(path))
        except OSError:
            return False

    def _is_better(self, score: float, best: float) -> bool:
        return keras_tuner.Objective(*self.objective).better_than(score, best)

    def _folder(self, trial: Trial) -> RunDirectory:
        path = os.path.join(self.directory, TRIALS, f"trial_{trial.trial_id}")
        return RunDirectory(path, "the search")

    def _trained(self, trial: Trial, execution: int) -> tuple[Distiller, dict, int]:
        """Returns a trained distiller, its history, and its best epoch."""
        name, direction = self.objective
        with seeded(self.seed + execution):
            distiller = self.build(trial.hyperparameters)
            watch = _Watch()
            stop = keras.callbacks.EarlyStopping(
                name,
                mode=direction,
                patience=self.patience or self.epochs,
                restore_best_weights=True,
            )
            history = self.hypermodel.fit(
                trial.hyperparameters,
                distiller,
                **self.data.training(self.batch_size, self.seed + execution),
                **self.data.validating,
                epochs=self.epochs,
                callbacks=[watch, stop],
                verbose=0,
            ).history
        if watch.diverged is not None:
            raise FailedTrialError(
                f"the training diverged: the loss of epoch {watch.diverged + 1} is not "
                "finite. Lower the learning rate, or its range."
            )
        if name not in history:
            names = ", ".join(name for name in history if _is_judged(name))
            raise ValueError(
                f"the objective {name!r} is not among what validation gives: {names}."
            )
        return distiller, history, _best_epoch(name, direction, history[name])

    def build(self, hp: keras_tuner.HyperParameters) -> Distiller:
        """Returns a new distiller; Keras forgets those before."""
        keras.utils.clear_session()  # as KerasTuner does; the hypermodel sets the policy
        with maybe_distribute(self.strategy):
            return self.hypermodel.build(hp)

    def train_again(self, trial: Trial) -> keras.Model:
        """Returns a student trained anew with the values of a trial and a fresh seed."""
        return self._trained(trial, self.executions_per_trial)[0].student

    def load(self, trial: Trial, written: str | None = None) -> Distiller:
        """Returns the distiller of a trial with its best student.

        Args:
            trial: that was completed.
            written: digest of its student's file, if it is known.

        Raises:
            OSError: if that is gone or damaged.
        """
        if not self.is_whole(trial, written):
            raise OSError(
                f"the student of trial {trial.trial_id} is gone or damaged: "
                f"{self._folder(trial).file(_WEIGHTS)!r}; call search again with "
                "resume=True, which trains it anew."
            )
        distiller = self.build(trial.hyperparameters)
        student = distiller.student
        with maybe_distribute(self.strategy):
            if not student.built:
                x, *_ = next(iter(self.data.validation_batches.take(1)))
                student(x)
            student.load_weights(self._folder(trial).file(_WEIGHTS))
        return distiller

    def tuner(
        self, max_trials: int, fixed_points: list[dict[str, float]]
    ) -> SearchTuner:
        """Returns a tuner with a new oracle, which knows all hyperparameters."""
        oracle = ORACLES[self.algorithm](
            objective=keras_tuner.Objective(*self.objective),
            max_trials=max_trials,
            fixed_points=fixed_points,
            # KerasTuner takes 0 for "draw one".
            seed=self.seed + 1,
        )
        return SearchTuner(self, oracle)


class SearchTuner(keras_tuner.Tuner):
    """The oracle of a search, and KerasTuner's way to ask for what it found.

    Args:
        given: the search.
        oracle: proposes its trials.
    """

    oracle: SearchOracle

    def __init__(self, given: Search, oracle: SearchOracle) -> None:
        self.given = given
        super().__init__(
            oracle=oracle,
            hypermodel=given.hypermodel,
            directory=given.directory,
            project_name=TRIALS,
        )
        #: As this process declares it.
        self.space = oracle.get_space()

    def run_trial(self, trial: Trial, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trains a trial in this process and returns its results."""
        return self.given.run(trial.get_state())[0]

    def load_model(self, trial: Trial) -> Distiller:
        """Returns the distiller of a trial with its best student."""
        return self.given.load(trial, self.oracle.students.get(trial.trial_id))

    def save(self) -> None:
        """The oracle is saved by itself; a tuner has no state of its own."""

    def reload(self) -> None:
        """See `save`."""


class _Watch(keras.callbacks.Callback):
    """Stops a training whose loss is no longer finite."""

    diverged: int | None = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not np.isfinite((logs or {}).get("loss", 0.0)):
            self.diverged = epoch
            self.model.stop_training = True


def _best_epoch(name: str, direction: str, scores: list[float]) -> int:
    """Returns the epoch that counts, which is that whose weights are kept.

    Raises:
        FailedTrialError: if no score is finite, or one is better than any finite one.
    """
    values = np.asarray(scores, "float64")
    is_max = direction == "max"
    if (
        not np.isfinite(values).any()
        or (values == (np.inf if is_max else -np.inf)).any()
    ):
        raise FailedTrialError(
            f"the objective {name} is not finite: {', '.join(map(str, scores))} in its "
            "epochs."
        )
    return int((np.nanargmax if is_max else np.nanargmin)(values))


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_judged(name: str) -> bool:
    return name.startswith("val_")
