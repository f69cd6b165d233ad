import gc
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Two workers of pytest share two cores; more threads only take turns on them.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# TensorFlow's start-up log of every worker would stand between the results.
os.environ["KERAS_DISTILL_QUIET"] = "1"
import keras_distill  # noqa: F401

del os.environ["KERAS_DISTILL_QUIET"]

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import latency
from tests import forking

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def pytest_configure(config):
    """Makes two logical CPU devices, for MirroredStrategy, before there is any tensor.

    A worker process that is sent something from a test module imports this file too, and
    may have run TensorFlow before; hence not at import.
    """
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    forking.fork_pools()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leaves to the slow tests all but a sample of the cases of a test marked `sampled(n)`."""
    cases = {}
    for item in items:
        if item.get_closest_marker("sampled"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for group in cases.values():
        count = group[0].get_closest_marker("sampled").args[0]
        # Drawn, since even spacing can miss all cases of one parameter; always the same.
        chosen = {*np.random.default_rng(0).permutation(len(group))[:count]}
        for i in set(range(len(group))) - chosen:
            group[i].add_marker(pytest.mark.slow)


def pytest_collection_finish(session):
    """Takes what is imported out of every later collection: 0.01 s in place of 0.4 s."""
    gc.collect()
    gc.freeze()


# Programs that the tests start, not tests.
collect_ignore = [
    "multi_worker.py",
    "killed_writers.py",
    "killed_specialists.py",
    "searching.py",
    "forking.py",
]

FEATURES, CLASSES = 8, 5


@pytest.fixture(scope="session")
def mirrored():
    """Two replicas; one strategy for all: each would number its collectives from 1."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert strategy.num_replicas_in_sync == 2
    return strategy


@pytest.fixture(scope="module", autouse=True)
def _swept():
    """Takes what a module leaves out of every later collection, which Keras starts often.

    A collection of what 2 000 tests have left takes seconds, and a search starts dozens.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_keras():
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True)
def _briefly_timed(request, monkeypatch):
    """Times models in the test's process and for a moment, where a fresh one is no point."""
    if request.node.get_closest_marker("fresh_process") is None:
        monkeypatch.setattr(latency, "_job", lambda model, path: None)
        monkeypatch.setattr(latency, "_SECONDS", 0.05)


@pytest.fixture
def examples_path(monkeypatch):
    """The path to import the examples' modules from; they go with the test.

    So does what they register with Keras: it is sent to other processes, which could not
    import it.
    """
    registered = keras.saving.get_custom_objects()
    before, modules = set(registered), set(sys.modules)
    yield monkeypatch.syspath_prepend
    for name in set(registered) - before:
        del registered[name]
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if pathlib.Path(file).is_relative_to(EXAMPLES):
            del sys.modules[name]


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, FEATURES)).astype("float32")
    return x, rng.integers(CLASSES, size=64)


def mlp(width=6, classes=CLASSES, activation=None, features=FEATURES, **kwargs):
    return keras.Sequential(
        [
            keras.Input((features,)),
            keras.layers.Dense(width, activation="relu", name="hidden"),
            keras.layers.Dense(classes, activation=activation, name="out"),
        ],
        **kwargs,
    )


def tagger(width=4, classes=CLASSES, vocabulary=20):
    """A sequence model with a Keras mask: token 0 is padding."""
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(vocabulary, width, mask_zero=True),
            keras.layers.Dense(classes),
        ]
    )


def copy_of(model):
    """A model with weights of its own that start at the same values."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def largest_difference(a, b):
    return max(
        float(np.max(np.abs(np.asarray(x, "float64") - np.asarray(y, "float64"))))
        for x, y in zip(a, b, strict=True)
    )
