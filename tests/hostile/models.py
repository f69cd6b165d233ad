"""Wrong uses of models."""

import functools

import keras_distill as kd
from tests.hostile import Row

NAN = float("nan")
GOOD = {
    "mlp": {"input_shape": (8,), "classes": 3, "hidden": (2,)},
    "cnn": {"input_shape": (8, 8, 1), "classes": 3, "filters": (2, 2)},
}


def _call(function, name, value):
    getattr(kd.models, function)(**{**GOOD[function], name: value})


RATE = "must be a number from 0 to below 1, got"
SIZES = "must be a list of whole numbers >= 1, got"
WRONG = {
    "mlp": [
        ("input_shape", 784, f"input_shape {SIZES} 784"),
        ("input_shape", None, f"input_shape {SIZES} None"),
        (
            "input_shape",
            (None,),
            r"input_shape\[0\] must be a whole number >= 1, got Non",
        ),
        ("input_shape", (0,), r"input_shape\[0\] must be a whole number >= 1, got 0"),
        ("input_shape", "28", f"input_shape {SIZES} '28'"),
        ("classes", 0, "classes must be a whole number >= 1, got 0"),
        ("classes", 10.0, "classes must be a whole number >= 1, got 10.0"),
        ("classes", True, "classes must be a whole number >= 1, got True"),
        ("classes", 2**40, r"classes must be a whole number >= 1 \(at most"),
        ("hidden", 800, f"hidden {SIZES} 800"),
        ("hidden", (800, -1), r"hidden\[1\] must be a whole number >= 1, got -1"),
        ("hidden", (0.5,), r"hidden\[0\] must be a whole number >= 1, got 0.5"),
        ("hidden", {800, 400}, f"hidden {SIZES}"),
        ("hidden", None, f"hidden {SIZES} None"),
        ("dropout", 1.0, f"dropout {RATE} 1.0"),
        ("dropout", -0.1, f"dropout {RATE} -0.1"),
        ("dropout", True, f"dropout {RATE} True"),
        ("dropout", None, f"dropout {RATE} None"),
        ("input_dropout", NAN, f"input_dropout {RATE} nan"),
        ("input_dropout", "0.5", f"input_dropout {RATE} '0.5'"),
        ("max_norm", 0, "max_norm must be a number > 0, got 0"),
        ("max_norm", float("inf"), "max_norm must be a number > 0, got inf"),
        ("name", 3, "name. must be a string"),
    ],
    "cnn": [
        ("input_shape", (8, 8), "must be a list of 3 whole numbers, .height, width"),
        ("input_shape", (8, 8, None), "channels of input_shape must be a whole number"),
        ("input_shape", (8, 8, 0), r"input_shape\[2\] must be a whole number >= 1"),
        (
            "input_shape",
            (3, 8, 1),
            "image of 4 x 4 pixels at least.*give fewer filters",
        ),
        ("filters", (2,) * 4, "image of 16 x 16 pixels at least.*got .8, 8, 1."),
        ("filters", 32, f"filters {SIZES} 32"),
        ("filters", ("32",), r"filters\[0\] must be a whole number >= 1, got '32'"),
        ("classes", -1, "classes must be a whole number >= 1, got -1"),
        ("dense", 0, "dense must be a whole number >= 1, got 0"),
        ("dense", None, "dense must be a whole number >= 1, got None"),
        ("dropout", 50, f"dropout {RATE} 50"),
    ],
}
ROWS = [
    Row(f"models.{function}", functools.partial(_call, function, name, value), sentence)
    for function, wrong in WRONG.items()
    for name, value, sentence in wrong
]
