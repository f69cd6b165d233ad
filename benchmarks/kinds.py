"""Yes/no, several questions, values, embeddings: what does distillation bring to each?

A teacher has seen all training examples, a small student has few of them, with labels. One
student learns from the labels alone, one from labels and teacher; both have the same
architecture, initial weights, batches and number of steps. On a quarter of the training
examples, over seeds of their own, are chosen first the number of epochs, as is best for the
student on labels alone, then T and alpha, each by the task's first measure. Then teachers see
all training examples, every seed draws examples for its students, and each model is judged
once on test examples, the same for all seeds.

    python benchmarks/kinds.py --json kinds.json      about ten minutes of one core
    python benchmarks/kinds.py --task regression      one of the four
    python benchmarks/kinds.py --quick                seconds
"""

import argparse
import functools
import itertools
import json
import os
import pathlib
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers, losses
from scipy import stats
from sklearn import datasets, metrics, model_selection

import keras_distill as kd

BATCH = 32


class Task(NamedTuple):
    """One kind of output, on data that scikit-learn ships."""

    load: object  # () -> x, y
    teacher: object  # () -> keras.Model
    student: object
    loss: object
    measures: object  # (answers, y, embedded gallery with its labels) -> dict
    is_error: bool  # the first measure: less is better
    examples: int  # in a transfer set
    epochs: tuple
    teacher_epochs: int
    temperatures: tuple
    alphas: tuple
    prepare: object = lambda x, y, seed: (x, y)
    matches: object = None  # distillation losses, by output


def digits():
    images, y = datasets.load_digits(return_X_y=True)
    return (images / 16).reshape(-1, 8, 8, 1).astype("float32"), y


def pairs(x, y, seed):
    """Two digits beside each other; ten questions: is there a 0, a 1, ...?"""
    chosen = np.random.default_rng(seed).integers(len(y), size=(3 * len(y), 2))
    is_there = np.zeros((len(chosen), 10), "float32")
    np.put_along_axis(is_there, y[chosen], 1.0, -1)
    return np.concatenate([x[chosen[:, 0]], x[chosen[:, 1]]], 2), is_there


def diabetes():
    x, y = datasets.load_diabetes(return_X_y=True)
    return (x * len(y) ** 0.5).astype("float32"), ((y - 150) / 80).astype("float32")


def embedder(widths):
    """An embedding of unit length and, from it, the digit."""
    image = keras.Input((8, 8, 1))
    hidden = layers.Flatten()(image)
    for width in widths:
        hidden = layers.Dense(width, activation="relu")(hidden)
    embedding = layers.UnitNormalization(name="embedding")(layers.Dense(16)(hidden))
    # Cosines are between -1 and 1: as logits they are scaled.
    digit = layers.Dense(10, name="digit")(layers.Rescaling(8.0)(embedding))
    return keras.Model(image, {"embedding": embedding, "digit": digit})


def of_questions(answers, y, gallery):
    return {
        "AUC, mean over questions": metrics.roc_auc_score(y, answers, average="macro"),
        "accuracy, %, of all answers": 100 * np.mean((answers > 0) == y),
    }


def of_yes_or_no(answers, y, gallery):
    z = answers[:, 0].astype("float64")
    return {
        "accuracy, %": 100 * metrics.accuracy_score(y, z > 0),
        "NLL, nats": np.mean(np.logaddexp(0, z) - y * z),
    }


def of_values(answers, y, gallery):
    rmse = metrics.root_mean_squared_error(y, answers[:, 0])
    return {"RMSE": 80 * rmse, "R2": metrics.r2_score(y, answers[:, 0])}


def of_embeddings(answers, y, gallery):
    theirs, labels = gallery
    nearest = np.argmax(answers["embedding"] @ theirs["embedding"].T, -1)
    return {
        "recall at 1, %": 100 * np.mean(labels[nearest] == y),
        "accuracy, %": 100 * np.mean(answers["digit"].argmax(-1) == y),
    }


