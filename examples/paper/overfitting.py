"""Section 6 of the paper: soft targets keep a student from overfitting.

"Soft targets allow a new model to generalize well from only 3 % of the training set", where hard
labels overfit severely and must be stopped early. The students are those of `few_labels.py`;
here are their accuracies on what they train on and on the test images, over time.

    python examples/paper/overfitting.py        seconds, after few_labels.py for both datasets
    python examples/paper/overfitting.py --quick
"""

import few_labels
import numpy as np
from records import Record, arguments, spread, table, write

SHOWN = {"mnist": 3, "cifar100": 10}


def draw(curves):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1,
        len(curves),
        figsize=(5 * len(curves), 3.8),
        layout="constrained",
        squeeze=False,
    )
    colours = {"labels": "tab:gray", "soft targets": "tab:blue"}
    for ax, (title, kinds) in zip(axes[0], curves.items(), strict=True):
        for kind, rows in kinds.items():
            for split, style in (("train", ":"), ("test", "-")):
                mean = np.mean([row["curves"][split] for row in rows], 0)
                steps = rows[0]["steps"] * np.arange(1, len(mean) + 1)
                ax.plot(
                    steps, mean, style, color=colours[kind], label=f"{kind}, {split}"
                )
        ax.set_title(title)
        ax.set_xlabel("steps")
    axes[0, 0].set_ylabel("accuracy, %")
    axes[0, 0].legend()
    return figure


def main():
    args = arguments(__doc__, 5)
    curves, lines = {}, []
    for name, percent in SHOWN.items():
        data = few_labels.MODULES[name].load(args)
        record = Record(args.work / f"few_labels_{name}")
        seeds = args.seeds if name == "mnist" else args.seeds[:3]
        there = type(args)(**{**vars(args), "seeds": seeds})
        _, found = few_labels.students(name, there, data, record, [percent])
        title = (
            f"{'MNIST' if name == 'mnist' else 'CIFAR-100'}, {percent} % of the images"
        )
        curves[title] = {kind: rows for (_, kind), rows in found.items()}
        for kind, rows in curves[title].items():
            ends = [
                spread([row["curves"][split][-1] for row in rows], 2)
                for split in ("train", "test")
            ]
            best = spread([row["test"] for row in rows], 2)
            losses = spread([row["test"] - row["end"] for row in rows], 2)
            lines.append([f"{title}, {kind}", *ends, best, losses])
    head = ["", "train at the end, %", "test at the end, %", "test where stopped, %",
            "lost by not stopping"]  # fmt: skip
    write(args, "overfitting", {"seeds": args.seeds, "curves": curves}, table(head, lines),
          lambda: draw(curves))  # fmt: skip


if __name__ == "__main__":
    main()
