"""Which distillation loss, for which price? CIFAR-100, a residual teacher, a separable student.

A residual network has seen 45 000 images, with flips and shifts. Students of separable
convolutions see 20 000 of them, the same for all, for as many steps, with the same initial
weights and batches for each seed: once on labels alone, once on labels and soft targets, and
once for each other loss, at the setting of its paper and at the one that was best on 5 000
validation images, by a seed of its own. The test images judge each of the reported students
once. A run that was stopped goes on where it was.

    python benchmarks/losses.py --folder runs       about an hour of one core
    python benchmarks/losses.py --quick             a minute, on made-up images
"""

import argparse
import functools
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from scipy import stats

import keras_distill as kd

BATCH = 128
HARD = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
#: Where the grids agree: 8 x 8 in the middle, 4 x 4 at the end.
MIDDLE, END = ("middle", "middle"), ("end", "end")


def convolution(x, layer, width, stride, name=None):
    x = layer(width, 3, stride, padding="same", use_bias=False)(x)
    return layers.ReLU(name=name)(layers.BatchNormalization()(x))


def residual(x, width, stride, name=None):
    y = convolution(x, layers.Conv2D, width, stride)
    y = layers.Conv2D(width, 3, padding="same", use_bias=False)(y)
    if stride > 1:
        x = layers.Conv2D(width, 1, stride, use_bias=False)(x)
    return layers.ReLU(name=name)(layers.Add()([x, layers.BatchNormalization()(y)]))


def teacher():
    image = keras.Input((32, 32, 3))
    x = convolution(image, layers.Conv2D, 24, 2)
    x = residual(residual(x, 24, 1), 48, 2, "middle")
    x = residual(x, 96, 2, "end")
    return keras.Model(image, layers.Dense(100)(layers.GlobalAveragePooling2D()(x)))


def student():
    image = keras.Input((32, 32, 3))
    x = convolution(image, layers.Conv2D, 16, 2)
    x = convolution(x, layers.SeparableConv2D, 32, 2, "middle")
    x = convolution(x, layers.SeparableConv2D, 64, 2, "end")
    return keras.Model(image, layers.Dense(100)(layers.GlobalAveragePooling2D()(x)))


def soft(**arguments):
    return kd.SoftTargetLoss(**arguments)


def features(loss, weight, pairs=(MIDDLE, END), **arguments):
    """Returns the sum over pairs of layers, beside soft targets or alone."""
    return sum(weight * loss(*pair, **arguments) for pair in pairs)


def on_outputs(make, temperatures=(2.0, 4.0), alphas=(0.1, 0.5)):
    """What a search tries of a loss on outputs: `(loss, T, alpha)` by what it is called."""
    return {
        f"T = {t:g}, alpha = {a:g}": (make, t, a) for t in temperatures for a in alphas
    }


def on_features(make, weights):
    """What it tries of a loss on features: beside soft targets or not."""
    tried = {f"weight {w:g}": (functools.partial(make, w), 4.0, 0.5) for w in weights}
    return tried | {
        f"soft targets at T = 4, weight {w:g}": (
            functools.partial(lambda w: kd.SoftTargetLoss() + make(w), w), 4.0, 0.1,
        )
        for w in weights
    }  # fmt: skip


