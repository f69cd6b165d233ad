"""scikit-learn's digits: a distilled student against one trained on hard labels.

Both students have the same architecture, initial weights, batches and number of steps.
T and alpha are chosen by validation accuracy, averaged over seeds of their own, on a
quarter of the training images. All is then trained anew on all training images, and test
accuracy is measured once for each of the final seeds.

    python benchmarks/digits.py                       about fifteen minutes, two cores
    python benchmarks/digits.py --quick               under a minute
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from scipy import stats

import keras_distill as kd
from keras_distill import datasets, models

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
GRID = [(t, a) for t in (2.0, 4.0, 8.0) for a in (0.0, 0.1, 0.5)]


class Experiment:
    """The digits, the two architectures and the budget."""

    def __init__(self, args):
        self.args = args
        data = datasets.load("digits", batch_size=512, validation_fraction=0.25)
        self.shape, self.classes = data.input_shape, data.classes
        self.train = datasets.to_arrays(data.train)
        self.validation = datasets.to_arrays(data.validation)
        self.test = datasets.to_arrays(data.test)

    def use_all_training_images(self):
        self.train = tuple(
            np.concatenate(pair)
            for pair in zip(self.train, self.validation, strict=True)
        )

    def fit(self, model, x, y, epochs, seed):
        steps = epochs * -(-len(y) // 32)
        rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
        model.compile(keras.optimizers.Adam(rate), LOSS, metrics=["accuracy"])
        keras.utils.set_random_seed(seed)
        model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)

    def teacher(self, seed):
        keras.utils.set_random_seed(seed)
        teacher = models.cnn(self.shape, self.classes, (32, 64), dropout=0.3)
        self.fit(teacher, *self.train, self.args.teacher_epochs, seed)
        return teacher, teacher.predict(self.train[0], verbose=0)

    def student(self, seed, logits=None, temperature=None, alpha=None):
        keras.utils.set_random_seed(seed)
        student = models.cnn(self.shape, self.classes, (8, 16), dense=16)
        x, y = self.train
        if logits is None:
            self.fit(student, x, y, self.args.epochs, seed)
        else:
            distiller = kd.Distiller(student, temperature=temperature, alpha=alpha)
            x = kd.DistillationInputs(x, logits)
            self.fit(distiller, x, y, self.args.epochs, seed)
            student.compile(loss=LOSS, metrics=["accuracy"])
        return student


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to see it run")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--search-seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()
    args.teacher_epochs = 60
    grid = GRID
    if args.quick:
        args.seeds, args.search_seeds, grid = 2, 1, [(4.0, 0.1)]
        args.epochs = args.teacher_epochs = 2

    experiment = Experiment(args)
    chosen, trials = choose(experiment, grid, args.search_seeds)
    print(
        f"chosen on validation data: T = {chosen[0]}, alpha = {chosen[1]}", flush=True
    )
    experiment.use_all_training_images()
    rows = []
    for seed in range(args.seeds):
        teacher, logits = experiment.teacher(seed)
        hard = experiment.student(seed)
        distilled = experiment.student(seed, logits, *chosen)
        rows.append(
            [
                100 * model.evaluate(*experiment.test, verbose=0)[1]
                for model in (teacher, hard, distilled)
            ]
        )
        print(f"seed {seed:2}: " + "  ".join(f"{v:6.2f}" for v in rows[-1]), flush=True)
    report(np.array(rows), chosen, trials, args)


def choose(experiment, grid, seeds):
    """Returns the best (T, alpha) by mean validation accuracy, and all trials."""
    scores = {pair: [] for pair in grid}
    for seed in range(1000, 1000 + seeds):
        _, logits = experiment.teacher(seed)
        for pair in grid:
            student = experiment.student(seed, logits, *pair)
            loss, accuracy = student.evaluate(*experiment.validation, verbose=0)
            scores[pair].append((accuracy, -loss))
    means = {pair: np.mean(values, 0).tolist() for pair, values in scores.items()}
    for (temperature, alpha), (accuracy, nll) in means.items():
        print(f"  T {temperature} alpha {alpha}: {accuracy:.4f} (NLL {-nll:.4f})")
    return max(means, key=lambda pair: means[pair]), means


def report(rows, chosen, trials, args):
    """Prints the table and the paired interval; writes the JSON."""
    gain = rows[:, 2] - rows[:, 1]
    print("\n| digits, test accuracy % | mean | standard deviation |\n|---|---|---|")
    for name, column in zip(
        ("teacher", "hard labels", "distilled"), rows.T, strict=True
    ):
        print(f"| {name} | {column.mean():.2f} | {column.std(ddof=1):.2f} |")
    test = stats.ttest_rel(rows[:, 2], rows[:, 1])
    low, high = test.confidence_interval(0.95)
    print(
        f"\ndistilled - hard labels, paired over {len(rows)} seeds: {gain.mean():+.2f} "
        f"points, 95 % interval [{low:+.2f}, {high:+.2f}]"
    )
    if args.json:
        result = {
            "T": chosen[0],
            "alpha": chosen[1],
            "search": {str(pair): mean for pair, mean in trials.items()},
            "rows": rows.tolist(),
            "gain": [gain.mean(), low, high],
        }
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
