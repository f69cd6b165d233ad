"""`search`: the best temperature and alpha, and what else a student has."""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import keras_tuner
import tensorflow as tf
from keras_tuner.engine.trial import Trial
from keras_tuner.errors import FailedTrialError

from keras_distill import processes, progress
from keras_distill.arguments import (
    check_backend,
    check_bool,
    check_int,
    check_path,
    check_verbose,
)
from keras_distill.feature_pairs import pairs_named
from keras_distill.logits_or_probabilities import is_settled
from keras_distill.run_directory import RunDirectory, as_json
from keras_distill.soft_targets.store import SoftTargets
from keras_distill.teachers import as_teacher
from keras_distill.tuning import tensorboard
from keras_distill.tuning.before_trials import (
    FIXED_POINTS,
    REMEDY,
    check_arguments,
    check_processes,
    fixed_points,
    objective_of,
    settings_of,
    settled,
)
from keras_distill.tuning.data import (
    SearchData,
    check_kind,
)
from keras_distill.tuning.hypermodel import DistillationHyperModel
from keras_distill.tuning.oracles import SearchOracle
from keras_distill.tuning.ranges import phrase
from keras_distill.tuning.result import SearchResult, row_of
from keras_distill.tuning.trials import LOGS, TRIALS, Search, SearchTuner

_SETTINGS = "search.json"
_SOFT_TARGETS = "soft_targets"
_LABELS = {
    "soft_targets": "the soft targets",
    "hyperparameters": "hyperparameters",
    "student": "the architecture that build_student returns by default",
    "labels": "the fingerprint of train's labels",
    "validation": "the fingerprint of the validation data",
}


