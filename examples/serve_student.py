"""One student in every form it can be served in, and what each form costs.

scikit-learn's digits: a teacher, a distilled student, and the student exported as a
SavedModel, as four LiteRT files and as an ONNX file. Each export is checked when it is
written, then judged on the test images by the runtime that would serve it.

    pip install 'keras-distill[litert,onnx]'
    python examples/serve_student.py                  about a minute, two cores
    python examples/serve_student.py --quick
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import keras_distill as kd
from keras_distill import datasets, models

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compile_and_fit(model, data, epochs):
    """One recipe for both: Adam with a learning rate that falls to 0."""
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * len(data.train))
    model.compile(keras.optimizers.Adam(rate), LOSS, metrics=["accuracy"])
    model.fit(data.train, epochs=epochs, shuffle=False, verbose=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="savedmodels/digits", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true", help="tiny, to see it run")
    args = parser.parse_args()
    epochs = 1 if args.quick else 30
    args.output.mkdir(parents=True, exist_ok=True)

    # 1. The teacher: in your own project, a model that you have already.
    data = datasets.load("digits", batch_size=32)
    keras.utils.set_random_seed(0)
    teacher = models.cnn(data.input_shape, data.classes, (32, 64), dropout=0.3)
    compile_and_fit(teacher, data, epochs)

    # 2. The student, taught.
    student = models.cnn(data.input_shape, data.classes, (8, 16), dense=16)
    distiller = kd.Distiller(student, teacher, temperature=4.0, alpha=0.1)
    compile_and_fit(distiller, data, epochs)

    # 3. What all exports are told. The class names are kept in each; from the images, all
    # of which the student has seen, int8 has the range of each layer.
    images, _ = datasets.to_arrays(data.train)
    told = {
        "class_names": data.class_names,
        "example": images[:64],
        "card": kd.ModelCard(distiller, data=data, seeds=0),
        "verbose": False,
    }

    # 4. The exports. Each is there only once a fresh process gave the student's answers.
    exports = {
        "SavedModel": kd.export_savedmodel(student, args.output / "savedmodel", **told)
    }
    for quantize in (None, "float16", "dynamic", "int8"):
        form = quantize or "float32"
        exports[f"LiteRT {form}"] = kd.export_litert(
            student, args.output / f"student-{form}.tflite", quantize=quantize,
            calibration=images if quantize == "int8" else None, **told,
        )  # fmt: skip
    exports["ONNX"] = kd.export_onnx(student, args.output / "student.onnx", **told)

    # 5. All side by side on the test split. Keras and SavedModels run on all cores, files on
    # one; the size of a Keras model is that of its weights alone.
    table = kd.compare(
        {"teacher": teacher, "student": student, **exports}, data.test, teacher=teacher
    )
    print(table)
    table.save(args.output / "comparison.md")
    table.save(args.output / "comparison.json")
    for name, path in exports.items():
        print(f"{name:16} {table[name].file_bytes:>9,} bytes  {path}")


if __name__ == "__main__":
    main()
