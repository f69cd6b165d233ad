"""The table of wrong arguments: each is refused by a sentence, before any step is taken."""

import ast
import importlib
import inspect
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
# What cannot be called wrongly, and why.
_RESULT = "a result, which we make"
_KERAS = "Keras calls it, with what fit and evaluate were checked with"
_STEP = "the step calls it, with tensors that were looked at before"
_LOADING = "keras.saving calls it, with what get_config gave"
NO_ROWS = {
    "callbacks.SoftTargetPictures.on_epoch_end": _KERAS,
    "callbacks.SoftTargetPictures.on_train_begin": _KERAS,
    "callbacks.SoftTargetPictures.on_train_end": _KERAS,
    "Comparison": _RESULT,
    "DistillationHyperModel.objective": "search calls it, with a trial's distiller",
    "DistillationHyperModel.settle": "search calls it, with data that it has read",
    "DistillationInputs": _RESULT,
    "DistillationLoss": "abstract; its losses have rows",
    "DistillationLoss.compute_loss": _STEP,
    "DistillationLoss.from_config": _LOADING,
    "DistillationLoss.loss_per_example": _STEP,
    "Distiller.call": _KERAS,
    "Distiller.check_first_batch": _KERAS,
    "Distiller.build_from_config": _LOADING,
    "Distiller.compile_from_config": _LOADING,
    "Distiller.compute_loss": _KERAS,
    "Distiller.compute_metrics": _KERAS,
    "Distiller.first_batch_seen": _KERAS,
    "Distiller.from_config": _LOADING,
    "Distiller.make_test_function": _KERAS,
    "Distiller.make_train_function": _KERAS,
    "Distiller.predict_step": _KERAS,
    "Distiller.step_logs": _KERAS,
    "Distiller.summary": "keras.Model.summary refuses what it does not take",
    "Distiller.test_step": _KERAS,
    "Distiller.train_step": _KERAS,
    "Evaluation": _RESULT,
    "FeatureLoss.adapted": _STEP,
    "FeatureLoss.bind": _STEP,
    "FeatureLoss.from_config": _LOADING,
    "FeaturePaths": _RESULT,
    "FeaturePairs": _RESULT,
    "FeatureLoss.loss_per_example": _STEP,
    "FeatureLoss.validate_model_compatibility": _STEP,
    "CosineLoss.loss_per_example": _STEP,
    "AttentionTransferLoss.loss_per_example": _STEP,
    "SimilarityLoss.loss_per_example": _STEP,
    "RelationLoss.loss_per_example": _STEP,
    "NormalizedFeatureLoss.loss_per_example": _STEP,
    "DecoupledLoss.loss_per_example": _STEP,
    "RelationalLoss.loss_per_example": _STEP,
    "LogitStandardizedLoss.loss_per_example": _STEP,
    "ReverseKLLoss.loss_per_example": _STEP,
    "JensenShannonLoss.loss_per_example": _STEP,
    "DecoupledLoss.compute_loss": _STEP,
    "DecoupledLoss.temperature_or": _STEP,
    "DecoupledLoss.validate_model_compatibility": _STEP,
    "RelationalLoss.compute_loss": _STEP,
    "RelationalLoss.temperature_or": _STEP,
    "RelationalLoss.validate_model_compatibility": _STEP,
    "LogitStandardizedLoss.compute_loss": _STEP,
    "LogitStandardizedLoss.temperature_or": _STEP,
    "LogitStandardizedLoss.validate_model_compatibility": _STEP,
    "ReverseKLLoss.compute_loss": _STEP,
    "ReverseKLLoss.temperature_or": _STEP,
    "ReverseKLLoss.validate_model_compatibility": _STEP,
    "JensenShannonLoss.compute_loss": _STEP,
    "JensenShannonLoss.temperature_or": _STEP,
    "JensenShannonLoss.validate_model_compatibility": _STEP,
    "SoftTargetLoss.temperature_or": _STEP,
    "DistillationLoss.validate_model_compatibility": _STEP,
    "LogitLoss.loss_per_example": _STEP,
    "SquaredErrorLoss.loss_per_example": _STEP,
    "TeacherAgreement.add": _STEP,
    "SearchResult": _RESULT,
    "SearchResult.best_of_kind": "a kind without trials has no best: None",
    "SoftTargetLoss.compute_loss": _STEP,
    "SoftTargetLoss.loss_per_example": _STEP,
    "SoftTargets": "made by write and open",
    "SoftTargetLoss.validate_model_compatibility": _STEP,
    "SpecialistEnsemble.active": _STEP,
    "SpecialistEnsemble.call": _KERAS,
    "SpecialistEnsemble.from_config": _LOADING,
    "SpecialistReport": _RESULT,
    "SumOfLosses.compute_loss": _STEP,
    "SumOfLosses.from_config": _LOADING,
    "SumOfLosses.validate_model_compatibility": _STEP,
    "TopKLogits": _RESULT,
    "TopKLogits.rest_at": _STEP,
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


def ours(thing):
    return getattr(thing, "__module__", "").startswith("keras_distill")


def public():
    """Returns what the stub names: functions, classes and methods, as rows name them."""
    stub = pathlib.Path(kd.__file__).with_name("__init__.pyi").read_text()
    imports = [n for n in ast.parse(stub).body if isinstance(n, ast.ImportFrom)]
    names = [alias.name for node in imports for alias in node.names]
    things = {name: getattr(kd, name) for name in names}
    for module in [n for n, thing in things.items() if inspect.ismodule(thing)]:
        inside = vars(things.pop(module)).items()
        things |= {
            f"{module}.{name}": thing
            for name, thing in inside
            if not name.startswith("_")
            and getattr(thing, "__module__", "").startswith(f"keras_distill.{module}")
        }
    classes = {name: thing for name, thing in things.items() if inspect.isclass(thing)}
    for name, cls in classes.items():
        for base in cls.__mro__:
            if ours(base) and (base is cls or base not in classes.values()):
                things |= {f"{name}.{method}": f for method, f in methods(base)}
    return set(things)


def methods(cls):
    """Yields the public methods of a class that take more than itself, and what is set."""
    for name, method in vars(cls).items():
        if isinstance(method, property) and method.fset is not None:
            yield name, method
        function = getattr(method, "__func__", method)
        if not name.startswith("_") and inspect.isfunction(function):
            takes_itself = not isinstance(method, staticmethod)
            if len(inspect.signature(function).parameters) > takes_itself:
                yield name, function


def test_whatever_is_public_has_rows():
    names = public()
    assert {"Distiller.fit", "SoftTargets.open", "plots.soft_targets"} <= names
    have = {row.name for row in ROWS.values()}
    # Also what is set of a public class, as in distiller.teacher = ...
    known = {name for name in have if name.rpartition(".")[0] in names}
    known |= names | {"keras-distill"}
    assert not (unknown := (have | set(NO_ROWS)) - known), f"not public: {unknown}"
    assert not (both := have & set(NO_ROWS)), f"rows and a reason for none: {both}"
    assert not (without := names - have - set(NO_ROWS)), f"without rows: {without}"
    assert len(ROWS) >= 250


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
