"""Wrong uses of soft targets."""

import atexit
import functools
import itertools
import os
import shutil
import tempfile

import numpy as np
import tensorflow as tf

import keras_distill as kd
from tests.hostile import Row
from tests.hostile.things import data, model, teacher

NAN, INF = float("nan"), float("inf")


@functools.cache
def _folder():
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _path(name):
    return os.path.join(_folder(), name)


def same(x, seed):
    return x + 0.0


@functools.cache
def store(views=1):
    """Returns a finished store, which no row may change."""
    kwargs = {"views": views, "augment": same} if views > 1 else {}
    path = _path(f"store-{views}")
    return kd.SoftTargets.write(path, teacher(), data(), verbose=False, **kwargs)


@functools.cache
def mean():
    """Returns the mean of two teachers at T = 3."""
    given = [teacher(), model(width=8)], data()
    return kd.SoftTargets.write(_path("mean"), *given, temperature=3.0, verbose=False)


def _write(**arguments):
    def call():
        given = {"path": _path("new"), "teacher": teacher(), "dataset": data()}
        kd.SoftTargets.write(**{**given, "verbose": False, **arguments})

    return call


def _written(sentence, **arguments):
    return Row("SoftTargets.write", _write(**arguments), sentence)


def _dataset(make=lambda d: d):
    return make(tf.data.Dataset.from_tensor_slices(data()))


def _generator():
    spec = tf.TensorSpec((5,), tf.float32)
    return tf.data.Dataset.from_generator(
        lambda: itertools.cycle(data()[0]), output_signature=spec
    )


def _with_nan():
    x = data()[0].copy()
    x[7, 0] = NAN
    return x


def _open(**arguments):
    return lambda: kd.SoftTargets.open(store().path, **arguments)


def _join(make, views=1, **arguments):
    return lambda: store(views).join(make(), **arguments)


def _distil(temperature, distillation_loss=None):
    def call():
        distiller = kd.Distiller(
            model(),
            temperature=temperature,
            alpha=0.0,
            distillation_loss=distillation_loss,
        )
        distiller.compile("sgd")
        distiller.fit(mean().join(data()[0]).batch(8), verbose=0)

    return call


_WHOLE = "must be a whole number >= 1"

