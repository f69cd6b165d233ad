"""Every kind of data through every function that takes data: equal to the same as arrays."""

import functools

import keras
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import tensorflow as tf

import keras_distill as kd
from keras_distill import reading
from keras_distill.specialists.sampling import ClusterSampler, TrainingData
from keras_distill.tuning.data import SearchData

N, CLASSES = 24, 4
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
# Halves and few zeros: the same number in every dtype.
X = RNG.integers(-4, 5, (N, 3)).astype("float32") / 2
Y = np.arange(N) % CLASSES
W = RNG.integers(1, 4, N).astype("float32")
WORDS = np.array(["good film", "bad plot", "dull", "very good plot"])[Y]
BOOLS = X > 0


@functools.cache
def model(family, width):
    """Returns a classifier of one of the families of inputs."""
    keras.utils.set_random_seed(width)
    if family == "two":
        inputs = [keras.Input((2,), name="a"), keras.Input((1,), name="b")]
        h = keras.layers.Concatenate()(inputs)
    elif family == "text":
        inputs = keras.Input((1,), dtype="string")
        words = ["good", "bad", "film", "plot", "dull"]
        h = keras.layers.TextVectorization(vocabulary=words, output_sequence_length=3)(
            inputs
        )
        h = keras.layers.Flatten()(keras.layers.Embedding(8, 2)(h))
    else:
        inputs = h = keras.Input((1 if family == "column" else 3,))
    h = keras.layers.Dense(width, activation="tanh")(h)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(h))


def new(family):
    return keras.models.clone_model(model(family, 4))


class Batches(keras.utils.PyDataset):
    def __init__(self, *parts, **kwargs):
        super().__init__(**kwargs)
        self.parts = parts

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return tuple(part[8 * i : 8 * i + 8] for part in self.parts)


def dataset(*parts):
    return tf.data.Dataset.from_tensor_slices(parts)


def loader(*parts):
    torch = pytest.importorskip("torch")
    tensors = torch.utils.data.TensorDataset(*map(torch.tensor, parts))
    return torch.utils.data.DataLoader(tensors, batch_size=8)


def frame():
    """Returns a table of a float, an int and a bool column, with labels of an index of its own."""
    table = {
        "f": X[:, 0].astype("float64"),
        "i": (X[:, 1] * 2).astype(int),
        "b": BOOLS[:, 2],
    }
    index = np.random.default_rng(1).permutation(N) + 1000
    return pd.DataFrame(table, index=index), pd.Series(Y, index=index)


TABLE = np.stack([X[:, 0], X[:, 1] * 2, BOOLS[:, 2]], -1).astype("float32")

# What is given, the same as plain arrays, and the family of its inputs.
KINDS = {
    "float64": (lambda: (X.astype("float64"), Y), (X, Y), "one"),
    "float16": (lambda: (X.astype("float16"), Y), (X, Y), "one"),
    "int": (lambda: ((2 * X).astype("int64"), Y), (2 * X, Y), "one"),
    "bool": (lambda: (BOOLS, Y), (BOOLS.astype("float32"), Y), "one"),
    "weights": (lambda: (X, Y, pd.Series(W)), (X, Y, W), "one"),
    "pandas": (frame, (TABLE, Y), "one"),
    "scipy": (lambda: (scipy.sparse.csr_matrix(X), Y), (X, Y), "one"),
    "tensors": (lambda: (tf.constant(X), tf.constant(Y)), (X, Y), "one"),
    "sparse": (lambda: (tf.sparse.from_dense(X), Y), (X, Y), "one"),
    "list": (lambda: ([X[:, :2], X[:, 2:]], Y), ([X[:, :2], X[:, 2:]], Y), "two"),
    "tuple": (lambda: ((X[:, :2], X[:, 2:]), Y), ([X[:, :2], X[:, 2:]], Y), "two"),
    "dict": (
        lambda: ({"b": X[:, 2], "a": X[:, :2], "0": W}, Y),
        ([X[:, :2], X[:, 2:]], Y),
        "two",
    ),
    "objects": (lambda: (WORDS.astype(object), Y), (tf.constant(WORDS[:, None]), Y), "text"),
    "strings": (lambda: (WORDS, Y), (tf.constant(WORDS[:, None]), Y), "text"),
    "columns": (lambda: (X[:, 0], Y), (X[:, :1], Y), "column"),
    "batches": (lambda: dataset(X, Y).batch(8), (X, Y), "one"),
    "batches of columns": (lambda: dataset(X[:, 0], Y).batch(8), (X[:, :1], Y), "column"),
    "batches of text": (lambda: dataset(WORDS, Y).batch(8), (tf.constant(WORDS[:, None]), Y), "text"),
    "batches of sparse": (
        lambda: dataset(tf.sparse.from_dense(X), Y).batch(8), (X, Y), "one"
    ),
    "weighed batches": (lambda: dataset(X, Y, W).batch(8), (X, Y, W), "one"),
    "examples": (lambda: dataset(X, Y), (X, Y), "one"),
    "PyDataset": (lambda: Batches(X, Y), (X, Y), "one"),
    "PyDataset of pandas": (
        lambda: Batches(*(part.to_numpy("float32") for part in frame())), (TABLE, Y), "one"
    ),
    "DataLoader": (lambda: loader(X, Y), (X, Y), "one"),
    "float labels": (lambda: (X, Y.astype("float32")), (X, Y), "one"),
    "labels (n, 1)": (lambda: (X, Y[:, None]), (X, Y), "one"),
}  # fmt: skip


