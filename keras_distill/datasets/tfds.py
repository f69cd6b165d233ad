"""Datasets of TFDS, by name."""

from __future__ import annotations

import math
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill import progress
from keras_distill.datasets.data import bytes_of, to_arrays
from keras_distill.datasets.parts import IN_MEMORY_BYTES, Parts
from keras_distill.datasets.sound import resampled, with_length

_PROBE_SECONDS = 10.0
_NO_IMAGES = "the inputs of {name!r} are no images of 8 bits, but {feature}; leave image_size out."


def is_known(name: str, data_dir: str | os.PathLike | None) -> bool:
    """Tells whether TFDS has a dataset of the name."""
    import tensorflow_datasets as tfds

    try:
        tfds.builder(name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, TypeError):
        return False
    except AssertionError:  # of a version that is not there
        return True
    return True


def tfds_parts(
    name: str,
    data_dir: str | os.PathLike | None,
    validation_fraction: float,
    image_size: tuple[int, int] | None,
    normalize: bool,
    verbose: bool,
    seconds: float | None = None,
    sample_rate: int | None = None,
) -> Parts:
    """Returns a dataset, prepared if it was not, held in memory if it is small.

    Raises:
        ValueError: if there is none of the name, or it has no class labels.
        ConnectionError: if it is not prepared and its source does not answer.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise ValueError(
            f"there is no dataset {name!r}, and nothing of that name in {os.getcwd()!r}; "
            "give a folder of images or .wav files by class, a .csv, .tsv or .parquet file, "
            '"digits", a name of tensorflow_datasets.list_builders(), or module:function.'
        ) from error
    except (AssertionError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0].rstrip(".: ")
        raise ValueError(
            f"no dataset can be made of the name {name!r}: {reason}. Names are as in "
            '"cifar100" or "cifar100:3.0.2".'
        ) from error
    if builder.info.supervised_keys is None:
        raise ValueError(
            f"{name!r} names no input and label (its supervised_keys are None); build a "
            "tf.data.Dataset of (x, y) with tensorflow_datasets and use that."
        )
    input_key, label_key = builder.info.supervised_keys[:2]
    if not (isinstance(input_key, str) and isinstance(label_key, str)):
        raise ValueError(
            f"{name!r} has several inputs or labels, {input_key!r} and {label_key!r}; give "
            "module:function, which returns what of them is x and y."
        )
    label = builder.info.features[label_key]
    if not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(
            f"{name!r} is not a classification dataset: its {label_key!r} is a "
            f"{type(label).__name__}, not a ClassLabel."
        )
    _prepare(builder)
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    splits = _split_names(counts, validation_fraction)
    datasets = builder.as_dataset(split=splits, as_supervised=True, shuffle_files=False)
    feature = builder.info.features[input_key]
    is_sound = isinstance(feature, tfds.features.Audio)
    if is_sound and feature.shape == (None,):
        if image_size is not None:
            raise ValueError(_NO_IMAGES.format(name=name, feature=feature))
        description = f"reading {name}" if verbose else None
        datasets, sample_rate = _waveforms(
            name, datasets, feature, seconds, sample_rate, normalize, description
        )
        shape, prepare = tuple(datasets["train"].element_spec[0].shape), None
    else:
        if seconds is not None or sample_rate is not None:
            raise ValueError(
                f"the inputs of {name!r} are no recordings, but {feature}; leave seconds and "
                "sample_rate out."
            )
        shape, prepare = _preparation(name, feature, image_size, normalize)
    sizes = {split: int(dataset.cardinality()) for split, dataset in datasets.items()}
    # Cached whole where it is small: an in-memory cache of tf.data can be cut short by
    # an iterator that is not read to its end.
    held = (sizes[split] * bytes_of(d.element_spec) for split, d in datasets.items())
    if sum(held) <= IN_MEMORY_BYTES:
        for split, dataset in datasets.items():
            description = f"reading {name} {split}" if verbose else None
            arrays = to_arrays(dataset.batch(1000), description)
            datasets[split] = tf.data.Dataset.from_tensor_slices(arrays)
    class_names = [label.int2str(i) for i in range(label.num_classes)]
    return Parts(
        datasets,
        class_names,
        shape,
        sizes,
        prepare,
        str(builder.info.version),
        sample_rate=sample_rate,
    )


def _split_names(
    available: dict[str, int], validation_fraction: float
) -> dict[str, str]:
    """Returns TFDS split expressions; validation comes out of train alone.

    Args:
        available: number of examples by split.
        validation_fraction: of the training examples.
    """
    if "train" not in available:
        raise ValueError(f"the dataset has no train split, only {list(available)}.")
    held_out = next((s for s in ("test", "validation") if s in available), None)
    # Without a test split, the last fifth of train becomes one.
    end = available["train"] if held_out else available["train"] * 4 // 5
    boundary = end - max(1, round(end * validation_fraction))
    if boundary < 1:
        raise ValueError(
            f"validation_fraction={validation_fraction} of {end} examples leaves none to "
            "train on; 0.1 keeps a tenth for validation."
        )
    return {
        "train": f"train[:{boundary}]",
        "validation": f"train[{boundary}:{end}]",
        "test": held_out or f"train[{end}:]",
    }


def _waveforms(
    name: str,
    datasets: dict[str, tf.data.Dataset],
    feature: Any,
    seconds: float | None,
    sample_rate: int | None,
    normalize: bool,
    description: str | None,
) -> tuple[dict[str, tf.data.Dataset], int | None]:
    """Returns recordings as waveforms of one length, and their sample rate in Hz."""
    given = feature.sample_rate
    if not given and (seconds is not None or sample_rate is not None):
        raise ValueError(
            f"{name!r} does not say its sample rate, so that seconds and sample_rate mean "
            "nothing; leave them out."
        )
    rate = sample_rate or given
    # TFDS gives the samples of a file as they are in it, which are of 16 bits, or of 32.
    train = progress.each(
        datasets["train"].as_numpy_iterator(), description or "", "recording",
        int(datasets["train"].cardinality()), description is not None,
    )  # fmt: skip
    sizes = [(len(x), int(abs(x).max(initial=0)) if normalize else 0) for x, _ in train]
    longest, peak = map(max, zip(*sizes, strict=True))
    is_whole = np.issubdtype(feature.np_dtype, np.integer)
    scale = 2 ** (15 if peak <= 2**15 else 31) if is_whole and normalize else 1
    if seconds is not None:
        length = max(1, round(seconds * rate))
    else:
        length = math.ceil(longest * rate / given) if given else longest

    def waveform(samples: np.ndarray) -> np.ndarray:
        samples = samples / np.float32(scale)
        if rate != given:
            samples = resampled(samples, given, rate)
        return with_length(samples, length)

    def prepare(x: Any, y: Any) -> tuple[Any, Any]:
        x = tf.numpy_function(waveform, [x], tf.float32, stateful=False)
        return tf.ensure_shape(x, (length,)), y

    mapped = {split: dataset.map(prepare) for split, dataset in datasets.items()}
    return mapped, rate or None


def _preparation(
    name: str, feature: Any, image_size: tuple[int, int] | None, normalize: bool
) -> tuple[tuple[int, ...], Callable]:
    """Returns the shape of an example and the function that prepares one."""
    shape = feature.shape
    is_image = len(shape) == 3 and feature.np_dtype == np.uint8
    if image_size is not None and not is_image:
        raise ValueError(_NO_IMAGES.format(name=name, feature=feature))
    if is_image and image_size is not None:
        shape = (*image_size, shape[-1])
    if None in shape:
        raise ValueError(
            f"the inputs of {name!r} have shape {shape}, so they do not batch; pass "
            "image_size=(height, width)."
        )

    def prepare(x: Any, y: Any) -> tuple[Any, Any]:
        if is_image and image_size is not None:
            x = tf.image.resize(x, image_size)
        if x.dtype != tf.string:
            x = tf.cast(x, tf.float32)
            if is_image and normalize:
                x = x / 255.0
        return x, y

    return tuple(shape), prepare


def _prepare(builder: Any) -> None:
    """Downloads and prepares a dataset, after making sure that its source answers."""
    import tensorflow_datasets as tfds

    if builder.is_prepared():
        return
    url = next((url for url in builder.url_infos if url.startswith("http")), None)
    if url and (reason := _why_unreachable(url)):
        raise ConnectionError(
            f"{builder.info.full_name!r} is not prepared in {builder.data_dir}, and its "
            f"source {url} does not answer ({reason}). Prepare it where there is a network, "
            f"with tensorflow_datasets.load({builder.name!r}, data_dir=...), copy that folder "
            "here and pass it as data_dir or set TFDS_DATA_DIR; or use 'digits', offline."
        )
    if not progress.is_live():
        tfds.disable_progress_bar()
    builder.download_and_prepare()


def _why_unreachable(url: str) -> str | None:
    """Returns why a source does not answer within ten seconds, or `None` if it does.

    TFDS itself retries for over three minutes before it says so.
    """
    reason: list[str | None] = [f"no answer within {_PROBE_SECONDS:g} s"]

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
                reason[0] = None
        except urllib.error.HTTPError:
            reason[0] = None  # it answered; what it says of HEAD does not matter
        except OSError as error:
            reason[0] = str(getattr(error, "reason", error))

    # A name server that does not answer ignores the timeout: hence the thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return reason[0]
