"""Wrong uses of export."""

import functools
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
from tests.hostile import Row
from tests.hostile.things import model, student

NAN = float("nan")


class Subclassed(keras.Model):
    """A model whose inputs nobody knows."""

    def call(self, x):
        return x


@functools.cache
def a_file():
    """Returns the path of a file."""
    path = pathlib.Path(tempfile.mkdtemp(), "model")
    path.touch()
    return path


@functools.cache
def a_folder():
    """Returns the path of a folder that is called like a file."""
    path = pathlib.Path(tempfile.mkdtemp(), "m.tflite")
    path.mkdir()
    return path


def exported(name, value):
    """Returns a call of `export_savedmodel` with one wrong argument."""

    def call():
        given = {"model": student(), "directory": "m", name: value}
        kd.export_savedmodel(**{"verbose": False, **given})

    return call


def exported_file(name, value):
    """Returns a call of `export_litert` with one wrong argument."""

    def call():
        given = {"model": student(), "path": "m.tflite", name: value}
        kd.export_litert(**{"verbose": False, **given})

    return call


def exported_onnx(name, value):
    """Returns a call of `export_onnx` with one wrong argument."""

    def call():
        given = {"model": student(), "path": "m.onnx", name: value}
        kd.export_onnx(**{"verbose": False, **given})

    return call


def quantized(**given):
    """Returns a call of `export_litert` with wrong arguments of quantizing."""
    call = {"model": student(), "path": "m.tflite", "verbose": False, **given}
    return lambda: kd.export_litert(**call)


def made(name, make):
    """Returns the same, of an argument that is made when it is needed."""
    return lambda: exported(name, make())()


def spec(*shape, name="x"):
    return tf.TensorSpec(shape, tf.float32, name)


