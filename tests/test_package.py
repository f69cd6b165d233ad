import ast
import importlib.metadata
import pathlib
import re
import statistics
import subprocess
import sys
import tomllib

import keras_distill

ROOT = pathlib.Path(__file__).parent.parent


def test_version_comes_from_the_metadata():
    assert keras_distill.__version__ == importlib.metadata.version("keras-distill")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert keras_distill.__version__ == pyproject["project"]["version"]


def test_public_names_are_there_and_documented():
    for name in keras_distill.__all__:
        assert getattr(keras_distill, name).__doc__, name


def seconds_to_import(name):
    code = f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


def test_import_costs_little_more_than_keras():
    pairs = [
        (seconds_to_import("keras"), seconds_to_import("keras_distill"))
        for _ in range(3)
    ]
    assert statistics.median(ours - theirs for theirs, ours in pairs) < 0.3


def test_every_import_is_declared():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = {
        re.split(r"[<>=]", requirement)[0].replace("-", "_")
        for requirement in pyproject["project"]["dependencies"]
    }
    modules = {"scikit_learn": "sklearn", "grpcio": "grpc"}
    declared = {modules.get(name, name) for name in declared}
    for path in (ROOT / "keras_distill").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            else:
                continue
            for module in (name.split(".")[0] for name in names):
                assert (
                    module in declared
                    or module in sys.stdlib_module_names
                    or module == "keras_distill"
                ), f"{path.name} imports {module}"
