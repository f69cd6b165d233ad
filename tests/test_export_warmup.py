"""Requests that TensorFlow Serving sends itself, sent to a server of its protocol."""

import concurrent.futures
import os
import sys

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

import keras_distill as kd
from keras_distill.export import check, warmup
from tests.conftest import FEATURES, mlp
from tests.forking import answer_here


@pytest.fixture(autouse=True)
def _answers_here(monkeypatch):
    monkeypatch.setattr(check, "ask_fresh_process", answer_here)


class Server(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers by the newest version in the directory of each model, by its name."""

    def __init__(self, base):
        self.base, self.loaded = base, {}

    def Predict(self, request, context):  # noqa: N802
        versions = self.base / request.model_spec.name
        path = versions / max(os.listdir(versions), key=int)
        if path not in self.loaded:
            self.loaded[path] = tf.saved_model.load(str(path))
        serve = self.loaded[path].signatures[request.model_spec.signature_name]
        inputs = {n: tf.make_ndarray(proto) for n, proto in request.inputs.items()}
        try:
            answer = serve(**{n: tf.constant(value) for n, value in inputs.items()})
        except tf.errors.InvalidArgumentError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
        response = predict_pb2.PredictResponse()
        for name, value in answer.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
        return response


@pytest.fixture
def send(tmp_path):
    """A function that sends a request over the loopback, and returns arrays by name."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        Server(tmp_path), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def send(request):
            outputs = stub.Predict(request, timeout=30).outputs
            return {name: tf.make_ndarray(value) for name, value in outputs.items()}

        yield send
    server.stop(None).wait()


def requests(path):
    file = os.path.join(path, "assets.extra", "tf_serving_warmup_requests")
    for record in tf.data.TFRecordDataset(file).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        yield log.predict_log.request


def export(model, folder, **given):
    return kd.export_savedmodel(model, folder / "digits", verbose=False, **given)


X = np.random.default_rng(0).normal(size=(5, FEATURES)).astype("float32")


@pytest.mark.parametrize("given", [X.tolist(), [X[:1], X], [{"keras_tensor": X}]])
def test_each_request_gets_the_models_answer_from_a_server(tmp_path, send, given):
    model = mlp()
    (name,) = (tensor.name for tensor in model.inputs)
    given = [
        {name: one["keras_tensor"]} if isinstance(one, dict) else one
        for one in (given if isinstance(given, list) else [given])
    ]
    given = given[0] if len(given) == 1 and not isinstance(given[0], list) else given
    path = export(model, tmp_path, warmup=given, output_kinds="softmax")
    sizes = []
    for request in requests(path):
        assert request.model_spec.name == "digits"
        assert request.model_spec.signature_name == "serving_default"
        assert not request.model_spec.HasField("version")  # the one that is loaded
        assert list(request.inputs) == [name]
        x = tf.make_ndarray(request.inputs[name])
        answer = send(request)
        np.testing.assert_array_equal(x, X[: len(x)])
        np.testing.assert_allclose(
            answer["logits"], model.predict(x, verbose=0), atol=1e-5
        )
        sizes.append(len(x))
    assert sizes == ([1, 5] if len(given) == 2 else [5])


def test_text_with_class_names(tmp_path, send):
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
    texts = [b"a good film", b"not UTF-8: \xff\x00", b""]
    path = export(
        model,
        tmp_path,
        preprocess=vectorize,
        input_signature=tf.TensorSpec([None], tf.string, name="text"),
        example=texts,
        warmup=texts,
        class_names=["good", "größer"],
    )
    (request,) = requests(path)
    assert tf.make_ndarray(request.inputs["text"]).tolist() == texts
    expected = model.predict(vectorize(texts), verbose=0)
    answer = send(request)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-6)
    names = np.array([b"good", "größer".encode()])
    np.testing.assert_array_equal(answer["label"], names[expected.argmax(-1)])


def test_several_inputs_and_outputs_of_several_dtypes(tmp_path, send):
    inputs = {
        "image": keras.Input((3,), name="image"),
        "word": keras.Input((2,), dtype="int32", name="word"),
    }
    word = keras.ops.cast(inputs["word"], "float32")
    both = keras.layers.Concatenate()([inputs["image"], word])
    model = keras.Model(
        inputs,
        {
            "a": keras.layers.Dense(3)(both),
            "b": keras.layers.Dense(1, activation="sigmoid")(both),
        },
    )
    batches = [
        {"image": np.ones((n, 3), "float32"), "word": np.full((n, 2), n, "int32")}
        for n in (1, 3)
    ]
    path = export(model, tmp_path, warmup=batches, output_kinds={"a": "values"})
    found = [*requests(path)]
    assert len(found) == 2
    for request, batch in zip(found, batches, strict=True):
        assert tf.make_ndarray(request.inputs["word"]).dtype == np.int32
        expected, answer = model.predict(batch, verbose=0), send(request)
        np.testing.assert_allclose(answer["a_values"], expected["a"], atol=1e-5)
        np.testing.assert_allclose(answer["b_probabilities"], expected["b"], atol=1e-5)


