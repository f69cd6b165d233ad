"""`search`: the best temperature and alpha, and what else a student has."""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import keras_tuner
import tensorflow as tf
from keras_tuner.engine.trial import Trial
from tqdm.auto import tqdm

from keras_distill import run_directory
from keras_distill.arguments import check_int
from keras_distill.distiller import Distiller
from keras_distill.first_batch import check_labels
from keras_distill.outputs import by_output
from keras_distill.processes import ProcessSettings
from keras_distill.run_directory import RunDirectory, architecture_fingerprint
from keras_distill.soft_targets.store import SoftTargets
from keras_distill.tuning import tensorboard
from keras_distill.tuning import workers as processes
from keras_distill.tuning.data import (
    EMPTY_VALIDATION,
    SearchData,
    check_kind,
    check_sendable,
    fingerprint,
)
from keras_distill.tuning.hypermodel import DistillationHyperModel
from keras_distill.tuning.job import LOGS, TRIALS, Job
from keras_distill.tuning.oracles import ORACLES, SearchOracle
from keras_distill.tuning.result import SearchResult, failure_of, row_of
from keras_distill.tuning.tuner import SearchTuner, Training
from keras_distill.tuning.worker import grow_gpu_memory

_SETTINGS = "search.json"
_SOFT_TARGETS = "soft_targets"
_WORKERS = "workers"
_CHIEF = "chief"

_OBJECTIVES = {"accuracy": ("val_accuracy", "max"), "nll": ("val_nll", "min")}
#: What a user would try without a search.
_FIXED_POINTS = [
    {"temperature": 4.0, "alpha": 1.0},
    {"temperature": 4.0, "alpha": 0.1},
]


