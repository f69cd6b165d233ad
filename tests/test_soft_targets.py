import hashlib
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.losses.kl import tempered_kl
from keras_distill.run_directory import SETTINGS
from keras_distill.soft_targets import digests, settings, shards
from keras_distill.soft_targets.jobs import Job
from keras_distill.soft_targets.joining import plain_errors
from keras_distill.top_k import REST_BETAS
from tests import forking
from tests.conftest import (
    CLASSES,
    FEATURES,
    SPARSE,
    copy_of,
    largest_difference,
    mlp,
    tagger,
)

COUNT = 100


@pytest.fixture(scope="module")
def many():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(COUNT, FEATURES)).astype("float32")
    return x, rng.integers(CLASSES, size=COUNT)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "cached")


@pytest.fixture(scope="module")
def exact(many, tmp_path_factory):
    """A store of all logits in float32, which no test changes, and its teacher."""
    keras.utils.set_random_seed(0)
    teacher = mlp(32)
    path = str(tmp_path_factory.mktemp("exact") / "cached")
    return written(path, teacher, dataset_of(many), dtype="float32"), teacher


def dataset_of(many):
    return tf.data.Dataset.from_tensor_slices(many)


def written(path, teacher, data, **kwargs):
    kwargs = {"batch_size": 16, "shard_size": 32, "verbose": False, **kwargs}
    return kd.SoftTargets.write(path, teacher, data, **kwargs)


def keep(*_):
    return True


def same(*parts):
    return parts


def cached_logits(joined):
    """All soft targets of a joined dataset, examples or batches, as arrays."""
    batches = joined
    if len(tf.nest.flatten(joined.element_spec)[0].shape) == 1:
        batches = joined.batch(64)
    parts = [batch[0].soft_targets for batch in batches]
    return tf.nest.map_structure(lambda *p: np.concatenate(p), *parts)


def distiller_for(student, teacher=None, run_eagerly=True, **kwargs):
    """Few steps cost less than a trace."""
    distiller = kd.Distiller(student, teacher, **kwargs)
    distiller.compile(keras.optimizers.SGD(0.1), SPARSE, run_eagerly=run_eagerly)
    return distiller


# Writing and reading ------------------------------------------------------------------


@pytest.mark.parametrize(
    "arrange",
    [
        lambda d: d,
        lambda d: d.batch(16),
        lambda d: d.batch(16, drop_remainder=True),
        lambda d: d.batch(7).prefetch(2),
        lambda d: d.batch(7).map(same),
        lambda d: d.batch(7).filter(keep),
        lambda d: d.filter(keep),
        lambda d: d.map(lambda x, y: x),
        lambda d: d.map(lambda x, y: (x, y, 1.0)),
        lambda d: d.map(lambda x, y: x).batch(7),
    ],
)
def test_joins_examples_and_batches_of_any_kind(exact, many, arrange):
    targets, teacher = exact
    data = arrange(dataset_of(many))
    joined = targets.join(data)
    logits = cached_logits(joined)
    assert (
        largest_difference(
            [logits], [teacher.predict(many[0], verbose=0)[: len(logits)]]
        )
        < 1e-5
    )
    assert len(logits) in (COUNT, COUNT - COUNT % 16)
    # All else is as it was.
    was, now = tf.nest.flatten(data.element_spec), tf.nest.flatten(joined.element_spec)
    assert [s.dtype for s in was] == [now[0].dtype, *[s.dtype for s in now[2:]]]
    assert int(joined.cardinality()) == int(data.cardinality())


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "source", ["examples", "batches", "arrays", "x alone", "function", "unknown length"]
)
def test_writes_the_same_from_any_kind_of_data(path, many, source):
    teacher, data = mlp(32), dataset_of(many)
    given = {
        "examples": data,
        "batches": data.batch(30),
        "arrays": many,
        "x alone": many[0],
        "function": lambda: dataset_of(many),
        "unknown length": data.batch(9).filter(keep),
    }[source]
    targets = written(path, teacher, given)
    assert len(targets) == COUNT
    assert (
        largest_difference(
            [cached_logits(targets.join(data))], [teacher.predict(many[0], verbose=0)]
        )
        < 5e-3
    )
    reference = written(path + "-reference", teacher, data)
    assert targets.manifest["dataset"] == reference.manifest["dataset"]
    for entry in targets.manifest["shards"]:
        files = [os.path.join(p, entry["file"]) for p in (path, path + "-reference")]
        a, b = (pathlib.Path(file).read_bytes() for file in files)
        assert a == b


@pytest.mark.slow
def test_trains_like_the_live_teacher(exact, many):
    (targets, teacher), student = exact, mlp(6)
    data = dataset_of(many)
    weights = []
    for distiller, batches in (
        (distiller_for(copy_of(student), teacher, False), data.batch(20)),
        (distiller_for(copy_of(student), None, False), targets.join(data).batch(20)),
        (distiller_for(copy_of(student)), targets.join(data.batch(20))),
    ):
        distiller.fit(batches, epochs=2, verbose=0)
        weights.append(distiller.student.get_weights())
    assert largest_difference(weights[0], weights[1]) < 1e-6
    assert largest_difference(weights[0], weights[2]) < 1e-6


@pytest.mark.slow
def test_ways_to_teach(path, many, tmp_path):
    x = many[0]
    softmax = mlp(32, activation="softmax")
    bare = mlp(32)
    bare.set_weights(softmax.get_weights())
    bare.save(tmp_path / "t.keras")
    bare.export(tmp_path / "t", verbose=False)
    expected = bare.predict(x, verbose=0)
    other = mlp(16)
    for index, (teacher, kwargs, logits) in enumerate(
        [
            (softmax, {}, expected),
            (str(tmp_path / "t.keras"), {}, expected),
            (str(tmp_path / "t"), {"teacher_from_logits": True}, expected),
            (
                lambda x: bare(x),
                {"teacher_from_logits": True, "batched": False},
                expected,
            ),
            (
                [bare, other],
                {"teacher_average": "logits"},
                (expected + other.predict(x, verbose=0)) / 2,
            ),
        ]
    ):
        targets = written(
            f"{path}{index}", teacher, dataset_of(many), dtype="float32", **kwargs
        )
        assert largest_difference([cached_logits(targets.join(many))], [logits]) < 1e-5


# Several teachers ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def members():
    keras.utils.set_random_seed(3)
    return [mlp(32), mlp(16)]


def trained_weights(data, teacher=None, temperature=4.0, **kwargs):
    student = mlp(4)
    student.set_weights([np.full(w.shape, 0.1, "float32") for w in student.weights])
    distiller = distiller_for(
        student, teacher, temperature=temperature, alpha=0.5, **kwargs
    )
    distiller.fit(data, verbose=0)
    return student.get_weights()


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("temperature", [1.5, 4.0, 12.0])
def test_several_teachers_cached_teach_like_live_ones_at_any_temperature(
    path, many, members, temperature
):
    """The mean of their probabilities is another at every temperature."""
    data = dataset_of(many)
    targets = written(path, members, data, dtype="float32")
    assert targets.manifest["members"] == 2
    p = [keras.ops.softmax(m.predict(many[0], verbose=0) / 3.0) for m in members]
    joined = next(iter(targets.join(data).batch(COUNT)))[0].soft_targets
    mean = keras.ops.softmax(joined.mean_at(3.0) / 3.0)
    assert largest_difference([mean], [(p[0] + p[1]) / 2]) < 1e-6
    live = trained_weights(data.batch(20), members, temperature)
    cached = trained_weights(targets.join(data).batch(20), None, temperature)
    assert largest_difference(live, cached) < 1e-6
    distiller = distiller_for(mlp(4), temperature=temperature)
    distiller.compile(metrics=[kd.TeacherAgreement()])
    agreement = distiller.evaluate(targets.join(data).batch(20), verbose=0)
    distiller.teacher = members
    assert distiller.evaluate(data.batch(20), verbose=0) == pytest.approx(agreement)


def test_several_teachers_of_several_outputs(path, many):
    def two():
        x = keras.Input((FEATURES,))
        return keras.Model(x, {n: keras.layers.Dense(3, name=n)(x) for n in "ab"})

    members = [two(), two()]
    targets = written(path, members, many[0], dtype="float32")
    cached = next(iter(targets.join(many[0]).batch(COUNT)))[0].soft_targets
    live = kd.as_teacher(members)(many[0], 5.0).logits
    for name in "ab":
        assert largest_difference([cached[name].mean_at(5.0)], [live[name]]) < 1e-5


