"""The table of wrong arguments: each is refused by a sentence, before any step is taken."""

import importlib
import pathlib
import pkgutil
import re

import keras
import pytest

import keras_distill as kd
from tests import hostile
from tests.hostile import things

ROWS = {
    f"{module.name}-{number}-{row.name}": row
    for module in pkgutil.iter_modules(hostile.__path__)
    for number, row in enumerate(
        getattr(
            importlib.import_module(f"{hostile.__name__}.{module.name}"), "ROWS", []
        )
    )
}
# What a caller may expect; SystemExit is the command line's.
KINDS = (ValueError, TypeError, OSError, KeyError, SystemExit)


@pytest.fixture(autouse=True)
def _no_step(monkeypatch):
    """A refusal comes before training: no optimizer takes a step."""

    def step(*args, **kwargs):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(keras.optimizers.Optimizer, "apply", step)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, which the paths of a row are relative to."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(row: hostile.Row, folder: pathlib.Path) -> None:
    with pytest.raises(row.error) as found:
        row.call()
    assert isinstance(found.value, KINDS), type(found.value)
    # The text of a KeyError is the repr of its message.
    said = str(found.value.args[0] if type(found.value) is KeyError else found.value)
    assert re.search(row.sentence, said), said
    assert said.rstrip().endswith((".", "?", ")")), said
    assert "Traceback" not in said
    assert "Node:" not in said
    assert not list(folder.rglob("*")), "it left files behind"


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_refused_by_a_sentence(row, here):
    check(row, here)


def raises(error, and_leaves=""):
    def call():
        if and_leaves:
            pathlib.Path(and_leaves).mkdir(parents=True)
        raise error

    return call


@pytest.mark.parametrize(
    ("call", "error", "what"),
    [
        (lambda: None, ValueError, "DID NOT RAISE"),
        (raises(ValueError("no number")), ValueError, "no number"),
        (raises(ValueError("T must be > 0.")), TypeError, "T must be > 0."),
        (raises(ValueError("Node: T must be > 0.")), ValueError, "Node:"),
        (raises(IndexError("T must be > 0.")), Exception, "IndexError"),
        (raises(ValueError("T must be > 0."), "a/b"), ValueError, "left files"),
        (raises(ValueError("alpha must be > 0.")), ValueError, "alpha must"),
    ],
)
def test_a_wrong_row_would_be_found(call, error, what, here):
    wrong = (AssertionError, pytest.fail.Exception, ValueError)
    with pytest.raises(wrong, match=re.escape(what)):
        check(hostile.Row("f", call, "^.*(T|number)", error), here)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_a_step_would_be_noticed(policy, run_eagerly, method):
    keras.config.set_dtype_policy(policy)
    x, y = things.data()
    distiller = kd.Distiller(things.model(), things.model())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile("adam", loss, run_eagerly=run_eagerly)
    with pytest.raises(AssertionError, match="a step was taken"):
        getattr(distiller, method)(x, y)
