"""The same work in other processes: who takes part, what they are sent, who died.

`spread` is the one way in which searches, specialists and soft targets are spread over this
machine's processes, or over a Dask or Ray cluster.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
import itertools
import mmap
import numbers
import os
import pickle
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from multiprocessing import resource_tracker
from typing import Any

import cloudpickle
import joblib
import keras
import numpy as np
import tensorflow as tf

from keras_distill import keras_compat, progress

#: How often a task may end with the death of its process.
DEATHS = 3
#: Begins as the temporary files of a RunDirectory do, so that it is removed with them.
_SENT = ".tmp-sent-"
_POLL_SECONDS = 0.1
_WATCH_SECONDS = 0.5


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds all that Keras draws from, and gives Python and NumPy back theirs.

    TensorFlow's own seed cannot be read, so it stays as set here.
    """
    python, numpy = random.getstate(), np.random.get_state()
    keras.utils.set_random_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@dataclasses.dataclass
class ProcessSettings:
    """The settings of the process that makes this; can be pickled.

    Args:
        threads: of TensorFlow in a new process; `None` leaves them.
    """

    threads: int | None = None

    def __post_init__(self) -> None:
        self.dtype_policy = keras.dtype_policies.serialize(keras.config.dtype_policy())
        self.floatx = keras.config.floatx()
        self.image_data_format = keras.config.image_data_format()
        self.custom_objects: dict[str, Any] = {
            name: thing
            for name, thing in keras.saving.get_custom_objects().items()
            if not thing.__module__.startswith(("keras.", "keras_distill."))
        }
        self.path = list(sys.path)  # what is sent may be imported from there

    def take(self) -> None:
        """Gives this process the settings of the one that made them."""
        sys.path += [folder for folder in self.path if folder not in sys.path]
        if self.threads is not None:
            # A process that has run TensorFlow before keeps what it has.
            with contextlib.suppress(RuntimeError):
                tf.config.threading.set_intra_op_parallelism_threads(self.threads)
                tf.config.threading.set_inter_op_parallelism_threads(self.threads)
        policy = keras.dtype_policies.deserialize(self.dtype_policy)
        keras.config.set_dtype_policy(policy)
        keras.config.set_floatx(self.floatx)
        keras.config.set_image_data_format(self.image_data_format)
        keras.saving.get_custom_objects().update(self.custom_objects)


# Who takes part ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Seats:
    """How many tasks are done at once, and by whom.

    Attributes:
        count: int >= 1.
        kind: "here" for this process, "loky" for others of this machine, "dask" or "ray".
        backend: joblib's, of Dask or Ray.
    """

    count: int
    kind: str
    backend: Any = None

    @classmethod
    def of(cls, n_jobs: int | None) -> Seats:
        """Returns the seats that `n_jobs` and `joblib.parallel_config` say.

        Args:
            n_jobs: int, -1 for as many as there are cores; `None` is 1 or what
                `joblib.parallel_config` says. Of Dask, all workers take part.

        Raises:
            ValueError: if it is no such number, or the backend is none of processes.
        """
        is_whole = isinstance(n_jobs, numbers.Integral) and not isinstance(n_jobs, bool)
        if n_jobs is not None and (not is_whole or n_jobs == 0 or n_jobs < -1):
            raise ValueError(
                "n_jobs must be a whole number >= 1, -1 for as many as there are cores, or "
                f"None, got {n_jobs!r}."
            )
        count = joblib.effective_n_jobs(n_jobs if n_jobs is None else int(n_jobs))
        backend = keras_compat.active_joblib_backend()
        name = type(backend).__name__
        if name == "DaskDistributedBackend":
            return cls(len(backend.client.ncores()), "dask", backend)
        if name == "RayBackend":
            return cls(count, "ray", backend)
        if count == 1:
            return cls(1, "here")
        if name in ("LokyBackend", "MultiprocessingBackend"):
            return cls(count, "loky")
        raise ValueError(
            f"joblib's backend is {name}, whose workers are no processes of their own: they "
            'would share Keras\'s seeds. Choose "loky", "dask" or "ray" in '
            "joblib.parallel_config, or n_jobs=1."
        )

    @property
    def is_here(self) -> bool:
        """Whether tasks are done by this process."""
        return self.kind == "here"


@dataclasses.dataclass
class Outcome:
    """What became of a task.

    Attributes:
        task: as it was given.
        value: what the function returned; `None` if it failed.
        error: what it raised, or a `ChildProcessError` if its processes died.
        worker: "worker-0", ... on this machine, else host and process.
        seconds: that the function took, in the end.
        deaths: how many processes died of it.
    """

    task: Any
    value: Any = None
    error: Exception | None = None
    worker: str = "worker-0"
    seconds: float = 0.0
    deaths: int = 0