def compared():
    """Returns, by name, `(paper's setting, tried settings)` of all that is compared.

    Adam takes the scale of a whole loss for nothing: alpha = 0.5 is the sum of hard and soft
    loss, each with weight 1, as most papers have it.
    """
    at = functools.partial(features, kd.AttentionTransferLoss)
    similarity = functools.partial(features, kd.SimilarityLoss, pairs=(END,))
    relation = functools.partial(features, kd.RelationLoss, pairs=(END,))
    hints = functools.partial(features, kd.FeatureLoss, pairs=(MIDDLE,), adapter="auto")
    cosine = functools.partial(features, kd.CosineLoss, pairs=(END,), adapter="auto")
    normalized = functools.partial(
        features, kd.NormalizedFeatureLoss, pairs=(MIDDLE, END), adapter="auto"
    )
    return {
        "labels alone": ((None, 1.0, 1.0), {}),
        "SoftTargetLoss": ((soft, 4.0, 0.1), on_outputs(soft)),
        "LogitLoss": ((kd.LogitLoss, 1.0, 0.0), on_outputs(kd.LogitLoss, (1.0,), (0.1, 0.5, 0.9))),
        "ReverseKLLoss": ((kd.ReverseKLLoss, 1.0, 0.0), on_outputs(kd.ReverseKLLoss)),
        "JensenShannonLoss": ((kd.JensenShannonLoss, 1.0, 0.0), on_outputs(kd.JensenShannonLoss)),
        "DecoupledLoss": ((kd.DecoupledLoss, 4.0, 0.5), on_outputs(kd.DecoupledLoss)),
        "RelationalLoss": (
            (functools.partial(kd.RelationalLoss, 2.0, 2.0), 4.0, 0.5),
            on_outputs(kd.RelationalLoss, (1.0, 4.0)),
        ),
        "LogitStandardizedLoss": (
            (kd.LogitStandardizedLoss, 2.0, 0.011), on_outputs(kd.LogitStandardizedLoss),
        ),
        "FeatureLoss": ((functools.partial(hints, 100.0), 4.0, 0.5), on_features(hints, (0.1, 1.0))),
        "CosineLoss": ((functools.partial(cosine, 1.0), 4.0, 0.5), on_features(cosine, (0.3, 3.0))),
        "NormalizedFeatureLoss": (
            (functools.partial(normalized, 1.0), 4.0, 0.5), on_features(normalized, (0.3, 3.0)),
        ),
        "AttentionTransferLoss": (
            (functools.partial(at, 500.0), 4.0, 0.5), on_features(at, (10.0, 100.0)),
        ),
        "SimilarityLoss": (
            (functools.partial(similarity, 3000.0), 4.0, 0.5),
            on_features(similarity, (10.0, 300.0)),
        ),
        "RelationLoss": (
            (functools.partial(relation, 1.0), 4.0, 0.5), on_features(relation, (0.03, 0.3)),
        ),
    }  # fmt: skip


class Data:
    """Images from 0 to 1: the teacher's, the student's, for validation and for the test."""

    def __init__(self, is_quick):
        if is_quick:
            rng = np.random.default_rng(0)
            y = rng.integers(100, size=900)
            x = rng.uniform(size=(900, 32, 32, 3)).astype("float32")
            self.test, self.validation, rest = ((x[i::3], y[i::3]) for i in range(3))
            self.all, self.few = rest, (rest[0][:128], rest[1][:128])
            return
        data = kd.datasets.load(
            "cifar100", batch_size=1000, shuffle=False, verbose=False
        )
        self.all, self.validation, self.test = (
            tuple(map(np.concatenate, zip(*split.as_numpy_iterator(), strict=True)))
            for split in (data.train, data.validation, data.test)
        )
        self.few = tuple(part[:20000] for part in self.all)


