"""A folder of recordings by class: waveforms of one length and one sample rate."""

from __future__ import annotations

import functools
import math
from collections import Counter

import numpy as np

from keras_distill.datasets.folders import (
    Folder,
    datasets_of_files,
    draw_splits,
    read_headers,
)
from keras_distill.datasets.parts import Parts
from keras_distill.datasets.wav import Header, read_header, read_samples


def sound_parts(
    folder: Folder,
    validation_fraction: float,
    seconds: float | None,
    sample_rate: int | None,
    description: str | None,
) -> Parts:
    """Returns the recordings of a folder as waveforms of one length.

    Raises:
        ValueError: if a file is no recording, or corrupt, or they differ in their sample
            rates and no `sample_rate` is given; naming the file.
    """
    splits = draw_splits(folder, validation_fraction)
    headers = read_headers(splits, read_header, description)
    rate = sample_rate or _one_rate(headers)
    if seconds is None:
        train = [headers[path] for path in splits["train"].paths]
        length = max(math.ceil(one.samples * rate / one.sample_rate) for one in train)
    else:
        length = max(1, round(seconds * rate))

    read = functools.partial(
        read_sound, headers=headers, sample_rate=rate, length=length
    )
    datasets, prepare = datasets_of_files(
        splits, read, (length,), "float32", description
    )
    return Parts(
        datasets,
        folder.class_names,
        (length,),
        {split: len(files.paths) for split, files in splits.items()},
        prepare,
        sample_rate=rate,
    )


def _one_rate(headers: dict[str, Header]) -> int:
    rates = Counter(header.sample_rate for header in headers.values())
    rate, count = rates.most_common(1)[0]
    for path, header in sorted(headers.items()):
        if header.sample_rate != rate:
            raise ValueError(
                f"the recording {path!r} has {header.sample_rate} samples a second, and {count} "
                f"of {len(headers)} have {rate}; pass sample_rate={rate} to resample to it, on "
                f"the command line --sample-rate {rate}, or another rate."
            )
    return rate


def read_sound(
    path: str, headers: dict[str, Header], sample_rate: int, length: int
) -> np.ndarray:
    """Returns a recording, its end cut off or with zeros after it.

    Raises:
        ValueError: if it has samples that are NaN or infinite; naming the file.
    """
    header = headers[path]
    if header.sample_rate == sample_rate:
        return with_length(read_samples(path, header, length), length)
    samples = read_samples(path, header)
    return with_length(resampled(samples, header.sample_rate, sample_rate), length)


def resampled(samples: np.ndarray, given: int, wanted: int) -> np.ndarray:
    """Returns a recording at another sample rate, in Hz."""
    from scipy.signal import resample_poly

    common = math.gcd(given, wanted)
    return resample_poly(samples, wanted // common, given // common)


def with_length(samples: np.ndarray, length: int) -> np.ndarray:
    """Returns a recording, float32, its end cut off or with zeros after it."""
    whole = np.zeros(length, "float32")
    samples = samples[:length]
    whole[: len(samples)] = samples
    return whole
