"""The stages of `keras-distill distill`, each done once however often it is started."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable
from typing import Any

import keras
import keras_tuner
import tensorflow as tf

import keras_distill as kd
from keras_distill.commands import export, next_steps, pictures, report
from keras_distill.commands.epoch_batches import EpochBatches
from keras_distill.commands.input_layers import input_names
from keras_distill.commands.options import DATA_OPTIONS, heading, save_results
from keras_distill.commands.search import Table
from keras_distill.commands.training import (
    Outcome,
    Plan,
    compiled,
    new_optimizer,
    train,
)
from keras_distill.export.versions import newest_version
from keras_distill.exported import size_on_disk
from keras_distill.processes import seeded
from keras_distill.run_directory import RunDirectory
from keras_distill.soft_targets.distillation_inputs import without_soft_targets
from keras_distill.teacher import Teacher
from keras_distill.units import size_shown

_SOFT_TARGETS, _SEARCH, _TRAINING = "soft_targets", "search", "training"
_DISTILLED, _BASELINE = "distilled", "hard labels"
_STUDENTS = {_DISTILLED: "student", _BASELINE: "baseline"}
_CALIBRATION_EXAMPLES, _CHECKED = 500, 8
#: What the folder of a distillation has; in another it would be someone else's.
FOLDERS = (_SOFT_TARGETS, _SEARCH, _TRAINING, "savedmodel", "student.keras")


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be done, checked.

    Attributes:
        folder: of the results, locked.
        teacher: one or several.
        data: not in batches, in a fixed order.
        build: a new student.
        plan: of each training.
        settings: by which the folder is known.
        formats: of the export.
        command: the words of the command line, without the output.
    """

    folder: RunDirectory
    teacher: Teacher
    data: kd.datasets.Data
    build: Callable[[keras_tuner.HyperParameters], keras.Model]
    plan: Plan
    settings: dict[str, Any]
    formats: list[str]
    command: list[str]


