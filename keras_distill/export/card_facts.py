"""What a model card says, as JSON has it: of what trained a model, and of how it is told."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_distill.arguments import check_each, check_int, shown
from keras_distill.distiller import Distiller
from keras_distill.figures import Comparison, Evaluation
from keras_distill.run_directory import name_of, teacher_fingerprint
from keras_distill.soft_targets.store import SoftTargets
from keras_distill.teachers import as_teacher

# What trained a model ----------------------------------------------------------------


def of_distiller(distiller: Distiller) -> dict[str, Any]:
    """Returns the teacher and the settings of a distiller, as they are now."""
    given, alpha = distiller.teacher, distiller.alpha
    teacher = None if given is None else as_teacher(given)
    # Without a teacher and its loss, T is a number that nothing uses.
    is_taught = teacher is not None or alpha != 1.0
    epochs = getattr(getattr(distiller, "history", None), "epoch", None)
    optimizer = getattr(distiller, "optimizer", None)
    soft = {
        "temperature": described(distiller.temperature),
        "distillation_loss": described(distiller.distillation_loss),
    }
    hard = {
        "alpha": described(alpha),
        "loss": described(getattr(distiller, "loss", None)),
        "optimizer": described(optimizer),
        "steps": None if optimizer is None else int(optimizer.iterations),
        "epochs_of_last_fit": len(epochs) if epochs else None,
    }
    return {
        "teacher": None if teacher is None else of_teacher(teacher),
        "distillation": {**(soft if is_taught else {}), **hard},
    }


def of_search(result: Any) -> dict[str, Any]:
    """Returns the teacher, the settings and the best trial of a `SearchResult`."""
    given, is_again = result.tuner.given, result.is_retrained
    found = of_distiller(result.distiller)
    # Of a distiller that was built to hold the best student, not to train it.
    for name in ("steps", "epochs_of_last_fit"):
        found["distillation"].pop(name)
    first, executions = given.seed, given.executions_per_trial
    best_epoch = result.trials.loc[result.best_trial].get("best_epoch")
    is_taught = found["distillation"]["alpha"] != 1.0
    return {
        **found,
        "teacher": given.data.store.manifest["teacher"] if is_taught else None,
        "search": {
            "objective": result.objective,
            "score": float(result.score),
            "trials": len(result.trials),
            "algorithm": given.algorithm,
            "values": described(result.best_values),
            "best_epoch": None if is_again else described(best_epoch),
            "trained_again": is_again or None,
        },
        "seeds": [first + executions]
        if is_again
        else list(range(first, first + executions)),
    }


def of_teacher(teacher: Any) -> dict[str, Any]:
    """Returns what identifies a teacher: what may teach, `SoftTargets`, or a dict."""
    if isinstance(teacher, Mapping):
        return described(teacher)
    if isinstance(teacher, SoftTargets):
        return teacher.manifest["teacher"]
    if isinstance(teacher, Distiller):
        teacher = teacher.student
    bound = as_teacher(teacher)
    found = teacher_fingerprint(bound)
    if bound.model is None:
        return found
    return {"name": bound.model.name, "parameters": bound.parameters, **found}


def weights_of(model: keras.Model) -> str:
    """Returns the fingerprint of a model's weights."""
    return teacher_fingerprint(model)["weights"]


# How it is written -------------------------------------------------------------------


def described(thing: Any) -> Any:
    """Returns what names a number, loss, optimizer or schedule, as JSON has it."""
    if thing is None or isinstance(thing, (bool, str, int)):
        return thing
    if isinstance(thing, (float, np.generic, np.ndarray)):
        return np.asarray(thing).tolist()
    if isinstance(thing, Mapping):
        return {str(key): described(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [described(value) for value in thing]
    if isinstance(thing, type) or not hasattr(thing, "get_config"):
        return name_of(thing)
    config = json.loads(json.dumps(thing.get_config(), default=str))
    return {"class": type(thing).__name__, **known(config)}


def known(content: Any) -> Any:
    """Returns a dict without what is `None`, or an empty dict or list."""
    if not isinstance(content, dict):
        return content
    parts = {key: known(value) for key, value in content.items()}
    return {k: v for k, v in parts.items() if v is not None and v not in ({}, [])}


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns sections, each with what one says above what the other says."""
    found = dict(known(dict(under)))
    for key, value in over.items():
        joins = isinstance(value, dict) and key in ("distillation", "data")
        found[key] = {**found.get(key, {}), **value} if joins else value
    return found


def table(content: Mapping[str, Any]) -> str:
    """Returns names and values of a section as a table in Markdown."""
    rows = (f"| {cell(name)} | {cell(value)} |" for name, value in _flat(content))
    return "\n".join(["| | |", "|---|---|", *rows])


def _flat(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        # Below they are names of the user's.
        name = f"{above} / {key}" if above else key.replace("_", " ")
        if isinstance(value, dict):
            yield from _flat(value, name)
        else:
            yield name, value


def cell(value: Any) -> str:
    """Returns a value as it stands in a table: on one line, numbers to six digits."""
    if isinstance(value, list):
        return ", ".join(map(cell, value))
    if isinstance(value, dict):
        return "; ".join(f"{key} {cell(one)}" for key, one in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split()).replace("|", "\\|")


# Checks ------------------------------------------------------------------------------


def check_evaluation(value: Any) -> Comparison:
    """Returns figures as a comparison.

    Raises:
        TypeError: if they are none.
    """
    if isinstance(value, Evaluation):
        return Comparison((value,))
    if not isinstance(value, Comparison):
        raise TypeError(
            f"evaluation must be what compare or evaluate return, got {shown(value)}."
        )
    return value


def check_loss(name: str, value: Any) -> Any:
    """Returns a loss, or those of several outputs, as JSON has it.

    Raises:
        ValueError: if it is neither a name nor a loss.
    """
    for one in keras.tree.flatten(value):
        if not (one is None or isinstance(one, str) or callable(one)):
            raise ValueError(
                f"{name} must be the name of a loss, a loss, or a dict or list of them, got "
                f"{shown(value)}."
            )
    return described(value)


def check_seeds(name: str, value: Any) -> list[int]:
    """Returns one seed or several as a list.

    Raises:
        ValueError: if they are no whole numbers.
    """
    most = 2**63 - 1
    if isinstance(value, numbers.Number):
        return [check_int(name, value, 0, most)]
    return check_each(
        name, value, lambda n, one: check_int(n, one, 0, most), "whole numbers", 1
    )


def check_latency(name: str, value: Any) -> dict[str, Any]:
    """Returns measured times by what was measured.

    Raises:
        ValueError: if they are not finite numbers or str by name.
    """
    is_right = isinstance(value, Mapping) and all(
        isinstance(key, str)
        and (
            isinstance(one, str)
            or (isinstance(one, numbers.Real) and math.isfinite(one))
        )
        for key, one in value.items()
    )
    if not is_right:
        raise ValueError(
            f"{name} must be a dict of finite numbers or str, by what was measured, got "
            f"{shown(value)}."
        )
    return described(value)