@pytest.mark.slow
def test_mean_at_one_temperature_is_refused_at_others(path, many, members):
    data = dataset_of(many)
    targets = written(path, members, data, temperature=3.0, dtype="float32")
    joined = targets.join(data).shuffle(COUNT).map(same).batch(20)
    trained_weights(joined, None, np.float32(3.0))
    refused = pytest.raises(
        ValueError, match="probabilities at T = 3, which is no mean"
    )
    schedule = keras.optimizers.schedules.ExponentialDecay(3.0, 10, 0.9)
    own = kd.SoftTargetLoss(temperature=4.0)
    for kwargs in (
        {"temperature": 4.0},
        {"temperature": schedule},
        {"temperature": 3.0, "distillation_loss": own},
        {"temperature": 3.0, "distillation_loss": kd.SoftTargetLoss() + own},
    ):
        distiller = distiller_for(mlp(4), **kwargs)
        with refused:
            distiller.fit(joined, verbose=0)
        with refused:
            distiller.train_on_batch(*next(iter(joined)))
        distiller.compile(metrics=[kd.TeacherAgreement()], run_eagerly=True)
        with refused:
            distiller.evaluate(joined, verbose=0)

    def set_to(value):
        return lambda batch, logs: setattr(distiller, "temperature", value)

    for value in (5.0, schedule):
        distiller = distiller_for(mlp(4), temperature=3.0)
        callback = keras.callbacks.LambdaCallback(on_train_batch_end=set_to(value))
        with refused:
            distiller.fit(joined, verbose=0, callbacks=[callback])
    # Of other data afterwards, and with a temperature of its own that is the same.
    distiller = distiller_for(mlp(4), members, temperature=3.0)
    distiller.fit(joined, verbose=0)
    distiller.fit(data.batch(20), verbose=0)
    distiller.temperature = 7.0
    loss = kd.SoftTargetLoss(temperature=3.0)
    distiller_for(mlp(4), distillation_loss=loss).fit(joined, verbose=0)


def test_keras_loss_with_a_temperature_of_its_own_takes_no_list(path, many, members):
    """It would get the mean at the distiller's temperature and soften it at its own."""
    loss = keras.distillation.LogitsDistillation(temperature=3.0)
    with pytest.raises(ValueError, match="a distillation loss has one of its own"):
        kd.Distiller(mlp(4), members, distillation_loss=loss)
    joined = written(path, members, many).join(many).batch(20)
    for own in (loss, kd.SoftTargetLoss(temperature=3.0)):
        distiller = distiller_for(mlp(4), distillation_loss=own)
        with pytest.raises(ValueError, match="a distillation loss has one of its own"):
            distiller.fit(joined, verbose=0)


@pytest.mark.slow
def test_top_k_of_several_teachers(path, many, members):
    with pytest.raises(ValueError, match="top_k cannot be cached for several teachers"):
        written(path, members, many, top_k=2)
    with pytest.raises(ValueError, match="a list of teachers within a list"):
        written(path, [members, members], many)
    mean = written(path, members, many, top_k=2, temperature=3.0)
    joined = mean.join(many).batch(20)
    trained_weights(joined, None, 3.0)
    with pytest.raises(ValueError, match="which is no mean at another"):
        trained_weights(joined, None, 2.0)
    plain = written(path + "2", members, many, top_k=2, teacher_average="logits")
    trained_weights(plain.join(many).batch(20), None, 2.0)


@pytest.mark.slow
def test_temperature_means_nothing_for_one_teacher(path, many):
    targets = written(path, mlp(32), many, temperature=3.0)
    assert targets.manifest["temperature"] is None
    trained_weights(targets.join(many).batch(20), None, 7.0)


@pytest.mark.slow
def test_stores_of_before_open(path, many, members):
    """They have neither members nor digests, and a mean at one temperature."""
    targets = written(path, members, many, temperature=3.0)
    folder = settings.directory(path)
    for name in ("manifest.json", "settings.json"):
        content = folder.read_json(name)
        del content["members"]
        for entry in content.get("shards", []):
            entry.pop("digest", None)
        folder.write_json(name, content)
    targets = kd.SoftTargets.open(path, teacher=members)
    targets.verify()
    joined = targets.join(many).batch(20)
    trained_weights(joined, None, 3.0)
    with pytest.raises(ValueError, match="which is no mean at another"):
        trained_weights(joined, None, 2.0)
    assert written(path, members, many, temperature=3.0).manifest == targets.manifest


@pytest.mark.slow
def test_covariance_of_several_teachers_is_at_its_temperature(path, many, members):
    p = [keras.ops.softmax(m.predict(many[0], verbose=0) / 3.0) for m in members]
    expected = np.cov((p[0] + p[1]) / 2, rowvar=False)
    found = kd.class_covariance(members, many[0], temperature=3.0, verbose=False)
    assert largest_difference([found], [expected]) < 1e-6
    targets = written(path, members, many, dtype="float32")
    found = kd.class_covariance(targets, temperature=3.0, verbose=False)
    assert largest_difference([found], [expected]) < 1e-6
    mean = written(path + "2", members, many, dtype="float32", temperature=3.0)
    found = kd.class_covariance(mean, temperature=3.0, verbose=False)
    assert largest_difference([found], [expected]) < 1e-6
    with pytest.raises(ValueError, match="which is no mean at temperature=1; pass"):
        kd.class_covariance(mean, verbose=False)


@pytest.mark.slow
def test_search_over_temperature_with_several_teachers(path, many, members, tmp_path):
    def search(**given):
        return kd.search(
            lambda hp: mlp(4),
            many,
            many,
            max_trials=2,
            epochs=1,
            directory=tmp_path / "search",
            verbose=False,
            **given,
        )

    result = search(teacher=members, temperature=(1.0, 9.0))
    assert len(result.trials) == 2
    mean = written(path, members, many, temperature=1.0)
    for wrong in ((1.0, 9.0), [1.0, 2.0], 2.0):
        with pytest.raises(ValueError, match="at T = 1, which is no mean at another"):
            search(soft_targets=mean, temperature=wrong, overwrite=True)
    search(soft_targets=mean, temperature=1.0, overwrite=True)


# Kinds of teachers and data -----------------------------------------------------------


def test_unknown_teacher_is_judged_by_its_first_batch(path, many):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(CLASSES, activation="softmax")

        def call(self, x):
            return keras.ops.softmax(self.dense(x)) if False else self.dense(x) * 1.0

    teacher = Subclassed()
    teacher(many[0])
    with pytest.warns(UserWarning, match="taken as probabilities"):
        targets = written(path, teacher, dataset_of(many).batch(10))
    p = keras.ops.softmax(cached_logits(targets.join(many)))
    assert largest_difference([p], [teacher.predict(many[0], verbose=0)]) < 1e-3


@pytest.mark.slow
def test_sequences_and_several_outputs(path, many):
    tokens = np.random.default_rng(0).integers(1, 20, size=(30, 7))
    teacher = tagger(8)
    targets = written(path, teacher, tf.data.Dataset.from_tensor_slices(tokens))
    assert cached_logits(targets.join(tokens)).shape == (30, 7, CLASSES)

    inputs = {"a": keras.Input((3,)), "b": keras.Input((FEATURES,))}
    both = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    outputs = {
        "big": keras.layers.Dense(9)(both),
        "small": keras.layers.Dense(4, activation="softmax")(both),
    }
    two = keras.Model(inputs, outputs)
    x = {"a": many[0][:, :3], "b": many[0]}
    targets = written(path + "2", two, x, dtype="float32", top_k=4)
    cached = cached_logits(targets.join(x))
    assert set(cached) == {"big", "small"}
    assert (
        largest_difference(
            [keras.ops.softmax(cached["small"].values)],
            [-np.sort(-two.predict(x, verbose=0)["small"])],
        )
        < 1e-6
    )
    distiller = kd.Distiller(keras.models.clone_model(two), alpha=0.0)
    distiller.compile("adam")
    distiller.fit(targets.join(x).batch(10), verbose=0)


