"""A job: all that a process needs in order to take part in a search."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import keras_tuner

from keras_distill.processes import ProcessSettings
from keras_distill.tuning.data import SearchData
from keras_distill.tuning.hypermodel import DistillationHyperModel
from keras_distill.tuning.oracles import ORACLES, SearchOracle
from keras_distill.tuning.tuner import SearchTuner, Training

TRIALS = "trials"
LOGS = "logs"


@dataclasses.dataclass
class Job:
    """All that a process needs in order to take part in a search; can be pickled.

    Args:
        directory: of the search.
        hypermodel: builds the distillers.
        data: what they are trained on.
        training: how.
        algorithm: "bayesian" or "random".
        objective: name and direction.
        max_trials: int.
        fixed_points: values to try first.
        seed: of the proposals.
        worker_timeout: seconds of silence of a worker that cannot be watched.
        distribution_strategy: a `tf.distribute` strategy, or a function that makes it.
        settings: of the process that began the search.
    """

    directory: str
    hypermodel: DistillationHyperModel
    data: SearchData
    training: Training
    algorithm: str
    objective: tuple[str, str]
    max_trials: int
    fixed_points: list[dict[str, float]]
    seed: int
    worker_timeout: float
    distribution_strategy: Any
    settings: ProcessSettings

    def oracle(self) -> SearchOracle:
        """Returns a new oracle."""
        return ORACLES[self.algorithm](
            objective=keras_tuner.Objective(*self.objective),
            max_trials=self.max_trials,
            fixed_points=self.fixed_points,
            worker_timeout=self.worker_timeout,
            # KerasTuner takes 0 for "draw one".
            seed=self.seed + 1,
        )

    def tuner(self) -> SearchTuner:
        """Returns a tuner for this process, alone, chief or worker by its environment."""
        strategy = self.distribution_strategy
        return SearchTuner(
            training=self.training,
            data=self.data,
            logs=os.path.join(self.directory, LOGS),
            oracle=self.oracle(),
            hypermodel=self.hypermodel,
            distribution_strategy=strategy() if callable(strategy) else strategy,
            directory=self.directory,
            project_name=TRIALS,
        )
