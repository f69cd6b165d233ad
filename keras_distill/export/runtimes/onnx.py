"""An .onnx file, run by onnxruntime alone, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

NAME = "ONNX file"


class Model:
    """One file; several threads may ask one model.

    Args:
        path: of the file.
        threads: that one batch is computed by; default 1.
    """

    def __init__(self, path: str, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._dtypes = {one.name: one.type for one in self._session.get_inputs()}
        self.inputs = {n.name: _shape(n) for n in self._session.get_inputs()}
        self.outputs = {n.name: _shape(n) for n in self._session.get_outputs()}
        self.input_dtypes = {n.name: _dtype(n) for n in self._session.get_inputs()}
        self.output_dtypes = {n.name: _dtype(n) for n in self._session.get_outputs()}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the answers for a batch of any size, by name; text as bytes."""
        given = {name: self._as_taken(name, batch[name]) for name in batch}
        answers = self._session.run(list(self.outputs), given)
        return dict(zip(self.outputs, map(_as_bytes, answers), strict=True))

    def _as_taken(self, name: str, value: Any) -> np.ndarray:
        value = np.asarray(value)
        if value.dtype.kind in "OSU":
            words = [w.decode() if isinstance(w, bytes) else w for w in value.ravel()]
            return np.array(words, object).reshape(value.shape)
        dtype = _DTYPES.get(self._dtypes.get(name, ""))
        return value if dtype is None else value.astype(dtype, casting="same_kind")


# As onnxruntime calls them, where NumPy has another name.
_DTYPES = {
    f"tensor({theirs})": np.dtype(ours)
    for theirs, ours in {
        "float": "float32",
        "double": "float64",
        **{n: n for n in ("float16", "bool")},
        **{f"{u}int{b}": f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)},
    }.items()
}


def _dtype(tensor: Any) -> str:
    name = tensor.type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


def _shape(tensor: Any) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in tensor.shape)


def _as_bytes(answer: np.ndarray) -> np.ndarray:
    if answer.dtype.kind not in "OU":
        return answer
    words = [word.encode() for word in answer.ravel()]
    return np.array(words, object).reshape(answer.shape)
