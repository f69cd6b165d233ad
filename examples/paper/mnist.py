"""Section 3 of the paper: its table on MNIST, 67, 146 and 74 errors.

A big network with dropout, limited weights and jittered images teaches a small one without
any regularisation, on images that are not jittered; and so do three big ones together.
T, alpha and the number of epochs are chosen on validation images by seed 100, the number
for labels alone too; both kinds of student are then trained for equal steps.

    python examples/paper/mnist.py              about five hours on one core, with the teachers
    python examples/paper/mnist.py --quick      under a minute
"""

import itertools

import digits
import numpy as np
from records import Record, arguments, paired, soft_targets, spread, table, write

PAPER = {"teacher": 67, "labels": 146, "distilled": 74}


def choose(data, targets, record):
    """Returns T, alpha and epochs of the fewest errors in validation."""
    short, lengths = (10, (10, 20)) if data.quick else (20, (20, 60))
    temperatures, alphas = (
        ((4.0, 20.0), (0.0,)) if data.quick else ((4.0, 8.0, 20.0), (0.0, 0.1))
    )

    def tried(epochs, temperature=None, alpha=None):
        taught = {"targets": targets, "temperature": temperature, "alpha": alpha}
        model = digits.student(data, 100, epochs, **(taught if temperature else {}))
        return {"validation": digits.errors(model, data.validation)}

    def error_of(*setting):
        name = "tried-" + "-".join(f"{value:g}" for value in setting)
        return record.run(name, lambda: tried(*setting))["validation"]

    grid = itertools.product((short,), temperatures, alphas)
    _, temperature, alpha = min(grid, key=lambda setting: error_of(*setting))
    labels = {epochs: error_of(epochs) for epochs in lengths}
    soft = {epochs: error_of(epochs, temperature, alpha) for epochs in lengths}
    return temperature, alpha, max(min(labels, key=labels.get), min(soft, key=soft.get))


def main():
    args = arguments(__doc__, 5)
    data, record = digits.load(args), Record(args.work / "mnist")
    teachers = [
        digits.teacher(args, data, seed) for seed in range(1 if args.quick else 3)
    ]
    one = soft_targets(args, "mnist-0", teachers[0], data.train)
    three = soft_targets(args, "mnist-all", teachers, data.train)
    temperature, alpha, epochs = choose(data, one, record)
    chosen = {"temperature": temperature, "alpha": alpha}

    def judged(seed, name, **taught):
        model = digits.student(data, seed, epochs, **taught)
        model.save(record.folder / f"{name}-{seed}.keras")  # for calibration.py
        splits = {"validation": data.validation, "test": data.test}
        return {split: digits.errors(model, splits[split]) for split in splits}

    kinds = {
        "labels": {},
        "distilled": {"targets": one, **chosen},
        "distilled from all": {"targets": three, **chosen},
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
    head = ["test errors of 10 000", "mean", "each", "paper", "of the distance"]
    lines = [
        table(head, rows), "",
        f"T = {temperature:g}, alpha = {alpha:g}, {epochs} epochs. Distilled - labels, paired by "
        f"seed, with its 95 % interval: {paired(test['distilled'], test['labels'])}; from all: "
        f"{paired(test['distilled from all'], test['labels'])}.",
    ]  # fmt: skip
    tried = {
        p.stem: record.run(p.stem, dict)
        for p in sorted(record.folder.glob("tried-*.json"))
    }
    figures = {**chosen, "epochs": epochs, "seeds": args.seeds, "teachers": big, "paper": PAPER,
               "students": students, "together": test["all teachers"], "tried": tried}  # fmt: skip
    write(args, "mnist", figures, "\n".join(lines), None)


if __name__ == "__main__":
    main()
