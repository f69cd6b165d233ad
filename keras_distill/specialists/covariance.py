"""Which classes a generalist confuses: the covariance of its soft predictions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
import tensorflow as tf

from keras_distill import progress, user_functions
from keras_distill.arguments import check_int, check_temperature
from keras_distill.keras_compat import traced_quietly
from keras_distill.several_logits import one_mean
from keras_distill.soft_targets.settings import Settings
from keras_distill.soft_targets.sources import Source
from keras_distill.soft_targets.store import SoftTargets
from keras_distill.teacher import Teacher, nan_by_example, nan_in_inputs
from keras_distill.teachers import as_teacher
from keras_distill.top_k import TopKLogits

#: Examples whose products are summed at once; the cost of a sum goes by its result.
_BLOCK = 4096
_SPARSE_BLOCK = 65_536


@user_functions.plain_errors()
def class_covariance(
    generalist: Any,
    dataset: Any = None,
    *,
    top_k: int | None = None,
    temperature: float = 1.0,
    from_logits: bool | None = None,
    batched: bool | None = None,
    batch_size: int = 512,
    verbose: bool = True,
) -> Any:
    """Returns the covariance of the classes over a generalist's soft predictions.

        cov[i, j] = sum over examples of (p[i] - mean[i]) * (p[j] - mean[j]) / (n - 1)

    with `p = softmax(z / T)`: what `numpy.cov(all_predictions, rowvar=False)` gives, in
    one pass, summed in float64. Classes that are often predicted together are the ones
    that the generalist confuses. No labels are used.

    Args:
        generalist: a `keras.Model` or anything else that may teach, with logits or
            probabilities `(batch, classes)`; or a `SoftTargets` store of its answers,
            then without a dataset.
        dataset: finite `tf.data.Dataset` (of examples or batches, in any order), arrays,
            or a function that returns a dataset; labels are not looked at.
        top_k: int >= 2, for many classes: predictions beyond each example's k largest
            count as 0. The result is then sparse and holds the pairs of classes that were
            among one example's k largest; other entries, which are `-mean[i] * mean[j]`,
            are left out. `None` (default) keeps all.
        temperature: T > 0, default 1.
        from_logits: bool, whether the generalist gives logits; `None` finds out.
        batched: bool, whether the dataset's elements are batches; `None` finds out.
        batch_size: examples that the generalist sees at once. Default 512.
        verbose: whether to show a progress bar, after two seconds. Default `True`.

    Returns:
        float64 `(classes, classes)`; with `top_k` a `scipy.sparse.csr_array`.

    Raises:
        ValueError: if a prediction is not finite or not of shape `(batch, classes)`, there
            are fewer than two examples, or `top_k` is out of range.

    Example:
    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> class_covariance(model, np.eye(4, dtype="float32")).shape
    (3, 3)

    Reference: arXiv:1503.02531, section 5.3.
    """
    temperature = check_temperature(temperature)
    top_k = None if top_k is None else check_int("top_k", top_k, 2)
    batch_size = check_int("batch_size", batch_size, 1)
    if isinstance(generalist, SoftTargets):
        if dataset is not None:
            raise ValueError(
                "cached soft targets bring their own examples; leave the dataset out, or "
                "give the generalist itself."
            )
        of = Settings.of_manifest(generalist.manifest).mean_temperature
        if of not in (None, temperature):
            raise ValueError(
                f"these soft targets are the mean of several teachers' probabilities at "
                f"T = {of:g}, which is no mean at temperature={temperature:g}; pass "
                f"temperature={of:g}."
            )
        blocks, total = generalist.logits(), generalist.manifest["examples"]
        classes = generalist.manifest["classes"]
        if not isinstance(classes, int):
            raise ValueError(f"the generalist must have one output, got {classes}.")
    else:
        if dataset is None:
            raise ValueError(
                "the generalist needs a dataset to predict; or give a SoftTargets store of "
                "its answers."
            )
        teacher = as_teacher(generalist, from_logits)
        source = Source(dataset, batched, teacher.input_shapes, any_order=True)
        batches = source.batches(0, None, batch_size, batch_size)
        blocks = _answers(teacher, batches, temperature)
        total, classes = source.length, None
    moments: Any = _Dense() if top_k is None else _Sparse()
    shown = ("class covariance", "example", total, verbose)
    with progress.bar(*shown, unit_scale=True) as bar:
        for p in _predictions(blocks, top_k, temperature, classes, bar):
            moments.add(p)
    if moments.count < 2:
        raise ValueError("a covariance needs at least two examples; check the dataset.")
    return moments.covariance()


def _answers(
    teacher: Teacher, batches: tf.data.Dataset, temperature: float
) -> Iterator[Any]:
    """Yields blocks of a generalist's logits."""

    def answer(x: Any) -> tuple[Any, Any]:
        return teacher(x, temperature).logits, nan_by_example(teacher.inputs_of(x))

    run = traced_quietly(answer, reduce_retracing=True)
    done = 0
    for number, x in enumerate(batches):
        if number == 0:
            teacher.look_at(x)
        logits, has_nan = run(x)
        if not teacher.accepts_nan and has_nan.numpy().any():
            first = done + int(np.argmax(has_nan))
            raise ValueError(nan_in_inputs(f"for example {first}"))
        done += len(has_nan)
        if not tf.is_tensor(logits) or logits.shape.rank != 2:
            shapes = tf.nest.map_structure(lambda z: tuple(z.shape), logits)
            raise ValueError(
                f"the generalist must have one output of shape (batch, classes), got {shapes}."
            )
        yield logits


