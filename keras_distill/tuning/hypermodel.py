"""DistillationHyperModel: a student, its temperature and its alpha, for KerasTuner."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import keras_tuner
import tensorflow as tf

from keras_distill.arguments import check_backend, check_each, check_model
from keras_distill.distiller import Distiller
from keras_distill.losses.base import SumOfLosses
from keras_distill.losses.matching import check_distillation_loss
from keras_distill.metrics import NegativeLogLikelihood
from keras_distill.tuning import ranges
from keras_distill.tuning.carried import Students, Things

#: Other columns of `SearchResult.trials`.
_COLUMNS = frozenset(
    ["kind", "status", "best_epoch", "epochs", "worker", "began", "seconds", "message"]
)


class DistillationHyperModel(keras_tuner.HyperModel):
    """A `keras_tuner.HyperModel` whose model is a `Distiller` around a tuned student.

    Its hyperparameters are "temperature" and "alpha", then the weights of the
    distillation losses, if they are searched, then whatever `build_student` asks for.
    It works with every tuner of KerasTuner, and with one of your own; search for
    `keras_tuner.Objective("val_accuracy", "max")` or `("val_nll", "min")`. The training
    loss is of no use there: it means something else at each T and alpha.

    A range is `(low, high)`, or `(low, high, "log")` or `(low, high, "linear")`; a list
    is a list of choices; a number is fixed.

    Args:
        build_student: `fn(hp)` that returns a new `keras.Model`. If that is compiled, its
            optimizer, loss and metrics are taken over.
        teacher: anything that may teach a `Distiller`; `None` (default) if the batches
            bring cached soft targets, as `SoftTargets.join` gives them.
        temperature: T > 0, fixed, a range or choices. Default `(1.0, 20.0)`, searched by
            its logarithm.
        alpha: weight of the hard loss, from 0 to 1, fixed, a range or choices. Default
            `(0.0, 1.0)`.
        distillation_loss: as in `Distiller`; or a list of `(weight, loss)` whose weights
            may be ranges; or `fn(hp)` that returns a loss. Every trial gets a new copy.
            Default `SoftTargetLoss()`.
        optimizer: for a student that is not compiled: name, optimizer or `fn(hp)` that
            returns one. Default "adam".
        loss: for a student that is not compiled; a class of cross-entropy is given the
            right `from_logits`. Default `keras.losses.SparseCategoricalCrossentropy`.
        metrics: list, beside the metrics `accuracy` and `nll`, which are always there
            for a student with one output.
        name: of the hypermodel.
        tunable: as in `keras_tuner.HyperModel`.

    Raises:
        TypeError: if `build_student` cannot be called.
        ValueError: if a range is none, or out of range; in `build`, if the student has a
            hyperparameter by a name that is taken, or shares with an earlier trial's
            variables that training changes.

    Example:
    >>> def build_student(hp):
    ...     return keras.Sequential([
    ...         keras.Input((8,)),
    ...         keras.layers.Dense(hp.Int("width", 4, 64, sampling="log"), "relu"),
    ...         keras.layers.Dense(3)])
    >>> hypermodel = DistillationHyperModel(build_student, alpha=0.1)
    >>> hp = keras_tuner.HyperParameters()
    >>> distiller = hypermodel.build(hp)
    >>> hp.values
    {'temperature': 4.0, 'alpha': 0.1, 'width': 4}
    """

    def __init__(
        self,
        build_student: Callable[[keras_tuner.HyperParameters], keras.Model],
        teacher: Any = None,
        *,
        temperature: Any = (1.0, 20.0),
        alpha: Any = (0.0, 1.0),
        distillation_loss: Any = None,
        optimizer: Any = "adam",
        loss: Any = None,
        metrics: list | None = None,
        name: str | None = None,
        tunable: bool = True,
    ) -> None:
        check_backend()
        super().__init__(name=name, tunable=tunable)
        if not callable(build_student) or isinstance(build_student, keras.Model):
            raise TypeError(
                "build_student must be a function of the hyperparameters that returns a "
                f"new keras.Model, as in lambda hp: ...; got {build_student!r}."
            )
        ranges.check("temperature", temperature, "log")
        ranges.check("alpha", alpha)
        if _is_weighted(distillation_loss):
            for weight, loss_term in distillation_loss:
                ranges.check("a weight of distillation_loss", weight)
                if loss_term is None:
                    raise TypeError(
                        "each of the weighted losses must be a distillation loss, got None."
                    )
                check_distillation_loss(loss_term)
        elif not callable(distillation_loss):
            check_distillation_loss(distillation_loss)
        self.build_student = build_student
        self.teacher = teacher
        self.temperature = temperature
        self.alpha = alpha
        self.distillation_loss = distillation_loss
        self.optimizer = optimizer
        self.loss = loss
        self.metrics = check_each(
            "metrics", [] if metrics is None else metrics, _check_metric, "metrics"
        )
        self._policy = keras.config.dtype_policy()
        self._names_are_checked = False
        self._students, self._handed_out = Students(), Things()

    def build(self, hp: keras_tuner.HyperParameters) -> Distiller:
        """Returns the compiled distiller of a trial.

        Raises:
            TypeError: if `build_student` returns no model.
            ValueError: if it returns an earlier trial's, or one that shares with it
                what training changes.
        """
        # KerasTuner clears Keras's session before every trial, and its policy with it.
        keras.config.set_dtype_policy(self._policy)
        temperature, alpha, loss = self._declare(hp)
        if not self._names_are_checked:
            self._check_names()
            self._names_are_checked = True
        student = self._student(hp)
        distiller = Distiller(
            student,
            self.teacher,
            temperature=temperature,
            alpha=alpha,
            distillation_loss=loss,
        )
        distiller.compile(**self._compile_arguments(hp, distiller))
        return distiller

    def _student(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        student = self.build_student(hp)
        if not isinstance(student, keras.Model):
            raise TypeError(
                f"build_student must return a keras.Model, got {student!r}; does it end "
                "with a return statement?"
            )
        check_model("the model of build_student", student)
        self._students.check(student)
        return student

    def _declare(self, hp: keras_tuner.HyperParameters) -> tuple[float, float, Any]:
        """Returns temperature, alpha and distillation loss of a trial."""
        return (
            ranges.declare(hp, "temperature", self.temperature, 4.0, "log"),
            ranges.declare(hp, "alpha", self.alpha, 0.1),
            self._distillation_loss(hp),
        )

    def _check_names(self) -> None:
        """Refuses a student's hyperparameters whose names have another meaning here."""
        # A trial's own may be full of values, the student's among them.
        taken, own = keras_tuner.HyperParameters(), keras_tuner.HyperParameters()
        self._declare(taken)
        self._student(own)
        for name in own.values:
            if name in taken.values or name in _COLUMNS or name.startswith("val_"):
                raise ValueError(
                    f"build_student has a hyperparameter {name!r}, a name that is taken "
                    f"here; call it 'student_{name}'."
                )

    def _distillation_loss(self, hp: keras_tuner.HyperParameters) -> Any:
        given = self.distillation_loss
        if _is_weighted(given):
            names = _names([loss for _, loss in given])
            return SumOfLosses(
                [
                    (ranges.declare(hp, name, weight), _copy(loss))
                    for name, (weight, loss) in zip(names, given, strict=True)
                ]
            )
        if callable(given):
            return keras.tree.map_structure(self._new, given(hp))
        if isinstance(given, (dict, list, tuple)):
            return keras.tree.map_structure(lambda one: one and _copy(one), given)
        return given and _copy(given)

    def _compile_arguments(
        self, hp: keras_tuner.HyperParameters, distiller: Distiller
    ) -> dict[str, Any]:
        student = distiller.student
        arguments: dict[str, Any] = {"metrics": []}
        if student.compiled:
            arguments |= _compiled_with(student)
            arguments["optimizer"] = self._new(arguments["optimizer"])
        else:
            arguments["optimizer"] = self._new(_new_optimizer(self.optimizer, hp))
            loss = self.loss or keras.losses.SparseCategoricalCrossentropy
            if isinstance(loss, type):
                loss = loss(from_logits=distiller.student_from_logits is not False)
            arguments["loss"] = loss
        arguments["metrics"] = self._with_metrics(
            arguments["metrics"], distiller, arguments["loss"]
        )
        return arguments

    def _new(self, thing: Any) -> Any:
        """Returns a loss or optimizer, as a copy if an earlier trial has had it."""
        if isinstance(thing, str) or thing is None:
            return thing
        if thing in self._handed_out:
            return _copy(thing)
        self._handed_out.add(thing)
        return thing

    def _with_metrics(self, own: Any, distiller: Distiller, loss: Any) -> Any:
        def gives_logits() -> bool:  # some students say it only when they are built
            return distiller.student_from_logits is not False

        if not isinstance(own, list):  # of a student with several outputs
            return own
        metrics = [*own, *(_copy(m) if _is_metric(m) else m for m in self.metrics)]
        outputs = getattr(distiller.student, "outputs", None) or [None]
        if len(outputs) > 1:
            return metrics
        names = {getattr(metric, "name", metric) for metric in metrics}
        if "accuracy" not in names:
            metrics.insert(0, "accuracy")
        if "nll" not in names:
            ignored = getattr(loss, "ignore_class", None)
            metrics.append(NegativeLogLikelihood(gives_logits, ignored))
        return metrics


