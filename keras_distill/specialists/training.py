"""Training one specialist, in whatever process it is called."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import run_directory
from keras_distill.distiller import Distiller
from keras_distill.outputs import to_logits
from keras_distill.processes import ProcessSettings, seeded
from keras_distill.specialists.clusters import Cluster
from keras_distill.specialists.ensemble import check_outputs
from keras_distill.specialists.heads import (
    ClusterLogits,
    PriorCorrection,
    as_specialist,
    log_ratio,
    outputs_of,
    settled_logits,
)
from keras_distill.specialists.sampling import ClusterSampler, TrainingData, seed_of

GENERALIST = "generalist.keras"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a specialist's training: see `SpecialistBuilder.fit`."""

    name: str
    epochs: int
    learning_rate: float
    temperature: float
    alpha: float


@dataclasses.dataclass
class Job:
    """All that a process needs to train specialists; it can be pickled.

    Args:
        work_dir: folder that all processes share.
        data: the labelled data.
        clusters: class numbers of each specialist.
        head: "dustbin" or "all".
        build_specialist: from a copy of the generalist and the number of outputs to a
            model; `None` for the generalist's own architecture.
        stages: those with epochs, in their order.
        optimizer: name or configuration of a Keras optimizer.
        batch_size: int.
        seed: int.
        threads: of TensorFlow in a new process; `None` leaves them.
    """

    work_dir: str
    data: TrainingData
    clusters: list[Cluster]
    head: str
    build_specialist: Callable | None
    stages: list[Stage]
    optimizer: Any
    batch_size: int
    seed: int
    threads: int | None

    def __post_init__(self) -> None:
        self.settings = ProcessSettings(self.threads)

    def train(self, index: int) -> None:
        """Trains a specialist and writes it, its record last."""
        began = time.time()
        with seeded(seed_of(self.seed, index)):
            generalist = self.load_generalist()
            specialist = self.new_specialist(index)
            history = {}
            for number, stage in enumerate(self.stages):
                history[stage.name] = self._run(
                    specialist, generalist, index, number, stage
                )
        self._write(index, specialist, history, began)

    def load_generalist(self) -> keras.Model:
        """Returns a copy of the generalist."""
        path = os.path.join(self.work_dir, GENERALIST)
        return keras.saving.load_model(path, compile=False)

    def new_specialist(self, index: int) -> keras.Model:
        """Returns an untrained specialist.

        Raises:
            TypeError: if `build_specialist` returns no model.
            ValueError: if its model has another number of outputs.
        """
        cluster, classes = self.clusters[index], self.data.classes
        model = self.load_generalist()
        if self.build_specialist is not None:
            outputs = outputs_of(self.head, cluster, classes)
            model = self.build_specialist(model, outputs)
            if not isinstance(model, keras.Model):
                raise TypeError(
                    f"build_specialist must return a keras.Model, got {model!r}."
                )
            check_outputs(model, outputs, "the model of build_specialist")
        return as_specialist(
            model,
            self.head,
            cluster,
            log_ratio(self.head, cluster, self.data.counts),
            classes,
            is_generalist=self.build_specialist is None,
        )

    def teacher(self, generalist: keras.Model, index: int) -> Callable[[Any], Any]:
        """Returns the generalist's logits for a cluster, under the mix it is trained on."""
        cluster, classes = self.clusters[index], self.data.classes
        from_logits = settled_logits(generalist)
        to_cluster = ClusterLogits(cluster, classes)
        mix = PriorCorrection(log_ratio(self.head, cluster, self.data.counts))

        def teach(x: Any) -> Any:
            logits = to_logits(generalist(x, training=False), from_logits)
            logits = tf.cast(logits, tf.float32)
            if self.head == "dustbin":
                logits = to_cluster(logits)
            return mix.as_sampled(logits)

        return teach

    def sampler(self, index: int, number: int = 0) -> ClusterSampler:
        """Returns what draws the training set of a specialist's stage."""
        return ClusterSampler(
            self.data,
            self.clusters[index],
            self.head == "dustbin",
            self.batch_size,
            seed_of(self.seed, index, number),
        )

    def _run(
        self,
        specialist: keras.Model,
        generalist: keras.Model,
        index: int,
        number: int,
        stage: Stage,
    ) -> dict[str, list[float]]:
        sampler = self.sampler(index, number)
        steps = sampler.steps_per_epoch
        taught = stage.alpha < 1.0
        distiller = Distiller(
            specialist,
            self.teacher(generalist, index) if taught else None,
            temperature=stage.temperature,
            alpha=stage.alpha,
            teacher_from_logits=True,
            student_from_logits=True,
        )
        optimizer = keras.optimizers.get(self.optimizer)
        optimizer.learning_rate = keras.optimizers.schedules.CosineDecay(
            stage.learning_rate, steps * stage.epochs
        )
        distiller.compile(
            optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        progress = os.path.join(self.work_dir, _progress_name(index))

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
                f"the weights of specialist {index} became NaN or infinite in the "
                f"{stage.name} stage; lower {stage.name}_learning_rate, which is "
                f"{stage.learning_rate:g}, or check the data."
            )
        return history

    def _write(
        self, index: int, specialist: keras.Model, history: dict, began: float
    ) -> None:
        temporary = os.path.join(
            self.work_dir, f"{run_directory.TEMPORARY}{uuid.uuid4().hex}.keras"
        )
        specialist.save(temporary)
        os.replace(temporary, os.path.join(self.work_dir, model_name(index)))
        sampler = self.sampler(index)
        record = {
            "specialist": index,
            "cluster": list(self.clusters[index]),
            "special_examples": sampler.special,
            "steps_per_epoch": sampler.steps_per_epoch,
            "history": history,
            "began": began,
            "ended": time.time(),
            "worker": f"{socket.gethostname()}:{os.getpid()}",
        }
        run_directory.write_json(
            self.work_dir, record_name(index), record, "specialists"
        )


def train_in_worker(job: Job, index: int) -> None:
    """Trains a specialist in a process of a pool."""
    job.settings.take()
    job.train(index)


def model_name(index: int) -> str:
    """Returns the file name of a trained specialist."""
    return f"specialist-{index:04d}.keras"


def record_name(index: int) -> str:
    """Returns the file name of what is known of a trained specialist."""
    return f"specialist-{index:04d}.json"


def _progress_name(index: int) -> str:
    return f".progress-{index:04d}"


def epochs_done(work_dir: str, indices: list[int]) -> int:
    """Returns how many epochs the specialists have done, whoever trains them."""
    done = 0
    for index in indices:
        with contextlib.suppress(FileNotFoundError):
            done += os.path.getsize(os.path.join(work_dir, _progress_name(index)))
    return done


def forget_progress(work_dir: str, indices: list[int]) -> None:
    """Starts the count of epochs anew."""
    for index in indices:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(work_dir, _progress_name(index)))


def read_record(work_dir: str, index: int) -> dict[str, Any] | None:
    """Returns the record of a specialist that was trained to the end, or `None`."""
    found = run_directory.read_json(work_dir, record_name(index))
    whole = os.path.exists(os.path.join(work_dir, model_name(index)))
    return found if whole else None


def as_text(value: Any) -> Any:
    """Returns what JSON makes of a value."""
    return json.loads(json.dumps(value))
