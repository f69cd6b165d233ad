"""Wrong uses of pairs of layers: weights that are copied, features that are suggested."""

import functools

import keras

import keras_distill as kd
from tests.hostile import Row
from tests.hostile.things import model, student, teacher


@functools.cache
def _named(width=3, depth=2):
    """A model whose layers have names."""
    layers = [keras.layers.Dense(width, name=f"hidden_{i}") for i in range(depth)]
    return keras.Sequential([keras.Input((width,)), *layers])


def _copy(pairs, to=(3, 2), of=(3, 4)):
    return lambda: kd.copy_weights(_named(*to), _named(*of), pairs)


ROWS = [
    Row(
        "suggest_feature_pairs", lambda: kd.suggest_feature_pairs(student(), "teacher.keras"),
        "model must be a",
    ),
    Row(
        "suggest_feature_pairs",
        lambda: kd.suggest_feature_pairs(student(), teacher(), {"other": [1]}), "takes the inputs",
    ),
    Row("copy_weights", lambda: kd.copy_weights("student", teacher()), "student must be a"),
    Row("copy_weights", lambda: kd.copy_weights(student(), None), "teacher must be a"),
    Row("copy_weights", lambda: kd.copy_weights(student(), student()), "same object"),
    Row(
        "copy_weights",
        lambda: kd.copy_weights(keras.Sequential([keras.layers.Dense(2)]), teacher()),
        "the student 'sequential.*' has no variables yet",
    ),
    Row("copy_weights", lambda: kd.copy_weights(model(7), teacher()), "no layer of the st"),
    *[
        Row("copy_weights", _copy(wrong), "pairs must be a")
        for wrong in ("even", 2, [], {}, {"hidden_0"})
    ],
    *[
        Row("copy_weights", _copy(wrong), r"pairs\[0\] must be")
        for wrong in (["hidden_0"], [("hidden_0",)], [("a", "b", "c")], {"hidden_0": 1}, {1: "a"})
    ],
    Row("copy_weights", _copy({"hiden_0": "hidden_0"}), "no layer 'hiden_0'; .*hidden_0"),
    Row("copy_weights", _copy({"hidden_0": "hidden_4"}), "teacher has no layer 'hidden_4'"),
    Row("copy_weights", _copy({"hidden_0": ""}), "teacher has no layer ''"),
    Row("copy_weights", _copy({"hidden_0": "hidden_0"}, of=(5, 2)), "has the shape .3, 3."),
    Row(
        "copy_weights",
        _copy([("hidden_0", "hidden_0"), ("hidden_0", "hidden_1")]), "two values",
    ),
]  # fmt: skip
