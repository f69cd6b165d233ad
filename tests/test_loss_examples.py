"""What losses are told of the examples: labels, and weights that make relations."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_distill as kd
from tests.conftest import SPARSE, mlp, tagger


class Labelled(kd.DistillationLoss):
    takes_labels = True

    def loss_per_example(self, teacher, student, temperature=1.0, labels=None):
        assert labels.dtype == "int32"
        return ops.cast(labels, "float32") + 0.0 * ops.sum(student, -1)


class Spread(kd.DistillationLoss):
    """The weighted mean of the batch's first logits, for every example."""

    compares_examples = True

    def loss_per_example(self, teacher, student, temperature=1.0, weight=None):
        first = student[..., 0]
        weight = ops.ones_like(first) if weight is None else weight
        mean = ops.sum(weight * first) / ops.sum(weight)
        return ops.broadcast_to(mean, ops.shape(first))


def soft_loss(student, data, loss, hard=SPARSE, **kwargs):
    distiller = kd.Distiller(
        student, keras.models.clone_model(student), alpha=0.0, distillation_loss=loss,
        teacher_from_logits=True, student_from_logits=True,
    )  # fmt: skip
    distiller.compile(keras.optimizers.SGD(0.0), hard, **kwargs)
    return distiller.train_on_batch(*data, return_dict=True)["soft_loss"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("mode", [{}, {"run_eagerly": True}, {"jit_compile": True}])
@pytest.mark.parametrize("form", ["numbers", "column", "one_hot"])
def test_labels_reach_the_loss(mode, form):
    x, y = np.ones((4, 8), "float32"), np.array([0, 3, 1, 1])
    given = {"numbers": y, "column": y[:, None], "one_hot": np.eye(5)[y]}[form]
    hard = keras.losses.CategoricalCrossentropy(from_logits=True)
    hard = hard if form == "one_hot" else SPARSE
    student = mlp(3, classes=5, features=8)
    found = soft_loss(student, (x, given), Labelled(), hard, **mode)
    assert found == pytest.approx(1.25)
    weighed = soft_loss(
        student, (x, given, np.array([0.0, 1.0, 2.0, 1.0])), Labelled(), hard, **mode
    )
    assert weighed == pytest.approx(1.5)


def test_ignored_labels_are_minus_one_and_masked_ones_do_not_count():
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2)
    x = np.array([[1, 2, 0], [3, 0, 0]])
    y = np.array([[1, 2, 4], [3, 4, 4]])
    student = tagger(classes=5)
    assert soft_loss(student, (x, y), Labelled(), hard) == pytest.approx(1.0)


def test_unlabelled_data_is_refused():
    distiller = kd.Distiller(mlp(), mlp(), alpha=0.0, distillation_loss=Labelled())
    distiller.compile("sgd", SPARSE)
    x = np.ones((4, mlp().input_shape[1]), "float32")
    with pytest.raises(ValueError, match="compares by the label"):
        distiller.fit(x, verbose=0)


def test_positions_of_weight_0_make_no_relation():
    student = tagger(classes=5)
    x = np.array([[1, 2, 0], [3, 4, 5]])
    y = np.zeros((2, 3), int)
    first = np.asarray(student(x))[..., 0]
    mask = x != 0
    assert soft_loss(student, (x, y), Spread()) == pytest.approx(first[mask].mean())
    # A position that weighs nothing, too: 1 of 2 positions of the first row is left.
    weight = np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]], "float32")
    kept = mask * weight
    expected = (first * kept).sum() / kept.sum() * kept.sum() / mask.sum()
    found = soft_loss(student, (x, y, weight), Spread())
    assert found == pytest.approx(expected, rel=1e-5)


def test_examples_of_a_layer_are_weighed_whole():
    class OfLayer(kd.FeatureLoss):
        compares_examples = True

        def loss_per_example(self, teacher, student, temperature=1.0, weight=None):
            assert len(student.shape) == 3
            return weight

    student = tagger(classes=5)
    x, y = np.array([[1, 2], [3, 0], [0, 0]]), np.zeros((3, 2), int)
    weight = np.array([2.0, 3.0, 5.0], "float32")
    found = soft_loss(student, (x, y, weight), OfLayer())
    # The weights times how much of each is not masked; the third is left out whole.
    assert found == pytest.approx((2 * 2.0 + 3 * 1.5) / 2)


@pytest.mark.slow
def test_two_replicas_compare_their_own_examples():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        student = mlp(3)
        distiller = kd.Distiller(
            student, mlp(3), alpha=0.0, distillation_loss=Spread() + Labelled()
        )
        distiller.compile(keras.optimizers.SGD(0.0), SPARSE)
    x = np.random.default_rng(0).normal(size=(4, student.input_shape[1]))
    y, weight = np.array([0, 1, 2, 1]), np.array([1.0, 0.0, 1.0, 1.0])
    data = tf.data.Dataset.from_tensors((x.astype("float32"), y, weight))
    logs = distiller.fit(data, verbose=0).history
    first = np.asarray(student(x.astype("float32")))[:, 0]
    expected = (first[0] + first[2] + first[3]) / 4 + (0 + 2 + 1) / 4
    assert logs["soft_loss"][0] == pytest.approx(expected, rel=1e-4)
