"""Outputs that are yes/no questions or values: the step's loss and gradient, and refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.logits_or_probabilities import to_logits
from keras_distill.outputs import kinds_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 6)).astype("float32")
T, ALPHA = 3.0, 0.3


def head(units, activation=None, seed=0, scale=1.0, **kwargs):
    """Returns a linear student: its gradient can be worked out by hand."""
    init = keras.initializers.RandomNormal(stddev=scale, seed=seed)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(
                units, activation, kernel_initializer=init, use_bias=False, **kwargs
            ),
        ]
    )


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


def bernoulli_kl(zt, zs, temperature):
    """Returns T**2 KL of each question, and its gradient by the student's logits."""
    p, q = sigmoid(zt / temperature), sigmoid(zs / temperature)
    log_p, log_q = (
        -np.logaddexp(0, -zt / temperature),
        -np.logaddexp(0, -zs / temperature),
    )
    log_np, log_nq = (
        -np.logaddexp(0, zt / temperature),
        -np.logaddexp(0, zs / temperature),
    )
    kl = p * (log_p - log_q) + (1 - p) * (log_np - log_nq)
    return temperature**2 * kl, temperature * (q - p)


def step(student, teacher, loss, y, x=X, weight=None, class_weight=None, **kwargs):
    """Returns the losses of one step of gradient descent, and its gradient."""
    distiller = kd.Distiller(
        student, teacher, **{"temperature": T, "alpha": ALPHA, **kwargs}
    )
    distiller.compile(keras.optimizers.SGD(1.0), loss)
    before = [np.array(one) for one in student.get_weights()]
    history = distiller.fit(
        x, y, batch_size=len(x), sample_weight=weight, class_weight=class_weight,
        verbose=0,
    ).history  # fmt: skip
    after = student.get_weights()
    gradient = [a - b for a, b in zip(before, after, strict=True)]
    return {name: values[0] for name, values in history.items()}, gradient


def logits_in_float64(model, x=X):
    return np.asarray(x, "float64") @ np.asarray(model.get_weights()[0], "float64")


LABELS = {
    1: (RNG.random(12) > 0.5).astype("float32"),
    4: (RNG.random((12, 4)) > 0.5).astype("float32"),
}


