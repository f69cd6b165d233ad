import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

import keras_distill as kd
from keras_distill.export import check
from keras_distill.specialists.combination import combine
from tests import forking
from tests.conftest import CLASSES, FEATURES, SPARSE, mlp


def problem(rng, classes=7, specialists=3, scale=2.0):
    """One random example: log g, a cluster and probabilities for each specialist."""
    log_g = log_softmax(rng.normal(size=classes) * scale)
    clusters, answers = [], []
    for _ in range(specialists):
        size = rng.integers(2, classes - 1)
        clusters.append(np.sort(rng.choice(classes, size, replace=False)))
        answers.append(softmax(rng.normal(size=size + 1) * scale))
    return log_g, clusters, answers


def objective(log_q, log_g, clusters, answers):
    """KL(g || q) + sum of KL(p_m || q), written out."""
    value = np.sum(np.exp(log_g) * (log_g - log_q))
    for cluster, p in zip(clusters, answers, strict=True):
        outside = np.setdiff1d(np.arange(len(log_g)), cluster)
        q = np.append(np.exp(log_q[cluster]), np.exp(log_q[outside]).sum())
        value += np.sum(p * (np.log(p) - np.log(q)))
    return value


def arrays(log_g, clusters, answers):
    """What `combine` takes, for a batch of one."""
    special = np.zeros((1, len(log_g)))
    outside = np.ones((len(clusters), len(log_g)))
    for m, (cluster, p) in enumerate(zip(clusters, answers, strict=True)):
        special[0, cluster] += p[:-1]
        outside[m, cluster] = 0.0
    dustbin = np.array([[p[-1] for p in answers]])
    return log_g[None], special, dustbin, np.ones((1, len(clusters))), outside


@pytest.mark.parametrize("seed", range(8))
def test_combination_equals_gradient_descent(seed):
    rng = np.random.default_rng(seed)
    one = problem(rng, specialists=1 + seed % 4)
    found = np.asarray(combine(*arrays(*one), tolerance=1e-10, max_iterations=1000))[0]
    descended = minimize(
        lambda z: objective(log_softmax(z), *one), one[0], options={"gtol": 1e-9}
    )
    best = softmax(descended.x)
    np.testing.assert_allclose(np.exp(found), best, atol=1e-4)
    assert np.exp(found).sum() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_objective_never_rises(seed):
    one = problem(np.random.default_rng(100 + seed), specialists=4, scale=4.0)
    values = [objective(one[0], *one)]
    for iterations in range(1, 25):
        log_q = combine(*arrays(*one), tolerance=0.0, max_iterations=iterations)
        values.append(objective(np.asarray(log_q)[0], *one))
    assert np.all(np.diff(values) <= 1e-9)
    assert values[-1] < values[0] - 1e-3


@pytest.mark.slow
def test_default_tolerance_is_near_the_minimum():
    rng = np.random.default_rng(5)
    for _ in range(20):
        one = arrays(*problem(rng, specialists=3))
        single = [value.astype("float32") for value in one]
        near = np.asarray(combine(*single))
        far = np.asarray(combine(*one, tolerance=1e-12, max_iterations=5000))
        np.testing.assert_allclose(np.exp(near), np.exp(far), atol=1e-4)


def test_classes_that_the_generalist_excludes_are_not_lost():
    """The outside of the cluster has e^-200 of the generalist, half of the specialist."""
    log_g = log_softmax(np.array([200.0, 199.0, 0.0, 1.0], "float32"))[None]
    special = np.array([[0.25, 0.25, 0.0, 0.0]], "float32")
    half, one = np.full((1, 1), 0.5, "float32"), np.ones((1, 1), "float32")
    outside = np.array([[0.0, 0.0, 1.0, 1.0]])
    q = np.exp(np.asarray(combine(log_g, special, half, one, outside))[0])
    # Each class of the cluster is the mean of both; the rest shares the other quarter.
    np.testing.assert_allclose(q[:2], (np.exp(log_g[0, :2]) + 0.25) / 2, atol=1e-6)
    assert q[2:].sum() == pytest.approx(0.25, abs=1e-6)


