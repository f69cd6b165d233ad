import pathlib
import re

from tests import forking

ROOT = pathlib.Path(__file__).parent.parent
ANSWERS_HERE = """
from keras_distill.export import check
from tests.forking import answer_here
check.ask_fresh_process = answer_here
"""
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_examples_run_one_after_the_other(tmp_path):
    examples = blocks("python")
    for example in examples:
        assert len([line for line in example.splitlines() if line.strip()]) <= 16
    # All but the numbers of epochs, trials and clusters as printed; nothing is timed.
    program = re.sub(r"epochs=\d+", "epochs=1", "\n".join(examples))
    program = program.replace("max_trials=6", "max_trials=2")
    program = program.replace("n_clusters=3", "n_clusters=2")
    program = program.replace("teacher=teacher))", "teacher=teacher, timing=False))")
    assert "timing=False" in program
    # An export is asked in a fresh process elsewhere, at the price of one more import.
    program = f"{ANSWERS_HERE}\n{program}"
    done = forking.run(["-c", program], tmp_path, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "student" in done.stdout
    assert (tmp_path / "savedmodels" / "digits" / "1" / "saved_model.pb").exists()


def test_pictures_and_linked_files_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert any(link.endswith(".png") for link in links)
    for link in links:
        assert (ROOT / link).exists(), link


def test_both_commands_are_single_lines_with_a_virtual_environment_of_their_own():
    commands = blocks("sh")[:2]
    for command in commands:
        assert len(command.strip().splitlines()) == 1
        assert command.startswith("python3 -m venv ")
    assert "keras-distill demo" in commands[0]
    assert "pytest" in commands[1]


def test_top_level_folders_are_explained():
    for folder in ("keras_distill", "examples", "benchmarks", "tests", "savedmodels"):
        assert f"`{folder}/`" in README
