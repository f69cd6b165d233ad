"""The generalist's specialists on CIFAR-100, for the two experiments of section 5."""

import images
import keras
import tensorflow_datasets as tfds
from records import alone
from sklearn.metrics import normalized_mutual_info_score

import keras_distill as kd

#: Epochs on hard labels, and with soft targets.
STAGES = {"labels": (6, 0), "labels, then soft targets": (4, 2)}
CHOICES = {"1": 1, "2": 2, "3": 3, "5": 5, "all": None}


def clusters_of(data, generalist):
    """Returns clusters of what the generalist confuses, a class in one or two of them."""
    covariance = kd.class_covariance(
        generalist, data.train[0], temperature=2.0, verbose=False
    )
    number, size = (3, 5) if data.quick else (12, 12)
    return kd.cluster_classes(covariance, number, max_size=size, clusters_per_class=2)


def ensemble_of(folder, data, generalist, seed, stages, rate, train=None):
    """Returns the ensemble, trained or read again from the work folder, and its steps."""
    hard, soft = (1, int(stages[1] > 0)) if data.quick else stages
    builder = kd.SpecialistBuilder(generalist, clusters_of(data, generalist))
    work_dir = folder / f"specialists-{seed}-{hard}-{soft}-{rate:g}"
    with alone(work_dir):
        ensemble = builder.fit(
            train or data.train, hard_epochs=hard, soft_epochs=soft, hard_learning_rate=rate,
            soft_learning_rate=rate / 4, temperature=2.0, alpha=0.5, batch_size=images.BATCH,
            optimizer=keras.optimizers.SGD(rate, 0.9, nesterov=True, weight_decay=5e-4),
            augment=images.moved, seed=seed, verbose=False, work_dir=work_dir,
        )  # fmt: skip
    steps = (hard + soft) * sum(record["steps_per_epoch"] for record in builder.records)
    return ensemble, steps


def by_choice(data, ensemble):
    """Returns the ensemble for each number n of likely classes that choose specialists."""
    return {
        name: ensemble.with_settings(n=n)
        for name, n in CHOICES.items()
        if n is None or n < data.classes
    }


def with_superclasses(args, data, clusters):
    """Returns the clusters by name, and their NMI with the 20 superclasses."""
    listed = [[data.names[c] for c in cluster] for cluster in clusters]
    if data.quick:
        return listed, float("nan"), []
    split = tfds.load(
        "cifar100", split="test[:3000]", data_dir=args.data_dir, download=False
    )
    coarse = {int(one["label"]): int(one["coarse_label"]) for one in split}
    pairs = [
        (index, coarse[c]) for index, cluster in enumerate(clusters) for c in cluster
    ]
    shown = [
        [data.names[c] for c in coarse if coarse[c] == number] for number in range(20)
    ]
    return listed, float(normalized_mutual_info_score(*zip(*pairs, strict=True))), shown