def test_combination_compiles_and_stops():
    one = [
        value.astype("float32")
        for value in arrays(*problem(np.random.default_rng(3), specialists=3))
    ]
    plain = combine(*one)
    compiled = tf.function(lambda: combine(*one), jit_compile=True)()
    np.testing.assert_allclose(compiled, plain, atol=1e-5)
    with tf.GradientTape() as tape:
        log_g = tf.constant(one[0])
        tape.watch(log_g)
        answer = tf.function(combine)(log_g, *one[1:])
    assert tape.gradient(answer, log_g) is None


CLUSTERS = [[0, 1], [1, 2, 3]]


@keras.saving.register_keras_serializable("tests")
class Counted(keras.layers.Layer):
    """Passes on, and counts calls and rows."""

    def build(self, shape):
        self.calls = self.add_weight(initializer="zeros", trainable=False, name="calls")
        self.rows = self.add_weight(initializer="zeros", trainable=False, name="rows")

    def call(self, inputs):
        self.calls.assign_add(1.0)
        self.rows.assign_add(keras.ops.cast(keras.ops.shape(inputs)[0], "float32"))
        return inputs


def counted(outputs):
    return keras.Sequential(
        [keras.Input((FEATURES,)), Counted(name="count"), keras.layers.Dense(outputs)]
    )


def ensemble(**settings):
    return kd.SpecialistEnsemble(
        mlp(), [mlp(classes=3), mlp(classes=4)], CLUSTERS, **settings
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("n", [1, 2, None])
@pytest.mark.parametrize("head", ["dustbin", "all"])
def test_answers_are_the_minimum_of_the_objective(data, n, head):
    x, _ = data
    widths = (3, 4) if head == "dustbin" else (CLASSES, CLASSES)
    models = [mlp(), *(mlp(classes=width) for width in widths)]
    model = kd.SpecialistEnsemble(models[0], models[1:], CLUSTERS, n=n, head=head)
    found = model.predict(x, verbose=0)
    logits = [m.predict(x, verbose=0).astype("float64") for m in models]
    for i in range(len(x)):
        log_g = log_softmax(logits[0][i])
        likely = np.argsort(-log_g)[: n or CLASSES]
        active = [m for m in (0, 1) if n is None or set(likely) & set(CLUSTERS[m])]
        answers = [softmax(logits[m + 1][i]) for m in active]
        if head == "all":
            q = (np.exp(log_g) + sum(answers)) / (1 + len(active))
            np.testing.assert_allclose(np.exp(found[i]), q, atol=1e-5)
            continue
        one = arrays(log_g, [np.array(CLUSTERS[m]) for m in active], answers)
        if active:
            log_g = np.asarray(combine(*one, tolerance=1e-10, max_iterations=1000))[0]
        np.testing.assert_allclose(np.exp(found[i]), np.exp(log_g), atol=1e-5)


def test_without_specialists_it_is_the_generalist(data):
    x, _ = data
    generalist = mlp()
    alone = kd.SpecialistEnsemble(generalist)
    logits = generalist(x)
    np.testing.assert_array_equal(alone(x), keras.ops.log_softmax(logits))
    # Nor where no specialist is active.
    idle = kd.SpecialistEnsemble(generalist, [mlp(classes=3)], [[0, 1]])
    asleep = ~np.isin(np.argmax(logits, -1), [0, 1])
    assert asleep.any()
    np.testing.assert_array_equal(
        np.asarray(idle(x))[asleep], np.asarray(alone(x))[asleep]
    )


@pytest.mark.parametrize("n", [1, None])
def test_specialists_that_agree_change_nothing(data, n):
    from keras_distill.specialists.heads import as_specialist

    x, _ = data
    generalist = mlp()
    agreeing = [
        as_specialist(generalist, "dustbin", c, [0.0] * (len(c) + 1), CLASSES, True)
        for c in CLUSTERS
    ]
    model = kd.SpecialistEnsemble(generalist, agreeing, CLUSTERS, n=n)
    wanted = softmax(generalist.predict(x, verbose=0), -1)
    np.testing.assert_allclose(np.exp(model.predict(x, verbose=0)), wanted, atol=1e-5)


@pytest.mark.slow
def test_only_active_specialists_run_and_only_on_their_examples(data):
    x, _ = data
    generalist = mlp()
    specialists = [counted(3), counted(3), counted(3)]
    clusters = [[0, 1], [2, 3], [3, 4]]
    model = kd.SpecialistEnsemble(generalist, specialists, clusters)
    best = np.argmax(generalist(x), -1)
    batches = [x[best == 0], x[np.isin(best, [0, 2])], x]
    calls, rows = np.zeros(3), np.zeros(3)
    for batch in batches:
        model.predict_on_batch(batch)
        chosen = np.argmax(generalist(batch), -1)
        active = np.array([np.isin(chosen, cluster).sum() for cluster in clusters])
        calls += active > 0
        rows += active
    counts = [m.get_layer("count") for m in specialists]
    np.testing.assert_array_equal([float(c.calls) for c in counts], calls)
    np.testing.assert_array_equal([float(c.rows) for c in counts], rows)
    assert calls[2] < len(batches)
    # The same answers without routing.
    everywhere = model.with_settings(routed=False)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), everywhere.predict(x, verbose=0), atol=1e-5
    )
    jitted = tf.function(lambda x: everywhere(x), jit_compile=True)
    np.testing.assert_allclose(jitted(x), everywhere(x), atol=1e-5)


