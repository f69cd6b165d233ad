"""Spoken digits of five speakers, in distorted views, for the experiment of section 4.

Recordings, network and distortions are those of examples/spoken_digits.py. A seventh of the
recordings trains nothing: of speakers who are heard, half of it is for choices and half is a test
that is as the training is.
"""

import functools
import pathlib
import sys
import types

import keras
import numpy as np
from records import Record, alone

import keras_distill as kd

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from sound.log_mel import LogMel
from sound.network import network
from sound.recordings import SPEAKERS, load
from sound.stretching import in_other_voices
from sound.teacher import fit

FILTERS, EPOCHS, VIEWS = (16, 32, 48), 2, 24


def speakers(quick):
    """Returns their names."""
    return SPEAKERS[:3] if quick else SPEAKERS


@functools.cache
def load_voices(data_dir, quick):
    """Returns the recordings as spectrograms: as they are, in views that train and others."""
    names, copies = speakers(quick), 1 if quick else VIEWS
    said = [load(data_dir, name)["judged"] for name in names]
    if quick:
        said = [(x[::25], y[::25]) for x, y in said]
    x, y = (np.concatenate(arrays) for arrays in zip(*said, strict=True))
    views, _ = in_other_voices(x, y, copies + 4)
    views = views.reshape(copies + 4, len(y), *views.shape[1:])
    number = np.arange(len(y))
    return types.SimpleNamespace(
        plain=LogMel()(x).numpy(), views=views[4:], others=views[:4], y=y,
        who=np.repeat(names, [len(y) for _, y in said]), kept=number % 7 == 0,
        validation=number % 14 == 0, test=number % 14 == 7,
    )  # fmt: skip


def logits_of(model, x):
    return model.predict(x, batch_size=500, verbose=0)


class Without:
    """What is trained on the recordings of all speakers but one."""

    def __init__(self, args, unheard):
        self.args, self.unheard = args, unheard
        self.record = Record(args.work / "voices")

    @property
    def data(self):
        """All recordings; a run that is finished needs none."""
        return load_voices(self.args.data_dir, self.args.quick)

    @property
    def heard(self):
        """Which of the recordings are of speakers who are heard."""
        return self.data.who != self.unheard

    @functools.cached_property
    def lesson(self):
        """Views and digits that train, each example once."""
        train = self.heard & ~self.data.kept
        x, y = self.data.views[:, train], self.data.y[train]
        return x.reshape(-1, *x.shape[2:]), np.tile(y, len(x))

    def empty(self):
        """Returns a network, untrained."""
        return network((4, 4, 4) if self.args.quick else FILTERS)

    @property
    def epochs(self):
        """Of the views."""
        return 1 if self.args.quick else EPOCHS

    def net(self, seed):
        """Returns a network taught by labels."""

        def train():
            keras.utils.set_random_seed(seed)
            return fit(self.empty(), *self.lesson, epochs=self.epochs)

        return self.record.model(f"{self.unheard}-{seed}", train)

    def answers(self, nets):
        """Returns the views with the mean logits of the first networks."""
        x = self.lesson[0]
        path = self.record.folder / f"{self.unheard}-{nets}.npy"
        with alone(path):
            if not path.exists():
                answers = np.mean([logits_of(self.net(i), x) for i in range(nets)], 0)
                part = path.with_suffix(".part.npy")
                np.save(part, answers)
                part.replace(path)
        return kd.DistillationInputs(x, np.load(path))

    def student(self, seed, nets, temperature):
        """Returns a network taught by the average of the first networks, in equal steps."""
        keras.utils.set_random_seed(1000 + seed)  # not one of the networks that teach
        student = self.empty()
        distiller = kd.Distiller(student, temperature=temperature, alpha=0.0)
        fit(distiller, self.answers(nets), self.lesson[1], epochs=self.epochs)
        return student

    def judge_student(self, seed, nets, temperature):
        """Returns the accuracies of a network that is taught."""
        return self.record.run(
            f"{self.unheard}-taught-{temperature:g}-{seed}",
            lambda: self.judge(self.student(seed, nets, temperature)),
        )

    def judge_nets(self, name, seeds):
        """Returns the accuracies of the networks of these seeds, averaged."""
        return self.record.run(
            f"{self.unheard}-{name}",
            lambda: self.judge(*(self.net(seed) for seed in seeds)),
        )

    def judge(self, *models):
        """Returns the accuracies of the models' mean logits, in percent.

        "unheard": all recordings of that speaker, as they are; "validation" and "heard": other
        views of the recordings that were kept of the speakers who train, half of them each.
        """
        data = self.data

        def accuracy(x, y):
            answers = np.mean([logits_of(model, x) for model in models], 0)
            return 100 * float((answers.argmax(-1) == y).mean())

        def others(split):
            kept = self.heard & split
            x = data.others[:, kept]
            return x.reshape(-1, *x.shape[2:]), np.tile(data.y[kept], len(x))

        return {
            "unheard": accuracy(data.plain[~self.heard], data.y[~self.heard]),
            "validation": accuracy(*others(data.validation)),
            "heard": accuracy(*others(data.test)),
        }
