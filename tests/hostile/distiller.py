"""Wrong uses of the distiller and its losses."""

import keras_distill as kd
from tests.hostile import Row
from tests.hostile.things import student, teacher


def _with(**arguments):
    return lambda: kd.Distiller(student(), teacher(), **arguments)


ROWS = [
    Row(
        "Distiller", _with(temperature=wrong), "temperature must be a finite number > 0"
    )
    for wrong in (0, -1.0, float("nan"), float("inf"), "4", None, True, [4], (1, 2))
] + [
    Row("Distiller", _with(temperature=1e20), "float32 can neither square nor divide"),
    Row("Distiller", _with(temperature=1e-20), "float32 can neither square nor divide"),
    *[
        Row("Distiller", _with(alpha=wrong), "alpha must be a number from 0 to 1")
        for wrong in (-0.1, 1.1, float("nan"), "0.5", None, True, [0.5])
    ],
]
