"""A student that is trained on the grid of the file that it will be."""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from keras_distill import reading
from keras_distill.arguments import check_model, shown
from keras_distill.distiller import Distiller
from keras_distill.keras_compat import is_graph_of_layers, never_ends, own_variables
from keras_distill.last_layers import symbolic_outputs
from keras_distill.outputs import hand_on_kinds, kinds_of
from keras_distill.quantization.fake_quantize import (
    FakeQuantize,
    observed,
    rounds_weights,
)
from keras_distill.quantization.rewrite import Rewriting
from keras_distill.quantization.table import QuantizationTable, Row

#: Examples that are calibrated with at a time.
_BATCH = 128


@keras.saving.register_keras_serializable("keras_distill")
class QuantizationAwareModel(keras.Model):
    """What `quantize_aware` returns: a Functional model that rounds as its file will.

    Attributes:
        quantization: `QuantizationTable`.
    """

    _quantization: QuantizationTable | None = None

    @property
    def quantization(self) -> QuantizationTable:
        """How each layer is computed; of a clone, those whose weights are rounded."""
        return self._quantization or _table_of(self)

    @quantization.setter
    def quantization(self, table: QuantizationTable) -> None:
        self._quantization = table

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles it as Keras does; from now on its own loss says what its outputs are."""
        super().compile(*args, **kwargs)
        hand_on_kinds(None, self)

    def get_config(self) -> dict[str, Any]:
        """Returns what the model is made again of."""
        found = kinds_of(self)
        # By pairs: JSON has no keys but text.
        kinds = [*found.items()] if isinstance(found, dict) else found
        return {
            **super().get_config(),
            "quantization": self.quantization.get_config(),
            "output_kinds": kinds,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Returns the model that `get_config` is of."""
        table = QuantizationTable.from_config(config["quantization"])
        kinds = config.get("output_kinds")
        own = ("quantization", "output_kinds")
        rest = {key: one for key, one in config.items() if key not in own}
        model = super().from_config(rest, custom_objects)
        model.quantization = table
        hand_on_kinds(dict(kinds) if isinstance(kinds, (list, tuple)) else kinds, model)
        return model


def _table_of(model: keras.Model) -> QuantizationTable:
    """Returns what the layers of a model say, as `clone_model` makes it of them alone."""
    layers: list[Any] = model.layers
    rounding = [layer for layer in layers if rounds_weights(layer.__class__)]
    rows = tuple(
        Row(
            layer.name,
            type(layer).__name__.removeprefix("Quantized"),
            f"int{layer.weight_bits} weights",
            f"{layer.folded} is folded into it" if layer.folded else "",
        )
        for layer in rounding
    )
    bits = min(layer.weight_bits for layer in rounding)
    has_ranges = any(isinstance(layer, FakeQuantize) for layer in layers)
    return QuantizationTable(bits, 8 if has_ranges else None, rows)


def quantize_aware(
    student: keras.Model,
    *,
    weights: Literal[8, 4] = 8,
    activations: Literal[8] | None = 8,
    calibration: Any = None,
) -> keras.Model:
    """Returns a student that computes as its LiteRT file of integers will, to be trained so.

    Weights are rounded per channel, `w = scale * k` with whole k from -127 to 127 of 8 bits, -7
    to 7 of 4; activations to 256 steps of a range that holds 0. Batch normalisation is folded
    into the layer before it, with its moving statistics: it is those weights that are rounded
    and trained, and there is no batch normalisation any more. The gradient passes the rounding;
    ranges are trained too, from those of the calibration on.

    The float student is untouched, and may teach:

        aware = kd.quantize_aware(student, weights=4, calibration=x[:1000])
        distiller = kd.Distiller(aware, teacher=student)
        distiller.compile("adam", loss)
        distiller.fit(x, y, epochs=2)
        kd.export_litert(aware, "student.tflite")  # of these integers

    `print(aware.quantization)` says of each layer how it is computed, and why one stays float: so
    it is trained, and in a file of 4-bit weights; where LiteRT has it in int8, one of 8 bits may
    round it too.
    Computed in integers: Conv2D, DepthwiseConv2D, SeparableConv2D and Dense with ReLU, ReLU6 and
    hard-swish; Add, Multiply, Concatenate, pooling, Flatten, Reshape, ZeroPadding2D; nested
    models are taken apart.

    Args:
        student: built, Functional or Sequential, of float32; or the `Distiller` that trained it.
        weights: 8 (default) or 4 bits.
        activations: 8 (default) for int8; `None` for float, which needs no calibration: then
            only weights are integers, 8 bits of depthwise convolutions, and a file's
            activations are quantised while it runs.
        calibration: inputs that the ranges of activations are initialised from, all of them: as
            `fit` takes them, without labels or with.

    Returns:
        A Functional `keras.Model` with the student's inputs and outputs.

    Raises:
        TypeError: if `student` is no `keras.Model`, or `calibration` cannot be read.
        ValueError: if an argument is out of range; if the student is subclassed, not built or
            not of float32, or rounds already, or has no layer whose weights can be rounded; if
            `calibration` is missing or has NaN.

    Reference: arXiv:1712.05877; the gradients of weights' ranges are those of arXiv:1902.08153.
    """
    kinds = student.output_kinds if isinstance(student, Distiller) else None
    if isinstance(student, Distiller):
        student = student.student
    check_model("student", student)
    kinds = kinds or kinds_of(student)
    _check_bits("weights", weights, (8, 4))
    _check_bits("activations", activations, (8, None))
    _check_student(student)
    batches = _batches(calibration, student) if activations else None
    rewriting = Rewriting(student, int(weights), activations is not None)
    if not any(row.computed.endswith("weights") for row in rewriting.rows):
        raise ValueError(
            f"student {student.name!r} has no layer whose weights can be rounded; it needs a "
            "Conv2D, DepthwiseConv2D, SeparableConv2D or Dense."
        )
    structure = symbolic_outputs(student)
    outputs = keras.tree.pack_sequence_as(structure, rewriting.outputs)
    is_sequential = isinstance(student, keras.Sequential)
    given = student.inputs[0] if is_sequential else student.input
    inputs = keras.tree.pack_sequence_as(given, rewriting.inputs)
    model = QuantizationAwareModel(inputs, outputs, name=student.name)
    model.quantization = QuantizationTable(
        int(weights), activations, tuple(rewriting.rows)
    )
    hand_on_kinds(kinds, model)
    rewriting.set_weights()
    if batches is not None:
        _calibrate(model, batches)
    return model