def test_generalist_and_specialists_may_end_in_softmax(data):
    x, _ = data
    logits, specialist = mlp(), mlp(classes=3)

    def with_softmax(model):
        return keras.Sequential([model, keras.layers.Softmax()])

    plain = kd.SpecialistEnsemble(logits, [specialist], [[0, 1]])
    soft = kd.SpecialistEnsemble(
        with_softmax(logits), [with_softmax(specialist)], [[0, 1]]
    )
    np.testing.assert_allclose(plain(x), soft(x), atol=1e-4)


def test_a_cluster_keeps_the_order_of_the_specialists_outputs(data):
    from keras_distill.specialists.heads import as_specialist

    x, _ = data
    generalist = mlp()
    agreeing = as_specialist(generalist, "dustbin", [3, 1], [0.0] * 3, CLASSES, True)
    model = kd.SpecialistEnsemble(generalist, [agreeing], [[3, 1]], n=np.int64(5))
    wanted = softmax(generalist.predict(x, verbose=0), -1)
    np.testing.assert_allclose(np.exp(model(x)), wanted, atol=1e-5)


def test_nan_is_seen_in_the_answer_and_in_its_row_alone(data):
    x, _ = data
    broken = mlp(classes=3)
    broken.layers[-1].bias.assign([np.nan] * 3)
    model = kd.SpecialistEnsemble(mlp(), [broken], [[0, 1]], n=None)
    assert np.isnan(model(x)).all()
    one = [
        np.repeat(value, 2, 0).astype("float32") if value.shape[0] == 1 else value
        for value in arrays(*problem(np.random.default_rng(3)))
    ]
    whole = np.asarray(combine(*one))
    one[0][0, 0] = np.nan
    found = np.asarray(combine(*one))
    assert np.isnan(found[0]).any()
    np.testing.assert_array_equal(found[1], whole[1])


def test_the_global_policy_does_not_touch_float32_models(data, tmp_path):
    x = data[0] * 1e5  # infinite in float16
    model = ensemble()
    wanted = model(x)
    model.save(tmp_path / "ensemble.keras")
    keras.config.set_dtype_policy("mixed_float16")
    loaded = keras.saving.load_model(tmp_path / "ensemble.keras")
    again = kd.SpecialistEnsemble(model.generalist, model.specialists, CLUSTERS)
    np.testing.assert_allclose(loaded(x), wanted, rtol=1e-5)
    np.testing.assert_allclose(again(x), wanted, rtol=1e-5)


