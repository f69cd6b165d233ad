"""What the last layers of a model say of its outputs, and what a loss says of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_distill.keras_compat import made_by


class LastLayer(NamedTuple):
    """What the layer that decides an output says of it.

    Attributes:
        kind: "softmax" or "sigmoid" for such an activation; "values" for vectors of unit
            length, unless a loss says otherwise; `None` for any other.
        is_logits: `True` for a linear layer or log-probabilities, `False` after a softmax or
            sigmoid, `None` where the layer does not say.
        name: of the layer.
        is_plain: whether no user can say otherwise: it is Keras's own, over the last axis.
        axes: how many the output has, with the batch's.
        axis: that a softmax is over; -1 for the last.
    """

    kind: str | None
    is_logits: bool | None
    name: str
    is_plain: bool
    axes: int = 0
    axis: Any = -1


# Layers that pass on what they are given, so that the one before them decides.
_PASSES_ON = (
    keras.layers.Dropout,
    keras.layers.Identity,
    keras.layers.Reshape,
    keras.layers.Flatten,
    keras.layers.UpSampling2D,
    keras.layers.Cropping2D,
)


_SOFTMAX = (keras.activations.softmax, keras.ops.softmax, tf.nn.softmax)


_SIGMOID = (keras.activations.sigmoid, keras.ops.sigmoid, tf.nn.sigmoid)


_LOG_SOFTMAX = (
    keras.activations.log_softmax,
    keras.ops.log_softmax,
    tf.nn.log_softmax,
)


def last_layer(tensor: Any) -> LastLayer:
    """Returns what the layer says that gave a symbolic output of a model."""
    layer, rank = _decided_by(tensor)
    if layer is None or isinstance(layer, keras.layers.InputLayer):
        return LastLayer(None, None, "", False, len(tensor.shape))
    said = getattr(layer, "outputs_are_logits", None)
    axes, axis = len(tensor.shape), getattr(layer, "axis", -1)
    axis_is_last = axis in (-1, rank - 1)
    is_plain = type(layer).__module__.startswith("keras.") and axis_is_last
    if said is not None:
        kind = getattr(layer, "output_kind", None)
        return LastLayer(kind, said, layer.name, True, axes)
    kind, is_logits = _activation(layer)
    is_plain = is_plain and is_logits is not None
    axis = -1 if kind != "softmax" or axis_is_last else axis
    return LastLayer(kind, is_logits, layer.name, is_plain, axes, axis)


def _activation(layer: Any) -> tuple[str | None, bool | None]:
    # The layer, or the operation of keras.ops.
    if type(layer).__name__ in ("Softmax", "Sigmoid"):
        return type(layer).__name__.lower(), False
    if type(layer).__name__ in ("UnitNormalization", "Normalize"):
        return "values", True
    activation = getattr(layer, "activation", None)
    if activation is None or isinstance(layer, keras.layers.RNN):
        return None, None
    if activation in _SOFTMAX:
        return "softmax", False
    if activation in _SIGMOID:
        return "sigmoid", False
    if activation in _LOG_SOFTMAX:
        return "softmax", True
    return None, True if activation is keras.activations.linear else None


def _decided_by(tensor: Any) -> tuple[Any, int]:
    """Returns the layer or operation that says what an output is, or `None`, and the axes it sees."""
    operation, tensor_index, inputs = made_by(tensor)
    if isinstance(operation, keras.Model):
        outputs = getattr(operation, "outputs", None)
        return _decided_by(outputs[tensor_index]) if outputs else (None, 0)
    if isinstance(operation, _PASSES_ON) or (
        isinstance(operation, keras.layers.Activation)
        and operation.activation is keras.activations.linear
    ):
        return _decided_by(inputs[0])
    if isinstance(operation, keras.layers.TimeDistributed):
        return operation.layer, len(tensor.shape) - 1
    return operation, len(tensor.shape)


_SOFTMAX_LOSSES = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.KLDivergence,
    keras.losses.CTC,
    keras.losses.categorical_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
    keras.losses.kl_divergence,
    keras.losses.ctc,
)


_SIGMOID_LOSSES = (
    keras.losses.BinaryCrossentropy,
    keras.losses.BinaryFocalCrossentropy,
    keras.losses.binary_crossentropy,
    keras.losses.binary_focal_crossentropy,
)


#: These judge how two regions overlap: of a softmax or of a sigmoid, as the layer says.
_OVERLAP_LOSSES = (
    keras.losses.Dice,
    keras.losses.Tversky,
    keras.losses.dice,
    keras.losses.tversky,
)


def kind_of_loss(loss: Any) -> str | None:
    """Returns the kind of output that a loss is for; `None` if it does not say.

    Any loss of Keras that is none of a distribution is for "values"; a loss of the user's
    own says nothing.
    """
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:  # Keras says so when it compiles
            return None
    while isinstance(loss, functools.partial):
        loss = loss.func
    for kind, losses in (("softmax", _SOFTMAX_LOSSES), ("sigmoid", _SIGMOID_LOSSES)):
        if _is_one_of(loss, losses):
            return kind
    if loss is None or not is_of_keras(loss) or _is_one_of(loss, _OVERLAP_LOSSES):
        return None
    return "values"


def judges_direction(loss: Any) -> bool:
    """Tells whether a loss looks at the direction of a vector alone, as of embeddings."""
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    cosine = (keras.losses.CosineSimilarity, keras.losses.cosine_similarity)
    return _is_one_of(loss, cosine)


def _is_one_of(loss: Any, losses: tuple[Any, ...]) -> bool:
    classes = tuple(one for one in losses if isinstance(one, type))
    return isinstance(loss, classes) or any(loss is one for one in losses)


def loss_name(loss: Any) -> str:
    """Returns what a loss is called."""
    if isinstance(loss, str):
        return loss
    return getattr(loss, "__name__", type(loss).__name__)


def is_of_keras(loss: Any) -> bool:
    """Tells a loss of Keras, by name or as an object, from a user's own."""
    module = getattr(loss, "__module__", None) or type(loss).__module__
    return isinstance(loss, str) or module.startswith("keras.")


def takes_logits(loss: Any) -> bool | None:
    """Returns `from_logits` of a cross-entropy; `None` for a loss that has no such notion."""
    resolved = _resolved(loss)
    if _is_one_of(resolved, (keras.losses.KLDivergence, keras.losses.kl_divergence)):
        return False
    is_known = hasattr(loss, "from_logits") or is_of_keras(loss)
    if not (is_known and "crossentropy" in loss_name(resolved).lower()):
        return None
    given = getattr(loss, "keywords", {}) if isinstance(loss, functools.partial) else {}
    return bool(given.get("from_logits", getattr(loss, "from_logits", False)))


def _resolved(loss: Any) -> Callable | Any:
    """Returns the loss that a short name such as "bce" stands for."""
    if isinstance(loss, str):
        try:
            return keras.losses.get(loss)
        except ValueError:
            return loss
    return loss


def symbolic_outputs(model: keras.Model) -> Any:
    """Returns the outputs of a built model in the structure that a batch has."""
    outputs = model.outputs if isinstance(model, keras.Sequential) else model.output
    is_list_of_one = isinstance(outputs, (list, tuple)) and len(outputs) == 1
    return outputs[0] if is_list_of_one else outputs
