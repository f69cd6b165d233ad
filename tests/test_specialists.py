import collections
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import joblib
import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

import keras_distill as kd
from keras_distill.processes import ProcessSettings
from keras_distill.specialists.heads import as_specialist, log_ratio
from keras_distill.specialists.sampling import ClusterSampler, TrainingData
from tests import forking
from tests.conftest import CLASSES, FEATURES, largest_difference, mlp

CLUSTERS = [[0, 1], [2, 3, 4]]
COUNTS = np.array([300, 60, 200, 20, 20])


@pytest.fixture(scope="module")
def skewed():
    rng = np.random.default_rng(2)
    y = rng.permutation(np.repeat(np.arange(CLASSES), COUNTS))
    x = rng.normal(size=(len(y), FEATURES)).astype("float32")
    x[:, 0] = np.arange(len(y))  # tells the examples apart
    return x, y


# Heads -------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "softmax"])
@pytest.mark.parametrize("head", ["dustbin", "all"])
def test_first_prediction_is_the_generalists(data, activation, head):
    x, _ = data
    generalist = mlp(activation=activation)
    cluster = [1, 3]
    ratios = log_ratio(head, cluster, COUNTS)
    specialist = as_specialist(generalist, head, cluster, ratios, CLASSES, True)
    p = np.asarray(generalist(x))
    p = p if activation else softmax(p, -1)
    rest = np.delete(p, cluster, -1)
    wanted = np.column_stack([p[:, cluster], rest.sum(-1)]) if head == "dustbin" else p
    np.testing.assert_allclose(softmax(specialist(x), -1), wanted, atol=1e-5)
    # In training it is the posterior under the mix that is half special.
    special, total = COUNTS[cluster].sum(), COUNTS.sum()
    oversampled = np.full(wanted.shape[-1], 1 / (total - special))
    oversampled[[0, 1] if head == "dustbin" else cluster] = 1 / special
    sampled = wanted * oversampled
    np.testing.assert_allclose(
        softmax(specialist(x, training=True), -1),
        sampled / sampled.sum(-1, keepdims=True),
        atol=1e-5,
    )


@pytest.mark.filterwarnings("ignore:the layers of")
def test_a_head_that_does_not_say_what_it_gives(data):
    x, _ = data
    a, b = mlp(activation="softmax"), mlp(activation="softmax")
    generalist = keras.Model(
        a.inputs, keras.layers.Average()([a.outputs[0], b(a.inputs[0])])
    )
    ratios = log_ratio("dustbin", [1, 3], COUNTS)
    specialist = as_specialist(generalist, "dustbin", [1, 3], ratios, CLASSES, True)
    p = np.asarray(generalist(x))
    wanted = np.column_stack([p[:, [1, 3]], np.delete(p, [1, 3], -1).sum(-1)])
    np.testing.assert_allclose(softmax(specialist(x), -1), wanted, atol=1e-5)


def test_a_confident_softmax_still_gets_a_gradient():
    generalist = mlp(activation="softmax")
    generalist.layers[-1].bias.assign([200.0, 0.0, 0.0, 0.0, 0.0])
    ratios = log_ratio("dustbin", [0, 1], COUNTS)
    specialist = as_specialist(generalist, "dustbin", [0, 1], ratios, CLASSES, True)
    with tf.GradientTape() as tape:
        loss = keras.losses.sparse_categorical_crossentropy(
            np.array([1]),
            specialist(np.zeros((1, FEATURES)), training=True),
            from_logits=True,
        )
    assert float(loss[0]) > 150  # not cut off at 1e-38, that is 87
    gradient = tape.gradient(loss, generalist.layers[-1].bias)
    np.testing.assert_allclose(gradient[:2], [1.0, -1.0], atol=1e-5)


# Training sets -----------------------------------------------------------------------


def epochs_of(source, cluster, epochs, relabel=True, batch_size=16):
    sampler = ClusterSampler(source, cluster, relabel, batch_size, seed=7)
    batches = iter(sampler.dataset())
    found = []
    for _ in range(epochs):
        parts = list(itertools.islice(batches, sampler.steps_per_epoch))
        found.append(tuple(np.concatenate(part) for part in zip(*parts, strict=True)))
    return sampler, found


