"""Numbered versions: what is in each, and which of them stay."""

import os
import pathlib
import random
import signal
import threading
import time
import uuid

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.export import check, versions
from keras_distill.export.runtimes import savedmodel
from tests.forking import Process, answer_here, wait_for

# The kind of most models here is not said, and of no matter.
pytestmark = pytest.mark.filterwarnings("ignore:nothing says whether:UserWarning")


@pytest.fixture(autouse=True)
def _answers_here(monkeypatch):
    monkeypatch.setattr(check, "ask_fresh_process", answer_here)


def small(classes=3, activation=None):
    return keras.Sequential(
        [
            keras.Input((2,), name="x"),
            keras.layers.Dense(classes, activation=activation),
        ]
    )


def export(folder, model=None, **given):
    model = small() if model is None else model
    return kd.export_savedmodel(model, folder, verbose=False, **given)


def version(folder, name, is_whole=True):
    """Makes what looks like a version to a server."""
    path = f"{folder}/{name}"
    tf.io.gfile.makedirs(f"{path}/variables")
    for file in ("saved_model.pb", "variables/variables.index")[not is_whole :]:
        with tf.io.gfile.GFile(f"{path}/{file}", "w") as opened:
            opened.write("x")


def names_in(folder):
    return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(str(folder)))


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
    """A folder on this disk, and one that only `tf.io.gfile` knows."""
    return tmp_path / "m" if request.param == "local" else f"ram://{uuid.uuid4().hex}/m"


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (1, ["11"]),
        (2, ["10", "11"]),
        (3, ["10", "11", "9"]),
        (9, ["1", "10", "11", "2", "9"]),
    ],
)
def test_the_newest_stay(folder, keep, left):
    for name in ("1", "2", "9", "10", "11"):
        version(folder, name)
    versions.prune(f"{folder}/11", keep)
    assert names_in(folder) == left


def test_only_whole_versions_with_numbers_go(folder):
    strangers = ["notes", "v2", "2.5", "-3", "²", "1_000", "99999999999999999999"]
    for name in ("1", "04", "5", "6", *strangers):
        version(folder, name)
    version(folder, "3", is_whole=False)  # somebody copies it here, say
    with tf.io.gfile.GFile(f"{folder}/2", "w") as file:
        file.write("mine")
    versions.prune(f"{folder}/6", 2)
    assert names_in(folder) == sorted(["2", "3", "5", "6", *strangers])


def test_an_export_removes_what_is_before_it(tmp_path):
    for name in ("3", "4"):
        version(tmp_path, name)
    path = export(tmp_path, keep=2)
    assert names_in(tmp_path) == ["4", "5"]
    assert savedmodel.Model(path)({"x": np.ones((1, 2), "float32")})


def test_without_keep_all_stay(tmp_path):
    for _ in range(3):
        export(tmp_path)
    assert names_in(tmp_path) == ["1", "2", "3"]


def test_a_link_goes_and_not_what_it_is_to(tmp_path):
    folder, elsewhere = tmp_path / "m", tmp_path / "elsewhere"
    version(elsewhere, "1")
    folder.mkdir()
    (folder / "1").symlink_to(elsewhere / "1")
    export(folder, keep=1)
    assert names_in(folder) == ["2"]
    assert (elsewhere / "1" / "saved_model.pb").exists()


def test_nothing_goes_before_the_new_one_is_in_place(tmp_path, monkeypatch):
    for name in ("1", "2"):
        version(tmp_path, name)

    def lies(*asked):
        (answer,) = answer_here(*asked)
        return [{name: np.zeros_like(value) + 9 for name, value in answer.items()}]

    monkeypatch.setattr(check, "ask_fresh_process", lies)
    with pytest.raises(RuntimeError, match="so nothing is exported"):
        export(tmp_path, keep=1)
    assert names_in(tmp_path) == ["1", "2"]


