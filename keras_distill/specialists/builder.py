"""SpecialistBuilder: trains the specialists and puts the ensemble together."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_distill import live_objects, processes, progress, run_directory
from keras_distill.arguments import check_bool, check_int, check_path, check_verbose
from keras_distill.sharing import check_shares_nothing
from keras_distill.showing import model_in_brief
from keras_distill.soft_targets import views
from keras_distill.specialists import heads, training
from keras_distill.specialists.clusters import (
    Cluster,
    check_clusters,
    clusters_in_brief,
)
from keras_distill.specialists.ensemble import (
    SpecialistEnsemble,
    check_settings,
    classes_of,
)
from keras_distill.specialists.sampling import TrainingData
from keras_distill.specialists.training import GENERALIST, Job, Settings, Stage
from keras_distill.teachers import as_teacher

_REMEDY = (
    "Pass (x, y) arrays or a function that makes the dataset itself, without models or "
    "datasets from outside it, or n_jobs=1."
)
_SENDABLE = (
    "They are the functions and classes of the generalist's layers: let them hold nothing "
    "that only this process has, or pass n_jobs=1."
)
_BUILT = "the model of build_specialist"
_OWN = (
    "build_specialist must make new layers each time, or take them from the generalist that "
    "it is given, a copy of its own."
)


class SpecialistBuilder:
    """Trains one specialist for each cluster of classes, and composes the ensemble.

    Each specialist tells the classes of its cluster apart and puts all others into one,
    the dustbin. By default it is a copy of the generalist, with its weights, whose logits
    of the other classes are taken together; before training, it answers exactly as the
    generalist. Its training set is half examples of its cluster, half a random draw of
    the rest, and it is trained in two stages:

    1. on hard labels;
    2. on the generalist's soft targets for the cluster and the dustbin, together with the
       labels, by `Distiller`. This keeps it from overfitting the little data it sees.

    The answer is corrected for the training set's mix of classes (`PriorCorrection`). What
    batch normalisation remembers of its inputs is that mix's, not the data's own.

    Args:
        generalist: `keras.Model`, Functional or Sequential, with logits or probabilities
            `(batch, classes)`. It is not changed.
        clusters: class numbers of each specialist, as `cluster_classes` returns them or by
            hand; at least two clusters of at least two classes. They may overlap, and need
            not hold all classes.
        build_specialist: function `(generalist, outputs)` that returns an uncompiled
            `keras.Model` with that many logits or probabilities; `generalist` is a copy of
            its own, to take layers from. `None` (default) for the generalist's own
            architecture.
        head: "dustbin" (default): outputs are the cluster's classes and the dustbin, last.
            "all": outputs are all classes (section 6.1 of the paper).
        n: how many of the generalist's most likely classes choose the specialists of an
            example; default 1. See `SpecialistEnsemble`.

    Raises:
        TypeError: if the generalist is no model, or a cluster no sequence of classes.
        ValueError: if clusters and generalist do not fit.

    Example:
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> x, y = np.random.rand(64, 8).astype("float32"), np.arange(64) % 4
    >>> builder = SpecialistBuilder(model, clusters=[[0, 1], [2, 3]])
    >>> ensemble = builder.fit((x, y), hard_epochs=1, soft_epochs=1, verbose=False)
    >>> ensemble.predict(x, verbose=0).shape
    (64, 4)

    Reference: arXiv:1503.02531, sections 5 and 6.
    """

    def __init__(
        self,
        generalist: keras.Model,
        clusters: Sequence[Sequence[int]],
        *,
        build_specialist: Callable[[keras.Model, int], keras.Model] | None = None,
        head: str = "dustbin",
        n: int | None = 1,
    ) -> None:
        self.classes = classes_of(generalist)
        n, _ = check_settings(n, head, 0.0, 1, self.classes)
        self.clusters: list[Cluster] = check_clusters(clusters, self.classes)
        if build_specialist is not None and (
            not callable(build_specialist) or isinstance(build_specialist, keras.Model)
        ):
            raise TypeError(
                "build_specialist must be a function (generalist, outputs) that returns a "
                f"keras.Model, got {build_specialist!r}."
            )
        self.generalist = generalist
        self.build_specialist = build_specialist
        self.head = head
        self.n = n
        #: After `fit`, one dict per specialist: history, seconds, worker.
        self.records: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        return (
            f"<SpecialistBuilder of {model_in_brief(self.generalist)}: "
            f"{clusters_in_brief(self.clusters, self.classes)}>"
        )

    def fit(
        self,
        data: Any,
        *,
        hard_epochs: int = 8,
        hard_learning_rate: float = 2e-3,
        soft_epochs: int = 2,
        soft_learning_rate: float = 5e-4,
        temperature: float = 2.0,
        alpha: float = 0.5,
        optimizer: Any = "adam",
        batch_size: int = 128,
        batched: bool | None = None,
        augment: Callable | None = None,
        seed: int = 0,
        n_jobs: int | None = None,
        threads: int | None = None,
        work_dir: str | os.PathLike | None = None,
        verbose: bool = True,
    ) -> SpecialistEnsemble:
        """Trains the specialists, in parallel if wanted, and returns the ensemble.

        An epoch of a specialist has all examples of its cluster once, and as many others.
        In each stage the learning rate falls to 0 along a cosine.

        With `n_jobs` and `joblib.parallel_config` the specialists are trained in other
        processes, here by loky, or by Dask or Ray on other machines. Same seed and same
        number of threads: the same specialists, to the bit, by whomever they are trained.
        (New layers of `build_specialist` draw their weights from Python's `random`; give
        them seeds where other threads of a process draw too, as Dask's do.)
        Each is written to `work_dir` when it is trained; run again with the same
        arguments after an interruption, `fit` trains only those that are missing.

        Args:
            data: `(x, y)` or `(x, y, sample_weight)` arrays; or a function that returns a
                `tf.data.Dataset` of such examples or batches; or, for training in this
                process, the dataset itself. Labels are whole numbers or one-hot.
            hard_epochs: int >= 0 of the first stage; 0 leaves it out. Default 8.
            hard_learning_rate: float > 0, at its beginning. Default 0.002.
            soft_epochs: int >= 0 of the second stage; 0 leaves it out. Default 2.
            soft_learning_rate: float > 0, at its beginning. Default 0.0005.
            temperature: T > 0 of the second stage. Default 2.
            alpha: weight of the hard labels in the second stage, from 0 to 1. Default 0.5.
            optimizer: name of a Keras optimizer, or one whose settings are copied; its
                learning rate is replaced. Default "adam".
            batch_size: int. Default 128.
            batched: bool, whether a dataset's elements are batches; `None` finds out.
            augment: `fn(x, seed)`, from the inputs of one example and an int64 seed `(2,)` to
                its inputs; all randomness by stateless ops from that seed. It makes another
                view of an example each time that it is drawn, in both stages; in the second
                the generalist sees the same view. `None` (default) for none.
            seed: int >= 0, of all draws and of new weights. A specialist trained in this
                process sets TensorFlow's global seed.
            n_jobs: int, how many are trained at once; -1 for as many as there are cores;
                `None` (default) is 1 or what `joblib.parallel_config` says.
            threads: int, of TensorFlow in each process of a pool; `None` (default) is the
                number of this machine's cores by that of processes. A process that has
                run TensorFlow before keeps what it has, and so does this one.
            work_dir: folder for what is trained, shared by all processes; `None`
                (default) for a temporary one that is removed in the end. Other settings,
                clusters, generalist or data are refused there; data that comes as a
                dataset is known by its labels, and by its inputs if these come in the
                same order each time.
            verbose: whether to show a progress bar, after two seconds. Default `True`.

        Returns:
            `SpecialistEnsemble`.

        Raises:
            TypeError: if the data is of no such kind, or cannot be sent to another process.
            ValueError: before any training, if an argument is out of range, the data does
                not fit the generalist or is endless, a class of a cluster has no example,
                `build_specialist` returns another number of outputs, or `work_dir` holds
                specialists of another kind, naming the difference; after it, if weights
                became NaN.
            BlockingIOError: if another run works in `work_dir`.
            ChildProcessError: after all others, if the processes of a specialist were
                killed three times.
        """
        seats = processes.Seats.of(n_jobs)
        verbose = check_verbose(verbose)
        if batched is not None:
            batched = check_bool("batched", batched)
        if work_dir is not None:
            work_dir = check_path("work_dir", work_dir)
        threads = None if threads is None else check_int("threads", threads, 1)
        stages = [
            Stage("hard", hard_epochs, hard_learning_rate),
            Stage("soft", soft_epochs, soft_learning_rate, temperature, alpha),
        ]
        build = self.build_specialist
        settings = Settings(
            clusters=self.clusters,
            head=self.head,
            build_specialist=build and run_directory.name_of(build),
            stages=[stage for stage in stages if stage.epochs],
            optimizer=_optimizer_config(optimizer),
            batch_size=batch_size,
            seed=seed,
            augment=views.name_of_augment(augment),
        )
        if not seats.is_here:
            own = (data, self.build_specialist, augment)
            processes.check_can_be_sent(own, _REMEDY)
        teacher = as_teacher(self.generalist, outputs=())
        shapes, accepts_nan = teacher.input_shapes, teacher.accepts_nan
        source = TrainingData(data, self.classes, shapes, batched, accepts_nan)
        self._check_counts(source.counts)
        if augment is not None:
            source.check_views(augment, self.generalist)
        with contextlib.ExitStack() as stack:
            if work_dir is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
            else:
                folder = os.path.abspath(work_dir)
                if "://" in work_dir:
                    raise ValueError(
                        "work_dir must be a folder that is local or mounted, got "
                        f"{work_dir!r}."
                    )
            labels = {"generalist": "the generalist", "data": "the data"}
            directory = run_directory.RunDirectory(folder, "specialists", labels)
            directory.make()
            stack.enter_context(directory.lock())
            job = Job(directory, settings, source, build, augment=augment)
            objects = self._settle(job, seats.is_here)
            self._train(job, seats, threads, verbose)
            ensemble = self._composed(job, objects)
            done = map(training.progress_name, range(len(self.clusters)))
            directory.remove(GENERALIST, *done)
            return ensemble

    def _check_counts(self, counts: np.ndarray) -> None:
        for index, cluster in enumerate(self.clusters):
            empty = [c for c in cluster if counts[c] == 0]
            if empty:
                raise ValueError(
                    f"the class {empty[0]} of cluster {index} has no example in the "
                    "data; leave it out of the clusters, or give data that has it."
                )
            if counts.sum() == counts[list(cluster)].sum():
                raise ValueError(
                    f"all examples of the data are of the classes of cluster {index}, so "
                    "there is nothing for its dustbin; give data of the other classes."
                )

    def _settle(self, job: Job, is_here: bool) -> dict[int, dict[str, Any]]:
        """Begins a work directory, or makes sure that it is of the same kind.

        Returns:
            The user's own classes and functions in a specialist, as `live_objects.load`
            takes them, by its number of outputs.
        """
        with job.folder.whole(GENERALIST) as path:
            job.objects = live_objects.save(self.generalist, path, "the generalist")
        if not is_here:
            processes.check_can_be_sent(job.objects, _SENDABLE)
        # Before any training: a wrong model is refused at once.
        sizes = self._one_of_each_size()
        built = [job.new_specialist(index) for index in sizes]
        if self.build_specialist is not None:
            self._check_of_their_own([*built, job.new_specialist(sizes[0])])
        objects = {m.output_shape[-1]: self._own_objects(m) for m in built}
        job.settings = dataclasses.replace(
            job.settings,
            generalist=run_directory.teacher_fingerprint(self.generalist),
            specialists=list(map(run_directory.architecture_fingerprint, built)),
            data=job.data.fingerprint(),
        )
        remedy = "Choose another work_dir, or delete it."
        try:
            job.folder.claim(dataclasses.asdict(job.settings), remedy=remedy)
        except ValueError:
            job.folder.remove(GENERALIST)  # every run writes its own
            raise
        job.folder.remove_temporary()
        return objects

    def _own_objects(self, specialist: keras.Model) -> dict[str, Any]:
        """Returns what is the user's own in a specialist, by its names in the file.

        Raises:
            ValueError: if what `build_specialist` made cannot be written and read back.
        """
        if self.build_specialist is None:  # as the generalist could be
            with live_objects.named(specialist) as objects:
                return objects
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "trial.keras")
            objects = live_objects.save(specialist, path, _BUILT)
            live_objects.load(path, objects, _BUILT)
        return objects

    def _check_of_their_own(self, specialists: list[keras.Model]) -> None:
        """Refuses what would train the generalist, or two specialists as one."""
        for index, specialist in enumerate(specialists):
            check_shares_nothing(specialist, self.generalist, "generalist", _OWN)
            for other in specialists[:index]:
                check_shares_nothing(specialist, other, "specialist before", _OWN)

    def _one_of_each_size(self) -> list[int]:
        sizes = {len(c): index for index, c in enumerate(self.clusters)}
        return sorted(sizes.values()) if self.head == "dustbin" else [0]

    def _missing(self, job: Job) -> list[int]:
        return [m for m in range(len(self.clusters)) if job.record(m) is None]

    def _train(
        self, job: Job, seats: processes.Seats, threads: int | None, verbose: bool
    ) -> None:
        missing = self._missing(job)
        if not missing:
            return
        recorded = [m for m in missing if job.folder.has(training.record_name(m))]
        if recorded:
            names = ", ".join(map(training.model_name, recorded))
            warnings.warn(
                f"in {job.folder.path!r} these are damaged, or no specialists of this run: "
                f"{names}. They are trained anew.",
                UserWarning,
                stacklevel=3,
            )
        job.folder.remove(*map(training.progress_name, missing))
        job.folder.remove(*map(training.record_name, recorded))
        # The longest first, so that no process is left alone with it.
        missing.sort(key=lambda m: -job.sampler(m).special)
        path = job.folder.path
        outcomes = processes.spread(
            job.train,
            missing,
            seats=seats,
            folder=path,
            threads=threads,
            remedy=_REMEDY,
        )
        total, epochs = len(self.clusters), sum(s.epochs for s in job.settings.stages)
        before = (total - len(missing)) * epochs

        def look() -> None:
            done = before + job.epochs_done(missing)
            bar.set_postfix_str(f"{done // epochs} of {total}", False)
            bar.update(done - bar.n)

        # The epochs of all specialists on one bar, whoever trains them.
        shown = ("training specialists", "epoch", total * epochs, verbose)
        with (
            progress.bar(*shown, initial=before) as bar,
            progress.watching(look, 0.5),
        ):
            lost = processes.given_up(outcomes)
        if lost:
            raise ChildProcessError(
                f"{len(lost)} of {total} specialists are missing: {lost[0].error} With "
                "work_dir, fit with the same arguments goes on with them."
            )
        if left := self._missing(job):
            raise OSError(
                f"{len(left)} specialists trained by other processes are not to be seen in "
                f"{job.folder.path!r}; give a work_dir that all of them share."
            )

    def _composed(
        self, job: Job, objects: dict[int, dict[str, Any]]
    ) -> SpecialistEnsemble:
        numbers = range(len(self.clusters))
        self.records = list(filter(None, map(job.record, numbers)))
        specialists = []
        for index, cluster in enumerate(self.clusters):
            outputs = heads.outputs_of(self.head, cluster, self.classes)
            file = job.folder.file(training.model_name(index))
            name = f"specialist_{index}"
            specialists.append(live_objects.load(file, objects[outputs], name))
            specialists[-1].name = name
        return SpecialistEnsemble(
            self.generalist, specialists, self.clusters, n=self.n, head=self.head
        )


def _optimizer_config(optimizer: Any) -> dict[str, Any]:
    """Returns an optimizer's settings, its learning rate aside."""
    optimizer = keras.optimizers.get(optimizer)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer  # Keras wraps it anew where it is needed
    config = keras.optimizers.serialize(optimizer)
    # Names count up in a process; they would differ when a run is taken up again.
    settings = {k: v for k, v in config["config"].items() if k != "name"}
    config["config"] = {**settings, "learning_rate": 0.001}
    return run_directory.as_json(config)
