"""KerasTuner's oracles, with what a long search needs: nothing lost, nothing twice."""

from __future__ import annotations

import functools
import math
import time
import uuid
from collections.abc import Callable
from typing import Any

from keras_tuner.engine.trial import Trial
from keras_tuner.oracles import RandomSearchOracle

from keras_distill.processes import DEATHS
from keras_distill.tuning.keras_tuner_compat import (
    FileOracle,
    WholeSpaceBayesianOracle,
)

_ENDED = ("COMPLETED", "FAILED")

#: A search of which so many trials failed, and none did not, is stopped.
_ALL_FAILED = 3


class SearchOracle(FileOracle):
    """What is common to the oracles of `search`, whatever proposes the values.

    - The fixed points come first.
    - A trial that ended is not run again, whenever the process is killed: its state is
      written whole, and what was running is found out from the trials themselves.
    - A failed trial does not end the search, unless all fail.

    Args:
        fixed_points: values to try first, of some hyperparameters; the others have their
            defaults.
        **kwargs: of the KerasTuner oracle.
    """

    def __init__(self, *, fixed_points: list[dict[str, float]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.verbose = 0
        self.fixed_points = fixed_points
        #: By trial: worker, deaths, began and ended as seconds of the whole search.
        self.records: dict[str, dict[str, Any]] = {}
        self.students = {}
        #: The first of the trials, if all failed.
        self.failure: str | None = None
        self._deaths: dict[str, int] = {}
        self._presence_before: dict[str, float] = {}
        self._workers: set[str] = set()
        self._seconds_before = 0.0
        self._started = time.monotonic()

    # Trials --------------------------------------------------------------------------

    def propose(self) -> Trial | None:
        """Returns the next trial to run, or `None` if there are no more."""
        trial = self.create_trial(uuid.uuid4().hex)
        return trial if trial.status == "RUNNING" else None

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Returns the values of the next trial."""
        if self.failure is not None:
            return {"status": "STOPPED", "values": None}
        if len(self.trials) >= len(self.fixed_points):
            return super().populate_space(trial_id)
        return {"status": "RUNNING", "values": self._fixed(len(self.trials))}

    def _fixed(self, number: int) -> dict[str, Any]:
        """Returns the values of a fixed point; those after the last are defaults."""
        hps = self.get_space()
        values = {hp.name: hp.default for hp in hps.space if hps.is_active(hp)}
        return {**values, **dict(*self.fixed_points[number : number + 1])}

    def _values_anew(self, number: int) -> dict[str, Any]:
        """Returns values for a trial of which nothing is left."""
        if number >= len(self.fixed_points):
            proposed = super().populate_space(str(number))
            if proposed.get("values"):
                return proposed["values"]
        return self._fixed(number)

    def finish(
        self,
        trial: Trial,
        metrics: dict[str, float] | None,
        message: str | None = None,
        *,
        worker: str = "worker-0",
        seconds: float = 0.0,
        deaths: int = 0,
        student: str | None = None,
    ) -> Trial:
        """Takes the end of a trial.

        Args:
            trial: with its hyperparameters.
            metrics: results; `None` if it failed.
            message: why it failed.
            worker: who ran it.
            seconds: that it took.
            deaths: of processes that ran it.
            student: digest of its student's file.

        Returns:
            The trial, as it is kept.
        """
        own = self.trials[trial.trial_id]
        own.metrics = type(
            own.metrics
        )()  # an attempt that was killed may have left some
        ended = self.seconds
        self._workers.add(worker)
        self.records[trial.trial_id] = {
            "worker": worker,
            "deaths": deaths,
            "began": ended - seconds,
            "ended": ended,
        }
        self.students.pop(trial.trial_id, None)
        if student is not None:
            self.students[trial.trial_id] = student
        name = self.objective.name
        if metrics is not None and not math.isfinite(metrics[name]):
            message = f"its {name} is {metrics[name]}, which is not finite."
            metrics = None
        if metrics is not None:
            self.update_trial(trial.trial_id, metrics)
        trial.status = "FAILED" if metrics is None else "COMPLETED"
        trial.message = message
        self.end_trial(trial)
        self._judge_failures()
        return own

    def get_best_trials(self, num_trials: int = 1) -> list[Trial]:
        """Returns the best trials, of those that were completed."""
        done = [self.trials[trial_id] for trial_id in self.end_order]
        done = [trial for trial in done if trial.status == "COMPLETED"]
        is_max = self.objective.direction == "max"
        best = sorted(done, key=lambda trial: trial.score, reverse=is_max)
        return best[:num_trials]

    def _all_failed(self) -> bool:
        ended = [self.trials[trial_id] for trial_id in self.end_order]
        enough = min(_ALL_FAILED, self.max_trials)
        return len(ended) >= enough and all(t.status == "FAILED" for t in ended)

    def _judge_failures(self) -> None:
        if self._all_failed():
            # Those that run are run to their end; no others are begun.
            self.failure = self.end_order[0]
            self.put_back([])

    @property
    def seconds(self) -> float:
        """Seconds that the search has run, without the time between its runs."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def presence(self) -> dict[str, float]:
        """Seconds that each worker was there."""
        run = time.monotonic() - self._started
        return self._presence_before | {
            worker: self._presence_before.get(worker, 0.0) + run
            for worker in self._workers
        }

    # On disk -------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Returns what is written to disk."""
        return {
            **super().get_state(),
            "records": self.records,
            "deaths": self._deaths,
            "presence": self.presence,
            "seconds": self.seconds,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes what was read from disk."""
        # A process killed between two files leaves trials that this one does not list.
        state["ongoing_trials"] = {
            worker: trial_id
            for worker, trial_id in state["ongoing_trials"].items()
            if trial_id in self.trials
        }
        super().set_state(state)
        self.verbose = 0
        self.records, self._deaths = state["records"], state["deaths"]
        self._presence_before = state["presence"]
        self._seconds_before = state["seconds"]
        self._started = time.monotonic()

    def leave(self) -> None:
        """Writes the state when nothing runs any more; what was running did not die."""
        self.ongoing_trials = {}
        self.save()

    def resume(
        self, died: bool, is_whole: Callable[[Trial, str | None], bool] | None = None
    ) -> list[str]:
        """Takes the state from disk; what was running is tried again.

        So is a trial whose folder is gone or damaged: with its own values where these can
        be read, else with new ones.

        Args:
            died: whether a trial that was running may have killed the process.
            is_whole: tells of a completed trial and the digest of its student's file
                whether that is there.

        Returns:
            Numbers of the trials that were gone or damaged.
        """
        lost = self.read()
        for trial_id in lost:
            values = functools.partial(self._values_anew, int(trial_id))
            self.begin_anew(trial_id, values)
        for trial_id, trial in self.trials.items():
            student = self.students.get(trial_id)
            if (
                trial.status == "COMPLETED"
                and is_whole
                and not is_whole(trial, student)
            ):
                trial.status = "RUNNING"
                lost.append(trial_id)
        running = {trial.trial_id for trial in self.ongoing_trials.values()}
        self.ongoing_trials = {}
        self.start_order = list(self.trials)
        self.end_order = [
            i
            for i in self.end_order
            if i in self.trials and self.trials[i].status in _ENDED
        ]
        unfinished = []
        for trial_id, trial in self.trials.items():
            if trial.status not in _ENDED:
                died_now = died and trial_id in running
                deaths = self._deaths.get(trial_id, 0) + died_now
                self._deaths[trial_id] = deaths
                if deaths < DEATHS:
                    unfinished.append(trial_id)
                    continue
                trial.status = "FAILED"
                trial.message = (
                    f"the process that ran it died {deaths} times; it may have been killed "
                    "for want of memory."
                )
                self.save_trial(trial)
            if trial_id not in self.end_order:
                self.end_order.append(trial_id)
                now = {"began": self.seconds, "ended": self.seconds}
                self.records.setdefault(trial_id, now)
        self.failure = None
        if self._all_failed():  # something may have been mended since
            unfinished = list(self.trials)
            self.end_order, self._deaths = [], {}
        self.put_back(unfinished[::-1])
        self.save()
        return sorted(lost, key=int)


class BayesianOracle(SearchOracle, WholeSpaceBayesianOracle):
    """Gaussian process and upper confidence bound, of KerasTuner."""


class RandomOracle(SearchOracle, RandomSearchOracle):
    """Random values, of KerasTuner."""


ORACLES: dict[str, type[SearchOracle]] = {
    "bayesian": BayesianOracle,
    "random": RandomOracle,
}
