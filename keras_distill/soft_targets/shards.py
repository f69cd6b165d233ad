"""Shards: TFRecord files of rows, and how a graph and a program read them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill.run_directory import RunDirectory

#: Rows of one record; TFRecord has a checksum for each. A shorter one ends a shard.
ROWS_PER_RECORD = 1024


def name(view: int, shard: int) -> str:
    """Returns the file name of a shard of a view."""
    return f"view-{view:03d}-shard-{shard:05d}.tfrecord"


def write(folder: RunDirectory, view: int, shard: int, rows: np.ndarray) -> None:
    """Writes a shard whole or not at all.

    Args:
        folder: of the store.
        view: int.
        shard: int.
        rows: uint8 `(rows, bytes)`.

    Raises:
        OSError: if the disk is full or refuses; what was finished before stays.
    """
    try:
        with (
            folder.whole(name(view, shard)) as path,
            tf.io.TFRecordWriter(path) as writer,
        ):
            for start in range(0, len(rows), ROWS_PER_RECORD):
                writer.write(rows[start : start + ROWS_PER_RECORD].tobytes())
    except OSError as error:
        raise OSError(
            f"{error} Free space there and write again with the same arguments: it goes "
            "on after the last whole shard."
        ) from error


def existing(path: str) -> set[tuple[int, int]]:
    """Returns view and shard of each finished shard."""
    names = tf.io.gfile.listdir(path) if tf.io.gfile.isdir(path) else []
    found = [re.fullmatch(r"view-(\d+)-shard-(\d+)\.tfrecord", n) for n in names]
    return {(int(match[1]), int(match[2])) for match in found if match}


def load(file: Any, row_bytes: int) -> tf.Tensor:
    """Reads a whole shard in the graph, its checksums verified by TensorFlow.

    Args:
        file: scalar string.
        row_bytes: int.

    Returns:
        uint8 `(rows, bytes)`.
    """
    records = tf.data.TFRecordDataset(file, buffer_size=1 << 20)
    joined = records.batch(1 << 30).map(tf.strings.reduce_join).get_single_element()
    return tf.reshape(tf.io.decode_raw(joined, tf.uint8), (-1, row_bytes))


def stream(paths: Any, row_bytes: int) -> tf.data.Dataset:
    """Returns the records of shards, one after another, as uint8 `(rows, bytes)`.

    Args:
        paths: of the shards, a list or a dataset.
        row_bytes: int.
    """
    decode = tf.autograph.experimental.do_not_convert(
        lambda record: tf.reshape(tf.io.decode_raw(record, tf.uint8), (-1, row_bytes))
    )
    return tf.data.TFRecordDataset(paths, buffer_size=1 << 20).map(decode)


def read(file: str, row_bytes: int) -> Iterator[np.ndarray]:
    """Yields the rows of each record, uint8 `(rows, bytes)`.

    Raises:
        ValueError: if a checksum does not hold, or the file is cut short.
    """
    try:
        for record in tf.data.TFRecordDataset(file).as_numpy_iterator():
            yield np.frombuffer(record, "uint8").reshape(-1, row_bytes)
    except (tf.errors.DataLossError, ValueError) as error:
        raise ValueError(damaged(file)) from error


def has_damage(file: str) -> bool:
    """Tells whether the checksum of a record does not hold, or the file is cut short."""
    try:
        for _ in tf.data.TFRecordDataset(file):
            pass
    except tf.errors.DataLossError:
        return True
    except tf.errors.OpError:  # no file, or one that cannot be read
        return False
    return False


def damaged(file: str) -> str:
    """Returns the message for a shard whose checksum does not hold."""
    return (
        f"{file} is damaged: its checksum does not hold. Delete this file and manifest.json, "
        "and write again with the same arguments: what is missing is written anew."
    )
