"""The command `keras-distill`: a thin command line over the package."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import queue
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import tensorflow as tf

import keras_distill as kd
from keras_distill import _quiet
from keras_distill.arguments import check_backend
from keras_distill.commands import (
    bench,
    cache,
    demo,
    distill,
    export,
    inspect_export,
    search,
    specialists,
    teach,
)

#: Kinds of error whose message says it all.
_SAID = (ValueError, TypeError, RuntimeError, OSError, ImportError)


class _Parser(argparse.ArgumentParser):
    """Says in a sentence what is wrong, and what may have been meant."""

    def error(self, message: str) -> NoReturn:
        if typed := re.match(r"argument COMMAND: invalid choice: '(.*?)' ", message):
            # The only action with choices by name: the commands.
            known = [name for a in self._actions for name in a.choices or ()]
            message = f"there is no command {typed[1]!r}; {_meant(typed[1], known)}"
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help tells more)\n")

    def refuse_option(self, option: str) -> NoReturn:
        """Ends the program for an option that is not there."""
        if not option.startswith("-"):
            self.error(f"{option!r} is one argument too many")
        option = option.partition("=")[0]
        known = [a.option_strings[-1] for a in self._actions if a.option_strings]
        self.error(f"there is no option {option}; {_meant(option, known)}")


def _meant(typed: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(typed, known, 1, 0.6)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        options.parser.refuse_option(unknown[0])
    return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="keras-distill",
        description="Knowledge distillation for Keras and TensorFlow.",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {kd.__version__}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (
        demo,
        distill,
        teach,
        cache,
        search,
        specialists,
        export,
        inspect_export,
        bench,
    ):
        command.add_parser(commands)
    return parser


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which is met as Ctrl-C is: what has begun is cleared away."""


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Has SIGINT and SIGTERM raise errors meanwhile, where this thread may say so.

    What is raised while Python calls a finalizer, as it does often in a collection of
    garbage, goes nowhere; it is said again until it is heard.
    """

    def terminate(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise _Terminated

    handlers: dict[int, Any] = {signal.SIGTERM: terminate}
    if signal.getsignal(signal.SIGINT) is _quiet.stop:  # while it was imported
        handlers[signal.SIGINT] = signal.default_int_handler
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # no main thread
        for number, handler in handlers.items():
            before[number] = signal.signal(number, handler)
    hook, is_over = sys.unraisablehook, threading.Event()
    lost_numbers: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    main_thread = threading.main_thread().ident or 0

    def unheard(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            hook(lost)
            return
        number = signal.SIGINT
        if issubclass(lost.exc_type, _Terminated):
            number = signal.SIGTERM
            signal.signal(number, terminate)
        try:
            lost_numbers.put(number)
        except KeyboardInterrupt:  # one that was said again is lost here: one is enough
            lost_numbers.put(number)

    def say_again() -> None:
        for number in iter(lost_numbers.get, None):
            if not is_over.wait(0.05):
                signal.pthread_kill(main_thread, number)

    speaker = threading.Thread(target=say_again, daemon=True)
    speaker.start()
    sys.unraisablehook = unheard
    try:
        yield
    finally:
        is_over.set()
        lost_numbers.put(None)
        while speaker.is_alive():  # what it says too late is for nobody else
            with contextlib.suppress(KeyboardInterrupt):
                speaker.join()
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _sentence(error: Exception) -> str:
    """Returns what an error says, in one paragraph and without TensorFlow's graph."""
    if isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError)):
        return (
            f"out of memory: {_first_line(error)}; give a smaller --batch-size, a smaller "
            "model, or fewer --workers."
        )
    if isinstance(error, _SAID):
        return " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, tf.errors.OpError):
        # What Python raised while TensorFlow read data, as of a file that is damaged or gone.
        kinds = "ValueError|OSError|FileNotFoundError|PermissionError"
        if raised := re.search(rf"\b(?:{kinds}): (.+)", str(error)):
            return raised[1]
        return f"TensorFlow stopped: {_first_line(error)}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{frame.filename}, line {frame.lineno}"
    return f"{type(error).__name__}: {_first_line(error)} ({place})."


def _first_line(error: Exception) -> str:
    """Returns the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = (line for line in lines if line and line != "Graph execution error:")
    return next(said, "no more is known").rstrip(".")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; `None` (default) takes `sys.argv`.

    Returns:
        The exit status: 0; 1 for an error, said in a sentence; 130 for Ctrl-C and 143 for
        SIGTERM, after which no process and no temporary file is left; 141 where nobody reads
        what is printed. A wrong command line
        is argparse's own exit with 2.
    """
    options = argparse.Namespace(goes_on=False)
    try:
        with _stopped_by_signals():
            options = _parsed(arguments)
            check_backend()
            options.run(options)
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        more = " The same command goes on from here." if options.goes_on else ""
        print(f"\nkeras-distill: stopped.{more}", file=sys.stderr)
        return 143 if isinstance(error, _Terminated) else 130
    except BrokenPipeError:  # as of `| head`: who read it has had enough
        # Or the end of Python says it again.
        with open(os.devnull, "w") as nowhere, contextlib.suppress(OSError):
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        print(f"keras-distill: error: {_sentence(error)}", file=sys.stderr)
        return 1
    return 0
