"""What "match the teacher" means: one small class per objective.

An objective is only its formula. Temperature, masks, sample weights and
replicas are handled once, in the distiller's step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

PACKAGE = "keras_distill"


def check_temperature(temperature: Any) -> None:
    """Refuses a temperature that is not a finite number > 0."""
    is_number = isinstance(temperature, (int, float))
    if not is_number or not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature must be a finite number > 0, got {temperature!r}. "
            "T = 1 is the plain softmax; 2 to 20 is usual in distillation."
        )


class TopKLogits(NamedTuple):
    """The k largest logits of each example, and how much mass all others have.

    What stands for logits in a batch from a `SoftTargets` store with `top_k`. One tensor,
    because a pipeline's cost goes by their number.

    Attributes:
        packed: float32 `(batch, ..., 2 k + 8)`: `values`, `indices` and `rest`, one after
            another; or `(batch, ..., 2 k + 1)` if there are no other classes.
    """

    packed: Any

    @property
    def k(self) -> int:
        """How many logits were kept."""
        return (self.packed.shape[-1] - (8 if self.has_rest else 1)) // 2

    @property
    def has_rest(self) -> bool:
        """Whether there are other classes than the k."""
        return self.packed.shape[-1] % 2 == 0

    @property
    def values(self) -> Any:
        """The k largest logits, float32 `(batch, ..., k)`, largest first."""
        return self.packed[..., : self.k]

    @property
    def indices(self) -> Any:
        """Their classes, int32 `(batch, ..., k)`; exact below 2**24 classes."""
        return ops.cast(self.packed[..., self.k : 2 * self.k], "int32")

    @property
    def rest(self) -> Any:
        """Mass of the others, float32 `(batch, ..., 8)`.

        `logsumexp(b * z)` over the logits `z` of all other classes, at the inverse
        temperatures b of `REST_BETAS`.
        """
        return self.packed[..., 2 * self.k :]

    def rest_at(self, temperature: Any) -> Any:
        """Returns `logsumexp(z / T)` over the other classes, `(batch, ...)`.

        The polynomial through `rest` at `1 / T`; exact where `1 / T` is one of
        `REST_BETAS`. Made for T >= 1.

        Args:
            temperature: float scalar >= 1.
        """
        # The Lagrange basis, one number per node.
        others = ~np.eye(len(REST_BETAS), dtype=bool)
        nodes = np.asarray(REST_BETAS, "float32")
        apart = np.where(others, nodes[:, None] - nodes[None, :], 1.0)
        beta = 1.0 / ops.cast(temperature, "float32")
        factors = ops.where(others, beta - nodes[None, :], 1.0) / apart
        return ops.sum(self.rest * ops.prod(factors, -1), -1)


#: Inverse temperatures at which `TopKLogits` says the mass of the rest. They lie close to
#: Chebyshev's points, so that the polynomial through them does not swing. Multiples of
#: 1/16, so that one exponential serves all.
REST_BETAS = (0.0, 1 / 16, 3 / 16, 6 / 16, 10 / 16, 13 / 16, 15 / 16, 1.0)


class Objective(keras.distillation.DistillationLoss):
    """A distillation loss that can also say its loss per example.

    Subclass it and write `loss_per_example`; the distiller then applies sample
    weights, class weights, Keras masks and the scaling for replicas to it.
    Objectives add up and can be weighed: `SoftTargetLoss() + 0.1 * HiddenLayerLoss(
    "student_layer", "teacher_layer")`.

    An objective works in `keras.distillation.Distiller` too, by `compute_loss`.
    """

    #: Names of the layers whose outputs are compared; `None` is the model's output.
    student_layer_name: str | None = None
    teacher_layer_name: str | None = None
    #: Whether `teacher_outputs` may be `TopKLogits`.
    takes_top_k = False

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns the loss of each example.

        Args:
            teacher_outputs: float32 `(batch, ..., classes)`, logits; or the teacher
                layer's output, for an objective that names layers.
            student_outputs: the student's, of the same shape.
            temperature: float32 scalar > 0, the distiller's own.

        Returns:
            float32 `(batch, ...)`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss_per_example")

    def compute_loss(
        self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any
    ) -> Any:
        """Returns the mean over all examples, for `keras.distillation.Distiller`."""
        total = 0.0
        for teacher, student in zip(
            keras.tree.flatten(teacher_outputs),
            keras.tree.flatten(student_outputs),
            strict=True,
        ):
            total += ops.mean(
                self.loss_per_example(pre_softmax(teacher), pre_softmax(student))
            )
        return total

    @property
    def trainable_layers(self) -> list[keras.layers.Layer]:
        """Layers that are learned together with the student, such as projections."""
        return []

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Objective:
        """Creates the objective from `get_config`'s dict."""
        return cls(**config)

    def __mul__(self, weight: float) -> WeightedSum:
        return WeightedSum([(weight, self)])

    __rmul__ = __mul__

    def __add__(self, other: Any) -> WeightedSum:
        return WeightedSum([*weighted_terms(self), *weighted_terms(other)])

    __radd__ = __add__


