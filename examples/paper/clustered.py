"""The generalist's specialists on CIFAR-100, for the two experiments of section 5."""

import images
import keras
import numpy as np
import tensorflow_datasets as tfds
from records import alone
from sklearn.metrics import normalized_mutual_info_score

import keras_distill as kd

#: Epochs on hard labels, and with soft targets.
STAGES = {"labels": (6, 0), "labels, then soft targets": (4, 2)}
CHOICES = {"1": 1, "2": 2, "3": 3, "5": 5, "all": None}


def covariance_of(data, generalist):
    """Returns the covariance of what a generalist predicts of its training images."""
    return kd.class_covariance(
        generalist, data.train[0], temperature=2.0, verbose=False
    )


def clusters_of(data, covariance):
    """Returns clusters of what the generalist confuses, a class in one or two of them."""
    number, size = (3, 5) if data.quick else (12, 12)
    return kd.cluster_classes(covariance, number, max_size=size, clusters_per_class=2)


def ensemble_of(folder, data, generalist, seed, stages, rate, train=None):
    """Returns the ensemble, trained or read again from the work folder, and its steps."""
    hard, soft = (1, int(stages[1] > 0)) if data.quick else stages
    builder = kd.SpecialistBuilder(
        generalist, clusters_of(data, covariance_of(data, generalist))
    )
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
    """Returns a line for each cluster, its classes by superclass, and the NMI with these.

    And their NMI by chance: the mean of a hundred permutations of the classes.
    """
    if data.quick:
        return [", ".join(data.names[c] for c in one) for one in clusters], 0.0, 0.0
    builder = tfds.builder("cifar100", data_dir=args.data_dir)
    names = builder.info.features["coarse_label"].names
    examples = builder.as_dataset(split="test[:3000]")
    coarse = {int(one["label"]): names[int(one["coarse_label"])] for one in examples}
    lines = []
    for one in clusters:
        groups = {}
        for c in one:
            groups.setdefault(coarse[c], []).append(data.names[c])
        largest = sorted(groups, key=lambda name: -len(groups[name]))
        lines.append(
            "; ".join(f"*{name}*: {', '.join(groups[name])}" for name in largest)
        )
    numbers = [number for number, one in enumerate(clusters) for _ in one]
    superclass = np.array([coarse[c] for c in range(len(coarse))])
    in_clusters = np.concatenate([list(one) for one in clusters])

    def agreement(superclass):
        return float(normalized_mutual_info_score(numbers, superclass[in_clusters]))

    rng = np.random.default_rng(0)
    chance = [agreement(rng.permutation(superclass)) for _ in range(100)]
    return lines, agreement(superclass), float(np.mean(chance))
