"""Teachers that are functions of the user's, most of which leave TensorFlow."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

import keras_distill as kd
from keras_distill.user_functions import UserFunction

from .conftest import CLASSES, FEATURES, SPARSE, largest_difference, mlp

WEIGHTS = np.random.default_rng(5).normal(size=(FEATURES, CLASSES)).astype("float32")


def in_graph(x):
    return tf.matmul(x, WEIGHTS)


def of_arrays(x):
    """As ONNX Runtime does, it wants arrays; and it writes to them."""
    if not isinstance(x, np.ndarray):
        raise TypeError("an array is wanted")
    answer = (x @ WEIGHTS).astype("float64")
    x[:] = np.nan
    return answer


def by_predict():
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES)])
    model.set_weights([WEIGHTS, np.zeros(CLASSES)])
    return lambda x: model.predict(x, verbose=0)


class Subclassed(keras.Model):
    """A model that is built by data, and whose call leaves TensorFlow."""

    def call(self, x):
        return tf.constant(x.numpy() @ WEIGHTS)


#: Each gives the same logits.
FUNCTIONS = {
    "NumPy": lambda: lambda x: np.asarray(x) @ WEIGHTS,
    "arrays alone": lambda: of_arrays,
    "numpy_function": lambda: (
        lambda x: tf.numpy_function(lambda a: a @ WEIGHTS, [x], tf.float32)
    ),
    "py_function": lambda: (
        lambda x: tf.py_function(
            lambda a: tf.cast(a @ WEIGHTS, tf.float64), [x], tf.float64
        )
    ),
    "predict": by_predict,
    "subclassed": Subclassed,
    "as_teacher": lambda: kd.as_teacher(of_arrays),
    "list": lambda: [of_arrays, in_graph],
}


def trained(teacher, data, how, policy="float32"):
    """Returns a student's weights after some steps under a teacher."""
    keras.utils.set_random_seed(7)
    keras.config.set_dtype_policy(policy)
    distiller = kd.Distiller(mlp(6), teacher, teacher_from_logits=True)
    keras.config.set_dtype_policy("float32")
    distiller.compile(keras.optimizers.SGD(0.1), SPARSE)
    how(distiller, *data)
    return distiller.student.get_weights()


def fit(distiller, x, y):
    distiller.fit(x, y, batch_size=24, epochs=2, shuffle=False, verbose=0)


def fit_several_steps(distiller, x, y):
    distiller.compile(keras.optimizers.SGD(0.1), SPARSE, steps_per_execution=2)
    fit(distiller, x, y)


def fit_eagerly(distiller, x, y):
    distiller.compile(keras.optimizers.SGD(0.1), SPARSE, run_eagerly=True)
    fit(distiller, x, y)


def train_on_batch(distiller, x, y):
    for start in (0, 24, 48) * 2:
        rows = slice(start, start + 24)
        distiller.train_on_batch(x[rows], y[rows])


def own_loop(distiller, x, y, wrap=lambda step: step):
    step = wrap(distiller.train_step)
    for _ in range(2):
        for batch in tf.data.Dataset.from_tensor_slices((x, y)).batch(24):
            step(batch)


def own_compiled_loop(distiller, x, y):
    own_loop(distiller, x, y, lambda step: tf.function(step, autograph=False))


WAYS = (fit_several_steps, fit_eagerly, train_on_batch, own_loop, own_compiled_loop)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("name", "how"),
    [(name, fit) for name in FUNCTIONS]
    + [("arrays alone", how) for how in WAYS]
    + [("list", train_on_batch)],
)
def test_it_teaches_as_the_same_function_in_the_graph(name, how, data):
    expected = trained(in_graph, data, fit)
    weights = trained(FUNCTIONS[name](), data, how)
    assert largest_difference(expected, weights) < 1e-5


@pytest.mark.slow
def test_it_teaches_under_a_mixed_policy(data):
    expected = trained(in_graph, data, fit, "mixed_bfloat16")
    weights = trained(of_arrays, data, fit, "mixed_bfloat16")
    assert largest_difference(expected, weights) < 1e-5


@pytest.mark.slow
def test_it_teaches_on_two_replicas(data, mirrored):
    expected = trained(in_graph, data, fit)
    with mirrored.scope():
        weights = trained(FUNCTIONS["NumPy"](), data, fit)
    assert largest_difference(expected, weights) < 1e-5


@pytest.mark.parametrize(
    "name", ["arrays alone", "numpy_function", "subclassed", "list"]
)
def test_it_is_cached_as_it_is(name, data, tmp_path):
    x, _ = data
    given = {"teacher_from_logits": True, "batch_size": 24, "verbose": False}
    given |= {"shard_size": 24, "dtype": "float32", "teacher_average": "logits"}
    targets = kd.SoftTargets.write(tmp_path, FUNCTIONS[name](), x, **given)
    found = np.concatenate([part.numpy() for part in targets.logits()])
    np.testing.assert_allclose(found, x @ WEIGHTS, rtol=1e-5)


