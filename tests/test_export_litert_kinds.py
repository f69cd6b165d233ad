"""What is in a .tflite file of each kind of model, and what quantizing costs."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill.export import check, litert
from keras_distill.export.answers import Answer
from keras_distill.export.int8 import changes
from keras_distill.export.portable import portable
from keras_distill.export.runtimes import litert as runtime
from tests.forking import answer_here
from tests.litert_models import (
    FILES,
    IMAGES,
    NAMES,
    RNG,
    TOKENS,
    Reader,
    convert_here,
    convolutions,
    depthwise,
    ensemble,
    export,
    half_precision,
    masked_lstm,
    nested_gru,
    numbers,
    of,
    scaled,
    spec,
    transformer,
    two_inputs_three_outputs,
    unet,
    words,
)

# The kind of most models here is not said, and of no matter.
pytestmark = pytest.mark.filterwarnings("ignore:nothing says whether:UserWarning")


@pytest.fixture(autouse=True)
def _here(request, monkeypatch):
    """Converts and answers in the test's process, where a fresh one is not the point."""
    if request.node.get_closest_marker("fresh_process") is None:
        monkeypatch.setattr(check, "ask_fresh_process", answer_here)
        monkeypatch.setattr(litert, "_in_a_child", convert_here)


# Of each: the model, its raw inputs, what else the export is told, and whether int8 can.
KINDS = {
    "mlp": (lambda: of(layers.Dense(8, "relu"), layers.Dense(3), shape=(4,)), numbers(40, 4), {}, True),
    "convolutions": (convolutions, IMAGES, {"class_names": NAMES}, True),
    "depthwise": (depthwise, IMAGES, {}, True),
    "mask": (unet, numbers(40, 8, 8, 2), {"class_names": ["no", "yes"], "threshold": 0.4}, True),
    "tags": (
        lambda: of(layers.Dense(5, "sigmoid"), shape=(4,)),
        numbers(40, 4),
        {"class_names": NAMES, "threshold": [0.4, 0.5, 0.5, 0.5, 0.6]},
        True,
    ),
    "transformer": (transformer, TOKENS, {}, True),
    "masked lstm": (masked_lstm, TOKENS[:, 1:], {}, True),
    "nested gru": (nested_gru, numbers(40, 5, 4), {}, True),
    "convolutional lstm": (
        lambda: of(layers.ConvLSTM2D(2, 3), layers.Flatten(), layers.Dense(3), shape=(3, 6, 6, 2)),
        numbers(40, 3, 6, 6, 2),
        {},
        True,
    ),
    "subclassed": (Reader, numbers(40, 5, 4), {**spec(None, 5, 4), "from_logits": True}, True),
    "two inputs, three outputs": (
        two_inputs_three_outputs,
        {"a": numbers(40, 3), "b": numbers(40, 2)},
        {"output_kinds": {"size": "values"}, "class_names": {"kind": ["one", "two", "three"]}},
        True,
    ),
    "raw images": (
        convolutions,
        RNG.integers(256, size=(40, 20, 16, 3)).astype("uint8"),
        {"preprocess": scaled, **spec(None, 20, 16, 3, dtype=tf.uint8)},
        True,
    ),
    "fixed batch": (convolutions, IMAGES, spec(1, 12, 12, 3), True),
    "fixed batch of loops": (
        nested_gru, numbers(40, 5, 4), spec(2, 5, 4), True
    ),
    "mixed precision": (half_precision, IMAGES, {}, True),
    "ensemble": (ensemble, numbers(40, 8), spec(None, 8), False),
    "words": (words, np.array([["ant"], ["who"]] * 20, object), {}, False),
}  # fmt: skip
DEFAULT = {
    ("mlp", "dynamic"), ("convolutions", None), ("mask", "float16"), ("tags", None),
    ("transformer", None), ("masked lstm", None), ("subclassed", "int8"),
    ("two inputs, three outputs", None), ("raw images", "int8"), ("mixed precision", None),
    ("ensemble", None),
}  # fmt: skip


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("kind", "quantize"),
    [
        pytest.param(
            kind, how, marks=[] if (kind, how) in DEFAULT else [pytest.mark.slow]
        )
        for kind in KINDS
        for how in (None, "float16", "dynamic", "int8")
        if how != "int8" or KINDS[kind][3]
    ],
)
def test_a_file_answers_as_the_saved_model_does(tmp_path, kind, quantize):
    make, x, given, _ = KINDS[kind]
    named = x if isinstance(x, dict) else {"x": x}
    if kind == "ensemble":
        named = {"x": x}
    model = make()
    few = {name: array[:4] for name, array in named.items()}
    size = given["input_signature"].shape[0] if "input_signature" in given else None
    example = {
        name: array[:size] if size else array[:4] for name, array in named.items()
    }
    more = {"calibration": x} if quantize == "int8" else {}
    path = export(model, tmp_path, quantize=quantize, example=example, **more, **given)
    assert sorted(os.listdir(tmp_path)) == FILES
    given = {**given, "example": example, "verbose": False}
    saved = kd.export_savedmodel(model, tmp_path / "saved", **given)
    serve = tf.saved_model.load(saved).signatures["serving_default"]
    ask = runtime.Model(path)
    for count in [size] if size else [1, 3]:
        batch = {name: array[:count] for name, array in few.items()}
        expected = serve(**{n: tf.constant(value) for n, value in batch.items()})
        answer = ask(batch)
        assert set(answer) == set(expected)
        for name, value in expected.items():
            value = value.numpy()
            assert answer[name].dtype == value.dtype
            assert answer[name].shape == value.shape
            if name.endswith("label"):
                if quantize is None:  # others may turn where two classes are near
                    np.testing.assert_array_equal(answer[name], value)
                continue
            span = max(np.ptp(value), 1.0)
            limit = {None: 1e-4, "float16": 0.005, "dynamic": 0.05, "int8": 0.1}[
                quantize
            ]
            if kind == "mixed precision":  # what the model itself is off by
                limit = max(limit, 2e-3)
            np.testing.assert_allclose(
                answer[name], value, atol=limit * span, rtol=1e-4
            )


