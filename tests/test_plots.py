import subprocess
import sys
import types

import keras
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.special import softmax
from sklearn.metrics import r2_score, roc_auc_score, roc_curve

from keras_distill import plots


def saved(figure, tmp_path):
    assert isinstance(figure, Figure)
    path = tmp_path / "figure.png"
    figure.savefig(path)
    assert path.stat().st_size > 5000
    return figure


def test_temperature_curves_flatten(tmp_path):
    temperatures = (1.0, 5.0, 20.0)
    (axes,) = saved(plots.temperature_curves(temperatures), tmp_path).axes
    curves = [line.get_ydata() for line in axes.lines[:3]]
    logits = axes.lines[0].get_xdata()
    assert logits.min() >= -10
    assert logits.max() <= 10
    for temperature, curve in zip(temperatures, curves, strict=True):
        np.testing.assert_allclose(curve, softmax(logits / temperature))
    spreads = [np.ptp(curve) for curve in curves]
    assert spreads == sorted(spreads, reverse=True)
    saved(plots.temperature_curves(temperatures, log_scale=True), tmp_path)


def test_soft_targets_are_the_tempered_softmax(tmp_path):
    z = [2.0, 7.0, 10.0]
    figure = plots.soft_targets(z, (1, 5), image=np.zeros((8, 8, 1)), label=2)
    saved(figure, tmp_path)
    _, one, five = figure.axes
    widths = [bar.get_width() for bar in five.patches]
    np.testing.assert_allclose(widths, [0.11532, 0.31348, 0.57120], atol=5e-6)
    assert one.get_title() == "T = 1"


def test_soft_targets_of_models_side_by_side(tmp_path):
    z = {"teacher": [2.0, 7.0, 10.0], "student": [0.0, 0.0, 0.0]}
    figure = plots.soft_targets(z, (5,), label=2)
    teacher, student = saved(figure, tmp_path).axes
    assert teacher.get_title() == "teacher, T = 5"
    assert student.get_title() == "student, T = 5"
    assert [bar.get_width() for bar in student.patches] == pytest.approx([1 / 3] * 3)
    assert teacher.patches[2].get_width() == pytest.approx(0.57120, abs=5e-6)


def test_classes_of_one_name_have_a_bar_each():
    names = np.array(["cat", "crane", "crane"])
    _, axes = plots.soft_targets([2.0, 7.0, 10.0], class_names=names, label=2).axes[:2]
    assert [bar.get_y() for bar in axes.patches] == [-0.4, 0.6, 1.6]
    assert axes.patches[1].get_facecolor() != axes.patches[2].get_facecolor()


def test_numbers_of_any_kind_are_drawn(tmp_path):
    z = np.arange(3, dtype="float16")
    image = np.ones((8, 8), bool)
    figure = plots.soft_targets(
        z, np.array([1, 4], "int64"), image=image, label=np.int64(1)
    )
    saved(figure, tmp_path)
    plots.soft_targets(keras.ops.cast(z, "bfloat16"), [np.float32(2.0)])
    plots.temperature_curves(
        np.float32([1, 2]), classes=np.int64(5), low=np.float16(-1)
    )


def test_names_are_drawn_as_they_stand(tmp_path):
    names = ["$x_1$", "a_b", "$\\frac"]
    figure = plots.soft_targets([2.0, 7.0, 10.0], [1.0], class_names=names, label=2)
    saved(figure, tmp_path)
    labels = figure.axes[0].get_yticklabels()
    assert not any(is_math for _, is_math in map(drawn, labels))
    assert [text for text, _ in map(drawn, labels)] == names
    figure = plots.class_covariance(np.eye(3), [[0, 1]], class_names=names)
    labels = figure.axes[0].get_xticklabels()
    assert drawn(labels[0]) == ("$x 1$", False)
    curves = plots.training_curves({"_student": {"loss": [1.0]}}, "loss")
    (axes,) = saved(curves, tmp_path).axes
    assert len(axes.get_legend().texts) == 1


