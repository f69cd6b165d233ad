"""SoftTargets: a teacher's answers on disk, checked against the data they are for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_distill.arguments import (
    check_bool,
    check_int,
    check_names,
    check_output_kinds,
    check_path,
    check_verbose,
)
from keras_distill.run_directory import teacher_fingerprint
from keras_distill.several_logits import MeanLogits
from keras_distill.soft_targets import digests, joining, shards, writing
from keras_distill.soft_targets import sources as data_sources
from keras_distill.soft_targets.contents import Contents
from keras_distill.soft_targets.jobs import Job
from keras_distill.soft_targets.joining import Cached
from keras_distill.soft_targets.settings import (
    FINISHED,
    Settings,
    directory,
    read_settings,
)
from keras_distill.soft_targets.views import name_of_augment
from keras_distill.structures import each_output, keyed
from keras_distill.teachers import as_teacher


class SoftTargets(Contents):
    """A teacher's logits, cached on disk for every example of a dataset.

    Made by `SoftTargets.write` or `SoftTargets.open`; given to a student's training by
    `join`. The teacher is paid for once, not once an epoch, and need not be in memory.

    **On disk** a store is a folder:

    - `manifest.json`, written last: a store without it is not finished. Every key of
      `SoftTargets.manifest`, the BLAKE2b (32 bytes) of each shard among them, and `checksum`, the SHA-256 of the JSON of all others with
      sorted keys. `settings.json` is what was known at the start.
    - `view-000-shard-00000.tfrecord`, ...: for each view the examples in the data's
      order, `shard_size` in each shard (the last may have fewer). A TFRecord file, with
      TensorFlow's own CRC-32C of every record. A record is up to 1024 rows one after
      another; a row is one example, `row_bytes` long: the fields that the manifest lists
      in `row` as `[name, dtype, shape]`, little endian, without padding.

    The fields of a row:

    - `fingerprint`: FarmHash Fingerprint64 of the example's inputs, as `tf.fingerprint`
      gives it; of several inputs, of their fingerprints joined, in the order of
      `tf.nest.flatten`. `augmented`: the same of the view that the teacher saw.
    - `max`: float32, the largest logit. Not there with dtype float32, nor of an output of
      the kind "sigmoid" or "values".
    - `logits`: the logits minus `max` (without it the logits themselves), within 65504 with
      float16; with `top_k` only the largest, largest first. Values are float32 in any dtype.
    - `indices`: with `top_k`, their classes.
    - `rest`: with `top_k` below the number of classes, `logsumexp(b * (z - max))` over
      the other classes' logits z, for b = 1/16, 3/16, 6/16, 10/16, 13/16, 15/16, 1
      (with float32 without `- max`).

    - `layer:NAME`: a hidden layer's output, within the range of its dtype.

    With `top_k=k` of more than 256 and at most 65 536 classes, an output of float16 or bfloat16
    takes 4 k + 18 bytes for each softmax: of a vocabulary of 32 000, 58 a token for k = 10, 218
    for 50 and 418 for 100; float32 6 k + 28.

    For a list of teachers whose probabilities are averaged, `max` and `logits` have an axis
    more before the classes: `members` teachers. With a `temperature` they are of the one
    mean at it.

    For a teacher with several outputs, fields are named `output/max` and so on. View v of
    example i is `augment(x, seed)` with the seed `[65536 * s + v, i]`, int64, where s is
    the store's own seed.

    Example:
    >>> import tempfile, keras
    >>> import numpy as np
    >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.random.rand(100, 4).astype("float32"), np.random.randint(3, size=100)
    >>> data = tf.data.Dataset.from_tensor_slices((x, y))
    >>> targets = SoftTargets.write(tempfile.mkdtemp(), teacher, data)
    >>> len(targets), targets.manifest["classes"]
    (100, 3)
    >>> batches = targets.join(data).shuffle(100).batch(32)  # for Distiller.fit

    Reference: views after Wu et al., TinyViT, arXiv:2207.10666, and Beyer et al.,
    arXiv:2106.05237: a good teacher is patient and consistent.
    """

    def __init__(self, path: str, content: dict[str, Any], augment: Any = None) -> None:
        self.path = path
        self._content = content
        self._cached = Cached(path, content, augment)

    @property
    def augment(self) -> Callable | None:
        """The function that makes the views, as given to `write` or `open`."""
        return self._cached.augment

    @classmethod
    def write(
        cls,
        path: str | os.PathLike,
        teacher: Any,
        dataset: Any,
        *,
        top_k: int | None = None,
        dtype: str = "float16",
        layers: Sequence[str] = (),
        views: int = 1,
        augment: Callable | None = None,
        seed: int = 0,
        shard_size: int | None = None,
        batch_size: int = 128,
        batched: bool | None = None,
        teacher_from_logits: Any = None,
        teacher_average: str = "probabilities",
        output_kinds: Any = None,
        temperature: float | None = None,
        n_jobs: int | None = None,
        part: tuple[int, int] | None = None,
        overwrite: bool = False,
        verbose: bool = True,
    ) -> SoftTargets | None:
        """Runs the teacher over a dataset once and caches its logits.

        A killed run goes on after its last whole shard when called again with the same
        arguments, and ends with the same bytes. Called again on a finished store of the
        same teacher and settings, it compares one batch and opens it.

        Args:
            path: a folder, on any file system that `tf.io.gfile` knows.
            teacher: anything that may teach a `Distiller`: a model, a list, a path, a
                callable. NaN in its inputs is refused, unless it has an attribute
                `accepts_nan` that is true.
            dataset: a `tf.data.Dataset` of examples or batches, `x`, `(x, y)` or `(x, y,
                sample_weight)`, in the same order each time; arrays, or a tuple or dict
                of them; or a function without arguments that returns such a dataset. One
                made of a Python generator must say its end, by
                `tf.data.experimental.assert_cardinality(n)` or `take(n)`.
            top_k: of softmax outputs cache only the k largest logits, and the log-mass of
                all others at
                eight temperatures: the mass at any T >= 1 is interpolated, exact at these
                and to about a thousandth elsewhere; an example for which it is off by more
                than a hundredth is refused. Default: all logits.
            dtype: of the logits on disk: "float16" (default), "bfloat16", "float32".
                Values are always float32.
            layers: names of hidden layers to cache too, for `FeatureLoss`.
            views: int, how many augmented views of each example; default 1.
            augment: `fn(x, seed)`, from the inputs of one example and an int64 seed
                `(2,)` to its inputs; all randomness by stateless ops from that seed.
            seed: int from 0 to 2**31 - 1, of the views.
            shard_size: examples in a shard; by default about 16 MB, at most 16 384.
            batch_size: examples that the teacher sees at once. Default 128.
            batched: whether a dataset's elements are batches. By default found from the
                teacher's inputs; batches, where these are not known.
            teacher_from_logits: as in `Distiller`.
            teacher_average: as in `Distiller`.
            output_kinds: what the teacher's numbers describe: "softmax", "sigmoid" or
                "values"; or a dict of these by output name. `None` (default) finds out from
                its last layer and the loss that it was compiled with; what neither says is
                the student's to say. Logits are cached of the first two, values as they are.
            temperature: only for a list of teachers whose probabilities are averaged, and
                ignored elsewhere. `None` (default) keeps each teacher's logits, so that
                the store is as many times larger and serves every temperature; a number
                T > 0 keeps the mean at T alone, which serves no other: a `Distiller` or
                `search` at another is refused.
            n_jobs: number of processes, as in joblib. `None` (default) is 1, or what
                `joblib.parallel_config` says, which also chooses the backend: loky,
                Dask, Ray. The shards are those of a single process. Data must be arrays
                or a function.
            part: `(i, n)`: write only the i-th of n parts of the shards, by hand on
                several machines that share the path. A last call without it finishes.
            overwrite: whether to begin anew, replacing what is there. Default `False`.
                Not with `part`.
            verbose: whether to show a progress bar where it takes over two seconds. Default `True`.

        Returns:
            The store, opened; `None` if only a part was written.

        Raises:
            ValueError: if an argument is out of range, the data is empty, endless or
                shuffled anew each time, the teacher's answer is not finite, its logits
                spread too widely for `top_k`, several teachers are to be averaged at any
                temperature and `top_k` is said, or the path holds soft targets of another
                kind, saying what differs.
            TypeError: if the data is of no kind that can be read, or is a dataset object
                and `n_jobs` more than 1.
            BlockingIOError: if another process is writing to a local path.
            ChildProcessError: after all others, if processes were killed three times over
                the same shards; what was written stays.
            OSError: if the disk is full; what was written stays.
        """
        verbose = check_verbose(verbose)
        settings = Settings(
            dtype=dtype,
            top_k=top_k,
            layers=check_names("layers", layers),
            views=views,
            augment=name_of_augment(augment),
            seed=seed,
            temperature=temperature,
            shard_size=shard_size,
            batch_size=batch_size,
        )
        teaches = (teacher, teacher_from_logits, teacher_average)
        if batched is not None:
            batched = check_bool("batched", batched)
        output_kinds = check_output_kinds("output_kinds", output_kinds)
        job = Job(
            _path(path), settings, *teaches, dataset, batched, augment, output_kinds
        )
        overwrite = check_bool("overwrite", overwrite)
        writing.write(job, n_jobs, part, overwrite, verbose)
        return None if part is not None else cls.open(path, augment=augment)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        *,
        teacher: Any = None,
        augment: Callable | None = None,
        **expected: Any,
    ) -> SoftTargets:
        """Opens a finished store.

        Args:
            path: its folder.
            teacher: if given, must be the teacher that it was written with; then every
                shard is read, to be sure that it is of this store. Else that is done when
                a shard is first read in a process.
            augment: the function that made the views; needed for `join`, if there is one.
            **expected: values that the manifest must have, such as `classes=10`,
                `top_k=None`, `views=4`.

        Returns:
            `SoftTargets`.

        Raises:
            FileNotFoundError: if there is no store, or it is not finished.
            ValueError: if it is damaged, or not as expected, saying what differs.
            TypeError: if an expected key is not one of the manifest's.
        """
        folder = directory(_path(path))
        content = read_settings(folder, FINISHED)
        if content is None:
            raise FileNotFoundError(
                f"{folder.path!r} holds no finished soft targets, "
                f"{len(shards.existing(folder.path))} shards so far; run SoftTargets.write "
                "with the same arguments as before: it goes on where it stopped."
            )
        keys = {**content, "output_kinds": None}  # which stores of before do not have
        if unknown := [key for key in expected if key not in keys]:
            raise TypeError(
                f"{unknown[0]!r} is no key of the manifest; it has {', '.join(keys)}."
            )
        if isinstance(kinds := expected.get("output_kinds"), dict):
            outputs = content["outputs"]
            found = keyed(kinds, outputs, what="output_kinds")
            expected["output_kinds"] = [found[key] for key in outputs]
        if teacher is not None:
            as_teacher(teacher, outputs=())  # refuses what is none
            found = teacher_fingerprint(teacher)
            average = content["teacher"].get("average")
            expected["teacher"] = {**found, **({"average": average} if average else {})}
        if augment is not None:
            expected["augment"] = name_of_augment(augment)
        if phrases := "; ".join(folder.differences(content, expected)):
            raise ValueError(
                f"the soft targets in {folder.path!r} are not as expected: {phrases}."
            )
        started = read_settings(folder)
        if started is not None and folder.differences(
            started, Settings.of_manifest(content).compared(started)
        ):
            raise ValueError(
                f"manifest.json in {folder.path!r} is not of the soft targets that "
                "settings.json there describes: one of them was put there from another "
                "store. Write them again with overwrite=True."
            )
        for entry in content["shards"]:
            file = folder.file(entry["file"])
            is_there = tf.io.gfile.exists(file)
            if not is_there or tf.io.gfile.stat(file).length != entry["bytes"]:
                raise ValueError(shards.damaged(file))
            if teacher is not None:
                digests.check_shard(file, entry)
        return cls(folder.path, content, augment)

    def join(
        self, dataset: Any, *, epoch: int | None = None, batched: bool | None = None
    ) -> tf.data.Dataset:
        """Joins the cached soft targets to their data, for `Distiller.fit`.

        Every example is checked against the fingerprint that was stored with its soft
        targets, so that a pair is right or there is an error. Join before `shuffle`,
        `repeat`, `take` and `cache`; before or after `batch`.

        With several views, the student gets in epoch e the view `e % views`, the very
        bits that the teacher saw. The epoch is that of the `Distiller.fit` that is given
        the data, for training or validation, read where a pass over it begins: let `fit`
        count the epochs, since `repeat` begins the next pass early, and `cache` after
        `join` would hold on to one view. Elsewhere it is 0; say `epoch=`. Fits in several
        threads need a joined dataset each.

        Args:
            dataset: as for `write`, in the same order; labels and weights may be others.
            epoch: int >= 0, for the view of one epoch; by default, that of the `fit`.
            batched: whether its elements are batches. Default: found from its shapes.

        Returns:
            `tf.data.Dataset` of `(DistillationInputs, ...)`, examples or batches as they
            were given. Iterating over it raises `tf.errors.InvalidArgumentError` where an
            example is not the one that was written, or a shard not the one that the
            manifest names, and `tf.errors.DataLossError` where a checksum does not hold;
            `Distiller.fit` makes a `ValueError` of both.

        Raises:
            ValueError: if the length or shapes of the data are others, or it is endless
                or shuffled, `augment` was not given to `open`, or the store was written
                anew since.
        """
        if self._cached.augment is None and self._content["augment"] is not None:
            raise ValueError(
                f"these soft targets are for views made by {self._content['augment']}; "
                "pass that function: SoftTargets.open(path, augment=...)."
            )
        if epoch is not None:
            epoch = check_int("epoch", epoch, 0)
        if batched is not None:
            batched = check_bool("batched", batched)
        self._cached.check_current()
        data = data_sources.as_dataset(dataset, length_is_known=True)
        return joining.join(self._cached, data, epoch, batched)

    def logits(self, view: int = 0) -> tf.data.Dataset:
        """Returns what was cached, without the data.

        Args:
            view: int.

        Returns:
            `tf.data.Dataset` of blocks of up to 1024 rows: float32 `(rows, ...,
            classes)`, `TopKLogits` or `MemberLogits`; a dict or tuple of them for several
            outputs. Hidden layers are left out.
        """
        view = check_int("view", view, 0, self._content["views"] - 1)
        self._cached.check_current()
        rows = self._cached.rows
        return self._cached.stream(view).map(
            lambda block: each_output(
                lambda one: one.logits if isinstance(one, MeanLogits) else one,
                rows.decode(block)[0],
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def verify(self) -> None:
        """Reads all shards and verifies every checksum and digest.

        Raises:
            ValueError: naming the first file that is damaged, or not of this store; or if
                the store was written anew since it was opened.
        """
        self._cached.check_current()
        for entry in self._content["shards"]:
            file = os.path.join(self.path, entry["file"])
            count = sum(len(r) for r in shards.read(file, self._content["row_bytes"]))
            if count != entry["rows"]:
                raise ValueError(shards.damaged(file))
            digests.check_shard(file, entry, anew=True)

    @property
    def manifest(self) -> dict[str, Any]:
        """What made the store, and what is in it: a copy of `manifest.json`."""
        return json.loads(json.dumps(self._content))

    def __len__(self) -> int:
        return self._content["examples"]


def _path(path: str | os.PathLike) -> str:
    plain = check_path("path", path)
    return plain if "://" in plain else os.path.abspath(plain)
