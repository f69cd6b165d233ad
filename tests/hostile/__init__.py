"""Wrong arguments as data: a module per part of the package, each with its `ROWS`.

A row is `(name, call, sentence)`: the public name that is called, a function without
arguments that calls it wrongly, and a regular expression that the error's message matches.
Models and data are made once, by the cached functions of `things`.
"""

from typing import Any, NamedTuple


class Row(NamedTuple):
    """One wrong use.

    Attributes:
        name: of the public function or class, as in `kd.NAME` (`Distiller.fit` for a method).
        call: function without arguments that makes the wrong call.
        sentence: regular expression of the message.
        error: kind of error.
    """

    name: str
    call: Any
    sentence: str
    error: Any = (ValueError, TypeError)