def _predictions(
    blocks: Any, top_k: int | None, temperature: float, classes: int | None, bar: Any
) -> Iterator[Any]:
    """Yields probabilities of many examples at once: float64, dense or sparse rows."""
    stack = np.concatenate if top_k is None else scipy.sparse.vstack
    waiting, rows = [], 0
    for block in blocks:
        p = _probabilities(block, top_k, temperature, classes)
        if not np.isfinite(p if top_k is None else p.data).all():
            raise ValueError(
                f"predictions for the examples {bar.n} to {bar.n + p.shape[0] - 1} are not "
                "all finite (NaN or infinity); check the generalist's weights and the inputs."
            )
        bar.update(p.shape[0])
        waiting.append(p)
        rows += p.shape[0]
        if rows >= (_BLOCK if top_k is None else _SPARSE_BLOCK):
            yield stack(waiting)
            waiting, rows = [], 0
    if waiting:
        yield stack(waiting)


def _probabilities(
    logits: Any, top_k: int | None, temperature: float, classes: int | None
) -> Any:
    """Returns softmax(logits / T), with what is beyond `top_k` left out."""
    indices, logits = None, one_mean(logits, temperature)
    if isinstance(logits, TopKLogits):
        scaled, indices = logits.values / temperature, logits.indices
        mass = tf.reduce_logsumexp(scaled, -1)
        if logits.has_rest:
            rest = logits.rest_at(temperature)
            mass = tf.reduce_logsumexp(tf.stack([mass, rest], -1), -1)
    else:
        scaled = tf.cast(logits, tf.float32) / temperature
        classes = int(scaled.shape[-1])
        mass = tf.reduce_logsumexp(scaled, -1)
    if top_k is not None and top_k < scaled.shape[-1]:
        scaled, best = tf.math.top_k(scaled, top_k, sorted=False)
        indices = best if indices is None else tf.gather(indices, best, batch_dims=1)
    p = np.exp(scaled.numpy().astype("float64") - mass.numpy()[:, None])
    if indices is None:
        # A float32 sum over many classes is a little off 1.
        p /= p.sum(-1, keepdims=True)
        return p if top_k is None else scipy.sparse.csr_array(p)
    rows = np.repeat(np.arange(len(p)), p.shape[1])
    where = (rows, indices.numpy().ravel())
    sparse = scipy.sparse.csr_array((p.ravel(), where), shape=(len(p), classes))
    return sparse.toarray() if top_k is None else sparse


class _Dense:
    """Mean and products of deviations, merged block by block (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.products: Any = 0.0

    def add(self, p: np.ndarray) -> None:
        n, mean = len(p), p.mean(0)
        deviations = p - mean
        self.products += deviations.T @ deviations
        apart = mean - self.mean
        self.products += np.outer(apart, apart) * (self.count * n / (self.count + n))
        self.count += n
        self.mean += apart * n / self.count

    def covariance(self) -> np.ndarray:
        return self.products / (self.count - 1)


class _Sparse:
    """The same for predictions of which few are not 0."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: Any = 0
        self.products: Any = 0

    def add(self, p: scipy.sparse.csr_array) -> None:
        self.count += p.shape[0]
        self.sum += p.sum(0)
        self.products = self.products + (p.T @ p).tocsr()

    def covariance(self) -> scipy.sparse.csr_array:
        result = self.products.tocoo()
        rows, columns = result.coords
        mean = self.sum / self.count
        # sum(p p') - n mean mean', on the pairs that were seen.
        result.data = result.data - self.count * mean[rows] * mean[columns]
        return (result / (self.count - 1)).tocsr()
