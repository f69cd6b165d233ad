import warnings

import keras
import keras_tuner
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.metrics import NegativeLogLikelihood

from .conftest import CLASSES, FEATURES, SPARSE, mlp


def build(hp):
    return mlp(hp.Int("width", 4, 8))


def values_of(hypermodel):
    hp = keras_tuner.HyperParameters()
    distiller = hypermodel.build(hp)
    return distiller, hp


def space(hypermodel):
    _, hp = values_of(hypermodel)
    return {one.name: one for one in hp.space}


def test_temperature_is_searched_by_its_logarithm_and_alpha_is_not():
    found = space(kd.DistillationHyperModel(build))
    t, alpha = found["temperature"], found["alpha"]
    assert (t.min_value, t.max_value, t.sampling) == (1.0, 20.0, "log")
    assert (alpha.min_value, alpha.max_value, alpha.sampling) == (0.0, 1.0, "linear")
    assert (t.default, alpha.default) == (4.0, 0.1)
    assert list(found) == ["temperature", "alpha", "width"]


def test_ranges_choices_and_fixed_values():
    found = space(
        kd.DistillationHyperModel(
            build, temperature=(2, 8, "linear"), alpha=(0.01, 1.0, "log")
        )
    )
    assert found["temperature"].sampling == "linear"
    assert found["alpha"].sampling == "log"
    found = space(kd.DistillationHyperModel(build, temperature=[1, 5], alpha=0.3))
    assert found["temperature"].values == [1.0, 5.0]
    assert isinstance(found["alpha"], keras_tuner.engine.hyperparameters.Fixed)
    assert found["alpha"].value == 0.3


def test_the_trial_s_values_reach_the_distiller():
    hp = keras_tuner.HyperParameters()
    hypermodel = kd.DistillationHyperModel(build)
    hypermodel.build(hp)
    hp.values.update(temperature=7.0, alpha=0.25, width=5)
    distiller = hypermodel.build(hp)
    assert (distiller.temperature, distiller.alpha) == (7.0, 0.25)
    assert distiller.student.get_layer("hidden").units == 5


def test_weights_of_the_objective_are_searched():
    matching = [
        (1.0, kd.SoftTargetLoss()),
        ((0.01, 10.0, "log"), kd.LogitLoss()),
        (2.0, kd.LogitLoss()),
    ]
    hypermodel = kd.DistillationHyperModel(build, distillation_loss=matching)
    _, hp = values_of(hypermodel)
    names = [name for name in hp.values if "_weight" in name]
    assert names == [
        "soft_target_loss_weight",
        "logit_loss_weight",
        "logit_loss_weight_2",
    ]
    hp.values["logit_loss_weight"] = 0.5
    weights = [weight for weight, _ in hypermodel.build(hp).distillation_loss.terms]
    assert weights == [1.0, 0.5, 2.0]


def test_every_trial_has_an_objective_of_its_own():
    objective = kd.FeatureLoss("hidden", "hidden", adapter="auto")
    hypermodel = kd.DistillationHyperModel(
        build, mlp(16), distillation_loss=[(1.0, objective)]
    )
    one, _ = values_of(hypermodel)
    other, _ = values_of(hypermodel)
    assert one.distillation_loss.terms[0][1] is not other.distillation_loss.terms[0][1]
    assert one.distillation_loss.terms[0][1] is not objective


def test_objective_as_a_function_of_the_hyperparameters():
    hypermodel = kd.DistillationHyperModel(
        build,
        distillation_loss=lambda hp: hp.Choice("mix", [0.5, 2.0]) * kd.SoftTargetLoss(),
    )
    distiller, hp = values_of(hypermodel)
    assert hp.values["mix"] == distiller.distillation_loss.terms[0][0] == 0.5


def test_a_compiled_student_brings_its_optimizer_loss_and_metrics():
    def compiled(hp):
        model = mlp(4)
        model.compile(
            keras.optimizers.SGD(hp.Float("rate", 0.01, 0.1)),
            SPARSE,
            metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")],
        )
        return model

    distiller, _ = values_of(kd.DistillationHyperModel(compiled))
    assert isinstance(distiller.optimizer, keras.optimizers.SGD)
    assert float(distiller.optimizer.learning_rate) == pytest.approx(0.01)
    assert distiller.loss is SPARSE
    x = np.zeros((4, FEATURES), "float32")
    judged = distiller.evaluate(x, np.zeros(4), verbose=0, return_dict=True)
    assert {"accuracy", "top2", "nll"} <= set(judged)


