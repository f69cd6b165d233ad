import functools
import os
import time
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_distill import datasets, models
from keras_distill.datasets import tfds as tfds_source
from keras_distill.tuning import data as search_data
from keras_distill.tuning.data import SearchData

PREPARED = os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "mnist", "3.0.1")
needs_mnist = pytest.mark.skipif(
    not os.path.isdir(PREPARED),
    reason="TFDS_DATA_DIR does not lead to a prepared mnist:3.0.1",
)


def test_digits_splits_are_disjoint_whole_and_the_same_for_every_seed():
    one, other = datasets.load("digits"), datasets.load("digits", seed=5)
    rows = []
    for split in ("train", "validation", "test"):
        x, y = datasets.to_arrays(getattr(one, split))
        assert len(x) == one.sizes[split]
        assert set(y) == set(range(10))
        rows.append(
            {(image.tobytes(), label) for image, label in zip(x, y, strict=True)}
        )
        x_other, _ = datasets.to_arrays(getattr(other, split))
        assert {i.tobytes() for i in x} == {i.tobytes() for i in x_other}
    train, validation, test = rows
    for one_split, other_split in (
        (train, test),
        (train, validation),
        (validation, test),
    ):
        assert not one_split & other_split
    assert sum(one.sizes.values()) == 1797
    assert one.version.startswith("scikit-learn 1.")
    x, _ = datasets.to_arrays(one.train)
    assert (x.dtype, x.min(), x.max()) == (np.float32, 0.0, 1.0)


def test_a_dataset_shows_what_it_is():
    shown = (
        "Data('digits': 10 classes of (8, 8, 1); 1,131 train, 126 validation, 540 test)"
    )
    assert repr(datasets.load("digits")) == shown


def test_train_is_shuffled_anew_and_test_is_not():
    data = datasets.load("digits", batch_size=2000)
    first, second = (datasets.to_arrays(data.train)[1] for _ in range(2))
    assert (first != second).any()
    first, second = (datasets.to_arrays(data.test)[1] for _ in range(2))
    assert (first == second).all()


@needs_mnist
def test_mnist_by_name():
    data = datasets.load("mnist", batch_size=500, validation_fraction=0.1)
    assert data.sizes == {"train": 54_000, "validation": 6_000, "test": 10_000}
    assert data.version == "3.0.1"
    assert data.input_shape == (28, 28, 1)
    assert data.class_names == [str(i) for i in range(10)]
    x, _ = next(iter(data.test))
    assert x.shape == (500, 28, 28, 1)
    assert float(np.max(x)) == 1.0
    train, validation = (
        {image.tobytes() for image in datasets.to_arrays(split)[0]}
        for split in (data.train.take(20), data.validation)
    )
    assert not train & validation


@pytest.mark.slow
@needs_mnist
def test_images_are_resized_and_left_unnormalised_on_request():
    data = datasets.load("mnist", batch_size=8, image_size=(14, 14), normalize=False)
    x, _ = next(iter(data.test))
    assert x.shape == (8, 14, 14, 1)
    assert float(np.max(x)) > 100


