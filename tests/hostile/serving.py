"""Wrong uses of what only versions have: warm-up, images, versions that stay, and cards."""

import functools

import numpy as np

import keras_distill as kd
from tests.hostile import Row
from tests.hostile.export import NAN, exported
from tests.hostile.things import model

BYTES = r"serving_bytes\['%s'\] must be "
SERVED = [
    ("serving_bytes", "jpeg", "serving_bytes must be True, .height, width. or a dict"),
    ("serving_bytes", (224,), "serving_bytes must be True, .height, width. or a dict"),
    ("serving_bytes", (224, 224, 3), "serving_bytes must be True, .height, width. or"),
    ("serving_bytes", (224, 0), "serving_bytes must be True, .*got .224, 0."),
    ("serving_bytes", 22.4, "serving_bytes must be True, .*got 22.4"),
    ("serving_bytes", NAN, "serving_bytes must be True, .*got nan"),
    (
        "serving_bytes",
        {"size": 3},
        "serving_bytes has no option 'size'; there are image",
    ),
    ("serving_bytes", {"color_mode": "BGR"}, BYTES % "color_mode" + '"grayscale" or'),
    ("serving_bytes", {"color_mode": 3}, BYTES % "color_mode"),
    ("serving_bytes", {"interpolation": "linear"}, BYTES % "interpolation" + '"bil'),
    ("serving_bytes", {"scale": "1/255"}, BYTES % "scale" + "a finite number, got"),
    ("serving_bytes", {"scale": NAN}, BYTES % "scale" + "a finite number, got nan"),
    ("serving_bytes", {"scale": []}, BYTES % "scale" + "a list of numbers, 1 at least"),
    (
        "serving_bytes",
        {"offset": [1, None]},
        r"\['offset'\]\[1\] must be a finite number",
    ),
    ("serving_bytes", {"pad_to_aspect_ratio": 1}, BYTES % "pad_to_aspect_ratio"),
    (
        "serving_bytes",
        {"pad_to_aspect_ratio": True, "crop_to_aspect_ratio": True},
        "pad_to_aspect_ratio, which exclude each other; say one of them",
    ),
    ("serving_bytes", True, "serving_bytes needs an input of images"),
    ("warmup", [], "warmup must be a batch, or a list of 1 to 1000 batches"),
    ("warmup", "text", "the warmup for input .* must be a batch of float32"),
    ("warmup", np.ones((2, 3)), r"the warmup for input .* batch of shape .*\(2, 3\)"),
    ("warmup", {"x": np.ones((2, 5))}, "the warmup has 'x', but the model takes"),
    ("warmup", [None], r"the batch warmup\[0\] is None; give a batch of each input"),
    (
        "warmup",
        [np.ones((2, 5)), np.ones(5)],
        r"the batch warmup\[1\] for input .*\(5,\)",
    ),
    ("warmup", [np.ones((1, 5))] * 1001, "of 1 to 1000 batches.*got a list of 1001"),
    ("keep", 0, "keep must be a whole number >= 1, got 0"),
    ("keep", -1, "keep must be a whole number >= 1, got -1"),
    ("keep", True, "keep must be a whole number >= 1, got True"),
    ("keep", 2.0, "keep must be a whole number >= 1, got 2.0"),
    ("keep", "2", "keep must be a whole number >= 1, got '2'"),
    (
        "card",
        "card.md",
        "made of a Distiller, a SearchResult or keywords, got 'card.md'",
    ),
    ("card", 3, "made of a Distiller, a SearchResult or keywords, got 3"),
    ("card", [], "made of a Distiller, a SearchResult or keywords, got "),
    ("card", {"dataset": "x"}, "card has 'dataset', which is no keyword of ModelCard"),
    ("card", {3: "x"}, "card has 3, which is no keyword of ModelCard"),
    ("card", {"data": 3}, "data must be a str, got 3"),
]
CARDS = [
    ("teacher", 3, "teacher must be a keras.Model, a list of teachers, a path"),
    ("teacher", [], "teacher"),
    ("teacher", "gone.keras", "gone.keras"),
    ("temperature", 0, "temperature must be a finite number > 0, got 0"),
    ("temperature", "4", "temperature must be a finite number > 0, got '4'"),
    ("alpha", 2, "alpha must be a number from 0 to 1, got 2"),
    ("loss", 3, "loss must be the name of a loss, a loss, or a dict or list .* got 3"),
    ("distillation_loss", {"a": 3}, "distillation_loss must be the name of a loss"),
    ("data", 3, "data must be a str, got 3"),
    ("data", ["MNIST"], "data must be a str, got "),
    ("data_version", 3.0, "data_version must be a str, got 3.0"),
    ("seeds", -1, "seeds must be a whole number .*got -1"),
    ("seeds", True, "seeds must be a whole number .*got True"),
    ("seeds", "0", "seeds must be a list of whole numbers, 1 at least, got '0'"),
    ("seeds", [], "seeds must be a list of whole numbers, 1 at least"),
    ("seeds", [0, 1.5], r"seeds\[1\] must be a whole number .*got 1.5"),
    (
        "evaluation",
        "98 %",
        "evaluation must be what compare or evaluate return, got '98",
    ),
    (
        "evaluation",
        {"accuracy": 1},
        "evaluation must be what compare or evaluate return",
    ),
    ("latency", 3.0, "latency must be a dict of finite numbers or str.*got 3.0"),
    ("latency", {"p50": NAN}, "latency must be a dict of finite numbers or str"),
    ("latency", {3: 1.0}, "latency must be a dict of finite numbers or str"),
    ("latency", {"p50": None}, "latency must be a dict of finite numbers or str"),
    ("notes", b"x", "notes must be a str, got b'x'"),
]
ROWS = [
    *[
        Row("export_savedmodel", exported(name, value), sentence)
        for name, value, sentence in SERVED
    ],
    *[
        Row("ModelCard", functools.partial(kd.ModelCard, **{name: value}), sentence)
        for name, value, sentence in CARDS
    ],
    *[
        Row(
            "ModelCard",
            functools.partial(kd.ModelCard, value),
            "a card is made of a Distiller, a SearchResult or keywords, got",
        )
        for value in (3, "card.md", model, {"data": "MNIST"})
    ],
]