@pytest.mark.sampled(1)
@pytest.mark.parametrize("form", ["arrays", "examples", "batches", "one-hot"])
def test_half_special_half_rest_mixed_as_the_data(skewed, form):
    x, y = skewed
    labels = np.eye(CLASSES)[y] if form == "one-hot" else y
    whole = tf.data.Dataset.from_tensor_slices((x, labels))
    given = {
        "arrays": (x, labels),
        "one-hot": (x, labels),
        "examples": lambda: whole,
        "batches": lambda: whole.batch(50),
    }[form]
    source = TrainingData(given, CLASSES, [2])
    np.testing.assert_array_equal(source.counts, COUNTS)
    cluster = [1, 4]  # 80 of 600
    sampler, epochs = epochs_of(source, cluster, 12)
    assert (sampler.special, sampler.rest, sampler.steps_per_epoch) == (80, 520, 10)
    x_drawn, y_drawn = (np.concatenate(part) for part in zip(*epochs, strict=True))
    original = y[x_drawn[:, 0].astype(int)]
    # Relabelled, each with its own inputs.
    table = np.full(CLASSES, 2)
    table[cluster] = [0, 1]
    np.testing.assert_array_equal(y_drawn, table[original])
    share = np.bincount(original, minlength=CLASSES) / len(original)
    wanted = np.where(np.isin(range(CLASSES), cluster), COUNTS / 80, COUNTS / 520) / 2
    exact = form in ("arrays", "one-hot")
    # 960 drawn of each half: three standard deviations are 0.04.
    np.testing.assert_allclose(share, wanted, atol=0.04)
    if exact:
        assert share[cluster].sum() == 0.5
    rest = [set(e[0][e[1] == 2][:, 0].astype(int)) for e in epochs]
    assert len(set.union(*rest)) > 400  # fresh draws, not the same 80
    special = set(x_drawn[np.isin(original, cluster)][:, 0].astype(int))
    assert len(special) == 80


@pytest.mark.parametrize("form", ["arrays", "stream"])
def test_a_cluster_larger_than_the_rest(skewed, form):
    x, y = skewed
    whole = tf.data.Dataset.from_tensor_slices((x, y))
    source = TrainingData((x, y) if form == "arrays" else whole, CLASSES, [2])
    _, epochs = epochs_of(source, [0, 1, 3], 4, relabel=False)
    drawn = np.concatenate([e[1] for e in epochs])
    assert np.isin(drawn, [0, 1, 3]).mean() == pytest.approx(0.5, abs=0.03)


def test_lists_of_inputs_and_endless_data(skewed):
    x, y = skewed
    source = TrainingData(([x, x[:, :1]], y), CLASSES, [2, 2])
    _, [(inputs, _)] = epochs_of(TrainingData((x, y), CLASSES, [2]), [1, 4], 1)
    sampler = ClusterSampler(source, [1, 4], True, 16, seed=7)
    (first, second), _ = next(iter(sampler.dataset()))
    np.testing.assert_array_equal(first, inputs[:16])
    np.testing.assert_array_equal(second, inputs[:16, :1])
    endless = tf.data.Dataset.from_tensor_slices((x, y)).repeat()
    with pytest.raises(ValueError, match="the dataset is endless"):
        TrainingData(endless, CLASSES, [2])


def test_fingerprints_tell_data_apart(skewed):
    x, y = skewed

    def digest(*arrays, shuffled=False):
        data = tf.data.Dataset.from_tensor_slices(arrays)
        data = data.shuffle(len(y)) if shuffled else data
        return TrainingData(data, CLASSES, [2]).fingerprint()

    assert digest(x, y) == digest(x, y)
    assert digest(x, y) != digest(x + 1e-3, y)
    assert digest(x, y, shuffled=True) == digest(x, y, shuffled=True)  # labels alone
    words = np.array(["a", "b"] * 300, dtype=object)
    one, same, other = (
        TrainingData((w, y), CLASSES, [1]).fingerprint()
        for w in (words, np.array(words.tolist(), dtype=object), words[::-1])
    )
    assert one == same != other


def test_arrays_are_not_copied_and_weights_stay_with_their_examples(skewed):
    x, y = skewed
    source = TrainingData((x, y, x[:, 0]), CLASSES, [2])
    assert np.shares_memory(source.data[0], x)
    _, [(inputs, _, weight)] = epochs_of(source, [1, 4], 1)
    np.testing.assert_array_equal(inputs[:, 0], weight)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (lambda x, y: (x, y + 1), ValueError, "labels go from 1 to 5.* 5 outputs"),
        (lambda x, y: x, ValueError, "trained on labelled data"),
        (lambda x, y: (x, x), ValueError, "labels must be whole numbers"),
        (lambda x, y: (x, y[:5]), ValueError, "different lengths"),
        (lambda x, y: (x, np.full((len(y), 5), 0.2)), ValueError, "are not one-hot"),
        (lambda x, y: [x, None], TypeError, "dataset must be"),
        (
            lambda x, y: tf.data.Dataset.from_tensor_slices((x, y + 1)),
            ValueError,
            "labels go from 1 to 5",
        ),
        (
            lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)).take(0),
            ValueError,
            "the training data is empty",
        ),
        (
            lambda x, y: tf.data.Dataset.from_tensor_slices((x, x)),
            ValueError,
            "labels must be whole numbers",
        ),
        (lambda x, y: lambda: (x, y), TypeError, "must return a tf.data.Dataset"),
    ],
)
def test_data_of_another_kind_is_refused(skewed, given, error, message):
    with pytest.raises(error, match=message):
        kd.SpecialistBuilder(mlp(), CLUSTERS).fit(given(*skewed))


