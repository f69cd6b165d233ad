"""Hidden layers by name, captured while a model runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill.outputs import symbolic_outputs


def hidden_layer(model: Any, name: str, role: str) -> keras.KerasTensor:
    """Returns the symbolic output of a named layer.

    Raises:
        ValueError: if the model is subclassed, or has no such layer, or calls the
            layer more than once.
    """
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"the {role} {type(model).__name__} is a subclassed model (or not built "
            f"yet), so its layer {name!r} cannot be found by name. Return the features "
            "from its call beside the logits, as in {'logits': ..., 'features': ...}, "
            "and give one distillation loss per output: distillation_loss={'logits': SoftTargetLoss(), "
            "'features': FeatureLoss()}."
        )
    names = [layer.name for layer in model.layers]
    if name not in names:
        raise ValueError(
            f"the {role} has no layer {name!r}; its layers are {', '.join(names)}."
        )
    try:
        output = model.get_layer(name).output
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"the {role}'s layer {name!r} is called several times, so it has no single "
            "output to match; choose a layer that is called once."
        ) from error
    if not isinstance(output, keras.KerasTensor):
        raise ValueError(
            f"the {role}'s layer {name!r} has several outputs; choose one with one."
        )
    return output


def layer_extractor(
    model: keras.Model, layer_names: Sequence[str], role: str
) -> keras.Model:
    """Returns a model that shares the layers and gives outputs and hidden layers.

    Raises:
        ValueError: if a layer cannot be found by its name.
    """
    layers = {name: hidden_layer(model, name, role) for name in layer_names}
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.Model(inputs, {"outputs": symbolic_outputs(model), "layers": layers})


def shapes_of_features(
    model: keras.Model, layer_names: Sequence[str], role: str
) -> dict[str, tuple]:
    """Returns the shape of each named layer's output, batch first.

    Raises:
        ValueError: if a layer cannot be found by its name.
    """
    return {name: tuple(hidden_layer(model, name, role).shape) for name in layer_names}
