"""From a generalist's file to an exported ensemble: `keras-distill specialists`."""

from __future__ import annotations

import argparse
import os
from typing import Any

import keras_distill as kd
from keras_distill.arguments import check_int
from keras_distill.commands.options import (
    BATCH_SIZE,
    DATA_DIR,
    DATASET,
    SEED,
    add_command,
    as_path,
    best_on,
    load_model,
    loader,
    save_results,
    text_example,
)
from keras_distill.specialists.ensemble import classes_of

# Options that are passed on only if they are given: `fit` has defaults of its own.
_TRAINING = (
    ("--hard-epochs", int, None, "of the stage on hard targets; 0 leaves it out"),
    ("--hard-learning-rate", float, None, "at the beginning of that stage"),
    ("--soft-epochs", int, None, "of the stage on soft targets; 0 leaves it out"),
    ("--soft-learning-rate", float, None, "at the beginning of that stage"),
    ("--temperature", float, None, "T of the soft stage, > 0"),
    ("--alpha", float, None, "weight of the hard loss in the soft stage, 0 to 1"),
)


def add_parser(commands: Any) -> None:
    """Adds the command to the command line."""
    add_command(
        commands,
        "specialists",
        run,
        "train specialists for the classes that a generalist confuses",
        "Finds the classes that a generalist confuses, trains a specialist for each "
        "cluster of them, composes the ensemble, judges it on test data, draws pictures "
        "and exports it. Started again, it goes on with the specialists that are missing.",
        {
            "generalist": "a .keras file",
            "dataset": DATASET,
        },
        [
            ("--clusters", int, 10, "number of clusters and specialists"),
            ("--max-size", int, None, "most classes of a cluster"),
            (
                "--n",
                int,
                None,
                "likely classes that choose the specialists; default: best on validation",
            ),
            ("--workers", int, 1, "processes that share the work"),
            (
                "--work-dir",
                as_path,
                "keras-distill-specialists",
                "folder for all results",
            ),
            DATA_DIR,
            *_TRAINING,
            BATCH_SIZE,
            SEED,
        ],
        goes_on=True,
    )


def run(options: argparse.Namespace) -> None:
    """Clusters, trains, judges, draws and exports; prints what it does.

    Raises:
        FileNotFoundError: if there is no such generalist.
        ValueError: if it does not fit the dataset, or an option is out of range.
    """
    seed = check_int("seed", options.seed, 0)
    model = load_model("generalist", options.generalist)
    load, n, work_dir = loader(options), options.n, options.work_dir
    if n is not None:
        check_int("n", n, 1, classes_of(model))
    data = load()
    if classes_of(model) != data.classes:
        raise ValueError(
            f"the generalist has {classes_of(model)} outputs and {options.dataset} has "
            f"{data.classes} classes; give a generalist trained on it."
        )
    is_small = kd.datasets.fits_in_memory(data)
    examples = (
        kd.datasets.to_arrays(data.train) if is_small else lambda: load(None).train
    )

    covariance = kd.class_covariance(model, data.train, temperature=2.0)
    clusters = kd.cluster_classes(
        covariance, options.clusters, max_size=options.max_size, seed=seed
    )
    for index, cluster in enumerate(clusters):
        print(f"cluster {index}: " + ", ".join(data.class_names[c] for c in cluster))
    builder = kd.SpecialistBuilder(model, clusters, n=n or 1)
    names = [option.lstrip("-").replace("-", "_") for option, *_ in _TRAINING]
    given = {name: getattr(options, name) for name in names}
    ensemble = builder.fit(
        examples,
        n_jobs=options.workers,
        work_dir=work_dir,
        seed=seed,
        batch_size=options.batch_size,
        **{name: value for name, value in given.items() if value is not None},
    )
    ensemble = _choose(ensemble, data, n)
    comparison = kd.compare(
        {"generalist": model, f"ensemble, n = {ensemble.n or 'all'}": ensemble},
        data.test,
        teacher=model,
    )
    report = kd.specialist_report(ensemble, data.test)
    print(f"\n{comparison}\n\n{report}\n")
    class_names = data.class_names
    pictures = {
        "class_covariance": kd.plots.class_covariance(
            covariance, clusters, class_names=class_names
        ),
        "accuracy_by_coverage": kd.plots.accuracy_by_coverage(report.by_coverage),
        "accuracy_by_cluster": kd.plots.accuracy_by_cluster(
            report.by_cluster, clusters, class_names=class_names
        ),
        "training_by_worker": kd.plots.training_by_worker(builder.records),
    }
    save_results(work_dir, comparison, pictures)
    saved = os.path.join(work_dir, "ensemble.keras")
    ensemble.save(saved)
    exported = kd.export_savedmodel(
        ensemble,
        os.path.join(work_dir, "savedmodel"),
        example=text_example(ensemble, data),
        class_names=class_names,
        card={"data": data, "seeds": seed, "evaluation": comparison},
    )
    print(f"the ensemble is in {saved}, and for TensorFlow Serving in {exported}")


def _choose(
    ensemble: kd.SpecialistEnsemble, data: kd.datasets.Data, n: int | None
) -> kd.SpecialistEnsemble:
    """Returns the ensemble with the n given, or with that best on validation data."""
    if n is not None:
        return ensemble.with_settings(n=n)
    candidates = [1, *(k for k in (2, 3, 5) if k < data.classes), None]
    choices = {str(k): ensemble.with_settings(n=k) for k in candidates}
    return choices[best_on(data.validation, choices)]
