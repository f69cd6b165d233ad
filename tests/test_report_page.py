"""The page of a distillation's results, and what it says to do next."""

import html.parser
import shlex

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
    command = ["keras-distill", "distill", "my teacher.keras", "d", "cnn:8"]
    for trials in (None, 20):
        steps = next_steps.after_distill("o u t", ["o u t/s"], command, trials)
        assert len(steps) == 3
        for (_, words), line in zip(
            steps, next_steps.as_lines(steps).splitlines(), strict=True
        ):
            assert shlex.split(line.partition(":")[2]) == words
    assert "tensorboard" in next_steps.as_lines(steps)


def test_without_an_export_the_next_step_is_to_make_one():
    steps = next_steps.after_distill("out", [], ["keras-distill", "distill"], None)
    assert steps[0][1][:3] == ["keras-distill", "export", "out/student.keras"]
