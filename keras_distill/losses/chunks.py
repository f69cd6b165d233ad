"""A loss and its gradient, a few rows at a time: of many classes nothing is made whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill.keras_compat import is_in_xla

#: Numbers of one chunk: its dozen intermediates stay in a processor's cache.
_CHUNK = 2**18
#: Numbers beyond which a loss goes chunk by chunk; a small step would only lose by it.
_LARGE = 2**20
#: What an axis of unknown length is taken for: a loop costs a small step more than it saves.
_UNKNOWN = 64


def loss_with_slope(
    function: Callable[..., tuple[Any, Any]],
    constants: Sequence[Any],
    logits: Any,
    temperature: Any,
    dtype: str,
) -> Any:
    """Returns a loss whose gradient is `temperature * slope`, the slope made beside it.

    Where the logits are large, both are made a few rows at a time, casts included: besides
    the slope, which becomes the gradient, no tensor has the size of the logits. There is no
    second derivative then.

    Args:
        function: from rows of the constants, of the logits, and the temperature, to the loss
            `(rows,)` and the slope `(rows, classes)`, in `dtype`. Works on any leading axes.
        constants: tensors of the leading axes of the logits, without a gradient.
        logits: float `(..., classes)`.
        temperature: scalar of `dtype`.
        dtype: of the loss.

    Returns:
        `(...)`.
    """
    is_large = keras.backend.backend() == "tensorflow" and _is_large(logits.shape)

    @ops.custom_gradient
    def loss_of(logits: Any) -> tuple[Any, Callable]:
        inputs = *map(ops.stop_gradient, constants), logits, temperature
        if is_large:
            # The tape is to see none of what comes: it would keep it all.
            inputs = (*map(tf.stop_gradient, inputs),)
            if tf.executing_eagerly():
                specs = (*map(_any_number_of, inputs),)
                loss, slope = _in_graph(function, dtype, specs)(*inputs)
            else:
                loss, slope = _by_chunks(function, dtype, *inputs)
        else:
            loss, slope = function(*inputs)

        def gradient(*args: Any, upstream: Any = None) -> Any:
            upstream = args[0] if upstream is None else upstream
            scale = ops.expand_dims(temperature * ops.cast(upstream, dtype), -1)
            return ops.cast(scale * slope, logits.dtype)

        return loss, gradient

    return loss_of(logits)


def _is_large(shape: Sequence[int | None]) -> bool:
    size = 1
    for length in shape:
        size *= _UNKNOWN if length is None else length
    return shape[-1] is not None and size > _LARGE


@functools.cache
def _in_graph(function: Callable, dtype: str, specs: tuple) -> Callable:
    """Goes by chunks where there is no graph, in which alone a loop writes in place."""
    return tf.function(
        functools.partial(_by_chunks, function, dtype),
        input_signature=specs,
        autograph=False,
    )


def _any_number_of(tensor: Any) -> tf.TensorSpec:
    unknown = [None] * (tensor.shape.rank - 1)
    return tf.TensorSpec([*unknown, *tensor.shape[-1:]], tensor.dtype)


def _by_chunks(function: Callable, dtype: str, *inputs: Any) -> tuple[Any, Any]:
    *arrays, temperature = inputs
    logits = arrays[-1]
    classes, leading = logits.shape[-1], tf.shape(logits)[:-1]
    arrays = [tf.reshape(one, (-1, one.shape[-1])) for one in arrays]
    count = tf.shape(arrays[-1])[0]
    size = tf.minimum(max(1, _CHUNK // classes), count)

    write = _rows_written if is_in_xla() else _rows_written_in_place

    def chunk(done: Any, loss: Any, slope: Any) -> tuple[Any, Any, Any]:
        # The last one goes over rows again, so that all are of one size.
        start = tf.minimum(done, count - size)
        rows = [tf.slice(one, [start, 0], [size, one.shape[-1]]) for one in arrays]
        at = start + tf.range(size)
        losses, slopes = function(*rows, temperature)
        return done + size, write(loss, at, losses), write(slope, at, slopes)

    _, loss, slope = tf.while_loop(
        lambda done, *_: done < count,
        chunk,
        # Not zeros: a constant may be made of them, which a later step would overwrite.
        (0, _empty([count], dtype), _empty([count, classes], dtype)),
        (tf.TensorShape([]), tf.TensorShape([None]), tf.TensorShape([None, classes])),
        parallel_iterations=1,
    )
    shape = logits.shape
    loss = tf.ensure_shape(tf.reshape(loss, leading), shape[:-1])
    return loss, tf.ensure_shape(tf.reshape(slope, tf.shape(logits)), shape)


def _empty(shape: Sequence[Any], dtype: str) -> Any:
    return tf.raw_ops.Empty(shape=tf.stack(shape), dtype=dtype, init=False)


def _rows_written(whole: Any, at: Any, rows: Any) -> Any:
    return tf.tensor_scatter_nd_update(whole, tf.expand_dims(at, -1), rows)


def _rows_written_in_place(whole: Any, at: Any, rows: Any) -> Any:
    """Writes where outside XLA, which does not know this, all would be copied."""
    return tf.raw_ops.InplaceUpdate(x=whole, i=at, v=rows)
