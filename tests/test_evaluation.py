import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

import keras_distill as kd
from keras_distill.distiller import Distiller
from keras_distill.evaluation import compare, evaluate
from keras_distill.metrics import calibration_error, reliability
from tests.conftest import FEATURES, SPARSE, mlp, tagger


def dataset(x, y, batch=16):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)


def classifier():
    """A model whose loss says that its outputs are a softmax's."""
    model = mlp()
    model.compile("sgd", SPARSE)
    return model


def test_figures_equal_scikit_learns():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, FEATURES)).astype("float32")
    y = rng.integers(20, size=200)
    model, teacher = mlp(16, classes=20), mlp(32, classes=20)
    result = evaluate(model, dataset(x, y), teacher=teacher, timing=False)
    z = model.predict(x, verbose=0)
    p = softmax(z.astype("float64"), -1)
    assert result.examples == 200
    assert result.parameters == model.count_params()
    assert result.accuracy == pytest.approx(accuracy_score(y, z.argmax(-1)))
    top5 = top_k_accuracy_score(y, p, k=5, labels=range(20))
    assert result.top5_accuracy == pytest.approx(top5)
    assert result.nll == pytest.approx(log_loss(y, p, labels=range(20)), rel=1e-5)
    agreement = np.mean(teacher.predict(x, verbose=0).argmax(-1) == z.argmax(-1))
    assert result.teacher_agreement == pytest.approx(agreement)
    nbytes = sum(w.nbytes for w in model.get_weights())
    assert nbytes < result.file_bytes < nbytes + 4000
    assert result.latency_p50_ms is None


def test_ten_classes_have_no_top5_and_probabilities_judge_like_logits(data):
    logits = mlp(6)
    probabilities = mlp(6, activation="softmax")
    probabilities.set_weights(logits.get_weights())
    one = evaluate(logits, dataset(*data), timing=False)
    other = evaluate(probabilities, dataset(*data), timing=False)
    assert one.top5_accuracy is None
    assert one.nll == pytest.approx(other.nll, rel=1e-5)
    assert one.accuracy == other.accuracy


def test_one_hot_labels_and_sequences(data):
    x, y = data
    model = mlp(6)
    integers = evaluate(model, dataset(x, y), timing=False)
    one_hot = evaluate(model, dataset(x, np.eye(5)[y]), timing=False)
    assert one_hot.accuracy == integers.accuracy
    inputs = keras.Input((4, FEATURES))
    sequence = keras.Model(inputs, keras.layers.Dense(5)(inputs))
    x, y = x.reshape(16, 4, FEATURES), y.reshape(16, 4)
    assert evaluate(sequence, dataset(x, y), timing=False).examples == 64


def test_weights_count_and_masked_positions_do_not(data):
    x, y = data
    model = mlp(6)
    weight = np.repeat([2.0, 0.0], 32)
    weighted = evaluate(model, (x, y, weight), timing=False)
    half = evaluate(model, (x[:32], y[:32]), timing=False)
    assert dataclasses.replace(weighted) == half
    tokens = np.random.default_rng(0).integers(1, 20, (8, 6))
    labels = np.random.default_rng(1).integers(5, size=(8, 6))
    padded = np.pad(tokens, [(0, 0), (0, 3)]), np.pad(labels, [(0, 0), (0, 3)])
    model = tagger()
    one = evaluate(model, (tokens, labels), timing=False)
    other = evaluate(model, padded, timing=False)
    assert one.examples == other.examples == 48
    assert one.accuracy == other.accuracy
    assert one.nll == pytest.approx(other.nll, rel=1e-6)


def test_batches_of_several_lengths():
    def batches():
        for length in (5, 7):
            yield np.ones((2, length), "int32"), np.zeros((2, length), "int32")

    spec = tf.TensorSpec([None, None], tf.int32)
    dataset = tf.data.Dataset.from_generator(batches, output_signature=(spec, spec))
    assert evaluate(tagger(), dataset, timing=False).examples == 24


def test_wrong_labels_and_teachers(data):
    x, y = data
    with pytest.raises(ValueError, match="labels must be from 0 to 4.*got 5"):
        evaluate(mlp(), (x, np.where(y == 0, 5, y)), timing=False)
    with pytest.raises(ValueError, match="only models of the same classes can agree"):
        evaluate(mlp(), (x, y), teacher=mlp(classes=7), timing=False)
    with pytest.raises(TypeError, match="must be .x, y. arrays"):
        evaluate(mlp(), [1, 2], timing=False)


def test_calibration_error_by_hand():
    # Two bins: confidence 0.9, right half of the time; confidence 0.6, always right.
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    y = np.array([0, 1, 0, 1])
    assert calibration_error(p, y) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    edges, accuracy, confidence, weight = reliability(p, y, bins=10)
    assert edges[-1] == 1.0
    np.testing.assert_allclose(accuracy[[5, 8]], [1.0, 0.5])
    np.testing.assert_allclose(confidence[[5, 8]], [0.6, 0.9])
    np.testing.assert_allclose(weight[[5, 8]], [0.5, 0.5])