def _new_optimizer(given: Any, hp: keras_tuner.HyperParameters) -> Any:
    if isinstance(given, keras.optimizers.Optimizer):
        return _copy(given)
    if isinstance(given, type):
        return given()
    return given(hp) if callable(given) else given


def _is_metric(value: Any) -> bool:
    return isinstance(value, keras.metrics.Metric)


def _check_metric(name: str, value: Any) -> Any:
    if isinstance(value, str) or _is_metric(value) or callable(value):
        return value
    raise ValueError(f"{name} must be a metric, its name or a function, got {value!r}.")


def _is_weighted(given: Any) -> bool:
    """Tells a list of `(weight, loss)` from losses by output."""
    return (
        isinstance(given, list)
        and len(given) > 0
        and all(isinstance(one, tuple) and len(one) == 2 for one in given)
    )


def _names(losses: list) -> list[str]:
    """Returns a name for the weight of each loss, as feature_loss_weight."""
    names: list[str] = []
    for loss in losses:
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(loss).__name__)
        name = f"{words.lower()}_weight"
        taken = sum(re.fullmatch(rf"{name}(_\d+)?", one) is not None for one in names)
        names.append(f"{name}_{taken + 1}" if taken else name)
    return names


def _copy(thing: Any) -> Any:
    """Returns a new loss, optimizer or metric: what they learn is the trial's own.

    Names of metrics are as they are.
    """
    return (
        thing if isinstance(thing, str) else type(thing).from_config(thing.get_config())
    )


def _has_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


def _compiled_with(student: keras.Model) -> dict[str, Any]:
    """Returns what a student was compiled with."""
    try:
        config = student.get_compile_config()
        kept = {
            key: keras.saving.deserialize_keras_object(config[key])
            for key in ("metrics", "weighted_metrics", "loss_weights")
            if config.get(key) is not None
        }
    except (TypeError, ValueError) as error:
        raise ValueError(
            "build_student compiles with a metric that cannot be read back; register it "
            "with @keras.saving.register_keras_serializable(), or give "
            "DistillationHyperModel(metrics=[...]) and a student that is not compiled."
        ) from error
    return {
        "optimizer": student.optimizer,
        "loss": student.loss,
        # With a GPU Keras has decided so itself, and knew nothing of the teacher.
        "jit_compile": "auto"
        if _has_gpu() and student.jit_compile
        else student.jit_compile,
        "steps_per_execution": student.steps_per_execution,
        "run_eagerly": student.run_eagerly,
        **kept,
    }