@pytest.mark.parametrize("questions", [1, 4])
@pytest.mark.parametrize("activation", [None, "sigmoid"])
@pytest.mark.parametrize("weighted", [False, True])
def test_yes_or_no_equals_the_closed_form(questions, activation, weighted):
    teacher, student = head(questions, activation), head(questions, activation, seed=1)
    y = LABELS[questions]
    weight = RNG.random(12) if weighted else np.ones(12)
    zt, zs = logits_in_float64(teacher), logits_in_float64(student)
    loss = keras.losses.BinaryCrossentropy(from_logits=activation is None)
    logs, (gradient,) = step(
        student, teacher, loss, y, weight=weight.astype("float32") if weighted else None
    )
    kl, by_z = bernoulli_kl(zt, zs, T)
    labels = y.reshape(zs.shape)
    hard = np.logaddexp(0, zs) - labels * zs
    np.testing.assert_allclose(
        logs["soft_loss"], (weight @ kl.mean(-1)) / 12, rtol=1e-6
    )
    np.testing.assert_allclose(
        logs["hard_loss"], (weight @ hard.mean(-1)) / 12, rtol=1e-6
    )
    by_z = (1 - ALPHA) * by_z + ALPHA * (sigmoid(zs) - labels)
    expected = X.astype("float64").T @ (by_z * weight[:, None]) / 12 / questions
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("y", [
    LABELS[1], LABELS[1][:, None], LABELS[1].astype("int64"), LABELS[1].astype(bool),
    LABELS[1].astype("float16")[:, None], LABELS[1].astype("uint8"),
])  # fmt: skip
@pytest.mark.parametrize(
    "loss",
    ["binary_crossentropy", "bce", keras.losses.BinaryFocalCrossentropy(),
     keras.losses.BinaryCrossentropy(label_smoothing=0.1)],
)  # fmt: skip
def test_labels_of_one_question_as_keras_takes_them(y, loss):
    teacher, student = head(1, "sigmoid"), head(1, "sigmoid", seed=1)
    own = keras.models.clone_model(student)
    own.set_weights(student.get_weights())
    own.compile(keras.optimizers.SGD(0.0), loss)
    expected = own.fit(X, y, batch_size=12, verbose=0).history["loss"][0]
    kl, _ = bernoulli_kl(logits_in_float64(teacher), logits_in_float64(student), T)
    logs, _ = step(student, teacher, loss, y)
    np.testing.assert_allclose(logs["hard_loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(logs["soft_loss"], kl.mean(), rtol=1e-6)


def test_a_mask_of_pixels_equals_the_closed_form():
    def unet(seed):
        init = keras.initializers.RandomNormal(seed=seed)
        pixels = keras.Input((4, 4, 3))
        out = keras.layers.Conv2D(1, 1, activation="sigmoid", kernel_initializer=init)
        return keras.Model(pixels, out(pixels))

    teacher, student = unet(0), unet(1)
    x = RNG.normal(size=(6, 4, 4, 3)).astype("float32")
    mask = (RNG.random((6, 4, 4, 1)) > 0.5).astype("uint8")
    weight = RNG.random(6).astype("float32")
    zt, zs = (
        x.astype("float64") @ np.asarray(m.get_weights()[0][0, 0], "float64")
        for m in (teacher, student)
    )
    logs, gradient = step(
        student, teacher, "binary_crossentropy", mask, x, weight, alpha=0.0
    )
    kl, by_z = bernoulli_kl(zt, zs, T)
    every = weight[:, None, None, None] / (6 * 16)
    np.testing.assert_allclose(logs["soft_loss"], (kl * every).sum(), rtol=1e-6)
    expected = np.einsum("nhwi,nhwo->io", x, by_z * every)
    np.testing.assert_allclose(gradient[0][0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0, 1e4])
def test_one_question_is_a_softmax_over_no_and_yes(temperature):
    loss = kd.SoftTargetLoss()
    z = RNG.normal(size=(2, 12, 1), scale=5).astype("float32")
    teacher, student = head(1), head(1, seed=1)
    logs, _ = step(
        student, teacher, keras.losses.BinaryCrossentropy(from_logits=True), LABELS[1],
        temperature=temperature,
    )  # fmt: skip
    zt, zs = (m.predict(X, verbose=0) for m in (teacher, head(1, seed=1)))
    zero = np.zeros_like(zt)
    two = loss.loss_per_example(
        np.concatenate([zt, zero], 1), np.concatenate([zs, zero], 1), temperature
    )
    np.testing.assert_allclose(logs["soft_loss"], np.mean(two), rtol=1e-6)
    del z


@pytest.mark.parametrize("activation", [None, "sigmoid"])
@pytest.mark.parametrize(
    "last", [None, keras.layers.Reshape((1, 1)), keras.layers.Flatten()]
)
def test_a_confidently_wrong_student_gets_its_whole_gradient(activation, last):
    teacher, student = head(1, activation), head(1, activation)
    teacher.set_weights([np.full((6, 1), -10.0)])
    student.set_weights([np.full((6, 1), 10.0)])
    y = np.zeros(4)
    if last is not None:
        teacher, student = (keras.Sequential([m, last]) for m in (teacher, student))
        y = np.zeros((4, 1, 1) if isinstance(last, keras.layers.Reshape) else (4, 1))
    x = np.ones((4, 6), "float32")
    loss = keras.losses.BinaryCrossentropy(from_logits=activation is None)
    _, (gradient,) = step(student, teacher, loss, y, x, alpha=0.0, temperature=1.0)
    np.testing.assert_allclose(gradient, np.ones((6, 1)), rtol=1e-6)


@pytest.mark.slow
def test_logit_loss_of_questions_is_the_limit_of_a_high_temperature():
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    found = [
        step(head(4, seed=1), head(4), loss, LABELS[4], temperature=1e4,
             distillation_loss=one)[0]["soft_loss"]
        for one in (kd.SoftTargetLoss(), kd.LogitLoss())
    ]  # fmt: skip
    np.testing.assert_allclose(*found, rtol=1e-6)


# Values --------------------------------------------------------------------------------


@pytest.mark.sampled(4)
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(
    "loss", ["mse", "mae", "huber", keras.losses.LogCosh(), "mape"]
)
def test_values_are_matched_by_their_squared_difference(width, loss):
    teacher, student = head(width), head(width, seed=1)
    y = RNG.normal(size=(12, width)).astype("float32")
    t, s = (logits_in_float64(m) for m in (teacher, student))
    hard = float(np.mean(keras.losses.get(loss)(y, s.astype("float32"))))
    logs, _ = step(student, teacher, loss, y[:, 0] if width == 1 else y)
    np.testing.assert_allclose(logs["hard_loss"], hard, rtol=1e-5)
    np.testing.assert_allclose(logs["soft_loss"], np.mean((t - s) ** 2), rtol=1e-6)
    expected = ALPHA * hard + (1 - ALPHA) * np.mean((t - s) ** 2)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("given", [None, kd.CosineLoss()])
def test_embeddings_are_matched_by_their_direction(given):
    teacher, student = head(4), head(4, seed=1)
    y = RNG.normal(size=(12, 4)).astype("float32")
    t, s = (logits_in_float64(m) for m in (teacher, student))
    cosine = (t * s).sum(-1) / np.linalg.norm(t, axis=-1) / np.linalg.norm(s, axis=-1)
    loss = "cosine_similarity" if given is None else "mse"
    logs, _ = step(student, teacher, loss, y, distillation_loss=given)
    np.testing.assert_allclose(logs["soft_loss"], np.mean(1 - cosine), rtol=1e-6)


@pytest.mark.parametrize(
    "normalize", [keras.layers.UnitNormalization(), keras.ops.normalize]
)
def test_vectors_of_unit_length_are_values_also_without_labels(normalize, recwarn):
    def embedder(seed):
        linear = head(4, seed=seed)
        return keras.Model(linear.inputs, normalize(linear.outputs[0]))

    student, teacher = embedder(0), embedder(1)
    expected = np.mean((student(X) - teacher(X)) ** 2)
    distiller = kd.Distiller(student, teacher, alpha=0.0)
    distiller.compile("sgd")
    logs = distiller.train_on_batch(X, return_dict=True)
    assert kinds_of(student) == kinds_of(teacher) == distiller.output_kinds == "values"
    np.testing.assert_allclose(logs["soft_loss"], expected, rtol=1e-6)
    assert not [one for one in recwarn if "logits" in str(one.message)]
    # Cosines to classes are logits, which the loss says.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert kinds_of(embedder(0), loss) == "softmax"
    student = embedder(0)
    student.compile(loss=loss)
    assert kinds_of(student) == "softmax"
    assert kinds_of(student, "mse") == "values"


def test_cosine_of_vectors_of_any_length():
    loss = kd.CosineLoss()
    for size in (1e-30, 1.0, 1e30):
        found = loss.loss_per_example([[size, 0.0]], [[3 * size, 4 * size]])
        np.testing.assert_allclose(found, [0.4], rtol=1e-6)
    assert float(loss.loss_per_example([[0.0, 0.0]], [[1.0, 0.0]])[0]) == 1.0


def test_a_bounded_value_under_a_regression_loss_is_what_its_labels_are():
    for y, kind in (
        (LABELS[1], "sigmoid"),
        (RNG.random(12).astype("float32"), "values"),
    ):
        distiller = kd.Distiller(head(1, "sigmoid"), head(1, "sigmoid", seed=1))
        distiller.compile("sgd", "mse")
        distiller.fit(X, y, verbose=0)
        assert distiller.output_kinds == kind


# Several outputs -----------------------------------------------------------------------


def three_heads(seed, as_list=False):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    outputs = [
        keras.layers.Dense(3, name="species")(inputs),
        keras.layers.Dense(2, activation="sigmoid", name="marks")(inputs),
        keras.layers.Dense(1, name="weight")(inputs),
    ]
    names = ["species", "marks", "weight"]
    return keras.Model(
        inputs, outputs if as_list else dict(zip(names, outputs, strict=True))
    )


SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LOSSES = {"species": SPARSE, "marks": "binary_crossentropy", "weight": "mse"}
Y = {
    "species": np.arange(12) % 3,
    "marks": LABELS[4][:, :2],
    "weight": RNG.normal(size=(12, 1)).astype("float32"),
}


def soft_losses(teacher, student):
    t, s = teacher.predict(X, verbose=0), student.predict(X, verbose=0)
    t, s = (list(one.values()) if isinstance(one, dict) else one for one in (t, s))
    z = [np.log(one[1] / (1 - one[1])) for one in (t, s)]
    softmax = kd.SoftTargetLoss().loss_per_example(t[0], s[0], T)
    return (
        float(np.mean(softmax)),
        bernoulli_kl(*z, T)[0].mean(),
        np.mean((t[2] - s[2]) ** 2),
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize("as_list", [False, True])
def test_three_kinds_train_by_one_line(as_list):
    teacher, student = three_heads(0, as_list), three_heads(1, as_list)
    expected = soft_losses(teacher, student)
    given = Y if not as_list else list(Y.values())
    logs, _ = step(student, teacher, LOSSES, given)
    np.testing.assert_allclose(logs["soft_loss"], sum(expected), rtol=1e-5)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("name", ["species", "marks", "weight"])
def test_one_head_is_distilled_and_the_others_have_their_own_losses(as_list, name):
    teacher, student = three_heads(0, as_list), three_heads(1, as_list)
    expected = dict(zip(LOSSES, soft_losses(teacher, student), strict=True))
    losses = {key: one if key == name else own for key, one in LOSSES.items()}
    given = Y if not as_list else list(Y.values())
    default = kd.SquaredErrorLoss() if name == "weight" else kd.SoftTargetLoss()
    logs, _ = step(student, teacher, losses, given, distillation_loss={name: default})
    np.testing.assert_allclose(logs["soft_loss"], expected[name], rtol=1e-5)


def own(y_true, y_pred):
    """A loss of the user's own, of which nothing is known."""
    return keras.ops.mean(keras.ops.abs(y_pred), -1)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("loss", [own, "hinge", "poisson", "binary_crossentropy"])
def test_what_is_not_distilled_may_have_any_loss(loss):
    teacher, student = three_heads(0), three_heads(1)
    losses = {"species": SPARSE, "marks": loss, "weight": own}
    logs, _ = step(
        student, teacher, losses, Y, distillation_loss={"species": kd.SoftTargetLoss()}
    )
    np.testing.assert_allclose(
        logs["soft_loss"], soft_losses(teacher, three_heads(1))[0], rtol=1e-5
    )


def test_a_loss_for_one_output_says_nothing_of_the_others_of_a_subclassed_model():
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.marks = keras.layers.Dense(2, activation="sigmoid")
            self.species = keras.layers.Dense(3)

        def call(self, x):
            return {"marks": self.marks(x), "species": self.species(x)}

    distiller = kd.Distiller(
        Two(), Two(), teacher_from_logits={"marks": False, "species": True},
        student_from_logits={"marks": False, "species": True},
    )  # fmt: skip
    distiller.compile("sgd", {"marks": "binary_crossentropy"})
    distiller.fit(X, {"marks": Y["marks"], "species": Y["species"]}, verbose=0)
    assert distiller.output_kinds == {"marks": "sigmoid", "species": "softmax"}


def test_things_are_given_by_name_where_a_model_returns_a_list():
    teacher, student = three_heads(0, True), three_heads(1, True)
    distiller = kd.Distiller(
        student, teacher, student_from_logits={"marks": False},
        teacher_from_logits={"species": True}, output_kinds={"weight": "values"},
    )  # fmt: skip
    distiller.compile("sgd", {"species": SPARSE}, loss_weights={"species": 2.0})
    distiller.fit(X, Y, verbose=0)
    assert distiller.output_kinds == {0: "softmax", 1: "sigmoid", 2: "values"}
    for wrong in ({"kinds": SPARSE}, {"species": SPARSE, 7: SPARSE}):
        with pytest.raises(
            ValueError, match="loss names the output .*outputs are 'species'"
        ):
            distiller.compile("sgd", wrong)
    for argument in ("output_kinds", "student_from_logits", "distillation_loss"):
        given = {"no": {"output_kinds": "values"}.get(argument)}
        with pytest.raises(ValueError, match=f"{argument} names the output 'no'"):
            kd.Distiller(student, teacher, **{argument: given})


@pytest.mark.sampled(1)
@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", SPARSE])
def test_features_alone_put_no_demand_on_the_head(loss):
    activation = None if loss is SPARSE else "softmax"

    def model(width, classes, seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(width, name="hidden"),
                keras.layers.Dense(classes, activation),
            ]
        )

    hint = kd.FeatureLoss("hidden", "hidden", adapter="auto")
    for classes in (3, 5):  # the teacher's are of no matter
        distiller = kd.Distiller(
            model(4, 3, 1), model(8, classes, 0), distillation_loss=hint, alpha=0.5
        )
        distiller.compile("sgd", loss)
        assert distiller.fit(X, Y["species"], verbose=0).history["soft_loss"][0] > 0


# Two classes and one question ----------------------------------------------------------


@pytest.mark.sampled(1)
@pytest.mark.parametrize("activation", [None, "known"])
def test_one_question_teaches_two_classes_and_the_reverse(activation):
    known = activation is not None
    one = head(1, "sigmoid" if known else None)
    two = head(2, "softmax" if known else None, seed=1)
    one.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=not known))
    z, pair = logits_in_float64(one), logits_in_float64(two)
    difference = pair[:, 1:] - pair[:, :1]
    binary = keras.losses.BinaryCrossentropy(from_logits=not known)
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=not known)
    logs, _ = step(
        head(2, "softmax" if known else None, seed=1), one, sparse, LABELS[1]
    )
    np.testing.assert_allclose(
        logs["soft_loss"], bernoulli_kl(z, difference, T)[0].mean(), rtol=1e-6
    )
    logs, _ = step(one, two, binary, LABELS[1])
    np.testing.assert_allclose(
        logs["soft_loss"], bernoulli_kl(difference, z, T)[0].mean(), rtol=1e-6
    )


