"""What every source of data hands over, before it is shuffled and batched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

SPLITS = ("train", "validation", "test")
#: Datasets that take no more bytes than this are held in memory.
IN_MEMORY_BYTES = 1_000_000_000


@dataclasses.dataclass
class Parts:
    """Splits of single examples, in an order that is the same for every seed.

    Attributes:
        splits: `tf.data.Dataset` of `(x, y)` by split. Training examples are shuffled as
            they come from it: where `prepare` reads files, their paths are.
        class_names: one str per class.
        input_shape: of one example, as `Data` has it.
        sizes: number of examples by split.
        prepare: function of `(x, y)` that makes of it what `Data` yields; `None` for none.
        version: of the dataset.
        column_names: of a table's numbers, in their order.
        sample_rate: of sound, in Hz.
    """

    splits: dict[str, tf.data.Dataset]
    class_names: list[str]
    input_shape: tuple[int, ...] | dict[str, tuple[int, ...]]
    sizes: dict[str, int]
    prepare: Callable | None = None
    version: str | None = None
    column_names: list[str] | None = None
    sample_rate: int | None = None
