"""Export for whatever runs ONNX: one .onnx file, checked in a fresh process."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_distill import progress
from keras_distill.arguments import check_verbose
from keras_distill.export import check, fresh, onnx_converter
from keras_distill.export.answers import DEFAULT_THRESHOLD
from keras_distill.export.card import card_of, write_card
from keras_distill.export.files import check_file, saved_model_for, whole_file
from keras_distill.export.portable import computes_in_half, portable
from keras_distill.export.serving import Serving
from keras_distill.quantization.aware import QuantizationAwareModel

_TOLERANCE = 1e-4
# Of weights in half precision, as a share of the output's range.
_HALF_TOLERANCE, _HALF = 0.01, {"float16", "bfloat16"}
# Of a model that rounds, likewise; as of a LiteRT file.
_ROUNDING_TOLERANCE = 0.1
_ADVICE = {
    "Text": "Do that to the text before the file is asked, and export the model of what "
    "comes out",
    "": "Do that work before the file is asked, or build the model without it",
}


def export_onnx(
    model: keras.Model,
    path: str | os.PathLike,
    *,
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
    """Writes an `.onnx` file (opset 17), which runtimes of ONNX run; checked by onnxruntime.

    Its inputs and outputs are those of `export_savedmodel`, under the same names and of the same
    dtypes; where the batch is free, its size is called "batch". tf2onnx converts it in a
    process of its own, and a fresh Python process that imports only onnxruntime runs it in
    batches of 1 and 3, or the fixed one. No number may differ from the Keras model's by more
    than 1e-4, or 1e-5 of itself, and no label but between classes that are as near. Only then
    it is renamed: a file that can be seen is whole and right. If anything fails, a file that
    was there before is left as it was.

    A model that computes in float16 or bfloat16 with weights in float32 ("mixed_float16") does
    so in float32 in the file, and is compared with what it answers in float32. One that has
    float16 weights stays so, and may differ by 1 % of the range of the output. One of
    `quantize_aware` has the integer weights that it was trained to, and activations between
    QuantizeLinear and DequantizeLinear; it may differ by 10 %.

    The loop of a `SpecialistEnsemble` is not loaded by onnxruntime 1.24; 1.32 runs it.

    Args:
        model: as for `export_savedmodel`.
        path: str or path of the file, ending in ".onnx"; replaced if it is there.
        class_names: as for `export_savedmodel`.
        preprocess: as for `export_savedmodel`.
        input_signature: as for `export_savedmodel`; one that fixes the batch makes a file of
            that batch.
        example: as for `export_savedmodel`; text must be UTF-8, as all text in ONNX.
        from_logits: as for `export_savedmodel`.
        output_kinds: as for `export_savedmodel`.
        threshold: as for `export_savedmodel`.
        card: as for `export_savedmodel`; written beside the file as `<file>.card.md` and
            `<file>.card.json`.
        verbose: whether to show a progress bar. Default `True`.

    Returns:
        The path of the file.

    Raises:
        ImportError: without `pip install keras-distill[onnx]`.
        IsADirectoryError: if `path` is a folder.
        OSError: if it cannot be written.
        TypeError: as `export_savedmodel`.
        ValueError: as `export_savedmodel`; if `path` does not end so, an input has the name of
            an output, or ONNX has no operation for what the model does, naming it.
        RuntimeError: if the converter fails, or the file does not run or gives other answers.

    Example:
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
    >>> export_onnx(model, "student.tflite")
    Traceback (most recent call last):
    ValueError: path must end in ".onnx", got 'student.tflite'.
    """
    path = check_file("path", path, ".onnx")
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
        exporter="export_onnx",
    )
    card = card_of(card, model)
    _check_names(serving)
    _check_text(serving)
    with (
        whole_file(path) as hidden,
        saved_model_for(hidden) as saved_model,
        progress.bar("export", "stage", 3, verbose) as shown_bar,
    ):
        # ONNX has loops and choices; what cuDNN does it has not.
        traced = (serving.model, serving.preprocess)
        with portable(traced, unrolls=False, routed=True) as is_other:
            written = serving.retraced() if is_other else serving
            written.write(saved_model)
        judge = written if computes_in_half(traced) else serving
        shown_bar.update()
        # What rounds may round the other way, and so a number that another is made of.
        rounds = isinstance(serving.model, QuantizationAwareModel)
        bits = serving.model.quantization.weights if rounds else None
        _convert(saved_model, hidden, bits)
        shown_bar.update()
        dtypes = _dtypes(traced)
        is_half = bool(dtypes & _HALF)
        tolerance = _HALF_TOLERANCE if is_half else _TOLERANCE
        judge.check_sizes(
            lambda batches: _asked(hidden, batches, dtypes),
            "as an ONNX file",
            _ROUNDING_TOLERANCE if rounds else tolerance,
            of_range=is_half or rounds,
            advice="Pass example= with typical inputs.",
        )
        form = f"ONNX, int{bits} weights" if bits else "ONNX"
        write_card(card, serving, hidden, form, ["tf2onnx", "onnxruntime"])
        shown_bar.update()
    return path


def check_installed() -> None:
    """Refuses to go on without what makes and runs a file.

    Raises:
        ImportError: naming it.
    """
    for needed in ("tf2onnx", "onnxruntime"):
        if importlib.util.find_spec(needed) is None:
            raise ImportError(
                f"export_onnx needs {needed}: pip install keras-distill[onnx]"
            )


def _check_names(serving: Serving) -> None:
    if both := set(serving.inputs.specs) & set(serving.expected):
        name = min(both)
        raise ValueError(
            f"the input {name!r} has the name of an output, which ONNX does not tell apart; "
            f"name it by input_signature=tf.TensorSpec(..., name={'raw_' + name!r})."
        )


def _check_text(serving: Serving) -> None:
    for name, tensor in serving.batch.items():
        if tensor.dtype != "string":
            continue
        try:
            for text in tensor.numpy().ravel():
                text.decode()
        except UnicodeDecodeError:
            raise ValueError(
                f"the example for input {name!r} is not all UTF-8, as all text in ONNX is, "
                f"got {text!r}; give text, or export bytes by kd.export_savedmodel."
            ) from None


def _dtypes(traced: Sequence[Any]) -> set[str]:
    """Returns the names of the dtypes of all weights."""
    layers = [one for one in traced if isinstance(one, keras.Layer)]
    return {weight.dtype for layer in layers for weight in layer.weights}


def _in_a_child(function: str, *given: Any) -> Any:
    """Returns what a function of `onnx_converter` returns in a fresh process."""
    return fresh.run(fresh.CALL, [onnx_converter.__file__, function], given)


def _convert(saved_model: str, path: str, bits: int | None) -> None:
    try:
        done = _in_a_child("convert", saved_model, path, bits)
    except fresh.FreshProcessError as error:
        raise RuntimeError(
            f"the ONNX converter {error.ended} on this model, so nothing is exported; try "
            f"kd.export_savedmodel.\n{error.said}".rstrip()
        ) from None
    if "unwritten" in done:
        raise OSError(
            f"the export could not be written to {path!r}: {done['unwritten']}."
        )
    if "refused" in done:
        missing = done["operations"]
        kind = ""
        if any(name.startswith(("String", "StaticRegex", "Regex")) for name in missing):
            kind = "Text"
        raise ValueError(
            f"ONNX cannot take this model: {done['refused']}. {_ADVICE[kind]}; or serve it "
            "with kd.export_savedmodel."
        )


def _asked(path: str, batches: list, dtypes: set[str]) -> list:
    """Returns what the file answers.

    Args:
        path: of the file.
        batches: to answer.
        dtypes: of the weights.

    Raises:
        RuntimeError: if it does not run.
    """
    from keras_distill.export.runtimes import onnx

    try:
        return check.ask_fresh_process(onnx, path, batches)
    except RuntimeError as error:
        advice = "Build what it names in another way"
        if rare := dtypes & {"bfloat16", "float64"}:
            advice = (
                f"The model has {rare.pop()}, for which onnxruntime lacks operations on "
                'the CPU; build it under keras.config.set_dtype_policy("float32") and '
                "take over its weights by set_weights(get_weights())"
            )
        raise RuntimeError(
            "onnxruntime does not run the file of this model, so nothing is exported: "
            f"{str(error).strip().splitlines()[-1]} {advice}, or serve the model with "
            "kd.export_savedmodel."
        ) from error
