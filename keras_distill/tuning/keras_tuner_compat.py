"""Every private name of KerasTuner that the search cannot do without, and why."""

from __future__ import annotations

import os
from typing import Any

import keras_tuner
from keras_tuner.engine.hyperparameters import Choice
from keras_tuner.engine.trial import Trial
from keras_tuner.oracles import BayesianOptimizationOracle
from keras_tuner.src.engine import tuner_utils

from keras_distill.run_directory import RunDirectory

ORACLE = "oracle.json"
TRIAL = "trial.json"


def private_names() -> list[tuple[Any, str]]:
    """Returns what is used or overridden here, and of what: a test says what has moved."""
    of_oracle = "_project_dir", "_get_trial_dir", "_save_trial"
    return [
        *((keras_tuner.Oracle, name) for name in of_oracle),
        (keras_tuner.Oracle, "_check_consecutive_failures"),
        (keras_tuner.oracles.RandomSearchOracle(objective="val_loss"), "_retry_queue"),
        (BayesianOptimizationOracle, "_vectorize_trials"),
        (tuner_utils, "convert_hyperparams_to_hparams"),
    ]


class FileOracle(keras_tuner.Oracle):
    """An oracle whose state is written whole or not at all, and which fails by its own rules.

    KerasTuner writes in place, and has no public way to say how.
    """

    trials: dict[str, Trial]
    ongoing_trials: dict[str, Trial]
    start_order: list[str]
    end_order: list[str]

    @property
    def _run(self) -> RunDirectory:
        # The folder of a project is given to `keras_tuner.Tuner`, and known here only so.
        return RunDirectory(self._project_dir, "the search")

    def save(self) -> None:
        """Writes the state."""
        self._run.write_json(ORACLE, self.get_state())

    def _save_trial(self, trial: Trial) -> None:
        name = os.path.join(os.path.basename(self.folder_of(trial.trial_id)), TRIAL)
        self._run.write_json(name, trial.get_state())

    def folder_of(self, trial_id: str) -> str:
        """Returns the folder of a trial, which is made if it does not exist."""
        return self._get_trial_dir(trial_id)

    def save_trial(self, trial: Trial) -> None:
        """Writes a trial."""
        self._save_trial(trial)

    @property
    def is_on_disk(self) -> bool:
        """Whether there is a state to go on from."""
        return self._run.has(ORACLE)

    def read(self) -> None:
        """Takes the state and the trials from disk."""
        for folder in os.scandir(self._project_dir):
            if folder.is_dir() and folder.name.startswith("trial_"):
                content = RunDirectory(folder.path, "the search").read_json(TRIAL)
                if content is not None:
                    trial = Trial.from_state(content)
                    self.trials[trial.trial_id] = trial
        self.trials = dict(sorted(self.trials.items(), key=lambda item: int(item[0])))
        self.set_state(self._run.read_json(ORACLE) or {})

    def put_back(self, trial_ids: list[str]) -> None:
        """Has trials tried again before new ones are proposed, the last of them first."""
        # The public `max_retries_per_trial` is for trials that raised, in one process.
        self._retry_queue: list[str] = trial_ids

    def _check_consecutive_failures(self) -> None:
        """Called by KerasTuner, which would stop the search at three in a row."""


class WholeSpaceBayesianOracle(BayesianOptimizationOracle):
    """Bayesian optimisation that leaves out trials with no place in the space of choices."""

    trials: dict[str, Trial]

    def _vectorize_trials(self) -> Any:
        # A fixed point that is not among the choices; the public oracle would raise.
        everything = self.trials
        self.trials = {
            trial_id: trial
            for trial_id, trial in everything.items()
            if all(
                trial.hyperparameters.values.get(hp.name, hp.default) in hp.values
                for hp in self.hyperparameters.space
                if isinstance(hp, Choice)
            )
        }
        try:
            return super()._vectorize_trials()
        finally:
            self.trials = everything


def as_hparams(space: keras_tuner.HyperParameters) -> list:
    """Returns hyperparameters as TensorBoard's HParams page takes them.

    KerasTuner has the conversion, for its own callback only.
    """
    from tensorboard.plugins.hparams import api

    return list(tuner_utils.convert_hyperparams_to_hparams(space, api))