YES_OR_NO = losses.BinaryCrossentropy(from_logits=True)
DIGIT = losses.SparseCategoricalCrossentropy(from_logits=True)
TASKS = {
    "binary": Task(
        digits, lambda: kd.models.cnn((8, 8, 1), 1, (16, 32)),
        lambda: kd.models.mlp((8, 8, 1), 1, (16,)), YES_OR_NO, of_yes_or_no, False,
        192, (20, 60), 20, (1.0, 2.0, 4.0, 8.0), (0.0, 0.1, 0.5),
        lambda x, y, seed: (x, y % 2),
    ),
    "multi-label": Task(
        digits, lambda: kd.models.mlp((8, 16, 1), 10, (256, 256)),
        lambda: kd.models.mlp((8, 16, 1), 10, (32,)), YES_OR_NO, of_questions, False,
        384, (20, 60), 15, (1.0, 2.0, 4.0), (0.0, 0.1, 0.5), pairs,
    ),
    "regression": Task(
        diabetes, lambda: kd.models.mlp((10,), 1, (64, 64), dropout=0.5),
        lambda: kd.models.mlp((10,), 1, (16,)), losses.MeanSquaredError(), of_values, True, 96,
        (10, 30, 90), 40, (1.0,), (0.0, 0.25, 0.5, 0.75),
    ),
    "embedding": Task(
        digits, lambda: embedder((128, 128)), lambda: embedder((16,)), {"digit": DIGIT},
        of_embeddings, False, 192, (20, 60), 20, (1.0,), (0.05, 0.2, 0.5),
        matches={"embedding": kd.CosineLoss()},
    ),
}  # fmt: skip


class Trained:
    """One architecture, loss and number of steps, trained anew for each seed.

    The compiled model is used again with new weights, which saves tracing it.
    """

    def __init__(self, task, is_quick, build, examples, epochs, taught=False):
        self.build, self.epochs, self.loss = build, epochs, task.loss
        self.model = self.trainer = build()
        if taught:
            self.trainer = kd.Distiller(self.model, distillation_loss=task.matches)
        steps = -(-examples // BATCH)
        rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * steps)
        self.trainer.compile(
            keras.optimizers.Adam(rate), task.loss, run_eagerly=is_quick,
            steps_per_execution=1 if is_quick else steps,
        )  # fmt: skip

    def fit(self, seed, x, y, temperature=None, alpha=None):
        keras.utils.set_random_seed(seed)
        fresh = self.build()
        for ours, new in zip(self.model.variables, fresh.variables, strict=True):
            ours.assign(new)
        for variable in self.trainer.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        if alpha is not None:
            self.trainer.temperature, self.trainer.alpha = temperature, alpha
        y = {"digit": y} if isinstance(self.loss, dict) else y
        self.trainer.fit(x, y, batch_size=BATCH, epochs=self.epochs, verbose=0)

    def answers(self, x):
        return keras.tree.map_structure(np.asarray, self.model(x, training=False))


def split(x, y, seed):
    return model_selection.train_test_split(x, y, test_size=0.25, random_state=seed)


