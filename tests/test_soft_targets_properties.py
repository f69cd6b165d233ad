"""What holds of soft targets for any data, settings and pipeline, drawn by hypothesis."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import keras_distill as kd
from keras_distill.soft_targets.distillation_inputs import unpacked
from keras_distill.top_k import TopKLogits

COUNT, CLASSES = 40, 4


def steady(count):
    """The same examples each time, that many."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def named(x):
    """A teacher whose logits name their example."""
    return tf.tile(tf.reshape(x, (-1, x.shape[1]))[:, :1], (1, CLASSES)) + tf.range(
        CLASSES, dtype=tf.float32
    )


# Joining ------------------------------------------------------------------------------

# Steps that may come before join or after it, each with a number from 1 to 5.
STEPS = {
    "shuffle": lambda d, n: d.shuffle(8, seed=n),
    "skip": lambda d, n: d.skip(n),
    "take": lambda d, n: d.take(n + 4),
    "batch": lambda d, n: d.batch(n),
    "batch without the rest": lambda d, n: d.batch(n, drop_remainder=True),
    "unbatch": lambda d, n: d.unbatch(),
    "rebatch": lambda d, n: d.rebatch(n),
    "repeat": lambda d, n: d.repeat(n),
    "cache": lambda d, n: d.cache(),
    "prefetch": lambda d, n: d.prefetch(n),
    "other labels": lambda d, n: d.map(lambda x, y: (x, y * n)),
    "a weight": lambda d, n: d.map(lambda x, y, *w: (x, y, tf.cast(y, tf.float32))),
    "filter": lambda d, n: d.filter(lambda x, *_: label(_[0]) % (n + 1) > 0),
    "interleave": lambda d, n: d.window(n).interleave(
        lambda *parts: tf.data.Dataset.zip(parts) if len(parts) > 1 else parts[0],
        cycle_length=2,
    ),
    "enumerate": lambda d, n: d.enumerate().map(lambda i, parts: parts),
    "shard": lambda d, n: d.shard(n, 0),
}


def label(y):
    return tf.reshape(y, (-1,))[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    x = rng.permutation(np.arange(COUNT, dtype="float32"))[:, None]
    x = np.concatenate([x, x], 1)
    path = str(tmp_path_factory.mktemp("named") / "cached")
    targets = kd.SoftTargets.write(
        path,
        named,
        x,
        teacher_from_logits=True,
        dtype="float32",
        shard_size=16,
        batch_size=8,
        verbose=False,
    )
    return targets, x


step = st.tuples(st.sampled_from(sorted(STEPS)), st.integers(1, 5))


@pytest.mark.slow
@steady(16)
@given(before=st.lists(step, max_size=3), after=st.lists(step, max_size=3))
def test_a_pair_is_right_or_an_error(store, before, after):
    """Every example that comes has the answer for it, or reading ends with an error."""
    targets, x = store
    data = tf.data.Dataset.from_tensor_slices((x, np.arange(COUNT)))
    try:
        for name, number in before:
            data = STEPS[name](data, number)
        joined = targets.join(data)
        for name, number in after:
            joined = STEPS[name](joined, number)
        found = [unpacked(element)[0] for element in joined.take(300)]
    except (ValueError, TypeError, AttributeError, tf.errors.InvalidArgumentError):
        return  # of tf.data's own, too: unbatch of what are no batches
    for inputs, logits, _ in found:
        inputs, logits = np.reshape(inputs, (-1, 2)), np.reshape(logits, (-1, CLASSES))
        assert (logits == named(inputs).numpy()).all()
    if not before and not any(name in _LEAVE_OUT for name, _ in after):
        seen = {
            float(v) for one in found for v in np.reshape(one.inputs, (-1, 2))[:, 0]
        }
        assert len(seen) == COUNT or len(found) == 300


_LEAVE_OUT = {
    "skip", "take", "batch without the rest", "filter", "interleave", "shard", "rebatch",
}  # fmt: skip


@steady(8)
@given(
    order=st.permutations(range(6)),
    lost=st.integers(0, 5),
    batch=st.sampled_from([None, 4, 16]),
    join_batches=st.booleans(),
)
def test_blocks_in_another_order_are_an_error(store, order, lost, batch, join_batches):
    targets, x = store
    blocks = [x[i * 7 : i * 7 + 7] for i in order if i != lost or lost % 2]
    data = tf.data.Dataset.from_tensor_slices(np.concatenate(blocks))
    if batch is not None and join_batches:
        data = data.batch(batch)
    is_same = list(order) == sorted(order) and bool(lost % 2)
    if is_same:
        assert list(targets.join(data))
        return
    with pytest.raises(
        (ValueError, tf.errors.InvalidArgumentError), match="do not go together"
    ):
        list(targets.join(data))


# Writing ------------------------------------------------------------------------------


def moved(x, seed):
    return x + tf.random.stateless_uniform(tf.shape(x), seed)


def model(width, classes, several):
    x = keras.Input((width,))
    hidden = keras.layers.Dense(3, name="hidden")(x)
    outputs = keras.layers.Dense(classes)(hidden)
    if several:
        outputs = {"one": outputs, "two": keras.layers.Dense(2)(hidden)}
    return keras.Model(x, outputs)


@pytest.mark.slow
@steady(5)
@given(
    count=st.integers(1, 30),
    classes=st.integers(2, 6),
    several=st.booleans(),
    members=st.integers(1, 3),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    top_k=st.sampled_from([None, 1, 2]),
    with_layer=st.booleans(),
    views=st.integers(1, 2),
    shard_size=st.sampled_from([None, 1, 5, 16]),
    batch_size=st.sampled_from([1, 3, 8]),
)
def test_a_store_read_back_is_what_was_written(
    tmp_path_factory, count, classes, several, members, dtype, top_k, with_layer, views,
    shard_size, batch_size,
):  # fmt: skip
    teachers = [model(2, classes, several) for _ in range(members)]
    teacher = teachers if members > 1 else teachers[0]
    x = np.random.default_rng(count).normal(size=(count, 2)).astype("float32")
    layers = ["hidden"] if with_layer and members == 1 else []
    top_k = top_k if members == 1 else None
    path = str(tmp_path_factory.mktemp("store") / "cached")
    targets = kd.SoftTargets.write(
        path,
        teacher,
        x,
        dtype=dtype,
        top_k=top_k,
        layers=layers,
        views=views,
        augment=moved if views > 1 else None,
        shard_size=shard_size,
        batch_size=batch_size,
        verbose=False,
    )
    targets.verify()
    close = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}[dtype]
    for view in range(views):
        joined = list(targets.join(x, epoch=view).batch(count + 1))
        (seen, cached, kept), *rest = (unpacked(one)[0] for one in joined)
        assert not rest
        live = kd.as_teacher(teacher).matching(layers)(seen, 3.0)
        for key in ("one", "two") if several else (None,):
            z, found = (s if key is None else s[key] for s in (live.logits, cached))
            if members > 1:
                found = found.mean_at(3.0)
            if isinstance(found, TopKLogits):
                assert found.k == top_k
                z = np.take_along_axis(np.asarray(z), np.asarray(found.indices), -1)
                found = found.values
            np.testing.assert_allclose(found, z, rtol=close, atol=close)
        for name in layers:
            np.testing.assert_allclose(
                kept[name], live.layers[name], rtol=close, atol=close
            )
        if views == 1:
            np.testing.assert_array_equal(seen, x)