class Distillation:
    """One run of a job, which leaves out what earlier runs have finished."""

    def __init__(self, job: Job) -> None:
        self.job, self.folder, self.plan = job, job.folder, job.plan
        self.validation = job.data.validation.batch(job.plan.batch_size)
        self.values: dict[str, Any] = {}
        self.distillers: dict[str, kd.Distiller] = {}
        self.outcomes: dict[str, Outcome] = {}

    def run(self, began: float) -> None:
        """Does all stages.

        Args:
            began: when the command was started, of `time.monotonic`.
        """
        data = self.job.data
        heading("Data")
        sizes = ", ".join(f"{count:,} {split}" for split, count in data.sizes.items())
        print(f"{data.name}: {data.classes} classes; {sizes}")
        heading("Soft targets")
        print(self.targets)
        self._look_at_teacher()
        self.values = self._searched() if self.job.settings["search"] else {}
        heading("Training")
        self._train()
        heading("Test data, each model judged once")
        comparison = self._judged()
        print(comparison)
        print(f"\n{report.summary(comparison)}")
        heading("Pictures")
        drawn = self._drawn(comparison)
        heading(f"Export of the student{self._which_is_better()}")
        exported, refused = self._exported(comparison)
        steps = next_steps.after_distill(
            self.folder.path,
            exported,
            self.job.command,
            self.job.settings["search"],
            best=_STUDENTS[self._best],
            is_teacher_worse=report.is_teacher_worse(comparison),
        )
        results = report.Results(
            title=f"{self.job.settings['student']} on {data.name}",
            comparison=comparison,
            pictures=drawn,
            captions={**pictures.CAPTIONS, **_SEARCH_CAPTIONS},
            settings=self._settings_shown(),
            refused=refused,
            exported=f"Of the student{self._which_is_better()}, "
            f"{_STUDENTS[self._best]}.keras.",
            files=[(path, size_shown(size_on_disk(path))) for path in exported],
            next_steps=steps,
            class_names=data.class_names,
        )
        path = report.write(self.folder, results)
        print(f"\nall of this on a page: {path}")
        heading(f"Done in {time.monotonic() - began:.0f} s. What to do next")
        print(next_steps.as_lines(steps))
        if refused:
            raise ValueError(
                f"all is done but {' and '.join(refused)}: {' '.join(refused.values())}"
            )

    # Stages --------------------------------------------------------------------------

    @functools.cached_property
    def targets(self) -> kd.SoftTargets:
        """The teacher's soft targets, cached."""
        found = kd.SoftTargets.write(
            self.folder.file(_SOFT_TARGETS),
            self.job.teacher,
            self.job.data.train,
            batch_size=self.plan.batch_size,
            batched=False,
        )
        assert found is not None  # no part
        return found

    def _look_at_teacher(self) -> None:
        """Says so where a teacher is no better than a guess."""
        if self.folder.has("judged.json"):
            return
        some = self.job.data.validation.take(1000).batch(100)
        found = kd.evaluate(self.job.teacher, some, timing=False).accuracy
        assert found is not None  # the data has classes
        print(f"the teacher is right on {found:.1%} of validation data")
        guessed = 1.0 / self.job.data.classes
        if found < guessed + 0.1 * (1.0 - guessed):
            print(
                "That is hardly better than a guess: was it trained on inputs of another "
                "range, such as 0 to 255, or on classes in another order?"
            )

    def _searched(self) -> dict[str, Any]:
        """Returns the best trial's values; searches, or goes on with it."""
        heading("Search")
        found = self.folder.read_json("searched.json")
        if found is None:
            settings, plan = self.job.settings, self.plan
            with seeded(plan.seed):
                result = kd.search(
                    self.job.build,
                    self.job.data.train,
                    self.job.data.validation.batch(self.plan.batch_size),
                    soft_targets=self.targets,
                    temperature=settings["temperature"],
                    alpha=(0.0, 1.0)
                    if settings["alpha"] is None
                    else settings["alpha"],
                    max_trials=settings["search"],
                    epochs=plan.epochs,
                    patience=plan.patience or max(5, plan.epochs // 4),
                    batch_size=plan.batch_size,
                    optimizer=new_optimizer(plan, self._steps),
                    directory=self.folder.file(_SEARCH),
                    resume=True,
                    seed=plan.seed,
                    on_trial_end=Table().show,
                )
            print(f"\n{result}")
            result.save(self.folder.file(_SEARCH))
            found = {"values": {k: _plain(v) for k, v in result.best_values.items()}}
            self.folder.write_json("searched.json", found)
        values = found["values"]
        print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                        for k, v in values.items()))  # fmt: skip
        return values

    @property
    def _steps(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.targets) / self.plan.batch_size)

    @property
    def temperature(self) -> float:
        """T of the training, given or found."""
        given = self.job.settings["temperature"]
        return self.values.get("temperature", 4.0) if given is None else given

    @property
    def alpha(self) -> float:
        """The weight of the hard loss, given or found."""
        given = self.job.settings["alpha"]
        return self.values.get("alpha", 0.1) if given is None else given

    def _train(self) -> None:
        data, plan = self.job.data, self.plan
        joined = self.targets.join(self.job.data.train, batched=False)
        batches = EpochBatches(joined, len(self.targets), plan.batch_size, plan.seed)
        names = [_DISTILLED, *([_BASELINE] if self.job.settings["baseline"] else [])]
        for name in names:
            folder = RunDirectory(
                self.folder.file(os.path.join(_TRAINING, _STUDENTS[name])),
                f"the training of the student, {name}",
            )
            # The same initial weights for both, and the same order of batches.
            with seeded(plan.seed + 1):
                student = self._built(joined)
                distiller = (
                    kd.Distiller(
                        student, temperature=self.temperature, alpha=self.alpha
                    )
                    if name == _DISTILLED
                    else kd.Distiller(student, alpha=1.0)
                )
                compiled(distiller, plan, batches.steps, data.classes)
                epochs = (
                    None if name == _DISTILLED else self.outcomes[_DISTILLED].epochs
                )
                outcome = train(
                    distiller, batches, self.validation, plan, folder, name, epochs
                )
            self.distillers[name], self.outcomes[name] = distiller, outcome
            file = f"{_STUDENTS[name]}.keras"
            if not self.folder.has(file):
                with self.folder.whole(file) as path:
                    student.save(path)

    def _built(self, joined: tf.data.Dataset) -> keras.Model:
        hp = keras_tuner.HyperParameters()
        hp.values.update(
            {k: v for k, v in self.values.items() if k not in ("temperature", "alpha")}
        )
        student = self.job.build(hp)
        if not student.built:
            student(without_soft_targets(next(iter(joined.batch(2)))[0]))
        return student

    def _judged(self) -> kd.Comparison:
        found = self.folder.read_json("judged.json")
        if found is None:
            students = {
                f"student, {name}": one.student for name, one in self.distillers.items()
            }
            comparison = kd.compare(
                {"teacher": self.job.teacher, **students},
                self.job.data.test.batch(self.plan.batch_size),
                teacher=self.job.teacher,
            )
            rows = [dataclasses.asdict(one) for one in comparison.evaluations]
            self.folder.write_json("judged.json", {"evaluations": rows})
            return comparison
        rows = [{**row, "outputs": ()} for row in found["evaluations"]]
        return kd.Comparison(tuple(kd.Evaluation(**row) for row in rows))

    def _drawn(self, comparison: kd.Comparison) -> dict[str, str]:
        """Returns the paths of the pictures by name."""
        found = self.folder.read_json("pictures.json")
        if found is None:
            drawn = pictures.draw(
                self.job.data.test.batch(pictures.BATCH_SIZE),
                self.job.data.class_names,
                self.job.teacher,
                self.distillers[_DISTILLED].student,
                comparison,
                {name: outcome.history for name, outcome in self.outcomes.items()},
            )
            save_results(self.folder.path, comparison, drawn)
            found = {"names": list(drawn)}
            self.folder.write_json("pictures.json", found)
        paths = {name: f"{name}.png" for name in found["names"]}
        if self.values:
            paths |= {n: os.path.join(_SEARCH, f"{n}.png") for n in _SEARCH_CAPTIONS}
        return {n: self.folder.file(p) for n, p in paths.items() if self.folder.has(p)}

    @property
    def _best(self) -> str:
        """The student that is better on validation data; of equals the distilled one."""
        return max(self.outcomes, key=lambda name: self.outcomes[name].accuracy)

    def _which_is_better(self) -> str:
        if len(self.outcomes) == 1:
            return ""
        return f" that is better on validation data: {self._best}"

    def _exported(self, comparison: kd.Comparison) -> tuple[list[str], dict[str, str]]:
        """Returns the path of each export, and why others are refused, by format.

        Those that are there already stay.
        """
        distiller, data = self.distillers[self._best], self.job.data
        card = kd.ModelCard(
            distiller,
            teacher=self.targets if self._best == _DISTILLED else None,
            data=data,
            seeds=self.plan.seed + 1,
            evaluation=comparison,
        )
        given: dict[str, Any] = {"class_names": data.class_names, "card": card}
        paths, refused = [], {}
        with export.warned_once():
            for name in self.job.formats:
                path = export.path_of(name, self.folder.path, "student")
                there = path if os.path.exists(path) else None
                if name == "savedmodel":
                    there = newest_version(path)
                if there is None:
                    calibration = self._calibration()
                    given["example"] = tf.nest.map_structure(
                        lambda part: part[:_CHECKED], calibration
                    )
                    try:
                        there = export.export_as(
                            name, distiller.student, path, calibration, **given
                        )
                    except (ValueError, RuntimeError) as error:  # of this student
                        refused[name] = str(error)
                        print(f"{name}: {error}")
                        continue
                paths.append(there)
                print(f"{name}: {there}")
        return paths, refused

    @functools.cache  # noqa: B019 - as long as the run
    def _calibration(self) -> Any:
        some = self.job.data.train.take(_CALIBRATION_EXAMPLES).map(lambda x, *_: x)
        found = kd.datasets.to_arrays(some.batch(100))
        if not isinstance(found, dict):
            return found
        inputs = {one.name for one in self.distillers[_DISTILLED].student.inputs}
        names = input_names(found)
        return {n if n in inputs else names[n]: column for n, column in found.items()}

    def _settings_shown(self) -> dict[str, Any]:
        plan, outcomes = self.plan, self.outcomes
        settings = self.job.settings
        shown = {
            "teacher": self.job.command[2],
            "student": settings["student"],
            "data": ", ".join(
                f"{n:,} {split}" for split, n in self.job.data.sizes.items()
            ),
            "temperature": f"{self.temperature:.4g}",
            "alpha": f"{self.alpha:.4g}",
            "trials of the search": settings["search"],
            "epochs": outcomes[_DISTILLED].epochs,
            **{f"best epoch, {n}": one.best_epoch + 1 for n, one in outcomes.items()},
            "batch size": plan.batch_size,
            "learning rate": f"{plan.learning_rate:g}, to 0 by a cosine",
            "patience": plan.patience,
            "seed": plan.seed,
        }
        shown |= {name.replace("_", " "): settings[name] for name in DATA_OPTIONS}
        return {name: value for name, value in shown.items() if value is not None}


_SEARCH_CAPTIONS = {
    "search_plane": "What each trial of the search came to, by its temperature and alpha.",
    "parallel_coordinates": "The trials of the search, a line each.",
    "best_so_far": "The best trial of the search so far.",
}


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
