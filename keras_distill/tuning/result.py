"""What a search found."""

from __future__ import annotations

import functools
import html
import json
import os
from typing import TYPE_CHECKING, Any

import keras
from keras_tuner.engine.hyperparameters import Fixed
from keras_tuner.engine.trial import Trial

from keras_distill import plots, run_directory
from keras_distill.arguments import check_path
from keras_distill.tuning.oracles import SearchOracle
from keras_distill.tuning.trials import SearchTuner

if TYPE_CHECKING:
    import pandas as pd


_MOST_SHOWN = 20  # trials in a notebook


class SearchResult:
    """What `search` found; prints as a summary.

    Attributes:
        best_values: the hyperparameters of the best trial, by name. Best is the best
            objective, and among equals the lowest `val_nll`.
        best_trial: its number, the index in `trials`.
        objective: name of the validation metric that was searched for.
        score: its value in the best trial, the mean of the executions.
        trials: `pandas.DataFrame`, a row for each trial: `kind` ("hard labels",
            "T = 4, alpha = 0.1" (of values "alpha = 0.1") or "searched"), `status`, hyperparameters, validation
            metrics, `best_epoch` and `epochs` (means of the executions), `worker`,
            `began` and `seconds` (of the whole search), `message` (why it failed).
        workers: `pandas.DataFrame`, a row for each worker: `trials`, `busy_seconds`,
            `seconds` that it was there, and `busy`, their ratio, from 0 to 1.
        seconds: that the search ran, without the time between its runs.
        directory: of the search.
        tuner: the `keras_tuner.Tuner`.
    """

    def __init__(self, tuner: SearchTuner, directory: str) -> None:
        self.tuner, self.directory = tuner, directory
        oracle = self._oracle = tuner.oracle
        self.objective: str = oracle.objective.name
        self._is_max = oracle.objective.direction == "max"
        self.seconds = oracle.seconds
        self._retrained: keras.Model | None = None
        self.trials = self._table(oracle)
        self.workers = self._workers(oracle)
        done = self.trials[self.trials["status"] == "COMPLETED"]
        if done.empty:
            raise RuntimeError(
                f"all of the {len(self.trials)} trials failed; the first said: "
                f"{self.trials['message'].iloc[0] if len(self.trials) else '-'}"
            )
        keys = [self.objective, *(["val_nll"] if "val_nll" in done else [])]
        order = done.sort_values(keys, ascending=[not self._is_max, True][: len(keys)])
        self.best_trial = int(order.index[0])
        self.score = float(order.iloc[0][self.objective])
        self.best_values = dict(self._best.hyperparameters.values)

    @property
    def _best(self) -> Trial:
        return self._by_number(self._oracle)[self.best_trial]

    @staticmethod
    def _by_number(oracle: SearchOracle) -> dict[int, Trial]:
        return {int(trial_id): trial for trial_id, trial in oracle.trials.items()}

    def _table(self, oracle: SearchOracle) -> pd.DataFrame:
        import pandas as pd

        rows = {
            number: row_of(oracle, trial)
            for number, trial in self._by_number(oracle).items()
        }
        table = pd.DataFrame.from_dict(rows, orient="index")
        table.index.name = "trial"
        last = ["worker", "began", "seconds", "message"]
        return table[[c for c in table.columns if c not in last] + last]

    def _workers(self, oracle: SearchOracle) -> pd.DataFrame:
        import pandas as pd

        presence = oracle.presence
        rows = {}
        for worker, trials in self.trials.groupby("worker"):
            busy = float(trials["seconds"].sum())
            seconds = max(presence.get(worker, 0.0), busy)
            rows[worker] = {
                "trials": len(trials),
                "busy_seconds": busy,
                "seconds": seconds,
                "busy": busy / seconds if seconds else 0.0,
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    @functools.cached_property
    def distiller(self) -> Any:
        """The best trial's distiller, with its best execution's best epoch."""
        return self.tuner.load_model(self._best)

    @property
    def student(self) -> keras.Model:
        """The best student: of the best trial, or retrained if `search` was told to."""
        if self._retrained is not None:
            return self._retrained
        return self.distiller.student

    @property
    def is_retrained(self) -> bool:
        """Whether `student` is one that was trained anew, by `retrain`."""
        return self._retrained is not None

    def retrain(self) -> keras.Model:
        """Builds the best student anew, trains it with a seed that was not used, keeps it.

        It is trained as a trial is, with early stopping on validation data.

        Returns:
            The student, which is `student` from now on.
        """
        self._retrained = self.tuner.given.train_again(self._best)
        return self._retrained

    def best_of_kind(self, kind: str) -> Any:
        """Returns the row of the best trial of a kind, or `None` if all failed."""
        rows = self.trials[
            (self.trials["kind"] == kind) & (self.trials["status"] == "COMPLETED")
        ]
        if rows.empty:
            return None
        return rows.sort_values(self.objective, ascending=not self._is_max).iloc[0]

    def figures(self) -> dict[str, Any]:
        """Draws what was found.

        Returns:
            Matplotlib figures by name: `search_plane` (where temperature or alpha was
            searched), `parallel_coordinates`, `best_so_far`.
        """
        searched = self.searched
        names = {"objective": self.objective, "is_max": self._is_max}
        figures = {}
        if {"temperature", "alpha"} <= set(searched):
            figures["search_plane"] = plots.search_plane(self.trials, **names)
        figures["parallel_coordinates"] = plots.parallel_coordinates(
            self.trials, searched, **names
        )
        figures["best_so_far"] = plots.best_so_far(self.trials, **names)
        return figures

    @property
    def searched(self) -> list[str]:
        """Names of the hyperparameters that were not fixed."""
        space = self._oracle.get_space().space
        return [hp.name for hp in space if not isinstance(hp, Fixed)]

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `trials.csv`, `workers.csv`, `best.json`, `student.keras`, pictures.

        Args:
            folder: made if it does not exist.

        Raises:
            ValueError: if it is no path.
            OSError: if it cannot be written, or the best student's file is gone.
        """
        folder = check_path("folder", folder)
        os.makedirs(folder, exist_ok=True)
        self.trials.to_csv(os.path.join(folder, "trials.csv"))
        self.workers.to_csv(os.path.join(folder, "workers.csv"))
        best = {
            "trial": self.best_trial,
            "objective": self.objective,
            "score": self.score,
            "values": self.best_values,
        }
        run_directory.write_text(
            os.path.join(folder, "best.json"), json.dumps(best, indent=2)
        )
        self.student.save(os.path.join(folder, "student.keras"))
        for name, figure in self.figures().items():
            figure.savefig(os.path.join(folder, f"{name}.png"))

    def __str__(self) -> str:
        failed = int((self.trials["status"] == "FAILED").sum())
        lines = [
            f"{len(self.trials)} trials"
            + (f", {failed} of them failed" if failed else "")
            + f", in {self.seconds:.0f} s; best {self.objective} {self.score:.5g} in trial "
            f"{self.best_trial}:",
            *(f"  {name} = {_text(value)}" for name, value in self.best_values.items()),
        ]
        for kind in map(_name_of, self._oracle.fixed_points):
            row = self.best_of_kind(kind)
            found = "failed" if row is None else f"{row[self.objective]:.5g}"
            lines.append(f"  against {kind}: {found}")
        for name, row in self.workers.iterrows():
            lines.append(
                f"  {name}: {int(row['trials'])} trials, busy {row['busy_seconds']:.0f} "
                f"of {row['seconds']:.0f} s ({100 * row['busy']:.0f} %)"
            )
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = self.to_pandas().sort_values(
            self.objective, ascending=not self._is_max, na_position="last"
        )
        shown = [n for n in ("kind", "status", *self.best_values) if n in rows]
        rows = rows[[*shown, self.objective]].head(_MOST_SHOWN)
        said = html.escape(str(self))
        return (
            f"<pre>{said}</pre>{rows.to_html(border=0, float_format='{:.5g}'.format)}"
        )

    def to_pandas(self) -> Any:
        """Returns a copy of `trials`: a `pandas.DataFrame` with a row for each trial."""
        return self.trials.copy()


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _name_of(point: dict[str, float]) -> str:
    """Returns what a fixed point is called."""
    if point["alpha"] == 1.0:
        return "hard labels"
    names = {"temperature": "T", "alpha": "alpha"}
    return ", ".join(f"{names[name]} = {value:g}" for name, value in point.items())


def row_of(oracle: SearchOracle, trial: Trial) -> dict[str, Any]:
    """Returns the row of a trial in `SearchResult.trials`."""
    record = oracle.records.get(trial.trial_id, {})
    ended = record.get("ended")
    number, points = int(trial.trial_id), oracle.fixed_points
    names = sorted(
        trial.metrics.metrics,
        key=lambda n: (n != oracle.objective.name, not n.startswith("val_"), n),
    )
    is_failed = trial.status == "FAILED"
    return {
        "kind": "searched" if number >= len(points) else _name_of(points[number]),
        "status": trial.status,
        **trial.hyperparameters.values,
        **{name: trial.metrics.get_best_value(name) for name in names},
        "worker": record.get("worker"),
        "began": record.get("began"),
        "seconds": None if ended is None else ended - record["began"],
        "message": (trial.message or "its objective is not a number")
        if is_failed
        else None,
    }