def test_several_teachers_of_a_question_are_averaged_as_probabilities():
    teachers, student = [head(1, seed=5), head(1, seed=6)], head(1, seed=1)
    p = np.mean([sigmoid(logits_in_float64(m) / T) for m in teachers], axis=0)
    zt, zs = T * np.log(p / (1 - p)), logits_in_float64(student)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    logs, _ = step(student, teachers, loss, LABELS[1])
    np.testing.assert_allclose(
        logs["soft_loss"], bernoulli_kl(zt, zs, T)[0].mean(), rtol=1e-6
    )


def test_several_teachers_of_values_are_averaged():
    teachers, student = [head(2, seed=5), head(2, seed=6)], head(2, seed=1)
    mean = np.mean([logits_in_float64(m) for m in teachers], axis=0)
    expected = np.mean((mean - logits_in_float64(student)) ** 2)
    logs, _ = step(student, teachers, "mse", RNG.normal(size=(12, 2)))
    np.testing.assert_allclose(logs["soft_loss"], expected, rtol=1e-6)


# Weights and labels --------------------------------------------------------------------


def test_class_weights_of_a_question():
    teacher, student = head(1), head(1, seed=1)
    weight = np.where(LABELS[1] > 0.5, 3.0, 0.5)
    kl, _ = bernoulli_kl(logits_in_float64(teacher), logits_in_float64(student), T)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    logs, _ = step(student, teacher, loss, LABELS[1], class_weight={0: 0.5, 1: 3.0})
    np.testing.assert_allclose(logs["soft_loss"], np.mean(weight * kl[:, 0]), rtol=1e-6)
    for units, own_loss, y, what in (
        (4, loss, LABELS[4], "4 yes/no questions"),
        (1, "mse", LABELS[1] * 0.3, "values"),
    ):
        with pytest.raises(
            ValueError, match=f"class_weight is for .* output is {what}"
        ):
            step(head(units), head(units, seed=1), own_loss, y, class_weight={0: 2.0})


