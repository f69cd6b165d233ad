"""Logs of a search that TensorBoard's HParams page shows."""

from __future__ import annotations

import os
import shutil

import keras_tuner
import tensorflow as tf
from keras_tuner.engine.trial import Trial
from tensorboard.plugins.hparams import api, api_pb2
from tensorboard.plugins.hparams import summary as hparams_summary

from keras_distill.tuning.keras_tuner_compat import as_hparams


def write_space(
    folder: str, space: keras_tuner.HyperParameters, metrics: list[str]
) -> None:
    """Writes what is searched, and by which metrics it is judged.

    Args:
        folder: of all logs.
        space: hyperparameters.
        metrics: names of validation metrics.
    """
    _remove_events(folder)
    with tf.summary.create_file_writer(folder).as_default():
        api.hparams_config(
            hparams=as_hparams(space),
            metrics=[api.Metric(name) for name in metrics],
        )


def write_trial(
    folder: str,
    trial: Trial,
    means: dict[str, float],
    curves: list[dict[str, list]],
    failed: bool = False,
) -> None:
    """Writes the values, the results and the curves of a trial, as a run of its own.

    Args:
        folder: of all logs.
        trial: with its values.
        means: results.
        curves: of every execution, by name.
        failed: whether it has none.
    """
    run = os.path.join(folder, f"trial_{trial.trial_id}")
    shutil.rmtree(run, ignore_errors=True)  # of an attempt that was killed
    with tf.summary.create_file_writer(run).as_default():
        api.hparams(dict(trial.hyperparameters.values), f"trial {trial.trial_id}")
        status = api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS
        end = hparams_summary.session_end_pb(status).SerializeToString()
        tf.summary.experimental.write_raw_pb(end, step=0)
        for name, value in means.items():
            tf.summary.scalar(name, value, step=0)
        for execution, curve in enumerate(curves):
            for name, values in curve.items():
                for epoch, value in enumerate(values):
                    tf.summary.scalar(
                        f"execution_{execution}/{name}", value, step=epoch
                    )


def _remove_events(folder: str) -> None:
    if os.path.isdir(folder):
        for entry in os.scandir(folder):
            if entry.is_file() and "tfevents" in entry.name:
                os.remove(entry.path)
