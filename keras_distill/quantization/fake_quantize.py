"""Layers that round as the integers of a LiteRT file do, and let a gradient through."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_PACKAGE = "keras_distill"

#: The narrowest range of an activation; a narrower one is of a layer that is dead, and
#: the converter has 1.5e-6 for what is narrower than that.
_LEAST_RANGE = 1e-5

#: The narrowest range of a channel's weights, of that of the layer's widest. LiteRT keeps a bias as
#: int32 of the weights' scale, which one of a dead channel would overflow.
_LEAST_OF_WIDEST = 1e-4

_SEEN: contextvars.ContextVar[dict | None] = contextvars.ContextVar("_SEEN")


@contextlib.contextmanager
def observed() -> Iterator[dict[FakeQuantize, tuple[float, float]]]:
    """Has activations pass unrounded, and yields the smallest and largest of each layer."""
    seen: dict[FakeQuantize, tuple[float, float]] = {}
    token = _SEEN.set(seen)
    try:
        yield seen
    finally:
        _SEEN.reset(token)


def largest(bits: int) -> int:
    """Returns the largest integer of signed ones; the least that is used is its negative."""
    return 2 ** (bits - 1) - 1


@keras.saving.register_keras_serializable(_PACKAGE)
class FakeQuantize(keras.layers.Identity):
    """Rounds activations to 256 steps of a trainable range, as LiteRT's int8 does.

        scale = (high - low) / 255,  zero_point = round(-low / scale) - 128
        y = scale * (clip(round(x / scale) + zero_point, -128, 127) - zero_point)

    so that 0 is exact. The gradient passes where x is in the range; what is outside moves its
    end, by the sum over examples times `1 / sqrt(127 n)`, n the numbers of one example.

    Reference: arXiv:1712.05877; the factor is that of arXiv:1902.08153.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.built = False

    def build(self, input_shape: Any) -> None:
        """Makes the ends of the range."""
        for name, value in (("low", -1.0), ("high", 1.0)):
            initial = keras.initializers.Constant(value)
            weight = self.add_weight(name=name, shape=(), initializer=initial)
            setattr(self, name, weight)
        self.built = True

    @property
    def range(self) -> tuple[float, float]:
        """The range that is used: it holds 0."""
        return tuple(float(end) for end in self._ends(1.0))  # type: ignore[return-value]

    @property
    def scale(self) -> float:
        """The step between two integers."""
        low, high = self.range
        return (high - low) / 255

    def _ends(self, factor: Any) -> tuple[Any, Any]:
        low, high = (
            _scaled_gradient(tf.convert_to_tensor(end), factor)
            for end in (self.low, self.high)
        )
        return tf.minimum(low, 0.0), tf.maximum(high, _LEAST_RANGE)

    def call(self, inputs: Any) -> Any:
        """Returns the same numbers, rounded."""
        seen = _SEEN.get(None)
        if seen is not None:
            # NumPy's smallest and largest of NaN are NaN; 0 is in every range.
            values = np.append(np.ravel(inputs), seen.get(self, (0.0, 0.0)))
            low, high = float(np.min(values)), float(np.max(values))
            seen[self] = low, high
            return inputs
        sizes = tf.shape(inputs)[1:]
        count = tf.cast(tf.reduce_prod(sizes), tf.float32)
        low, high = self._ends(tf.math.rsqrt(127.0 * count))
        return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high)


@keras.saving.register_keras_serializable(_PACKAGE)
class StaysFloat(keras.layers.Identity):
    """Returns what it is given, after which a file computes in float.

    Between two ranges the converter takes any operation for one of integers: for weights of 4
    bits with the kernels as they are, which LiteRT does not run.
    """

    def call(self, inputs: Any) -> Any:
        """Returns the same numbers."""
        # What the converter has no integers for and does not simplify; no bit is lost.
        return tf.negative(inputs) * -1.0


@tf.custom_gradient
def _scaled_gradient(value: Any, factor: Any) -> Any:
    return tf.identity(value), lambda upstream: (upstream * factor, None)


