"""Requests that TensorFlow Serving sends itself before a version takes any other."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill.export import check
from keras_distill.export.images import reason
from keras_distill.export.inputs import Inputs
from keras_distill.export.serving import Serving

#: Where TensorFlow Serving looks for them, in a version.
FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
#: More of them, and TensorFlow Serving refuses the version.
MOST = 1000
_SIGNATURE = "serving_default"


def protos() -> tuple[Any, Any]:
    """Returns the modules of tensorflow-serving-api's protos, of a request and of a log.

    Raises:
        ImportError: naming the extra.
    """
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError as error:
        raise ImportError(
            "warm-up requests need tensorflow-serving-api; install it by "
            "pip install keras-distill[serving]."
        ) from error
    return predict_pb2, prediction_log_pb2


def model_name(directory: str) -> str:
    """Returns the name that requests give the model: of the directory it is exported to.

    Raises:
        ValueError: if that has none, as "/".
    """
    path = directory if "://" in directory else os.path.abspath(directory)
    name = path.partition("://")[2] if "://" in path else path
    name = os.path.basename(name.rstrip("/"))
    if not name:
        raise ValueError(
            f"directory {directory!r} has no name, by which warm-up requests call the "
            "model; export to a directory in it."
        )
    return name


def batches_of(warmup: Any, inputs: Inputs) -> list[dict[str, tf.Tensor]]:
    """Returns the batches of `warmup=`, tensors by the name of the input.

    What fits the inputs as one batch is one; else each entry of a list is one.

    Raises:
        ValueError: if it is neither, or holds none, or more than `MOST`.
    """
    try:
        return [check.example_batch(inputs.specs, inputs.by_name(warmup), "warmup")]
    except ValueError as error:
        if not isinstance(warmup, (list, tuple)):
            raise
        if not 1 <= len(warmup) <= MOST:
            raise ValueError(
                f"warmup must be a batch, or a list of 1 to {MOST} batches, which is what "
                f"TensorFlow Serving takes; got a list of {len(warmup)}."
            ) from error
    batches = []
    for number, one in enumerate(warmup):
        what = f"batch warmup[{number}]"
        if one is None:
            raise ValueError(f"the {what} is None; give a batch of each input.")
        batches.append(check.example_batch(inputs.specs, inputs.by_name(one), what))
    return batches


def asked(serving: Serving, warmup: Any) -> list[Serving]:
    """Returns what is served with each batch of `warmup=` as the one that it is asked.

    Raises:
        ValueError: if a batch does not fit, or is not answered.
    """
    found = []
    for number, batch in enumerate(batches_of(warmup, serving.inputs)):
        name = f"warmup[{number}]"
        try:
            found.append(serving.asked(batch, f"batch {name}"))
        except tf.errors.OpError as error:
            raise ValueError(f"{name} is not answered: {reason(error)}.") from error
    return found


def write(path: str, batches: list[dict[str, Any]], name: str) -> None:
    """Writes requests into a version, and reads them back.

    Args:
        path: of the version.
        batches: tensors by the name of the input, each.
        name: of the model.

    Raises:
        OSError: if they are not read back as they were given.
    """
    predict, log = protos()
    requests = []
    for batch in batches:
        request = predict.PredictRequest()
        request.model_spec.name = name
        request.model_spec.signature_name = _SIGNATURE
        for key, value in batch.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(np.asarray(value)))
        requests.append(request)
    file = os.path.join(path, FILE)
    tf.io.gfile.makedirs(os.path.dirname(file))
    with tf.io.TFRecordWriter(file) as writer:
        for request in requests:
            one = log.PredictionLog(predict_log=log.PredictLog(request=request))
            writer.write(one.SerializeToString())
    if not _is_as_given(file, batches, requests):
        raise OSError(
            f"the warm-up requests in {file!r} are not read back as they were written; try "
            "another disk."
        )


def read(path: str) -> list[dict[str, np.ndarray]]:
    """Returns the batches of a version's requests for its signature, by input name.

    Raises:
        ImportError: without tensorflow-serving-api.
        OSError: if the file of requests is damaged.
    """
    file = os.path.join(path, FILE)
    if not tf.io.gfile.exists(file):
        return []
    _, log = protos()
    try:
        records = list(tf.data.TFRecordDataset(file).as_numpy_iterator())
        logs = [log.PredictionLog.FromString(record) for record in records]
    except Exception as error:  # of TensorFlow, or of protobuf
        raise OSError(
            f"the warm-up requests in {file!r} are damaged, and would keep TensorFlow "
            "Serving from loading the version; export it anew."
        ) from error
    requests = [one.predict_log.request for one in logs]
    return [
        {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        for request in requests
        if request.inputs and request.model_spec.signature_name in ("", _SIGNATURE)
    ]


def _is_as_given(file: str, batches: list[dict[str, Any]], requests: list[Any]) -> bool:
    _, log = protos()
    try:
        records = list(tf.data.TFRecordDataset(file).as_numpy_iterator())
    except tf.errors.DataLossError:
        return False
    if len(records) != len(batches):
        return False
    for record, batch, request in zip(records, batches, requests, strict=True):
        found = log.PredictionLog.FromString(record).predict_log.request
        if found != request or set(found.inputs) != set(batch):
            return False
        for key, value in batch.items():
            given, read = np.asarray(value), tf.make_ndarray(found.inputs[key])
            if read.dtype != given.dtype or read.tolist() != given.tolist():
                return False
    return True
