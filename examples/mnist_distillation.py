"""MNIST from a trained teacher to a served student.

A convolutional teacher, a student of an eighth of its size, and the same student trained
on hard labels alone, judged side by side; the distilled one is exported for serving.

    python examples/mnist_distillation.py --data-dir ~/tensorflow_datasets
    python examples/mnist_distillation.py --quick
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import keras_distill as kd
from keras_distill import datasets, models


def compile_and_fit(model, data, epochs):
    """One recipe for all three: Adam with a learning rate that falls to 0."""
    steps = epochs * int(data.train.cardinality())
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        data.train,
        validation_data=data.validation,
        epochs=epochs,
        shuffle=False,
        verbose=2,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", help="TFDS data_dir; TFDS's own default")
    parser.add_argument("--export", default="savedmodels/mnist")
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--quick", action="store_true", help="tiny, to see it run")
    args = parser.parse_args()
    epochs = 1 if args.quick else 6

    data = datasets.load("mnist", data_dir=args.data_dir, batch_size=128)
    if args.quick:
        small = {s: getattr(data, s).take(10) for s in ("train", "validation", "test")}
        data = data.replace(**small)

    # 1. The teacher: in your own project, a model that you have already.
    keras.utils.set_random_seed(0)
    filters = (4, 8) if args.quick else (16, 32, 64)
    teacher = models.cnn(data.input_shape, data.classes, filters, dropout=0.3)
    compile_and_fit(teacher, data, epochs)

    # 2. The student on hard labels alone, to know what distillation adds.
    keras.utils.set_random_seed(1)
    baseline = models.cnn(data.input_shape, data.classes, (8, 16, 16), dense=16)
    compile_and_fit(baseline, data, epochs)

    # 3. The same student, taught. Only this line is new.
    keras.utils.set_random_seed(1)
    student = models.cnn(data.input_shape, data.classes, (8, 16, 16), dense=16)
    distiller = kd.Distiller(
        student, teacher, temperature=args.temperature, alpha=args.alpha
    )
    compile_and_fit(distiller, data, epochs)

    # 4. What it cost and what it brought, on the test split.
    print(
        kd.compare(
            {"teacher": teacher, "hard labels": baseline, "distilled": student},
            data.test,
            teacher=teacher,
        )
    )

    # 5. A SavedModel, checked in a fresh process before it can be seen.
    path = kd.export_savedmodel(student, args.export, class_names=data.class_names)
    print("exported to", path)


if __name__ == "__main__":
    main()
