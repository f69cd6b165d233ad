"""Exports are judged by their paths as the Keras models that they were made of."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill import latency, plots
from keras_distill.export import check, litert, onnx
from keras_distill.exported import Exported, size_on_disk
from tests import litert_models, test_export_onnx
from tests.conftest import mlp
from tests.forking import answer_here

pytestmark = pytest.mark.filterwarnings("ignore:nothing says whether:UserWarning")

RNG = np.random.default_rng(0)
X = {
    "a": RNG.normal(size=(90, 3)).astype("float32"),
    "b": RNG.normal(size=(90, 2)).astype("float32"),
}
LABELS = {
    "kind": RNG.integers(3, size=90),
    "tags": RNG.integers(2, size=(90, 2)),
    "size": RNG.normal(size=(90, 2)).astype("float32"),
}
FIGURES = (
    "accuracy", "nll", "calibration_error", "teacher_agreement", "auc", "mae", "r2",
    "teacher_correlation",
)  # fmt: skip


def exports(model, folder, **given):
    """Exports a model in each format, in this process, and returns the paths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "ask_fresh_process", answer_here)
        patch.setattr(litert, "_in_a_child", litert_models.convert_here)
        patch.setattr(onnx, "_in_a_child", test_export_onnx.convert_here)
        given = {"verbose": False, **given}
        return {
            "TensorFlow": kd.export_savedmodel(model, folder / "saved", **given),
            "LiteRT": kd.export_litert(model, folder / "m.tflite", **given),
            "ONNX Runtime": kd.export_onnx(model, folder / "m.onnx", **given),
        }


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A model of two inputs and three outputs, and its exports."""
    model = litert_models.two_inputs_three_outputs()
    folder = tmp_path_factory.mktemp("several")
    return model, exports(model, folder, output_kinds={"size": "values"})


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    model = mlp(activation="softmax")
    return model, exports(model, tmp_path_factory.mktemp("single"))


@pytest.mark.slow
def test_an_export_has_the_figures_of_its_model(several):
    model, paths = several
    found = kd.compare(
        {"Keras": model, **paths},
        (X, LABELS),
        teacher=model,
        output_kinds={"size": "values"},
        timing=False,
        verbose=False,
    )
    for runtime, path in paths.items():
        whole = found[runtime]
        assert whole.runtime == runtime
        assert whole.parameters is None
        assert whole.file_bytes == size_on_disk(path) > 0
        for key in LABELS:
            for figure in FIGURES:
                expected = getattr(found["Keras"][key], figure)
                assert getattr(whole[key], figure) == pytest.approx(expected, abs=1e-5)
        assert whole["kind"].teacher_agreement == pytest.approx(1.0)
        assert whole["tags"].kind == "sigmoid"
    lines = str(found).splitlines()
    assert lines[0].split()[:2] == ["model", "runtime"]
    assert lines[2].split()[3] == "Keras"
    assert "| Keras / kind | Keras |" in found.to_markdown()


def test_the_runtime_is_a_column_only_where_there_are_several(single, data):
    model, paths = single
    alone = kd.compare({"one": model}, data, timing=False, verbose=False)
    assert "runtime" not in str(alone)
    assert alone["one"].runtime == "Keras"
    one = kd.compare({"one": paths["LiteRT"]}, data, timing=False, verbose=False)
    assert "LiteRT" in str(one)


def test_an_export_is_timed_by_its_own_runtime(single, data, monkeypatch):
    _, paths = single
    sizes = []

    def times(run, x, size):
        sizes.append((size, {name: value.shape for name, value in x.items()}))
        assert set(run(x)) == {"logits", "probabilities", "label"}
        return [0.001, 0.002, 0.003]

    monkeypatch.setattr(latency, "times_of", times)
    (name,) = Exported(paths["ONNX Runtime"])._inputs
    for runtime in ("LiteRT", "ONNX Runtime"):
        found = kd.evaluate(paths[runtime], data)
        assert found.latency_p50_ms == 2.0
        assert found.throughput == 32_000
    assert sizes == [(1, {name: (64, 8)}), (64, {name: (64, 8)})] * 2


job = latency._job  # other tests' models are timed without


@pytest.mark.slow
@pytest.mark.fresh_process
def test_keras_models_and_savedmodels_are_timed_by_one_thread_of_another_process(
    single, data, monkeypatch
):
    """Whatever is theirs: a table of words, several inputs and outputs, a list of models."""
    words = keras.Input((1,), dtype="string", name="word")
    number = keras.Input((8,), name="number")
    known = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(words)
    both = layers.Concatenate()([known, number])
    model = keras.Model(
        {"word": words, "number": number},
        {"kind": layers.Dense(3)(both), "size": layers.Dense(1)(both)},
    )
    asked = []

    def run(program, arguments, given):
        asked.append(given)
        return fresh_run(program, arguments, given)

    fresh_run = latency.fresh.run
    monkeypatch.setattr(latency.fresh, "run", run)
    monkeypatch.setattr(latency, "times_of", None)  # in this process
    monkeypatch.setattr(latency, "_SECONDS", 0.05)
    x = {"word": np.array([["a"], ["c"]] * 5), "number": np.ones((10, 8), "float32")}
    kinds = {"kind": "softmax", "size": "values"}
    y = {"kind": np.zeros(10, int), "size": np.zeros(10)}
    found = kd.evaluate(model, (x, y), output_kinds=kinds)
    assert 0 < found.latency_p50_ms <= found.latency_p99_ms
    assert found["size"].throughput == found.throughput > 0
    alone, paths = single
    models = {"Keras": alone, "two": [alone, alone], "SavedModel": paths["TensorFlow"]}
    compared = kd.compare(models, data, verbose=False)
    assert all(e.latency_p50_ms > 0 for e in compared.evaluations)
    for (jobs, threads, _), count in zip(asked, (1, 3), strict=True):
        assert (len(jobs), threads) == (count, 1)
        for _, path, batches in jobs:
            assert not os.path.exists(path)
            assert [len(keras.tree.flatten(b)[0]) for b in batches] == [1, 64]


def test_a_callable_is_timed_in_this_process(data, monkeypatch):
    monkeypatch.setattr(latency, "_job", job)
    monkeypatch.setattr(latency.fresh, "run", None)
    model = keras.Sequential([keras.Input((8,), name="x"), layers.Dense(5)])
    found = kd.evaluate(lambda x: model(x), data, from_logits=True)
    assert found.latency_p50_ms > 0


def test_times_are_of_batches_of_the_size(monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 1.0)
    seen = []

    def run(x):
        seen.append({name: len(part) for name, part in x.items()})

    x = {"n": np.ones((5, 2)), "t": tf.ones((5, 2))}
    assert len(latency.times_of(run, x, 64)) == 1000
    assert seen[0] == seen[-1] == {"n": 64, "t": 64}
    latency.times_of(run, x, 1)
    assert seen[-1] == {"n": 1, "t": 1}


def test_a_file_of_a_fixed_batch_answers_any_number(tmp_path, data):
    model = keras.Sequential([keras.Input((8,), name="x"), layers.Dense(5)])
    given = {"input_signature": tf.TensorSpec([7, 8], tf.float32, name="x")}
    paths = exports(model, tmp_path, from_logits=True, **given)
    expected = model.predict(data[0], verbose=0)
    for runtime in ("LiteRT", "ONNX Runtime"):
        ask = Exported(paths[runtime])
        for count in (1, 7, 64):
            found = ask(data[0][:count])
            np.testing.assert_allclose(found, expected[:count], atol=1e-5)


def test_an_export_teaches(single, data):
    model, paths = single
    expected = model.predict(data[0], verbose=0)
    for path in paths.values():
        teacher = kd.as_teacher(path)
        logits = teacher(tf.constant(data[0]), 1.0).logits
        np.testing.assert_allclose(tf.nn.softmax(logits), expected, atol=1e-5)
        found = kd.evaluate(model, data, teacher=path, timing=False)
        assert found.teacher_agreement == 1.0


def test_a_file_of_others_answers_with_its_numbers(tmp_path, data):
    """One that has neither our names nor a label."""
    model = keras.Sequential([keras.Input((8,)), layers.Dense(5, activation="softmax")])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    path = tmp_path / "theirs.tflite"
    path.write_bytes(converter.convert())
    found = kd.evaluate(path, data, from_logits=False, timing=False)
    expected = kd.evaluate(model, data, timing=False)
    assert found.nll == pytest.approx(expected.nll, abs=1e-5)
    assert found.kind == "softmax"


@pytest.mark.parametrize("ending", [".tflite", ".onnx"])
@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        ({"a": X["a"], "c": X["b"]}, "takes the inputs 'a', 'b', but the data has 'a', 'c'"),
        ([X["a"], X["b"]], "takes the inputs 'a', 'b', but the data has tuple; give a dict"),
        (X["a"], "takes the inputs 'a', 'b', but the data has .*; give a dict with these"),
        ({"a": X["b"], "b": X["a"]}, r"takes the input 'a' of shape \(None, 3\), but the data has \(64, 2\)"),
        (
            {"a": np.full((90, 3), "x"), "b": X["b"]},
            "(fails on the data, 'a' object, 'b' float32: .*)[.]$",
        ),
    ],
)  # fmt: skip
def test_data_that_a_file_does_not_take(several, ending, x, sentence):
    path = next(p for p in several[1].values() if p.endswith(ending))
    with pytest.raises(ValueError, match=sentence):
        kd.evaluate(path, (x, LABELS), timing=False)


@pytest.mark.parametrize("ending", [".tflite", ".onnx"])
def test_a_file_that_cannot_be_read(tmp_path, data, monkeypatch, ending):
    path = tmp_path / f"m{ending}"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        kd.evaluate(path, data)
    path.write_bytes(b"no model")
    with pytest.raises(ValueError, match="cannot be read by .*; it is damaged"):
        kd.evaluate(path, data)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install keras-distill\["):
        kd.evaluate(path, data)


def test_sizes_on_disk_are_drawn_where_there_are_exports(single, data):
    model, paths = single
    models = {"Keras": model, **paths}
    found = kd.compare(models, data, timing=False, verbose=False)
    (axes,) = plots.size_against_accuracy(found.evaluations).axes
    assert axes.get_xlabel() == "size on disk, kB (log scale)"
    drawn = sorted(float(part.get_offsets()[0, 0]) for part in axes.collections)
    assert drawn == pytest.approx(sorted(e.file_bytes / 1e3 for e in found.evaluations))
    (axes,) = plots.size_against_accuracy(found.evaluations[:1]).axes
    assert axes.get_xlabel() == "parameters (log scale)"


def test_the_size_of_a_folder_is_that_of_all_its_files(tmp_path):
    os.makedirs(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "one").write_bytes(b"123")
    (tmp_path / "two").write_bytes(b"45")
    assert size_on_disk(tmp_path) == 5


def test_several_exports_are_judged_as_one(single, data):
    model, paths = single
    both = [paths["LiteRT"], paths["ONNX Runtime"]]
    found = kd.evaluate(both, data)
    assert found.accuracy == pytest.approx(kd.evaluate(model, data).accuracy)
    assert found.throughput > 0
