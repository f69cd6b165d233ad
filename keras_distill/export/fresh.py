"""A new Python process that does one thing and ends, or is ended with the one that asks."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

# What every program begins with: `given` is what was sent, `answer` takes the pickled answer.
# The process ends when its standard input does, that is with the process that asks, however
# that ends. A thread alone could not: a converter may keep Python's lock for minutes.
PREAMBLE = """
import contextlib, ctypes, os, pickle, runpy, signal, sys, threading
with contextlib.suppress(OSError, AttributeError):  # only Linux has it
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
given = pickle.load(sys.stdin.buffer)
def end_with_the_asker():
    while os.read(0, 4096):
        pass
    os._exit(1)
threading.Thread(target=end_with_the_asker, daemon=True).start()
answer = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # what is printed is no answer
"""

# Calls a function of a file, for what no memory of a GPU is asked: it may be the asker's.
CALL = (
    PREAMBLE
    + """
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
done = runpy.run_path(sys.argv[1])[sys.argv[2]](*given)
pickle.dump(done, answer)
answer.close()
os._exit(0)
"""
)


class FreshProcessError(RuntimeError):
    """A fresh process failed.

    Attributes:
        code: that it ended with; of a signal its negative number.
        said: the end of what it wrote.
    """

    def __init__(self, code: int, said: str) -> None:
        super().__init__(f"a fresh process ended with {code}:\n{said}")
        self.code, self.said = code, said

    @property
    def ended(self) -> str:
        """How it ended, in words."""
        if self.code < 0:
            return f"was ended by {signal.Signals(-self.code).name}"
        return f"ended with {self.code}"


def run(program: str, arguments: Sequence[str], given: Any) -> Any:
    """Runs a program in a new Python process, and returns what it answers.

    Args:
        program: Python code that begins with `PREAMBLE` and pickles one object to `answer`.
        arguments: `sys.argv[1:]` of it.
        given: object that can be pickled, `given` in it.

    Raises:
        FreshProcessError: if it fails.
    """
    command = [sys.executable, "-c", program, *arguments]
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=said, env=env
        ) as asked,
    ):
        assert asked.stdin is not None
        assert asked.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                pickle.dump(given, asked.stdin)
                asked.stdin.flush()
            answered = asked.stdout.read()
            asked.wait()
        finally:
            asked.kill()
        if asked.returncode != 0:
            said.seek(0)
            text = said.read().decode(errors="replace")[-2000:]
            raise FreshProcessError(asked.returncode, text)
        return pickle.loads(answered)
