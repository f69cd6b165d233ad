import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.logits_or_probabilities import (
    gives_logits,
    said_or_found,
    settle,
    to_logits,
)
from keras_distill.outputs import kinds_of
from keras_distill.structures import keys_of
from tests.conftest import mlp


def chain(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: chain(keras.layers.Dense(3)), True),
        (lambda: chain(keras.layers.Dense(3, activation="softmax")), False),
        (lambda: chain(keras.layers.Dense(3), keras.layers.Softmax()), False),
        (
            lambda: chain(keras.layers.Dense(3), keras.layers.Activation("softmax")),
            False,
        ),
        (
            lambda: chain(
                keras.layers.Dense(3, activation="softmax"), keras.layers.Dropout(0.5)
            ),
            False,
        ),
        (
            lambda: chain(
                keras.layers.Dense(6, activation="softmax"),
                keras.layers.Reshape((2, 3)),
            ),
            False,
        ),
        (lambda: chain(chain(keras.layers.Dense(3, activation="softmax"))), False),
        (lambda: chain(chain(keras.layers.Dense(3))), True),
        (
            lambda: chain(keras.layers.Dense(3), keras.layers.Activation("linear")),
            True,
        ),
        (lambda: chain(keras.layers.Lambda(lambda x: x)), None),
        (lambda: chain(keras.layers.Dense(3, activation=tf.nn.softmax)), False),
        (lambda: chain(keras.layers.Dense(3, activation=tf.nn.log_softmax)), True),
        (lambda: chain(keras.layers.Dense(3, activation=lambda x: x)), None),
    ],
)
def test_last_layer_tells(model, expected):
    assert gives_logits(model()) is expected


def test_softmax_operation_tells():
    inputs = keras.Input((4,))
    outputs = keras.ops.softmax(keras.layers.Dense(3)(inputs))
    assert gives_logits(keras.Model(inputs, outputs)) is False


def test_keras_applications_end_in_softmax_and_can_be_told_not_to():
    make = keras.applications.MobileNetV3Small
    kwargs = {"input_shape": (32, 32, 3), "weights": None, "classes": 7}
    assert gives_logits(make(**kwargs)) is False
    assert gives_logits(make(classifier_activation=None, **kwargs)) is True


def test_a_sigmoid_gives_probabilities():
    assert gives_logits(mlp(activation="sigmoid")) is False


def test_sigmoid_that_is_not_distilled_is_left_alone():
    inputs = keras.Input((4,))
    model = keras.Model(
        inputs,
        {
            "classes": keras.layers.Dense(3, activation="softmax")(inputs),
            "quality": keras.layers.Dense(1, activation="sigmoid")(inputs),
        },
    )
    assert gives_logits(model, {"classes"}) == {"classes": False, "quality": True}


def test_exact_logits_come_back_from_a_softmax():
    model = chain(keras.layers.Dense(3), keras.layers.Softmax())
    x = 1000.0 * np.ones((2, 4), "float32")  # probabilities underflow to 0 here
    probabilities = model(x)
    expected = model.layers[0](x)
    assert float(keras.ops.min(probabilities)) == 0.0
    np.testing.assert_array_equal(to_logits(probabilities, False), expected)


def test_bare_probabilities_give_finite_log_probabilities():
    logits = to_logits(np.array([[1.0, 0.0], [0.25, 0.75]], "float32"), False)
    np.testing.assert_allclose(logits[1], np.log([0.25, 0.75]), rtol=1e-6)
    assert np.isfinite(np.asarray(logits)).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [([[0.2, 0.8], [0.5, 0.5]], False), ([[0.2, 1.8]], True), ([[-0.5, 1.5]], True)],
)
def test_values_tell_and_it_is_said(values, expected):
    with pytest.warns(UserWarning, match=rf"Pass teacher_from_logits={expected} to"):
        settled = settle(np.array(values), None, "teacher", "teacher_from_logits")
    assert settled is expected


# What the user says of it ------------------------------------------------------------


class SoftmaxDense(keras.layers.Dense):
    """Called like a layer that gives logits, and does something else."""

    def call(self, inputs):
        return keras.ops.softmax(super().call(inputs))


