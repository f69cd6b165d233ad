"""Worker processes of a search, and the chief that they ask."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any

import cloudpickle
import grpc
import tensorflow as tf
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_chief import OracleServicer

from keras_distill.tuning.oracles import SearchOracle

_POLL_SECONDS = 0.1
_GOODBYE_SECONDS = 10.0
#: So many processes in a row that end before they have asked for a trial.
_STILLBORN = 2


@contextlib.contextmanager
def serving(oracle: SearchOracle, host: str, port: int) -> Iterator[int]:
    """Serves an oracle by KerasTuner's gRPC service meanwhile.

    Args:
        oracle: asked by the workers.
        host: to listen at.
        port: 0 for any that is free.

    Yields:
        The port.

    Raises:
        OSError: if the port is taken.
    """
    # One thread: KerasTuner's oracles are made for one call at a time.
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=1),
        # Else two chiefs could share a port, and workers would find either.
        options=[("grpc.so_reuseport", 0)],
    )
    protos.get_service_grpc().add_OracleServicer_to_server(
        OracleServicer(oracle), server
    )
    try:
        port = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(
            f"the chief cannot listen at {host}:{port}; is another one running? Choose "
            "another KERASTUNER_ORACLE_PORT."
        ) from error
    server.start()
    try:
        yield port
    finally:
        server.stop(grace=0.5).wait()


def run_distant(oracle: SearchOracle, look: Callable[[], None]) -> None:
    """Waits until the workers of other processes have run all trials.

    Args:
        oracle: served meanwhile.
        look: called again and again.
    """
    while not oracle.is_over:
        _look(oracle, look)
        oracle.retry_lost()
    # Every worker asks once more, and is told to stop.
    end = time.monotonic() + _GOODBYE_SECONDS
    while oracle.tuner_ids and time.monotonic() < end:
        _look(oracle, look)


def _look(oracle: SearchOracle, look: Callable[[], None]) -> None:
    if oracle.error is not None:
        raise oracle.error
    look()
    time.sleep(_POLL_SECONDS)


class Workers:
    """Worker processes on this host.

    A worker that dies is replaced, and its trial tried again. All end with this process,
    even if it is killed.

    Args:
        payload: what each reads first.
        count: how many.
        port: of the chief.
        folder: for what they print.
    """

    def __init__(self, payload: bytes, count: int, port: int, folder: str) -> None:
        self.payload, self.port, self.folder = payload, port, folder
        self.processes: dict[str, subprocess.Popen] = {}
        os.makedirs(folder, exist_ok=True)
        gpus = len(tf.config.list_physical_devices("GPU"))
        self.devices = {
            f"worker-{i}": visible_device(i, os.environ, gpus) for i in range(count)
        }

    def run(self, oracle: SearchOracle, look: Callable[[], None]) -> None:
        """Runs all trials.

        Args:
            oracle: served meanwhile.
            look: called again and again.

        Raises:
            RuntimeError: if workers end before they ask for a trial.
        """
        try:
            stillborn = dict.fromkeys(self.devices, 0)
            for name in self.devices:
                self._start(name, oracle)
            while not oracle.is_over:
                for name, process in list(self.processes.items()):
                    if process.poll() is None:
                        continue
                    asked = name in oracle.tuner_ids or process.returncode == 0
                    oracle.worker_is_gone(name, died=True)
                    stillborn[name] = 0 if asked else stillborn[name] + 1
                    if stillborn[name] >= _STILLBORN:
                        del self.processes[name]  # the others go on without it
                        if not self.processes:
                            raise RuntimeError(self._why(name, process.returncode))
                    elif not oracle.is_over:
                        self._start(name, oracle)
                _look(oracle, look)
            end = time.monotonic() + _GOODBYE_SECONDS
            while time.monotonic() < end and any(
                process.poll() is None for process in self.processes.values()
            ):
                _look(oracle, look)
        finally:
            self.stop()
            for name in self.devices:
                oracle.worker_is_gone(name, died=False)

    def _start(self, name: str, oracle: SearchOracle) -> None:
        environment = {
            **os.environ,
            "KERASTUNER_TUNER_ID": name,
            "KERASTUNER_ORACLE_IP": "127.0.0.1",
            "KERASTUNER_ORACLE_PORT": str(self.port),
            # TensorFlow's start-up log would be all there is in the file.
            "KERAS_DISTILL_QUIET": "1",
            "GRPC_VERBOSITY": "NONE",
        }
        if self.devices[name] is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(self.devices[name])
        with open(self._log(name), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "keras_distill.tuning.worker"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                # Ctrl-C is for this process, which then ends the others.
                start_new_session=True,
            )
        self.processes[name] = process
        oracle.worker_is_here(name)
        threading.Thread(target=self._send, args=(process,), daemon=True).start()

    def _send(self, process: subprocess.Popen) -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has died
            process.stdin.write(self.payload)
            process.stdin.flush()

    def stop(self) -> None:
        """Ends all processes."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()  # what they write is whole or not there
        for process in self.processes.values():
            process.wait()
            with contextlib.suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]

    def _log(self, name: str) -> str:
        return os.path.join(self.folder, f"{name}.log")

    def _why(self, name: str, code: int) -> str:
        with open(self._log(name), errors="replace") as file:
            last = "".join(file.readlines()[-15:]).strip()
        return (
            f"the worker processes end before they run a trial (exit status {code}). The "
            f"last that {self._log(name)} says:\n{last}"
        )


def visible_device(
    worker: int, environment: Mapping[str, str], gpus: int
) -> str | None:
    """Returns `CUDA_VISIBLE_DEVICES` for a worker; workers beyond the GPUs share them.

    Args:
        worker: number from 0.
        environment: of this process, whose choice of GPUs is respected.
        gpus: how many TensorFlow sees in this process.

    Returns:
        One GPU, or `None` where there are none to choose from.
    """
    if gpus == 0:
        return None
    given = environment.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(gpus)] if given is None else given.split(",")
    names = [name.strip() for name in names][:gpus]
    return names[worker % len(names)]


def payload(settings: Any, job: Any) -> bytes:
    """Returns what a worker reads: Python's path, Keras's settings, then the job.

    Functions of the user's script are sent by value, as joblib does it.

    Raises:
        TypeError: if something cannot be sent.
    """
    try:
        sent = cloudpickle.dumps(settings) + cloudpickle.dumps(job)
    except Exception as error:
        raise TypeError(
            "with workers > 1, what the search is given is sent to other processes, and "
            f"something of it cannot be: {error}. Let functions make it, as with a "
            "function that returns the dataset."
        ) from error
    return pickle.dumps(sys.path) + sent
