"""Progress bars for what takes more than two seconds, whoever does the work."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tqdm.auto import tqdm


def bar(
    description: str,
    unit: str,
    total: int | None,
    verbose: bool,
    *,
    initial: int = 0,
    unit_scale: bool = False,
) -> Any:
    """Returns a bar that appears after two seconds and does not stay."""
    return tqdm(
        desc=description,
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=unit_scale,
        ncols=90,
        leave=False,
        delay=2.0,
        disable=not verbose,
    )


def write(text: str) -> None:
    """Prints a line on standard output, above any bar."""
    tqdm.write(text, file=sys.stdout)


@contextlib.contextmanager
def watching(look: Callable[[], None], seconds: float = 1.0) -> Iterator[None]:
    """Calls a function again and again meanwhile, as to count what others have done."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(seconds):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
