"""Model cards: what they say, and that they say nothing else."""

import importlib.metadata
import json
import os
import platform

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.export import card, check, versions
from keras_distill.export.serving import Serving
from keras_distill.run_directory import teacher_fingerprint
from tests.conftest import CLASSES, FEATURES, SPARSE, mlp
from tests.forking import answer_here

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, FEATURES)).astype("float32")
Y = RNG.integers(CLASSES, size=40)


@pytest.fixture(autouse=True)
def _answers_here(monkeypatch):
    monkeypatch.setattr(check, "ask_fresh_process", answer_here)


def distilled(teacher=None, epochs=2, **given):
    distiller = kd.Distiller(mlp(4, name="small"), teacher, **given)
    distiller.compile("sgd", SPARSE, run_eagerly=True)
    if epochs:
        distiller.fit(X, Y, batch_size=20, epochs=epochs, verbose=0)
    return distiller


def facts(given):
    return json.loads(given.to_json())


def written(path):
    """Returns the card of a version, which is the same in both files."""
    with open(os.path.join(path, "model_card.json")) as file:
        content = json.load(file)
    with open(os.path.join(path, "model_card.md")) as file:
        text = file.read()
    for section in set(content) - {"format", "format_version"}:
        assert f"## {section.capitalize()}\n" in text
    return content, text


def export(model, folder, **given):
    return kd.export_savedmodel(model, folder, verbose=False, **given)


def fingerprint(model):
    found = teacher_fingerprint(model)
    return {key: found[key] for key in ("architecture", "weights")}


def test_of_a_distiller_it_is_made_by_itself(tmp_path):
    teacher = mlp(16, name="big")
    distiller = distilled(teacher, temperature=3.0, alpha=0.25)
    path = export(distiller, tmp_path, class_names=list("abcde"))
    content, text = written(path)
    student = distiller.student
    assert content["format"] == "keras_distill model card"
    assert content["format_version"] == 1
    assert content["model"] == {
        "name": "small",
        "class": "Sequential",
        "parameters": student.count_params(),
        **fingerprint(student),
        "outputs": {"output": {"kind": "softmax", "classes": 5}},
    }
    assert content["teacher"] == {
        "name": "big",
        "parameters": teacher.count_params(),
        "kind": "keras.Model",
        **fingerprint(teacher),
    }
    how = content["distillation"]
    assert (how["temperature"], how["alpha"]) == (3.0, 0.25)
    assert (how["steps"], how["epochs_of_last_fit"]) == (4, 2)
    assert how["loss"]["class"] == "SparseCategoricalCrossentropy"
    assert how["distillation_loss"] == {"class": "SoftTargetLoss"}
    assert how["optimizer"]["class"] == "SGD"
    files = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if "card" not in name
    ]
    (name,) = (tensor.name for tensor in student.inputs)
    assert content["export"] == {
        "format": "SavedModel",
        "bytes": sum(map(os.path.getsize, files)),
        "inputs": {name: f"float32 (batch, {FEATURES})"},
        "outputs": {
            "logits": f"float32 (batch, {CLASSES})",
            "probabilities": f"float32 (batch, {CLASSES})",
            "label": "string (batch)",
        },
    }
    assert content["packages"] == {
        "python": platform.python_version(),
        **{
            package: importlib.metadata.version(package)
            for package in ("keras-distill", "keras", "tensorflow", "numpy")
        },
    }
    # Nobody said these.
    assert not {"data", "seeds", "evaluation", "latency", "search"} & set(content)
    assert text.startswith("# Model card: small\n")
    assert f"| weights | {fingerprint(teacher)['weights']} |" in text
    assert "| temperature | 3 |" in text


def test_what_is_said_beside_a_distiller(tmp_path):
    teacher = mlp(16)
    distiller = distilled(teacher)
    comparison = kd.compare(
        {"teacher": teacher, "baseline": mlp(4), "student": distiller.student},
        (X, Y),
        teacher=teacher,
        timing=False,
        verbose=False,
    )
    said = {
        "data": "MNIST",
        "data_version": "3.0.1",
        "seeds": [0, 1],
        "evaluation": comparison,
        "latency": {"p50, ms": np.float32(1.5), "device": "a | phone"},
        "notes": "Trained on *weekdays*.",
        "alpha": 0.5,
    }
    content, text = written(export(distiller, tmp_path, card=said))
    assert content["data"] == {"name": "MNIST", "version": "3.0.1"}
    assert content["seeds"] == [0, 1]
    assert content["evaluation"] == json.loads(comparison.to_json())
    assert content["latency"] == {"p50, ms": 1.5, "device": "a | phone"}
    assert content["distillation"]["alpha"] == 0.5  # what is said goes before
    assert content["distillation"]["temperature"] == 4.0
    assert content["teacher"]["weights"] == fingerprint(teacher)["weights"]
    assert comparison.to_markdown() in text
    assert "| device | a \\| phone |" in text
    assert text.endswith("## Notes\n\nTrained on *weekdays*.\n")
    # The same, told by a card, with the distiller or the student.
    by_card = card.card_of(kd.ModelCard(**said), distiller)
    of_it = card.card_of(kd.ModelCard(distiller, **said), distiller.student)
    assert facts(by_card) == facts(of_it)
    assert facts(of_it).items() <= content.items()


