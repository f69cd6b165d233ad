"""Which module may know which: arrows point one way, and in no circle."""

import ast
import graphlib
import pathlib

import pytest

import keras_distill

PACKAGE = pathlib.Path(keras_distill.__file__).parent

# From the bottom up; a module imports from its own layer and those before it. Folders
# stand for all that is in them.
LAYERS = (
    (
        "arguments", "progress", "keras_compat", "live_objects", "run_directory", "processes", "top_k",
        "several_logits", "last_layers", "structures", "outputs",
        "logits_or_probabilities", "recorded_calls", "labels", "inputs", "reading",
        "units", "showing", "named_functions",
    ),
    ("losses", "features", "feature_pairs", "teacher", "teacher_ensemble", "teachers", "teacher_files", "user_functions", "preparation", "soft_targets", "schedules", "datasets", "models",
     "sharing", "exported", "served", "copying", "resizing", "own_loss"),
    ("faults", "xla", "metrics", "training_watch", "step_state", "model_pairs", "student_outputs",
     "cached_answers", "first_batch", "summaries", "distiller"),
    ("quantization",),
    ("tuning", "specialists", "export", "figures", "running_sums", "tallies", "judged_model",
     "evaluation", "latency", "plots", "correction_layers", "correction_fits", "corrections",
     "labelled_logits", "callbacks"),
    ("__init__", "_quiet"),
    ("commands", "__main__"),
)  # fmt: skip
LAYER = {name: index for index, names in enumerate(LAYERS) for name in names}


def imports_of(tree, modules):
    """Yields what is imported, anywhere in a module: ours without the package's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not followed here"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in full]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            yield (rest or "__init__") if package == "keras_distill" else f"-{name}"


def read():
    """Returns what each module of the package imports; others' begin with "-"."""
    trees = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name or "__init__"] = ast.parse(path.read_text())
    modules = {f"keras_distill.{name}" for name in trees}
    return {name: set(imports_of(tree, modules)) for name, tree in trees.items()}


def wrong(graph):
    """Returns what breaks the order, a sentence each."""
    found = []
    for module, imported in sorted(graph.items()):
        place = module.split(".")[0]
        if place not in LAYER:
            found.append(f"{module} has no layer; give it one")
            continue
        for other in sorted(imported):
            if place == "plots" and other.split(".")[0] in ("-tensorflow", "-keras"):
                found.append(f"{module} imports {other[1:]}, and draws numbers only")
            if other.startswith("-"):
                continue
            their_place = other.split(".")[0]
            if LAYER.get(their_place, 0) > LAYER[place]:
                found.append(f"{module} imports {other}, which is above it")
            if place == "plots" and their_place not in ("plots", "arguments", "units"):
                found.append(f"{module} imports {other}, and draws numbers only")
    ours = {
        name: {other for other in imported if other in graph and other != "__init__"}
        for name, imported in graph.items()
    }
    try:
        graphlib.TopologicalSorter(ours).prepare()
    except graphlib.CycleError as error:
        found.append("a circle: " + " <- ".join(error.args[1]))
    return found


@pytest.mark.slow
def test_arrows_point_one_way():
    graph = read()
    assert {"distiller", "commands.main", "losses.kl", "plots.style"} <= set(graph)
    assert "losses.base" in graph["distiller"]
    assert not wrong(graph), "\n".join(wrong(graph))


@pytest.mark.parametrize(
    ("planted", "sentence"),
    [
        (
            {"losses.kl": {"distiller"}},
            "losses.kl imports distiller, which is above it",
        ),
        (
            {"tuning.search": {"commands.search"}},
            "tuning.search imports commands.search, which is above it",
        ),
        ({"outputs": {"features"}}, "outputs imports features, which is above it"),
        ({"teachers": {"__init__"}}, "teachers imports __init__, which is above it"),
        (
            {"plots.models": {"-tensorflow"}},
            "plots.models imports tensorflow, and draws numbers only",
        ),
        (
            {"losses.kl": {"losses.base"}, "losses.base": {"losses.kl"}},
            "a circle: losses.kl <- losses.base <- losses.kl",
        ),
        ({"new": set()}, "new has no layer; give it one"),
    ],
)
def test_a_wrong_arrow_would_be_found(planted, sentence):
    assert wrong(planted) == [sentence]


def test_imports_inside_functions_are_arrows_too():
    code = "def f():\n  from keras_distill import outputs\n  import keras.layers"
    found = set(imports_of(ast.parse(code), {"keras_distill.outputs"}))
    assert found == {"outputs", "-keras.layers"}
