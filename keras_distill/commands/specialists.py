"""From a generalist's file to an exported ensemble: `keras-distill specialists`."""

from __future__ import annotations

import os
from typing import Any

import keras

from keras_distill import datasets, evaluation, plots
from keras_distill.arguments import check_int, check_keras_file
from keras_distill.export import savedmodel
from keras_distill.specialists.builder import SpecialistBuilder
from keras_distill.specialists.clusters import cluster_classes
from keras_distill.specialists.covariance import class_covariance
from keras_distill.specialists.ensemble import SpecialistEnsemble, classes_of
from keras_distill.specialists.report import specialist_report


def run(
    generalist: str,
    dataset: str,
    *,
    n_clusters: int,
    work_dir: str,
    max_size: int | None = None,
    n: int | None = None,
    workers: int = 1,
    data_dir: str | None = None,
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    **training: Any,
) -> evaluation.Comparison:
    """Clusters, trains, judges, draws and exports; prints what it does.

    Args:
        generalist: path of a `.keras` file.
        dataset: "digits", or the name of a TFDS dataset.
        n_clusters: int >= 2.
        work_dir: folder for specialists, pictures and the export.
        max_size: largest number of classes of a cluster.
        n: how many likely classes choose the specialists; `None` (default) takes what is
            best on validation data.
        workers: processes that train.
        data_dir: where TFDS keeps prepared datasets.
        image_size: `(height, width)` for images that differ in size.
        seed: of clusters and training.
        **training: passed to `SpecialistBuilder.fit`.

    Returns:
        The comparison of generalist and ensemble on test data.

    Raises:
        FileNotFoundError: if there is no such generalist.
        ValueError: if it does not fit the dataset, or an argument is out of range.
    """
    check_keras_file("generalist", generalist)
    model = keras.saving.load_model(generalist, compile=False)
    load = datasets.loader(dataset, data_dir, image_size)
    if n is not None:
        n = check_int("n", n, 1, classes_of(model))
    data = load()
    if classes_of(model) != data.classes:
        raise ValueError(
            f"the generalist has {classes_of(model)} outputs and {dataset} has "
            f"{data.classes} classes; give a generalist trained on it."
        )
    is_small = datasets.fits_in_memory(data)
    examples = datasets.to_arrays(data.train) if is_small else lambda: load(None).train

    covariance = class_covariance(model, data.train, temperature=2.0)
    clusters = cluster_classes(covariance, n_clusters, max_size=max_size, seed=seed)
    for index, cluster in enumerate(clusters):
        print(f"cluster {index}: " + ", ".join(data.class_names[c] for c in cluster))
    builder = SpecialistBuilder(model, clusters, n=n or 1)
    ensemble = builder.fit(
        examples, n_jobs=workers, work_dir=work_dir, seed=seed, **training
    )
    ensemble = _choose(ensemble, data, n)
    comparison = evaluation.compare(
        {"generalist": model, f"ensemble, n = {ensemble.n or 'all'}": ensemble},
        data.test,
        teacher=model,
    )
    report = specialist_report(ensemble, data.test)
    print(f"\n{comparison}\n\n{report}\n")
    comparison.save(os.path.join(work_dir, "comparison.json"))
    comparison.save(os.path.join(work_dir, "comparison.md"))
    pictures = {
        "class_covariance": plots.class_covariance(
            covariance, clusters, class_names=data.class_names
        ),
        "accuracy_by_coverage": plots.accuracy_by_coverage(report.by_coverage),
        "accuracy_by_cluster": plots.accuracy_by_cluster(
            report.by_cluster, clusters, class_names=data.class_names
        ),
        "training_by_worker": plots.training_by_worker(builder.records),
    }
    for name, figure in pictures.items():
        path = os.path.join(work_dir, f"{name}.png")
        figure.savefig(path)
        print(path)
    saved = os.path.join(work_dir, "ensemble.keras")
    ensemble.save(saved)
    exported = savedmodel.export_savedmodel(
        ensemble, os.path.join(work_dir, "savedmodel"), class_names=data.class_names
    )
    print(f"the ensemble is in {saved}, and for TensorFlow Serving in {exported}")
    return comparison


def _choose(
    ensemble: SpecialistEnsemble, data: datasets.Data, n: int | None
) -> SpecialistEnsemble:
    """Returns the ensemble with the n given, or with that best on validation data."""
    if n is not None:
        return ensemble.with_settings(n=n)
    candidates = [1, *(k for k in (2, 3, 5) if k < data.classes), None]
    choices = {k: ensemble.with_settings(n=k) for k in candidates}
    judged = evaluation.compare(
        {str(k): model for k, model in choices.items()}, data.validation, timing=False
    )
    scores = {k: (judged[str(k)].accuracy, -judged[str(k)].nll) for k in candidates}
    return choices[max(candidates, key=lambda k: scores[k])]
