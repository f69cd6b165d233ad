"""A model is given its inputs as they are, whatever dtype policy it or another has."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from tests.conftest import SPARSE

# float16 and bfloat16 cannot tell these from each other.
X = np.array([[20001.0], [20002.0], [20003.0], [20004.0]], "float32")
Y = np.array([0, 1, 2, 0])


def around_20000():
    return keras.layers.Normalization(mean=20002.5, variance=1.0, dtype="float32")


def functional(last=None):
    inputs = keras.Input((1,))
    ids = keras.layers.Flatten()(keras.layers.Embedding(20010, 4)(inputs))
    joined = keras.layers.Concatenate()([ids, around_20000()(inputs)])
    hidden = keras.layers.Dense(4, activation="relu", name="hidden")(joined)
    return keras.Model(inputs, keras.layers.Dense(3, dtype=last)(hidden))


def sequential():
    return keras.Sequential(
        [
            keras.Input((1,)),
            around_20000(),
            keras.layers.Dense(4, activation="relu", name="hidden"),
            keras.layers.Dense(3),
        ]
    )


def of_a_dict():
    inputs = {
        "a": keras.Input((1,), name="a"),
        "b": keras.Input((1,), name="b", dtype="int64"),
    }
    ids = keras.layers.Flatten()(keras.layers.Embedding(20010, 4)(inputs["b"]))
    joined = keras.layers.Concatenate()([ids, around_20000()(inputs["a"])])
    return keras.Model(inputs, keras.layers.Dense(3)(joined))


class Subclassed(keras.Model):
    outputs_are_logits = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm, self.dense = around_20000(), keras.layers.Dense(3)
        self.norm.build((None, 1))  # Keras's leaves tensors of a graph if built in one

    def call(self, x):
        return self.dense(self.norm(x))


MODELS = {
    "functional": (functional, X),
    "float64 data": (functional, X.astype("float64")),
    "int64 data": (functional, X.astype("int64")),
    "a float32 layer": (lambda: functional("float32"), X),
    "sequential": (sequential, X),
    "a dict": (of_a_dict, {"a": X, "b": X.astype("int64")}),
    "casts its inputs": (Subclassed, X),
    "casts nothing": (lambda: Subclassed(autocast=False), X),
}


def made(policy, make, x):
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(policy)
    model = make()
    model(x)  # builds it
    keras.config.set_dtype_policy("float32")
    return model


def compiled(model):
    model.compile(keras.optimizers.SGD(0.01), SPARSE, metrics=["accuracy"])
    return model


def cases():
    yield from (("mixed_float16", name) for name in MODELS)
    yield from (("mixed_bfloat16", name) for name in ("functional", "casts its inputs"))
    yield from (("float16", name) for name in ("functional", "sequential"))
    yield from (("float64", name) for name in ("functional", "casts its inputs"))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("policy", "name"), list(cases()))
def test_a_distiller_gives_the_student_what_the_student_alone_is_given(policy, name):
    make, x = MODELS[name]
    alone, student = made(policy, make, x), made(policy, make, x)
    distiller = compiled(kd.Distiller(student, alpha=1.0))
    compiled(alone)
    assert type(distiller.optimizer) is type(alone.optimizer)  # scales its loss or not
    np.testing.assert_array_equal(alone(x), distiller(x))
    np.testing.assert_array_equal(
        alone.predict(x, verbose=0), distiller.predict(x, verbose=0)
    )
    assert alone.evaluate(x, Y, verbose=0) == distiller.evaluate(x, Y, verbose=0)
    expected, history = (
        model.fit(x, Y, epochs=2, shuffle=False, verbose=0).history
        for model in (alone, distiller)
    )
    assert history["loss"] == expected["loss"]
    assert history["accuracy"] == expected["accuracy"]
    for one, other in zip(alone.get_weights(), student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("make", [functional, sequential])
def test_matched_layers_are_run_on_the_inputs_as_they_are(make):
    student = made("mixed_float16", make, X)
    teacher = made("mixed_float16", make, X)
    student.get_layer("hidden").set_weights(teacher.get_layer("hidden").get_weights())
    matching = kd.FeatureLoss("hidden", "hidden")
    distiller = kd.Distiller(student, teacher, alpha=0.0, distillation_loss=matching)
    distiller.compile(keras.optimizers.SGD(0.0))
    assert distiller.fit(X, verbose=0).history["soft_loss"] == [0.0]
    np.testing.assert_array_equal(distiller._student_outputs(X)[0], student(X))


def test_the_teacher_is_given_the_batch_as_it_is():
    seen = []

    def teacher(x):
        seen.append(x.dtype)
        around = tf.cast(x, tf.float32) - 20002.5
        return tf.concat([around, -around, 0.0 * around], 1)

    student = made("mixed_float16", sequential, X)
    distiller = kd.Distiller(student, teacher, teacher_from_logits=True, alpha=0.0)
    distiller.compile(keras.optimizers.SGD(0.0), metrics=[kd.TeacherAgreement()])
    distiller.fit(X, verbose=0)
    distiller.evaluate(X, verbose=0)
    assert set(seen) == {tf.float32}


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_every_part_says_of_a_model_what_it_says_alone(policy, tmp_path):
    model = made(policy, functional, X)
    expected = model.predict(X, verbose=0).astype("float32")
    assert len(np.unique(expected[:, 0])) == 4
    answer = kd.as_teacher(model)(X, 1.0).logits
    np.testing.assert_array_equal(np.asarray(answer, "float32"), expected)
    targets = kd.SoftTargets.write(tmp_path / "soft", model, X, verbose=False)
    (written,) = targets.logits()
    np.testing.assert_allclose(written, expected, rtol=2e-3, atol=1e-4)
    path = kd.export_savedmodel(model, tmp_path / "out", example=X, verbose=False)
    serve = tf.saved_model.load(path).signatures["serving_default"]
    (name,) = serve.structured_input_signature[1]
    np.testing.assert_allclose(
        serve(**{name: tf.constant(X)})["logits"], expected, rtol=1e-5, atol=1e-5
    )
    nll = compiled(model).evaluate(X, Y, verbose=0, return_dict=True)["loss"]
    judged = kd.evaluate(model, (X, Y), timing=False).nll
    assert judged == pytest.approx(nll, rel=5e-3)
    ensemble = kd.SpecialistEnsemble(model)
    np.testing.assert_allclose(
        ensemble.predict(X, verbose=0),
        keras.ops.log_softmax(expected),
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_quantized_student_is_judged_as_it_is_alone():
    student = made("float32", functional, X)
    student.quantize("int8")
    distiller = kd.Distiller(student, student_from_logits=True)
    np.testing.assert_array_equal(student(X), distiller(X))
    np.testing.assert_array_equal(
        student.predict(X, verbose=0), distiller.predict(X, verbose=0)
    )
