import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
from scipy.special import softmax
from sklearn.metrics import normalized_mutual_info_score

import keras_distill as kd
from keras_distill.specialists.clusters import check_clusters
from tests.conftest import CLASSES, FEATURES, mlp

EXAMPLES = 9000  # more than are summed at once


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(EXAMPLES, FEATURES)).astype("float32")


def numpy_covariance(model, x, temperature=1.0):
    logits = model.predict(x, batch_size=1000, verbose=0).astype("float64")
    return np.cov(softmax(logits / temperature, -1), rowvar=False)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_numpy(x, temperature):
    model = mlp()
    found = kd.class_covariance(model, x, temperature=temperature, verbose=False)
    assert found.dtype == np.float64
    wanted = numpy_covariance(model, x, temperature)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", ["examples", "batches", "function", "shuffled"])
def test_any_form_of_data(x, form):
    x = x[:500]
    y = np.zeros(500, "int64")
    data = tf.data.Dataset.from_tensor_slices((x, y))
    given = {
        "examples": data,
        "batches": data.batch(33),
        "function": lambda: data,
        "shuffled": data.shuffle(500).batch(64),
    }[form]
    model = mlp(activation="softmax")
    found = kd.class_covariance(model, given, verbose=False)
    wanted = np.cov(model.predict(x, verbose=0), rowvar=False)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.slow
def test_from_a_store_without_the_generalist(x, tmp_path):
    model = mlp()
    targets = kd.SoftTargets.write(
        tmp_path / "all", model, x, dtype="float32", verbose=False
    )
    found = kd.class_covariance(targets, verbose=False)
    np.testing.assert_allclose(found, numpy_covariance(model, x), rtol=1e-6, atol=1e-9)
    top = kd.SoftTargets.write(
        tmp_path / "top", model, x, dtype="float32", top_k=3, verbose=False
    )
    from_store = kd.class_covariance(top, top_k=3, verbose=False)
    live = kd.class_covariance(model, x, top_k=3, verbose=False)
    np.testing.assert_allclose(from_store.toarray(), live.toarray(), atol=1e-6)
    with pytest.raises(ValueError, match="leave the dataset out"):
        kd.class_covariance(targets, x)


def test_top_k_is_the_covariance_of_the_kept_predictions(x):
    model = mlp()
    # Without a bias all logits are 0, a tie, where all hidden units are.
    model.layers[-1].bias.assign(np.linspace(0.0, 0.1, CLASSES))
    whole = kd.class_covariance(model, x, top_k=CLASSES, verbose=False)
    assert scipy.sparse.issparse(whole)
    np.testing.assert_allclose(whole.toarray(), numpy_covariance(model, x), atol=1e-9)
    p = softmax(model.predict(x, verbose=0).astype("float64"), -1)
    p[p < np.sort(p, -1)[:, -2:].min(-1, keepdims=True)] = 0.0
    found = kd.class_covariance(model, x, top_k=2, verbose=False).toarray()
    seen = (p.T @ p) > 0
    np.testing.assert_allclose(found, np.cov(p, rowvar=False) * seen, atol=1e-7)


def test_what_is_wrong_with_a_generalist_is_said(x):
    with pytest.raises(ValueError, match="at least two examples"):
        kd.class_covariance(mlp(), x[:1])
    with pytest.raises(ValueError, match="needs a dataset"):
        kd.class_covariance(mlp())
    with pytest.raises(ValueError, match="batch_size must be"):
        kd.class_covariance(mlp(), x, batch_size=0)
    with pytest.raises(ValueError, match="the dataset is endless; give it before"):
        kd.class_covariance(mlp(), tf.data.Dataset.from_tensor_slices(x).repeat())
    with pytest.raises(ValueError, match="top_k must be"):
        kd.class_covariance(mlp(), x, top_k=1)
    with pytest.raises(ValueError, match="examples 0 to 511 are not all finite"):
        kd.class_covariance(lambda x: x * np.nan, x, from_logits=True)
    with pytest.raises(ValueError, match="one output of shape"):
        kd.class_covariance(lambda x: [x, x], x, from_logits=True)