# What is learned ---------------------------------------------------------------------


def gaussian_classes(rng, size, prior):
    """Classes on a line, each normal with variance 1; the posterior is known."""
    centres = np.array([-2.0, -1.0, 1.0, 2.0])
    y = rng.choice(4, size, p=prior)
    x = (centres[y] + rng.normal(size=size)).astype("float32")[:, None]
    posterior = prior * np.exp(-((x - centres) ** 2) / 2)
    return x, y, posterior / posterior.sum(-1, keepdims=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:2 of 4 classes")
def test_corrected_probabilities_are_calibrated():
    prior = np.array([0.04, 0.06, 0.5, 0.4])
    rng = np.random.default_rng(0)
    x, y, _ = gaussian_classes(rng, 20_000, prior)

    def build(generalist, outputs):
        return keras.Sequential(
            [
                keras.Input((1,)),
                keras.layers.Dense(32, "tanh"),
                keras.layers.Dense(outputs),
            ]
        )

    generalist = keras.Sequential([keras.Input((1,)), keras.layers.Dense(4)])
    builder = kd.SpecialistBuilder(generalist, [[0, 1], [0, 1]], build_specialist=build)
    model = builder.fit(
        (x, y), hard_epochs=12, hard_learning_rate=2e-2, soft_epochs=0, verbose=False
    )
    specialist = model.specialists[0]
    x, y, posterior = gaussian_classes(rng, 20_000, prior)
    wanted = np.column_stack([posterior[:, :2], posterior[:, 2:].sum(-1)])
    corrected = softmax(specialist(x), -1)
    uncorrected = softmax(specialist(x, training=True), -1)
    assert np.abs(corrected - wanted).mean() < 0.02
    assert np.abs(uncorrected - wanted).mean() > 0.05
    # As many examples are in the dustbin as it says.
    assert corrected[:, 2].mean() == pytest.approx((y > 1).mean(), abs=0.02)
    assert uncorrected[:, 2].mean() < (y > 1).mean() - 0.1


@pytest.mark.slow
def test_second_stage_starts_where_the_generalist_is(skewed):
    """At alpha = 0 student and teacher agree from the start: nothing is to be learned."""
    x, y = skewed
    generalist = mlp()
    builder = kd.SpecialistBuilder(generalist, CLUSTERS)
    arguments = {"hard_epochs": 0, "soft_epochs": 2, "alpha": 0.0, "verbose": False}
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    model = builder.fit((x / 100, y), optimizer=optimizer, temperature=3.0, **arguments)
    for record, specialist in zip(builder.records, model.specialists, strict=True):
        assert max(record["history"]["soft"]["soft_loss"]) < 1e-6
        assert list(record["history"]) == ["soft"]
        assert largest_difference(
            specialist.get_weights(), generalist.get_weights()
        ) == pytest.approx(0.0, abs=1e-5)


def test_stages_learn_what_they_are_for(skewed):
    x, y = skewed
    x = np.eye(CLASSES, FEATURES, dtype="float32")[y] * 3 + x / 1000
    builder = kd.SpecialistBuilder(mlp(), CLUSTERS)
    builder.fit(
        (x, y), hard_epochs=5, hard_learning_rate=3e-2, soft_epochs=3,
        soft_learning_rate=1e-2, alpha=0.2, batch_size=16, verbose=False,
    )  # fmt: skip
    history = builder.records[1]["history"]
    losses = history["hard"]["hard_loss"]
    assert losses[-1] < 0.5 * losses[0]
    # Back towards the generalist, which the first stage left.
    assert history["soft"]["soft_loss"][-1] < history["soft"]["soft_loss"][0]


def test_a_specialist_that_diverges_is_not_kept(skewed, tmp_path):
    builder = kd.SpecialistBuilder(mlp(), CLUSTERS)
    arguments = {"hard_epochs": 2, "hard_learning_rate": 1e30, "soft_epochs": 0}
    with pytest.raises(ValueError, match=r"of specialist \d became NaN.* lower hard_"):
        builder.fit(skewed, work_dir=tmp_path, **arguments)
    assert not list(tmp_path.glob("specialist-*"))


@pytest.mark.slow
def test_the_generalist_is_not_changed_and_all_classes_can_be_the_head(skewed):
    x, y = skewed
    generalist = mlp(activation="softmax")
    before = generalist.get_weights()
    builder = kd.SpecialistBuilder(generalist, CLUSTERS, head="all", n=2)
    model = builder.fit((x, y), hard_epochs=0, soft_epochs=1, verbose=False)
    assert largest_difference(before, generalist.get_weights()) == 0
    assert model.generalist is generalist
    assert model.n == 2
    assert [m.output_shape for m in model.specialists] == [(None, CLASSES)] * 2
    assert model.predict(x, verbose=0).shape == (len(x), CLASSES)


# Views -------------------------------------------------------------------------------


def shifted(x, seed):
    """Moves the second feature and leaves the first, which tells the examples apart."""
    return x + tf.one_hot(1, FEATURES) * tf.random.stateless_uniform((), seed)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("form", ["arrays", "examples", "batches"])
def test_each_draw_is_another_view_and_what_is_drawn_stays(skewed, form):
    x, y = skewed
    whole = tf.data.Dataset.from_tensor_slices((x, y, np.arange(len(y)) + 1.0))
    given = {
        "arrays": (x, y, np.arange(len(y)) + 1.0),
        "examples": whole,
        "batches": whole.batch(50),
    }[form]
    source = TrainingData(given, CLASSES, [2])
    plain = ClusterSampler(source, [1, 4], True, 48, seed=7)
    sampler = dataclasses.replace(plain, augment=shifted)
    count = 3 * sampler.steps_per_epoch  # with a last batch that is smaller
    bare, seen, again = (
        [np.concatenate(part) for part in zip(*one.dataset().take(count), strict=True)]
        for one in (plain, sampler, sampler)
    )
    for drawn, same, repeated in zip(bare[1:], seen[1:], again[1:], strict=True):
        np.testing.assert_array_equal(drawn, same)
        np.testing.assert_array_equal(drawn, repeated)
    np.testing.assert_array_equal(seen[0], again[0])
    np.testing.assert_array_equal(bare[0][:, 0], seen[0][:, 0])
    moved = (seen[0] - bare[0])[:, 1]
    assert len(np.unique(moved.round(5))) > 0.98 * len(moved)  # no two alike
    assert (moved.min(), moved.max()) == pytest.approx((0, 1), abs=0.02)
    places = np.arange(3) * 48  # of a first example: of the batches before
    by_hand = [
        tf.random.stateless_uniform((), tf.constant([7 << 16, place], tf.int64))
        for place in places
    ]
    ends = [0, *np.cumsum([len(b[1]) for b in sampler.dataset().take(2)])]
    np.testing.assert_allclose(moved[ends], by_hand, atol=1e-6)


@pytest.mark.slow
def test_generalist_and_specialist_see_the_same_views_in_the_soft_stage(skewed):
    seen = []

    @keras.saving.register_keras_serializable("tests")
    class Looking(keras.layers.Layer):
        def call(self, inputs):
            tf.py_function(lambda one: seen.append(one.numpy()), [inputs], [])
            return inputs

    x = keras.Input((FEATURES,))
    generalist = keras.Model(x, keras.layers.Dense(CLASSES)(Looking()(x)))
    builder = kd.SpecialistBuilder(generalist, CLUSTERS[:1] * 2)
    seen.clear()
    builder.fit(skewed, augment=shifted, **{**FAST, "hard_epochs": 0})
    drawn = [one for one in seen if len(one) == 64]
    # Once by each; the first batch is looked at besides.
    assert min(collections.Counter(one.tobytes() for one in drawn).values()) == 2
    known = {row[1] for row in skewed[0]}
    assert not known & {row[1] for one in drawn for row in one}


def test_views_by_a_global_seed_are_refused(skewed):
    builder = kd.SpecialistBuilder(dropout_model(), CLUSTERS)
    keras.utils.set_random_seed(0)  # with which each new graph draws the same
    with pytest.raises(ValueError, match="other views of the same examples"):
        builder.fit(skewed, augment=lambda x, seed: x + tf.random.uniform(()), **FAST)


def test_views_of_named_inputs_have_their_names():
    inputs = {n: keras.Input((2,), name=n) for n in "ab"}
    outputs = keras.layers.Dense(4)(inputs["a"] - inputs["b"])
    builder = kd.SpecialistBuilder(keras.Model(inputs, outputs), [[0, 1], [2, 3]])
    data = {n: np.ones((6, 2), "float32") for n in "ab"}, np.arange(6) % 4
    for wrong in (lambda x, seed: [x["b"], x["a"]], lambda x, seed: {"a": x["a"]}):
        with pytest.raises(ValueError, match=r"of the inputs \['a', 'b'\]; return a d"):
            builder.fit(data, augment=wrong)


def test_views_change_what_is_learnt_and_a_resumed_run_ends_the_same(
    skewed, trained, tmp_path
):
    builder = kd.SpecialistBuilder(dropout_model(), CLUSTERS)
    whole = builder.fit(skewed, augment=shifted, work_dir=tmp_path, **FAST)
    assert not same_bits(whole, trained[0])
    (tmp_path / "specialist-0001.json").unlink()
    (tmp_path / "specialist-0001.keras").unlink()
    again = builder.fit(skewed, augment=shifted, work_dir=tmp_path, **FAST)
    assert same_bits(whole, again)


@pytest.mark.slow
def test_views_are_the_same_whoever_trains(skewed):
    builder = kd.SpecialistBuilder(dropout_model(), CLUSTERS)
    there = builder.fit(skewed, augment=shifted, n_jobs=2, threads=1, **FAST)
    assert same_bits(there, builder.fit(skewed, augment=shifted, **FAST))


# Workers and work directories --------------------------------------------------------

FAST = {"hard_epochs": 1, "soft_epochs": 1, "batch_size": 64, "verbose": False}


def dropout_model():
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(8, "relu"),
            # A seed of its own: other threads of the process draw from `random` too.
            keras.layers.Dropout(0.3, seed=7),
            keras.layers.Dense(CLASSES),
        ]
    )


