"""copy_weights: a student that starts from layers of its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill.arguments import check_backend, check_each, check_names, shown
from keras_distill.features import find_layer
from keras_distill.keras_compat import layers_inside, own_variables_of


class CopiedVariable(NamedTuple):
    """A variable of the student that was given the value of one of the teacher's.

    Attributes:
        student: path of the student's variable, as in "encoder/layer_0/dense/kernel".
        teacher: path of the teacher's.
        shape: of both.
    """

    student: str
    teacher: str
    shape: tuple[int, ...]


class CopiedWeights(list[CopiedVariable]):
    """What `copy_weights` has copied: a list of `CopiedVariable`, which prints as a table.

    Attributes:
        not_copied: paths of the student's other variables, which are as they were.
    """

    def __init__(self, rows: list[CopiedVariable], not_copied: list[str]) -> None:
        super().__init__(rows)
        self.not_copied = not_copied

    def __repr__(self) -> str:
        cells = [("student", "teacher", "shape")]
        cells += [(row.student, row.teacher, str(row.shape)) for row in self]
        wide = [max(len(row[i]) for row in cells) for i in range(2)]
        lines = [f"{s:{wide[0]}}  {t:{wide[1]}}  {shape}" for s, t, shape in cells]
        if self.not_copied:
            lines.append(f"as they were: {', '.join(self.not_copied)}")
        return "\n".join(lines)


class _Found(NamedTuple):
    """A variable of a model, its path there, and the layer that made it."""

    path: str
    variable: Any
    layer: keras.Layer


def copy_weights(
    student: keras.Model, teacher: keras.Model, pairs: Any = None
) -> CopiedWeights:
    """Starts a student from layers of its teacher, such as every second one.

    Copied are all variables of a layer or of a whole block: weights, embeddings, moving
    averages of batch normalisation; cast to the student's dtype. Not copied are states of
    seeds and of optimizers, and vocabularies, which are no variables. Either all is copied
    or, where anything is refused, nothing.

    In a block, variables of the same relative path are one another's counterpart; where the
    names inside differ ("dense_3" and "dense_7"), those of the same place in the order.

    Args:
        student: `keras.Model`, built. It is changed.
        teacher: `keras.Model`, built.
        pairs: dict of paths, `{student_layer: teacher_layer}`, or a list of such pairs, as
            `suggest_feature_pairs` gives: of a Transformer of half the blocks, every second.
            A path is as in `feature_paths`, "encoder/layer_1", and may name a layer, a block
            or a model inside. `None` (default): every layer of the student for which the teacher
            has one of the same path, with variables of the same names and shapes.

    Returns:
        A list of `CopiedVariable`, which prints as a table.

    Raises:
        TypeError: if one of the two is no `keras.Model`.
        ValueError: if a path does not exist, shapes or structures differ, a model is not
            built or a layer is quantized, or there is nothing to copy.

    Example:
    >>> def model(depth):
    ...     hidden = [keras.layers.Dense(8, name=f"hidden_{i}") for i in range(depth)]
    ...     return keras.Sequential([keras.Input((8,)), *hidden])
    >>> print(copy_weights(model(2), model(4), {"hidden_0": "hidden_1", "hidden_1": "hidden_3"}))
    student          teacher          shape
    hidden_0/kernel  hidden_1/kernel  (8, 8)
    hidden_0/bias    hidden_1/bias    (8,)
    hidden_1/kernel  hidden_3/kernel  (8, 8)
    hidden_1/bias    hidden_3/bias    (8,)

    Reference: Sanh et al., DistilBERT, arXiv:1910.01108, section 3.
    """
    for role, model in (("student", student), ("teacher", teacher)):
        _check_model(role, model)
    if student is teacher:
        raise ValueError(
            "student and teacher are the same object, so there is nothing to copy."
        )
    if pairs is None:
        matched = _of_same_path(student, teacher)
    else:
        matched = [
            found
            for student_path, teacher_path in _check_pairs(pairs)
            for found in _of_pair(student, student_path, teacher, teacher_path)
        ]
    _check_single_source(matched)
    values = [_value_for(ours, theirs) for ours, theirs in matched]
    for (ours, _), value in zip(matched, values, strict=True):
        ours.variable.assign(value)
        if isinstance(ours.layer, keras.layers.Normalization):
            ours.layer.finalize_state()  # it standardises by copies of its variables
    copied = {id(ours.variable) for ours, _ in matched}
    return CopiedWeights(
        list(
            dict.fromkeys(
                CopiedVariable(ours.path, theirs.path, tuple(ours.variable.shape))
                for ours, theirs in matched
            )
        ),
        [one.path for one in _variables(student) if id(one.variable) not in copied],
    )


def _check_model(role: str, model: Any) -> None:
    check_backend()
    if not isinstance(model, keras.Model):
        raise TypeError(f"{role} must be a keras.Model, got {shown(model)}.")
    if not model.built or not model.variables:
        raise ValueError(
            f"the {role} {model.name!r} has no variables yet: it is not built. Call it on a "
            "batch, or begin it with a keras.Input."
        )


def _check_pairs(pairs: Any) -> list[tuple[str, str]]:
    if isinstance(pairs, Mapping):
        pairs = list(pairs.items())
    elif isinstance(pairs, str):
        raise ValueError(
            "pairs must be a dict {student_layer: teacher_layer}, a list of such pairs, or "
            f"None, got {shown(pairs)}."
        )
    checked = check_each(
        "pairs",
        pairs,
        lambda name, pair: check_names(name, pair, 2),
        "pairs (student_layer, teacher_layer)",
        least=1,
    )
    return [(ours, theirs) for ours, theirs in checked]


def _variables(
    layer: Any, path: str = "", seen: set[int] | None = None
) -> Iterator[_Found]:
    """Yields each variable of a layer and of those in it once, in the layers' order."""
    seen = set() if seen is None else seen
    if id(layer) in seen or not isinstance(layer, keras.Layer):  # an operation
        return
    seen.add(id(layer))
    for variable in own_variables_of(layer):
        if id(variable) not in seen:
            seen.add(id(variable))
            yield _Found(_joined(path, variable.name), variable, layer)
    inside = layers_inside(layer)
    names = [child.name for child in inside]
    for place, child in enumerate(inside):
        is_single = names.count(child.name) == 1
        name = child.name if is_single else f"{child.name}.{place}"
        yield from _variables(child, _joined(path, name), seen)


