"""Keeps TensorFlow's start-up log out of our own commands, before it is imported."""

import os
import sys

_started_by_module = sys.orig_argv[1:3] == ["-m", "keras_distill"]
_started_by_script = (
    os.path.basename(sys.argv[0] if sys.argv else "") == "keras-distill"
)

if _started_by_module or _started_by_script:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
