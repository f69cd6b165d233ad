"""Specialists on CIFAR-100: do they pay, against the generalist and at equal cost?

For each seed: a generalist, trained until its cosine schedule ends; clusters of the classes
it confuses; a specialist for each; and three models to compare with it:

- the ensemble. How many classes choose the specialists, n, is what is best on validation
  data; the others are reported too;
- the equal-cost control: the generalist trained on, for as many steps as all specialists
  took together, with the same optimizer, learning rate and schedule;
- the student: the generalist's own architecture, started from its weights and taught by the
  ensemble.

Settings were chosen on validation data of seed 0. Test data is looked at once, at the end.
What is trained is kept in the work folder; started again, the run goes on.

    python benchmarks/specialists.py --json specialists.json --pictures benchmarks/pictures
    python benchmarks/specialists.py --quick          under a minute, on digits
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_DISTILL_QUIET", "1")

import keras_distill as kd

# isort: split
import keras
import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from keras_distill import datasets, models, plots

BATCH = 128
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="cifar100")
    parser.add_argument("--filters", type=int, nargs="+", default=[16, 48, 128, 256])
    parser.add_argument("--dense", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=25, help="of the generalist")
    parser.add_argument("--clusters", type=int, default=12)
    parser.add_argument("--hard-epochs", type=int, default=8)
    parser.add_argument("--soft-epochs", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--soft-learning-rate", type=float, default=1e-3)
    parser.add_argument("--control-learning-rate", type=float, default=4e-3)
    parser.add_argument("--student-learning-rate", type=float, default=2e-3)
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--alpha", type=float, default=0.3)
    parser.add_argument("--student-epochs", type=int, default=10, help="0: no student")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", default="specialists-benchmark")
    parser.add_argument("--json")
    parser.add_argument("--pictures")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.dataset, args.filters, args.dense = "digits", [8, 16], 16
        args.seeds, args.epochs, args.clusters, args.workers = [0], 3, 3, 1
        args.hard_epochs = args.soft_epochs = args.student_epochs = 1
        args.work = tempfile.mkdtemp()
    return args


def accuracy(model, split):
    x, y = split
    return float(np.mean(model.predict(x, batch_size=500, verbose=0).argmax(-1) == y))


def compiled(model, learning_rate, steps):
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(keras.optimizers.Adam(rate), LOSS, jit_compile=False)
    return model


def train_generalist(args, data, seed):
    path = pathlib.Path(args.work, f"generalist_{seed}.keras")
    if path.exists():
        return keras.saving.load_model(path)
    keras.utils.set_random_seed(seed)
    model = models.cnn(
        data.input_shape, data.classes, args.filters,
        dense=args.dense, dropout=0.3, name="generalist",
    )  # fmt: skip
    steps = args.epochs * int(data.train.cardinality())
    compiled(model, 2e-3, steps)
    start = time.time()
    history = model.fit(
        data.train, validation_data=data.validation,
        epochs=args.epochs, verbose=0, shuffle=False,
    ).history  # fmt: skip
    history["seconds"] = time.time() - start
    path.with_suffix(".json").write_text(json.dumps(history))
    model.save(path)
    return model


def trained_on(args, generalist, train, steps, seed, name, teacher=None):
    """The generalist after more steps, on labels or taught by the ensemble."""
    path = pathlib.Path(args.work, f"{name}_{seed}.keras")
    if path.exists():
        return keras.saving.load_model(path), None
    keras.utils.set_random_seed(seed)
    model = keras.models.clone_model(generalist)
    model.set_weights(generalist.get_weights())
    start = time.time()
    x, y = train
    per_epoch = -(-len(x) // BATCH)
    if teacher is None:
        compiled(model, args.control_learning_rate, steps)
        trainer = model
    else:
        with tempfile.TemporaryDirectory() as folder:
            targets = kd.SoftTargets.write(
                folder, teacher, x, dtype="float32", batch_size=500, verbose=False
            )
            logits = np.concatenate(list(targets.logits().as_numpy_iterator()))
        trainer = kd.Distiller(
            model,
            temperature=args.temperature,
            alpha=args.alpha,
            teacher_from_logits=True,
        )
        compiled(trainer, args.student_learning_rate, steps)
        x = kd.DistillationInputs(x, logits)
    whole, rest = divmod(steps, per_epoch)
    trainer.fit(x, y, batch_size=BATCH, epochs=whole, verbose=0)
    if rest:
        parts = keras.tree.map_structure(lambda a: a[: rest * BATCH], (x, y))
        trainer.fit(*parts, batch_size=BATCH, verbose=0)
    model.save(path)
    return model, time.time() - start


def one_seed(args, seed):
    data = datasets.load(args.dataset, seed=seed, verbose=False)
    fixed = datasets.load(args.dataset, shuffle=False, verbose=False)
    train, validation, test = (
        datasets.to_arrays(getattr(fixed, s)) for s in ("train", "validation", "test")
    )
    generalist = train_generalist(args, data, seed)
    covariance = kd.class_covariance(generalist, train[0], temperature=2.0)
    clusters = kd.cluster_classes(
        covariance, args.clusters, max_size=max(3, round(1.8 * data.classes / args.clusters))
    )  # fmt: skip
    builder = kd.SpecialistBuilder(generalist, clusters)
    start = time.time()
    ensemble = builder.fit(
        train, hard_epochs=args.hard_epochs, soft_epochs=args.soft_epochs,
        hard_learning_rate=args.learning_rate, soft_learning_rate=args.soft_learning_rate,
        temperature=args.temperature, alpha=args.alpha, batch_size=BATCH, seed=seed,
        n_jobs=args.workers, threads=1, work_dir=os.path.join(args.work, f"seed-{seed}"),
    )  # fmt: skip
    wall = time.time() - start
    epochs = args.hard_epochs + args.soft_epochs
    steps = epochs * sum(r["steps_per_epoch"] for r in builder.records)
    choices = {n: ensemble.with_settings(n=n) for n in (1, 2, 3, 5) if n < data.classes}
    choices["all"] = ensemble.with_settings(n=None)
    on_validation = {str(n): accuracy(m, validation) for n, m in choices.items()}
    best = max(choices, key=lambda n: on_validation[str(n)])
    control, control_seconds = trained_on(
        args, generalist, train, steps, seed, "control"
    )
    student, student_seconds = None, None
    if args.student_epochs:
        student_steps = args.student_epochs * -(-len(train[0]) // BATCH)
        student, student_seconds = trained_on(
            args, generalist, train, student_steps, seed, "student", choices[best]
        )
    report = kd.specialist_report(choices[best], test)
    result = {
        "seed": seed,
        "clusters": clusters,
        "steps": steps,
        "specialists_wall_seconds": wall,
        "specialists_seconds": sum(r["ended"] - r["began"] for r in builder.records),
        "control_seconds": control_seconds,
        "student_seconds": student_seconds,
        "validation": {
            "generalist": accuracy(generalist, validation),
            "control": accuracy(control, validation),
            **({"student": accuracy(student, validation)} if student else {}),
            **{f"n={n}": value for n, value in on_validation.items()},
        },
        "chosen_n": str(best),
        "test": {
            "generalist": accuracy(generalist, test),
            "ensemble": accuracy(choices[best], test),
            "control": accuracy(control, test),
            **({"student": accuracy(student, test)} if student else {}),
            **{f"n={n}": accuracy(m, test) for n, m in choices.items()},
        },
    }
    if args.dataset == "cifar100":
        result["nmi"] = agreement_with_superclasses(clusters)
    print(json.dumps(result["validation"]), json.dumps(result["test"]), flush=True)
    print(report, flush=True)
    return result, report, builder, covariance, data.class_names


def agreement_with_superclasses(clusters):
    """Normalised mutual information of clusters and CIFAR-100's 20 superclasses."""
    import tensorflow_datasets as tfds

    coarse = {}
    for example in tfds.load("cifar100", split="test[:3000]", download=False):
        coarse[int(example["label"])] = int(example["coarse_label"])
    labels = np.zeros(100, int)
    for index, cluster in enumerate(clusters):
        labels[list(cluster)] = index
    rng = np.random.default_rng(0)
    truth = [coarse[c] for c in range(100)]
    chance = [
        normalized_mutual_info_score(truth, rng.permutation(labels)) for _ in range(100)
    ]
    return {
        "superclasses": float(normalized_mutual_info_score(truth, labels)),
        "chance": float(np.mean(chance)),
    }


