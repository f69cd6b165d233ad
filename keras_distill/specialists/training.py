"""Training one specialist, in whatever process it is called."""

from __future__ import annotations

import copy
import dataclasses
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers.schedules import CosineDecay, LearningRateSchedule

from keras_distill import live_objects
from keras_distill.arguments import check_float, check_int, check_model, check_scalar
from keras_distill.distiller import Distiller
from keras_distill.inputs import inputs_for
from keras_distill.logits_or_probabilities import to_logits
from keras_distill.processes import seeded
from keras_distill.run_directory import (
    RunDirectory,
    as_json,
    checksum,
    file_digest,
)
from keras_distill.specialists import heads
from keras_distill.specialists.clusters import Cluster
from keras_distill.specialists.ensemble import check_outputs
from keras_distill.specialists.sampling import ClusterSampler, TrainingData, seed_of

GENERALIST = "generalist.keras"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a specialist's training: see `SpecialistBuilder.fit`.

    Raises:
        ValueError: if a number is out of range.
    """

    name: str
    epochs: int
    learning_rate: float
    temperature: float = 1.0
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_int(f"{self.name}_epochs", self.epochs, 0)
        check_float(
            f"{self.name}_learning_rate",
            self.learning_rate,
            "> 0",
            lambda rate: rate > 0,
        )
        for name in ("temperature", "alpha"):
            value = getattr(self, name)
            if isinstance(value, LearningRateSchedule):
                raise ValueError(f"{name} must be a number here, got {value!r}.")
            check_scalar(name, value)
        for field in dataclasses.fields(self)[1:]:  # plain numbers, for JSON
            kind = int if field.name == "epochs" else float
            object.__setattr__(self, field.name, kind(getattr(self, field.name)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What specialists are trained from and how: the keys of `settings.json`.

    Attributes:
        format: of the folder.
        generalist: its fingerprints.
        clusters: class numbers of each specialist.
        head: "dustbin" or "all".
        build_specialist: name of the function that makes specialists; `None` for the
            generalist's own architecture.
        specialists: fingerprint of the architecture for each size of a cluster.
        data: what tells the data from other data.
        stages: those with epochs, in their order.
        optimizer: configuration of a Keras optimizer.
        batch_size: int.
        seed: int.
        augment: name of the function that makes views of examples; `None` for none.

    Raises:
        ValueError: if a number is out of range, or there is no stage.
    """

    format: str = "keras_distill specialists"
    generalist: dict[str, Any] | None = None
    clusters: list[Cluster]
    head: str
    build_specialist: str | None
    specialists: list[str] | None = None
    data: dict[str, Any] | None = None
    stages: list[Stage]
    optimizer: dict[str, Any]
    batch_size: int
    seed: int
    augment: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("seed", 0)):
            value = check_int(name, getattr(self, name), least)
            object.__setattr__(self, name, value)
        if not self.stages:
            raise ValueError(
                "hard_epochs and soft_epochs are both 0, so nothing would be trained; "
                "give one of them."
            )

    def digest(self) -> str:
        """Returns what tells these settings from others."""
        return checksum(as_json(dataclasses.asdict(self)))