@pytest.mark.slow
def test_two_inputs_as_a_tuple(path, many):
    inputs = [keras.Input((3,)), keras.Input((FEATURES,))]
    teacher = keras.Model(
        inputs, keras.layers.Dense(CLASSES)(keras.layers.Concatenate()(inputs))
    )
    x = many[0][:, :3], many[0]
    for data in (dataset_of((x,)), dataset_of((x, many[1])).batch(7)):
        targets = written(path, teacher, data, overwrite=True)
        cached = cached_logits(targets.join(data))
        assert largest_difference([cached], [teacher.predict(x, verbose=0)]) < 5e-3


def test_predict_takes_joined_data_and_says_what_is_wrong(exact, many):
    targets, _ = exact
    student = mlp(6)
    distiller = distiller_for(student)
    found = distiller.predict(targets.join(many).batch(10), verbose=0)
    assert largest_difference([found], [student.predict(many[0], verbose=0)]) < 1e-6
    other = targets.join(many[0][::-1].copy()).batch(10)
    with pytest.raises(ValueError, match="example 0 of the data"):
        distiller.predict(other, verbose=0)


@pytest.mark.slow
def test_hidden_layers_are_cached(path, many):
    teacher, student = mlp(6), mlp(6)
    objective = kd.SoftTargetLoss() + kd.FeatureLoss("hidden", "hidden")
    data = dataset_of(many)
    targets = written(path, teacher, data, layers=["hidden"], dtype="float32")
    weights = []
    for one_teacher, batches in ((teacher, data), (None, targets.join(data))):
        distiller = distiller_for(
            copy_of(student), one_teacher, distillation_loss=objective
        )
        distiller.fit(batches.batch(20), verbose=0)
        weights.append(distiller.student.get_weights())
    assert largest_difference(*weights) < 1e-6
    with pytest.raises(ValueError, match="needs? a width|6 features|have 5 and 6"):
        distiller_for(mlp(5), distillation_loss=objective).fit(
            batches.batch(20), verbose=0
        )
    projected = kd.SoftTargetLoss() + kd.FeatureLoss("hidden", "hidden", "auto")
    distiller = distiller_for(mlp(5), distillation_loss=projected)
    distiller.fit(batches.batch(20), verbose=0)
    assert distiller.loss_layers[0].kernel.shape == (5, 6)
    assert len(distiller.trainable_variables) == 4 + 2


def test_another_program_can_read_the_files(path, many):
    """By what the docstring of SoftTargets says, with TensorFlow alone."""
    teacher = mlp(32)
    written(path, teacher, many, top_k=2)
    with open(os.path.join(path, "manifest.json")) as file:
        manifest = json.load(file)
    rows = b""
    for shard in range(4):
        file = os.path.join(path, f"view-000-shard-{shard:05d}.tfrecord")
        for record in tf.data.TFRecordDataset(file).as_numpy_iterator():
            rows += record
    types = {"float16": "<f2", "float32": "<f4", "uint8": "u1"}
    row = np.dtype([(n, types[t], tuple(shape)) for n, t, shape in manifest["row"]])
    assert row.itemsize == manifest["row_bytes"]
    table = np.frombuffer(rows, row)
    assert len(table) == manifest["examples"] == COUNT
    expected = teacher.predict(many[0], verbose=0)
    order = np.argsort(-expected, 1)
    assert (table["indices"] == order[:, :2]).all()
    largest = np.take_along_axis(expected, order[:, :1], 1)
    assert np.allclose(table["max"], largest[:, 0])
    top = np.take_along_axis(expected, order[:, :2], 1) - largest
    assert np.allclose(table["logits"], top, atol=2e-3)
    rest = np.take_along_axis(expected, order[:, 2:], 1) - largest
    for i, beta in enumerate(REST_BETAS[1:]):
        mass = np.log(np.exp(rest * beta).sum(1))
        assert np.allclose(table["rest"][:, i], mass, atol=4e-3)
    assert (table["fingerprint"] == tf.fingerprint(many[0]).numpy()).all()


def test_half_precision_is_most_exact_where_it_matters(path, many):
    teacher = mlp(32)
    layer = teacher.get_layer("out")
    layer.set_weights([layer.get_weights()[0] * 3, layer.get_weights()[1] + 40.0])
    targets = written(path, teacher, many)
    expected = teacher.predict(many[0], verbose=0)
    cached = cached_logits(targets.join(many))
    ours = float(keras.ops.mean(tempered_kl(expected, cached, 4.0)))
    plain = expected.astype("float16").astype("float32")
    theirs = float(keras.ops.mean(tempered_kl(expected, plain, 4.0)))
    assert ours < theirs / 20
    assert len(targets.manifest["row"]) == 3


def test_huge_logits_saturate(path):
    targets = written(
        path, lambda x: x * 1e5, np.eye(4, dtype="float32"), teacher_from_logits=True
    )
    cached = cached_logits(targets.join(np.eye(4, dtype="float32")))
    assert np.isfinite(cached).all()
    assert cached.max() == 1e5
    assert cached.min() == 1e5 - 65504


def test_len_repr_manifest(path, many):
    teacher = mlp(32)
    targets = written(path, teacher, many, top_k=2)
    assert (
        repr(targets)
        == f"SoftTargets({path!r}: 100 examples, 32.6 bytes each: top 2 of 5 logits as float16)"
    )
    manifest = targets.manifest
    manifest["classes"] = 7  # a copy
    assert targets.manifest["classes"] == CLASSES
    assert manifest["augment"] is None
    assert manifest["teacher"]["kind"] == "keras.Model"
    assert set(manifest["versions"]) == {"keras-distill", "tensorflow", "keras"}
    assert manifest["created"] > "2026"
    assert sum(entry["rows"] for entry in manifest["shards"]) == len(targets) == COUNT
    blocks = list(targets.logits())
    assert sum(len(block.values) for block in blocks) == COUNT
    targets.verify()


def test_opening_with_other_expectations(path, many):
    teacher = mlp(32)
    written(path, teacher, many)
    kd.SoftTargets.open(
        path, teacher=teacher, classes=CLASSES, top_k=None, dtype="float16"
    )
    kd.SoftTargets.open(path, teacher=copy_of(teacher))  # names of layers do not count
    changed = copy_of(teacher)
    changed.weights[0].assign_add(1e-6 * np.ones_like(changed.weights[0]))
    with pytest.raises(ValueError, match="the teacher's weights differ"):
        kd.SoftTargets.open(path, teacher=changed)
    with pytest.raises(ValueError, match="the teacher's architecture differ"):
        kd.SoftTargets.open(path, teacher=mlp(31))
    with pytest.raises(ValueError, match="top_k is None, not 3; views is 1, not 2"):
        kd.SoftTargets.open(path, top_k=3, views=2)
    with pytest.raises(
        TypeError, match="'topk' is no key of the manifest; it has format"
    ):
        kd.SoftTargets.open(path, topk=3)
    with pytest.raises(
        FileNotFoundError, match="holds no finished soft targets, 0 shards"
    ):
        kd.SoftTargets.open(path + "x")


def test_remote_paths(many):
    """TensorFlow's ram:// stands for any file system that only tf.io.gfile knows."""
    targets = written("ram://store/cached", mlp(32), many)
    assert cached_logits(targets.join(many)).shape == (COUNT, CLASSES)
    assert tf.io.gfile.exists("ram://store/cached/manifest.json")