def as_arguments(data):
    names = ("x", "y", "sample_weight")
    return dict(zip(names, data if isinstance(data, tuple) else (data,), strict=False))


def fit(data, family, folder):
    student = new(family)
    student.set_weights(model(family, 4).get_weights())
    distiller = kd.Distiller(student, model(family, 8), alpha=0.5)
    distiller.compile(keras.optimizers.SGD(0.1), LOSS)
    distiller.fit(**as_arguments(data), batch_size=8, shuffle=False, verbose=0)
    x = data if not isinstance(data, tuple) else data[0]
    loss = distiller.evaluate(**as_arguments(data), verbose=0)
    answers = distiller.predict(x, verbose=0)
    return [*student.get_weights(), loss, answers]


def compare(data, family, folder):
    found = kd.compare(
        {"m": model(family, 4)}, data, teacher=model(family, 8), timing=False
    )
    judged = kd.evaluate(model(family, 4), data, timing=False)
    return [
        found["m"].nll,
        found["m"].accuracy,
        found["m"].teacher_agreement,
        judged.nll,
    ]


def write_and_join(data, family, folder):
    targets = kd.SoftTargets.write(
        folder, model(family, 8), data, dtype="float32", verbose=False
    )
    assert len(targets) == N
    logits = np.concatenate([block.numpy() for block in targets.logits()])
    joined = targets.join(data)
    if tf.nest.flatten(joined.element_spec)[0].shape.rank == len(
        targets.manifest["inputs"][0][0]
    ):
        joined = joined.batch(8)
    pairs = [(x.soft_targets.numpy(), np.ravel(y)) for x, y, *_ in joined]
    soft, labels = map(np.concatenate, zip(*pairs, strict=True))
    answers = np.concatenate(
        [np.asarray(model(family, 8)(x.inputs)) for x, *_ in joined]
    )
    return [logits, soft, labels, answers]


def covariance(data, family, folder):
    return [kd.class_covariance(model(family, 4), data, verbose=False)]


def search_data(data, family, folder):
    """What each trial of a search is given."""
    kd.SoftTargets.write(folder, model(family, 8), data, dtype="float32", verbose=False)
    made = SearchData(data, data, str(folder), None)
    made.check_labelled()
    student = model(family, 4)
    first = made.first_training_batch(8)[0].inputs
    validating = made.validating["validation_data"]
    if isinstance(validating, tuple):
        validating = tf.data.Dataset.from_tensors(validating)
    answers = [(student(x), y) for x, y, *_ in validating]
    training = made.training(8, 0)
    steps = training["x"]
    if not isinstance(steps, tf.data.Dataset):
        steps = [(steps, training["y"])]
    seen = np.concatenate([np.asarray(student(x.inputs)) for x, *_ in steps])
    return [
        student(first)[:8],
        *(
            np.concatenate([np.asarray(part) for part in parts]).ravel()
            for parts in zip(*answers, strict=True)
        ),
        np.sort(seen, 0),
    ]