def planted(groups, size, seed=0):
    """A covariance of classes in groups, in shuffled order, and the groups."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(groups), size))
    p = rng.dirichlet(np.full(groups, 0.1), 4000)[:, group]
    p *= rng.uniform(0.2, 1.0, p.shape)
    return np.cov(p / p.sum(-1, keepdims=True), rowvar=False), group


def agreement(clusters, group):
    label = np.zeros(len(group), int)
    for index, cluster in enumerate(clusters):
        label[list(cluster)] = index
    return normalized_mutual_info_score(group, label)


def test_finds_planted_clusters_and_repeats():
    covariance, group = planted(8, 6)
    clusters = kd.cluster_classes(covariance, 8)
    assert agreement(clusters, group) == pytest.approx(1.0)
    assert clusters == kd.cluster_classes(covariance, np.int64(8))
    sparse = scipy.sparse.csr_array(covariance)
    assert clusters == kd.cluster_classes(sparse, 8)


@pytest.mark.parametrize("correlation", [True, False])
@pytest.mark.parametrize("n_clusters", [2, 7, 24])
def test_sizes_hold(n_clusters, correlation):
    covariance, _ = planted(8, 6)
    size = -(-48 // n_clusters) + 1
    clusters = kd.cluster_classes(
        covariance, n_clusters, max_size=size, correlation=correlation
    )
    assert len(clusters) == n_clusters
    assert sorted(c for cluster in clusters for c in cluster) == list(range(48))
    assert all(2 <= len(cluster) <= size for cluster in clusters)


def test_clusters_may_overlap():
    covariance, _ = planted(8, 6)
    clusters = kd.cluster_classes(covariance, 8, clusters_per_class=2, max_size=20)
    counts = np.bincount([c for cluster in clusters for c in cluster])
    assert set(counts) == {2}
    assert all(len(set(cluster)) == len(cluster) <= 20 for cluster in clusters)
    apart = kd.cluster_classes(covariance, 8)
    assert all(any(set(a) <= set(b) for b in clusters) for a in apart)


def test_a_class_never_predicted_is_put_somewhere():
    covariance, _ = planted(3, 4)
    covariance[5] = covariance[:, 5] = 0.0
    clusters = kd.cluster_classes(covariance, 3)
    assert sum(5 in cluster for cluster in clusters) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_clusters": 1}, "n_clusters must be a whole number from 2 to 6"),
        (
            {"n_clusters": True},
            "n_clusters must be a whole number from 2 to 6, got True",
        ),
        ({"n_clusters": 7}, "n_clusters must be a whole number from 2 to 6, got 7"),
        (
            {"n_clusters": 3, "max_size": 3},
            "max_size must be a whole number >= 4, got 3",
        ),
        ({"n_clusters": 3, "clusters_per_class": 3}, "from 1 to 2"),
    ],
)
def test_impossible_clusters_are_refused(arguments, message):
    covariance, _ = planted(3, 4)
    with pytest.raises(ValueError, match=message):
        kd.cluster_classes(covariance, **arguments)


def test_a_covariance_that_is_none_is_refused():
    with pytest.raises(ValueError, match="must have shape"):
        kd.cluster_classes(np.zeros((4, 3)), 2)
    with pytest.raises(ValueError, match="not finite"):
        kd.cluster_classes(np.full((4, 4), np.nan), 2)


@pytest.mark.parametrize(
    ("clusters", "error", "message"),
    [
        ([[0, 1]], ValueError, "at least 2 clusters, got 1"),
        ([[0, 1], [2]], ValueError, "cluster 1 is \\[2\\], but a specialist tells"),
        ([[0, 1], [2, 5]], ValueError, "cluster 1 names the class 5, but.* 0 to 4"),
        ([[0, 1], [2, -1]], ValueError, "names the class -1"),
        ([[0, 1], [2, 2]], ValueError, "names a class twice"),
        ([[0, 1], [0, 1, 2, 3, 4]], ValueError, "holds all 5 classes"),
        ([[0, 1], ["a", "b"]], TypeError, "sequence of class numbers"),
        ([0, 1, 2], TypeError, "cluster 0 must be a sequence of class numbers, got 0"),
    ],
)
def test_clusters_by_hand_are_validated(clusters, error, message):
    with pytest.raises(error, match=message):
        check_clusters(clusters, CLASSES)


def test_a_class_in_no_cluster_is_said_once():
    with pytest.warns(
        UserWarning, match=r"1 of 5 classes are in no cluster \(4\)"
    ) as w:
        assert check_clusters([[1, 0], [2, 3]], CLASSES) == [(1, 0), (2, 3)]
    assert len(w) == 1
