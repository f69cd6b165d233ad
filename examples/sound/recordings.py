"""The recordings of spoken_digit, split by who speaks."""

import sys

import numpy as np
from sound.log_mel import SAMPLES

TEST = "yweweler"
SPEAKERS = ["george", "jackson", "nicolas", "theo", TEST]


def load(data_dir=None, judged=TEST):
    """Returns `(samples, digits)` of "train" and "judged"; ends the program if there are none.

    Whoever is judged does not train, and the test speaker never does. Samples are float32
    `(recordings, 8000)` in [-1, 1]: of longer recordings the first second, shorter ones in
    the middle of zeros.
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
    parts = {"train": ([], []), "judged": ([], []), "left out": ([], [])}
    for one in found.as_numpy_iterator():
        _, speaker, _ = one["audio/filename"].decode().split("_")
        samples = one["audio"][:SAMPLES] / 2**15
        missing = SAMPLES - len(samples)
        x, y = parts[part_of(speaker, judged)]
        x.append(np.pad(samples, (missing // 2, missing - missing // 2)))
        y.append(one["label"])
    return {part: (np.float32(x), np.array(y)) for part, (x, y) in parts.items()}


def part_of(speaker, judged):
    """Returns what becomes of a speaker's recordings."""
    if speaker == judged:
        return "judged"
    return "left out" if speaker == TEST else "train"


def augment(x, y, copies=1, seed=0):
    """Returns copies at another speed and pitch, shifted, in another room, and noisy."""
    rng, time = np.random.default_rng(seed), np.arange(SAMPLES)
    x, y = np.tile(x, (copies, 1)), np.tile(y, copies)
    middle, taps = SAMPLES // 2, np.arange(400)
    for one in x:
        # Pitch and resonances of another speaker's throat, by up to 0.2 s earlier or later.
        speed, shift = rng.uniform(0.7, 1.4), rng.integers(-1600, 1600)
        spoken = np.interp(
            (time - middle - shift) * speed + middle, time, one, 0.0, 0.0
        )
        # An echo that dies in 0.25 to 19 ms: what microphones and rooms do to every pitch.
        echo = rng.normal(size=400) * np.exp(-taps / np.exp(rng.uniform(0.7, 5.0)))
        echo *= rng.uniform() / np.linalg.norm(echo)
        echo[0] = 1.0
        size = SAMPLES + len(echo)
        heard = np.fft.irfft(np.fft.rfft(spoken, size) * np.fft.rfft(echo, size))
        one[:] = heard[:SAMPLES]
        one /= np.sqrt(np.mean(np.square(one))) + 1e-9
        one += rng.normal(0, 10 ** rng.uniform(-3, -0.3), SAMPLES).astype("float32")
    return x, y
