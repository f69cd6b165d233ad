import ast
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import keras_distill

ROOT = pathlib.Path(__file__).parent.parent


def test_version_comes_from_the_metadata():
    assert keras_distill.__version__ == importlib.metadata.version("keras-distill")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert keras_distill.__version__ == pyproject["project"]["version"]


def test_public_names_are_there_and_documented():
    for name in keras_distill.__all__:
        assert getattr(keras_distill, name).__doc__, name


def test_type_checkers_and_dir_see_every_public_name():
    stub = ast.parse((ROOT / "keras_distill" / "__init__.pyi").read_text())
    imported = {
        alias.asname
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == set(keras_distill.__all__)
    assert imported <= set(dir(keras_distill))


HEAVY = [
    "keras_tuner", "grpc", "tensorboard", "joblib", "sklearn", "pandas", "matplotlib",
    "tensorflow_datasets",
]  # fmt: skip

GAINS = f"""
import sys
import tensorflow, keras  # which bring some of these where they are installed
before = set(sys.modules)
import keras_distill
gained = set(sys.modules) - before
print("gains", *({set(HEAVY)} & gained))
print(*sorted(name for name in gained if name.startswith("keras_distill.")))
"""

NEEDS = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY}))  # importing one fails
import keras, numpy as np, keras_distill
student, teacher = (
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]) for _ in range(2)
)
distiller = keras_distill.Distiller(student, teacher)
distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
distiller.fit(np.ones((4, 2)), np.zeros(4), verbose=0)
print("trained")
"""


def test_import_brings_and_training_needs_nothing_heavy_besides_keras():
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
        )
        for code in (GAINS, NEEDS)
    ]
    gained, trained = (process.communicate()[0] for process in both)
    assert trained == "trained\n"
    heavy, ours = gained.splitlines()
    assert heavy == "gains"
    # What Keras must know by name to read a file in its safe mode.
    registering = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "keras_distill").rglob("*.py")
        if "\n@keras.saving.register_keras" in path.read_text()
    }
    assert "keras_distill.losses.logits" in registering
    assert registering <= set(ours.split())


ON_JAX = """
import numpy as np, keras
import keras_distill as kd

def model(width):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(width)])

x, y = np.ones((4, 4), "float32"), np.zeros(4, int)
for name, call in {
    "Distiller": lambda: kd.Distiller(model(3), model(3)),
    "Distiller without a teacher": lambda: kd.Distiller(model(3)),
    "as_teacher": lambda: kd.as_teacher(model(3)),
    "a callable": lambda: kd.as_teacher(lambda x: x),
    "SpecialistEnsemble": lambda: kd.SpecialistEnsemble(model(3)),
    "SpecialistBuilder": lambda: kd.SpecialistBuilder(model(5), [[0, 1]]),
    "SoftTargets.write": lambda: kd.SoftTargets.write("soft", model(3), x),
    "class_covariance": lambda: kd.class_covariance(model(3), x),
    "evaluate": lambda: kd.evaluate(model(3), (x, y)),
    "compare": lambda: kd.compare({"one": model(3)}, (x, y), verbose=False),
    "correct_bias": lambda: kd.correct_bias(model(3), (x, y), 0),
    "calibrate_temperature": lambda: kd.calibrate_temperature(model(3), (x, y)),
    "export_litert": lambda: kd.export_litert(model(3), "served.tflite"),
    "export_onnx": lambda: kd.export_onnx(model(3), "served.onnx"),
    "export_savedmodel": lambda: kd.export_savedmodel(model(3), "served"),
    "ModelCard": lambda: kd.ModelCard(teacher=model(3)),
    "copy_weights": lambda: kd.copy_weights(model(3), model(3)),
    "quantize_aware": lambda: kd.quantize_aware(model(3), calibration=x),
    "feature_paths": lambda: kd.feature_paths(model(3)),
    "suggest_feature_pairs": lambda: kd.suggest_feature_pairs(model(3), model(4)),
    "search": lambda: kd.search(lambda hp: model(3), (x, y), (x, y), teacher=model(3)),
    "DistillationHyperModel": lambda: kd.DistillationHyperModel(lambda hp: model(3)),
}.items():
    try:
        call()
    except RuntimeError as error:
        print(name, "|", error)
same = np.zeros((2, 3)), np.ones((2, 3))
loss = kd.SoftTargetLoss(2.0).compute_loss(*same)
print(type(loss).__module__.split(".")[0], float(loss))
"""


def test_on_another_backend_losses_run_and_all_else_is_refused_in_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ON_JAX],
        env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *said, loss = done.stdout.splitlines()
    assert len(said) == ON_JAX.count('": lambda: ')
    for line in said:
        assert re.search(
            r"models with TensorFlow, but Keras's backend is 'jax'; set the environment "
            r"variable KERAS_BACKEND=tensorflow before keras is imported, or .*keras.json",
            line,
        ), line
    assert loss == "jaxlib 0.0"
    assert not list(tmp_path.iterdir())


def test_every_import_is_declared():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    declared = {
        re.split(r"[<>=\[]", requirement)[0].replace("-", "_")
        for requirement in (
            *project["dependencies"],
            *extras["serving"],
            *extras["dask"],
            *extras["ray"],
            *extras["litert"],
            *extras["onnx"],
            "onnx",  # which tf2onnx needs
        )
    }
    modules = {"scikit_learn": "sklearn"}
    modules["tensorflow_serving_api"] = "tensorflow_serving"
    declared = {modules.get(name, name) for name in declared}
    for path in (ROOT / "keras_distill").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            else:
                continue
            for module in (name.split(".")[0] for name in names):
                assert (
                    module in declared
                    or module in sys.stdlib_module_names
                    or module == "keras_distill"
                ), f"{path.name} imports {module}"
