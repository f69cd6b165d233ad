"""Wrong uses of datasets."""

import functools
import pathlib
import tempfile

import tensorflow as tf

import keras_distill as kd
from tests.hostile import Row
from tests.hostile.things import data

NAN = float("nan")


def _load(**arguments):
    return lambda: kd.datasets.load(**{"name": "digits", "verbose": False, **arguments})


@functools.cache
def a_file():
    """Returns the path of a file."""
    path = pathlib.Path(tempfile.mkdtemp(), "data")
    path.touch()
    return path


DIGITS = "digits are 8x8 images in .0, 1.; image_size and normalize are for TFDS"
NAME = (
    'name must be "digits", the name of a TFDS dataset, a path, or module:function, got'
)
LOAD = [
    Row("datasets.load", _load(**{name: value}), sentence)
    for name, value, sentence in [
        ("name", None, f"{NAME} None"),
        ("name", 3, f"{NAME} 3"),
        ("name", "", f"{NAME} ''"),
        ("name", ["mnist"], NAME),
        (
            "name",
            "no_such_dataset",
            "there is no dataset 'no_such_dataset', and nothing",
        ),
        ("name", "a b", "no dataset can be made of the name 'a b': .*Names are as in"),
        ("name", "../mnist", "there is no file or folder '../mnist'; give a folder"),
        ("name", "no/such.CSV", "there is no file or folder 'no/such.CSV'"),
        ("name", pathlib.Path("mnist"), "there is no file or folder 'mnist'; give a"),
        (
            "name",
            "gs://bucket/pets",
            "read from local disks, not from 'gs://bucket/pets'",
        ),
        ("name", "no_module:f", "the data's module cannot be imported: .*'no_module'"),
        ("name", "json:nothing", "json has no function 'nothing' to load data"),
        (
            "name",
            "json:loads",
            "function json:loads, called without .* raised TypeError",
        ),
        ("name", "os:getcwd", "function os:getcwd returned one str; return a Data"),
        ("name", "mnist:9.9.9", "cannot be loaded at version 9.9.9.*Names are as in"),
        ("name", "mnist/nope", "BuilderConfig nope not found.*Names are as in"),
        ("name", "mnist/width=3", "unexpected keyword argument 'width'. Names are"),
        ("data_dir", "", "data_dir must be a path, got ''"),
        ("data_dir", " ", "data_dir must be a path, got ' '"),
        ("data_dir", "a\0b", "data_dir must be a path"),
        ("data_dir", "file://", "data_dir must be a path, got 'file://'"),
        ("data_dir", b"data", "data_dir must be a path, got b'data'"),
        ("data_dir", 3, "data_dir must be a path, got 3"),
        ("data_dir", True, "data_dir must be a path, got True"),
        ("batch_size", 0, "batch_size must be a whole number >= 1, got 0"),
        ("batch_size", -1, "batch_size must be a whole number >= 1, got -1"),
        ("batch_size", 128.0, "batch_size must be a whole number >= 1, got 128.0"),
        ("batch_size", True, "batch_size must be a whole number >= 1, got True"),
        ("batch_size", "128", "batch_size must be a whole number >= 1, got '128'"),
        ("batch_size", 10**12, r"batch_size must be a whole number >= 1 \(at most"),
        ("validation_fraction", 0.0, "validation_fraction must be between 0 and 1"),
        ("validation_fraction", 1, "validation_fraction must be between 0 and 1"),
        ("validation_fraction", NAN, "validation_fraction must be between 0 and 1"),
        ("validation_fraction", "0.1", "validation_fraction must be between 0 and 1"),
        ("validation_fraction", None, "validation_fraction must be between 0 and 1"),
        ("validation_fraction", 1e-9, "fewer than one of each class for training or"),
        ("validation_fraction", 0.999, "fewer than one of each class for training or"),
        ("image_size", (8, 8), DIGITS),
        ("normalize", False, DIGITS),
        ("label", "y", "label='y' is not for digits, which 'digits' is; leave it out"),
        ("label", 1.0, "label must be a whole number .*, got 1.0"),
        ("label", True, "label must be a whole number .*, got True"),
        ("color_mode", "hsv", 'color_mode must be "grayscale" or "rgb" or "rgba", got'),
        ("color_mode", "rgb", "color_mode='rgb' is not for digits"),
        ("seconds", 0, "seconds must be a number > 0 and <= 86400, got 0"),
        ("seconds", "1", "seconds must be a number > 0 and <= 86400, got '1'"),
        ("seconds", NAN, "seconds must be a number > 0 and <= 86400, got nan"),
        ("seconds", 1, "seconds=1.0 is not for digits"),
        ("sample_rate", 8000.0, "sample_rate must be a whole number from 1 to 1000000"),
        ("sample_rate", 8000, "sample_rate=8000 is not for digits"),
        ("normalize", 1, "normalize must be True or False, got 1"),
        ("shuffle", "no", "shuffle must be True or False, got 'no'"),
        ("shuffle", None, "shuffle must be True or False, got None"),
        ("seed", -1, "seed must be a whole number >= 0, got -1"),
        ("seed", 0.5, "seed must be a whole number >= 0, got 0.5"),
        ("verbose", 3, "verbose must be True or False, or as in Keras's fit, got 3"),
    ]
] + [
    Row("datasets.load", _load(name="mnist", image_size=wrong), sentence)
    for wrong, sentence in [
        (28, "image_size must be a list of 2 whole numbers, .height, width., got 28"),
        ((28,), "image_size must be a list of 2 whole numbers"),
        ((28, 28, 1), "image_size must be a list of 2 whole numbers"),
        ("28", "image_size must be a list of 2 whole numbers"),
        ((0, 28), r"image_size\[0\] must be a whole number from 1 to 65536, got 0"),
        ((28, 2.5), r"image_size\[1\] must be a whole number from 1 to 65536, got 2.5"),
        ((28, 10**6), r"image_size\[1\] must be a whole number from 1 to 65536"),
    ]
]


