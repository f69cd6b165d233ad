"""What we use of other packages' private names is there, and nowhere but in its place."""

import ast
import importlib
import itertools
import pathlib

import joblib.externals.loky.process_executor
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill import keras_compat

PACKAGE = pathlib.Path(keras_compat.__file__).parent
# The places for private names: ours, that of KerasTuner, and a program that imports neither.
COMPAT = (
    PACKAGE / "keras_compat.py",
    PACKAGE / "tuning" / "keras_tuner_compat.py",
    PACKAGE / "quantization" / "litert.py",
)


def compiled():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def converter():
    function = tf.function(tf.identity, input_signature=[tf.TensorSpec((1,))])
    functions = [function.get_concrete_function()]
    return tf.lite.TFLiteConverter.from_concrete_functions(functions, tf.Module())


def masked():
    layer = keras.layers.Masking()
    return layer(tf.ones((1, 2, 3)))


# Each private name, and something that must have it.
NAMES = {
    "_keras_history": lambda: keras.Input((1,)),
    "_inbound_nodes": lambda: keras.layers.Dense(1),
    "_keras_logits": lambda: keras.ops.softmax(tf.ones((1, 2))),
    "_keras_mask": masked,
    "_flatten_layers": compiled,
    "_trainable_variables": lambda: keras.layers.Dense(1),
    "_non_trainable_variables": lambda: keras.layers.Dense(1),
    "_loss_tracker": compiled,
    "_compile_loss": compiled,
    "_compile_metrics": compiled,
    "_maybe_symbolic_build": compiled,
    "_in_multi_worker_mode": lambda: (
        tf.distribute.MultiWorkerMirroredStrategy().extended
    ),
    "_reshuffle_each_iteration": lambda: tf.data.Dataset.range(1).shuffle(1),
    "_inputs": lambda: tf.data.Dataset.range(1).map(lambda x: x),
    "_map_func": lambda: tf.data.Dataset.range(1).flat_map(tf.data.Dataset.range),
    "_batch_size": lambda: tf.data.Dataset.range(1).batch(1),
    "_omit_frequent_tracing_warning": lambda: tf.function(lambda: None),
    "_experimental_low_bit_qat": converter,
    "_MAX_MEMORY_LEAK_SIZE": lambda: joblib.externals.loky.process_executor,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_versions_have_the_private_name(name):
    owner = NAMES[name]()
    assert hasattr(owner, name), f"{name} of {type(owner)} has moved"


# What a keras.Model has is not ours, on self either.
OF_KERAS = {name for name in dir(compiled()) if name.startswith("_")}
# Public in spite of their names.
PUBLIC = {"_replace", "_asdict", "_exit"}


def on_self(node):
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def private_names(tree):
    """Yields line and name of what is private and belongs to something else."""
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    # What this file has put on self, and reads from a copy of itself.
    own = {n.attr for n in attributes if isinstance(n.ctx, ast.Store) and on_self(n)}
    own |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    found = [
        (node.lineno, node.attr)
        for node in attributes
        if node.attr in OF_KERAS or not (on_self(node) or node.attr in own)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("getattr", "hasattr", "setattr", "delattr"):
                name = node.args[1]
                if isinstance(name, ast.Constant):
                    found.append((node.lineno, name.value))
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [*node.module.split("."), *(a.name for a in node.names)]
            if names[0] != "keras_distill":
                private = {"src": "_src", "python": "_python"}
                found += [(node.lineno, private.get(name, name)) for name in names]
    for line, name in found:
        is_private = name.startswith("_") and not name.endswith("__")
        if is_private and name not in PUBLIC:
            yield line, name


def test_private_names_of_others_are_used_in_their_place_only():
    found = [
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path not in COMPAT
        for line, name in private_names(ast.parse(path.read_text()))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("tensor._keras_history", "_keras_history"),
        ("getattr(tensor, '_keras_mask', None)", "_keras_mask"),
        ("class A:\n  def f(self): return self._loss_tracker", "_loss_tracker"),
        ("from keras.src import backend", "_src"),
    ],
)
def test_a_private_name_elsewhere_would_be_found(code, name):
    assert [found for _, found in private_names(ast.parse(code))] == [name]


def test_every_private_name_of_keras_compat_is_watched():
    used = {name for _, name in private_names(ast.parse(COMPAT[0].read_text()))}
    # What is imported from these has a test of its own.
    watched = {*NAMES, "_src", "_python"}
    assert used <= watched, used - watched


SHUFFLED = {
    "batches": lambda d: d.shuffle(4).batch(2).prefetch(1),
    "an input of zip": lambda d: tf.data.Dataset.zip(d, d.shuffle(4)),
}
IN_ORDER = {
    "plain": lambda d: d.batch(2),
    "once": lambda d: d.shuffle(4, reshuffle_each_iteration=False).batch(2),
}


@pytest.mark.parametrize("missing", [None, "_inputs", "_reshuffle_each_iteration"])
def test_shuffling_is_noticed_whatever_has_moved(missing, monkeypatch):
    """A name that is gone must not let shuffled data through."""
    if missing is not None:

        def absent(thing, name, *default):
            return default[0] if name == missing else getattr(thing, name, *default)

        monkeypatch.setattr(keras_compat, "getattr", absent, raising=False)
    for make in SHUFFLED.values():
        assert keras_compat.reshuffles(make(tf.data.Dataset.range(8)))
    for make in IN_ORDER.values():
        assert not keras_compat.reshuffles(make(tf.data.Dataset.range(8)))


def generated(count=None):
    spec = tf.TensorSpec((), tf.int64)
    steps = itertools.count() if count is None else range(count)
    return tf.data.Dataset.from_generator(lambda: steps, output_signature=spec)


@pytest.mark.slow
def test_what_never_ends_is_noticed_and_nothing_else():
    range_, keep = tf.data.Dataset.range, lambda *x: True
    endless = range_(3).repeat()
    for data in (
        endless,
        endless.filter(keep),
        endless.batch(2).filter(keep).map(lambda x: x),
        range_(3).filter(keep).repeat(),
        tf.data.Dataset.zip(endless, endless.filter(keep)),
    ):
        assert keras_compat.never_ends(data)
    for data in (
        endless.filter(keep).take(5),
        endless.take_while(lambda x: x < 2),
        range_(3).filter(keep).repeat(2),
        tf.data.Dataset.zip(endless, range_(3).filter(keep)),
        range_(3).interleave(lambda x: range_(2)),
        tf.data.TFRecordDataset(["a"]).batch(2),
        generated(3),
    ):
        assert not keras_compat.never_ends(data)
    for data in (generated(), generated().batch(2).prefetch(1), generated(3)):
        assert keras_compat.ends_with_a_generator(data)
    for data in (
        generated().take(3).batch(2),
        generated(3).apply(tf.data.experimental.assert_cardinality(3)).filter(keep),
        tf.data.TFRecordDataset(["a"]),
        range_(3).flat_map(tf.data.Dataset.range),
        tf.data.Dataset.zip(generated(), range_(3).filter(keep)),
    ):
        assert not keras_compat.ends_with_a_generator(data)


def test_the_batch_size_is_seen_through_what_hands_batches_on():
    data = tf.data.Dataset.range(8)
    batches = data.batch(3).cache().prefetch(1)
    assert keras_compat.batch_size_of(batches) == 3
    assert keras_compat.batch_size_of(batches.with_options(tf.data.Options())) == 3
    assert keras_compat.batch_size_of(data.batch(4, drop_remainder=True)) == 4
    # It may have dropped some of each batch.
    assert keras_compat.batch_size_of(batches.map(lambda x: x[:1])) is None


def test_a_shared_layer_says_which_of_its_calls_made_a_tensor():
    layer = keras.layers.Dropout(0.1)
    first, second = keras.Input((1,)), keras.Input((1,))
    layer(first)
    operation, index, inputs = keras_compat.made_by(layer(second))
    assert (operation, index) == (layer, 0)
    assert inputs[0] is second


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("", ["get_data_adapter", "is_torch_dataloader"]),
        (
            ".array_slicing",
            ["can_slice_array", "convert_to_sliceable", "TensorflowSparseSliceable"],
        ),
        (".data_adapter_utils", ["is_scipy_sparse", "scipy_sparse_to_tf_sparse"]),
    ],
)
def test_the_installed_keras_reads_data_by_these_names(module, names):
    found = importlib.import_module(f"keras.src.trainers.data_adapters{module}")
    assert [name for name in names if not hasattr(found, name)] == []


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("keras.src.models.functional", "Functional"),
        (
            "tensorflow.python.framework.convert_to_constants",
            "convert_variables_to_constants_v2",
        ),
        (
            "tensorflow.python.ops.control_flow_util",
            "GraphOrParentsInXlaContext",
        ),
    ],
)
def test_what_is_imported_from_private_modules_is_there(module, name):
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.slow
def test_what_is_judged_again_and_again_is_traced_without_a_warning(caplog):
    x, y = np.eye(4, dtype="float32"), np.arange(4)

    def model():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])

    ensemble = kd.SpecialistEnsemble(
        model(), [model(), model()], [[0, 1], [2, 3]], head="all"
    )
    logger = tf.get_logger()  # whose lines go to no other
    logger.addHandler(caplog.handler)
    caplog.set_level("WARNING", logger.name)
    try:
        for _ in range(6):
            kd.evaluate(model(), (x, y), timing=False)
            kd.class_covariance(model(), x, verbose=False)
            kd.specialist_report(ensemble, (x, y))
        assert "retracing" not in caplog.text
        for _ in range(6):  # it does say so of others
            tf.function(model().call)(x)
        assert "retracing" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)
