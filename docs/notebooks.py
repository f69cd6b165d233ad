"""Makes the notebooks of four guides, of their Markdown, by jupytext.

`python docs/notebooks.py` writes docs/notebooks/*.ipynb; with `--check` it says which are not
those of their guides.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys

import jupytext
import nbformat

DOCS = pathlib.Path(__file__).resolve().parent
GUIDES = {
    "start_here": "index.md",
    "temperature": "guides/temperature.md",
    "soft_targets": "guides/soft_targets.md",
    "specialists": "guides/specialists.md",
}
INSTALL = "%pip install -q ../..  # of a clone; the package is not released yet"
_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
_NAME = re.compile(r"\[(`[^`]*`)\]\[[\w.]+\]")


def notebook_of(page: str) -> str:
    """Returns the notebook of a guide, as JSON that is always the same."""
    text = (DOCS / page).read_text().replace("```sh\n", "```console\n")  # no cells
    notebook = jupytext.reads(text, "md")
    base = (DOCS / page).parent

    def moved(match: re.Match[str]) -> str:
        there = (base / match[2]).resolve()
        to = there.relative_to(DOCS.parent).as_posix()
        return f"{match[1]}../../{to}{match[3] or ''}{match[4]}"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _NAME.sub(r"\1", _LINK.sub(moved, cell.source))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(INSTALL))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return nbformat.writes(notebook) + "\n"


def main() -> None:
    """Writes or checks all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = []
    for name, page in GUIDES.items():
        path, made = DOCS / "notebooks" / f"{name}.ipynb", notebook_of(page)
        if check and (not path.exists() or path.read_text() != made):
            stale.append(name)
        elif not check:
            path.write_text(made)
    if stale:
        sys.exit(
            f"not as their guides: {', '.join(stale)}; run python docs/notebooks.py."
        )


if __name__ == "__main__":
    main()
