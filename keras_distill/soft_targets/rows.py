"""What one example looks like in a shard: a row of fixed length, in fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_distill.outputs import by_output
from keras_distill.soft_targets import fingerprints
from keras_distill.top_k import REST_BETAS, TopKLogits

DTYPES = ("float16", "bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Field:
    """A tensor of each row.

    Attributes:
        name: str; the fields of an output named "a" begin with "a/".
        dtype: str, as TensorFlow names it; little endian on disk.
        shape: of one example.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in a row."""
        size = tf.as_dtype(self.dtype).size
        for axis in self.shape:
            size *= axis
        return size


class Rows:
    """Turns batches of logits into rows of bytes, and back.

    Args:
        fields: in their order in a row.
        outputs: keys of the teacher's outputs; `[None]` for a single one.
        is_dict: whether several outputs are a dict, as opposed to a tuple.
        classes: number of classes of each output.
        top_k: int, or `None` for all logits.
        layers: names of the hidden layers.
    """

    def __init__(
        self,
        fields: list[Field],
        outputs: list,
        is_dict: bool,
        classes: list[int],
        top_k: int | None,
        layers: Sequence[str] = (),
    ) -> None:
        self.fields = fields
        self.outputs = outputs
        self.is_dict = is_dict
        self.classes = classes
        self.top_k = top_k
        self.layers = layers
        self.bytes = sum(field.bytes for field in fields)

    @classmethod
    def for_answer(
        cls,
        specs: Any,
        layers: dict[str, Any],
        dtype: str,
        top_k: int | None,
        augmented: bool,
    ) -> Rows:
        """Returns the layout for a teacher's answer.

        Args:
            specs: tensor specs `(batch, ..., classes)`, in a dict, a list, or one.
            layers: tensor specs of hidden layers, by name.
            dtype: of the logits on disk.
            top_k: how many to keep; `None` for all.
            augmented: whether examples are augmented.

        Raises:
            ValueError: if an axis is not known, or `top_k` is out of range.
        """
        fields = [Field("fingerprint", "uint8", (fingerprints.BYTES,))]
        if augmented:
            fields.append(Field("augmented", "uint8", (fingerprints.BYTES,)))
        outputs, classes = [], []
        for key, spec in by_output(specs):
            prefix = _prefix(key)
            *leading, count = _fixed_shape(spec)
            _check_top_k(top_k, count)
            outputs.append(key)
            classes.append(count)
            if dtype != "float32":
                fields.append(Field(f"{prefix}max", "float32", tuple(leading)))
            kept = count if top_k is None else top_k
            fields.append(Field(f"{prefix}logits", dtype, (*leading, kept)))
            if top_k is not None:
                fields.append(
                    Field(f"{prefix}indices", _index_dtype(count), (*leading, kept))
                )
                if top_k < count:
                    shape = (*leading, len(REST_BETAS) - 1)
                    fields.append(Field(f"{prefix}rest", dtype, shape))
        for name, spec in layers.items():
            fields.append(Field(f"layer:{name}", dtype, tuple(_fixed_shape(spec))))
        return cls(
            fields, outputs, isinstance(specs, dict), classes, top_k, list(layers)
        )

    def encode(
        self, fingerprint: Any, augmented: Any, logits: Any, layers: dict[str, Any]
    ) -> tf.Tensor:
        """Returns rows, uint8 `(batch, bytes)`.

        Args:
            fingerprint: uint8 `(batch, 8)`.
            augmented: the same of the augmented examples, or `None`.
            logits: `(batch, ..., classes)`, in a dict, a list, or one.
            layers: outputs of hidden layers, by name.
        """
        values = {"fingerprint": fingerprint, "augmented": augmented}
        for key, output in by_output(logits):
            values.update(self._encode_output(_prefix(key), tf.cast(output, "float32")))
        dtypes = {field.name: tf.as_dtype(field.dtype) for field in self.fields}
        for name, output in layers.items():
            values[f"layer:{name}"] = _saturated(output, dtypes[f"layer:{name}"])
        batch = tf.shape(fingerprint)[0]
        parts = []
        for field in self.fields:
            value = values[field.name]
            if field.dtype != "uint8":
                value = tf.bitcast(value, tf.uint8)
            parts.append(tf.reshape(value, (batch, field.bytes)))
        return tf.concat(parts, 1)

    def _encode_output(self, prefix: str, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        dtypes = {field.name: tf.as_dtype(field.dtype) for field in self.fields}
        dtype = dtypes[f"{prefix}logits"]
        largest = tf.reduce_max(logits, -1, keepdims=True)
        # Relative to the largest, so that few bits are most exact where it matters.
        relative = logits if dtype == tf.float32 else logits - largest
        found = {f"{prefix}max": largest}
        if self.top_k is None:
            found[f"{prefix}logits"] = _saturated(relative, dtype)
            return found
        values, indices = tf.math.top_k(relative, self.top_k)
        found[f"{prefix}logits"] = _saturated(values, dtype)
        found[f"{prefix}indices"] = tf.cast(indices, dtypes[f"{prefix}indices"])
        if f"{prefix}rest" in dtypes:
            rest = _log_masses(logits - largest, indices)
            if dtype == tf.float32:
                rest += largest * REST_BETAS[1:]
            found[f"{prefix}rest"] = _saturated(rest, dtype)
        return found

    def fingerprints(self, rows: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns the fingerprints in rows, and those of augmented examples."""
        size = fingerprints.BYTES
        has_second = len(self.fields) > 1 and self.fields[1].name == "augmented"
        return rows[:, :size], rows[:, size : 2 * size] if has_second else None

    def decode(self, rows: Any) -> tuple[Any, dict[str, tf.Tensor]]:
        """Returns what was kept, in float32.

        Args:
            rows: uint8 `(batch, bytes)`.

        Returns:
            Logits or `TopKLogits`, in the structure of the outputs; and hidden layers by
            name.
        """
        values, start = {}, 0
        for field in self.fields:
            part = rows[:, start : start + field.bytes]
            start += field.bytes
            if field.dtype != "uint8":
                dtype = tf.as_dtype(field.dtype)
                part = tf.reshape(part, (-1, *field.shape, dtype.size))
                part = tf.bitcast(part, dtype)
            else:
                part = tf.reshape(part, (-1, *field.shape))
            values[field.name] = part
        decoded = [
            self._decode_output(_prefix(key), values, classes)
            for key, classes in zip(self.outputs, self.classes, strict=True)
        ]
        layers = {
            name: tf.cast(values[f"layer:{name}"], tf.float32) for name in self.layers
        }
        if self.outputs == [None]:
            return decoded[0], layers
        if self.is_dict:
            return dict(zip(self.outputs, decoded, strict=True)), layers
        return tuple(decoded), layers

    def _decode_output(self, prefix: str, values: dict, classes: int) -> Any:
        logits = tf.cast(values[f"{prefix}logits"], tf.float32)
        largest = values.get(f"{prefix}max")
        if largest is not None:
            largest = tf.expand_dims(largest, -1)
            logits += largest
        if self.top_k is None:
            return logits
        indices = tf.cast(values[f"{prefix}indices"], tf.float32)
        rest = values.get(f"{prefix}rest")
        if rest is None:
            return TopKLogits(
                tf.concat([logits, indices, tf.zeros_like(logits[..., :1])], -1)
            )
        rest = tf.cast(rest, tf.float32)
        if largest is not None:
            rest += largest * REST_BETAS[1:]
        number = tf.math.log(float(classes - self.top_k))
        number = tf.fill(tf.shape(rest[..., :1]), number)
        return TopKLogits(tf.concat([logits, indices, number, rest], -1))


