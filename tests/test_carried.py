"""No weight goes from one trial to the next, whoever runs the trials."""

import keras
import keras_tuner
import numpy as np
import pytest

import keras_distill as kd

from .conftest import CLASSES, FEATURES, SPARSE, mlp
from .test_search import search, targets  # noqa: F401 - fixtures

AGAIN = "build_student returns the same model .* from trial to trial"
SHARED = "whose layer 'trunk' an earlier trial's has too"


def compiled(model):
    model.compile("adam", SPARSE, run_eagerly=True)
    return model


def on(trunk, trainable=True):
    """A student that stands on a common layer or model."""
    trunk.trainable = trainable
    return compiled(
        keras.Sequential([keras.Input((FEATURES,)), trunk, keras.layers.Dense(CLASSES)])
    )


class Unbuilt(keras.Model):
    """Its variables are made when it is called."""

    def __init__(self, first=None):
        super().__init__()
        self.first = first or keras.layers.Dense(4, name="trunk")
        self.last = keras.layers.Dense(CLASSES)

    def call(self, x):
        return self.last(self.first(x))


def trunk():
    return keras.layers.Dense(4, name="trunk")


def nested():
    inside = keras.Sequential([keras.Input((FEATURES,)), trunk()])
    return keras.Sequential([keras.Input((FEATURES,)), inside], name="outer")


def same(model):
    return lambda hp: model


def standing_on(layer):
    return lambda hp: on(layer)


WRONG = {
    "the same model": (lambda: same(compiled(mlp())), AGAIN),
    "the same, not compiled": (lambda: same(mlp()), AGAIN),
    "the same, not built": (lambda: same(Unbuilt()), AGAIN),
    "a common layer": (lambda: standing_on(trunk()), SHARED),
    "a common nested backbone": (lambda: standing_on(nested()), SHARED),
}


def with_tuner(kind, hypermodel, folder, **settings):
    return kind(
        hypermodel, objective=keras_tuner.Objective("val_accuracy", "max"),
        directory=folder, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_refused_before_any_training_in_search(name, tmp_path, search):  # noqa: F811
    make, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        search(tmp_path, make())
    assert not list(tmp_path.glob("trials/trial_*"))


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (keras_tuner.RandomSearch, {"max_trials": 2}),
        (keras_tuner.GridSearch, {"max_trials": 2}),
        (keras_tuner.BayesianOptimization, {"max_trials": 2}),
        (keras_tuner.Hyperband, {"max_epochs": 2}),
    ],
)
def test_refused_by_every_tuner_of_keras_tuner(name, kind, settings, tmp_path):
    make, words = WRONG[name]
    hypermodel = kd.DistillationHyperModel(make(), mlp(8))
    with pytest.raises(ValueError, match=words):
        with_tuner(kind, hypermodel, tmp_path, **settings)


@pytest.mark.filterwarnings("ignore:the layers of the student do not say")
def test_a_common_layer_without_variables_yet_is_refused_once_it_has_learned(data):
    common = trunk()
    hypermodel = kd.DistillationHyperModel(lambda hp: Unbuilt(common), mlp(8))
    hypermodel.build(keras_tuner.HyperParameters()).fit(*data, verbose=0)
    with pytest.raises(ValueError, match=SHARED):
        hypermodel.build(keras_tuner.HyperParameters())


@pytest.mark.parametrize("first", [True, False])
def test_a_backbone_that_some_trials_train_and_others_do_not(first):
    common, flags = nested(), iter([first, first, not first, not first])
    hypermodel = kd.DistillationHyperModel(lambda hp: on(common, next(flags)), mlp(8))
    hp = keras_tuner.HyperParameters()

    def build_twice():  # at first, two students are built
        hypermodel.build(hp)
        hypermodel.build(hp)

    with pytest.raises(ValueError, match=SHARED):
        build_twice()


@pytest.mark.slow
def test_a_frozen_backbone_with_batch_normalization_is_common_to_all(
    tmp_path,
    search,  # noqa: F811
):
    common = keras.Sequential(
        [keras.Input((FEATURES,)), trunk(), keras.layers.BatchNormalization(),
         keras.layers.Dropout(0.1), keras.layers.ReLU()]
    )  # fmt: skip
    before = common.get_weights()
    result = search(
        tmp_path, lambda hp: on(common, False), max_trials=3, executions_per_trial=2,
        retrain=True,
    )  # fmt: skip
    assert (result.trials["status"] == "COMPLETED").all()
    for then, now in zip(before, common.get_weights(), strict=True):
        np.testing.assert_array_equal(then, now)


@pytest.mark.slow
def test_a_copy_of_a_trained_backbone_starts_the_same_in_every_trial(
    tmp_path,
    search,  # noqa: F811
):
    trained = nested()

    def build(hp):
        copy = keras.models.clone_model(trained)
        copy.set_weights(trained.get_weights())
        return on(copy)

    result = search(tmp_path, build, temperature=4.0, alpha=[0.1, 1.0], epochs=1)
    alone = search(tmp_path / "2", build, temperature=4.0, alpha=[1.0, 0.1], epochs=1)
    assert result.trials["val_nll"][:2].tolist() == pytest.approx(
        alone.trials["val_nll"][:2].tolist(), rel=1e-6
    )


@pytest.mark.slow
def test_a_loss_or_optimizer_that_a_function_returns_again_is_copied(data):
    loss = kd.FeatureLoss("hidden", "hidden", adapter="auto")
    optimizer = keras.optimizers.SGD(0.1)
    hypermodel = kd.DistillationHyperModel(
        lambda hp: mlp(4), mlp(8), distillation_loss=lambda hp: loss,
        optimizer=lambda hp: optimizer,
    )  # fmt: skip
    for _ in range(2):
        distiller = hypermodel.build(keras_tuner.HyperParameters())
        distiller.fit(*data, verbose=0)
    assert distiller.distillation_loss is not loss
    assert distiller.optimizer is not optimizer