def search(
    build_student: Callable[[keras_tuner.HyperParameters], keras.Model],
    train: Any,
    validation: Any,
    *,
    teacher: Any = None,
    soft_targets: SoftTargets | str | os.PathLike | None = None,
    temperature: Any = (1.0, 20.0),
    alpha: Any = (0.0, 1.0),
    distillation_loss: Any = None,
    objective: str | keras_tuner.Objective = "accuracy",
    max_trials: int = 30,
    executions_per_trial: int = 1,
    epochs: int = 20,
    patience: int | None = 5,
    batch_size: int = 128,
    optimizer: Any = "adam",
    loss: Any = None,
    metrics: list | None = None,
    algorithm: str = "bayesian",
    workers: int = 1,
    threads: int | None = None,
    worker_timeout: float = 60.0,
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
    by all trials and workers. Trials are compared by a metric on validation data at T =
    1, each trained with the same seeds. The first two trials are what one would try
    without a search, so the best is never worse than these on validation data: hard labels
    alone (alpha = 1), and T = 4, alpha = 0.1, each with the defaults of all other
    hyperparameters.

    A search can be stopped or killed at any time, by Ctrl-C too; `resume=True` goes on with
    the same call. A trial that fails, by a loss that is not finite or for want of memory,
    is recorded and left; the search ends early only if the first three all fail.

    **On one host**, `workers=n` runs n processes, on a machine with GPUs each with one of
    its own. **On many**, start the same script on each with KerasTuner's variables
    `KERASTUNER_TUNER_ID` ("chief" for one, any other name for each worker),
    `KERASTUNER_ORACLE_IP` and `KERASTUNER_ORACLE_PORT`, and a `directory` that all share;
    they may start in any order, and a worker that is started after the end waits for a
    chief for an hour, as in KerasTuner.

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
        temperature: as in `DistillationHyperModel`. Default `(1.0, 20.0)`, by its
            logarithm.
        alpha: likewise. Default `(0.0, 1.0)`.
        distillation_loss: likewise.
        objective: what the best trial is chosen by: "accuracy" (default), "nll", or a
            `keras_tuner.Objective` of a metric of your own, as `("val_f1_score",
            "max")`. Among equals the lower NLL is better.
        max_trials: at least 2. Default 30.
        executions_per_trial: trainings of each trial, whose results are averaged; their
            seeds are the same in all trials. Default 1.
        epochs: at most, of each training. Default 20. The best epoch counts.
        patience: epochs without a better objective after which a training stops; `None`
            for never. Default 5.
        batch_size: of training. Default 128.
        optimizer: for a student that is not compiled; see `DistillationHyperModel`.
        loss: likewise. By default the cross-entropy of the labels that `train` brings.
        metrics: likewise.
        algorithm: "bayesian" (default, a Gaussian process; 200 trials cost about a
            second each for the proposal) or "random".
        workers: processes on this host. Default 1, this process.
        threads: of TensorFlow in each worker process; by default this host's cores
            divided by `workers`.
        worker_timeout: seconds of silence after which a worker on another host is taken
            for dead and its trial given to another. Default 60.
        directory: for the trials, soft targets and logs; TensorBoard shows `logs` in it.
        resume: whether to go on with the search in the directory, if there is one; with
            more `max_trials`, if you like. Default `False`.
        overwrite: whether to delete the search in the directory. Default `False`.
        retrain: whether the best student is trained once more, with a seed of its own,
            in place of that of the best trial; on many hosts only by the chief. Default
            `False`.
        distribution_strategy: a `tf.distribute` strategy of one host, under which each
            trial is trained; with `workers`, a function that makes it.
        seed: int >= 0, of the proposals and of the trainings. Default 0.
        on_trial_end: called in this process with the row of each trial that ended, a
            dict with the columns of `SearchResult.trials`.
        verbose: whether to show a progress bar.

    Returns:
        `SearchResult`.

    Raises:
        ValueError: if an argument is out of range, or the directory's search had other
            settings, saying which.
        TypeError: if an argument is of the wrong kind, or cannot be sent to workers.
        FileExistsError: if there is a search in the directory and neither `resume` nor
            `overwrite` is said.
        BlockingIOError: if another process runs a search in the directory.
        RuntimeError: if all trials fail, with the reason of the first.

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
    role = _role(workers)
    max_trials = check_int("max_trials", max_trials, len(_FIXED_POINTS))
    training = Training(
        check_int("epochs", epochs, 1),
        None if patience is None else check_int("patience", patience, 1),
        check_int("executions_per_trial", executions_per_trial, 1),
        check_int("seed", seed, 0),
    )
    workers = check_int("workers", workers, 1)
    _check_arguments(
        algorithm, worker_timeout, teacher, soft_targets, resume, overwrite
    )
    name, direction = _objective(objective)
    check_kind(train)
    if workers > 1:
        check_sendable(train, validation)
        _check_strategy(distribution_strategy)
    directory = os.path.abspath(os.path.expanduser(directory))
    data = SearchData(
        train,
        validation,
        _path_of(soft_targets, directory),
        getattr(soft_targets, "_augment", None),
        check_int("batch_size", batch_size, 1),
    )
    hypermodel = DistillationHyperModel(
        build_student,
        temperature=temperature,
        alpha=alpha,
        distillation_loss=distillation_loss,
        optimizer=optimizer,
        loss=loss,
        metrics=metrics,
    )
    if workers == 1 and threads is not None:
        raise ValueError(
            "threads is for worker processes; with workers=1 trials run in this process, "
            "whose threads tf.config.threading sets."
        )
    if workers > 1 and threads is None:
        threads = max(1, (os.cpu_count() or 1) // workers)
    job = Job(
        directory=directory,
        hypermodel=hypermodel,
        data=data,
        training=training,
        algorithm=algorithm,
        objective=(name, direction),
        max_trials=max_trials,
        fixed_points=_FIXED_POINTS,
        seed=seed,
        worker_timeout=worker_timeout if role == _CHIEF else math.inf,
        distribution_strategy=distribution_strategy,
        settings=ProcessSettings(
            None if threads is None else check_int("threads", threads, 1)
        ),
    )
    if role == "worker":
        return _work(job)
    if workers > 1:
        # Before anything is written. The data itself, if it is arrays, can be sent.
        functions = [part for part in (train, validation) if callable(part)]
        processes.payload(job.settings, [hypermodel, functions, distribution_strategy])
        grow_gpu_memory()  # or this process leaves none for the workers
    if overwrite:
        _delete(directory)
    os.makedirs(directory, exist_ok=True)
    with run_directory.lock(directory, doing="the search"):
        _refuse_another(directory, resume)
        if teacher is not None:
            layers = _teacher_layers(hypermodel)
            SoftTargets.write(
                data.soft_targets, teacher, train, layers=layers, verbose=verbose
            )
        hypermodel.loss = loss or _loss_of(data)
        tuner = _check_in(job, resume)
        with _progress(tuner, verbose, on_trial_end) as look:
            _run(job, tuner, role, workers, look)
        return _finish(tuner, directory, retrain)


def _role(workers: Any) -> str | None:
    """Returns "chief", "worker" or `None`, by KerasTuner's environment variables."""
    if "KERASTUNER_ORACLE_IP" not in os.environ:
        return None
    for variable in ("KERASTUNER_ORACLE_PORT", "KERASTUNER_TUNER_ID"):
        if variable not in os.environ:
            raise ValueError(
                f"KERASTUNER_ORACLE_IP is set but {variable} is not; a search on many "
                "hosts needs both, on each of them."
            )
    if workers != 1:
        raise ValueError(
            f"workers is {workers}, but by KERASTUNER_ORACLE_IP this process is one of a "
            "search on many hosts; leave workers at 1 and start more such processes."
        )
    # As KerasTuner tells it.
    is_chief = _CHIEF in os.environ["KERASTUNER_TUNER_ID"]
    return _CHIEF if is_chief else "worker"


def _check_arguments(
    algorithm: Any,
    worker_timeout: Any,
    teacher: Any,
    soft_targets: Any,
    resume: bool,
    overwrite: bool,
) -> None:
    if algorithm not in ORACLES:
        raise ValueError(
            f"algorithm must be one of {', '.join(map(repr, ORACLES))}, got "
            f"{algorithm!r}. For KerasTuner's others, give a DistillationHyperModel to "
            "keras_tuner.GridSearch or keras_tuner.Hyperband."
        )
    if not isinstance(worker_timeout, (int, float)) or not worker_timeout >= 10:
        raise ValueError(
            f"worker_timeout must be at least 10 seconds, got {worker_timeout!r}; workers "
            "give a sign of life every 5."
        )
    if (teacher is None) == (soft_targets is None):
        both = "both" if teacher is not None else "neither"
        raise ValueError(
            f"give either a teacher or its soft_targets, got {both}; what a teacher says "
            "is written down once and shared by all trials."
        )
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other; say one of them.")


def _objective(objective: Any) -> tuple[str, str]:
    if isinstance(objective, keras_tuner.Objective):
        name, direction = objective.name, objective.direction
    elif isinstance(objective, str):
        name, direction = objective, None
        short = objective.removeprefix("val_")
        if short in _OBJECTIVES:
            return _OBJECTIVES[short]
    else:
        raise TypeError(
            'objective must be "accuracy", "nll" or a keras_tuner.Objective, got '
            f"{objective!r}."
        )
    if name.removeprefix("val_") in ("loss", "hard_loss", "soft_loss"):
        raise ValueError(
            f"objective {name!r} cannot be searched for: the loss means something else at "
            'each temperature and alpha. Choose "accuracy" or "nll", which are measured '
            "on validation data at T = 1."
        )
    if direction is None:
        raise ValueError(
            f'objective must be "accuracy" or "nll", got {name!r}; for a metric of your '
            f'own say keras_tuner.Objective("val_{name.removeprefix("val_")}", "max").'
        )
    if not name.startswith("val_"):
        raise ValueError(
            f"objective {name!r} is measured on the training data; choose "
            f"'val_{name}', which is measured on validation data."
        )
    return name, direction


def _check_strategy(strategy: Any) -> None:
    if strategy is not None and not callable(strategy):
        raise TypeError(
            "distribution_strategy cannot be sent to other processes; with workers > 1 "
            "give a function without arguments that makes it."
        )


def _path_of(soft_targets: Any, directory: str) -> str:
    if soft_targets is None:
        return os.path.join(directory, _SOFT_TARGETS)
    if isinstance(soft_targets, SoftTargets):
        return soft_targets.path
    return os.fspath(soft_targets)


def _teacher_layers(hypermodel: DistillationHyperModel) -> list[str]:
    """Returns the hidden layers that the objective matches, to be kept too."""
    distiller = hypermodel.build(keras_tuner.HyperParameters())
    return distiller.teacher_layer_names


def _loss_of(data: SearchData) -> Any:
    """Returns a loss for one-hot labels, or `None` for the default, integer labels."""
    kept = data.store.manifest
    spec = data.validation_batches.element_spec[1]
    shape = tuple(spec.shape) if isinstance(spec, tf.TensorSpec) else ()
    # Without its batch axis; sequences have one more.
    logits = [shape for name, _, shape in kept["row"] if name == "logits"]
    if not logits or len(shape) != len(logits[0]) + 1:
        return None
    is_one_hot = shape[-1] == kept["classes"]
    return keras.losses.CategoricalCrossentropy if is_one_hot else None


def _delete(directory: str) -> None:
    """Removes what an earlier search has left, and nothing else."""
    if not os.path.isdir(directory):
        return
    with run_directory.lock(directory, doing="the search"):
        for name in (TRIALS, LOGS, _SOFT_TARGETS, _WORKERS):
            shutil.rmtree(os.path.join(directory, name), ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(directory, _SETTINGS))


def _refuse_another(directory: str, resume: bool) -> None:
    if resume:
        return
    count = len(glob.glob(os.path.join(glob.escape(directory), TRIALS, "trial_*")))
    if count == 0:
        return
    raise FileExistsError(
        f"there is a search of {count} trials in {directory!r}; pass resume=True to go on "
        "with it, overwrite=True to delete it, or choose another directory."
    )


def _check_in(job: Job, resume: bool) -> SearchTuner:
    """Compares the settings with those on disk, and returns the tuner with its trials."""
    tuner = job.tuner()
    settings = _settings(job, tuner.space)
    found = run_directory.read_json(job.directory, _SETTINGS) if resume else None
    if found is not None:
        _refuse_differences(found, settings, f"resume the search in {job.directory!r}")
    run_directory.write_json(job.directory, _SETTINGS, settings, "the search")
    return tuner


def _settings(job: Job, space: keras_tuner.HyperParameters) -> dict[str, Any]:
    """Returns what all trials of a search have in common, after a look at the data."""
    data = job.data
    data.check_labelled()
    batches = data.validation_batches
    distiller = job.hypermodel.build(space.copy())
    first = next(iter(batches.take(1)), None)
    if first is None:  # its length could not be known
        raise ValueError(EMPTY_VALIDATION)
    _check_first_batches(distiller, data.first_training_batch(), first)
    _check_objective(distiller, first, job.objective[0])
    return {
        "hyperparameters": space.get_config()["space"],
        "student": architecture_fingerprint(distiller.student),
        "loss": _as_config(distiller.loss),
        "optimizer": _as_config(distiller.optimizer),
        "distillation_loss": _as_config(distiller.distillation_loss),
        "soft_targets": {
            key: data.store.manifest[key]
            for key in ("teacher", "examples", "top_k", "views", "augment", "seed")
        },
        "labels": data.labels_fingerprint(),
        "validation": fingerprint(batches),
        "objective": list(job.objective),
        "algorithm": job.algorithm,
        "epochs": job.training.epochs,
        "patience": job.training.patience,
        "executions_per_trial": job.training.executions,
        "batch_size": data.batch_size,
        "seed": job.seed,
        "dtype_policy": job.settings.dtype_policy,
    }


def _refuse_differences(found: dict, settings: dict, what: str) -> None:
    phrases = RunDirectory("", "the search").differences(found, settings)
    if phrases:
        raise ValueError(
            f"cannot {what} with other settings: {'; '.join(phrases)}. Give the same, or "
            "choose another directory."
        )


def _check_first_batches(distiller: Distiller, train: tuple, validation: tuple) -> None:
    """Refuses data that the student does not take, or labels that do not fit the loss."""
    shapes = ", ".join(
        str(tuple(part.shape)) for part in tf.nest.flatten(train[0].inputs)
    )
    try:
        outputs = distiller(train[0].inputs)
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise ValueError(
            "the student that build_student returns does not take batches of shape "
            f"{shapes}: {str(error).splitlines()[0]}"
        ) from error
    distiller.check_first_batch(train)
    classes = {key: output.shape[-1] for key, output in by_output(outputs)}
    check_labels(validation[1], classes, distiller.loss)


def _check_objective(distiller: Distiller, batch: tuple, objective: str) -> None:
    """Refuses an objective that validation does not give."""
    names = distiller.evaluate(
        tf.data.Dataset.from_tensors(batch), verbose=0, return_dict=True
    )
    if objective.removeprefix("val_") not in names:
        known = ", ".join(f"'val_{name}'" for name in names)
        raise ValueError(
            f"the objective {objective!r} is not among what validation gives: {known}. "
            "Name one of these, or give the metric to compile() or metrics=[...]."
        )


def _as_config(thing: Any) -> Any:
    """Returns what tells two losses or optimizers apart, without the names that count."""
    config = keras.saving.serialize_keras_object(thing)
    if isinstance(config, dict) and isinstance(config.get("config"), dict):
        config["config"].pop("name", None)
    return json.loads(json.dumps(config, default=str))


def _run(
    job: Job,
    tuner: SearchTuner,
    role: str | None,
    count: int,
    look: Callable[[], None],
) -> None:
    """Runs the trials that are left, here or in workers."""
    oracle: SearchOracle = tuner.oracle
    if oracle.is_on_disk:
        oracle.reload(keep_running=role == _CHIEF, died=role is None and count == 1)
    oracle.save()
    metrics = [job.objective[0], "val_accuracy", "val_nll"]
    logs = os.path.join(job.directory, LOGS)
    tensorboard.write_space(logs, oracle.get_space(), list(dict.fromkeys(metrics)))
    look()
    if not oracle.is_over:
        if role == _CHIEF:
            host = os.environ["KERASTUNER_ORACLE_IP"]
            port = int(os.environ["KERASTUNER_ORACLE_PORT"])
            with processes.serving(oracle, host, port):
                processes.run_distant(oracle, look)
        elif count == 1:
            _run_here(tuner)
        else:
            sent = processes.payload(job.settings, job)
            with processes.serving(oracle, "127.0.0.1", 0) as port:
                folder = os.path.join(job.directory, _WORKERS)
                processes.Workers(sent, count, port, folder).run(oracle, look)
    oracle.save()
    if oracle.failure is not None:
        reason = failure_of(tuner, oracle.trials[oracle.failure])
        raise RuntimeError(
            f"all of the first {len(oracle.end_order)} trials failed; the first said: "
            f"{reason}"
        )


def _run_here(tuner: SearchTuner) -> None:
    oracle = tuner.oracle
    try:
        tuner.search()
    finally:
        # Nothing is running any more; by Ctrl-C a trial is left to be tried again.
        oracle.worker_is_gone(tuner.tuner_id, died=False)


def _work(job: Job) -> SearchResult:
    """Takes part in a search on many hosts, as a worker."""
    # The chief may still be writing the soft targets; it answers when they are there.
    tuner = job.tuner()
    tuner.oracle.get_space()
    job.hypermodel.loss = job.hypermodel.loss or _loss_of(job.data)
    found = run_directory.read_json(job.directory, _SETTINGS)
    if found is None:
        raise FileNotFoundError(
            f"the chief has its search in another directory than {job.directory!r}; all "
            "processes must share one."
        )
    settings = _settings(job, tuner.space)
    _refuse_differences(found, settings, "take part in the chief's search")
    tuner.search()
    oracle = job.oracle()
    oracle._set_project_dir(tuner.directory, tuner.project_name)
    oracle.read()
    return SearchResult(tuner, oracle, job.directory)


def _finish(tuner: SearchTuner, directory: str, retrain: bool) -> SearchResult:
    result = SearchResult(tuner, tuner.oracle, directory)
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
def _progress(
    tuner: SearchTuner, verbose: bool, on_trial_end: Callable | None
) -> Iterator[Callable[[], None]]:
    """Shows how many trials have ended, and the best so far."""
    oracle: SearchOracle = tuner.oracle
    ended: list[Trial] = []
    oracle.on_end = ended.append  # may be called by the thread that serves
    bar = tqdm(
        desc="search", total=oracle.max_trials, unit="trial", ncols=90, leave=False,
        delay=2.0, disable=not verbose,
    )  # fmt: skip

    def look() -> None:
        bar.n = len(oracle.end_order)
        if best := oracle.get_best_trials():
            bar.set_postfix_str(f"best {oracle.objective.name} {best[0].score:.4f}")
        bar.refresh()
        while ended:
            trial = ended.pop(0)
            if on_trial_end is not None:
                with oracle.mutex:
                    row = row_of(tuner, oracle, trial)
                on_trial_end(row)

    tuner.after_trial = look
    with bar:
        yield look
        look()