def weights_of(model):
    return [w for specialist in model.specialists for w in specialist.get_weights()]


def same_bits(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(weights_of(a), weights_of(b), strict=True)
    )


@pytest.fixture(scope="module")
def trained(skewed, tmp_path_factory):
    """What this process trains, with an uninterrupted run, and its work directory."""
    folder = tmp_path_factory.mktemp("trained")
    builder = kd.SpecialistBuilder(dropout_model(), CLUSTERS)
    return builder.fit(skewed, work_dir=folder, **FAST), folder


@pytest.mark.slow
def test_other_processes_give_the_same_though_one_is_killed(skewed, tmp_path):
    main, victim = os.getpid(), tmp_path / "victim"

    def build(generalist, outputs):
        if os.getpid() != main and not victim.exists():
            victim.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return keras.Sequential([dropout_model(), keras.layers.Dense(outputs)])

    builder = kd.SpecialistBuilder(dropout_model(), CLUSTERS, build_specialist=build)
    there = builder.fit(skewed, n_jobs=2, threads=1, **FAST)
    assert victim.exists()
    workers = {record["worker"] for record in builder.records}
    assert f":{os.getpid()}" not in "".join(workers)
    assert same_bits(there, builder.fit(skewed, **FAST))


@pytest.mark.slow
def test_another_seed_gives_other_specialists(skewed, trained):
    here, _ = trained
    builder = kd.SpecialistBuilder(dropout_model(), CLUSTERS)
    other = builder.fit(skewed, seed=1, **{**FAST, "soft_epochs": 0})
    assert not same_bits(here, other)


