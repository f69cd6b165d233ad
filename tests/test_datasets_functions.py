"""Data that a user's function returns."""

import sys
import types

import cloudpickle
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import datasets
from keras_distill.datasets.functions import is_function

X = np.arange(60, dtype="float64").reshape(20, 3)
Y = np.arange(20) % 4


@pytest.fixture
def returning(monkeypatch):
    """Returns a function that makes a module whose `load` returns what it is given."""

    def make(value):
        module = types.ModuleType("someones_data")
        module.load = value if callable(value) else lambda: value
        monkeypatch.setitem(sys.modules, "someones_data", module)
        return "someones_data:load"

    return make


def load(name, **options):
    return datasets.load(name, verbose=False, **options)


def dataset(x=X, y=Y):
    return tf.data.Dataset.from_tensor_slices((x, y))


def rows(data):
    splits = (data.train, data.validation, data.test)
    return [
        {(tuple(a), int(b)) for a, b in zip(*datasets.to_arrays(s), strict=True)}
        for s in splits
    ]


ALL = {(tuple(a), int(b)) for a, b in zip(X, Y, strict=True)}


@pytest.mark.parametrize(
    "value",
    [
        lambda: (X, Y),
        lambda: [X.tolist(), Y.tolist()],
        lambda: (X, Y[:, None].astype("float32")),
        lambda: (dataset(), None, None),
        lambda: dataset(),
        lambda: (dataset().batch(7), None, None),
        lambda: ((X, Y), None, None),
    ],
)
def test_what_is_missing_is_drawn_from_train(returning, value):
    data = load(returning(value), batch_size=6)
    assert data.sizes == {"train": 14, "validation": 2, "test": 4}
    assert (data.input_shape, data.class_names) == ((3,), ["0", "1", "2", "3"])
    x, y = next(iter(data.train))
    assert (x.dtype, y.dtype, x.shape, y.shape) == (tf.float32, tf.int64, (6, 3), (6,))
    assert int(data.train.cardinality()) == 3
    train, validation, test = rows(data)
    assert train | validation | test == ALL
    assert len(train) + len(validation) + len(test) == 20
    assert {label for _, label in test} == {0, 1, 2, 3}
    assert rows(load("someones_data:load", seed=4)) == rows(data)
    assert datasets.fits_in_memory(data, 14 * 20)
    single = load("someones_data:load", batch_size=None)
    assert single.train.element_spec[1].shape == ()


@pytest.mark.parametrize(
    "value",
    [
        ((X[:10], Y[:10]), (X[10:], Y[10:])),  # as keras.datasets gives them
        (dataset(X[:10], Y[:10]).batch(3), None, dataset(X[10:], Y[10:])),
    ],
)
def test_splits_that_are_given_are_kept(returning, value):
    data = load(returning(value))
    assert data.sizes == {"train": 9, "validation": 1, "test": 10}
    assert rows(data)[2] == {
        (tuple(a), int(b)) for a, b in zip(X[10:], Y[10:], strict=True)
    }


def test_a_shuffled_dataset_is_taken_where_nothing_is_drawn_from_it(returning):
    value = (dataset().shuffle(20), dataset(X[:4], Y[:4]), dataset(X[:4], Y[:4]))
    assert load(returning(value)).sizes == {"train": 20, "validation": 4, "test": 4}
    fixed = dataset().shuffle(20, seed=1, reshuffle_each_iteration=False)
    assert load(returning(fixed)).sizes["train"] == 14


def test_a_data_keeps_what_it_says(returning):
    whole = load("digits", batch_size=50, shuffle=False)
    whole = whole.replace(class_names=list("abcdefghij"), version="of Monday")
    data = load(returning(whole), batch_size=None, shuffle=False)
    assert (data.name, data.version) == ("someones_data:load", "of Monday")
    assert data.class_names == list("abcdefghij")
    assert int(data.train.cardinality()) == data.sizes["train"] == 1131
    x, y = datasets.to_arrays(data.test.batch(1000))
    expected, labels = datasets.to_arrays(whole.test)
    assert (x == expected).all()
    assert (y == labels).all()


def test_inputs_by_name_text_and_numbers_of_tokens(returning):
    x = {
        "text": np.array([f"t{i}" for i in range(20)]),
        "tokens": np.ones((20, 5), int),
    }
    data = load(returning((x, Y)))
    assert data.input_shape == {"text": (), "tokens": (5,)}
    spec = data.train.element_spec[0]
    assert (spec["text"].dtype, spec["tokens"].dtype) == (tf.string, tf.int64)
    words = load(returning(([f"t{i}" for i in range(20)], Y)))
    assert words.input_shape == ()
    bytes_of_images = np.full((20, 4, 4, 1), 255, "uint8")
    images = load(returning((bytes_of_images, Y)))
    assert (
        float(next(iter(images.test))[0].numpy().max()) == 255.0
    )  # as it returned them


