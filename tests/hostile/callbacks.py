"""Wrong uses of callbacks."""

import numpy as np

import keras_distill as kd
from tests.hostile import Row

X = np.zeros((2, 3), "float32")


def row(sentence, x=X, **wrong):
    return Row(
        "callbacks.SoftTargetPictures",
        lambda: kd.callbacks.SoftTargetPictures(x, **wrong),
        sentence,
    )


ROWS = [
    row("x must be a batch of 1 to 32 examples", np.zeros((0, 3))),
    row("x must be a batch of 1 to 32 examples", np.zeros((33, 3))),
    row("x must be a batch", 3.0),
    row("x must be a batch", None),
    row("x must be a batch", {"a": X, "b": X[:1]}),
    row("log_dir must be a path", log_dir=3),
    row("labels must be the class numbers of the 2 examples", labels=[1]),
    row("labels must be the class numbers", labels=[0.0, 1.0]),
    row("labels must be the class numbers", labels="ab"),
    row("class_names must be a list of str", class_names="abc"),
    row("update_freq must be a whole number >= 1, got 0", update_freq=0),
    row("", teacher=object()),
]
