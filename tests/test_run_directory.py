import multiprocessing
import os
import pathlib

import pytest
import tensorflow as tf

from keras_distill.run_directory import RunDirectory, write_text

LABELS = {"teacher": "the teacher", "inputs": "the fingerprint of the inputs"}


@pytest.fixture(params=["local", "local[*]?", "ram"])
def run(request, tmp_path):
    if request.param == "ram":
        path = f"ram://{tmp_path.name}"
    else:
        path = os.fspath(tmp_path / request.param)
    run = RunDirectory(path, "soft targets", LABELS)
    run.make()
    return run


def test_settings_are_written_once_and_compared(run):
    settings = {"shape": (2, 3), "teacher": {"kind": "model", "weights": "abc"}}
    assert not run.claim(settings)
    assert run.claim(settings)  # a tuple is a list on disk
    run.claim({"shape": [2, 3]})  # what is not asked about does not count
    changed = {"shape": (2, 4), "teacher": {"kind": "model", "weights": "xyz"}}
    with pytest.raises(ValueError, match="holds soft targets of another kind") as info:
        run.claim({**changed, "inputs": 1}, remedy="Choose another path.")
    for words in (
        "shape is [2, 3], not [2, 4]; ",
        "the teacher's weights differ (abc, not xyz); ",
        "the fingerprint of the inputs is None, not 1. Choose another path.",
    ):
        assert words in str(info.value)


def test_settings_within_settings_are_named():
    run = RunDirectory("there", "the search")
    found = {"targets": {"teacher": {"kind": "a"}, "seed": 1}}
    assert run.differences(
        found, {"targets": {"teacher": {"kind": "b"}, "seed": 2}}
    ) == ["targets' teacher's kind differs (a, not b)"]


def test_json_is_read_back_or_said_to_be_damaged(run):
    assert run.read_json("a.json") is None
    run.write_json("a.json", {"one": (1, None)})
    assert run.read_json("a.json") == {"one": [1, None]}
    run.write_text("b.json", '{"one": 1, "checksum": "0"}')
    run.write_text("c.json", "[")
    for name in ("b.json", "c.json"):
        with pytest.raises(ValueError, match=f"{name} is damaged; delete"):
            run.read_json(name)


def test_a_file_is_whole_or_not_there(run):
    run.write_text("a.txt", "first")

    def fail():
        with run.whole("a.txt") as path:
            assert path.endswith(".txt")
            write(path, "second")
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert names_in(run) == ["a.txt"]
    with run.whole("a.txt") as path:
        write(path, "third")
    assert names_in(run) == ["a.txt"]


def names_in(run):
    return [name.rstrip("/") for name in tf.io.gfile.listdir(run.path)]


def write(path, text):
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(text)


def test_what_killed_processes_left_is_removed_and_nothing_else(run):
    for name in (".tmp-1", ".tmp-2.weights.h5", "a.txt"):
        run.write_text(name, "x")
    run.remove_temporary()
    assert names_in(run) == ["a.txt"]
    run.remove("a.txt", "never-there")
    assert names_in(run) == []


def test_folders_are_removed_too(tmp_path):
    run = RunDirectory(os.fspath(tmp_path), "the search")
    (tmp_path / "trials" / "trial_0").mkdir(parents=True)
    run.remove("trials")
    assert not list(tmp_path.iterdir())


def test_errors_of_files_are_the_standard_ones(tmp_path):
    (tmp_path / "file").write_text("")
    run = RunDirectory(os.fspath(tmp_path / "file" / "below"), "specialists")
    with pytest.raises(OSError, match="specialists could not be written to .*below"):
        run.make()
    with pytest.raises(OSError, match="could not be written"):
        write_text(os.fspath(tmp_path / "missing" / "a.md"), "text")


def hold(path, part, ready, over):
    with RunDirectory(path, "the search").lock(part):
        ready.set()
        over.wait()


@pytest.mark.parametrize(
    ("theirs", "ours", "is_refused"),
    [
        (None, None, True),
        (None, (0, 2), True),
        ((0, 2), None, True),
        ((0, 2), (0, 2), True),
        ((0, 2), (1, 2), False),
    ],
)
def test_locks_are_of_processes_and_parts_share(tmp_path, theirs, ours, is_refused):
    context = multiprocessing.get_context("fork")
    ready, over = context.Event(), context.Event()
    arguments = (os.fspath(tmp_path), theirs, ready, over)
    process = context.Process(target=hold, args=arguments)
    process.start()
    try:
        assert ready.wait(10)
        run = RunDirectory(os.fspath(tmp_path), "the search")
        words = "another process is at work on the search in "
        if is_refused:
            with pytest.raises(BlockingIOError, match=words), run.lock(ours):
                pass
        else:
            with run.lock(ours):
                pass
        process.kill()  # the lock dies with it
        process.join()
        with run.lock(None):
            pass
    finally:
        process.kill()


def settle(path, go, began):
    go.wait()  # forked before there is a lock, which it would share
    began.set()
    with RunDirectory(path, "soft targets").settling():
        pathlib.Path(path, "log").write_text("settled")


def test_settling_waits_for_others(tmp_path):
    run = RunDirectory(os.fspath(tmp_path), "soft targets")
    context = multiprocessing.get_context("fork")
    go, began = context.Event(), context.Event()
    process = context.Process(target=settle, args=(run.path, go, began))
    process.start()
    with run.settling():
        go.set()
        assert began.wait(10)
        process.join(0.2)
        assert not run.has("log")
    process.join(10)
    assert run.has("log")