@pytest.mark.slow
def test_ignored_labels_have_no_hard_loss_and_the_teacher_teaches_there():
    teacher, student = head(3), head(3, seed=1)
    y = Y["species"].copy()
    y[::3] = -1
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    zs = logits_in_float64(student)
    log_q = zs - np.logaddexp.reduce(zs, axis=-1, keepdims=True)
    hard = -log_q[np.arange(12), y][y >= 0].mean()
    logs, _ = step(student, teacher, loss, y)
    full, _ = step(head(3, seed=1), head(3), SPARSE, Y["species"])
    np.testing.assert_allclose(logs["hard_loss"], hard, rtol=1e-6)
    np.testing.assert_allclose(logs["soft_loss"], full["soft_loss"], rtol=1e-6)
    weight = (y >= 0).astype("float32")
    logs, _ = step(head(3, seed=1), head(3), loss, y, weight=weight)
    kl = np.asarray(kd.SoftTargetLoss().loss_per_example(
        logits_in_float64(head(3)), logits_in_float64(head(3, seed=1)), T))  # fmt: skip
    np.testing.assert_allclose(logs["soft_loss"], np.mean(weight * kl), rtol=1e-6)


# What contradicts itself ---------------------------------------------------------------

BINARY = keras.losses.BinaryCrossentropy(from_logits=True)


