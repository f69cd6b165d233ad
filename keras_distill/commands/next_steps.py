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
    steps: list[Step] = [
        ("how fast the export answers", ["keras-distill", "bench", exported[0]])
    ]
    if importlib.util.find_spec("ai_edge_litert") and not any(
        path.endswith(".tflite") for path in exported
    ):
        words = ["export", student, "--format", "litert:dynamic", "--output", folder]
        steps.append(("for phones, weights of 8 bits", ["keras-distill", *words]))
    else:
        words = ["inspect", exported[0]]
        steps.append(("what the export takes and answers", ["keras-distill", *words]))
    if trials is None:
        words = ["--search", "20", "--output", f"{folder.rstrip(os.sep)}-search"]
        steps.append(("a better T and alpha", [*command, *words]))
    else:
        logs = os.path.join(folder, "search", "logs")
        steps.append(("the search in TensorBoard", ["tensorboard", "--logdir", logs]))
    return steps


def as_lines(steps: Sequence[Step]) -> str:
    """Returns the steps as lines to be printed."""
    width = max(len(what) for what, _ in steps) + 1
    return "\n".join(
        f"- {what + ':':<{width}}  {shlex.join(words)}" for what, words in steps
    )
