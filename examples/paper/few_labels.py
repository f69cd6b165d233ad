"""Sections 3 and 6 of the paper: how little data a student needs that is taught.

On speech, 3 % of the data gave 44.5 % of frames right with hard labels, stopped early, and 57.0 %
with soft targets, without stopping; all the data gave 58.9 %. Here MNIST and CIFAR-100: the
student sees 1, 3, 10, 30 or 100 % of the training images, the teacher has seen all. Both kinds of
student take equal steps and are stopped early alike, by the validation images; so is T chosen,
by seed 100 on 3 %. Their curves over time are what `overfitting.py` draws.

    python examples/paper/few_labels.py                      about an hour on one core
    python examples/paper/few_labels.py --dataset cifar100   about as long, without the teachers
    python examples/paper/few_labels.py --quick
"""

import digits
import images
import keras
import numpy as np
from records import (
    Record,
    arguments,
    dataset,
    paired,
    soft_targets,
    spread,
    table,
    write,
)

import keras_distill as kd

MODULES = {"mnist": digits, "cifar100": images}
#: Images in percent of all, and the steps that both kinds of student take on them.
STEPS = {
    "mnist": {1: 1000, 3: 1400, 10: 2000, 30: 3000, 100: 4200},
    "cifar100": {1: 400, 3: 800, 10: 1400, 30: 2200, 100: 3000},
}
TEMPERATURES = {"mnist": (4.0, 20.0), "cifar100": (2.0, 4.0, 8.0)}
POINTS = 20  # of a curve
JUDGED = 2_000  # training images, for their curve


def trained(name, args, data, percent, seed, temperature=None):
    """Returns a student's accuracy over time, and where the validation images stop it."""
    module, (x, y) = MODULES[name], data.train
    kept = np.random.default_rng(seed).permutation(len(x))[
        : max(20, len(x) * percent // 100)
    ]
    train = x[kept], y[kept]
    examples = dataset(*train)
    keras.utils.set_random_seed(seed)
    model = network = module.network(data)
    if temperature is not None:
        teacher = module.teacher(args, data, 0)
        targets = soft_targets(args, f"{name}-{percent}-{seed}", teacher, train)
        model = kd.Distiller(network, temperature=temperature, alpha=0.0)
        examples = targets.join(examples)
    steps = 3 if data.quick else STEPS[name][percent] // POINTS
    module.compiled(model, steps * POINTS)
    curves = {"train": [], "validation": [], "test": []}
    seen = (train[0][:JUDGED], train[1][:JUDGED])
    shown = {"train": seen, "validation": data.validation, "test": data.test}

    def judge(epoch, logs):
        for split, (x, y) in shown.items():
            right = module.logits_of(network, x).argmax(-1) == y
            curves[split].append(100 * float(right.mean()))

    batches = (
        examples.shuffle(len(kept), seed=seed).repeat().batch(module.BATCH).prefetch(2)
    )
    model.fit(
        batches, epochs=POINTS, steps_per_epoch=steps, shuffle=False, verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=judge)],
    )  # fmt: skip
    best = int(np.argmax(curves["validation"]))
    found = {split: curves[split][best] for split in ("validation", "test")}
    return {**found, "end": curves["test"][-1], "steps": steps, "curves": curves}


def students(name, args, data, record, percents):
    """Returns T, and what `trained` gives for each share of the images and each seed."""

    def run(percent, seed, temperature=None):
        key = f"{percent}-{temperature or 'labels'}-{seed}"
        return record.run(
            key, lambda: trained(name, args, data, percent, seed, temperature)
        )

    temperature = max(TEMPERATURES[name], key=lambda t: run(3, 100, t)["validation"])
    kinds = {"labels": None, "soft targets": temperature}
    return temperature, {
        (percent, kind): [run(percent, seed, t) for seed in args.seeds]
        for percent in percents
        for kind, t in kinds.items()
    }


def draw(name, found, percents):
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    for kind in ("labels", "soft targets"):
        test = [[row["test"] for row in found[percent, kind]] for percent in percents]
        ax.errorbar(percents, [np.mean(t) for t in test], [np.std(t) for t in test],
                    marker="o", capsize=3, label=kind)  # fmt: skip
    ax.set_xscale("log")
    ax.set_xticks(percents, [f"{p} %" for p in percents])
    ax.set_xlabel("share of the training images that the student sees")
    ax.set_ylabel("test accuracy, %")
    ax.set_title({"mnist": "MNIST", "cifar100": "CIFAR-100"}[name])
    ax.legend()
    return figure


def main():
    options = {"choices": list(STEPS), "default": "mnist"}
    args = arguments(__doc__, 5, dataset=options)
    name, percents = args.dataset, list(STEPS[args.dataset])
    args.seeds = args.seeds[:3] if name == "cifar100" else args.seeds
    percents = percents[2:4] if args.quick else percents
    data = MODULES[name].load(args)
    record = Record(args.work / f"few_labels_{name}")
    temperature, found = students(name, args, data, record, percents)
    test = {key: [row["test"] for row in rows] for key, rows in found.items()}
    full = np.mean(test[percents[-1], "labels"])
    rows = []
    for percent in percents:
        pair = [test[percent, kind] for kind in ("labels", "soft targets")]
        kept = [f"{100 * np.mean(one) / full:.1f}" for one in pair]
        rows.append([f"{percent} %", *[spread(one, 2) for one in pair], *kept,
                     paired(pair[1], pair[0], 2)])  # fmt: skip
    head = ["images", "labels", f"soft targets, T = {temperature:g}", "labels, % of all",
            "soft targets, % of all", "difference"]  # fmt: skip
    figures = {"temperature": temperature, "seeds": args.seeds, "students":
               {f"{percent} %, {kind}": rows for (percent, kind), rows in found.items()}}  # fmt: skip
    write(
        args,
        f"few_labels_{name}",
        figures,
        table(head, rows),
        lambda: draw(name, found, percents),
    )


if __name__ == "__main__":
    main()
