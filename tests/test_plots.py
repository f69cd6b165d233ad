import subprocess
import sys
import types

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.special import softmax

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
    with pytest.raises(ValueError, match="temperatures must be > 0, got 0"):
        plots.temperature_curves((0, 1))


def test_soft_targets_are_the_tempered_softmax(tmp_path):
    z = [2.0, 7.0, 10.0]
    figure = plots.soft_targets(z, (1, 5), image=np.zeros((8, 8, 1)), label=2)
    saved(figure, tmp_path)
    _, one, five = figure.axes
    widths = [bar.get_width() for bar in five.patches]
    np.testing.assert_allclose(widths, [0.11532, 0.31348, 0.57120], atol=5e-6)
    assert one.get_title() == "T = 1"


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


def test_size_against_accuracy(tmp_path):
    models = [
        types.SimpleNamespace(name=n, parameters=p, accuracy=a)
        for n, p, a in (("big", 1_000_000, 0.99), ("small", 1000, 0.95))
    ]
    (axes,) = saved(plots.size_against_accuracy(models), tmp_path).axes
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.texts] == ["big\n99.00 %", "small\n95.00 %"]


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
