"""Losses on outputs, against their papers' formulas in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from scipy.special import log_softmax, logsumexp, softmax

import keras_distill as kd
from keras_distill.losses.names import ON_OUTPUTS, loss_named
from tests.conftest import CLASSES, SPARSE, mlp

TEMPERATURES = (0.1, 1.0, 4.0, 100.0, 1000.0)


def kl(log_p, log_q):
    return np.sum(np.exp(log_p) * (log_p - log_q), -1)


def decoupled(t, s, temp, y, w):
    def parts(z):
        log_p = log_softmax(z / temp, -1)
        target = np.take_along_axis(log_p, y[..., None], -1)
        others = np.where(np.arange(z.shape[-1]) == y[..., None], -np.inf, z / temp)
        rest = logsumexp(others, -1, keepdims=True) - logsumexp(
            z / temp, -1, keepdims=True
        )
        log_others = others - logsumexp(others, -1, keepdims=True)
        return np.concatenate([target, rest], -1), log_others

    (b_t, o_t), (b_s, o_s) = parts(t), parts(s)
    with np.errstate(invalid="ignore"):
        of_others = np.nansum(np.exp(o_t) * (o_t - o_s), -1)
    return temp**2 * np.mean(kl(b_t, b_s) + 8.0 * of_others)


def pearson(a, b, axis):
    a, b = (one - one.mean(axis, keepdims=True) for one in (a, b))
    return np.sum(a * b, axis) / np.sqrt(np.sum(a * a, axis) * np.sum(b * b, axis))


def relational(t, s, temp, y, w):
    p, q = (softmax(z / temp, -1).reshape(-1, z.shape[-1]) for z in (t, s))
    inter = 1 - pearson(p, q, -1).mean()
    return temp**2 * (inter + 1 - pearson(p, q, 0).mean())


def standardized(t, s, temp, y, w):
    t, s = ((z - z.mean(-1, keepdims=True)) / z.std(-1, keepdims=True) for z in (t, s))
    return temp**2 * np.mean(kl(log_softmax(t / temp, -1), log_softmax(s / temp, -1)))


def reverse(t, s, temp, y, w):
    return temp**2 * np.mean(kl(log_softmax(s / temp, -1), log_softmax(t / temp, -1)))


def jensen_shannon(weight):
    def of(t, s, temp, y, w):
        log_p, log_q = log_softmax(t / temp, -1), log_softmax(s / temp, -1)
        log_m = np.logaddexp(np.log(weight) + log_p, np.log1p(-weight) + log_q)
        return temp**2 * np.mean(
            weight * kl(log_p, log_m) + (1 - weight) * kl(log_q, log_m)
        )

    return of


LOSSES = {
    "decoupled": (kd.DecoupledLoss(), decoupled),
    "relational": (kd.RelationalLoss(), relational),
    "standardized": (kd.LogitStandardizedLoss(), standardized),
    "reverse": (kd.ReverseKLLoss(), reverse),
    "jensen-shannon 0.5": (kd.JensenShannonLoss(), jensen_shannon(0.5)),
    "jensen-shannon 0.1": (kd.JensenShannonLoss(0.1), jensen_shannon(0.1)),
}


def numerical_gradient(of, s):
    """Central differences of a function of float64, in extended precision."""
    s = s.astype("longdouble")
    gradient = np.zeros(s.shape)
    for index in np.ndindex(s.shape):
        step = np.zeros_like(s)
        step[index] = 1e-5 * max(1.0, float(abs(s[index])))
        gradient[index] = (of(s + step) - of(s - step)) / (2 * step[index])
    return gradient


def value_and_gradient(loss, t, s, temp, y):
    s = tf.constant(s)
    also = {"labels": y} if loss.takes_labels else {}
    with tf.GradientTape() as tape:
        tape.watch(s)
        value = tf.reduce_mean(loss.loss_per_example(t, s, temp, **also))
    return float(value), tape.gradient(value, s).numpy()


@pytest.mark.parametrize("temp", TEMPERATURES)
@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4)])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_equal_float64(name, shape, temp):
    loss, reference = LOSSES[name]
    rng = np.random.default_rng(0)
    t, s = rng.normal(size=(2, *shape)).astype("float32") * min(temp, 3.0)
    y = rng.integers(0, shape[-1], shape[:-1])
    value, gradient = value_and_gradient(loss, t, s, temp, y)
    wide = t.astype("longdouble")
    expected = reference(wide, s.astype("longdouble"), temp, y, None)
    assert value == pytest.approx(float(expected), rel=1e-5)
    # Differences lose what is left of 1e-19 after temp**2.
    by_difference = numerical_gradient(lambda z: reference(wide, z, temp, y, None), s)
    scale = np.abs(by_difference).max()
    np.testing.assert_allclose(gradient, by_difference, atol=2e-5 * scale)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("temp", [1e-3, 1.0, 1e3])
def test_extreme_logits_give_finite_values_and_gradients(name, temp):
    loss, _ = LOSSES[name]
    rows = [[1e4, 0, -1e4], [0, 0, 0], [-1e4, 1e4, 0], [5, 5, 5], [1e-6, 0, 0]]
    t = np.array(rows, "float32")
    s = t[::-1].copy()
    for dtype in ("float32", "float16") if temp <= 1.0 else ("float32",):
        of_t, of_s = t.astype(dtype), s.astype(dtype)
        value, gradient = value_and_gradient(loss, of_t, of_s, temp, np.arange(5) % 3)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        same, gradient = value_and_gradient(loss, of_t, of_t, temp, np.arange(5) % 3)
        if name != "relational":  # of constant rows the correlation is 0
            assert same == pytest.approx(0.0, abs=1e-6)
            assert np.abs(gradient).max() < 1e-3 * max(temp, 1.0)


@pytest.mark.parametrize("loss", [kd.DecoupledLoss(), kd.ReverseKLLoss()])
def test_who_is_confidently_wrong_gets_a_gradient(loss):
    t = np.array([[40.0, 0.0, -5.0]], "float32")
    s = np.array([[-60.0, 0.0, 0.0]], "float32")
    value, gradient = value_and_gradient(loss, t, s, 1.0, np.array([0]))
    assert value > 30.0
    largest = np.abs(gradient).max()
    # Of the reverse KL, a student that is certain of what the teacher rules out.
    assert largest > 0.2


def test_limits_of_jensen_shannon():
    rng = np.random.default_rng(1)
    t, s = rng.normal(size=(2, 6, 5)).astype("float32")
    at = {
        weight: kd.JensenShannonLoss(weight).loss_per_example(t, s, 2.0)
        for weight in (0.0, 1e-3, 1 - 1e-3, 1.0)
    }
    forward = kd.SoftTargetLoss().loss_per_example(t, s, 2.0)
    backward = kd.ReverseKLLoss().loss_per_example(t, s, 2.0)
    np.testing.assert_allclose(at[0.0], forward)
    np.testing.assert_allclose(at[1e-3] / 1e-3, forward, rtol=5e-3)
    np.testing.assert_allclose(at[1.0], backward)
    np.testing.assert_allclose(at[1 - 1e-3] / 1e-3, backward, rtol=5e-3)


def test_decoupled_with_the_teachers_own_weights_is_the_soft_target_loss():
    rng = np.random.default_rng(2)
    t, s = rng.normal(size=(2, 1, 5)).astype("float32")
    y = np.array([3])
    others = float(1 - softmax(t / 2.0, -1)[0, 3])
    ours = kd.DecoupledLoss(1.0, others).loss_per_example(t, s, 2.0, labels=y)
    whole = kd.SoftTargetLoss().loss_per_example(t, s, 2.0)
    np.testing.assert_allclose(ours, whole, rtol=1e-5)
    unlabelled = kd.DecoupledLoss().loss_per_example(t, s, 2.0, labels=np.array([-1]))
    np.testing.assert_allclose(unlabelled, whole, rtol=1e-6)


def test_examples_of_weight_0_count_for_nothing_in_a_relation():
    rng = np.random.default_rng(3)
    t, s = rng.normal(size=(2, 6, 5)).astype("float32")
    loss = kd.RelationalLoss()
    few = loss.loss_per_example(t[:4], s[:4], 2.0)
    weight = np.array([1, 1, 1, 1, 0, 0], "float32")
    s[4:] = 50.0
    student = tf.constant(s)
    with tf.GradientTape() as tape:
        tape.watch(student)
        many = loss.loss_per_example(t, student, 2.0, weight=weight)
        total = tf.reduce_sum(many * weight)
    np.testing.assert_allclose(many[:4], few, rtol=1e-5)
    assert np.abs(tape.gradient(total, student)[4:]).max() == 0.0
    alone = loss.loss_per_example(t[:1], s[:1], 2.0)
    assert np.isfinite(alone).all()


def fitted(loss, data, student=None, hard=SPARSE, **arguments):
    x, y, *weight = data
    distiller = kd.Distiller(
        student or mlp(6), mlp(32), distillation_loss=loss, temperature=2.0, **arguments
    )
    distiller.compile(keras.optimizers.SGD(0.0), hard)
    weight = weight[0] if weight else None
    logs = distiller.fit(x, y, sample_weight=weight, batch_size=len(x), verbose=0)
    return distiller, logs.history["soft_loss"][0]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("one_hot", [False, True])
def test_labels_and_weights_reach_the_losses(data, one_hot):
    x, y = data
    weight = (np.arange(len(y)) % 3).astype("float32")
    hard = SPARSE
    labels = y
    if one_hot:
        labels = np.eye(CLASSES, dtype="float32")[y]
        hard = keras.losses.CategoricalCrossentropy(from_logits=True)
    for loss in (kd.DecoupledLoss(), kd.RelationalLoss()):
        distiller, found = fitted(loss, (x, labels, weight), hard=hard)
        t = distiller.teacher(x).numpy()
        s = distiller.student(x).numpy()
        also = {"labels": y} if loss.takes_labels else {"weight": weight}
        expected = np.mean(weight * loss.loss_per_example(t, s, 2.0, **also))
        assert found == pytest.approx(float(expected), rel=1e-5)


def test_ignored_labels_are_taught_by_the_teacher_alone(data):
    x, y = data
    y = np.where(np.arange(len(y)) % 2, 255, y)
    hard = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=255
    )
    distiller, found = fitted(kd.DecoupledLoss(), (x, y), hard=hard)
    t, s = distiller.teacher(x), distiller.student(x)
    labels = np.where(y == 255, -1, y)
    expected = kd.DecoupledLoss().loss_per_example(t, s, 2.0, labels=labels)
    assert found == pytest.approx(float(np.mean(expected)), rel=1e-5)


def test_unlabelled_data_is_refused_where_labels_are_compared_by(data):
    x, _ = data
    distiller = kd.Distiller(
        mlp(6), mlp(32), distillation_loss="decoupled_loss", alpha=0.0
    )
    distiller.compile("sgd")
    with pytest.raises(
        ValueError, match="have no labels; give them, or use SoftTarget"
    ):
        distiller.fit(x, verbose=0)
    with pytest.raises(
        ValueError, match="have no labels; give them, or use SoftTarget"
    ):
        distiller.train_on_batch(x)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "loss",
    [
        kd.DecoupledLoss(2.0, 3.0),
        kd.RelationalLoss(1.0, 2.0) + 0.5 * kd.SoftTargetLoss(),
        kd.JensenShannonLoss(0.3, temperature=3.0),
        "reverse_kl_loss",
        "LogitStandardizedLoss",
    ],
)
def test_saved_and_loaded(loss, data, tmp_path):
    distiller, _ = fitted(loss, data)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    loaded.teacher = distiller.teacher
    one, two = (d.train_on_batch(*data, return_dict=True) for d in (distiller, loaded))
    assert one["soft_loss"] == pytest.approx(two["soft_loss"], rel=1e-6)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("loss", ["decoupled_loss", "relational_loss"])
def test_several_outputs_by_name(loss, data):
    x, y = data

    def heads(width):
        inputs = keras.Input((8,))
        hidden = keras.layers.Dense(width)(inputs)
        return keras.Model(
            inputs,
            {
                "a": keras.layers.Dense(CLASSES, name="a")(hidden),
                "b": keras.layers.Dense(1, name="b")(hidden),
            },
        )

    distiller = kd.Distiller(
        heads(4), heads(8), distillation_loss={"a": loss, "b": "squared_error_loss"}
    )
    distiller.compile("sgd", {"a": SPARSE, "b": "mse"})
    history = distiller.fit(x, {"a": y, "b": y.astype("float32")}, verbose=0).history
    assert np.isfinite(history["soft_loss"]).all()


@pytest.mark.slow
def test_yes_no_questions_by_pairs(data):
    x, _ = data
    y = np.eye(CLASSES, dtype="float32")[data[1]]
    hard = keras.losses.BinaryCrossentropy(from_logits=True)
    for loss, reference in (
        (kd.ReverseKLLoss(), reverse),
        (kd.JensenShannonLoss(), jensen_shannon(0.5)),
    ):
        distiller, found = fitted(loss, (x, y), hard=hard)
        pairs = [
            np.stack([np.zeros_like(z), z], -1).astype("float64")
            for z in (distiller.teacher(x).numpy(), distiller.student(x).numpy())
        ]
        assert found == pytest.approx(reference(*pairs, 2.0, None, None), rel=1e-5)
    for loss in ("decoupled_loss", "relational_loss", "logit_standardized_loss"):
        with pytest.raises(
            ValueError, match="does not compare outputs of the kind 'sig"
        ):
            fitted(loss, (x, y), hard=hard)


def test_names():
    for of in ON_OUTPUTS:
        assert type(loss_named(of.__name__)) is of
    assert isinstance(loss_named("reverse_kl_loss"), kd.ReverseKLLoss)
    for name, message in (
        (
            "decopled_loss",
            "there is no distillation loss 'decopled_loss'; use 'decoupled",
        ),
        ("kl", "use "),
        ("feature_loss", r'give the layers: FeatureLoss\("student_layer"'),
    ):
        with pytest.raises(ValueError, match=message):
            kd.Distiller(mlp(), mlp(9), distillation_loss=name)


@pytest.mark.slow
def test_a_search_chooses_a_loss_by_name(data, tmp_path):
    teacher = mlp(9)

    def searched(**arguments):
        return kd.search(
            lambda hp: mlp(6), data, data, teacher=teacher, max_trials=5, epochs=1,
            distillation_loss=["soft_target_loss", "decoupled_loss", "relational_loss"],
            directory=tmp_path / "s", n_jobs=1, algorithm="random", verbose=False, **arguments,
        )  # fmt: skip

    result = searched()
    assert (result.trials["status"] == "COMPLETED").all()
    assert result.trials["distillation_loss"].nunique() > 1
    assert len(searched(resume=True).trials) == 5


@pytest.mark.slow
def test_in_kerass_distiller(data):
    x, y = data
    for loss in (
        kd.ReverseKLLoss(2.0),
        kd.JensenShannonLoss(temperature=2.0),
        kd.RelationalLoss(temperature=2.0),
        kd.LogitStandardizedLoss(2.0),
    ):
        distiller = keras.distillation.Distiller(
            mlp(32), mlp(6), distillation_losses=loss
        )
        distiller.compile("adam", SPARSE)
        assert np.isfinite(distiller.fit(x, y, verbose=0).history["loss"]).all()
    with pytest.raises(ValueError, match="give one: ReverseKLLoss"):
        keras.distillation.Distiller(
            mlp(32), mlp(6), distillation_losses=kd.ReverseKLLoss()
        )
    with pytest.raises(ValueError, match="DecoupledLoss needs the labels"):
        keras.distillation.Distiller(
            mlp(32), mlp(6), distillation_losses=kd.DecoupledLoss(temperature=2.0)
        )


def test_softmax_is_kept_at_high_temperatures():
    """What probabilities near 1 / K round away, the relation still sees."""
    rng = np.random.default_rng(5)
    t, s = rng.normal(size=(2, 8, 6)).astype("float32")
    of = kd.RelationalLoss(temperature=1e5).compute_loss(t, s) / 1e10
    ops.convert_to_numpy(of)
    inter = 1 - pearson(t.astype(float), s.astype(float), -1).mean()
    centred = [z.astype(float) - z.mean(-1, keepdims=True, dtype=float) for z in (t, s)]
    intra = 1 - pearson(*centred, 0).mean()
    assert float(of) == pytest.approx(inter + intra, rel=1e-4)


def test_yes_no_questions_are_no_classes_in_kerass_distiller():
    def tags():
        return keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(4, activation="sigmoid")]
        )

    for loss in (
        kd.SoftTargetLoss(2.0),
        kd.LogitLoss(),
        kd.JensenShannonLoss(0.5, 2.0),
    ):
        with pytest.raises(ValueError, match="is of yes/no questions"):
            keras.distillation.Distiller(tags(), tags(), distillation_losses=loss)


def by_label(loss=None, alpha=0.0, outputs=1):
    def model():
        inputs = keras.Input((3,))
        heads = [keras.layers.Dense(4, name=f"h{i}")(inputs) for i in range(outputs)]
        named = {f"h{i}": head for i, head in enumerate(heads)}
        return keras.Model(inputs, heads[0] if outputs == 1 else named)

    given = "decoupled_loss" if outputs == 1 else {"h0": "decoupled_loss", "h1": None}
    distiller = kd.Distiller(model(), model(), alpha=alpha, distillation_loss=given)
    distiller.compile("sgd", loss)
    return distiller


@pytest.mark.slow
def test_labels_that_no_hard_loss_takes_are_looked_at():
    x = np.ones((4, 3), "float32")

    def own(y, z):
        return keras.losses.sparse_categorical_crossentropy(y % 4, z, True)

    for loss, alpha in ((None, 0.0), (own, 0.5)):
        for wrong, message in (
            ([0, 1, 2, 9], "must be from 0 to 3.*got 9"),
            ([0, 1, -7, 2], "must be from 0 to 3.*got -7"),
            (np.zeros((4, 3)), "one integer label for each softmax"),
        ):
            distiller, y = by_label(loss, alpha), np.array(wrong)
            with pytest.raises(ValueError, match=message):
                distiller.fit(x, y, verbose=0)
            with pytest.raises(ValueError, match=message):
                distiller.train_on_batch(x, y)
    distiller = by_label()
    later = tf.data.Dataset.from_tensor_slices((x, [0, 1, 2, 9])).batch(2)
    with pytest.raises(ValueError, match="got 9 in batch 1"):
        distiller.fit(later, verbose=0)
    distiller.fit(x, np.array([0, 1, -1, 2]), verbose=0)  # -1: no label
    distiller.fit(x, np.eye(4), verbose=0)


@pytest.mark.slow
def test_an_output_compared_by_the_label_needs_labels_and_no_other_does():
    x, y = np.ones((4, 3), "float32"), np.array([0, 1, 2, 3])
    distiller = by_label({"h0": SPARSE}, 0.5, outputs=2)
    assert np.isfinite(distiller.train_on_batch(x, {"h0": y})).all()
    distiller = by_label({"h1": SPARSE}, 0.5, outputs=2)
    with pytest.raises(ValueError, match="'h0' compares by the label"):
        distiller.train_on_batch(x, {"h1": y})
    with pytest.raises(ValueError, match="'h0' compares by the label"):
        distiller.fit(x, {"h1": y}, verbose=0)