def test_inputs_in_a_list_and_bytes_of_images(tmp_path, send):
    image, x = keras.Input((4, 4, 3), name="image"), keras.Input((2,), name="x")
    flat = keras.layers.Flatten()(image)
    model = keras.Model(
        [image, x], keras.layers.Dense(2)(keras.ops.concatenate([flat, x], -1))
    )
    signature = [
        tf.TensorSpec([None, 4, 4, 3], name="image"),
        tf.TensorSpec([None, 2], name="x"),
    ]
    pixels = np.arange(48, dtype="uint8").reshape(1, 4, 4, 3)
    file, x = tf.io.encode_png(pixels[0]).numpy(), np.ones((1, 2), "float32")
    path = export(
        model,
        tmp_path,
        input_signature=signature,
        serving_bytes=True,
        warmup=[[[file], x], [[file], 2 * x]],
        output_kinds="values",
    )
    first, second = map(send, requests(path))
    for answer, factor in ((first, 1), (second, 2)):
        expected = model.predict([pixels.astype("float32"), factor * x], verbose=0)
        np.testing.assert_allclose(answer["values"], expected, atol=1e-4)
    # A corrupt image fails that request alone, and says which.
    (request, _) = requests(path)
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([b"nothing"]))
    with pytest.raises(grpc.RpcError, match=r"image_bytes\[0\] cannot be decoded"):
        send(request)
    (request, _) = requests(path)
    np.testing.assert_array_equal(send(request)["values"], first["values"])


def test_a_fixed_batch(tmp_path, send):
    spec = tf.TensorSpec([1, FEATURES], name="x")
    given = {"input_signature": spec, "output_kinds": "softmax"}
    path = export(mlp(), tmp_path, warmup=X[:1], **given)
    (request,) = requests(path)
    assert send(request)["logits"].shape == (1, 5)
    with pytest.raises(
        ValueError, match="warmup for input 'x' must be a batch of shape"
    ):
        export(mlp(), tmp_path, warmup=X, **given)


def test_no_more_than_tensorflow_serving_takes(tmp_path):
    model = mlp()
    with pytest.raises(ValueError, match="a list of 1 to 1000 batches.* list of 1001"):
        export(model, tmp_path, warmup=[X] * 1001, output_kinds="softmax")
    assert not (tmp_path / "digits").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "a list of 1 to 1000 batches, .* got a list of 0"),
        ([X, None], r"the batch warmup\[1\] is None; give"),
        ([X, X[:, :3]], r"warmup\[1\] for input '.*' must be a batch of shape"),
        ("text", "warmup for input '.*' must be a batch of float32"),
        ({"x": X}, "warmup has 'x', but the model takes"),
        (X[:0], "with one example at least"),
    ],
)
def test_wrong_batches(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        export(mlp(), tmp_path, warmup=given, output_kinds="softmax")
    assert not (tmp_path / "digits").exists()


def test_an_answer_that_is_not_finite(tmp_path):
    linear = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(3)])
    with pytest.raises(
        ValueError, match=r"logits for the batch warmup\[1\] are not all finite"
    ):
        export(linear, tmp_path, warmup=[X, X * np.inf], output_kinds="softmax")


def test_an_image_that_cannot_be_decoded(tmp_path):
    model = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Flatten()])
    good = tf.io.encode_png(np.zeros((2, 2, 3), "uint8")).numpy()
    with pytest.raises(
        ValueError, match=r"warmup\[1\] is not answered: image_bytes\[0\] cannot"
    ):
        export(
            model,
            tmp_path,
            warmup=[[good], [b"x"]],
            serving_bytes=True,
            output_kinds="values",
        )


def test_a_request_that_is_answered_otherwise_is_not_exported(tmp_path, monkeypatch):
    def lies(*asked):
        first, second = answer_here(*asked)
        second["logits"] = second["logits"] + 1e-3
        return [first, second]

    monkeypatch.setattr(check, "ask_fresh_process", lies)
    with pytest.raises(RuntimeError, match="gives other logits in a fresh process"):
        export(mlp(), tmp_path, warmup=X, output_kinds="softmax")
    assert not (tmp_path / "digits").exists()


def test_what_is_not_read_back_is_not_exported(tmp_path, monkeypatch):
    class Loses(tf.io.TFRecordWriter):
        def write(self, record):
            super().write(record[:-1] + b"\0")

    monkeypatch.setattr(tf.io, "TFRecordWriter", Loses)
    with pytest.raises(OSError, match="are not read back as they were written"):
        export(mlp(), tmp_path, warmup=X, output_kinds="softmax")
    assert not (tmp_path / "digits").exists()


def test_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(ImportError, match=r"pip install keras-distill\[serving\]"):
        export(mlp(), tmp_path, warmup=X)
    assert not (tmp_path / "digits").exists()


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("/a/b/", "b"),
        ("gs://bucket/b", "b"),
        ("gs://bucket", "bucket"),
        ("ram://m/n/", "n"),
        (".", os.path.basename(os.getcwd())),
        ("m/..", os.path.basename(os.getcwd())),
    ],
)
def test_the_model_is_called_as_its_directory(directory, name):
    assert warmup.model_name(directory) == name


@pytest.mark.parametrize("directory", ["/", "gs://"])
def test_a_directory_without_a_name(directory):
    with pytest.raises(ValueError, match="has no name, by which warm-up requests"):
        warmup.model_name(directory)