def trained_teacher(data, folder, epochs):
    path = folder / "teacher.keras"
    if path.exists():
        return keras.saving.load_model(path)
    keras.utils.set_random_seed(0)
    model = teacher()
    views = keras.Sequential(
        [layers.RandomFlip("horizontal"), layers.RandomTranslation(0.1, 0.1, "reflect")]
    )
    image = keras.Input((32, 32, 3))
    trainer = keras.Model(image, model(views(image)))
    steps = epochs * -(-len(data.all[1]) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    trainer.compile(keras.optimizers.AdamW(rate), HARD, metrics=["accuracy"])
    trainer.fit(
        *data.all,
        batch_size=BATCH,
        epochs=epochs,
        verbose=2,
        validation_data=data.validation,
    )
    model.save(path)
    return model


class Runs:
    """Trains students, each once: what was done stands in a file."""

    def __init__(self, data, model, folder, epochs):
        self.data, self.epochs = data, epochs
        self.path = folder / "runs.json"
        self.done = json.loads(self.path.read_text()) if self.path.exists() else {}
        paths = {"outputs": model.output}
        paths |= {name: model.get_layer(name).output for name, _ in (MIDDLE, END)}
        answers = keras.Model(model.input, paths).predict(
            data.few[0], batch_size=500, verbose=0
        )
        logits = answers.pop("outputs")
        self.taught = kd.DistillationInputs(data.few[0], logits, answers)

    def trainer(self, make, temperature, alpha):
        loss = None if make is None else make()
        distiller = kd.Distiller(
            student(), temperature=temperature, alpha=alpha, distillation_loss=loss
        )
        steps = self.epochs * -(-len(self.data.few[1]) // BATCH)
        rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
        distiller.compile(
            keras.optimizers.Adam(rate),
            HARD,
            metrics=["accuracy"],
            steps_per_execution=39,
        )
        return distiller

    def __call__(self, name, setting, seed, is_test):
        """Returns accuracy, %, and seconds of a student."""
        key = f"{name} | {setting[0]} | {seed} | {'test' if is_test else 'validation'}"
        if key not in self.done:
            keras.utils.clear_session()  # frees the last student and its data
            keras.utils.set_random_seed(seed)
            distiller = self.trainer(*setting[1])
            began = time.process_time()
            distiller.fit(
                self.taught,
                self.data.few[1],
                batch_size=BATCH,
                epochs=self.epochs,
                verbose=0,
            )
            seconds = time.process_time() - began
            judged = self.data.test if is_test else self.data.validation
            found = distiller.evaluate(
                *judged, batch_size=500, verbose=0, return_dict=True
            )
            self.done[key] = 100 * found["accuracy"], seconds
            self.path.write_text(json.dumps(self.done, indent=1))
            print(f"{key}: {self.done[key][0]:.2f} %, {seconds:.0f} s", flush=True)
        return self.done[key]


def row(name, what, figures, alone, by_soft_targets):
    accuracies, seconds = np.array(figures).T
    shown = f"{accuracies.mean():.2f} ± {accuracies.std(ddof=1):.2f}"
    cells = [name, what, ", ".join(f"{one:.2f}" for one in accuracies), shown]
    for other in (alone, by_soft_targets):
        gain = accuracies - np.array(other)[:, 0]
        if not gain.any():
            cells.append("-")
            continue
        low, high = stats.ttest_1samp(gain, 0.0).confidence_interval(0.95)
        cells.append(f"{gain.mean():+.2f} [{low:+.2f}, {high:+.2f}]")
    return f"| {' | '.join(cells)} | {seconds.mean():.0f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, default="losses-runs")
    parser.add_argument("--quick", action="store_true", help="tiny, to see it run")
    parser.add_argument("--only", nargs="*", help="names of losses; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    epochs = 1 if args.quick else args.epochs
    data = Data(args.quick)
    model = trained_teacher(data, args.folder, 1 if args.quick else 15)
    right = np.argmax(model.predict(data.test[0], batch_size=500, verbose=0), -1)
    print(f"teacher: {100 * np.mean(right == data.test[1]):.2f} % of the test images")
    runs = Runs(data, model, args.folder, epochs)
    rows, found = [], {}
    for name, (papers, tried) in compared().items():
        if args.only and name not in (*args.only, "labels alone", "SoftTargetLoss"):
            continue
        settings = {"paper": papers}
        scores = {
            what: runs(name, (what, setting), 100, False)[0]
            for what, setting in tried.items()
        }
        if scores:
            best = max(scores, key=scores.__getitem__)
            settings[best] = tried[best]
        for what, setting in settings.items():
            figures = [
                runs(name, (what, setting), seed, True) for seed in range(args.seeds)
            ]
            found[name] = figures  # the last are of the best that was tried
            rows.append((name, what, figures))
    print(
        "\n| loss | setting | test accuracy, %, by seed | mean | - labels | - soft targets | s |"
    )
    print("|---|---|---|---:|---:|---:|---:|")
    for name, what, figures in rows:
        print(row(name, what, figures, found["labels alone"], found["SoftTargetLoss"]))


if __name__ == "__main__":
    main()