@dataclasses.dataclass
class Job:
    """All that a process needs to train specialists; it can be pickled.

    Attributes:
        folder: that all processes share.
        settings: what is trained and how.
        data: the labelled data.
        build_specialist: from a copy of the generalist and the number of outputs to a
            model; `None` for the generalist's own architecture.
        objects: classes and functions of the user's in the generalist, by their names in
            its file.
        augment: makes the views that are trained on; `None` for none.
    """

    folder: RunDirectory
    settings: Settings
    data: TrainingData
    build_specialist: Callable | None
    objects: dict[str, Any] = dataclasses.field(default_factory=dict)
    augment: Callable | None = None

    def train(self, index: int) -> None:
        """Trains a specialist and writes it, its record last."""
        began = time.time()
        self.folder.remove(progress_name(index))  # of a process that was killed
        with seeded(seed_of(self.settings.seed, index)):
            generalist = self.load_generalist()
            specialist = self.new_specialist(index)
            history = {}
            for number, stage in enumerate(self.settings.stages):
                history[stage.name] = self._run(specialist, generalist, index, number)
        self._write(index, specialist, history, began)

    def load_generalist(self) -> keras.Model:
        """Returns a copy of the generalist."""
        file = self.folder.file(GENERALIST)
        return live_objects.load(file, self.objects, "the generalist")

    def new_specialist(self, index: int) -> keras.Model:
        """Returns an untrained specialist.

        Raises:
            TypeError: if `build_specialist` returns no model.
            ValueError: if its model has another number of outputs.
        """
        cluster, classes = self.settings.clusters[index], self.data.classes
        head, model = self.settings.head, self.load_generalist()
        if self.build_specialist is not None:
            outputs = heads.outputs_of(head, cluster, classes)
            model = self.build_specialist(model, outputs)
            if not isinstance(model, keras.Model):
                raise TypeError(
                    f"build_specialist must return a keras.Model, got {model!r}."
                )
            check_model("the model of build_specialist", model)
            check_outputs(model, outputs, "the model of build_specialist")
        ratios = heads.log_ratio(head, cluster, self.data.counts)
        is_copy = self.build_specialist is None
        return heads.as_specialist(model, head, cluster, ratios, classes, is_copy)

    def teacher(self, generalist: keras.Model, index: int) -> Callable[[Any], Any]:
        """Returns the generalist's logits for a cluster, under the mix it is trained on."""
        cluster, head = self.settings.clusters[index], self.settings.head
        from_logits = heads.settled_logits(generalist)
        to_cluster = heads.ClusterLogits(cluster, self.data.classes)
        mix = heads.PriorCorrection(heads.log_ratio(head, cluster, self.data.counts))

        def teach(x: Any) -> Any:
            logits = to_logits(
                generalist(inputs_for(generalist, x), training=False), from_logits
            )
            logits = tf.cast(logits, tf.float32)
            return mix.as_sampled(to_cluster(logits) if head == "dustbin" else logits)

        return teach

    def sampler(self, index: int, number: int = 0) -> ClusterSampler:
        """Returns what draws the training set of a specialist's stage."""
        s, seed = self.settings, seed_of(self.settings.seed, index, number)
        cluster, relabel = s.clusters[index], s.head == "dustbin"
        return ClusterSampler(
            self.data, cluster, relabel, s.batch_size, seed, self.augment
        )

    def _run(
        self, specialist: keras.Model, generalist: keras.Model, index: int, number: int
    ) -> dict[str, list[float]]:
        stage, sampler = self.settings.stages[number], self.sampler(index, number)
        steps = sampler.steps_per_epoch
        distiller = Distiller(
            specialist,
            self.teacher(generalist, index) if stage.alpha < 1.0 else None,
            temperature=stage.temperature,
            alpha=stage.alpha,
            teacher_from_logits=True,
            student_from_logits=True,
        )
        # A copy: Keras changes what it is given.
        optimizer = keras.optimizers.get(copy.deepcopy(self.settings.optimizer))
        optimizer.learning_rate = CosineDecay(stage.learning_rate, steps * stage.epochs)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(optimizer, loss)
        progress = self.folder.file(progress_name(index))

        def epoch_ended(epoch: int, logs: Any = None) -> None:
            with open(progress, "ab") as file:
                file.write(b".")

        history = distiller.fit(
            sampler.dataset(),
            steps_per_epoch=steps,
            epochs=stage.epochs,
            verbose=0,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=epoch_ended)],
        ).history
        if not all(np.isfinite(w).all() for w in specialist.get_weights()):
            raise ValueError(
                f"a weight of specialist {index} became NaN or infinite; lower "
                f"{stage.name}_learning_rate from {stage.learning_rate:g}, or check the data."
            )
        return history

    def _write(
        self, index: int, specialist: keras.Model, history: dict, began: float
    ) -> None:
        with self.folder.whole(model_name(index)) as path:
            live_objects.save(specialist, path, f"specialist {index}")
        sampler = self.sampler(index)
        record = {
            "specialist": index,
            "cluster": list(self.settings.clusters[index]),
            "special_examples": sampler.special,
            "steps_per_epoch": sampler.steps_per_epoch,
            "history": history,
            "began": began,
            "ended": time.time(),
            "worker": f"{socket.gethostname()}:{os.getpid()}",
            "settings": self.settings.digest(),
            "digest": file_digest(self.folder.file(model_name(index))),
        }
        self.folder.write_json(record_name(index), record)

    def record(self, index: int) -> dict[str, Any] | None:
        """Returns the record of a specialist that was trained to the end, or `None`.

        It is none of this run's where the record is damaged or of other settings, or the
        model's file is another than the one that was recorded.
        """
        if not self.folder.has(model_name(index)):
            return None
        try:
            record = self.folder.read_json(record_name(index))
        except ValueError:
            return None
        wanted = {"specialist": index, "settings": self.settings.digest()}
        if record is None or any(record.get(key) != wanted[key] for key in wanted):
            return None
        file = self.folder.file(model_name(index))
        return record if record.get("digest") == file_digest(file) else None

    def epochs_done(self, indices: list[int]) -> int:
        """Returns how many epochs specialists have done, whoever trains them."""
        files = [self.folder.file(progress_name(index)) for index in indices]
        return sum(os.path.getsize(file) for file in files if os.path.exists(file))


def model_name(index: int) -> str:
    """Returns the file name of a trained specialist."""
    return f"specialist-{index:04d}.keras"


def record_name(index: int) -> str:
    """Returns the file name of what is known of a trained specialist."""
    return f"specialist-{index:04d}.json"


def progress_name(index: int) -> str:
    """Returns the name of a file of as many bytes as a specialist has done epochs."""
    return f".progress-{index:04d}"
