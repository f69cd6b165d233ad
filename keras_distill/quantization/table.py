"""Which layer is computed in integers, which in float, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One layer of the student.

    Attributes:
        layer: its name.
        kind: its class.
        computed: "int8 weights", "int4 weights", "int8" or "float", which is of training: a file
            of int8 weights may round what stands between integers.
        note: what was folded into it, or why it stays float.
    """

    layer: str
    kind: str
    computed: str
    note: str


@dataclasses.dataclass(frozen=True)
class QuantizationTable:
    """Says of each layer of a student how it is computed; `print` shows it.

    Attributes:
        weights: bits of the weights.
        activations: bits of the activations; `None` for float.
        rows: of `Row`, in the order of computation.
    """

    weights: int
    activations: int | None
    rows: tuple[Row, ...]

    @property
    def stays_float(self) -> dict[str, str]:
        """Why a layer stays float, by its name."""
        return {row.layer: row.note for row in self.rows if row.computed == "float"}

    def get_config(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        return {
            "weights": self.weights,
            "activations": self.activations,
            "rows": [list(row) for row in self.rows],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizationTable:
        """Returns what `get_config` gave."""
        rows = tuple(Row(*row) for row in config["rows"])
        return cls(config["weights"], config["activations"], rows)

    def __str__(self) -> str:
        lines: Sequence[Sequence[str]] = [
            ("layer", "kind", "computed", "note"),
            *self.rows,
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                f"{one:{w}}" for one, w in zip(line, widths, strict=True)
            ).rstrip()
            for line in lines
        )

    __repr__ = __str__