def specialists(data, family, folder):
    """What specialists are trained on, in no order."""
    shapes = kd.as_teacher(model(family, 4)).input_shapes
    source = TrainingData(data, CLASSES, shapes)
    sampler = ClusterSampler(source, [1, 2], True, 12, 0)
    seen = [
        np.asarray(model(family, 4)(x))[y < 2]
        for x, y, *_ in sampler.dataset().take(8 * sampler.steps_per_epoch)
    ]
    return [source.counts, np.unique(np.concatenate(seen).round(3), axis=0)]


def as_bytes(data):
    parts = [np.asarray(part) for part in keras.tree.flatten(data)]
    return tuple((part.dtype.str, part.shape, part.tobytes()) for part in parts)


#: What arrays give, by entrance and arrays: many kinds are the same numbers.
EXPECTED = {}


ENTRANCES = [fit, compare, write_and_join, covariance, search_data, specialists]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entrance", ENTRANCES, ids=lambda one: one.__name__)
def test_a_kind_of_data_is_as_good_as_arrays(entrance, kind, tmp_path):
    make, arrays, family = KINDS[kind]
    if kind == "examples" and entrance in (fit, compare):
        data, sentence = make(), "single examples|rank|shape"
        with pytest.raises(ValueError, match=sentence):
            entrance(data, family, tmp_path / "given")
        return
    if kind == "strings" and entrance is fit:
        with pytest.raises(ValueError, match="Keras does not read; give tf.const"):
            entrance(make(), family, tmp_path / "given")
        return
    found = entrance(make(), family, tmp_path / "given")
    key = (entrance, family, as_bytes(arrays))
    if key not in EXPECTED:
        EXPECTED[key] = entrance(arrays, family, tmp_path / "arrays")
    expected = EXPECTED[key]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["pandas"]
    + [
        pytest.param(kind, marks=pytest.mark.slow)
        for kind in ("list", "objects", "scipy", "PyDataset")
    ],
)
def test_a_whole_search_and_all_specialists(kind, tmp_path):
    make, _, family = KINDS[kind]
    found = kd.search(
        lambda hp: new(family), make(), make(), teacher=model(family, 8),
        max_trials=3, epochs=1, batch_size=12, verbose=False, directory=tmp_path,
    )  # fmt: skip
    x = make()[0] if kind != "PyDataset" else X
    assert found.student.predict(x, verbose=0).shape == (N, CLASSES)
    builder = kd.SpecialistBuilder(model(family, 8), [[0, 1], [2, 3]])
    ensemble = builder.fit(make(), hard_epochs=1, soft_epochs=1, verbose=False)
    assert len(ensemble.specialists) == 2


def generator():
    while True:
        yield X, Y