# Measured --------------------------------------------------------------------------------


def normed(layer):
    return keras.Sequential(
        [layer, layers.BatchNormalization(momentum=0.9), layers.ReLU(6.0)]
    )


def separable():
    """A student as phones have it: depthwise, with BatchNormalization and ReLU6."""
    stack = [normed(layers.Conv2D(32, 3, strides=2, use_bias=False))]
    for width, strides in ((64, 2), (128, 1), (256, 2)):
        stack += [
            normed(layers.DepthwiseConv2D(3, strides=strides, padding="same")),
            normed(layers.Conv2D(width, 1, use_bias=False)),
        ]
    stack += [layers.GlobalAveragePooling2D(), layers.Dense(10)]
    return of(*stack, shape=(28, 28, 1))


def pooled():
    stack = []
    for width in (32, 64):
        stack += [
            normed(layers.Conv2D(width, 3, padding="same")),
            layers.MaxPooling2D(),
        ]
    dense = layers.Dense(128, activation="relu")
    stack += [layers.Flatten(), dense, layers.Dense(10, activation="softmax")]
    return of(*stack, shape=(28, 28, 1))


@pytest.mark.slow
@pytest.mark.parametrize("make", [separable, pooled])
def test_what_quantizing_costs_on_digits(tmp_path, make):
    if not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "mnist")):
        pytest.skip("TFDS_DATA_DIR does not lead to a prepared mnist")
    data = kd.datasets.load("mnist")
    x, y = (
        np.concatenate(parts)
        for parts in zip(*data.train.as_numpy_iterator(), strict=True)
    )
    test, answers = (
        np.concatenate(parts)
        for parts in zip(*data.test.as_numpy_iterator(), strict=True)
    )
    model = make()
    from_logits = make is separable
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    model.compile(keras.optimizers.Adam(2e-3), loss)
    model.fit(x[:30000], y[:30000], batch_size=128, epochs=1, verbose=0)
    saved = kd.export_savedmodel(model, tmp_path / "saved", verbose=False)
    serve = tf.saved_model.load(saved).signatures["serving_default"]
    exact = {n: v.numpy() for n, v in serve(x=tf.constant(test)).items()}
    accuracy, size = {}, {}
    for how in (None, "float16", "dynamic", "int8"):
        more = {"calibration": x[:1000]} if how == "int8" else {}
        path = export(model, tmp_path, quantize=how, **more)
        size[how], ask = os.path.getsize(path), runtime.Model(path, threads=2)
        found = [ask({"x": test[i : i + 500]}) for i in range(0, len(test), 500)]
        labels = np.concatenate([one["label"] for one in found])
        logits = np.concatenate([one["logits"] for one in found])
        accuracy[how] = float(np.mean(labels == answers))
        error = np.abs(logits - exact["logits"]).max()
        print(how, size[how], accuracy[how], error, np.ptp(exact["logits"]))
        if how is None:
            assert error <= 1e-4
            nearest = np.sort(exact["logits"], -1)[:, -2:]
            assert np.all((labels == exact["label"]) | (np.ptp(nearest, -1) <= 1e-4))
        if how == "float16":
            assert error <= 0.005 * np.ptp(exact["logits"])
    assert accuracy[None] > 0.95
    assert accuracy["dynamic"] >= accuracy[None] - 0.001
    assert accuracy["int8"] >= accuracy[None] - 0.005
    if size[None] > 500_000:
        assert size["int8"] <= 0.35 * size[None]