NAMES = "class_names must be a list of str, got"
THRESHOLD = "threshold must be a number between 0 and 1, got"
WRONG = [
    ("model", None, "model must be a keras.Model, got None"),
    ("model", "model.keras", "model must be a keras.Model, got 'model.keras'"),
    ("model", keras.Sequential, "model must be a keras.Model, got <class"),
    ("model", len, "model must be a keras.Model, got <built-in function len"),
    ("directory", "", "directory must be a path, got ''"),
    ("directory", " ", "directory must be a path, got ' '"),
    ("directory", None, "directory must be a path, got None"),
    ("directory", 3, "directory must be a path, got 3"),
    ("directory", b"m", "directory must be a path, got b'm'"),
    ("directory", "a\0b", "directory must be a path"),
    ("directory", "m[a-z]", "directory must be without .*got 'm.a-z.'"),
    ("directory", "m*", "directory must be without"),
    ("preprocess", 3, "preprocess must be a function or layer, got 3"),
    ("preprocess", "scale", "preprocess must be a function or layer, got 'scale'"),
    ("class_names", dict.fromkeys("abcd"), "class_names names the output 'a', which"),
    ("class_names", {"a": "b"}, NAMES),
    ("class_names", {"a": 3}, r"class_names\['a'\] must be a list of str, got 3"),
    ("class_names", set("abcd"), NAMES),
    ("class_names", "abcd", f"{NAMES} 'abcd'"),
    ("class_names", range(4), NAMES),
    ("class_names", 4, f"{NAMES} 4"),
    ("class_names", [b"a", b"b", b"c", b"d"], NAMES),
    ("class_names", ["a", "b", "c", None], NAMES),
    (
        "class_names",
        list("abc"),
        "class_names has 3 names, but the model has 4 classes",
    ),
    ("class_names", [], "class_names has 0 names, but the model has 4 classes"),
    (
        "example",
        np.ones((2, 3)),
        r"the example for input .* must be a batch of .*\(2, 3",
    ),
    ("example", np.ones(5), r"the example for input .* must be a batch of .*\(5,"),
    ("example", np.ones((0, 5)), "with one example at least"),
    ("example", "text", "the example for input .* must be a batch of float32"),
    ("example", [[1.0], [2.0, 3.0]], "the example for input .* must be a batch"),
    ("example", {"x": np.ones((2, 5))}, "the example has 'x', but the model takes"),
    ("example", {}, "the example has .*but the model takes"),
    ("input_signature", "x", "input_signature must be a tf.TensorSpec or a dict"),
    ("input_signature", (None, 5), "specs in input_signature must have names of their"),
    (
        "input_signature",
        [],
        "input_signature is empty, got .*; give a tf.TensorSpec of",
    ),
    ("input_signature", {"x": 5}, "input_signature must be a tf.TensorSpec.*got 5"),
    ("input_signature", [spec(None, 5), spec(None, 5)], "must have names of their own"),
    ("from_logits", "yes", "from_logits must be True, False, None"),
    ("from_logits", 2, "from_logits must be True, False, None"),
    ("output_kinds", "binary", "output_kinds must be .*got 'binary'"),
    ("output_kinds", 3, "output_kinds must be 'softmax', 'sigmoid' or 'values'.*got 3"),
    ("output_kinds", {"heat": "values"}, "output_kinds names the output .heat., which"),
    ("output_kinds", {"x": "binary"}, r"output_kinds\['x'\] must be"),
    ("threshold", None, f"{THRESHOLD} None"),
    ("threshold", "0.5", f"{THRESHOLD} '0.5'"),
    ("threshold", True, f"{THRESHOLD} True"),
    ("threshold", NAN, f"{THRESHOLD} nan"),
    ("threshold", 0, f"{THRESHOLD} 0"),
    ("threshold", 1.0, f"{THRESHOLD} 1.0"),
    ("threshold", 50, f"{THRESHOLD} 50"),
    ("threshold", 1 - 1e-12, THRESHOLD),  # 1 to float32
    ("threshold", [0.5, 2], r"threshold\[1\] must be a number between 0 and 1"),
    ("threshold", [], "threshold must be a list of numbers, 1 at least"),
    ("threshold", {"x": 2}, r"threshold\['x'\] must be a number between"),
    ("threshold", {"heat": 0.3}, "threshold names the output 'heat', which"),
    ("threshold", 0.3, "threshold is 0.3, but the output has no yes/no question"),
    (
        "class_names",
        ["a", "b", "c\nd", "e"],
        "class_names has 'c.nd', which has a line b",
    ),
    ("class_names", {"x": ["a\r"]}, r"class_names\['x'\] has 'a.r', which has a line"),
    ("verbose", "no", "verbose must be True or False, .*got 'no'"),
    ("verbose", None, "verbose must be True or False, .*got None"),
]
MADE = [
    (
        "model",
        Subclassed,
        "inputs of the subclassed model .* are not known; pass input_s",
    ),
    ("model", lambda: model(1), "nothing says what the single number .* output_kinds="),
    ("directory", a_file, "the export directory '.*' is a file; give a directory"),
    ("directory", lambda: a_file() / "m", "cannot|could not|Not a directory|is a file"),
]
X = np.ones((6, 5), "float32")
OF_INPUT = "the calibration for input .* must be a batch of"
FILE = [
    ("path", "", "path must be a path, got ''"),
    ("path", None, "path must be a path, got None"),
    ("path", "m", 'path must end in ".tflite", got'),
    ("path", "m.onnx", 'path must end in ".tflite", got'),
    ("path", ".tflite", 'path must end in ".tflite", got'),
    ("path", "gs://bucket/m.tflite", "path must be a local path, got"),
    (
        "quantize",
        "int4",
        'quantize, if it is not None, must be "float16" or "dynamic" or',
    ),
    ("quantize", True, "quantize, if it is not None, must be .*got True"),
    ("quantize", 8, "quantize, if it is not None, must be .*got 8"),
    ("quantize", "int8", 'quantize="int8" needs calibration='),
    ("calibration", X, 'calibration is given, but quantize is None; only "int8"'),
]
INT8 = [
    (
        X[:, :3],
        rf"{OF_INPUT} shape \(None, 5\), with one example at least, got \(6, 3\)",
    ),
    (X[:0], f"{OF_INPUT} shape .* with one example at least"),
    ("text", f"{OF_INPUT} float32, got"),
    ({"x": X}, "the calibration has 'x', but the model takes"),
    (X * NAN, "the calibration for input .* has NaN or infinity"),
    (iter([X]), "calibration must be a batch or data, got list_iterator, which can be"),
]
ROWS = [
    Row("export_savedmodel", call(name, value), sentence)
    for call, wrong in ((exported, WRONG), (made, MADE))
    for name, value, sentence in wrong
]
ROWS += [
    *(
        Row("export_onnx", exported_onnx(name, value), sentence)
        for name, value, sentence in [
            ("path", "m.tflite", 'path must end in ".onnx", got .m.tflite'),
            ("path", "m.onnx/", 'path must end in ".onnx", got'),
            ("path", ".onnx", 'path must end in ".onnx", got'),
            ("path", None, "path must be a path, got None"),
            ("path", "gs://bucket/m.onnx", "path must be a local path, got"),
            *(row for row in WRONG if row[0] not in ("directory", "from_logits")),
        ]
    ),
    Row(
        "export_onnx",
        lambda: exported_onnx("model", Subclassed())(),
        "inputs of the subclassed model .* are not known; pass input_s",
    ),
    Row(
        "export_onnx",
        lambda: exported_onnx("path", a_file() / "m.onnx")(),
        "cannot|could not|Not a directory|is a file",
    ),
    *(
        Row("export_litert", exported_file(name, value), sentence)
        for name, value, sentence in FILE
        + [row for row in WRONG if row[0] not in ("directory", "from_logits")]
    ),
    *(
        Row("export_litert", quantized(quantize="int8", calibration=value), sentence)
        for value, sentence in INT8
    ),
    Row(
        "export_litert",
        quantized(quantize="dynamic", calibration=X),
        "calibration is given, but quantize is 'dynamic'",
    ),
    Row(
        "export_litert",
        lambda: quantized(path=a_folder())(),
        "but '.*' is a folder; give",
    ),
    Row(
        "export_litert",
        lambda: quantized(path=a_file() / "m.tflite")(),
        "cannot|could not|Not a directory|is a file",
    ),
]