def pre_softmax(outputs: Any) -> Any:
    """Returns the logits that Keras remembers for a softmax's output, else `outputs`.

    `keras.ops.softmax` keeps its argument with its result for the length of a trace,
    so that cross-entropy can be computed from it; this reads the same note.
    """
    return getattr(outputs, "_keras_logits", outputs)


@keras.saving.register_keras_serializable(PACKAGE)
class SoftTargetLoss(Objective):
    r"""Match the teacher's tempered probabilities.

        T**2 * KL(p || q),  p = softmax(z_teacher / T),  q = softmax(z_student / T)

    in nats. The factor `T**2` keeps the gradient of one size as T changes. Written
    as `sum p * (exp(r) - 1 - r)`, with `r = log q - log p`, every term is >= 0: no
    cancellation, so float32 is exact to about 1e-7 relative at any T, however close
    student and teacher are. The gradient `T * (q - p)` is exact in the same way, and
    a student that is confidently wrong gets all of it: nothing is clipped.

    For a teacher's `TopKLogits`, the KL is that over k + 1 outcomes, the last being all
    other classes together: never more than the full KL, by the data processing
    inequality, and equal to it if k is the number of classes.

    Args:
        temperature: float > 0, or `None` (default) for the distiller's own. In
            `keras.distillation.Distiller`, give it one.

    Raises:
        ValueError: if the temperature is not > 0.

    Example:
    >>> loss = SoftTargetLoss(temperature=1.0)
    >>> teacher = ops.array([[40.0, 0.0, -5.0]])
    >>> student = ops.array([[-60.0, 0.0, 0.0]])
    >>> print(f"{float(loss.compute_loss(teacher, student)):.2f}")
    60.69

    Reference: Hinton, Vinyals, Dean, arXiv:1503.02531, section 2.
    """

    takes_top_k = True

    def __init__(self, temperature: float | None = None) -> None:
        if temperature is not None:
            check_temperature(temperature)
        self.temperature = temperature

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns `T**2 * KL(p || q)`, shape `(batch, ...)`, in nats."""
        if self.temperature is not None:
            temperature = self.temperature
        if isinstance(teacher_outputs, TopKLogits):
            teacher_outputs, student_outputs = _with_one_rest(
                teacher_outputs, student_outputs, temperature
            )
        return tempered_kl(teacher_outputs, student_outputs, temperature)

    def compute_loss(
        self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any
    ) -> Any:
        """Returns the mean of `T**2 * KL(p || q)` over all examples."""
        self._require_temperature()
        return super().compute_loss(teacher_outputs, student_outputs, **kwargs)

    def validate_model_compatibility(self, teacher: Any, student: Any) -> None:
        """Called by `keras.distillation.Distiller` with its two models."""
        self._require_temperature()

    def _require_temperature(self) -> None:
        if self.temperature is None:
            raise ValueError(
                "SoftTargetLoss() takes its temperature from keras_distill.Distiller; "
                "outside it, give one: SoftTargetLoss(temperature=4.0)."
            )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {"temperature": self.temperature}


def _with_one_rest(
    teacher: TopKLogits, student_logits: Any, temperature: Any
) -> tuple[Any, Any]:
    """Returns the logits of both over k + 1 outcomes, the last being all other classes.

    The logit of the rest is `T * logsumexp(z / T)`: divided by T and put through a
    softmax, it has the rest's probability.
    """
    student_logits = ops.cast(student_logits, "float32")
    student_top = ops.take_along_axis(student_logits, teacher.indices, axis=-1)
    if not teacher.has_rest:
        return teacher.values, student_top
    classes, k = student_logits.shape[-1], teacher.k
    # The classes of the rest, by one scatter over the flattened batch.
    indices = ops.reshape(teacher.indices, (-1, k))
    rows = ops.shape(indices)[0]
    flat = ops.reshape(
        ops.expand_dims(ops.arange(rows), -1) * classes + indices, (-1, 1)
    )
    kept = ops.scatter(flat, ops.ones_like(flat[:, 0], "float32"), (rows * classes,))
    is_rest = ops.reshape(kept, ops.shape(student_logits)) == 0.0
    rest = ops.where(is_rest, student_logits / temperature, -math.inf)
    largest = ops.stop_gradient(ops.max(rest, -1, keepdims=True))
    student_rest = largest + ops.log(
        ops.sum(ops.exp(rest - largest), -1, keepdims=True)
    )
    teacher_rest = ops.expand_dims(teacher.rest_at(temperature), -1)
    return (
        ops.concatenate([teacher.values, temperature * teacher_rest], -1),
        ops.concatenate([student_top, temperature * student_rest], -1),
    )


# 1/2!, 1/3!, ... : exp(r) - 1 - r = r**2 * sum_i r**i / (i + 2)!, to 4e-8 for
# |r| < 0.5; beyond, the sum itself loses no more than that.
_TAYLOR = [1.0 / math.factorial(i + 2) for i in range(7)]


def tempered_kl(teacher_logits: Any, student_logits: Any, temperature: Any) -> Any:
    """Returns `T**2 * KL(softmax(z_t / T) || softmax(z_s / T))` over the last axis.

    Args:
        teacher_logits: float `(..., classes)`, a constant to the gradient.
        student_logits: float `(..., classes)`.
        temperature: float scalar > 0.

    Returns:
        `(...)` in nats, in float32, or float64 if the logits are.
    """
    dtype = keras.backend.result_type(
        keras.backend.standardize_dtype(ops.convert_to_tensor(student_logits).dtype),
        "float32",
    )
    teacher_logits = ops.stop_gradient(ops.cast(teacher_logits, dtype))
    temperature = ops.cast(temperature, dtype)

    @ops.custom_gradient
    def kl(student_logits: Any) -> tuple[Any, Callable]:
        # Both shifted to a maximum of 0: exp cannot overflow, the sums are >= 1.
        t = (teacher_logits - ops.max(teacher_logits, -1, keepdims=True)) / temperature
        s = (student_logits - ops.max(student_logits, -1, keepdims=True)) / temperature
        exp_t, exp_s = ops.exp(t), ops.exp(s)
        sum_t = ops.sum(exp_t, -1, keepdims=True)
        sum_s = ops.sum(exp_s, -1, keepdims=True)
        p, q = exp_t / sum_t, exp_s / sum_s
        r = (s - t) - ops.log(sum_s / sum_t)
        is_near = ops.abs(r) < 0.5
        near = ops.where(is_near, r, 0.0)
        series = _TAYLOR[-1]
        for coefficient in reversed(_TAYLOR[:-1]):
            series = series * near + coefficient
        terms = ops.where(is_near, p * near * near * series, (q - p) - p * r)
        loss = temperature * temperature * ops.sum(terms, -1)

        def gradient(*args: Any, upstream: Any = None) -> Any:
            upstream = args[0] if upstream is None else upstream
            difference = ops.where(is_near, p * ops.expm1(near), q - p)
            return temperature * ops.expand_dims(upstream, -1) * difference

        return loss, gradient

    return kl(ops.cast(student_logits, dtype))


@keras.saving.register_keras_serializable(PACKAGE)
class LogitMatchingLoss(Objective):
    """Match the teacher's logits themselves.

        1 / (2 N) * sum_c (z_student[c] - z_teacher[c])**2

    with the logits of both centred over the N classes, because a constant added to
    all logits of an example changes no probability. It is the limit of
    `SoftTargetLoss` as T grows, and has no temperature.

    Example:
    >>> loss = LogitMatchingLoss()
    >>> teacher, student = ops.array([[1.0, -1.0]]), ops.array([[7.0, 7.0]])
    >>> print(float(loss.compute_loss(teacher, student)))
    0.5

    Reference: Hinton, Vinyals, Dean, arXiv:1503.02531, section 2.1; Ba and Caruana,
    arXiv:1312.6184.
    """

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns the loss of each example, shape `(batch, ...)`."""
        difference = ops.cast(student_outputs, "float32") - ops.cast(
            teacher_outputs, "float32"
        )
        difference = difference - ops.mean(difference, -1, keepdims=True)
        return 0.5 * ops.mean(ops.square(difference), -1)


