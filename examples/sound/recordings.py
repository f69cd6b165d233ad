"""The recordings of spoken_digit, split by who speaks."""

import sys

import numpy as np
from sound.log_mel import SAMPLES

SPLITS = {
    "george": "train", "jackson": "train", "nicolas": "train",
    "theo": "validation", "yweweler": "test",
}  # fmt: skip


def load(data_dir=None):
    """Returns `(samples, digits)` by split; ends the program where there are none.

    Samples are float32 `(recordings, 8000)` in [-1, 1]: of longer recordings the first second,
    shorter ones in the middle of zeros.
    """
    import tensorflow_datasets as tfds  # slow

    try:
        found = tfds.load(
            "spoken_digit", split="train", data_dir=data_dir, download=False
        )
    except (AssertionError, tfds.core.registered.DatasetNotFoundError):
        sys.exit(
            f"spoken_digit is not in {data_dir or 'the data_dir of TFDS'}; prepare it by "
            'tfds.load("spoken_digit"), or say where it is by --data-dir.'
        )
    parts = {split: ([], []) for split in SPLITS.values()}
    for one in found.as_numpy_iterator():
        _, speaker, _ = one["audio/filename"].decode().split("_")
        samples = one["audio"][:SAMPLES] / 2**15
        missing = SAMPLES - len(samples)
        x, y = parts[SPLITS[speaker]]
        x.append(np.pad(samples, (missing // 2, missing - missing // 2)))
        y.append(one["label"])
    return {split: (np.float32(x), np.array(y)) for split, (x, y) in parts.items()}


def augment(x, y, copies):
    """Returns copies at another speed and pitch, shifted, louder or quieter, and noisy."""
    rng, time = np.random.default_rng(0), np.arange(SAMPLES)
    x, y = np.tile(x, (copies, 1)), np.tile(y, copies)
    middle = SAMPLES // 2
    for one in x:
        # Pitch and resonances of another speaker's throat, by up to 0.2 s earlier or later.
        speed, shift = rng.uniform(0.75, 1.3), rng.integers(-1600, 1600)
        one[:] = np.interp(
            (time - middle - shift) * speed + middle, time, one, 0.0, 0.0
        )
        one *= np.exp(rng.normal(0, 0.7))
        one += np.float32(rng.normal(0, 10 ** rng.uniform(-4, -2), SAMPLES))
    return x, y
