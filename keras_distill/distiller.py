"""The Distiller: Keras's own training step, plus the teacher."""

from __future__ import annotations

import contextlib
import inspect
import math
import types
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill import checks
from keras_distill.logits import gives_logits, to_logits, values_are_logits
from keras_distill.multi_worker import MultiWorkerFit
from keras_distill.objectives import (
    PACKAGE,
    HiddenLayerLoss,
    Objective,
    SoftTargetLoss,
    by_output,
    weighted_terms,
)
from keras_distill.teachers import Teacher, as_teacher, classes_of, layer_extractor


class DistillationInputs(NamedTuple):
    """Model inputs joined with the teacher's kept answer for them.

    A dataset that yields `(DistillationInputs(x, soft_targets), y)` trains a `Distiller`
    that has no teacher in memory. `evaluate` and `predict` use `inputs` alone.

    Attributes:
        inputs: what the student takes, batch first.
        soft_targets: the teacher's logits, float `(batch, ..., classes)`, in the
            structure of the student's outputs.
    """

    inputs: Any
    soft_targets: Any


@keras.saving.register_keras_serializable(PACKAGE)
class TeacherAgreement(keras.metrics.MeanMetricWrapper):
    """How often student and teacher choose the same class, from 0 to 1.

    In `Distiller.compile(metrics=[..., TeacherAgreement()])` it is given the teacher's
    outputs in place of labels, so the teacher runs in `evaluate` too. Outside, call
    `update_state(teacher_outputs, student_outputs)`.

    Args:
        name: str.
        dtype: dtype of the result.

    Example:
    >>> agreement = TeacherAgreement()
    >>> agreement.update_state([[0.0, 2.0], [1.0, 0.0]], [[0.0, 9.0], [0.0, 1.0]])
    >>> print(float(agreement.result()))
    0.5
    """

    def __init__(self, name: str = "teacher_agreement", dtype: Any = None) -> None:
        super().__init__(_same_class, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {"name": self.name, "dtype": self.dtype}


def _same_class(teacher_outputs: Any, student_outputs: Any) -> Any:
    same = ops.equal(ops.argmax(teacher_outputs, -1), ops.argmax(student_outputs, -1))
    return ops.cast(same, "float32")


@keras.saving.register_keras_serializable(PACKAGE)
class Distiller(MultiWorkerFit, keras.Model):
    """Trains a student to match a teacher and the labels, by `compile` and `fit`.

        loss = alpha * hard(y, z_s) + (1 - alpha) * soft(z_t, z_s) + regularisation

    for each example, where `hard` is the loss given to `compile`, at T = 1, and `soft`
    the objective; by default `T**2 * KL(softmax(z_t / T) || softmax(z_s / T))`, in nats.

    The teacher is not a part of this model. It is neither trained, tracked, saved nor
    changed; it runs with `training=False`, outside the gradient. `call`, `evaluate` and
    `predict` are the student's, at the student's cost. `evaluate` reports the hard loss,
    so that it can be compared across temperatures. After loading a saved distiller, give
    it its teacher back by `distiller.teacher = teacher`.

    Batches may be `(x, y)`, `(x, y, sample_weight)` or `x` alone (then only the soft
    loss is there, still weighed by `1 - alpha`); `x` may be a `DistillationInputs`.
    Sample weights, class weights, Keras masks and the reduction of the hard loss act on
    both terms.

    Args:
        student: `keras.Model`, with logits or probabilities `(batch, ..., classes)`, or
            a dict or list of them.
        teacher: a `keras.Model`, a list of teachers, a path to a `.keras` file or a
            SavedModel, or a callable from a batch to logits. `None` (default) if the
            batches bring `DistillationInputs`.
        temperature: float > 0, or a `LearningRateSchedule` of the optimizer's step.
            Default 4.
        alpha: float from 0 to 1, or such a schedule: the weight of the hard loss.
            Default 0.1.
        objective: a distillation loss of this package or of `keras.distillation`, a sum
            of them, or a dict or list of them, one per output (`None` for an output that
            is not distilled). Default `SoftTargetLoss()`, for every output.
        teacher_from_logits: bool, whether the teacher gives logits (`True`) or
            probabilities (`False`). `None` (default) finds out from its last layer.
        student_from_logits: the same for the student.
        teacher_average: for a list of teachers, the mean of "probabilities" at the
            temperature in force (default), or of "logits".
        name: str.
        **kwargs: passed to `keras.Model`.

    Raises:
        TypeError: if the student is not a `keras.Model`, or the teacher or objective
            cannot serve as one.
        ValueError: if temperature or alpha is out of range, teacher and student are one
            object or differ in their classes, or a named layer does not exist.

    Example:
    >>> import numpy as np
    >>> def model(width):
    ...     return keras.Sequential([keras.Input((8,)),
    ...                              keras.layers.Dense(width, activation="relu"),
    ...                              keras.layers.Dense(3)])
    >>> distiller = Distiller(model(4), model(32), temperature=4.0, alpha=0.1)
    >>> distiller.compile(
    ...     "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> x, y = np.random.rand(32, 8).astype("float32"), np.random.randint(3, size=32)
    >>> sorted(distiller.fit(x, y, verbose=0).history)
    ['hard_loss', 'loss', 'soft_loss']

    Reference: Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*,
    arXiv:1503.02531.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: Any = None,
        *,
        temperature: float | LearningRateSchedule = 4.0,
        alpha: float | LearningRateSchedule = 0.1,
        objective: Any = None,
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        teacher_average: str = "probabilities",
        name: str = "distiller",
        **kwargs: Any,
    ) -> None:
        checks.student_and_teacher(student, teacher)
        # The student's policy decides loss scaling and how inputs are cast.
        kwargs.setdefault("dtype", student.dtype_policy)
        super().__init__(name=name, **kwargs)
        self.student = student
        self.objective = checks.objective(objective or SoftTargetLoss())
        self.teacher_from_logits = teacher_from_logits
        self.teacher_average = teacher_average
        if student_from_logits is None:
            student_from_logits = gives_logits(student)
        self.student_from_logits = student_from_logits
        self.hard_loss_tracker = keras.metrics.Mean(name="hard_loss")
        self.soft_loss_tracker = keras.metrics.Mean(name="soft_loss")
        self._teacher_metrics: list[TeacherAgreement] = []
        self._judging = False
        self._said_unlabelled = False
        # Keras tracks what is set on a model, but not what a plain object holds.
        self._untracked = types.SimpleNamespace(
            user_teacher=None,
            teacher=None,
            student_extractor=None,
            temperature=_Knob("temperature", temperature),
            alpha=_Knob("alpha", alpha),
            non_finite=keras.metrics.Sum(name="non_finite_teacher_batches"),
        )
        self._match_student_layers()
        self._set_teacher(teacher)
        if student.built:
            self.built = True

    # Settings ------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "teacher":
            # Past Keras, which tracks a model before a property could see it.
            self._set_teacher(value)
        else:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        # Keras saves every model that it finds by dir(); the teacher is not to be saved.
        return [name for name in super().__dir__() if name != "teacher"]

    @property
    def temperature(self) -> float | LearningRateSchedule:
        """T, a float > 0 or a schedule of the step. Setting it does not retrace."""
        return self._untracked.temperature.value

    @temperature.setter
    def temperature(self, value: float | LearningRateSchedule) -> None:
        if self._untracked.temperature.set(value):
            self.train_function = None

    @property
    def alpha(self) -> float | LearningRateSchedule:
        """Weight of the hard loss, from 0 to 1, or a schedule. Setting: no retrace."""
        return self._untracked.alpha.value

    @alpha.setter
    def alpha(self, value: float | LearningRateSchedule) -> None:
        was_plain_training = self.alpha == 1.0
        if self._untracked.alpha.set(value) or was_plain_training:
            self.train_function = None

    @property
    def teacher(self) -> Any:
        """The teacher as it was given; set it again after loading a distiller."""
        return self._untracked.user_teacher

    def _set_teacher(self, teacher: Any) -> None:
        checks.student_and_teacher(self.student, teacher)
        self._untracked.user_teacher = teacher
        bound: Teacher | None = None
        if teacher is not None:
            bound = as_teacher(teacher, self.teacher_from_logits, self.teacher_average)
            checks.same_classes(
                classes_of(self.student), bound.classes, self._distilled_outputs()
            )
            bound.match_layers(self._layer_names("teacher_layer_name"))
        self._untracked.teacher = bound
        model = None if bound is None else bound.model
        for _, term in self._all_terms():
            if isinstance(term, HiddenLayerLoss):
                term.bind(self.student, model)
            elif not isinstance(term, Objective) and model is not None:
                term.validate_model_compatibility(model, self.student)
        self.objective_layers = [
            layer
            for _, term in self._all_terms()
            if isinstance(term, Objective)
            for layer in term.trainable_layers
        ]
        self.train_function = self.test_function = None

    @property
    def output_names(self) -> list[str]:
        """The student's, so that losses and metrics can be given by output name."""
        return self.student.output_names

    def _all_terms(self) -> list[tuple[float, Any]]:
        return [
            pair
            for _, objective in by_output(self.objective)
            if objective is not None
            for pair in weighted_terms(objective)
        ]

    def _layer_names(self, attribute: str) -> list[str]:
        names = [getattr(term, attribute, None) for _, term in self._all_terms()]
        return list(dict.fromkeys(name for name in names if name is not None))

    def _distilled_outputs(self) -> set | None:
        """Keys of outputs whose classes must be the teacher's; `None` for all."""
        if not isinstance(self.objective, (dict, list, tuple)):
            return None if any(self._reads_outputs(self.objective)) else set()
        return {
            key
            for key, objective in by_output(self.objective)
            if objective is not None and any(self._reads_outputs(objective))
        }

    @staticmethod
    def _reads_outputs(objective: Any) -> Iterator[bool]:
        for _, term in weighted_terms(objective):
            yield not isinstance(term, HiddenLayerLoss)

    def _match_student_layers(self) -> None:
        names = self._layer_names("student_layer_name")
        if names:
            self._untracked.student_extractor = layer_extractor(
                self.student, names, "student"
            )

    # Keras's interface ---------------------------------------------------------------

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the student's outputs."""
        return self.student(_without_soft_targets(inputs))

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures training as `keras.Model.compile` does.

        Args:
            optimizer: as for `keras.Model.compile`.
            loss: the hard loss. It may be left out if alpha is 0.
            loss_weights: as for `keras.Model.compile`; acts on the hard loss.
            metrics: as for `keras.Model.compile`; in a list, `TeacherAgreement` too.
            **kwargs: as for `keras.Model.compile`.

        Raises:
            ValueError: if `from_logits` of the loss disagrees with the student's last
                layer.
        """
        if self.student_from_logits is not None:
            checks.loss_takes_what_student_gives(loss, self.student_from_logits)
        self._user_metrics = metrics
        self._teacher_metrics = []
        if isinstance(metrics, (list, tuple)):
            self._teacher_metrics = [
                m for m in metrics if isinstance(m, TeacherAgreement)
            ]
            metrics = [m for m in metrics if not isinstance(m, TeacherAgreement)]
        super().compile(
            optimizer, loss, loss_weights, metrics=metrics or None, **kwargs
        )
        if loss is None:
            self._compile_loss = self.loss = None
        reductions = [
            term.reduction
            for term in keras.tree.flatten(loss)
            if isinstance(term, keras.losses.Loss) and term.reduction
        ]
        self._untracked.reduce = _Reduce(*reductions[:1])

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trains the student as `keras.Model.fit` does, after a look at the first batch.

        Args:
            x: as for `keras.Model.fit`.
            y: as for `keras.Model.fit`.
            *args: as for `keras.Model.fit`.
            **kwargs: as for `keras.Model.fit`.

        Returns:
            `keras.callbacks.History`.

        Raises:
            ValueError: before training, if the data is empty, labels are of the wrong
                kind or out of range, nothing teaches, or the teacher's first answer is
                not finite or has other classes; during it, if a later answer of the
                teacher is not finite, naming the batch.
        """
        arguments = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        if self.compiled:
            batch, arguments = checks.first_batch(arguments)
            if batch is not None:
                self._check_first_batch(*batch)
            arguments = self._spread_class_weight(arguments)
            callbacks = arguments.pop("callbacks", None)
            watch = _TeacherWatch(self._untracked)
            if isinstance(callbacks, keras.callbacks.CallbackList):
                callbacks.append(watch)
            else:
                callbacks = [*keras.tree.flatten(callbacks or []), watch]
            arguments["callbacks"] = callbacks
            if isinstance(arguments.get("x"), tf.data.Dataset):
                # Keras warns that its own default, True, has no effect on these.
                arguments.setdefault("shuffle", False)
        return super().fit(**arguments)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Judges the student as `keras.Model.evaluate` does: hard loss and metrics.

        Args:
            *args: as for `keras.Model.evaluate`.
            **kwargs: as for `keras.Model.evaluate`.

        Returns:
            As `keras.Model.evaluate`.
        """
        with self._only_judging():
            return super().evaluate(*args, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Keras's own step, plus the teacher."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        targets, hidden_targets = self._ask_teacher(x)
        x = _without_soft_targets(x)

        with tf.GradientTape() as tape:
            y_pred, hidden = self._student_forward(x)
            sample_weight = checks.weights_by_output(sample_weight, y_pred)
            hard_loss = self._hard_loss(y, y_pred, sample_weight)
            soft_loss = self._soft_loss(
                targets, hidden_targets, y_pred, hidden, sample_weight
            )
            alpha = self._untracked.alpha.at(self.optimizer)
            loss = alpha * hard_loss + (1.0 - alpha) * soft_loss
            loss += self._regularization()
            scaled_loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, self.trainable_weights)
        self.optimizer.apply_gradients(
            zip(gradients, self.trainable_weights, strict=True)
        )

        # Losses are divided by the number of replicas, so that gradients add up.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        for tracker, value in (
            (self._loss_tracker, loss),
            (self.hard_loss_tracker, hard_loss),
            (self.soft_loss_tracker, soft_loss),
        ):
            tracker.update_state(value * replicas, sample_weight=_batch_size(x))
        self._update_teacher_metrics(targets, y_pred)
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return self._logs(logs)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Keras's own step; the teacher runs only if a metric asks for it."""
        with self._only_judging():
            if self._teacher_metrics:
                x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
                targets, _ = self._ask_teacher(x)
                self._update_teacher_metrics(targets, self(x, training=False))
            return self._logs(super().test_step(data))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the hard loss plus regularisation: what `evaluate` reports."""
        sample_weight = checks.weights_by_output(sample_weight, y_pred)
        return self._hard_loss(y, y_pred, sample_weight) + self._regularization()

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Updates the metrics given to `compile`, where there are labels."""
        if y is None:
            return self.get_metrics_result()
        return super().compute_metrics(x, y, y_pred, sample_weight)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras's, without the two training losses while judging."""
        training_only = (self.hard_loss_tracker, self.soft_loss_tracker)
        return [
            metric
            for metric in super().metrics
            if not (self._judging and any(metric is t for t in training_only))
            # Metrics of labels do not exist until a batch brought labels.
            and (metric is not self._compile_metrics or metric.built)
        ]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, serialised; the teacher is not among them."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "student": serialize(self.student),
            "temperature": self._untracked.temperature.config(),
            "alpha": self._untracked.alpha.config(),
            "objective": serialize(self.objective),
            "teacher_from_logits": self.teacher_from_logits,
            "student_from_logits": self.student_from_logits,
            "teacher_average": self.teacher_average,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Creates the distiller from `get_config`'s dict, without its teacher."""
        config = dict(config)
        for key in ("student", "temperature", "alpha", "objective"):
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects
            )
        return cls(**config)

    def get_compile_config(self) -> dict[str, Any] | None:
        """Returns the arguments of `compile`, serialised."""
        config = super().get_compile_config()
        if config:
            config["metrics"] = keras.saving.serialize_keras_object(self._user_metrics)
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as the saved distiller was, with the optimizer's variables made."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    # The step's parts ----------------------------------------------------------------

    def _ask_teacher(self, x: Any) -> tuple[Any, dict[str, Any]]:
        """Returns the teacher's logits and matched layers for a batch."""
        kept = x.soft_targets if isinstance(x, DistillationInputs) else None
        teacher = self._untracked.teacher
        needs_layers = bool(self._layer_names("teacher_layer_name"))
        if teacher is None or (kept is not None and not needs_layers):
            if kept is None and self.alpha != 1.0:
                raise ValueError(checks.NOTHING_TEACHES)
            if needs_layers and self.alpha != 1.0:
                raise ValueError(
                    "the objective matches hidden layers, which kept soft targets do "
                    "not hold: give the distiller its teacher too."
                )
            return kept, {}
        temperature = self._untracked.temperature.at(self.optimizer)
        logits, layers = teacher(_without_soft_targets(x), temperature)
        logits, layers = keras.tree.map_structure(ops.stop_gradient, (logits, layers))
        return (self._note_non_finite(logits) if kept is None else kept), layers

    def _note_non_finite(self, logits: Any) -> Any:
        """Counts a batch with NaN or infinity for `_TeacherWatch`, and defuses it."""
        logits = keras.tree.map_structure(lambda z: ops.cast(z, "float32"), logits)
        finite = [ops.isfinite(z) for z in keras.tree.flatten(logits)]
        all_finite = ops.all(ops.stack([ops.all(f) for f in finite]))
        self._untracked.non_finite.update_state(1.0 - ops.cast(all_finite, "float32"))
        return keras.tree.map_structure(
            lambda z: ops.where(ops.isfinite(z), z, 0.0), logits
        )

    def _student_forward(self, x: Any) -> tuple[Any, dict[str, Any]]:
        extractor = self._untracked.student_extractor
        if extractor is None:
            return self(x, training=True), {}
        found = extractor(x, training=True)
        return found["outputs"], found["layers"]

    def _hard_loss(self, y: Any, y_pred: Any, sample_weight: Any) -> Any:
        if y is None or self._compile_loss is None:
            return ops.zeros((), "float32")
        return ops.cast(self._compile_loss(y, y_pred, sample_weight), "float32")

    def _soft_loss(
        self,
        targets: Any,
        hidden_targets: dict[str, Any],
        y_pred: Any,
        hidden: dict[str, Any],
        sample_weight: Any,
    ) -> Any:
        if targets is None:  # alpha = 1 and nothing teaches: plain training
            return ops.zeros((), "float32")
        if self.student_from_logits is None:
            raise ValueError(
                "the student does not say whether it gives logits or probabilities; "
                "pass student_from_logits=True or False."
            )
        logits = to_logits(y_pred, self.student_from_logits)
        temperature = self._untracked.temperature.at(self.optimizer)
        total = ops.zeros((), "float32")
        for key, objective in self._objective_by_output(y_pred):
            for weight, term in weighted_terms(objective):
                student_layer = getattr(term, "student_layer_name", None)
                teacher_layer = getattr(term, "teacher_layer_name", None)
                value = self._term_loss(
                    term,
                    _at(targets, key)
                    if teacher_layer is None
                    else hidden_targets[teacher_layer],
                    _at(logits, key)
                    if student_layer is None
                    else hidden[student_layer],
                    _at(y_pred, key)
                    if student_layer is None
                    else hidden[student_layer],
                    _at(sample_weight, key),
                    temperature,
                )
                total += weight * ops.cast(value, "float32")
        return total

    def _objective_by_output(self, y_pred: Any) -> Iterator[tuple[Any, Any]]:
        """Yields the key of an output, or `...` for all at once, and its objective."""
        if isinstance(self.objective, (dict, list, tuple)):
            yield from (
                (key, o) for key, o in by_output(self.objective) if o is not None
            )
            return
        outputs = [key for key, _ in by_output(y_pred)]
        for weight, term in weighted_terms(self.objective):
            names_layers = getattr(term, "student_layer_name", None) is not None
            # Keras's own objectives take all outputs in one structure.
            if names_layers or not isinstance(term, Objective):
                yield ..., weight * term if isinstance(term, Objective) else term
            else:
                for key in outputs:
                    yield key, weight * term

    def _term_loss(
        self,
        term: Any,
        target: Any,
        prediction: Any,
        masked: Any,
        sample_weight: Any,
        temperature: Any,
    ) -> Any:
        """Returns one term's mean over the batch, divided by the replicas.

        `masked` is the student's tensor that carries the Keras mask, if there is one.
        """
        if isinstance(term, Objective):
            values = term.loss_per_example(target, prediction, temperature)
            weight = checks.weight_for(sample_weight, len(values.shape))
            return self._untracked.reduce(values, masked, weight)
        # One of Keras's own: loss objects in it divide by the replicas, functions do not.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        divided = checks.divides_by_replicas(term) if replicas > 1 else True
        term.validate_outputs(target, prediction)
        if sample_weight is None and _mask_of(masked) is None:
            value = term.compute_loss(target, prediction)
            return value if divided else value / replicas
        checks.keras_term_splits_by_example(term)
        values = ops.vectorized_map(
            lambda pair: term.compute_loss(
                *keras.tree.map_structure(lambda one: one[None], pair)
            ),
            (target, prediction),
        )
        if divided:
            values = values * replicas
        return self._untracked.reduce(values, masked, sample_weight)

    def _regularization(self) -> Any:
        losses = [self._aggregate_additional_loss(loss) for loss in self.losses]
        return sum(losses) if losses else 0.0

    def _update_teacher_metrics(self, targets: Any, y_pred: Any) -> None:
        for metric in self._teacher_metrics:
            if targets is None:
                raise ValueError(f"metric {metric.name!r}: {checks.NOTHING_TEACHES}")
            for key, output in by_output(y_pred):
                metric.update_state(_at(targets, key), output)

    @contextlib.contextmanager
    def _only_judging(self) -> Iterator[None]:
        before, self._judging = self._judging, True
        try:
            yield
        finally:
            self._judging = before

    # Before training -----------------------------------------------------------------

    def _check_first_batch(self, x: Any, y: Any, sample_weight: Any) -> None:
        inputs = _without_soft_targets(x)
        with self.distribute_strategy.scope():
            outputs = self._student_outputs_if_unknown(inputs)
            classes = {key: o.shape[-1] for key, o in by_output(outputs)}
            if not self.trainable_weights:
                raise ValueError(
                    "the student has no trainable weights; set student.trainable = True."
                )
            self._check_teaching(x, inputs, classes)
        if y is None:
            self._check_unlabelled()
        elif self._compile_loss is None and self.alpha != 0.0:
            raise ValueError(
                f"alpha is {self.alpha} but compile() was given no loss for the labels; "
                "give one, or set alpha=0."
            )
        else:
            checks.labels(y, classes, self.loss)

    def _student_outputs_if_unknown(self, inputs: Any) -> Any:
        """Returns outputs, symbolic where the student has them, else on this batch."""
        if (
            getattr(self.student, "outputs", None)
            and self.student_from_logits is not None
        ):
            return (
                self.student.outputs[0]
                if isinstance(self.student, keras.Sequential)
                else self.student.output
            )
        outputs = self.student(
            keras.tree.map_structure(ops.convert_to_tensor, inputs), training=False
        )
        if self.student_from_logits is None:
            self.student_from_logits = values_are_logits(
                outputs, "student", "student_from_logits"
            )
            checks.loss_takes_what_student_gives(self.loss, self.student_from_logits)
        return outputs

    def _check_teaching(self, x: Any, inputs: Any, classes: dict) -> None:
        targets = x.soft_targets if isinstance(x, DistillationInputs) else None
        teacher = self._untracked.teacher
        if targets is None and teacher is None:
            if self.alpha != 1.0:
                raise ValueError(checks.NOTHING_TEACHES)
            return
        if targets is None:
            inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
            teacher.look_at(inputs)
            temperature = self._untracked.temperature.at(self.optimizer)
            targets, _ = teacher(inputs, temperature)
            checks.finite(targets, "batch 0")
        checks.same_classes(
            classes,
            {key: target.shape[-1] for key, target in by_output(targets)},
            self._distilled_outputs(),
        )

    def _check_unlabelled(self) -> None:
        if self.alpha == 1.0:
            raise ValueError(
                "the batches have no labels and alpha is 1.0, so there is nothing to "
                "learn; set alpha=0."
            )
        if self.alpha != 0.0 and not self._said_unlabelled:
            self._said_unlabelled = True
            warnings.warn(
                f"the batches have no labels, so alpha={self.alpha} has no hard loss to "
                "weigh: the loss is (1 - alpha) * soft_loss. Set alpha=0 to train on "
                "soft targets alone.",
                UserWarning,
                stacklevel=3,
            )

    def _spread_class_weight(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Gives sequence outputs their class weights, which Keras would misread."""
        if arguments.get("class_weight") is None:
            return arguments
        ranks = {len(o.shape) for o in getattr(self.student, "outputs", None) or []}
        return (
            checks.spread_class_weight(arguments)
            if max(ranks, default=2) > 2
            else (arguments)
        )


class _Knob:
    """A number in a variable, so that changing it does not retrace; or a schedule."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.schedule: LearningRateSchedule | None = None
        checks.knob(name, value)
        start = 1.0 if isinstance(value, LearningRateSchedule) else value
        self.variable = keras.Variable(
            start, trainable=False, dtype="float32", name=name
        )
        self.set(value)

    @property
    def value(self) -> Any:
        return self.number if self.schedule is None else self.schedule

    def set(self, value: Any) -> bool:
        """Sets it; returns whether traces made before are no longer right."""
        checks.knob(self.name, value)
        had_schedule = self.schedule is not None
        if isinstance(value, LearningRateSchedule):
            self.schedule = value
            return True
        self.schedule = None
        self.number = float(value)
        self.variable.assign(self.number)
        return had_schedule

    def at(self, optimizer: Any) -> Any:
        """Returns the float32 scalar in force at the optimizer's step."""
        if self.schedule is None:
            return ops.convert_to_tensor(self.variable)
        return ops.cast(self.schedule(optimizer.iterations), "float32")

    def config(self) -> Any:
        return keras.saving.serialize_keras_object(self.value)


class _Reduce(keras.losses.Loss):
    """Reduces values per example as Keras reduces any loss.

    `Loss.__call__` applies sample weights, the Keras mask of its second argument, the
    reduction and the scaling for replicas.
    """

    def __init__(self, reduction: str = "sum_over_batch_size") -> None:
        super().__init__(name="soft_loss", reduction=reduction, dtype="float32")

    def call(self, values: Any, masked: Any) -> Any:
        return values


class _TeacherWatch(keras.callbacks.Callback):
    """Stops the run at the batch for which the teacher's outputs were not finite."""

    def __init__(self, untracked: types.SimpleNamespace) -> None:
        super().__init__()
        self.untracked = untracked
        self.epoch = 0

    def on_train_begin(self, logs: Any = None) -> None:
        self.untracked.non_finite.reset_state()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.untracked.teacher is None:
            return
        bad = float(ops.convert_to_numpy(self.untracked.non_finite.result()))
        if bad > 0 or math.isnan(bad):
            raise ValueError(
                checks.not_finite(f"batch {batch} of epoch {self.epoch + 1}")
            )


def _without_soft_targets(x: Any) -> Any:
    return x.inputs if isinstance(x, DistillationInputs) else x


def _batch_size(x: Any) -> Any:
    return ops.shape(next(i for i in keras.tree.flatten(x) if i is not None))[0]


def _at(structure: Any, key: Any) -> Any:
    """Returns one output of a structure; all of it for `...` or a single output."""
    if key is None or key is ... or not isinstance(structure, (dict, list, tuple)):
        return structure
    return structure[key]


def _mask_of(outputs: Any) -> Any:
    masks = [getattr(o, "_keras_mask", None) for o in keras.tree.flatten(outputs)]
    return next((mask for mask in masks if mask is not None), None)
