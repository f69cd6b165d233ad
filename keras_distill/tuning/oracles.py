"""KerasTuner's oracles, with what a long search needs: nothing lost, nothing twice."""

from __future__ import annotations

import functools
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import keras_tuner
from keras_tuner.engine.hyperparameters import Choice
from keras_tuner.engine.trial import Trial
from keras_tuner.oracles import BayesianOptimizationOracle, RandomSearchOracle

from keras_distill import run_directory

_ENDED = ("COMPLETED", "FAILED")

#: How often a trial may end with the death of its process.
_DEATHS = 3
#: A search of which so many trials failed, and none did not, is stopped.
_ALL_FAILED = 3

_FILE = "oracle.json"


def _exclusive(method: Callable) -> Callable:
    """Lets one thread at a time into an oracle's methods.

    KerasTuner's own decorator keeps the lock for ever if a method raises.
    """

    @functools.wraps(method)
    def one_at_a_time(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.mutex:
            return method(self, *args, **kwargs)

    return one_at_a_time


class SearchOracle(keras_tuner.Oracle):
    """What is common to the oracles of `search`, whatever proposes the values.

    - The fixed points come first.
    - A trial whose worker is gone is tried again by another, three times at most.
    - A trial that ended is not run again, whenever the process is killed: its state is
      written whole, and what was running is found out from the trials themselves.
    - A failed trial does not end the search, unless all fail.

    Args:
        fixed_points: values to try first, of some hyperparameters; the others have their
            defaults.
        worker_timeout: seconds of silence after which a worker is taken for dead;
            infinite where its process is watched.
        **kwargs: of the KerasTuner oracle.
    """

    trials: dict[str, Trial]
    ongoing_trials: dict[str, Trial]
    end_order: list[str]
    _retry_queue: list[str]

    def __init__(
        self,
        *,
        fixed_points: list[dict[str, float]],
        worker_timeout: float = math.inf,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.verbose = 0
        self.mutex = threading.RLock()
        self.fixed_points = fixed_points
        self.worker_timeout = worker_timeout
        #: By trial: worker, began and ended as seconds of the whole search.
        self.records: dict[str, dict[str, Any]] = {}
        #: By worker, seconds that it was there.
        self.presence: dict[str, float] = {}
        #: The first of the trials, if all failed.
        self.failure: str | None = None
        #: What went wrong in here, for the process that shows errors.
        self.error: Exception | None = None
        self.on_end: Callable[[Trial], None] = lambda trial: None
        self._exhausted = False
        self._deaths: dict[str, int] = {}
        self._last_seen: dict[str, float] = {}
        self._present_since: dict[str, float] = {}
        self._seconds_before = 0.0
        self._started = time.monotonic()

    # What the workers ask ------------------------------------------------------------

    @_exclusive
    def create_trial(self, tuner_id: str) -> Trial:
        """Returns a trial to run; one to wait with while others may still be given back."""
        self.worker_is_here(tuner_id)
        self.retry_lost()
        self._forget_results_of_next(tuner_id)
        try:
            trial = super().create_trial(tuner_id)
        except Exception as error:
            self.error = error
            raise
        if trial.status == "RUNNING":
            self._last_seen[trial.trial_id] = time.monotonic()
            self.records[trial.trial_id] = {"worker": tuner_id, "began": self.seconds}
            self.save()
        elif trial.status == "STOPPED":
            if self.ongoing_trials or self._retry_queue:
                trial.status = "IDLE"  # one of these may come back
                self.tuner_ids.add(tuner_id)  # it will ask again
            else:
                self._exhausted = True
        return trial

    def _forget_results_of_next(self, tuner_id: str) -> None:
        """Empties the trial that will be tried again, which may have come far."""
        trial = self.ongoing_trials.get(tuner_id)
        if trial is None and self._retry_queue:
            trial = self.trials[self._retry_queue[-1]]
        if trial is not None:
            trial.metrics = type(trial.metrics)()

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Returns the values of the next trial."""
        if self.failure is not None:
            return {"status": "STOPPED", "values": None}
        if len(self.trials) >= len(self.fixed_points):
            return super().populate_space(trial_id)
        hps = self.get_space()
        values = {hp.name: hp.default for hp in hps.space if hps.is_active(hp)}
        values |= self.fixed_points[len(self.trials)]
        return {"status": "RUNNING", "values": values}

    @_exclusive
    def update_trial(self, trial_id: str, metrics: dict, step: int = 0) -> Trial:
        """Takes the results of a trial, of the first that brings them."""
        if trial_id in self.end_order:
            return self.trials[trial_id]
        trial = self.trials[trial_id]
        trial.metrics = type(trial.metrics)()  # all results come at once
        return super().update_trial(trial_id, metrics, step)

    @_exclusive
    def end_trial(self, trial: Trial) -> None:
        """Takes the end of a trial, once."""
        if trial.trial_id in self.end_order:
            for tuner_id, ongoing in list(self.ongoing_trials.items()):
                if ongoing.trial_id == trial.trial_id:
                    self.ongoing_trials.pop(tuner_id)
            return
        own = self.trials[trial.trial_id]
        if trial.trial_id in self._retry_queue:
            self._retry_queue.remove(trial.trial_id)
        # Sent over gRPC they are float32.
        trial.hyperparameters.values.update(own.hyperparameters.values)
        self._note_end(trial.trial_id)
        super().end_trial(trial)
        self._judge_failures()
        self.on_end(own)

    @_exclusive
    def get_trial(self, trial_id: str) -> Trial:
        """Returns a trial. Workers ask for theirs again and again, as a sign of life."""
        self._last_seen[trial_id] = time.monotonic()
        return super().get_trial(trial_id)

    @_exclusive
    def get_best_trials(self, num_trials: int = 1) -> list[Trial]:
        """Returns the best trials, of those that were completed."""
        done = [self.trials[trial_id] for trial_id in self.end_order]
        done = [trial for trial in done if trial.status == "COMPLETED"]
        is_max = self.objective.direction == "max"
        best = sorted(done, key=lambda trial: trial.score, reverse=is_max)
        return best[:num_trials]

    def _check_consecutive_failures(self) -> None:
        """Called by KerasTuner, which would stop the search at three in a row."""

    def _all_failed(self) -> bool:
        ended = [self.trials[trial_id] for trial_id in self.end_order]
        enough = min(_ALL_FAILED, self.max_trials)
        return len(ended) >= enough and all(t.status == "FAILED" for t in ended)

    def _judge_failures(self) -> None:
        if self._all_failed():
            # Those that run are run to their end; no others are begun.
            self.failure = self.end_order[0]
            self._retry_queue.clear()

    def _note_end(self, trial_id: str) -> None:
        self.records.setdefault(trial_id, {"began": self.seconds})
        self.records[trial_id]["ended"] = self.seconds

    # What the chief sees -------------------------------------------------------------

    @_exclusive
    def worker_is_here(self, tuner_id: str) -> None:
        """Notes that a worker lives."""
        self._present_since.setdefault(tuner_id, time.monotonic())

    @_exclusive
    def worker_is_gone(self, tuner_id: str, died: bool) -> None:
        """Gives the trial of a worker that is gone back, to be tried by another.

        Args:
            tuner_id: the worker.
            died: whether it counts as an attempt.
        """
        since = self._present_since.pop(tuner_id, None)
        if since is not None:
            self.presence[tuner_id] = (
                self.presence.get(tuner_id, 0.0) + time.monotonic() - since
            )
        self.tuner_ids.discard(tuner_id)
        trial = self.ongoing_trials.pop(tuner_id, None)
        if trial is not None:
            self._try_again(trial, died)
            self.save()

    def _try_again(self, trial: Trial, died: bool) -> None:
        deaths = self._deaths[trial.trial_id] = (
            self._deaths.get(trial.trial_id, 0) + died
        )
        if deaths < _DEATHS:
            self._retry_queue.append(trial.trial_id)
            return
        trial.status = "FAILED"
        trial.message = (
            f"the process that ran it died {deaths} times; it may have been killed for "
            "want of memory."
        )
        self._note_end(trial.trial_id)
        self.end_order.append(trial.trial_id)
        self._save_trial(trial)
        self._judge_failures()
        self.on_end(trial)

    @_exclusive
    def retry_lost(self) -> None:
        """Gives back the trials of workers that have been silent for too long."""
        now = time.monotonic()
        for tuner_id, trial in list(self.ongoing_trials.items()):
            seen = self._last_seen.setdefault(trial.trial_id, now)
            if now - seen > self.worker_timeout:
                self.worker_is_gone(tuner_id, died=True)

    @property
    def is_over(self) -> bool:
        """Whether all trials have ended, or no more can be begun."""
        with self.mutex:
            if self.ongoing_trials or self._retry_queue:
                return False
            is_full = len(self.trials) >= self.max_trials
            return self._exhausted or self.failure is not None or is_full

    @property
    def seconds(self) -> float:
        """Seconds that the search has run, without the time between its runs."""
        return self._seconds_before + time.monotonic() - self._started

    # On disk -------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Returns what is written to disk."""
        now = time.monotonic()
        presence = dict(self.presence)
        for tuner_id, since in self._present_since.items():
            presence[tuner_id] = presence.get(tuner_id, 0.0) + now - since
        return {
            **super().get_state(),
            "records": self.records,
            "deaths": self._deaths,
            "presence": presence,
            "seconds": self.seconds,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes what was read from disk."""
        # A process killed between two files leaves trials that this one does not list.
        known = set(self.trials)
        state["ongoing_trials"] = {
            worker: trial_id
            for worker, trial_id in state["ongoing_trials"].items()
            if trial_id in known
        }
        super().set_state(state)
        self.verbose = 0
        self.records, self._deaths = state["records"], state["deaths"]
        self.presence = state["presence"]
        self._seconds_before = state["seconds"]
        self._started = time.monotonic()

    @_exclusive
    def save(self) -> None:
        """Writes the state whole or not at all."""
        run_directory.write_json(
            self._project_dir, _FILE, self.get_state(), "the search"
        )

    def _save_trial(self, trial: Trial) -> None:
        folder = self._get_trial_dir(trial.trial_id)
        run_directory.write_json(folder, "trial.json", trial.get_state(), "the search")

    @property
    def is_on_disk(self) -> bool:
        """Whether there is a state to go on from."""
        return os.path.exists(os.path.join(self._project_dir, _FILE))

    def read(self) -> None:
        """Takes the state from disk as it is."""
        for folder in os.scandir(self._project_dir):
            if folder.is_dir() and folder.name.startswith("trial_"):
                content = run_directory.read_json(folder.path, "trial.json")
                if content is not None:
                    trial = Trial.from_state(content)
                    self.trials[trial.trial_id] = trial
        self.trials = dict(sorted(self.trials.items(), key=lambda item: int(item[0])))
        self.set_state(run_directory.read_json(self._project_dir, _FILE) or {})

    @_exclusive
    def reload(self, *, keep_running: bool = False, died: bool = False) -> None:
        """Takes the state from disk; what was running is tried again.

        Args:
            keep_running: whether the workers may have outlived their chief, so that
                trials that were running are theirs until they are silent for too long.
            died: whether the trial that was running may have killed the process.
        """
        self.read()
        running = {
            worker: trial
            for worker, trial in self.ongoing_trials.items()
            if trial.status not in _ENDED
        }
        self.ongoing_trials = running if keep_running else {}
        self.start_order = list(self.trials)
        self.end_order = [
            i
            for i in self.end_order
            if i in self.trials and self.trials[i].status in _ENDED
        ]
        pending: list[str] = []
        held = {trial.trial_id for trial in running.values()}
        for trial_id, trial in reversed(self.trials.items()):  # the last is tried first
            if trial.status in _ENDED:
                if trial_id not in self.end_order:
                    self.end_order.append(trial_id)
                    self._note_end(trial_id)
            elif trial_id not in held:
                pending.append(trial_id)
        self._retry_queue = []
        if not keep_running:
            for trial in running.values():
                self._try_again(trial, died)
        self._retry_queue[:0] = pending
        self.failure = None
        if self._all_failed():  # something may have been mended since
            self._retry_queue += reversed(self.end_order)
            self.end_order, self._deaths = [], {}
        if keep_running:
            self.tuner_ids.update(running)  # as if they had asked this chief
        self.save()


class BayesianOracle(SearchOracle, BayesianOptimizationOracle):
    """Gaussian process and upper confidence bound, of KerasTuner."""

    def _vectorize_trials(self) -> Any:
        # A fixed point that is not among the choices has no place in their space.
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


class RandomOracle(SearchOracle, RandomSearchOracle):
    """Random values, of KerasTuner."""


ORACLES: dict[str, type[SearchOracle]] = {
    "bayesian": BayesianOracle,
    "random": RandomOracle,
}
