"""Models as runtimes without TensorFlow's loops and shapes of values can run them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from keras_distill.keras_compat import own_variables
from keras_distill.specialists.ensemble import SpecialistEnsemble


@contextlib.contextmanager
def without_loops(models: Iterable[Any], unrolls: bool) -> Iterator[bool]:
    """Yields whether models that are traced meanwhile are so in another way, of same answers.

    An RNN layer is unrolled, and a `SpecialistEnsemble` runs all its specialists. Layers of
    nested and subclassed models too, which have no copies, so it is said to them for a while.

    Args:
        models: that are traced; what is no Keras layer is left as it is.
        unrolls: whether RNN layers are unrolled; if not, they only leave cuDNN.
    """
    said: list[tuple[Any, str, Any]] = []
    roots = [model for model in models if isinstance(model, keras.Layer)]
    for layer in [layer for root in roots for layer, _ in own_variables(root)]:
        if isinstance(layer, keras.layers.RNN) and not layer.unroll:
            said.append((layer, "unroll", unrolls))
        if getattr(layer, "use_cudnn", None):
            said.append((layer, "use_cudnn", False))
        if isinstance(layer, SpecialistEnsemble):
            said.append((layer, "routed", False))
    before = [(layer, name, getattr(layer, name)) for layer, name, _ in said]
    try:
        for layer, name, value in said:
            setattr(layer, name, value)
        yield any(getattr(layer, name) != value for layer, name, value in before)
    finally:
        for layer, name, value in before:
            setattr(layer, name, value)