def search(
    build_student: Callable[[keras_tuner.HyperParameters], keras.Model],
    train: Any,
    validation: Any,
    *,
    teacher: Any = None,
    soft_targets: SoftTargets | str | os.PathLike | None = None,
    temperature: Any = None,
    alpha: Any = (0.0, 1.0),
    distillation_loss: Any = None,
    features: Any = None,
    objective: str | keras_tuner.Objective | None = None,
    max_trials: int = 30,
    executions_per_trial: int = 1,
    epochs: int = 20,
    patience: int | None = 5,
    batch_size: int = 128,
    optimizer: Any = "adam",
    loss: Any = None,
    metrics: list | None = None,
    output_kinds: Any = None,
    algorithm: str = "bayesian",
    n_jobs: int | None = None,
    threads: int | None = None,
    directory: str | os.PathLike = "keras-distill-search",
    resume: bool = False,
    overwrite: bool = False,
    retrain: bool = False,
    distribution_strategy: Any = None,
    seed: int = 0,
    on_trial_end: Callable[[dict[str, Any]], None] | None = None,
    verbose: bool = True,
) -> SearchResult:
    """Searches temperature and alpha, and whatever `build_student` asks for.

    The teacher runs once over the training data; its answers are kept on disk and shared
    by all trials and processes. Trials are compared by a metric on validation data at T =
    1, each trained with the same seeds. The first two trials are what one would try
    without a search, so the best is never worse than these on validation data: hard labels
    alone (alpha = 1), and T = 4, alpha = 0.1, each with the defaults of all other
    hyperparameters. Where all outputs are values, no temperature is searched: it would mean
    nothing.

    A search can be stopped or killed at any time, by Ctrl-C too; `resume=True` goes on with
    the same call. A trial that fails, by a loss that is not finite or for want of memory,
    is recorded and left; the search ends early only if the first three all fail.

    **On one host**, `n_jobs=n` runs n processes, on a machine with GPUs each with one of
    its own. **On many**, make a Dask or Ray cluster, choose it by `joblib.parallel_config`,
    and give a `directory` that all hosts share. Here a trial is proposed whenever one of
    them is free. One whose process dies is tried again, three times at most.

    Args:
        build_student: `fn(hp)` that returns a new `keras.Model`; see
            `DistillationHyperModel`.
        train: `(x, y)` or `(x, y, sample_weight)` arrays; a `tf.data.Dataset` of examples
            or batches, not shuffled, in the order of the soft targets (they are shuffled
            here); or a function without arguments that returns one.
        validation: `(x, y)` arrays, a dataset of examples or batches, or such a function.
            Not the test data.
        teacher: anything that may teach a `Distiller`. Its soft targets are written to
            the directory.
        soft_targets: in place of a teacher, a `SoftTargets` store or its path, written
            for `train`.
        temperature: as in `DistillationHyperModel`. `None` (default) is `(1.0, 20.0)`, by
            its logarithm, where it has a meaning.
        alpha: likewise. Default `(0.0, 1.0)`.
        distillation_loss: likewise.
        features: likewise; "auto" needs the teacher itself, and is settled by the student with
            the defaults of all hyperparameters.
        objective: what the best trial is chosen by: "accuracy", "nll", "auc",
            "mean_squared_error", or a `keras_tuner.Objective` of a metric of your own, as
            `("val_f1_score", "max")`. `None` (default) chooses by the kind of output:
            accuracy for classes that exclude each other and for one yes/no question (at the
            probability 0.5), the mean AUC for several questions, mean squared error for
            values (their cosine under a loss that looks at directions alone). For several
            outputs it must be said. Among equals the lower NLL is better.
        max_trials: at least 2. Default 30.
        executions_per_trial: trainings of each trial, whose results are averaged; their
            seeds are the same in all trials. Default 1.
        epochs: at most, of each training. Default 20. The best epoch counts.
        patience: epochs without a better objective after which a training stops; `None`
            for never. Default 5.
        batch_size: of training. Default 128.
        optimizer: for a student that is not compiled; see `DistillationHyperModel`.
        loss: likewise. By default that of the kind of output, and of the labels that
            `train` brings.
        metrics: likewise.
        output_kinds: as in `Distiller`.
        algorithm: "bayesian" (default, a Gaussian process; 200 trials cost about a
            second each for the proposal) or "random".
        n_jobs: int, how many trials are run at once, each in a process of its own; -1 for
            as many as there are cores; `None` (default) is 1, in this process, or what
            `joblib.parallel_config` says.
        threads: int, of TensorFlow in each of these processes; `None` (default) is the
            number of this machine's cores by that of processes.
        directory: for the trials, soft targets and logs; TensorBoard shows `logs` in it.
            Default "keras-distill-search".
        resume: whether to go on with the search in the directory, if there is one; with
            more `max_trials`, if you like. Trials whose files are gone or damaged are run
            again. `build_student` is compared by the model that it returns for the
            defaults: what it does for other values must be the same as before. Default
            `False`.
        overwrite: whether to delete the search in the directory. Default `False`.
        retrain: whether the best student is trained once more, with a seed of its own,
            in place of that of the best trial. Default `False`.
        distribution_strategy: a `tf.distribute` strategy of one host, under which each
            trial is trained; with `n_jobs`, a function that makes it.
        seed: int >= 0, of the proposals and of the trainings. Default 0.
        on_trial_end: called in this process with the row of each trial that ended, a
            dict with the columns of `SearchResult.trials`.
        verbose: whether to show a progress bar. Default `True`.

    Returns:
        `SearchResult`.

    Raises:
        ValueError: if an argument is out of range, or the directory's search had other
            settings, saying which.
        TypeError: if an argument is of the wrong kind, or cannot be sent to processes.
        FileExistsError: if there is a search in the directory and neither `resume` nor
            `overwrite` is said.
        BlockingIOError: if another process runs a search in the directory.
        RuntimeError: if all trials fail, with the reason of the first; or if processes
            cannot read what they are sent.

    Example:
    >>> import tempfile
    >>> import numpy as np
    >>> x, y = np.random.rand(90, 4).astype("float32"), np.random.randint(3, size=90)
    >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> def build_student(hp):
    ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> result = search(
    ...     build_student, (x[:60], y[:60]), (x[60:], y[60:]), teacher=teacher,
    ...     max_trials=3, epochs=1, directory=tempfile.mkdtemp(), verbose=False)
    >>> list(result.best_values), len(result.trials)
    (['temperature', 'alpha'], 3)
    """
    check_backend()
    resume, overwrite = check_bool("resume", resume), check_bool("overwrite", overwrite)
    retrain, verbose = check_bool("retrain", retrain), check_verbose(verbose)
    if on_trial_end is not None and not callable(on_trial_end):
        raise TypeError(
            "on_trial_end must be a function of a trial's row, a dict, or None; got "
            f"{on_trial_end!r}."
        )
    check_arguments(algorithm, teacher, soft_targets, resume, overwrite)
    seats = processes.Seats.of(n_jobs)
    max_trials = check_int("max_trials", max_trials, len(FIXED_POINTS))
    check_kind(train)
    path = os.path.abspath(check_path("directory", directory))
    run = RunDirectory(path, "the search", _LABELS)
    hypermodel = DistillationHyperModel(
        build_student,
        temperature=temperature,
        alpha=alpha,
        distillation_loss=distillation_loss,
        features=features,
        optimizer=optimizer,
        loss=loss,
        metrics=metrics,
        output_kinds=output_kinds,
    )
    said = None if objective is None else objective_of(objective)
    given = Search(
        directory=run.path,
        hypermodel=hypermodel,
        data=SearchData(
            train,
            validation,
            _path_of(soft_targets, run),
            getattr(soft_targets, "augment", None),
        ),
        objective=said or ("", ""),  # until the data has been looked at
        algorithm=algorithm,
        epochs=check_int("epochs", epochs, 1),
        patience=None if patience is None else check_int("patience", patience, 1),
        executions_per_trial=check_int("executions_per_trial", executions_per_trial, 1),
        batch_size=check_int("batch_size", batch_size, 1),
        seed=check_int("seed", seed, 0),
        distribution_strategy=distribution_strategy,
    )
    threads = None if threads is None else check_int("threads", threads, 1)
    check_processes(given, seats, threads)
    if overwrite and os.path.isdir(run.path):
        with run.lock():
            run.remove(_SETTINGS, TRIALS, LOGS, _SOFT_TARGETS)
    run.make()
    with run.lock():
        resume = _is_resumed(run, resume)
        run.remove_temporary()
        if isinstance(features, str):  # of the default student, for all trials
            hypermodel.features = None
            student = hypermodel.uncompiled().student
            hypermodel.features = pairs_named(features, student, teacher)
        distiller = hypermodel.uncompiled()
        if teacher is not None:
            _write(given, teacher, distiller.teacher_layer_names, verbose)
        given = settled(given, said, distiller)
        tuner = given.tuner(max_trials, fixed_points(given))
        remedy = "Give the same to resume it, or choose another directory."
        _claim(run, settings_of(given, tuner.space), remedy)
        if resume and tuner.oracle.is_on_disk:
            _warn_of(tuner.oracle.resume(seats.is_here, given.is_whole))
        with (
            _short_collections(),
            _progress(tuner, verbose, on_trial_end) as show,
        ):
            _run(given, tuner.oracle, seats, threads, show)
        return _finish(tuner, run.path, retrain)


