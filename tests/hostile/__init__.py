"""Wrong arguments as data: a module per part of the package, each with its `ROWS`.

A row is `(name, call, sentence)`: the public name that is called, a function without
arguments that calls it wrongly, and a regular expression that the error's message matches.
Models and data are made once, by the cached functions of `things`. A row runs in an empty
folder, which must be empty after it: paths that are written to are relative, files that are
read are in temporary folders of their own.
"""

from typing import Any, NamedTuple


class Row(NamedTuple):
    """One wrong use.

    Attributes:
        name: of the public function or class, as in `kd.NAME` (`Distiller.fit` for a method,
            `plots.soft_targets` for what is in a module).
        call: function without arguments that makes the wrong call.
        sentence: regular expression of the message.
        error: kind of error, or several; KeyError only where it is documented.
    """

    name: str
    call: Any
    sentence: str
    error: Any = (ValueError, TypeError, OSError)