@pytest.mark.parametrize(
    ("student", "loss", "sentence"),
    [
        (lambda: head(3, "softmax"), "binary_crossentropy", "is a softmax, but loss binary_c"),
        (lambda: head(3, "sigmoid"), "categorical_crossentropy", "is a sigmoid, but loss cat"),
        (lambda: head(3, "sigmoid"), keras.losses.SparseCategoricalCrossentropy(),
         "is a sigmoid, but loss Sparse"),
        (lambda: head(1), "binary_crossentropy", "binary_crossentropy expects prob.*ends in log"),
        (lambda: head(1, "sigmoid"), BINARY, "from_logits=True but the student ends in a sigm"),
        (lambda: head(1), SPARSE, "a softmax over it is always 1"),
        (lambda: head(3), "kl_divergence", "expects probabilities"),
    ],
)  # fmt: skip
def test_layer_and_loss_that_contradict_each_other(student, loss, sentence):
    student = student()
    distiller = kd.Distiller(student, keras.models.clone_model(student))
    with pytest.raises(ValueError, match=sentence):
        distiller.compile("sgd", loss)


@pytest.mark.parametrize(
    ("units", "loss", "y", "sentence"),
    [
        (3, BINARY, Y["species"], "are 3 yes/no questions, so that labels must have"),
        (3, "mse", Y["species"], "are 3 values, so that labels must have"),
        (1, BINARY, np.full(12, 2), "must be from 0 to 1, got 2"),
        (1, BINARY, np.full(12, -1.0), "must be from 0 to 1, got -1"),
        (3, BINARY, np.full((12, 3), np.nan), "labels must be finite"),
        (3, BINARY, np.full((12, 3), "a"), "labels must be numbers|labels of dtype <U1 cannot"),
        (3, SPARSE, LABELS[4][:, :3], "labels are one-hot but the loss is sparse"),
        (3, keras.losses.CategoricalCrossentropy(from_logits=True), np.ones((12, 3)),
         "one-hot labels must sum to 1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("entrance", ["fit", "train_on_batch"])
def test_labels_that_contradict_the_loss(units, loss, y, sentence, entrance):
    student = head(units)
    before = student.get_weights()[0]
    distiller = kd.Distiller(student, head(units, seed=1))
    distiller.compile("sgd", loss)
    with pytest.raises(ValueError, match=sentence):
        getattr(distiller, entrance)(X, y)
    np.testing.assert_array_equal(student.get_weights()[0], before)


def channels_first(activation, seed):
    init = keras.initializers.RandomNormal(seed=seed)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(12, kernel_initializer=init),
            keras.layers.Reshape((3, 4)),
            *activation,
        ]
    )


@pytest.mark.parametrize("is_linear", [False, True])
def test_classes_that_are_not_on_the_last_axis_are_refused(is_linear):
    last = [] if is_linear else [keras.layers.Softmax(axis=1)]
    loss = keras.losses.CategoricalCrossentropy(from_logits=is_linear, axis=1)
    student = channels_first(last, 0)
    before = student.get_weights()
    y = np.moveaxis(np.eye(3)[np.zeros((len(X), 4), int)], -1, 1)
    with pytest.raises(ValueError, match="classes are on axis 1 by .*Permute"):
        step(student, channels_first(last, 1), loss, y)
    assert all(map(np.array_equal, before, student.get_weights()))


def test_shares_of_another_axis_under_a_regression_loss_are_values():
    last = [keras.layers.Softmax(axis=1)]
    student, teacher = channels_first(last, 0), channels_first(last, 1)
    want = np.mean((teacher(X) - student(X)) ** 2)
    y = np.full((len(X), 3, 4), 1 / 3)
    distiller = kd.Distiller(student, teacher, temperature=T)
    distiller.compile("sgd", "mse")
    found = distiller.train_on_batch(X, y, return_dict=True)["soft_loss"]
    assert found == pytest.approx(want, rel=1e-5)


def test_the_last_axis_is_that_of_the_layer_also_before_a_reshape():
    layers = [keras.layers.Softmax(axis=2), keras.layers.Reshape((3, 2, 2))]
    model = channels_first(layers, 0)
    assert kinds_of(model, "categorical_crossentropy") == "softmax"


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"output_kinds": "values"}, None),
        ({"output_kinds": "softmax"}, "says 'softmax', but loss BinaryCross"),
        ({"output_kinds": "regression"}, "output_kinds must be 'softmax', 'sigmoid' or"),
        ({"distillation_loss": kd.CosineLoss()}, "CosineLoss does not compare .* 'sigmoid'"),
        ({"distillation_loss": keras.distillation.LogitsDistillation()},
         "LogitsDistillation does not compare"),
    ],
)  # fmt: skip
def test_what_is_said_is_held_to_layer_and_loss(kwargs, sentence):
    def compiled():
        distiller = kd.Distiller(head(3), head(3, seed=1), **kwargs)
        distiller.compile("sgd", BINARY)
        return distiller

    if sentence is None:
        assert compiled().output_kinds == kwargs["output_kinds"]
        return
    with pytest.raises(ValueError, match=sentence):
        compiled()


