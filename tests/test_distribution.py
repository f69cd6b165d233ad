"""What is published: a wheel and an sdist that work where nothing else of ours is."""

import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def ran(*command, folder):
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_folder_of_the_package_is_published():
    package = ROOT / "keras_distill"
    folders = {path.parent for path in package.rglob("*.py")}
    names = {str(path.relative_to(ROOT)).replace("/", ".") for path in folders}
    assert set(project()["tool"]["setuptools"]["packages"]) == names


def test_the_extra_all_has_every_extra_that_a_user_may_want():
    extras = project()["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    assert everything.startswith("keras-distill[")
    named = everything.removeprefix("keras-distill[").removesuffix("]").split(",")
    assert set(named) == set(extras) - {"all", "test", "docs"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the sdist, built from a copy of what is tracked."""
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "copy"
    left = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=left)
    ran(sys.executable, "-m", "venv", folder / "builder", folder=folder)
    python = folder / "builder" / "bin" / "python"
    ran(python, "-m", "pip", "install", "-q", "build", folder=folder)
    ran(python, "-m", "build", "--outdir", folder / "dist", copy, folder=folder)
    shutil.rmtree(copy)
    return folder / "dist"


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["*.whl", "*.tar.gz"])
def test_it_runs_in_an_empty_environment(built, ending, tmp_path):
    (file,) = built.glob(ending)
    ran(sys.executable, "-m", "venv", "empty", folder=tmp_path)
    programs = tmp_path / "empty" / "bin"
    ran(programs / "pip", "install", "-q", file, folder=tmp_path)
    said = ran(programs / "keras-distill", "--version", folder=tmp_path)
    assert said.split() == ["keras-distill", project()["project"]["version"]]
    demo = ran(programs / "keras-distill", "demo", "--epochs", 2, folder=tmp_path)
    assert "a fresh process that imports only TensorFlow answers" in demo
    (typed,) = (tmp_path / "empty").rglob("keras_distill/py.typed")
    assert typed.with_name("__init__.pyi").exists()


@pytest.mark.slow
def test_all_extras_resolve_together(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    ran(sys.executable, "-m", "venv", "empty", folder=tmp_path)
    pip = tmp_path / "empty" / "bin" / "pip"
    found = ran(
        pip, "install", "--dry-run", "-q", "--report", "-", f"{wheel}[all]", folder=tmp_path
    )  # fmt: skip
    assert '"name":"keras-distill"' in found.replace(" ", "")
