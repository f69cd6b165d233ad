"""Wrong uses of evaluation."""

from tests.hostile import Row

ROWS: list[Row] = []