def test_an_empty_batch_gives_an_empty_answer(data):
    x, _ = data
    assert ensemble()(x[:0]).shape == (0, CLASSES)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("n", "head", "routed"),
    [
        (1, "dustbin", True),
        (2, "all", True),
        (CLASSES, "dustbin", True),
        (1, "all", False),
        (None, "dustbin", False),
    ],
)
def test_an_example_is_answered_alike_in_every_batch(data, n, head, routed):
    widths = (3, 4) if head == "dustbin" else (CLASSES, CLASSES)
    specialists = [mlp(classes=width) for width in widths]
    settings = {"n": n, "head": head, "routed": routed}
    model = kd.SpecialistEnsemble(mlp(), specialists, CLUSTERS, **settings)
    x = np.tile(data[0], (16, 1))[:1000]
    wanted = np.exp(model.predict(x, batch_size=1000, verbose=0))
    graph = tf.function(lambda batch: model(batch))
    by_xla = tf.function(lambda batch: model(batch), jit_compile=True)
    for size in (1, 2, 33):
        batch = tf.constant(x[:size])
        answers = [
            model.predict(x[:size], verbose=0),
            model.predict_on_batch(x[:size]),
            model(batch),
            graph(batch),
            *([by_xla(batch)] if size == 1 and not routed else []),
        ]
        for answer in answers:
            np.testing.assert_allclose(np.exp(answer), wanted[:size], atol=2e-6)
    one_by_one = model.predict(x[:20], batch_size=1, verbose=0)
    np.testing.assert_allclose(np.exp(one_by_one), wanted[:20], atol=2e-6)


@pytest.mark.slow
def test_one_example_at_a_time_is_served_taught_and_judged(data, tmp_path, monkeypatch):
    x, y = data
    model = ensemble()
    wanted = model.predict(x, verbose=0)
    monkeypatch.setattr(check, "ask_fresh_process", forking.answer_here)
    spec = tf.TensorSpec([1, FEATURES], tf.float32, name="x")
    path = kd.export_savedmodel(
        model, tmp_path / "m", input_signature=spec, verbose=False
    )
    serve = tf.saved_model.load(path).signatures["serving_default"]
    for i in range(5):
        answer = serve(x=tf.constant(x[i : i + 1]))["logits"]
        np.testing.assert_allclose(answer[0], wanted[i], atol=1e-5)
    ones = tf.data.Dataset.from_tensor_slices((x, y)).batch(1, drop_remainder=True)
    whole = kd.evaluate(model, (x, y), timing=False)
    assert kd.evaluate(model, ones, timing=False).nll == pytest.approx(whole.nll)
    targets = kd.SoftTargets.write(
        tmp_path / "t", model, x, dtype="float32", batch_size=1, verbose=False
    )
    kept = np.concatenate(list(targets.logits()))
    np.testing.assert_allclose(kept, wanted, atol=1e-5)
    distiller = kd.Distiller(mlp(3), teacher=model)
    distiller.compile("sgd", SPARSE)
    distiller.fit(ones.take(3), verbose=0)
    assert np.isfinite(distiller.train_on_batch(x[:1], y[:1])[0])


def test_what_could_not_be_loaded_is_not_saved(data, tmp_path):
    generalist = mlp()
    head = keras.layers.Dense(3)(generalist.get_layer("hidden").output)
    shared = keras.Model(generalist.inputs, head)
    model = kd.SpecialistEnsemble(generalist, [shared], [[0, 1]])
    with pytest.raises(ValueError, match="models of the ensemble share layers"):
        model.save(tmp_path / "ensemble.keras")
    # A loss that Keras does not know does no harm: the ensemble is not trained.
    compiled = mlp()
    compiled.compile(loss=lambda y, z: z)
    kd.SpecialistEnsemble(compiled).save(tmp_path / "ensemble.keras")
    loaded = keras.saving.load_model(tmp_path / "ensemble.keras")
    np.testing.assert_allclose(
        loaded(data[0]), keras.ops.log_softmax(compiled(data[0])), atol=1e-6
    )


