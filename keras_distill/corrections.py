"""Corrections of a trained classifier that validation data asks for: biases, temperature."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import correction_fits as fits
from keras_distill import user_functions
from keras_distill.arguments import (
    check_bool,
    check_choice,
    check_each,
    check_int,
    check_model,
)
from keras_distill.correction_layers import BiasCorrection, TemperatureScaling
from keras_distill.distiller import Distiller
from keras_distill.labelled_logits import LabelledLogits, read_logits
from keras_distill.outputs import symbolic_outputs
from keras_distill.specialists.heads import LogProbabilities


@user_functions.plain_errors()
def correct_bias(
    model: keras.Model,
    validation: Any,
    classes: int | Sequence[int],
    *,
    shared: bool = True,
    by: str = "errors",
    from_logits: bool | None = None,
    output_kinds: str | None = None,
) -> keras.Model:
    """Returns a model whose logits of some classes have an offset that fits validation data.

        z[c] + offset for c in classes, z[c] for all others

    A student that was taught without examples of a class has too low a bias for it, and one
    that was taught on some classes alone too high a bias for those. One number mends most of
    it: the paper's MNIST student that never saw a 3 has 206 errors before, 109 after (there
    fitted on the test set; here on validation data, which must have examples of the classes).

    The errors of one offset are a step function, so their least is found exactly: it changes
    only at the examples' margins. Of the best interval the middle is taken, of several that
    in which the negative log-likelihood (NLL) is lowest.

        corrected = kd.correct_bias(student, validation, classes=[3])
        corrected.get_layer("bias_correction").offsets  # 0 for the other classes

    Args:
        model: a trained `keras.Model`, or a `Distiller`, whose student it is; with one output
            of logits or probabilities `(batch, ..., classes)`. It is not changed.
        validation: finite labelled data, as `evaluate` takes it; sample weights count. The
            model may mask classes, by logits of minus infinity, but not the right one.
        classes: the class whose logit gets the offset, or several. Of yes/no questions their
            numbers: the offset moves the threshold of a yes.
        shared: bool, whether they have one offset together (default), or one each.
        by: what is least on the validation data: "errors" (default) or "nll". Of several
            offsets the errors are the least that moving one of them at a time finds,
            beginning at those of the least NLL.
        from_logits: bool, whether the model gives logits; `None` (default) finds out.
        output_kinds: "softmax" or "sigmoid"; `None` (default) finds out.

    Returns:
        A `keras.Model`, not compiled, with the same inputs and the layers, and so the weights,
        of the given one; logits or probabilities as that has them, in float32. The offsets, in
        nats, are `offsets` of its layer "bias_correction" ("bias_correction_1" where there
        is one already).

    Raises:
        TypeError: if the model is no `keras.Model`, or the data of no kind that can be read.
        ValueError: if the model has several outputs, or values; the data has no labels, no
            example of one of the classes or none of all others; or an argument is wrong.

    Example:
    >>> same = keras.layers.Dense(2, kernel_initializer="identity")
    >>> model = keras.Sequential([keras.Input((2,)), same])
    >>> x = np.array([[4.0, 0.0], [3.0, 2.0], [1.0, 0.0]])
    >>> corrected = correct_bias(model, (x, np.array([0, 1, 1])), 1)
    >>> corrected.get_layer("bias_correction").offsets  # margins 4, 1, 1
    [0.0, 2.5]

    Reference: arXiv:1503.02531, section 3.
    """
    model, shared = _model(model), check_bool("shared", shared)
    by = check_choice("by", by, ("errors", "nll"))
    chosen = _classes(classes)
    found = read_logits(
        model,
        validation,
        from_logits,
        output_kinds,
        lambda kind, count: _check_classes(chosen, kind, count, shared),
    )
    parts = _of_classes if found.kind == "softmax" else _of_questions
    offsets = np.zeros(found.z.shape[-1])
    for indices, rows in parts(found, chosen, shared):
        fit = fits.shared_offset if shared else fits.separate_offsets
        offsets[indices] = fit(rows, by)
    layer = BiasCorrection(
        offsets.tolist(), found.kind, **_named(model, "bias_correction", found)
    )
    return _with_layer(model, layer, found)


@user_functions.plain_errors()
def calibrate_temperature(
    model: keras.Model,
    validation: Any,
    *,
    from_logits: bool | None = None,
    output_kinds: str | None = None,
) -> keras.Model:
    """Returns a model whose logits are divided by the temperature that fits validation data.

        softmax(z / T), with the T > 0 of the least negative log-likelihood (NLL)

    Predictions stay the same; how sure the model is of them comes to be how often they are
    right. The NLL is convex in 1/T, so this T is found exactly.

        calibrated = kd.calibrate_temperature(student, validation)
        calibrated.get_layer("temperature_scaling").temperature

    Args:
        model: a trained `keras.Model`, or a `Distiller`, whose student it is; with one output
            of logits or probabilities `(batch, ..., classes)`, of classes or yes/no
            questions. It is not changed.
        validation: finite labelled data, as `evaluate` takes it; sample weights count. Not
            what the model was trained on, where it is surer than elsewhere. The model may mask
            classes, by logits of minus infinity, but not the right one.
        from_logits: bool, whether the model gives logits; `None` (default) finds out.
        output_kinds: "softmax" or "sigmoid"; `None` (default) finds out.

    Returns:
        A `keras.Model`, not compiled, with the same inputs and the layers, and so the weights,
        of the given one; logits or probabilities as that has them, in float32. T is
        `temperature` of its layer "temperature_scaling" ("temperature_scaling_1" where there
        is one already).

    Raises:
        TypeError: if the model is no `keras.Model`, or the data of no kind that can be read.
        ValueError: if the model has several outputs, or values; the data has no labels; every
            label has the largest logit, or labels have no larger logits than others, so that
            no T is best; or an argument is wrong.

    Example:
    >>> same = keras.layers.Dense(2, kernel_initializer="identity")
    >>> model = keras.Sequential([keras.Input((2,)), same])
    >>> x = np.array([[4.0, 0.0]] * 4)  # surer than right: sigmoid(4) = 0.98, not 3/4
    >>> calibrated = calibrate_temperature(model, (x, np.array([0, 0, 0, 1])))
    >>> round(calibrated.get_layer("temperature_scaling").temperature, 4)  # 4 / log(3)
    3.641

    Reference: Guo et al., arXiv:1706.04599.
    """
    model = _model(model)
    found = read_logits(model, validation, from_logits, output_kinds)
    z, weight = found.z, found.weight
    if found.kind == "sigmoid":  # a question is a softmax over [z, 0]
        counts = weight > 0
        z, weight = z[counts], weight[counts]
        at_label = found.label[counts] * z
        z = np.stack([z, np.zeros_like(z)], -1)
    elif found.shares is None:
        at_label = np.take_along_axis(z, found.label[:, None], -1)[:, 0]
    else:
        # A masked class, of logit minus infinity, has no share.
        at_label = (found.shares * np.where(found.shares > 0, z, 0.0)).sum(-1)
    temperature = fits.temperature(z, at_label, weight)
    if not 0 < temperature < np.inf:
        raise ValueError(
            "the model is right on every validation example, so the smaller T, the lower the "
            "NLL; give more validation data, which the model was not trained on."
            if temperature == 0
            else "the logits of the validation labels are no larger than others on average, so "
            "the larger T, the lower the NLL; check that the labels are the model's."
        )
    layer = TemperatureScaling(
        temperature, found.kind, **_named(model, "temperature_scaling", found)
    )
    return _with_layer(model, layer, found)


# What is given -----------------------------------------------------------------------


def _model(model: Any) -> keras.Model:
    model = model.student if isinstance(model, Distiller) else model
    return check_model("model", model)


def _classes(classes: Any) -> list[int]:
    if isinstance(classes, (int, np.integer)) and not isinstance(classes, bool):
        classes = [classes]
    chosen = check_each(
        "classes", classes, lambda name, c: check_int(name, c, 0), "class numbers", 1
    )
    repeated = [c for c in chosen if chosen.count(c) > 1]
    if repeated:
        raise ValueError(f"classes has {repeated[0]} twice; give each class once.")
    return chosen


def _check_classes(chosen: list[int], kind: str, count: int, shared: bool) -> None:
    outside = [c for c in chosen if c >= count]
    if outside:
        raise ValueError(
            f"classes must be from 0 to {count - 1}, since the model has {count} outputs; got "
            f"{outside[0]}."
        )
    if kind == "softmax" and shared and len(chosen) == count:
        raise ValueError(
            f"classes are all {count} of the model's, and one offset for all of them changes "
            "nothing; leave some out, or say shared=False."
        )


# What offsets are fitted to ----------------------------------------------------------


def _of_classes(
    found: LabelledLogits, chosen: list[int], shared: bool
) -> Iterator[tuple]:
    """Yields the numbers of classes whose offsets are fitted together, and the rows for it."""
    z, others = found.z.astype("float64"), np.setdiff1d(range(found.z.shape[1]), chosen)
    shares = (found.label[:, None] == np.asarray(chosen)).astype("float64")
    if found.shares is not None:
        shares = found.shares[:, chosen]
    totals = found.weight @ shares
    for c, total in zip(chosen, totals, strict=True):
        _check_seen(total > 0, f"is of class {c}", "minus infinity", "of that class")
    _check_masked(z, shares, found.weight, chosen, shared)
    place = np.full(z.shape[1], -1)
    place[chosen] = range(len(chosen))
    rest, is_right = np.full(len(z), -np.inf), np.zeros(len(z), bool)
    if len(others):
        is_seen = totals.sum() < found.weight.sum() * (1 - 1e-12)
        _check_seen(is_seen, "is of another class", "infinity", "of other classes too")
        rest = z[:, others].max(-1)
        is_right = others[z[:, others].argmax(-1)] == found.label
    yield (
        chosen,
        fits.Rows(
            special=z[:, chosen],
            rest=rest,
            rest_total=np.logaddexp.reduce(z[:, others], axis=-1, initial=-np.inf),
            label=place[found.label],
            rest_is_right=is_right,
            shares=shares,
            weight=found.weight,
        ),
    )


def _of_questions(
    found: LabelledLogits, chosen: list[int], shared: bool
) -> Iterator[tuple]:
    """Yields the same of yes/no questions, each a yes beside a no of logit 0."""
    for c in chosen:
        is_yes = (found.label[:, c] * found.weight[:, c]).any()
        _check_seen(is_yes, f"is a yes to question {c}", "minus infinity", "with a yes")
    for indices in [chosen] if shared else [[c] for c in chosen]:
        counts = found.weight[:, indices] > 0
        z, y = found.z[:, indices][counts], found.label[:, indices][counts]
        is_no = (y < 1).any()
        _check_seen(is_no, f"is a no to question {indices[0]}", "infinity", "with a no")
        yield (
            indices,
            fits.Rows(
                special=z.astype("float64")[:, None],
                rest=np.zeros(len(z)),
                rest_total=np.zeros(len(z)),
                label=np.where(y >= 0.5, 0, -1),
                rest_is_right=y < 0.5,
                shares=y[:, None],
                weight=found.weight[:, indices][counts],
            ),
        )


def _check_seen(is_seen: Any, what: str, where: str, wanted: str) -> None:
    if not is_seen:
        raise ValueError(
            f"no validation example {what}, so the offset that fits best is {where}; give "
            f"validation data {wanted}."
        )


def _check_masked(
    z: np.ndarray, shares: np.ndarray, weight: np.ndarray, chosen: list, shared: bool
) -> None:
    """Refuses data in which masked classes, of logit minus infinity, leave no choice."""
    can = np.isfinite(z)
    if can.all():
        return
    places = range(len(chosen))
    for group in [list(places)] if shared else [[i] for i in places]:
        classes = [chosen[i] for i in group]
        is_open = can[:, classes].any(-1) & np.delete(can, classes, 1).any(-1)
        theirs = weight[is_open] @ shares[is_open][:, group].sum(-1)
        if not 0 < theirs < weight[is_open].sum() * (1 - 1e-12):
            which = "class" if len(classes) == 1 else "classes"
            raise ValueError(
                f"where the model masks (by logits of minus infinity) neither {which} "
                f"{', '.join(map(str, classes))} nor all others, validation examples of "
                "one of the two sides are missing, so no offset fits best; give some."
            )


# What is made ------------------------------------------------------------------------


def _named(model: keras.Model, name: str, found: LabelledLogits) -> dict[str, str]:
    """Returns name and dtype of a layer that is new to a model."""
    dtype = "float64" if found.z.dtype == "float64" else "float32"
    return {"name": _free_name(model, name), "dtype": dtype}


def _free_name(model: keras.Model, name: str) -> str:
    taken = {layer.name for layer in model.layers} | {model.name}
    numbered = (f"{name}_{i}" if i else name for i in itertools.count())
    return next(one for one in numbered if one not in taken)


def _with_layer(
    model: keras.Model, layer: keras.layers.Layer, found: LabelledLogits
) -> keras.Model:
    """Returns a model of the same layers, with one more before its softmax or sigmoid."""
    inputs, outputs = _graph(model, found.spec)
    (output,) = keras.tree.flatten(outputs)
    if found.is_logits:
        corrected = layer(output)
    else:
        name = _free_name(model, "log_probabilities")
        z = LogProbabilities(found.kind, name=name, dtype=layer.dtype_policy)(output)
        name = _free_name(model, found.kind)
        corrected = keras.layers.Activation(
            found.kind, name=name, dtype=layer.dtype_policy
        )(layer(z))
    outputs = keras.tree.pack_sequence_as(outputs, [corrected])
    return keras.Model(inputs, outputs, name=model.name)


def _graph(model: keras.Model, spec: Any) -> tuple[Any, Any]:
    """Returns a model's symbolic inputs and outputs; of a subclassed one of a call of it."""
    is_of_keras = type(model).__module__.startswith("keras.")
    if getattr(model, "outputs", None):
        is_sequential = isinstance(model, keras.Sequential)
        inputs = model.inputs[0] if is_sequential else model.input
        # One that data built has the size of its first batch.
        if is_sequential and inputs.shape[0] and spec.shape[0] is None:
            inputs = keras.Input(inputs.shape[1:], dtype=inputs.dtype)
        elif is_of_keras:
            return inputs, symbolic_outputs(model)
        return inputs, model(inputs)
    # What Keras calls the inputs of a subclassed one is a flat list of one call's.
    if isinstance(spec, dict):
        inputs = {key: _input(one, model, key) for key, one in spec.items()}
    else:
        inputs = tf.nest.map_structure(lambda one: _input(one, model), spec)
    return inputs, model(inputs)


def _input(spec: Any, model: keras.Model, name: str | None = None) -> Any:
    if isinstance(spec, dict) or not hasattr(spec, "shape"):
        return tf.nest.map_structure(lambda one: _input(one, model), spec)
    # NumPy's own float64 says nothing of what the model is to be fed.
    dtype = model.variable_dtype if spec.dtype == tf.float64 else spec.dtype.name
    name = None if name is None or "/" in name else name
    return keras.Input(spec.shape[1:], dtype=dtype, name=name)