class Doubles(tfds.core.GeneratorBasedBuilder):
    """Twenty examples of 80 numbers in float64: 12 800 bytes, and 160 of labels."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "x": tfds.features.Tensor(shape=(80,), dtype=np.float64),
            "y": tfds.features.ClassLabel(num_classes=2),
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(
            builder=self, features=features, supervised_keys=("x", "y")
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(20):
            yield i, {"x": np.full(80, i, "float64"), "y": i % 2}


class Tones(tfds.core.GeneratorBasedBuilder):
    """Twenty recordings of 16 bits, of 100 to 119 samples; the last fifth is test."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "sound": tfds.features.Audio(sample_rate=1000),
            "y": tfds.features.ClassLabel(num_classes=2),
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(
            builder=self, features=features, supervised_keys=("sound", "y")
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(20):
            yield i, {"sound": np.full(100 + i, 2**14, "int64"), "y": i % 2}


def test_recordings_of_tfds_come_as_those_of_a_folder(tmp_path):
    Tones(data_dir=tmp_path).download_and_prepare()
    load = functools.partial(
        datasets.load, "tones", data_dir=tmp_path, batch_size=None, verbose=False
    )
    data = load(shuffle=False)
    (length,) = data.input_shape
    x = np.stack([x for x, _ in data.train])
    assert data.sample_rate == 1000
    assert x.dtype == np.float32
    # As long as the longest to train on; half of the largest number of 16 bits, then zeros.
    assert length == max((one > 0).sum() for one in x)
    assert set(np.unique(x)) == {0.0, 0.5}
    assert {len(x) for x, _ in data.test} == {length}
    assert load(seconds=0.05).input_shape == (50,)
    half = load(sample_rate=500)
    assert half.input_shape == (-(-length // 2),)
    assert half.sample_rate == 500
    x, _ = next(iter(half.train))
    assert np.median(x) == pytest.approx(0.5, abs=0.01)
    assert max(float(np.max(x)) for x, _ in load(normalize=False).test) == 2**14
    with pytest.raises(ValueError, match="no images of 8 bits"):
        load(image_size=(8, 8))


def test_seconds_are_for_recordings(tmp_path):
    Doubles(data_dir=tmp_path).download_and_prepare()
    with pytest.raises(ValueError, match="no recordings"):
        datasets.load("doubles", data_dir=tmp_path, seconds=1.0)


@pytest.mark.parametrize(("limit", "is_read_once"), [(12_960, True), (12_959, False)])
def test_what_is_held_in_memory_is_limited_in_bytes(
    tmp_path, monkeypatch, limit, is_read_once
):
    builder = Doubles(data_dir=tmp_path)
    builder.download_and_prepare()
    read = []
    to_arrays = datasets.to_arrays
    monkeypatch.setattr(
        tfds_source, "to_arrays", lambda d, s: read.append(1) or to_arrays(d, s)
    )
    monkeypatch.setattr(tfds_source, "IN_MEMORY_BYTES", limit)
    data = datasets.load("doubles", data_dir=tmp_path, verbose=False)
    assert bool(read) == is_read_once
    assert sum(len(y) for _, y in data.train) == data.sizes["train"] == 14


@pytest.mark.parametrize(
    ("dtype", "size"), [("uint8", 1), ("float32", 4), ("float64", 8)]
)
def test_what_fits_is_counted_in_bytes(dtype, size):
    x, y = np.zeros((10, 6, 5), dtype), np.zeros(10, "int64")
    train = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    data = datasets.load("digits").replace(train=train, sizes={"train": 10})
    assert datasets.fits_in_memory(data, 10 * (30 * size + 8))
    assert not datasets.fits_in_memory(data, 10 * (30 * size + 8) - 1)
    words = tf.data.Dataset.from_tensor_slices((np.array(["a"] * 10), y)).batch(4)
    assert not datasets.fits_in_memory(data.replace(train=words))


@pytest.mark.parametrize(
    ("limit", "is_held"), [(3 * 16 * 48, True), (3 * 16 * 47, False)]
)
def test_validation_data_of_a_search_is_counted_by_its_own_batches(
    monkeypatch, limit, is_held
):
    x, y = (
        np.zeros((40, 5), "float64"),
        np.zeros(40, "int64"),
    )  # 48 bytes, three batches
    data = SearchData(
        None, tf.data.Dataset.from_tensor_slices((x, y)).batch(16), "", None
    )
    monkeypatch.setattr(SearchData, "_input_shapes", [(None, 5)])
    monkeypatch.setattr(search_data, "_IN_MEMORY_BYTES", limit)
    held = not isinstance(data.validating["validation_data"], tf.data.Dataset)
    assert held == is_held


def test_single_examples_and_sparse_ones_are_counted():
    data = datasets.load("digits", batch_size=None)
    size = data.sizes["train"] * (64 * 4 + 8)
    assert datasets.fits_in_memory(data, size)
    assert not datasets.fits_in_memory(data, size - 1)
    sparse = tf.data.Dataset.from_tensor_slices(tf.sparse.eye(4)).batch(2)
    assert not datasets.fits_in_memory(data.replace(train=sparse))
    # What would be read are the indices and shapes of each batch.
    with pytest.raises(ValueError, match="sparse or ragged tensors, which are no arr"):
        datasets.to_arrays(sparse)


def test_numbers_of_any_kind_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data = datasets.load(
        "digits",
        data_dir="~/data",
        batch_size=np.int64(7),
        validation_fraction=np.float32(0.25),
        seed=np.int32(3),
        shuffle=np.bool_(True),
    )
    assert data.train.element_spec[0].shape[0] is None
    assert len(next(iter(data.train))[1]) == 7
    assert data.sizes["validation"] == 315  # a quarter of 1257
    data = data.replace(class_names=np.array(list("0123456789")), sizes={"train": 1})
    assert data.class_names == list("0123456789")
    builder = Doubles(data_dir=tmp_path / "data")
    builder.download_and_prepare()
    found = datasets.load("doubles", data_dir="~/data", verbose=False)
    assert found.sizes == {"train": 14, "validation": 2, "test": 4}


def test_models_take_numbers_of_any_kind_and_images_of_any_size():
    rates = {"dropout": np.float32(0.5), "name": "n"}
    mlp = models.mlp(np.array([2, 3]), np.int64(4), (np.int32(5),), **rates)
    assert mlp.count_params() == (6 + 1) * 5 + (5 + 1) * 4
    cnn = models.cnn([None, None, 1], np.int64(4), [np.int8(2)], dense=np.int64(3))
    assert cnn(np.zeros((1, 9, 5, 1))).shape == (1, 4)
    assert models.cnn((4, 4, 1), 2, (2, 2)).layers[-1].kernel.dtype == "float32"


def test_unreachable_source_is_said_at_once(tmp_path, monkeypatch):
    def no_network(request, timeout):
        raise urllib.request.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    start = time.monotonic()
    with pytest.raises(
        ConnectionError, match="no route to host.*copy that folder here"
    ):
        datasets.load("mnist", data_dir=tmp_path)
    assert time.monotonic() - start < 15


@pytest.mark.slow
def test_silent_source_is_given_up_in_under_15_seconds(tmp_path, monkeypatch):
    def hangs(request, timeout):
        time.sleep(12)
        raise TimeoutError("too late to be heard")

    monkeypatch.setattr(urllib.request, "urlopen", hangs)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="no answer within 10 s"):
        datasets.load("mnist", data_dir=tmp_path)
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "no_such_dataset"},
            "there is no dataset 'no_such_dataset', and nothing",
        ),
        ({"name": "coco"}, "names no input and label"),
        ({"name": "digits", "validation_fraction": 0.0}, "must be between 0 and 1"),
        (
            {"name": "digits", "batch_size": 0},
            "batch_size must be a whole number >= 1, got 0",
        ),
        (
            {"name": "digits", "normalize": False},
            "image_size and normalize are for TFDS",
        ),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        datasets.load(**arguments, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        ({"train": 1000, "test": 5}, ("train[:900]", "train[900:1000]", "test")),
        ({"train": 10, "validation": 5}, ("train[:9]", "train[9:10]", "validation")),
        ({"train": 1000}, ("train[:720]", "train[720:800]", "train[800:]")),
    ],
)
def test_validation_comes_out_of_train(available, expected):
    splits = tfds_source._split_names(available, 0.1)
    assert tuple(splits.values()) == expected
