"""WAV files: what their headers say, and their samples.

Of SciPy's reader, warnings are the only sign of what a file lacks; several threads cannot
hear those.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

import numpy as np

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE


class Header(NamedTuple):
    """What a file says of its recording.

    Attributes:
        sample_rate: in Hz.
        channels: how many.
        samples: of each channel.
        dtype: of a sample in the file; "V3" for whole numbers of 24 bits.
        order: of their bytes, "<" or ">".
        start: place of the first byte of the samples.
    """

    sample_rate: int
    channels: int
    samples: int
    dtype: str
    order: str
    start: int


def read_header(path: str) -> Header:
    """Returns what a WAV file says of its recording.

    Raises:
        ValueError: if it is none, is compressed, has no samples or fewer than it says;
            naming the file.
        OSError: if it cannot be read.
    """
    size_of_file = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(12)
        if not start:
            raise ValueError(f"the recording {path!r} is an empty file; delete it.")
        if start[:4] not in (b"RIFF", b"RIFX", b"RF64") or start[8:] != b"WAVE":
            raise ValueError(
                f"the recording {path!r} is no WAV file, whatever it is called; convert it or "
                "move it away."
            )
        order = ">" if start[:4] == b"RIFX" else "<"
        said = b""
        while len(chunk := file.read(8)) == 8:
            name, size = struct.unpack(f"{order}4sI", chunk)
            place = file.tell()
            if name == b"fmt ":
                said = file.read(size)
            elif name == b"data":
                # Of RF64 sizes are elsewhere, and of what was written to a pipe nowhere.
                if start[:4] == b"RF64" or size == 0xFFFFFFFF:
                    size = size_of_file - place
                return _described(path, said, order, place, size, size_of_file - place)
            file.seek(place + size + size % 2)
    raise ValueError(_corrupt(path, "it breaks off before its samples"))


def _described(
    path: str, said: bytes, order: str, start: int, size: int, left: int
) -> Header:
    """Returns the header, made of the format and the size of the samples."""
    try:
        code, channels, rate, _, frame, _ = struct.unpack(f"{order}HHIIHH", said[:16])
    except struct.error as error:
        raise ValueError(_corrupt(path, "it does not say its format")) from error
    if code == _EXTENSIBLE and len(said) >= 26:
        (code,) = struct.unpack(f"{order}H", said[24:26])
    width = frame // channels if channels and not frame % channels else 0
    dtype = {
        (_PCM, 1): "u1", (_PCM, 2): "i2", (_PCM, 3): "V3", (_PCM, 4): "i4",
        (_FLOAT, 4): "f4", (_FLOAT, 8): "f8",
    }.get((code, width))  # fmt: skip
    if dtype is None or not rate:
        raise ValueError(
            f"the recording {path!r} has samples of format {code} in {width} bytes each, "
            f"{rate} a second; convert it to PCM of 8 to 32 bits, or to floats."
        )
    if size > left:
        raise ValueError(
            _corrupt(path, f"it breaks off {size - left} bytes before its end")
        )
    if size < frame:
        raise ValueError(f"the recording {path!r} has no samples; delete it.")
    return Header(rate, channels, size // frame, dtype, order, start)


def _corrupt(path: str, reason: str) -> str:
    return f"the recording {path!r} is corrupt: {reason}; delete it, or write it anew."


def read_samples(path: str, header: Header, most: int | None = None) -> np.ndarray:
    """Returns a recording's samples, float32 `(samples,)`: the mean of its channels.

    Whole numbers' full range is [-1, 1); floats are as they are.

    Args:
        path: of the file.
        header: of it.
        most: how many samples to read; `None` for all.

    Raises:
        ValueError: if it has samples that are NaN or infinite; naming the file.
    """
    count = min(most or header.samples, header.samples) * header.channels
    dtype = np.dtype(header.dtype)
    with open(path, "rb") as file:
        file.seek(header.start)
        content = file.read(count * dtype.itemsize)
    if header.dtype == "V3":
        # As the upper three bytes of 32 bits.
        wide = np.zeros((count, 4), "u1")
        part = slice(1, 4) if header.order == "<" else slice(0, 3)
        wide[:, part] = np.frombuffer(content, "u1").reshape(-1, 3)
        numbers = wide.view(f"{header.order}i4").ravel()
    else:
        numbers = np.frombuffer(content, np.dtype(header.order + header.dtype))
    if numbers.dtype.kind == "f":
        samples = numbers.astype("float32")
    else:
        full = float(2 ** (8 * numbers.dtype.itemsize - 1))
        middle = full if numbers.dtype.kind == "u" else 0.0
        samples = ((numbers - middle) / full).astype("float32")
    if not np.isfinite(samples).all():
        raise ValueError(_corrupt(path, "it has samples that are NaN or infinite"))
    return samples.reshape(-1, header.channels).mean(axis=1, dtype="float32")