def test_comparison_prints_and_saves(data, tmp_path):
    teacher, student = mlp(32), mlp(6)
    distiller = Distiller(student, teacher)
    distiller.compile("adam", SPARSE)
    result = compare(
        {"teacher": teacher, "student": distiller},
        dataset(*data),
        teacher=teacher,
        verbose=False,
    )
    assert result["teacher"].teacher_agreement == 1.0
    assert result["student"].parameters == student.count_params()
    assert 0 < result["student"].latency_p50_ms <= result["student"].latency_p99_ms
    assert result["student"].throughput > 100
    lines = str(result).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("model")
    assert len({len(line) for line in lines}) == 1  # aligned
    result.save(tmp_path / "c.json")
    result.save(tmp_path / "c.md")
    saved = json.loads((tmp_path / "c.json").read_text())
    assert saved[0]["accuracy"] == result["teacher"].accuracy
    assert (tmp_path / "c.md").read_text().startswith("| model | parameters |")
    with pytest.raises(ValueError, match="must end in .json or .md"):
        result.save(tmp_path / "c.txt")
    with pytest.raises(KeyError, match="there are teacher, student"):
        result["nobody"]


def labelled(change):
    return lambda x, y: (x, change(y))


def weighted(weight):
    return lambda x, y: (x, y, np.asarray(weight))


ONES = np.ones(64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: dataset(x, y).take(0), "evaluation dataset is empty"),
        (
            lambda x, y: tf.data.Dataset.from_tensor_slices(x).batch(8),
            "brings no labels",
        ),
        (lambda x, y: (x, None), "brings no labels"),
        (lambda x, y: dataset(x, y).repeat(), "evaluation dataset is endless"),
        (lambda x, y: (x, y[:7]), r"different lengths: \[7, 64\]"),
        (labelled(lambda y: y + 0.5), r"whole numbers from 0 to 4, got \d\.5"),
        (labelled(lambda y: np.where(y == 1, np.nan, y)), "whole numbers.*got nan"),
        (labelled(lambda y: y - 1), "labels must be from 0 to 4.*got -1"),
        (labelled(lambda y: y.astype(str)), "labels must be numbers"),
        (labelled(lambda y: np.stack([y, y], 1)), r"got shape \(16, 2\)|shape \(64, 2"),
        (
            labelled(lambda y: np.eye(5)[y] * 2),
            "one-hot labels must be >= 0 and sum to 1",
        ),
        (
            labelled(lambda y: np.eye(5)[y] - np.eye(5)[0]),
            "one-hot labels must be >= 0",
        ),
        (labelled(lambda y: np.eye(5)[y] * np.nan), "one-hot labels must be >= 0"),
        (weighted(ONES * np.nan), "sample weights must be finite and >= 0, got nan"),
        (weighted(np.r_[ONES[1:], np.inf]), "sample weights must be finite.*got inf"),
        (weighted(np.r_[ONES[1:], -1]), "sample weights must be finite.*got -1"),
        (weighted(ONES.astype(str)), "sample weights must be numbers"),
        (weighted(np.ones((64, 2))), r"sample weights must have shape \(64,\)"),
        (weighted(0 * ONES), "all sample weights are 0"),
    ],
)
def test_wrong_data(data, make, message):
    with pytest.raises(ValueError, match=message):
        evaluate(classifier(), make(*data), timing=False)
    with pytest.raises(ValueError, match=message):
        compare({"a": classifier()}, make(*data), timing=False, verbose=False)


def test_labels_and_weights_of_every_form_that_keras_takes(data):
    x, y = data
    model, one_hot = mlp(6), np.eye(5)[y]
    plain = evaluate(model, (x, y), timing=False)
    forms = [
        (x, y.astype("float32")),
        (x, y[:, None]),
        (x, one_hot.astype("float16")),
        (x, one_hot.astype(bool)),
        (x, y, 3 * ONES),
        (x, y, ONES[:, None].astype("float16")),
        (x, y, ONES.astype(bool)),
        (x, y, None),
    ]
    for form in forms:
        assert evaluate(model, form, timing=False) == plain
    # What has no weight may be anything.
    hidden = np.where(np.arange(64) < 32, y, -1), np.repeat([1.0, 0.0], 32)
    half = evaluate(model, (x[:32], y[:32]), timing=False)
    assert evaluate(model, (x, *hidden), timing=False) == half


def test_several_inputs_in_a_list_and_bfloat16(data):
    x, y = data
    a, b = keras.Input((FEATURES,)), keras.Input((FEATURES,))
    model = keras.Model([a, b], keras.layers.Dense(5)(keras.layers.Add()([a, b])))
    wanted = evaluate(model, ((x, x), y), timing=False)
    assert evaluate(model, ([x, x], y), timing=False) == wanted
    half = tf.cast(np.eye(5)[y], tf.bfloat16), tf.ones(len(x), tf.bfloat16)
    assert evaluate(model, ([x, x], *half), timing=False) == wanted


