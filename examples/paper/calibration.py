"""How far the students' probabilities can be trusted: teacher, labels, soft targets.

Negative log-likelihood (NLL, nats) and expected calibration error (ECE, 15 bins) on test images,
before and after `kd.calibrate_temperature` has fitted one number on validation images. The
networks are those of `mnist.py` and `ensemble_cifar100.py`, which must have been run.

    python examples/paper/calibration.py        a minute
    python examples/paper/calibration.py --quick
"""

import digits
import images
import keras
from records import (
    Record,
    arguments,
    made_before,
    soft_targets,
    spread,
    table,
    write,
)

import keras_distill as kd


def students_of(args):
    """Returns the files of MNIST's students by kind."""
    return {
        f"MNIST, {kind}": {
            seed: args.work / "mnist" / f"{kind}-{seed}.keras" for seed in args.seeds
        }
        for kind in ("labels", "distilled")
    }


def students_on_images(args):
    folder = args.work / "ensemble_cifar100"
    return {seed: folder / f"distilled-{seed}.keras" for seed in args.seeds[:3]}


def loaded(files):
    return {seed: keras.saving.load_model(file) for seed, file in files.items()}


def trained(args, data):
    """Returns the networks to be judged by kind and seed: MNIST's."""
    nets = {"MNIST, teacher": {0: digits.teacher(args, data, 0)}}
    if args.quick:
        targets = soft_targets(args, "mnist-0", nets["MNIST, teacher"][0], data.train)
        return nets | {
            "MNIST, labels": {0: digits.student(data, 0, 20)},
            "MNIST, distilled": {0: digits.student(data, 0, 20, targets)},
        }
    return nets | {kind: loaded(files) for kind, files in students_of(args).items()}


def trained_images(args):
    data = images.load(args)
    return data, {
        "CIFAR-100, one net, labels": {
            seed: images.teacher(args, data, seed) for seed in args.seeds[:3]
        },
        "CIFAR-100, distilled from ten": loaded(students_on_images(args)),
    }


def figures_of(data, model):
    calibrated = kd.calibrate_temperature(model, data.validation)
    found = {"T": float(calibrated.get_layer("temperature_scaling").temperature)}
    for name, one in (("", model), (" calibrated", calibrated)):
        result = kd.evaluate(one, data.test, timing=False)
        found |= {f"NLL{name}": result.nll, f"ECE{name}": result.calibration_error}
    return found


def main():
    args = arguments(__doc__, 5)
    if not args.quick:
        for files in students_of(args).values():
            made_before(files.values(), "mnist")
        made_before(students_on_images(args).values(), "ensemble_cifar100")
    data, record = digits.load(args), Record(args.work / "calibration")
    groups = [(data, trained(args, data))]
    if not args.quick:
        groups.append(trained_images(args))
    rows, found = [], {}
    for data, nets in groups:
        for kind, models in nets.items():
            found[kind] = [
                record.run(f"{kind}-{seed}", lambda d=data, m=model: figures_of(d, m))
                for seed, model in models.items()
            ]
            digits_shown = {
                "NLL": 4,
                "ECE": 4,
                "NLL calibrated": 4,
                "ECE calibrated": 4,
                "T": 2,
            }
            rows.append([kind, *[spread([one[key] for one in found[kind]], shown)
                                 for key, shown in digits_shown.items()]])  # fmt: skip
    head = [
        "test images",
        "NLL",
        "ECE",
        "NLL, calibrated",
        "ECE, calibrated",
        "fitted T",
    ]
    write(
        args,
        "calibration",
        {"seeds": args.seeds, "networks": found},
        table(head, rows),
        None,
    )


if __name__ == "__main__":
    main()
