"""A model that was trained on a grid, as the LiteRT file of that grid.

It imports nothing of ours, so that a fresh process can run it by its path. It is a place for
private names of TensorFlow too.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from typing import Any

import numpy as np
import tensorflow as tf


def convert(path: str | os.PathLike, weights: int, activations: int | None) -> bytes:
    """Returns the LiteRT file of a model of `quantize_aware`, on the grid that it was trained on.

    With ranges of activations no data is needed: TensorFlow's converter finds the ranges in
    the graph. Without, weights are made integers by `ai-edge-quantizer`, by what its recipes
    "dynamic_wi8_afp32" and "dynamic_wi4_afp32" say of each operation; it finds the same
    integers, since the largest weight of a channel is at the end of its range.

    Args:
        path: of a SavedModel that serves the model by its signature `serving_default`.
        weights: bits, as `model.quantization` says.
        activations: bits, or `None` for float, as `model.quantization` says.

    Raises:
        ImportError: if `ai-edge-quantizer` is needed and not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        _freeze(os.fspath(path), folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if activations is None:
            return _with_integer_weights(converter.convert(), weights)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        # Without it, which has no public name, the converter takes all weights for int8; with
        # it, it does not find the range of int8 ones by itself.
        converter._experimental_low_bit_qat = weights < 8
        with warnings.catch_warnings():
            # It would have statistics of inputs, whose range the graph has.
            warnings.filterwarnings("ignore", "Statistics for quantized inputs")
            return converter.convert()


def _freeze(path: str, folder: str) -> None:
    """Writes a SavedModel with all variables as constants.

    The converter looks for ranges before it works out what is made of variables.
    """
    # In public a function of constants can only be had as a file.
    from tensorflow.python.framework import convert_to_constants

    loaded = tf.saved_model.load(path)
    served = loaded.signatures["serving_default"]
    frozen = convert_to_constants.convert_variables_to_constants_v2(served)
    names = sorted(served.structured_outputs)

    def serve(**named: Any) -> dict[str, Any]:
        outputs = tf.nest.flatten(frozen(**named))
        return dict(zip(names, outputs, strict=True))

    module = tf.Module()
    module.serve = tf.function(serve)
    specs = served.structured_input_signature[1]
    traced = module.serve.get_concrete_function(**specs)
    # Nobody trains it, and gradients of constants cannot be saved.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, folder, traced, options)


def _with_integer_weights(content: bytes, bits: int) -> bytes:
    """Returns a float LiteRT file with integer weights where they are on the grid."""
    try:
        from ai_edge_quantizer import quantizer, recipe_manager
        from ai_edge_quantizer.utils import tfl_flatbuffer_utils as utils
    except ImportError as error:
        raise ImportError(
            "a file with integer weights and float activations needs ai-edge-quantizer: "
            "pip install keras-distill[litert]"
        ) from error
    recipe = recipe_manager.RecipeManager()
    model = utils.read_model(bytearray(content))
    for graph in model.subgraphs:
        for operation in graph.operators:
            code = model.operatorCodes[operation.opcodeIndex].builtinCode
            name = utils.TFL_OP_CODE_TO_NAME.get(code)
            axis = {"FULLY_CONNECTED": 0, "CONV_2D": 0, "DEPTHWISE_CONV_2D": 3}.get(
                name
            )
            if axis is None:
                continue
            tensor = graph.tensors[operation.inputs[1]]
            kernel = utils.get_tensor_data(tensor, model.buffers)
            own_bits = 8 if name == "DEPTHWISE_CONV_2D" else bits
            # What stays float is not on it.
            if kernel is not None and _is_on_grid(
                np.moveaxis(kernel, axis, -1), own_bits
            ):
                scope = re.escape(utils.get_op_scope(operation, graph.tensors))
                recipe.add_dynamic_config(f"^{scope}$", name, own_bits)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.tflite")
        with open(path, "wb") as file:
            file.write(content)
        made = quantizer.Quantizer(path, recipe.get_quantization_recipe())
        result = made.quantize(enable_progress_bar=False, enable_progress_report=False)
        return bytes(result.quantized_model)


def _is_on_grid(kernel: np.ndarray, bits: int) -> bool:
    """Tells whether weights, their channels last, are whole steps of the largest of each."""
    flat = kernel.reshape(-1, kernel.shape[-1])
    largest = np.maximum(np.abs(flat).max(0), 1e-30)
    steps = flat / largest * (2 ** (bits - 1) - 1)
    return bool(np.abs(steps - np.round(steps)).max() < 1e-3)