def round_weights(
    kernel: Any, log_range: Any, bits: int, round_: Callable | None = None
) -> Any:
    """Returns weights on the grid of their channels, with LSQ's gradients.

        range = min(exp(log_range), max |w| of the channel),  scale = range / top
        y = scale * clip(round(w / scale), -top, top),  top = 2**(bits-1) - 1

    A converter that takes each channel's largest weight for its range finds this very scale,
    because that weight is at the range's end.

    Args:
        kernel: `(..., channels)`.
        log_range: `(channels,)`, natural log.
        bits: of the integers.
        round_: function of `kernel` and `range`, which gives y in another way.

    Reference: arXiv:1902.08153.
    """
    top = largest(bits)

    @tf.custom_gradient
    def rounded(kernel: Any, log_range: Any) -> Any:
        axes = list(range(len(kernel.shape) - 1))
        most = tf.reduce_max(tf.abs(kernel), axes)
        limit = tf.minimum(tf.exp(log_range), most)
        floor = tf.maximum(tf.reduce_max(limit) * _LEAST_OF_WIDEST, 1e-12)
        limit = tf.maximum(limit, floor)
        scale = limit / top
        steps = tf.clip_by_value(tf.round(kernel / scale), -top, top)
        result = steps * scale if round_ is None else round_(kernel, limit)

        def gradient(upstream: Any) -> tuple[Any, Any]:
            # A weight at the end of the range is in it, whatever the last bit says.
            is_in = tf.abs(kernel) <= limit * 1.00001
            of_kernel = tf.where(is_in, upstream, 0.0)
            of_scale = steps - tf.where(is_in, kernel / scale, 0.0)
            count = tf.cast(tf.size(kernel) / tf.size(limit), tf.float32)
            of_limit = tf.reduce_sum(upstream * of_scale, axes) * scale
            return of_kernel, of_limit * tf.math.rsqrt(top * count)

        return result, gradient

    return rounded(kernel, log_range)


