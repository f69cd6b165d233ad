"""Export for phones and microcontrollers: one .tflite file, checked in a fresh process."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import progress
from keras_distill.arguments import check_choice, check_verbose, shown
from keras_distill.export import check, fresh, litert_converter
from keras_distill.export.answers import DEFAULT_THRESHOLD
from keras_distill.export.calibration import batches_of, calibration_arrays, joined
from keras_distill.export.card import card_of, write_card
from keras_distill.export.files import check_file, saved_model_for, whole_file
from keras_distill.export.int8 import changes, layer_named
from keras_distill.export.portable import computes_in_half, portable
from keras_distill.export.serving import Serving
from keras_distill.keras_compat import own_variables
from keras_distill.quantization import litert as grids
from keras_distill.quantization.aware import QuantizationAwareModel
from keras_distill.specialists.ensemble import SpecialistEnsemble

QUANTIZE = ("float16", "dynamic", "int8")
# What an answer for the example may differ by: a quantized one as a share of the output's
# range.
_TOLERANCES = {None: 1e-4, "float16": 0.01, "dynamic": 0.1}
_AWARE = "train it by kd.quantize_aware, which leaves layers of rarer kinds in float"
# Of weights; what only computes in half precision is made to do so in float32.
_NOT_TAKEN = ("float64", "float16", "bfloat16")


def export_litert(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    quantize: str | None = None,
    calibration: Any = None,
    class_names: Sequence[str] | dict[str, Sequence[str]] | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    input_signature: Any = None,
    example: Any = None,
    from_logits: Any = None,
    output_kinds: Any = None,
    threshold: Any = DEFAULT_THRESHOLD,
    card: Any = None,
    verbose: bool = True,
) -> str:
    """Writes a `.tflite` file, which LiteRT (TensorFlow Lite) runs on phones and small boards.

    Its signature `serving_default` takes and gives what that of `export_savedmodel` does,
    under the same names and of the same dtypes, however the file is quantized. It needs
    nothing but LiteRT's own operations. It is converted in a process of its own, run by a
    fresh Python process that imports only ai-edge-litert, compared with the Keras model, and
    only then renamed: a file that can be seen is whole and right. If anything fails, a file
    that was there before is left as it was.

    What `quantize` changes, and how far an answer may differ from the model's:

    - `None`: nothing; by 1e-4, or 1e-5 of the number.
    - "float16": weights are float16; by 1 % of the range of the output.
    - "dynamic": weights are int8; by 10 % of the range. Give `example` for a check on real
      inputs.
    - "int8": weights and activations are int8. On `calibration` no more than 1 % of the
      labels may change, to a class that the model gives a probability lower by 0.05, or half
      of the likeliest (of a question: where probability and threshold are that far apart); or
      values by a root mean square of no more than 5 % of their range.

    What computes in half precision (`mixed_float16`) does so in float32, and is compared with
    the model in float32. RNN layers are unrolled, so that the batch is free; for that their inputs must say how
    many steps they have. With a batch that `input_signature` fixes they stay loops, but for
    int8. A `SpecialistEnsemble` runs all its specialists.

    A model of `quantize_aware` is written on the grid that it was trained on: leave `quantize`
    and `calibration` out. It is compared within 10 % of the range of an output.

    Args:
        model: as for `export_savedmodel`.
        path: str or path of the file, ending in ".tflite"; replaced if it is there.
        quantize: `None` (default), "float16", "dynamic" or "int8".
        calibration: for "int8", raw inputs whose values say which range each layer has: a
            batch in the form of `example`, or data as `evaluate` takes it (`(x, y)` arrays,
            a `tf.data.Dataset`, ...). Some hundred real examples; all are seen.
        class_names: as for `export_savedmodel`.
        preprocess: as for `export_savedmodel`.
        input_signature: as for `export_savedmodel`; one that fixes the batch makes a file of
            that batch.
        example: as for `export_savedmodel`.
        from_logits: as for `export_savedmodel`.
        output_kinds: as for `export_savedmodel`.
        threshold: as for `export_savedmodel`.
        card: as for `export_savedmodel`; written beside the file as `<file>.card.md` and
            `<file>.card.json`.
        verbose: whether to show a progress bar. Default `True`.

    Returns:
        The path of the file.

    Raises:
        ImportError: without `pip install keras-distill[litert]`.
        IsADirectoryError: if `path` is a folder.
        OSError: if it cannot be written.
        TypeError: as `export_savedmodel`.
        ValueError: as `export_savedmodel`; if `path`, `quantize` or `calibration` is wrong,
            or LiteRT has no operation for what the model does, naming it.
        RuntimeError: if the converter fails, or the file gives other answers; for int8 the
            layer that it changes most is named.

    Warns:
        UserWarning: if an int8 model has hard-swish, which is slower there than in float.

    Example:
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
    >>> export_litert(model, "student.onnx")
    Traceback (most recent call last):
    ValueError: path must end in ".tflite", got 'student.onnx'.
    """
    path = check_file("path", path, ".tflite")
    if quantize is not None:
        quantize = check_choice("quantize, if it is not None,", quantize, QUANTIZE)
    _check_calibration_given(quantize, calibration)
    verbose = check_verbose(verbose)
    check_installed()
    serving = Serving.of(
        model,
        class_names=class_names,
        preprocess=preprocess,
        input_signature=input_signature,
        example=example,
        from_logits=from_logits,
        output_kinds=output_kinds,
        threshold=threshold,
        exporter="export_litert",
    )
    card = card_of(card, model)
    grid = check_quantize(serving.model, quantize)
    _check_can_be_converted(serving)
    arrays = None
    if calibration is not None:
        arrays = calibration_arrays(serving.inputs, calibration)
    with (
        whole_file(path) as hidden,
        saved_model_for(hidden) as saved_model,
        progress.bar("export", "stage", 3, verbose) as shown_bar,
    ):
        judge = _write(serving, saved_model, quantize)
        shown_bar.update()
        size = serving.fixed_batch
        batches = None if arrays is None else batches_of(arrays, size)
        done = _convert(saved_model, hidden, quantize, batches, grid)
        shown_bar.update()
        if arrays is None:
            _check_answers(judge, hidden, "dynamic" if grid else quantize)
        else:
            _check_int8(judge, hidden, arrays, saved_model)
        form = "LiteRT" if quantize is None else f"LiteRT, {quantize}"
        if grid:
            activations = "int8" if grid[2] else "float"
            form += f", int{grid[1]} weights, {activations} activations"
        write_card(card, serving, hidden, form, ["ai-edge-litert"])
        shown_bar.update()
    if "HARD_SWISH" in done["operations"]:
        warnings.warn(
            "the model has hard-swish, which is slower in int8 than in float; build it with "
            'ReLU6 (keras.layers.ReLU(6.0)), or export it with quantize="float16".',
            UserWarning,
            stacklevel=2,
        )
    return path


def check_installed() -> None:
    """Refuses to go on without what runs a file.

    Raises:
        ImportError: naming it.
    """
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise ImportError(
            "export_litert needs ai-edge-litert: pip install keras-distill[litert]"
        )


def check_quantize(
    model: keras.Model, quantize: str | None
) -> tuple[str, int, int | None] | None:
    """Returns what converts a model of `quantize_aware`, and its bits; else `None`.

    Raises:
        ImportError: without the package that it needs.
        ValueError: if the model cannot be quantized so.
    """
    layers = [layer for layer, _ in own_variables(model)]
    if quantize == "int8" and any(isinstance(n, SpecialistEnsemble) for n in layers):
        raise ValueError(
            'a SpecialistEnsemble cannot be exported with quantize="int8": the fixed point '
            'of its answer needs more than 256 steps. Take "float16" or "dynamic", or '
            "distil it into one model."
        )
    if not isinstance(model, QuantizationAwareModel):
        return None
    if quantize is not None:
        raise ValueError(
            f"quantize is {shown(quantize)}, but the model is one of quantize_aware, which is "
            "written on the grid that it was trained on; leave it out."
        )
    table = model.quantization
    has_none = importlib.util.find_spec("ai_edge_quantizer") is None
    if table.activations is None and has_none:
        raise ImportError(
            "a file of integer weights and float activations needs ai-edge-quantizer: "
            "pip install keras-distill[litert]"
        )
    return grids.__file__, table.weights, table.activations


def _check_calibration_given(quantize: str | None, calibration: Any) -> None:
    if quantize == "int8" and calibration is None:
        raise ValueError(
            'quantize="int8" needs calibration=, a batch of some hundred real inputs, whose '
            'values say which range each layer has; or take quantize="dynamic".'
        )
    if quantize != "int8" and calibration is not None:
        raise ValueError(
            f'calibration is given, but quantize is {shown(quantize)}; only "int8" is '
            "calibrated."
        )


def _check_can_be_converted(serving: Serving) -> None:
    specs = serving.inputs.specs
    wrong = [(n, specs[n]) for n in specs if specs[n].dtype == tf.float64]
    wrong += [(w.path, w) for w in serving.model.weights if w.dtype in _NOT_TAKEN]
    if wrong:
        found = tf.as_dtype(wrong[0][1].dtype).name
        raise ValueError(
            f"the model has {found} ({', '.join(name for name, _ in wrong[:3])}), in which "
            "LiteRT does not compute; build it under "
            'keras.config.set_dtype_policy("float32") and take over its weights by '
            "set_weights(get_weights())."
        )


def _write(serving: Serving, saved_model: str, quantize: str | None) -> Serving:
    """Writes what is converted, and returns what its answers are compared with."""
    is_free = serving.fixed_batch is None
    traced = (serving.model, serving.preprocess)
    with portable(traced, is_free or quantize == "int8") as is_other:
        try:
            written = serving.retraced() if is_other else serving
            written.write(saved_model)
        except ValueError as error:
            if "annot unroll a RNN" not in str(error):
                raise
            fixed = "input_signature=tf.TensorSpec([1, steps, features])"
            what = "with a free batch" if is_free else "in int8"
            raise ValueError(
                f"the model has an RNN layer over any number of steps, which LiteRT cannot "
                f"run {what}; build it with keras.Input((steps, features))"
                + (f", or fix both by {fixed}." if quantize != "int8" else ".")
            ) from error
    # Half precision itself is farther from the model than a file may be.
    return written if computes_in_half(traced) else serving


def _in_a_child(function: str, *given: Any) -> Any:
    """Returns what a function of `litert_converter` returns in a fresh process."""
    return fresh.run(fresh.CALL, [litert_converter.__file__, function], given)


def _convert(
    saved_model: str,
    path: str,
    quantize: str | None,
    batches: list | None,
    grid: tuple[str, int, int | None] | None,
) -> dict[str, Any]:
    how = f"quantize={quantize!r}" if grid is None else "the grid it was trained on"
    try:
        done = _in_a_child("convert", saved_model, path, quantize, batches, grid)
    except fresh.FreshProcessError as error:
        aware = f", {_AWARE}" if quantize == "int8" else ""
        raise RuntimeError(
            f"the LiteRT converter {error.ended} on this model with {how}, so nothing is exported; "
            f"try another quantize{aware}, or kd.export_savedmodel.\n{error.said}".rstrip()
        ) from None
    if "unwritten" in done:
        raise OSError(
            f"the export could not be written to {path!r}: {done['unwritten']}."
        )
    if "refused" in done:
        hint = ""
        if "StridedSlice" in done["refused"]:
            hint = "Write tensor[..., None] as keras.ops.expand_dims(tensor, -1). "
        raise ValueError(
            f"LiteRT cannot take this model with {how}: {done['refused']}. {hint}Do that work "
            "before the file is asked, build the model without it, or serve it with kd.export_savedmodel."
        )
    return done


def _check_answers(serving: Serving, path: str, quantize: str | None) -> None:
    """Compares a file's answers with the model's, in batches of 1 and 3 where it takes them."""
    serving.check_sizes(
        lambda batches: _asked(serving, path, batches),
        "as a LiteRT file",
        _TOLERANCES[quantize],
        of_range=quantize is not None,
        advice="Pass example= with typical inputs"
        + (", or take another quantize." if quantize else "."),
    )


def _asked(serving: Serving, path: str, batches: list) -> list:
    """Returns what the file answers.

    Raises:
        RuntimeError: if it does not run.
    """
    from keras_distill.export.runtimes import litert

    try:
        return check.ask_fresh_process(litert, path, batches)
    except RuntimeError as error:
        is_text = any(spec.dtype == tf.string for spec in serving.inputs.specs.values())
        advice = (
            "Look the text up before the file is asked, and export the model of its numbers."
            if is_text
            else "Try a fixed batch, input_signature=tf.TensorSpec([1, ...]), or another "
            "quantize; or serve it with kd.export_savedmodel."
        )
        raise RuntimeError(
            "LiteRT does not run the file of this model, so nothing is exported: "
            f"{str(error).strip().splitlines()[-1]} {advice}"
        ) from error


def _check_int8(
    serving: Serving, path: str, arrays: dict[str, np.ndarray], saved_model: str
) -> None:
    """Compares an int8 file with the model on the calibration, whose ranges it has."""
    size, count = serving.fixed_batch, len(next(iter(arrays.values())))
    batches, serve = batches_of(arrays, size), serving.traced
    expected = joined(
        [
            {name: value.numpy() for name, value in serve(**batch).items()}
            for batch in ({n: tf.constant(v) for n, v in b.items()} for b in batches)
        ],
        count,
    )
    few = [] if size else [check.first_examples(batches[0], n) for n in (1, 3)]
    answers = _asked(serving, path, [*batches, *few])
    answer = joined(answers[: len(batches)], count)
    if said := changes(serving.answers, expected, answer):
        try:
            worst = _in_a_child("worst_layer", saved_model, batches)
        except fresh.FreshProcessError:  # what quantizes may end when it is asked more
            worst = None
        named = layer_named(serving.model, worst)
        raise RuntimeError(
            f"int8 changes the model: {said}. "
            + (f"The layer that it changes most is {named}. " if named else "")
            + f"Give more calibration, bound what layers give (ReLU6), {_AWARE}, or take "
            'quantize="dynamic".'
        )
