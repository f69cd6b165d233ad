"""A worker process of a search on one host; started by `workers`, not by hand.

Three pickles come by the standard input: Python's path, Keras's settings, and the job. The
input stays open as long as the process that began the search lives.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading


def main() -> None:
    """Reads the job, runs trials until there are no more."""
    stream = sys.stdin.buffer
    sys.path[:] = pickle.load(stream)  # what the job needs may be imported from there
    settings = pickle.load(stream)
    grow_gpu_memory()
    settings.take()  # before the job, which may hold tensors
    job = pickle.load(stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job.tuner().search()


def grow_gpu_memory() -> None:
    """Has TensorFlow take a GPU's memory as it needs it: workers may share one."""
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # it is in use already
            tf.config.experimental.set_memory_growth(gpu, True)


def _end_with_parent() -> None:
    # Past Python's buffer, whose lock would be held when the process ends.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
