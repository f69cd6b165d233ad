"""What LiteRT computes in integers, and how: the kinds of calls, by what their output needs."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_distill.quantization.graph import Call

_LAYERS = keras.layers
#: Pass on numbers of their input: what is on a grid stays on it.
_PASSING = (
    _LAYERS.Dropout, _LAYERS.SpatialDropout2D, _LAYERS.Identity, _LAYERS.ActivityRegularization,
    _LAYERS.MaxPooling2D, _LAYERS.GlobalMaxPooling2D, _LAYERS.Flatten, _LAYERS.Reshape,
    _LAYERS.ZeroPadding2D, _LAYERS.Cropping2D, _LAYERS.Permute,
    # Of training alone.
    _LAYERS.GaussianNoise, _LAYERS.GaussianDropout, _LAYERS.RandomFlip, _LAYERS.RandomRotation,
    _LAYERS.RandomZoom, _LAYERS.RandomTranslation, _LAYERS.RandomContrast,
    _LAYERS.RandomBrightness,
)  # fmt: skip
#: Give new numbers, for which the file has the scale of their input.
_AVERAGING = (_LAYERS.AveragePooling2D,)
#: Give new numbers, for which there is a scale of their own.
_RANGED = (
    _LAYERS.Add, _LAYERS.Multiply, _LAYERS.GlobalAveragePooling2D,
)  # fmt: skip
#: Operations of `keras.ops` that are the same, by class and number of tensors.
_RANGED_OPERATIONS = {("Add", 2), ("Multiply", 2)}

#: Of which LiteRT has inputs and output on one scale.
OF_ONE_SCALE = ("Maximum", "Minimum")

#: Of a softmax or sigmoid; the converter finds its range by itself, where it finds any.
PROBABILITIES = "float in training; a file of int8 weights rounds it to steps of 1/256"

#: A layer of Keras's, under what `activation` says, has no operation of its own for these.
FUSED = ("linear", "relu", "relu6")


def activation_of(operation: Any) -> str | None:
    """Returns "relu", "relu6" or "hard_silu" for a layer or operation that is this alone."""
    if type(operation) is _LAYERS.ReLU:
        is_plain = not operation.negative_slope and not operation.threshold
        names = {None: "relu", 6.0: "relu6"}
        return names.get(operation.max_value) if is_plain else None
    if type(operation) is _LAYERS.Activation:
        name = name_of(operation.activation)
        return name if name in ("relu", "relu6", "hard_silu", "linear") else None
    if isinstance(operation, keras.Layer):
        return None
    return {"Relu": "relu", "Relu6": "relu6", "HardSilu": "hard_silu"}.get(
        type(operation).__name__
    )


#: What computes an activation, whatever it is called by.
_FUNCTIONS = {
    "linear": (keras.activations.linear,),
    "relu": (keras.activations.relu, keras.ops.relu, tf.nn.relu),
    "relu6": (keras.activations.relu6, keras.ops.relu6, tf.nn.relu6),
    "hard_silu": (keras.activations.hard_silu, keras.ops.hard_silu),
}


def name_of(activation: Any) -> str | None:
    """Returns the name of an activation, a function or a layer; `None` for another."""
    if activation is None:
        return "linear"
    if isinstance(activation, keras.Layer):
        return activation_of(activation)
    for name, functions in _FUNCTIONS.items():
        if any(activation is one for one in functions):
            return name
    return None


def kind_of(call: Call) -> tuple[str, str]:
    """Returns how a call is quantised, and why it is not.

    Returns:
        "weights", "separable", "activation", "passing", "averaging", "ranged", "joining" or "float"; and
        for the last a reason, else "".
    """
    operation = call.operation
    if type(operation) in (_LAYERS.Conv2D, _LAYERS.DepthwiseConv2D, _LAYERS.Dense):
        reason = _why_not(operation)
        return ("float", reason) if reason else ("weights", "")
    if type(operation) is _LAYERS.SeparableConv2D:
        reason = _why_not(operation)
        return ("float", reason) if reason else ("separable", "")
    name = activation_of(operation)
    if name is not None:
        return ("passing" if name == "linear" else "activation"), ""
    if type(operation) in _PASSING:
        is_first = getattr(operation, "data_format", None) == "channels_first"
        return ("float", _CHANNELS_FIRST) if is_first else ("passing", "")
    if type(operation) is _LAYERS.Concatenate:
        return "joining", ""
    if type(operation) in (*_AVERAGING, *_RANGED):
        if getattr(operation, "data_format", None) == "channels_first":
            return "float", _CHANNELS_FIRST
        return "averaging" if type(operation) in _AVERAGING else "ranged", ""
    if (type(operation).__name__, len(set(call.inputs))) in _RANGED_OPERATIONS and not (
        isinstance(operation, keras.Layer)
    ):
        return "ranged", ""
    if isinstance(operation, keras.layers.BatchNormalization):
        reason = (
            "no convolution or dense layer of its own just before it to be folded into"
        )
        return "float", reason
    return "float", why_float(operation)


def why_float(operation: Any) -> str:
    """Returns why a kind of operation is not computed in integers."""
    activation = getattr(operation, "activation", None)
    probabilities = (keras.activations.softmax, keras.activations.sigmoid)
    if type(operation).__name__ in ("Softmax", "Sigmoid") or (
        type(operation) is _LAYERS.Activation and activation in probabilities
    ):
        return PROBABILITIES
    name = type(operation).__name__
    if type(operation) is _LAYERS.Activation:
        name = getattr(activation, "__name__", type(activation).__name__)
    return f"{name} is not computed in integers here"


_CHANNELS_FIRST = "its data_format is channels_first"


def _why_not(layer: Any) -> str:
    if getattr(layer, "data_format", None) == "channels_first":
        return _CHANNELS_FIRST
    if getattr(layer, "groups", 1) != 1:
        return f"it has {layer.groups} groups"
    if any(rate != 1 for rate in getattr(layer, "dilation_rate", ())):
        return "it is dilated"
    strides = getattr(layer, "strides", ())
    if not isinstance(layer, keras.layers.Conv2D) and len(set(strides)) > 1:
        return "its strides differ by axis"
    if getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", 0):
        return "its kernel is quantised or has LoRA already"
    return ""


def split(layer: Any) -> tuple[Any, Any]:
    """Returns a separable convolution as the two that it is, with its weights."""
    channels = layer.depthwise_kernel.shape[2]
    depthwise = keras.layers.DepthwiseConv2D(
        layer.kernel_size,
        layer.strides,
        layer.padding,
        layer.depth_multiplier,
        use_bias=False,
        name=f"{layer.name}_depthwise",
        dtype="float32",
    )
    pointwise = keras.layers.Conv2D(
        layer.filters,
        1,
        use_bias=layer.use_bias,
        activation=layer.activation,
        name=layer.name,
        dtype="float32",
    )
    depthwise.build((None, None, None, channels))
    pointwise.build((None, None, None, channels * layer.depth_multiplier))
    depthwise.kernel.assign(layer.depthwise_kernel)
    pointwise.kernel.assign(layer.pointwise_kernel)
    if layer.use_bias:
        pointwise.bias.assign(layer.bias)
    return depthwise, pointwise


def can_be_folded(norm: Any, rank: int) -> bool:
    """Tells whether a layer is batch normalisation over the last axis."""
    is_norm = type(norm) is keras.layers.BatchNormalization
    return is_norm and norm.axis in (-1, rank - 1)
