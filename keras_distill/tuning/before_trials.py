"""What a search looks at before its first trial: arguments, data, student, fixed points."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from typing import Any

import keras
import keras_tuner
import tensorflow as tf

from keras_distill import processes
from keras_distill.arguments import check_choice, check_str
from keras_distill.distiller import Distiller
from keras_distill.faults import check_labels
from keras_distill.run_directory import architecture_fingerprint
from keras_distill.soft_targets.settings import Settings
from keras_distill.structures import by_output
from keras_distill.tuning.by_kind import DIRECTIONS
from keras_distill.tuning.data import EMPTY_VALIDATION, check_sendable, fingerprint
from keras_distill.tuning.oracles import ORACLES
from keras_distill.tuning.trials import Search

REMEDY = "With n_jobs > 1 let functions make it, as with a function that returns the dataset."
_OBJECTIVES = {name: (f"val_{name}", way) for name, way in DIRECTIONS.items()}
_KNOWN = " or ".join(f'"{name}"' for name in _OBJECTIVES)
#: What a user would try without a search.
FIXED_POINTS = [
    {"temperature": 4.0, "alpha": 1.0},
    {"temperature": 4.0, "alpha": 0.1},
]


def check_arguments(
    algorithm: Any, teacher: Any, soft_targets: Any, resume: bool, overwrite: bool
) -> None:
    """Refuses arguments that exclude each other, or that another tool is for."""
    if "KERASTUNER_ORACLE_IP" in os.environ:
        raise ValueError(
            "KERASTUNER_ORACLE_IP is set, but search has no chief and workers of its own. "
            "For many hosts make a Dask or Ray cluster and call search under joblib."
            'parallel_config("dask") or ("ray"); or give a DistillationHyperModel to one '
            "of KerasTuner's own tuners. Else unset the variable."
        )
    if not isinstance(algorithm, str) or algorithm not in ORACLES:
        raise ValueError(
            f"algorithm must be one of {', '.join(map(repr, ORACLES))}, got "
            f"{algorithm!r}. For KerasTuner's others, give a DistillationHyperModel to "
            "keras_tuner.GridSearch or keras_tuner.Hyperband."
        )
    if (teacher is None) == (soft_targets is None):
        both = "both" if teacher is not None else "neither"
        raise ValueError(
            f"give either a teacher or its soft_targets, got {both}; what a teacher says "
            "is written down once and shared by all trials."
        )
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other; say one of them.")


def check_processes(given: Search, seats: processes.Seats, threads: int | None) -> None:
    """Refuses what cannot be sent, before anything is written."""
    if seats.is_here:
        if threads is not None:
            raise ValueError(
                "threads is for other processes; with n_jobs=1 trials run in this one, "
                "whose threads tf.config.threading sets."
            )
        return
    check_sendable(given.data.train, given.data.validation)
    strategy = given.distribution_strategy
    if strategy is not None and not callable(strategy):
        raise TypeError(
            "distribution_strategy cannot be sent to other processes; with n_jobs > 1 "
            "give a function without arguments that makes it."
        )
    processes.check_can_be_sent(given, REMEDY)
    processes.grow_gpu_memory()  # or this process leaves none for the others


def objective_of(objective: Any) -> tuple[str, str]:
    """Returns the name and the direction of an objective; refuses what says nothing."""
    if isinstance(objective, keras_tuner.Objective):
        name = check_str("objective.name", objective.name)
        direction = check_choice(
            "objective.direction", objective.direction, ["min", "max"]
        )
    elif isinstance(objective, str):
        name, direction = objective, ""
        short = objective.removeprefix("val_")
        if short in _OBJECTIVES:
            return _OBJECTIVES[short]
    else:
        raise TypeError(
            f"objective must be {_KNOWN}, a keras_tuner.Objective, or None to choose by the "
            f"kind of output; got {objective!r}."
        )
    if name.removeprefix("val_") in ("loss", "hard_loss", "soft_loss"):
        raise ValueError(
            f"objective {name!r} cannot be searched for: the loss means something else at "
            f"each temperature and alpha. Choose {_KNOWN}, which are measured on validation "
            "data at T = 1."
        )
    if not direction:
        raise ValueError(
            f"objective must be {_KNOWN}, got {name!r}; for a metric of your "
            f'own say keras_tuner.Objective("val_{name.removeprefix("val_")}", "max").'
        )
    if not name.startswith("val_"):
        raise ValueError(
            f"objective {name!r} is measured on the training data; choose "
            f"'val_{name}', which is measured on validation data."
        )
    return name, direction


def settled(
    given: Search, objective: tuple[str, str] | None, distiller: Distiller
) -> Search:
    """Returns the search with what the data says: kinds of outputs, losses, objective.

    Raises:
        ValueError: if student, soft targets and data do not go together.
    """
    data, hypermodel = given.data, given.hypermodel
    data.check_labelled()
    if next(iter(data.validation_batches.take(1)), None) is None:
        raise ValueError(EMPTY_VALIDATION)  # its length could not be known
    fixed_points(given)
    train = data.first_training_batch(given.batch_size)
    seen = [train]
    data.check_training_labels(seen.append)
    _check_takes(distiller, train)
    hypermodel.settle(distiller, train, seen[-1][1])
    if objective is None:
        objective = _OBJECTIVES[hypermodel.objective(distiller)]
    return dataclasses.replace(given, objective=objective)


def settings_of(given: Search, space: keras_tuner.HyperParameters) -> dict[str, Any]:
    """Returns what all trials of a search have in common, after a look at the data."""
    data = given.data
    batches = data.validation_batches
    distiller = given.hypermodel.build(space.copy())
    first = next(iter(batches.take(1)))
    train = data.first_training_batch(given.batch_size)
    outputs = _check_takes(distiller, train)
    distiller.check_first_batch(train)
    shapes = {key: tuple(output.shape) for key, output in by_output(outputs)}

    def check(batch: tuple, where: str = "the validation data") -> None:
        weights = batch[2] if len(batch) > 2 else None
        check_labels(batch[1], shapes, distiller.loss, weights, where)

    check(first)
    data.check_training_labels(functools.partial(check, where="train"))
    _check_objective(distiller, first, given.objective[0])
    cached = data.store.manifest["layers"]
    missing = [name for name in distiller.teacher_layer_names if name not in cached]
    if missing:
        raise ValueError(
            f"the distillation loss matches the teacher's layer {missing[0]!r}, which the "
            f"soft targets do not hold; write them with layers={[*cached, *missing]}, or "
            "give search the teacher in their place."
        )
    return {
        "hyperparameters": space.get_config()["space"],
        "student": architecture_fingerprint(distiller.student),
        "loss": _as_config(distiller.loss),
        "optimizer": _as_config(distiller.optimizer),
        "distillation_loss": _as_config(distiller.distillation_loss),
        "features": _as_config(distiller.features),
        "soft_targets": {
            key: data.store.manifest[key]
            for key in ("teacher", "examples", "top_k", "views", "augment", "seed")
        },
        "labels": data.labels_fingerprint(),
        "validation": fingerprint(batches, check),
        "dtype_policy": keras.config.dtype_policy().name,
        **given.settings,
    }


def fixed_points(given: Search) -> list[dict[str, float]]:
    """Returns what is tried first; at its temperature for a cached mean of teachers.

    Raises:
        ValueError: if others are to be searched.
    """
    of = Settings.of_manifest(given.data.store.manifest).mean_temperature
    asked = given.hypermodel.searched_temperature
    if asked is None:
        return [{"alpha": point["alpha"]} for point in FIXED_POINTS]
    if of is None:
        return FIXED_POINTS
    values = asked[:2] if isinstance(asked, tuple) else asked
    if any(one != of for one in keras.tree.flatten(values)):
        raise ValueError(
            f"these soft targets are the mean of several teachers' probabilities at T = {of:g}, "
            f"which is no mean at another; got temperature={asked!r}. Pass "
            f"temperature={of:g}; or write them without temperature=, which keeps each "
            "teacher's logits for any temperature."
        )
    return [{**point, "temperature": of} for point in FIXED_POINTS]


def _check_takes(distiller: Distiller, train: tuple) -> Any:
    """Refuses data that the student does not take; returns its outputs."""
    shapes = ", ".join(
        str(tuple(part.shape)) for part in tf.nest.flatten(train[0].inputs)
    )
    try:
        return distiller(train[0].inputs)
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise ValueError(
            "the student that build_student returns does not take batches of shape "
            f"{shapes}: {str(error).splitlines()[0]}"
        ) from error


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
