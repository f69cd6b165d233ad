"""Progress of what takes more than two seconds, on a terminal or in a log."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm.asyncio import tqdm as terminal_tqdm
from tqdm.auto import tqdm

_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_BETWEEN_LOOKS = 1.0


def bar(
    description: str,
    unit: str,
    total: int | None,
    verbose: bool,
    *,
    initial: int = 0,
    unit_scale: bool = False,
) -> Any:
    """Returns a bar that appears after two seconds and does not stay.

    Where standard error is no terminal it is a line every 30 seconds instead, however seldom
    it is told of progress, and none for work that is shorter.

    Args:
        description: what is done.
        unit: of what is counted, in the singular.
        total: how many there are; `None` if that is not known.
        verbose: whether to show anything.
        initial: how many were done before.
        unit_scale: whether to write large numbers as 1.2M.

    Returns:
        A context manager with `n`, `total`, `update`, `set_postfix_str`, `refresh` and
        `close`, as tqdm has them.
    """
    shown = {
        "total": total,
        "initial": initial,
        "unit": unit,
        "unit_scale": unit_scale,
        "ncols": 90,
    }
    if verbose and not is_live():
        return _Lines(description, shown)
    return tqdm(desc=description, leave=False, delay=2.0, disable=not verbose, **shown)


def each(
    items: Iterable, description: str, unit: str, total: int | None, verbose: bool
) -> Iterator[Any]:
    """Yields items, and shows how many have been dealt with; arguments as for `bar`."""
    with bar(description, unit, total, verbose) as shown:
        for item in items:
            yield item
            shown.update()


def write(text: str) -> None:
    """Prints a line on standard output, above any bar."""
    tqdm.write(text, file=sys.stdout)


def for_one_process() -> None:
    """Has this process share no lock for its bars with others.

    That of tqdm would be left behind by a process that is killed, and Python says so.
    """
    tqdm.set_lock(threading.RLock())


def is_live() -> bool:
    """Tells whether a bar can move: on a terminal, or in a notebook."""
    return tqdm is not terminal_tqdm or sys.stderr.isatty()


class _Lines:
    """Stands in for a tqdm bar in a log."""

    def __init__(self, description: str, shown: dict[str, Any]) -> None:
        self.description, self.shown = description, shown
        self.n, self.total, self.postfix = shown["initial"], shown["total"], ""
        self.start = self.last = time.monotonic()
        self.over, self.writing = threading.Event(), threading.Lock()
        threading.Thread(
            target=_refresh_until, args=(weakref.ref(self), self.over), daemon=True
        ).start()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Writes no more lines; leaves those that were written."""
        self.over.set()

    def update(self, n: int = 1) -> None:
        self.n += n
        self.refresh()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.postfix = text
        if refresh:
            self.refresh()

    def refresh(self) -> None:
        """Writes a line, if the last one is old enough."""
        with self.writing:
            now = time.monotonic()
            if now - self.last < _SECONDS_BETWEEN_LINES:
                return
            self.last = now
        line = tqdm.format_meter(
            self.n,
            elapsed=now - self.start,
            prefix=self.description,
            postfix=self.postfix,
            **{**self.shown, "total": self.total},
        )
        print(line, file=sys.stderr, flush=True)


def _refresh_until(lines: weakref.ref[_Lines], over: threading.Event) -> None:
    """Refreshes lines until they are closed or forgotten: one step may take minutes."""
    while not over.wait(_SECONDS_BETWEEN_LOOKS):
        shown = lines()
        if shown is None:
            return
        shown.refresh()
        del shown


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