def _prefix(key: Any) -> str:
    return "" if key is None else f"{key}/"


def _fixed_shape(spec: tf.TensorSpec) -> list[int]:
    """Returns the shape of one example."""
    shape = spec.shape[1:].as_list()
    if None in shape:
        raise ValueError(
            f"the teacher's answers have shape {tuple(spec.shape)}; on disk every example "
            "has one shape, so pad the examples to a fixed length."
        )
    return shape


def _check_top_k(top_k: int | None, classes: int) -> None:
    if top_k is not None and not 1 <= top_k <= classes:
        raise ValueError(
            f"top_k must be from 1 to the number of classes, {classes}, got {top_k}; "
            "leave it out to keep all logits."
        )


def _index_dtype(classes: int) -> str:
    if classes <= 1 << 8:
        return "uint8"
    return "uint16" if classes <= 1 << 16 else "int32"


def _saturated(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the values in a dtype, with its largest finite number where they pass it."""
    if dtype == tf.float16:
        values = tf.clip_by_value(tf.cast(values, tf.float32), dtype.min, dtype.max)
    return tf.cast(values, dtype)


def rest_error(logits: tf.Tensor, k: int) -> tuple[float, float]:
    """Returns the largest error of `TopKLogits.rest_at`, and its temperature.

    Args:
        logits: float32 `(batch, ..., classes)`.
        k: below the number of classes.

    Returns:
        The error in the probability of all classes but the k largest.
    """
    sorted_logits = tf.sort(logits, direction="DESCENDING")
    values, indices = tf.math.top_k(logits, k)
    largest = values[..., :1]
    rest = _log_masses(logits - largest, indices) + largest * REST_BETAS[1:]
    number = tf.fill(tf.shape(largest), tf.math.log(float(logits.shape[-1] - k)))
    packed = [values, tf.cast(indices, tf.float32), number, rest]
    top = TopKLogits(tf.concat(packed, -1))
    found = []
    for temperature in (1.4, 2.0, 3.5, 8.0, 30.0):
        whole = tf.reduce_logsumexp(logits / temperature, -1)
        true = tf.reduce_logsumexp(sorted_logits[..., k:] / temperature, -1)
        error = tf.exp(top.rest_at(temperature) - whole) - tf.exp(true - whole)
        found.append((float(tf.reduce_max(tf.abs(error))), temperature))
    return max(found)


def _log_masses(relative: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Returns `logsumexp(b * z)` over the classes not in `indices`, for b in REST_BETAS.

    Args:
        relative: float32 `(batch, ..., classes)`, at most 0.
        indices: int32 `(batch, ..., k)`.
    """
    classes, k = relative.shape[-1], indices.shape[-1]
    flat = tf.reshape(indices, (-1, k))
    count = tf.shape(flat)[0]
    where = tf.reshape(tf.range(count)[:, None] * classes + flat, (-1, 1))
    # exp(z / 16), 0 for the k; its powers are the other terms.
    e = tf.tensor_scatter_nd_update(
        tf.reshape(tf.exp(relative / 16.0), (-1,)), where, tf.zeros((count * k,))
    )
    e = tf.reshape(e, tf.shape(relative))
    e3 = e * e * e
    e6 = e3 * e3
    e10 = e6 * e3 * e
    e13 = e10 * e3
    powers = [e, e3, e6, e10, e13, e13 * e * e, e13 * e3]
    sums = tf.stack([tf.reduce_sum(power, -1) for power in powers], -1)
    return tf.math.log(tf.maximum(sums, 1e-37))
