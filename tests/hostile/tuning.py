"""Wrong uses of tuning."""

from tests.hostile import Row

ROWS: list[Row] = []