def test_a_process_takes_the_settings_of_another_along():
    @keras.saving.register_keras_serializable("tests")
    class Own(keras.layers.Layer):
        pass

    keras.config.set_dtype_policy("mixed_float16")
    settings = ProcessSettings()
    keras.config.set_dtype_policy("float32")
    keras.saving.get_custom_objects().pop("tests>Own")
    try:
        settings.take()
        assert keras.config.dtype_policy().name == "mixed_float16"
        assert keras.saving.get_custom_objects()["tests>Own"] is Own
    finally:
        keras.saving.get_custom_objects().pop("tests>Own", None)


def test_threads_of_one_process_are_refused(skewed):
    with (
        joblib.parallel_config("threading"),
        pytest.raises(ValueError, match="would share Keras's seeds"),
    ):
        kd.SpecialistBuilder(mlp(), CLUSTERS).fit(skewed, n_jobs=2)


@pytest.mark.slow
def test_finished_specialists_are_not_trained_again(skewed, trained, tmp_path):
    builder = kd.SpecialistBuilder(dropout_model(), CLUSTERS)
    unbroken, folder = trained
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    first = tmp_path / "specialist-0000.keras"
    (tmp_path / "specialist-0001.json").unlink()
    (tmp_path / ".tmp-left").write_text("half")
    before = first.read_bytes(), first.stat().st_mtime_ns
    again = builder.fit(skewed, work_dir=tmp_path, **FAST)
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert same_bits(unbroken, again)
    assert not (tmp_path / ".tmp-left").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clusters": [[0, 1], [2, 3]]}, r"clusters is \[\[0, 1\], \[2, 3, 4\]\], not"),
        ({"generalist": True}, "the generalist's weights differ"),
        ({"data": True}, "the data's inputs differ"),
        ({"build": True}, "build_specialist is None, not"),
        ({"fit": {"alpha": 0.3}}, "stages is .*alpha"),
        ({"fit": {"seed": 4}}, "seed is 0, not 4"),
        ({"fit": {"optimizer": "sgd"}}, "optimizer's class_name differ"),
        ({"fit": {"augment": shifted}}, "augment is None, not '.*shifted'"),
        ({"head": "all"}, "head is 'dustbin', not 'all'"),
    ],
)
@pytest.mark.filterwarnings("ignore:1 of 5 classes")
def test_a_directory_of_another_kind_is_refused(skewed, trained, change, message):
    generalist = dropout_model()
    if "generalist" in change:
        generalist.layers[0].bias.assign_add(np.full(8, 0.1))
    x, y = skewed
    if "data" in change:
        x = x.copy()
        x[5, 1] += 1e-3
    clusters, head = change.get("clusters", CLUSTERS), change.get("head", "dustbin")
    build = narrow(4) if "build" in change else None
    other = kd.SpecialistBuilder(
        generalist, clusters, head=head, build_specialist=build
    )
    with pytest.raises(ValueError, match=f"(?s)of another kind: .*{message}"):
        other.fit((x, y), work_dir=trained[1], **{**FAST, **change.get("fit", {})})


