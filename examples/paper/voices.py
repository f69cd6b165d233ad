"""Spoken digits of five speakers, in distorted views, for the experiment of section 4.

Recordings, network and distortions are those of examples/spoken_digits.py. A seventh of the
recordings trains nothing: of speakers who are heard, it is the test that is as the training is.
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


def speakers(quick):
    """Returns their names."""
    return SPEAKERS[:3] if quick else SPEAKERS


@functools.cache
def load_voices(data_dir, quick):
    """Returns the recordings as spectrograms: as they are, in views that train and others."""
    names, copies = speakers(quick), 24
    said = [load(data_dir, name)["judged"] for name in names]
    if quick:
        said, copies = [(x[::25], y[::25]) for x, y in said], 1
    x, y = (np.concatenate(arrays) for arrays in zip(*said, strict=True))
    views, _ = in_other_voices(x, y, copies + 4)
    views = views.reshape(copies + 4, len(y), *views.shape[1:])
    return types.SimpleNamespace(
        plain=LogMel()(x).numpy(), views=views[4:], others=views[:4], y=y,
        who=np.repeat(names, [len(y) for _, y in said]),
        kept=np.arange(len(y)) % 7 == 0,
    )  # fmt: skip


def logits_of(model, x):
    return model.predict(x, batch_size=500, verbose=0)


def check_work(args):
    """Leaves if the work folder has networks of another size, under the same names."""
    wanted = {"filters": list(args.filters), "epochs": args.epochs}
    found = Record(args.work / "voices").run("settings", lambda: wanted)
    for name, value in wanted.items():
        if found[name] != value:
            sys.exit(
                f"{args.work} has networks of --{name} {found[name]}; give another --work"
            )


class Without:
    """What is trained on the recordings of all speakers but the unheard."""

    def __init__(self, args, *unheard):
        self.args, self.name, self.unheard = args, "+".join(unheard), unheard
        self.record = Record(args.work / "voices")

    @property
    def data(self):
        """All recordings; a run that is finished needs none."""
        return load_voices(self.args.data_dir, self.args.quick)

    @property
    def heard(self):
        """Which of the recordings are of speakers who are heard."""
        return ~np.isin(self.data.who, self.unheard)

    @functools.cached_property
    def lesson(self):
        """Views and digits that train, each example once."""
        train = self.heard & ~self.data.kept
        x, y = self.data.views[:, train], self.data.y[train]
        return x.reshape(-1, *x.shape[2:]), np.tile(y, len(x))

    @functools.cached_property
    def mixed(self):
        """As many mixtures of two views each: sounds that no network was trained on."""
        x, rng = self.lesson[0], np.random.default_rng(0)
        share = rng.uniform(size=(len(x), 1, 1, 1)).astype("float32")
        return share * x + (1 - share) * x[rng.permutation(len(x))]

    def net(self, seed):
        """Returns a network taught by labels."""

        def train():
            keras.utils.set_random_seed(seed)
            return fit(
                network(self.args.filters), *self.lesson, epochs=self.args.epochs
            )

        return self.record.model(f"{self.name}-{seed}", train)

    def answers(self, nets, mixed):
        """Returns the mean logits of the first networks for views, or mixtures of them."""
        x = self.mixed if mixed else self.lesson[0]
        path = self.record.folder / f"{self.name}-{nets}-{mixed}.npy"
        with alone(path):
            if not path.exists():
                answers = np.mean([logits_of(self.net(i), x) for i in range(nets)], 0)
                part = path.with_suffix(".part.npy")
                np.save(part, answers)
                part.replace(path)
        return kd.DistillationInputs(x, np.load(path))

    def student(self, seed, nets, mixed, temperature, alpha, rate):
        """Returns a network taught by the average of the first networks, in equal steps."""
        keras.utils.set_random_seed(100 + seed)  # not one of the networks that teach
        student = network(self.args.filters)
        distiller = kd.Distiller(student, temperature=temperature, alpha=alpha)
        fit(
            distiller,
            self.answers(nets, mixed),
            self.lesson[1],
            epochs=self.args.epochs,
            rate=rate,
        )
        return student

    def judge_student(self, setting, seed, *how):
        """Returns the accuracy of a network taught in a setting."""
        return self.record.run(
            f"{self.name}-{setting}-{seed}",
            lambda: self.judge(self.student(seed, *how)),
        )

    def judge_nets(self, name, seeds):
        """Returns the accuracy of the networks of these seeds, averaged."""
        return self.record.run(
            f"{self.name}-{name}",
            lambda: self.judge(*(self.net(seed) for seed in seeds)),
        )

    def judge(self, *models):
        """Returns the accuracy of the models' mean logits, in percent, by who speaks.

        Of the unheard, all recordings as they are; "heard" are other views of recordings
        that were kept of the speakers who train.
        """
        data, new = self.data, self.data.others[:, self.heard & self.data.kept]
        x = np.concatenate([data.plain, new.reshape(-1, *new.shape[2:])])
        y = np.concatenate([data.y, np.tile(data.y[self.heard & data.kept], len(new))])
        who = np.concatenate([data.who, ["heard"] * (len(x) - len(data.y))])
        right = np.mean([logits_of(model, x) for model in models], 0).argmax(-1) == y
        return {
            name: 100 * float(right[who == name].mean())
            for name in (*self.unheard, "heard")
        }