@pytest.mark.slow
def test_written_once(path, many):
    teacher, calls = mlp(32), []

    class Counting(keras.layers.Layer):
        def call(self, x):
            tf.py_function(lambda _: calls.append(1), [x], [])
            return x

    counted = keras.Sequential([keras.Input((FEATURES,)), Counting(), teacher])
    first = written(path, counted, many)
    assert len(calls) == 1 + -(-COUNT // 16)  # the first batch twice, see `finish`
    again = written(path, counted, many)
    assert len(calls) == 2 + -(-COUNT // 16)  # one batch, to compare
    assert first.manifest == again.manifest
    with pytest.raises(
        ValueError,
        match="holds finished soft targets of another kind: top_k is None, not 2",
    ):
        written(path, counted, many, top_k=2)
    assert written(path, counted, many, top_k=2, overwrite=True).manifest["top_k"] == 2


# Alignment ----------------------------------------------------------------------------


@pytest.mark.sampled(1)
@pytest.mark.parametrize("batch", [None, 10, "irregular"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[::-1], "example 0 of the data is not"),
        (lambda x: x[np.random.default_rng(1).permutation(COUNT)], "example 0 of"),
        (lambda x: np.delete(x, 41, 0), "example 41 of|the data has 9"),
        (lambda x: x[:-1], "ends after 99|has 99 examples|more than"),
        (lambda x: np.concatenate([x, x[:1]]), "has 101 examples|11 batches of 10|more than"),
        (lambda x: x + np.eye(COUNT, FEATURES, -77, dtype="float32") * 1e-5, "example 77 of"),
        (lambda x: x / 2, "example 0 of the data is not"),
        (lambda x: x[:80], "ends after 80|has 80 examples|8 batches of 10|more than"),
        (lambda x: np.tile(x, 2), r"is float32 .16,., the soft targets"),
    ],
)  # fmt: skip
def test_other_data_is_refused(exact, many, change, message, batch):
    x, y = many
    targets, _ = exact
    changed = change(x).astype("float32")
    data = dataset_of((changed, np.resize(y, len(changed))))
    if batch == "irregular":
        data = data.batch(10).map(same).filter(keep)
    elif batch:
        data = data.batch(batch)
    with pytest.raises(ValueError, match=message) as caught, plain_errors():
        for _ in targets.join(data):  # as `fit` does
            pass
    assert "join before shuffle" in str(caught.value)


@pytest.mark.slow
def test_shuffled_and_endless_data_are_refused_at_once(path, many):
    data = dataset_of(many)
    with pytest.raises(ValueError, match="shuffled anew each time"):
        written(path, mlp(32), data.shuffle(10).batch(10))
    with pytest.raises(ValueError, match="endless"):
        written(path, mlp(32), data.repeat())
    with pytest.raises(ValueError, match="the dataset is empty"):
        written(path, mlp(32), data.take(0))
    targets = written(path, mlp(32), data)
    with pytest.raises(ValueError, match="shuffled anew each time"):
        targets.join(data.shuffle(10))
    with pytest.raises(ValueError, match="endless.* targets.join.data..repeat"):
        targets.join(data.repeat())
    # An order that cannot be seen to change.
    rng = np.random.default_rng(0)
    hidden = tf.data.Dataset.from_generator(
        lambda: iter(rng.permutation(many[0])),
        output_signature=tf.TensorSpec((FEATURES,), tf.float32),
    ).take(COUNT)
    with pytest.raises(ValueError, match="did not come twice in the same order"):
        written(path + "2", mlp(32), hidden)
    with pytest.raises(FileNotFoundError, match="no finished soft targets"):
        kd.SoftTargets.open(path + "2")


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    """A store of the inputs themselves, which no test changes, and the inputs."""
    x = np.random.default_rng(0).normal(size=(COUNT, CLASSES)).astype("float32")
    path = str(tmp_path_factory.mktemp("identity") / "cached")
    kwargs = {"dtype": "float32", "teacher_from_logits": True, "batched": False}
    return written(path, lambda x: x * 1.0, x, **kwargs), x


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "arrange",
    [
        lambda d: d.shuffle(100).batch(7),
        lambda d: d.repeat(2).shuffle(50).batch(7),
        lambda d: d.batch(7).map(same, num_parallel_calls=2),
        lambda d: d.batch(7).shuffle(5).prefetch(2),
        lambda d: d.cache().shuffle(30).batch(7),
        lambda d: tf.data.Dataset.range(2).interleave(lambda i: d.shard(2, i)).batch(7),
        lambda d: d.shard(3, 1).batch(7),
    ],
)
def test_pairs_stay_pairs(identity, arrange):
    """Each example carries its own identity, and so does its teacher's answer."""
    targets, x = identity
    joined = arrange(targets.join(dataset_of((x, np.arange(COUNT)))))
    for batch, y in joined:
        assert (batch.inputs.numpy() == batch.soft_targets.numpy()).all()
        assert (batch.inputs.numpy() == x[y.numpy()]).all()


def test_sharding_by_a_strategy_keeps_pairs(identity, mirrored):
    targets, x = identity
    joined = targets.join(dataset_of((x, np.arange(COUNT)))).batch(10)
    seen = []
    for batch, y in mirrored.experimental_distribute_dataset(joined):
        for part, labels in zip(
            mirrored.experimental_local_results(batch),
            mirrored.experimental_local_results(y),
            strict=True,
        ):
            assert (part.inputs.numpy() == part.soft_targets.numpy()).all()
            seen += labels.numpy().tolist()
    assert sorted(seen) == list(range(COUNT))


# Top k --------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_k_is_exact(exact, path, many):
    (full, teacher), student = exact, mlp(6)
    top = written(path + "k", teacher, many, dtype="float32", top_k=CLASSES)
    weights = []
    for targets in (full, top):
        distiller = distiller_for(copy_of(student), temperature=3.0)
        distiller.fit(targets.join(many).batch(20), verbose=0)
        weights.append(distiller.student.get_weights())
    assert largest_difference(*weights) < 1e-6


@pytest.mark.slow
def test_top_k_is_a_lower_bound(path):
    rng = np.random.default_rng(0)
    classes = 200
    z = rng.normal(size=(64, classes)).astype("float32") * 3
    student = rng.normal(size=(64, classes)).astype("float32") * 2
    cached = {}
    for k in (1, 5, 50, 199, 200):
        targets = written(
            f"{path}{k}",
            lambda x: x * 1.0,
            z,
            top_k=k,
            dtype="float32",
            teacher_from_logits=True,
        )
        cached[k] = cached_logits(targets.join(z))
    for temperature in (1.0, 16 / 13, 2.0, 16 / 3, 20.0):
        full = np.asarray(tempered_kl(z, student, temperature), "float64")
        before = np.zeros(64)
        for k, logits in cached.items():
            loss = np.asarray(
                kd.SoftTargetLoss().loss_per_example(logits, student, temperature)
            )
            assert (loss <= full * (1 + 1e-4) + 1e-5).all()
            # Finer outcomes, larger KL.
            assert (loss >= before * (1 - 1e-4) - 1e-5).all()
            before = loss
            # The merged outcome itself, in float64 by hand.
            p, q = (np.exp(v.astype("float64") / temperature) for v in (z, student))
            p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
            order = np.argsort(-z, 1)
            p, q = (np.take_along_axis(v, order, 1) for v in (p, q))
            p, q = (
                np.concatenate([v[:, :k], v[:, k:].sum(1, keepdims=True)], 1)
                for v in (p, q)
            )
            p, q = (v[:, : k + (k < classes)] for v in (p, q))
            by_hand = temperature**2 * (p * np.log(p / q)).sum(1)
            assert np.allclose(loss, by_hand, rtol=2e-3, atol=1e-4)
        assert np.allclose(before, full, rtol=1e-5)


@pytest.mark.slow
def test_top_k_gradient_is_that_of_the_merged_kl(path):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(8, 30)).astype("float32")
    targets = written(
        path, lambda x: x * 1.0, z, top_k=4, dtype="float32", teacher_from_logits=True
    )
    cached = cached_logits(targets.join(z))
    student = tf.Variable(rng.normal(size=(8, 30)).astype("float32"))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(
            kd.SoftTargetLoss().loss_per_example(cached, student + 0.0, 2.0)
        )
    gradient = tape.gradient(loss, student).numpy()
    q = tf.nn.softmax(student / 2.0).numpy()
    p = tf.nn.softmax(z / 2.0).numpy()
    is_top = np.zeros((8, 30), bool)
    np.put_along_axis(is_top, np.argsort(-z, 1)[:, :4], True, 1)
    rest = lambda v: np.where(is_top, 0, v).sum(1, keepdims=True)  # noqa: E731
    expected = 2.0 * np.where(is_top, q - p, q - rest(p) * q / rest(q))
    assert np.allclose(gradient, expected, atol=2e-4)


def test_top_k_is_refused_where_it_cannot_serve(path, many):
    targets = written(path, mlp(32), many, top_k=2)
    batches = targets.join(many).batch(10)
    with pytest.raises(ValueError, match="LogitLoss needs all of the teacher's"):
        distiller_for(mlp(6), distillation_loss=kd.LogitLoss()).fit(batches)
    with pytest.raises(ValueError, match="temperatures of at least 1, got 0.5"):
        distiller_for(mlp(6), temperature=0.5).fit(batches)
    with pytest.raises(ValueError, match="student has 7 classes and the teacher 5"):
        distiller_for(mlp(6, classes=7)).fit(batches)
    with pytest.raises(
        ValueError, match="top_k must be from 1 to the number of classes, 5"
    ):
        written(path + "2", mlp(32), many, top_k=6)