def in_columns():
    return keras.Sequential([keras.Input((3, 4)), keras.layers.Softmax(axis=1)])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: chain(keras.layers.Dense(3)), False),
        (lambda: chain(keras.layers.Dense(3), keras.layers.Dropout(0.5)), False),
        (lambda: chain(chain(keras.layers.Dense(3))), False),
        (lambda: chain(keras.layers.Dense(3, activation="log_softmax")), False),
        (lambda: chain(keras.layers.Dense(3, activation="softmax")), True),
        (lambda: chain(keras.layers.Dense(3, activation="sigmoid")), True),
        (lambda: chain(keras.layers.Dense(3), keras.layers.Softmax()), True),
        (lambda: chain(chain(keras.layers.Dense(3), keras.layers.Softmax())), True),
    ],
)
def test_what_the_last_layer_plainly_is_cannot_be_said_otherwise(model, said, tmp_path):
    model = model()
    gives = "probabilities" if said else "logits"
    for call in (
        lambda: kd.as_teacher(model, from_logits=said),
        lambda: kd.as_teacher(kd.as_teacher(model), from_logits=said),
        lambda: kd.as_teacher([model], from_logits=said),
        lambda: kd.Distiller(
            mlp(features=4, classes=3), model, teacher_from_logits=said
        ),
        lambda: kd.Distiller(model, student_from_logits=said),
        lambda: kd.export_savedmodel(model, tmp_path / "out", from_logits=said),
        lambda: kd.evaluate(
            model, (np.ones((4, 4)), np.array([0, 1, 2, 0])), from_logits=said
        ),
        lambda: kd.class_covariance(model, np.ones((4, 4)), from_logits=said),
        lambda: kd.SoftTargets.write(
            tmp_path / "cache", model, np.ones((4, 4)), teacher_from_logits=said
        ),
    ):
        with pytest.raises(
            ValueError, match=f"from_logits is {said}, .* gives {gives}"
        ):
            call()
    assert said_or_found(not said, model, None) is not said


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize(
    "model",
    [
        lambda: chain(keras.layers.Dense(3), keras.layers.Lambda(keras.ops.softmax)),
        lambda: chain(keras.layers.Dense(3, activation=lambda z: z)),
        lambda: chain(SoftmaxDense(3)),
        lambda: chain(keras.layers.Dense(3), keras.layers.ReLU()),
        in_columns,
    ],
)
def test_what_the_layers_do_not_say_may_be_said(model, said):
    assert said_or_found(said, model(), None) is said


def test_each_output_is_held_to_its_own_layer():
    inputs = keras.Input((4,))
    model = keras.Model(
        inputs,
        {
            "a": keras.layers.Dense(3, activation="softmax")(inputs),
            "b": keras.layers.Dense(3)(inputs),
        },
    )
    right = {"a": False, "b": True}
    assert said_or_found(right, model, None) == right
    for said in (True, False, {"a": True, "b": True}, {"a": False, "b": False}):
        with pytest.raises(ValueError, match="of output '[ab]' of .* gives"):
            said_or_found(said, model, None)
    # What is not distilled may be anything.
    assert said_or_found(True, model, {"b"}) is True


@pytest.mark.parametrize("said", ["yes", 1, 0.5, {"a": "no"}, [True]])
def test_what_is_said_is_a_bool(said):
    with pytest.raises(
        ValueError, match=r"from_logits.* must be True, False, None to find out"
    ):
        said_or_found(said, None, None)


def test_a_store_is_opened_with_a_teacher_that_ends_in_a_softmax(tmp_path):
    model = chain(keras.layers.Dense(3, activation="softmax"))
    written = kd.SoftTargets.write(tmp_path / "cache", model, np.ones((4, 4)))
    opened = kd.SoftTargets.open(tmp_path / "cache", teacher=model)
    assert len(opened) == len(written) == 4


def test_a_dict_of_outputs_is_known_by_its_keys_in_any_order():
    x = keras.Input((3,))
    outputs = {"z": keras.layers.Dense(2, name="one")(x)}
    outputs["b"] = keras.layers.Dense(1, activation="sigmoid", name="two")(x)
    model = keras.Model(x, outputs)
    assert keys_of(model) == (["z", "b"], ["one", "two"])
    assert kinds_of(model, {"one": "mse"}) == {"z": "values", "b": "sigmoid"}