@pytest.mark.parametrize(
    ("data", "error", "sentence"),
    [
        (generator(), TypeError, "generator, which can be read only once; give arrays"),
        (tf.ragged.constant([[1.0], [1.0, 2.0]]), ValueError, "ragged: .* Pad them"),
        (np.array([1, None], object), ValueError, "dtype object that does not hold str"),
        (np.array(["2020-01-01"], "M8[s]"), ValueError, "give dates and times as numbers"),
        ((X, None, W), ValueError, "sample weights but no labels"),
        ((X, X, Y, W), TypeError, "several inputs are a list"),
        ((X, Y[1:]), ValueError, r"different lengths: \[23, 24\]"),
        ({"x": [[1.0]]}, TypeError, "must be .* a torch DataLoader"),
        (lambda: X, TypeError, "must return a tf.data.Dataset, got ndarray"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_a_sentence(data, error, sentence, tmp_path):
    with pytest.raises(error, match=sentence):
        kd.SoftTargets.write(tmp_path / "x", model("one", 4), data, verbose=False)
    with pytest.raises(error, match=sentence):
        kd.class_covariance(model("one", 4), data, verbose=False)
    with pytest.raises((TypeError, ValueError), match=f"{sentence}|no labels"):
        kd.evaluate(model("one", 4), data, timing=False)
    assert not (tmp_path / "x").exists()


def test_batches_or_examples_of_a_column():
    def told(*shapes, y=None, of=((None, 1),)):
        x = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
        element = tuple(x) if len(x) > 1 else x[0]
        element = (element, tf.TensorSpec(y, tf.int64)) if y is not None else (element,)
        return reading.are_batches(element, list(of))

    assert told((None, 1))
    assert told((None,))
    assert told((32,))
    assert not told((1,))
    assert not told((None,), y=())
    assert not told(())
    assert told((None,), (None, 8), of=((None, 1), (None, 8)))
    assert not told((), (8,), of=((None, 1), (None, 8)))
    assert not told((3,), of=((None, 3),))
    assert told((None,), of=((None,),))
    assert told((None, 1), of=((None,),))
    with pytest.raises(ValueError, match=r"have \[3\] axes; batches would have \[2\]"):
        told((None, 5, 5), of=((None, 3),))


@pytest.mark.slow
def test_batches_of_lengths_of_their_own_are_refused_with_what_to_do(tmp_path):
    lengths = [3, 3, 5, 5]
    inputs = keras.Input((None,), dtype="int64")
    h = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(9, 4)(inputs))
    reader = keras.Model(inputs, keras.layers.Dense(CLASSES)(h))
    examples = tf.data.Dataset.range(4).map(
        lambda i: (tf.ones([tf.constant(lengths, tf.int64)[i]], tf.int64), i % 2)
    )
    examples = examples.map(lambda x, y: (tf.ensure_shape(x, [None]), y))
    padded = examples.padded_batch(2)
    sentence = r"differ in shape, from \[3\] to \[5\].*padded_shapes="
    for data in (padded, examples):
        for call in (
            lambda data: kd.SoftTargets.write(
                tmp_path / "x", reader, data, verbose=False
            ),
            lambda data: kd.class_covariance(reader, data, verbose=False),
            lambda data: kd.SpecialistBuilder(reader, [[0, 1], [2, 3]]).fit(
                data, verbose=False
            ),
        ):
            with pytest.raises(ValueError, match=sentence):
                call(data)
    assert not (tmp_path / "x").exists()
    # What takes batches as they are takes these; so does whatever is padded to one length.
    assert kd.evaluate(reader, padded, timing=False).examples == 4
    whole = examples.padded_batch(2, padded_shapes=([5], []))
    written = kd.SoftTargets.write(tmp_path / "x", reader, whole, verbose=False)
    assert len(written) == 4


@pytest.mark.parametrize("entrance", ["evaluate", "predict", "train_on_batch"])
def test_numpy_strings_are_refused_in_words(entrance):
    distiller = kd.Distiller(new("text"), model("text", 8))
    distiller.compile("sgd", LOSS)
    given = (WORDS,) if entrance == "predict" else (WORDS, Y)
    with pytest.raises(ValueError, match="which Keras does not read; give tf.constant"):
        getattr(distiller, entrance)(*given)


def test_a_list_of_other_inputs_than_the_model_takes_is_refused(tmp_path):
    # Of such a list Keras gives a Sequential model the first array, and no labels.
    student = keras.Sequential([keras.Input((3,)), keras.layers.Dense(CLASSES)])
    teacher = keras.models.clone_model(student)
    distiller = kd.Distiller(student, teacher)
    distiller.compile("sgd", LOSS)
    batches = [(X[:8], Y[:8]), (X[8:16], Y[8:16])]
    twice = ([X, -X], Y)
    for call, count in (
        (lambda: distiller.fit(batches, verbose=0), "a list of 4"),
        (lambda: distiller.fit((X, Y), verbose=0), "a tuple of 2"),
        (
            lambda: distiller.fit(dataset((X, -X), Y).batch(8), verbose=0),
            "a tuple of 2",
        ),
        (lambda: distiller.evaluate(*twice, verbose=0), "a list of 2"),
        (lambda: distiller.predict([X, -X], verbose=0), "a list of 2"),
        (lambda: distiller.train_on_batch(*twice), "a list of 2"),
        (lambda: kd.evaluate(student, twice, timing=False), "a tuple of 2"),
        (lambda: kd.class_covariance(teacher, twice, verbose=False), "a tuple of 2"),
        (lambda: kd.SoftTargets.write(tmp_path / "x", teacher, twice), "a tuple of 2"),
    ):
        with pytest.raises(ValueError, match=r"takes 1 input\(s\), and .*" + count):
            call()
    assert distiller.optimizer.iterations == 0


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (lambda: pd.DataFrame(2 * X).astype("Int64"), "Int64"),
        (lambda: pd.DataFrame(X).astype(object), "object"),
        (lambda: pd.DataFrame(X).assign(a="text"), "float32, str|float32, object"),
        (lambda: X.astype(np.longdouble), np.dtype(np.longdouble).name),
        (lambda: np.zeros(N, [("a", "f4")]), "'a', '<f4'"),
    ],
)
def test_a_dtype_that_keras_does_not_read_is_named(given, dtype, tmp_path):
    distiller = kd.Distiller(new("one"), model("one", 8))
    distiller.compile("sgd", LOSS)
    for call in (
        lambda x: distiller.fit(x, Y, verbose=0),
        lambda x: distiller.evaluate(x, Y, verbose=0),
        lambda x: distiller.predict(x, verbose=0),
        lambda x: distiller.train_on_batch(x, Y),
        lambda x: kd.evaluate(model("one", 4), (x, Y), timing=False),
        lambda x: kd.SoftTargets.write(tmp_path / "x", model("one", 4), (x, Y)),
    ):
        with pytest.raises(ValueError, match=rf"of dtype .*({dtype}).*; give numbers"):
            call(given())


