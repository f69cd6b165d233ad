"""The size of an image from the first bytes of its file, without decoding it."""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Markers without a length after them.
_JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}


class Header(NamedTuple):
    """What a file says of its image.

    Attributes:
        format: "JPEG", "PNG", "GIF" or "BMP".
        height: in pixels.
        width: in pixels.
        channels: 1 for shades of grey, 3 for colours; transparency is not counted.
    """

    format: str
    height: int
    width: int
    channels: int


def read_header(path: str) -> Header:
    """Returns what an image's file says of it.

    Raises:
        ValueError: if it is empty, of another format, or broken off; naming the file.
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(32)
        if not start:
            raise ValueError(f"the image {path!r} is an empty file; delete it.")
        try:
            header = _header(start, file)
            fault = _bmp_fault(path) if start.startswith(b"BM") else None
        except (struct.error, IndexError, KeyError) as error:
            raise ValueError(
                f"the image {path!r} is corrupt: its header is broken off; delete it, or "
                "write it anew."
            ) from error
    if header is None:
        raise ValueError(
            f"the image {path!r} is no JPEG, PNG, BMP or GIF, whatever it is called; convert "
            "it or move it away."
        )
    if fault is not None:
        raise ValueError(
            f"the image {path!r} is a BMP {fault}, which TensorFlow does not read; convert it "
            "to PNG."
        )
    if header.height < 1 or header.width < 1:
        raise ValueError(f"the image {path!r} is corrupt: it has no pixels; delete it.")
    return header


def _header(start: bytes, file: BinaryIO) -> Header | None:
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack(">II", start[16:24])
        return Header("PNG", height, width, _PNG_CHANNELS[start[25]])
    if start.startswith((b"GIF87a", b"GIF89a")):
        width, height = struct.unpack("<HH", start[6:10])
        return Header("GIF", height, width, 3)
    if start.startswith(b"BM"):
        width, height = struct.unpack("<ii", start[18:26])
        (bits,) = struct.unpack("<H", start[28:30])
        return Header("BMP", abs(height), width, 1 if bits == 8 else 3)
    if start.startswith(b"\xff\xd8"):
        return _jpeg(file)
    return None


def _bmp_fault(path: str) -> str | None:
    """Returns what TensorFlow would take for something else, without an error or with one."""
    with open(path, "rb") as file:
        head = file.read(14 + 124 + 4 * 256)
    (size,) = struct.unpack("<I", head[14:18])
    if size < 40:
        return "of OS/2"
    bits, compression = struct.unpack("<HI", head[28:34])
    if bits not in (8, 24, 32):
        return f"of {bits} bits a pixel"
    masks = struct.pack("<3I", 0xFF0000, 0xFF00, 0xFF)
    if compression and not (bits == 32 and head[54:66] == masks):
        return "that is compressed"
    if bits == 8:
        count = struct.unpack("<I", head[46:50])[0] or 256
        palette = head[14 + size :][: 4 * count]
        if any(
            set(palette[4 * i : 4 * i + 3]) != {i} for i in range(len(palette) // 4)
        ):
            return "of colours from a palette"
    return None


def _jpeg(file: BinaryIO) -> Header:
    file.seek(2)
    while True:
        if file.read(1)[0] != 0xFF:
            continue  # filling between segments
        marker = 0xFF
        while marker == 0xFF:
            marker = file.read(1)[0]
        if marker in _JPEG_ALONE or marker == 0:
            continue
        (length,) = struct.unpack(">H", file.read(2))
        if marker in _JPEG_FRAMES:
            height, width, parts = struct.unpack(">xHHB", file.read(6))
            return Header("JPEG", height, width, 1 if parts == 1 else 3)
        file.seek(length - 2, 1)
