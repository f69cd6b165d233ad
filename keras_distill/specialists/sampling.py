"""The training set of a specialist: half its own classes, half a draw of the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import reading
from keras_distill.keras_compat import traced_quietly
from keras_distill.labels import weights_of
from keras_distill.run_directory import arrays_fingerprint, examples_fingerprint
from keras_distill.soft_targets import sources, views
from keras_distill.teacher import nan_by_example, nan_in_inputs

#: Examples that a stream is shuffled among; the arrays' are shuffled as a whole.
_SHUFFLED = 10_000


@dataclasses.dataclass
class TrainingData:
    """Labelled data as the user gave it, and how often each class is in it.

    Args:
        data: a tuple `(x, y)` or `(x, y, sample_weight)` of arrays, a `tf.data.Dataset` of
            such examples or batches, or a function without arguments that returns one.
        classes: number of classes.
        shapes: of the model's inputs, as `reading.are_batches` takes them.
        batched: bool, whether a dataset's elements are batches; `None` finds out.
        accepts_nan: whether the generalist is made for NaN in its inputs.

    Raises:
        TypeError: if it is none of these.
        ValueError: if it has no labels, or labels out of range.
    """

    data: Any
    classes: int
    shapes: Any
    batched: bool | None = None
    accepts_nan: bool = False

    def __post_init__(self) -> None:
        data = reading.read(self.data)
        self.is_arrays = isinstance(data, tuple)
        self.inputs_digest: str | None = None
        if self.is_arrays:
            self._check_structure(data)
            self.data = keras.tree.map_structure(np.asarray, data)
            x, _, *weight = self.data
            self._check_numbers(tf.nest.flatten(x), *weight)
            self.labels = self._integers(self.data[1])
            self.counts = np.bincount(self.labels, minlength=self.classes)
            return
        dataset = sources.as_dataset(self.data, any_order=True)
        self._check_structure(dataset.element_spec)
        if self.batched is None:
            spec = dataset.element_spec
            self.batched = not self.shapes or reading.are_batches(spec, self.shapes)
        inputs = dataset.map(lambda x, *rest: x)
        sources.check_one_shape(inputs, int(self.batched), "training data")
        self.counts = self._count(dataset)

    def _check_structure(self, structure: Any) -> None:
        if not isinstance(structure, tuple) or len(structure) not in (2, 3):
            raise ValueError(
                "specialists are trained on labelled data: give (x, y) or (x, y, "
                "sample_weight) arrays, or a dataset of these."
            )

    def _check_numbers(self, inputs: list[np.ndarray], weight: Any = None) -> None:
        """Refuses inputs that are NaN, and weights that are no weights."""
        has_nan = any(
            part.dtype.kind == "f" and np.isnan(part).any() for part in inputs
        )
        if has_nan and not self.accepts_nan:
            raise ValueError(nan_in_inputs("in the training data"))
        if weight is not None:
            weights_of(weight, np.shape(weight)[:1])

    def _integers(self, y: np.ndarray) -> np.ndarray:
        """Returns labels as int64 `(examples,)`."""
        shape = y.shape
        if y.ndim == 2 and y.shape[1] == self.classes > 1:
            if not ((y.max(-1) == 1) & (y.sum(-1) == 1)).all():
                raise ValueError(
                    "the labels are not one-hot: some rows have more than a single 1. "
                    "Specialists sample by class; give the classes as whole numbers."
                )
            y = y.argmax(-1)
        y = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
        if y.dtype.kind == "f" and (y == np.round(y)).all():
            y = y.astype("int64")
        if y.ndim != 1 or y.dtype.kind not in "iub":
            raise ValueError(
                "labels must be whole numbers, one for each example, or one-hot over the "
                f"generalist's {self.classes} classes; got {y.dtype} of shape {shape}."
            )
        low, high = (int(y.min()), int(y.max())) if len(y) else (0, 0)
        if low < 0 or high >= self.classes:
            raise ValueError(
                f"the labels go from {low} to {high}, but the generalist has the classes 0 to "
                f"{self.classes - 1}, {self.classes} outputs; the data is of another kind."
            )
        return y.astype("int64")

    def _count(self, dataset: tf.data.Dataset) -> np.ndarray:
        """Reads all data once: how often each class is there, and what inputs."""
        batches = dataset if self.batched else dataset.batch(256)

        def prints(x: Any) -> tf.Tensor:
            return tf.reshape(tf.bitcast(examples_fingerprint(x), tf.uint64), [-1])

        read = batches.map(
            lambda x, y, *weight: (prints(x), y, nan_by_example(x), weight)
        )
        firsts = [one for _ in range(2) for one, *_ in read.take(1).as_numpy_iterator()]
        counts, total = np.zeros(self.classes, "int64"), np.uint64(0)
        for one, y, is_nan, weight in read.as_numpy_iterator():
            self._check_numbers([np.where(is_nan, np.nan, 0.0)], *weight)
            counts += np.bincount(self._integers(y), minlength=self.classes)
            with np.errstate(over="ignore"):
                total += one.sum(dtype="uint64")
        if not counts.any():
            raise ValueError("the training data is empty; check what made it.")
        # Inputs that come otherwise each time, as by augmentation, tell nothing.
        if np.array_equal(*firsts):
            self.inputs_digest = f"{int(total):016x}"
        return counts

    def input_specs(self) -> Any:
        """Returns tensor specs of a batch's inputs."""
        if self.is_arrays:
            return sources.specs_of(self.data, 1, None)[0]
        spec = sources.as_dataset(self.data, any_order=True).element_spec[0]
        return sources.specs_of(spec, int(bool(self.batched)), None)

    def check_views(self, augment: Callable, generalist: keras.Model) -> None:
        """Refuses views that the generalist does not take, or that come otherwise each time.

        Raises:
            ValueError: with the shapes of both, or that the seed is not all that counts.
        """
        given = self.input_specs()
        views_of = views.output_specs(augment, given)
        _check_made(views_of, given)
        made = tf.nest.flatten(views_of)
        plain = [one.shape[1:] for one in tf.nest.flatten(given)]
        wanted = [one.shape[1:] for one in generalist.inputs]
        # As Keras has it, an axis of 1 at the end may be left out, as in the data.
        is_alike = len(made) == len(plain) and all(
            any(view.shape.is_compatible_with(one) for one in taken)
            for view, *taken in zip(made, wanted, plain, strict=False)
        )
        if not is_alike:
            raise ValueError(
                f"augment makes examples of shapes {[tuple(v.shape) for v in made]}, and the "
                f"generalist takes {[tuple(one) for one in wanted]}; return the inputs of one "
                "example as the generalist takes them."
            )
        if self.is_arrays:
            first = keras.tree.map_structure(lambda part: part[:16], self.data[0])
        else:
            dataset = sources.as_dataset(self.data, any_order=True)
            batches = dataset if self.batched else dataset.batch(16)
            first = next(iter(batches.map(lambda x, *rest: x).take(1)))

        def seen(x: Any) -> list:
            return tf.nest.flatten(
                views.augmented(augment, x, 0, 0, tf.constant(0, tf.int64))
            )

        # Of a graph that is made once: else tf.random begins anew where there is a global seed.
        made_once = traced_quietly(seen, reduce_retracing=True)
        wanted, *others = made_once(first), made_once(first), seen(first)
        if not all(all(map(_are_same, wanted, other)) for other in others):
            raise ValueError(
                "augment makes other views of the same examples by the same seeds, so no run "
                "could be repeated or resumed; draw all randomness by stateless operations "
                "(tf.random.stateless_uniform) from the seed that it is given."
            )

    def fingerprint(self) -> dict[str, Any]:
        """Returns what tells this data from other data.

        Of arrays, all; of datasets, the labels' counts, and the inputs where they come
        twice alike.
        """
        digest = self.inputs_digest
        if self.is_arrays:
            digest = arrays_fingerprint(keras.tree.flatten(self.data))
        return {"examples_by_class": self.counts.tolist(), "inputs": digest}


