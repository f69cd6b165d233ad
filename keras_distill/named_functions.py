"""A function by its name on the command line or in a string: "module:function"."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable


def function_named(path: str, role: str, example: str, purpose: str) -> Callable:
    """Returns the function that "module:function" names.

    Modules of the working folder are found, as by `python -m`.

    Args:
        path: as in "my_models:build".
        role: what the function gives, for messages, as in "student".
        example: a name and what it means, as in "my_models:build for the function
            build(hp) of my_models.py".
        purpose: as in "to build a student".

    Raises:
        ValueError: if there is no such module or function, or the module raises.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ValueError(
            f"the {role} must be module:function, got {path!r}; as in {example}."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the {role}'s module cannot be imported: {error}; run the command in its "
            "folder, or install it."
        ) from error
    except (Exception, SystemExit) as error:  # whatever a user's module may raise
        said = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"the {role}'s module {module_name} cannot be imported: "
            f"{type(error).__name__}: {said}."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{module_name} has no function {name!r} {purpose}.")
    return function
