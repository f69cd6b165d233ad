"""The command `keras-distill`: a thin command line over the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import keras_distill as kd
from keras_distill.commands import cache, demo, search, specialists


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-distill",
        description="Knowledge distillation for Keras and TensorFlow.",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {kd.__version__}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (demo, cache, specialists, search):
        command.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; `None` (default) takes `sys.argv`.

    Returns:
        The exit status: 0; 1 for an error, said in a sentence; 130 for Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("\nkeras-distill: stopped.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"keras-distill: error: {error}", file=sys.stderr)
        return 1
    return 0