def _joined(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _of_same_path(student: keras.Model, teacher: keras.Model) -> list:
    """Returns pairs of variables of all layers that are the same in both models."""
    theirs = {one.path: one for one in _variables(teacher)}
    by_layer: dict[int, list[_Found]] = {}
    for one in _variables(student):
        by_layer.setdefault(id(one.layer), []).append(one)
    matched = [
        (ours, theirs[ours.path])
        for group in by_layer.values()
        if all(
            ours.path in theirs
            and ours.variable.shape == theirs[ours.path].variable.shape
            for ours in group
        )
        for ours in group
    ]
    if not matched:
        raise ValueError(
            "no layer of the student has the path and the shapes of one of the teacher's; "
            "name those to copy by pairs={student_layer: teacher_layer}; "
            "print(keras_distill.feature_paths(model)) shows a model's layers."
        )
    return matched


def _of_pair(
    student: keras.Model, student_path: str, teacher: keras.Model, teacher_path: str
) -> list[tuple[_Found, _Found]]:
    """Returns pairs of variables of two layers, blocks or models.

    Raises:
        ValueError: if they differ in structure or in shapes.
    """
    found = []
    for role, model, path in (
        ("student", student, student_path),
        ("teacher", teacher, teacher_path),
    ):
        variables = list(_variables(find_layer(model, path, role), path))
        if not variables:
            raise ValueError(f"the {role}'s layer {path!r} has no variables to copy.")
        for one in variables:
            _check_float(role, one)
        found.append(variables)
    ours, theirs = found
    relative = {one.path.removeprefix(teacher_path): one for one in theirs}
    names = [one.path.removeprefix(student_path) for one in ours]
    if len(relative) == len(theirs) == len(names) and set(names) == set(relative):
        theirs = [relative[name] for name in names]
    elif [one.variable.name for one in ours] != [one.variable.name for one in theirs]:
        raise ValueError(
            f"pairs: the student's {student_path!r} and the teacher's {teacher_path!r} differ "
            f"in structure: {_told(ours, student_path)} and {_told(theirs, teacher_path)}. "
            "Name the layers inside that are alike."
        )
    for one, other in zip(ours, theirs, strict=True):
        if one.variable.shape != other.variable.shape:
            raise ValueError(
                f"pairs: the student's variable {one.path!r} has the shape "
                f"{tuple(one.variable.shape)}, the teacher's {other.path!r} "
                f"{tuple(other.variable.shape)}; only variables of one shape can be copied. "
                "Leave the pair out, or name the layers inside that are alike."
            )
    return list(zip(ours, theirs, strict=True))


def _check_float(role: str, one: _Found) -> None:
    """Refuses a variable of a layer that Keras has quantized."""
    if one.layer.quantization_mode is not None:
        raise ValueError(
            f"the {role}'s variable {one.path!r} is of a quantized layer "
            f"({one.layer.quantization_mode}), whose numbers mean nothing without their "
            "scales; copy first, and quantize the student afterwards."
        )


def _told(found: list[_Found], path: str) -> str:
    names = [one.path.removeprefix(path).lstrip("/") for one in found]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"it has {', '.join(names[:6])}{more}"


def _check_single_source(matched: list[tuple[_Found, _Found]]) -> None:
    """Refuses a variable of the student's, as of a shared layer, that two pairs name."""
    sources: dict[int, _Found] = {}
    for ours, theirs in matched:
        first = sources.setdefault(id(ours.variable), theirs)
        if first.variable is not theirs.variable:
            raise ValueError(
                f"pairs give the student's variable {ours.path!r} two values, of the "
                f"teacher's {first.path!r} and {theirs.path!r}; name one."
            )


def _value_for(ours: _Found, theirs: _Found) -> Any:
    """Returns the teacher's value in the dtype of the student's variable.

    Raises:
        ValueError: if a layer is quantized, or the dtype cannot hold it.
    """
    _check_float("student", ours)
    _check_float("teacher", theirs)
    dtype, value = ours.variable.dtype, ops.convert_to_tensor(theirs.variable)
    if dtype == theirs.variable.dtype:
        return value
    of_float = [keras.backend.is_float_dtype(x) for x in (dtype, theirs.variable.dtype)]
    cast = ops.cast(value, dtype)
    if len(set(of_float)) > 1 or (
        all(of_float) and bool(ops.any(ops.isfinite(value) != ops.isfinite(cast)))
    ):
        raise ValueError(
            f"the student's variable {ours.path!r} of {dtype} cannot hold the values of the "
            f"teacher's {theirs.path!r} of {theirs.variable.dtype}."
        )
    return cast