def test_a_model_alone_has_what_is_seen(tmp_path):
    content, text = written(export(mlp(), tmp_path, output_kinds="softmax"))
    assert set(content) == {"format", "format_version", "model", "export", "packages"}
    assert "None" not in text + json.dumps(content)


def test_a_version_that_can_be_seen_has_its_card(tmp_path, monkeypatch):
    publish, seen = versions.publish, []

    def look(hidden, directory):
        seen.append({"model_card.md", "model_card.json"} <= set(os.listdir(hidden)))
        return publish(hidden, directory)

    monkeypatch.setattr(versions, "publish", look)
    export(mlp(), tmp_path, output_kinds="softmax")
    assert seen == [True]


def test_the_card_of_a_file_is_beside_it(tmp_path):
    """What the formats of one file call."""
    model, path = mlp(), tmp_path / "m.tflite"
    path.write_bytes(b"x" * 123)
    serving = Serving.of(
        model,
        class_names=None,
        preprocess=None,
        input_signature=None,
        example=None,
        from_logits=None,
        output_kinds="softmax",
        threshold=0.5,
        exporter="export_litert",
    )
    made = card.card_of({"temperature": 2.0}, model)
    files = card.write_card(made, serving, str(path), "LiteRT", ["tqdm"])
    assert files == [f"{path}.card.md", f"{path}.card.json"]
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["m.tflite", "m.tflite.card.md", "m.tflite.card.json"]
    )
    with open(files[1]) as file:
        content = json.load(file)
    assert content["export"]["format"] == "LiteRT"
    assert content["export"]["bytes"] == 123
    assert content["packages"]["tqdm"] == importlib.metadata.version("tqdm")
    assert content["distillation"] == {"temperature": 2.0}


# What taught -------------------------------------------------------------------------


def outputs(x):
    return tf.zeros((tf.shape(x)[0], CLASSES))


def test_teachers_of_all_kinds(tmp_path):
    one, two = mlp(16), mlp(12)
    one.save(tmp_path / "one.keras")
    one.export(tmp_path / "saved", verbose=False)
    targets = kd.SoftTargets.write(tmp_path / "soft", one, X, verbose=False)
    of_one = teacher_fingerprint(one)
    found = {
        name: facts(kd.ModelCard(teacher=teacher))["teacher"]
        for name, teacher in {
            "model": one,
            "distiller": kd.Distiller(one),
            "list": [one, two],
            "file": str(tmp_path / "one.keras"),
            "saved": tmp_path / "saved",
            "callable": outputs,
            "cached": targets,
            "said": {"name": "BERT", "parameters": np.int64(3)},
        }.items()
    }
    for name in ("model", "distiller", "file"):
        assert of_one.items() <= found[name].items()
        assert found[name]["parameters"] == one.count_params()
    assert found["cached"] == targets.manifest["teacher"]
    assert found["cached"]["weights"] == of_one["weights"]
    members = [member["weights"] for member in found["list"]["members"]]
    assert members == [fingerprint(m)["weights"] for m in (one, two)]
    assert found["saved"]["kind"] == "SavedModel"
    assert len(found["saved"]["weights"]) == 32
    assert found["callable"] == {
        "kind": "callable",
        "name": "tests.test_export_card.outputs",
    }
    assert found["said"] == {"name": "BERT", "parameters": 3}


def test_without_a_teacher_nothing_is_said_of_one():
    found = facts(kd.ModelCard(distilled(alpha=1.0)))
    assert "teacher" not in found
    assert set(found["distillation"]) == {
        "alpha", "loss", "optimizer", "steps", "epochs_of_last_fit",
    }  # fmt: skip


def test_a_distiller_that_was_not_compiled_has_neither_loss_nor_steps():
    found = facts(kd.ModelCard(kd.Distiller(mlp(), mlp(8))))["distillation"]
    assert set(found) == {"temperature", "alpha", "distillation_loss"}


