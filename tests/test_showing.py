"""How the public objects show themselves, printed and in a notebook."""

import functools

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras import layers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import keras_distill as kd
from tests.conftest import mlp

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def said(distiller):
    """Returns what `summary` prints below Keras's own table."""
    lines = []
    distiller.summary(print_fn=lambda line, **_: lines.append(line))
    start = next(i for i, line in enumerate(lines) if line.startswith(" Student:"))
    return "\n".join(lines[start:])


def test_a_summary_says_what_is_distilled():
    student, teacher = mlp(width=2, name="small"), mlp(width=40, name="big")
    distiller = kd.Distiller(student, teacher, temperature=2.5, alpha=0.3)
    distiller.compile("adam", LOSS)
    ratio = teacher.count_params() / student.count_params()
    assert said(distiller) == (
        f" Student: small (Sequential, {student.count_params()} parameters)\n"
        f" Teacher: big (Sequential, {teacher.count_params()} parameters), {ratio:.3g} "
        "times the student's size\n"
        " Temperature: 2.5\n"
        " Alpha, the weight of the hard loss: 0.3\n"
        "\n"
        " Output  Kind     Hard loss                        Distillation loss\n"
        " ------  -------  -------------------------------  -----------------\n"
        " output  softmax  sparse_categorical_crossentropy  SoftTargetLoss()"
    )


def test_a_summary_has_a_row_for_each_output_and_the_features():
    def heads(width):
        inputs = keras.Input((4,))
        hidden = layers.Dense(width, name="hidden")(inputs)
        parts = {
            "kind": layers.Dense(3, "softmax")(hidden),
            "price": layers.Dense(1)(hidden),
        }
        return keras.Model(inputs, parts)  # fmt: skip

    distiller = kd.Distiller(
        heads(2),
        heads(3),
        features=0.1 * kd.FeatureLoss("hidden", "hidden", adapter="auto"),
    )
    distiller.compile("adam", {"kind": "sparse_categorical_crossentropy", "price": "mse"})  # fmt: skip
    lines = said(distiller).splitlines()
    assert lines[-3].split() == [
        "kind", "softmax", "sparse_categorical_crossentropy", "SoftTargetLoss()",
    ]  # fmt: skip
    assert lines[-2].split() == ["price", "values", "mse", "SquaredErrorLoss()"]
    assert lines[-1].startswith(" Features: 0.1 * FeatureLoss(student_layer_name='hidden'")  # fmt: skip


def test_a_summary_without_a_teacher_or_a_loss_says_so():
    schedule = keras.optimizers.schedules.ExponentialDecay(4.0, 10, 0.5)
    text = said(kd.Distiller(mlp(name="small"), temperature=schedule))
    assert " Teacher: none; batches bring soft targets" in text
    assert " Temperature: ExponentialDecay of the optimizer's step" in text
    assert text.splitlines()[-1].endswith("not known yet  -          by its kind")


def test_a_distiller_in_a_line():
    distiller = kd.Distiller(mlp(name="small"), lambda x: x, temperature=2.0, alpha=0.0)
    assert repr(distiller) == str(distiller)
    assert repr(distiller).startswith("<Distiller name=distiller, student=small (Sequ")
    assert repr(distiller).endswith("temperature=2, alpha=0>")


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (kd.SoftTargetLoss(), "SoftTargetLoss()"),
        (kd.RelationalLoss(), "RelationalLoss()"),
        (kd.SquaredErrorLoss(weight_by="box"), "SquaredErrorLoss(weight_by='box')"),
        (
            kd.SoftTargetLoss() + 0.5 * kd.LogitLoss(),
            "SoftTargetLoss() + 0.5 * LogitLoss()",
        ),
    ],
)
def test_a_loss_is_shown_as_it_is_written(loss, text):
    assert repr(loss) == text


@pytest.mark.parametrize(
    "name", [n for n in kd.__all__ if isinstance(getattr(kd, n), type)]
)
def test_no_public_class_is_shown_by_its_address(name):
    if issubclass(getattr(kd, name), keras.metrics.Metric | keras.losses.Loss):
        pytest.skip("shown as Keras shows its own")
    assert getattr(kd, name).__repr__ is not object.__repr__


def test_pictures_in_a_line():
    pictures = kd.callbacks.SoftTargetPictures(np.zeros((2, 4)), "a'b")
    assert repr(pictures) == '<SoftTargetPictures of 2 examples in "a\'b">'


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    x = np.random.default_rng(0).normal(size=(20, 8)).astype("float32")
    path = tmp_path_factory.mktemp("cache") / "a<b"
    return kd.SoftTargets.write(path, mlp(classes=5), x, top_k=2, verbose=False)


def test_soft_targets_show_what_they_hold(stored):
    assert repr(stored).endswith("each: top 2 of 5 logits as float16)")
    frame = stored.to_pandas()
    assert frame.loc["output"].to_dict() == {
        "kind": None, "shape": (5,), "cached": "top 2", "dtype": "float16",
    }  # fmt: skip
    html = stored._repr_html_()
    assert "a&lt;b" in html
    assert "a<b" not in html
    assert "<td>top 2</td>" in html


def test_joined_inputs_show_shapes_and_no_numbers(stored):
    x = np.random.default_rng(0).normal(size=(20, 8)).astype("float32")
    batch = next(iter(stored.join(x).batch(3)))
    assert repr(batch[0] if type(batch) is tuple else batch) == (
        "DistillationInputs(inputs=float32 (3, 8), "
        "soft_targets=TopKLogits(float32 (3, 2) and the rest))"
    )