@pytest.mark.slow
def test_top_k_at_temperatures_that_come_later(path, many):
    targets = written(path, mlp(32), many, top_k=2)
    batches = targets.join(many).batch(10)
    schedule = keras.optimizers.schedules.PolynomialDecay(4.0, 10, 0.2)
    with pytest.raises(ValueError, match="temperatures of at least 1, got 0.5"):
        distiller_for(mlp(6), temperature=schedule).fit(batches, epochs=3, verbose=0)
    distiller = distiller_for(mlp(6))
    distiller.fit(batches, verbose=0)
    with pytest.raises(ValueError, match="temperatures of at least 1, got 0.2"):
        distiller.temperature = 0.2


@pytest.mark.slow
def test_logits_that_spread_too_widely_for_top_k(path):
    z = np.random.default_rng(0).normal(size=(COUNT, 50)).astype("float32")
    kwargs = {"teacher_from_logits": True, "dtype": "float32", "top_k": 3}
    narrow, late = z.copy(), z.copy()
    z[:, :10] = -1e9  # masked classes
    with pytest.raises(
        ValueError, match="example .* spread too widely for top_k=3.*clip its logits"
    ):
        written(path, lambda x: x * 1.0, z, **kwargs)
    narrow[:, :10] = -25.0
    written(path, lambda x: x * 1.0, narrow, overwrite=True, **kwargs)
    # One example of a later batch, in whatever piece of work it comes.
    late[70, :10] = -1e9
    for part in (None, (1, 2)):
        with pytest.raises(
            ValueError, match="for example 70 .view 0. spread too widely"
        ):
            written(path + "2", lambda x: x * 1.0, late, part=part, **kwargs)
        assert shards.existing(path + "2") == {(0, 0), (0, 1)}
    two = lambda x: {"a": x * 1.0, "b": x[:, 10:]}  # noqa: E731
    with pytest.raises(ValueError, match="of output 'a' for example 70"):
        written(path + "3", two, late, batched=False, **kwargs)


@pytest.mark.slow
def test_kept_logits_are_not_taken_for_probabilities(path, many):
    for top_k in (None, 2):
        targets = written(f"{path}{top_k}", mlp(32), many, top_k=top_k)
        with pytest.raises(ValueError, match="keeps logits whatever the teacher gives"):
            distiller_for(mlp(6), teacher_from_logits=False).fit(
                targets.join(many).batch(10), verbose=0
            )


def test_teacher_agreement_with_top_k(path, many):
    teacher = mlp(32)
    targets = written(path, teacher, many, top_k=1)
    distiller = kd.Distiller(copy_of(teacher))
    distiller.compile("sgd", SPARSE, metrics=[kd.TeacherAgreement()])
    scores = distiller.evaluate(
        targets.join(many).batch(10), verbose=0, return_dict=True
    )
    assert scores["teacher_agreement"] == 1.0


# Views --------------------------------------------------------------------------------


def shaken(x, seed):
    return x + tf.random.stateless_normal(x.shape, seed)


def shaken_otherwise(x, seed):
    return x + 2 * tf.random.stateless_normal(x.shape, seed)


def test_student_sees_bit_for_bit_what_the_teacher_saw(path, many):
    teacher = mlp(32)
    targets = written(
        path, teacher, many, views=3, augment=shaken, seed=5, dtype="float32"
    )
    by_epoch = []
    for epoch in range(4):
        seen = np.concatenate(
            [b[0].inputs for b in targets.join(many, epoch=epoch).batch(64)]
        )
        by_epoch.append(seen)
        cached = cached_logits(targets.join(many, epoch=epoch))
        assert largest_difference([cached], [teacher.predict(seen, verbose=0)]) < 1e-5
        for index in (0, 57):  # by the rule of the docstring
            seed = tf.constant([65536 * 5 + epoch % 3, index], tf.int64)
            assert (shaken(many[0][index], seed).numpy() == seen[index]).all()
    assert (by_epoch[3] == by_epoch[0]).all()
    assert not (by_epoch[0] == by_epoch[1]).any()


@pytest.mark.slow
def test_epoch_chooses_the_view_in_fit(three_views, many):
    targets, expected = three_views
    for batches in (
        targets.join(many).batch(COUNT),
        targets.join(dataset_of(many).batch(COUNT)),
    ):
        distiller = seeing()
        distiller.fit(batches, epochs=7, initial_epoch=1, verbose=0)
        assert distiller.student.views(expected)[-6:] == [1, 2, 0, 1, 2, 0]


