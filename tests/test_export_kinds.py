"""What is served of yes/no questions, of values, and of several outputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit, softmax

import keras_distill as kd
from keras_distill.export import check
from tests.conftest import copy_of
from tests.forking import answer_here

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
BINARY = keras.losses.BinaryCrossentropy(from_logits=True)


@pytest.fixture(autouse=True)
def _answers_here(monkeypatch):
    monkeypatch.setattr(check, "ask_fresh_process", answer_here)


def export(model, tmp_path, **given):
    path = kd.export_savedmodel(model, tmp_path / "m", verbose=False, **given)
    return tf.saved_model.load(path).signatures["serving_default"]


def ask(model, tmp_path, x=X, **given):
    serve = export(model, tmp_path, **given)
    return {name: value.numpy() for name, value in serve(x=tf.constant(x)).items()}


def head(size, activation=None, loss=None):
    model = keras.Sequential(
        [keras.Input((4,), name="x"), keras.layers.Dense(size, activation=activation)]
    )
    if loss is not None:
        model.compile("adam", loss)
    return model


def identity(shape, **attributes):
    """Returns a subclassed model that gives what it is given."""
    own = type("Own", (keras.Model,), {"call": lambda self, x: x, **attributes})()
    own(np.zeros((1, *shape), "float32"))
    return own


def spec(*shape):
    return {"input_signature": tf.TensorSpec([None, *shape], tf.float32, name="x")}


@pytest.mark.parametrize(
    ("size", "activation", "loss"), [(1, "sigmoid", None), (3, None, BINARY)]
)
def test_questions_have_a_probability_and_an_answer_each(
    tmp_path, size, activation, loss
):
    model = head(size, activation, loss)
    answer = ask(model, tmp_path)
    assert set(answer) == {"logits", "probabilities", "label"}
    kernel, bias = model.get_weights()
    z = X.astype("float64") @ kernel + bias
    np.testing.assert_allclose(answer["logits"], z, atol=1e-5)
    np.testing.assert_allclose(answer["probabilities"], expit(z), atol=1e-6)
    assert answer["label"].dtype == np.int64
    expected = (z >= 0).astype(int)
    np.testing.assert_array_equal(
        answer["label"], expected[:, 0] if size == 1 else expected
    )
    assert 0 < answer["label"].mean() < 1


def test_logits_are_those_before_the_sigmoid(tmp_path):
    model = head(1, "sigmoid")
    model.set_weights([np.full((4, 1), 50.0), np.zeros(1)])
    x = np.float32([[1, 1, 1, 1], [-1, -1, -1, -1]])
    assert ask(model, tmp_path, x)["logits"].tolist() == [[200.0], [-200.0]]


@pytest.mark.parametrize("threshold", [0.3, 0.7])  # to float32 up, and down
def test_a_probability_at_the_threshold_is_a_yes(tmp_path, threshold):
    at = np.float32(threshold)
    p = np.float32(
        [np.nextafter(at, np.float32(0)), at, np.nextafter(at, np.float32(1))]
    )
    model = identity((1,), outputs_are_logits=False, output_kinds="sigmoid")
    answer = ask(model, tmp_path, p[:, None], threshold=threshold, **spec(1))
    np.testing.assert_array_equal(answer["probabilities"][:, 0], p)
    assert answer["label"].tolist() == [0, 1, 1]


def test_a_logit_of_zero_is_a_yes(tmp_path):
    model = identity((2,), outputs_are_logits=True)
    x = np.float32([[0.0, -1e-3], [-0.0, 1e-3]])
    answer = ask(model, tmp_path, x, output_kinds="sigmoid", **spec(2))
    assert answer["label"].tolist() == [[1, 0], [1, 1]]


def test_each_question_may_have_a_threshold_of_its_own(tmp_path):
    model = identity((3,), outputs_are_logits=False, output_kinds="sigmoid")
    x = np.float32([[0.2, 0.5, 0.95], [0.1, 0.4, 0.8]])
    answer = ask(model, tmp_path, x, threshold=[0.2, 0.5, 0.9], **spec(3))
    assert answer["label"].tolist() == [[1, 1, 1], [0, 0, 0]]


def test_names_of_answers_are_in_the_graph(tmp_path):
    one = head(1, "sigmoid")
    names = ask(one, tmp_path, class_names=["ham", "spam"])["label"]
    is_spam = one.predict(X, verbose=0)[:, 0] >= 0.5
    assert [n.decode() for n in names] == ["spam" if s else "ham" for s in is_spam]
    several = head(3, "sigmoid")
    answer = ask(several, tmp_path, class_names=["a", "b", "c"])
    is_yes = several.predict(X, verbose=0) >= 0.5
    np.testing.assert_array_equal(
        answer["label"], np.where(is_yes, list("abc"), "").astype("S")
    )


@pytest.mark.parametrize("channels", [1, 2])
def test_masks_have_an_answer_for_each_pixel(tmp_path, channels):
    image = keras.Input((6, 5, 3), name="x")
    mask = keras.layers.Conv2D(channels, 3, padding="same", activation="sigmoid")(image)
    model = keras.Model(image, mask)
    x = np.random.default_rng(1).normal(size=(2, 6, 5, 3)).astype("float32")
    answer = ask(model, tmp_path, x)
    is_yes = model.predict(x, verbose=0) >= 0.5
    assert answer["probabilities"].shape == (2, 6, 5, channels)
    np.testing.assert_array_equal(
        answer["label"], is_yes[..., 0] if channels == 1 else is_yes
    )


def test_an_output_without_an_axis_of_questions_is_one(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((4,), name="x"),
            keras.layers.Dense(1, activation="sigmoid"),
            keras.layers.Reshape(()),
        ]
    )
    assert ask(model, tmp_path)["label"].shape == (64,)


@pytest.mark.parametrize(
    ("size", "loss"), [(1, "mse"), (3, keras.losses.CosineSimilarity())]
)
def test_values_are_served_as_they_are(tmp_path, size, loss):
    model = head(size, None, loss)
    answer = ask(model, tmp_path)
    assert list(answer) == ["values"]
    np.testing.assert_allclose(answer["values"], model.predict(X, verbose=0), atol=1e-6)


def test_values_between_0_and_1_are_no_probabilities_if_said(tmp_path):
    answer = ask(head(2, "sigmoid"), tmp_path, output_kinds="values")
    assert list(answer) == ["values"]


@pytest.mark.parametrize("structure", [dict, list])
def test_each_of_several_outputs_is_of_its_own_kind(tmp_path, structure):
    inputs = keras.Input((4,), name="x")
    heads = {
        "digit": keras.layers.Dense(3, name="digit")(inputs),
        "tags": keras.layers.Dense(2, activation="sigmoid", name="tags")(inputs),
        "size": keras.layers.Dense(1, name="size")(inputs),
    }
    outputs = heads if structure is dict else list(heads.values())
    model = keras.Model(inputs, outputs)
    model.compile(
        "adam",
        {
            "digit": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "tags": "binary_crossentropy",
            "size": "mse",
        },
    )
    names = {"digit": ["one", "two", "three"]}
    answer = ask(model, tmp_path, class_names=names, threshold={"tags": [0.9, 0.1]})
    digit, tags, size = ("digit", "tags", "size") if structure is dict else "012"
    both = ("logits", "probabilities", "label")
    assert set(answer) == {
        *(f"{one}_{what}" for one in (digit, tags) for what in both),
        f"{size}_values",
    }
    found = model.predict(X, verbose=0)
    z, p, value = found.values() if structure is dict else found
    np.testing.assert_allclose(
        answer[f"{digit}_probabilities"], softmax(z, -1), atol=1e-6
    )
    labels = [label.decode() for label in answer[f"{digit}_label"]]
    assert labels == [names["digit"][i] for i in z.argmax(-1)]
    np.testing.assert_array_equal(answer[f"{tags}_label"], p >= np.float32([0.9, 0.1]))
    np.testing.assert_allclose(answer[f"{size}_values"], value, atol=1e-6)


# Which kind it is ------------------------------------------------------------------------


def distiller_of(student, loss, **given):
    distiller = kd.Distiller(student, copy_of(student), **given)
    distiller.compile("adam", loss)
    return distiller


def test_a_distillers_student_is_served_as_it_was_trained(tmp_path):
    distiller = distiller_of(head(3), BINARY)
    for model in (distiller, distiller.student):
        answer = ask(model, tmp_path)
        assert answer["label"].shape == (64, 3)
        np.testing.assert_allclose(
            answer["probabilities"], expit(answer["logits"]), atol=1e-6
        )


def test_a_head_that_is_not_distilled_is_served_by_its_loss(tmp_path):
    inputs = keras.Input((4,), name="x")
    student = keras.Model(
        inputs, {"a": keras.layers.Dense(3)(inputs), "b": keras.layers.Dense(2)(inputs)}
    )
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller = distiller_of(
        student,
        {"a": sparse, "b": "mse"},
        distillation_loss={"a": kd.SoftTargetLoss()},
    )
    names = {"a_logits", "a_probabilities", "a_label", "b_values"}
    assert set(ask(distiller, tmp_path)) == names
    # What is said of one output leaves the other as it was found.
    said = ask(student, tmp_path, output_kinds={"a": "values"})
    assert set(said) == {"a_values", "b_values"}


@pytest.mark.parametrize(
    ("loss", "names"),
    [(BINARY, {"logits", "probabilities", "label"}), ("mse", {"values"})],
)
def test_a_compiled_model_from_a_file_says_its_kind(tmp_path, loss, names):
    head(1, None, loss).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert set(ask(loaded, tmp_path)) == names


def test_a_single_number_of_which_nothing_says_what_it_is_is_refused(tmp_path):
    for model, given in (
        (head(1), {}),
        (identity((1,), outputs_are_logits=True), spec(1)),
    ):
        with pytest.raises(
            ValueError, match='nothing says .* say output_kinds="sigmoid"'
        ):
            export(model, tmp_path, **given)
        assert set(
            ask(
                model,
                tmp_path,
                X[:, :1] if given else X,
                output_kinds="values",
                **given,
            )
        ) == {"values"}


def test_several_numbers_of_which_nothing_says_what_they_are_are_classes(tmp_path):
    with pytest.warns(
        UserWarning, match="nothing says whether the 3 numbers .* Pass output_kinds"
    ):
        answer = ask(head(3), tmp_path)
    np.testing.assert_allclose(answer["probabilities"].sum(-1), 1.0, rtol=1e-5)
    assert answer["label"].shape == (64,)


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (
            lambda: head(3, "softmax"),
            {"threshold": 0.3},
            "threshold is 0.3, but the output has no yes/no question: it is of kind 'softmax'",
        ),
        (
            lambda: head(1, None, "mse"),
            {"threshold": [0.3]},
            "no yes/no question: it is of kind 'values'. Leave it out, or say output_kinds",
        ),
        (
            lambda: head(3, "sigmoid"),
            {"threshold": [0.5, 0.5]},
            r"threshold has 2 numbers, but the output answers 3 question\(s\); give one",
        ),
        (
            lambda: head(1, None, "mse"),
            {"class_names": ["a"]},
            "class_names are given, but the output has values, which have no classes; leave",
        ),
        (
            lambda: head(1, "sigmoid"),
            {"class_names": ["yes"]},
            "class_names has 1 names, but the output answers one yes/no question; give two",
        ),
        (
            lambda: head(3, "sigmoid"),
            {"class_names": ["no", "yes"]},
            "class_names has 2 names, but the model has 3 classes",
        ),
        (
            lambda: head(3, "softmax"),
            {"output_kinds": "sigmoid"},
            "the last layer .* is a softmax, but output_kinds says 'sigmoid'",
        ),
        (
            lambda: head(1, "softmax"),
            {},
            "the model has 1 class: a softmax over it is always 1. Build it with",
        ),
        (
            lambda: head(3, "softmax"),
            {"threshold": {"heat": 0.3}},
            "threshold names the output 'heat', which the model does not have",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_an_output_is_refused(tmp_path, model, given, message):
    with pytest.raises(ValueError, match=message):
        export(model(), tmp_path, **given)
    assert not (tmp_path / "m").exists()


def test_a_threshold_by_name_is_for_questions_alone(tmp_path):
    inputs = keras.Input((4,), name="x")
    outputs = {
        "is_big": keras.layers.Dense(1, activation="sigmoid")(inputs),
        "kind": keras.layers.Dense(3, activation="softmax")(inputs),
    }
    model = keras.Model(inputs, outputs)
    with pytest.raises(
        ValueError, match="threshold is 0.5, but the output 'kind' has no"
    ):
        export(model, tmp_path, threshold={"kind": 0.5})
    with pytest.raises(
        ValueError, match="3 classes in its output 'kind'; give one name"
    ):
        export(model, tmp_path, class_names=["no", "yes"])
    answer = ask(model, tmp_path, threshold=0.4)
    expected = model.predict(X, verbose=0)["is_big"][:, 0] >= np.float32(0.4)
    np.testing.assert_array_equal(answer["is_big_label"], expected)


def test_a_turned_answer_is_found_but_not_at_the_threshold(tmp_path, monkeypatch):
    def turned(*asked):
        (answer,) = answer_here(*asked)
        answer["label"] = 1 - answer["label"]
        return [answer]

    monkeypatch.setattr(check, "ask_fresh_process", turned)
    model = identity((1,), outputs_are_logits=False, output_kinds="sigmoid")
    given = {"threshold": 0.3, **spec(1)}
    with pytest.raises(
        RuntimeError, match=r"other label in a fresh process \(1 labels"
    ):
        export(model, tmp_path, example=[[0.31]], **given)
    export(model, tmp_path, example=[[0.3 + 1e-7]], **given)


# As a teacher ----------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_exported_teaches_as_what_it_is(tmp_path):
    inputs = keras.Input((4,), name="x")
    losses = {
        "a": BINARY,
        "b": "mse",
        "c": keras.losses.SparseCategoricalCrossentropy(True),
    }
    heads = {name: keras.layers.Dense(2, name=name)(inputs) for name in losses}
    for number, outputs in enumerate((heads, list(heads.values())), 1):
        teacher = keras.Model(inputs, outputs)
        teacher.compile("sgd", losses)
        kd.export_savedmodel(teacher, tmp_path, verbose=False)
        y = dict(zip(losses, (X[:, :2] > 0, X[:, :2], X[:, 0] > 0), strict=True))
        y["c"] = y["c"].astype("int32")
        logs = []
        for one in (teacher, tmp_path / str(number)):
            distiller = kd.Distiller(copy_of(teacher), one)
            distiller.compile("sgd", losses)
            logs.append(distiller.train_on_batch(X, y, return_dict=True))
            distiller.student.set_weights([2 * w for w in teacher.get_weights()])
            logs.append(distiller.train_on_batch(X, y, return_dict=True))
        assert logs[2:] == [pytest.approx(log, rel=1e-5, abs=1e-6) for log in logs[:2]]
        assert logs[1]["soft_loss"] > 0.01


@pytest.mark.parametrize(
    ("size", "loss", "kind"),
    [(1, BINARY, "sigmoid"), (3, BINARY, "sigmoid"), (1, "mse", "values")],
)
def test_an_export_says_as_a_teacher_which_kind_it_is(tmp_path, size, loss, kind):
    export(head(size, None, loss), tmp_path)
    distiller = kd.Distiller(head(size), tmp_path / "m" / "1")
    distiller.compile("sgd")
    assert distiller.output_kinds == kind
