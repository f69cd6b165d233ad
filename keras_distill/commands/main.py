"""The command `keras-distill`: a thin command line over the package."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any


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
    demo.set_defaults(run=_demo)

    cache = commands.add_parser(
        "cache",
        help="keep a teacher's soft targets for a dataset on disk",
        description=(
            "Runs a teacher once over a split of a dataset, in its own order, and keeps "
            "its logits. Started again, it goes on after the last whole shard. In Python: "
            "SoftTargets.open(PATH).join(datasets.load(DATASET, shuffle=False, "
            "batch_size=None).train)."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    cache.add_argument("teacher", help="a .keras file or a SavedModel directory")
    cache.add_argument("dataset", help='"digits", or a TFDS dataset: mnist, ...')
    cache.add_argument("path", help="folder for the soft targets")
    cache.add_argument(
        "--split", choices=["train", "validation", "test"], default="train",
        help="of the dataset; validation is a tenth of the training examples",
    )  # fmt: skip
    _add_dataset_options(cache)
    cache.add_argument(
        "--top-k", type=int, default=None, help="keep the k largest logits; default all"
    )
    cache.add_argument(
        "--dtype", choices=["float16", "bfloat16", "float32"], default="float16",
        help="of the logits on disk",
    )  # fmt: skip
    cache.add_argument(
        "--batch-size", type=int, default=128, help="examples the teacher sees at once"
    )
    cache.add_argument(
        "--workers", type=int, default=1, help="processes that share the work"
    )
    cache.add_argument(
        "--overwrite", action="store_true", help="replace soft targets of another kind"
    )
    cache.set_defaults(run=_cache)

    specialists = commands.add_parser(
        "specialists",
        help="train specialists for the classes that a generalist confuses",
        description=(
            "Finds the classes that a generalist confuses, trains a specialist for each "
            "cluster of them, composes the ensemble, judges it on test data, draws "
            "pictures and exports it. Started again, it goes on with the specialists "
            "that are missing."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    specialists.add_argument("generalist", help="a .keras file")
    specialists.add_argument(
        "dataset", help='"digits", or a TFDS dataset: cifar100, ...'
    )
    specialists.add_argument(
        "--clusters", type=int, default=10, help="number of clusters and specialists"
    )
    specialists.add_argument(
        "--max-size", type=int, default=None, help="most classes of a cluster"
    )
    specialists.add_argument(
        "--n", type=int, default=None,
        help="likely classes that choose the specialists; default: best on validation",
    )  # fmt: skip
    specialists.add_argument(
        "--workers", type=int, default=1, help="processes that share the work"
    )
    specialists.add_argument(
        "--work-dir", default="keras-distill-specialists", help="folder for all results"
    )
    _add_dataset_options(specialists)
    for stage in ("hard", "soft"):
        specialists.add_argument(
            f"--{stage}-epochs", type=int, default=None,
            help=f"of the stage on {stage} targets; 0 leaves it out",
        )  # fmt: skip
        specialists.add_argument(
            f"--{stage}-learning-rate", type=float, default=None,
            help="at the beginning of that stage",
        )  # fmt: skip
    specialists.add_argument(
        "--temperature", type=float, default=None, help="T of the soft stage, > 0"
    )
    specialists.add_argument(
        "--alpha", type=float, default=None,
        help="weight of the hard loss in the soft stage, 0 to 1",
    )  # fmt: skip
    specialists.add_argument(
        "--batch-size", type=int, default=128, help="examples of a training step"
    )
    specialists.add_argument("--seed", type=int, default=0, help="makes it repeatable")
    specialists.set_defaults(run=_specialists)

    search = commands.add_parser(
        "search",
        help="search temperature and alpha, and what else a student has",
        description=(
            "Keeps a teacher's soft targets, tries temperatures and alphas, and whatever "
            "the student's function asks for, each trial by its validation accuracy at "
            "T = 1; judges the best student on test data, draws pictures and exports it."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    search.add_argument("teacher", help="a .keras file")
    search.add_argument("dataset", help='"digits", or a TFDS dataset: mnist, ...')
    search.add_argument(
        "student", help="module:function, with a function of hp that returns a model"
    )
    search.add_argument(
        "--temperature", default="1:20:log",
        help="T: a number, LOW:HIGH, LOW:HIGH:log, or A,B,C",
    )  # fmt: skip
    search.add_argument(
        "--alpha", default="0:1", help="weight of the hard loss, likewise"
    )
    search.add_argument("--trials", type=int, default=30, help="at least 2")
    search.add_argument(
        "--executions", type=int, default=1, help="trainings averaged in each trial"
    )
    search.add_argument("--epochs", type=int, default=20, help="of a training, at most")
    search.add_argument(
        "--patience", type=int, default=5, help="epochs without a better result"
    )
    search.add_argument(
        "--objective",
        default="accuracy",
        help='"accuracy" or "nll", on validation data',
    )
    search.add_argument(
        "--algorithm", default="bayesian", help='"bayesian" or "random"'
    )
    search.add_argument(
        "--workers", type=int, default=1, help="processes, each with a GPU of its own"
    )
    search.add_argument(
        "--batch-size", type=int, default=128, help="examples of a training step"
    )
    search.add_argument(
        "--directory", default="keras-distill-search", help="folder for all results"
    )
    search.add_argument(
        "--resume", action="store_true", help="go on with the search in the directory"
    )
    search.add_argument(
        "--overwrite", action="store_true", help="delete the search in the directory"
    )
    search.add_argument(
        "--retrain", action="store_true", help="train the best student once more"
    )
    _add_dataset_options(search)
    search.add_argument("--seed", type=int, default=0, help="makes it repeatable")
    search.set_defaults(run=_search)
    return parser


def _add_dataset_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir", default=None, help="where TFDS keeps prepared datasets"
    )
    parser.add_argument(
        "--image-size", type=int, nargs=2, default=None, metavar=("HEIGHT", "WIDTH"),
        help="for datasets whose images differ in size",
    )  # fmt: skip


def _demo(options: argparse.Namespace) -> None:
    from keras_distill.commands import demo

    demo.run(
        dataset=options.dataset,
        data_dir=options.data_dir,
        output=options.output or f"keras-distill-demo-{options.dataset}",
        temperature=options.temperature,
        alpha=options.alpha,
        epochs=options.epochs,
        seed=options.seed,
    )


def _cache(options: argparse.Namespace) -> None:
    from keras_distill import datasets
    from keras_distill.soft_targets.store import SoftTargets

    main_process = os.getpid()

    def data() -> Any:
        loaded = datasets.load(
            options.dataset,
            data_dir=options.data_dir,
            batch_size=None,
            image_size=options.image_size and tuple(options.image_size),
            shuffle=False,
            verbose=os.getpid() == main_process,
        )
        return getattr(loaded, options.split)

    targets = SoftTargets.write(
        options.path,
        options.teacher,
        data,
        top_k=options.top_k,
        dtype=options.dtype,
        batch_size=options.batch_size,
        batched=False,
        n_jobs=options.workers,
        overwrite=options.overwrite,
    )
    print(targets)


def _specialists(options: argparse.Namespace) -> None:
    from keras_distill.commands import specialists

    names = (
        "hard_epochs",
        "hard_learning_rate",
        "soft_epochs",
        "soft_learning_rate",
        "temperature",
        "alpha",
    )
    given = {name: getattr(options, name) for name in names}
    specialists.run(
        options.generalist,
        options.dataset,
        n_clusters=options.clusters,
        work_dir=options.work_dir,
        max_size=options.max_size,
        n=options.n,
        workers=options.workers,
        data_dir=options.data_dir,
        image_size=options.image_size and tuple(options.image_size),
        seed=options.seed,
        batch_size=options.batch_size,
        **{name: value for name, value in given.items() if value is not None},
    )


def _search(options: argparse.Namespace) -> None:
    from keras_distill.commands import search

    try:
        search.run(
            options.teacher,
            options.dataset,
            options.student,
            directory=options.directory,
            data_dir=options.data_dir,
            image_size=options.image_size and tuple(options.image_size),
            temperature=search.parse_range(options.temperature),
            alpha=search.parse_range(options.alpha),
            max_trials=options.trials,
            executions_per_trial=options.executions,
            epochs=options.epochs,
            patience=options.patience,
            objective=options.objective,
            algorithm=options.algorithm,
            workers=options.workers,
            batch_size=options.batch_size,
            resume=options.resume,
            overwrite=options.overwrite,
            retrain=options.retrain,
            seed=options.seed,
        )
    except KeyboardInterrupt:
        print("\nGo on with the same command and --resume.", file=sys.stderr)
        raise
    except RuntimeError as error:  # all trials failed, or workers could not start
        raise ValueError(error) from error


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
