"""Every private name of Keras, TensorFlow and joblib that we cannot do without, and why.

`tests/test_keras_compat.py` names the one that has moved in another version.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def loss_tracker(model: keras.Model) -> keras.metrics.Mean:
    """Returns the mean that Keras shows as "loss".

    Its own step updates it by this name; `metrics` has it only for a compiled model, among
    others that may be called so too.
    """
    return model._loss_tracker


def traced_quietly(function: Callable, **given: Any) -> Any:
    """Returns a `tf.function` whose traces TensorFlow does not warn of.

    It counts them by the code, and warns of the fifth model that is judged in a process: each
    is a function of its own, and is traced once.

    Args:
        function: to be traced.
        **given: as `tf.function` takes it.
    """
    traced = tf.function(function, **given)
    traced._omit_frequent_tracing_warning = True
    return traced


def forget_loss(model: keras.Model) -> None:
    """Takes an earlier loss off a model that is compiled without one.

    `compile(loss=None)` leaves that of an earlier `compile` in force.
    """
    model._compile_loss = model.loss = None


def build_loss_and_metrics(model: keras.Model, y: Any, y_pred: Any) -> None:
    """Makes the variables of a model's loss and metrics of labels.

    Keras makes them in the first trace of a step, which TensorFlow then traces once more.
    """
    labels = keras.tree.flatten(y)
    if not all(hasattr(one, "dtype") and hasattr(one, "shape") for one in labels):
        return  # there are none
    y = keras.tree.map_structure(
        lambda one: keras.KerasTensor(
            one.shape, keras.backend.standardize_dtype(one.dtype)
        ),
        y,
    )
    for part in (model._compile_loss, model._compile_metrics):
        if part is not None and not part.built:
            # Labels in another structure than the outputs: Keras reconciles them itself.
            with contextlib.suppress(KeyError, ValueError):
                part.build(y, y_pred)


def metrics_of_labels(model: keras.Model) -> list[keras.metrics.Metric]:
    """Returns what a model shows of labels alone: the metrics given to `compile`.

    In `metrics` they stand among others, and have no name of their own.
    """
    loss, metrics = model._compile_loss, model._compile_metrics
    return [
        *([] if loss is None else loss.metrics),
        *([] if metrics is None else [metrics]),
    ]


class TrainerFixes:
    """Mixin for a `keras.Model`: what Keras's TensorFlow trainer does not do by itself.

    Under a `tf.distribute` strategy Keras builds the model on a first batch, before any
    step; `first_batch_seen` is called with a replica's part of it. With several workers,
    `keras.Model.fit` of Keras 3.12 to 3.15 fails there, because it reduces a whole batch
    by one `Strategy.reduce`, which takes a single tensor; and after each step, because it
    averages scalar logs over an axis that they do not have.
    """

    def first_batch_seen(self, batch: Any) -> None:
        """Called with the batch that the model is built on."""

    def _maybe_symbolic_build(
        self, iterator: Any = None, data_batch: Any = None
    ) -> None:
        strategy = self.distribute_strategy  # type: ignore[attr-defined]
        if iterator is not None and _is_one(strategy):
            _, _, batches = next(iter(iterator))
            data_batch = keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0],
                next(batches, None),
            )
            iterator = None
            self.first_batch_seen(data_batch)
        super()._maybe_symbolic_build(  # type: ignore[misc]
            iterator=iterator, data_batch=data_batch
        )

    def step_logs(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Returns a step's logs in the shape that the trainer reduces."""
        strategy = self.distribute_strategy  # type: ignore[attr-defined]
        if not (
            isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
            # Of one worker it is a MirroredStrategy, and Keras treats it so.
            and strategy.extended._in_multi_worker_mode()
        ):
            return logs
        return {name: keras.ops.expand_dims(value, 0) for name, value in logs.items()}


def _is_one(strategy: tf.distribute.Strategy) -> bool:
    """Tells a strategy from TensorFlow's default, which stands for none."""
    with strategy.scope():
        return tf.distribute.has_strategy()


# Processes; joblib is imported when they are wanted -----------------------------------


def loky() -> Any:
    """Returns the package of process pools that joblib brings.

    The standard library's pools would run the user's script once more in every process.
    """
    from joblib.externals import loky

    return loky


