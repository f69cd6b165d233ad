"""Wrong uses of soft_targets."""

from tests.hostile import Row

ROWS: list[Row] = []