ROWS = [
    *[
        _written(f"{name} {_WHOLE}", **{name: wrong})
        for name in ("batch_size", "shard_size", "top_k")
        for wrong in (0, -1, 1.5, "8", True, NAN)
    ],
    _written(f"batch_size {_WHOLE}", batch_size=None),
    _written("at most 2147483647", batch_size=10**12),
    *[
        _written("views must be a whole number from 1 to 1000", views=wrong)
        for wrong in (0, 1001, 2.0, None, True)
    ],
    *[
        _written("seed must be a whole number >= 0", seed=wrong)
        for wrong in (-1, 0.5, None, "0")
    ],
    *[
        _written("temperature must be a finite number > 0", temperature=wrong)
        for wrong in (0, -1.0, NAN, INF, "4", True, [4.0])
    ],
    _written("float32 can neither square nor divide", temperature=1e-30),
    _written("float32 can neither square nor divide", temperature=1e30),
    *[
        _written("dtype must be one of", dtype=wrong)
        for wrong in ("int8", "float64", None, np.float16, 16)
    ],
    *[
        _written("path must be a path, got", path=wrong)
        for wrong in ("", " ", None, 3, b"a", "a\0b", ["a"])
    ],
    *[
        _written("part must be", part=wrong)
        for wrong in ((3, 3), (-1, 2), (0, 0), (0,), (0.0, 2), 1, "01", (True, 2))
    ],
    _written("overwrite=True with part would erase", part=(0, 2), overwrite=True),
    *[
        _written("^output_kinds.* must be 'softmax', 'sigmoid'", output_kinds=wrong)
        for wrong in ("multilabel", 3, {"a": "binary"}, True)
    ],
    *[
        _written(f"{name} must be True or False", **{name: wrong})
        for name in ("overwrite", "batched", "verbose")
        for wrong in ("no", 3 if name == "verbose" else 1, [])
    ],
    _written("layers must be a list of str", layers="hidden"),
    _written("layers must be a list of str", layers=[3]),
    _written("the teacher has no layer 'nowhere'", layers=["nowhere"]),
    _written("views=2 without augment would be all the same", views=2),
    _written("augment must be a function of", augment="flip"),
    _written("augment must be a function of", views=2, augment=3),
    _written("top_k must be from 1 to the number of classes, 4", top_k=5),
    _written(
        "top_k cannot be cached for several", teacher=[teacher(), model()], top_k=2
    ),
    _written('teacher_average must be "probabilities"', teacher_average="mean"),
    _written("teacher is an empty list", teacher=[]),
    _written("teacher must be a keras.Model", teacher=None),
    _written("different numbers of classes", teacher=[teacher(), model(classes=3)]),
    _written("must be .x, y. arrays", dataset="data"),
    _written("must be .x, y. arrays", dataset=None),
    _written("must be .x, y. arrays", dataset=[]),
    _written("must return a tf.data.Dataset, got int", dataset=lambda: 3),
    _written("have different lengths", dataset=(data()[0], data()[1][:3])),
    _written("the dataset is empty", dataset=data()[0][:0]),
    _written("does not take batches of shape", dataset=data()[0][:, :2]),
    _written("inputs for example 7 .* have NaN", dataset=_with_nan()),
    _written("endless; give it before repeat", dataset=_dataset(lambda d: d.repeat())),
    _written("shuffled anew each time", dataset=_dataset(lambda d: d.shuffle(9))),
    _written("made of a Python generator, which may never end", dataset=_generator()),
    Row("SoftTargets.open", lambda: kd.SoftTargets.open(""), "path must be a path"),
    Row("SoftTargets.open", lambda: kd.SoftTargets.open(None), "path must be a path"),
    Row(
        "SoftTargets.open",
        lambda: kd.SoftTargets.open(_path("nowhere")),
        "holds no finished soft targets",
        FileNotFoundError,
    ),
    Row("SoftTargets.open", _open(clases=4), "'clases' is no key of the manifest"),
    Row(
        "SoftTargets.open", _open(classes=5), "are not as expected: classes is 4, not 5"
    ),
    Row("SoftTargets.open", _open(teacher=model(width=8)), "the teacher's .* differ"),
    Row("SoftTargets.open", _open(augment=same), "augment is None, not"),
    Row("SoftTargets.open", _open(augment=3), "augment must be a function"),
    *[
        Row(
            "SoftTargets.join",
            _join(data, epoch=wrong),
            "epoch must be a whole number >= 0",
        )
        for wrong in (-1, 0.5, "1", True)
    ],
    Row("SoftTargets.join", _join(data, batched="no"), "batched must be True or False"),
    Row("SoftTargets.join", _join(lambda: None), "must be .x, y. arrays"),
    Row("SoftTargets.join", _join(lambda: data()[0][:9]), "the data has 9 examples"),
    Row("SoftTargets.join", _join(lambda: data()[0][:, :2]), "do not go together"),
    Row(
        "SoftTargets.join", _join(lambda: data()[0].astype("int32")), "an input is int"
    ),
    Row(
        "SoftTargets.join",
        _join(lambda: _dataset(lambda d: d.repeat())),
        "endless",
    ),
    Row(
        "SoftTargets.join",
        _join(lambda: _dataset(lambda d: d.shuffle(9))),
        "shuffled anew",
    ),
    Row(
        "SoftTargets.join",
        lambda: kd.SoftTargets.open(store(2).path).join(data()),
        "are for views made by .*same; pass that function",
    ),
    *[
        Row(
            "SoftTargets.logits",
            lambda wrong=wrong: store().logits(wrong),
            "view must be",
        )
        for wrong in (-1, 1, 0.0, "0", None, True)
    ],
    *[
        Row(
            "Distiller.fit", _distil(*wrong), "probabilities at T = 3, which is no mean"
        )
        for wrong in (
            (4.0,),
            (3.0, kd.SoftTargetLoss(temperature=4.0)),
            (3.0, kd.SoftTargetLoss() + kd.SoftTargetLoss(temperature=4.0)),
        )
    ],
    Row(
        "class_covariance",
        lambda: kd.class_covariance(mean(), verbose=False),
        "which is no mean at temperature=1",
    ),
]
