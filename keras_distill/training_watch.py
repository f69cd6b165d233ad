"""TrainingWatch: stops a run whose teacher gives NaN, or whose schedules leave their range."""

from __future__ import annotations

import types
from typing import Any

import keras
from keras import ops

from keras_distill.first_batch import not_finite
from keras_distill.soft_targets import views


class TrainingWatch(keras.callbacks.Callback):
    """Stops the run at the batch for which the teacher's answer was not finite.

    It also holds schedules of temperature and alpha to their ranges, at both ends of
    each epoch, and tells cached soft targets which epoch it is.
    """

    def __init__(self, untracked: types.SimpleNamespace) -> None:
        super().__init__()
        self.untracked = untracked
        self.epoch = self.batch = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Forgets an earlier run."""
        self.untracked.non_finite.assign(0.0)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch; raises `ValueError` for a schedule out of its range."""
        self.epoch = views.epoch = epoch
        self.batch = 0
        self.check_schedules()

    def check_schedules(self) -> None:
        """Holds schedules to their ranges, at both ends of the epoch."""
        start = int(ops.convert_to_numpy(self.model.optimizer.iterations))
        for step in (start, start + (self.params.get("steps") or 1) - 1):
            for knob in (self.untracked.temperature, self.untracked.alpha):
                knob.check_at(step)

    def look(self, steps: int) -> None:
        """Raises `ValueError` if one of the last steps had such an answer.

        Not a callback's hook: those have Keras wait for all logs of every batch.

        Args:
            steps: how many steps were done at once.
        """
        first, self.batch = self.batch, self.batch + steps
        which = f"batch {first}"
        if steps > 1:
            which = f"one of the batches {first} to {self.batch - 1}"
        raise_if_not_finite(self.untracked, f"{which} of epoch {self.epoch + 1}")


def raise_if_not_finite(untracked: types.SimpleNamespace, where: str) -> None:
    """Raises `ValueError` if a batch since the last reset had NaN or infinity."""
    # Half the time of ops.convert_to_numpy, once a step.
    bad = float(untracked.non_finite.value.numpy())
    if bad > 0:
        untracked.non_finite.assign(0.0)
        raise ValueError(not_finite(where))