def summary(results):
    """Test accuracies, and the changes over the generalist, relative to it."""
    names = list(results[0]["test"])
    rows = [
        "| model | " + " | ".join(f"seed {r['seed']}" for r in results) + " | mean |"
    ]
    rows.append("|---" * (len(results) + 2) + "|")
    for name in names:
        values = np.array([r["test"].get(name, np.nan) for r in results])
        base = np.array([r["test"]["generalist"] for r in results])
        cells = [
            f"{100 * v:.2f} ({100 * (v / b - 1):+.1f} %)"
            for v, b in zip([*values, values.mean()], [*base, base.mean()], strict=True)
        ]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main():
    args = arguments()
    os.makedirs(args.work, exist_ok=True)
    results = []
    for seed in args.seeds:
        result, report, builder, covariance, names = one_seed(args, seed)
        results.append(result)
        if args.json:
            pathlib.Path(args.json).write_text(json.dumps(results, indent=1))
        if args.pictures and seed == args.seeds[0]:
            clusters = builder.clusters
            figures = {
                "class_covariance": plots.class_covariance(
                    covariance, clusters, class_names=names
                ),
                "accuracy_by_coverage": plots.accuracy_by_coverage(report.by_coverage),
                "accuracy_by_cluster": plots.accuracy_by_cluster(
                    report.by_cluster, clusters, class_names=names
                ),
                "training_by_worker": plots.training_by_worker(builder.records),
            }
            for name, figure in figures.items():
                figure.savefig(os.path.join(args.pictures, f"{name}.png"))
            for cluster in clusters:
                print(", ".join(names[c] for c in cluster))
    print(summary(results))


if __name__ == "__main__":
    main()