class Seeing(keras.Model):
    """Notes the first example of each batch that it is trained on."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(CLASSES)
        self.seen = []

    def call(self, x, training=None):
        if training:
            tf.py_function(lambda x: self.seen.append(x[:1].numpy()), [x], [])
        return self.dense(x)

    def views(self, expected):
        return [[(x == e).all() for e in expected].index(True) for x in self.seen]


def seeing():
    distiller = kd.Distiller(Seeing(), student_from_logits=True)
    distiller.compile("sgd", SPARSE)
    return distiller


@pytest.fixture
def three_views(path, many):
    """A store of three views, and the first example in each."""
    targets = written(path, mlp(32), many, views=3, augment=shaken)
    joined = [targets.join(many, epoch=e).batch(1) for e in range(3)]
    return targets, [next(iter(one))[0].inputs.numpy() for one in joined]


def view_by_hand(joined, expected):
    seen = next(iter(joined))[0].inputs.numpy()[:1]
    return [(seen == e).all() for e in expected].index(True)


@pytest.mark.slow
def test_the_epoch_is_that_of_the_run(three_views, many):
    """Two threads at different epochs, while others read by hand."""
    targets, expected = three_views
    barrier, by_hand = threading.Barrier(2, timeout=60), []
    other = targets.join(many).batch(COUNT)

    class Waiting(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            barrier.wait()
            by_hand.append(view_by_hand(other, expected))

    distillers = [seeing(), seeing()]
    threads = [
        threading.Thread(
            target=distiller.fit,
            args=(targets.join(many).shuffle(1).batch(COUNT).prefetch(1),),
            kwargs={
                "epochs": first + 3,
                "initial_epoch": first,
                "verbose": 0,
                "callbacks": [Waiting()],
            },
        )
        for first, distiller in zip((0, 1), distillers, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    views_ = [d.student.views(expected)[-3:] for d in distillers]
    assert views_ == [[0, 1, 2], [1, 2, 0]]
    assert by_hand == [0] * 6


@pytest.mark.slow
def test_one_joined_dataset_in_two_threads_is_refused(three_views, many):
    targets, expected = three_views
    joined = targets.join(many).batch(COUNT)
    errors, inner = [], seeing()

    def fit():
        with pytest.raises(ValueError, match="a fit in another thread is reading"):
            seeing().fit(joined, verbose=0)
        errors.append(1)

    def on_epoch_end(epoch, logs):
        if epoch == 4:
            thread = threading.Thread(target=fit)
            thread.start()
            thread.join(60)
            # In the same thread one waits for the other.
            inner.fit(joined, epochs=2, initial_epoch=1, verbose=0)

    outer = seeing()
    callback = keras.callbacks.LambdaCallback(on_epoch_end=on_epoch_end)
    outer.fit(joined, epochs=6, initial_epoch=4, verbose=0, callbacks=[callback])
    assert errors == [1]
    assert outer.student.views(expected)[-2:] == [1, 2]
    assert inner.student.views(expected)[-1:] == [1]


@pytest.mark.slow
def test_an_interrupted_fit_leaves_no_epoch_behind(three_views, many):
    targets, expected = three_views
    joined = targets.join(many).batch(COUNT)
    seen = []

    def on_epoch_begin(epoch, logs):
        if epoch == 5:
            raise KeyboardInterrupt
        if epoch == 4:  # validation data is read at the same epoch, other data at none
            seen.append(view_by_hand(joined, expected))
            seen.append(view_by_hand(validation, expected))
            seen.append(view_by_hand(targets.join(many).batch(COUNT), expected))

    validation = targets.join(many).batch(COUNT)
    callback = keras.callbacks.LambdaCallback(on_epoch_begin=on_epoch_begin)
    with pytest.raises(KeyboardInterrupt):
        seeing().fit(
            joined,
            epochs=9,
            initial_epoch=4,
            validation_data=validation,
            callbacks=[callback],
            verbose=0,
        )
    assert seen == [1, 1, 0]
    assert view_by_hand(joined, expected) == 0

    def batches():  # what a generator is made of cannot be seen
        yield from joined

    distiller = seeing()
    distiller.fit(batches(), shuffle=False, verbose=0)
    second = {"epochs": 3, "initial_epoch": 2, "verbose": 0, "shuffle": False}
    distiller.fit(batches(), **second)
    assert distiller.student.views(expected)[-1] == 2


def test_changed_augmentation_is_refused(path, many, monkeypatch):
    written(path, mlp(32), many, augment=shaken)
    with pytest.raises(ValueError, match="pass that function: SoftTargets.open"):
        kd.SoftTargets.open(path).join(many)
    with pytest.raises(
        ValueError, match="augment is 'tests.test_soft_targets.shaken', not"
    ):
        kd.SoftTargets.open(path, augment=shaken_otherwise)
    monkeypatch.setattr(shaken_otherwise, "__qualname__", "shaken")
    changed = kd.SoftTargets.open(path, augment=shaken_otherwise)
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match="makes another view of example.* .0. .than",
    ):
        cached_logits(changed.join(many))
    with pytest.raises(ValueError, match="views=2 without augment"):
        written(path, mlp(32), many, views=2)


# Parts, processes, crashes ------------------------------------------------------------


def bytes_of(path):
    files = sorted(name for name in os.listdir(path) if name.startswith("view-"))
    return {name: pathlib.Path(path, name).read_bytes() for name in files}


@pytest.mark.slow
def test_parts_are_those_of_one_process(path, many):
    teacher = mlp(32)
    whole = written(path, teacher, many, views=2, augment=shaken)
    for i in (2, 0, 1):
        assert (
            written(path + "p", teacher, many, views=2, augment=shaken, part=(i, 3))
            is None
        )
    with pytest.raises(
        FileNotFoundError, match="holds no finished soft targets, 8 shards"
    ):
        kd.SoftTargets.open(path + "p")
    parts = written(path + "p", teacher, many, views=2, augment=shaken)
    assert bytes_of(path) == bytes_of(path + "p")
    assert whole.manifest["dataset"] == parts.manifest["dataset"]


def test_loky_processes_write_the_same_though_one_is_killed(path, many):
    teacher, main, victim = mlp(32), os.getpid(), pathlib.Path(path + ".victim")

    def data():
        if os.getpid() != main and not victim.exists():
            victim.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return dataset_of(many)

    written(path, teacher, many)
    written(path + "2", teacher, data, n_jobs=2)
    assert victim.exists()
    assert bytes_of(path) == bytes_of(path + "2")


def test_data_that_cannot_be_sent_is_refused(path, many):
    with pytest.raises(TypeError, match="cannot be sent to them.* Pass arrays, or a f"):
        written(path, mlp(32), dataset_of(many), n_jobs=2)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(path, kills):
    """Real processes, killed by SIGKILL; forked from one that has imported TensorFlow."""
    done = forking.run(["-m", "tests.killed_writers", path, kills], timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] == kills
    assert result["partial"] >= kills // 2  # most kills left some shards and not all
    assert result["finished"] >= 1
    assert result["same_bytes"]
    assert result["most_shards_redone"] <= 1
    assert result["unfinished_opened"] == 0
    assert result["left_over"] == []


@pytest.mark.slow
def test_full_disk_is_said_and_resumed(path, many, tmp_path):
    """A real file system of 16 kB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = "mount -t tmpfs -o size={}k tmpfs " + str(disk)
    if os.system(size.format(16) + " 2> /dev/null"):
        pytest.skip("no file system can be mounted here")
    try:
        x = np.random.default_rng(0).normal(size=(1000, FEATURES)).astype("float32")
        teacher = mlp(32)
        with pytest.raises(
            OSError, match="could not be written.*goes on after the last"
        ):
            written(str(disk / "cached"), teacher, x)
        there = len(shards.existing(str(disk / "cached")))
        assert there > 0
        with pytest.raises(FileNotFoundError, match=f"{there} shards so far"):
            kd.SoftTargets.open(disk / "cached")
        os.system(f"mount -o remount,size=256k {disk}")
        resumed = written(str(disk / "cached"), teacher, x)
        assert len(resumed) == 1000
        written(path, teacher, x)
        assert bytes_of(path) == bytes_of(disk / "cached")
    finally:
        os.system(f"umount {disk}")


@pytest.mark.slow
def test_every_flipped_byte_is_found(path, many):
    targets = written(path, mlp(32), many)
    joined = targets.join(dataset_of(many).batch(50))
    rng = np.random.default_rng(0)
    files = [os.path.join(path, entry["file"]) for entry in targets.manifest["shards"]]
    found = 0
    for _ in range(60):
        file = files[rng.integers(len(files))]
        whole = pathlib.Path(file).read_bytes()
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        with open(file, "wb") as out:
            out.write(flipped)
        try:
            for _ in joined:
                pass
        except tf.errors.DataLossError:
            found += 1
        with open(file, "wb") as out:
            out.write(whole)
    assert found == 60
    assert len(list(joined)) == 2

    with open(files[1], "wb") as out:
        out.write(flipped[:10] + bytes([flipped[10] ^ 1]) + flipped[11:])
    with pytest.raises(
        ValueError, match="a record of the cached soft targets is damaged"
    ):
        distiller_for(mlp(6)).fit(joined, verbose=0)
    with pytest.raises(ValueError, match="shard-0000.* is damaged: its checksum"):
        targets.verify()


def other_store(path, many, **kwargs):
    """A store of the same shape, of another teacher."""
    return written(path, mlp(32), many, overwrite=True, **kwargs)


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("views_", [1, 2])
def test_shard_of_another_store_is_found(path, many, views_):
    kwargs = {"views": 2, "augment": shaken} if views_ == 2 else {}
    teacher = mlp(32)
    targets = written(path, teacher, many, **kwargs)
    joined = [targets.join(many, epoch=0), targets.join(dataset_of(many).batch(7))]
    before = cached_logits(joined[0])
    other = other_store(path + "-other", many, **kwargs)
    name = targets.manifest["shards"][1]["file"]
    mine, whole = pathlib.Path(path, name), pathlib.Path(path, name).read_bytes()
    mine.write_bytes(pathlib.Path(other.path, name).read_bytes())
    said = f"{name} is not the file that manifest.json names"
    with pytest.raises(ValueError, match=said):
        targets.verify()
    with pytest.raises(ValueError, match=said):
        kd.SoftTargets.open(path, teacher=teacher, **kwargs_of_open(kwargs))
    opened = kd.SoftTargets.open(path, **kwargs_of_open(kwargs))
    later = [opened.join(many), opened.logits()]
    for data in (*joined, *later):
        with pytest.raises(tf.errors.InvalidArgumentError, match=said):
            for _ in data:
                pass
    with pytest.raises(
        ValueError, match=rf"cannot be read: .*{said}.*anew\.\W*Nothing was read"
    ):
        distiller_for(mlp(4)).fit(joined[1], verbose=0)
    mine.write_bytes(whole)
    kd.SoftTargets.open(path, teacher=teacher, **kwargs_of_open(kwargs)).verify()
    assert largest_difference([cached_logits(joined[0])], [before]) == 0


def kwargs_of_open(kwargs):
    return {key: kwargs[key] for key in kwargs if key == "augment"}


@pytest.mark.slow
def test_manifest_of_another_store_is_found(path, many):
    teacher = mlp(32)
    targets = written(path, teacher, many)
    other = other_store(path + "-other", many)
    for name in ("manifest.json", "settings.json"):
        its = pathlib.Path(other.path, name).read_bytes()
        pathlib.Path(path, name).write_bytes(its)
        if name == "manifest.json":
            with pytest.raises(ValueError, match="was put there from another store"):
                kd.SoftTargets.open(path)
        with pytest.raises(ValueError, match="have been written anew since"):
            targets.verify()
    opened = kd.SoftTargets.open(path)
    with pytest.raises(ValueError, match="is not the file that manifest.json names"):
        opened.verify()
    with pytest.raises(tf.errors.InvalidArgumentError, match="is not the file that"):
        next(iter(opened.logits()))