def test_a_trial_without_a_number_was_not_completed():
    trials = a_search()
    trials.loc[3, "val_accuracy"] = np.nan
    figure = plots.parallel_coordinates(trials, ["alpha"])
    assert figure.axes[0].get_title() == "10 trials, the best in orange"


def drawn(label):
    """Returns what is drawn of a text, and whether as a formula."""
    return label._preprocess_math(label.get_text())


def test_a_diverged_loss_is_drawn():
    (axes,) = plots.training_curves({"a": {"loss": [1.0, np.nan, np.inf]}}, "loss").axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1.0, np.nan, np.inf])


def test_bins_have_their_own_widths():
    figure = plots.reliability_diagram([0.8, 1.0], [0.4, 0.7], [0.4, 0.9], [0.5, 0.5])
    spans = [(bar.get_x(), bar.get_width()) for bar in figure.axes[0].patches]
    np.testing.assert_allclose(spans, [(0.04, 0.72), (0.81, 0.18)])


def test_training_curves(tmp_path):
    histories = {"a": {"val_accuracy": [0.1, 0.5]}, "b": {"val_accuracy": [0.2, 0.6]}}
    (axes,) = saved(plots.training_curves(histories), tmp_path).axes
    assert [text.get_text() for text in axes.get_legend().texts] == [
        "a (last 0.5)",
        "b (last 0.6)",
    ]
    with pytest.raises(KeyError, match="no history has 'loss'; there are val_accuracy"):
        plots.training_curves(histories, "loss")


def test_reliability_diagram_says_the_error(tmp_path):
    figure = plots.reliability_diagram([0.5, 1.0], [0.4, 0.7], [0.4, 0.9], [0.5, 0.5])
    saved(figure, tmp_path)
    assert figure.axes[0].get_title() == "Reliability of model: ECE 10.00%"


def test_reliability_of_yes_or_no_says_what_is_drawn(tmp_path):
    bins = [0.5, 1.0], [0.1, 0.7], [0.2, 0.9], [0.5, 0.5]
    figure = saved(plots.reliability_diagram(*bins, kind="sigmoid"), tmp_path)
    top, bottom = figure.axes
    assert top.get_ylabel() == "share of yes in the bin"
    assert bottom.get_xlabel() == "probability of a yes"


def test_roc_curves_are_those_of_scikit_learn(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=300)
    good, poor = y + rng.normal(size=300), rng.integers(5, size=(300, 1))
    figure = saved(plots.roc_curves({"good": good, "poor": poor}, y), tmp_path)
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.get_legend().texts]
    for line, text, score in zip(axes.lines, texts, (good, poor), strict=False):
        wrong, right, _ = roc_curve(y, score, drop_intermediate=False)
        np.testing.assert_allclose(line.get_xdata(), wrong)
        np.testing.assert_allclose(line.get_ydata(), right)
        assert text.endswith(f"(AUC {roc_auc_score(y, score):.4f})")
    by_question = plots.roc_curves({"a": good, "b": -good}, {"a": y == 1, "b": y == 0})
    first, second = by_question.axes[0].get_legend().texts[:2]
    assert first.get_text()[1:] == second.get_text()[1:]


def test_predicted_against_true_says_how_far_it_is(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.normal(size=(6000, 2))
    s = y + 0.3 * rng.normal(size=y.shape)
    figure = plots.predicted_against_true(y, s, value_names=["x", "y"], name="student")
    (axes,) = saved(figure, tmp_path).axes
    r2, error = r2_score(y, s), np.abs(y - s).mean()
    wanted = f"student: R2 {r2:.4f}, mean absolute error {error:.4g}"
    assert axes.get_title() == wanted
    assert [len(one.get_offsets()) for one in axes.collections] == [5000, 5000]
    assert axes.get_xlim() == axes.get_ylim()
    one = plots.predicted_against_true(y[:9, 0], s[:9, :1])
    np.testing.assert_allclose(
        one.axes[0].collections[0].get_offsets(), np.stack([y[:9, 0], s[:9, 0]], 1)
    )


def test_size_against_accuracy(tmp_path):
    models = [
        types.SimpleNamespace(name=n, parameters=p, accuracy=a)
        for n, p, a in (("big", 1_000_000, 0.99), ("small", 1000, 0.95))
    ]
    (axes,) = saved(plots.size_against_accuracy(models), tmp_path).axes
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.texts] == ["big\n99.00 %", "small\n95.00 %"]


