"""Writes the options of every command into the page of the command line, as `--help` says them.

`python docs/commands.py` writes docs/reference/commands.md; with `--check` it says whether the
page is as the commands are.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys

from keras_distill.commands.main import _parser

PAGE = pathlib.Path(__file__).resolve().parent / "reference" / "commands.md"
#: A command's heading, and the table of its options, if it is there.
_SECTION = re.compile(
    r"(^## `(\S+)`\n.*?)(?:<details markdown>.*?</details>\s*)?(?=^## |\Z)", re.M | re.S
)


def options_of(name: str, command: argparse.ArgumentParser) -> str:
    """Returns the arguments and options of a command as a table that opens when clicked."""
    formatter = command.formatter_class(prog=name)
    lines = [
        "<details markdown>",
        f"<summary>Arguments and options of {name}</summary>",
        "",
        "| | |",
        "|---|---|",
    ]
    for action in command._actions:
        if action.dest == "help":
            continue
        what = action.option_strings[-1] if action.option_strings else action.dest
        given = action.metavar if action.option_strings else None
        if action.choices and action.option_strings:
            given = " or ".join(map(str, action.choices))
        words = [what, *([given] if isinstance(given, str) else given or ())]
        said = formatter._expand_help(action).replace("|", "\\|")
        lines.append(f"| `{' '.join(words)}` | {said} |")
    return "\n".join([*lines, "", "</details>"])


def page(text: str) -> str:
    """Returns the page with the options that there are."""
    parser = _parser()
    (commands,) = (a for a in parser._actions if a.dest == "command")
    known = dict(commands.choices or {})

    def with_options(match: re.Match[str]) -> str:
        before, name = match.groups()
        return f"{before.rstrip()}\n\n{options_of(name, known[name])}\n\n"

    return _SECTION.sub(with_options, text).rstrip() + "\n"


def main() -> None:
    """Writes or checks the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    text = PAGE.read_text()
    made = page(text)
    if not parser.parse_args().check:
        PAGE.write_text(made)
    elif made != text:
        sys.exit("commands.md is not as the commands are; run python docs/commands.py.")


if __name__ == "__main__":
    main()