@pytest.mark.slow
def test_store_that_was_written_anew_is_said(path, many):
    teacher = mlp(32)
    old = written(path, teacher, many)
    joined = old.join(many)
    next(iter(joined))
    # The same soft targets are no others.
    written(path, teacher, many, overwrite=True)
    assert len(list(joined)) == len(list(old.join(many))) == COUNT
    new = other_store(path, many)
    for use in (lambda: old.join(many), old.logits, old.verify):
        with pytest.raises(
            ValueError, match="written anew since they were opened; open"
        ):
            use()
    with pytest.raises(ValueError, match="cannot be read: the soft targets in .* anew"):
        distiller_for(mlp(4)).fit(joined.batch(10), verbose=0)
    new.verify()
    os.remove(os.path.join(path, "manifest.json"))
    with pytest.raises(ValueError, match="are gone since they were opened"):
        new.join(many)


@pytest.mark.slow
def test_digests_are_the_same_however_a_store_was_written(path, many):
    def of(path):
        return [e["digest"] for e in kd.SoftTargets.open(path).manifest["shards"]]

    teacher = mlp(32)
    written(path, teacher, many)
    for number in (1, 0):
        written(path + "2", teacher, many, part=(number, 2))
    written(path + "2", teacher, many)
    assert of(path) == of(path + "2")
    file = pathlib.Path(path, "view-000-shard-00001.tfrecord").read_bytes()
    assert of(path)[1] == hashlib.blake2b(file, digest_size=32).hexdigest()


def test_a_shard_is_read_for_its_digest_once(path, many, monkeypatch):
    targets = written(path, mlp(32), many)
    count, digest = [], digests.file_digest
    monkeypatch.setattr(digests, "file_digest", lambda f: count.append(f) or digest(f))
    monkeypatch.setattr(digests, "_held", set())
    for _ in range(3):
        assert len(list(targets.join(many))) == COUNT
    assert len(count) == len(targets.manifest["shards"]) == 4


def test_manifest_that_was_changed_is_refused(path, many):
    written(path, mlp(32), many)
    file = os.path.join(path, "manifest.json")
    text = pathlib.Path(file).read_text()
    with open(file, "w") as out:
        out.write(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        kd.SoftTargets.open(path)


def test_lost_shard_is_written_again(path, many):
    teacher = mlp(32)
    targets = written(path, teacher, many)
    before = bytes_of(path)
    os.remove(os.path.join(path, targets.manifest["shards"][1]["file"]))
    with pytest.raises(ValueError, match="Delete this file and manifest.json"):
        kd.SoftTargets.open(path)
    os.remove(os.path.join(path, "manifest.json"))
    written(path, teacher, many)
    assert bytes_of(path) == before


def test_changed_teacher_does_not_resume(path, many):
    calls = []

    def teacher(x):
        return x[:, :CLASSES] * (1.0 + len(calls))

    kwargs = {"teacher_from_logits": True, "batched": False}
    written(path, teacher, many, part=(0, 2), **kwargs)
    calls.append(1)
    with pytest.raises(ValueError, match="the teacher answers otherwise than when"):
        written(path, teacher, many, **kwargs)
    kwargs = {"batch_size": 16, "shard_size": 32, "verbose": False}
    written(path + "2", mlp(32), many, part=(0, 2))
    with pytest.raises(
        ValueError,
        match="unfinished soft targets of another kind: the teacher's weights",
    ):
        kd.SoftTargets.write(path + "2", mlp(32), many, **kwargs)


def test_second_writer_is_refused(path, many):
    """A real second process holds the path."""
    os.makedirs(path)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time\n"
            "file = open(sys.argv[1] + '/.lock', 'w')\n"
            "fcntl.flock(file, fcntl.LOCK_EX)\n"
            "print('held', flush=True)\n"
            "time.sleep(60)",
            path,
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(
            BlockingIOError, match="another process is at work on soft targets"
        ):
            written(path, mlp(32), many)
        with pytest.raises(BlockingIOError, match="another process"):
            written(path, mlp(32), many, part=(0, 2))
    finally:
        holder.kill()
        holder.wait()
    assert len(written(path, mlp(32), many)) == COUNT


def test_another_teacher_or_other_data_does_not_open_a_finished_store(path, many):
    x = many[0]
    kwargs = {"batched": False}
    make = lambda sign: lambda x: sign * x[:, :CLASSES]  # noqa: E731
    written(path, make(1.0), x, teacher_from_logits=True, **kwargs)
    with pytest.raises(ValueError, match="answers otherwise than when the first"):
        written(path, make(-1.0), x, teacher_from_logits=True, **kwargs)
    with pytest.raises(ValueError, match="from_logits is True, not False"):
        written(path, make(1.0), x, teacher_from_logits=False, **kwargs)
    with pytest.raises(ValueError, match="did not come twice in the same order"):
        written(path, make(1.0), 2 * x, teacher_from_logits=True, **kwargs)
    with pytest.raises(ValueError, match="examples is 100, not 50"):
        written(path, make(1.0), x[:50], teacher_from_logits=True, **kwargs)


def test_writer_that_outlived_its_store_stops(path, many):
    written(path, mlp(32), many, part=(0, 2))
    folder = settings.directory(path)
    found = settings.read_settings(folder)
    folder.write_json(SETTINGS, {**found, "seed": 3})
    late = Job(
        path, settings.Settings.of_manifest(found), None, None, "", None, None, None
    )
    with pytest.raises(
        OSError, match="given to soft targets of another kind meanwhile"
    ):
        late._write_shard(0, 1, [np.zeros((1, 8), "uint8")])
    with pytest.raises(ValueError, match="overwrite=True with part would erase"):
        written(path, mlp(32), many, part=(1, 2), overwrite=True)


def test_shard_numbers_of_any_length(tmp_path):
    for shard in (7, 99_999, 123_456):
        (tmp_path / shards.name(0, shard)).touch()
    assert shards.existing(str(tmp_path)) == {(0, 7), (0, 99_999), (0, 123_456)}


@pytest.mark.slow
def test_empty_shard_is_named(path, many):
    teacher = mlp(32)
    targets = written(path, teacher, many)
    file = pathlib.Path(path, targets.manifest["shards"][2]["file"])
    file.write_bytes(b"")
    pathlib.Path(path, "manifest.json").unlink()
    with pytest.raises(ValueError, match="shard-00002.tfrecord is damaged"):
        written(path, teacher, many)
    file.unlink()
    assert len(written(path, teacher, many)) == COUNT


def test_impossible_paths(many):
    with pytest.raises(OSError, match="soft targets could not be written"):
        written("/dev/null/cached", mlp(32), many)


def test_file_urls_are_local(path, many):
    written("file://" + path, mlp(32), many)
    assert len(kd.SoftTargets.open(path)) == COUNT


# Bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {"dtype": "int8"},
            ValueError,
            "dtype must be one of float16, bfloat16, float32",
        ),
        ({"views": 0}, ValueError, "views must be a whole number from 1 to 1000"),
        ({"seed": -1}, ValueError, "seed must be a whole number >= 0"),
        ({"shard_size": 0}, ValueError, "shard_size must be a whole number >= 1"),
        ({"batch_size": 2.5}, ValueError, "batch_size must be a whole number >= 1"),
        ({"part": (3, 3)}, ValueError, r"part must be \(i, n\) with i from 0 to n - 1"),
        ({"temperature": 0}, ValueError, "temperature must be a finite number > 0"),
        ({"temperature": "4"}, ValueError, "temperature must be a finite number > 0"),
        ({"temperature": 1e-30}, ValueError, "temperature must be from 1e-18"),
        ({"layers": ["nowhere"]}, ValueError, "the teacher has no layer 'nowhere'"),
    ],
)
def test_wrong_arguments(path, many, kwargs, error, message):
    with pytest.raises(error, match=message):
        written(path, mlp(32), many, **kwargs)
    assert not os.path.exists(path)


def test_wrong_data(path, many):
    x, y = many
    linear = lambda x: x * 1.0  # noqa: E731
    with pytest.raises(TypeError, match="must be .x, y. arrays, pandas"):
        written(path, mlp(32), "data")
    with pytest.raises(ValueError, match="different lengths"):
        written(path, mlp(32), (x, y[:5]))
    with pytest.raises(TypeError, match="must return a tf.data.Dataset, got int"):
        written(path, mlp(32), lambda: 3)
    with pytest.raises(ValueError, match="batches would have"):
        written(path, mlp(32), tf.data.Dataset.from_tensors(x[0, 0]))
    bad = x.copy()
    bad[3, 2] = np.nan
    dense = mlp(32)
    with pytest.raises(ValueError, match="pass batched=False if they are single"):
        written(path, lambda x: dense(x), dataset_of(many), teacher_from_logits=True)
    with pytest.raises(
        ValueError, match="does not take batches of shape .None, 3.; give"
    ):
        written(path, dense, x[:, :3])
    with pytest.raises(ValueError, match="example 3 .view 0. is not finite"):
        written(path, linear, bad, teacher_from_logits=True)
    ragged = tf.data.Dataset.from_generator(
        lambda: (np.zeros(n, "int32") for n in (2, 3)),
        output_signature=tf.TensorSpec((None,), tf.int32),
    ).take(2)
    with pytest.raises(ValueError, match="Pad all to one length"):
        written(path + "2", tagger(8), ragged)


