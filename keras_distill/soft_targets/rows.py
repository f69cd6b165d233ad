"""What one example looks like in a shard: a row of fixed length, in fields."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tensorflow as tf

from keras_distill.run_directory import FINGERPRINT_BYTES
from keras_distill.several_logits import MemberLogits, mean_logits_at
from keras_distill.soft_targets.settings import Settings
from keras_distill.structures import answer_for, by_output
from keras_distill.top_k import REST_BETAS, TopKLogits


def laid_out(
    settings: Settings,
    specs: Any,
    layers: dict[str, Any],
    kinds: Any = None,
    is_mean: bool = False,
) -> Settings:
    """Returns the settings with the layout for a teacher's answer.

    Args:
        settings: say what is cached.
        specs: tensor specs `(batch, ..., classes)`, in a dict, a list, or one.
        layers: tensor specs of hidden layers, by name.
        kinds: of the outputs, as far as they are known; see `outputs.kinds_of`.
        is_mean: whether it is the mean of several teachers' probabilities at one
            temperature.

    Raises:
        ValueError: if an axis is not known, or `top_k` is out of range, or has no meaning.
    """
    dtype, top_k = settings.dtype, settings.top_k
    row: list[list] = [["fingerprint", "uint8", [FINGERPRINT_BYTES]]]
    if settings.augment is not None:
        row.append(["augmented", "uint8", [FINGERPRINT_BYTES]])
    outputs, classes, found_kinds = [], [], []
    for key, spec in by_output(specs):
        prefix, kind = _prefix(key), answer_for(kinds, key)
        *leading, count = _fixed_shape(spec)
        if is_mean and kind is None:
            kind = _kind_of_mean(key, count)
        outputs.append(key)
        classes.append(count)
        if kind in ("sigmoid", "values"):
            # Questions and values are near 0 where they matter, whatever the largest is; of
            # values nobody knows in what unit they are.
            own = "float32" if kind == "values" else dtype
            row.append([f"{prefix}logits", own, [*leading, count]])
            found_kinds.append(kind)
            continue
        found_kinds.append(kind)
        if top_k is not None and not 1 <= top_k <= count:
            raise ValueError(
                f"top_k must be from 1 to the number of classes, {count}, got {top_k}; "
                "leave it out to cache all logits."
            )
        if dtype != "float32":
            row.append([f"{prefix}max", "float32", leading])
        found = [*leading, count if top_k is None else top_k]
        row.append([f"{prefix}logits", dtype, found])
        if top_k is not None:
            row.append([f"{prefix}indices", _index_dtype(count), found])
            if top_k < count:
                row.append([f"{prefix}rest", dtype, [*leading, len(REST_BETAS) - 1]])
    if top_k is not None and not {"softmax", None} & set(found_kinds):
        raise ValueError(
            f"top_k={top_k} keeps the largest of classes that exclude each other, and the "
            f"teacher's outputs are of the kind {', '.join(sorted(set(found_kinds)))}; leave "
            "top_k out."
        )
    row += [[f"layer:{n}", dtype, _fixed_shape(spec)] for n, spec in layers.items()]
    return dataclasses.replace(
        settings,
        outputs=outputs,
        outputs_are_dict=isinstance(specs, dict),
        classes=classes[0] if outputs == [None] else classes,
        output_kinds=found_kinds[0] if outputs == [None] else found_kinds,
        row=row,
        row_bytes=sum(_bytes(dtype, shape) for _, dtype, shape in row),
    )


def _kind_of_mean(key: Any, count: int) -> str:
    """Returns the kind of an output whose mean at one temperature is cached."""
    if count > 1:
        return "softmax"
    name = "" if key is None else f" {key!r}"
    raise ValueError(
        f"nothing says what the single number of the teachers' output{name} is, so that "
        'their mean at temperature= is not known; say output_kinds="sigmoid" or "values".'
    )


class Rows:
    """Turns batches of logits into rows of bytes, and back.

    Args:
        settings: have the layout.
    """

    def __init__(self, settings: Settings) -> None:
        self.bytes = settings.row_bytes
        self._dtypes = {name: tf.as_dtype(dtype) for name, dtype, _ in settings.row}
        self._settings = settings

    def encode(
        self, fingerprint: Any, augmented: Any, logits: Any, layers: dict[str, Any]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns rows, and how wrong `top_k` makes the mass of the rest.

        Args:
            fingerprint: uint8 `(batch, 8)`.
            augmented: the same of the augmented examples, or `None`.
            logits: `(batch, ..., classes)`, in a dict, a list, or one.
            layers: outputs of hidden layers, by name.

        Returns:
            uint8 `(batch, bytes)`; and float32 `(batch, outputs, 5)`, the largest error of
            the probability of all other classes at the `TRIED_BETAS`.
        """
        values = {"fingerprint": fingerprint, "augmented": augmented}
        batch, errors = tf.shape(fingerprint)[0], []
        for key, output in by_output(logits):
            found, error = self._encode_output(_prefix(key), tf.cast(output, "float32"))
            values.update(found)
            errors.append(tf.broadcast_to(error, (batch, len(TRIED_BETAS))))
        for name, output in layers.items():
            values[f"layer:{name}"] = _saturated(output, self._dtypes[f"layer:{name}"])
        parts = []
        for name, dtype, shape in self._settings.row:
            value = tf.bitcast(values[name], tf.uint8)
            parts.append(tf.reshape(value, (batch, _bytes(dtype, shape))))
        return tf.concat(parts, 1), tf.stack(errors, 1)

    def _encode_output(
        self, prefix: str, logits: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        dtype, top_k = self._dtypes[f"{prefix}logits"], self._settings.top_k
        largest = tf.reduce_max(logits, -1, keepdims=True)
        # Relative to the largest, so that few bits are most exact where it matters.
        is_relative = f"{prefix}max" in self._dtypes
        relative = logits - largest if is_relative else logits
        found, exact = {f"{prefix}max": largest}, tf.zeros(())
        if f"{prefix}indices" not in self._dtypes:
            found[f"{prefix}logits"] = _saturated(relative, dtype)
            return found, exact
        values, indices = tf.math.top_k(relative, top_k)
        found[f"{prefix}logits"] = _saturated(values, dtype)
        found[f"{prefix}indices"] = tf.cast(indices, self._dtypes[f"{prefix}indices"])
        if f"{prefix}rest" not in self._dtypes:
            return found, exact
        rest, tried = _log_masses(logits - largest, indices)
        top = values - largest if dtype == tf.float32 else values
        error = _rest_error(top, rest, tried, logits.shape[-1] - top_k)
        if dtype == tf.float32:
            rest += largest * REST_BETAS[1:]
        found[f"{prefix}rest"] = _saturated(rest, dtype)
        return found, tf.reduce_max(error, range(1, error.shape.rank - 1))

    def fingerprints(self, rows: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns the fingerprints in rows, and those of augmented examples."""
        size = FINGERPRINT_BYTES
        has_second = "augmented" in self._dtypes
        return rows[:, :size], rows[:, size : 2 * size] if has_second else None

    def decode(self, rows: Any) -> tuple[Any, dict[str, tf.Tensor]]:
        """Returns what was cached, in float32.

        Args:
            rows: uint8 `(batch, bytes)`.

        Returns:
            Logits, `TopKLogits`, `MemberLogits` or `MeanLogits`, in the structure of the
            outputs; and hidden layers by name.
        """
        s, values = self._settings, {}
        parts = tf.split(rows, [_bytes(dtype, shape) for _, dtype, shape in s.row], 1)
        for (name, _, shape), part in zip(s.row, parts, strict=True):
            dtype = self._dtypes[name]
            size = [dtype.size] * (dtype.size > 1)
            values[name] = tf.bitcast(tf.reshape(part, (-1, *shape, *size)), dtype)
        counts = s.classes if isinstance(s.classes, list) else [s.classes]
        outputs = zip(s.outputs, counts, strict=True)
        decoded = [self._decode_output(_prefix(k), values, n) for k, n in outputs]
        if s.members is not None:
            decoded = list(map(MemberLogits, decoded))
        elif s.mean_temperature is not None:
            mean = mean_logits_at(s.mean_temperature)
            # The mean of values is one at any temperature.
            decoded = [
                one if kind == "values" else mean(one)
                for one, kind in zip(decoded, s.kinds.values(), strict=True)
            ]
        layers = {n: tf.cast(values[f"layer:{n}"], tf.float32) for n in s.layers}
        if s.outputs_are_dict:
            return dict(zip(s.outputs, decoded, strict=True)), layers
        return decoded[0] if s.outputs == [None] else tuple(decoded), layers

    def _decode_output(self, prefix: str, values: dict, classes: int) -> Any:
        logits = tf.cast(values[f"{prefix}logits"], tf.float32)
        largest = values.get(f"{prefix}max")
        if largest is not None:
            largest = tf.expand_dims(largest, -1)
            logits += largest
        if f"{prefix}indices" not in self._dtypes:
            return logits
        indices = tf.cast(values[f"{prefix}indices"], tf.float32)
        rest = values.get(f"{prefix}rest")
        number = tf.zeros_like(logits[..., :1])
        if rest is None:
            return TopKLogits(tf.concat([logits, indices, number], -1))
        rest = tf.cast(rest, tf.float32)
        if largest is not None:
            rest += largest * REST_BETAS[1:]
        assert self._settings.top_k is not None
        number += tf.math.log(float(classes - self._settings.top_k))
        return TopKLogits(tf.concat([logits, indices, number, rest], -1))


def _bytes(dtype: str, shape: list[int]) -> int:
    """Returns the size of a field in a row."""
    return math.prod(shape) * tf.as_dtype(dtype).size


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


def _index_dtype(classes: int) -> str:
    if classes <= 1 << 8:
        return "uint8"
    return "uint16" if classes <= 1 << 16 else "int32"


def _saturated(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the values in a dtype, with its largest finite number where they pass it."""
    if dtype == tf.float16:
        values = tf.clip_by_value(tf.cast(values, tf.float32), dtype.min, dtype.max)
    return tf.cast(values, dtype)


#: Inverse temperatures at which the mass of the rest is tried, between those it is known
#: at: T = 32, 8, 3.6, 2 and 1.4.
TRIED_BETAS = (1 / 32, 4 / 32, 9 / 32, 16 / 32, 23 / 32)


def _rest_error(
    top: tf.Tensor, rest: tf.Tensor, tried: tf.Tensor, others: int
) -> tf.Tensor:
    """Returns the error of `TopKLogits.rest_at` in a probability, at the `TRIED_BETAS`.

    Args:
        top: float32 `(batch, ..., k)`, the k largest logits, minus the largest.
        rest: float32 `(batch, ..., 7)`, as `_log_masses` gives it.
        tried: float32 `(batch, ..., 5)`, likewise.
        others: number of other classes.

    Returns:
        float32 `(batch, ..., 5)`.
    """
    number = tf.fill(tf.shape(rest[..., :1]), tf.math.log(float(others)))
    packed = TopKLogits(tf.concat([number, rest], -1))
    said = tf.stack([packed.rest_at(1 / beta) for beta in TRIED_BETAS], -1)
    mass = tf.stack([tf.reduce_logsumexp(top * b, -1) for b in TRIED_BETAS], -1)
    whole = tf.reduce_logsumexp(tf.stack([mass, tried]), 0)
    return tf.abs(tf.exp(said - whole) - tf.exp(tried - whole))


def _log_masses(relative: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `logsumexp(b * z)` over the classes not in `indices`.

    Args:
        relative: float32 `(batch, ..., classes)`, at most 0.
        indices: int32 `(batch, ..., k)`.

    Returns:
        For b in `REST_BETAS` but 0, `(batch, ..., 7)`; and for b in `TRIED_BETAS`.
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
    root, e2 = tf.sqrt(e), e * e
    e3 = e * e * e
    e6 = e3 * e3
    e10 = e6 * e3 * e
    e13 = e10 * e3
    rest = [e, e3, e6, e10, e13, e13 * e * e, e13 * e3]
    tried = [root, e2, e2 * e2 * root, e6 * e2, e10 * e * root]
    sums = [tf.reduce_sum(power, -1) for power in (*rest, *tried)]
    masses = tf.math.log(tf.maximum(tf.stack(sums, -1), 1e-37))
    return masses[..., : len(rest)], masses[..., len(rest) :]
