"""Section 2 of the paper: a transfer set needs no labels, and need not end.

A student on soft targets alone, which never sees a label, learns from (a) the training images,
over and over; (b) views of them that never repeat, each image moved by up to two pixels, anew
every time, while the teacher watches; (c) 1000 of the images, (d) views of these; and, as
control, from labels on (e) the images, (f) their views. How many errors, by examples seen?

    python examples/paper/transfer_sets.py      about an hour on one core, without the teacher
    python examples/paper/transfer_sets.py --quick
"""

import digits
import keras
import numpy as np
from records import Record, arguments, dataset, spread, table, write

import keras_distill as kd

FEW, POINTS, TEMPERATURE = 1000, 16, 20.0
#: As `learning_rates.py` found them: soft targets bear three times that of labels, and more.
RATES = {"labels": 1e-3, "soft targets": 3e-3}
SETS = {
    "soft targets, images": (None, False, True),
    "soft targets, endless views": (None, True, True),
    f"soft targets, {FEW} images": (FEW, False, True),
    f"soft targets, endless views of {FEW}": (FEW, True, True),
    "labels, images": (None, False, False),
    "labels, endless views": (None, True, False),
}


def trained(data, teacher, seed, few, moved, taught):
    """Returns test errors after each part of the examples."""
    x, y = data.train
    if few:
        kept = np.random.default_rng(seed).permutation(len(x))[
            : 200 if data.quick else few
        ]
        x, y = x[kept], y[kept]
    keras.utils.set_random_seed(seed)
    model = network = digits.network(data)
    if taught:
        model = kd.Distiller(network, teacher, temperature=TEMPERATURE, alpha=0.0)
    batches = dataset(x, y).shuffle(len(x), seed=seed).repeat().batch(digits.BATCH)
    if moved:
        batches = batches.map(digits.jitter, num_parallel_calls=1)
    if taught:
        batches = batches.map(lambda x, y: x)  # no labels at all
    steps = -(-len(data.train[0]) // digits.BATCH)
    rate = RATES["soft targets" if taught else "labels"]
    digits.compiled(model, steps * POINTS, rate, loss=None if taught else digits.LOSS)
    errors = []
    model.fit(
        batches.prefetch(2), epochs=POINTS, steps_per_epoch=steps, shuffle=False, verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: errors.append(digits.errors(network, data.test))
        )],
    )  # fmt: skip
    return {"test": errors[-1], "curve": errors, "examples": steps * digits.BATCH}


def draw(found):
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
    colours = ["tab:blue", "tab:green", "tab:blue", "tab:green", "tab:gray", "black"]
    for (name, rows), colour in zip(found.items(), colours, strict=True):
        mean = np.mean([row["curve"] for row in rows], 0)
        examples = rows[0]["examples"] * np.arange(1, len(mean) + 1) / 1e6
        ax.plot(
            examples, mean, ":" if str(FEW) in name else "-", color=colour, label=name
        )
    ax.set_yscale("log")
    ax.set_xlabel("examples seen, millions")
    ax.set_ylabel("test errors")
    ax.legend(fontsize="small")
    return figure


def main():
    args = arguments(__doc__, 5)
    data, record = digits.load(args), Record(args.work / "transfer_sets")
    teacher = digits.teacher(args, data, 0)
    found = {
        name: [
            record.run(
                f"{name}-{seed}", lambda s=seed, g=given: trained(data, teacher, s, *g)
            )
            for seed in args.seeds
        ]
        for name, given in SETS.items()
    }
    at = [POINTS // 8, POINTS // 4, POINTS // 2, POINTS]
    examples = found["labels, images"][0]["examples"]
    rows = [
        [name, *[spread([row["curve"][k - 1] for row in rows]) for k in at]]
        for name, rows in found.items()
    ]
    rows.append(["the teacher", *[""] * 3, digits.errors(teacher, data.test)])
    head = [
        f"errors on {len(data.test[1])} test images after",
        *[f"{k * examples:,} examples".replace(",", " ") for k in at],
    ]
    write(args, "transfer_sets", {"temperature": TEMPERATURE, "rates": RATES, "seeds": args.seeds, "students": found},
          table(head, rows), lambda: draw(found))  # fmt: skip


if __name__ == "__main__":
    main()
