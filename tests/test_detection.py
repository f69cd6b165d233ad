"""Detectors: a student's own loss, and values weighed by the teacher's confidence."""

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit, softmax

import keras_distill as kd
from tests.conftest import SPARSE, copy_of, mlp

CLASSES = 3
rng = np.random.default_rng(0)


def retina_net(blocks=1, channels=16, seed=0):
    """Unmodified, but small."""
    keras.utils.set_random_seed(seed)
    hub, image_shape = keras_hub.models, (64, 64, 3)
    encoder = hub.ResNetBackbone(
        [64], [7], [64, channels, channels, channels], [blocks] * 4, [1, 2, 2, 2],
        "basic_block", image_shape=image_shape,
    )  # fmt: skip
    backbone = hub.RetinaNetBackbone(
        encoder,
        min_level=3,
        max_level=5,
        use_p5=False,
        image_shape=image_shape,
        name="neck",
    )
    detector = hub.RetinaNetObjectDetector(
        backbone, CLASSES, "xyxy", pre_logits_num_conv_layers=1
    )
    detector.compile()
    return detector


IMAGES = rng.normal(size=(4, 64, 64, 3)).astype("float32")
BOXES = {
    "boxes": np.array([[[4, 4, 40, 40], [-1] * 4]] * 4, "float32"),
    "labels": np.array([[1, -1]] * 4, "float32"),
}
HEADS = {
    "output_kinds": {"cls_logits": "sigmoid", "bbox_regression": "values"},
    "student_from_logits": True,
    "teacher_from_logits": True,
}


@pytest.fixture(scope="module")
def teacher():
    return retina_net(2, 16, seed=1)


