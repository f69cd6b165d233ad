"""Docstrings as the site shows them: doctests in fences, papers as links."""

from __future__ import annotations

import re
from typing import Any

import griffe

# A doctest ends at an empty line, as for doctest itself.
_DOCTEST = re.compile(
    r"(?:^>>> .*\n?(?:^(?!\s*$).*\n?)*)(?:\n^>>> .*\n?(?:^(?!\s*$).*\n?)*)*", re.M
)
_PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def as_markdown(text: str) -> str:
    """Returns a docstring's text with fences, bold headings and links."""
    text = _DOCTEST.sub(lambda found: f"\n```pycon\n{found[0].rstrip()}\n```\n", text)
    text = re.sub(r"^(Examples?|References?):", r"**\1:**", text, flags=re.MULTILINE)
    return _PAPER.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


class Docstrings(griffe.Extension):
    """Puts every docstring right when it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes one docstring, before it is parsed into sections."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
