"""DistillationHyperModel: a student, its temperature and its alpha, for KerasTuner."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import keras
import keras_tuner
import tensorflow as tf

from keras_distill.arguments import (
    check_backend,
    check_each,
    check_model,
    check_output_kinds,
)
from keras_distill.distiller import Distiller
from keras_distill.last_layers import judges_direction
from keras_distill.losses.base import SumOfLosses
from keras_distill.losses.names import check_distillation_loss, loss_named
from keras_distill.outputs import losses_by_key, settled_kinds, shapes_of
from keras_distill.structures import answer_for, by_output, in_structure_of, keys_of
from keras_distill.tuning import ranges
from keras_distill.tuning.by_kind import (
    DIRECTIONS,
    default_loss,
    default_metrics,
    default_objective,
)
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
    `keras_tuner.Objective("val_accuracy", "max")` or `("val_nll", "min")`, for several yes/no
    questions `("val_auc", "max")`, for values `("val_mean_squared_error", "min")`. The training
    loss is of no use there: it means something else at each T and alpha. Where all outputs are
    values, there is no "temperature": it would mean nothing.

    A range is `(low, high)`, or `(low, high, "log")` or `(low, high, "linear")`; a list
    is a list of choices; a number is fixed.

    Args:
        build_student: `fn(hp)` that returns a new `keras.Model`. If that is compiled, its
            optimizer, loss and metrics are taken over.
        teacher: anything that may teach a `Distiller`; `None` (default) if the batches
            bring cached soft targets, as `SoftTargets.join` gives them.
        temperature: T > 0, fixed, a range or choices. `None` (default) is `(1.0, 20.0)`,
            searched by its logarithm, where it has a meaning.
        alpha: weight of the hard loss, from 0 to 1, fixed, a range or choices. Default
            `(0.0, 1.0)`.
        distillation_loss: as in `Distiller`; or a list of names of losses, of which the
            search chooses one; or a list of `(weight, loss)` whose weights may be ranges; or
            `fn(hp)` that returns a loss. Every trial gets a new copy. Default
            `SoftTargetLoss()`.
        features: as in `Distiller`. Default `None`.
        optimizer: for a student that is not compiled: name, optimizer or `fn(hp)` that
            returns one. Default "adam".
        loss: for a student that is not compiled; a class of cross-entropy is given the
            right `from_logits`. Default by the kind of output:
            `SparseCategoricalCrossentropy` (in `search`, `CategoricalCrossentropy` for one-hot
            labels), `BinaryCrossentropy`, or `MeanSquaredError` for values.
        metrics: list, beside those that are always there for a student with one output:
            `accuracy` (of yes/no questions at the probability 0.5) and `nll`, for several
            questions `auc`, for values `mean_squared_error`. Each of several outputs has its
            own, unless there are metrics by output.
        output_kinds: as in `Distiller`.
        name: of the hypermodel.
        tunable: as in `keras_tuner.HyperModel`.

    Raises:
        TypeError: if `build_student` cannot be called.
        ValueError: if a range is none, or out of range; in `build`, if the student has a
            hyperparameter by a name that is taken, or shares with an earlier trial's
            variables that training changes; if a temperature was given for values alone, or
            nothing says what the student's single number is.

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
        temperature: Any = None,
        alpha: Any = (0.0, 1.0),
        distillation_loss: Any = None,
        features: Any = None,
        optimizer: Any = "adam",
        loss: Any = None,
        metrics: list | None = None,
        output_kinds: Any = None,
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
        if temperature is not None:
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
        elif is_choice(distillation_loss):
            for one in distillation_loss:
                loss_named(one)
        elif not callable(distillation_loss):
            check_distillation_loss(distillation_loss)
        self.build_student = build_student
        self.teacher = teacher
        self.temperature = temperature
        self.alpha = alpha
        self.distillation_loss = distillation_loss
        self.features = features
        self.optimizer = optimizer
        self.loss = loss
        self.metrics = check_each(
            "metrics", [] if metrics is None else metrics, _check_metric, "metrics"
        )
        self.output_kinds = check_output_kinds("output_kinds", output_kinds)
        #: What the outputs are, by key, as far as it is known; `None` before it was looked at.
        self._kinds: dict[Any, str | None] | None = None
        self._one_hot: set = set()
        self._policy = keras.config.dtype_policy()
        self._names_are_checked = False
        self._students, self._handed_out = Students(), Things()

    def __repr__(self) -> str:
        name = getattr(self.build_student, "__name__", repr(self.build_student))
        return (
            f"<DistillationHyperModel of {name}: temperature={self.temperature}, "
            f"alpha={self.alpha}>"
        )

    def build(self, hp: keras_tuner.HyperParameters) -> Distiller:
        """Returns the compiled distiller of a trial.

        Raises:
            TypeError: if `build_student` returns no model.
            ValueError: if it returns an earlier trial's, or one that shares with it
                what training changes.
        """
        # KerasTuner clears Keras's session before every trial, and its policy with it.
        keras.config.set_dtype_policy(self._policy)
        if not self._names_are_checked:
            own = keras_tuner.HyperParameters()
            student = self._student(own)
            if self._kinds is None:
                self._look(student)
            self._check_names(own)
            self._names_are_checked = True
        distiller = self._bare(hp)
        distiller.compile(**self._compile_arguments(hp, distiller))
        return distiller

    def uncompiled(self) -> Distiller:
        """Returns a distiller with the default hyperparameters, not compiled."""
        keras.config.set_dtype_policy(self._policy)
        own = keras_tuner.HyperParameters()
        self._student(own)
        self._check_names(own)
        self._names_are_checked = True
        return self._bare(keras_tuner.HyperParameters())

    def _bare(self, hp: keras_tuner.HyperParameters) -> Distiller:
        temperature, alpha, loss = self._declare(hp)
        return Distiller(
            self._student(hp),
            self.teacher,
            temperature=temperature,
            alpha=alpha,
            distillation_loss=loss,
            features=self.features,
            output_kinds=self.output_kinds,
        )

    # What the outputs are ------------------------------------------------------------

    def _look(self, student: keras.Model) -> None:
        """Finds the outputs' kinds without data: of models, losses and what was said."""
        hp = keras_tuner.HyperParameters()
        distiller = Distiller(
            student,
            self.teacher,
            distillation_loss=self._distillation_loss(hp),
            output_kinds=self.output_kinds,
        )
        distiller.compile(loss=self._given_loss(distiller))
        keys, _ = keys_of(student)
        self._take({key: answer_for(distiller.output_kinds, key) for key in keys})

    def settle(self, distiller: Distiller, batch: tuple, y: Any) -> None:
        """Finds what the outputs of all trials' students are, by data too.

        Args:
            distiller: of `uncompiled`.
            batch: the first of the training data.
            y: its labels, or those of all the data.

        Raises:
            ValueError: as `Distiller.fit` does before training; if the student's outputs are
                values alone, and a temperature was given.
        """
        distiller.alpha = 0.0  # with which no loss is missed
        distiller.compile(loss=self._given_loss(distiller))
        distiller.check_first_batch((batch[0], y, *batch[2:][: y is batch[1]]))
        outputs = distiller(batch[0].inputs)
        shapes = {key: tuple(output.shape) for key, output in by_output(outputs)}
        y = in_structure_of(y, distiller.student, "labels")
        found = {key: answer_for(distiller.output_kinds, key) for key in shapes}
        argument = "of search"
        kinds = settled_kinds(found, shapes, distiller.student, y, argument)
        labels = dict(by_output(y))
        self._one_hot = {
            key
            for key, shape in shapes.items()
            if len(getattr(labels.get(key), "shape", ())) == len(shape)
            and labels[key].shape[-1] == shape[-1] > 1
        }
        self._take({key: answer_for(kinds, key) for key in shapes})

    def _take(self, kinds: dict[Any, str | None]) -> None:
        self._kinds = kinds
        if self._has_temperature or self.temperature is None:
            return
        raise ValueError(
            f"temperature={self.temperature!r} was given, but the student's outputs are of the "
            "kind 'values', whose distillation loss has no temperature; leave it out."
        )

    @property
    def _has_temperature(self) -> bool:
        return set((self._kinds or {}).values()) != {"values"}

    @property
    def searched_temperature(self) -> Any:
        """What is searched of the temperature; `None` where it has no meaning."""
        if not self._has_temperature:
            return None
        return (1.0, 20.0) if self.temperature is None else self.temperature

    @property
    def metric_names(self) -> list[str]:
        """Names of the validation metrics that a student with one output is judged by."""
        kinds = list((self._kinds or {}).values())
        if len(kinds) != 1:
            return []
        kind = kinds[0] or "softmax"
        found = default_metrics(kind, 1, lambda: True)
        return [f"val_{getattr(one, 'name', one)}" for one in found]

    def objective(self, distiller: Distiller) -> str:
        """Returns the metric by which trials are compared, where none was said.

        Args:
            distiller: of a trial.

        Raises:
            ValueError: if there are several outputs.
        """
        judged = self._judged(distiller)
        if len(judged) > 1:
            known = [
                f"val_{name}_{default_objective(*one)}" for name, one in judged.items()
            ]
            direction = DIRECTIONS[default_objective(*next(iter(judged.values())))]
            raise ValueError(
                "the student has several outputs, and nothing says how much each counts when "
                "trials are compared: say by objective= which metric decides, as in "
                f'objective=keras_tuner.Objective("{known[0]}", "{direction}"); each output\'s '
                f"own are {', '.join(map(repr, known))}."
            )
        return default_objective(*next(iter(judged.values())))

    def _judged(
        self, distiller: Distiller, loss: Any = None
    ) -> dict[str, tuple[str, int, bool]]:
        """Returns kind, number of classes and whether only directions count, by output name."""
        student, kinds = distiller.student, self._kinds or {}
        names = list(getattr(student, "output_names", None) or [])
        losses = losses_by_key(student, distiller.loss if loss is None else loss)
        shapes = shapes_of(student) or dict.fromkeys(kinds, ())
        if len(names) != len(shapes) or any(isinstance(key, str) for key in shapes):
            names = list(map(str, shapes))  # Keras sorts those of a dict
        return {
            name: (
                kinds.get(key) or ("softmax" if shape[-1:] != (1,) else "sigmoid"),
                (shape[-1:] or (0,))[0],
                judges_direction(losses.get(key)),
            )
            for name, (key, shape) in zip(names, shapes.items(), strict=True)
        }

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
        searched = self.searched_temperature
        return (
            4.0
            if searched is None
            else ranges.declare(hp, "temperature", searched, 4.0, "log"),
            ranges.declare(hp, "alpha", self.alpha, 0.1),
            self._distillation_loss(hp),
        )

    def _check_names(self, own: keras_tuner.HyperParameters) -> None:
        """Refuses a student's hyperparameters whose names have another meaning here."""
        # A trial's own may be full of values, the student's among them.
        taken = keras_tuner.HyperParameters()
        self._declare(taken)
        for name in own.values:
            if (
                name in {"temperature", *taken.values}
                or name in _COLUMNS
                or name.startswith("val_")
            ):
                raise ValueError(
                    f"build_student has a hyperparameter {name!r}, a name that is taken "
                    f"here; call it 'student_{name}'."
                )

    def _distillation_loss(self, hp: keras_tuner.HyperParameters) -> Any:
        given = self.distillation_loss
        if is_choice(given):
            return loss_named(hp.Choice("distillation_loss", list(given)))
        if _is_weighted(given):
            losses = [check_distillation_loss(loss) for _, loss in given]
            return SumOfLosses(
                [
                    (ranges.declare(hp, name, weight), _copy(loss))
                    for name, (weight, _), loss in zip(
                        _names(losses), given, losses, strict=True
                    )
                ]
            )
        if callable(given):
            return keras.tree.map_structure(self._new, given(hp))
        if isinstance(given, (dict, list, tuple)):
            given = check_distillation_loss(given)
            return keras.tree.map_structure(lambda one: one and _copy(one), given)
        return given and _copy(check_distillation_loss(given))

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
            loss = self._given_loss(distiller)
            arguments["loss"] = self._default_loss(distiller) if loss is None else loss
        arguments["metrics"] = self._with_metrics(
            arguments["metrics"], distiller, arguments["loss"]
        )
        return arguments

    def _given_loss(self, distiller: Distiller) -> Any:
        """Returns the hard loss that the user gave; `None` for none."""
        student = distiller.student
        if student.compiled:
            return student.loss
        if not isinstance(self.loss, type):
            return self.loss
        if "from_logits" not in inspect.signature(self.loss).parameters:
            return self.loss()
        return self.loss(from_logits=distiller.student_from_logits is not False)

    def _default_loss(self, distiller: Distiller) -> Any:
        """Returns the hard loss of each output by its kind, in the outputs' structure.

        Raises:
            ValueError: if nothing says what an output is.
        """
        student, kinds = distiller.student, self._kinds or {}
        shapes, losses = shapes_of(student), {}
        for key in shapes or [None]:
            kind = kinds.get(key) or answer_for(distiller.output_kinds, key)
            if kind is None and shapes.get(key, (None,))[-1] == 1:
                name = "" if key is None else f" {key!r}"
                raise ValueError(
                    f"nothing says what the single number of the student's output{name} is, "
                    'a yes/no question or a value: give loss=, as "binary_crossentropy" or '
                    '"mse", or output_kinds=.'
                )
            losses[key] = default_loss(
                kind or "softmax",
                answer_for(distiller.student_from_logits, key),
                key in self._one_hot,
            )
        return losses.get(None, losses)

    def _new(self, thing: Any) -> Any:
        """Returns a loss or optimizer, as a copy if an earlier trial has had it."""
        if isinstance(thing, str) or thing is None:
            return thing
        if thing in self._handed_out:
            return _copy(thing)
        self._handed_out.add(thing)
        return thing

    def _with_metrics(self, own: Any, distiller: Distiller, loss: Any) -> Any:
        def gives_logits(
            key: Any = None,
        ) -> bool:  # some say it only when they are built
            return answer_for(distiller.student_from_logits, key) is not False

        if not isinstance(own, list):  # of a student with several outputs
            return own
        metrics = [*own, *(_copy(m) if _is_metric(m) else m for m in self.metrics)]
        judged, losses = self._judged(distiller, loss), dict(by_output(loss))
        keys = list(shapes_of(distiller.student)) or [None]
        found = {
            name: default_metrics(
                kind,
                count,
                functools.partial(gives_logits, key),
                is_direction,
                getattr(losses.get(key), "ignore_class", None),
            )
            for key, (name, (kind, count, is_direction)) in zip(
                keys, judged.items(), strict=True
            )
        }
        if len(judged) > 1:
            return metrics or found
        ((kind, *_),) = judged.values()
        if kind == "sigmoid":  # Keras's own takes logits for probabilities
            metrics = [metric for metric in metrics if metric != "accuracy"]
        names = {getattr(metric, "name", metric) for metric in metrics}
        (defaults,) = found.values()
        missing = [one for one in defaults if getattr(one, "name", one) not in names]
        first = [one for one in missing if getattr(one, "name", one) != "nll"]
        return [*first, *metrics, *(one for one in missing if one not in first)]


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


def is_choice(given: Any) -> bool:
    """Tells several names of losses, of which a search chooses, from losses by output."""
    is_list = isinstance(given, (list, tuple)) and len(given) > 0
    return is_list and all(isinstance(one, str) for one in given)


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