@keras.saving.register_keras_serializable(PACKAGE)
class HiddenLayerLoss(Objective):
    """Match a hidden layer of the student to one of the teacher.

        1 / d * sum_i (P(h_student)[i] - h_teacher[i])**2

    over the `d` features of the last axis. P is the identity, or, with a projection,
    a linear map that is learned with the student and thrown away afterwards.

    Both models run forward once per step, however many layers are matched. The models
    must be Functional or Sequential, so that a layer can be found by its name. For a
    subclassed model return the features from `call`, beside the logits, and give one
    objective per output: `objective={"logits": SoftTargetLoss(), "features":
    HiddenLayerLoss()}`.

    Args:
        student_layer_name: str, or `None` (default) for the output itself.
        teacher_layer_name: str, or `None` (default) for the output itself.
        projection: bool or int. `True` learns a linear map from the student's width to
            the teacher's; an int says the teacher's width where it cannot be seen.

    Example:
    >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="s"),
    ...                             keras.layers.Dense(2)])
    >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="t"),
    ...                             keras.layers.Dense(2)])
    >>> hint = HiddenLayerLoss("s", "t", projection=True)
    >>> hint.bind(student, teacher)
    >>> hint.trainable_layers[0].units
    8

    Reference: Romero et al., FitNets, arXiv:1412.6550.
    """

    def __init__(
        self,
        student_layer_name: str | None = None,
        teacher_layer_name: str | None = None,
        projection: bool | int = False,
    ) -> None:
        self.student_layer_name = student_layer_name
        self.teacher_layer_name = teacher_layer_name
        self.projection = projection
        self._layer: keras.layers.Dense | None = None

    @property
    def trainable_layers(self) -> list[keras.layers.Layer]:
        """The projection, once the models are known."""
        return [] if self._layer is None else [self._layer]

    def bind(self, student: keras.Model, teacher: keras.Model | None) -> None:
        """Makes the projection for these two models; checks that the widths agree.

        Args:
            student: the model that owns the student layer.
            teacher: the model that owns the teacher layer, or `None` if it is not
                there yet (a distiller that was just loaded).

        Raises:
            ValueError: if a layer does not exist, or the widths differ and there is
                no projection.
        """
        if self.student_layer_name is None:
            return
        student_shape = hidden_layer(student, self.student_layer_name, "student").shape
        teacher_width = None if isinstance(self.projection, bool) else self.projection
        if teacher is not None and self.teacher_layer_name is not None:
            teacher_shape = hidden_layer(
                teacher, self.teacher_layer_name, "teacher"
            ).shape
            self._check_shapes(student_shape, teacher_shape)
            teacher_width = teacher_shape[-1]
        if self._layer is not None and self._layer.units != teacher_width:
            raise ValueError(
                f"the projection leads to {self._layer.units} features, but the teacher's "
                f"layer {self.teacher_layer_name!r} has {teacher_width}; make a new "
                "distiller for this teacher."
            )
        if self._layer is None and self.projection is not False and teacher_width:
            self.projection = teacher_width
            self._layer = keras.layers.Dense(
                teacher_width,
                dtype="float32",
                name=f"project_{self.student_layer_name}",
            )
            self._layer.build((None, student_shape[-1]))

    def check_kept(self, teacher_shape: tuple, student: keras.Model) -> None:
        """Checks the student's layer against a kept one of the teacher.

        Args:
            teacher_shape: batch first.
            student: the model that owns the student layer.

        Raises:
            ValueError: if shapes do not fit, or the projection has no width yet.
        """
        if self.student_layer_name is None:
            return
        student_shape = hidden_layer(student, self.student_layer_name, "student").shape
        self._check_shapes(student_shape, (None, *teacher_shape[1:]))
        width = teacher_shape[-1]
        if self.projection is not False and (
            self._layer is None or self._layer.units != width
        ):
            raise ValueError(
                f"the kept layer {self.teacher_layer_name!r} has {width} features, which "
                "without a teacher cannot be seen beforehand; pass "
                f"HiddenLayerLoss(..., projection={width})."
            )

    def _check_shapes(self, student: tuple, teacher: tuple) -> None:
        names = f"{self.student_layer_name!r} and {self.teacher_layer_name!r}"
        if len(student) != len(teacher) or any(
            a is not None and b is not None and a != b
            for a, b in zip(student[1:-1], teacher[1:-1], strict=True)
        ):
            raise ValueError(
                f"the student and teacher layers {names} have shapes {student} and "
                f"{teacher}; all axes but the last must agree. Choose two layers at "
                "the same resolution."
            )
        if self.projection is False and student[-1] != teacher[-1]:
            raise ValueError(
                f"the student and teacher layers {names} have {student[-1]} and "
                f"{teacher[-1]} features; pass projection=True to learn a linear map "
                "between them."
            )

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns the mean squared difference of each example, `(batch, ...)`."""
        student_outputs = ops.cast(student_outputs, "float32")
        if self._layer is not None:
            student_outputs = self._layer(student_outputs)
        difference = student_outputs - ops.cast(teacher_outputs, "float32")
        return ops.mean(ops.square(difference), -1)

    def validate_model_compatibility(self, teacher: Any, student: Any) -> None:
        """Called by `keras.distillation.Distiller` with its two models."""
        if self.projection is not False:
            raise ValueError(
                "keras.distillation.Distiller does not train a projection; use "
                "keras_distill.Distiller, or two layers of one width."
            )
        self.bind(student, teacher)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "student_layer_name": self.student_layer_name,
            "teacher_layer_name": self.teacher_layer_name,
            "projection": self.projection,
        }


@keras.saving.register_keras_serializable(PACKAGE)
class WeightedSum(Objective):
    """A weighted sum of objectives, made by `+` and `*`.

    Args:
        terms: list of `(weight, objective)`; the weight a finite float >= 0. Objectives
            of `keras.distillation` may be among them.

    Raises:
        TypeError: if a term is not a distillation loss.
        ValueError: if a weight is negative or not finite.

    Example:
    >>> total = SoftTargetLoss() + 0.1 * LogitMatchingLoss()
    >>> [weight for weight, _ in total.terms]
    [1.0, 0.1]
    """

    def __init__(self, terms: list[tuple[float, Any]]) -> None:
        for weight, term in terms:
            if not isinstance(term, keras.distillation.DistillationLoss):
                raise TypeError(
                    f"only distillation losses add up, got {term!r}; use a "
                    "keras_distill objective or a keras.distillation one."
                )
            if not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
                raise ValueError(f"a weight must be a finite number >= 0, got {weight}")
        self.terms = [(float(weight), term) for weight, term in terms]

    def __mul__(self, weight: float) -> WeightedSum:
        return WeightedSum([(weight * w, term) for w, term in self.terms])

    __rmul__ = __mul__

    def compute_loss(
        self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any
    ) -> Any:
        """Returns the weighted sum of the terms' means."""
        return sum(
            weight * term.compute_loss(teacher_outputs, student_outputs)
            for weight, term in self.terms
        )

    def validate_model_compatibility(self, teacher: Any, student: Any) -> None:
        """Called by `keras.distillation.Distiller` with its two models."""
        for _, term in self.terms:
            if getattr(term, "student_layer_name", None) is not None:
                raise ValueError(
                    "keras.distillation.Distiller cannot see layer names inside a sum; "
                    "give it the terms as a list, with distillation_loss_weights."
                )
            term.validate_model_compatibility(teacher, student)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, serialised."""
        return {
            "terms": [
                (weight, keras.saving.serialize_keras_object(term))
                for weight, term in self.terms
            ]
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WeightedSum:
        """Creates the sum from `get_config`'s dict."""
        return cls(
            [
                (weight, keras.saving.deserialize_keras_object(term))
                for weight, term in config["terms"]
            ]
        )


