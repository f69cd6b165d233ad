"""The commands on users' own data, in this process."""

import json

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from scipy.io import wavfile

import keras_distill as kd
from keras_distill import datasets, models
from keras_distill.commands import main, options
from keras_distill.datasets import folders
from keras_distill.soft_targets.store import SoftTargets

RNG = np.random.default_rng(0)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(model, path="teacher.keras"):
    model.save(path)
    return path


def pictures(root, count=6, size=(16, 16)):
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(count):
            shade = 200 if name == "cat" else 40
            pixels = RNG.integers(shade, shade + 50, size=(*size, 3)).astype("uint8")
            (root / name / f"{i}.png").write_bytes(tf.io.encode_png(pixels).numpy())


def test_cache_takes_images_sound_and_tables(here):
    pictures(here / "my pets")
    teacher = save(models.cnn((8, 8, 1), 2, (2,)))
    given = ["--image-size", "8", "8", "--color-mode", "grayscale"]
    assert main.main(["cache", teacher, "my pets", "kept", *given]) == 0
    data = datasets.load(
        "my pets",
        image_size=(8, 8),
        color_mode="grayscale",
        shuffle=False,
        batch_size=None,
    )
    joined = SoftTargets.open("kept").join(data.train)
    assert len(list(joined)) == data.sizes["train"] == 9

    for name in ("no", "yes"):
        (here / "words" / name).mkdir(parents=True)
        for i in range(5):
            samples = RNG.integers(-99, 99, size=40).astype("int16")
            wavfile.write(here / "words" / name / f"{i}.wav", 800, samples)
    teacher = save(models.mlp((60,), 2, (2,)))
    given = ["--seconds", "0.05", "--sample-rate", "1200", "--split", "test"]
    assert main.main(["cache", teacher, "words", "heard", *given]) == 0
    assert len(SoftTargets.open("heard")) == 2

    table = pd.DataFrame({"kind": ["a", "b"] * 10, "one": range(20), "two": range(20)})
    table.to_csv("t.csv", index=False)
    teacher = save(models.mlp((2,), 2, (2,)))
    for label in ("kind", "0"):
        assert (
            main.main(["cache", teacher, "t.csv", f"of {label}", "--label", label]) == 0
        )
    assert len(SoftTargets.open("of 0")) == 14


def test_what_is_wrong_is_said_before_any_work(here, capsys):
    pictures(here / "pets")
    teacher = save(models.cnn((16, 16, 3), 2, (2,)))
    (here / "pets" / "dog" / "3.png").write_bytes(b"no image")
    assert main.main(["cache", teacher, "pets", "kept"]) == 1
    said = capsys.readouterr().err
    assert "pets/dog/3.png' is no JPEG, PNG, BMP or GIF, whatever it is called" in said
    assert not (here / "kept").exists()
    assert main.main(["cache", teacher, "pets", "kept", "--label", "x"]) == 1
    assert "label='x' is not for a folder of images" in capsys.readouterr().err


def test_a_file_that_breaks_in_training_is_said_in_a_sentence(
    here, capsys, monkeypatch
):
    pictures(here / "pets")
    teacher = save(models.cnn((16, 16, 3), 2, (2,)))
    monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 0)
    for path in (here / "pets").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:80])
    assert main.main(["cache", teacher, "pets", "kept"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("keras-distill: error: the image '")
    assert line.endswith(
        "' is corrupt: Invalid PNG data, size 80; delete it, or write it anew."
    )


def test_export_takes_the_class_names_of_a_folder(here):
    pictures(here / "pets")
    model = models.cnn((16, 16, 3), 2, (2,))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    save(model, "model.keras")
    assert (
        main.main(
            ["export", "model.keras", "--class-names", "./pets", "--output", "out"]
        )
        == 0
    )
    card = json.loads(
        (here / "out" / "savedmodel" / "1" / "model_card.json").read_text()
    )
    assert "string (batch)" in card["export"]["outputs"]["label"]
    served = tf.saved_model.load("out/savedmodel/1").signatures["serving_default"]
    (name,) = served.structured_input_signature[1]
    (label,) = served(**{name: tf.ones((1, 16, 16, 3))})["label"].numpy()
    assert label in (b"cat", b"dog")


@pytest.mark.slow
def test_search_and_specialists_on_a_table(here):
    rows = RNG.normal(size=(240, 4))
    table = pd.DataFrame(rows, columns=list("abcd"))
    table["kind"] = rows.argmax(axis=1)
    table.to_csv("t.csv", index=False)
    data = datasets.load("t.csv", label="kind")
    teacher = models.mlp(data.input_shape, 4, (16,))
    teacher.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    teacher.fit(data.train, epochs=5, verbose=0)
    teacher.save("teacher.keras")
    (here / "my_students.py").write_text(
        "import keras_distill as kd\n"
        "def build(hp):\n    return kd.models.mlp((4,), 4, (4,))\n"
    )
    command = [
        "search",
        "teacher.keras",
        "t.csv",
        "my_students:build",
        "--label",
        "kind",
    ]
    assert main.main([*command, "--trials", "2", "--epochs", "1"]) == 0
    card = here / "keras-distill-search" / "savedmodel" / "1" / "model_card.json"
    assert json.loads(card.read_text())["data"]["name"] == "t.csv"
    command = ["specialists", "teacher.keras", "t.csv", "--label", "kind"]
    command += ["--clusters", "2", "--hard-epochs", "1", "--soft-epochs", "0"]
    assert main.main(command) == 0


def columns(width):
    """A model of a number and a text, by name."""
    city = keras.Input((1,), dtype="string", name="city")
    age = keras.Input((), name="age")
    lookup = keras.layers.StringLookup(
        vocabulary=["Bern", "Rom"], output_mode="one_hot"
    )
    column = keras.layers.Reshape((1,))(age)
    joined = keras.layers.Concatenate()([lookup(city), column])
    joined = keras.layers.Dense(width, "relu")(joined)
    return keras.Model([city, age], keras.layers.Dense(2)(joined))


@pytest.mark.parametrize(
    "model",
    [
        lambda: columns(2),
        lambda: keras.Sequential(
            [
                keras.Input((1,), dtype="string"),
                keras.layers.Hashing(9, output_mode="multi_hot"),
                keras.layers.Dense(2),
            ]
        ),
        lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]),
    ],
)
def test_text_is_exported_with_an_example_of_the_data(here, model):
    model = model()
    table = pd.DataFrame({"age": np.arange(20), "city": ["Bern", "Rom"] * 10})
    if not isinstance(model, keras.Sequential):
        table = table.assign(unused="x")  # which the model does not take
    elif model.inputs[0].dtype == "string":
        table = table[["city"]]
    else:
        table = pd.DataFrame(RNG.normal(size=(20, 3)), columns=list("abc"))
    table.assign(label=[0, 1] * 10).to_csv("t.csv", index=False)
    data = datasets.load("t.csv")
    example = options.text_example(model, data)
    assert (example is None) == (data.input_shape == (3,))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model(data.train.map(lambda x, y: x).take(1).get_single_element())
    assert kd.export_savedmodel(model, "out", example=example).endswith("1")


@pytest.mark.slow
def test_the_demo_on_a_folder_of_images(here, capsys):
    pictures(here / "pets", count=20)
    command = ["demo", "--dataset", "./pets", "--epochs", "2", "--image-size", "8", "8"]
    assert main.main(command) == 0
    assert "pets: 2 classes of (8, 8, 3)" in capsys.readouterr().out
    assert (here / "keras-distill-demo-pets" / "comparison.md").exists()
