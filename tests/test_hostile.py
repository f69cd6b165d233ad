"""The table of wrong arguments: each is refused by a sentence, before any step is taken."""

import importlib
import pkgutil
import re

import keras
import pytest

from tests import hostile

ROWS = [
    row
    for module in pkgutil.iter_modules(hostile.__path__)
    for row in getattr(
        importlib.import_module(f"{hostile.__name__}.{module.name}"), "ROWS", []
    )
]


@pytest.fixture(autouse=True)
def _no_step(monkeypatch):
    """A refusal comes before training: no optimizer takes a step."""

    def step(*args, **kwargs):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(keras.optimizers.Optimizer, "apply", step)


@pytest.mark.parametrize(
    "row", ROWS, ids=[f"{number}-{row.name}" for number, row in enumerate(ROWS)]
)
def test_refused_by_a_sentence(row):
    with pytest.raises(row.error) as found:
        row.call()
    said = str(found.value)
    assert re.search(row.sentence, said), said
    assert said.rstrip().endswith((".", "?", ")")), said
    assert "Traceback" not in said
    assert "Node:" not in said
