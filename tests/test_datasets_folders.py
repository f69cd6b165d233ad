"""Folders of images and of sound: what is read, what is refused, and by which words."""

import os
import pathlib
import struct

import cloudpickle
import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.io import wavfile

from keras_distill import datasets
from keras_distill.datasets import folders, image_headers, wav
from keras_distill.datasets.folders import read_folder
from keras_distill.datasets.images import read_image
from keras_distill.datasets.splits import draw_missing, sort_names

RNG = np.random.default_rng(0)


def picture(path, size=(6, 5, 3), encode=tf.io.encode_png, value=None):
    pixels = RNG.integers(256, size=size) if value is None else np.full(size, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(pixels.astype("uint8")).numpy())
    return pixels.astype("uint8")


def sound(path, samples=None, rate=800, dtype="int16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = RNG.integers(-2000, 2000, size=40) if samples is None else samples
    wavfile.write(path, rate, np.asarray(samples, dtype))


@pytest.fixture
def animals(tmp_path):
    """Ten pictures of each of two classes."""
    for name in ("cat", "dog"):
        for i in range(10):
            picture(tmp_path / name / f"{i}.png")
    return tmp_path


def load(path, **options):
    return datasets.load(path, verbose=False, **options)


def by_split(data):
    return {s: datasets.to_arrays(getattr(data, s)) for s in data.sizes}


def test_a_folder_of_images_is_what_keras_reads_of_it(animals):
    data = load(animals, batch_size=3, shuffle=False)
    assert repr(data) == (
        f"Data({animals.name!r}: 2 classes of (6, 5, 3); 14 train, 2 validation, 4 test)"
    )
    assert data.class_names == ["cat", "dog"]
    assert data.train.cardinality() == 5
    found = by_split(data)
    mine = np.concatenate([x for x, _ in found.values()])
    labels = np.concatenate([y for _, y in found.values()])
    assert (mine.dtype, labels.dtype) == (np.float32, np.int64)
    theirs = keras.utils.image_dataset_from_directory(
        animals, image_size=(6, 5), shuffle=False, verbose=False
    )
    x, y = datasets.to_arrays(theirs)
    rows = lambda x, y: {(a.tobytes(), int(b)) for a, b in zip(x, y, strict=True)}  # noqa: E731
    assert rows(mine, labels) == rows((x / 255).astype("float32"), y)
    # Of each class the same part, and training examples not in the order of classes.
    assert np.bincount(found["test"][1]).tolist() == [2, 2]
    assert np.bincount(found["train"][1]).tolist() == [7, 7]
    assert (np.diff(found["train"][1]) < 0).any()


def test_splits_are_the_same_for_every_seed_and_process(animals):
    here = by_split(load(animals))
    fetch = cloudpickle.loads(cloudpickle.dumps(datasets.loader(animals)))
    for other in (load(animals, seed=7), fetch(), fetch(None)):
        if other.train.element_spec[1].shape.rank == 0:
            other = other.replace(
                **{
                    s: getattr(other, s).batch(9)
                    for s in ("train", "validation", "test")
                }
            )
        for split, (x, _) in by_split(other).items():
            assert {a.tobytes() for a in x} == {a.tobytes() for a in here[split][0]}
    data = load(animals, batch_size=20)
    first, second = (datasets.to_arrays(data.train)[0] for _ in range(2))
    assert (first != second).any()
    assert datasets.fits_in_memory(data, 14 * (90 * 4 + 8))
    assert not datasets.fits_in_memory(data, 14 * (90 * 4 + 8) - 1)


def test_splits_of_its_own_are_taken_as_they_are(tmp_path):
    for split, count in {"Train": 5, "val": 2, "testing": 1}.items():
        for name in ("10", "9"):
            for i in range(count):
                picture(tmp_path / split / name / f"{i}.jpg", encode=tf.io.encode_jpeg)
    data = load(tmp_path)
    assert data.sizes == {"train": 10, "validation": 4, "test": 2}
    assert data.class_names == ["9", "10"]  # by their values
    picture(tmp_path / "testing" / "11" / "1.png")
    with pytest.raises(
        ValueError, match=r"11/1.png' is of the class '11', which is among"
    ):
        load(tmp_path)


def test_names_hidden_files_nested_folders_links_and_endings(tmp_path):
    root = tmp_path / "my pictures é"
    for i in range(4):
        picture(root / "chat à poil" / "2024" / f"n° {i}.PNG")
        picture(root / "dog" / f"{i}.JPG", encode=tf.io.encode_jpeg)
    (root / ".DS_Store").write_text("x")
    (root / "dog" / ".DS_Store").write_text("x")
    (root / "dog" / "Thumbs.db").write_text("x")
    (root / "LICENSE").write_text("free")
    picture(tmp_path / "elsewhere" / "5.png")
    (root / "dog" / "linked.png").symlink_to(tmp_path / "elsewhere" / "5.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    picture(tmp_path / "elsewhere" / "6.png")
    picture(tmp_path / "elsewhere" / os.fsdecode(b"\xff.png"))  # no UTF-8
    data = load(root)
    assert data.class_names == ["chat à poil", "dog", "linked"]
    assert sum(data.sizes.values()) == 12
    (root / os.fsdecode(b"\xff")).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError, match="has a name that is not UTF-8, and is a class"
    ):
        load(root)
    (root / os.fsdecode(b"\xff")).unlink()
    (root / "dog" / "loop").symlink_to(root / "dog")
    with pytest.raises(ValueError, match=r"loop' is a link to a folder that it is in"):
        load(root)
    (root / "dog" / "loop").unlink()
    (root / "dog" / "nowhere.png").symlink_to(root / "none.png")
    with pytest.raises(ValueError, match=r"nowhere.png' is no file: a link that leads"):
        load(root)


def test_home_a_relative_path_and_a_name_of_tfds(animals, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(animals.parent))
    monkeypatch.chdir(animals.parent)
    name = animals.name
    sizes = [load(p).sizes for p in (f"~/{name}", name, f"./{name}/", animals)]
    assert sizes == [{"train": 14, "validation": 2, "test": 4}] * 4
    # Other processes may be in other folders.
    fetch = datasets.loader(name)
    monkeypatch.chdir("/")
    assert fetch().name == name
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        picture(tmp_path / "mnist" / "a" / f"{i}.png")
        picture(tmp_path / "mnist" / "b" / f"{i}.png")
    assert load("./mnist").sizes == {"train": 4, "validation": 1, "test": 1}
    with (
        pytest.warns(UserWarning, match="a TFDS dataset and a folder here.*'./mnist'"),
        pytest.raises(ValueError, match="is not for a TFDS dataset, which 'mnist' is"),
    ):
        load("mnist", color_mode="rgb")


def test_grey_and_colours(tmp_path):
    for i in range(4):
        picture(tmp_path / "a" / f"{i}.png", (4, 4, 1))
        picture(tmp_path / "b" / f"{i}.png", (4, 4, 1))
    assert load(tmp_path).input_shape == (4, 4, 1)
    grey = by_split(load(tmp_path, color_mode="rgb", validation_fraction=0.4))
    assert all((x[..., 0] == x[..., 2]).all() for x, _ in grey.values())
    picture(tmp_path / "b" / "4.png", (4, 4, 4))
    assert load(tmp_path).input_shape == (4, 4, 3)
    assert load(tmp_path, color_mode="grayscale").input_shape == (4, 4, 1)
    x, _ = datasets.to_arrays(load(tmp_path, color_mode="rgba").train)
    assert x.shape[1:] == (4, 4, 4)
    assert (x[..., 3] == 1).any()


def bmp(pixels):
    """A BMP of 24 bits, from top to bottom; rows are filled up to 4 bytes."""
    pixels = pixels.numpy() if hasattr(pixels, "numpy") else pixels
    height, width, _ = pixels.shape
    rows = np.zeros((height, -(-width * 3 // 4) * 4), "u1")
    rows[:, : width * 3] = pixels[::-1, :, ::-1].reshape(height, -1)
    head = struct.pack("<2sIHHI", b"BM", 54 + rows.size, 0, 0, 54)
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, 24, 0, rows.size, 0, 0, 0, 0
    )
    return tf.constant(head + info + rows.tobytes())


GIF = bytes.fromhex(  # 2 x 1 pixels, black and white
    "474946383961020001008000000000" + "00ffffff2c00000000020001000002020c0a003b"
)


def test_every_format_by_its_content_and_header(tmp_path):
    pixels = RNG.integers(256, size=(3, 5, 3)).astype("uint8")
    encoded = {
        "png": tf.io.encode_png(pixels),
        "bmp": bmp(pixels),
        "jpeg": tf.io.encode_jpeg(pixels, progressive=True, xmp_metadata="x" * 30_000),
        "grey.jpg": tf.io.encode_jpeg(pixels[..., :1], format="grayscale"),
        "grey.png": tf.io.encode_png(pixels[..., :1].astype("uint16")),
    }
    for name, content in encoded.items():
        path = tmp_path / name
        path.write_bytes(content.numpy())
        header = image_headers.read_header(str(path))
        channels = 1 if "grey" in name else 3
        assert header[1:] == (3, 5, channels), name
        for depth in (1, 3):
            image = read_image(str(path), (3, 5, depth), "uint8")
            assert image.shape == (3, 5, depth)
            if (name, depth) in (("png", 3), ("bmp", 3)):
                assert (image == pixels).all()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({14: 12}, "of OS/2"),
        ({28: 1}, "of 1 bits a pixel"),
        ({28: 16}, "of 16 bits a pixel"),
        ({30: 1}, "that is compressed"),
        ({28: 8, 46: 2}, "of colours from a palette"),
    ],
)
def test_bmp_files_that_tensorflow_would_take_for_something_else(
    tmp_path, change, what
):
    content = bytearray(bmp(RNG.integers(256, size=(3, 5, 3)).astype("uint8")).numpy())
    for place, value in change.items():
        content[place] = value
    path = tmp_path / "1.bmp"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"1.bmp' is a BMP {what}, which TensorFlow"):
        image_headers.read_header(str(path))


