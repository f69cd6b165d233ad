"""Splits that the data lacks, drawn from its training examples by class."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from keras_distill.arguments import shown

TEST_FRACTION = 0.2  # as TFDS's datasets without a test split


def draw_missing(
    labels: np.ndarray,
    given: Collection[str],
    validation_fraction: float,
    class_names: list[str],
    where: str,
) -> dict[str, np.ndarray]:
    """Returns which training examples each split that is not given gets.

    Every class gives the same part of its examples, and keeps one at least for training;
    the draw is the same for every seed. Test, where it is missing, is a fifth of all;
    validation is a part of what then is left.

    Args:
        labels: index of the class of each training example, `(examples,)`.
        given: names of the splits that the data has, "train" among them.
        validation_fraction: between 0 and 1.
        class_names: for messages.
        where: what the examples are of, for messages: a path, say.

    Returns:
        Indices by split. "train" comes in a drawn order, since files are listed by class;
        the others in their own.

    Raises:
        ValueError: if a split would have no example.
    """
    rng = np.random.default_rng(0)
    left = rng.permutation(len(labels))
    splits = {}
    for split, fraction in (
        ("test", TEST_FRACTION),
        ("validation", validation_fraction),
    ):
        if split in given:
            continue
        drawn = _draw(labels[left], fraction)
        if not drawn.any():
            counts = np.bincount(labels, minlength=len(class_names))
            fewest = int(counts.argmin())
            raise ValueError(
                f"the {len(labels)} training examples of {where} are too few to keep a part "
                f"of {fraction:g} of them for {split}, and one of each class to train on: "
                f"class {shown(class_names[fewest])} has {counts[fewest]}. Give more of each "
                f"class, or a {split} split of its own."
            )
        splits[split] = np.sort(left[drawn])
        left = left[~drawn]
    return {"train": left, **splits}


def _draw(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Returns which examples are drawn, the first of each class in the order given."""
    total = max(1, round(len(labels) * fraction))
    counts = np.bincount(labels)
    shares = counts * fraction
    # One of each class stays; what is rounded down goes to those that lost most by it.
    quotas = np.minimum(np.floor(shares).astype(int), np.maximum(counts - 1, 0))
    room = np.maximum(counts - 1, 0) - quotas
    for c in np.argsort(quotas - shares, kind="stable"):
        if quotas.sum() >= total:
            break
        quotas[c] += bool(room[c])
    drawn = np.zeros(len(labels), bool)
    for c, quota in enumerate(quotas):
        drawn[np.flatnonzero(labels == c)[:quota]] = True
    return drawn


def check_class_names(where: str, names: Iterable[str]) -> None:
    """Refuses names of classes that say nothing, fill two lines, or are meant to be one.

    Args:
        where: what has them, for messages, as in "the table 'a.csv'".
        names: one str per class, each once.

    Raises:
        ValueError: naming the first such class.
    """
    stripped: dict[str, str] = {}
    for name in names:
        if not name.strip():
            raise ValueError(
                f"{where} has the class {name!r}, a label that says nothing; name it, or "
                "leave its examples out."
            )
        if name.splitlines() != [name]:  # a file of them has one a line
            raise ValueError(
                f"{where} has the class {name!r}, which has a line break in it; take it out."
            )
        other = stripped.setdefault(name.strip(), name)
        if other != name:
            raise ValueError(
                f"{where} has the classes {other!r} and {name!r}, which differ in the spaces "
                "around them alone; write them alike."
            )


def sort_names(names: Iterable[str]) -> list[str]:
    """Returns the names of classes sorted, by their values if all are numbers."""
    names = list(names)
    try:
        values = {name: float(name) for name in names}
    except ValueError:
        return sorted(names)
    return sorted(names, key=lambda name: (values[name], name))
