"""The site's guides: what they show runs, what they quote is said, all names are there."""

import ast
import importlib.util
import json
import pathlib
import re
import shlex

import numpy as np
import pytest
import scipy

import keras_distill as kd
from keras_distill.commands.main import _parser
from tests import forking

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
COMMANDS = set(_parser()._subparsers._group_actions[0].choices)
needs_distill = pytest.mark.skipif(
    "distill" not in COMMANDS, reason="keras-distill has no command distill here"
)
#: Pages that show it.
ON_DISTILL = {"guides/own_data.md", "reference/commands.md"}
# An export is asked in a fresh process elsewhere, at the price of one more import.
BEFORE = """
from keras_distill.export import check
from tests.forking import answer_here
check.ask_fresh_process = answer_here
"""
#: Of more than a few seconds.
SLOW = {
    "guides/few_labels.md",
    "guides/many_machines.md",
    "guides/own_data.md",
    "guides/search.md",
    "guides/serving.md",
    "guides/soft_targets.md",
    "guides/specialists.md",
}


def blocks(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.M
    )


def quick(program):
    """All but the numbers of epochs, trials and clusters as printed; nothing is timed."""
    program = re.sub(r"epochs=\d+", "epochs=1", program)
    program = program.replace("max_trials=6", "max_trials=2")
    program = program.replace("n_clusters=3", "n_clusters=2")
    return program.replace(
        "kd.compare(", "functools.partial(kd.compare, timing=False)("
    )


RUN = [
    pytest.param(
        page,
        marks=[pytest.mark.slow] * (page in SLOW)
        + [needs_distill] * (page in ON_DISTILL),
    )
    for page in PAGES
    if blocks(page, "python")
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("page", RUN)
def test_blocks_run_one_after_the_other(page, tmp_path):
    program = quick("\n".join(blocks(page, "python")))
    program = f"import functools\n{BEFORE}\n{program}"
    done = forking.run(["-c", program], tmp_path, timeout=400)
    assert done.returncode == 0, done.stderr
    if page == "guides/features.md":  # what is shown is what is printed
        assert blocks(page, "text")[0] in done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_names_are_those_that_there_are(page):
    used = set(re.findall(r"\bkd\.(\w+)", (DOCS / page).read_text()))
    assert used <= set(kd.__all__)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[needs_distill] * (page in ON_DISTILL))
        for page in PAGES
    ],
)
def test_commands_are_those_that_there_are(page):
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("keras-distill "):
                _parser().parse_args(shlex.split(line)[1:])


def test_every_command_is_shown():
    text = "".join(blocks("reference/commands.md", "sh"))
    assert set(re.findall(r"^keras-distill (\S+)", text, re.MULTILINE)) >= COMMANDS


def test_the_options_shown_are_those_that_there_are():
    spec = importlib.util.spec_from_file_location("commands_page", DOCS / "commands.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    text = made.PAGE.read_text()
    assert made.page(text) == text, "run python docs/commands.py"
    assert text.count("<details markdown>") == len(COMMANDS)
    assert "| `--image-size HEIGHT WIDTH` | to resize images to" in text


def test_every_guide_begins_with_a_title_and_says_what_is_next():
    guides = [page for page in PAGES if page.startswith("guides/")]
    assert len(guides) >= 12
    for page in guides:
        text = (DOCS / page).read_text()
        assert re.match(r"# \S", text), page
        assert "\n## What next\n" in text, page


def test_pages_have_every_public_name_once():
    text = "".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    shown = re.findall(r"^::: keras_distill\.([\w.]+)$", text, re.MULTILINE)
    assert len(shown) == len(set(shown))
    modules = {"callbacks", "datasets", "models", "plots"}
    expected = {*kd.__all__} - modules | {f"plots.{name}" for name in kd.plots.__all__}
    expected |= {"datasets.load", "datasets.Data", "datasets.to_arrays"}
    assert set(shown) == expected | {
        "models.mlp",
        "models.cnn",
        "callbacks.SoftTargetPictures",
    }
    overview = (DOCS / "reference" / "index.md").read_text()
    assert all(f"[keras_distill.{name}]" in overview for name in shown)


def test_temperatures_table_is_right():
    text = (DOCS / "guides" / "temperature.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    assert [int(temperature) for temperature, _ in rows] == [1, 5, 10, 20]
    for temperature, said in rows:
        softmax = scipy.special.softmax(np.array([2.0, 7.0, 10.0]) / int(temperature))
        np.testing.assert_allclose(
            np.array(said.split(" | "), float), softmax, atol=6e-6
        )


def said_in_the_package():
    """Returns all text in the package's code, with what is filled in left out."""
    texts = []
    for path in (ROOT / "keras_distill").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "\0"
                    for part in node.values
                ]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_quoted_refusals_are_those_of_the_code():
    text = (DOCS / "guides" / "troubles.md").read_text()
    table = text.split("## It is refused")[1].split("\n## ")[0]
    quoted = [
        sentence
        for row in table.splitlines()
        for sentence in re.findall(
            r"`([^`]+)`", row.split("|")[1] if "|" in row else ""
        )
    ]
    assert len(quoted) >= 18
    said = said_in_the_package()
    for sentence in quoted:
        for part in filter(None, (part.strip() for part in sentence.split("..."))):
            assert part in said, (sentence, part)


def test_links_and_pictures_lead_to_files():
    for page in PAGES:
        path = DOCS / page
        text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.M)
        for link in re.findall(r"\]\(([^)\s#:]+)[^)\s]*\)", text):
            made = {"changes.md", "measured.md", "paper.md"}
            there = (path.parent / link).resolve()
            assert there.exists() or there.relative_to(DOCS).as_posix() in made, link


#: What draws each picture that a guide shows.
SCRIPTS = {
    "examples/pictures/soft_targets.png": "examples/temperature_curves.py",
    "examples/pictures/temperature_curves.png": "examples/temperature_curves.py",
    "examples/pictures/search_plane.png": "examples/search_temperature_alpha.py",
    "examples/paper/results/temperature.png": "examples/paper/records.py",
    "examples/paper/results/specialists.png": "examples/paper/records.py",
    "examples/paper/results/few_labels_mnist.png": "examples/paper/records.py",
}


def test_every_picture_is_drawn_by_a_script():
    shown = {
        ((DOCS / page).parent / link).resolve().relative_to(ROOT).as_posix()
        for page in PAGES
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (DOCS / page).read_text())
    }
    assert shown == set(SCRIPTS)
    for script in SCRIPTS.values():
        assert re.search(r"\.savefig\(|result\.save\(", (ROOT / script).read_text())


NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def test_four_guides_are_notebooks_too():
    assert len(NOTEBOOKS) == 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_what_their_guides_have(path):
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code[0].startswith("%pip install")
    page = "index.md" if path.stem == "start_here" else f"guides/{path.stem}.md"
    assert code[1:] == [block.rstrip("\n") for block in blocks(page, "python")]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    install = next(
        i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"
    )
    del notebook.cells[install]  # it would replace the package that is tested
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
