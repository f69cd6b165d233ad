"""OpenVINO reads our SavedModels as they are, with the answers that TensorFlow gives."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.export import check
from tests.forking import answer_here

openvino = pytest.importorskip("openvino")

X = np.random.default_rng(0).normal(size=(7, 4)).astype("float32")


@pytest.fixture(autouse=True)
def _answers_here(monkeypatch):
    monkeypatch.setattr(check, "ask_fresh_process", answer_here)


def check_same_answers(folder, model, batch, extension=None, **given):
    """Exports a model, and compares what OpenVINO and TensorFlow say of a batch."""
    path = kd.export_savedmodel(model, folder, verbose=False, **given)
    serve = tf.saved_model.load(path).signatures["serving_default"]
    expected = serve(**{name: tf.constant(value) for name, value in batch.items()})
    core = openvino.Core()
    if extension is not None:
        core.add_extension(extension)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path), "CPU", exact)
    assert {one.get_any_name() for one in compiled.inputs} == set(batch)
    found = compiled(batch)
    assert {one.get_any_name() for one in compiled.outputs} == set(expected)
    for name, value in expected.items():
        if value.dtype == tf.float32:
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)
        else:
            is_text = value.dtype == tf.string
            value = (
                np.char.decode(value.numpy().astype("S"), "utf-8") if is_text else value
            )
            np.testing.assert_array_equal(found[name], value)
    return expected


def dense(classes, activation=None):
    return keras.Sequential(
        [
            keras.Input((4,), name="x"),
            keras.layers.Dense(5, activation="gelu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(classes, activation=activation),
        ]
    )


@pytest.mark.parametrize(
    ("classes", "activation", "given"),
    [
        (3, "softmax", {}),
        (3, "softmax", {"class_names": ["ant", "größer", ""]}),
        (1, "sigmoid", {"class_names": ["ham", "spam"], "threshold": 0.4}),
        (3, "sigmoid", {"class_names": list("abc"), "threshold": [0.3, 0.5, 0.7]}),
        (2, None, {"output_kinds": "values"}),
    ],
)
def test_outputs_of_each_kind(tmp_path, classes, activation, given):
    answer = check_same_answers(tmp_path, dense(classes, activation), {"x": X}, **given)
    if "label" in answer:
        assert len({tuple(np.ravel(one)) for one in answer["label"].numpy()}) > 1


def test_images_masks_and_several_inputs_and_outputs(tmp_path):
    image, x = keras.Input((6, 5, 3), name="image"), keras.Input((4,), name="x")
    mask = keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")(image)
    mean = keras.layers.GlobalAveragePooling2D()(mask)
    kind = keras.layers.Dense(3, activation="softmax")(
        keras.layers.Concatenate()([mean, x])
    )
    batch = {"image": np.random.default_rng(0).random((7, 6, 5, 3), "float32"), "x": X}
    check_same_answers(
        tmp_path, keras.Model([image, x], {"mask": mask, "kind": kind}), batch
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("n", "routed", "batch"), [(1, True, None), (1, True, 1), (None, False, None)]
)
def test_an_ensemble_of_specialists(tmp_path, n, routed, batch):
    generalist, *rest = (
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(n)]) for n in (6, 4, 4)
    )
    ensemble = kd.SpecialistEnsemble(
        generalist, rest, [[0, 1, 2], [3, 4, 5]], n=n, routed=routed
    )
    check_same_answers(
        tmp_path,
        ensemble,
        {"x": X[:batch]},
        input_signature=tf.TensorSpec([batch, 4], tf.float32, "x"),
        class_names=list("abcdef"),
    )


def test_text(tmp_path):
    """OpenVINO has operations on text in a package of its own."""
    tokenizers = pytest.importorskip("openvino_tokenizers")
    vectorize = keras.layers.TextVectorization(output_sequence_length=4)
    vectorize.adapt(["a good film", "a bad film"])
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int64"),
            keras.layers.Embedding(20, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    texts = np.array(["A good film!", "", "bad bad bad", "größer"])
    check_same_answers(
        tmp_path,
        model,
        {"text": texts},
        tokenizers._ext_path,
        preprocess=vectorize,
        input_signature=tf.TensorSpec([None], tf.string, name="text"),
        example=texts,
        class_names=["bad", "good"],
    )
