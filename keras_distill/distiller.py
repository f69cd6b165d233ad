"""The Distiller: Keras's own training step, plus the teacher."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill import (
    cached_answers,
    first_batch,
    keras_compat,
    model_pairs,
    student_outputs,
    summaries,
    xla,
)
from keras_distill.arguments import check_output_kinds
from keras_distill.faults import (
    Fault,
    check_class_weight,
    check_labels,
    faults_of,
    whole_if_small,
)
from keras_distill.feature_pairs import features_to_match
from keras_distill.features import Recorder
from keras_distill.inputs import inputs_for
from keras_distill.logits_or_probabilities import (
    in_students_form,
    said_or_found,
    to_logits,
)
from keras_distill.losses.base import PACKAGE
from keras_distill.losses.matching import (
    Matching,
    Reduce,
    check_mean_at_one_temperature,
)
from keras_distill.losses.names import check_distillation_loss
from keras_distill.losses.weights import (
    class_numbers,
    class_weight_table,
    step_weights,
    weights_by_output,
    weights_of_labels,
)
from keras_distill.metrics import TeacherAgreement, check_teacher_metrics
from keras_distill.outputs import kind_unless_open, last_layers, losses_by_key
from keras_distill.own_loss import (
    check_no_weights,
    check_own_loss,
    has_own_loss,
    own_loss,
)
from keras_distill.schedules import ScheduledScalar
from keras_distill.sharing import warn_of_order
from keras_distill.soft_targets import distillation_inputs, views
from keras_distill.soft_targets.distillation_inputs import (
    DistillationInputs,
    unpacked,
    without_soft_targets,
)
from keras_distill.soft_targets.joining import plain_errors
from keras_distill.step_state import StepState
from keras_distill.structures import (
    ModelOutputs,
    answer_for,
    at,
    by_key,
    by_output,
    in_structure_of,
    single,
)
from keras_distill.teacher import with_nan_of
from keras_distill.teachers import as_teacher
from keras_distill.training_watch import (
    TrainingWatch,
    defused,
    stop_if_bad,
    teachers_faults,
)
from keras_distill.user_functions import made_up


@keras.saving.register_keras_serializable(PACKAGE)
class Distiller(keras_compat.TrainerFixes, keras.Model):
    """Trains a student to match a teacher and the labels, by `compile` and `fit`.

        loss = alpha * hard(y, z_s) + (1 - alpha) * soft(z_t, z_s) + regularisation

    for each example, where `hard` is the loss given to `compile`, at T = 1, and `soft`
    the distillation loss. By default, for an output of K classes that exclude each other,
    `T**2 * KL(softmax(z_t / T) || softmax(z_s / T))`, in nats; of K yes/no questions
    `T**2 *` the mean over K of `KL(sigmoid(z_t / T) || sigmoid(z_s / T))`; of values the mean
    squared difference (under Keras's `CosineSimilarity`, `CosineLoss`). Which of them an
    output is, its last layer and its loss say.

    The teacher is not a part of this model. It is neither trained, tracked, saved nor
    changed; it runs with `training=False`, outside the gradient. `call`, `evaluate` and
    `predict` are the student's, at the student's cost. `evaluate` reports the hard loss,
    so that it can be compared across temperatures. After loading a saved distiller, give
    it its teacher back by `distiller.teacher = teacher`.

    Batches may be `(x, y)`, `(x, y, sample_weight)` or `x` alone (then only the soft
    loss is there, still weighed by `1 - alpha`); `x` may be a `DistillationInputs`.
    Sample weights, class weights, Keras masks and the reduction of the hard loss act on
    both terms. Labels of the hard loss's `ignore_class` have no hard loss, and the student
    learns from the teacher there; a sample weight of 0 leaves them out of both. Maps of
    classes may differ in resolution: the hard loss is at the student's own, and the soft loss
    at the teacher's, to which the student's logits are resized (see `SoftTargetLoss`).

    Args:
        student: `keras.Model`, with logits or probabilities `(batch, ..., K)` of K classes
            or K yes/no questions, or with values of any shape; or a dict or list of them.
        teacher: a `keras.Model`, a list of teachers, a path to a `.keras`, `.h5`,
            `.tflite` or `.onnx` file or a SavedModel, or a callable from a batch to outputs.
            `None` (default) if the batches bring `DistillationInputs`.
        temperature: float > 0, or a `LearningRateSchedule` of the optimizer's step.
            Default 4.
        alpha: float from 0 to 1, or such a schedule: the weight of the hard loss.
            Default 0.1.
        distillation_loss: a distillation loss of this package or of `keras.distillation`, a sum
            of them, the name of one, such as "decoupled_loss", or a dict by output name or a
            list of these, one per output; an output with `None`, or left out, is not
            distilled, and has its own loss alone. Default:
            `SoftTargetLoss()`, or `SquaredErrorLoss()` for values, for every output.
        features: hidden layers to match beside it: "auto" for what `suggest_feature_pairs`
            finds, or a list of pairs of paths `(student, teacher)`, by the mean over the pairs
            of `NormalizedFeatureLoss`; or a `FeatureLoss` of named layers, or any other loss
            on features, or a weighted sum of such. `None` (default): none.
        teacher_from_logits: bool, whether the teacher (or the cached soft targets) are
            logits (`True`) or probabilities (`False`); or a dict of bools by output name.
            `None` (default) finds out from its last layer.
        student_from_logits: the same for the student.
        teacher_average: for a list of teachers, the mean of "probabilities" at the
            temperature in force (default), or of "logits"; of values always their mean.
        output_kinds: what the student's numbers describe: "softmax", "sigmoid" or "values";
            or a dict of these by output name. `None` (default) finds out from last layer,
            loss, teacher and labels.
        name: str.
        **kwargs: passed to `keras.Model`.

    Raises:
        TypeError: if the student is not a `keras.Model`, or the teacher or distillation loss
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

    Heads of all kinds, each taught by what it is:

    >>> def heads(width):
    ...     inputs = keras.Input((8,))
    ...     hidden = keras.layers.Dense(width, activation="relu")(inputs)
    ...     return keras.Model(inputs, {
    ...         "class": keras.layers.Dense(3, activation="softmax")(hidden),
    ...         "is_big": keras.layers.Dense(1, activation="sigmoid")(hidden),
    ...         "tags": keras.layers.Dense(5, activation="sigmoid")(hidden),
    ...         "price": keras.layers.Dense(1)(hidden)})
    >>> distiller = Distiller(heads(4), heads(32))
    >>> distiller.compile("adam", {
    ...     "class": "sparse_categorical_crossentropy", "price": "mse",
    ...     "is_big": "binary_crossentropy", "tags": "binary_crossentropy"})
    >>> distiller.output_kinds
    {'class': 'softmax', 'is_big': 'sigmoid', 'tags': 'sigmoid', 'price': 'values'}

    Reference: Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*,
    arXiv:1503.02531.
    """

    # Keras's own, of no declared type.
    train_function: Any
    test_function: Any
    jit_compile: Any

    def __init__(
        self,
        student: keras.Model,
        teacher: Any = None,
        *,
        temperature: float | LearningRateSchedule = 4.0,
        alpha: float | LearningRateSchedule = 0.1,
        distillation_loss: Any = None,
        features: Any = None,
        teacher_from_logits: Any = None,
        student_from_logits: Any = None,
        teacher_average: str = "probabilities",
        output_kinds: Any = None,
        name: str = "distiller",
        **kwargs: Any,
    ) -> None:
        model_pairs.check_student_and_teacher(student, teacher)
        # The student's policy decides loss scaling; how inputs are cast, the student does.
        super().__init__(
            name=name, **{"dtype": student.dtype_policy, "autocast": False, **kwargs}
        )
        self.student = student
        self.teacher_from_logits = teacher_from_logits
        self.teacher_average = teacher_average
        self.hard_loss_tracker = keras.metrics.Mean(name="hard_loss")
        self.soft_loss_tracker = keras.metrics.Mean(name="soft_loss")
        self._judging = False
        matching = Matching(
            by_key(
                check_distillation_loss(distillation_loss), student, "distillation_loss"
            ),
            features_to_match(features, student, teacher),
        )
        output_kinds = by_key(
            check_output_kinds("output_kinds", output_kinds), student, "output_kinds"
        )
        student_from_logits = said_or_found(
            student_from_logits,
            student,
            matching.outputs_with_classes,
            "student_from_logits",
        )
        self._state = StepState(
            matching,
            ScheduledScalar("temperature", temperature),
            ScheduledScalar("alpha", alpha),
            student_from_logits,
            output_kinds,
        )
        if names := matching.layer_names("student"):
            self._state.student_recorder = Recorder(student, names, "student")
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
        return self._state.temperature.value

    @temperature.setter
    def temperature(self, value: float | LearningRateSchedule) -> None:
        if self._state.temperature.set(value):
            self._retrace()

    @property
    def alpha(self) -> float | LearningRateSchedule:
        """Weight of the hard loss, from 0 to 1, or a schedule. Setting: no retrace."""
        return self._state.alpha.value

    @alpha.setter
    def alpha(self, value: float | LearningRateSchedule) -> None:
        taught_nothing = self.alpha == 1.0 and self.teacher is None
        if self._state.alpha.set(value) or taught_nothing:
            self._retrace()

    def _retrace(self) -> None:
        """Has the step traced anew, also in the middle of `fit`."""
        if self.train_function is not None:
            self.make_train_function(force=True)
        self.test_function = None

    @property
    def teacher(self) -> Any:
        """The teacher as it was given; set it again after loading a distiller."""
        return self._state.given_teacher

    def _set_teacher(self, teacher: Any) -> None:
        model_pairs.check_student_and_teacher(self.student, teacher)
        bound, matching = None, self._state.matching
        if teacher is not None:
            bound = as_teacher(
                teacher,
                self.teacher_from_logits,
                self.teacher_average,
                matching.outputs_with_classes,
            ).matching(matching.layer_names("teacher"))
            if bound.averages_probabilities:
                check_mean_at_one_temperature(matching.terms)
        state, before = self._state, self._state.teacher
        state.teacher = bound
        try:
            student_outputs.find_kinds(self.student, state, getattr(self, "loss", None))
            self._without_xla_if_need_be()
        except ValueError:
            state.teacher = before
            raise
        state.given_teacher = teacher
        if bound is not None:
            warn_of_order(self.student, bound)
        model_pairs.bind_features(state)
        if bound is not None and bound.model is not None:
            matching.check_models(self.student, bound.model)
        self._take_loss_layers()
        self._retrace()

    def _take_loss_layers(self) -> None:
        """Has Keras train and save the layers of the distillation losses."""
        layers = self._state.matching.trainable_layers
        if [*map(id, layers)] != [*map(id, getattr(self, "loss_layers", []))]:
            self.loss_layers = layers

    @property
    def student_from_logits(self) -> Any:
        """Whether the student gives logits; a dict where its outputs differ."""
        return self._state.student_from_logits

    @property
    def output_kinds(self) -> Any:
        """What the student's outputs are, as far as is known; a dict where they differ."""
        return self._state.matching.kinds

    @property
    def distillation_loss(self) -> Any:
        """The distillation loss, or the losses by output."""
        return self._state.matching.distillation_loss

    @property
    def features(self) -> Any:
        """The losses on hidden layers that are matched beside the distillation loss."""
        return self._state.matching.features

    @property
    def teacher_layer_names(self) -> list[str]:
        """Names of the teacher's hidden layers that the distillation loss matches."""
        return list(self._state.matching.layer_names("teacher"))

    @property
    def output_names(self) -> list[str]:
        """The student's, so that losses and metrics can be given by output name."""
        return self.student.output_names

    # Shown ---------------------------------------------------------------------------

    def __repr__(self) -> str:
        if "_state" not in vars(self):  # Keras may say of what it makes that it failed
            return super().__repr__()
        return summaries.in_a_line(self.name, self.student, self._state)

    __str__ = __repr__

    def summary(self, *args: Any, **kwargs: Any) -> None:
        """Prints Keras's own table, and below it what is distilled.

        That is: student and teacher with their numbers of parameters, the ratio of these,
        temperature and alpha, and for each output its kind and both losses.

        Args:
            *args: as `keras.Model.summary` takes them.
            **kwargs: likewise; `print_fn` is given every line.
        """
        given = inspect.signature(super().summary).bind(*args, **kwargs).arguments
        super().summary(*args, **kwargs)
        write = given.get("print_fn") or print
        loss = getattr(self, "loss", None)
        for line in summaries.lines_of(self.student, self._state, loss):
            write(line)

    # The step ------------------------------------------------------------------------

    def train_step(self, data: Any) -> dict[str, Any]:
        """Keras's own step, plus the teacher."""
        state, (x, y, sample_weight) = self._state, self._unpacked(data)
        state.labelled = y is not None
        temperature, alpha, found = state.scalars_at(self.optimizer)
        teacher = self._teacher_outputs(x, temperature)
        x = without_soft_targets(x)

        with tf.GradientTape() as tape:
            y_pred, layers = self._student_outputs(x)
            self._settle_kinds(y, y_pred)
            teacher, of_teacher = teachers_faults(teacher, y_pred, state.teacher)
            found += of_teacher + self._label_faults(y, y_pred, sample_weight)
            is_good = state.counter.noted(found)
            teacher, y, sample_weight = defused((teacher, y, sample_weight), is_good)
            kinds = state.matching.kinds
            teacher = in_students_form(teacher, y_pred, kinds)
            sample_weight = step_weights(
                sample_weight, state.class_weight, y, y_pred, kinds
            )
            # A term whose weight is 0 is left out, whatever it is.
            has_hard, has_soft = alpha > 0.0, alpha < 1.0
            outputs, layers = keras_compat.gated((y_pred, layers), has_soft)
            student = ModelOutputs(
                outputs, to_logits(outputs, self.student_from_logits, kinds), layers
            )
            soft_loss = self._soft_loss(
                teacher,
                student,
                sample_weight,
                temperature,
                self._class_numbers(y, y_pred),
            )
            # One after the other: the hard loss takes the room that the teacher has left.
            with tf.control_dependencies([soft_loss]):
                hard_loss = self.compute_loss(
                    x, y, keras_compat.gated(y_pred, has_hard), sample_weight
                )
            if len(hard_loss.shape):
                raise ValueError(
                    "the loss gives a number for each example, and a step needs one for the "
                    'batch; leave out reduction=None, or use reduction="sum".'
                )
            regularization = self._regularization()
            # Regularisation counts whole; compute_loss has it in the hard loss already.
            loss = ops.where(has_hard, alpha * hard_loss, 0.0) + ops.where(
                has_soft, (1.0 - alpha) * (soft_loss + regularization), 0.0
            )
            # Nothing is learned from a batch with a fault.
            loss = ops.where(is_good, loss, 0.0)
            scaled_loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, self.trainable_weights)
        self.optimizer.apply_gradients(
            zip(gradients, self.trainable_weights, strict=True)
        )

        size = _batch_size(x)
        self._add_to_mean(keras_compat.loss_tracker(self), loss, size)
        self._add_to_mean(self.hard_loss_tracker, hard_loss - regularization, size)
        self._add_to_mean(self.soft_loss_tracker, soft_loss, size)
        self._update_teacher_metrics(teacher, y_pred)
        return self.step_logs(self.compute_metrics(x, y, y_pred, sample_weight))

    def _unpacked(self, batch: Any) -> tuple[Any, Any, Any]:
        """Returns a batch's parts, those by output name in the structure of the outputs."""
        x, y, sample_weight = unpacked(batch)
        if self._has_own_loss:
            check_no_weights(self.student, sample_weight)
            return x, y, sample_weight
        y, sample_weight = (
            in_structure_of(given, self.student, what)
            for given, what in ((y, "labels"), (sample_weight, "sample_weight"))
        )
        return x, y, sample_weight

    def _settle_kinds(self, y: Any, y_pred: Any) -> None:
        """Settles what each output is, in a loop of one's own that no look comes before."""
        if not self._state.kinds_settled:
            shapes = {key: tuple(out.shape) for key, out in by_output(y_pred)}
            y = None if self._has_own_loss else y
            student_outputs.find_kinds(self.student, self._state, self.loss, y, shapes)

    def _label_faults(self, y: Any, y_pred: Any, sample_weight: Any) -> list[Fault]:
        """Returns what may be wrong with the labels and weights of a batch."""
        if self._has_own_loss:
            return []
        shapes = {key: tuple(out.shape) for key, out in by_output(y_pred)}
        masks = {key: keras_compat.mask_of(out) for key, out in by_output(y_pred)}
        loss = first_batch.loss_of_labels(
            self.student, self._state, self.loss, y, shapes
        )
        return list(faults_of(y, shapes, loss, sample_weight, masks))

    def _teacher_outputs(self, x: Any, temperature: Any) -> ModelOutputs | None:
        """Returns what the teacher says of a batch; `None` if alpha = 1 needs nothing."""
        cached = x.soft_targets if isinstance(x, DistillationInputs) else None
        names = self.teacher_layer_names
        if cached is not None:
            cached = cached_answers.cached_logits(cached, self._state, temperature)
        if cached is not None and self.teacher_from_logits is False:
            cached = to_logits(cached, False, self.output_kinds)
        if cached is not None and all(name in x.layers for name in names):
            layers = {name: x.layers[name] for name in names}
            return ModelOutputs(cached, cached, layers)
        if self._state.teacher is None:
            if self.alpha == 1.0:
                return None
            raise ValueError(
                first_batch.NOTHING_TEACHES
                if cached is None
                else first_batch.CACHED_WITHOUT_LAYERS
            )
        outputs = self._state.teacher(without_soft_targets(x), temperature)
        outputs = keras.tree.map_structure(ops.stop_gradient, outputs)
        if not self._state.teacher.accepts_nan:
            inputs = self._state.teacher.inputs_of(without_soft_targets(x))
            outputs = with_nan_of(inputs, outputs)
        if cached is not None:
            outputs = outputs._replace(logits=cached)
        return outputs

    def _student_outputs(self, x: Any) -> tuple[Any, dict[str, Any]]:
        """Runs the student once, for training; returns its outputs and matched layers."""
        recorder = self._state.student_recorder
        layers: dict[str, Any] = {}
        if recorder is None:
            outputs = self(x, training=True)
        else:
            outputs, layers = recorder(lambda: self(x, training=True))
        if not all(
            answer_for(self.student_from_logits, key) is not None
            or answer_for(self.output_kinds, key) == "values"
            for key, _ in by_output(outputs)
        ):
            raise ValueError(
                "the student does not say whether it gives logits or probabilities; "
                "pass student_from_logits=True or False."
            )
        return outputs, layers

    def _soft_loss(
        self,
        teacher: ModelOutputs | None,
        student: ModelOutputs,
        sample_weight: Any,
        temperature: Any,
        labels: Any,
    ) -> Any:
        if teacher is None:
            return ops.zeros((), "float32")
        return self._state.matching(
            teacher, student, sample_weight, temperature, labels
        )

    def _class_numbers(self, y: Any, y_pred: Any) -> Any:
        """Returns the labels as numbers of classes, where a distillation loss takes them."""
        compared = self._state.matching.compared_by_label(
            [key for key, _ in by_output(y_pred)]
        )
        if not compared:
            return None
        if y is None:
            raise ValueError(first_batch.NO_LABELS_TO_COMPARE_BY)
        losses = losses_by_key(self.student, self.loss)
        return class_numbers(y, y_pred, losses, compared)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the hard loss plus regularisation: what `evaluate` reports."""
        if y is not None and self._has_own_loss:
            return own_loss(self.student, x, y, y_pred, training)
        if y is None or self.loss is None:
            return self._regularization()
        sample_weight = weights_by_output(sample_weight, y_pred)
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return ops.cast(loss, "float32")

    @property
    def _has_own_loss(self) -> bool:
        return has_own_loss(self.student, getattr(self, "loss", None))

    def _regularization(self) -> Any:
        # Divided by the replicas, as Keras does, so that gradients add up.
        replicas = self.distribute_strategy.num_replicas_in_sync
        losses = [ops.cast(loss, "float32") / replicas for loss in self.losses]
        return sum(losses) if losses else ops.zeros((), "float32")

    def _add_to_mean(self, mean: keras.metrics.Mean, loss: Any, size: Any) -> None:
        """Does `mean.update_state(loss, size)` for two scalars, in a third of the ops."""
        loss = loss * self.distribute_strategy.num_replicas_in_sync
        mean.total.assign_add(ops.cast(loss * size, mean.dtype))
        mean.count.assign_add(ops.cast(size, mean.dtype))

    def _update_teacher_metrics(
        self, teacher: ModelOutputs | None, y_pred: Any
    ) -> None:
        judged = self._state.matching.outputs_with_classes
        for metric in self._state.teacher_metrics:
            if teacher is None:
                raise ValueError(
                    f"metric {metric.name!r}: {first_batch.NOTHING_TEACHES}"
                )
            for key, output in by_output(y_pred):
                if judged is None or key in judged:
                    from_logits = answer_for(self.student_from_logits, key)
                    kind = answer_for(self.output_kinds, key)
                    logits = to_logits(output, from_logits, kind)
                    mask = keras_compat.mask_of(output)
                    metric.add(at(teacher.logits, key), logits, kind, mask)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Keras's own step; the teacher runs only if a metric asks for it."""
        with self._only_judging():
            state, (x, y, sample_weight) = self._state, self._unpacked(data)
            y_pred = self(x, training=False)
            found = self._label_faults(y, y_pred, sample_weight)
            if state.teacher_metrics:
                self._settle_kinds(y, y_pred)
                temperature, _, of_schedules = state.scalars_at(self.optimizer)
                teacher, of_teacher = teachers_faults(
                    self._teacher_outputs(x, temperature), y_pred, state.teacher
                )
                teacher = in_students_form(teacher, y_pred, self.output_kinds)
                found += of_schedules + of_teacher
            elif y is None:
                raise ValueError(
                    "the evaluation data has no labels; give them, or compile with "
                    "metrics=[TeacherAgreement()]."
                )
            if found:
                is_good = state.judging_counter.noted(found)
                y, sample_weight = defused((y, sample_weight), is_good)
            if state.teacher_metrics:
                self._update_teacher_metrics(teacher, y_pred)
            loss = self.compute_loss(x, y, y_pred, sample_weight, training=False)
            self._state.judges_labels = y is not None
            size = _batch_size(without_soft_targets(x))
            self._add_to_mean(keras_compat.loss_tracker(self), loss, size)
            return self.step_logs(self.compute_metrics(x, y, y_pred, sample_weight))

    def predict_step(self, data: Any) -> Any:
        """Keras's own step, also for bare `DistillationInputs`."""
        return self(unpacked(data)[0], training=False)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Updates the metrics given to `compile`, where there are labels."""
        if y is None:
            return self.get_metrics_result()
        return super().compute_metrics(x, y, y_pred, sample_weight)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras's; while judging, without losses that are not judged."""
        state, left_out = self._state, []
        labelled = state.judges_labels if self._judging else state.labelled
        if not labelled:
            left_out += keras_compat.metrics_of_labels(self)
        if self._judging:
            left_out += [self.hard_loss_tracker, self.soft_loss_tracker]
            if not labelled or (self.loss is None and not self._has_own_loss):
                left_out.append(keras_compat.loss_tracker(self))
        return [
            metric
            for metric in [*super().metrics, *state.teacher_metrics]
            if not any(metric is one for one in left_out)
            # Metrics of labels do not exist until a batch brought labels.
            and getattr(metric, "built", True)
        ]

    def reset_metrics(self) -> None:
        """Resets all metrics, also those that the last data had no labels for."""
        for metric in [*super().metrics, *self._state.teacher_metrics]:
            metric.reset_state()

    @contextlib.contextmanager
    def _only_judging(self) -> Iterator[None]:
        before, self._judging = self._judging, True
        try:
            yield
        finally:
            self._judging = before

    # Keras's interface ---------------------------------------------------------------

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the student's outputs."""
        inputs = without_soft_targets(inputs)
        return self.student(inputs_for(self.student, inputs, "student"))

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
            optimizer: as for `keras.Model.compile`. Default "rmsprop".
            loss: the hard loss. It may be left out if alpha is 0, or if the student was
                compiled and has a `compute_loss` of its own, as a KerasHub detector: then
                that is the hard loss, and takes the labels as they come.
            loss_weights: as for `keras.Model.compile`; acts on the hard loss.
            metrics: as for `keras.Model.compile`; in a list, `TeacherAgreement` too.
            **kwargs: as for `keras.Model.compile`.

        Raises:
            ValueError: if the loss, or its `from_logits`, disagrees with the student's last
                layer or the teacher's.
        """
        loss, loss_weights = student_outputs.losses_by_output(
            self.student, loss, loss_weights
        )
        self._state.kinds_settled = False
        student_outputs.find_kinds(self.student, self._state, loss)
        check_teacher_metrics(metrics, kwargs.get("weighted_metrics"))
        self._state.user_metrics = metrics
        self._state.teacher_metrics = []
        if isinstance(metrics, (list, tuple)):
            teach = [isinstance(metric, TeacherAgreement) for metric in metrics]
            pairs = list(zip(metrics, teach, strict=True))
            self._state.teacher_metrics = [metric for metric, is_one in pairs if is_one]
            metrics = [metric for metric, is_one in pairs if not is_one]
        self._state.jit_compile = kwargs.get("jit_compile", "auto")
        if not kwargs.get("run_eagerly"):
            self._compiles_by_xla()
        super().compile(
            optimizer, loss, loss_weights, metrics=metrics or None, **kwargs
        )
        self._without_xla_if_need_be()
        if loss is None:
            keras_compat.forget_loss(self)
        reductions = [
            term.reduction
            for term in keras.tree.flatten(loss)
            if isinstance(term, keras.losses.Loss) and term.reduction
        ]
        self._state.matching.reduce = Reduce(*reductions[:1])

    def _compiles_by_xla(self) -> bool:
        """Tells whether XLA may compile the teacher; refuses it where it must."""
        reason = xla.why_not(self._state.teacher)
        if reason is not None and self._state.jit_compile is True:
            raise xla.refused(reason)
        return reason is None

    def _without_xla_if_need_be(self) -> None:
        if self.compiled and self.jit_compile and not self._compiles_by_xla():
            self.jit_compile = False
            self._retrace()

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trains the student as `keras.Model.fit` does, after a look at the first batch.

        Args:
            x: as for `keras.Model.fit`.
            y: as for `keras.Model.fit`.
            *args: as for `keras.Model.fit`.
            **kwargs: as for `keras.Model.fit`.

        Returns:
            `keras.callbacks.History`, of `loss`, `hard_loss`, `soft_loss` and the metrics; of
            `temperature` and `alpha`, in the last step of each epoch, where they are
            schedules, and where a `keras.callbacks.TensorBoard` draws them.

        Raises:
            ValueError: before training, if the data is empty, labels are of the wrong
                kind or out of range, nothing teaches, or the teacher's first answer is
                not finite or has other classes; during it, if a later answer of the
                teacher is not finite, naming the batch, at the latest 100 batches after
                it and at the epoch's end (the student has learned nothing from it); or
                if an example is not the one that cached soft targets were written for,
                naming the example.
        """
        given = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        if not self.compiled:
            return super().fit(**given)
        weights = given.get("sample_weight")
        first_batch.check_arrays(self.student, x, y, weights)
        if "validation_data" in given:
            validation = distillation_inputs.as_data(given["validation_data"])
            is_bare = isinstance(validation, DistillationInputs)
            given["validation_data"] = (validation,) if is_bare else validation
        if isinstance(x, tf.data.Dataset):
            given["x"] = distillation_inputs.as_data(x)
            # Keras warns that its own default, True, has no effect on these.
            given.setdefault("shuffle", False)
        # In the step, where the shapes of labels and outputs are known.
        state, class_weight = self._state, given.pop("class_weight", None)
        class_weight = check_class_weight(class_weight)
        if class_weight and given.get("sample_weight") is not None:
            raise ValueError("give class_weight or sample_weight, not both.")
        if class_weight:
            state.class_weight = class_weight
            self._retrace()
        whole = whole_if_small(y), whole_if_small(given.get("sample_weight"))
        labels, weights = _arrays_of(given.get("validation_data"))

        def check(batch: Any) -> None:
            self._check_first_batch(batch, *whole)
            self._check_labels(
                whole_if_small(labels), whole_if_small(weights), "the validation data"
            )

        watch = state.watch = TrainingWatch(
            state.counter, (state.temperature, state.alpha), check
        )
        callbacks: Any = given.get("callbacks")
        is_list = isinstance(callbacks, keras.callbacks.CallbackList)
        watch.is_drawn = any(
            isinstance(one, keras.callbacks.TensorBoard)
            for one in keras.tree.flatten(
                callbacks.callbacks if is_list else callbacks or []
            )
        )
        watch.set_model(self)  # under a strategy it looks before Keras would
        if is_list:
            watch.set_params(callbacks.params or {})
            callbacks.callbacks.insert(0, watch)
        else:
            given["callbacks"] = [watch, *keras.tree.flatten(callbacks or [])]
        try:
            read = [given["x"], given.get("validation_data")]
            first = given.get("initial_epoch", 0)
            with views.running(read, first) as watch.run, plain_errors():
                return super().fit(**given)
        finally:
            state.watch = None
            if class_weight:  # of this fit alone
                state.class_weight = None
                self._retrace()
            if is_list:
                callbacks.callbacks.remove(watch)

    def make_train_function(self, force: bool = False) -> None:
        """Makes Keras's training function, with a look at what comes first and after.

        Args:
            force: whether to make it anew.
        """
        made_before = self.train_function
        super().make_train_function(force)
        if self.train_function is not made_before:
            self.train_function = self._watched(self.train_function)

    def _watched(self, function: Any) -> Any:
        def made_anew() -> Any:
            self._retrace()
            return self.train_function

        run = self._with_fallback(function, made_anew)

        def watched(batches: Any) -> Any:
            watch = self._state.watch
            if watch is None:  # train_on_batch
                logs = run(batches)
                # A trace that was made before says nothing of this batch.
                self._state.labelled = not set(logs) <= self._names_without_labels
                return logs
            batches = watch.begin(batches, self.steps_per_execution)
            if self.train_function is not watched:  # what came first asks for another
                return self.train_function(batches)
            logs = run(batches)
            watch.step_done(self.steps_per_execution)
            return logs

        return watched

    def make_test_function(self, force: bool = False) -> None:
        """Makes Keras's function for `evaluate`, which notes if there were labels.

        Args:
            force: whether to make it anew.
        """
        made_before = self.test_function
        super().make_test_function(force)
        function = self.test_function
        if function is made_before:
            return

        def made_anew() -> Any:
            self.make_test_function(force=True)
            return self.test_function

        run = self._with_fallback(function, made_anew)

        def judged(batches: Any) -> Any:
            with self._only_judging():
                logs = run(batches)
            names = {metric.name for metric in self._state.teacher_metrics}
            self._state.judges_labels = not set(logs) <= names
            return logs

        self.test_function = judged

    def _with_fallback(self, function: Any, made_anew: Any) -> xla.Fallback:
        return xla.Fallback(
            self,
            lambda: self._state.jit_compile,
            lambda batches: function(self._prepared(batches)),
            made_anew,
        )

    def _prepared(self, batches: Any) -> Any:
        """Makes the variables of a step beforehand; returns its batches.

        TensorFlow traces a step that makes variables twice, or refuses it.
        """
        if isinstance(batches, tf.distribute.DistributedIterator):
            return batches  # Keras has made them
        if isinstance(batches, tf.data.Iterator):
            example = batches.element_spec
        else:
            example = next(batches)
            batches = itertools.chain([example], batches)
        if not self._judging or self._state.teacher_metrics:
            x = unpacked(example)[0]
            student_outputs.hold_to_kinds(x, self.student, self._state)
            cached_answers.check_cached_temperature(x, self._state)
        if not self.student.built:
            return batches
        if not (self._judging or self.optimizer.built):
            self.optimizer.build(self.trainable_variables)
        outputs = student_outputs.known_outputs(self.student, self._state)
        if outputs is not None:
            keras_compat.build_loss_and_metrics(self, unpacked(example)[1], outputs)
        return batches

    @property
    def _names_without_labels(self) -> set[str]:
        """Names of what a step shows of a batch without labels."""
        teacher_metrics = [metric.name for metric in self._state.teacher_metrics]
        return {"loss", "hard_loss", "soft_loss", *teacher_metrics}

    def first_batch_seen(self, batch: Any) -> None:
        """Looks at the batch that Keras builds on, under a `tf.distribute` strategy."""
        if self._state.watch is not None:
            self._state.watch.first(batch)

    def check_first_batch(self, batch: tuple) -> None:
        """Checks what one batch can tell before `fit`, as `fit` does.

        Args:
            batch: `x`, `(x, y)` or `(x, y, sample_weight)`.

        Raises:
            ValueError: as `fit` does before training.
        """
        self._check_first_batch(batch)

    def _check_first_batch(
        self, batch: Any, all_labels: Any = None, all_weights: Any = None
    ) -> None:
        state, (x, y, sample_weight) = self._state, unpacked(batch)
        if state.class_weight and sample_weight is not None:
            raise ValueError(
                "the data brings sample weights, so class_weight cannot be given too."
            )
        is_built_by_data = not getattr(self.student, "inputs", None)
        with self.distribute_strategy.scope():
            if not (self.student.built and self.trainable_weights):
                inputs = inputs_for(self.student, without_soft_targets(x), "student")
                self.student(_as_tensors(inputs), training=False)
            if not self.trainable_weights:
                raise ValueError(
                    "the student has no trainable weights; set student.trainable = True."
                )
            if self._has_own_loss:
                inputs = inputs_for(self.student, without_soft_targets(x), "student")
                inputs, labels = _as_tensors((inputs, y))
                check_own_loss(
                    self.student, inputs, labels, sample_weight, state.class_weight
                )
            first_batch.check_first_batch(
                self.student,
                state,
                self.loss,
                self.teacher_from_logits,
                x,
                *(
                    given
                    if self._has_own_loss
                    else in_structure_of(given, self.student, what)
                    for given, what in (
                        (y if all_labels is None else all_labels, "labels"),
                        (
                            sample_weight if all_labels is None else all_weights,
                            "sample_weight",
                        ),
                    )
                ),
            )
        self._take_loss_layers()  # which features' shapes have made
        state.labelled = y is not None
        if is_built_by_data:
            state.inputs = keras.tree.map_structure(
                lambda one: keras.KerasTensor((None, *one.shape[1:]), one.dtype),
                _as_tensors(without_soft_targets(x)),
            )
        self._without_xla_if_need_be()

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Judges the student as `keras.Model.evaluate` does: hard loss and metrics.

        Args:
            x: as for `keras.Model.evaluate`.
            *args: as for `keras.Model.evaluate`.
            **kwargs: as for `keras.Model.evaluate`.

        Returns:
            As `keras.Model.evaluate`.

        Raises:
            ValueError: if there are no labels and no metric that does without, or labels
                or weights are wrong, naming the batch.
        """
        bound = inspect.signature(super().evaluate).bind(x, *args, **kwargs)
        given = bound.arguments
        labels, weights = given.get("y"), given.get("sample_weight")
        first_batch.check_inputs(self.student, x, labels, weights)
        if self.compiled:
            self._check_labels(
                whole_if_small(given.get("y")),
                whole_if_small(given.get("sample_weight")),
                "the evaluation data",
            )
        given["x"] = distillation_inputs.as_data(x)
        counter = self._state.judging_counter
        counter.reset()
        with self._only_judging(), plain_errors():
            judged = super().evaluate(*bound.args, **bound.kwargs)
        stop_if_bad(counter, "the evaluation data")
        return judged

    def _check_labels(self, y: Any, sample_weight: Any, where: str) -> None:
        """Refuses arrays of labels and weights, as far as outputs are known."""
        outputs = student_outputs.known_outputs(self.student, self._state)
        if outputs is not None and not self._has_own_loss:
            y = in_structure_of(y, self.student, "labels")
            sample_weight = in_structure_of(
                sample_weight, self.student, "sample_weight"
            )
            shapes = {key: tuple(out.shape) for key, out in by_output(outputs)}
            check_labels(y, shapes, self.loss, sample_weight, where)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the student's outputs, as `keras.Model.predict` does.

        Args:
            x: as for `keras.Model.predict`; may be joined with cached soft targets.
            *args: as for `keras.Model.predict`.
            **kwargs: as for `keras.Model.predict`.

        Returns:
            As `keras.Model.predict`.
        """
        first_batch.check_inputs(self.student, x)
        with plain_errors():
            return super().predict(distillation_inputs.as_data(x), *args, **kwargs)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Trains on one batch, as `keras.Model.train_on_batch` does.

        Args:
            x: as for `keras.Model.train_on_batch`.
            y: as for `keras.Model.train_on_batch`.
            sample_weight: as for `keras.Model.train_on_batch`.
            class_weight: as for `keras.Model.train_on_batch`.
            return_dict: as for `keras.Model.train_on_batch`.

        Returns:
            As `keras.Model.train_on_batch`.

        Raises:
            ValueError: if labels or weights are wrong, or the teacher's answer has NaN or
                infinity.
        """
        first_batch.check_inputs(self.student, x, y, sample_weight)
        if self._has_own_loss:
            check_no_weights(self.student, sample_weight, class_weight or None)
        teacher = self._state.teacher
        is_new = teacher is not None and not teacher.has_answered
        if self.compiled and (is_new or self._state.matching.waits_for_shapes):
            self._check_first_batch((x, y, sample_weight))
        self._check_labels(y, sample_weight, "this batch")
        outputs = student_outputs.known_outputs(self.student, self._state)
        if (table := check_class_weight(class_weight)) and y is not None:
            if sample_weight is not None:
                raise ValueError("give class_weight or sample_weight, not both.")
            if hasattr(outputs, "shape"):  # Keras takes tags of a sequence for one-hot
                weights = class_weight_table(table, outputs.shape, self.output_kinds)
                sample_weight = weights_of_labels(weights, y, outputs)
                table = None
        self._state.counter.reset()
        with plain_errors():
            logs = super().train_on_batch(x, y, sample_weight, table, return_dict)
        stop_if_bad(self._state.counter, "")
        return logs

    def test_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Judges one batch, as `keras.Model.test_on_batch` does.

        Args:
            x: as for `keras.Model.test_on_batch`.
            y: as for `keras.Model.test_on_batch`.
            sample_weight: as for `keras.Model.test_on_batch`.
            return_dict: as for `keras.Model.test_on_batch`.

        Returns:
            As `keras.Model.test_on_batch`.

        Raises:
            ValueError: if labels or weights are wrong.
        """
        self._check_labels(y, sample_weight, "this batch")
        self._state.judging_counter.reset()
        with plain_errors():
            logs = super().test_on_batch(x, y, sample_weight, return_dict)
        stop_if_bad(self._state.judging_counter, "")
        return logs

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """Exports the student, as `keras.Model.export` does.

        Args:
            *args: as for `keras.Model.export`.
            **kwargs: as for `keras.Model.export`.

        Returns:
            As `keras.Model.export`.
        """
        return self.student.export(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, serialised; the teacher is not among them."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "student": serialize(self.student),
            "temperature": self._state.temperature.config(),
            "alpha": self._state.alpha.config(),
            "distillation_loss": serialize(self._state.matching.given),
            "features": serialize(self._state.matching.features),
            "output_kinds": self._kinds_to_save(),
            "teacher_from_logits": self.teacher_from_logits,
            "student_from_logits": self.student_from_logits,
            "teacher_average": self.teacher_average,
        }

    def _kinds_to_save(self) -> Any:
        """Returns the kinds that the user said, and those that neither layer nor loss say."""
        said, found, layers = (
            self._state.output_kinds,
            self.output_kinds,
            last_layers(self.student),
        )
        losses = losses_by_key(self.student, getattr(self, "loss", None))
        kept = {
            key: answer_for(said, key)
            or (
                None
                if kind_unless_open(layers.get(key), losses.get(key))
                else answer_for(found, key)
            )
            for key in (found if isinstance(found, dict) else losses)
        }
        return single(kept)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Creates the distiller from `get_config`'s dict, without its teacher."""
        config = dict(config)
        for key in ("student", "temperature", "alpha", "distillation_loss", "features"):
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects
            )
        # JSON has no integer keys, which the outputs of a list have.
        for key in ("student_from_logits", "teacher_from_logits", "output_kinds"):
            if isinstance(config.get(key), dict):
                config[key] = {
                    int(name) if name.isdigit() else name: value
                    for name, value in config[key].items()
                }
        return cls(**config)

    def get_build_config(self) -> dict[str, Any] | None:
        """Returns what builds a student that data has built; KerasTuner keeps it too."""
        if self._state.inputs is None:
            return super().get_build_config()
        return {"inputs": keras.saving.serialize_keras_object(self._state.inputs)}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Builds the student as its data did.

        Args:
            config: of `get_build_config`.
        """
        if not (config and "inputs" in config):
            super().build_from_config(config)
            return
        self._state.inputs = keras.saving.deserialize_keras_object(config["inputs"])
        if not (self.student.built and self.student.variables):
            self.student(made_up(self._state.inputs), training=False)
        self.built = True

    def get_compile_config(self) -> dict[str, Any] | None:
        """Returns the arguments of `compile`, serialised."""
        config = super().get_compile_config()
        if config:
            config["jit_compile"] = self._state.jit_compile  # not what Keras made of it
            config["metrics"] = keras.saving.serialize_keras_object(
                self._state.user_metrics
            )
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as the saved distiller was, with the optimizer's variables made."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)


def _as_tensors(inputs: Any) -> Any:
    return keras.tree.map_structure(
        lambda one: None if one is None else ops.convert_to_tensor(one), inputs
    )


def _arrays_of(data: Any) -> tuple[Any, Any]:
    """Returns labels and weights of what `validation_data` may be; `None` for what is not."""
    is_tuple = isinstance(data, tuple) and not isinstance(data, DistillationInputs)
    return (*data, None, None, None)[1:3] if is_tuple else (None, None)


def _batch_size(x: Any) -> Any:
    first = next(part for part in keras.tree.flatten(x) if part is not None)
    return ops.cast(ops.shape(first)[0], "float32")
