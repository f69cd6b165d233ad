"""What do eight and four bits cost a student, and how much does training on their grid bring back?

Three students of CIFAR-100 (a plain CNN, one of depthwise convolutions with ReLU6, one of
inverted residuals with hard-swish) are trained on labels. Each then becomes LiteRT files, whose
accuracy is that of the file, run by LiteRT on test images:

    float            the converter's float file
    int8             the converter's int8, after training, ranges from a calibration
    int8 aware       quantize_aware(weights=8), trained
    int4             quantize_aware(weights=4), not trained: int4 weights, int8 activations
    int4 aware       the same, trained
    int4 recipe      ai-edge-quantizer's dynamic_wi4_afp32 of the float file
    int4 w aware     quantize_aware(weights=4, activations=None), trained, by that recipe

"Trained" is some epochs of `Distiller` with the float student as the only teacher (alpha 0), so
that what comes back is what rounding took, and not more training on labels.

Every figure is written when it is there, and what is there is not made again: the same command
goes on after an interruption.

    python benchmarks/quantization.py --folder runs       hours of two cores
    python benchmarks/quantization.py --folder runs --student plain --seeds 1
    python benchmarks/quantization.py --quick             a minute, to see it run
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill.quantization.litert import convert

CLASSES, SIZE = 100, 32


def normed(x, layer, activation=None):
    x = layers.BatchNormalization(momentum=0.95)(layer(x))
    return x if activation is None else layers.Activation(activation)(x)


def conv(filters, size, strides=1):
    return layers.Conv2D(filters, size, strides, padding="same", use_bias=False)


def depthwise(strides=1):
    return layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)


def plain():
    image = x = keras.Input((SIZE, SIZE, 3))
    for filters in (32, 64, 128):
        x = layers.MaxPooling2D(2)(normed(x, conv(filters, 3), "relu"))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(CLASSES)(x))


def separable():
    """As MobileNetV1."""
    image = keras.Input((SIZE, SIZE, 3))
    x = normed(image, conv(32, 3, 2), "relu6")
    for filters, strides in ((64, 1), (128, 2), (128, 1), (256, 2)):
        x = normed(x, depthwise(strides), "relu6")
        x = normed(x, conv(filters, 1), "relu6")
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(CLASSES)(x))


def inverted():
    """As MobileNetV3, without its gates."""
    image = keras.Input((SIZE, SIZE, 3))
    x = normed(image, conv(24, 3, 2), "hard_swish")
    for filters, strides in ((24, 1), (48, 2), (48, 1), (64, 2)):
        y = normed(x, conv(4 * x.shape[-1], 1), "hard_swish")
        y = normed(y, depthwise(strides), "hard_swish")
        y = normed(y, conv(filters, 1))
        x = layers.Add()([x, y]) if y.shape == x.shape else y
    x = layers.GlobalAveragePooling2D()(normed(x, conv(256, 1), "hard_swish"))
    return keras.Model(image, layers.Dense(CLASSES)(x))


STUDENTS = {"plain": plain, "separable": separable, "inverted": inverted}
#: Bits of weights and of activations, and whether it is trained.
AWARE = {
    "int8 aware": (8, 8, True),
    "int4": (4, 8, False),
    "int4 aware": (4, 8, True),
    "int4 w aware": (4, None, True),
}
COLUMNS = ("float", "int8", "int8 aware", "int4", "int4 aware", "int4 recipe", "int4 w aware")  # fmt: skip


class Images:
    """CIFAR-100 in memory: as many training and test images as are asked for."""

    def __init__(self, args):
        data = kd.datasets.load(
            "cifar100", batch_size=None, shuffle=False, verbose=False
        )
        self.train = self.arrays(data.train, args.examples)
        self.calibration = self.arrays(data.validation, args.calibration)
        #: What rates are chosen by: no image of it calibrates, trains or tests.
        self.validation = self.arrays(
            data.validation.skip(args.calibration), args.validation
        )
        self.test = self.arrays(data.test, args.test)
        self.batch = args.batch

    @staticmethod
    def arrays(dataset, count):
        x, y = next(iter(dataset.take(count).batch(count)))
        return x.numpy(), y.numpy()

    def batches(self):
        """Returns shuffled batches of images, mirrored by chance."""
        images = tf.data.Dataset.from_tensor_slices(self.train)
        images = images.shuffle(len(self.train[1])).batch(self.batch)
        flip = tf.image.random_flip_left_right
        return images.map(lambda x, y: (flip(x), y)).prefetch(2)


def adam(rate, epochs, batches):
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * len(batches))
    return keras.optimizers.Adam(schedule)


def float_student(name, seed, images, args):
    """Returns a trained float student, from the folder where it is there."""
    keras.utils.set_random_seed(seed)
    model = STUDENTS[name]()
    path = args.folder / f"{name}-{seed}.weights.h5"
    if not path.exists():
        batches = images.batches()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizer = adam(args.rate, args.epochs, batches)
        model.compile(optimizer, loss, metrics=["accuracy"])
        model.fit(batches, epochs=args.epochs, verbose=2)
        hidden = path.with_name("writing.weights.h5")
        model.save_weights(hidden)
        hidden.rename(path)
    model.load_weights(path)
    return model


def aware_student(student, column, seed, images, args):
    """Returns a student on the grid, trained where the column says so."""
    weights, activations, is_trained = AWARE[column]
    keras.utils.set_random_seed(1000 + seed)
    model = kd.quantize_aware(
        student,
        weights=weights,
        activations=activations,
        calibration=images.calibration[0],
    )
    if is_trained:
        batches = images.batches()
        distiller = kd.Distiller(model, student, alpha=0.0, temperature=2.0)
        distiller.compile(adam(args.aware_rate, args.aware_epochs, batches))
        distiller.fit(batches, epochs=args.aware_epochs, verbose=2)
    return model


def file_of(model, column, images):
    """Returns the LiteRT file of a model."""
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, format="tf_saved_model", verbose=False)
        if column in AWARE:
            return convert(folder, *AWARE[column][:2])
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if column == "int8":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            rows = images.calibration[0][:, None]
            converter.representative_dataset = lambda: ([row] for row in rows)
        content = converter.convert()
        if column != "int4 recipe":
            return content
        from ai_edge_quantizer import quantizer, recipe

        path = pathlib.Path(folder, "float.tflite")
        path.write_bytes(content)
        made = quantizer.Quantizer(str(path), recipe.dynamic_wi4_afp32())
        return bytes(made.quantize(enable_progress_report=False).quantized_model)


def answers(content, x, batch=100):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    (given,), (taken,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    found = []
    for first in range(0, len(x), batch):
        part = x[first : first + batch]
        interpreter.resize_tensor_input(given["index"], part.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], part)
        interpreter.invoke()
        found.append(interpreter.get_tensor(taken["index"]).copy())
    return np.concatenate(found)


def figures(name, seed, column, images, args):
    """Returns what one file does on test images, and how it agrees with its Keras model."""
    start = time.time()
    model = float_student(name, seed, images, args)
    if column in AWARE:
        model = aware_student(model, column, seed, images, args)
    content = file_of(model, column, images)
    x, y = images.validation
    validation = 100 * float(np.mean(answers(content, x).argmax(-1) == y))
    x, y = images.test
    served, own = answers(content, x), model.predict(x, verbose=0)
    return {
        "accuracy": 100 * float(np.mean(served.argmax(-1) == y)),
        "validation accuracy": validation,
        "accuracy of the Keras model": 100 * float(np.mean(own.argmax(-1) == y)),
        "same labels": 100 * float(np.mean(served.argmax(-1) == own.argmax(-1))),
        "largest difference of logits": float(np.abs(served - own).max()),
        "deviation of logits": float(own.std()),
        "bytes": len(content),
        "seconds": time.time() - start,
        "settings": {key: str(value) for key, value in vars(args).items()},
    }


def table(folder):
    """Yields the lines of a table of all figures that are there."""
    yield f"| student | seed | {' | '.join(COLUMNS)} | back of int4 | of int4 recipe |"
    yield f"|---|---|{'---:|' * (len(COLUMNS) + 2)}"
    for name in STUDENTS:
        for seed in range(100):
            found = {}
            for column in COLUMNS:
                path = folder / f"{name}-{seed}-{column.replace(' ', '_')}.json"
                if path.exists():
                    found[column] = json.loads(path.read_text())["accuracy"]
            if found:
                cells = [f"{found[c]:.2f}" if c in found else "" for c in COLUMNS]
                back = [
                    f"{100 * (found[after] - found[before]) / lost:.0f} %"
                    if {"float", before, after} <= set(found)
                    and (lost := found["float"] - found[before]) > 0
                    else ""
                    for before, after in (
                        ("int4", "int4 aware"),
                        ("int4 recipe", "int4 w aware"),
                    )
                ]
                yield f"| {name} | {seed} | {' | '.join([*cells, *back])} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to see it run")
    parser.add_argument("--folder", type=pathlib.Path, help="of figures and weights")
    parser.add_argument("--student", choices=STUDENTS, help="one of them; default: all")
    parser.add_argument("--column", choices=COLUMNS, help="one of them; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=45_000, help="to train on")
    parser.add_argument("--calibration", type=int, default=1_000)
    parser.add_argument("--validation", type=int, default=4_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--aware-epochs", type=int, default=3)
    parser.add_argument("--aware-rate", type=float, default=5e-4)
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.examples, args.calibration = 1, 256, 64
        args.validation, args.test = 100, 200
        args.epochs, args.aware_epochs = 1, 1
        args.student = args.student or "plain"
    args.folder = args.folder or pathlib.Path(tempfile.mkdtemp())
    args.folder.mkdir(parents=True, exist_ok=True)
    images = Images(args)
    for seed in range(args.seeds):
        for name in [args.student] if args.student else STUDENTS:
            for column in [args.column] if args.column else COLUMNS:
                path = args.folder / f"{name}-{seed}-{column.replace(' ', '_')}.json"
                if path.exists():
                    continue
                keras.utils.clear_session()
                found = figures(name, seed, column, images, args)
                hidden = path.with_suffix(".writing")
                hidden.write_text(json.dumps(found, indent=2))
                hidden.rename(path)
                print(name, seed, column, f"{found['accuracy']:.2f}", flush=True)
    print("\n" + "\n".join(table(args.folder)))


if __name__ == "__main__":
    main()