def test_names_of_models_of_one_size_are_not_written_over_each_other(tmp_path):
    models = [
        types.SimpleNamespace(
            name=f"student, {n}", parameters=None, file_bytes=int(b), accuracy=0.94
        )
        for n, b in (
            ("LiteRT", 4e5),
            ("ONNX", 4.02e5),
            ("Keras", 4.04e5),
            ("int8", 3e5),
        )
    ]
    figure = saved(plots.size_against_accuracy(models), tmp_path)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "size on disk, MB (log scale)"
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == 4
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[:i])


def test_plots_import_no_tensorflow():
    code = (
        "import sys, types\n"
        "package = types.ModuleType('keras_distill')\n"
        f"package.__path__ = {list(plots.__spec__.parent and __import__('keras_distill').__path__)!r}\n"
        "sys.modules['keras_distill'] = package\n"
        "import keras_distill.plots\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_speeds_are_a_line_for_each_export_and_number_of_threads(tmp_path):
    rows = [
        {
            "export": export,
            "batch_size": size,
            "threads": threads,
            "p50_ms": size / threads,
            "p99_ms": 1.5 * size / threads,
            "examples_per_second": 1e3 * threads,
        }
        for export in ("_a", "b")
        for threads in (2, 1)
        for size in (64, 1, 8)
    ]
    rows = [row for row in rows if row["export"] == "b" or row["batch_size"] == 8]
    figure = saved(plots.latency_and_throughput(rows), tmp_path)
    left, right = figure.axes
    lines = [(list(n.get_xdata()), list(n.get_ydata())) for n in right.lines]
    assert lines == [
        ([8], [1e3]),
        ([8], [2e3]),
        ([1, 8, 64], [1e3] * 3),
        ([1, 8, 64], [2e3] * 3),
    ]
    bars = left.containers[2].lines
    assert list(bars[0].get_ydata()) == [1, 8, 64]
    whiskers = [segment[:, 1].tolist() for segment in bars[2][0].get_segments()]
    assert whiskers == [[1, 1.5], [8, 12], [64, 96]]
    (legend,) = figure.legends
    names = [one.get_text() for one in legend.get_texts()]
    assert names == [" _a, 1 thread", " _a, 2 threads", "b, 1 thread", "b, 2 threads"]


def test_class_covariance_is_drawn_in_the_order_of_clusters(tmp_path):
    covariance = np.diag([4.0, 1.0, 1.0, 9.0])
    covariance[0, 3] = covariance[3, 0] = 3.0
    figure = saved(
        plots.class_covariance(covariance, [[0, 3], [1, 2]], class_names=list("abcd")),
        tmp_path,
    )
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == list("adbc")
    shown = axes.images[0].get_array()
    assert shown[0, 1] == pytest.approx(0.5)  # 3 / (2 * 3)
    assert shown[0, 2] == 0
    assert [(p.get_xy(), p.get_width()) for p in axes.patches] == [
        ((-0.5, -0.5), 2),
        ((1.5, 1.5), 2),
    ]


def share(of, examples, generalist, ensemble):
    return types.SimpleNamespace(
        of=of, examples=examples, generalist=generalist, ensemble=ensemble
    )


def test_accuracy_before_and_after(tmp_path):
    shares = [share(0, 200, 100, 90), share(1, 100, 40, 60)]
    for figure in (
        plots.accuracy_by_coverage(shares),
        plots.accuracy_by_cluster(shares, [[0, 1], [2, 3]], class_names=list("abcd")),
    ):
        (axes,) = saved(figure, tmp_path).axes
        heights = [bar.get_height() for bar in axes.patches]
        assert heights == [50.0, 40.0, 45.0, 60.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a\nb", "c\nd"]


def test_training_by_worker(tmp_path):
    records = [
        {"specialist": 0, "worker": "a:1", "began": 10.0, "ended": 16.0},
        {"specialist": 1, "worker": "a:2", "began": 10.0, "ended": 14.0},
        {"specialist": 2, "worker": "a:2", "began": 14.0, "ended": 20.0},
    ]
    (axes,) = saved(plots.training_by_worker(records), tmp_path).axes
    spans = [(bar.get_x(), bar.get_width(), bar.get_y()) for bar in axes.patches]
    assert [span[:2] for span in spans] == [(0, 6), (0, 4), (4, 6)]
    assert axes.get_title() == "3 specialists: 16 s of training in 10 s"


def a_search(failed=False):
    rng = np.random.default_rng(0)
    t, alpha = np.exp(rng.uniform(0, 3, 12)), rng.uniform(0, 1, 12)
    t[:2], alpha[:2] = 4.0, (1.0, 0.1)
    score = 0.9 - 0.02 * (np.log(t) - 1) ** 2 - 0.01 * (alpha - 0.3) ** 2
    return pd.DataFrame(
        {
            "kind": ["hard labels", "T = 4, alpha = 0.1", *["searched"] * 10],
            "status": ["COMPLETED"] * 11 + ["FAILED"],
            "temperature": t,
            "alpha": alpha,
            "norm": ["batch", "layer"] * 6,
            "val_accuracy": np.append(score[:11], np.nan),
            "began": np.arange(12.0),
            "seconds": 1.0,
        }
    )


def test_search_plane_shows_each_completed_trial_and_the_best(tmp_path):
    trials = a_search()
    axes = saved(plots.search_plane(trials), tmp_path).axes[0]
    shown = np.concatenate([p.get_offsets() for p in axes.collections[1:4]])
    assert np.sort(np.asarray(shown[:, 0])) == pytest.approx(
        np.sort(trials["temperature"][:11])
    )
    best = trials["val_accuracy"].idxmax()
    (circled,) = axes.collections[4].get_offsets()
    expected = trials.loc[best, ["temperature", "alpha"]].to_numpy("float64")
    np.testing.assert_allclose(np.asarray(circled), expected)
    # The surface is near the points that it was fitted to.
    surface = axes.collections[0]
    mesh = surface.get_coordinates().reshape(-1, 2)
    value = surface.get_array().reshape(-1)
    for t, alpha, score in trials.loc[
        2:10, ["temperature", "alpha", "val_accuracy"]
    ].values:
        nearest = np.argmin((np.log(mesh[:, 0] / t)) ** 2 + (mesh[:, 1] - alpha) ** 2)
        assert value[nearest] == pytest.approx(score, abs=0.01)


def test_parallel_coordinates_end_at_the_result(tmp_path):
    trials = a_search()
    figure = plots.parallel_coordinates(trials, ["temperature", "alpha", "norm"])
    lines = [
        li for li in saved(figure, tmp_path).axes[0].lines if len(li.get_xdata()) == 4
    ]
    assert len(lines) == 11
    ends = np.array([line.get_ydata()[-1] for line in lines])
    assert (ends.min(), ends.max()) == (0.0, 1.0)
    (best,) = [line for line in lines if line.get_label() == "best"]
    assert best.get_ydata()[-1] == 1.0
    assert best.get_ydata()[2] in (0.0, 1.0)  # one of two texts


def test_best_so_far_only_rises_and_hard_labels_are_a_line(tmp_path):
    trials = a_search()
    axes = saved(plots.best_so_far(trials), tmp_path).axes[0]
    best = axes.lines[0].get_ydata()
    assert (np.diff(best) >= 0).all()
    assert best[-1] == trials["val_accuracy"].max()
    assert axes.lines[1].get_ydata()[0] == trials["val_accuracy"][0]
    falling = trials.assign(val_nll=1 - trials["val_accuracy"])
    axes = plots.best_so_far(falling, objective="val_nll", is_max=False).axes[0]
    assert (np.diff(axes.lines[0].get_ydata()) <= 0).all()
    with pytest.raises(ValueError, match="no trial was completed"):
        plots.best_so_far(trials[11:])