def test_student_and_teacher_that_say_other_things():
    teacher = head(3)
    teacher.compile("sgd", "mse")
    distiller = kd.Distiller(head(3, seed=1), teacher)
    with pytest.raises(
        ValueError, match="of the kind 'softmax' and the teacher's are 'val"
    ):
        distiller.compile("sgd", SPARSE)
    with pytest.raises(ValueError, match="SoftTargetLoss does not compare .* 'values'"):
        kd.Distiller(
            head(3, seed=1), head(3), distillation_loss=kd.SoftTargetLoss()
        ).compile("sgd", "mse")


@pytest.mark.parametrize("kinds", [("softmax", "sigmoid"), ("sigmoid", "softmax")])
def test_classes_and_questions_do_not_teach_each_other(kinds):
    ours, theirs = kinds
    with pytest.raises(
        ValueError, match="the student's 3 numbers are .* cannot be mat"
    ):
        kd.Distiller(head(3, ours), head(3, theirs, seed=1))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("entrance", ["step", "graph"])
def test_a_loop_of_ones_own_is_settled_too(entrance):
    distiller = kd.Distiller(head(1), head(1, seed=1))
    distiller.compile("sgd", own)
    x, y = keras.ops.array(X), keras.ops.array(LABELS[1][:, None])
    if entrance == "step":  # labels have values
        logs = distiller.train_step((x, y))
        assert distiller.output_kinds == "sigmoid"
        assert float(logs["soft_loss"]) > 0
        return
    with pytest.raises(ValueError, match="nothing says what the single number"):
        tf.function(distiller.train_step)((x, y))