def digits(**changes):
    return lambda: _digits().replace(**changes)


@functools.cache
def _digits():
    return kd.datasets.load("digits", verbose=False)


def dataset():
    return tf.data.Dataset.from_tensor_slices(data())


NAMES = "class_names must be a list of str, got"
DATA = [
    Row("datasets.Data", digits(**{name: value}), sentence)
    for name, value, sentence in [
        ("class_names", dict.fromkeys("ab"), NAMES),
        ("class_names", {"a", "b"}, NAMES),
        ("class_names", frozenset("ab"), NAMES),
        ("class_names", "ab", f"{NAMES} 'ab'"),
        ("class_names", range(10), NAMES),
        ("class_names", 10, f"{NAMES} 10"),
        ("class_names", [b"a"], NAMES),
        ("class_names", None, f"{NAMES} None"),
        ("name", None, "name must be a str, got None"),
        ("train", data(), "train must be a tf.data.Dataset, got"),
        ("validation", None, "validation must be a tf.data.Dataset, got None"),
        ("test", "test", "test must be a tf.data.Dataset, got 'test'"),
        ("input_shape", 64, "input_shape must be a list of whole numbers, got 64"),
        ("input_shape", (8, None), r"input_shape\[1\] must be a whole number >= 1"),
        ("input_shape", {"a": ()}, "must name the inputs that train yields.*no dict"),
        ("input_shape", {}, "must name the inputs that train yields"),
        ("column_names", "ab", "column_names must be a list of str, got 'ab'"),
        ("sample_rate", 0, "sample_rate must be a whole number >= 1, got 0"),
        ("input_shape", (8, -1), r"input_shape\[1\] must be a whole number >= 1"),
        ("sizes", [1, 2, 3], "sizes must be a dict of the number of examples by split"),
        ("sizes", {"train": -1}, r"sizes\['train'\] must be a whole number from 0"),
        ("version", 3.0, "version must be a str, got 3.0"),
        ("sizes", {"train": 1.5}, r"sizes\['train'\] must be a whole number from 0"),
    ]
] + [
    Row(
        "datasets.Data.replace", digits(size=3), "Data has no size; it has name, train,"
    )
]
OTHERS = [
    *[
        Row("datasets.loader", lambda wrong=wrong: kd.datasets.loader(*wrong), sentence)
        for wrong, sentence in [
            ((None,), f"{NAME} None"),
            (("mnist", ""), "data_dir must be a path, got ''"),
            (("mnist", None, 28), "image_size must be a list of 2 whole numbers"),
            (("digits", None, (8, 8)), DIGITS),
        ]
    ],
    Row(
        "datasets.loader",
        lambda: kd.datasets.loader("mnist", a_file()),
        "data_dir '.*' is a file; give the directory",
    ),
    Row(
        "datasets.loader",
        lambda: kd.datasets.loader("digits")(0),
        "batch_size must be a whole number >= 1, got 0",
    ),
    Row(
        "datasets.fits_in_memory",
        lambda: kd.datasets.fits_in_memory(data()),
        "data must be what load returns, got",
    ),
    *[
        Row(
            "datasets.fits_in_memory",
            lambda wrong=wrong: kd.datasets.fits_in_memory(_digits(), wrong),
            "limit must be a number of bytes >= 0, got",
        )
        for wrong in (-1, NAN, "2 GB", None, True)
    ],
    *[
        Row(
            "datasets.to_arrays",
            lambda wrong=wrong: kd.datasets.to_arrays(wrong()),
            sentence,
        )
        for wrong, sentence in [
            (data, "dataset must be a tf.data.Dataset, got"),
            (lambda: None, "dataset must be a tf.data.Dataset, got None"),
            (lambda: _digits(), "dataset must be a tf.data.Dataset, got Data"),
            (lambda: dataset(), "the dataset is not in batches; give dataset.batch"),
            (lambda: dataset().batch(8).take(0), "the dataset is empty; check how"),
            (lambda: dataset().batch(8).repeat(), "the dataset is endless; give it"),
            (
                lambda: dataset().batch(8).map(lambda x, y: tf.sparse.from_dense(x)),
                "has sparse or ragged tensors, which are no arrays; map them",
            ),
            (
                lambda: tf.data.Dataset.range(1, 4).map(lambda n: tf.ones((2, n))),
                "the batches do not fit together: .*; pad all to one shape",
            ),
        ]
    ],
    *[
        Row(
            "datasets.bytes_of",
            lambda wrong=wrong: kd.datasets.bytes_of(wrong),
            "example must be specs, as dataset.element_spec, got",
        )
        for wrong in (data(), "digits", 3)
    ],
]
ROWS = [*LOAD, *DATA, *OTHERS]