def active_joblib_backend() -> Any:
    """Returns the backend that `joblib.parallel_config` has chosen.

    joblib says in public how many jobs there are, but not by whom.
    """
    from joblib.parallel import get_active_backend

    return get_active_backend()[0]


def keep_processes_that_grow() -> None:
    """Has a loky process live on when its memory has grown; called in that process.

    loky takes the pages of a mapped array for a leak, and begins a new process; it has no
    setting.
    """
    loky().process_executor._MAX_MEMORY_LEAK_SIZE = float("inf")


# Tensors and the graph of a model ----------------------------------------------------


def mask_of(tensor: Any) -> Any:
    """Returns the Keras mask that a layer has left on its output, or `None`.

    Losses and metrics read it there; `compute_mask` of a model does not give it.
    """
    return getattr(tensor, "_keras_mask", None)


def with_mask(tensor: Any, mask: Any) -> Any:
    """Leaves a Keras mask on a tensor, as a cast loses it; returns the tensor."""
    if mask is not None:
        tensor._keras_mask = mask
    return tensor


def logits_of(probabilities: Any) -> Any:
    """Returns what a softmax or sigmoid in the same trace was taken of, or what was given.

    Keras leaves it on the result for its own cross-entropy, which alone reads it. What was
    reshaped since is found in TensorFlow's graph.
    """
    logits = getattr(probabilities, "_keras_logits", None)
    if logits is not None:
        return logits
    if tf.is_symbolic_tensor(probabilities):
        return _before_activation(probabilities)
    return probabilities


def _before_activation(probabilities: tf.Tensor) -> tf.Tensor:
    reshapes, found = [], probabilities
    while found.op.type in ("Identity", "Reshape", "Squeeze", "ExpandDims"):
        reshapes.append(found)
        found = found.op.inputs[0]
    # Rows of a softmax that became other rows have lost what they have in common.
    is_softmax = found.op.type == "Softmax" and found.shape[-1:].is_compatible_with(
        probabilities.shape[-1:]
    )
    if not (found.op.type == "Sigmoid" or is_softmax):
        return probabilities
    logits = found.op.inputs[0]
    for reshaped in reversed(reshapes):
        if reshaped.op.type != "Identity":
            logits = tf.reshape(logits, tf.shape(reshaped))
            logits.set_shape(reshaped.shape)
    return logits


def gated(structure: Any, is_open: Any) -> Any:
    """Returns the same tensors, whose gradient is exactly 0 unless `is_open`.

    Also where it would be NaN, as 0 times infinity is. What Keras leaves on a tensor stays
    on it.

    Args:
        structure: of tensors.
        is_open: bool scalar.
    """

    @tf.custom_gradient
    def gate(tensor: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            return tf.where(is_open, upstream, tf.zeros((), upstream.dtype))

        return tf.identity(tensor), gradient

    def passed(tensor: Any) -> Any:
        if not tensor.dtype.is_floating:
            return tensor
        result = gate(tensor)
        result._keras_mask = mask_of(tensor)
        logits = logits_of(tensor)
        if logits is not tensor:
            result._keras_logits = gate(logits)
        return result

    tensors = {id(tensor): passed(tensor) for tensor in keras.tree.flatten(structure)}
    return keras.tree.map_structure(lambda tensor: tensors[id(tensor)], structure)


def own_variables(model: keras.Model) -> Iterator[tuple[keras.Layer, list]]:
    """Yields each layer of a model, itself too, with the variables that it made itself."""
    for layer in model._flatten_layers():
        yield layer, own_variables_of(layer)


def own_variables_of(layer: keras.Layer) -> list:
    """Returns the variables that a layer made itself.

    In public a layer's variables are those of the layers in it too, and the state of
    seeds; and `layers` of a subclassed model are not all that it has.
    """
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def layers_inside(layer: Any) -> list[Any]:
    """Returns the layers that a layer is made of, and the operations of a Functional model.

    In public only a model says them, and a subclassed one not all.
    """
    if isinstance(layer, keras.Sequential):
        return layer.layers
    of_graph = list(getattr(layer, "operations", []))
    if not isinstance(layer, keras.Layer):
        return of_graph
    known = {id(one) for one in of_graph}
    tracked = layer._flatten_layers(include_self=False, recursive=False)
    return of_graph + [one for one in tracked if id(one) not in known]


def layer_without_xla(model: keras.Layer) -> keras.Layer | None:
    """Returns a layer of a model that says of itself that XLA cannot compile it.

    Keras asks its layers in private, when it decides what `jit_compile="auto"` means.
    """
    layers = model._flatten_layers()
    return next((layer for layer in layers if not layer.supports_jit), None)


def is_in_xla() -> bool:
    """Tells whether what is traced now is for XLA, which does not know every operation."""
    from tensorflow.python.ops import control_flow_util

    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)