def _write(given: Search, teacher: Any, layers: list[str], verbose: bool) -> None:
    """Writes the teacher's soft targets, and the hidden layers that the loss matches."""
    hypermodel = given.hypermodel
    kinds = hypermodel.output_kinds
    if kinds is not None and is_settled(as_teacher(teacher).kinds):
        kinds = (
            None  # what the teacher says of itself may be one yes/no for two classes
        )
    SoftTargets.write(
        given.data.soft_targets,
        teacher,
        given.data.train,
        layers=layers,
        output_kinds=kinds,
        verbose=verbose,
    )


def _path_of(soft_targets: Any, run: RunDirectory) -> str:
    if soft_targets is None:
        return run.file(_SOFT_TARGETS)
    if isinstance(soft_targets, SoftTargets):
        return soft_targets.path
    return check_path("soft_targets", soft_targets)


def _claim(run: RunDirectory, settings: dict[str, Any], remedy: str) -> None:
    """Writes the settings of a search, or refuses those that differ from its own."""
    found = run.read_json(_SETTINGS)
    if found is None:
        run.write_json(_SETTINGS, settings)
        return
    run.refuse_differences(_readable(found), _readable(settings), remedy)


def _readable(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings with a phrase for each hyperparameter."""
    by_name = {
        one["config"]["name"]: {"kind": one["class_name"], **one["config"]}
        for one in as_json(settings["hyperparameters"])
    }
    return {**settings, "hyperparameters": {n: phrase(c) for n, c in by_name.items()}}


def _warn_of(lost: list[str]) -> None:
    if lost:
        warnings.warn(
            f"what was kept of the trials {', '.join(lost)} is gone or damaged; they are "
            "run again.",
            UserWarning,
            stacklevel=3,
        )


def _is_resumed(run: RunDirectory, resume: bool) -> bool:
    """Tells whether there is a search to go on with; removes one that had no trial."""
    folder = run.file(TRIALS)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    count = sum(name.startswith("trial_") for name in names)
    if resume and run.has(_SETTINGS):
        return True
    if count:
        unknown = f", but no {_SETTINGS} that says of what" if resume else ""
        go_on = "" if resume else "resume=True to go on with it, "
        raise FileExistsError(
            f"there is a search of {count} trials in {run.path!r}{unknown}; pass {go_on}"
            "overwrite=True to delete it, or choose another directory."
        )
    run.remove(_SETTINGS, TRIALS)
    return False


def _run(
    given: Search,
    oracle: SearchOracle,
    seats: processes.Seats,
    threads: int | None,
    show: Callable[[Trial | None], None],
) -> None:
    """Runs the trials that are left, and hands each to `show` as it ends."""
    oracle.save()
    metrics = [given.objective[0], *given.hypermodel.metric_names]
    tensorboard.write_space(
        given.logs, oracle.get_space(), list(dict.fromkeys(metrics))
    )
    show(None)
    proposals = (trial.get_state() for trial in iter(oracle.propose, None))
    outcomes = processes.spread(
        given.run,
        proposals,
        seats=seats,
        folder=given.directory,
        threads=threads,
        remedy=REMEDY,
    )
    try:
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                show(_ended(oracle, outcome))
    finally:
        oracle.leave()
    if oracle.failure is not None:
        raise RuntimeError(
            f"all of the first {len(oracle.end_order)} trials failed; the first said: "
            f"{oracle.trials[oracle.failure].message}"
        )


def _ended(oracle: SearchOracle, outcome: processes.Outcome) -> Trial:
    """Tells the oracle what became of a trial, and returns it."""
    trial = Trial.from_state(outcome.task)
    metrics = message = student = None
    if outcome.error is not None:
        message = _reason(outcome.error)
    else:
        metrics, found, student = outcome.value
        trial.hyperparameters = keras_tuner.HyperParameters.from_config(found)
    return oracle.finish(
        trial,
        metrics,
        message,
        worker=outcome.worker,
        seconds=outcome.seconds,
        deaths=outcome.deaths,
        student=student,
    )


def _reason(error: Exception) -> str:
    """Returns why a trial failed, in words for its row of the table."""
    if isinstance(error, (FailedTrialError, ChildProcessError)):
        return str(error)
    if isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError)):
        return f"out of memory: {str(error).partition(chr(10))[0]}"
    return f"{type(error).__name__}: {error}"


def _finish(tuner: SearchTuner, directory: str, retrain: bool) -> SearchResult:
    result = SearchResult(tuner, directory)
    failed = result.trials[result.trials["status"] == "FAILED"]
    if len(failed):
        warnings.warn(
            f"{len(failed)} of {len(result.trials)} trials failed; the first said: "
            f"{failed['message'].iloc[0]}. See `result.trials`.",
            UserWarning,
            stacklevel=3,
        )
    if retrain:
        result.retrain()
    return result


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


@contextlib.contextmanager
def _progress(
    tuner: SearchTuner, verbose: bool, on_trial_end: Callable | None
) -> Iterator[Callable[[Trial | None], None]]:
    """Yields a function that shows how many trials have ended, and the best so far."""
    oracle = tuner.oracle

    def show(trial: Trial | None) -> None:
        if best := oracle.get_best_trials():
            bar.set_postfix_str(
                f"best {oracle.objective.name} {best[0].score:.4f}", False
            )
        bar.update(len(oracle.end_order) - bar.n)
        if trial is not None and on_trial_end is not None:
            on_trial_end(row_of(oracle, trial))

    with progress.bar("search", "trial", oracle.max_trials, verbose) as bar:
        yield show
