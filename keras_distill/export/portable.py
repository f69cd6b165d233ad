"""Models in the form that small runtimes run: no loops, no routing, no half precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from keras_distill.keras_compat import own_variables
from keras_distill.specialists.ensemble import SpecialistEnsemble

_HALF = ("float16", "bfloat16")


@contextlib.contextmanager
def portable(
    models: Iterable[Any], unrolls: bool, routed: bool = False
) -> Iterator[bool]:
    """Yields whether models that are traced meanwhile are so in another form, of same answers.

    An RNN layer is unrolled, a `SpecialistEnsemble` runs all its specialists, and what
    computes in half precision does it in float32. Layers of nested and subclassed models too,
    which nobody can clone, so it is said to the layers themselves, for a while.

    Args:
        models: that are traced; what is no Keras layer is left as it is.
        unrolls: whether RNN layers are unrolled; if not, they only leave cuDNN.
        routed: whether a `SpecialistEnsemble` is left as it is.
    """
    said: list[tuple[Any, str, Any]] = []
    for layer in _layers(models):
        if isinstance(layer, keras.layers.RNN) and not layer.unroll:
            said.append((layer, "unroll", unrolls))
        if getattr(layer, "use_cudnn", None):
            said.append((layer, "use_cudnn", False))
        if isinstance(layer, SpecialistEnsemble) and not routed:
            said.append((layer, "routed", False))
        if _is_half(layer):
            said.append((layer, "dtype_policy", keras.dtype_policies.get("float32")))
    before = [(layer, name, getattr(layer, name)) for layer, name, _ in said]
    backwards = [layer for layer, name, _ in said if name == "unroll" and unrolls]
    backwards = [layer for layer in backwards if _is_masked_wrongly(layer)]
    try:
        for layer in backwards:
            said.append((layer, "zero_output_for_mask", False))
            before.append((layer, "zero_output_for_mask", True))
            layer.inner_loop = _masked(layer.inner_loop)
        for layer, name, value in said:
            setattr(layer, name, value)
        yield any(getattr(layer, name) != value for layer, name, value in before)
    finally:
        for layer, name, value in before:
            setattr(layer, name, value)
        for layer in backwards:
            vars(layer).pop("inner_loop", None)


def _is_masked_wrongly(layer: keras.layers.RNN) -> bool:
    """Tells whether Keras, unrolling, masks the steps of a layer in the wrong order.

    Its loop turns the mask of a layer that goes backwards, what it unrolls does not: the way
    back of a `Bidirectional`, of padded sequences.
    """
    zeroes = getattr(layer, "zero_output_for_mask", False)
    return layer.go_backwards and layer.return_sequences and zeroes


def _masked(inner_loop: Callable) -> Callable:
    """Returns the loop of a layer that goes backwards, its masked steps zero."""

    def loop(sequences: Any, initial_state: Any, mask: Any, **given: Any) -> Any:
        last, outputs, states = inner_loop(sequences, initial_state, mask, **given)
        if mask is not None:
            is_seen = keras.ops.flip(mask, axis=1)
            for _ in range(len(outputs.shape) - 2):
                is_seen = keras.ops.expand_dims(is_seen, -1)
            outputs = keras.ops.where(is_seen, outputs, keras.ops.zeros_like(outputs))
        return last, outputs, states

    return loop


def computes_in_half(models: Iterable[Any]) -> bool:
    """Tells whether a layer of the models computes in half precision."""
    return any(map(_is_half, _layers(models)))


def _layers(models: Iterable[Any]) -> list[keras.Layer]:
    roots = [model for model in models if isinstance(model, keras.Layer)]
    return [layer for root in roots for layer, _ in own_variables(root)]


def _is_half(layer: keras.Layer) -> bool:
    policy = layer.dtype_policy
    # A map has the policies of layers that were loaded quantized.
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        return False
    # Keras casts weights to what is computed in, but none of half precision to float32.
    return policy.compute_dtype in _HALF and policy.variable_dtype not in _HALF