def made_by(tensor: Any) -> tuple[Any, int, list]:
    """Returns the operation that gave a symbolic tensor, as which output, and its inputs.

    `operation.input` is that of its first call, and a shared layer has several.
    """
    operation, node_index, tensor_index = tensor._keras_history
    inputs = operation._inbound_nodes[node_index].input_tensors
    return operation, tensor_index, inputs


def call_of(tensor: Any) -> tuple[Any, list, list, Callable[[dict], tuple]]:
    """Returns the call that gave a symbolic tensor.

    Returns:
        The operation; the symbolic tensors that it was given, and that it gave; and a function
        of values by the `id` of such a tensor, that returns the positional arguments and those
        by name with these values in them.
    """
    operation, node_index, _ = tensor._keras_history
    node = operation._inbound_nodes[node_index]
    return operation, node.input_tensors, node.output_tensors, node.arguments.fill_in


def is_graph_of_layers(operation: Any) -> bool:
    """Tells a Functional or Sequential model, which does nothing but what its layers do."""
    from keras.src.models.functional import Functional

    calls = (Functional.call, keras.Sequential.call)
    is_built = bool(getattr(operation, "inputs", None))
    return is_built and getattr(type(operation), "call", None) in calls


# What a tf.data.Dataset was made of; in public only its graph says, with all data in it --


def batch_size_of(dataset: tf.data.Dataset) -> int | None:
    """Returns the size of every batch but the last, or `None` if it cannot be seen."""
    size = tf.nest.flatten(dataset.element_spec)[0].shape[0]
    if size is None:
        size = getattr(dataset, "_batch_size", None)
    if size is not None:
        return int(size)
    one = tf.data.Dataset.range(1)
    passes_batches_on = (
        one.prefetch(1),
        one.cache(),
        one.with_options(tf.data.Options()),
        one.apply(tf.data.experimental.assert_cardinality(1)),
    )
    if isinstance(dataset, tuple(map(type, passes_batches_on))):
        return next(map(batch_size_of, _inputs_of(dataset)), None)
    return None


def reshuffles(dataset: tf.data.Dataset) -> bool:
    """Tells whether a dataset is known to come in another order each time."""
    if _is_seen_to_reshuffle(tf.data.Dataset.range(2).shuffle(2).batch(1)):
        return _is_seen_to_reshuffle(dataset)
    # The names have moved. The graph is slow for large data, but says it too.
    graph = tf.compat.v1.GraphDef.FromString(
        tf.raw_ops.DatasetToGraphV2(
            input_dataset=tf.data.experimental.to_variant(dataset),
            external_state_policy=1,  # whatever state it has: it is only looked at
        ).numpy()
    )
    functions = [node for f in graph.library.function for node in f.node_def]
    return any(
        node.attr["reshuffle_each_iteration"].b for node in [*graph.node, *functions]
    )


def _is_seen_to_reshuffle(dataset: tf.data.Dataset) -> bool:
    return getattr(dataset, "_reshuffle_each_iteration", False) or any(
        map(_is_seen_to_reshuffle, _inputs_of(dataset))
    )


def never_ends(dataset: tf.data.Dataset) -> bool:
    """Tells whether a dataset is known to have no end."""
    return _has_no_end(
        dataset, lambda one: one.cardinality() == tf.data.INFINITE_CARDINALITY
    )


def ends_with_a_generator(dataset: tf.data.Dataset) -> bool:
    """Tells whether where a dataset ends is known to a Python generator alone."""
    return _has_no_end(dataset, _is_of_a_generator)


