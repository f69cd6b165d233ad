"""Every private name of KerasTuner that the search cannot do without, and why."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
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
    of_oracle = "_project_dir", "_get_trial_dir", "_save_trial", "_record_values"
    random = keras_tuner.oracles.RandomSearchOracle(objective="val_loss")
    return [
        *((keras_tuner.Oracle, name) for name in of_oracle),
        (keras_tuner.Oracle, "_check_consecutive_failures"),
        *((random, name) for name in ("_retry_queue", "_tried_so_far", "_id_to_hash")),
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
    #: By trial: digest of its student's file.
    students: dict[str, str]

    @property
    def _run(self) -> RunDirectory:
        # The folder of a project is given to `keras_tuner.Tuner`, and known here only so.
        return RunDirectory(self._project_dir, "the search")

    def save(self) -> None:
        """Writes the state."""
        self._run.write_json(ORACLE, self.get_state())

    def _save_trial(self, trial: Trial) -> None:
        name = os.path.join(os.path.basename(self.folder_of(trial.trial_id)), TRIAL)
        student = self.students.get(trial.trial_id)
        self._run.write_json(name, {**trial.get_state(), "student": student})

    def folder_of(self, trial_id: str) -> str:
        """Returns the folder of a trial, which is made if it does not exist."""
        return self._get_trial_dir(trial_id)

    def save_trial(self, trial: Trial) -> None:
        """Writes a trial."""
        self._save_trial(trial)

    @property
    def is_on_disk(self) -> bool:
        """Whether there is something to go on from."""
        return self._run.has(ORACLE) or bool(self._folders())

    def _folders(self) -> dict[str, str]:
        """Returns the folders of trials by their ids."""
        names = os.listdir(self._project_dir)
        found = [name.removeprefix("trial_") for name in names if "trial_" in name]
        return {i: self._run.file(f"trial_{i}") for i in found if i.isdecimal()}

    def read(self) -> list[str]:
        """Takes the state and the trials from disk, as far as they are whole.

        Returns:
            The ids of trials that were begun and are gone or damaged.
        """
        folders = self._folders()
        for trial_id, folder in folders.items():
            content = None
            with contextlib.suppress(ValueError):  # damaged
                content = RunDirectory(folder, "the search").read_json(TRIAL)
            if content is not None and content["trial_id"] == trial_id:
                self.trials[trial_id] = Trial.from_state(content)
                if student := content.get("student"):
                    self.students[trial_id] = student
        self.trials = dict(sorted(self.trials.items(), key=lambda item: int(item[0])))
        state = None
        with contextlib.suppress(ValueError):  # damaged
            state = self._run.read_json(ORACLE)
        begun = {int(i): i for i in [*folders, *(state or {}).get("start_order", [])]}
        width = len(str(self.max_trials))
        every = [
            begun.get(i, f"{i:0{width}d}") for i in range(max(begun, default=-1) + 1)
        ]
        # Without a state, the trials themselves tell enough.
        self.set_state(state or self.get_state())
        return [i for i in every if i not in self.trials]

    def begin_anew(self, trial_id: str, values: Callable[[], dict[str, Any]]) -> None:
        """Makes a trial that is gone or damaged once more, to be run.

        Args:
            trial_id: that it had.
            values: gives its hyperparameters, as if it had not been tried.
        """
        self._tried_so_far.discard(self._id_to_hash[trial_id])
        space = self.get_space()
        space.values = values()
        trial = Trial(hyperparameters=space, trial_id=trial_id, status="RUNNING")
        self._record_values(trial)
        self.trials[trial_id] = trial
        self.trials = dict(sorted(self.trials.items(), key=lambda item: int(item[0])))
        self._save_trial(trial)

    def put_back(self, trial_ids: list[str]) -> None:
        """Has trials tried again before new ones are proposed, the last of them first."""
        # The public `max_retries_per_trial` is for trials that raised, in one process.
        self._retry_queue: list[str] = trial_ids

    def _check_consecutive_failures(self) -> None:
        """Called by KerasTuner, which would stop the search at three in a row."""


class WholeSpaceBayesianOracle(BayesianOptimizationOracle):
    """Bayesian optimisation that leaves out trials with no place in the space of choices."""

    trials: dict[str, Trial]

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Returns the values of the next trial."""
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            # A length at its bound is a value that makes no difference, which may be.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return super().populate_space(trial_id)

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
