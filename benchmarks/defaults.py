"""Which temperature, alpha and learning rate `keras-distill distill` begins with.

Small students of several datasets, trained as the command does: Adam, its rate falling to 0 by a
cosine, the epochs and batches that fit the data, the best epoch kept. All that is counted is
validation accuracy; no test image is read. Within a seed all start from the same weights.

    python benchmarks/defaults.py --work runs --folder my_images   two hours on one core
    python benchmarks/defaults.py --work runs --quick              a minute
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_tuner
import numpy as np

import keras_distill as kd
from keras_distill.commands import students, training
from keras_distill.commands.epoch_batches import EpochBatches

#: By the data: the teacher, the students, and larger ones, of which the rate alone is asked.
NETWORKS = {
    "digits": ("cnn:32,64", ("cnn:4,8", "mlp:32"),
               ("cnn:8,16", "mlp:64", "cnn:32,64", "mlp:400,400")),
    "mnist": ("mlp:400,400", ("mlp:32", "cnn:4,8"), ("mlp:400,400",)),
    "spoken_digit": ("cnn:16,32,64", ("cnn:4,8,16",), ()),
    "folder": ("cnn:16,32,64", ("cnn:4,8,16",), ("cnn:16,32,64",)),
}  # fmt: skip
GRID = [(None, 1.0), *((t, 0.1) for t in (1.0, 2.0, 4.0, 8.0)), (2.0, 0.5), (4.0, 0.5)]
RATES = (0.003, 0.01)


class Task:
    """The data in memory, and the teacher's soft targets."""

    def __init__(self, name, args):
        self.name, self.folder = name, pathlib.Path(args.work) / name
        self.folder.mkdir(parents=True, exist_ok=True)
        place = args.folder if name == "folder" else name
        self.data = kd.datasets.load(
            place, batch_size=None, shuffle=False, verbose=False
        )
        self.validation = self.data.validation.batch(512).cache()
        self.count = self.data.sizes["train"]
        self.epochs = (
            2
            if args.quick
            else training.default_epochs(self.count, args.seen, args.least)
        )
        network, students, larger = NETWORKS[name]
        self.grids = dict.fromkeys(students, GRID)
        if not args.quick:
            self.grids |= {one: [(None, 1.0), (4.0, 0.1)] for one in larger}
        path = self.folder / "soft_targets"
        if not (path / "manifest.json").exists():
            teacher = self.fit(network, None, 1.0, 0.003, 0)[0]
            kd.SoftTargets.write(
                path, teacher, self.data.train, batch_size=512, batched=False, verbose=False
            )  # fmt: skip
        self.targets = kd.SoftTargets.open(path)

    def fit(self, network, temperature, alpha, rate, seed):
        """Returns the network after its last epoch, and its best validation accuracy, in %."""
        batch = training.default_batch_size(self.count)
        plan = training.Plan(self.epochs, batch, rate, None, seed)
        keras.utils.set_random_seed(seed + 1)
        build = students.builder("student", network, self.data)
        keras.utils.set_random_seed(seed + 1)
        student = build(keras_tuner.HyperParameters())
        given = {} if temperature is None else {"temperature": temperature}
        examples = self.data.train
        if temperature is not None:
            examples = self.targets.join(examples, batched=False)
        batches = EpochBatches(examples, self.count, batch, seed)
        distiller = kd.Distiller(student, alpha=alpha, **given)
        training.compiled(distiller, plan, batches.steps, self.data.classes)

        def on_epoch_begin(epoch, logs):
            batches.epoch = epoch

        history = distiller.fit(
            batches.dataset(),
            validation_data=self.validation,
            epochs=plan.epochs,
            shuffle=False,
            verbose=0,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=on_epoch_begin)],
        )
        return student, 100 * max(history.history["val_accuracy"])

    def accuracy(self, network, temperature, alpha, rate, seed):
        """Returns what `fit` does, of a run that was done before from its file."""
        setting = f"{network},{self.epochs},{temperature},{alpha},{rate},{seed}.json"
        name = setting.replace(":", "-")
        file = self.folder / name
        if not file.exists():
            found = self.fit(network, temperature, alpha, rate, seed)[1]
            file.write_text(json.dumps(found))
            keras.backend.clear_session()
        return json.loads(file.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", default="defaults-runs")
    parser.add_argument("--folder", help="of images by class, of one size")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seen", type=int, default=150_000, help="examples")
    parser.add_argument("--least", type=int, default=15, help="epochs")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--data", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    if args.quick:
        args.data, args.seeds = ["digits"], [0]
    rates = RATES[1:2] if args.quick else args.rates
    results = {}
    for name in args.data:
        if name == "folder" and not args.folder:
            continue
        task = Task(name, args)
        for network, grid in task.grids.items():
            print(
                f"\n{name}, {network}, {task.epochs} epochs: validation accuracy, %, seeds "
                f"{args.seeds}\n"
            )
            print(f"| T | alpha |{'|'.join(f' {rate:g} ' for rate in rates)}|")
            print(f"|---|---|{'---:|' * len(rates)}")
            for temperature, alpha in grid:
                row = []
                for rate in rates:
                    setting = (network, temperature, alpha, rate)
                    found = [task.accuracy(*setting, seed) for seed in args.seeds]
                    results[f"{name} {setting}"] = found
                    row.append(f"{np.mean(found):.2f}")
                shown = "-" if temperature is None else f"{temperature:g}"
                print(f"| {shown} | {alpha:g} | {' | '.join(row)} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