def narrow(width):
    return lambda generalist, outputs: mlp(width, classes=outputs)


RECORD, MODEL = "specialist-0000.json", "specialist-0000.keras"


def other_weights(folder):
    model = keras.saving.load_model(folder / MODEL, compile=False)
    model.set_weights([w + 0.1 for w in model.get_weights()])
    model.save(folder / MODEL)


def neighbours(folder):
    for ending in ("json", "keras"):
        shutil.copy(
            folder / f"specialist-0001.{ending}", folder / f"specialist-0000.{ending}"
        )


def truncated(name):
    def cut(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(other_weights, id="other weights"),
        pytest.param(neighbours, id="its neighbour's"),
        pytest.param(truncated(MODEL), id="truncated"),
        pytest.param(lambda folder: (folder / MODEL).write_bytes(b""), id="empty"),
        pytest.param(truncated(RECORD), id="truncated record"),
        pytest.param(lambda folder: (folder / RECORD).write_text("[]"), id="no record"),
    ],
)
def test_a_specialist_that_is_not_as_it_was_written_is_trained_anew(
    skewed, trained, tmp_path, damage
):
    unbroken, folder = trained
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    other = tmp_path / "specialist-0001.keras"
    before = other.read_bytes(), other.stat().st_mtime_ns
    builder = kd.SpecialistBuilder(dropout_model(), CLUSTERS)
    with pytest.warns(UserWarning, match=f"damaged.*: {MODEL}. They are trained anew"):
        again = builder.fit(skewed, work_dir=tmp_path, **FAST)
    assert same_bits(unbroken, again)
    assert (other.read_bytes(), other.stat().st_mtime_ns) == before


@pytest.mark.slow
def test_without_settings_only_what_was_trained_alike_is_taken(
    skewed, trained, tmp_path
):
    unbroken, folder = trained
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / MODEL).stat().st_mtime_ns
    builder = kd.SpecialistBuilder(dropout_model(), CLUSTERS)
    (tmp_path / "settings.json").unlink()
    assert same_bits(unbroken, builder.fit(skewed, work_dir=tmp_path, **FAST))
    assert (tmp_path / MODEL).stat().st_mtime_ns == before
    (tmp_path / "settings.json").unlink()
    with pytest.warns(UserWarning, match="no specialists of this run"):
        other = builder.fit(
            skewed, work_dir=tmp_path, seed=1, **{**FAST, "soft_epochs": 0}
        )
    assert not same_bits(unbroken, other)


def test_a_finished_directory_keeps_what_was_trained_and_no_more(skewed, trained):
    builder = kd.SpecialistBuilder(dropout_model(), CLUSTERS)
    with pytest.raises(ValueError, match="of another kind"):
        builder.fit(skewed, work_dir=trained[1], **{**FAST, "seed": 9})
    names = {file.name for file in trained[1].iterdir()}
    pairs = {f"specialist-000{m}.{end}" for m in (0, 1) for end in ("json", "keras")}
    assert names == {"settings.json", ".lock", *pairs}


@pytest.mark.slow
def test_another_function_of_the_same_name_is_refused(skewed, tmp_path):
    generalist = mlp()
    arguments = {**FAST, "soft_epochs": 0, "work_dir": tmp_path}
    kd.SpecialistBuilder(generalist, CLUSTERS, build_specialist=narrow(3)).fit(
        skewed, **arguments
    )
    other = kd.SpecialistBuilder(generalist, CLUSTERS, build_specialist=narrow(4))
    with pytest.raises(ValueError, match="of another kind: specialists is"):
        other.fit(skewed, **arguments)


