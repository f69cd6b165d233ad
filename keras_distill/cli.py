"""The command `keras-distill`: a thin command line over the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-distill",
        description="Knowledge distillation for Keras and TensorFlow.",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {version('keras-distill')}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="a teacher, a student and its baseline on real handwritten digits",
        description=(
            "Trains a teacher, distils it into a student, trains the same student on "
            "hard labels, judges all three on test data, draws pictures, exports the "
            "student that is better on validation data, and asks it from a fresh "
            "process. On digits it needs no network and takes about a minute."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        "--dataset",
        default="digits",
        help='"digits", or a TFDS image dataset: mnist, ...',
    )
    demo.add_argument(
        "--data-dir", default=None, help="where TFDS keeps prepared datasets"
    )
    demo.add_argument(
        "--output", default=None, help="folder for results; keras-distill-demo-DATASET"
    )
    demo.add_argument("--temperature", type=float, default=4.0, help="T, > 0")
    demo.add_argument(
        "--alpha", type=float, default=0.1, help="weight of the hard loss, 0 to 1"
    )
    demo.add_argument(
        "--epochs", type=int, default=None, help="of each training; fits the dataset"
    )
    demo.add_argument("--seed", type=int, default=0, help="makes the run repeatable")
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
        from keras_distill import demo

        demo.run(
            dataset=options.dataset,
            data_dir=options.data_dir,
            output=options.output or f"keras-distill-demo-{options.dataset}",
            temperature=options.temperature,
            alpha=options.alpha,
            epochs=options.epochs,
            seed=options.seed,
        )
    except KeyboardInterrupt:
        print("\nkeras-distill: stopped.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"keras-distill: error: {error}", file=sys.stderr)
        return 1
    return 0
