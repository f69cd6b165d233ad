"""Section 6 of the paper: "much less data and a much higher learning rate".

Soft targets say more per example than a label does, and their gradients vary less from one
example to the next, so a student should bear a higher rate. Labels and soft targets at each of
five constant rates of Adam: accuracy after each epoch; and, each at its own best rate, what it
takes until the best accuracy of labels alone is reached. The rates are chosen by
validation images of seed 100. Seconds are those of one core's processor time, so that other work
beside it does not count; the teacher's writing of soft targets is counted in.

    python examples/paper/learning_rates.py     about an hour on one core, without the teacher
    python examples/paper/learning_rates.py --quick
"""

import shutil
import time

import digits
import keras
import numpy as np
from records import Record, arguments, dataset, soft_targets, table, write

import keras_distill as kd

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
EPOCHS, TEMPERATURE = 12, 20.0
KINDS = ("labels", "soft targets")


def trained(data, seed, rate, epochs, targets=None):
    """Returns accuracy and processor seconds after each epoch."""
    keras.utils.set_random_seed(seed)
    examples = dataset(*data.train)
    model = network = digits.network(data)
    if targets is not None:
        model = kd.Distiller(network, temperature=TEMPERATURE, alpha=0.0)
        examples = targets.join(examples)
    model.compile(keras.optimizers.Adam(rate), digits.LOSS)
    batches = (
        examples.shuffle(len(data.train[0]), seed=seed).batch(digits.BATCH).prefetch(2)
    )
    curves = {"validation": [], "test": [], "processor": []}
    spent = 0.0
    for epoch in range(epochs):
        began = time.process_time()
        model.fit(
            batches, initial_epoch=epoch, epochs=epoch + 1, shuffle=False, verbose=0
        )
        spent += time.process_time() - began
        curves["processor"].append(spent)
        for split in ("validation", "test"):
            x, y = getattr(data, split)
            right = digits.logits_of(network, x).argmax(-1) == y
            curves[split].append(100 * float(right.mean()))
    return curves


def reached(curve, goal):
    """Returns the number of the first epoch that reaches a goal; infinite for none."""
    there = np.flatnonzero(np.asarray(curve) >= goal)
    return there[0] + 1 if len(there) else np.inf


def draw(found, rates, kinds):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, 2, figsize=(10, 3.8), layout="constrained", sharey=True
    )
    colours = plt.cm.viridis(np.linspace(0, 0.9, len(rates)))
    for ax, kind in zip(axes, kinds, strict=True):
        for rate, colour in zip(rates, colours, strict=True):
            mean = np.mean([row["test"] for row in found[kind, rate]], 0)
            ax.plot(
                np.arange(1, len(mean) + 1),
                mean,
                color=colour,
                label=f"{rate:g}",
                marker=".",
            )
        ax.set_title(kind)
        ax.set_xlabel("epochs")
    best = max(
        np.mean([row["test"] for row in rows], 0).max() for rows in found.values()
    )
    axes[0].set_ylim(best - 3, best + 0.2)
    axes[0].set_ylabel("test accuracy, %")
    axes[1].legend(title="learning rate")
    return figure


def main():
    args = arguments(__doc__, 5)
    data, record = digits.load(args), Record(args.work / "learning_rates")
    rates, epochs = ((1e-3, 1e-2), 10) if args.quick else (RATES, EPOCHS)
    teacher = digits.teacher(args, data, 0)

    def written():  # anew, to be measured; what an interrupted run left would be free
        shutil.rmtree(args.work / "soft-targets" / "measured", ignore_errors=True)
        began = time.process_time()
        soft_targets(args, "measured", teacher, data.train)
        return {"processor": time.process_time() - began}

    writing = record.run("writing", written)["processor"]
    targets = soft_targets(args, "mnist-0", teacher, data.train)
    teach = dict(zip(KINDS, (None, targets), strict=True))

    def run(kind, rate, seed):
        key = f"{kind}-{rate:g}-{seed}"
        return record.run(key, lambda: trained(data, seed, rate, epochs, teach[kind]))

    # The best rate for labels, then for either kind the rate that reaches its best soonest.
    best = max(max(run("labels", rate, 100)["validation"]) for rate in rates)
    chosen = {
        kind: min(
            rates, key=lambda r, k=kind: reached(run(k, r, 100)["validation"], best)
        )
        for kind in KINDS
    }
    found = {
        (k, r): [run(k, r, seed) for seed in args.seeds] for k in KINDS for r in rates
    }
    rows, examples = [], len(data.train[0])
    for number, seed in enumerate(args.seeds):
        curves = {kind: found[kind, chosen[kind]][number] for kind in KINDS}
        goal, row = max(curves["labels"]["test"]), []
        for kind in KINDS:
            epoch = reached(curves[kind]["test"], goal)
            spent = (
                curves[kind]["processor"][int(epoch) - 1] if epoch < np.inf else np.inf
            )
            row += [epoch * examples, spent + (writing if kind != "labels" else 0.0)]
        rows.append(
            [
                seed,
                f"{goal:.2f}",
                *[f"{value:.0f}" for value in row],
                f"{row[3] / row[1]:.2f}",
            ]
        )
    head = ["seed", "best of labels, %", "examples, labels", "seconds, labels",
            "examples, soft targets", "seconds, soft targets", "ratio of seconds"]  # fmt: skip
    ends = [[f"{r:g}", *[f"{np.mean([max(row['test']) for row in found[k, r]]):.2f}" for k in KINDS]]
            for r in rates]  # fmt: skip
    text = table(head, rows) + f"\n\nLearning rates: {chosen['labels']:g} for labels, " + (
        f"{chosen['soft targets']:g} for soft targets; writing these took {writing:.1f} s. Best test "
        f"accuracy of {epochs} epochs, %, mean over seeds:\n\n"
    ) + table(["learning rate", *KINDS], ends)  # fmt: skip
    told = {f"{kind}, {rate:g}": rows for (kind, rate), rows in found.items()}
    write(args, "learning_rates", {"chosen": chosen, "writing": writing, "seeds": args.seeds,
          "students": told}, text, lambda: draw(found, rates, KINDS))  # fmt: skip


if __name__ == "__main__":
    main()
