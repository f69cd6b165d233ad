"""MNIST, after section 3 of the paper: teacher, hard-label student, distilled student.

The student 784-800-800-10 has no regularisation. The teacher 784-1200-1200-10 is trained
with dropout and limited weight norms, on images jittered by up to two pixels. T and
alpha are chosen on 10 000 training images held out for it, with a teacher that has not
seen them; then all is trained anew on the 60 000 training images, and the test errors are
counted once, after the last epoch.

    python benchmarks/mnist.py --json mnist.json      about an hour and a half, two cores
    python benchmarks/mnist.py --quick                under a minute
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
from keras_distill import datasets, models

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BATCH = 128
HELD_OUT = 10_000


def compiled(model, epochs, examples):
    steps = max(1, epochs * (examples // BATCH))
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    model.compile(keras.optimizers.Adam(rate), LOSS, metrics=["accuracy"])
    return model


def jitter(x, y):
    """Moves an image by up to two pixels in any direction."""
    padded = tf.pad(x, [[2, 2], [2, 2], [0, 0]])
    return tf.image.random_crop(padded, (28, 28, 1)), y


def train_teacher(x, y, widths, epochs):
    teacher = models.mlp(
        (28, 28, 1), 10, widths, dropout=0.5, input_dropout=0.2, max_norm=4.0
    )
    data = tf.data.Dataset.from_tensor_slices((x, y)).cache().shuffle(len(x))
    data = data.map(jitter, num_parallel_calls=2).batch(BATCH, drop_remainder=True)
    compiled(teacher, epochs, len(x)).fit(
        data.prefetch(4), epochs=epochs, shuffle=False, verbose=0
    )
    return teacher


def train_student(x, y, widths, epochs, *, logits=None, temperature=4.0, alpha=1.0):
    """Trains one student; without the teacher's logits, on the labels alone."""
    student = models.mlp((28, 28, 1), 10, widths)
    if logits is None:
        compiled(student, epochs, len(x)).fit(
            x, y, batch_size=BATCH, epochs=epochs, verbose=0
        )
        return student
    distiller = kd.Distiller(student, temperature=temperature, alpha=alpha)
    compiled(distiller, epochs, len(x)).fit(
        kd.DistillationInputs(x, logits), y, batch_size=BATCH, epochs=epochs, verbose=0
    )
    student.compile(loss=LOSS, metrics=["accuracy"])
    return student


def errors(model, x, y):
    return int(len(x) - round(model.evaluate(x, y, verbose=0)[1] * len(x)))


def choose(x, y, args, log):
    """Chooses T and alpha by the errors on held-out training images."""
    keras.utils.set_random_seed(1000)
    held_out = min(HELD_OUT, len(x) // 6)
    x_val, y_val, x, y = x[-held_out:], y[-held_out:], x[:-held_out], y[:-held_out]
    teacher = train_teacher(x, y, args.teacher, args.search_epochs)
    logits = teacher.predict(x, batch_size=500, verbose=0)
    log(f"held-out errors of {held_out}: teacher {errors(teacher, x_val, y_val)}")
    trials = []
    for temperature in args.temperatures:
        for alpha in args.alphas:
            keras.utils.set_random_seed(1000)
            student = train_student(
                x, y, args.student, args.search_epochs,
                logits=logits, temperature=temperature, alpha=alpha,
            )  # fmt: skip
            judged = student.evaluate(x_val, y_val, verbose=0)
            wrong = round((1 - judged[1]) * held_out)
            trials.append(
                {"T": temperature, "alpha": alpha, "errors": wrong, "nll": judged[0]}
            )
            log(f"  T {temperature:>4} alpha {alpha}: {wrong} (NLL {judged[0]:.4f})")
    best = min(trials, key=lambda trial: (trial["errors"], trial["nll"]))
    return best["T"], best["alpha"], trials


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to see it run")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    parser.add_argument("--data-dir", help="TFDS data_dir")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    args.teacher, args.student = (1200, 1200), (800, 800)
    args.search_epochs, args.teacher_epochs, args.epochs = 15, 40, 30
    args.temperatures, args.alphas = (2.0, 4.0, 10.0, 20.0), (0.0, 0.2)

    data = datasets.load("mnist", data_dir=args.data_dir, batch_size=1000)
    x_train, y_train = datasets.to_arrays(data.train.concatenate(data.validation))
    x_test, y_test = datasets.to_arrays(data.test)
    if args.quick:
        x_train, y_train = x_train[:2000], y_train[:2000]
        args.teacher, args.student, args.seeds = (64, 64), (32, 32), 1
        args.search_epochs = args.teacher_epochs = args.epochs = 2
        args.temperatures, args.alphas = (4.0,), (0.1,)

    start = time.monotonic()

    def log(text):
        print(f"[{time.monotonic() - start:6.0f} s] {text}", flush=True)

    temperature, alpha, trials = choose(x_train, y_train, args, log)
    log(f"chosen on held-out images: T = {temperature}, alpha = {alpha}")
    rows = []
    for seed in range(args.seeds):
        keras.utils.set_random_seed(seed)
        teacher = train_teacher(x_train, y_train, args.teacher, args.teacher_epochs)
        logits = teacher.predict(x_train, batch_size=500, verbose=0)
        keras.utils.set_random_seed(seed)
        hard = train_student(x_train, y_train, args.student, args.epochs)
        keras.utils.set_random_seed(seed)
        distilled = train_student(
            x_train, y_train, args.student, args.epochs,
            logits=logits, temperature=temperature, alpha=alpha,
        )  # fmt: skip
        row = {
            name: errors(model, x_test, y_test)
            for name, model in (
                ("teacher", teacher), ("hard labels", hard), ("distilled", distilled)
            )
        }  # fmt: skip
        rows.append({"seed": seed, **row})
        log(f"seed {seed}: test errors {row}")
        if args.json:
            result = {"T": temperature, "alpha": alpha, "search": trials, "seeds": rows}
            args.json.write_text(json.dumps(result, indent=2))

    print("\n| test errors of 10 000 | teacher | hard labels | distilled |")
    print("|---|---|---|---|")
    for row in rows:
        figures = " | ".join(
            str(row[k]) for k in ("teacher", "hard labels", "distilled")
        )
        print(f"| seed {row['seed']} | {figures} |")
    means = [
        np.mean([row[k] for row in rows])
        for k in ("teacher", "hard labels", "distilled")
    ]
    print(f"| mean | {' | '.join(f'{mean:.1f}' for mean in means)} |")


if __name__ == "__main__":
    main()
