"""Distillation losses by name, as Keras takes its losses."""

from __future__ import annotations

import difflib
import re
from typing import Any

import keras

from keras_distill.losses.attention import AttentionTransferLoss
from keras_distill.losses.base import DistillationLoss
from keras_distill.losses.decoupled import DecoupledLoss
from keras_distill.losses.divergences import JensenShannonLoss, ReverseKLLoss
from keras_distill.losses.features import FeatureLoss
from keras_distill.losses.kl import SoftTargetLoss
from keras_distill.losses.logits import LogitLoss
from keras_distill.losses.normalized import NormalizedFeatureLoss
from keras_distill.losses.relational import RelationalLoss
from keras_distill.losses.similarity import RelationLoss, SimilarityLoss
from keras_distill.losses.standardized import LogitStandardizedLoss
from keras_distill.losses.values import CosineLoss, SquaredErrorLoss
from keras_distill.structures import by_output, each_output

#: What compares outputs, and needs no layers.
ON_OUTPUTS: tuple[type[DistillationLoss], ...] = (
    SoftTargetLoss,
    LogitLoss,
    DecoupledLoss,
    RelationalLoss,
    LogitStandardizedLoss,
    ReverseKLLoss,
    JensenShannonLoss,
    SquaredErrorLoss,
    CosineLoss,
)

#: What compares features, of layers that it must be given.
ON_FEATURES: tuple[type[DistillationLoss], ...] = (
    FeatureLoss,
    AttentionTransferLoss,
    SimilarityLoss,
    RelationLoss,
    NormalizedFeatureLoss,
)


def _snake(name: str) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return words.lower()


def loss_named(name: str) -> DistillationLoss:
    """Returns a distillation loss with its defaults, as "decoupled_loss" or "DecoupledLoss".

    Raises:
        ValueError: if there is none of that name, naming the closest; or if it compares
            features, which a name does not say.
    """
    for of in ON_OUTPUTS:
        if name in (of.__name__, _snake(of.__name__)):
            return of()
    for of in ON_FEATURES:
        if name in (of.__name__, _snake(of.__name__)):
            raise ValueError(
                f"{of.__name__} compares features, and its name does not say which; give "
                f'the layers: {of.__name__}("student_layer", "teacher_layer").'
            )
    known = [_snake(of.__name__) for of in ON_OUTPUTS]
    closest = difflib.get_close_matches(_snake(name), known, 3) or known
    raise ValueError(
        f"there is no distillation loss {name!r}; use {', '.join(map(repr, closest))}, or "
        "give an object, such as keras_distill.SoftTargetLoss()."
    )


def check_distillation_loss(distillation_loss: Any) -> Any:
    """Returns a distillation loss or a structure of them, with names turned into losses.

    Raises:
        TypeError: if one is neither a distillation loss nor a name.
        ValueError: if there is none of that name.
    """

    def checked(part: Any) -> Any:
        if isinstance(part, str):
            return loss_named(part)
        if part is not None and not isinstance(
            part, keras.distillation.DistillationLoss
        ):
            raise TypeError(
                "distillation_loss must be a distillation loss, such as "
                f"keras_distill.SoftTargetLoss(), or one per output; got {part!r}."
            )
        return part

    if not any(isinstance(part, str) for _, part in by_output(distillation_loss)):
        for _, part in by_output(distillation_loss):
            checked(part)
        return distillation_loss
    return each_output(checked, distillation_loss)