class Experiment:
    """One task's examples for training and for judging, and what is trained on them."""

    def __init__(self, task, args):
        self.task, self.search_seeds = task, args.search_seeds
        self.x, x_test, self.y, y_test = split(*task.load(), 0)
        self.test = task.prepare(x_test, y_test, 0)
        self.trained = functools.cache(functools.partial(Trained, task, args.quick))
        self.started = functools.cache(self.start)

    def start(self, seed, validating):
        """Trains a teacher; returns its measures, all of a seed's data and its answers."""
        x, y, judged, prepare = self.x, self.y, self.test, self.task.prepare
        if validating:
            x, x_judged, y, y_judged = split(x, y, seed)
            judged = prepare(x_judged, y_judged, 2 + seed)
        x, y = gallery = prepare(x, y, 1 + seed)
        teacher = self.trained(self.task.teacher, len(y), self.task.teacher_epochs)
        teacher.fit(seed, x, y)
        chosen = np.random.default_rng(seed).permutation(len(y))[: self.task.examples]
        x, y = x[chosen], y[chosen]
        taught = kd.DistillationInputs(x, teacher.answers(x))
        return self.measures(teacher, judged, gallery), judged, gallery, taught, y

    def results(self, seed, settings, validating=False):
        """Yields the measures of a seed's teacher and of a student for each setting.

        `settings` are of `(epochs, T, alpha)`; T and alpha `None` is for labels alone.
        """
        of_teacher, judged, gallery, taught, y = self.started(seed, validating)
        yield of_teacher
        for epochs, temperature, alpha in settings:
            is_taught = alpha is not None
            student = self.trained(self.task.student, len(y), epochs, is_taught)
            x = taught if is_taught else taught.inputs
            student.fit(seed, x, y, temperature, alpha)
            yield self.measures(student, judged, gallery)

    def measures(self, trained, judged, gallery):
        x, y = judged
        gallery = trained.answers(gallery[0]), gallery[1]
        return self.task.measures(trained.answers(x), y, gallery)

    def best(self, settings):
        """Returns the best setting by the first measure on validation data, and all."""
        seeds = range(1000, 1000 + self.search_seeds)
        scores = [
            [next(iter(one.values())) for one in self.results(seed, settings, True)][1:]
            for seed in seeds
        ]
        means = np.mean(scores, 0)
        best = settings[int((np.argmin if self.task.is_error else np.argmax)(means))]
        return best, dict(zip(map(str, settings), means.tolist(), strict=True))


def run(name, args):
    task = TASKS[name]
    if args.quick:
        task = task._replace(
            examples=32, epochs=(1,), teacher_epochs=1, temperatures=(2.0,), alphas=(0.5,),
            load=lambda: tuple(part[:128] for part in TASKS[name].load()),
        )  # fmt: skip
    experiment = Experiment(task, args)
    alone, by_epochs = experiment.best([(n, None, None) for n in task.epochs])
    grid = itertools.product(task.temperatures, task.alphas)
    chosen, by_pair = experiment.best([(alone[0], *pair) for pair in grid])
    print(f"\n{name}: (epochs, T, alpha) by validation: {chosen}")
    for setting, mean in {**by_epochs, **by_pair}.items():
        print(f"  {setting}: {mean:.4f}", flush=True)
    rows = [
        list(experiment.results(seed, [alone, chosen])) for seed in range(args.seeds)
    ]
    return {"chosen": chosen, "search": {**by_epochs, **by_pair}, "rows": rows}


def tables(results):
    """Yields the lines: means, deviations and paired differences; then every seed."""
    yield "| task | measure | teacher | labels alone | distilled | difference, 95 % interval |"
    yield "|---|---|---:|---:|---:|---:|"
    by_seed = []
    for name, result in results.items():
        for measure in result["rows"][0][0]:
            values = np.array([[one[measure] for one in row] for row in result["rows"]])
            places = 2 if values.max() > 2 else 4
            test = stats.ttest_rel(values[:, 2], values[:, 1])
            low, high = test.confidence_interval(0.95)
            means = [
                f"{column.mean():.{places}f} ± {column.std(ddof=1):.{places}f}"
                for column in values.T
            ]
            gain = np.mean(values[:, 2] - values[:, 1])
            difference = f"{gain:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}]"
            yield f"| {name} | {measure} | {' | '.join(means)} | {difference} |"
            for who, column in zip(("labels", "distilled"), values.T[1:], strict=True):
                figures = " | ".join(f"{value:.{places}f}" for value in column)
                by_seed.append(f"| {name}, {measure} | {who} | {figures} |")
    yield f"\n| seed | | {' | '.join(map(str, range(len(values))))} |"
    yield f"|---|---|{'---:|' * len(values)}"
    yield from by_seed


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to see it run")
    parser.add_argument("--task", choices=TASKS, help="one of the tasks; default: all")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--search-seeds", type=int, default=3)
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.search_seeds = 2, 1
    results = {}
    for name in [args.task] if args.task else TASKS:
        results[name] = run(name, args)
        if args.json:
            args.json.write_text(json.dumps(results, indent=2))
    print("\n" + "\n".join(tables(results)))


if __name__ == "__main__":
    main()
