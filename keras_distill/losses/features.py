"""FeatureLoss: the difference of hidden layers' outputs."""

from __future__ import annotations

import copy
from typing import Any

import keras
from keras import ops

from keras_distill.features import shapes_of_features
from keras_distill.keras_compat import mask_of, with_mask
from keras_distill.losses import adapters
from keras_distill.losses.adapters import AUTO
from keras_distill.losses.base import PACKAGE, DistillationLoss, in_float


@keras.saving.register_keras_serializable(PACKAGE)
class FeatureLoss(DistillationLoss):
    """Match a hidden layer of the student to one of the teacher.

        1 / d * sum_i (A(h_student)[i] - h_teacher[i])**2

    over the `d` features of the last axis, or another loss of Keras over them. A is the
    identity, or an adapter, that is learned with the student and thrown away afterwards.

    Both models run forward once per step, however many layers are matched. Layers are named
    by path, see `feature_paths`. Features that a model returns beside its logits need no
    names: give one distillation loss per output: `distillation_loss={"logits":
    SoftTargetLoss(), "features": FeatureLoss()}`.

    Args:
        student_layer_name: str, or `None` (default) for the output itself.
        teacher_layer_name: str, or `None` (default) for the output itself.
        adapter: what brings the student's features to the shape of the teacher's. `None`
            (default): nothing, the shapes must agree. "auto": where channels differ, a
            learned linear map, which on maps is a 1x1 convolution; where the grids of two
            maps differ, both are averaged over areas to the smaller size; where one is a map
            and the other a vector, the map is averaged over its positions. Or a
            `keras.layers.Layer` of one's own, applied to the student's features; every
            distiller has a copy of it.
        loss: name, function or object of a Keras loss over the last axis; its reduction is
            not used. `None` (default): the mean squared difference.

    Maps have their channels where `keras.config.image_data_format()` says.

    Raises:
        ValueError: if a name is no str, the adapter none of these, or the loss is not one
            number for each vector of features.

    Example:
    >>> hint = FeatureLoss("s", "t", adapter="auto")
    >>> hint.bind((None, 8, 8, 3), (None, 4, 4, 8))
    >>> hint.trainable_layers[0].units
    8

    Reference: Romero et al., FitNets, arXiv:1412.6550.
    """

    #: Whether features of any two shapes can be compared, without an adapter.
    takes_any_shapes = False

    def __init__(
        self,
        student_layer_name: str | None = None,
        teacher_layer_name: str | None = None,
        adapter: Any = None,
        loss: Any = None,
    ) -> None:
        for role, name in (
            ("student", student_layer_name),
            ("teacher", teacher_layer_name),
        ):
            if name is not None and not isinstance(name, str):
                raise ValueError(
                    f"{role}_layer_name must be a str or None, got {name!r}."
                )
        self.student_layer_name = student_layer_name
        self.teacher_layer_name = teacher_layer_name
        self.adapter = self._checked_adapter(adapter)
        self.loss = loss
        self._difference = None if loss is None else per_vector(loss)
        self._layer: keras.layers.Layer | None = None
        self._shapes: dict[str, tuple | None] = {}  # which the adapter is made for
        self._saved_shapes: dict[str, Any] = {}

    def _checked_adapter(self, adapter: Any) -> Any:
        is_auto = isinstance(adapter, str) and adapter == AUTO
        is_layer = isinstance(adapter, keras.layers.Layer)
        if not (adapter is None or is_auto or is_layer):
            raise ValueError(
                'adapter must be None, "auto" or a keras.layers.Layer that maps the '
                f"student's features to the teacher's, got {adapter!r}."
            )
        if adapter is not None and None in (
            self.student_layer_name,
            self.teacher_layer_name,
        ):
            raise ValueError(
                "adapter is for layers that are named; give student_layer_name and "
                f"teacher_layer_name, got {self.student_layer_name!r} and "
                f"{self.teacher_layer_name!r}."
            )
        return adapter

    @property
    def is_of_outputs(self) -> bool:
        """Whether it is given a model's logits or values, rather than features."""
        return False

    @property
    def trainable_layers(self) -> list[keras.layers.Layer]:
        """The adapter, once the features are known."""
        return [] if self._layer is None else [self._layer]

    @property
    def waits_for_shapes(self) -> bool:
        """Whether there is to be an adapter, and the features are not known."""
        return self.adapter is not None and not self._shapes

    def copied(self) -> FeatureLoss:
        """Returns one with an adapter of its own, for another distiller."""
        one = copy.copy(self)
        one._layer, one._shapes = None, {}
        one._saved_shapes = self._shapes or self._saved_shapes
        if isinstance(self.adapter, keras.layers.Layer):
            one.adapter = adapters.cloned(self.adapter)
        return one

    def bind(self, student_shape: tuple | None, teacher_shape: tuple | None) -> None:
        """Makes the adapter for features of these shapes; checks that they fit.

        Called when the models are known, and again on the first batch, which knows more.

        Args:
            student_shape: of the student's layer, batch first, `None` for a free axis; `None`
                if it is not known yet, or the output itself is matched.
            teacher_shape: likewise, of the teacher's layer or of cached features.

        Raises:
            ValueError: if the shapes do not fit, or differ and there is no adapter.
        """
        if None in (self.student_layer_name, self.teacher_layer_name):
            return
        student, teacher = (
            None if shape is None else tuple(shape)
            for shape in (
                student_shape or self._saved_shapes.get("student"),
                teacher_shape or self._saved_shapes.get("teacher"),
            )
        )
        if student is None:
            return
        if isinstance(self.adapter, keras.layers.Layer):
            given = self._layer is None
            adapted = adapters.built_output_shape(self.adapter, student)
            if teacher is not None:
                self._check_equal(
                    adapted, teacher, f"the adapter {self.adapter.name!r} gives"
                )
            if given:
                self._layer = self.adapter
            self._shapes = {"student": student, "teacher": teacher}
            return
        if teacher is None:
            return
        shapes: dict[str, tuple | None] = {"student": student, "teacher": teacher}
        student, teacher = map(adapters.shape_channels_last, (student, teacher))
        self._check_shapes(student, teacher)
        if self.adapter == AUTO:
            self._make_linear_map(student, teacher)
            self._shapes = self._shapes or shapes

    def _make_linear_map(self, student: tuple, teacher: tuple) -> None:
        if None in (student[-1], teacher[-1]):
            raise ValueError(
                f"{self._both_layers()} have shapes {student} and {teacher}; adapter='auto' needs "
                "to know how many channels there are. Give models of a fixed width."
            )
        if self._shapes:
            for role, shape in (("student", student), ("teacher", teacher)):
                made_for = adapters.shape_channels_last(self._shapes[role] or shape)
                if made_for[-1] != shape[-1]:
                    raise ValueError(
                        f"the adapter was made for {made_for[-1]} features of the {role}'s "
                        f"layer {getattr(self, f'{role}_layer_name')!r}, which now has "
                        f"{shape[-1]}; make a new distiller for this {role}."
                    )
            return
        if student[-1] != teacher[-1]:
            self._layer = adapters.linear_map(
                student[-1], teacher[-1], self.student_layer_name or ""
            )

    def _both_layers(self) -> str:
        return (
            f"the student and teacher layers {self.student_layer_name!r} and "
            f"{self.teacher_layer_name!r}"
        )

    def _check_equal(self, student: tuple, teacher: tuple, what: str) -> None:
        if len(student) == len(teacher) and all(
            a == b or None in (a, b)
            for a, b in zip(student[1:], teacher[1:], strict=True)
        ):
            return
        raise ValueError(
            f"{what} features of shape {student}, but the teacher's layer "
            f"{self.teacher_layer_name!r} has {teacher}; all axes but the batch must agree."
        )

    def _check_shapes(self, student: tuple, teacher: tuple) -> None:
        """Refuses features, channels last, that cannot be compared."""
        if self.takes_any_shapes:
            return
        both = f"{self._both_layers()} have shapes {student} and {teacher}"
        ranks = len(student), len(teacher)
        if 2 in ranks and max(ranks) > 3:
            if self.adapter != AUTO:
                raise ValueError(
                    f'{both}; pass adapter="auto", which averages the map over its positions.'
                )
            return
        if ranks[0] != ranks[1]:
            raise ValueError(
                f"{both}, which are of different kinds; give an adapter of your own, such as "
                "keras.layers.GlobalAveragePooling1D() or keras.layers.Reshape(...), or choose "
                "two layers of one rank."
            )
        if self._differs(student[1:-1], teacher[1:-1]):
            if ranks[0] == 3:
                raise ValueError(
                    f"{both}: sequences of different lengths, whose positions do not "
                    "correspond; choose two layers of one length, or give an adapter of your "
                    "own."
                )
            if self.adapter != AUTO:
                raise ValueError(
                    f'{both}; pass adapter="auto", which averages the larger map to the grid '
                    "of the smaller one, or choose two layers at one resolution."
                )
        if self.adapter != AUTO and self._differs(student[-1:], teacher[-1:]):
            raise ValueError(
                f"{self._both_layers()} have {student[-1]} and {teacher[-1]} features; pass "
                'adapter="auto" to learn a linear map between them.'
            )

    @staticmethod
    def _differs(student: tuple, teacher: tuple) -> bool:
        pairs = zip(student, teacher, strict=True)
        return any(None not in pair and pair[0] != pair[1] for pair in pairs)

    def adapted(self, teacher_outputs: Any, student_outputs: Any) -> tuple[Any, Any]:
        """Returns both features, in float32 or wider, channels last, of one shape."""
        teacher = ops.stop_gradient(in_float(teacher_outputs))
        student = in_float(student_outputs)
        if isinstance(self.adapter, keras.layers.Layer):
            # Its variables are float32 or of its own policy.
            given = with_mask(ops.cast(student, "float32"), mask_of(student_outputs))
            student = in_float(self.adapter(given, training=True))
        teacher, student = map(adapters.channels_last, (teacher, student))
        if self.adapter == AUTO:
            ranks = len(student.shape), len(teacher.shape)
            if ranks[0] != ranks[1]:
                teacher, student = (
                    adapters.pooled(one) if len(one.shape) > 3 else one
                    for one in (teacher, student)
                )
            teacher, student = adapters.to_one_grid(teacher, student)
            if self._layer is not None:
                student = self._layer(ops.cast(student, "float32"))
        self._check_not_broadcast(student.shape, teacher.shape)
        return ops.cast(teacher, student.dtype), student

    def _check_not_broadcast(self, student: tuple, teacher: tuple) -> None:
        """Refuses what `bind` has not seen, and would be compared by broadcasting."""
        ranks_agree = len(student) == len(teacher)
        if ranks_agree and not self._differs(tuple(student), tuple(teacher)):
            return
        what = f"of shapes {tuple(student)} and {tuple(teacher)} of student and teacher"
        if self.adapter == AUTO and not self._shapes:
            raise ValueError(
                f"features {what} reach {type(self).__name__} before its adapter is made; call "
                "distiller.check_first_batch(batch) before a loop of your own, or train by fit."
            )
        raise ValueError(
            f"{type(self).__name__} compares features of one shape, got some {what}; name "
            'the layers and pass adapter="auto".'
        )

    def loss_per_example(
        self, teacher_outputs: Any, student_outputs: Any, temperature: Any = 1.0
    ) -> Any:
        """Returns the mean squared difference of each example, `(batch, ...)`."""
        teacher, student = self.adapted(teacher_outputs, student_outputs)
        if self._difference is not None:
            return self._difference(teacher, student)
        return ops.mean(ops.square(student - teacher), -1)

    def validate_model_compatibility(self, teacher: Any, student: Any) -> None:
        """Called by `keras.distillation.Distiller` with its two models."""
        if self.adapter is not None:
            raise ValueError(
                "keras.distillation.Distiller does not train an adapter; use "
                "keras_distill.Distiller, or two layers of one shape."
            )
        student_shape, teacher_shape = (
            None if name is None else shapes_of_features(model, [name], role)[name]
            for model, name, role in (
                (student, self.student_layer_name, "student"),
                (teacher, self.teacher_layer_name, "teacher"),
            )
        )
        self.bind(student_shape, teacher_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, and the shapes that an adapter is made for."""
        loss = self.loss
        if loss is not None and not isinstance(loss, str):
            loss = keras.losses.serialize(loss)
        return {**self._config_of_layers(), "loss": loss}

    def _config_of_layers(self) -> dict[str, Any]:
        adapter = self.adapter
        if isinstance(adapter, keras.layers.Layer):
            adapter = keras.saving.serialize_keras_object(adapter)
        config = {
            "student_layer_name": self.student_layer_name,
            "teacher_layer_name": self.teacher_layer_name,
            "adapter": adapter,
        }
        shapes = self._shapes or self._saved_shapes
        if adapter is not None and shapes:
            config["shapes"] = {
                role: None if shape is None else [None, *shape[1:]]
                for role, shape in shapes.items()
            }
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FeatureLoss:
        """Creates the loss from `get_config`'s dict."""
        config = dict(config)
        shapes = config.pop("shapes", {})
        if isinstance(config.get("adapter"), dict):
            config["adapter"] = keras.saving.deserialize_keras_object(config["adapter"])
        if isinstance(config.get("loss"), dict):
            config["loss"] = keras.losses.deserialize(config["loss"])
        one = cls(**config)
        one._saved_shapes = shapes
        return one


def is_on_features(term: Any) -> bool:
    """Tells whether a distillation loss compares features, not logits or values."""
    return isinstance(term, FeatureLoss) and not term.is_of_outputs


def per_vector(loss: Any) -> Any:
    """Returns a Keras loss as a function from two features to a number for each vector.

    Raises:
        ValueError: if it is no loss, or gives another number of values.
    """
    said = f"loss must be a Keras loss over the last axis, such as 'mae', got {loss!r}"
    try:
        found = keras.losses.get(loss)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{said}, which Keras does not know.") from error
    of = found.call if isinstance(found, keras.losses.Loss) else found
    if not callable(of):
        raise ValueError(f"{said}.")
    try:
        values = of(ops.ones((2, 3, 4)), ops.ones((2, 3, 4)))
        shape = tuple(ops.shape(values))
    except Exception as error:
        raise ValueError(
            f"{said}, which fails on features ({error}); give one with a value for each vector."
        ) from error
    if shape != (2, 3):
        raise ValueError(
            f"{said}, which gives values of shape {shape} for features (2, 3, 4), not (2, 3); "
            "give one with a value for each vector."
        )
    return of