@pytest.mark.slow
def test_it_is_cached_by_other_processes(data, tmp_path):
    x, _ = data
    given = {"teacher_from_logits": True, "shard_size": 16, "batch_size": 16}
    teacher = kd.as_teacher(FUNCTIONS["NumPy"](), True)
    teacher(x, 1.0)  # what it has seen goes along
    targets = kd.SoftTargets.write(
        tmp_path, teacher, x, n_jobs=2, dtype="float32", verbose=False, **given
    )
    found = np.concatenate([part.numpy() for part in targets.logits()])
    np.testing.assert_allclose(found, x @ WEIGHTS, rtol=1e-5)


@pytest.fixture
def forest(data):
    return RandomForestClassifier(5, random_state=0).fit(*data)


@pytest.mark.parametrize("how", [fit, train_on_batch, own_loop, own_compiled_loop])
def test_what_it_gives_is_settled_on_the_first_batch_wherever_it_comes(
    forest, data, how
):
    distiller = kd.Distiller(mlp(6), forest.predict_proba, alpha=0.0)
    distiller.compile(keras.optimizers.SGD(0.1), SPARSE)
    with pytest.warns(UserWarning, match="taken as probabilities"):
        how(distiller, *data)
    assert distiller._state.teacher.from_logits is False


def test_a_function_judges_and_is_judged(forest, data):
    x, _ = data
    y = forest.predict(x)
    distiller = kd.Distiller(mlp(6), forest.predict_proba, teacher_from_logits=False)
    distiller.compile("sgd", SPARSE, metrics=[kd.TeacherAgreement()])
    z = distiller.predict(x, verbose=0)
    expected = np.mean(z.argmax(-1) == y)
    for judged in (
        distiller.evaluate(x, y, verbose=0, return_dict=True),
        distiller.test_on_batch(x, y, return_dict=True),
    ):
        assert judged["teacher_agreement"] == pytest.approx(expected)
    found = kd.evaluate(forest.predict_proba, (x, y), from_logits=False, timing=False)
    assert found.accuracy == 1.0
    covariance = kd.class_covariance(forest.predict_proba, x, from_logits=False)
    expected = np.cov(forest.predict_proba(x).T)
    np.testing.assert_allclose(covariance, expected, atol=1e-6)


def test_a_regression_answers_one_number_for_each_example(data):
    x, _ = data
    y = x[:, 0] * x[:, 1]
    teacher = RandomForestRegressor(5, random_state=0).fit(x, y).predict
    distiller = kd.Distiller(mlp(6, 1), teacher, alpha=0.0)
    distiller.compile(keras.optimizers.SGD(0.0), "mse")
    soft = distiller.fit(x, y, verbose=0).history["soft_loss"][0]
    expected = np.mean((distiller.predict(x, verbose=0)[:, 0] - teacher(x)) ** 2)
    assert soft == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_several_inputs_and_outputs(data, tmp_path):
    x, _ = data

    def teacher(inputs):
        both = inputs["a"].astype("float64") + inputs["b"]  # of arrays alone
        return {"one": both @ WEIGHTS, "two": [both @ WEIGHTS[:, :2]][0]}

    inputs = {"a": keras.Input((FEATURES,)), "b": keras.Input((FEATURES,))}
    hidden = keras.layers.Add()(list(inputs.values()))
    outputs = {
        "one": keras.layers.Dense(CLASSES)(hidden),
        "two": keras.layers.Dense(2)(hidden),
    }
    student = keras.Model(inputs, outputs)
    data = {"a": x, "b": -0.5 * x}
    distiller = kd.Distiller(student, teacher, teacher_from_logits=True, alpha=0.0)
    distiller.compile("sgd")
    live = distiller.fit(data, batch_size=24, shuffle=False, verbose=0).history["loss"]
    targets = kd.SoftTargets.write(
        tmp_path, teacher, data, teacher_from_logits=True, verbose=False
    )
    found = next(iter(targets.logits()))
    np.testing.assert_allclose(found["two"], 0.5 * x @ WEIGHTS[:, :2], atol=1e-2)
    assert np.isfinite(live[0])


def test_sequences_of_other_lengths_have_answers_of_theirs():
    table = np.random.default_rng(0).normal(size=(20, CLASSES)).astype("float32")
    student = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(20, 4),
            keras.layers.Dense(CLASSES),
        ]
    )
    batches = [np.full((4, length), length) for length in (3, 5, 7)]
    dataset = tf.data.Dataset.from_generator(
        lambda: batches, output_signature=tf.TensorSpec((None, None), tf.int32)
    ).apply(tf.data.experimental.assert_cardinality(3))
    seen = []
    distiller = kd.Distiller(
        student,
        lambda x: seen.append(x.shape[1]) or table[np.asarray(x)],
        teacher_from_logits=True,
        alpha=0.0,
    )
    distiller.compile("sgd")
    assert np.isfinite(distiller.fit(dataset, verbose=0).history["loss"][0])
    assert {3, 5, 7} <= set(seen)


def later_wrong(wrong):
    """Returns a teacher that answers wrongly from its third call on."""
    calls = []

    def teacher(x):
        calls.append(x)
        answer = np.asarray(x) @ WEIGHTS
        return wrong(answer) if len(calls) > 3 else answer

    return teacher


