"""Spoken digits, understood by a file of under 60 kB, of a speaker it has never heard.

DOC

    python examples/spoken_digits.py --data-dir ~/tensorflow_datasets
    python examples/spoken_digits.py --judged theo  # how anything here was chosen
    python examples/spoken_digits.py --quick
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sound.log_mel import SAMPLES, LogMel
from sound.network import network
from sound.recordings import SPEAKERS, TEST, augment, load
from sound.stretching import Throat, stretched

import keras_distill as kd

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TEMPERATURE, ALPHA = 4.0, 0.0


def fit(model, x, y, epochs):
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * -(-len(y) // 64))
    model.compile(keras.optimizers.Adam(rate), LOSS)
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
    return model


def of_samples(model):
    """Returns a model of spectrograms as one of raw samples `(batch, 8000)`."""
    samples = keras.Input((SAMPLES,), name="samples")
    return keras.Sequential([samples, LogMel(), *model.layers])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", help="TFDS data_dir; TFDS's own default")
    parser.add_argument("--output", default="spoken-digits", type=pathlib.Path)
    parser.add_argument("--judged", default=TEST, choices=SPEAKERS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny, to see it run")
    args = parser.parse_args()
    copies, epochs, seeds, networks = 12, 4, args.seeds, 2
    if args.quick:
        copies, epochs, seeds, networks = 1, 1, 1, 1
    args.output.mkdir(parents=True, exist_ok=True)

    # 1. Spectrograms of the recordings in many other voices.
    data = load(args.data_dir, args.judged)
    rng, listen = np.random.default_rng(0), LogMel()
    spectrograms = [
        stretched(listen(augment(*data["train"], seed=seed)[0]).numpy(), rng)
        for seed in range(copies)
    ]
    x, y = np.concatenate(spectrograms), np.tile(data["train"][1], copies)

    # 2. The teacher: several networks, each hears a recording as of three throats.
    heard = keras.Input(x.shape[1:])
    voices = [Throat(factor)(heard) for factor in (0.85, 1.0, 1.18)]
    answers = []
    for seed in range(networks):
        keras.utils.set_random_seed(seed)
        one = fit(network((16, 32, 48), dropout=0.2), x, y, epochs)
        answers += [one(voice) for voice in voices]
    teacher = keras.Model(heard, keras.layers.average(answers))
    taught = kd.DistillationInputs(x, teacher.predict(x, batch_size=500, verbose=0))

    def distil(seed, alpha):
        keras.utils.set_random_seed(seed)
        student = network((8, 12, 16))
        distiller = kd.Distiller(student, temperature=TEMPERATURE, alpha=alpha)
        fit(distiller, taught, y, epochs)
        return of_samples(student)

    # 3. Students with the teacher and without, where alpha = 1 leaves it out; their files.
    # quantize="int8" rounds inside LogMel too, whose division LiteRT then fails at, and is
    # refused; quantize_aware leaves what is not Keras's own, as LogMel, in float.
    judged = {"teacher": of_samples(keras.Sequential([heard, teacher]))}
    for seed in range(seeds):
        judged[f"labels {seed}"] = distil(seed, 1.0)
        student = judged[f"distilled {seed}"] = distil(seed, ALPHA)
        judged[f"distilled {seed}, int8"] = kd.export_litert(
            kd.quantize_aware(student, calibration=augment(*data["train"])[0][::4]),
            args.output / f"student-{seed}.tflite", example=data["train"][0][:16],
            output_kinds="softmax", verbose=False, card=kd.ModelCard(
                teacher=teacher, temperature=TEMPERATURE, alpha=ALPHA, seeds=seed,
                data=f"spoken_digit without {args.judged}", data_version="1.0.9",
            ),
        )  # fmt: skip

    # 4. The speaker whom none of them has heard.
    table = kd.compare(
        judged, data["judged"],
        teacher=kd.as_teacher(judged["teacher"], from_logits=True),
    )  # fmt: skip
    print(table)
    table.save(args.output / "comparison.md")
    table.save(args.output / "comparison.json")
    for kind in ("labels {}", "distilled {}", "distilled {}, int8"):
        found = [100 * table[kind.format(seed)].accuracy for seed in range(seeds)]
        print(
            f"{kind.format('*'):20} {np.mean(found):.2f} % on average, "
            f"{min(found):.1f} to {max(found):.1f}"
        )


if __name__ == "__main__":
    main()
