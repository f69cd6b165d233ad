"""What section 5 of the paper left open: the specialists distilled back into one network.

`specialists.py` made an ensemble that is better than its generalist. Here one network of the
generalist's size learns from it: a copy of the generalist, taught by the ensemble's cached
answers to eight views of each image and by the labels. The control goes on from the same generalist for
as many steps, on labels and endless views. T, alpha and the rates of both are chosen on
validation images of seed 0, in a quarter of the steps. Two transfer sets:

- seen: the images and the kind of views that the generalist and the specialists were trained on;
- unseen too: nobody trains on a third of the images, whose labels are never looked at; the student
  learns from the ensemble's answers on all, the control from the labels of two thirds.

    python examples/paper/specialists_back.py       about four hours on one core, with all before it
    python examples/paper/specialists_back.py --quick
"""

import itertools
import json
import sys
import types

import images
import keras
import numpy as np
from clustered import STAGES, by_choice, ensemble_of
from records import Record, alone, arguments, dataset, paired, spread, table, write

import keras_distill as kd

EPOCHS, VIEWS = 12, 8
CHOOSES = 0  # the seed, whichever --seeds are run
GRID = list(itertools.product((1.0, 2.0, 4.0), (0.0, 0.3), (0.03,)))
RATES = (0.01, 0.03, 0.1)


def judged(data, model):
    return {
        split: images.accuracy(model, getattr(data, split))
        for split in ("validation", "test")
    }


def student(data, generalist, targets, seed, epochs, temperature, alpha, rate):
    """Returns a copy of the generalist that the cached ensemble has taught."""
    keras.utils.set_random_seed(seed)
    model = keras.models.clone_model(generalist)
    model.set_weights(generalist.get_weights())
    distiller = kd.Distiller(model, temperature=temperature, alpha=alpha)
    images.compiled(distiller, images.steps_of(data.train[0], epochs), rate)
    batches = (
        targets.join(dataset(*data.train))
        .shuffle(len(data.train[0]))
        .batch(images.BATCH)
    )
    distiller.fit(batches.prefetch(2), epochs=epochs, shuffle=False, verbose=0)
    return judged(data, model)


def seed_of_set(args, data, record, name, seed, rate):
    """Returns the figures of generalist, ensemble, control and student of one seed."""
    x, y = data.train
    labelled = data
    if name == "unseen too":
        split = np.random.default_rng(0).permutation(len(x)) < 2 * len(x) // 3
        labelled = types.SimpleNamespace(
            **{**vars(data), "train": (x[split], y[split])}
        )
    net_args = args if labelled is data else types.SimpleNamespace(work=record.folder)
    generalist = images.teacher(net_args, labelled, seed)
    folder = args.work / "specialists" if labelled is data else record.folder
    ensemble, _ = ensemble_of(
        folder, labelled, generalist, seed, STAGES["labels"], rate
    )
    models = by_choice(data, ensemble)
    best = record.run(f"{name}, n-{seed}", lambda: {
        n: images.accuracy(model, data.validation) for n, model in models.items()
    })  # fmt: skip
    teacher = models[max(models, key=best.get)]
    cache = args.work / "soft-targets" / f"ensemble-{name.split()[0]}-{seed}"
    with alone(cache):
        targets = kd.SoftTargets.write(
            cache, teacher, dataset(x, y), views=VIEWS, augment=images.moved, batch_size=500,
            verbose=False,
        )  # fmt: skip

    def taught(setting, epochs, seed=seed):
        key = f"{name}, T {setting[0]:g}, alpha {setting[1]:g}, rate {setting[2]:g}, {epochs}-{seed}"
        return record.run(
            key, lambda: student(data, generalist, targets, seed, epochs, *setting)
        )

    def control(rate, epochs):
        # As many steps as the student's, which has more images.
        more = round(epochs * len(x) / len(labelled.train[0]))
        return record.run(f"{name}, control, rate {rate:g}, {epochs}-{seed}", lambda: judged(
            data, images.continued(labelled, generalist, more, rate, seed)
        ))  # fmt: skip

    epochs, short = (2, 1) if data.quick else (EPOCHS, EPOCHS // 4)
    if seed == (args.seeds[0] if data.quick else CHOOSES):
        # Where the third has no labels, the ensemble alone teaches.
        grid = [s for s in GRID if s[1] == 0.0 or labelled is data][
            : 2 if data.quick else None
        ]
        first = max(grid, key=lambda setting: taught(setting, short)["validation"])
        settings = [(*first[:2], r) for r in RATES[: 1 if data.quick else None]]
        setting = max(settings, key=lambda s: taught(s, short)["validation"])
        slow = max(
            RATES[: 1 if data.quick else None],
            key=lambda r: control(r, short)["validation"],
        )
        record.run(f"{name}, chosen", lambda: {"student": setting, "control": slow})
    choice = record.folder / f"{name}, chosen.json"
    if not choice.exists():
        sys.exit(f"nothing is chosen yet: run --seeds {CHOOSES} first")
    chosen = json.loads(choice.read_text())
    return {
        "generalist": record.run(
            f"{name}, generalist-{seed}", lambda: judged(data, generalist)
        ),
        "ensemble": record.run(
            f"{name}, ensemble-{seed}", lambda: judged(data, teacher)
        ),
        "control": control(chosen["control"], epochs),
        "student": taught(tuple(chosen["student"]), epochs),
    }, chosen


def main():
    args = arguments(__doc__, 3)
    data, record = images.load(args), Record(args.work / "specialists_back")
    of_specialists = Record(args.work / "specialists").folder.glob("labels-*.json")
    tried = {p.stem.split("-")[1]: json.loads(p.read_text())["validation"] for p in of_specialists
             if p.stem.endswith(f"-{CHOOSES}")}  # fmt: skip
    if not (tried or args.quick):
        sys.exit(f"there are no specialists in {args.work}: run specialists.py first")
    rate = 0.01 if args.quick else float(max(tried, key=tried.get))
    rows, figures = [], {"seeds": args.seeds, "specialists' rate": rate}
    for name in ("seen", "unseen too"):
        results = [
            seed_of_set(args, data, record, name, seed, rate) for seed in args.seeds
        ]
        figures[name] = [one for one, _ in results]
        figures[f"{name}, chosen"] = results[0][1]
        test = {k: [one[k]["test"] for one, _ in results] for k in results[0][0]}
        share = (np.mean(test["student"]) - np.mean(test["control"])) / (
            np.mean(test["ensemble"]) - np.mean(test["control"])
        )
        rows.append([name, *[spread(values, 2) for values in test.values()],
                     paired(test["student"], test["control"], 2), f"{100 * share:.0f} %"])  # fmt: skip
    head = ["transfer set: test accuracy, %", "generalist", "ensemble", "control", "student",
            "student - control", "of the ensemble's gain over the control"]  # fmt: skip
    text = table(head, rows) + "".join(
        f"\n\n{name}: chosen {figures[f'{name}, chosen']}"
        for name in ("seen", "unseen too")
    )
    write(args, "specialists_back", figures, text, None)


if __name__ == "__main__":
    main()