def test_a_reader_sees_a_version_whole_or_not_at_all(tmp_path, monkeypatch):
    """It goes by one renaming, and is removed where no reader looks."""
    version(tmp_path, "1")
    seen = []

    def killed(path, ignore_errors):
        seen.append(names_in(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr(versions.shutil, "rmtree", killed)
        export(tmp_path, keep=1)
    ((hidden, there),) = seen
    assert hidden.startswith(".writing-")
    assert there == "2"
    export(tmp_path)  # which removes what the killed one left
    assert names_in(tmp_path) == ["2", "3"]


def test_what_cannot_be_removed_is_said_and_stays(tmp_path, monkeypatch):
    version(tmp_path, "1")

    def refuse(directory, name):
        raise tf.errors.PermissionDeniedError(None, None, "no")

    monkeypatch.setattr(versions, "_remove", refuse)
    with pytest.warns(UserWarning, match=r"old version '.*1' could not be removed"):
        path = export(tmp_path, keep=1)
    assert os.path.basename(path) == "2"
    assert names_in(tmp_path) == ["1", "2"]


def test_exports_at_the_same_time_leave_the_newest(tmp_path):
    """Each removes only what is before its own."""
    for name in ("1", "2", "3"):
        version(tmp_path, name)
    models, errors = [small() for _ in range(4)], []

    def work(model):
        try:
            export(tmp_path, model, keep=2)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert names_in(tmp_path) == ["6", "7"]


def test_an_older_export_that_ends_last_leaves_the_newer_alone(tmp_path):
    for name in ("1", "2", "3"):
        version(tmp_path, name)
    versions.prune(str(tmp_path / "2"), 1)
    assert names_in(tmp_path) == ["2", "3"]
    versions.prune(str(tmp_path / "1"), 1)  # it is gone, and nothing is before it
    assert names_in(tmp_path) == ["2", "3"]


# Class names -------------------------------------------------------------------------


def labels(path, name="labels.txt"):
    return (pathlib.Path(path) / "assets" / name).read_bytes().decode().split("\n")


def test_class_names_are_a_file_one_a_line(tmp_path):
    path = export(tmp_path, class_names=["größer", " b ", ""])
    assert labels(path) == ["größer", " b ", "", ""]
    assert names_in(f"{path}/assets") == ["labels.txt"]


def test_without_class_names_there_is_no_file(tmp_path):
    assert "assets" not in names_in(export(tmp_path)) or not names_in(
        tmp_path / "1" / "assets"
    )


def test_class_names_of_several_outputs_are_files_of_their_names(tmp_path):
    x = keras.Input((2,), name="x")
    dense = keras.layers.Dense
    outputs = {
        "kind": dense(3)(x),
        "a/b%": dense(1, activation="sigmoid")(x),
        "size": dense(1)(x),
    }
    path = export(
        tmp_path,
        keras.Model(x, outputs),
        class_names={"kind": list("abc"), "a/b%": ["no", "yes"]},
        output_kinds={"size": "values"},
    )
    assert names_in(f"{path}/assets") == ["a%2Fb%25_labels.txt", "kind_labels.txt"]
    assert labels(path, "kind_labels.txt") == ["a", "b", "c", ""]
    assert labels(path, "a%2Fb%25_labels.txt") == ["no", "yes", ""]


def test_class_names_of_a_list_of_outputs_go_by_their_index(tmp_path):
    x = keras.Input((2,), name="x")
    model = keras.Model(x, [keras.layers.Dense(n)(x) for n in (2, 3)])
    names = dict(zip(model.output_names, (["a", "b"], ["c", "d", "e"]), strict=True))
    path = export(tmp_path, model, class_names=names)
    assert labels(path, "1_labels.txt") == ["c", "d", "e", ""]


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\u2028"])
def test_a_name_with_a_line_break_is_refused(tmp_path, line_break):
    with pytest.raises(ValueError, match=r"class_names has .*, which has a line break"):
        export(tmp_path / "m", class_names=["a", f"b{line_break}c", "d"])
    with pytest.raises(ValueError, match="line break"):
        export(tmp_path / "m", class_names=["a", f"b{line_break}", "d"])
    assert not (tmp_path / "m").exists()


# Fixed batches -----------------------------------------------------------------------


def dense_of(activation=None, classes=3, layers=()):
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(classes, activation=activation), *layers]
    )


def ensemble(**given):
    generalist, *rest = (
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(n)]) for n in (6, 4, 4)
    )
    return kd.SpecialistEnsemble(generalist, rest, [[0, 1, 2], [3, 4, 5]], **given)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)


def several():
    x = keras.Input((4,))
    return keras.Model(x, [keras.layers.Dense(n)(x) for n in (1, 3)])


def mask():
    x = keras.Input((4,))
    pixels = keras.layers.Reshape((2, 2, 1))(x)
    return keras.Model(x, keras.layers.Conv2D(1, 1, activation="sigmoid")(pixels))


def reader():
    return keras.Sequential(
        [keras.layers.Embedding(9, 4, mask_zero=True), keras.layers.LSTM(3)]
    )


