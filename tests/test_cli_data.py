"""The commands on users' own data, in this process."""

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


@pytest.mark.slow
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


def test_export_takes_the_class_names_of_a_folder(here, capsys):
    pictures(here / "pets")
    model = models.cnn((16, 16, 3), 3, (2,))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    save(model, "model.keras")
    command = ["export", "model.keras", "--output", "out", "--class-names"]
    for path in ("pets", "./pets"):
        assert main.main([*command, path]) == 1
        said = capsys.readouterr().err
        assert "class_names has 2 names, but the model has 3 classes" in said
    assert main.main([*command, "./cats"]) == 1
    assert "the class names './cats' are not there" in capsys.readouterr().err


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


@pytest.mark.slow
def test_text_is_exported_with_an_example_of_the_data(here):
    table = pd.DataFrame({"city": ["Bern", "Rom"] * 10, "label": [0, 1] * 10})
    table.to_csv("text.csv", index=False)
    table.assign(age=np.arange(20), unused="x").to_csv("mixed.csv", index=False)
    table.assign(city=np.arange(20)).to_csv("numbers.csv", index=False)
    text, mixed, numbers = (
        datasets.load(f"{name}.csv") for name in ("text", "mixed", "numbers")
    )
    of_numbers = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    assert options.text_example(of_numbers, numbers) is None
    hashing = keras.layers.Hashing(9, output_mode="multi_hot")
    for shape in ((), (1,)):
        of_text = keras.Sequential([keras.Input(shape, dtype="string"), hashing])
        (example,) = options.text_example(of_text, text).values()
        assert example.shape == (len(example), *shape)
    model = columns(2)
    example = options.text_example(model, mixed)
    assert {name: part.shape[1:] for name, part in example.items()} == {
        "city": (1,), "age": (),
    }  # fmt: skip
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert kd.export_savedmodel(model, "out", example=example).endswith("1")


@pytest.mark.slow
def test_the_demo_on_a_folder_of_images(here, capsys):
    pictures(here / "pets", count=20)
    command = ["demo", "--dataset", "./pets", "--epochs", "2", "--image-size", "8", "8"]
    assert main.main(command) == 0
    assert "pets: 2 classes of (8, 8, 3)" in capsys.readouterr().out
    assert (here / "keras-distill-demo-pets" / "comparison.md").exists()