def test_shades_of_a_bmp_palette_are_read(tmp_path):
    shades = bytes(c for i in range(256) for c in (i, i, i, 0))
    head = struct.pack("<IHHI", 1078 + 4, 0, 0, 1078)
    info = struct.pack("<IiiHHIIiiII", 40, 3, 1, 1, 8, 0, 4, 0, 0, 256, 0)
    path = tmp_path / "1.bmp"
    path.write_bytes(b"BM" + head + info + shades + bytes([7, 8, 9, 0]))
    assert image_headers.read_header(str(path)).channels == 1
    assert read_image(str(path), (1, 3, 1), "uint8").ravel().tolist() == [7, 8, 9]


def test_a_gif_gives_its_first_picture(tmp_path):
    frame = GIF[13 + 6 : -1]
    moving = GIF[:-1] + frame + b"\x3b"
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for i, content in enumerate([GIF, moving] * 2):
            (tmp_path / folder / f"{i}.gif").write_bytes(content)
    data = load(tmp_path, validation_fraction=0.3)
    assert data.input_shape == (1, 2, 3)
    assert load(tmp_path, color_mode="grayscale").input_shape == (1, 2, 1)
    assert datasets.to_arrays(data.train)[0].shape == (4, 1, 2, 3)


def test_sizes_that_differ_need_image_size(animals):
    picture(animals / "dog" / "wide.png", (6, 9, 3))
    with pytest.raises(
        ValueError, match=r"wide.png' has 6 x 9 pixels.*image_size=\(6, 5\)"
    ):
        load(animals)
    data = load(animals, image_size=(4, 3), batch_size=30)
    assert data.input_shape == (4, 3, 3)
    x, _ = datasets.to_arrays(data.train)
    assert 0.0 <= x.min() < x.max() <= 1.0
    raw, _ = datasets.to_arrays(load(animals, image_size=(4, 3), normalize=False).test)
    assert raw.max() > 2
    assert (raw != np.round(raw)).any()  # not rounded after resizing