def _check_bits(name: str, value: Any, choices: tuple) -> None:
    if isinstance(value, bool) or value not in choices:
        first, second = choices
        raise ValueError(f"{name} must be {first} or {second}, got {shown(value)}.")


def _check_student(student: keras.Model) -> None:
    if isinstance(student, QuantizationAwareModel):
        raise ValueError(
            f"student {student.name!r} rounds already; give quantize_aware the float one."
        )
    if not is_graph_of_layers(student):
        is_built = not isinstance(student, keras.Sequential)
        advice = (
            "is a subclassed model, whose layers' order nobody knows; build it as "
            "keras.Model(inputs, outputs)"
            if is_built
            else "is not built; begin it with keras.Input(shape)"
        )
        raise ValueError(f"student {student.name!r} {advice}.")
    for layer, _ in own_variables(student):
        policy = layer.dtype_policy.name
        if policy != "float32":
            raise ValueError(
                f"student's layer {layer.name!r} has the dtype policy {policy!r}; rounding is "
                "trained in float32. Build the student under the float32 policy and give it "
                "the weights."
            )


def _batches(calibration: Any, student: keras.Model) -> tf.data.Dataset:
    """Returns the inputs of a calibration in batches."""
    if calibration is None:
        raise ValueError(
            "calibration is missing: the ranges of activations are initialised from inputs. "
            "Give some, calibration=x[:1000], or activations=None."
        )
    data = reading.read(calibration, "calibration")
    shapes = [one.shape for one in student.inputs]
    if isinstance(data, tf.data.Dataset):
        if never_ends(data):
            raise ValueError("calibration is endless; give a part of it, as .take(10).")
        inputs = data.map(lambda *element: element[0])
        if not reading.are_batches(inputs.element_spec, shapes):
            inputs = inputs.batch(_BATCH)
    else:
        inputs = tf.data.Dataset.from_tensor_slices(data[0]).batch(_BATCH)
    names = sorted(one.name for one in student.inputs)
    if isinstance(spec := inputs.element_spec, dict) and sorted(spec) != names:
        raise ValueError(
            f"calibration has {', '.join(map(repr, spec))}, but the student takes "
            f"{', '.join(map(repr, names))}; give inputs by these names."
        )
    given = [spec.shape for spec in tf.nest.flatten(inputs.element_spec)]
    do_fit = len(given) == len(shapes) and all(
        one.is_compatible_with([None, *other[1:]])
        for one, other in zip(given, shapes, strict=True)
    )
    if not do_fit:
        wanted, got = (
            ", ".join(str(tuple(s)) for s in those) for those in (shapes, given)
        )
        raise ValueError(f"calibration must be inputs of shape {wanted}, got {got}.")
    return inputs


def _calibrate(model: keras.Model, batches: tf.data.Dataset) -> None:
    """Sets the ranges of activations to the smallest and largest over all batches.

    Raises:
        ValueError: if there are none, or one is not finite.
    """
    count = 0
    with observed() as seen:
        for batch in batches:
            model(batch, training=False)
            count += 1
    if not count:
        raise ValueError("calibration has no examples; give some, as x[:1000].")
    for layer in model.layers:
        if isinstance(layer, FakeQuantize):
            low, high = seen[layer]
            if not np.isfinite([low, high]).all():
                raise ValueError(
                    f"calibration gives numbers that are not finite at {layer.name!r}; take "
                    "NaN and infinity out of the inputs."
                )
            layer.low.assign(low)
            layer.high.assign(high)
