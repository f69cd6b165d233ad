"""Keras's own distillation losses: how they divide, and what may act on them."""

from __future__ import annotations

from typing import Any

import keras


def check_splits_by_example(term: Any) -> None:
    """Refuses weights and masks for a loss that says only one number for a batch."""
    splits = (
        keras.distillation.LogitsDistillation,
        keras.distillation.FeatureDistillation,
    )
    if not isinstance(term, splits):
        raise ValueError(
            f"{type(term).__name__} says one number for a whole batch, so sample weights "
            "and masks cannot act on it; subclass keras_distill.DistillationLoss and write "
            "loss_per_example."
        )


def divides_by_replicas(term: Any) -> bool:
    """Tells whether one of Keras's distillation losses divides by the number of replicas."""
    losses = [part for part in keras.tree.flatten(getattr(term, "loss", None)) if part]
    kinds = {isinstance(part, keras.losses.Loss) for part in losses}
    if len(kinds) > 1:
        raise ValueError(
            f"{type(term).__name__} mixes loss objects with names or functions, which "
            "scale differently under tf.distribute; give loss objects only."
        )
    return kinds == {True}