def test_a_directory_in_use_is_refused(skewed, tmp_path):
    program = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / ".lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(
            BlockingIOError, match="another process is at work on specialists"
        ):
            kd.SpecialistBuilder(mlp(), CLUSTERS).fit(skewed, work_dir=tmp_path, **FAST)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_goes_on(tmp_path, kills):
    arguments = ["-m", "tests.killed_specialists", tmp_path / "work", kills]
    done = forking.run(arguments, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["kills"] == kills
    assert result["partial"] >= kills // 2  # some, not all specialists were there
    assert result["runs"] >= 1
    assert result["same_bits"]
    assert result["touched"] == 0


@pytest.mark.slow
def test_a_specialist_that_always_kills_is_said_after_all_others(skewed, tmp_path):
    x, y = skewed
    main, deaths = os.getpid(), tmp_path / "deaths"

    def build(generalist, outputs):
        if os.getpid() != main and outputs == 3:  # of the cluster of two classes
            with open(deaths, "a") as file:
                file.write(".")
            os.kill(os.getpid(), signal.SIGKILL)
        return mlp(4, classes=outputs)

    builder = kd.SpecialistBuilder(mlp(), CLUSTERS, build_specialist=build)
    arguments = {**FAST, "soft_epochs": 0, "work_dir": tmp_path / "work"}
    with pytest.raises(
        ChildProcessError, match="1 of 2 specialists are missing.*died 3 times"
    ):
        builder.fit((x, y), n_jobs=2, threads=1, **arguments)
    assert deaths.read_text() == "..."
    found = [file.name for file in (tmp_path / "work").glob("specialist-*")]
    assert sorted(found) == ["specialist-0001.json", "specialist-0001.keras"]


# Bad input ---------------------------------------------------------------------------


def test_clusters_are_checked_when_the_builder_is_made():
    with pytest.raises(ValueError, match="at least 2 clusters"):
        kd.SpecialistBuilder(mlp(), [[0, 1]])
    with pytest.warns(UserWarning, match=r"1 of 5 classes are in no cluster \(4\)"):
        kd.SpecialistBuilder(mlp(), [[0, 1], [2, 3]])
    with pytest.raises(TypeError, match="build_specialist must be a function"):
        kd.SpecialistBuilder(mlp(), CLUSTERS, build_specialist=mlp())


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda g, outputs: mlp(classes=outputs + 1), ValueError, r"\(batch, 3\)"),
        (lambda g, outputs: None, TypeError, "must return a keras.Model"),
    ],
)
def test_a_wrong_build_specialist_is_refused_at_once(
    skewed, tmp_path, build, error, message
):
    builder = kd.SpecialistBuilder(mlp(), CLUSTERS, build_specialist=build)
    with pytest.raises(error, match=message):
        builder.fit(skewed, work_dir=tmp_path, **FAST)
    assert not list(tmp_path.glob("specialist-*"))


def caching(make):
    made = []

    def build(generalist, outputs):
        made.append(make(outputs)) if not made else None
        return made[0]

    return build


@pytest.mark.sampled(1)
@pytest.mark.filterwarnings("ignore:1 of 5 classes")
@pytest.mark.parametrize("kind", ["generalist", "its layers", "one for all", "frozen"])
def test_a_specialist_trains_weights_of_its_own(skewed, kind):
    generalist, common = mlp(), mlp(6, classes=6)
    common.trainable = False
    hidden = keras.Model(generalist.inputs, generalist.get_layer("hidden").output)

    def on(model):
        return lambda copy, outputs: keras.Sequential(
            [keras.Input((FEATURES,)), model, keras.layers.Dense(outputs)]
        )

    build = {
        "generalist": on(generalist),
        "its layers": on(hidden),
        "one for all": caching(lambda outputs: mlp(4, classes=outputs)),
        "frozen": on(common),
    }[kind]
    clusters = [[0, 1], [2, 3]]  # of one size, for which one model would do
    builder = kd.SpecialistBuilder(generalist, clusters, build_specialist=build)
    before = generalist.get_weights()
    arguments = {**FAST, "soft_epochs": 0, "hard_epochs": 1}
    if kind == "frozen":
        builder.fit(skewed, **arguments)
    else:
        with pytest.raises(ValueError, match="build_specialist must make new layers"):
            builder.fit(skewed, **arguments)
    after = generalist.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