def test_a_softmax_student_gets_a_loss_that_fits():
    distiller, _ = values_of(
        kd.DistillationHyperModel(lambda hp: mlp(4, activation="softmax"))
    )
    assert distiller.loss.from_logits is False


def test_policy_outlives_keras_tuner_s_clearing_of_the_session():
    keras.config.set_dtype_policy("mixed_bfloat16")
    hypermodel = kd.DistillationHyperModel(build)
    keras.utils.clear_session()
    distiller, _ = values_of(hypermodel)
    assert distiller.student.layers[0].dtype_policy.name == "mixed_bfloat16"


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_nll_is_that_of_the_labels(one_hot, activation):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(6, CLASSES)), rng.integers(CLASSES, size=6)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    metric = NegativeLogLikelihood(from_logits=activation is None)
    labels = np.eye(CLASSES)[y] if one_hot else y
    metric.update_state(labels, z if activation is None else p)
    expected = -np.log(p[np.arange(6), y]).mean()
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)
    assert NegativeLogLikelihood.from_config(metric.get_config()).name == "nll"


def test_nll_leaves_ignored_labels_out():
    metric = NegativeLogLikelihood(ignore_class=-1)
    metric.update_state([-1, 0], [[0.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
    assert float(metric.result()) == pytest.approx(np.log(3), rel=1e-6)


def test_optimizers_of_every_kind():
    given = keras.optimizers.SGD(0.5)
    for optimizer in (given, keras.optimizers.SGD, "sgd", lambda hp: given):
        hypermodel = kd.DistillationHyperModel(build, optimizer=optimizer)
        distiller, _ = values_of(hypermodel)
        assert isinstance(distiller.optimizer, keras.optimizers.SGD)
        assert callable(optimizer) or distiller.optimizer is not given


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"temperature": (0, 5)}, "temperature must be a finite number > 0"),
        ({"temperature": (5, 2)}, "temperature is a range from 5 down to 2"),
        ({"alpha": (0.0, 1.5)}, "alpha must be a number from 0 to 1"),
        ({"alpha": (0.0, 1.0, "log")}, "so it must begin above 0"),
        ({"alpha": (0.1, 0.2, 0.3)}, "a range (low, high) or"),
        ({"alpha": []}, "alpha is an empty list"),
        ({"temperature": "warm"}, "temperature must be"),
        (
            {"distillation_loss": [((-1, 2), kd.SoftTargetLoss())]},
            "a weight of distillation_loss must be finite numbers >= 0",
        ),
    ],
)
def test_wrong_ranges_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        kd.DistillationHyperModel(build, **kwargs)


def test_wrong_students_are_refused():
    with pytest.raises(TypeError, match="build_student must be a function"):
        kd.DistillationHyperModel(mlp())
    with pytest.raises(TypeError, match="does it end with a return statement"):
        kd.DistillationHyperModel(lambda hp: None).build(keras_tuner.HyperParameters())


class OwnTuner(keras_tuner.Tuner):
    def run_trial(self, trial, x, y):
        distiller = self.hypermodel.build(trial.hyperparameters)
        distiller.fit(x, y, verbose=0)
        return distiller.evaluate(x, y, verbose=0, return_dict=True)["nll"]


@pytest.mark.slow
def test_works_with_every_tuner_of_keras_tuner(tmp_path, data):
    def compiled(hp):
        model = mlp(hp.Int("width", 4, 8))
        model.compile("adam", SPARSE, metrics=["accuracy"], run_eagerly=True)
        return model

    hypermodel = kd.DistillationHyperModel(compiled, mlp(16), alpha=[0.1, 0.5, 1.0])
    objective = keras_tuner.Objective("val_accuracy", "max")
    for kind, settings in (
        (keras_tuner.RandomSearch, {"max_trials": 2}),
        (keras_tuner.GridSearch, {"max_trials": 2}),
        (keras_tuner.BayesianOptimization, {"max_trials": 3, "num_initial_points": 2}),
        (keras_tuner.Hyperband, {"max_epochs": 2}),
    ):
        tuner = kind(
            hypermodel, objective=objective, directory=tmp_path,
            project_name=kind.__name__, **settings,
        )  # fmt: skip
        tuner.search(*data, validation_data=data, epochs=2, verbose=0)
        (best,) = tuner.oracle.get_best_trials()
        assert best.status == "COMPLETED"
        judged = tuner.get_best_models()[0].evaluate(*data, verbose=0, return_dict=True)
        assert judged["accuracy"] == pytest.approx(best.score)
    oracle = keras_tuner.oracles.RandomSearchOracle(
        objective=keras_tuner.Objective("default_objective", "min"), max_trials=2
    )
    tuner = OwnTuner(
        oracle=oracle, hypermodel=hypermodel, directory=tmp_path, project_name="own"
    )
    tuner.search(*data)
    assert [t.status for t in oracle.trials.values()] == ["COMPLETED"] * 2