def _has_no_end(dataset: tf.data.Dataset, is_so: Callable) -> bool:
    """Tells whether something is so of what a dataset is made of, with no end after it."""
    one = tf.data.Dataset.range(1)
    ends = type(one.take(1)), type(one.take_while(lambda x: True))
    if int(dataset.cardinality()) >= 0 or isinstance(dataset, ends):
        return False
    # Of several that are zipped the shortest ends them all.
    among = all if isinstance(dataset, type(tf.data.Dataset.zip(one))) else any
    made_of = [_has_no_end(part, is_so) for part in _inputs_of(dataset)]
    return is_so(dataset) or (bool(made_of) and among(made_of))


def _is_of_a_generator(dataset: tf.data.Dataset) -> bool:
    function = getattr(getattr(dataset, "_map_func", None), "function", None)
    operations = [] if function is None else function.graph.get_operations()
    return any(operation.type == "GeneratorDataset" for operation in operations)


def made_of(dataset: tf.data.Dataset) -> Iterator[tf.data.Dataset]:
    """Yields a dataset and all that it was made of, as far as can be seen."""
    yield dataset
    for one in _inputs_of(dataset):
        yield from made_of(one)


def _inputs_of(dataset: tf.data.Dataset) -> list[tf.data.Dataset]:
    return getattr(dataset, "_inputs", list)()


# How Keras reads data: its adapters are private -----------------------------------------


def is_array(value: Any) -> bool:
    """Tells what Keras takes for an array: also tables, tensors and sparse matrices."""
    from keras.src.trainers.data_adapters import array_slicing

    return value is not None and array_slicing.can_slice_array(value)


def as_numpy_or_sparse(array: Any) -> Any:
    """Returns an array or table as Keras reads it: a NumPy array, or a `tf.SparseTensor`.

    NumPy arrays stay as they are; Keras would make a float32 copy of other floats.
    """
    from keras.src.trainers.data_adapters import array_slicing, data_adapter_utils

    if isinstance(array, np.ndarray):
        return np.asarray(array)
    if data_adapter_utils.is_scipy_sparse(array):
        return data_adapter_utils.scipy_sparse_to_tf_sparse(array)
    dtypes = getattr(array, "dtypes", None)  # of the columns of a table
    if getattr(dtypes, "nunique", int)() > 1:
        with contextlib.suppress(TypeError, ValueError):  # as of a column of text
            array = array.astype(keras.config.floatx())
    sliceable = array_slicing.convert_to_sliceable(array, target_backend="numpy")
    return np.asarray(sliceable.convert_to_numpy(sliceable[: len(array)]))


def dtypes_not_read(array: Any) -> str | None:
    """Returns the dtypes of an array or table that Keras's `fit` does not read, or `None`."""
    from keras.src.trainers.data_adapters import array_slicing

    if not isinstance(array, np.ndarray) and not hasattr(array, "iloc"):
        return None
    try:
        found = array_slicing.convert_to_sliceable(
            array[:1], target_backend="tensorflow"
        )
        if getattr(getattr(found, "dtype", None), "kind", "") != "O":
            return None
    except (TypeError, ValueError):
        pass
    return dtypes_of(array)


def dtypes_of(array: Any) -> str:
    """Returns the dtypes of an array, or of the columns of a table."""
    columns = getattr(array, "dtypes", None)
    found = columns if getattr(array, "ndim", 0) == 2 and columns is not None else None
    each = [getattr(array, "dtype", None)] if found is None else found
    return ", ".join(dict.fromkeys(map(str, each)))


def rows_of(sparse: tf.SparseTensor) -> Callable[[int, int], Any]:
    """Returns a function that gives a range of rows of a sparse tensor, dense."""
    from keras.src.trainers.data_adapters import array_slicing

    rows = array_slicing.TensorflowSparseSliceable(tf.sparse.reorder(sparse))
    return lambda first, last: tf.sparse.to_dense(rows[first:last])


def is_batches(data: Any) -> bool:
    """Tells a `PyDataset` or a torch `DataLoader`, without importing torch."""
    from keras.src.trainers import data_adapters

    is_loader = data_adapters.is_torch_dataloader(data)
    return isinstance(data, keras.utils.PyDataset) or is_loader


def dataset_of(data: Any) -> tuple[tf.data.Dataset, int | None]:
    """Returns the batches of a `PyDataset` or `DataLoader`, and how many; `None` if endless."""
    from keras.src.trainers import data_adapters

    adapter = data_adapters.get_data_adapter(data)
    return adapter.get_tf_dataset(), adapter.num_batches