class _RoundsWeights:
    """Mixin for Keras's layers: their kernel is rounded per channel whenever it is used.

    Args:
        weight_bits: 8 or 4.
        has_ranges: whether activations are rounded too, so that the ranges of the weights must
            be seen in the graph.
        folded: name of the batch normalisation that is in the weights, or `None`.
    """

    def __init__(
        self,
        *args: Any,
        weight_bits: int = 8,
        has_ranges: bool = True,
        folded: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.weight_bits = weight_bits
        self.has_ranges = has_ranges
        self.folded = folded

    def build(self, input_shape: Any) -> None:
        """Makes the weights, and the range of each channel's."""
        super().build(input_shape)  # type: ignore[misc]
        channels = self._by_channel(self.kernel).shape[-1]  # type: ignore[attr-defined]
        self.log_range = self.add_weight(  # type: ignore[attr-defined]
            name="log_range", shape=(channels,), initializer="zeros"
        )

    def save_own_variables(self, store: Any) -> None:
        """Writes all weights; Keras's own layers write none but theirs."""
        keras.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` wrote."""
        keras.Layer.load_own_variables(self, store)

    def get_config(self) -> dict[str, Any]:
        """Returns what the layer is made again of."""
        return {
            **super().get_config(),  # type: ignore[misc]
            "weight_bits": self.weight_bits,
            "has_ranges": self.has_ranges,
            "folded": self.folded,
        }

    def set_ranges(self) -> None:
        """Sets the range of each channel: the largest weight, or what rounds best.

        Of 4 bits, where the mean squared error of rounding is least; 15 steps are too few for
        outliers to have them.
        """
        kernel = self._by_channel(np.asarray(self.kernel))  # type: ignore[attr-defined]
        axes = tuple(range(kernel.ndim - 1))
        most = np.maximum(np.abs(kernel).max(axes), 1e-12)
        best, least = most, np.full(most.shape, np.inf)
        for part in (1.0,) if self.weight_bits == 8 else np.linspace(1.0, 0.4, 61):
            scale = part * most / largest(self.weight_bits)
            top = largest(self.weight_bits)
            steps = np.clip(np.round(kernel / scale), -top, top)
            error = np.square(steps * scale - kernel).sum(axes)
            best = np.where(error < least, part * most, best)
            least = np.minimum(error, least)
        # The largest weight is to be at the very end of its range, whatever log and exp do.
        self.log_range.assign(np.log(best) + np.where(best < most, 0.0, 1e-5))

    def rounded_kernel(self) -> Any:
        """Returns the weights that are used, `(..., channels)`."""
        kernel = tf.convert_to_tensor(self.kernel)  # type: ignore[attr-defined]
        by_channel = self._by_channel(kernel)
        is_seen = self.has_ranges and self._has_operation()
        round_ = _by_operation(self.weight_bits) if is_seen else None
        log_range = tf.convert_to_tensor(self.log_range)
        return round_weights(by_channel, log_range, self.weight_bits, round_)

    def _by_channel(self, kernel: Any) -> Any:
        return kernel

    def _has_operation(self) -> bool:
        """Tells whether TensorFlow's operation says the range, not the weights alone."""
        return True

    def _finished(self, outputs: Any) -> Any:
        if self.bias is not None:  # type: ignore[attr-defined]
            outputs = tf.nn.bias_add(outputs, tf.convert_to_tensor(self.bias))  # type: ignore[attr-defined]
        return self.activation(outputs)  # type: ignore[attr-defined]


def _by_operation(bits: int) -> Callable:
    return lambda kernel, limit: (
        tf.quantization.fake_quant_with_min_max_vars_per_channel(
            kernel, -limit, limit, num_bits=bits, narrow_range=True
        )
    )


@keras.saving.register_keras_serializable(_PACKAGE)
class QuantizedConv2D(_RoundsWeights, keras.layers.Conv2D):
    """A convolution whose weights are rounded per filter."""

    def call(self, inputs: Any) -> Any:
        """Returns the convolution with rounded weights."""
        kernel = self.rounded_kernel()
        return self._finished(self.convolution_op(inputs, kernel))


@keras.saving.register_keras_serializable(_PACKAGE)
class QuantizedDepthwiseConv2D(_RoundsWeights, keras.layers.DepthwiseConv2D):
    """A depthwise convolution whose weights are rounded per channel."""

    def _by_channel(self, kernel: Any) -> Any:
        reshape = np.reshape if isinstance(kernel, np.ndarray) else tf.reshape
        return reshape(kernel, (*kernel.shape[:2], -1))

    def call(self, inputs: Any) -> Any:
        """Returns the depthwise convolution with rounded weights."""
        outputs = keras.ops.depthwise_conv(
            inputs,
            tf.reshape(self.rounded_kernel(), self.kernel.shape),
            strides=self.strides,
            padding=self.padding,
            data_format=self.data_format,
        )
        return self._finished(outputs)


@keras.saving.register_keras_serializable(_PACKAGE)
class QuantizedDense(_RoundsWeights, keras.layers.Dense):
    """A dense layer whose weights are rounded per unit."""

    def _by_channel(self, kernel: Any) -> Any:
        # The converter refuses the operation before a product of matrices: there it is the
        # convolution of a single pixel.
        is_seen = self.has_ranges and self._has_operation()
        return kernel[None, None] if is_seen else kernel

    def _has_operation(self) -> bool:
        return self.weight_bits < 8  # the range of 8 bits the converter finds by itself

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the product with rounded weights."""
        kernel = self.rounded_kernel()
        if len(kernel.shape) == 2:
            return self._finished(tf.matmul(inputs, kernel))
        pixel = tf.reshape(inputs, (-1, 1, 1, kernel.shape[2]))
        outputs = tf.nn.conv2d(pixel, kernel, 1, "VALID")
        return tf.reshape(self._finished(outputs), (-1, self.units))


#: What rounds the weights of a layer of Keras's.
ROUNDED: dict[type, Any] = {
    keras.layers.Conv2D: QuantizedConv2D,
    keras.layers.DepthwiseConv2D: QuantizedDepthwiseConv2D,
    keras.layers.Dense: QuantizedDense,
}


@functools.cache
def rounds_weights(kind: type) -> bool:
    """Tells whether layers of a class round their weights."""
    return issubclass(kind, _RoundsWeights)