@pytest.mark.slow
def test_saves_loads_grows_and_shrinks(data, tmp_path):
    x, _ = data
    model = ensemble(n=2)
    wanted = model.predict(x, verbose=0)
    model.save(tmp_path / "ensemble.keras")
    loaded = keras.saving.load_model(tmp_path / "ensemble.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), wanted, atol=1e-6)
    grown = loaded.with_specialist(mlp(classes=3), [3, 4])
    assert grown.clusters == [*CLUSTERS, [3, 4]]
    grown.save(tmp_path / "grown.keras")
    again = keras.saving.load_model(tmp_path / "grown.keras")
    np.testing.assert_allclose(again(x), grown(x), atol=1e-6)
    shrunk = again.without_specialist(2)
    np.testing.assert_allclose(shrunk.predict(x, verbose=0), wanted, atol=1e-6)
    with pytest.raises(IndexError, match="no specialist 2; they are 0 to 1"):
        shrunk.without_specialist(2)


@pytest.mark.slow
def test_exports_with_routing_in_the_graph(data, tmp_path, monkeypatch):
    x, _ = data
    model = ensemble()
    monkeypatch.setattr(check, "ask_fresh_process", forking.answer_here)
    path = kd.export_savedmodel(model, tmp_path, example=x, verbose=False)
    loaded = tf.saved_model.load(path)
    answer = loaded.signatures["serving_default"](tf.constant(x))
    np.testing.assert_allclose(answer["logits"], model(x), atol=1e-5)
    graph = loaded.signatures["serving_default"].graph.as_graph_def()
    functions = [node for f in graph.library.function for node in f.node_def]
    kinds = {node.op for node in [*graph.node, *functions]}
    assert kinds & {"If", "StatelessIf"}
    assert kinds & {"While", "StatelessWhile"}


@pytest.mark.slow
def test_teaches(data, tmp_path):
    x, y = data
    teacher = ensemble()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        live = kd.Distiller(mlp(3), teacher=teacher, temperature=2.0, alpha=0.0)
        live.compile("sgd", SPARSE)
        first = live.fit(x, y, batch_size=64, verbose=0).history["soft_loss"][0]
        targets = kd.SoftTargets.write(
            tmp_path, teacher, x, dtype="float32", verbose=False
        )
    kept = next(iter(targets.logits()))
    np.testing.assert_allclose(kept, teacher(x), atol=1e-5)
    assert first > 0
    judged = kd.evaluate(teacher, (x, y), timing=False)
    p = softmax(teacher.predict(x, verbose=0), -1)
    assert judged.nll == pytest.approx(
        -np.log(p[np.arange(len(y)), y]).mean(), rel=1e-4
    )


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        (("model",), {}, TypeError, "generalist must be a keras.Model"),
        (
            (mlp(), [mlp(classes=4)], [[0, 1]]),
            {},
            ValueError,
            r"one output \(batch, 3\)",
        ),
        ((mlp(), [mlp(classes=3)], []), {}, ValueError, "1 specialists and 0 clusters"),
        (
            (mlp(), [None], [[0, 1]]),
            {},
            TypeError,
            "specialist 0 must be a keras.Model",
        ),
        (
            (mlp(),),
            {"n": 0},
            ValueError,
            "n, .* must be a whole number from 1 to 5, got 0",
        ),
        ((mlp(),), {"n": True}, ValueError, "n, .* from 1 to 5, got True"),
        ((mlp(),), {"head": "tail"}, ValueError, "head must be"),
        ((mlp(),), {"tolerance": -1.0}, ValueError, "tolerance must be >= 0"),
        ((mlp(),), {"max_iterations": 0}, ValueError, "max_iterations must be"),
        ((mlp(classes=1),), {}, ValueError, "has 1 class"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, settings, error, message):
    with pytest.raises(error, match=message):
        kd.SpecialistEnsemble(*arguments, **settings)


def test_a_generalist_of_unknown_outputs_is_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="outputs of .* are not known"):
        kd.SpecialistEnsemble(Subclassed())
    sequence = keras.Sequential([keras.Input((4, 2)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="one output \\(batch, classes\\)"):
        kd.SpecialistEnsemble(sequence)
    x = keras.Input((4,))
    by_name = keras.Model(x, {"logits": keras.layers.Dense(3)(x)})
    with pytest.raises(ValueError, match="one output \\(batch, classes\\)"):
        kd.SpecialistEnsemble(by_name)
