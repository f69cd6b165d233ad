"""A model that was trained on a grid, as the LiteRT file of that grid."""

from __future__ import annotations

import os
import tempfile
import warnings
from typing import Any

import tensorflow as tf

from keras_distill.keras_compat import convert_to_lite_of_few_bits, with_constants
from keras_distill.quantization.aware import QuantizationAwareModel
from keras_distill.quantization.table import QuantizationTable


def convert(
path: str | os.PathLike, model: QuantizationAwareModel) -> bytes:
    """Returns the LiteRT file of a model of `quantize_aware`, on the grid that it was trained on.

    With ranges of activations, no data is needed: TensorFlow's converter finds them in the
    graph. Without, weights are rounded by `ai-edge-quantizer`, whose recipes "dynamic_wi8_afp32"
    and "dynamic_wi4_afp32" find the same integers from weights that are on their grid.

    Args:
        path: of a SavedModel that serves the model.
        model: that is served.

    Raises:
        ImportError: if `ai-edge-quantizer` is needed and not installed.
    """
    table = model.quantization
    with tempfile.TemporaryDirectory() as folder:
        _freeze(os.fspath(path), folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if table.activations is None:
            return _with_integer_weights(converter.convert(), table)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        with warnings.catch_warnings():
            # It would have statistics of inputs, whose range the graph has.
            warnings.filterwarnings("ignore", "Statistics for quantized inputs")
            if table.weights < 8:
                return convert_to_lite_of_few_bits(converter)
            return converter.convert()


def _freeze(path: str, folder: str) -> None:
    """Writes a SavedModel with what rounding needs as constants: the converter reads no others."""
    loaded = tf.saved_model.load(path)
    served = loaded.signatures["serving_default"]
    frozen = with_constants(served)
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


def _with_integer_weights(data: bytes, table: QuantizationTable) -> bytes:
    """Returns a float LiteRT file with integer weights."""
    try:
        from ai_edge_quantizer import qtyping, quantizer, recipe_manager
    except ImportError as error:
        raise ImportError(
            "a file with integer weights and float activations needs ai-edge-quantizer: "
            "pip install keras-distill[litert]"
        ) from error
    names = qtyping.TFLOperationName
    recipe = recipe_manager.RecipeManager()
    for operation, bits in (
        (names.FULLY_CONNECTED, table.weights),
        (names.CONV_2D, table.weights),
        (names.DEPTHWISE_CONV_2D, 8),
    ):
        recipe.add_dynamic_config(".*", operation, bits)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.tflite")
        with open(path, "wb") as file:
            file.write(data)
        made: Any = quantizer.Quantizer(path, recipe.get_quantization_recipe())
        return bytes(made.quantize().quantized_model)