@pytest.mark.slow
def test_data_that_may_never_end_is_refused(path, many):
    spec = tf.TensorSpec((FEATURES,), tf.float32)
    teacher = mlp(32)

    def endless():
        return itertools.cycle(many[0])

    data = tf.data.Dataset.from_generator(endless, output_signature=spec)
    said = tf.data.experimental.assert_cardinality
    uses = [
        lambda d: written(path, teacher, d),
        lambda d: written(path, teacher, lambda: d.batch(8)),
        lambda d: kd.class_covariance(teacher, d, verbose=False),
    ]
    for use in uses:
        with pytest.raises(
            ValueError, match="made of a Python generator, which may never"
        ):
            use(data)
        with pytest.raises(ValueError, match="endless"):
            use(dataset_of(many).repeat().filter(keep))
    with pytest.raises(ValueError, match=r"said by assert_cardinality: .* expected"):
        written(path, teacher, data.apply(said(COUNT)))
    assert not os.path.exists(os.path.join(path, "manifest.json"))
    assert len(written(path, teacher, data.take(COUNT), overwrite=True)) == COUNT
    whole = tf.data.Dataset.from_generator(lambda: iter(many[0]), output_signature=spec)
    targets = written(path + "2", teacher, whole.apply(said(COUNT)))
    # Where they end is known by the soft targets.
    assert len(list(targets.join(whole))) == COUNT
    few = tf.data.Dataset.from_generator(lambda: many[0][:9], output_signature=spec)
    with pytest.raises(ValueError, match=r"said by assert_cardinality: .* expected"):
        written(path + "3", teacher, few.apply(said(COUNT)))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("where", ["written", "augmented", "live", "later", "by hand"])
def test_nan_in_the_inputs_is_not_taught(path, many, where):
    """The teacher's relu answers it with 0."""

    class Deaf(keras.layers.Layer):
        def call(self, x):
            return tf.where(x > 0, x, 0.0)

    def model():
        layers = [keras.Input((FEATURES,)), Deaf(), keras.layers.Dense(CLASSES)]
        return keras.Sequential(layers)

    def augment(x, seed):
        return tf.where(tf.reduce_all(x == many[0][37]), np.nan, x)

    def use():
        if where == "written":
            written(path, teacher, bad)
        elif where == "augmented":
            written(path, teacher, many[0], augment=augment)
        elif where == "by hand":
            distiller_for(model(), teacher, alpha=0.0).train_on_batch(bad, many[1])
        else:
            batch = 50 if where == "live" else 20
            distiller_for(model(), teacher, alpha=0.0).fit(
                bad, many[1], batch_size=batch, shuffle=False, verbose=0
            )

    teacher, bad = model(), many[0].copy()
    bad[37, 2] = np.nan
    said = {
        "live": "inputs for batch 0 have NaN, and layers such as relu",
        "later": "batch 1 of epoch 1 are not all finite .NaN or infinity.",
        "by hand": "inputs for batch 0 have NaN, and layers such as relu",
    }.get(where, r"inputs for example 37 .view 0. have NaN, and layers such as relu")
    with pytest.raises(ValueError, match=said):
        use()
    if where == "written":
        with pytest.raises(ValueError, match="inputs for example 37 have NaN"):
            kd.class_covariance(teacher, bad, verbose=False)
    teacher.accepts_nan = True
    use()
    if where == "written":
        kd.class_covariance(teacher, bad, verbose=False)
        bad[37, 2] = -np.inf  # as masks have it
        written(path, teacher, bad, overwrite=True)
        with pytest.raises(ValueError, match="inputs for example 37"):
            written(
                path + "3", [teacher, model()], np.where(np.isinf(bad), np.nan, bad)
            )


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["[a-z]*", "a?b", "{a,b}", "**", "[!a]", "a\\b"])
def test_names_that_a_shell_would_expand_are_names(tmp_path, many, name):
    """Files of others are left alone, and one's own are found."""
    teacher, folder = mlp(32), tmp_path / name / "cached"
    others = [tmp_path / one / "cached" for one in ("a", "b", "axb", "z")]
    for one in others:
        one.mkdir(parents=True)
        (one / ".tmp-of-a-running-writer.tfrecord").write_text("")
    folder.mkdir(parents=True)
    (folder / ".tmp-of-a-killed-writer.tfrecord").write_text("")
    for part in (0, 1, None):
        targets = written(
            folder, teacher, many, part=part if part is None else (part, 2)
        )
    targets.verify()
    assert len(list(targets.join(many))) == COUNT
    assert len(list(kd.SoftTargets.open(folder, teacher=teacher).logits())) == 4
    assert not list(filter(lambda n: n.startswith(".tmp"), os.listdir(folder)))
    written(folder, mlp(32), many, overwrite=True).verify()
    for one in others:
        assert os.listdir(one) == [".tmp-of-a-running-writer.tfrecord"]


def test_no_folder_is_taken_for_a_pattern():
    """Whoever lists files does it by listing a folder."""
    package = pathlib.Path(kd.__file__).parent
    patterns = r"\bi?glob\(|gfile\.glob|list_files|fnmatch|matching_files"
    for file in package.rglob("*.py"):
        assert not re.search(patterns, file.read_text()), file


def test_a_batch_of_all_examples(path, many):
    targets = written(path, mlp(32), many, batch_size=10**9, shard_size=None)
    assert len(targets) == len(list(targets.join(many))) == COUNT
    batches = dataset_of(many).batch(7)
    again = written(path + "2", mlp(32), batches, batch_size=2**31 - 1, shard_size=None)
    assert len(list(again.join(batches))) == len(list(batches))


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.skipif(os.getuid() != 0, reason="another user is become by root only")
@pytest.mark.parametrize(
    "where", ["the folder above", "the folder", "a finished store"]
)
def test_an_ordinary_user_who_may_not_write(many, where):
    """It is said, and nothing is left; what may be read is read."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path, x = os.path.join(folder, "cached"), os.path.join(folder, "x.npy")
        np.save(x, many[0])
        if where == "the folder":
            os.mkdir(path)
        elif where == "a finished store":
            written(path, lambda x: x * 1.0, many[0], teacher_from_logits=True)
        before = sorted(os.listdir(folder)), os.path.exists(path) and os.listdir(path)
        code = (
            "import os, sys; os.setuid(65534)\n"
            "import numpy as np, keras_distill as kd\n"
            "path, x = sys.argv[1], np.load(sys.argv[2])\n"
            "try:\n"
            "    kd.SoftTargets.write(path, lambda x: x * 1.0, x, verbose=False,\n"
            "                         overwrite=True, teacher_from_logits=True)\n"
            "except OSError as error:\n"
            "    print(error)\n"
            "if os.path.exists(os.path.join(path, 'manifest.json')):\n"
            "    targets = kd.SoftTargets.open(path)\n"
            "    targets.verify()\n"
            "    print(len(list(targets.join(x))), 'read')\n"
        )
        done = forking.run(["-c", code, path, x])
        assert done.returncode == 0, done.stderr[-3000:]
        said = "soft targets could not be written to .*[Pp]ermission denied"
        assert re.search(said, done.stdout), done.stdout
        assert (f"{COUNT} read" in done.stdout) == (where == "a finished store")
        assert before == (
            sorted(os.listdir(folder)),
            os.path.exists(path) and os.listdir(path),
        )


def test_fresh_process_joins_without_any_teacher(path, many):
    written(path, mlp(32), many)
    code = (
        "import sys, numpy as np, keras_distill as kd\n"
        "t = kd.SoftTargets.open(sys.argv[1])\n"
        "x = np.load(sys.argv[2])\n"
        "print(sum(len(b[0].soft_targets) for b in t.join(x).batch(10)))"
    )
    np.save(path + ".npy", many[0])
    done = forking.run(["-c", code, path, path + ".npy"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == str(COUNT)
