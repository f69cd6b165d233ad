"""CIFAR-100: a generalist, specialists for what it confuses, and back into one model.

The second half of the paper from end to end: the clusters of confusable classes, one
specialist for each, the ensemble that answers for all of them, and a student of the
generalist's own size that learns from the ensemble.

    python examples/specialists_cifar100.py --data-dir ~/tensorflow_datasets --workers 2
    python examples/specialists_cifar100.py --quick
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import keras_distill as kd
from keras_distill import datasets, models, plots


def compile_and_fit(model, data, epochs, learning_rate):
    """One recipe for generalist and student: a learning rate that falls to 0."""
    steps = epochs * int(data.train.cardinality())
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        data.train,
        validation_data=data.validation,
        epochs=epochs,
        shuffle=False,
        verbose=2,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", help="TFDS data_dir; TFDS's own default")
    parser.add_argument("--workers", type=int, default=1, help="processes that train")
    parser.add_argument("--work-dir", default="specialists-cifar100")
    parser.add_argument("--quick", action="store_true", help="tiny, on digits")
    args = parser.parse_args()
    name, filters, clusters, epochs = "cifar100", (16, 48, 128, 256), 12, 25
    if args.quick:
        name, filters, clusters, epochs = "digits", (8, 16), 3, 3

    data = datasets.load(name, data_dir=args.data_dir, batch_size=128)
    unshuffled = datasets.load(name, data_dir=args.data_dir, shuffle=False)

    # 1. The generalist: in your own project, a model that you have already.
    keras.utils.set_random_seed(0)
    generalist = models.cnn(
        data.input_shape, data.classes, filters, dense=256, dropout=0.3
    )
    compile_and_fit(generalist, data, epochs, 2e-3)

    # 2. What it confuses: its predictions are enough, no labels are used.
    covariance = kd.class_covariance(generalist, data.train, temperature=2.0)
    found = kd.cluster_classes(
        covariance, clusters, max_size=2 * data.classes // clusters
    )
    for cluster in found:
        print(", ".join(data.class_names[c] for c in cluster))

    # 3. A specialist for each cluster, and one model of them all.
    builder = kd.SpecialistBuilder(generalist, found, n=3)
    ensemble = builder.fit(
        datasets.to_arrays(unshuffled.train),
        hard_epochs=epochs // 3,
        hard_learning_rate=4e-3,
        n_jobs=args.workers,
        work_dir=args.work_dir,
    )
    print(kd.specialist_report(ensemble, data.test))

    # 4. Back into one model: the ensemble teaches a copy of the generalist.
    student = keras.models.clone_model(generalist)
    student.set_weights(generalist.get_weights())
    distiller = kd.Distiller(student, teacher=ensemble, temperature=2.0, alpha=0.5)
    compile_and_fit(distiller, data, epochs // 3 + 1, 1e-3)

    # 5. What it brought, on the test split.
    print(
        kd.compare(
            {"generalist": generalist, "ensemble": ensemble, "student": student},
            data.test,
            teacher=ensemble,
        )
    )
    figure = plots.class_covariance(covariance, found, class_names=data.class_names)
    figure.savefig(os.path.join(args.work_dir, "class_covariance.png"))


if __name__ == "__main__":
    main()
