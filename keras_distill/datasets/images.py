"""A folder of images by class."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill.datasets.folders import (
    Folder,
    datasets_of_files,
    draw_splits,
    read_headers,
)
from keras_distill.datasets.image_headers import Header, read_header
from keras_distill.datasets.parts import Parts

CHANNELS = {"grayscale": 1, "rgb": 3, "rgba": 4}


def images_parts(
    folder: Folder,
    validation_fraction: float,
    image_size: tuple[int, int] | None,
    color_mode: str | None,
    normalize: bool,
    description: str | None,
) -> Parts:
    """Returns the images of a folder, decoded as Keras's `image_dataset_from_directory` does.

    Raises:
        ValueError: if a file is no image, or corrupt, or the images differ in size and no
            `image_size` is given; naming the file.
    """
    splits = draw_splits(folder, validation_fraction)
    headers = read_headers(splits, read_header, description)
    if image_size is None:
        height, width = _one_size(headers)
    else:
        height, width = image_size
    if color_mode is None:
        is_grey = all(header.channels == 1 for header in headers.values())
        color_mode = "grayscale" if is_grey else "rgb"
    shape = (height, width, CHANNELS[color_mode])
    is_resized = any(header[1:3] != (height, width) for header in headers.values())
    # What is resized is between whole numbers.
    dtype = "float32" if is_resized else "uint8"
    read = functools.partial(read_image, shape=shape, dtype=dtype)
    datasets, prepare = datasets_of_files(splits, read, shape, dtype, description)
    return Parts(
        datasets,
        folder.class_names,
        shape,
        {split: len(files.paths) for split, files in splits.items()},
        _scaling(prepare, normalize),
    )


def _one_size(headers: dict[str, Header]) -> tuple[int, int]:
    sizes = Counter(header[1:3] for header in headers.values())
    (height, width), count = sizes.most_common(1)[0]
    for path, header in sorted(headers.items()):
        if header[1:3] != (height, width):
            raise ValueError(
                f"the image {path!r} has {header.height} x {header.width} pixels (height x "
                f"width), and {count} of {len(headers)} have {height} x {width}; pass "
                f"image_size=({height}, {width}), on the command line --image-size {height} "
                f"{width}, or another size."
            )
    return height, width


def read_image(path: str, shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    """Returns an image, resized bilinearly if it has another size; a GIF's first picture.

    Raises:
        ValueError: if it cannot be decoded; naming the file.
    """
    height, width, channels = shape
    with open(path, "rb") as file:
        content = file.read()
    try:
        # TensorFlow decodes BMP and GIF only with as many channels as they have.
        asked = 0 if content.startswith((b"BM", b"GIF")) else min(channels, 3)
        if channels == 4 and content.startswith(b"\x89PNG"):
            asked = 4
        image = tf.io.decode_image(content, asked, expand_animations=False)
    except tf.errors.OpError as error:
        # Without TensorFlow's own place: "{{function_node ...}} Invalid PNG data [Op:...]".
        reason = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", error.message.split("\n")[0])
        raise ValueError(
            f"the image {path!r} is corrupt: {reason.strip(' .')}; delete it, or write it anew."
        ) from error
    with tf.device("CPU:0"):  # beside a training on a GPU
        image = _with_channels(image, channels)
        if image.shape[:2] != (height, width):
            image = tf.image.resize(image, (height, width))
        array = image.numpy()
    return array if array.dtype == dtype else array.astype(dtype)


def _with_channels(image: tf.Tensor, channels: int) -> tf.Tensor:
    has = image.shape[-1]
    if has == channels:
        return image
    if channels == 1:
        return tf.image.rgb_to_grayscale(image[..., :3])
    if has == 1:
        image = tf.image.grayscale_to_rgb(image)
    if channels == 4 and image.shape[-1] == 3:
        opaque = tf.fill((*image.shape[:2], 1), tf.constant(255, image.dtype))
        return tf.concat([image, opaque], axis=-1)
    return image[..., :channels]


def _scaling(prepare: Callable | None, normalize: bool) -> Callable:
    """Returns the function that makes float32 of what was read, in [0, 1] if asked."""

    def scaled(x: Any, y: Any) -> tuple[Any, Any]:
        if prepare is not None:
            x, y = prepare(x, y)
        x = tf.cast(x, tf.float32)
        return x / 255.0 if normalize else x, y

    return scaled
