"""Wrong uses of specialists."""

from tests.hostile import Row

ROWS: list[Row] = []
