"""Processes that cost a fork in place of importing TensorFlow.

Multiprocessing's fork server imports the whole package once for each worker of pytest and
runs none of TensorFlow; every process that a test starts here is forked from it.
"""

import contextlib
import gc
import multiprocessing
import os
import pathlib
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import forkserver

import keras_distill
from keras_distill import processes

ROOT = pathlib.Path(__file__).parent.parent


def _server():
    """Multiprocessing's context, whose server has imported all that we have."""
    names = ["keras_tuner", "keras_distill"]
    for module in pkgutil.walk_packages(keras_distill.__path__, "keras_distill."):
        if not module.name.endswith("__main__"):
            names.append(module.name)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(names)
    with contextlib.chdir(ROOT), _quiet():
        forkserver._forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _quiet():
    """TensorFlow's start-up log is left out of a server that starts now."""
    os.environ["KERAS_DISTILL_QUIET"] = "1"
    try:
        yield
    finally:
        del os.environ["KERAS_DISTILL_QUIET"]


def fork_pools():
    """Has the processes of loky and of Dask forked as well, from now on."""
    import dask
    from joblib.externals import loky

    real = loky.ProcessPoolExecutor
    loky.ProcessPoolExecutor = lambda **given: real(context=_server(), **given)
    processes._end_with = _end_with
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})


def _end_with(parent):
    """`processes._end_with` asks for its own parent, which here is the server."""

    def watch():
        while pathlib.Path(f"/proc/{parent}").exists():
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _child(address, arguments, folder, environment, written):
    """What a new process does: it is `python ARGUMENTS`, as far as a program can see."""
    gc.freeze()
    os.setsid()
    # Its own processes are forked from the same server.
    forkserver._forkserver._forkserver_address = address
    forkserver._forkserver.ensure_running = lambda: None
    fork_pools()
    for number, path in enumerate(written, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    # Whoever was started from a background shell ignores it, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    first, *rest = arguments
    if first in ("-m", "-c"):
        sys.path.insert(0, str(folder))
        first, *rest = rest
    else:
        sys.path.insert(0, os.path.dirname(first))
    sys.argv = [first, *rest]
    if arguments[0] == "-m":
        runpy.run_module(first, run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        exec(first, {"__name__": "__main__"})
    else:
        runpy.run_path(first, run_name="__main__")


class Process:
    """`python ARGUMENTS` as a forked process, with subprocess's names.

    Args:
        arguments: of Python: `["-m", "module", ...]`, `["-c", "code", ...]` or a script's
            path and its arguments.
        cwd: its folder; default: the project's.
        env: its whole environment; default: this process's.
    """

    def __init__(self, arguments, cwd=ROOT, env=None):
        self.args = [str(argument) for argument in arguments]
        self._folder = tempfile.TemporaryDirectory()
        self._written = [
            pathlib.Path(self._folder.name, name) for name in ("stdout", "stderr")
        ]
        for path in self._written:
            path.touch()
        environment = dict(os.environ if env is None else env)
        server, written = _server(), list(map(str, self._written))
        address = forkserver._forkserver._forkserver_address
        self._process = server.Process(
            target=_child, args=(address, self.args, str(cwd), environment, written)
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def stdout(self):
        """What it has written so far."""
        return self._written[0].read_text()

    @property
    def stderr(self):
        return self._written[1].read_text()

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout, stderr=self.stderr)
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.returncode is None:
            self.kill()
            self.wait()


def run(arguments, cwd=ROOT, env=None, timeout=120):
    """Runs `python ARGUMENTS` to its end; like `subprocess.run` with captured text."""
    with Process(arguments, cwd, env) as process:
        process.wait(timeout)
        return subprocess.CompletedProcess(
            process.args, process.returncode, process.stdout, process.stderr
        )


def answer_here(runtime, path, batches):
    """In place of `check.ask_fresh_process` where a fresh process is not the point."""
    model = runtime.Model(path)
    return [model(batch) for batch in batches]


_COMMAND = """
import sys
from keras_distill.commands.main import main
from keras_distill.export import check
from tests.forking import answer_here
check.ask_fresh_process = answer_here
sys.exit(main(sys.argv[1:]))
"""


def command(arguments, cwd):
    """Runs `keras-distill ARGUMENTS`; its exports are asked in the same process."""
    return run(["-c", _COMMAND, *arguments], cwd)


def wait_for(condition, seconds=60):
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
