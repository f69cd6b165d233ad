"""`report.html`: the results of a distillation on one page that asks no other host."""

from __future__ import annotations

import base64
import dataclasses
import html
import os
import shlex
import struct
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from typing import Any

import keras_distill as kd
from keras_distill.commands.next_steps import Step
from keras_distill.figures import rows_of
from keras_distill.run_directory import RunDirectory
from keras_distill.units import size_shown

NAME = "report.html"
_MOST_NAMES = 30
_NOTE = (
    "Each model was judged once, on examples that chose nothing. Hard labels: the same student, "
    "trained without the teacher. NLL, the cross-entropy with the labels, and ECE, how far the "
    "probability of an answer is from how often it is right, are better when lower. Agreement: "
    "how often it answers as the teacher does. p50 and p99: the time of one example, the median "
    "and what one of a hundred exceeds. Examples/s are in batches."
)


@dataclasses.dataclass(frozen=True)
class Results:
    """What a page shows.

    Attributes:
        title: of the page.
        comparison: of the models on test data; the first is the teacher, the second the
            student.
        pictures: paths of PNG files by name.
        captions: of the pictures, by name.
        settings: names and values.
        files: paths and sizes of the exports.
        exported: which student the exports are of, a sentence.
        refused: why other exports could not be made, by format.
        next_steps: what to do next.
        class_names: of the data.
    """

    title: str
    comparison: kd.Comparison
    pictures: Mapping[str, str]
    captions: Mapping[str, str]
    settings: Mapping[str, Any]
    files: Sequence[tuple[str, str]]
    exported: str
    refused: Mapping[str, str]
    next_steps: Sequence[Step]
    class_names: Sequence[str]


def write(folder: RunDirectory, results: Results) -> str:
    """Writes the page into a folder, whole, and returns its path."""
    folder.write_text(NAME, page(results))
    return folder.file(NAME)


def page(results: Results) -> str:
    """Returns the page as HTML, with pictures and style in it."""
    style = resources.files("keras_distill.commands").joinpath("report.css").read_text()
    names = list(results.class_names)
    shown = ", ".join(names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    settings = {
        **results.settings,
        f"{len(names)} classes": shown + (f" and {more:,} more" if more > 0 else ""),
    }
    parts = [
        f"<h1>{_text(results.title)}</h1>",
        f"<p class='lead'>{_text(summary(results.comparison))}</p>",
        "<h2>On test data</h2>",
        _table(results.comparison),
        f"<p class='note'>{_text(_NOTE)}</p>",
        "<h2>Pictures</h2>",
        "<div class='pictures'>",
        *(_picture(name, path, results) for name, path in results.pictures.items()),
        "</div>",
        "<h2>What to do next</h2>",
        *(
            f"<p class='step'>{_text(what)}</p><pre><code>{_text(shlex.join(words))}"
            "</code></pre>"
            for what, words in results.next_steps
        ),
        "<h2>Exports</h2>",
        f"<p class='note'>{_text(results.exported)}</p>",
        _pairs([*results.files, *results.refused.items()]),
        "<h2>Settings</h2>",
        _pairs(settings.items()),
        f"<footer>Made by keras-distill {_text(version('keras-distill'))}. The model card "
        "lies beside each export.</footer>",
    ]
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<meta name='color-scheme' content='light dark'>\n"
        f"<title>{_text(results.title)}</title>\n<style>\n{style}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"
    )


def summary(comparison: kd.Comparison) -> str:
    """Returns what came of it, in a sentence or two."""
    teacher, student, *others = comparison.evaluations
    assert student.accuracy is not None  # the data has classes
    assert teacher.accuracy is not None
    said = (
        f"The distilled student is right on {student.accuracy:.1%} of test data, the teacher "
        f"on {teacher.accuracy:.1%}"
    )
    if teacher.file_bytes and student.file_bytes:
        ratio = teacher.file_bytes / student.file_bytes
        sizes = f"{size_shown(student.file_bytes)} for {size_shown(teacher.file_bytes)}"
        said += f"; its weights take {sizes}"
        said += f", a {_ordinal(ratio)}" if ratio >= 1.5 else ""
    if others and others[0].accuracy is not None:
        points = 100 * (student.accuracy - others[0].accuracy)
        said += f". On labels alone the same student reaches {others[0].accuracy:.1%}: "
        way = "adds" if points >= 0 else "takes away"
        said += f"distillation {way} {abs(points):.1f} points"
        if is_teacher_worse(comparison):
            said += ". The teacher is worse than that: give one that has more to teach"
    return f"{said}."


def is_teacher_worse(comparison: kd.Comparison) -> bool:
    """Tells whether a teacher is less often right than the student on labels alone."""
    teacher, _, *others = comparison.evaluations
    return bool(others) and (teacher.accuracy or 0.0) < (others[0].accuracy or 0.0)


def _ordinal(ratio: float) -> str:
    count = round(ratio)
    names = {2: "half", 3: "third", 4: "quarter", 5: "fifth", 10: "tenth"}
    if count in names:
        return names[count]
    is_teen = 10 <= count % 100 <= 20
    ending = "th" if is_teen else {1: "st", 2: "nd", 3: "rd"}.get(count % 10, "th")
    return f"{count}{ending}"


def _text(value: Any) -> str:
    return html.escape(str(value))


def _table(comparison: kd.Comparison) -> str:
    """Returns the figures with a column for each model: there are few, also on a phone."""
    head, *rows = zip(*rows_of(comparison), strict=True)
    cells = "".join(f"<th scope='col'>{_text(name)}</th>" for name in head[1:])
    lines = [f"<tr><td></td>{cells}</tr>"]
    for first, *others in rows:
        cells = "".join(f"<td>{_text(cell)}</td>" for cell in others)
        lines.append(f"<tr><th scope='row'>{_text(first)}</th>{cells}</tr>")
    return f"<div class='wide'><table class='figures'>{''.join(lines)}</table></div>"


def _pairs(pairs: Any) -> str:
    rows = (
        f"<tr><th scope='row'>{_text(name)}</th><td>{_text(value)}</td></tr>"
        for name, value in pairs
    )
    return f"<div class='wide'><table class='pairs'>{''.join(rows)}</table></div>"


def _picture(name: str, path: str, results: Results) -> str:
    with open(path, "rb") as file:
        content = file.read()
    caption = _text(results.captions.get(name, name.replace("_", " ")))
    # A phone scrolls through what is much wider than high, or nobody could read it.
    width, height = struct.unpack(">II", content[16:24])  # of PNG's first chunk
    kind = " class='broad'" if width > 2 * height else ""
    data = base64.b64encode(content).decode()
    return (
        f"<figure{kind}><div class='wide'><img alt='{caption}' "
        f"src='data:image/png;base64,{data}'></div><figcaption>{caption} "
        f"<small>{_text(os.path.basename(path))}</small></figcaption></figure>"
    )