def test_in_the_working_folder_and_in_another_process(tmp_path, monkeypatch):
    (tmp_path / "my_own_data.py").write_text(
        "import sys\nimport numpy as np\n"
        "def load():\n    return np.ones((20, 2)), np.arange(20) % 2\n"
        "def needs(x):\n    return x\n"
        "def stop():\n    sys.exit()\n"
        "def ill():\n    raise OSError('no disk.\\nAgain.')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    fetch = cloudpickle.loads(cloudpickle.dumps(datasets.loader("my_own_data:load")))
    assert fetch(None).sizes == {"train": 14, "validation": 2, "test": 4}
    with pytest.raises(ValueError, match="needs, called without .*TypeError"):
        load("my_own_data:needs")
    with pytest.raises(ValueError, match="ill, .* raised OSError: no disk. Again.$"):
        load("my_own_data:ill")
    with pytest.raises(ValueError, match="stop, .* raised SystemExit: without a word"):
        load("my_own_data:stop")
    with pytest.raises(ValueError, match="my_own_data has no function 'none'"):
        load("my_own_data:none")
    sys.modules.pop("my_own_data")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"class_names": ["a"]}, r"has the class names \['a'\]; give two at least"),
        (
            {"class_names": [*"abc", " "]},
            "has the class ' ', a label that says nothing",
        ),
        (
            {"input_shape": (4,)},
            r"input_shape \(4,\), and .* float64 \(3,\); say their",
        ),
        ({"test": dataset(x=X[:, :2])}, "the test inputs of .* prepare both alike"),
        ({"sizes": {"train": 20}}, "has the sizes .*; say those of train, validation"),
    ],
)
def test_a_data_that_contradicts_itself_is_refused(returning, changes, sentence):
    given = {
        "name": "mine",
        **dict.fromkeys(("train", "validation", "test"), dataset()),
        "class_names": [*"abcd"],
        "input_shape": (3,),
        "sizes": dict.fromkeys(("train", "validation", "test"), 20),
    }
    assert load(returning(datasets.Data(**given))).classes == 4
    with pytest.raises(ValueError, match=sentence):
        load(returning(datasets.Data(**given | changes)))


def broken_off():
    yield X[0], Y[0]
    raise OSError("cable cut")


def test_a_class_that_is_only_tested_is_warned_of(returning):
    with pytest.warns(
        UserWarning, match="the test labels of .* have the class 4, which"
    ):
        load(returning(((X, Y), (X, Y + 1))))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (X, "returned one ndarray; return a Data, arrays"),
        (
            (X, Y, Y),
            r"returned a tuple of 3 .ndarray, ndarray, ndarray.; return a Data",
        ),
        ((dataset(), dataset()), "returned a tuple of 2 .*or None"),
        ((None, None, dataset()), "returned a tuple of 3"),
        (None, "returned None; return a Data"),
        ((X, Y[:5]), "the train arrays of .* have 5 and 20 examples; give x and y as"),
        ((X[:0], Y[:0]), "have 0 examples; give x and y as many, and one at least"),
        ((X, np.eye(4)[Y]), r"train labels of .* of shape \(20, 4\).*of one-hot"),
        (
            (X, np.where(Y, np.inf, 0)),
            "train labels of .* are float64 .*give the index",
        ),
        ((X, Y + 0.5), "train labels of .* are float64 .*give the index of a class"),
        ((X, Y - 1), "train labels of .*give the index of a class each, >= 0"),
        ((X, Y.astype(str)), "train labels of .*give the index of a class"),
        ((X, Y * 0), "the training data of .* has 1 class; give two at least"),
        (
            (np.array([X, None] * 10, object), Y),
            "the train arrays of .* make no tensors",
        ),
        ((iter(X), Y), "train data of .* has one \\w+ where arrays belong"),
        ((X, None), "the train data of .* has None where arrays belong"),
        (([[1.0], [2.0, 3.0]] * 10, Y), "make no array .*pad all examples to one size"),
        ((X.astype("complex64"), Y), "complex64, which no layer takes"),
        ((X, Y * 10**12), "go up to 3,000,000,000,000, .*number the classes from 0"),
        (
            ((X, Y), (X[:, :2], Y)),
            r"test inputs of .* float32 \(2,\) and those of train",
        ),
        (
            (({"a": X}, Y), ({"b": X}, Y)),
            "test inputs of .* {'b': .*prepare both alike",
        ),
        (
            tf.data.Dataset.from_generator(
                broken_off,
                output_signature=(tf.TensorSpec((3,)), tf.TensorSpec((), "int64")),
            ),
            "the train dataset of .* cannot be read: OSError: cable cut.$",
        ),
        (
            dataset(y=np.eye(4)[Y]).batch(3),
            "the train labels of .*of one-hot labels, arg",
        ),
        (dataset().repeat(), "the train dataset of .* is endless; return it before"),
        (dataset().map(lambda x, y: x), "train dataset of .* yields .*map it to pairs"),
        (dataset().shuffle(20), "comes in another order each time.*before shuffle"),
        (dataset().take(0), "the train dataset of .* is empty; check how it is made"),
        (
            tf.data.Dataset.from_generator(
                lambda: zip(X, Y, strict=True),
                output_signature=(tf.TensorSpec((None,)), tf.TensorSpec((), "int64")),
            ),
            "an example of .* is TensorSpec.*whose size is not fixed; pad, crop",
        ),
    ],
)
def test_what_a_function_may_not_return(returning, value, sentence):
    with pytest.raises(ValueError, match=sentence) as found:
        load(returning(lambda: value))
    assert str(found.value).endswith(".") or "argmax)" in str(found.value)


def test_options_of_other_kinds_are_refused(returning):
    with pytest.raises(ValueError, match="is not for a function's data, which"):
        load(returning((X, Y)), image_size=(2, 2))


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("a:b", True), ("a.b_2:c", True), ("mnist:3.0.1", False), ("mnist:1.*.*", False),
        ("huggingface:glue", False), ("mnist", False), ("a/b:c", False), (":f", False),
        ("données:charge", True),
    ],
)  # fmt: skip
def test_names_of_functions(name, is_one):
    assert is_function(name) == is_one