def test_labels_and_weights_of_a_dtype_that_keras_does_not_read():
    distiller = kd.Distiller(new("one"), model("one", 8))
    distiller.compile("sgd", LOSS)
    whole = pd.Series(Y).astype("Int64")
    for call in (distiller.fit, distiller.evaluate, distiller.train_on_batch):
        with pytest.raises(
            ValueError, match="the labels of dtype Int64 cannot be read"
        ):
            call(X, whole)
        with pytest.raises(
            ValueError, match="the sample weights of dtype Int64 cannot"
        ):
            call(X, Y, sample_weight=whole)
    for call in (distiller.fit, distiller.evaluate, distiller.predict):
        with pytest.raises(ValueError, match="no data; (give|pass) arrays"):
            call(None)


def test_variables_are_read_as_the_arrays_that_they_hold():
    expected = kd.class_covariance(model("one", 4), X, verbose=False)
    for variable in (tf.Variable(X), keras.Variable(X)):
        found = kd.class_covariance(model("one", 4), variable, verbose=False)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_batches_whose_labels_are_none_have_no_labels():
    weights = []
    for data in (dataset(X).batch(8), dataset(X).batch(8).map(lambda x: (x, None))):
        student = new("one")
        student.set_weights(model("one", 4).get_weights())
        distiller = kd.Distiller(student, model("one", 8), alpha=0.0)
        distiller.compile(keras.optimizers.SGD(0.1))
        distiller.fit(data, verbose=0)
        weights.append(student.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_elements_of_four_parts_are_refused_and_no_part_is_dropped():
    four = dataset(X, Y, W, W).batch(8)
    with pytest.raises(ValueError, match="yields tuples of 4; it must yield x"):
        kd.evaluate(model("one", 4), four, timing=False)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (X[:, :2], r"^the Functional .* takes inputs of shape \(None, 3\)"),
        ([X, X], r"^the teacher .* takes 1 input\(s\)"),
    ],
)
def test_judges_say_what_is_wrong_without_the_way_through_a_graph(x, sentence):
    with pytest.raises(ValueError, match=sentence):
        kd.evaluate(model("one", 4), (x, Y), timing=False)
    with pytest.raises(ValueError, match=sentence):
        kd.class_covariance(model("one", 4), (x, Y), verbose=False)
