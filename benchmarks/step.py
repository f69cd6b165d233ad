"""The cost of a training step: ours, keras.distillation's and the textbook's.

All in one process and alternating, each figure the median of several rounds, each a
ratio to a plain `student.fit` on the same data. `fit` is timed as a user calls it, on a
`tf.data` pipeline; for cached soft targets, reading, joining and checking them is inside.

tf.data's autotuning is off for all: where it is on, an iterator that Keras leaves before
its end waits for the tuning thread, whose sleep doubles from 10 ms on. In TensorFlow 2.21
that makes any `fit` take 1.27, 2.55, 5.1 or 10.2 s at random, a plain one as well.

    python benchmarks/step.py --json step.json      about half an hour on two cores
    python benchmarks/step.py --quick               under a minute
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
from keras_distill import models

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TEMPERATURE, ALPHA, BATCH = 4.0, 0.1, 128


class Textbook(keras.Model):
    """The distiller of the Keras documentation's example, written from its description.

    Teacher and student are both attributes; the teacher runs in every training step, the
    soft loss is the KL of the tempered softmaxes times T**2.
    """

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher
        self.teacher.trainable = False
        self.kl = keras.losses.KLDivergence()

    def call(self, x, training=None):
        return self.student(x, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        teacher = self.teacher(x, training=False)
        hard = LOSS(y, y_pred)
        soft = self.kl(
            keras.ops.softmax(teacher / TEMPERATURE, -1),
            keras.ops.softmax(y_pred / TEMPERATURE, -1),
        )
        return ALPHA * hard + (1 - ALPHA) * TEMPERATURE**2 * soft


class TeacherThenPlainStep(keras.Model):
    """One teacher forward in the graph plus Keras's own step: the floor for a live teacher."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student = student
        object.__setattr__(self, "_ask", [teacher])
        self.seen = self.add_weight(shape=(), trainable=False, name="seen")

    def call(self, x, training=None):
        return self.student(x, training=training)

    def train_step(self, data):
        # Kept alive by a variable, so that the graph does not drop it.
        self.seen.assign(keras.ops.sum(self._ask[0](data[0], training=False)))
        return super().train_step(data)


HIDDEN = "hidden_2"  # the last hidden layer of an MLP of two


def settings(quick):
    """Yields name, student builder, teacher builder, input shape, classes, matched layer."""
    image, student, teacher = (28, 28, 1), (800, 800), (1200, 1200)
    filters, wide = (16, 32), (64, 128)
    if quick:
        student, teacher, filters, wide = (64, 64), (96, 96), (4, 8), (16, 32)
    yield (
        "MLP 784-800-800-10 under 784-1200-1200-10",
        lambda: models.mlp(image, 10, student),
        lambda: models.mlp(image, 10, teacher),
        image, 10, None,
    )  # fmt: skip
    yield (
        "CNN 32x32x3, 100 classes, under one four times wider",
        lambda: models.cnn((32, 32, 3), 100, filters, dense=64),
        lambda: models.cnn((32, 32, 3), 100, wide, dense=256),
        (32, 32, 3), 100, None,
    )  # fmt: skip
    # The matched layers are of one width: Keras learns no adapter.
    yield (
        "MLP, last hidden layer matched, under 784-1200-800-10",
        lambda: models.mlp(image, 10, student),
        lambda: models.mlp(image, 10, (teacher[0], student[1])),
        image, 10, HIDDEN,
    )  # fmt: skip


def compiled(model):
    model.compile(keras.optimizers.Adam(1e-4), LOSS, metrics=["accuracy"])
    return model


def contenders(setting, examples, folder, only=None):
    """Returns `(model, dataset)` by name, of all or only one."""
    _, build_student, build_teacher, shape, classes, hidden = setting
    rng = np.random.default_rng(0)
    x = rng.random((examples, *shape), "float32")
    y = rng.integers(classes, size=examples)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    # Alone, the plain and the kept one are to be seen without any teacher in memory.
    teacher = None if only in (PLAIN, KEPT) else build_teacher()
    layers = [hidden] if hidden else []
    if only is None:
        kd.SoftTargets.write(folder, teacher, data, layers=layers, verbose=False)
    if only in (None, KEPT):
        kept = kd.SoftTargets.open(folder)

    objective = kd.SoftTargetLoss()
    keras_terms = [
        keras.distillation.LogitsDistillation(
            TEMPERATURE, loss=keras.losses.KLDivergence()
        )
    ]
    if hidden:
        objective = objective + kd.FeatureLoss(hidden, hidden)
        keras_terms.append(
            keras.distillation.FeatureDistillation(
                "mse", student_layer_name=hidden, teacher_layer_name=hidden
            )
        )

    def ours(teacher):
        return kd.Distiller(
            build_student(),
            teacher,
            temperature=TEMPERATURE,
            alpha=ALPHA,
            distillation_loss=objective,
        )

    makers = {
        PLAIN: lambda: (build_student(), data),
        FLOOR: lambda: (TeacherThenPlainStep(build_student(), teacher), data),
        KEPT: lambda: (ours(None), kept.join(data)),
        LIVE: lambda: (ours(teacher), data),
        KERAS: lambda: (
            keras.distillation.Distiller(
                teacher=teacher,
                student=build_student(),
                distillation_losses=keras_terms,
                student_loss_weight=ALPHA,
            ),
            data,
        ),
    }
    if not hidden:
        makers[TEXTBOOK] = lambda: (Textbook(build_student(), build_teacher()), data)
    options = tf.data.Options()
    options.autotune.enabled = False
    found = {}
    for name in makers if only is None else [only]:
        model, dataset = makers[name]()
        found[name] = compiled(model), dataset.prefetch(2).with_options(options)
    return found