def test_a_comparison_as_a_table(data):
    x, y = data
    found = kd.compare({"a<b": mlp(), "c": mlp(width=2)}, (x, y), timing=False)
    assert repr(found) == str(found)
    frame = found.to_pandas()
    assert list(frame.index) == ["a<b", "c"]
    assert frame.loc["c", "accuracy"] == found["c"].accuracy
    assert "latency_p50_ms" not in frame
    assert "<td>a&lt;b</td>" in found._repr_html_()
    assert repr(found["c"]).startswith("Evaluation(name='c', examples=")
    assert "None" not in repr(found["c"])


def test_a_report_on_specialists_as_a_table():
    report = kd.SpecialistReport(
        (kd.specialists.report.Share(1, 10, 5, 6),),
        (kd.specialists.report.Share(0, 10, 5, 6),),
    )
    assert repr(report) == str(report)
    frame = report.to_pandas()
    assert frame.loc[0].to_dict() == {
        "by": "coverage", "of": 1, "examples": 10, "generalist": 5, "ensemble": 6,
        "relative_change": pytest.approx(0.2),
    }  # fmt: skip
    assert "<td>+20.0%</td>" in report._repr_html_()


def test_tensorboard_draws_both_losses_both_scalars_and_the_agreement(data, tmp_path):
    x, y = data
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [4.0, 2.0])
    distiller = kd.Distiller(mlp(), mlp(width=9), temperature=schedule, alpha=0.25)
    distiller.compile("adam", LOSS, metrics=[kd.TeacherAgreement()])
    drawn = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    distiller.fit(x, y, batch_size=len(x), epochs=3, verbose=0, callbacks=[drawn])
    events = EventAccumulator(str(tmp_path / "train")).Reload()
    values = {
        name: [float(tf.make_ndarray(e.tensor_proto)) for e in events.Tensors(name)]
        for name in events.Tags()["tensors"]
    }
    assert values["epoch_temperature"] == [4.0, 4.0, 2.0]
    assert values["epoch_alpha"] == [0.25] * 3
    assert {"epoch_hard_loss", "epoch_soft_loss", "epoch_teacher_agreement"} <= set(values)  # fmt: skip


def test_history_has_what_is_scheduled_and_no_constants(data):
    x, y = data
    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 100, 0.5)
    distiller = kd.Distiller(mlp(), mlp(width=9), alpha=schedule)
    distiller.compile("adam", LOSS)
    history = distiller.fit(x, y, batch_size=len(x), epochs=2, verbose=0).history
    assert history["alpha"] == pytest.approx([1.0, 0.995])
    assert "temperature" not in history


def test_a_search_as_a_table(monkeypatch):
    found = object.__new__(kd.SearchResult)
    found.trials = pd.DataFrame(
        {"kind": ["hard labels", "<b>"], "status": "COMPLETED", "alpha": [1.0, 0.5],
         "val_accuracy": [0.25, 0.75]},
    )  # fmt: skip
    found.objective, found._is_max, found.best_values = "val_accuracy", True, {"alpha": 0.5}  # fmt: skip
    monkeypatch.setattr(kd.SearchResult, "__str__", lambda self: "2 trials <of>")
    html = found._repr_html_()
    assert "2 trials &lt;of&gt;" in html
    assert html.index("&lt;b&gt;") < html.index("hard labels")
    assert found.to_pandas() is not found.trials
    pd.testing.assert_frame_equal(found.to_pandas(), found.trials)


def test_what_is_empty_shows_itself_too():
    share = kd.specialists.report.Share
    report = kd.SpecialistReport((), (share(0, 0, 0, 0),))
    assert str(report).splitlines()[-1].split() == ["0", "0", "-", "-"]
    assert "<td>-</td>" in report._repr_html_()
    nothing = kd.SpecialistReport((), ())
    assert list(nothing.to_pandas()) == list(report.to_pandas())
    none = kd.Comparison(())
    assert (len(none.to_pandas()), none.to_json(), str(none)) == (
        0,
        "[]",
        "model\n-----",
    )
    assert "<th>model</th>" in none._repr_html_()


class Oracle:
    def __call__(self, x):
        return x

    answer = __call__


@pytest.mark.parametrize(
    ("teacher", "name"),
    [
        (lambda x: x, "<lambda>"),
        (Oracle(), "Oracle object"),
        (Oracle().answer, "Oracle.__call__"),
        (functools.partial(Oracle.answer, None), "partial of Oracle.__call__"),
        (tf.function(lambda x: x), "<lambda>"),
    ],
)
def test_a_callable_teacher_is_shown_by_its_name(teacher, name):
    assert repr(kd.as_teacher(teacher)) == f"<Teacher: callable {name}>"


def test_losses_of_keras_and_parts_of_a_teacher_are_shown_without_addresses():
    theirs = keras.distillation.LogitsDistillation(temperature=2.5)
    some = kd.as_teacher(mlp(width=9), classes=[2, 0])
    distiller = kd.Distiller(mlp(classes=2), some, distillation_loss=theirs)
    text = said(distiller)
    assert "LogitsDistillation(temperature=2.5, loss=kl_divergence)" in text
    assert ", 2 of its classes, " in text
    assert " at 0x" not in text


def test_an_unbuilt_model_has_no_feature_paths():
    model = keras.Sequential([layers.Dense(3)], name="new")
    with pytest.raises(
        ValueError, match="Sequential 'new' is not built, which does not"
    ):
        kd.feature_paths(model)
