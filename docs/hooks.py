"""What mkdocs does besides: pages of files outside `docs/`, and the pictures there.

A page of the site may be a file that is read on its own too: the list of changes, the
measurements, the paper's results. And a guide shows a picture where the script that draws it
leaves it. Links are written as they work in the repository, and put right here.
"""

from __future__ import annotations

import ast
import pathlib
import posixpath
import re
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parent.parent
#: Pages of the site, and what they are made of.
PAGES = {
    "changes.md": "CHANGELOG.md",
    "measured.md": "benchmarks/README.md",
    "paper.md": "examples/paper/README.md",
}
#: What stands for other files of the repository.
INSTEAD = {"README.md": "index.md", "CONTRIBUTING.md": "inside.md"}
#: Where the list of all modules goes.
MAP = "<!-- map -->"
#: What a browser asks for by itself; a link to click is none.
_LOADED = {
    ".html": re.compile(
        r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc(?:set)?=["']?(?:https?:)?//[^>]*"""
        r"""|<link\b(?![^>]*\brel=["']?(?:canonical|prev|next))[^>]*\bhref=["']?(?:https?:)?//[^>]*"""
    ),
    ".css": re.compile(r"""(?:@import\s*|url\()["']?(?:https?:)?//[^)"';]*"""),
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of `PAGES`, and every picture that a page shows."""
    for uri, path in PAGES.items():
        text = (ROOT / path).read_text()
        files.append(File.generated(config, uri, content=text))
    for page in list(files.documentation_pages()):
        for is_picture, _, link, _ in _LINK.findall(page.content_string):
            path = _in_repository(page.src_uri, link)
            if is_picture and _is_outside(path) and (ROOT / path).exists():
                uri = f"pictures/{path}"
                if files.get_file_from_path(uri) is None:
                    picture = File.generated(config, uri, abs_src_path=str(ROOT / path))
                    files.append(picture)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links into the repository to those of the site."""
    uri = page.file.src_uri

    def replaced(match: re.Match[str]) -> str:
        bang, text, link, anchor = match.groups()
        path = _in_repository(uri, link)
        if not _is_outside(path) and uri not in PAGES:
            return match[0]
        if bang:  # one that is not drawn yet is left out
            to = f"pictures/{path}" if (ROOT / path).exists() else None
        else:
            own = {source: site for site, source in PAGES.items()} | INSTEAD
            to = own.get(path) if _is_outside(path) else path.removeprefix("docs/")
        if to is None:
            return "" if bang else text
        base = posixpath.dirname(uri)
        return f"{bang}[{text}]({posixpath.relpath(to, base or '.')}{anchor or ''})"

    if MAP in markdown:
        markdown = markdown.replace(MAP, _map())
    if (notebook := _notebook_of(uri)) is not None:
        to = posixpath.relpath(notebook, posixpath.dirname(uri) or ".")
        markdown += f"\n[This page as a notebook]({to})\n"
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(
        part if part.startswith("```") else _LINK.sub(replaced, part) for part in parts
    )


def on_post_build(config: Any) -> None:
    """Refuses a site of which a page loads something from another host.

    Raises:
        PluginError: naming the first such page.
    """
    for path in sorted(pathlib.Path(config["site_dir"]).rglob("*")):
        pattern = _LOADED.get(path.suffix)
        if pattern and (found := pattern.search(path.read_text())):
            raise PluginError(f"{path} loads {found[0]!r}; bring it into the site.")


def _notebook_of(uri: str) -> str | None:
    guide = re.fullmatch(r"guides/(\w+)\.md", uri)
    name = guide[1] if guide else "start_here" if uri == "index.md" else None
    notebook = f"notebooks/{name}.ipynb"
    return notebook if (ROOT / "docs" / notebook).exists() else None


def _in_repository(uri: str, link: str) -> str:
    """Returns the path, from the repository's root, of what a page's link leads to."""
    source = PAGES.get(uri, f"docs/{uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _is_outside(path: str) -> bool:
    return not path.startswith("docs/")


def _map() -> str:
    """Returns a table of the modules of each folder, with the first line of each."""
    package, lines = ROOT / "keras_distill", []
    folders = [
        package,
        *sorted(path.parent for path in package.rglob("__init__.py"))[1:],
    ]
    for folder in folders:
        about = "" if folder == package else _first_line(folder / "__init__.py")
        lines += [f"### `{folder.relative_to(ROOT).as_posix()}/`", "", about, ""]
        lines += ["| file | what it holds |", "|---|---|"]
        for path in sorted(folder.glob("*.py")):
            if path.name != "__init__.py" or folder == package:
                lines.append(f"| `{path.name}` | {_first_line(path)} |")
        lines.append("")
    return "\n".join(lines)


def _first_line(path: pathlib.Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.partition("\n")[0].replace("|", "\\|")
