"""scikit-learn's handwritten digits, which need no network."""

from __future__ import annotations

import functools
import math

import tensorflow as tf

from keras_distill.datasets.parts import Parts

#: What is said of options that they do not take.
NO_OPTIONS = "digits are 8x8 images in [0, 1]; image_size and normalize are for TFDS datasets and images of your own."


def digits_parts(validation_fraction: float) -> Parts:
    """Returns 1797 images of 8x8, with 540 of them for test."""
    import sklearn
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype("float32").reshape(-1, 8, 8, 1)
    y = y.astype("int64")
    held_out = math.ceil(1257 * validation_fraction)  # of seven tenths of 1797
    if not 10 <= held_out <= 1247:
        raise ValueError(
            f"validation_fraction={validation_fraction} of 1257 digits leaves fewer than one "
            "of each class for training or for validation; 0.1 keeps a tenth for validation."
        )
    # The splits are the same for every seed, as those of TFDS are.
    split = functools.partial(train_test_split, random_state=0)
    x, x_test, y, y_test = split(x, y, stratify=y, test_size=0.3)
    x, x_val, y, y_val = split(x, y, stratify=y, test_size=validation_fraction)
    arrays = {"train": (x, y), "validation": (x_val, y_val), "test": (x_test, y_test)}
    datasets = {k: tf.data.Dataset.from_tensor_slices(v) for k, v in arrays.items()}
    return Parts(
        datasets,
        [str(digit) for digit in range(10)],
        (8, 8, 1),
        {split: len(labels) for split, (_, labels) in arrays.items()},
        version=f"scikit-learn {sklearn.__version__}",  # which brings them
    )
