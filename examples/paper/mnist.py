"""Section 3 of the paper: its table on MNIST, 67, 146 and 74 errors.

A big network with dropout, limited weights and jittered images teaches a small one without
any regularisation, on images that are not jittered; and so do three big ones together.
T, alpha, the rates of both kinds and the number of epochs are chosen on validation images by
seed 100; both kinds of student are then trained for equal steps.

    python examples/paper/mnist.py              about three hours on one core, with the teachers
    python examples/paper/mnist.py --quick      under a minute
"""

import itertools

import digits
import numpy as np
from records import Record, arguments, paired, soft_targets, spread, table, write

PAPER = {"teacher": 67, "labels": 146, "distilled": 74}


def choose(data, targets, record):
    """Returns the settings of both kinds, and the epochs of the fewest errors in validation."""
    lengths = (10, 20) if data.quick else (20, 60)
    rates, temperatures = (
        ((1e-3, 1e-2), (4.0,)) if data.quick else ((3e-4, 1e-3, 3e-3), (4.0, 8.0, 20.0))
    )

    def tried(epochs, setting):
        taught = {"targets": targets} if "temperature" in setting else {}
        model = digits.student(data, 100, epochs, **setting, **taught)
        return {"validation": digits.errors(model, data.validation), **setting}

    def error_of(setting, epochs=lengths[0]):
        values = "-".join(f"{value:g}" for value in setting.values())
        return record.run(f"tried-{epochs}-{values}", lambda: tried(epochs, setting))[
            "validation"
        ]

    labels = min(({"rate": rate} for rate in rates), key=error_of)
    grid = itertools.product(rates[1:], temperatures)
    soft = min(
        ({"rate": r, "temperature": t, "alpha": 0.0} for r, t in grid), key=error_of
    )
    soft = min(({**soft, "alpha": alpha} for alpha in (0.0, 0.1)), key=error_of)
    longer = [error_of(kind, lengths[1]) <= error_of(kind) for kind in (labels, soft)]
    return labels, soft, lengths[any(longer)]


def main():
    args = arguments(__doc__, 5)
    data, record = digits.load(args), Record(args.work / "mnist")
    teachers = [
        digits.teacher(args, data, seed) for seed in range(1 if args.quick else 3)
    ]
    one = soft_targets(args, "mnist-0", teachers[0], data.train)
    three = soft_targets(args, "mnist-all", teachers, data.train)
    labels, soft, epochs = choose(data, one, record)

    def judged(seed, name, **taught):
        model = digits.student(data, seed, epochs, **taught)
        model.save(record.folder / f"{name}-{seed}.keras")  # for calibration.py
        splits = {"validation": data.validation, "test": data.test}
        return {split: digits.errors(model, splits[split]) for split in splits}

    kinds = {
        "labels": labels,
        "distilled": {"targets": one, **soft},
        "distilled from all": {"targets": three, **soft},
    }
    students = {
        name: [
            record.run(f"{name}-{seed}", lambda n=name, t=taught, s=seed: judged(s, n, **t))
            for seed in args.seeds
        ]
        for name, taught in kinds.items()
    }  # fmt: skip
    test = {name: [row["test"] for row in rows] for name, rows in students.items()}
    big = [digits.errors(model, data.test) for model in teachers]
    together = np.mean([digits.probabilities(m, data.test[0]) for m in teachers], 0)
    test["all teachers"] = [int(np.sum(together.argmax(-1) != data.test[1]))]

    def closed(name, teacher):
        hard = np.mean(test["labels"])
        return f"{100 * (hard - np.mean(test[name])) / (hard - teacher):.0f} %"

    rows = [
        ["big network (the teacher: the first)", spread(big), ", ".join(map(str, big)), 67, ""],
        ["small network, labels", spread(test["labels"]), "", 146, ""],
        ["small network, distilled", spread(test["distilled"]), "", 74, closed("distilled", big[0])],
        ["all big networks together", test["all teachers"][0], "", "", ""],
        ["small network, distilled from all", spread(test["distilled from all"]), "", "",
         closed("distilled from all", test["all teachers"][0])],
    ]  # fmt: skip
    for row, name in zip((rows[1], rows[2], rows[4]), kinds, strict=True):
        row[2] = ", ".join(map(str, test[name]))
    head = [
        f"errors on {len(data.test[1])} test images",
        "mean",
        "each",
        "paper",
        "of the distance",
    ]
    lines = [
        table(head, rows), "",
        f"T = {soft['temperature']:g}, alpha = {soft['alpha']:g}, {epochs} epochs, rates {labels['rate']:g} "
        f"for labels and {soft['rate']:g} for soft targets. Distilled - labels, paired by "
        f"seed, with its 95 % interval: {paired(test['distilled'], test['labels'])}; from all: "
        f"{paired(test['distilled from all'], test['labels'])}.",
    ]  # fmt: skip
    tried = {
        p.stem: record.run(p.stem, dict)
        for p in sorted(record.folder.glob("tried-*.json"))
    }
    figures = {"labels": labels, "soft targets": soft, "epochs": epochs, "seeds": args.seeds, "teachers": big, "paper": PAPER,
               "students": students, "together": test["all teachers"], "tried": tried}  # fmt: skip
    write(args, "mnist", figures, "\n".join(lines), None)


if __name__ == "__main__":
    main()
