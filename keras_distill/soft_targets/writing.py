"""Writing soft targets: shard by shard, alone or in parts, resumed where it stopped."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import time
from importlib.metadata import version
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import processes, progress
from keras_distill.arguments import check_int
from keras_distill.run_directory import (
    FINGERPRINT_BYTES,
    SETTINGS,
    RunDirectory,
    file_digest,
)
from keras_distill.several_logits import one_mean
from keras_distill.soft_targets import shards
from keras_distill.soft_targets.jobs import Job
from keras_distill.soft_targets.settings import FINISHED, directory, read_settings
from keras_distill.structures import by_output
from keras_distill.top_k import TopKLogits

#: How close a teacher's answers must be to those of an earlier run on another machine.
_CLOSE = 1e-2
_Part = tuple[int, int] | None


def write(
    job: Job, n_jobs: int | None, part: _Part, overwrite: bool, verbose: bool
) -> None:
    """Writes a store; see `SoftTargets.write`."""
    _check_part(part, overwrite, job.path)
    began = time.monotonic()
    seats = processes.Seats.of(n_jobs)
    job.settle()
    folder = directory(job.path)
    folder.make()
    with folder.lock(part):
        with folder.settling():
            is_written = _is_written(folder, job, overwrite, part)
        run = _Run(job, folder, verbose)
        if (0, 0) in shards.existing(job.path):
            run.check_first_batch()
        if is_written:
            return
        run.write(seats, part)
        if part is None:
            run.finish(began)


def _check_part(part: _Part, overwrite: bool, path: str) -> None:
    if part is None:
        return
    if overwrite:
        raise ValueError(
            "overwrite=True with part would erase what other parts have written; delete "
            f"{path!r} first."
        )
    try:
        i, n = part
        count = check_int("n", n, 1)
        check_int("i", i, 0, count - 1)
    except (TypeError, ValueError):
        raise ValueError(
            f"part must be (i, n) with i from 0 to n - 1, got {part!r}; (0, 4) writes the "
            "first quarter of the shards."
        ) from None


def _is_written(folder: RunDirectory, job: Job, overwrite: bool, part: _Part) -> bool:
    """Tells whether all is there already; begins a store where there is none.

    Raises:
        ValueError: if something else is there.
    """
    for name, state in ((FINISHED, "finished "), (SETTINGS, "unfinished ")):
        found = None if overwrite else read_settings(folder, name)
        if found is not None:
            wanted = job.settings.compared(found)
            remedy = "Choose another path, or pass overwrite=True."
            folder.refuse_differences(found, wanted, remedy, state)
            if part is None and name == SETTINGS:
                folder.remove_temporary()
            return name == FINISHED
    # Its claim to be finished goes first.
    left = [shards.name(*one) for one in shards.existing(folder.path)]
    folder.remove(FINISHED, SETTINGS, *left)
    folder.write_json(SETTINGS, job.settings.content())
    if part is None:
        folder.remove_temporary()
    return False


def _split(every: list[tuple[int, int]], parts: int) -> list[list[tuple[int, int]]]:
    return [list(map(tuple, p.tolist())) for p in np.array_split(every, parts)]


class _Run:
    """One call of `write`: which shards are missing, and who writes them."""

    def __init__(self, job: Job, folder: RunDirectory, verbose: bool) -> None:
        self.job = job
        self.folder = folder
        self.verbose = verbose

    def _set_examples(self, examples: int) -> None:
        self.job.settings = dataclasses.replace(self.job.settings, examples=examples)

    def write(self, seats: processes.Seats, part: _Part) -> None:
        """Writes what is missing, or a part of it."""
        if not seats.is_here:
            processes.check_can_be_sent(self.job, _REMEDY)
        if not seats.is_here or part is not None:
            self._set_examples(self.job.source.count())
        if self.job.settings.examples is None:
            self._write_first_view()
        missing = self._missing(part)
        if not seats.is_here and missing:
            self._spread(missing, seats)
        else:
            with self._bar() as bar:
                self.job.write_piece(missing, bar.update)
        if part is None and (missing := self._missing()):
            raise OSError(
                f"{len(missing)} shards that were written are not in {self.job.path!r}. All "
                "processes must share that path, and the data be the same at each reading."
            )

    def _write_first_view(self) -> None:
        """Writes data whose length is not known once to its end, which tells it."""
        existing, first = shards.existing(self.job.path), 0
        while (0, first + 1) in existing:  # the last of them may not be whole
            first += 1
        with self._bar() as bar:
            known = self.job.write(0, first, None, bar.update)
        known += first * (self.job.settings.shard_size or 0)
        if known == 0:
            raise ValueError("the dataset is empty; check what made it.")
        self._set_examples(known)

    def _missing(self, part: _Part = None) -> list[tuple[int, int]]:
        s = self.job.settings
        every = [(v, n) for v in range(s.views) for n in range(s.shards_per_view)]
        if part is not None:
            every = _split(every, part[1])[part[0]]
        existing = shards.existing(self.job.path)
        return [one for one in every if one not in existing]

    def _spread(self, missing: list[tuple[int, int]], seats: processes.Seats) -> None:
        pieces = _split(missing, min(seats.count, len(missing)))
        write, folder = self.job.write_piece, self.job.path
        outcomes = processes.spread(
            write, pieces, seats=seats, folder=folder, remedy=_REMEDY
        )
        with (
            self._bar() as bar,  # moved by the shards that appear, whoever writes them
            progress.watching(lambda: bar.update(self._done(bar.total) - bar.n)),
        ):
            lost = processes.given_up(outcomes)
        if lost:
            raise ChildProcessError(
                f"{len(self._missing())} shards are missing: {lost[0].error} Write again "
                "with the same arguments: it goes on with them."
            )

    def _bar(self) -> Any:
        s = self.job.settings
        total = None if s.examples is None else s.examples * s.views
        shown = ("writing soft targets", "example", total, self.verbose)
        return progress.bar(*shown, initial=self._done(total), unit_scale=True)

    def _done(self, total: int | None) -> int:
        done = len(shards.existing(self.job.path)) * (self.job.settings.shard_size or 0)
        return done if total is None else min(done, total)

    def finish(self, began: float) -> None:
        """Reads all shards again, then writes the manifest."""
        files, digest = self._verified()
        self.check_first_batch()
        now = datetime.datetime.now(datetime.UTC)
        versions = {n: version(n) for n in ("keras-distill", "tensorflow", "keras")}
        content = {
            **self.job.settings.content(),
            "dataset": digest,
            "shards": files,
            "versions": versions,
            "created": now.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 3),
        }
        self.folder.write_json(FINISHED, content)

    def _verified(self) -> tuple[list[dict[str, Any]], str]:
        """Reads every record; all views must be of the same examples."""
        files, of_views = [], set()
        s = self.job.settings
        for view in range(s.views):
            digest = hashlib.sha256()
            for shard in range(s.shards_per_view):
                name = shards.name(view, shard)
                file, count = self.folder.file(name), 0
                for rows in shards.read(file, s.row_bytes):
                    digest.update(rows[:, :FINGERPRINT_BYTES].tobytes())
                    count += len(rows)
                if count != min(s.shard_size, s.examples - shard * s.shard_size):
                    raise ValueError(shards.damaged(file))
                size = int(tf.io.gfile.stat(file).length)
                entry = {"file": name, "rows": count, "bytes": size}
                files.append({**entry, "digest": file_digest(file)})
            of_views.add(digest.hexdigest()[:32])
        if len(of_views) > 1:
            raise ValueError(f"{_UNSTEADY}.")
        return files, of_views.pop()

    def check_first_batch(self) -> None:
        """Compares data and teacher as they are now with the first rows on disk."""
        now = self.job.next_rows(iter(self.job.batches(0, 0, 1)))[0]
        file = self.folder.file(shards.name(0, 0))
        then = next(shards.read(file, self.job.settings.row_bytes))[: len(now)]
        now = now[: len(then)]
        if not np.array_equal(now[:, :FINGERPRINT_BYTES], then[:, :FINGERPRINT_BYTES]):
            raise ValueError(f"{_UNSTEADY}.")
        for a, b in zip(*map(self._comparable, (now, then)), strict=True):
            if not np.allclose(a, b, rtol=_CLOSE, atol=_CLOSE):
                raise ValueError(
                    "the teacher answers otherwise than when the first shard was written; "
                    "pass overwrite=True to write all of them with this teacher."
                )

    def _comparable(self, rows: Any) -> list[tf.Tensor]:
        """Returns what does not jump when two classes change places by rounding."""
        logits, layers = self.job.rows.decode(rows)
        parts = [
            [one.values, one.rest] if isinstance(one, TopKLogits) else one
            for one in (one_mean(part, 1.0, "values") for _, part in by_output(logits))
        ]
        return keras.tree.flatten([parts, list(layers.values())])


_REMEDY = "Pass arrays, or a function that returns the dataset, or n_jobs=1."
_UNSTEADY = (
    "the data is not what was written before, or did not come twice in the same order, so "
    "soft targets cannot be joined to it later. Write before shuffle() and before random augmentation (pass that as "
    "augment=), then join and shuffle; pass overwrite=True to begin anew"
)