def bert():
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=20,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=6,
    )
    return keras_hub.models.BertTextClassifier(
        backbone, num_classes=2, preprocessor=None
    )


APPLICATIONS = keras.applications
BIG = {
    "MobileNetV3Small": (
        lambda: APPLICATIONS.MobileNetV3Small((64, 64, 3), weights=None, classes=10),
        255 * RNG.uniform(size=(64, 64, 64, 3)).astype("float32"),
        1e-4,
    ),
    "EfficientNetB0": (
        lambda: APPLICATIONS.EfficientNetB0(weights=None, input_shape=(64, 64, 3), classes=10),
        255 * RNG.uniform(size=(64, 64, 64, 3)).astype("float32"),
        1e-4,
    ),
    "BertTextClassifier": (
        bert,
        {
            "token_ids": RNG.integers(20, size=(64, 6)).astype("int32"),
            "padding_mask": np.ones((64, 6), "int32"),
            "segment_ids": np.zeros((64, 6), "int32"),
        },
        1e-4,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", [None, "float16", "dynamic", "int8"])
@pytest.mark.parametrize("name", BIG)
def test_models_that_people_bring(tmp_path, name, how, recwarn):
    make, x, limit = BIG[name]
    model = make()
    more = {"calibration": x} if how == "int8" else {}
    example = keras.tree.map_structure(lambda array: array[:4], x)
    path = export(model, tmp_path, quantize=how, example=example, **more)
    if how is None:
        x = x if isinstance(x, dict) else {runtime_name(path): x}
        answer = runtime.Model(path)({name: array[:3] for name, array in x.items()})
        first = (
            {n: a[:3] for n, a in x.items()}
            if len(x) > 1
            else next(iter(x.values()))[:3]
        )
        outputs = model.predict(first, verbose=0)
        key = "probabilities" if name != "BertTextClassifier" else "logits"
        np.testing.assert_allclose(answer[key], outputs, atol=limit)
    said = [str(one.message) for one in recwarn if "hard-swish" in str(one.message)]
    assert bool(said) == (how == "int8" and name == "MobileNetV3Small")


def runtime_name(path):
    return next(iter(runtime.Model(path)._dtypes))


def test_of_many_unlikely_classes_int8_may_not_choose_any():
    """None of 100 classes is 0.05 likelier than another; a constant answer is still wrong."""
    logits = 0.3 * RNG.normal(size=(50, 100)).astype("float32")
    answer = Answer("softmax", None, None)
    exact = {n: v.numpy() for n, v in answer(logits, True).items()}
    assert np.ptp(exact["probabilities"], -1).max() < 0.05
    near = {n: v.numpy() for n, v in answer(logits + 0.02 * logits[::-1], True).items()}
    constant = {n: v[np.zeros(50, int)] for n, v in exact.items()}
    assert changes({None: answer}, exact, near) is None
    assert "answers of label" in str(changes({None: answer}, exact, constant))


@pytest.mark.parametrize("kind", ["Bidirectional", "GRU"])
def test_what_is_unrolled_masks_padding_as_its_loop_does(kind):
    """Keras forgets to turn the mask of what goes backwards."""
    back = {"return_sequences": True, "zero_output_for_mask": True}
    layer = layers.GRU(3, go_backwards=True, **back)
    if kind == "Bidirectional":
        layer = layers.Bidirectional(layers.GRU(3, return_sequences=True))
    model = of(layers.Masking(), layer, shape=(5, 4))
    x = numbers(3, 5, 4)
    x[0, 3:], x[1, :2] = 0.0, 0.0
    with portable([model], unrolls=True):
        unrolled = tf.function(model)(x)
    np.testing.assert_allclose(unrolled, model(x), atol=1e-6)
    assert not any("inner_loop" in vars(one) for one in model._flatten_layers())
