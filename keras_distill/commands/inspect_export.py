"""What an export takes, answers and weighs, and whether it works: `keras-distill inspect`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

from keras_distill.commands.options import add_command
from keras_distill.export.card import read_card, spec_shown
from keras_distill.export.card_facts import cell
from keras_distill.export.questions import check_itself
from keras_distill.export.signature import signature_of
from keras_distill.exported import size_on_disk
from keras_distill.units import size_shown


def add_parser(commands: Any) -> None:
    """Adds the command to the command line."""
    add_command(
        commands,
        "inspect",
        run,
        "tell what an export takes and answers, and check it",
        "Prints the inputs, outputs and size of an export and what its card says of the model, "
        "and asks it in a fresh process that has its runtime alone: its warm-up requests, "
        "or random examples, twice.",
        {"path": "a SavedModel version, a directory of them, a .tflite or .onnx file"},
        [],
    )


def run(options: argparse.Namespace) -> None:
    """Prints what is known, and then what the check found.

    Raises:
        FileNotFoundError: if there is nothing.
        ImportError: without the package that runs it.
        ValueError: if it is no export, or damaged.
        RuntimeError: if the check fails.
    """
    export = signature_of(options.path)
    print(export.path)
    _say("runtime", export.runtime.NAME)
    _say("size", size_shown(size_on_disk(export.path)))
    for role, specs in (("input", export.inputs), ("output", export.outputs)):
        width = max(map(len, specs), default=0)
        for name, spec in specs.items():
            _say(role, f"{name.ljust(width)}  {spec_shown(spec)}")
    try:
        card = read_card(export.path)
    except ValueError as error:
        _say("card", str(error))
    else:
        for line in _main_lines(card or {}):
            _say("card", line)
    began = time.perf_counter()
    asked = check_itself(export)
    seconds = time.perf_counter() - began
    _say(
        "check",
        f"{asked} in a fresh process: finite, the same twice, {seconds:.1f} s with its "
        "start",
    )


def _say(name: str, text: str) -> None:
    print(f"  {name.ljust(9)}{text}")


def _main_lines(card: dict[str, Any]) -> Iterator[str]:
    """Yields what a reader of a card looks for first, a line each; what is known of it."""
    of = {key: part for key, part in card.items() if isinstance(part, dict)}
    parts = {
        "model": _known(of.get("model", {}), "name", "class", "parameters"),
        "teacher": _known(of.get("teacher", {}), "name", "parameters"),
        "distilled": _known(of.get("distillation", {}), "temperature", "alpha"),
        "data": _known(of.get("data", {}), "name", "version"),
        "format": _known(of.get("export", {}), "format"),
    }
    for name, facts in parts.items():
        if facts:
            yield f"{name}: " + ", ".join(facts)
    rows = card.get("evaluation")
    for row in rows if isinstance(rows, list) else []:
        figures = _known(row, "accuracy", "nll", "mae", "r2")
        if figures:
            yield f"{row.get('name', 'judged')}: " + ", ".join(figures)


def _known(facts: Any, *names: str) -> list[str]:
    if not isinstance(facts, dict):
        return []
    is_told = ("name", "class", "format")
    return [
        cell(facts[name]) if name in is_told else f"{name} {cell(facts[name])}"
        for name in names
        if facts.get(name) is not None
    ]