def test_what_is_too_large_for_memory_is_read_as_it_is_needed(animals, monkeypatch):
    held = by_split(load(animals, shuffle=False))
    monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 20 * 90 - 1)
    data = load(animals, shuffle=False)
    for split, (x, y) in by_split(data).items():
        assert (x == held[split][0]).all()
        assert (y == held[split][1]).all()
    shuffled = load(animals)
    assert shuffled.train.element_spec == data.train.element_spec
    # A file that breaks later is named.
    for path in (animals / "cat").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    again = load(animals)
    with pytest.raises(
        tf.errors.OpError, match=r"the image '.*/cat/.\.png' is corrupt"
    ):
        by_split(again)


def broken(kind):
    """Returns a function that spoils one of the files of a folder."""

    def spoil(root):
        path = root / "cat" / "4.png"
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:70])
        elif kind == "header":
            path.write_bytes(path.read_bytes()[:12])
        elif kind == "empty":
            path.write_bytes(b"")
        elif kind == "text":
            path.write_text("no picture")
        elif kind == "jpeg":
            path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
        elif kind == "other":
            (root / "cat" / "notes.txt").write_text("x")
        elif kind == "sound":
            sound(root / "cat" / "miau.wav")
        elif kind == "lone":
            picture(root / "lone.png")
        elif kind == "no files":
            (root / "fish").mkdir()
        elif kind == "one class":
            (root / "dog").rename(root / "cat" / "more")
        elif kind == "line break":
            (root / "cat").rename(root / "ca\nt")
        elif kind == "spaces":
            (root / "cat").rename(root / "dog ")
        elif kind == "no classes":
            for folder in ("cat", "dog"):
                (root / folder).rename(root.parent / folder)
        elif kind == "beside":
            (root / "cat").rename(root / "train")
            (root / "train" / "tabby").mkdir()
        elif kind == "flat":
            (root / "cat").rename(root / "train")
            (root / "dog").rename(root / "test")
        elif kind == "twice":
            for folder in ("train", "val", "dev"):
                (root / folder / "cat").mkdir(parents=True)
        elif kind == "neither":
            for i, path in enumerate(sorted(root.rglob("*.png"))):
                path.rename(path.with_name(f"{i}.webp"))

    return spoil


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (
            "cut",
            "cat/4.png' is corrupt: Invalid PNG data, size 70; delete it, or write",
        ),
        ("header", "cat/4.png' is corrupt: its header is broken off"),
        ("empty", "cat/4.png' is an empty file; delete it."),
        ("text", "cat/4.png' is no JPEG, PNG, BMP or GIF, whatever it is called"),
        ("jpeg", "cat/4.png' is corrupt: its header is broken off"),
        ("other", "cat/notes.txt' is no file of images .*, as the others of"),
        ("sound", "cat/miau.wav' is no file of images"),
        ("lone", "lone.png' is in no folder of a class; .* has 2 such folders."),
        ("no files", "fish', the folder of the class 'fish', has no file; add some"),
        ("line break", "has the class 'ca.nt', which has a line break in it; take it"),
        ("spaces", "has the classes 'dog' and 'dog ', which differ in the spaces"),
        ("one class", "has one class only, the folder 'cat'; give a folder with two"),
        ("no classes", "has no folder of a class; put the files of each class into"),
        ("beside", "dog' lies beside '.*/train': folders are splits"),
        ("flat", "has no train folder with a folder of each class in it."),
        ("twice", "dev' and '.*/val' both are the validation split; keep one."),
        ("neither", "0.webp' is neither an image .* nor sound .*give module:function"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_with_its_name(animals, kind, sentence):
    broken(kind)(animals)
    with pytest.raises(ValueError, match=sentence):
        load(animals)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        for i in range(4):
            picture(tmp_path / name / f"{i}.png")
    assert read_folder(str(tmp_path)).class_names == ["bus", "train"]


# Splits ------------------------------------------------------------------------------


def test_every_class_keeps_one_example_to_train_on():
    labels = np.array([0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2])
    splits = draw_missing(labels, ["train"], 0.3, list("abc"), "here")
    assert sorted(np.concatenate(list(splits.values()))) == list(range(13))
    assert set(labels[splits["train"]]) == {0, 1, 2}
    assert len(splits["test"]) == 3  # a fifth
    assert len(splits["validation"]) == 3  # three tenths of what is left
    given = draw_missing(labels, ["train", "test"], 0.3, list("abc"), "here")
    assert set(given) == {"train", "validation"}
    given = draw_missing(labels, ["validation", "train"], 0.3, list("abc"), "here")
    assert {split: len(part) for split, part in given.items()} == {
        "train": 10,
        "test": 3,
    }
    with pytest.raises(ValueError, match="the 2 training examples of here are too"):
        draw_missing(np.array([0, 1]), ["train"], 0.1, ["a", "b"], "here")


def test_one_file_of_each_class_is_too_few(tmp_path):
    for name in ("a", "b", "c"):
        picture(tmp_path / name / "1.png")
    sentence = "3 training examples of .* are too few .*class 'a' has 1. Give more of each class"
    with pytest.raises(ValueError, match=sentence):
        load(tmp_path)
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            picture(tmp_path / "whole" / split / name / "1.png")
    assert load(tmp_path / "whole").sizes == {"train": 2, "validation": 2, "test": 2}


def test_names_are_sorted_by_value_only_if_all_are_numbers():
    assert sort_names(["10", "9", "-1", "2.5"]) == ["-1", "2.5", "9", "10"]
    assert sort_names(["10", "9", "a"]) == ["10", "9", "a"]


# Sound -------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path):
    """Ten recordings of each of two classes, of 40 samples in 0.05 s."""
    for name in ("no", "yes"):
        for i in range(10):
            sound(tmp_path / name / f"{i}.wav")
    return tmp_path


def test_sound_is_cut_or_filled_to_one_length(words):
    sound(words / "no" / "10.wav", [16384] * 30 + [-32768] * 30)
    data = load(words, seconds=0.06)
    assert (data.sample_rate, data.input_shape) == (800, (48,))
    x = np.concatenate([x for x, _ in by_split(data).values()])
    assert x.dtype == np.float32
    long = x[x[:, 0] == 0.5]
    assert long.tolist() == [[0.5] * 30 + [-1.0] * 18]
    short = x[x[:, 0] != 0.5]
    assert (short[:, 40:] == 0).all()
    # The formula of load's docstring.
    mask = (tf.cumsum(tf.abs(x), axis=-1, reverse=True) > 0).numpy()
    assert set(mask.sum(axis=1)) <= {48, *range(36, 41)}


def test_the_longest_in_training_sets_the_length(tmp_path):
    for split, counts in {"train": (30, 20, 25), "test": (40,)}.items():
        for name in ("no", "yes"):
            for count in counts:
                sound(tmp_path / split / name / f"{count}.wav", [1] * count)
    data = load(tmp_path)
    assert data.input_shape == (30,)  # a class gives one for validation, both have a 30
    assert datasets.to_arrays(data.test)[0].shape == (2, data.input_shape[0])


def test_rates_that_differ_need_sample_rate(words):
    time = np.arange(800) / 1600
    sound(words / "yes" / "fast.wav", 20_000 * np.sin(2 * np.pi * 50 * time), rate=1600)
    sentence = r"fast.wav' has 1600 samples a second, and 20 of 21.*sample_rate=800"
    with pytest.raises(ValueError, match=sentence):
        load(words)
    data = load(words, sample_rate=800, seconds=0.5)
    assert (data.sample_rate, data.input_shape) == (800, (400,))
    x = np.concatenate([x for x, _ in by_split(data).values()])
    tone = x[np.abs(x[:, 300]).argmax()] if (x[:, 45:] != 0).any() else None
    expected = 20_000 / 32768 * np.sin(2 * np.pi * 50 * np.arange(400) / 800)
    assert np.abs(tone - expected)[20:-20].max() < 0.01


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_are_those_of_scipy(tmp_path, dtype, channels):
    full = {"uint8": 256, "int16": 2**16, "int32": 2**32}.get(dtype, 2)
    numbers = RNG.uniform(-0.5, 0.5, size=(50, channels)) * full
    numbers += full / 2 if dtype == "uint8" else 0
    path = str(tmp_path / "a.wav")
    wavfile.write(path, 800, np.squeeze(numbers.astype(dtype)))
    _, read = wavfile.read(path)
    header = wav.read_header(path)
    assert header[:3] == (800, channels, 50)
    unit = (read.astype("float64") - (128 if dtype == "uint8" else 0)) / (full / 2)
    expected = unit.reshape(50, channels).mean(axis=1)
    np.testing.assert_allclose(wav.read_samples(path, header), expected, atol=1e-6)
    first = wav.read_samples(path, header, 7)
    np.testing.assert_allclose(first, expected[:7], atol=1e-6)


def riff(chunks, form=b"RIFF", sizes=None):
    order = ">" if form == b"RIFX" else "<"
    content = b"WAVE"
    for name, part in chunks:
        size = (sizes or {}).get(name, len(part))
        content += (
            struct.pack(f"{order}4sI", name, size) + part + b"\0" * (len(part) % 2)
        )
    return form + struct.pack(f"{order}I", len(content)) + content


def form(code=1, channels=1, rate=800, width=2, order="<", extra=b""):
    return struct.pack(
        f"{order}HHIIHH", code, channels, rate, rate * width, channels * width, 8 * width
    ) + extra  # fmt: skip


def test_rarer_wav_files(tmp_path):
    path = tmp_path / "a.wav"
    numbers = np.array([0, 1, -1, 2**23 - 1, -(2**23)], "<i4")
    three = numbers.view("u1").reshape(-1, 4)[:, :3].tobytes()
    samples = {
        "24 bits, after other chunks": riff(
            [(b"JUNK", b"xyz"), (b"fmt ", form(width=3)), (b"LIST", b""), (b"data", three)]
        ),
        "extensible": riff(
            [
                (b"fmt ", form(0xFFFE, width=3, extra=b"\x16\0" + b"\0" * 6 + b"\1\0" + b"\0" * 14)),
                (b"data", three),
            ]
        ),
        "big endian": riff(
            [(b"fmt ", form(width=4, order=">")), (b"data", (numbers << 8).astype(">i4").tobytes())],
            b"RIFX",
        ),
        "RF64": riff(
            [(b"ds64", b"\0" * 28), (b"fmt ", form(width=3)), (b"data", three)],
            b"RF64", {b"data": 0xFFFFFFFF},
        ),
        "written to a pipe": riff(
            [(b"fmt ", form(width=3)), (b"data", three)], sizes={b"data": 0xFFFFFFFF}
        ),
    }  # fmt: skip
    for name, content in samples.items():
        path.write_bytes(content)
        header = wav.read_header(str(path))
        read = wav.read_samples(str(path), header)
        np.testing.assert_allclose(read[:5], numbers / 2**23, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is an empty file; delete it."),
        (b"ID3 it is an MP3 file, in truth", "is no WAV file, whatever it is called"),
        (riff([(b"fmt ", form())]), "is corrupt: it breaks off before its samples"),
        (riff([(b"data", b"abcd")]), "is corrupt: it does not say its format"),
        (
            riff([(b"fmt ", form()), (b"data", b"abcd")], sizes={b"data": 10}),
            "is corrupt: it breaks off 6 bytes before its end",
        ),
        (riff([(b"fmt ", form()), (b"data", b"")]), "has no samples; delete it."),
        (
            riff(
                [(b"fmt ", form(1, 2, width=1)[:-4] + b"\3\0\x08\0"), (b"data", b"abc")]
            ),
            "has samples of format 1 in 0 bytes each",
        ),
        (
            riff([(b"fmt ", form(7, width=1)), (b"data", b"abcd")]),
            "has samples of format 7 in 1 bytes each, 800 a second; convert it to PCM",
        ),
        (
            riff([(b"fmt ", form(3, width=4)), (b"data", struct.pack("<f", np.nan))]),
            "is corrupt: it has samples that are NaN or infinite",
        ),
    ],
)
def test_what_is_wrong_with_a_recording_is_said_with_its_name(words, content, sentence):
    (words / "no" / "3.wav").write_bytes(content)
    with pytest.raises(ValueError, match=f"the recording '.*/no/3.wav' {sentence}"):
        load(words)


def test_sound_too_large_for_memory_is_read_as_it_is_needed(words, monkeypatch):
    held = by_split(load(words, shuffle=False))
    monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 0)
    for split, (x, y) in by_split(load(words, shuffle=False)).items():
        assert (x == held[split][0]).all()
        assert (y == held[split][1]).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seconds": 1.0}, "seconds=1.0 is not for a folder of images, which"),
        ({"label": "x"}, "label='x' is not for a folder of images"),
    ],
)
def test_options_of_other_kinds_are_refused(animals, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        load(animals, **options)
    assert load(animals, label="label").classes == 2  # the default, said


def test_every_file_is_in_one_split_with_the_label_of_its_folder(animals):
    folder = read_folder(str(animals))
    splits = folders.draw_splits(folder, 0.1)
    paths = [path for files in splits.values() for path in files.paths]
    assert sorted(paths) == sorted(map(str, animals.rglob("*.png")))
    for files in splits.values():
        for path, label in zip(files.paths, files.labels, strict=True):
            assert pathlib.Path(path).parent.name == folder.class_names[label]