STOPPED = """
import os, pathlib, sys, time
import keras
import numpy as np
import keras_distill as kd

folder, n_jobs = sys.argv[1], int(sys.argv[2])
main = os.getpid()

def build(generalist, outputs):
    if os.getpid() != main:
        pathlib.Path(folder + "-pids", str(os.getpid())).touch()
        if not os.path.exists(folder + "-go"):
            time.sleep(600)
    keras.utils.set_random_seed(outputs)
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(outputs)])

keras.utils.set_random_seed(0)
generalist = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6)])
x = np.random.default_rng(0).normal(size=(60, 8)).astype("float32")
builder = kd.SpecialistBuilder(generalist, [[0, 1], [2, 3, 4]], build_specialist=build)
try:
    model = builder.fit((x, np.arange(60) % 6), hard_epochs=1, soft_epochs=0, n_jobs=n_jobs,
                        threads=1, work_dir=folder, verbose=False)
except OSError as error:
    print(type(error).__name__, error)
else:
    np.savez(folder + ".npz", *[w for m in model.specialists for w in m.get_weights()])
"""


@pytest.mark.sampled(1)
@pytest.mark.filterwarnings("ignore:1 of 6 classes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_builder_leaves_no_process_and_goes_on(tmp_path, number):
    folder, pids = tmp_path / "[w]* é", tmp_path / "[w]* é-pids"
    pids.mkdir()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = {**os.environ, "TMPDIR": str(temporary)}
    with forking.Process(["-c", STOPPED, folder, 2], env=env) as process:
        forking.wait_for(lambda: len(os.listdir(pids)) == 2)
        # Another run may not enter meanwhile.
        other = forking.run(["-c", STOPPED, folder, 1])
        assert (
            "BlockingIOError another process is at work on specialists" in other.stdout
        )
        process.send_signal(number)
        process.wait(30)
    workers = list(map(int, os.listdir(pids)))
    forking.wait_for(lambda: not any(map(is_running, workers)), 10)
    assert not list(folder.glob(".tmp-*")) or number != signal.SIGINT
    (tmp_path / "[w]* é-go").touch()
    done = forking.run(["-c", STOPPED, folder, 1])
    assert done.returncode == 0, done.stderr
    unbroken = tmp_path / "unbroken"
    assert forking.run(["-c", STOPPED, unbroken, 1]).returncode == 0
    found, wanted = np.load(f"{folder}.npz"), np.load(f"{unbroken}.npz")
    assert all(np.array_equal(found[key], wanted[key]) for key in wanted.files)
    assert not list(folder.glob(".tmp-*"))


def is_running(pid):
    try:
        return (
            pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][1] != "Z"
        )
    except FileNotFoundError:
        return False


READ_ONLY = "import os, sys; os.setuid(65534)\n" + STOPPED


@pytest.mark.skipif(
    os.getuid() != 0, reason="only the superuser can become somebody else"
)
def test_a_work_dir_that_cannot_be_written_is_said(tmp_path):
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    done = forking.run(["-c", READ_ONLY, tmp_path / "work", 1])
    assert "specialists could not be written to" in done.stdout, done.stderr
    (tmp_path / "file").write_text("mine")
    done = forking.run(["-c", STOPPED, tmp_path / "file", 1])
    assert "Error" in done.stdout, done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_a_class_without_an_example_is_named(skewed):
    x, y = skewed
    with pytest.raises(ValueError, match="the class 3 of cluster 1 has no example"):
        kd.SpecialistBuilder(mlp(), CLUSTERS).fit((x[y != 3], y[y != 3]))
    with pytest.raises(ValueError, match="nothing for its dustbin"):
        kd.SpecialistBuilder(mlp(), CLUSTERS).fit((x[y < 2], y[y < 2]))


def test_data_that_cannot_be_sent_is_refused(skewed):
    dataset = tf.data.Dataset.from_tensor_slices(skewed)
    builder = kd.SpecialistBuilder(mlp(), CLUSTERS)
    with pytest.raises(TypeError, match="a function that makes the dataset"):
        builder.fit(dataset, n_jobs=2)
    with pytest.raises(TypeError, match="cannot be sent to them"):
        builder.fit(lambda: dataset, n_jobs=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hard_epochs": 0, "soft_epochs": 0}, "both 0, so nothing would be trained"),
        ({"hard_epochs": -1}, "hard_epochs must be a whole number >= 0"),
        ({"soft_learning_rate": 0.0}, "soft_learning_rate must be > 0"),
        ({"temperature": 0.0}, "temperature must be a finite number > 0"),
        ({"alpha": 1.5}, "alpha must be a number from 0 to 1"),
        ({"batch_size": 0}, "batch_size must be a whole number >= 1"),
        ({"threads": 0}, "threads must be a whole number >= 1"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"work_dir": "gs://bucket/x"}, "must be a folder that is local or mounted"),
        ({"optimizer": "fast"}, "fast"),
    ],
)
def test_arguments_out_of_range_are_refused(skewed, arguments, message):
    with pytest.raises(ValueError, match=message):
        kd.SpecialistBuilder(mlp(), CLUSTERS).fit(skewed, **arguments)
