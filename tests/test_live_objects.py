"""Models with the user's own layers and functions: written by name, read in safe mode."""

import json
import types
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill import live_objects
from keras_distill.run_directory import architecture_fingerprint
from tests import forking
from tests.conftest import CLASSES, FEATURES, mlp

ARRAY = np.arange(1.0, FEATURES + 1).astype("float32")
TENSOR = tf.constant(2.0)


class Scale(keras.layers.Layer):
    """Not registered, and without a get_config."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape):
        self.offset = self.add_weight(shape=(shape[-1],), initializer="random_normal")

    def call(self, x):
        return x * self.factor + self.offset


class Applied(keras.layers.Layer):
    """Holds a function, which its config has."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)

    def get_config(self):
        return {**super().get_config(), "function": self.function}

    @classmethod
    def from_config(cls, config):
        function = keras.saving.deserialize_keras_object(config.pop("function"))
        return cls(function, **config)


class Hidden(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(FEATURES)

    def call(self, x):
        return self.dense(x)


class Whole(keras.Model):
    """A Functional model of a class of its own."""

    def __init__(self):
        x = keras.Input((FEATURES,))
        super().__init__(x, keras.layers.Dense(CLASSES)(x * 2.0))

    def get_config(self):
        return {}


class Nothing(keras.regularizers.Regularizer):
    def __call__(self, x):
        return 0.0

    def get_config(self):
        return {}


def times(factor):
    def scaled(x):
        return x * factor

    return scaled


def relu(x):
    """Called as one of Keras's own, and another."""
    return x * 100.0


def of(*layers):
    last = keras.layers.Dense(CLASSES)
    return keras.Sequential([keras.Input((FEATURES,)), *layers, last])


def functional(layer):
    x = keras.Input((FEATURES,))
    return keras.Model(x, keras.layers.Dense(CLASSES)(layer(x)))


L = keras.layers
MODELS = {
    "lambda": lambda: of(L.Lambda(lambda x: x * 2)),
    "names of the module": lambda: of(L.Lambda(lambda x: tf.nn.relu(x) * np.pi)),
    "closures": lambda: of(
        L.Lambda(lambda x, a=ARRAY: x * a),
        L.Lambda(lambda x: x - TENSOR),
    ),
    "arguments": lambda: of(L.Lambda(lambda x, by: x * by, arguments={"by": 3.0})),
    "output_shape": lambda: of(L.Lambda(lambda x: x * 2, output_shape=lambda s: s)),
    "TensorFlow's": lambda: of(L.Lambda(tf.nn.softsign)),
    "keras.ops": lambda: of(L.Lambda(keras.ops.abs)),
    "layer": lambda: of(Scale(3.0)),
    "two of one name": lambda: of(L.Activation(times(2.0)), L.Activation(times(3.0))),
    "activation": lambda: of(L.Dense(FEATURES, activation=lambda x: x * 3)),
    "named as Keras's": lambda: of(L.Dense(9, relu), L.Dense(9, "relu")),
    "function in a layer": lambda: of(Applied(lambda x: x + 1)),
    "regularizer": lambda: of(L.Dense(FEATURES, kernel_regularizer=Nothing())),
    "subclassed model in it": lambda: functional(Hidden()),
    "nested": lambda: functional(of(L.Lambda(lambda x: x * ARRAY))),
    "class of its own": Whole,
}


@pytest.mark.parametrize("made", MODELS)
def test_a_copy_in_safe_mode_answers_as_the_model(tmp_path, made):
    model = MODELS[made]()
    functions = [
        layer.function for layer in model.layers if isinstance(layer, L.Lambda)
    ]
    names = [function.__name__ for function in functions]
    objects = live_objects.save(model, f"{tmp_path}/m.keras", "model")
    copy = live_objects.load(f"{tmp_path}/m.keras", objects, "model")
    x = np.random.default_rng(0).normal(size=(4, FEATURES)).astype("float32")
    np.testing.assert_array_equal(copy(x), model(x))
    # No code is in the file, and no name has stayed another.
    config = json.loads(zipfile.ZipFile(tmp_path / "m.keras").read("config.json"))
    assert "__lambda__" not in json.dumps(config)
    assert [function.__name__ for function in functions] == names
    assert not any(
        isinstance(f, types.LambdaType) and ":" in f.__name__ for f in objects
    )


def test_what_only_compile_was_given_is_not_carried(tmp_path):
    model = of(L.Lambda(lambda x: x * 2))
    model.compile(loss=lambda y, z: keras.ops.mean(z * ARRAY[0]), metrics=[relu])
    assert len(live_objects.save(model, f"{tmp_path}/m.keras", "model")) == 1


def test_functions_are_told_apart_by_what_they_do():
    """As a run is found again: by code and closure, not by line or address."""
    found = [
        architecture_fingerprint(of(L.Lambda(function)))
        for function in (
            times(2.0),
            times(2.0),
            times(3.0),
            lambda x: x * 2,
            lambda x: x + 2,
        )
    ]
    assert found[0] == found[1]
    assert len(set(found[1:])) == 4


CLUSTERS = [[0, 1], [2, 3, 4]]


class Unknown(keras.layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


def test_a_generalist_that_cannot_be_copied_is_refused():
    x, y = np.zeros((10, FEATURES), "float32"), np.arange(10) % CLASSES
    builder = kd.SpecialistBuilder(of(Unknown(lambda x: x)), CLUSTERS)
    before = builder.generalist.get_weights()
    with pytest.raises(
        ValueError, match="the generalist cannot be copied, .*give its layers a get_con"
    ):
        builder.fit((x, y), verbose=False)
    for now, then in zip(builder.generalist.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)

    def build(generalist, outputs):
        x = keras.Input((FEATURES,))
        return keras.Model(x, keras.layers.Dense(outputs)(Unknown(tf.nn.relu)(x)))

    builder = kd.SpecialistBuilder(mlp(), CLUSTERS, build_specialist=build)
    with pytest.raises(
        ValueError, match="the model of build_specialist cannot be copied"
    ):
        builder.fit((x, y), verbose=False)


PROGRAM = """
import os, sys, threading
import numpy as np
import keras
import keras_distill as kd
import tensorflow as tf

made_in = os.getpid()
factor = np.arange(8.0, dtype="float32")

class Scale(keras.layers.Layer):
    def __init__(self, by, **kwargs):
        super().__init__(**kwargs)
        self.by = by
    def build(self, shape):
        self.offset = self.add_weight(shape=(shape[-1],))
    def call(self, x):
        return x * self.by + self.offset

class Mixed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(8)
    def call(self, x):
        return self.dense(x)

def times(by):
    return lambda x: tf.nn.relu(x) * by

keras.utils.set_random_seed(0)
L = keras.layers
generalist = keras.Sequential([
    keras.Input((8,)), L.Lambda(times(factor)), Scale(2.0), Mixed(), L.Lambda(times(0.5)),
    L.Dense(6, activation=lambda x: x * 2.0, name="z"),
])
x = np.random.default_rng(0).normal(size=(60, 8)).astype("float32")
data = x, np.arange(60) % 6

def build(generalist, outputs):
    by = float(outputs)
    x = keras.Input((8,))
    return keras.Model(x, Scale(by)(L.Dense(outputs)(L.Lambda(lambda x: x / by)(x))))

def weights(n_jobs, folder, build=None, generalist=generalist):
    builder = kd.SpecialistBuilder(generalist, [[0, 1], [2, 3, 4]], build_specialist=build)
    ensemble = builder.fit(data, hard_epochs=1, soft_epochs=1, n_jobs=n_jobs, threads=1,
                           work_dir=folder, verbose=False)
    there = {record["worker"].rpartition(":")[2] for record in builder.records}
    assert str(made_in) not in there or n_jobs == 1, there
    answers = ensemble(x)
    assert np.isfinite(answers).all()
    return [w for m in ensemble.specialists for w in m.get_weights()] + [answers]

folder = sys.argv[1]
"""
FIRST = """
wanted = weights(1, f"{folder}/copies")
for ours, theirs in zip(weights(2, None), wanted, strict=True):
    np.testing.assert_array_equal(ours, theirs)
np.savez(f"{folder}/copies.npz", *wanted)
weights(1, f"{folder}/built", build)
locked = threading.Lock()
one = keras.Sequential([keras.Input((8,)), L.Dense(6), L.Lambda(lambda x: (locked, x)[1])])
try:
    weights(2, None, generalist=one)
except TypeError as error:
    assert "let them hold nothing that only this process has" in str(error), error
else:
    raise AssertionError
"""
AGAIN = """
os.remove(f"{folder}/copies/specialist-0001.json")
found, wanted = weights(1, f"{folder}/copies"), np.load(f"{folder}/copies.npz")
for ours, theirs in zip(found, wanted.values(), strict=True):
    np.testing.assert_array_equal(ours, theirs)
weights(1, f"{folder}/built", build)  # only read
generalist.layers[3].function = times(0.25)
try:
    weights(1, f"{folder}/copies")
except ValueError as error:
    assert "generalist's architecture differ" in str(error), error
else:
    raise AssertionError
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:1 of 6 classes")
def test_a_script_of_ones_own_layers_in_its_processes_and_again(tmp_path):
    """Classes and lambdas of `__main__`, in this process, in workers, in the next run."""
    for part in (FIRST, AGAIN):
        done = forking.run(["-c", PROGRAM + part, tmp_path])
        assert done.returncode == 0, done.stderr