def broken(answer):
    raise RuntimeError("the service is gone")


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            lambda z: z[:, 1:],
            ValueError,
            r"with shape .*5\) and a later one with .*4\)",
        ),
        (lambda z: z[:-1], ValueError, r"answers 15 row\(s\) for batch"),
        (lambda z: z * np.nan, ValueError, "not all finite"),
        (broken, RuntimeError, "the service is gone"),
    ],
)
def test_a_later_wrong_answer_stops_the_run_with_what_it_said(
    wrong, error, message, data, tmp_path
):
    distiller = kd.Distiller(mlp(6), later_wrong(wrong), teacher_from_logits=True)
    distiller.compile("sgd", SPARSE)
    with pytest.raises(error, match=message):
        distiller.fit(*data, batch_size=16, epochs=2, verbose=0)
    assert np.isfinite(
        np.concatenate([w.ravel() for w in distiller.get_weights()])
    ).all()
    if wrong is broken:
        with pytest.raises(error, match=message):
            kd.SoftTargets.write(
                tmp_path, later_wrong(wrong), data[0], verbose=False,
                teacher_from_logits=True, batch_size=16, shard_size=16,
            )  # fmt: skip


def test_what_fails_at_first_is_said_as_it_is(data):
    distiller = kd.Distiller(mlp(6), broken, teacher_from_logits=True)
    distiller.compile("sgd", SPARSE)
    before = distiller.get_weights()
    for call in (distiller.fit, distiller.train_on_batch):
        with pytest.raises(RuntimeError, match="the service is gone"):
            call(*data)
    assert largest_difference(before, distiller.get_weights()) == 0.0


def test_single_examples_are_told_of_batched(forest, data, tmp_path):
    examples = tf.data.Dataset.from_tensor_slices(data[0])
    given = {"teacher_from_logits": False, "verbose": False}
    for teacher in (forest.predict_proba, lambda x: np.asarray(x) @ WEIGHTS):
        with pytest.raises(ValueError, match="pass batched=False if they are single"):
            kd.SoftTargets.write(tmp_path, teacher, examples, **given)
    assert not list(tmp_path.glob("*.tfrecord*"))
    targets = kd.SoftTargets.write(
        tmp_path, forest.predict_proba, examples, batched=False, **given
    )
    assert len(targets) == 64


def test_a_function_in_the_graph_is_not_called_again(data):
    calls = []
    function = UserFunction(lambda x: calls.append(1) or in_graph(x), "f")
    step = tf.function(function)
    for _ in range(3):
        np.testing.assert_allclose(step(data[0]), data[0] @ WEIGHTS, rtol=1e-5)
    assert len(calls) == 1
    assert not function.leaves_graph


@pytest.mark.slow
def test_a_session_of_onnx_runtime_teaches(data, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["z"])],
        "teacher",
        [onnx.helper.make_tensor_value_info("x", 1, ("n", FEATURES))],
        [onnx.helper.make_tensor_value_info("z", 1, ("n", CLASSES))],
        [onnx.numpy_helper.from_array(WEIGHTS, "w")],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    session = runtime.InferenceSession(model.SerializeToString())

    def teacher(x):
        return session.run(None, {"x": x})[0]

    expected = trained(in_graph, data, fit)
    assert largest_difference(expected, trained(teacher, data, fit)) < 1e-5
    targets = kd.SoftTargets.write(
        tmp_path, teacher, data[0], teacher_from_logits=True, verbose=False
    )
    found = next(iter(targets.logits()))
    np.testing.assert_allclose(found, data[0] @ WEIGHTS, atol=2e-2)


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda z: z.tolist(), "got list"),
        (lambda z: None, "got NoneType"),
        (lambda z: z.astype(object), "got dtype object"),
        (lambda z: z.argmax(-1), "got dtype int64; a class number"),
    ],
)
def test_what_is_no_answer_is_refused_where_models_are_judged_too(answer, got, data):
    def teacher(x):
        return answer(np.asarray(x) @ WEIGHTS)

    distiller = kd.Distiller(mlp(8), teacher)
    distiller.compile("sgd", SPARSE)
    with pytest.raises(TypeError, match=f"must return floats .*{got}"):
        distiller.fit(*data, verbose=0)
    with pytest.raises(TypeError, match=f"must return floats .*{got}"):
        kd.evaluate(mlp(8), data, teacher=teacher, timing=False)


@pytest.mark.slow
def test_a_judge_sees_what_is_prepared_and_of_the_classes_that_were_chosen(data):
    def of_more(x):
        z = np.asarray(x)[:, 0] @ WEIGHTS  # (batch, 1, features), as no data here has
        return np.concatenate([z, z], -1)

    teacher = kd.as_teacher(
        of_more,
        from_logits=True,
        preprocess=lambda x: x[:, None],
        classes=list(range(CLASSES)),
    )
    plain = kd.as_teacher(lambda x: np.asarray(x) @ WEIGHTS, from_logits=True)
    student = mlp(8)
    found, expected = (
        kd.evaluate(student, data, teacher=one, timing=False).teacher_agreement
        for one in (teacher, plain)
    )
    assert found == expected
