"""The Distiller: Keras's own training step, plus the teacher."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import types
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill.features import layer_extractor
from keras_distill.first_batch import (
    CACHED_WITHOUT_LAYERS,
    EMPTY,
    NOTHING_TEACHES,
    check_cached_are_logits,
    check_finite,
    check_labels,
    check_loss_takes_outputs,
    check_same_shapes,
    check_student_and_teacher,
    check_teacher_metrics,
    check_top_k_can_be_matched,
    first_batch,
    shape_of_logits,
)
from keras_distill.keras_compat import MultiWorkerFit
from keras_distill.losses.base import PACKAGE
from keras_distill.losses.kl import SoftTargetLoss
from keras_distill.losses.matching import (
    Matching,
    Reduce,
    check_mean_at_one_temperature,
)
from keras_distill.losses.weights import (
    class_weight_table,
    weights_by_output,
    weights_of_labels,
)
from keras_distill.metrics import TeacherAgreement
from keras_distill.outputs import (
    ModelOutputs,
    at,
    by_output,
    gives_logits,
    is_settled,
    settle,
    shapes_of,
    symbolic_outputs,
    to_logits,
)
from keras_distill.schedules import ScheduledScalar
from keras_distill.soft_targets import views
from keras_distill.soft_targets.distillation_inputs import DistillationInputs
from keras_distill.soft_targets.joining import plain_errors
from keras_distill.teachers import as_teacher
from keras_distill.training_watch import TrainingWatch, raise_if_not_finite


@keras.saving.register_keras_serializable(PACKAGE)
class Distiller(MultiWorkerFit, keras.Model):
    """Trains a student to match a teacher and the labels, by `compile` and `fit`.

        loss = alpha * hard(y, z_s) + (1 - alpha) * soft(z_t, z_s) + regularisation

    for each example, where `hard` is the loss given to `compile`, at T = 1, and `soft`
    the distillation loss; by default `T**2 * KL(softmax(z_t / T) || softmax(z_s / T))`, in nats.

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
        distillation_loss: a distillation loss of this package or of `keras.distillation`, a sum
            of them, or a dict or list of them, one per output (`None` for an output that
            is not distilled). Default `SoftTargetLoss()`, for every output.
        teacher_from_logits: bool, whether the teacher (or the cached soft targets) are
            logits (`True`) or probabilities (`False`); or a dict of bools by output.
            `None` (default) finds out from its last layer.
        student_from_logits: the same for the student.
        teacher_average: for a list of teachers, the mean of "probabilities" at the
            temperature in force (default), or of "logits".
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

    Reference: Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*,
    arXiv:1503.02531.
    """

    train_function: Any  # Keras's own, of no declared type

    def __init__(
        self,
        student: keras.Model,
        teacher: Any = None,
        *,
        temperature: float | LearningRateSchedule = 4.0,
        alpha: float | LearningRateSchedule = 0.1,
        distillation_loss: Any = None,
        teacher_from_logits: Any = None,
        student_from_logits: Any = None,
        teacher_average: str = "probabilities",
        name: str = "distiller",
        **kwargs: Any,
    ) -> None:
        check_student_and_teacher(student, teacher)
        # The student's policy decides loss scaling and how inputs are cast.
        kwargs.setdefault("dtype", student.dtype_policy)
        super().__init__(name=name, **kwargs)
        self.student = student
        self.teacher_from_logits = teacher_from_logits
        self.teacher_average = teacher_average
        self.hard_loss_tracker = keras.metrics.Mean(name="hard_loss")
        self.soft_loss_tracker = keras.metrics.Mean(name="soft_loss")
        self._judging = False
        self._said_unlabelled = False
        # Keras tracks what is set on a model, but not what a plain object holds.
        self._untracked = types.SimpleNamespace(
            user_teacher=None,
            teacher=None,
            matching=Matching(distillation_loss or SoftTargetLoss()),
            student_from_logits=student_from_logits,
            student_extractor=None,
            teacher_metrics=[],
            user_metrics=None,
            class_weight=None,
            was_labelled=None,
            judges_loss=True,
            looks_at_first_batch=False,
            traced_before=None,
            watch=None,
            temperature=ScheduledScalar("temperature", temperature),
            alpha=ScheduledScalar("alpha", alpha),
            non_finite=keras.Variable(
                0.0,
                trainable=False,
                dtype="float32",
                # Each replica counts its own.
                synchronization="on_read",
                aggregation="sum",
                name="non_finite_teacher_batches",
            ),
        )
        if student_from_logits is None:
            self._untracked.student_from_logits = gives_logits(
                student, self._untracked.matching.outputs_with_classes
            )
        names = self._untracked.matching.layer_names("student")
        if names:
            self._untracked.student_extractor = layer_extractor(
                student, names, "student"
            )
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
            self._retrace()

    @property
    def alpha(self) -> float | LearningRateSchedule:
        """Weight of the hard loss, from 0 to 1, or a schedule. Setting: no retrace."""
        return self._untracked.alpha.value

    @alpha.setter
    def alpha(self, value: float | LearningRateSchedule) -> None:
        taught_nothing = self.alpha == 1.0 and self.teacher is None
        if self._untracked.alpha.set(value) or taught_nothing:
            self._retrace()

    def _retrace(self) -> None:
        """Has the step traced anew, also in the middle of `fit`."""
        self._untracked.traced_before = None
        if self.train_function is not None:
            self.make_train_function(force=True)
        self.test_function = None

    @property
    def teacher(self) -> Any:
        """The teacher as it was given; set it again after loading a distiller."""
        return self._untracked.user_teacher

    def _set_teacher(self, teacher: Any) -> None:
        check_student_and_teacher(self.student, teacher)
        bound, matching = None, self._untracked.matching
        if teacher is not None:
            bound = as_teacher(
                teacher,
                self.teacher_from_logits,
                self.teacher_average,
                matching.outputs_with_classes,
            )
            check_mean_at_one_temperature(bound, matching.terms)
            bound.match_layers(matching.layer_names("teacher"))
        check_same_shapes(
            shapes_of(self.student),
            {} if bound is None else bound.shapes,
            matching.outputs_with_classes,
        )
        matching.bind(self.student, None if bound is None else bound.model)
        self._untracked.user_teacher, self._untracked.teacher = teacher, bound
        # Cached as an attribute so that Keras trains and saves them.
        self.loss_layers = matching.trainable_layers
        self._retrace()

    @property
    def student_from_logits(self) -> Any:
        """Whether the student gives logits; a dict where its outputs differ."""
        return self._untracked.student_from_logits

    @property
    def distillation_loss(self) -> Any:
        """The distillation loss, or the distillation losses by output."""
        return self._untracked.matching.distillation_loss

    @property
    def output_names(self) -> list[str]:
        """The student's, so that losses and metrics can be given by output name."""
        return self.student.output_names

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
        check_loss_takes_outputs(loss, self.student_from_logits)
        check_teacher_metrics(metrics, kwargs.get("weighted_metrics"))
        teacher_metrics = []
        self._untracked.user_metrics = metrics
        if isinstance(metrics, (list, tuple)):
            teacher_metrics = [m for m in metrics if isinstance(m, TeacherAgreement)]
            metrics = [m for m in metrics if not isinstance(m, TeacherAgreement)]
        self._untracked.teacher_metrics = teacher_metrics
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
        self._untracked.matching.reduce = Reduce(*reductions[:1])

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
                teacher is not finite, naming the batch, or if an example is not the one
                that cached soft targets were written for, naming the example.
        """
        arguments = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        if not self.compiled:
            return super().fit(**arguments)
        arguments["x"] = _wrapped(arguments["x"])
        outputs = getattr(self.student, "outputs", None) and symbolic_outputs(
            self.student
        )
        is_local_dataset = isinstance(arguments["x"], tf.data.Dataset) and (
            self.distribute_strategy.num_replicas_in_sync == 1
        )
        if is_local_dataset:
            # Looked at inside the first epoch: a second iterator would advance the
            # user's shuffles, and one left unfinished can cut short a cache.
            self._untracked.traced_before = self.train_function
            self.train_function = None
        else:
            batch, arguments = first_batch(arguments)
            if batch is not None:
                outputs = self._check_first_batch(*batch)
        self._untracked.looks_at_first_batch = is_local_dataset
        self._take_class_weight(arguments, outputs)
        watch = self._untracked.watch = TrainingWatch(self._untracked)
        callbacks = arguments.get("callbacks")
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.append(watch)
        else:
            arguments["callbacks"] = [*keras.tree.flatten(callbacks or []), watch]
        if isinstance(arguments["x"], tf.data.Dataset):
            # Keras warns that its own default, True, has no effect on these.
            arguments.setdefault("shuffle", False)
        try:
            with plain_errors():
                return super().fit(**arguments)
        finally:
            views.epoch = 0
            self._untracked.watch = None
            if self._untracked.looks_at_first_batch:  # it never came to a step
                self._untracked.looks_at_first_batch = False
                self.train_function = None
            if self._untracked.class_weight is not None:
                self._untracked.class_weight = None
                self.train_function = None

    def make_train_function(self, force: bool = False) -> None:
        """Makes Keras's training function, that looks at a dataset's first batch.

        Args:
            force: whether to make it anew.
        """
        if not self._untracked.looks_at_first_batch:
            made_before = self.train_function
            super().make_train_function(force)
            if self.train_function is not made_before:
                self.train_function = self._watched(self.train_function)
            return

        def first_execution(batches: Any) -> Any:
            first = next(batches, None)
            if first is None:
                raise ValueError(EMPTY)
            self._check_first_batch(*keras.utils.unpack_x_y_sample_weight(first))
            if self._untracked.watch is not None:
                self._untracked.watch.check_schedules()
            self._untracked.looks_at_first_batch = False
            self.train_function = self._untracked.traced_before
            self.make_train_function()  # traces only if there is no trace that fits
            # Keras runs steps on any iterator of batches; this one is whole again.
            return self.train_function(itertools.chain([first], batches))

        self.train_function = first_execution

    def _watched(self, function: Any) -> Any:
        """Returns Keras's training function with a look at the teacher after each run."""

        def watched(iterator: Any) -> Any:
            logs = function(iterator)
            if self._untracked.watch is not None:
                self._untracked.watch.look(self.steps_per_execution)
            return logs

        return watched

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Judges the student as `keras.Model.evaluate` does: hard loss and metrics.

        Args:
            x: as for `keras.Model.evaluate`.
            *args: as for `keras.Model.evaluate`.
            **kwargs: as for `keras.Model.evaluate`.

        Returns:
            As `keras.Model.evaluate`.

        Raises:
            ValueError: if there are no labels and no metric that does without.
        """
        with self._only_judging(), plain_errors():
            return super().evaluate(_wrapped(x), *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the student's outputs, as `keras.Model.predict` does.

        Args:
            x: as for `keras.Model.predict`; may be joined with cached soft targets.
            *args: as for `keras.Model.predict`.
            **kwargs: as for `keras.Model.predict`.

        Returns:
            As `keras.Model.predict`.
        """
        with plain_errors():
            return super().predict(_wrapped(x), *args, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Keras's own step, plus the teacher."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        teacher = self._note_non_finite(self._ask_teacher(x))
        x = _without_soft_targets(x)

        with tf.GradientTape() as tape:
            student = self._ask_student(x)
            y_pred = student.outputs
            if self._untracked.class_weight is not None and y is not None:
                sample_weight = weights_of_labels(
                    self._untracked.class_weight, y, y_pred
                )
            sample_weight = weights_by_output(sample_weight, y_pred)
            hard_loss = self._hard_loss(y, y_pred, sample_weight)
            soft_loss = self._soft_loss(teacher, student, sample_weight)
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
        size = ops.cast(_batch_size(x), "float32")
        for tracker, value in (
            (self._loss_tracker, loss),
            (self.hard_loss_tracker, hard_loss),
            (self.soft_loss_tracker, soft_loss),
        ):
            _add_to_mean(tracker, value * replicas, size)
        self._update_teacher_metrics(teacher, y_pred)
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return self._logs(logs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Trains on one batch, as `keras.Model.train_on_batch` does.

        Args:
            *args: as for `keras.Model.train_on_batch`.
            **kwargs: as for `keras.Model.train_on_batch`.

        Returns:
            As `keras.Model.train_on_batch`.

        Raises:
            ValueError: if the teacher's answer has NaN or infinity.
        """
        logs = super().train_on_batch(*args, **kwargs)
        raise_if_not_finite(self._untracked, "this batch")
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

    def test_step(self, data: Any) -> dict[str, Any]:
        """Keras's own step; the teacher runs only if a metric asks for it."""
        with self._only_judging():
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            y_pred = self(x, training=False)
            if self._untracked.teacher_metrics:
                self._update_teacher_metrics(self._ask_teacher(x), y_pred)
            elif y is None:
                raise ValueError(
                    "the evaluation data has no labels; give them, or compile with "
                    "metrics=[TeacherAgreement()]."
                )
            loss = self.compute_loss(x, y, y_pred, sample_weight, training=False)
            self._untracked.judges_loss = (
                y is not None and self._compile_loss is not None
            )
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            self._loss_tracker.update_state(
                loss * replicas, sample_weight=_batch_size(x)
            )
            logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
            return self._logs(logs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the hard loss plus regularisation: what `evaluate` reports."""
        sample_weight = weights_by_output(sample_weight, y_pred)
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
        """Keras's; while judging, without losses that are not judged."""
        left_out = []
        if self._judging:
            left_out = [self.hard_loss_tracker, self.soft_loss_tracker]
            if not self._untracked.judges_loss:
                left_out.append(self._loss_tracker)
        return [
            metric
            for metric in [*super().metrics, *self._untracked.teacher_metrics]
            if not any(metric is one for one in left_out)
            # Metrics of labels do not exist until a batch brought labels.
            and (metric is not self._compile_metrics or metric.built)
        ]

    @property
    def teacher_layer_names(self) -> list[str]:
        """Names of the teacher's hidden layers that the distillation loss matches."""
        return list(self._untracked.matching.layer_names("teacher"))

    def check_first_batch(self, batch: tuple) -> None:
        """Checks what one batch can tell before `fit`, as `fit` does.

        Args:
            batch: `x`, `(x, y)` or `(x, y, sample_weight)`.

        Raises:
            ValueError: as `fit` does before training.
        """
        self._check_first_batch(*keras.utils.unpack_x_y_sample_weight(batch))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, serialised; the teacher is not among them."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "student": serialize(self.student),
            "temperature": self._untracked.temperature.config(),
            "alpha": self._untracked.alpha.config(),
            "distillation_loss": serialize(self.distillation_loss),
            "teacher_from_logits": self.teacher_from_logits,
            "student_from_logits": self.student_from_logits,
            "teacher_average": self.teacher_average,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Creates the distiller from `get_config`'s dict, without its teacher."""
        config = dict(config)
        for key in ("student", "temperature", "alpha", "distillation_loss"):
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects
            )
        # JSON has no integer keys, which the outputs of a list have.
        for key in ("student_from_logits", "teacher_from_logits"):
            if isinstance(config[key], dict):
                config[key] = {
                    int(name) if name.isdigit() else name: value
                    for name, value in config[key].items()
                }
        return cls(**config)

    def get_compile_config(self) -> dict[str, Any] | None:
        """Returns the arguments of `compile`, serialised."""
        config = super().get_compile_config()
        if config:
            config["metrics"] = keras.saving.serialize_keras_object(
                self._untracked.user_metrics
            )
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as the saved distiller was, with the optimizer's variables made."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    # The step's parts ----------------------------------------------------------------

    def _ask_teacher(self, x: Any) -> ModelOutputs | None:
        """Returns the teacher's answer for a batch; `None` if alpha = 1 needs none."""
        cached = x.soft_targets if isinstance(x, DistillationInputs) else None
        teacher = self._untracked.teacher
        names = self._untracked.matching.layer_names("teacher")
        if cached is not None and self.teacher_from_logits is False:
            cached = to_logits(cached, False)
        if cached is not None and all(name in x.layers for name in names):
            return ModelOutputs(
                cached, cached, {name: x.layers[name] for name in names}
            )
        if teacher is None:
            if self.alpha == 1.0:
                return None
            raise ValueError(
                NOTHING_TEACHES if cached is None else CACHED_WITHOUT_LAYERS
            )
        temperature = self._untracked.temperature.at(self.optimizer)
        answer = teacher(_without_soft_targets(x), temperature)
        answer = keras.tree.map_structure(ops.stop_gradient, answer)
        return answer if cached is None else answer._replace(logits=cached)

    def _note_non_finite(self, answer: ModelOutputs | None) -> ModelOutputs | None:
        """Counts an answer with NaN or infinity for `TrainingWatch`, and defuses it."""
        if answer is None:
            return None
        # One tensor may be both output and logits.
        tensors = {id(value): value for value in keras.tree.flatten(answer)}
        finite = [ops.all(ops.isfinite(value)) for value in tensors.values()]
        all_finite = functools.reduce(ops.logical_and, finite)
        self._untracked.non_finite.assign_add(ops.cast(~all_finite, "float32"))
        # The student outlives a broken teacher: its weights stay finite. Chosen by value:
        # a branch in the graph was slower.
        for key, value in tensors.items():
            tensors[key] = ops.where(all_finite, value, ops.zeros((), value.dtype))
        return keras.tree.map_structure(lambda value: tensors[id(value)], answer)

    def _ask_student(self, x: Any) -> ModelOutputs:
        """Runs the student once, for training."""
        extractor = self._untracked.student_extractor
        if extractor is None:
            outputs, layers = self(x, training=True), {}
        else:
            found = extractor(x, training=True)
            outputs, layers = found["outputs"], found["layers"]
        if not is_settled(self.student_from_logits):
            raise ValueError(
                "the student does not say whether it gives logits or probabilities; "
                "pass student_from_logits=True or False."
            )
        return ModelOutputs(
            outputs, to_logits(outputs, self.student_from_logits), layers
        )

    def _hard_loss(self, y: Any, y_pred: Any, sample_weight: Any) -> Any:
        if y is None or self._compile_loss is None:
            return ops.zeros((), "float32")
        return ops.cast(self._compile_loss(y, y_pred, sample_weight), "float32")

    def _soft_loss(
        self, teacher: ModelOutputs | None, student: ModelOutputs, sample_weight: Any
    ) -> Any:
        if teacher is None:
            return ops.zeros((), "float32")
        temperature = self._untracked.temperature.at(self.optimizer)
        return self._untracked.matching(teacher, student, sample_weight, temperature)

    def _regularization(self) -> Any:
        losses = [self._aggregate_additional_loss(loss) for loss in self.losses]
        return sum(losses) if losses else 0.0

    def _update_teacher_metrics(
        self, teacher: ModelOutputs | None, y_pred: Any
    ) -> None:
        for metric in self._untracked.teacher_metrics:
            if teacher is None:
                raise ValueError(f"metric {metric.name!r}: {NOTHING_TEACHES}")
            judged = self._untracked.matching.outputs_with_classes
            for key, output in by_output(y_pred):
                if judged is None or key in judged:
                    metric.update_state(at(teacher.logits, key), output)

    @contextlib.contextmanager
    def _only_judging(self) -> Iterator[None]:
        before, self._judging = self._judging, True
        try:
            yield
        finally:
            self._judging = before

    # Before training -----------------------------------------------------------------

    def _check_first_batch(self, x: Any, y: Any, sample_weight: Any) -> Any:
        """Checks what a first batch can tell; returns the student's outputs for it."""
        inputs = _without_soft_targets(x)
        with self.distribute_strategy.scope():
            outputs = self._student_outputs(inputs)
            if not self.trainable_weights:
                raise ValueError(
                    "the student has no trainable weights; set student.trainable = True."
                )
            self._check_teaching(x, inputs, outputs)
        if y is None:
            self._check_unlabelled()
        elif self._compile_loss is None and self.alpha != 0.0:
            raise ValueError(
                f"alpha is {self.alpha} but compile() was given no loss for the labels; "
                "give one, or set alpha=0."
            )
        else:
            classes = {key: o.shape[-1] for key, o in by_output(outputs)}
            check_labels(y, classes, self.loss)
        if self._untracked.was_labelled is not (y is not None):
            # Losses and metrics of labels make their variables when first traced.
            self._untracked.was_labelled = y is not None
            self._retrace()
        return outputs

    def _student_outputs(self, inputs: Any) -> Any:
        """Returns outputs, symbolic where that says enough, else on this batch."""
        if getattr(self.student, "outputs", None) and is_settled(
            self.student_from_logits
        ):
            return symbolic_outputs(self.student)
        outputs = self.student(_as_tensors(inputs), training=False)
        known = self._untracked.student_from_logits
        if known is None:  # its layers may say it now that it is built
            known = gives_logits(
                self.student, self._untracked.matching.outputs_with_classes
            )
        self._untracked.student_from_logits = settle(
            outputs, known, "student", "student_from_logits"
        )
        check_loss_takes_outputs(self.loss, self.student_from_logits)
        return outputs

    def _check_teaching(self, x: Any, inputs: Any, outputs: Any) -> None:
        cached = x.soft_targets if isinstance(x, DistillationInputs) else None
        teacher = self._untracked.teacher
        if cached is None and teacher is None:
            if self.alpha != 1.0:
                raise ValueError(NOTHING_TEACHES)
            return
        judged = self._untracked.matching.outputs_with_classes
        self._untracked.temperature.check_also(lambda number: None)
        if cached is None:
            inputs = _as_tensors(inputs)
            teacher.look_at(inputs, judged)
            answer = teacher(inputs, self._untracked.temperature.at(self.optimizer))
            check_finite(answer, "batch 0")
            targets = answer.logits
        else:
            check_cached_are_logits(cached, self.teacher_from_logits)
            check_finite(x.layers, "batch 0")
            self._untracked.matching.check_cached_layers(x.layers, self.student)
            check_top_k_can_be_matched(
                cached, self._untracked.matching.terms, self._untracked.temperature
            )
            targets = cached
        check_same_shapes(
            {key: tuple(output.shape) for key, output in by_output(outputs)},
            {key: shape_of_logits(target) for key, target in by_output(targets)},
            judged,
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

    def _take_class_weight(self, arguments: dict[str, Any], outputs: Any) -> None:
        """Takes the class weights of sequences, which Keras would misread."""
        if arguments.get("class_weight") is None or outputs is None:
            return
        if isinstance(outputs, (dict, list, tuple)) or len(outputs.shape) <= 2:
            return  # Keras's own way is right, or says what is wrong
        if arguments.get("sample_weight") is not None:
            raise ValueError("give class_weight or sample_weight, not both.")
        self._untracked.class_weight = class_weight_table(
            arguments.pop("class_weight"), outputs.shape[-1]
        )
        self._untracked.traced_before = self.train_function = None


def _wrapped(x: Any) -> Any:
    """Returns a dataset of bare `DistillationInputs` as one of 1-tuples.

    Keras would take their two fields for `x` and `y`.
    """
    if isinstance(x, tf.data.Dataset) and isinstance(
        x.element_spec, DistillationInputs
    ):
        return x.map(lambda inputs: (inputs,))
    return x


def _without_soft_targets(x: Any) -> Any:
    return x.inputs if isinstance(x, DistillationInputs) else x


def _as_tensors(inputs: Any) -> Any:
    return keras.tree.map_structure(ops.convert_to_tensor, inputs)


def _add_to_mean(mean: keras.metrics.Mean, value: Any, weight: Any) -> None:
    """Does `mean.update_state(value, weight)` for two scalars, in a third of the ops."""
    mean.total.assign_add(ops.cast(value * weight, mean.dtype))
    mean.count.assign_add(ops.cast(weight, mean.dtype))


def _batch_size(x: Any) -> Any:
    return ops.shape(next(i for i in keras.tree.flatten(x) if i is not None))[0]
