"""`fit` under `MultiWorkerMirroredStrategy`, which Keras 3.12 to 3.15 cannot do."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


class MultiWorkerFit:
    """Mixin for a `keras.Model`: goes around two faults of Keras's TensorFlow trainer.

    With several workers, `keras.Model.fit` fails before its first step, because it
    reduces a whole batch by one `Strategy.reduce`, which takes a single tensor; and after
    it, because it averages scalar logs over an axis that they do not have. Here the
    model is built from this worker's own part of the batch, and logs have one axis.
    """

    def _has_several_workers(self) -> bool:
        strategy = self.distribute_strategy  # type: ignore[attr-defined]
        return (
            isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
            and strategy.extended._in_multi_worker_mode()
        )

    def _maybe_symbolic_build(
        self, iterator: Any = None, data_batch: Any = None
    ) -> None:
        if iterator is not None and self._has_several_workers():
            strategy = self.distribute_strategy  # type: ignore[attr-defined]
            _, _, batches = next(iter(iterator))
            data_batch = keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0],
                next(batches),
            )
            iterator = None
        super()._maybe_symbolic_build(  # type: ignore[misc]
            iterator=iterator, data_batch=data_batch
        )

    def _logs(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Returns a step's logs in the shape that the trainer reduces."""
        if not self._has_several_workers():
            return logs
        return {name: keras.ops.expand_dims(value, 0) for name, value in logs.items()}


# Processes; joblib is imported when they are wanted -----------------------------------


def loky() -> Any:
    """Returns the package of process pools that joblib brings.

    The standard library's pools would run the user's script once more in every process.
    """
    from joblib.externals import loky

    return loky


def active_joblib_backend() -> Any:
    """Returns the backend that `joblib.parallel_config` has chosen.

    joblib says in public how many jobs there are, but not by whom.
    """
    from joblib.parallel import get_active_backend

    return get_active_backend()[0]


def keep_processes_that_grow() -> None:
    """Has a loky process live on when its memory has grown; called in that process.

    loky takes the pages of a mapped array for a leak, and begins a new process; it has no
    setting.
    """
    loky().process_executor._MAX_MEMORY_LEAK_SIZE = float("inf")
