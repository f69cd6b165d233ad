"""Soft targets on disk of yes/no questions, of values, and of several kinds at once."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.soft_targets import settings

COUNT, FEATURES = 48, 4
MSE = "mean_squared_error"
BINARY = keras.losses.BinaryCrossentropy(from_logits=True)
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
x = np.random.default_rng(0).normal(size=(COUNT, FEATURES)).astype("float32")


def dense(units, activation=None, loss=None, seed=1, scale=3.0):
    """A model of one layer; with a loss it says its kind."""
    start = keras.initializers.RandomNormal(stddev=scale, seed=seed)
    layer = keras.layers.Dense(units, activation, kernel_initializer=start)
    model = keras.Sequential([keras.Input((FEATURES,)), layer])
    if loss is not None:
        model.compile("sgd", loss)
    return model


def mixed(structure, seed=1, names=("animal", "tags", "age")):
    """A model with a softmax of 3, a sigmoid of 4 and 2 values."""
    inputs = keras.Input((FEATURES,))
    start = keras.initializers.RandomNormal(stddev=2.0, seed=seed)
    heads = [
        keras.layers.Dense(n, activation, name=name, kernel_initializer=start)(inputs)
        for n, activation, name in zip(
            (3, 4, 2), ("softmax", "sigmoid", None), names, strict=True
        )
    ]
    outputs = dict(zip(names, heads, strict=True)) if structure is dict else heads
    model = keras.Model(inputs, outputs)
    losses = ["sparse_categorical_crossentropy", "binary_crossentropy", "mse"]
    model.compile("sgd", dict(zip(names, losses, strict=True)))
    return model


def write(path, teacher, data=x, **kwargs):
    kwargs = {"dtype": "float32", "batch_size": 16, "shard_size": 16, **kwargs}
    return kd.SoftTargets.write(str(path), teacher, data, verbose=False, **kwargs)


def labels(kind, units):
    rng = np.random.default_rng(2)
    if kind == "softmax":
        return rng.integers(units, size=COUNT)
    if kind == "sigmoid":
        return rng.integers(2, size=(COUNT, units)).astype("float32")
    return rng.normal(size=(COUNT, units)).astype("float32")


def taught(student, loss, data, weights=None, teacher=None, **kwargs):
    """The logs of two epochs, and the weights after them."""
    distiller = kd.Distiller(student, teacher, **{"alpha": 0.3, **kwargs})
    distiller.compile(keras.optimizers.SGD(0.05), loss, run_eagerly=True)
    if isinstance(data, tuple):
        inputs, y = data
        history = distiller.fit(
            inputs, y, sample_weight=weights, batch_size=16, epochs=2, shuffle=False,
            verbose=0,
        )  # fmt: skip
    else:
        history = distiller.fit(data.batch(16), epochs=2, verbose=0)
    return history.history, student.get_weights()


def logits_of(store):
    blocks = list(store.logits())
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *blocks)


KINDS = [
    ("softmax", "softmax", 3, "sparse_categorical_crossentropy"),
    ("sigmoid", "sigmoid", 1, "binary_crossentropy"),
    ("sigmoid", "sigmoid", 3, "binary_crossentropy"),
    ("sigmoid", None, 3, BINARY),
    ("values", None, 1, MSE),
    ("values", None, 3, "huber"),
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("kind", "activation", "units", "loss"), KINDS)
def test_live_equals_cached_with_weights(tmp_path, kind, activation, units, loss):
    teacher = dense(units, activation, loss)
    y, weights = labels(kind, units), np.linspace(0.0, 2.0, COUNT).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y, weights))
    store = write(tmp_path / "s", teacher, data)
    assert store.manifest["output_kinds"] == kind
    live = taught(
        dense(units, activation, seed=2), loss, (x, y), weights, teacher=teacher
    )
    cached = taught(dense(units, activation, seed=2), loss, store.join(data))
    for name, values in live[0].items():
        np.testing.assert_allclose(cached[0][name], values, rtol=1e-5, atol=1e-6)
    for one, other in zip(live[1], cached[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("structure", [dict, list])
def test_heads_of_all_kinds_in_one_store(tmp_path, structure):
    teacher = mixed(structure)
    y = [labels("softmax", 3), labels("sigmoid", 4), labels("values", 2)]
    y = (
        dict(zip(("animal", "tags", "age"), y, strict=True))
        if structure is dict
        else tuple(y)
    )
    data = tf.data.Dataset.from_tensor_slices((x, y))
    store = write(tmp_path / "s", teacher, data)
    assert store.manifest["output_kinds"] == ["softmax", "sigmoid", "values"]
    losses = {"animal": "sparse_categorical_crossentropy",
              "tags": "binary_crossentropy", "age": "mse"}  # fmt: skip
    live = taught(mixed(structure, 2), losses, (x, y), teacher=teacher)
    cached = taught(mixed(structure, 2), losses, store.join(data))
    for name, values in live[0].items():
        np.testing.assert_allclose(cached[0][name], values, rtol=1e-5, atol=1e-6)
    for one, other in zip(live[1], cached[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_views_of_yes_or_no_are_taught_by_epoch(tmp_path):
    def augment(one, seed):
        return one + tf.random.stateless_normal(one.shape, seed)

    teacher, y = dense(2, "sigmoid"), labels("sigmoid", 2)
    data = tf.data.Dataset.from_tensor_slices((x, y))
    store = write(tmp_path / "s", teacher, data, views=2, augment=augment)
    for epoch in (0, 1):
        for inputs, _ in store.join(data, epoch=epoch).batch(COUNT):
            live = teacher(inputs.inputs)
            np.testing.assert_allclose(tf.sigmoid(inputs.soft_targets), live, atol=1e-6)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["sigmoid", "values"])
def test_parts_and_a_killed_run_give_the_same_bytes(tmp_path, kind):
    teacher = dense(3, "sigmoid" if kind == "sigmoid" else None, MSE)
    whole = write(tmp_path / "whole", teacher, output_kinds=kind)
    for part in ((0, 2), (1, 2)):
        assert write(tmp_path / "parts", teacher, output_kinds=kind, part=part) is None
    killed = tmp_path / "parts"
    (killed / "view-000-shard-00001.tfrecord").unlink()
    resumed = write(killed, teacher, output_kinds=kind)
    digests = [
        [s["digest"] for s in one.manifest["shards"]] for one in (whole, resumed)
    ]
    assert digests[0] == digests[1]
    assert resumed.manifest["output_kinds"] == kind


def test_another_kind_is_a_mismatch_that_says_which(tmp_path):
    teacher = dense(3)
    write(tmp_path / "s", teacher, output_kinds="sigmoid")
    words = "output_kinds is 'sigmoid'.*'values'"
    with pytest.raises(ValueError, match=words):
        write(tmp_path / "s", teacher, output_kinds="values")
    with pytest.raises(ValueError, match=words):
        kd.SoftTargets.open(tmp_path / "s", output_kinds="values")
    (tmp_path / "s" / "manifest.json").unlink()  # as a killed run leaves it
    with pytest.raises(ValueError, match=words):
        write(tmp_path / "s", teacher, output_kinds="values")
    both = write(tmp_path / "m", mixed(dict))
    kinds = {"animal": "softmax", "tags": "sigmoid", "age": "values"}
    assert len(kd.SoftTargets.open(both.path, output_kinds=kinds)) == COUNT
    with pytest.raises(ValueError, match="output_kinds"):
        kd.SoftTargets.open(both.path, output_kinds={**kinds, "age": "sigmoid"})


def without_kinds(path):
    """Makes of a store one that was written before it knew kinds."""
    for name in ("manifest.json", "settings.json"):
        file = pathlib.Path(path, name)
        if file.exists():
            content = json.loads(file.read_text())
            content.pop("output_kinds"), content.pop("checksum", None)
            settings.directory(str(path)).write_json(name, content)


@pytest.mark.slow
def test_a_store_of_before_opens_and_is_gone_on_with(tmp_path):
    y = labels("softmax", 3)
    data = tf.data.Dataset.from_tensor_slices((x, y))
    teacher = dense(3, "softmax")
    store = write(tmp_path / "s", teacher, data, dtype="float16")
    expected = logits_of(store)
    without_kinds(store.path)
    opened = kd.SoftTargets.open(store.path, teacher=teacher)
    np.testing.assert_array_equal(logits_of(opened), expected)
    assert (
        "output_kinds" not in write(store.path, teacher, data, dtype="float16").manifest
    )
    taught(dense(3), SPARSE, opened.join(data))
    with pytest.raises(ValueError, match="output_kinds is None"):
        kd.SoftTargets.open(store.path, output_kinds="softmax")
    # Values lay otherwise.
    old = write(tmp_path / "v", dense(3), data, dtype="float16")
    without_kinds(old.path)
    with pytest.raises(ValueError, match="output_kinds is None.*'values'"):
        write(old.path, dense(3), data, dtype="float16", output_kinds="values")


def test_logits_of_a_sigmoid_are_exact_from_before_it(tmp_path):
    teacher = dense(2, "sigmoid", scale=90.0)
    store = write(tmp_path / "s", teacher)
    z = x @ teacher.layers[0].kernel.numpy()
    assert np.abs(z).max() > 200  # the probability is 0 or 1 in float32
    np.testing.assert_allclose(logits_of(store), z, rtol=1e-6)


@pytest.mark.slow
def test_masks_are_kept_pixel_by_pixel(tmp_path):
    images = np.random.default_rng(3).normal(size=(20, 6, 6, 2)).astype("float32")
    inputs = keras.Input((6, 6, 2))
    outputs = keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")(inputs)
    teacher = keras.Model(inputs, outputs)
    y = (images[..., :1] > 0).astype("float32")
    store = write(tmp_path / "s", teacher, (images, y))
    assert store.manifest["row"][-1] == ["logits", "float32", [6, 6, 1]]
    student = keras.models.clone_model(teacher)
    logs, _ = taught(student, "binary_crossentropy", store.join((images, y)))
    live, _ = taught(
        keras.models.clone_model(teacher), "binary_crossentropy", (images, y),
        teacher=teacher,
    )  # fmt: skip
    assert np.isfinite(logs["soft_loss"]).all()
    assert set(logs) == set(live)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_are_float32_in_any_dtype(tmp_path, dtype):
    def teacher(batch):
        return batch[:, :3] * tf.constant([1e6, 1.0, 1e-9])

    store = write(tmp_path / "s", teacher, dtype=dtype, output_kinds="values")
    np.testing.assert_array_equal(logits_of(store), teacher(x))


def test_yes_or_no_in_float16_is_precise_where_it_matters(tmp_path):
    def teacher(batch):
        z = batch[:, :3] * tf.constant([1.0, 1.0, 0.0])
        return z + tf.constant([0.0, 0.0, 3e4])

    store = write(tmp_path / "s", teacher, dtype="float16", output_kinds="sigmoid",
                  teacher_from_logits=True)  # fmt: skip
    np.testing.assert_allclose(logits_of(store), teacher(x), rtol=2.0**-11)


def ensemble(kind, units):
    activation = {"softmax": "softmax", "sigmoid": "sigmoid"}.get(kind)
    loss = None if activation else MSE
    return [dense(units, activation, loss, seed=seed) for seed in (1, 5, 9)]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("kind", "units"), [("softmax", 3), ("sigmoid", 1), ("sigmoid", 3), ("values", 2)]
)
@pytest.mark.parametrize("temperature", [None, 3.0])
def test_lists_of_teachers_are_averaged_by_kind(tmp_path, kind, units, temperature):
    teachers = ensemble(kind, units)
    y = labels(kind, units)
    data = tf.data.Dataset.from_tensor_slices((x, y))
    store = write(tmp_path / "s", teachers, data, temperature=temperature)
    loss = {"softmax": SPARSE, "sigmoid": BINARY, "values": MSE}[kind]
    cached = taught(dense(units, seed=2), loss, store.join(data), temperature=3.0)
    live = taught(dense(units, seed=2), loss, (x, y), teacher=teachers, temperature=3.0)
    for one, other in zip(live[1], cached[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    if kind == "values":  # their mean, and that once
        assert store.manifest["members"] is None
        mean = np.mean([teacher(x) for teacher in teachers], 0)
        np.testing.assert_allclose(logits_of(store), mean, rtol=1e-6, atol=1e-6)
        taught(dense(units), loss, store.join(data), temperature=7.0)


def test_a_mean_of_what_nothing_tells_is_refused(tmp_path):
    with pytest.raises(ValueError, match='say output_kinds="sigmoid" or "values"'):
        write(tmp_path / "s", [dense(1), dense(1)], temperature=2.0)
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_top_k_is_for_classes_that_exclude_each_other(tmp_path):
    for teacher, kind in (
        (dense(3, "sigmoid"), "sigmoid"),
        (dense(3, None, MSE), "values"),
    ):
        with pytest.raises(ValueError, match=f"of the kind {kind}; leave top_k out"):
            write(tmp_path / "s", teacher, top_k=2)
    store = write(tmp_path / "m", mixed(dict), top_k=2)
    found = logits_of(store)
    assert isinstance(found["animal"], kd.TopKLogits)
    assert found["tags"].shape == (COUNT, 4)
    assert found["age"].shape == (COUNT, 2)
    one = write(tmp_path / "o", dense(3), (x, labels("values", 3)), top_k=2)
    assert one.manifest["output_kinds"] is None
    with pytest.raises(ValueError, match="cached with top_k, which is for classes"):
        taught(dense(3), MSE, one.join((x, labels("values", 3))))


def test_what_may_be_a_sigmoid_is_not_taken_for_logits(tmp_path):
    def teacher(batch):
        return tf.sigmoid(tf.py_function(lambda b: b[:, :2], [batch], tf.float32))

    def with_shape(batch):
        return tf.ensure_shape(teacher(batch), (None, 2))

    words = 'output_kinds="sigmoid" with teacher_from_logits=False'
    with pytest.raises(ValueError, match=words):
        write(tmp_path / "s", with_shape)
    store = write(tmp_path / "s", with_shape, teacher_from_logits=False)
    assert store.manifest["output_kinds"] == "sigmoid"
    np.testing.assert_allclose(logits_of(store), x[:, :2], atol=1e-4)


def test_probabilities_that_sum_to_one_are_a_softmax(tmp_path):
    def teacher(batch):
        return tf.nn.softmax(batch)

    with pytest.warns(UserWarning, match="taken as probabilities"):
        store = write(tmp_path / "s", teacher)
    assert store.manifest["output_kinds"] == "softmax"


def fit(distiller, data):
    distiller.fit(data, verbose=0)


def train_on_batch(distiller, data):
    distiller.train_on_batch(*next(iter(data)))


def evaluate(distiller, data):
    distiller.evaluate(data, verbose=0)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("entrance", [fit, train_on_batch, evaluate])
@pytest.mark.parametrize(
    ("written", "activation", "loss", "units"),
    [
        ("softmax", None, MSE, 3),
        ("softmax", None, BINARY, 3),
        ("sigmoid", None, SPARSE, 3),
        ("sigmoid", None, MSE, 3),
        ("softmax", None, BINARY, 2),
        ("values", "softmax", "sparse_categorical_crossentropy", 3),
        ("values", "sigmoid", "binary_crossentropy", 1),
    ],
)
def test_another_kind_teaches_nothing(
    tmp_path, entrance, written, activation, loss, units
):
    activations = {"values": None, "softmax": "softmax", "sigmoid": "sigmoid"}
    store = write(
        tmp_path / "s", dense(units, activations[written]), output_kinds=written
    )
    student = dense(units, activation)
    kind = "softmax" if "ategorical" in str(loss) or loss is SPARSE else "sigmoid"
    kind = "values" if loss == MSE else kind
    before = student.get_weights()
    distiller = kd.Distiller(student)
    distiller.compile("sgd", loss, metrics=[kd.TeacherAgreement()], run_eagerly=True)
    data = store.join((x, labels(kind, units))).batch(16)
    words = f"'{kind}' and the cached soft targets of the kind '{written}'"
    with pytest.raises(ValueError, match=words):
        entrance(distiller, data)
    assert distiller.optimizer.iterations == 0
    for one, other in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_logits_in_few_bits_teach_no_values(tmp_path):
    y = labels("values", 3)
    store = write(tmp_path / "s", dense(3), (x, y), dtype="float16")
    assert store.manifest["output_kinds"] is None
    with pytest.raises(ValueError, match=r"cached as logits.*output_kinds='values'"):
        taught(dense(3), MSE, store.join((x, y)))
    taught(dense(3), BINARY, store.join((x, labels("sigmoid", 3))))
    exact = write(tmp_path / "e", dense(3), (x, y))
    taught(dense(3), MSE, exact.join((x, y)))


def test_the_soft_targets_say_what_a_student_is(tmp_path):
    store = write(tmp_path / "s", dense(1, "sigmoid"))
    student = dense(1)
    distiller = kd.Distiller(student, alpha=0.0)
    distiller.compile("sgd", run_eagerly=True)
    distiller.fit(store.join(x).batch(16), verbose=0)
    assert distiller.output_kinds == "sigmoid"


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("teacher_units", [1, 2])
def test_a_yes_or_no_and_its_two_classes_teach_each_other(tmp_path, teacher_units):
    one, two = dense(1, "sigmoid"), dense(2, "softmax")
    kernel = one.layers[0].kernel
    two.layers[0].kernel.assign(tf.concat([tf.zeros_like(kernel), kernel], 1))
    teacher = one if teacher_units == 1 else two
    y = labels("softmax", 2)
    data = tf.data.Dataset.from_tensor_slices((x, y))
    store = write(tmp_path / "s", teacher, data)
    for student, loss in (
        (lambda: dense(1, seed=2), BINARY),
        (lambda: dense(2, seed=2), SPARSE),
    ):
        cached = taught(student(), loss, store.join(data))
        live = taught(student(), loss, (x, y), teacher=teacher)
        np.testing.assert_allclose(
            cached[0]["soft_loss"], live[0]["soft_loss"], rtol=1e-5
        )
        for a, b in zip(cached[1], live[1], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_two_largest_logits_teach_no_yes_or_no(tmp_path):
    y = labels("softmax", 2)
    store = write(tmp_path / "s", dense(2, "softmax"), (x, y), top_k=1)
    with pytest.raises(ValueError, match="cached with top_k, which is for classes"):
        taught(dense(1, "sigmoid"), "binary_crossentropy", store.join((x, y)))


def test_what_a_user_makes_by_hand_has_no_kind():
    inputs = kd.DistillationInputs(x, dense(3)(x).numpy())
    for loss, y in ((MSE, labels("values", 3)), (SPARSE, labels("softmax", 3))):
        data = tf.data.Dataset.from_tensor_slices((inputs, y))
        taught(dense(3, seed=2), loss, data)


def test_joined_data_can_be_sent(tmp_path):
    import pickle

    store = write(tmp_path / "s", dense(1, "sigmoid"))
    (batch,) = [inputs for (inputs,) in store.join(x).batch(COUNT)]
    batch = tf.nest.map_structure(lambda one: one.numpy(), batch)
    again = pickle.loads(pickle.dumps(batch))
    assert type(again) is type(batch)
    assert isinstance(again, kd.DistillationInputs)
    assert again.kinds_taught == ((None, "sigmoid"),)


def test_other_processes_know_the_kind(tmp_path):
    teacher = dense(3)
    here = write(tmp_path / "a", teacher, output_kinds="sigmoid")
    there = write(tmp_path / "b", teacher, output_kinds="sigmoid", n_jobs=2)
    for one, other in zip(
        here.manifest["shards"], there.manifest["shards"], strict=True
    ):
        assert one["digest"] == other["digest"]


def test_an_output_that_there_is_not_is_refused(tmp_path):
    def teacher(batch):
        return {"a": batch[:, :2], "b": batch[:, 2:]}

    said = {"teacher_from_logits": {"a": True, "b": True}}
    with pytest.raises(ValueError, match="names the output 'c', which the teacher"):
        write(tmp_path / "s", teacher, output_kinds={"c": "values"}, **said)
    store = write(tmp_path / "s", teacher, output_kinds={"a": "values"}, **said)
    assert store.manifest["output_kinds"] == ["values", None]
    with pytest.raises(ValueError, match="names the output 'c'"):
        write(tmp_path / "s", mixed(dict), output_kinds={"c": "values"})
    with pytest.raises(ValueError, match="output_kinds must be 'softmax', 'sigmoid'"):
        write(tmp_path / "s", dense(3), output_kinds="multilabel")
    with pytest.raises(
        ValueError, match="is a sigmoid, but output_kinds says 'softmax'"
    ):
        write(tmp_path / "s", dense(3, "sigmoid"), output_kinds="softmax")


def test_two_classes_and_two_questions_are_not_the_same():
    for student, teacher in (
        (dense(2, "sigmoid"), dense(2, "softmax")),
        (dense(2, "softmax"), dense(2, "sigmoid")),
    ):
        with pytest.raises(ValueError, match="cannot be matched"):
            kd.Distiller(student, teacher)
    with pytest.raises(ValueError, match="2 questions and the teacher 1"):
        kd.Distiller(dense(2, "sigmoid"), dense(1, "sigmoid"))


@pytest.mark.slow
def test_labels_say_whether_a_sigmoid_is_a_yes_or_a_value(tmp_path):
    """A sigmoid under a regression loss: the store has logits of it, unless told."""
    y = (labels("values", 1) ** 2 % 1).astype("float32")
    store = write(tmp_path / "s", dense(1, "sigmoid"), (x, y))
    with pytest.raises(ValueError, match="'values' and the cached soft targets of the"):
        taught(dense(1, "sigmoid"), MSE, store.join((x, y)))
    told = write(tmp_path / "t", dense(1, "sigmoid"), (x, y), output_kinds="values")
    taught(dense(1, "sigmoid"), MSE, told.join((x, y)))
    taught(dense(1, "sigmoid"), MSE, store.join((x, (y > 0.5).astype("float32"))))