@pytest.mark.slow
def test_filled_hyperparameters_are_a_trial_of_this_very_space(tmp_path, data):
    """As of a search reopened in a new process, whose hypermodel has built nothing."""

    def compiled(hp):
        model = mlp(hp.Int("width", 4, 8))
        model.compile("adam", SPARSE, run_eagerly=True)
        return model

    def new():
        losses = [(1.0, kd.SoftTargetLoss()), ((0.1, 1.0), kd.LogitLoss())]
        return kd.DistillationHyperModel(compiled, mlp(16), distillation_loss=losses)

    _, hp = values_of(new())
    hp.values.update(temperature=7.0, width=5)
    distiller = new().build(hp)
    assert distiller.temperature == 7.0
    assert distiller.student.get_layer("hidden").units == 5

    def tuner(**kwargs):
        return keras_tuner.RandomSearch(
            new(), objective=keras_tuner.Objective("val_nll", "min"), max_trials=2,
            directory=tmp_path, project_name="one", **kwargs,
        )  # fmt: skip

    first = tuner(hyperparameters=hp)
    first.search(*data, validation_data=data, epochs=1, verbose=0)
    again = tuner()
    judged = again.get_best_models()[0].evaluate(*data, verbose=0, return_dict=True)
    assert judged["nll"] == pytest.approx(again.oracle.get_best_trials()[0].score)


def test_a_name_that_is_taken_is_refused_in_filled_hyperparameters_too():
    hypermodel = kd.DistillationHyperModel(lambda hp: mlp(hp.Int("alpha", 1, 2)))
    hp = keras_tuner.HyperParameters()
    hp.Fixed("alpha", 1)
    with pytest.raises(ValueError, match="'alpha', a name that is taken"):
        hypermodel.build(hp)


class BuiltByData(keras.Model):
    outputs_are_logits = True

    def __init__(self, width):
        super().__init__()
        self.hidden = keras.layers.Dense(width, "relu")
        self.out = keras.layers.Dense(CLASSES)

    def call(self, x):
        return self.out(self.hidden(x["x"]))


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["subclassed", "without Input"])
def test_the_best_models_of_a_tuner_are_those_it_scored(kind, data, tmp_path):
    x, y = data
    if kind == "subclassed":
        x = {"x": x}

    def build(hp):
        width = hp.Int("width", 4, 8)
        if kind == "subclassed":
            return BuiltByData(width)
        layers = [keras.layers.Dense(width, "relu"), keras.layers.Dense(CLASSES)]
        return keras.Sequential(layers)

    def tuner():
        return keras_tuner.RandomSearch(
            kd.DistillationHyperModel(
                build, (lambda x: 0 * x["x"][:, :CLASSES]) if kind == "subclassed"
                else mlp(8), temperature=4.0, alpha=0.5, loss=SPARSE,
            ),
            objective=keras_tuner.Objective("val_accuracy", "max"),
            max_trials=2, seed=1, directory=tmp_path, overwrite=False,
        )  # fmt: skip

    first = tuner()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the layers of the teacher do not say")
        first.search(x, y, epochs=1, validation_data=(x, y), verbose=0)
    for one in (first, tuner()):  # the second in a process of its own, as it were
        scores = [trial.score for trial in one.oracle.get_best_trials(2)]
        models = one.get_best_models(2)
        found = [m.evaluate(x, y, verbose=0, return_dict=True) for m in models]
        assert [f["accuracy"] for f in found] == pytest.approx(scores)
