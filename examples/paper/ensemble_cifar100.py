"""Section 4 of the paper, on CIFAR-100: one model in the place of ten.

The paper's speech models: 58.9 % of frames right by one, 61.1 % by the average of ten, 60.8 % by
one that the ten taught. Here ten nets that differ in their first weights and in what views of
the images they saw; and three of the same size, of the same first weights as the first three
of the ten, which learn for as many steps from cached answers of all ten on eight views of each
image. T and alpha are chosen on validation images, by seed 100 and a quarter of the epochs.

    python examples/paper/ensemble_cifar100.py      four to five hours on one core, with the nets
    python examples/paper/ensemble_cifar100.py --quick
"""

import itertools
import sys

import images
import keras
import numpy as np
from records import Record, alone, arguments, dataset, paired, spread, table, write

import keras_distill as kd

TEMPERATURES, ALPHAS, VIEWS = (2.0, 4.0), (0.0, 0.3), 8
PAPER = (58.9, 61.1, 60.8)


def main():
    args = arguments(__doc__, 3)
    count = 2 if args.quick else 10
    if max(args.seeds) >= count:
        sys.exit(f"--seeds are of the {count} nets, from 0 to {count - 1}")
    data, record = images.load(args), Record(args.work / "ensemble_cifar100")
    nets = [images.teacher(args, data, seed) for seed in range(count)]
    folder = args.work / "soft-targets" / "ten-nets"
    with alone(folder):
        targets = kd.SoftTargets.write(
            folder, nets, dataset(*data.train), views=VIEWS, augment=images.moved, batch_size=500
        )  # fmt: skip

    def student(seed, epochs, temperature, alpha):
        keras.utils.set_random_seed(seed)
        model = images.network(data)
        distiller = kd.Distiller(model, temperature=temperature, alpha=alpha)
        images.compiled(distiller, images.steps_of(data.train[0], epochs))
        batches = (
            targets.join(dataset(*data.train))
            .shuffle(len(data.train[0]))
            .batch(images.BATCH)
        )
        distiller.fit(batches.prefetch(2), epochs=epochs, shuffle=False, verbose=0)
        model.save(record.folder / f"distilled-{seed}.keras")  # for calibration.py
        return judged(model)

    def judged(model):
        return {
            s: images.accuracy(model, getattr(data, s)) for s in ("validation", "test")
        }

    def tried(temperature, alpha):
        epochs = max(1, data.epochs // 4)
        found = record.run(
            f"tried-{temperature:g}-{alpha:g}",
            lambda: student(100, epochs, temperature, alpha),
        )
        return found["validation"]

    grid = list(itertools.product(TEMPERATURES, ALPHAS))[: 2 if args.quick else None]
    chosen = max(grid, key=lambda setting: tried(*setting))
    single = [
        record.run(f"net-{k}", lambda k=k: judged(nets[k]))["test"]
        for k in range(len(nets))
    ]
    taught = [
        record.run(
            f"distilled-{seed}", lambda s=seed: student(s, data.epochs, *chosen)
        )["test"]
        for seed in args.seeds
    ]
    x, y = data.test
    together = [keras.ops.softmax(images.logits_of(net, x)) for net in nets]
    ensemble = 100 * float(np.mean(np.mean(together, 0).argmax(-1) == y))
    of_seeds = [single[seed] for seed in args.seeds]
    share = (np.mean(taught) - np.mean(single)) / (ensemble - np.mean(single))
    rows = [
        ["one net", spread(single, 2), ", ".join(f"{one:.2f}" for one in single), PAPER[0]],
        [f"average of {len(nets)}", f"{ensemble:.2f}", "", PAPER[1]],
        ["one, distilled", spread(taught, 2), ", ".join(f"{one:.2f}" for one in taught), PAPER[2]],
        ["share of the gain", f"{100 * share:.0f} %", "", "86 %"],
    ]  # fmt: skip
    head = ["test accuracy, %", "mean", "each", "paper (speech)"]
    lines = f"\n\nT = {chosen[0]:g}, alpha = {chosen[1]:g}. Distilled - the net of the same first "
    lines += f"weights, with its 95 % interval: {paired(taught, of_seeds, 2)}."
    figures = {"chosen": chosen, "seeds": args.seeds, "nets": single, "ensemble": ensemble,
               "distilled": taught, "tried": {str(one): tried(*one) for one in grid}}  # fmt: skip
    write(args, "ensemble_cifar100", figures, table(head, rows) + lines, None)


if __name__ == "__main__":
    main()
