"""Writing soft targets: shard by shard, alone or in parts, resumed where it stopped."""

from __future__ import annotations

import datetime
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import joblib
import keras
import numpy as np
import tensorflow as tf

from keras_distill import progress
from keras_distill.outputs import by_output
from keras_distill.run_directory import file_errors, lock, remove_temporary, settling
from keras_distill.soft_targets import fingerprints, manifest, shards, sources, views
from keras_distill.soft_targets.jobs import Job
from keras_distill.soft_targets.rows import DTYPES
from keras_distill.teachers import as_teacher
from keras_distill.top_k import TopKLogits

#: Bytes of a shard, where its size is not given.
_SHARD_BYTES = 16_000_000
#: How close a teacher's answers must be to those of an earlier run on another machine.
_CLOSE = 1e-2


def write(
    path: str,
    teacher: Any,
    data: Any,
    *,
    top_k: int | None,
    dtype: str,
    layers: Sequence[str],
    views: int,
    augment: Callable | None,
    seed: int,
    shard_size: int | None,
    batch_size: int,
    batched: bool | None,
    teacher_from_logits: Any,
    teacher_average: str,
    temperature: float | None,
    n_jobs: int | None,
    part: tuple[int, int] | None,
    overwrite: bool,
    verbose: bool,
) -> None:
    """Writes a store; see `SoftTargets.write`."""
    _check(dtype, views, augment, seed, shard_size, batch_size, part)
    if overwrite and part is not None:
        raise ValueError(
            "overwrite=True with part would erase what other parts have written; delete "
            f"{path!r} first."
        )
    began = time.monotonic()
    options = {
        "from_logits": teacher_from_logits,
        "average": teacher_average,
        "temperature": temperature,
        "dtype": dtype,
        "top_k": top_k,
        "layers": list(layers),
        "seed": seed,
        "batch_size": batch_size,
        "shard_size": shard_size or batch_size,
    }
    job = Job(path, teacher, data, batched, augment, options)
    _settle_logits(job, temperature)
    job.start()
    if shard_size is None:
        fitting = max(1, min(16_384, _SHARD_BYTES // job.rows.bytes) // batch_size)
        options["shard_size"] = fitting * batch_size
    settings = _settings(job, views)
    with file_errors(path):
        tf.io.gfile.makedirs(path)
    with lock(path, part):
        with settling(path):
            is_written = _is_written(path, settings, overwrite, part)
        job.settings = {
            key: settings[key] for key in manifest.KEYS if key != "examples"
        }
        run = _Run(job, settings, views, verbose)
        if (0, 0) in shards.existing(path):
            run.check_first_batch()
        if is_written:
            return
        run.write(n_jobs, part)
        if part is None:
            run.finish(time.monotonic() - began)


def _check(
    dtype: str,
    views: int,
    augment: Callable | None,
    seed: int,
    shard_size: int | None,
    batch_size: int,
    part: tuple[int, int] | None,
) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    for name, value in (("views", views), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {value!r}.")
    if views > 1 and augment is None:
        raise ValueError(
            f"views={views} without augment would keep the same answer {views} times; "
            "pass augment=fn, with fn(x, seed) from one example and an int64 seed (2,) "
            "to one example."
        )
    if views > 1000:
        raise ValueError(f"views must be at most 1000, got {views}.")
    if not isinstance(seed, int) or not 0 <= seed < 1 << 31:
        raise ValueError(
            f"seed must be a whole number from 0 to 2**31 - 1, got {seed}."
        )
    if shard_size is not None and (not isinstance(shard_size, int) or shard_size < 1):
        raise ValueError(f"shard_size must be a whole number >= 1, got {shard_size!r}.")
    if part is not None and not (
        len(part) == 2
        and all(isinstance(i, int) for i in part)
        and 0 <= part[0] < part[1]
    ):
        raise ValueError(
            f"part must be (i, n) with i from 0 to n - 1, got {part!r}; (0, 4) writes the "
            "first quarter of the shards."
        )


def _settle_logits(job: Job, temperature: float | None) -> None:
    """Finds out whether an unknown teacher gives logits, from the first batch."""
    o = job.options
    bound = as_teacher(job.teacher, o["from_logits"], o["average"])
    if bound.averages_probabilities and temperature is None:
        raise ValueError(
            "the mean of several teachers' probabilities is another at every temperature; "
            "pass temperature=, the T that students will be trained at, or "
            'teacher_average="logits".'
        )
    members = getattr(bound, "members", [bound])
    if all(member.from_logits is not None for member in members):
        return
    job.source = sources.Source(job.data, job.batched, bound)
    size = o["batch_size"]
    inputs = next(iter(job.source.batches(0, 1, size, size)))
    if job.augment is not None:
        inputs = views.augmented(job.augment, inputs, o["seed"], 0, np.int64(0))
    bound.look_at(inputs)
    settled = [member.from_logits for member in members]
    if any(one != settled[0] for one in settled):
        raise ValueError(
            "some of the teachers give logits and some probabilities, and they do not say "
            "which; wrap each with keras_distill.as_teacher(teacher, from_logits=...)."
        )
    o["from_logits"] = settled[0]


def _settled(bound: Any) -> Any:
    """Returns whether a teacher's outputs are logits, as a value of the manifest."""
    members = getattr(bound, "members", None)
    if members is not None:
        return [_settled(member) for member in members]
    given = bound.from_logits
    return {str(k): v for k, v in given.items()} if isinstance(given, dict) else given


def _settings(job: Job, number_of_views: int) -> dict[str, Any]:
    o, rows = job.options, job.rows
    teacher = fingerprints.of_teacher(job.teacher)
    if teacher["kind"] == "list":
        teacher["average"] = o["average"]
    specs = tf.nest.flatten(job.source.specs)
    return {
        "format": manifest.FORMAT,
        "format_version": manifest.VERSION,
        "teacher": teacher,
        "from_logits": _settled(job.bound),
        "outputs": rows.outputs,
        "outputs_are_dict": rows.is_dict,
        "classes": rows.classes[0] if rows.outputs == [None] else rows.classes,
        "dtype": o["dtype"],
        "top_k": o["top_k"],
        "layers": o["layers"],
        "views": number_of_views,
        "augment": None if job.augment is None else fingerprints.name_of(job.augment),
        "seed": o["seed"],
        "temperature": o["temperature"],
        "inputs": [[list(s.shape[1:]), s.dtype.name] for s in specs],
        "examples": job.source.length,
        "shard_size": o["shard_size"],
        "batch_size": o["batch_size"],
        "row": [[f.name, f.dtype, list(f.shape)] for f in rows.fields],
        "row_bytes": rows.bytes,
    }


def _is_written(
    path: str, settings: dict, overwrite: bool, part: tuple[int, int] | None
) -> bool:
    """Tells whether all is there already; begins a store where there is none.

    Raises:
        ValueError: if something else is there.
    """
    wanted = {key: settings[key] for key in manifest.KEYS}
    if wanted["examples"] is None:
        del wanted["examples"]  # not known until all was read
    for name in (manifest.FINISHED, manifest.SETTINGS):
        found = None if overwrite else manifest.read(path, name)
        if found is None:
            continue
        if name == manifest.SETTINGS and found["examples"] is None:
            found["examples"] = wanted.get("examples")
        if phrases := manifest.differences(found, wanted):
            state = "finished" if name == manifest.FINISHED else "unfinished"
            raise ValueError(
                f"{path!r} holds {state} soft targets of another kind: "
                f"{'; '.join(phrases)}. Choose another path, or pass overwrite=True."
            )
        if name == manifest.FINISHED:
            return True
        break
    else:
        _clear(path)
        manifest.write(path, manifest.SETTINGS, settings)
    if part is None:
        remove_temporary(path)
    return False


def _clear(path: str) -> None:
    """Empties a folder of what a store consists of, its claim to be finished first."""
    for name in (manifest.FINISHED, manifest.SETTINGS):
        if tf.io.gfile.exists(os.path.join(path, name)):
            tf.io.gfile.remove(os.path.join(path, name))
    for view, shard in shards.existing(path):
        tf.io.gfile.remove(os.path.join(path, shards.name(view, shard)))


class _Run:
    """One call of `write`: which shards are missing, and who writes them."""

    def __init__(
        self, job: Job, settings: dict[str, Any], views: int, verbose: bool
    ) -> None:
        self.job = job
        self.settings = settings
        self.views = views
        self.verbose = verbose
        self.size = job.options["shard_size"]
        self.examples = job.source.length

    def write(self, n_jobs: int | None, part: tuple[int, int] | None) -> None:
        """Writes what is missing, or a part of it."""
        jobs = joblib.effective_n_jobs(n_jobs)
        if jobs > 1 and isinstance(self.job.data, tf.data.Dataset):
            raise TypeError(
                "a tf.data.Dataset cannot be sent to another process; pass arrays, or a "
                "function that returns the dataset, or n_jobs=1."
            )
        if jobs > 1 or part is not None:
            self.examples = self.job.source.count()
        if self.examples is None:
            self._write_to_the_end()
            return
        missing = self._missing()
        if part is not None:
            every = [(v, s) for v in range(self.views) for s in range(self._shards())]
            chosen = set(map(tuple, np.array_split(every, part[1])[part[0]].tolist()))
            missing = [one for one in missing if one in chosen]
        if jobs > 1 and missing:
            self._write_in_parallel(missing, jobs)
            return
        with self._bar() as bar:
            for view, first, count in _consecutive(missing):
                self.job.write(view, first, count, bar.update)

    def _shards(self) -> int:
        assert self.examples is not None
        return -(-self.examples // self.size)

    def _missing(self) -> list[tuple[int, int]]:
        existing = shards.existing(self.job.path)
        return [
            (view, shard)
            for view in range(self.views)
            for shard in range(self._shards())
            if (view, shard) not in existing
        ]

    def _write_to_the_end(self) -> None:
        """Writes data whose length is not known, one view after the other."""
        existing = shards.existing(self.job.path)
        with self._bar() as bar:
            for view in range(self.views):
                first = 0
                while (view, first) in existing:
                    first += 1
                last = self._rows_of(view, first - 1) if first else self.size
                known = (first - 1) * self.size + last if first else 0
                if last == self.size:
                    known = first * self.size
                    known += self.job.write(view, first, None, bar.update)
                if known == 0:
                    raise ValueError("the dataset is empty; check what made it.")
                if self.examples is not None and known != self.examples:
                    raise ValueError(
                        f"the data has {self.examples} examples in view 0 and {known} in "
                        f"view {view}: it must be the same each time it is read."
                    )
                self.examples = bar.total = known
                bar.total *= self.views

    def _rows_of(self, view: int, shard: int) -> int:
        file = os.path.join(self.job.path, shards.name(view, shard))
        return sum(len(rows) for rows in shards.read(file, self.job.rows.bytes))

    def _write_in_parallel(self, missing: list[tuple[int, int]], jobs: int) -> None:
        pieces = [
            [tuple(one) for one in piece.tolist()]
            for piece in np.array_split(missing, min(jobs, len(missing)))
        ]
        self.job.batched = self.job.source.batched
        with self._bar() as bar, progress.watching(lambda: self._count(bar)):
            joblib.Parallel(n_jobs=jobs)(
                joblib.delayed(_write_piece)(self.job, piece) for piece in pieces
            )
        if missing := self._missing():
            raise OSError(
                f"{len(missing)} shards written by other processes are not to be seen in "
                f"{self.job.path!r}; it must be a path that all of them share."
            )

    def _bar(self) -> Any:
        done = len(shards.existing(self.job.path)) * self.size
        total = None if self.examples is None else self.examples * self.views
        return progress.bar(
            "writing soft targets",
            "example",
            total,
            self.verbose,
            initial=done if total is None else min(done, total),
            unit_scale=True,
        )

    def _count(self, bar: Any) -> None:
        """Moves a bar by the shards that appear, whoever writes them."""
        done = min(len(shards.existing(self.job.path)) * self.size, bar.total)
        bar.update(done - bar.n)

    def finish(self, seconds: float) -> None:
        """Reads all shards again, then writes the manifest."""
        files, digest = self._verified()
        self.check_first_batch()
        assert self.examples is not None
        content = {
            **self.settings,
            "examples": self.examples,
            "dataset": digest,
            "shards": files,
            "versions": {
                name: version(name) for name in ("keras-distill", "tensorflow", "keras")
            },
            "created": datetime.datetime.now(datetime.UTC).isoformat(
                timespec="seconds"
            ),
            "seconds": round(seconds, 3),
        }
        manifest.write(self.job.path, manifest.FINISHED, content)

    def _verified(self) -> tuple[list[dict[str, Any]], str]:
        """Reads every record; all views must be of the same examples."""
        files, digests = [], []
        for view in range(self.views):
            digest = hashlib.sha256()
            for shard in range(self._shards()):
                is_last = shard == self._shards() - 1
                assert self.examples is not None
                wanted = self.examples - shard * self.size if is_last else self.size
                name = shards.name(view, shard)
                file = os.path.join(self.job.path, name)
                count = 0
                for rows in shards.read(file, self.job.rows.bytes):
                    digest.update(rows[:, : fingerprints.BYTES].tobytes())
                    count += len(rows)
                if count != wanted:
                    raise ValueError(shards.damaged(file))
                size = int(tf.io.gfile.stat(file).length)
                files.append({"file": name, "rows": count, "bytes": size})
            digests.append(digest.hexdigest()[:32])
        if any(one != digests[0] for one in digests):
            raise ValueError(f"{_UNSTEADY}.")
        return files, digests[0]

    def check_first_batch(self) -> None:
        """Compares data and teacher as they are now with the first rows on disk."""
        now = self.job.next_rows(iter(self.job.batches(0, 0, 1)))[0]
        file = os.path.join(self.job.path, shards.name(0, 0))
        then = next(shards.read(file, self.job.rows.bytes))[: len(now)]
        now = now[: len(then)]
        if not np.array_equal(
            now[:, : fingerprints.BYTES], then[:, : fingerprints.BYTES]
        ):
            raise ValueError(f"{_UNSTEADY}.")
        answers = [
            [
                *keras.tree.flatten(
                    [_comparable(part) for _, part in by_output(logits)]
                ),
                *layers.values(),
            ]
            for logits, layers in map(self.job.rows.decode, (now, then))
        ]
        for a, b in zip(*answers, strict=True):
            if not np.allclose(a, b, rtol=_CLOSE, atol=_CLOSE):
                raise ValueError(
                    "the teacher answers otherwise than when the first shard was written; "
                    "pass overwrite=True to write all of them with this teacher."
                )


_UNSTEADY = (
    "the data did not come twice in the same order, so soft targets cannot be joined to "
    "it later. Write before shuffle() and before random augmentation (pass that as "
    "augment=), then join and shuffle; pass overwrite=True to begin anew"
)


def _comparable(logits: Any) -> list[tf.Tensor]:
    """Returns what does not jump when two classes change places by rounding."""
    if isinstance(logits, TopKLogits):
        return [logits.values, logits.rest]
    return [logits]


def _consecutive(missing: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yields view, first shard and count of each run of consecutive shards."""
    start = 0
    for i in range(1, len(missing) + 1):
        view, shard = missing[i - 1]
        if i == len(missing) or missing[i] != (view, shard + 1):
            yield view, missing[start][1], i - start
            start = i


def _write_piece(job: Job, piece: list[tuple[int, int]]) -> None:
    """Writes some shards, in whatever process it is called."""
    job.start()
    for view, first, count in _consecutive(piece):
        job.write(view, first, count, lambda examples: None)
