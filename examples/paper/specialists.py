"""Section 5 of the paper, on CIFAR-100: specialists, where augmentation was already paid for.

The generalist has seen flipped and shifted views of 45 000 images; the specialists of twelve
clusters of classes that it confuses go on from it, on such views. On JFT the paper found +4.4 % of
the accuracy, more where more specialists cover the right class. With hard labels alone, and
with the soft-target stage in the last third, at equal steps. The control is the generalist after
as many steps on labels and views as all specialists took together. The rates of both are
chosen on validation images of seed 0, n (how many likely classes choose an example's
specialists) on those of each seed.

    python examples/paper/specialists.py        about three hours on one core, with three nets
    python examples/paper/specialists.py --quick
"""

import images
import numpy as np
from clustered import (
    STAGES,
    by_choice,
    clusters_of,
    covariance_of,
    ensemble_of,
    with_superclasses,
)  # fmt: skip
from records import Record, arguments, paired, spread, table, write

import keras_distill as kd

RATES = {
    "specialists": (0.003, 0.01, 0.03, 0.1),
    "control": (0.003, 0.01, 0.03, 0.1),
}

CHOOSES = 0  # the seed, whichever --seeds are run


def judged(data, model):
    return {
        split: images.accuracy(model, getattr(data, split))
        for split in ("validation", "test")
    }


def judged_ensemble(data, ensemble):
    """Returns its figures, n chosen on validation images, and the paper's table 4."""
    models = by_choice(data, ensemble)
    found = {name: judged(data, model) for name, model in models.items()}
    n = max(found, key=lambda name: found[name]["validation"])
    report = kd.specialist_report(models[n], data.test)
    return {
        **found[n],
        "n": n,
        "each n": found,
        "coverage": [vars(s) for s in report.by_coverage],
    }


def main():
    args = arguments(__doc__, 3)
    data, record = images.load(args), Record(args.work / "specialists")

    def run(which, rate, seed):
        def train():
            generalist = images.teacher(args, data, seed)
            if which in STAGES:
                return judged_ensemble(
                    data, specialists(generalist, which, rate, seed)[0]
                )
            _, steps = specialists(generalist, "labels", chosen["specialists"], seed)
            epochs = max(1, round(steps / images.steps_of(data.train[0], 1)))
            model = images.continued(data, generalist, epochs, rate, seed)
            model.save(record.folder / f"control-{rate:g}-{seed}.keras")
            return {**judged(data, model), "epochs": epochs}

        return record.run(f"{which}-{rate:g}-{seed}", train)

    def specialists(generalist, which, rate, seed):
        return ensemble_of(record.folder, data, generalist, seed, STAGES[which], rate)

    chosen = {}
    for name, which in (("specialists", "labels"), ("control", "control")):
        rates = RATES[name][1:2] if args.quick else RATES[name]
        chosen[name] = max(
            rates, key=lambda r, w=which: run(w, r, CHOOSES)["validation"]
        )
    nets = {seed: images.teacher(args, data, seed) for seed in args.seeds}
    found = {"generalist": [judged(data, nets[seed]) for seed in args.seeds]}
    for which in ("control", *STAGES):
        rate = chosen["control" if which == "control" else "specialists"]
        found[which] = [run(which, rate, seed) for seed in args.seeds]
    test = {name: [row["test"] for row in rows] for name, rows in found.items()}
    rows = []
    for name, values in test.items():
        relative = 100 * (np.mean(values) / np.mean(test["generalist"]) - 1)
        label = f"specialists, {name}" if name in STAGES else name
        rows.append([label, spread(values, 2), ", ".join(f"{one:.2f}" for one in values),
                     f"{relative:+.1f} %", paired(values, test["control"], 2)])  # fmt: skip
    text = table(
        ["test accuracy, %", "mean", "each", "relative (paper: +4.4 %)", "- control"],
        rows,
    )
    for which in STAGES:
        shares = {}
        for row in found[which]:
            for share in row["coverage"]:
                sums = shares.setdefault(share["of"], np.zeros(3, int))
                sums += [share["examples"], share["generalist"], share["ensemble"]]
        lines = [[of, n, before, after - before, f"{100 * (after / before - 1):+.1f} %"]
                 for of, (n, before, after) in sorted(shares.items())]  # fmt: skip
        head = ["specialists that cover the right class", "test images, all seeds", "generalist right",
                "change", "relative"]  # fmt: skip
        text += f"\n\nSpecialists, {which}:\n\n" + table(head, lines)
    covariances = [covariance_of(data, net) for net in nets.values()]
    clusters = [clusters_of(data, one) for one in covariances]
    grouped = [with_superclasses(args, data, one) for one in clusters]
    listed = grouped[0][0]
    text += (
        "\n\nClusters of the first seed, their classes by *superclass*:\n\n"
        + "\n".join(f"{number}. {line}" for number, line in enumerate(listed, 1))
    )
    agreement = [one[1:] for one in grouped]
    shown = ", ".join(f"{one:.2f} ({chance:.2f})" for one, chance in agreement)
    text += f"\n\nNMI of clusters and superclasses, by seed (chance): {shown}.\n\n"
    text += (
        f"Chosen rates: {chosen['specialists']:g} for specialists, {chosen['control']:g} for "
        f"the control; n by seed: {', '.join(row['n'] for row in found['labels'])}."
    )
    figures = {
        "chosen": chosen,
        "seeds": args.seeds,
        "nmi, chance": agreement,
        "clusters": listed,
        **found,
    }
    write(
        args,
        "specialists",
        figures,
        text,
        lambda: kd.plots.class_covariance(
            covariances[0], clusters[0], class_names=data.names
        ),
    )


if __name__ == "__main__":
    main()