def _check_made(made: Any, given: Any) -> None:
    """Refuses an example of other names than the data's, or of text for numbers."""
    parts, wanted = tf.nest.flatten(made), tf.nest.flatten(given)
    is_text = [part.dtype == tf.string for part in parts]
    if len(parts) == len(wanted) and is_text != [w.dtype == tf.string for w in wanted]:
        raise ValueError(
            f"augment makes examples of dtypes {[p.dtype.name for p in parts]} of inputs of "
            f"{[w.dtype.name for w in wanted]}; return them as the generalist takes them."
        )
    if isinstance(given, dict) and not (
        isinstance(made, dict) and sorted(made) == sorted(given)
    ):
        names = sorted(made) if isinstance(made, dict) else type(made).__name__
        raise ValueError(
            f"augment makes {names} of the inputs {sorted(given)}; return a dict of the same "
            "names."
        )


def _are_same(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


@dataclasses.dataclass(frozen=True)
class ClusterSampler:
    """Draws the training set of one specialist, anew for each epoch.

    An epoch has every example of the special classes once, and as many of the rest, drawn
    at random; so that within both halves the classes are mixed as in the data. Nothing
    is copied: arrays are indexed, datasets are read through once an epoch and each
    example of the rest is kept with the probability special / rest.

    Args:
        source: the data.
        cluster: class numbers.
        relabel: whether classes become positions in the cluster, and the rest the
            dustbin, `len(cluster)`; else they stay.
        batch_size: int.
        seed: int; the same seed gives the same draws.
        augment: `fn(x, seed)`, from the inputs of one example and an int64 seed `(2,)` to its
            inputs, applied to each example each time that it is drawn; `None` for none.
    """

    source: TrainingData
    cluster: Sequence[int]
    relabel: bool
    batch_size: int
    seed: int
    augment: Callable | None = None

    @property
    def special(self) -> int:
        """Examples of the special classes."""
        return int(self.source.counts[list(self.cluster)].sum())

    @property
    def rest(self) -> int:
        """Examples of all other classes."""
        return int(self.source.counts.sum()) - self.special

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return -(-2 * self.special // self.batch_size)

    def dataset(self) -> tf.data.Dataset:
        """Returns endless batches; `steps_per_epoch` of them are an epoch."""
        make = self._of_arrays if self.source.is_arrays else self._of_stream
        batches = make()
        if self.augment is not None:
            batches = batches.enumerate().map(
                self._view, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
            )
        return batches.prefetch(2)

    def _view(self, number: Any, batch: tuple) -> tuple:
        """Returns a batch whose examples are augmented, by seeds of their place in the run."""
        assert self.augment is not None
        x, *rest = batch
        first = number * self.batch_size
        return views.augmented(self.augment, x, self.seed, 0, first), *rest

    def _table(self) -> np.ndarray:
        """Returns the new label of each class."""
        classes = self.source.classes
        if not self.relabel:
            return np.arange(classes)
        table = np.full(classes, len(self.cluster), "int64")
        table[list(self.cluster)] = np.arange(len(self.cluster))
        return table

    def _of_arrays(self) -> tf.data.Dataset:
        x, _, *weight = sources.specs_of(self.source.data, 1, None)
        signature = (x, tf.TensorSpec((None,), tf.int64), *weight)
        return tf.data.Dataset.from_generator(self._batches, output_signature=signature)

    def _batches(self) -> Iterator[Any]:
        x, _, *weight = self.source.data
        labels, table = self.source.labels, self._table()
        is_special = np.isin(labels, list(self.cluster))
        special, rest = np.flatnonzero(is_special), np.flatnonzero(~is_special)
        rng = np.random.default_rng(self.seed)
        while True:
            drawn = rng.choice(rest, len(special), replace=len(rest) < len(special))
            order = rng.permutation(np.concatenate([special, drawn]))
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                yield (
                    keras.tree.map_structure(lambda a, rows=rows: a[rows], x),
                    table[labels[rows]],
                    *(w[rows] for w in weight),
                )

    def _of_stream(self) -> tf.data.Dataset:
        source = self.source
        examples = sources.as_dataset(source.data, any_order=True)
        if source.batched:
            examples = examples.unbatch()
        table = tf.constant(self._table())
        special = tf.constant(np.isin(np.arange(source.classes), list(self.cluster)))
        rate = self.special / self.rest

        def relabelled(x: Any, y: Any, *weight: Any) -> tuple:
            is_one_hot = y.shape.rank == 1 and y.shape[0] != 1
            y = tf.argmax(y) if is_one_hot else tf.reshape(tf.cast(y, tf.int64), ())
            return x, y, *weight

        def one_epoch(epoch: Any) -> tf.data.Dataset:
            def copies(index: Any, example: tuple) -> Any:
                seed = tf.stack([self.seed + epoch, index])
                u = tf.random.stateless_uniform((), seed)
                drawn = int(rate) + tf.cast(u < rate - int(rate), tf.int64)
                return tf.where(tf.gather(special, example[1]), np.int64(1), drawn)

            numbered = examples.map(relabelled).enumerate()
            if rate <= 1:
                drawn = numbered.filter(lambda i, e: copies(i, e) > 0)
                return drawn.map(lambda i, e: e)
            return numbered.flat_map(
                lambda i, e: tf.data.Dataset.from_tensors(e).repeat(copies(i, e))
            )

        epochs = tf.data.Dataset.range(np.iinfo("int64").max)
        return (
            epochs.flat_map(one_epoch)
            .shuffle(min(2 * self.special, _SHUFFLED), seed=self.seed)
            .map(lambda x, y, *weight: (x, tf.gather(table, y), *weight))
            .batch(self.batch_size)
        )


def seed_of(*numbers: int) -> int:
    """Returns a seed that no other numbers give."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)