def test_refusals_say_what_to_do_and_whose_it_is(data):
    x, y = data
    good, bad = mlp(6), mlp(6)
    bad.set_weights([np.full_like(w, np.nan) for w in bad.get_weights()])
    with pytest.raises(ValueError, match="the model 'bad' answers NaN"):
        compare({"ok": good, "bad": bad}, (x, y), timing=False, verbose=False)
    with pytest.raises(ValueError, match=r"gives single examples; .*\.batch\(64\)"):
        evaluate(good, tf.data.Dataset.from_tensor_slices((x, y)), timing=False)
    inputs = keras.Input((FEATURES,))
    outputs = [keras.layers.Dense(5, name=n)(inputs) for n in "ab"]
    with pytest.raises(ValueError, match="^the model has the outputs 'a', 'b'; give"):
        evaluate(keras.Model(inputs, outputs), (x, y), timing=False)
    unknown = tf.data.Dataset.from_generator(
        lambda: iter([(x, y)]),
        output_signature=(tf.TensorSpec(None), tf.TensorSpec(None)),
    )
    with pytest.raises(ValueError, match="does not say the shapes of its elements"):
        evaluate(good, unknown, timing=False)
    with pytest.raises(TypeError, match="got tuple of ndarray, list"):
        evaluate(good, (x, y.tolist()), timing=False)

    def infinite(x):
        return tf.fill((tf.shape(x)[0], 5), -np.inf)

    with pytest.raises(ValueError, match="the teacher answers NaN or infinity"):
        evaluate(good, (x, y), teacher=kd.as_teacher(infinite, True), timing=False)
    table = compare({"o|k": good}, (x, y), timing=False, verbose=False).to_markdown()
    assert "| o\\|k |" in table


def test_the_likelihood_of_soft_labels_is_the_cross_entropy(data):
    x, y = data
    model = mlp(6)
    soft = 0.9 * np.eye(5)[y] + 0.02
    found = evaluate(model, (x, soft), timing=False)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    assert found.nll == pytest.approx(float(loss(soft, model(x))), rel=1e-5)
    assert found.accuracy == evaluate(model, (x, y), timing=False).accuracy


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_answers_nan_is_not_judged(data, value):
    x, y = data
    good = mlp(6)
    nowhere = keras.models.clone_model(good)
    nowhere.set_weights([w * value for w in good.get_weights()])
    with pytest.raises(ValueError, match="NaN or infinity for 64 of 64 labels"):
        evaluate(nowhere, (x, y), timing=False)
    with pytest.raises(ValueError, match="the teacher answers NaN"):
        evaluate(good, (x, y), teacher=nowhere, timing=False)
    linear = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(5)])
    one = np.where(np.arange(64)[:, None] == 3, np.nan, x)
    with pytest.raises(ValueError, match="NaN or infinity for 1 of 64 labels"):
        evaluate(linear, (one, y), timing=False)
    # A class that is ruled out by -infinity is an answer.

    def ruled_out(x):
        return good(x) + tf.constant([0.0, 0, 0, 0, -np.inf])

    rest = y < 4
    found = evaluate(ruled_out, (x[rest], y[rest]), from_logits=True, timing=False)
    assert np.isfinite(found.nll)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({}, "no models to compare"),
        ([1], "models must be a dict of models by name, got list"),
        ({1: None}, "the names of the models must be a list of str"),
    ],
)
def test_wrong_models(data, models, message):
    with pytest.raises((ValueError, TypeError), match=message):
        compare(models, dataset(*data))


def test_a_home_directory_is_found(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    # verbose as in Keras's own fit.
    compare({"a": mlp()}, data, timing=False, verbose=0).save("~/c.json")
    assert (tmp_path / "c.json").exists()


@pytest.mark.parametrize(
    ("sizes", "times", "cells"),
    [
        ((12_345_678, 45_408), (51.23, 0.01234), ["file, kB", "12,345.68", "45.41", "51.2", "0.0123"]),
        ((12_345_678, 450_000), (1234.5, 3.0), ["file, MB", "12.35", "0.45", "1,234", "3.00"]),
        ((None, 900), (None, 0.5), ["file, kB", "-", "0.90", "0.500"]),
    ],
)  # fmt: skip
def test_small_files_and_short_times_are_told_from_nothing(sizes, times, cells):
    """A table once said 0.01 MB and 0.01 ms of a file of ten thousand bytes."""
    found = kd.Comparison(
        tuple(
            kd.Evaluation(f"m{i}", 10, None, size, latency_p50_ms=time)
            for i, (size, time) in enumerate(zip(sizes, times, strict=True))
        )
    )
    for table in (str(found), found.to_markdown()):
        assert all(cell in table for cell in cells)
    assert [e.file_bytes for e in found.evaluations] == list(sizes)