# What they do ------------------------------------------------------------------------


def check_can_be_sent(thing: Any, remedy: str) -> None:
    """Refuses what cannot be sent to another process; copies no arrays.

    Args:
        thing: what will be sent.
        remedy: what a user may do, a sentence.

    Raises:
        TypeError: if it cannot be sent.
    """
    _pickled(thing, [], remedy)


def spread(
    function: Callable[[Any], Any],
    tasks: Iterable[Any],
    *,
    seats: Seats,
    folder: str,
    threads: int | None = None,
    look: Callable[[], None] = lambda: None,
    remedy: str = "Let functions make it, in the process that needs it.",
) -> Generator[Outcome, None, None]:
    """Yields what a function returns for each task, as they end, whoever runs them.

    The function is sent once, its arrays in a file that all processes of a machine share,
    functions of the user's script by value. Each process takes the settings of this one,
    a GPU of its own where there are enough, and ends with this one. A task whose process
    dies is tried again, three times at most; the others go on. Close the generator
    (`contextlib.closing`) when it is left early: then all processes are killed.

    Args:
        function: called with a task; may be a bound method.
        tasks: drawn in this process, each only when a seat is free, so that what is next
            may depend on what has ended. `None` for nothing now, ask again.
        seats: who takes part.
        folder: shared by all that take part, for what is sent and locks of GPUs.
        threads: int, of TensorFlow in each process; `None` divides this machine's cores.
        look: called about ten times a second where other processes do the work, else
            after each task.
        remedy: what a user may do about things that cannot be sent, a sentence.

    Yields:
        An `Outcome` for each task.

    Raises:
        TypeError: at once, if the function cannot be sent.
        RuntimeError: if a process cannot read what it is sent.
    """
    if seats.is_here:
        return _done_here(function, tasks, look)
    if threads is None:
        threads = max(1, (os.cpu_count() or 1) // seats.count)
    buffers: list[pickle.PickleBuffer] = []
    settings = _pickled(ProcessSettings(threads), buffers, remedy)
    sent = _pickled(function, buffers, remedy)
    return _spread([settings, sent], buffers, tasks, seats, folder, look)


def given_up(outcomes: Generator[Outcome, None, None]) -> list[Outcome]:
    """Has `spread` do all tasks; returns those whose processes died once too often.

    Raises:
        Exception: what a task raised, at once.
    """
    lost = []
    with contextlib.closing(outcomes):
        for outcome in outcomes:
            if isinstance(outcome.error, ChildProcessError):
                lost.append(outcome)
            elif outcome.error is not None:
                raise outcome.error
    return lost


def _done_here(
    function: Callable[[Any], Any], tasks: Iterable[Any], look: Callable[[], None]
) -> Generator[Outcome, None, None]:
    for task in tasks:
        if task is not None:
            yield _outcome(function, task)
            look()


def _spread(
    pickles: list[bytes],
    buffers: list[pickle.PickleBuffer],
    tasks: Iterable[Any],
    seats: Seats,
    folder: str,
    look: Callable[[], None],
) -> Generator[Outcome, None, None]:
    running: dict[Future, tuple[str, Any, int]] = {}
    again: collections.deque[tuple[Any, int]] = collections.deque()
    remaining, is_over = iter(tasks), False
    with contextlib.ExitStack() as stack:
        if "://" in folder and seats.kind == "loky":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        sent = _Sent.write(pickles, buffers, folder)
        del pickles, buffers
        stack.callback(sent.remove)
        pool = _POOLS[seats.kind](seats, sent)
        stack.callback(pool.close)
        while True:
            for seat in pool.free({seat for seat, _, _ in running.values()}):
                task, deaths = again.popleft() if again else (None, 0)
                if task is None and not is_over:
                    task = next(remaining, _END)
                    is_over = task is _END
                if task is None or task is _END:
                    break
                running[pool.submit(seat, task)] = (seat, task, deaths)
            if is_over and not running and not again:
                return
            done = wait(running, _POLL_SECONDS, FIRST_COMPLETED).done
            if not running:
                time.sleep(_POLL_SECONDS)
            look()
            for future in done:
                seat, task, deaths = running.pop(future)
                try:
                    outcome = pool.result(future)
                except _UnreadableError:
                    raise
                except Exception as error:
                    if not pool.is_death(seat, error):
                        yield Outcome(task, error=error, worker=seat, deaths=deaths)
                    elif deaths + 1 < pool.deaths:
                        again.append((task, deaths + 1))
                    else:
                        # Dask has tried again by itself.
                        died = getattr(error, "allowed_failures", deaths) + 1
                        yield _died(task, seat, died)
                    continue
                if seats.kind == "loky":
                    outcome.worker = seat
                yield dataclasses.replace(outcome, task=task, deaths=deaths)


_END = object()


def _died(task: Any, seat: str, deaths: int) -> Outcome:
    error = ChildProcessError(
        f"the process that ran it died {deaths} times; it may have been killed for want of "
        "memory."
    )
    return Outcome(task, error=error, worker=seat, deaths=deaths)


class _Loky:
    """Processes of this machine: each the only one of its pool, so that it dies alone."""

    deaths = DEATHS

    def __init__(self, seats: Seats, sent: _Sent) -> None:
        self.loky, self.sent = keras_compat.loky(), sent
        self.pools: dict[str, Any] = {f"worker-{i}": None for i in range(seats.count)}
        resource_tracker.ensure_running()  # it would unblock Ctrl-C in `submit`

    def free(self, taken: set[str]) -> list[str]:
        return [seat for seat in self.pools if seat not in taken]

    def submit(self, seat: str, task: Any) -> Future:
        if self.pools[seat] is not None:
            with contextlib.suppress(self.loky.BrokenProcessPool):  # it died while idle
                return self.pools[seat].submit(_run, self.sent, task)
        self.pools[seat] = self.loky.ProcessPoolExecutor(
            max_workers=1,
            initializer=_end_with,
            initargs=(os.getpid(),),
            env={"KERAS_DISTILL_QUIET": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        # A process begins with what this thread blocks: Ctrl-C is for its parent.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return self.pools[seat].submit(_run, self.sent, task)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def result(self, future: Future) -> Outcome:
        return future.result()

    def is_death(self, seat: str, error: Exception) -> bool:
        if not isinstance(error, self.loky.BrokenProcessPool):
            return False
        pool, self.pools[seat] = self.pools[seat], None
        pool.shutdown(kill_workers=True)
        return True

    def close(self) -> None:
        for pool in self.pools.values():
            if pool is not None:
                pool.shutdown(
                    kill_workers=True
                )  # what they write is whole or not there


class _Dask:
    """Workers of a Dask cluster, one task each at a time; Dask tries again by itself."""

    deaths = 1

    def __init__(self, seats: Seats, sent: _Sent) -> None:
        self.sent, self.client = sent, seats.backend.client
        self.futures: dict[Future, Any] = {}

    def free(self, taken: set[str]) -> list[str]:
        # Workers may come and go.
        count = max(1, len(self.client.ncores())) - len(taken)
        return [uuid.uuid4().hex for _ in range(count)]

    def submit(self, seat: str, task: Any) -> Future:
        done: Future = Future()
        self.futures[done] = self.client.submit(
            _run, self.sent, task, pure=False, key=f"keras_distill-{seat}"
        )
        self.futures[done].add_done_callback(lambda _: done.set_result(None))
        return done

    def result(self, future: Future) -> Outcome:
        return self.futures.pop(future).result()

    def is_death(self, seat: str, error: Exception) -> bool:
        return type(error).__name__ == "KilledWorker"

    def close(self) -> None:
        self.client.cancel(list(self.futures.values()), force=True)


class _Ray:
    """Workers of a Ray cluster."""

    deaths = DEATHS

    def __init__(self, seats: Seats, sent: _Sent) -> None:
        import ray

        given = {"max_retries": 0, **(seats.backend.ray_remote_args or {})}
        self.ray, self.remote = ray, ray.remote(**given)(_run)
        self.sent, self.count = sent, seats.count
        self.references: dict[Future, Any] = {}

    def free(self, taken: set[str]) -> list[str]:
        every = (f"worker-{i}" for i in range(self.count))
        return [seat for seat in every if seat not in taken]

    def submit(self, seat: str, task: Any) -> Future:
        reference = self.remote.remote(self.sent, task)
        future = reference.future()
        self.references[future] = reference
        return future

    def result(self, future: Future) -> Outcome:
        reference = self.references.pop(future)
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error

    def is_death(self, seat: str, error: Exception) -> bool:
        return isinstance(error, self.ray.exceptions.RayError)

    def close(self) -> None:
        for reference in self.references.values():
            self.ray.cancel(reference, force=True)


_POOLS: dict[str, Any] = {"loky": _Loky, "dask": _Dask, "ray": _Ray}


# What is sent ------------------------------------------------------------------------


def _pickled(thing: Any, buffers: list[pickle.PickleBuffer], remedy: str) -> bytes:
    """Returns a pickle without its arrays, whose memory is added to `buffers`."""
    try:
        return cloudpickle.dumps(thing, protocol=5, buffer_callback=buffers.append)
    except Exception as error:
        raise TypeError(
            f"what other processes need cannot be sent to them: {error}. {remedy}"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Sent:
    """Where a process finds what it is sent.

    Args:
        path: of the file.
        parts: offset and size of each pickle and array in it.
    """

    path: str
    parts: list[tuple[int, int]]

    @classmethod
    def write(
        cls, pickles: list[bytes], buffers: list[pickle.PickleBuffer], folder: str
    ) -> _Sent:
        """Writes two pickles, of settings and function, and the arrays of both."""
        path = os.path.join(folder, f"{_SENT}{uuid.uuid4().hex}")
        parts, offset = [], 0
        arrays: list[memoryview] = [buffer.raw() for buffer in buffers]
        with tf.io.gfile.GFile(path, "wb") as file:
            for one in [*(memoryview(part) for part in pickles), *arrays]:
                size = one.nbytes
                for start in range(0, size, 1 << 24):  # the file copies what it writes
                    file.write(bytes(one[start : start + (1 << 24)]))
                file.write(bytes(-size % 64))  # arrays begin where they may
                parts.append((offset, size))
                offset += size + -size % 64
        return cls(path, parts)

    def read(self) -> Callable[[Any], Any]:
        """Returns the function; settings are taken first."""
        whole = memoryview(self._mapped())
        settings, function, *arrays = [whole[a : a + size] for a, size in self.parts]
        unread = iter(arrays)  # of both, in their order
        pickle.loads(settings, buffers=unread).take()
        return pickle.loads(function, buffers=unread)

    def _mapped(self) -> Any:
        if "://" in self.path:
            with tf.io.gfile.GFile(self.path, "rb") as file:
                return bytearray(file.read())
        with open(self.path, "rb") as file:
            # Pages are shared until someone writes to them.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def remove(self) -> None:
        """Removes the file; processes that have read it keep what they have."""
        with contextlib.suppress(tf.errors.NotFoundError):
            tf.io.gfile.remove(self.path)


class _UnreadableError(RuntimeError):
    """Raised where a process cannot read what it is sent."""


# In the other processes ---------------------------------------------------------------

#: What this process has been sent last, by its path.
_read: dict[str, Callable[[Any], Any]] = {}
#: Dask may give several tasks to one process, whose threads share Keras's seeds.
_one_at_a_time = threading.Lock()
_gpu_lock: Any = None


def _run(sent: _Sent, task: Any) -> Outcome:
    """Runs a task in whatever process it is called."""
    with _one_at_a_time:
        if sent.path not in _read:
            _read.clear()
            keras_compat.keep_processes_that_grow()
            gc.freeze()  # what is imported; Keras collects again and again
            claim_gpu(os.path.dirname(sent.path))
            try:
                _read[sent.path] = sent.read()
            except Exception as error:
                raise _UnreadableError(
                    f"a process of {socket.gethostname()} cannot read what it was sent by "
                    f"{sent.path}: {type(error).__name__}: {error}"
                ) from error
        outcome = _outcome(_read[sent.path], task)
    outcome.task = None  # the sender has it
    outcome.worker = f"{socket.gethostname()}:{os.getpid()}"
    if outcome.error is not None:
        outcome.error = _sendable(outcome.error)
    return outcome


def _outcome(function: Callable[[Any], Any], task: Any) -> Outcome:
    began = time.monotonic()
    outcome = Outcome(task)
    try:
        outcome.value = function(task)
    except Exception as error:
        outcome.error = error
    outcome.seconds = time.monotonic() - began
    return outcome


def _sendable(error: Exception) -> Exception:
    """Returns an error that tells in another process where it came from."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(cloudpickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with(parent: int) -> None:
    """Has this process end when its parent has; called in a new process."""
    progress.for_one_process()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def claim_gpu(folder: str) -> None:
    """Lets TensorFlow see one GPU only, which no other process of the folder has.

    Where there are more processes than GPUs, they share them evenly. Only GPUs that this
    process sees are taken, as `CUDA_VISIBLE_DEVICES` says.

    Args:
        folder: for locks, which end with this process.
    """
    import fcntl

    global _gpu_lock
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus or _gpu_lock is not None or "://" in folder:
        return
    for attempt in itertools.count():
        turn, number = divmod(attempt, len(gpus))
        name = f".gpu-{socket.gethostname()}-{number}-{turn}"
        file = open(os.path.join(folder, name), "w")  # noqa: SIM115 - held to the end
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        _gpu_lock = file
        break
    with contextlib.suppress(RuntimeError):  # TensorFlow has begun to use them
        tf.config.set_visible_devices(gpus[number], "GPU")
    grow_gpu_memory()


def grow_gpu_memory() -> None:
    """Has TensorFlow take a GPU's memory as it needs it: processes may share one."""
    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError, ValueError):  # in use, or not visible
            tf.config.experimental.set_memory_growth(gpu, True)
