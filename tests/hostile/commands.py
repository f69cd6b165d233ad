"""Wrong command lines: each ends with a sentence, and with 2 or 1."""

import atexit
import contextlib
import functools
import io
import os
import shutil
import tempfile

import keras

from keras_distill import models
from keras_distill.commands.main import main
from tests.hostile import Row


@functools.cache
def _folder():
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    models.mlp((8, 8, 1), 10, (4,)).save(os.path.join(folder, "ten.keras"))
    models.mlp((8, 8, 1), 3, (4,)).save(os.path.join(folder, "three.keras"))
    inputs = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(inputs)
    lambda_ = keras.layers.Lambda(lambda x: x[:, :10])
    keras.Model(inputs, lambda_(flat)).save(os.path.join(folder, "lambda.keras"))
    texts = dict.fromkeys(("text.keras", "text.tflite", "text.onnx"), "x")
    for name, content in {"empty.keras": "", "taken": "", **texts}.items():
        with open(os.path.join(folder, name), "w") as file:
            file.write(content)
    return folder


class ExitOneError(ValueError):
    """What the command said, and that it exited with 1."""


def command(text):
    """Returns a call of the command line; `@name` is a file of the folder."""

    def call():
        words = [word.replace("@", f"{_folder()}/") for word in text.split()]
        words = ["" if word == "''" else word for word in words]
        written = io.StringIO()
        try:
            with (
                contextlib.redirect_stderr(written),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                status = main(words)
        except SystemExit as error:
            said = written.getvalue().splitlines()[-1]
            raise (SystemExit if error.code == 2 else ValueError)(f"{said}.") from error
        (line,) = written.getvalue().splitlines()
        assert status == 1
        assert line.startswith("keras-distill: error: ")
        raise ExitOneError(line)

    return call


NUMBER = "invalid (int|float) value"
SEARCH = "search @ten.keras digits json:dumps"
EXPORT = "export @ten.keras --format"
TWO = [
    ("", "are required: COMMAND"),
    ("distil", "there is no command"),
    ("demo --colour red", "there is no option --colour; there are --help, --dataset"),
    ("demo --output ''", "it must be a path"),
    ("demo --data-dir ''", "it must be a path"),
    ("demo --epochs 1.5", NUMBER),
    ("demo --temperature warm", NUMBER),
    ("demo --alpha half", NUMBER),
    ("demo --seed x", NUMBER),
    ("distill", "are required: teacher, dataset, student"),
    ("distill '' digits cnn:4", "it must be a path"),
    ("distill @ten.keras digits cnn:4 --output ''", "it must be a path"),
    ("distill @ten.keras digits cnn:4 --temperature warm", NUMBER),
    ("distill @ten.keras digits cnn:4 --search 2.5", NUMBER),
    ("distill @ten.keras digits cnn:4 --epochs x", NUMBER),
    ("distill @ten.keras digits cnn:4 --format", "expected at least one argument"),
    ("teach", "are required: dataset, network"),
    ("teach digits", "are required: network"),
    ("teach digits mlp:4 --output ''", "it must be a path"),
    ("teach digits mlp:4 --learning-rate x", NUMBER),
    ("cache", "are required: teacher, dataset, path"),
    ("cache @ten.keras digits", "are required: path"),
    ("cache '' digits kept", "it must be a path"),
    ("cache @ten.keras digits ''", "it must be a path"),
    ("cache @ten.keras digits kept --split all", "invalid choice"),
    ("cache @ten.keras digits kept --dtype int8", "invalid choice"),
    ("cache @ten.keras digits kept --top-k 2.5", NUMBER),
    ("cache @ten.keras digits kept --batch-size x", NUMBER),
    ("cache @ten.keras digits kept --workers two", NUMBER),
    ("cache @ten.keras digits kept --image-size 8", "expected 2 arguments"),
    ("cache @ten.keras digits kept --image-size 8 0", "whole number >= 1"),
    ("cache @ten.keras digits kept --image-size 8 8.5", "whole number >= 1"),
    ("cache @ten.keras digits kept --data-dir ''", "it must be a path"),
    ("specialists", "are required: generalist, dataset"),
    ("specialists '' digits", "it must be a path"),
    ("specialists @ten.keras digits --work-dir ''", "it must be a path"),
    ("specialists @ten.keras digits --n 1.5", NUMBER),
    ("specialists @ten.keras digits --clusters x", NUMBER),
    ("specialists @ten.keras digits --max-size 2.5", NUMBER),
    ("specialists @ten.keras digits --hard-epochs x", NUMBER),
    ("specialists @ten.keras digits --soft-learning-rate x", NUMBER),
    ("search", "are required: teacher, dataset, student"),
    ("search '' digits json:dumps", "it must be a path"),
    (f"{SEARCH} --directory ''", "it must be a path"),
    (f"{SEARCH} --trials 2.5", NUMBER),
    (f"{SEARCH} --executions x", NUMBER),
    (f"{SEARCH} --patience x", NUMBER),
    (f"{SEARCH} --retrain now", "is one argument too many"),
    ("export", "are required: model"),
    ("export ''", "it must be a path"),
    ("export @ten.keras --format", "expected at least one argument"),
    ("export @ten.keras --output ''", "it must be a path"),
    ("export @ten.keras --data-dir ''", "it must be a path"),
    ("export @ten.keras --class-names ''", "it must be a path"),
    ("export @ten.keras --threshold high", NUMBER),
    ("export @ten.keras --output-kinds logits", "invalid choice"),
    ("export @ten.keras --keep 1.5", NUMBER),
    ("export @ten.keras --calibration-examples x", NUMBER),
    ("export @ten.keras --image-size 8", "expected 2 arguments"),
    ("inspect", "are required: path"),
    ("inspect ''", "it must be a path"),
    ("inspect @taken @taken", "is one argument too many"),
    ("bench", "are required: path"),
    ("bench ''", "it must be a path"),
    ("bench @taken --batch-sizes", "expected at least one argument"),
    ("bench @taken --batch-sizes 1.5", NUMBER),
    ("bench @taken --threads x", NUMBER),
    ("bench @taken --seconds long", NUMBER),
    ("bench @taken --output ''", "it must be a path"),
]
UNREAD = [
    ("@none.keras", "is not there"),
    ("@taken", "is not there or not a .keras or .h5 file"),
    ("@empty.keras", "cannot be read: it is damaged"),
    ("@text.keras", "cannot be read: it is damaged"),
    ("@lambda.keras", "holds code of its own"),
]
ONE = [
    ("demo --temperature 0", "temperature must be a finite number > 0"),
    ("demo --temperature nan", "temperature must be a finite number > 0"),
    ("demo --temperature 1e20", "float32 can neither"),
    ("demo --alpha 2", "alpha must be a number from 0 to 1"),
    ("demo --alpha nan", "alpha must be a number from 0 to 1"),
    ("demo --epochs 0", "epochs must be a whole number >= 1"),
    ("demo --seed -1", "seed must be a whole number >= 0"),
    ("demo --dataset no_such", "there is no dataset"),
    ("demo --output @taken", "is a file; give a folder"),
    ("distill @none.keras digits cnn:4", "does not exist"),
    ("distill @lambda.keras digits cnn:4", "holds code of its own"),
    ("distill @text.keras digits cnn:4", "cannot be read: it is damaged"),
    ("distill @three.keras digits cnn:4", "answers with 3 numbers for an example"),
    ("distill @ten.keras,@three.keras digits cnn:4", "different numbers of classes"),
    ("distill @ten.keras digits @three.keras", "answers with 3 numbers for an example"),
    ("distill @ten.keras digits @text.keras", "cannot be read: it is damaged"),
    (
        "distill @ten.keras digits json:dumps",
        r"function json:dumps (takes|failed|must)",
    ),
    ("distill @ten.keras digits nothing", "there is no student 'nothing'"),
    ("distill @ten.keras digits cnn:0", "must be >= 1"),
    (
        "distill @ten.keras digits cnn:4 --temperature nan",
        "temperature must be a finite",
    ),
    ("distill @ten.keras digits cnn:4 --alpha nan", "alpha must be a number from 0"),
    ("distill @ten.keras digits cnn:4 --search 0", "--search must be at least 2"),
    ("distill @ten.keras digits cnn:4 --seed -1", "seed must be a whole number >= 0"),
    ("distill @ten.keras digits cnn:4 --learning-rate nan", "learning_rate must be"),
    ("distill @ten.keras digits cnn:4 --output @taken", "is a file; give a folder"),
    ("distill @ten.keras digits cnn:4 --format pdf", "there is no format 'pdf'"),
    ("distill @ten.keras digits cnn:4 --image-size 9 9", "image_size and normalize"),
    ("teach digits mlp:4 --output @taken", "must be a .keras file"),
    ("teach digits mlp:4 --output @ten.keras", "is there already"),
    ("teach digits mlp:4 --seed -1", "seed must be a whole number >= 0"),
    ("teach digits mlp:4 --patience 0", "patience must be a whole number >= 1"),
    ("teach digits json:no_such", "json has no function 'no_such'"),
    *[(f"specialists {path} digits", said) for path, said in UNREAD],
    *[(f"search {path} digits json:dumps", said) for path, said in UNREAD],
    ("cache @none.keras digits kept", "does not exist"),
    ("cache @lambda.keras digits kept", "holds code of its own"),
    ("cache @text.keras digits kept", "cannot be read: it is damaged"),
    ("cache @ten.keras digits kept --top-k 0", "top_k must be"),
    ("cache @ten.keras digits kept --batch-size 0", "batch_size must be"),
    ("cache @ten.keras digits kept --workers 0", "n_jobs must be a whole number"),
    ("cache @ten.keras digits kept --image-size 8 8", "image_size and normalize"),
    ("specialists @three.keras digits", "has 3 outputs and digits has 10 classes"),
    ("specialists @ten.keras digits --n 0", "n must be a whole number from 1"),
    ("specialists @ten.keras digits --n 11", "n must be a whole number from 1 to 10"),
    ("specialists @ten.keras digits --clusters 1", "n_clusters must be a whole"),
    ("specialists @ten.keras digits --clusters 6", "from 2 to 5, got 6"),
    ("specialists @ten.keras digits --clusters 5 --max-size 0", "max_size must be"),
    (
        "specialists @ten.keras digits --clusters 5 --seed -1",
        "seed must be a whole number >= 0",
    ),
    ("search @ten.keras digits nowhere", "must be module:function"),
    ("search @ten.keras digits :f", "must be module:function"),
    ("search @ten.keras digits no_such:f", "module cannot be imported"),
    ("search @ten.keras digits json:no_such", "json has no function 'no_such'"),
    ("search @ten.keras digits json:__name__", "has no function '__name__'"),
    (f"{SEARCH} --temperature 1:2:3", "a range is a number"),
    (f"{SEARCH} --temperature warm", "a range is a number"),
    (f"{SEARCH} --temperature 0:2", "temperature must be a finite number > 0"),
    (f"{SEARCH} --temperature nan", "temperature must be a finite number > 0"),
    (f"{SEARCH} --alpha 0:2", "alpha must be a number from 0 to 1"),
    (f"{SEARCH} --alpha 1:0", "alpha is a range from 1.0 down to 0.0"),
    (f"{SEARCH} --alpha 0.1,", "a range is a number"),
    (f"{SEARCH} --trials 1", "max_trials must be a whole number >= 2"),
    (f"{SEARCH} --executions 0", "executions_per_trial must be"),
    (f"{SEARCH} --epochs 0", "epochs must be a whole number >= 1"),
    (f"{SEARCH} --patience 0", "patience must be a whole number >= 1"),
    (f"{SEARCH} --batch-size 0", "batch_size must be a whole number >= 1"),
    (f"{SEARCH} --workers 0", "n_jobs must be a whole number"),
    (f"{SEARCH} --seed -1", "seed must be a whole number >= 0"),
    (f"{SEARCH} --objective loss", "cannot be searched for"),
    (f"{SEARCH} --objective f1", "objective must be"),
    (f"{SEARCH} --algorithm grid", "algorithm must be one of"),
    (f"{SEARCH} --resume --overwrite", "exclude each other"),
    *[(f"export {path}", said) for path, said in UNREAD],
    (
        f"{EXPORT} tflite",
        r"no format 'tflite'; --format takes savedmodel, litert, .*onnx",
    ),
    (f"{EXPORT} savedmodel litert:int4", "there is no format 'litert:int4'"),
    (f"{EXPORT} litert:int8", "litert:int8 needs --calibration"),
    (f"{EXPORT} onnx --keep 2", "--keep is of versions, which only savedmodel has"),
    (f"{EXPORT} savedmodel --keep 0", "keep must be a whole number >= 1"),
    (
        f"{EXPORT} litert:int8 --calibration digits --calibration-examples 0",
        "calibration_examples must be a whole number >= 1",
    ),
    (f"{EXPORT} litert:int8 --calibration no_such", "there is no dataset 'no_such'"),
    (f"{EXPORT} litert --calibration digits --image-size 9 9", "image_size and normal"),
    (f"{EXPORT} savedmodel --threshold 2", "threshold must be"),
    (f"{EXPORT} savedmodel --class-names none.txt", "'none.txt' are not there"),
    (f"{EXPORT} savedmodel --class-names no_such", "there is no dataset 'no_such'"),
    (f"{EXPORT} savedmodel --class-names @taken", "an empty line or none at all"),
    (f"{EXPORT} savedmodel --class-names @ten.keras", "are no text in UTF-8"),
    ("export @three.keras --class-names digits --output-kinds softmax", "class_names"),
    (f"{EXPORT} savedmodel --output @taken", "is a file; give a folder"),
    *[
        (f"{command} {path}", said)
        for command in ("inspect", "bench")
        for path, said in (
            ("none.onnx", "the export 'none.onnx' does not exist"),
            ("@ten.keras", "is neither a .tflite or .onnx file nor a SavedModel"),
            ("@.", "holds neither a saved_model.pb nor a version"),
        )
    ],
    ("inspect @text.tflite", "cannot be read by LiteRT; it is damaged"),
    ("inspect @text.onnx", "cannot be read by ONNX Runtime; it is damaged"),
    ("bench @taken --batch-sizes 0", "batch_sizes must be a whole number >= 1"),
    ("bench @taken --threads 0", "threads must be a whole number >= 1"),
    ("bench @taken --seconds 0", "seconds must be a finite number > 0"),
    ("bench @taken --seconds nan", "seconds must be a finite number > 0"),
    ("bench @taken --output @taken", "is a file; give a folder"),
]

ROWS = [Row("keras-distill", command(text), said, SystemExit) for text, said in TWO] + [
    Row("keras-distill", command(text), said, ExitOneError) for text, said in ONE
]