def weighted_terms(objective: Any) -> list[tuple[float, Any]]:
    """Returns the objective as a flat list of `(weight, objective)`."""
    if isinstance(objective, WeightedSum):
        return objective.terms
    return [(1.0, objective)]


def has_several(structure: Any) -> bool:
    """Tells whether this is a dict or list of outputs, as opposed to a single one."""
    is_nest = isinstance(structure, (dict, list, tuple))
    return is_nest and not isinstance(structure, TopKLogits)


def by_output(structure: Any) -> Iterator[tuple[Any, Any]]:
    """Yields `(key, value)` of a dict, list or single output; a single one has no key."""
    if isinstance(structure, dict):
        yield from structure.items()
    elif has_several(structure):
        yield from enumerate(structure)
    else:
        yield None, structure


def hidden_layer(model: Any, name: str, role: str) -> keras.KerasTensor:
    """Returns the symbolic output of a named layer.

    Raises:
        ValueError: if the model is subclassed, or has no such layer, or calls the
            layer more than once.
    """
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"the {role} {type(model).__name__} is a subclassed model (or not built "
            f"yet), so its layer {name!r} cannot be found by name. Return the features "
            "from its call beside the logits, as in {'logits': ..., 'features': ...}, "
            "and give one objective per output: objective={'logits': SoftTargetLoss(), "
            "'features': HiddenLayerLoss()}."
        )
    names = [layer.name for layer in model.layers]
    if name not in names:
        raise ValueError(
            f"the {role} has no layer {name!r}; its layers are {', '.join(names)}."
        )
    try:
        output = model.get_layer(name).output
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"the {role}'s layer {name!r} is called several times, so it has no single "
            "output to match; choose a layer that is called once."
        ) from error
    if not isinstance(output, keras.KerasTensor):
        raise ValueError(
            f"the {role}'s layer {name!r} has several outputs; choose one with one."
        )
    return output