@pytest.mark.slow
def test_a_detector_learns_from_labels_and_teacher(teacher):
    student = retina_net()
    distiller = kd.Distiller(
        student,
        teacher,
        alpha=0.5,
        distillation_loss={
            "cls_logits": kd.SoftTargetLoss(),
            "bbox_regression": kd.SquaredErrorLoss(weight_by="cls_logits"),
        },
        **HEADS,
    )
    distiller.compile(keras.optimizers.SGD(1e-3))
    z = student(IMAGES)
    own = float(student.compute_loss(IMAGES, BOXES, z, None))
    before = distiller.evaluate(IMAGES, BOXES, verbose=0, return_dict=True)["loss"]
    assert before == pytest.approx(own, rel=1e-4)
    logs = distiller.fit(IMAGES, BOXES, batch_size=2, epochs=3, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    assert logs["hard_loss"][-1] < logs["hard_loss"][0]
    with pytest.raises(ValueError, match="sample weights and class weights cannot"):
        distiller.fit(IMAGES, BOXES, sample_weight=np.ones(4), verbose=0)


@pytest.mark.slow
def test_necks_are_matched_by_path_and_all_of_it_is_cached(teacher, tmp_path):
    path = "neck/fpn[P3]"
    store = kd.SoftTargets.write(
        tmp_path / "soft", teacher, IMAGES, layers=[path], verbose=False,
        teacher_from_logits=True, output_kinds=HEADS["output_kinds"],
    )  # fmt: skip
    data = tf.data.Dataset.from_tensor_slices((IMAGES, BOXES)).batch(2)
    found = {}
    for name in ("live", "cached"):
        student = retina_net()
        neck = kd.FeatureLoss(path, path)
        distiller = kd.Distiller(
            student, teacher if name == "live" else None, alpha=0.5,
            distillation_loss={
                "cls_logits": kd.SoftTargetLoss() + 0.1 * neck,
                "bbox_regression": 9 * kd.SquaredErrorLoss(weight_by="cls_logits"),
            },
            output_kinds=HEADS["output_kinds"], student_from_logits=True,
            teacher_from_logits=True if name == "live" else None,
        )  # fmt: skip
        distiller.compile(keras.optimizers.SGD(0.0))
        given = data if name == "live" else store.join(data)
        found[name] = distiller.fit(given, verbose=0).history["soft_loss"][0]
    assert found["cached"] == pytest.approx(found["live"], rel=0.01)


def heads(width, seed=0, kind="sigmoid"):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5, 4))
    hidden = keras.layers.Dense(width, activation="relu")(inputs)
    return keras.Model(
        inputs,
        {
            "class": keras.layers.Dense(3, name="class")(hidden),
            "box": keras.layers.Dense(4, name="box")(hidden),
        },
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize("weighted", [False, True])
def test_values_are_weighed_by_the_teachers_confidence(kind, weighted):
    student, teacher = heads(6), heads(9, seed=1)
    x = rng.normal(size=(8, 5, 4)).astype("float32")
    losses = {"class": kd.SoftTargetLoss(), "box": None}
    found = []
    for box in (None, 3.0 * kd.SquaredErrorLoss(weight_by="class")):
        distiller = kd.Distiller(
            student, teacher, alpha=0, distillation_loss={**losses, "box": box},
            output_kinds={"class": kind, "box": "values"},
            student_from_logits=True, teacher_from_logits=True,
        )  # fmt: skip
        distiller.compile(keras.optimizers.SGD(0.0))
        weight = {"class": np.arange(8.0), "box": np.arange(8.0)} if weighted else None
        logs = distiller.train_on_batch(x, None, weight, return_dict=True)
        found.append(float(logs["soft_loss"]))
    s, t = (m.predict(x, verbose=0) for m in (student, teacher))
    p = {"sigmoid": expit, "softmax": lambda z: softmax(z, -1)}[kind](
        t["class"].astype("float64")
    )
    error = np.mean((s["box"].astype("float64") - t["box"]) ** 2, -1) * p.max(-1)
    error = error * np.arange(8.0)[:, None] if weighted else error
    assert found[1] - found[0] == pytest.approx(3 * error.mean(), rel=1e-4)


def test_what_values_are_weighed_by_is_checked():
    given = {
        "output_kinds": {"class": "sigmoid", "box": "values"},
        "student_from_logits": True,
        "teacher_from_logits": True,
    }
    for by in ("box", "nothing"):
        loss = {"class": kd.SoftTargetLoss(), "box": kd.SquaredErrorLoss(weight_by=by)}
        with pytest.raises(
            ValueError, match=rf"weight_by='{by}', which must be a dist"
        ):
            kd.Distiller(heads(4), heads(4), distillation_loss=loss, **given)
    loss = {"class": None, "box": kd.SquaredErrorLoss(weight_by="class")}
    with pytest.raises(ValueError, match="must be a distilled output"):
        kd.Distiller(heads(4), heads(4), distillation_loss=loss, **given)
    with pytest.raises(TypeError, match="weight_by must be the name of an output"):
        kd.SquaredErrorLoss(weight_by=1.5)


@keras.saving.register_keras_serializable("tests")
class OwnLoss(keras.Sequential):
    """Learns the labels, given as `{"twice": y}`, by a loss of its own."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return 2 * super().compute_loss(x, y["twice"], y_pred, sample_weight)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "how", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=str
)
def test_the_hard_loss_is_the_students_own(data, how):
    x, y = data
    plain, teacher = mlp(), mlp(9)
    student = OwnLoss(copy_of(plain).layers)
    student.build((None, 8))
    distiller = kd.Distiller(student, teacher, alpha=0.3)
    distiller.compile("sgd", **how)
    with pytest.raises(ValueError, match="Or compile the student, for its own"):
        distiller.fit(x, {"twice": y}, verbose=0)
    student.compile(loss=SPARSE)
    distiller.compile("sgd", **how)
    expected = kd.Distiller(plain, teacher, alpha=0.3)
    expected.compile("sgd", SPARSE)
    ours, theirs = (
        one.fit(x, labels, shuffle=False, batch_size=64, verbose=0).history
        for one, labels in ((distiller, {"twice": y}), (expected, y))
    )
    assert ours["hard_loss"][0] == pytest.approx(2 * theirs["hard_loss"][0], rel=1e-5)
    assert ours["soft_loss"] == pytest.approx(theirs["soft_loss"], rel=1e-5)


def test_a_loss_given_to_compile_stands_before_the_students_own(data):
    x, y = data
    student = OwnLoss(mlp().layers)
    student.build((None, 8))
    student.compile(loss=SPARSE)
    distiller = kd.Distiller(student, mlp(9), alpha=1.0)
    distiller.compile("sgd", SPARSE)
    expected = float(tf.reduce_mean(SPARSE(y, student(x))))
    found = distiller.evaluate(x, y, verbose=0)
    assert found == pytest.approx(expected, rel=1e-5)


def test_weights_never_reach_a_loss_that_is_the_students_own(data):
    x, y = data[0][:8], {"twice": data[1][:8]}
    ones = np.ones(8)
    student = OwnLoss(mlp().layers)
    student.build((None, 8))
    student.compile(loss=SPARSE)
    distiller = kd.Distiller(student, mlp(8))
    distiller.compile("sgd")
    distiller.train_on_batch(x, y)  # what comes later is looked at too
    for judge in (distiller.train_on_batch, distiller.test_on_batch):
        with pytest.raises(ValueError, match="leave them out"):
            judge(x, y, sample_weight=ones)
    with pytest.raises(ValueError, match="leave them out"):
        distiller.train_on_batch(x, y, class_weight={0: 2.0})
    with pytest.raises(ValueError, match="leave them out"):
        distiller.evaluate(x, y, sample_weight=ones, verbose=0)
