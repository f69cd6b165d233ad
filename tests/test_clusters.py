"""Dask and Ray write the same soft targets and train the same specialists."""

import os
import pathlib

import joblib
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.soft_targets import shards
from tests.conftest import CLASSES, FEATURES, mlp


def work(folder):
    """Bytes of soft targets, weights of specialists, and who trained them."""
    rng = np.random.default_rng(2)
    y = rng.permutation(np.arange(200) % CLASSES)
    x = rng.normal(size=(len(y), FEATURES)).astype("float32")
    keras.utils.set_random_seed(0)
    model, path = mlp(8), folder / "cached"
    kd.SoftTargets.write(path, model, x, batch_size=16, shard_size=32, verbose=False)
    names = [shards.name(*one) for one in sorted(shards.existing(str(path)))]
    builder = kd.SpecialistBuilder(model, [[0, 1], [2, 3, 4]])
    ensemble = builder.fit(
        lambda: tf.data.Dataset.from_tensor_slices((x, y)),
        hard_epochs=1,
        soft_epochs=0,
        work_dir=folder / "work",
        verbose=False,
    )
    return (
        [pathlib.Path(path, name).read_bytes() for name in names],
        [w for one in ensemble.specialists for w in one.get_weights()],
        {record["worker"] for record in builder.records},
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return work(tmp_path_factory.mktemp("here"))


def check(here, there):
    assert len(here[0]) == 7
    assert here[0] == there[0]
    assert all(np.array_equal(a, b) for a, b in zip(here[1], there[1], strict=True))
    assert f":{os.getpid()}" not in str(there[2])


@pytest.mark.slow
def test_dask_workers_give_the_same(here, tmp_path):
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        check(here, work(tmp_path))


@pytest.mark.slow
def test_ray_workers_give_the_same(here, tmp_path):
    import ray
    from ray.util.joblib import register_ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        register_ray()
        with joblib.parallel_config("ray", n_jobs=2):
            check(here, work(tmp_path))
    finally:
        ray.shutdown()
