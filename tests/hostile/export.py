"""Wrong uses of export."""

from tests.hostile import Row

ROWS: list[Row] = []
