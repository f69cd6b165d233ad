import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill
from keras_distill.export import check
from tests import forking

ROOT = pathlib.Path(__file__).parent.parent
PREPARED = os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "mnist", "3.0.1")
needs_mnist = pytest.mark.skipif(
    not os.path.isdir(PREPARED),
    reason="TFDS_DATA_DIR does not lead to a prepared mnist:3.0.1",
)


def run(script, *arguments, folder):
    done = subprocess.run(
        [sys.executable, ROOT / script, *arguments], cwd=folder, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("examples", "examples/paper", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in path.read_text()
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_how_to_run_it(script):
    done = forking.run([ROOT / script, "--help"])
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_uses_names_that_there_are(script):
    used = set(re.findall(r"\bkd\.(\w+)", (ROOT / script).read_text()))
    assert used <= {*keras_distill.__all__, "__version__"}


@pytest.mark.slow
def test_a_benchmark_runs(tmp_path):
    script = ROOT / "benchmarks" / "specialist_routing.py"
    done = forking.run([script, "--quick"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("| 5 | 3 |")


@pytest.mark.slow
def test_each_kind_of_output_is_measured(tmp_path):
    script = ROOT / "benchmarks" / "kinds.py"
    asked = ["--quick", "--task", "regression", "--json", "kinds.json"]
    done = forking.run([script, *asked], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("| regression, R2 | distilled |")
    result = json.loads((tmp_path / "kinds.json").read_text())["regression"]
    assert [len(row) for row in result["rows"]] == [3, 3]


@pytest.mark.slow
def test_temperature_curves(tmp_path):
    script = ROOT / "examples" / "temperature_curves.py"
    done = forking.run([script, "--epochs", "1"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        "temperature_curves.png", "temperature_curves_log.png", "soft_targets.png",
    }  # fmt: skip


def test_spoken_digits_without_the_recordings_says_so(tmp_path):
    script = ROOT / "examples" / "spoken_digits.py"
    done = forking.run([script, "--data-dir", tmp_path], tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"spoken_digit is not in {tmp_path}; prepare it by "
        'tfds.load("spoken_digit"), or say where it is by --data-dir.'
    )


def test_text_without_its_sentences_says_so(tmp_path):
    script = ROOT / "examples" / "text.py"
    done = forking.run([script, "--data", tmp_path], tmp_path)
    assert done.returncode == 1
    said = f"there are no train.tsv, dev.tsv and test.tsv in {tmp_path}."
    assert done.stderr.splitlines()[-1] == said


@pytest.fixture
def sound(examples_path):
    examples_path(ROOT / "examples")


@pytest.mark.slow
def test_log_mel_is_what_numpy_makes_of_it_in_keras_and_as_a_file(
    tmp_path, monkeypatch, sound
):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setattr(check, "ask_fresh_process", forking.answer_here)
    from sound.log_mel import LogMel

    from keras_distill.export.runtimes import litert

    x = np.random.default_rng(0).normal(size=(3, 8000)).astype("float32")
    x *= [[1.0], [0.1], [0.01]]  # loud to quiet, and half of the last is silent
    x[2, 4000:] = 0.0
    frames = np.lib.stride_tricks.sliding_window_view(x, 256, 1)[:, ::128]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    level = np.sqrt(np.mean(np.square(x), 1))[:, None, None] + 1e-4
    mel = tf.signal.linear_to_mel_weight_matrix(32, 129, 8000, 60.0, 3800.0)
    expected = np.log(np.abs(np.fft.rfft(frames / level * window)) @ mel + 0.1)
    expected -= expected.mean(1, keepdims=True)

    model = keras.Sequential([keras.Input((8000,), name="samples"), LogMel()])
    model.save(tmp_path / "log_mel.keras")
    again = keras.models.load_model(tmp_path / "log_mel.keras")
    np.testing.assert_allclose(again(x)[..., 0], expected, atol=1e-4, rtol=0)

    path = keras_distill.export_litert(
        model, tmp_path / "log_mel.tflite", example=x, output_kinds="values"
    )
    answer = litert.Model(path)({"samples": x})["values"]
    assert answer.shape == (3, 61, 32, 1)
    np.testing.assert_allclose(answer[..., 0], expected, atol=1e-4, rtol=0)


def test_copies_of_recordings_are_others_of_the_same_digits(sound):
    from sound.recordings import SPEAKERS, augment, part_of

    x = np.zeros((2, 8000), "float32")
    x[:, 3000:5000] = np.sin(np.arange(2000) / 3)
    more, y = augment(x, np.array([7, 2]), 2)
    assert more.dtype == "float32"
    np.testing.assert_array_equal(y, [7, 2, 7, 2])
    assert len({float(np.sqrt(np.mean(one**2))) for one in more}) == 4
    assert x[0, 0] == 0.0  # what was given is as it was
    other, _ = augment(x, np.array([7, 2]), seed=1)
    assert np.abs(other - more[:2]).max() > 0.1
    for judged in SPEAKERS:
        parts = [part_of(speaker, judged) for speaker in SPEAKERS]
        assert parts.count("judged") == 1
        assert part_of("yweweler", judged) != "train"
        assert parts.count("train") == (4 if judged == "yweweler" else 3)


def test_stretched_spectrograms_are_of_other_throats_and_speeds(sound):
    from sound.stretching import Throat, stretched, stretcher

    np.testing.assert_array_equal(stretcher(5, 1.0, 2), np.eye(5))
    # Twice as fast about the middle: points 0 and 4 lie outside, 1 and 3 take 0 and 4.
    line = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
    np.testing.assert_allclose(stretcher(5, 2.0, 2) @ line, [0, 0, 20, 40, 40])
    np.testing.assert_allclose(stretcher(5, 0.5, 2) @ line, [10, 15, 20, 25, 30])

    x = np.tile(np.arange(32.0, dtype="float32")[:, None], (3, 61, 1, 1))
    np.testing.assert_allclose(Throat(1.0)(x), x, atol=1e-5)
    # Band n of the other throat is n * 1.25 + 1, as all are stretched about band -4.
    heard = np.asarray(Throat(1.25)(x))[0, 0, :24, 0]
    np.testing.assert_allclose(heard, np.arange(24) * 1.25 + 1.0, atol=1e-4)
    other = stretched(x, np.random.default_rng(0))
    assert other.shape == x.shape
    assert other.dtype == "float32"
    assert np.abs(other[0] - other[1]).max() > 0.1


@pytest.mark.slow
def test_serve_student(tmp_path):
    for package in ("ai_edge_litert", "tf2onnx", "onnxruntime"):
        pytest.importorskip(package)
    script = "examples/serve_student.py"
    run(script, "--quick", "--output", "served", folder=tmp_path)
    rows = json.loads((tmp_path / "served" / "comparison.json").read_text())
    assert [row["runtime"] for row in rows] == [
        "Keras", "Keras", "TensorFlow", *["LiteRT"] * 4, "ONNX Runtime",
    ]  # fmt: skip
    student, saved, whole, *_, onnx = rows[1:]
    assert student["accuracy"] == saved["accuracy"] == whole["accuracy"]
    assert onnx["accuracy"] == student["accuracy"]


@pytest.mark.skipif(
    not os.path.isdir(
        os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "spoken_digit")
    ),
    reason="TFDS_DATA_DIR does not lead to a prepared spoken_digit",
)
@pytest.mark.slow
def test_spoken_digits(tmp_path):
    pytest.importorskip("ai_edge_litert")
    script = "examples/spoken_digits.py"
    output = run(script, "--quick", "--output", "heard", folder=tmp_path)
    assert "\ndistilled *, int8 " in output
    assert os.path.getsize(tmp_path / "heard" / "student-0.tflite") < 60_000
    rows = json.loads((tmp_path / "heard" / "comparison.json").read_text())
    assert [row["examples"] for row in rows] == [500] * 4
    assert (tmp_path / "heard" / "comparison.md").exists()


SENTENCES = pathlib.Path(os.environ.get("TFDS_DATA_DIR", ""), "..", "text", "sst2")


@pytest.mark.skipif(
    not (SENTENCES / "train.tsv").exists(),
    reason="there is no text/sst2 beside the folder of TFDS_DATA_DIR",
)
@pytest.mark.slow
def test_text(tmp_path):
    output = run("examples/text.py", "--data", SENTENCES, "--quick", folder=tmp_path)
    assert re.search(r"\ndistilled, from the teacher's layers: \d\d\.\d\d %", output)


@needs_mnist
@pytest.mark.slow
def test_mnist_distillation(tmp_path):
    output = run("examples/mnist_distillation.py", "--quick", folder=tmp_path)
    assert "exported to savedmodels/mnist/1" in output


@pytest.mark.slow
def test_digits_benchmark(tmp_path):
    output = run("benchmarks/digits.py", "--quick", "--json", "d.json", folder=tmp_path)
    assert "paired over 2 seeds" in output
    assert (tmp_path / "d.json").exists()


@pytest.mark.slow
def test_benchmark_of_kinds(tmp_path):
    output = run("benchmarks/kinds.py", "--quick", folder=tmp_path)
    for task in ("binary", "multi-label", "regression", "embedding"):
        assert f"\n{task}: (epochs, T, alpha) by validation: (1, 2.0, 0.5)" in output
        assert f"\n| {task}, " in output


@pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "cifar100")),
    reason="TFDS_DATA_DIR does not lead to a prepared cifar100",
)
@pytest.mark.slow
def test_benchmark_of_few_bits_goes_on_where_it_was(tmp_path):
    pytest.importorskip("ai_edge_quantizer")
    asked = ["benchmarks/quantization.py", "--quick", "--folder", "runs"]
    some = run(*asked, "--column", "int4 aware", folder=tmp_path)
    assert "plain 0 int4 aware" in some
    rest = run(*asked, folder=tmp_path)
    assert "plain 0 int8" in rest
    assert "plain 0 int4 aware" not in rest
    assert rest.splitlines()[-1].count("|") == 12


@needs_mnist
@pytest.mark.slow
def test_mnist_benchmark(tmp_path):
    output = run("benchmarks/mnist.py", "--quick", folder=tmp_path)
    assert "| mean |" in output


@needs_mnist
@pytest.mark.slow
def test_kept_mnist_benchmark(tmp_path):
    output = run(
        "benchmarks/mnist_cached.py",
        "--quick",
        "--picture",
        "curves.png",
        folder=tmp_path,
    )
    assert "| live |" in output
    assert (tmp_path / "curves.png").exists()


@pytest.mark.slow
def test_step_benchmark(tmp_path):
    output = run("benchmarks/step.py", "--quick", "--json", "s.json", folder=tmp_path)
    assert "| cached targets / plain |" in output
    assert len(json.loads((tmp_path / "s.json").read_text())) == 3


@pytest.mark.slow
def test_soft_targets_benchmark(tmp_path):
    output = run("benchmarks/soft_targets.py", "--quick", folder=tmp_path)
    assert "writing rate / teacher.predict" in output
    assert "| 100 | 1000 |" in output


@pytest.mark.slow
def test_specialists_example(tmp_path):
    output = run("examples/specialists_cifar100.py", "--quick", folder=tmp_path)
    assert "specialists covering" in output
    assert "student" in output
    assert (tmp_path / "specialists-cifar100" / "class_covariance.png").exists()


@pytest.mark.slow
def test_specialists_benchmark(tmp_path):
    output = run(
        "benchmarks/specialists.py", "--quick", "--json", "s.json", folder=tmp_path
    )
    assert "| control |" in output
    (result,) = json.loads((tmp_path / "s.json").read_text())
    assert {"ensemble", "control", "student"} <= set(result["test"])


@pytest.mark.slow
def test_benchmarks_of_clusters_and_workers(tmp_path):
    output = run("benchmarks/class_clusters.py", "--quick", folder=tmp_path)
    assert output.splitlines()[-1].startswith("| 100 | 10 |")
    output = run("benchmarks/specialist_workers.py", "--quick", folder=tmp_path)
    assert "same weights: True" in output


@needs_mnist
@pytest.mark.slow
def test_search_example(tmp_path):
    script = "examples/search_temperature_alpha.py"
    output = run(script, "--quick", "--workers", "1", folder=tmp_path)
    assert "3 trials, in " in output
    assert "seed 101:" in output
    assert (tmp_path / "search-mnist" / "search_plane.png").exists()


@pytest.mark.slow
def test_search_benchmark(tmp_path):
    output = run("benchmarks/search.py", "--quick", folder=tmp_path)
    assert "two workers / one: " in output
    assert " s beside" in output
    assert output.splitlines()[-1].startswith("4 hyperparameters, 12 trials")


def test_examples_are_short():
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) < 100
