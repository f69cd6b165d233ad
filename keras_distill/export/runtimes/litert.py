"""A .tflite file, run by ai-edge-litert alone."""

from __future__ import annotations

import numpy as np
from ai_edge_litert.interpreter import Interpreter

NAME = "LiteRT file"


class Model:
    """The signature `serving_default` of one file; a model for each thread that asks.

    Args:
        path: of the file.
        threads: that one batch is computed by; default 1.
    """

    def __init__(self, path: str, threads: int = 1) -> None:
        self._interpreter = Interpreter(model_path=path, num_threads=threads)
        self._serve = self._interpreter.get_signature_runner("serving_default")
        details = self._serve.get_input_details()
        self._dtypes = {name: details[name]["dtype"] for name in details}
        answers = self._serve.get_output_details()
        self.inputs, self.outputs = _shapes(details), _shapes(answers)
        self.input_dtypes, self.output_dtypes = _dtypes(details), _dtypes(answers)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the answers for a batch of any size, by name; text as bytes."""
        return self._serve(**{n: self._as_taken(n, batch[n]) for n in batch})

    def _as_taken(self, name: str, value: np.ndarray) -> np.ndarray:
        value, dtype = np.asarray(value), self._dtypes.get(name)
        if value.dtype.kind in "OSU":
            return value.astype(object)
        return value if dtype is None else value.astype(dtype, casting="same_kind")


def _dtypes(details: dict) -> dict[str, str]:
    dtypes = {name: np.dtype(one["dtype"]) for name, one in details.items()}
    return {n: "string" if d.kind in "OSU" else d.name for n, d in dtypes.items()}


def _shapes(details: dict) -> dict[str, tuple[int | None, ...]]:
    return {
        name: tuple(None if size < 0 else int(size) for size in one["shape_signature"])
        for name, one in details.items()
    }