def test_a_dataset_of_ours_says_its_version():
    data = kd.datasets.load("digits")
    found = facts(kd.ModelCard(data=data))["data"]
    assert found == {"name": "digits", "version": data.version}
    said = kd.ModelCard(data=data, data_version="of Monday")
    assert facts(said)["data"]["version"] == "of Monday"
    unknown = kd.ModelCard(data=data.replace(version=None))
    assert facts(unknown)["data"] == {"name": "digits"}


def test_schedules_and_losses_of_several_outputs_are_named():
    x = keras.Input((4,))
    student, teacher = (
        keras.Model(x, {"a": keras.layers.Dense(3)(x), "b": keras.layers.Dense(1)(x)})
        for _ in range(2)
    )
    distiller = kd.Distiller(
        student,
        teacher,
        temperature=keras.optimizers.schedules.ExponentialDecay(4.0, 10, 0.5),
        distillation_loss={"a": 0.5 * kd.SoftTargetLoss() + kd.LogitLoss(), "b": None},
    )
    distiller.compile("adam", {"a": SPARSE, "b": "mse"})
    given = kd.ModelCard(distiller, loss={"a": "hinge", "b": keras.losses.Huber()})
    found = facts(given)["distillation"]
    assert found["temperature"]["class"] == "ExponentialDecay"
    assert found["temperature"]["decay_rate"] == 0.5
    assert found["distillation_loss"]["a"]["class"] == "SumOfLosses"
    assert found["loss"]["a"] == "hinge"
    assert found["loss"]["b"]["class"] == "Huber"
    assert "| loss / a | hinge |" in str(given)


# Searches ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    keras.utils.set_random_seed(0)

    def build(hp):
        model = mlp(hp.Int("width", 4, 12))
        model.compile("adam", SPARSE, run_eagerly=True)
        return model

    return kd.search(
        build,
        (X, Y),
        (X, Y),
        teacher=mlp(16),
        directory=tmp_path_factory.mktemp("search"),
        max_trials=3,
        epochs=1,
        batch_size=40,
        executions_per_trial=2,
        seed=5,
        verbose=False,
    )


@pytest.mark.slow
def test_of_a_search(tmp_path, result):
    student = result.student
    content, text = written(export(student, tmp_path, card=result))
    assert content["model"]["weights"] == fingerprint(student)["weights"]
    manifest = kd.SoftTargets.open(f"{result.directory}/soft_targets").manifest
    how, values = content["distillation"], result.best_values
    assert how["alpha"] == pytest.approx(values["alpha"])
    if how["alpha"] == 1.0:  # no teacher has taught it
        assert "teacher" not in content
    else:
        assert content["teacher"] == manifest["teacher"]
        assert how["temperature"] == pytest.approx(values["temperature"])
    assert "steps" not in how
    assert content["seeds"] == [5, 6]
    assert content["search"] == {
        "objective": "val_accuracy",
        "score": result.score,
        "trials": 3,
        "algorithm": "bayesian",
        "values": values,
        "best_epoch": 1.0,
    }
    assert f"| values / width | {values['width']} |" in text


@pytest.mark.slow
def test_of_a_search_whose_student_was_trained_again(result):
    again = kd.SearchResult(result.tuner, result.directory)
    again.retrain()
    found = facts(kd.ModelCard(again))
    assert found["seeds"] == [7]
    assert found["search"]["trained_again"] is True
    assert "best_epoch" not in found["search"]


# Of the right model ------------------------------------------------------------------


def test_a_card_of_another_model_is_refused(tmp_path, result):
    distiller, message = distilled(mlp(16)), "card is of a student with other weights"
    for given in (distiller, kd.ModelCard(distiller), result):
        with pytest.raises(ValueError, match=message):
            export(mlp(4), tmp_path / "m", card=given, output_kinds="softmax")
    before = kd.ModelCard(distiller)
    distiller.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="make it after the last training"):
        export(distiller, tmp_path / "m", card=before)
    assert not (tmp_path / "m").exists()
    # Said by keywords, it is the user's.
    said = kd.ModelCard(teacher=mlp(16), temperature=2.0)
    export(mlp(4), tmp_path / "m", card=said, output_kinds="softmax")


@pytest.mark.parametrize("given", [3, "card.md", b"x", ["data"], mlp])
def test_what_is_no_card(tmp_path, given):
    with pytest.raises(TypeError, match="a Distiller, a SearchResult or keywords, got"):
        export(mlp(), tmp_path / "m", card=given, output_kinds="softmax")
    with pytest.raises(TypeError, match="card has 'dataset', which is no keyword of"):
        export(mlp(), tmp_path / "m", card={"dataset": 1}, output_kinds="softmax")
    assert not (tmp_path / "m").exists()
