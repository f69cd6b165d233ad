"""Batch normalisation taken into the weights of the layer before it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def fold(layer: keras.Layer, norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernel and bias of a layer with the normalisation after it, at inference.

        kernel' = kernel * gamma / sqrt(variance + epsilon)
        bias'   = beta + (bias - mean) * gamma / sqrt(variance + epsilon)

    Args:
        layer: `Conv2D`, `DepthwiseConv2D` or `Dense`, linear.
        norm: `keras.layers.BatchNormalization` over the channels.
    """
    # In float64: what is folded rounds once.
    kernel = np.asarray(layer.kernel, "float64")
    mean = np.asarray(norm.moving_mean, "float64")
    factor = 1 / np.sqrt(np.asarray(norm.moving_variance, "float64") + norm.epsilon)
    if norm.gamma is not None:
        factor = factor * np.asarray(norm.gamma)
    bias = 0.0 if layer.bias is None else np.asarray(layer.bias, "float64")
    shift = (bias - mean) * factor
    if norm.beta is not None:
        shift = shift + np.asarray(norm.beta)
    # (height, width, in, multiplier) of a depthwise one has its channels in two axes.
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    by_channel = factor.reshape(kernel.shape[2:]) if is_depthwise else factor
    return (kernel * by_channel).astype("float32"), shift.astype("float32")
