"""Images of circles, squares and triangles, with their boxes."""

import numpy as np

SIDE, SHAPES, MOST = 64, ("circle", "square", "triangle"), 3


def draw(count, seed):
    """Returns noisy images, their boxes (xyxy) and labels, -1 where there is none."""
    rng, (rows, columns) = np.random.default_rng(seed), np.mgrid[:SIDE, :SIDE]
    images = rng.uniform(0, 0.4, (count, SIDE, SIDE, 3)).astype("float32")
    boxes = np.full((count, MOST, 4), -1.0, "float32")
    labels = np.full((count, MOST), -1.0, "float32")
    for i, k in np.ndindex(count, MOST):
        half, kind = rng.integers(6, 13), rng.integers(len(SHAPES))
        x, y = rng.integers(half, SIDE - half, 2)
        centres = (boxes[i, :k, :2] + boxes[i, :k, 2:]) / 2
        if (np.abs(centres - [x, y]).max(-1) < 22).any():
            continue  # shapes do not overlap
        across, down = np.abs(columns - x), rows - y
        circle, square = np.hypot(across, down), np.maximum(across, abs(down))
        triangle = np.maximum(abs(down), 2 * across - down)
        images[i][(circle, square, triangle)[kind] <= half] = rng.uniform(0.4, 0.9, 3)
        boxes[i, k], labels[i, k] = [x - half, y - half, x + half, y + half], kind
    return images, {"boxes": boxes, "labels": labels}
