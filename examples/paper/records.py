"""What all experiments share: their arguments, and figures that outlive an interruption.

Each training's figures are a small JSON file in the work folder, written as soon as they are
known, so that a killed run goes on where it was, and two runs may share the work of one
experiment (`--seeds 0 1` here, `--seeds 2 3 4` there).
"""

import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from scipy import stats

import keras_distill as kd

HERE = pathlib.Path(__file__).parent


def arguments(doc, seeds, **more):
    """Returns the arguments of an experiment; `--quick` never writes over results."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny, to see it run; in a temporary folder",
    )
    parser.add_argument("--data-dir", help="TFDS data_dir; TFDS's own default")
    parser.add_argument("--work", default="paper-runs", type=pathlib.Path)
    parser.add_argument("--output", default=HERE / "results", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(seeds)))
    for name, value in more.items():
        parser.add_argument(f"--{name}", **value)
    args = parser.parse_args()
    repeated = [seed for seed in args.seeds if args.seeds.count(seed) > 1]
    if repeated or min(args.seeds) < 0:
        parser.error(f"--seeds are different numbers from 0 on, got {args.seeds}")
    if args.quick:
        args.seeds = args.seeds[:1]
        folder = pathlib.Path(tempfile.mkdtemp(prefix="paper-"))
        args.work, args.output = folder / "work", folder / "results"
    for name in ("work", "output"):  # now, not after hours
        folder = getattr(args, name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            parser.error(f"--{name} {folder} cannot be written to: {error.strerror}")
    return args


def made_before(files, experiment):
    """Leaves unless another experiment has written these files."""
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        sys.exit(
            f"{missing[0]} is not there: run {experiment}.py first, with these --seeds"
        )


@contextlib.contextmanager
def alone(path):
    """Waits while another process makes what shall be at this path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        lock.unlink(missing_ok=True)  # whoever waits finds it made


class Record:
    """The figures of an experiment, by the names of its trainings."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def run(self, name, train):
        """Returns what `train()` gives, a dict, or gave when it was run before."""
        path = self.folder / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text())
        with alone(path):
            if path.exists():  # another process made it meanwhile
                return json.loads(path.read_text())
            began = time.monotonic()
            figures = train()
            figures = {**figures, "seconds": round(time.monotonic() - began, 1)}
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(figures, default=float))
            part.replace(path)
        shown = {k: v for k, v in figures.items() if isinstance(v, int | float)}
        print(f"{time.strftime('%H:%M:%S')} {name}: {shown}", flush=True)
        return figures

    def model(self, name, train):
        """Returns the model that `train()` gives, or gave when it was run before."""
        path = self.folder / f"{name}.keras"
        with alone(path):
            if not path.exists():
                began = time.monotonic()
                model = train()
                part = path.with_name(f"{name}.{os.getpid()}.part.keras")
                model.save(part)
                part.replace(path)
                print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
        return keras.saving.load_model(path)


def dataset(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y))


def soft_targets(args, name, teachers, train):
    """Returns what a teacher, or a list of them, says of the images; asked once."""
    folder = args.work / "soft-targets" / name
    with alone(folder):
        return kd.SoftTargets.write(folder, teachers, dataset(*train), verbose=False)


def write(args, name, figures, table, draw):
    """Writes what an experiment found, as JSON, as Markdown and as a picture."""
    args.output.mkdir(parents=True, exist_ok=True)
    versions = {
        "keras_distill": kd.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }
    told = {"experiment": name, "quick": args.quick, "versions": versions, **figures}
    text = json.dumps(told, indent=1, default=float)
    (args.output / f"{name}.json").write_text(text + "\n")
    (args.output / f"{name}.md").write_text(table + "\n")
    if draw is not None:
        import matplotlib

        matplotlib.use("Agg")
        figure = draw()
        figure.savefig(args.output / f"{name}.png", dpi=120)
    print(table)
    print(f"written to {args.output}")


def table(head, rows):
    """Returns a Markdown table; numbers stand to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def spread(values, digits=1):
    """Returns mean and standard deviation over seeds as text."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def paired(after, before, digits=1):
    """Returns the mean difference of pairs, and its 95 % interval (Student's t)."""
    difference = np.subtract(after, before)
    mean = difference.mean()
    if len(difference) == 1:
        return f"{mean:+.{digits}f}"
    error = stats.sem(difference) * stats.t.ppf(0.975, len(difference) - 1)
    low, high = (f"{mean + sign * error:+.{digits}f}" for sign in (-1, 1))
    return f"{mean:+.{digits}f} [{low}, {high}]"
