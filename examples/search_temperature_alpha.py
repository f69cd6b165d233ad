"""Which temperature and alpha? A search on MNIST, and what it is worth on test data.

A small student is searched by its accuracy on validation images. Then the values found,
T = 4 with alpha = 0.1, and hard labels alone each train five students, and test images
are looked at, once.

    python examples/search_temperature_alpha.py --data-dir ~/tensorflow_datasets
    python examples/search_temperature_alpha.py --quick
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_distill as kd
from keras_distill import datasets, models

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build_student(hp=None):
    return models.mlp((28, 28, 1), 10, (32,))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", help="TFDS data_dir; TFDS's own default")
    parser.add_argument("--directory", default="search-mnist", help="for all results")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on with the search")
    parser.add_argument("--quick", action="store_true", help="tiny, to see it run")
    args = parser.parse_args()
    trials, executions, epochs, seeds = (3, 1, 1, 2) if args.quick else (30, 2, 15, 5)

    data = datasets.load("mnist", data_dir=args.data_dir, shuffle=False)
    size = 1000 if args.quick else None
    train, validation, test = (
        tuple(part[:size] for part in datasets.to_arrays(split))
        for split in (data.train, data.validation, data.test)
    )

    # 1. The teacher: in your own project, a model that you have already.
    path = f"{args.directory}-teacher.keras"
    if not (args.resume and os.path.exists(path)):
        keras.utils.set_random_seed(0)
        filters = (4, 8) if args.quick else (16, 32, 64)
        teacher = models.cnn((28, 28, 1), 10, filters, dropout=0.3)
        steps = (1 if args.quick else 6) * -(-len(train[0]) // 128)
        schedule = keras.optimizers.schedules.CosineDecay(2e-3, steps)
        teacher.compile(keras.optimizers.Adam(schedule), LOSS, metrics=["accuracy"])
        teacher.fit(*train, batch_size=128, epochs=steps * 128 // len(train[0]))
        teacher.save(path)

    # 2. The search. The teacher is asked once; each trial is a training of its own.
    result = kd.search(
        build_student, train, validation, teacher=path, max_trials=trials,
        executions_per_trial=executions, epochs=epochs, n_jobs=args.workers,
        directory=args.directory, resume=args.resume, overwrite=not args.resume,
    )  # fmt: skip
    print(result)
    result.save(args.directory)
    print(result.trials.sort_values(result.objective, ascending=False).to_string())

    # 3. New seeds for the values found, and for what one would try without a search.
    best = result.best_values
    settings = {
        "searched": (best["temperature"], best["alpha"]),
        "T = 4, alpha = 0.1": (4.0, 0.1),
        "hard labels": (4.0, 1.0),
    }
    targets = kd.SoftTargets.open(f"{args.directory}/soft_targets")
    joined = targets.join(train).cache().shuffle(60_000).batch(128)
    accuracy = {name: [] for name in settings}
    for seed in range(100, 100 + seeds):
        for name, (temperature, alpha) in settings.items():
            keras.utils.set_random_seed(seed)
            student = build_student()
            distiller = kd.Distiller(student, temperature=temperature, alpha=alpha)
            distiller.compile("adam", LOSS, metrics=["accuracy"])
            stop = keras.callbacks.EarlyStopping(
                "val_accuracy", mode="max", patience=5, restore_best_weights=True
            )
            distiller.fit(
                joined, validation_data=validation, epochs=epochs, callbacks=[stop],
                verbose=0,
            )  # fmt: skip
            judged = kd.evaluate(student, test, timing=False)
            accuracy[name].append(100 * judged.accuracy)
        print(f"seed {seed}:", {n: round(a[-1], 2) for n, a in accuracy.items()})
    for name, values in accuracy.items():
        print(f"{name:20} {np.mean(values):.2f} +- {np.std(values, ddof=1):.2f} %")


if __name__ == "__main__":
    main()
