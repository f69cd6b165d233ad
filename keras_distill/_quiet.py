"""Keeps TensorFlow's start-up log out of our own commands.

TensorFlow writes to the process's standard error while it is imported and while it looks
for GPUs, whatever `TF_CPP_MIN_LOG_LEVEL` says.
"""

import logging
import os
import signal
import sys
import tempfile

#: Set for the processes that our commands start.
_VARIABLE = "KERAS_DISTILL_QUIET"


def stop(*_: object) -> None:
    """Ends a command that is still being imported, at Ctrl-C."""
    os.write(2, b"\nkeras-distill: stopped.\n")
    os._exit(130)


def _is_our_command() -> bool:
    script = os.path.basename(sys.argv[0] if sys.argv else "")
    return script == "keras-distill" or sys.orig_argv[1:3] == ["-m", "keras_distill"]


def _import_tensorflow_quietly() -> None:
    """Imports TensorFlow with standard error kept aside, shown only if that fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ[_VARIABLE] = "1"
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        except BaseException:
            log.seek(0)
            os.write(standard_error, log.read())
            raise
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)


if _is_our_command():
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    _import_tensorflow_quietly()
elif os.environ.get(_VARIABLE):
    _import_tensorflow_quietly()