PLAIN = "plain student.fit"
FLOOR = "one teacher forward + plain step"
KEPT = "ours, cached targets"
LIVE = "ours, live teacher"
KERAS = "keras.distillation"
TEXTBOOK = "textbook Distiller"


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(runs, rounds):
    """Returns the seconds of each round by name; the order alternates."""
    for run in runs.values():
        run()  # traces
    seconds = {name: [] for name in runs}
    for number in range(rounds):
        names = list(runs) if number % 2 == 0 else list(runs)[::-1]
        for name in names:
            seconds[name].append(timed(runs[name]))
    return seconds


def ratios(seconds, name, base):
    """Median over rounds of the ratio within a round."""
    return float(np.median(np.divide(seconds[name], seconds[base])))


def run_setting(setting, examples, rounds):
    with tempfile.TemporaryDirectory() as folder:
        found = contenders(setting, examples, folder)
        fit = measure(
            {
                name: lambda m=model, d=data: m.fit(d, verbose=0, shuffle=False)
                for name, (model, data) in found.items()
            },
            rounds,
        )
        judged = [name for name in found if name not in (FLOOR, KEPT)]
        evaluate = measure(
            {
                name: lambda m=found[name][0], d=found[PLAIN][1]: m.evaluate(
                    d, verbose=0
                )
                for name in judged
            },
            rounds,
        )
    steps = -(-examples // BATCH)
    return {
        "setting": setting[0],
        "ms_per_plain_step": 1e3 * float(np.median(fit[PLAIN])) / steps,
        "fit": {name: ratios(fit, name, PLAIN) for name in fit},
        "cached targets / plain": ratios(fit, KEPT, PLAIN),
        "live teacher / floor": ratios(fit, LIVE, FLOOR),
        "live teacher / keras.distillation": ratios(fit, LIVE, KERAS),
        "evaluate": {name: ratios(evaluate, name, PLAIN) for name in evaluate},
        "seconds": {"fit": fit, "evaluate": evaluate},
    }


def peak_memory(index, name, examples, quick):
    """Peak resident memory in MB of a fresh process that fits one of them once."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import step\n"
        "setting = list(step.settings(sys.argv[5] == 'True'))[int(sys.argv[2])]\n"
        "name = None if sys.argv[3] == 'None' else sys.argv[3]\n"
        "found = step.contenders(setting, int(sys.argv[4]), sys.argv[6], name)\n"
        "if name:\n"
        "    model, data = found[name]\n"
        "    model.fit(data, verbose=0, shuffle=False)\n"
        # Not getrusage: that goes on counting from the parent's peak.
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    here = str(pathlib.Path(__file__).parent)
    with tempfile.TemporaryDirectory() as folder:
        for one in ("None", name):  # the first only writes the soft targets
            arguments = [here, str(index), one, str(examples), str(quick), folder]
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
    return int(done.stdout) // 1024


def table(results):
    names = [PLAIN, FLOOR, KEPT, LIVE, KERAS, TEXTBOOK]
    lines = []
    for what in ("fit", "evaluate"):
        lines += [f"\n{what}, ratio to the plain student's", ""]
        lines.append("| | " + " | ".join(r["setting"] for r in results) + " |")
        lines.append("|---|" + "---:|" * len(results))
        for name in names:
            cells = [f"{r[what][name]:.2f}" if name in r[what] else "" for r in results]
            if any(cells):
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "\nthe bars",
        "",
        "| | " + " | ".join(r["setting"] for r in results) + " |",
    ]
    lines.append("|---|" + "---:|" * len(results))
    for what in (
        "cached targets / plain", "live teacher / floor", "live teacher / keras.distillation"
    ):  # fmt: skip
        lines.append(
            f"| {what} | " + " | ".join(f"{r[what]:.3f}" for r in results) + " |"
        )
    lines.append(
        "| a plain step, ms | "
        + " | ".join(f"{r['ms_per_plain_step']:.2f}" for r in results)
        + " |"
    )
    if "peak_mb" in results[0]:
        lines += ["\npeak memory of a process that fits once, MB", ""]
        lines.append("| | " + " | ".join(r["setting"] for r in results) + " |")
        lines.append("|---|" + "---:|" * len(results))
        for name in names:
            cells = [str(r["peak_mb"].get(name, "")) for r in results]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to see it run")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--no-memory", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.examples, args.no_memory = 2, 640, True
    results = []
    for index, setting in enumerate(settings(args.quick)):
        # An epoch of the convolutions takes longer: a quarter of it will do.
        examples = args.examples // (1 if index != 1 else 4)
        result = run_setting(setting, examples, args.rounds)
        if not args.no_memory:
            result["peak_mb"] = {
                name: peak_memory(index, name, examples // 4, args.quick)
                for name in result["fit"]
            }
        results.append(result)
        if args.json:
            args.json.write_text(json.dumps(results, indent=2))
    print(table(results))


if __name__ == "__main__":
    main()
