"""Section 3 of the paper: which temperature works depends on the student's size.

"When the distilled net had 300 or more units in each of its two hidden layers, all temperatures
above 8 gave fairly similar results. But when this was radically reduced to 30 units per layer,
temperatures in the range 2.5 to 4 worked significantly better than higher or lower ones."

The rates of labels and of soft targets are chosen for each width on validation images, by seed 100,
the latter at T = 4.

    python examples/paper/temperature.py        about 80 minutes on one core, without the teacher
    python examples/paper/temperature.py --quick
"""

import digits
import numpy as np
from records import Record, arguments, paired, soft_targets, spread, table, write

#: Units per layer, and epochs: what is small learns longer, and costs little.
EPOCHS = {30: 25, 100: 15, 300: 10, 800: 10}
TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 8.0, 20.0)
RATES, CHOOSES, AT = (1e-3, 3e-3, 1e-2), 100, 4.0
LABELS = "labels"


def draw(temperatures, test, widths):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1,
        len(widths),
        figsize=(3 * len(widths), 3.4),
        layout="constrained",
        squeeze=False,
    )
    for ax, width in zip(axes[0], widths, strict=True):
        mean = [np.mean(test[width, t]) for t in temperatures]
        error = [np.std(test[width, t]) for t in temperatures]
        ax.errorbar(
            temperatures, mean, error, marker="o", capsize=3, label="soft targets"
        )
        ax.axhline(
            np.mean(test[width, LABELS]), color="gray", linestyle="--", label=LABELS
        )
        ax.set_xscale("log")
        ax.set_xticks(temperatures, [f"{t:g}" for t in temperatures])
        ax.minorticks_off()
        ax.set_title(f"{width} units per layer")
        ax.set_xlabel("temperature")
    axes[0, 0].set_ylabel("test errors")
    axes[0, 0].legend()
    return figure


def main():
    args = arguments(__doc__, 5)
    data, record = digits.load(args), Record(args.work / "temperature")
    epochs, temperatures = EPOCHS, TEMPERATURES
    if args.quick:
        epochs, temperatures = {8: 10, 16: 10}, (1.0, 4.0)
    widths = list(epochs)
    teacher = digits.teacher(args, data, 0)
    targets = soft_targets(args, "mnist-0", teacher, data.train)

    def judged(width, temperature, rate, seed):
        taught = (
            {}
            if temperature == LABELS
            else {"targets": targets, "temperature": temperature}
        )

        def train():
            model = digits.student(
                data, seed, epochs[width], widths=(width, width), rate=rate, **taught
            )
            splits = {"validation": data.validation, "test": data.test}
            return {split: digits.errors(model, splits[split]) for split in splits}

        return record.run(f"{width}-{temperature}-{rate:g}-{seed}", train)

    def best_rate(width, temperature):
        rates = RATES[1:2] if args.quick else RATES
        found = {r: judged(width, temperature, r, CHOOSES) for r in rates}
        return min(rates, key=lambda rate: found[rate]["validation"])

    figures, test, validation, chosen = {}, {}, {}, {}
    for width in widths:
        rates = {LABELS: best_rate(width, LABELS), AT: best_rate(width, AT)}
        chosen[str(width)] = {"labels": rates[LABELS], "soft targets": rates[AT]}
        for t in (LABELS, *temperatures):
            name, rate = f"{width}-{t}", rates[LABELS if t == LABELS else AT]
            figures[name] = [judged(width, t, rate, seed) for seed in args.seeds]
            test[width, t] = [row["test"] for row in figures[name]]
            validation[width, t] = np.mean([row["validation"] for row in figures[name]])
    rows = []
    for width in widths:
        best = min(temperatures, key=lambda t, w=width: validation[w, t])
        difference = paired(test[width, best], test[width, LABELS])
        counts = [spread(test[width, t]) for t in (LABELS, *temperatures)]
        rows.append([width, *counts, f"{best:g}", difference])
    head = ["units per layer", LABELS, *[f"T = {t:g}" for t in temperatures],
            "best T in validation", "that - labels"]  # fmt: skip
    figures = {
        "epochs": {str(w): n for w, n in epochs.items()},
        "seeds": args.seeds,
        "alpha": 0.0,
        "rates": chosen,
        "students": figures,
    }
    shown = "; ".join(
        f"{width}: {rate['labels']:g} and {rate['soft targets']:g}"
        for width, rate in chosen.items()
    )
    write(
        args,
        "temperature",
        figures,
        f"{table(head, rows)}\n\nRates of labels and of soft targets: {shown}.",
        lambda: draw(temperatures, test, widths),
    )


if __name__ == "__main__":
    main()
