"""The page of a distillation's results, and what it says to do next."""

import html.parser
import shlex

import pytest

import keras_distill as kd
from keras_distill.commands import next_steps, report


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_report_escapes_names():
    evil = "<script>alert(1)</script> & 'x'"
    row = kd.Evaluation(evil, 10, 5, 200, accuracy=0.9)
    smaller = kd.Evaluation("student", 10, 5, 50, accuracy=0.8)
    page = report.page(
        report.Results(
            title=evil,
            comparison=kd.Comparison((row, smaller)),
            pictures={},
            captions={},
            settings={evil: evil},
            files=[(evil, "1 kB")],
            exported=evil,
            refused={evil: evil},
            next_steps=[("x", ["keras-distill", evil])],
            class_names=[evil] * 40,
        )
    )
    assert "<script>" not in page
    assert Page(page).text.count(evil) > 30
    assert "and 10 more" in page
    assert "a quarter" in page


def test_the_next_steps_can_be_typed_whatever_the_names():
    command = ["keras-distill", "distill", "my teacher.keras", "my data", "cnn:8"]
    for trials in (None, 20):
        steps = next_steps.after_distill("o u t", ["o u t/s"], command, trials)
        assert len(steps) == 3
        for (_, words), line in zip(
            steps, next_steps.as_lines(steps).splitlines(), strict=True
        ):
            assert shlex.split(line.partition(":")[2]) == words
    assert "tensorboard" in next_steps.as_lines(steps)


def test_without_an_export_the_next_step_is_to_make_one():
    command = ["keras-distill", "distill", "t.keras", "d", "m:build"]
    steps = next_steps.after_distill("out", [], command, None)
    assert steps[0][1][:3] == ["keras-distill", "export", "out/student.keras"]


def test_what_is_for_phones_is_the_student_that_was_exported():
    pytest.importorskip("ai_edge_litert")
    command = ["keras-distill", "distill", "t.keras", "d", "cnn:8,16", "--image-size", "9", "9"]  # fmt: skip
    steps = next_steps.after_distill(
        "out", ["out/s/1"], command, None, best="baseline", is_teacher_worse=True
    )
    words = dict(steps)["for phones, weights of 8 bits"]
    assert words[2] == "out/baseline.keras"
    assert words[-5:] == ["--class-names", "d", "--image-size", "9", "9"]
    # No temperature helps where the teacher knows less than the student.
    words = dict(steps)["first, a better teacher"]
    assert words[:5] == ["keras-distill", "teach", "d", "cnn:64,128", "--image-size"]
    assert "a better T and alpha" not in dict(steps)


def test_a_teacher_that_is_worse_than_labels_alone_is_said_to_be():
    def of(*accuracies):
        names = ("teacher", "student, distilled", "student, hard labels")
        rows = [
            kd.Evaluation(name, 10, 5, 50, accuracy=accuracy)
            for name, accuracy in zip(names, accuracies, strict=False)
        ]
        return report.summary(kd.Comparison(tuple(rows)))

    assert "The teacher is worse" in of(0.41, 0.39, 0.66)
    assert "The teacher is worse" not in of(0.9, 0.8, 0.7)
    assert "labels" not in of(0.9, 0.8)
