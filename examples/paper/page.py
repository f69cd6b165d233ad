"""Puts the tables of `results/` into README.md, each between its two comments.

python examples/paper/page.py
"""

import argparse
import pathlib
import re

HERE = pathlib.Path(__file__).parent
PLACE = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page):
    """Returns the page with the tables as they are in `results/`."""

    def table(match):
        before, name, after = match.groups()
        path = HERE / "results" / f"{name}.md"
        text = path.read_text() if path.exists() else "Not run to its end yet.\n"
        return f"{before}\n{text}\n{after}"

    return PLACE.sub(table, page)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    readme = HERE / "README.md"
    readme.write_text(filled(readme.read_text()))
