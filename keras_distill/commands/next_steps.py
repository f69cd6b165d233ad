"""What to do after a command: lines that can be typed as they stand."""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Sequence

from keras_distill.commands import built_in

#: What it is for, and the words of the command line.
Step = tuple[str, list[str]]


def after_distill(
    folder: str,
    exported: Sequence[str],
    command: list[str],
    trials: int | None,
    *,
    best: str = "student",
    is_teacher_worse: bool = False,
) -> list[Step]:
    """Returns three steps after a distillation.

    Args:
        folder: of the results.
        exported: paths of the exports.
        command: what was typed, without the output and the search: the program, its command,
            teacher, data, student, and how the data is read.
        trials: of the search before it; `None` without one.
        best: the name, without its ending, of the file of the student that was exported.
        is_teacher_worse: than the student on labels alone, who can learn little from it.
    """
    student = os.path.join(folder, f"{best}.keras")
    data = command[3:4] + command[5:]
    export = ["keras-distill", "export", student, "--format"]
    names = ["--output", folder, "--class-names", *data]
    steps: list[Step] = []
    if exported:
        words = ["bench", exported[0]]
        steps.append(("how fast the export answers", ["keras-distill", *words]))
    else:
        steps.append(("for TensorFlow Serving", [*export, "savedmodel", *names]))
    is_on_phones = any(path.endswith(".tflite") for path in exported)
    if importlib.util.find_spec("ai_edge_litert") and not is_on_phones:
        words = [*export, "litert:dynamic", *names]
        steps.append(("for phones, weights of 8 bits", words))
    elif exported:
        words = ["inspect", exported[0]]
        steps.append(("what the export takes and answers", ["keras-distill", *words]))
    larger = _larger(command[4]) if is_teacher_worse else None
    if larger:
        words = ["teach", command[3], larger, *command[5:], "--output", "better.keras"]
        steps.append(("first, a better teacher", ["keras-distill", *words]))
    elif trials is None:
        words = ["--search", "20", "--output", f"{folder.rstrip(os.sep)}-search"]
        steps.append(("a better T and alpha", [*command, *words]))
    else:
        logs = os.path.join(folder, "search", "logs")
        steps.append(("the search in TensorBoard", ["tensorboard", "--logdir", logs]))
    return steps


def _larger(student: str) -> str | None:
    """Returns a teacher for a student of a built-in name of sizes; `None` for others."""
    sizes = built_in.sizes_in(student)
    if not sizes:
        return None
    kind = student.partition(":")[0]
    return f"{kind}:" + ",".join(str(8 * size) for size in sizes)


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
