"""Invariants of the combination of a generalist and specialists, for random problems."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr

from keras_distill.specialists.combination import combine

#: Logits, from answers that are nearly even to such that exclude what is not likeliest.
SCALES = st.sampled_from([0.0, 1.0, 5.0, 40.0, 200.0])


@st.composite
def problems(draw):
    """Draws classes, clusters that may overlap, who is active, and everybody's answers."""
    classes = draw(st.integers(3, 7))
    cluster = st.lists(
        st.integers(0, classes - 1), min_size=2, max_size=classes - 1, unique=True
    )
    clusters = draw(st.lists(cluster, min_size=1, max_size=4))
    rows = draw(st.sampled_from([1, 1, 2, 5]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(SCALES)
    log_g = log_softmax(scale * rng.normal(size=(rows, classes)), -1)
    answers = [
        np.exp(log_softmax(draw(SCALES) * rng.normal(size=(rows, len(c) + 1)), -1))
        for c in clusters
    ]
    active = rng.random((rows, len(clusters))) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return log_g, clusters, answers, active


def combined(problem, dtype="float64", order=None, **settings):
    log_g, clusters, answers, active = problem
    numbers = range(len(clusters)) if order is None else order
    special, member = np.zeros_like(log_g), np.zeros((len(clusters), log_g.shape[1]))
    dustbin = np.zeros(active.shape)
    for place, m in enumerate(numbers):
        p = answers[m] * active[:, m, None]
        special[:, clusters[m]] += p[:, :-1]
        dustbin[:, place] = p[:, -1]
        member[place, clusters[m]] = 1.0
    given = (log_g, special, dustbin, active[:, list(numbers)], 1.0 - member)
    return np.asarray(combine(*(a.astype(dtype) for a in given), **settings))


def divergence(problem, log_q):
    """KL(g || q) + sum over active m of KL(p_m || q), by row, in float64."""
    log_g, clusters, answers, active = problem
    q = np.exp(log_q.astype("float64"))
    # What float cannot hold is no exact 0: the fixed point keeps it on logarithms.
    total = rel_entr(np.exp(log_g), np.maximum(q, 1e-300)).sum(-1)
    for m, cluster in enumerate(clusters):
        outside = np.delete(q, cluster, axis=-1).sum(-1)
        grouped = np.c_[q[:, cluster], outside]
        own = rel_entr(answers[m], np.maximum(grouped, 1e-300)).sum(-1)
        total += np.where(active[:, m], own, 0.0)
    return total


def seeded(examples):
    return settings(max_examples=examples, derandomize=True, deadline=None)


@pytest.mark.slow
@seeded(25)
@given(problems())
def test_the_divergence_never_rises(problem):
    steps = [1, 2, 3, 5, 20]
    found = [combined(problem, tolerance=0.0, max_iterations=k) for k in steps]
    values = np.array([divergence(problem, log_q) for log_q in found])
    slack = 1e-9 * (1 + np.abs(values[:-1]))
    assert (np.diff(values, axis=0) <= slack).all(), values


@seeded(25)
@given(problems())
def test_the_answer_is_a_distribution_in_float32_and_float64(problem):
    for dtype, tolerance in (("float64", 1e-9), ("float32", 2e-5)):
        q = np.exp(combined(problem, dtype))
        assert np.isfinite(q).all()
        assert (q >= 0).all()
        np.testing.assert_allclose(q.sum(-1), 1.0, atol=tolerance)


@pytest.mark.slow
@seeded(15)
@given(problems(), st.randoms(use_true_random=False))
def test_neither_the_batch_nor_the_order_of_specialists_counts(problem, random):
    log_g, clusters, answers, active = problem
    whole = np.exp(combined(problem))
    for row in range(len(log_g)):
        one = slice(row, row + 1)
        alone = (log_g[one], clusters, [a[one] for a in answers], active[one])
        np.testing.assert_allclose(np.exp(combined(alone)), whole[one], atol=1e-12)
    order = list(range(len(clusters)))
    random.shuffle(order)
    np.testing.assert_allclose(np.exp(combined(problem, order=order)), whole, atol=1e-9)


@seeded(10)
@given(problems())
def test_without_active_specialists_it_is_the_generalist(problem):
    log_g, clusters, answers, active = problem
    found = combined((log_g, clusters, answers, np.zeros_like(active)))
    np.testing.assert_allclose(np.exp(found), np.exp(log_g), atol=1e-12)
