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
from records import Record, arguments, soft_targets, spread, table, write

import keras_distill as kd


def trained(args, data):
    """Returns the networks to be judged by kind: MNIST's."""
    nets = {"MNIST, teacher": [digits.teacher(args, data, 0)]}
    if args.quick:
        targets = soft_targets(args, "mnist-0", nets["MNIST, teacher"][0], data.train)
        return nets | {
            "MNIST, labels": [digits.student(data, 0, 20)],
            "MNIST, distilled": [digits.student(data, 0, 20, targets)],
        }
    for kind in ("labels", "distilled"):
        files = [args.work / "mnist" / f"{kind}-{seed}.keras" for seed in args.seeds]
        nets[f"MNIST, {kind}"] = [keras.saving.load_model(file) for file in files]
    return nets


def trained_images(args):
    folder = args.work / "ensemble_cifar100"
    files = [folder / f"distilled-{seed}.keras" for seed in args.seeds[:3]]
    data = images.load(args)
    return data, {
        "CIFAR-100, one net, labels": [
            images.teacher(args, data, s) for s in args.seeds[:3]
        ],
        "CIFAR-100, distilled from ten": [
            keras.saving.load_model(file) for file in files
        ],
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
    data, record = digits.load(args), Record(args.work / "calibration")
    groups = [(data, trained(args, data))]
    if not args.quick:
        groups.append(trained_images(args))
    rows, found = [], {}
    for data, nets in groups:
        for kind, models in nets.items():
            found[kind] = [
                record.run(f"{kind}-{number}", lambda d=data, m=model: figures_of(d, m))
                for number, model in enumerate(models)
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
