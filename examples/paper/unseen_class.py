"""Section 3 of the paper: a class that the student has never seen.

The transfer set has no 3 at all; to the student "3 is a mythical digit". It knows 3s all the
same, from what the teacher says of other digits, and is merely too reluctant to say so: its
bias is too low. Then a transfer set of nothing but 7s and 8s, with these two biases too high.
`kd.correct_bias` finds the biases on validation images; the paper found them on the test set.

    python examples/paper/unseen_class.py       about half an hour on one core, without the teacher
    python examples/paper/unseen_class.py --quick
"""

import digits
import numpy as np
from records import Record, arguments, soft_targets, spread, table, write

import keras_distill as kd

EPOCHS = 20
#: As `learning_rates.py` found them: soft targets bear three times that of labels, and more.
RATES = {"labels": 1e-3, "soft targets": 3e-3}
SETS = {"without 3": [0, 1, 2, 4, 5, 6, 7, 8, 9], "only 7 and 8": [7, 8]}
CORRECTED = {"without 3": [3], "only 7 and 8": [7, 8]}
PAPER = {"without 3": (206, 133, 109, 98.6), "only 7 and 8": (4730, "", 1320, "")}


def main():
    args = arguments(__doc__, 5)
    data, record = digits.load(args), Record(args.work / "unseen_class")
    teacher = digits.teacher(args, data, 0)
    x, y = data.train
    threes = data.test[1] == 3

    def judged(seed, name, taught):
        kept = np.isin(y, SETS[name])
        train = x[kept], y[kept]
        targets = None
        if taught:
            targets = soft_targets(args, name.replace(" ", "-"), teacher, train)
        # As many steps as on all the images: 7s and 8s are a fifth of them.
        epochs = 10 if data.quick else round(EPOCHS * min(len(x) / len(train[0]), 2.0))
        rate = RATES["soft targets" if taught else "labels"]
        model = digits.student(data, seed, epochs, targets, train=train, rate=rate)
        corrected = kd.correct_bias(model, data.validation, CORRECTED[name])
        found = {}
        for key, one in (("as trained", model), ("corrected", corrected)):
            wrong = digits.logits_of(one, data.test[0]).argmax(-1) != data.test[1]
            found[key] = int(wrong.sum())
            found[f"{key}, of 3s"] = int(wrong[threes].sum())
        return found

    figures, rows = {}, []
    for name in SETS:
        for kind in ("soft targets", "labels"):
            key = f"{name}, {kind}"
            figures[key] = [
                record.run(f"{key}-{seed}", lambda s=seed, n=name, k=kind: judged(s, n, k != "labels"))
                for seed in args.seeds
            ]  # fmt: skip
            first, of_3, then, of_3_then = (
                [row[k] for row in figures[key]]
                for k in (
                    "as trained",
                    "as trained, of 3s",
                    "corrected",
                    "corrected, of 3s",
                )
            )
            right = [100 * (1 - wrong / threes.sum()) for wrong in of_3_then]
            rows.append([key, spread(first), spread(of_3), spread(then), spread(right)])
            if kind == "soft targets":
                rows.append([f"{name}, the paper", *PAPER[name]])
    head = ["transfer set", f"errors on {len(data.test[1])} test images", "of these, 3s", "bias corrected",
            f"3s right then, % of {threes.sum()}"]  # fmt: skip
    write(args, "unseen_class", {"epochs": EPOCHS, "rates": RATES, "seeds": args.seeds, "students": figures},
          table(head, rows), None)  # fmt: skip


if __name__ == "__main__":
    main()