def test_a_single_number_of_which_nothing_says_what_it_is():
    student = head(1)
    distiller = kd.Distiller(student, head(1, seed=1), alpha=0.0)
    distiller.compile("sgd")
    before = student.get_weights()[0]
    with pytest.raises(ValueError, match="a yes/no question or a value.*output_kinds="):
        distiller.fit(X, verbose=0)
    np.testing.assert_array_equal(student.get_weights()[0], before)


@pytest.mark.parametrize(
    ("units", "y", "kind"),
    [
        (3, Y["species"], "softmax"),
        (3, np.eye(3)[Y["species"]], "softmax"),
        (4, LABELS[4], "sigmoid"),
        (3, RNG.normal(size=(12, 3)), "values"),
        (1, LABELS[1], "sigmoid"),
        (1, RNG.normal(size=12), "values"),
    ],
)
def test_labels_say_what_a_loss_of_ones_own_does_not(units, y, kind):
    def mine(y_true, y_pred):
        return keras.ops.mean(y_pred, -1)

    distiller = kd.Distiller(head(units), head(units, seed=1))
    distiller.compile("sgd", mine)
    distiller.fit(X, y, verbose=0)
    assert distiller.output_kinds == kind


def test_what_a_distiller_found_is_known_of_its_student():
    student = head(4)
    assert kinds_of(student) is None
    kd.Distiller(student, head(4, seed=1)).compile("sgd", BINARY)
    assert kinds_of(student) == "sigmoid"


@pytest.mark.parametrize("loss", ["mse", BINARY, SPARSE])
def test_kinds_outlive_saving(loss, tmp_path):
    units = 4
    distiller = kd.Distiller(head(units), head(units, seed=1))
    distiller.compile("sgd", loss)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert loaded.output_kinds == distiller.output_kinds is not None


def test_odds_of_bare_probabilities():
    p = np.array([[0.0, 0.25, 1.0]], "float32")
    z = np.asarray(to_logits(p, False, "sigmoid"))
    assert np.isfinite(z).all()
    np.testing.assert_allclose(z[0, 1], np.log(1 / 3), rtol=1e-6)


def test_one_number_without_an_axis_of_its_own():
    def flat(seed):
        inner = head(1, seed=seed)
        return keras.Sequential([inner, keras.layers.Reshape(())])

    teacher, student = flat(0), flat(1)
    t, s = (m.predict(X, verbose=0) for m in (teacher, student))
    logs, _ = step(student, teacher, "mse", RNG.normal(size=12))
    np.testing.assert_allclose(logs["soft_loss"], np.mean((t - s) ** 2), rtol=1e-5)
