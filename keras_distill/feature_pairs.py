"""Which layer of a student to match with which of a teacher: by stage, or by depth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras

from keras_distill.arguments import check_choice, check_each, check_names
from keras_distill.features import FeaturePaths, feature_paths, find_feature
from keras_distill.inputs import symbolic_inputs
from keras_distill.keras_compat import layers_inside
from keras_distill.losses.base import DistillationLoss, SumOfLosses, weighted_terms
from keras_distill.losses.features import FeatureLoss
from keras_distill.losses.normalized import NormalizedFeatureLoss
from keras_distill.teachers import as_teacher

#: What an image's free height and width are, to see where resolution halves.
_PIXELS = 128


class _Feature(NamedTuple):
    path: str
    shape: tuple
    layer: Any


class FeaturePairs(list[tuple[str, str]]):
    """Pairs of paths `(student, teacher)`; prints as a table with their shapes."""

    def __init__(
        self, pairs: list[tuple[str, str]], student: FeaturePaths, teacher: FeaturePaths
    ) -> None:
        super().__init__(pairs)
        self._shapes = student, teacher

    def __str__(self) -> str:
        rows = [("student", "shape", "teacher", "shape")]
        rows += [
            (ours, str(self._shapes[0][ours]), theirs, str(self._shapes[1][theirs]))
            for ours, theirs in self
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, tuple("-" * width for width in widths))  # type: ignore[arg-type]
        return "\n".join(
            "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows
        )


def suggest_feature_pairs(
    student: keras.Model, teacher: keras.Model, inputs: Any = None
) -> FeaturePairs:
    """Suggests which layers of two models to match.

    - Of images: the last layer of each stage, before the resolution halves; stages are the
      same where both have halved their inputs as many times.
    - Of sequences: blocks (the largest group of alike layers made of layers: Transformer
      blocks, recurrent layers) by relative depth, block i of n, from 1 on, with block
      `round(i * m / n)` of the teacher's m.
    - Of vectors: hidden layers with weights, by relative depth.

    Where the two are of different kinds, as a CNN under a Transformer: what is before their
    last layers, if these are vectors.

    Both models are traced, not changed. The shapes may differ: `adapter="auto"` fits them.

    Args:
        student: `keras.Model`.
        teacher: `keras.Model`.
        inputs: a batch of inputs, for subclassed models, which do not say what they take.

    Returns:
        A list of `(student_path, teacher_path)`, from first to last; `print` shows a table.

    Raises:
        TypeError: if one of the two is no `keras.Model`.
        ValueError: if a subclassed model is given without inputs, or the two have nothing
            that could be matched.

    Example:
    >>> def mlp(width, depth):
    ...     hidden = [keras.layers.Dense(width, name=f"hidden_{i}") for i in range(depth)]
    ...     return keras.Sequential([keras.Input((4,)), *hidden, keras.layers.Dense(2)])
    >>> print(suggest_feature_pairs(mlp(8, 2), mlp(16, 4)))
    student   shape      teacher   shape
    --------  ---------  --------  ----------
    hidden_0  (None, 8)  hidden_1  (None, 16)
    hidden_1  (None, 8)  hidden_3  (None, 16)
    """
    models = student, teacher
    shapes = [_shapes(model, inputs) for model in models]
    features = [
        [
            _Feature(path, shape, find_feature(model, path, "model").layer)
            for path, shape in found.items()
        ]
        for model, found in zip(models, shapes, strict=True)
    ]
    sizes = [_pixels(model, inputs) for model in models]
    by_stage: list[tuple[str, str]] = []
    if None not in sizes:
        stages = [_stages(f, s) for f, s in zip(features, sizes, strict=True)]
        common = sorted(set(stages[0]) & set(stages[1]))
        by_stage = [(stages[0][stage], stages[1][stage]) for stage in common]
    # A single stage may be the patches that a Transformer begins with.
    pairs = by_stage if len(by_stage) > 1 else []
    for find in (_blocks, _hidden, _last_vector):
        pairs = pairs or [
            (ours, theirs)
            for ours, theirs in _by_depth(*map(find, features))
            if _fit(shapes[0][ours], shapes[1][theirs])
        ]
    pairs = pairs or by_stage
    if not pairs:
        raise ValueError(
            "student and teacher have no features that could be matched by stage or depth; "
            "print(keras_distill.feature_paths(model)) shows what each has, to name pairs."
        )
    return FeaturePairs(pairs, *shapes)


def features_to_match(features: Any, student: keras.Model, teacher: Any) -> Any:
    """Returns the losses of what `Distiller(features=...)` says; `None` for none.

    Args:
        features: "auto", a list of pairs of paths, or a `FeatureLoss` of named layers or a
            sum of such.
        student: `keras.Model`.
        teacher: as given to the distiller.

    Raises:
        TypeError: if it is none of these.
        ValueError: if "auto" cannot be found out, or a loss names no layers.
    """
    if features is None:
        return None
    if isinstance(features, DistillationLoss):
        for _, term in weighted_terms(features):
            names = [
                getattr(term, f"{who}_layer_name", None)
                for who in ("student", "teacher")
            ]
            if not isinstance(term, FeatureLoss) or None in names:
                raise ValueError(
                    f"features has {type(term).__name__}, which names no layers; give "
                    'FeatureLoss("student_layer", "teacher_layer") or another loss on '
                    "features, and what compares outputs as distillation_loss."
                )
        return features
    if isinstance(features, str):
        features = pairs_named(features, student, teacher)
    said = check_each(
        "features", features, lambda name, pair: check_names(name, pair, 2),
        "pairs (student_layer, teacher_layer)", least=1,
    )  # fmt: skip
    weight = 1.0 / len(said)
    return SumOfLosses(
        [(weight, NormalizedFeatureLoss(ours, theirs, "auto")) for ours, theirs in said]
    )


def pairs_named(features: str, student: keras.Model, teacher: Any) -> FeaturePairs:
    """Returns the pairs that "auto" stands for.

    Raises:
        ValueError: if it is another word, or one of the two models does not say its inputs.
    """
    check_choice("features", features, ("auto",))
    model = None if teacher is None else as_teacher(teacher).model
    for role, one in (("student", student), ("teacher", model)):
        if one is None or symbolic_inputs(one) is None:
            what = (
                "is not one keras.Model" if one is None else "does not say its inputs"
            )
            raise ValueError(
                f'features="auto" looks at both models, and the {role} {what}; give pairs: '
                'features=[("student_layer", "teacher_layer"), ...], which '
                "suggest_feature_pairs(student, teacher, inputs) may find."
            )
    assert model is not None
    return suggest_feature_pairs(student, model)


def _shapes(model: keras.Model, inputs: Any) -> FeaturePaths:
    wanted = symbolic_inputs(model)
    if inputs is None and wanted is not None:
        parts = keras.tree.flatten(wanted)
        is_free = [len(p.shape) == 4 and None in p.shape[1:3] for p in parts]
        if any(is_free):
            inputs = keras.tree.map_structure(_of_known_size, wanted)
    return feature_paths(model, inputs)


def _of_known_size(part: keras.KerasTensor) -> keras.KerasTensor:
    if len(part.shape) != 4:
        return part
    shape = (
        part.shape[0],
        *(size or _PIXELS for size in part.shape[1:3]),
        part.shape[3],
    )
    return keras.KerasTensor(shape, part.dtype)


def _pixels(model: keras.Model, inputs: Any) -> int | None:
    """Returns the height of the images that a model takes; `None` if it takes others."""
    wanted = symbolic_inputs(model) if inputs is None else inputs
    heights = [
        part.shape[1] or _PIXELS
        for part in keras.tree.flatten(wanted)
        if len(part.shape) == 4
    ]
    return heights[0] if heights else None


def _fit(ours: tuple, theirs: tuple) -> bool:
    """Tells whether two features are of one rank, and sequences of one length."""
    lengths = {ours[1], theirs[1]} if len(ours) == 3 else set()
    return len(ours) == len(theirs) and len(lengths - {None}) < 2


def _stages(features: list[_Feature], pixels: int | None) -> dict[int, str]:
    """Returns the last feature before each halving, by how often there was one before."""
    assert pixels is not None
    found: dict[int, str] = {}
    stage, begun = -1, False
    for path, shape, layer in features:
        begun = begun or _has_weights(layer)
        is_padded = isinstance(
            layer, (keras.layers.ZeroPadding2D, keras.layers.Cropping2D)
        )
        is_map = len(shape) == 4 and shape[1] not in (None, 1)
        if not (begun and is_map) or is_padded:
            continue
        halvings = round(math.log2(pixels / shape[1]))
        is_padded = abs(pixels / 2**halvings - shape[1]) > 1  # by an operation
        if (
            halvings >= stage and not is_padded
        ):  # the decoder's maps are not the encoder's
            stage = halvings
            found[stage] = path
    return found


def _has_weights(layer: Any) -> bool:
    return any(len(v.shape) > 1 for v in getattr(layer, "variables", []))


def _blocks(features: list[_Feature]) -> list[str]:
    """Returns the blocks of a model of sequences: the outermost group of alike layers."""
    groups: dict[tuple, list[str]] = {}
    # Its two directions are no two blocks, and one of them runs against the mask.
    both = {
        path.partition("[")[0]
        for path, _, layer in features
        if isinstance(layer, keras.layers.Bidirectional)
    }
    for path, shape, layer in features:
        parent = path.rpartition("/")[0]
        if len(shape) == 3 and layers_inside(layer) and parent not in both:
            groups.setdefault((path.count("/"), parent, type(layer)), []).append(path)
    several = [key for key in groups if len(groups[key]) > 1]
    if not several:
        # A single block: the innermost layer around an attention, or else a recurrent one.
        several = [key for key in groups if "ttention" not in key[2].__name__]
        several = sorted(several, key=lambda key: -key[0])[:1]
    if not several:
        return []
    depth = min(key[0] for key in several)
    outermost = [groups[key] for key in several if key[0] == depth]
    return max(outermost, key=len)


def _hidden(features: list[_Feature]) -> list[str]:
    """Returns hidden layers of vectors, those with weights of their own; not the last."""
    found = [
        path
        for path, shape, layer in features
        if len(shape) == 2 and _has_weights(layer) and not layers_inside(layer)
    ]
    return found[:-1]


def _last_vector(features: list[_Feature]) -> list[str]:
    """Returns what the last layer with weights is given, if it is vectors."""
    weighted = [i for i, one in enumerate(features) if _has_weights(one.layer)]
    before = features[: weighted[-1]] if weighted else []
    return [one.path for one in before[-1:] if len(one.shape) == 2]


def _by_depth(ours: list[str], theirs: list[str]) -> Iterator[tuple[str, str]]:
    count = min(len(ours), len(theirs))
    for i in range(1, count + 1):
        place = [
            max(1, math.floor(i * len(paths) / count + 0.5)) - 1
            for paths in (ours, theirs)
        ]
        yield ours[place[0]], theirs[place[1]]
