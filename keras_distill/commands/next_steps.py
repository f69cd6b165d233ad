"""What to do after a command: lines that can be typed as they stand."""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Sequence

#: What it is for, and the words of the command line.
Step = tuple[str, list[str]]


def after_distill(
    folder: str, exported: Sequence[str], command: list[str], trials: int | None
) -> list[Step]:
    """Returns three steps after a distillation.

    Args:
        folder: of the results.
        exported: paths of the exports.
        command: what was typed, without the output and the search.
        trials: of the search before it; `None` without one.
    """
    student = os.path.join(folder, "student.keras")
    steps: list[Step] = []
    if exported:
        words = ["bench", exported[0]]
        steps.append(("how fast the export answers", ["keras-distill", *words]))
    else:
        words = ["export", student, "--format", "savedmodel", "--output", folder]
        steps.append(("for TensorFlow Serving", ["keras-distill", *words]))
    is_on_phones = any(path.endswith(".tflite") for path in exported)
    if importlib.util.find_spec("ai_edge_litert") and not is_on_phones:
        words = ["export", student, "--format", "litert:dynamic", "--output", folder]
        steps.append(("for phones, weights of 8 bits", ["keras-distill", *words]))
    elif exported:
        words = ["inspect", exported[0]]
        steps.append(("what the export takes and answers", ["keras-distill", *words]))
    if trials is None:
        words = ["--search", "20", "--output", f"{folder.rstrip(os.sep)}-search"]
        steps.append(("a better T and alpha", [*command, *words]))
    else:
        logs = os.path.join(folder, "search", "logs")
        steps.append(("the search in TensorBoard", ["tensorboard", "--logdir", logs]))
    return steps


def after_demo(folder: str, path: str, data: str, options: Sequence[str]) -> list[Step]:
    """Returns three steps after the demo.

    Args:
        folder: of its results.
        path: of its export.
        data: its dataset.
        options: of the command line, that say how the data is read.
    """
    teacher = os.path.join(folder, "teacher.keras")
    distill = ["keras-distill", "distill", teacher, data, *options]
    output = folder.rstrip(os.sep)
    return [
        ("how fast the student answers", ["keras-distill", "bench", path]),
        ("another student", [*distill, "mlp:32", "--output", f"{output}-mlp"]),
        (
            "a better T and alpha",
            [*distill, "cnn:8,16", "--search", "20", "--output", f"{output}-search"],
        ),
    ]


def as_lines(steps: Sequence[Step]) -> str:
    """Returns the steps as lines to be printed."""
    width = max(len(what) for what, _ in steps) + 1
    return "\n".join(
        f"- {what + ':':<{width}}  {shlex.join(words)}" for what, words in steps
    )