FIXED = {
    "classes": (dense_of, {}),
    "question": (lambda: dense_of("sigmoid", 1), {}),
    "question without an axis": (
        lambda: dense_of("sigmoid", 1, [keras.layers.Reshape(())]),
        {},
    ),
    "questions": (lambda: dense_of("sigmoid"), {"class_names": list("abc")}),
    "mask": (mask, {}),
    "several": (several, {"output_kinds": {0: "values"}}),
    "subclassed": (Subclassed, {"from_logits": True}),
    "ensemble": (ensemble, {}),
    "all specialists": (lambda: ensemble(n=None, routed=False), {}),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("name", "batch"),
    [*((name, 1) for name in FIXED), ("classes", 3), ("several", 3), ("ensemble", 3)],
)
def test_a_fixed_batch_is_served_as_the_model_answers_it(tmp_path, name, batch):
    make, given = FIXED[name]
    model, spec = make(), tf.TensorSpec([batch, 4], tf.float32, "x")
    path = export(tmp_path, model, input_signature=spec, **given)
    serve = tf.saved_model.load(path).signatures["serving_default"]
    assert all(s.shape[0] == batch for s in serve.structured_outputs.values())
    x = np.random.default_rng(0).normal(size=(batch, 4)).astype("float32")
    answers = [a.numpy() for a in serve(x=tf.constant(x)).values()]
    for output in tf.nest.flatten(model(x)):
        # As logits, probabilities or values.
        same = [
            a.shape == output.shape and np.allclose(a, output, atol=1e-5)
            for a in answers
            if a.dtype == np.float32
        ]
        assert sum(same) == 1


# Killed ------------------------------------------------------------------------------

EXPORT = """
import sys
import keras
import keras_distill as kd
from keras_distill.export import check
from tests.forking import answer_here

check.ask_fresh_process = answer_here  # what is killed is this process
print("begun", flush=True)
model = keras.Sequential([keras.Input((200,), name="x"), keras.layers.Dense(500)])
for _ in range(int(sys.argv[2])):
    kd.export_savedmodel(
        model,
        sys.argv[1],
        class_names=[f"class {n}" for n in range(500)],
        warmup=[[0.5] * 200],
        keep=2,
        output_kinds="softmax",
        verbose=False,
    )
"""
WHOLE = [
    "assets/labels.txt",
    "assets.extra/tf_serving_warmup_requests",
    "model_card.json",
    "model_card.md",
    "saved_model.pb",
    "variables/variables.data-00000-of-00001",
    "variables/variables.index",
]


class Reader(threading.Thread):
    """Looks at all versions, over and over, as a server does."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.folder, self.is_over, self.partial, self.looks = folder, False, [], 0

    def run(self):
        while not self.is_over:
            self.looks += 1
            for name in os.listdir(self.folder) if self.folder.exists() else []:
                if not name.isdigit():
                    continue
                path = self.folder / name
                missing = [file for file in WHOLE if not (path / file).is_file()]
                # What goes between two looks is gone as a whole.
                if missing and path.exists():
                    self.partial.append((name, missing))
            time.sleep(0.001)


@pytest.mark.slow
def test_killed_at_20_moments_no_reader_sees_a_partial_version(tmp_path):
    folder, moments = tmp_path / "m", random.Random(0)
    reader = Reader(folder)
    reader.start()
    killed, leftovers = 0, 0
    for _ in range(20):
        with Process(["-c", EXPORT, folder, "100"]) as process:
            wait_for(lambda: "begun" in process.stdout)
            time.sleep(moments.uniform(0.0, 2.5))
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        killed += process.returncode == -signal.SIGKILL
        if folder.exists():
            names = os.listdir(folder)
            leftovers += any(name.startswith(".writing-") for name in names)
    reader.is_over = True
    reader.join()
    assert reader.partial == []
    assert killed == 20
    # It was killed in the middle of things, and there were things to see.
    assert leftovers >= 5
    assert reader.looks > 1000
    there = sorted((n for n in os.listdir(folder) if n.isdigit()), key=int)
    x = np.ones((1, 200), "float32")
    for name in there:
        answer = savedmodel.Model(str(folder / name))({"x": x})
        assert answer["logits"].shape == (1, 500)
    assert 2 <= len(there) <= 3  # one more where it was killed before the removal
    path = export(folder, keep=2)
    assert sorted(os.listdir(folder), key=int) == [there[-1], os.path.basename(path)]
