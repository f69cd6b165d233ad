"""Cached answers in a batch: the logits they stand for, and which temperature they allow."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.logits_or_probabilities import kind_of_other, look_like_probabilities
from keras_distill.losses.features import FeatureLoss, is_on_features
from keras_distill.losses.matching import check_mean_at_one_temperature
from keras_distill.several_logits import MeanLogits, MemberLogits, one_mean
from keras_distill.soft_targets.distillation_inputs import DistillationInputs
from keras_distill.step_state import StepState
from keras_distill.structures import answer_for, by_output, has_several
from keras_distill.top_k import TopKLogits
from keras_distill.training_watch import NOT_FINITE


def cached_logits(cached: Any, state: StepState, temperature: Any) -> Any:
    """Returns the logits that cached answers stand for, by output.

    Args:
        cached: of a batch.
        state: of the distiller.
        temperature: float scalar > 0, that in force.
    """
    kinds, outputs = state.matching.kinds, state.student_outputs
    ours = {key: tuple(out.shape) for key, out in by_output(outputs)}
    means = {}
    for key, one in by_output(cached):
        theirs = one.logits if isinstance(one, MemberLogits) else one
        shape = tuple(getattr(theirs, "shape", ()))
        kind = kind_of_other(answer_for(kinds, key), ours.get(key, ()), shape)
        means[key] = one_mean(one, temperature, kind)
    if not has_several(cached):
        return means[None]
    return means if isinstance(cached, dict) else type(cached)(means.values())


def check_finite(outputs: Any, where: str) -> None:
    """Refuses concrete outputs with NaN or infinity."""
    for output in keras.tree.flatten(outputs):
        if not np.isfinite(ops.convert_to_numpy(ops.cast(output, "float32"))).all():
            raise ValueError(NOT_FINITE.format(where=where))


def check_cached_are_logits(
    cached: Any, from_logits: Any, kinds: Any = None, of_store: bool = False
) -> None:
    """Refuses cached soft targets that are not finite, or look like probabilities.

    Args:
        cached: of a batch.
        from_logits: what the user said of them.
        kinds: of the student's outputs.
        of_store: whether they are of a `SoftTargets` store, which has logits.
    """
    check_finite(cached, "batch 0")
    are_probabilities = all(
        not isinstance(part, TopKLogits)
        and answer_for(kinds, key) != "values"
        and look_like_probabilities(part, answer_for(kinds, key))
        for key, part in by_output(cached)
    )
    if from_logits is False and not are_probabilities:
        raise ValueError(
            "teacher_from_logits is False, but the cached soft targets are not "
            "probabilities; SoftTargets keeps logits whatever the teacher gives, so leave "
            "it out."
        )
    if from_logits is None and are_probabilities and not of_store:
        raise ValueError(
            "the cached soft targets of the first batch are >= 0 and sum to 1, or of yes/no "
            "questions from 0 to 1: they are probabilities, where logits are expected. Keep "
            "logits, or pass teacher_from_logits=False; or True, if they are logits."
        )


def check_cached_temperature(x: Any, state: StepState) -> None:
    """Refuses cached answers of several teachers at a temperature they are not for.

    Args:
        x: of a batch, or its specs.
        state: of the distiller.
    """
    if not isinstance(x, DistillationInputs):
        return
    for _, part in by_output(x.soft_targets):
        if isinstance(part, MemberLogits):
            check_mean_at_one_temperature(state.matching.terms)
        if isinstance(part, MeanLogits):
            for own in _temperatures(state):
                _check_mean(part, state.temperature.value if own is None else own)


def _temperatures(state: StepState) -> list[float | None]:
    """Returns the temperatures of all soft losses; `None` for the distiller's."""
    terms = [t for t in state.matching.terms if not is_on_features(t)]
    return [getattr(term, "temperature", None) for term in terms]


def hold_to_temperature(cached: Any, state: StepState) -> None:
    """Holds the temperature, when it is set later, to that of a cached mean."""
    temperature = state.temperature
    for _, part in by_output(cached):
        if isinstance(part, MeanLogits) and None in _temperatures(state):
            before = temperature.further_check

            def check(number: float, part: Any = part, before: Any = before) -> None:
                before(number)
                _check_mean(part, number)

            temperature.check_also(check)
            return


def _check_mean(mean: Any, temperature: Any) -> None:
    of = mean.temperature
    is_number = isinstance(temperature, (int, float))
    if not is_number or not math.isclose(temperature, of, rel_tol=1e-6):
        raise ValueError(
            f"these soft targets are the mean of several teachers' probabilities at T = {of:g}, "
            f"which is no mean at another; the temperature is {temperature!r}. Train at "
            f"temperature={of:g}; or write them without temperature=, which keeps each "
            "teacher's logits for any temperature."
        )


def shape_of_logits(logits: Any) -> tuple:
    """Returns the shape of a batch of logits or `TopKLogits`, its first axis free."""
    if not isinstance(logits, TopKLogits):
        return (None, *logits.shape[1:])
    classes = logits.k
    if logits.has_rest:  # at b = 0 it is the log of how many there are
        classes += round(float(np.exp(np.asarray(logits.rest).flat[0])))
    return (None, *logits.packed.shape[1:-1], classes)


def check_top_k_can_be_matched(cached: Any, terms: list, temperature: Any) -> None:
    """Refuses `TopKLogits` for a distillation loss or a temperature they are not made for."""
    top_k = [part for _, part in by_output(cached) if isinstance(part, TopKLogits)]
    if not top_k:
        return
    for term in terms:
        if isinstance(term, FeatureLoss) and term.teacher_layer_name is not None:
            continue
        if not getattr(term, "takes_top_k", False):
            raise ValueError(
                f"{type(term).__name__} needs all of the teacher's logits, and these soft "
                "targets were cached with top_k; write them without it, or use "
                "SoftTargetLoss."
            )
    if not any(part.has_rest for part in top_k):
        return
    for term in terms:
        if getattr(term, "temperature", None) is not None:
            check_hot_enough_for_top_k(term.temperature)
    temperature.check_also(check_hot_enough_for_top_k)


def check_hot_enough_for_top_k(temperature: float) -> None:
    """Refuses a temperature at which `TopKLogits` do not know the mass of the rest.

    Far above 1000, float32 loses the others beside the rest's.
    """
    if not 1.0 <= temperature <= 1000.0:
        limit = "at least 1" if temperature < 1.0 else "at most 1000"
        raise ValueError(
            "soft targets cached with top_k know the mass of the other classes for "
            f"temperatures of {limit}, got {temperature}; choose another, or write them "
            "without top_k."
        )
