"""What temperature does, in two pictures.

The first draws the softmax of fifty random logits at several temperatures: at T = 1
almost all probability is on the largest, and the curve flattens as T grows. The second
shows the same for one handwritten digit: at T = 1 a teacher says "a 3" and no more; at a
higher T it also says which digits this 3 resembles. That is what the student learns from.

    python examples/temperature_curves.py --output pictures
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

from keras_distill import datasets, models, plots


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("pictures"))
    parser.add_argument("--epochs", type=int, default=30, help="of the teacher")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    # Random logits need no data.
    curves = plots.temperature_curves((1, 2, 5, 10, 20, 50))
    curves.savefig(args.output / "temperature_curves.png")
    lines = plots.temperature_curves((1, 2, 5, 10, 20, 50), log_scale=True)
    lines.savefig(args.output / "temperature_curves_log.png")

    # A real teacher, on the digits that ship with scikit-learn.
    keras.utils.set_random_seed(0)
    data = datasets.load("digits", batch_size=32)
    teacher = models.cnn(data.input_shape, data.classes, (32, 64), dropout=0.3)
    teacher.compile(
        keras.optimizers.Adam(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    teacher.fit(data.train, epochs=args.epochs, shuffle=False, verbose=2)

    # The test digit of which the teacher is least sure has the most to tell.
    images, labels = datasets.to_arrays(data.test)
    logits = teacher.predict(images, verbose=0)
    sureness = keras.ops.softmax(logits).numpy().max(-1)
    example = sureness.argmin()
    bars = plots.soft_targets(
        logits[example],
        (1, 4, 20),
        class_names=data.class_names,
        image=images[example],
        label=int(labels[example]),
    )
    bars.savefig(args.output / "soft_targets.png")
    for path in sorted(args.output.glob("*.png")):
        print(path)


if __name__ == "__main__":
    main()
