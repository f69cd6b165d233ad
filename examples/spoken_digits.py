"""Spoken digits, understood by a file of under 60 kB, of a speaker it has never heard.

It takes one second of samples at 8 kHz as they are; the log-mel spectrogram is in its graph.
The teacher is two larger networks, each of which hears a recording as of three throats: its
answers are the mean of six. A student cannot afford that, but can learn it. Students on
labels alone have the weights, recordings and steps of the distilled.

Four speakers train, and yweweler, whom nobody has heard, is the test: judged once before, of
another recipe, and once of this. The recipe is from the other four, each judged in turn by
what the other three had taught, one student each (jackson by this file, the others by trials
of it in PyTorch, the teacher trained for less long), accuracy in %, where seeds differ by 5:

                george  jackson  nicolas  theo  mean
    teacher       77.2     97.0     65.0  90.0  82.3
    labels        67.4     89.8     61.0  87.2  76.4
    distilled     82.2     93.2     64.4  84.4  81.1

A teacher of the same networks that hears a recording once had 71.2 % of george, its students
65.6 to 69.4, labels 72.2: what it hears in other voices seems to be what is worth teaching.

The test, over three seeds: teacher 88.8 %, labels 80.8, 81.0, 81.6, distilled 88.0, 87.0, 91.0,
7.5 points more on average; as int8 files of 46 kB in LiteRT 88.0, 87.4, 91.0.

    python examples/spoken_digits.py --data-dir ~/tensorflow_datasets
    python examples/spoken_digits.py --judged theo  # the others teach, one who trained is judged
    python examples/spoken_digits.py --quick
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sound.network import network, of_samples
from sound.recordings import SPEAKERS, TEST, augment, load
from sound.stretching import in_other_voices
from sound.teacher import fit, train_teacher

import keras_distill as kd

TEMPERATURE, ALPHA = 4.0, 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", help="TFDS data_dir; TFDS's own default")
    parser.add_argument("--output", default="spoken-digits", type=pathlib.Path)
    parser.add_argument("--judged", default=TEST, choices=SPEAKERS, help="the unheard")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny, to see it run")
    args = parser.parse_args()
    copies, epochs, seeds, networks = (1,) * 4 if args.quick else (12, 4, args.seeds, 2)
    args.output.mkdir(parents=True, exist_ok=True)

    # 1. Spectrograms of the recordings in many other voices, and the teacher of them.
    data = load(args.data_dir, args.judged)
    x, y = in_other_voices(*data["train"], copies)
    teacher = train_teacher(x, y, networks, epochs)
    taught = kd.DistillationInputs(x, teacher.predict(x, batch_size=500, verbose=0))

    def distil(seed, alpha):
        keras.utils.set_random_seed(seed)
        student = network((8, 12, 16))
        distiller = kd.Distiller(student, temperature=TEMPERATURE, alpha=alpha)
        fit(distiller, taught, y, epochs)
        return of_samples(student)

    # 2. Students with the teacher and without, where alpha = 1 leaves it out; their files.
    # quantize="int8" rounds inside LogMel too, whose division LiteRT then fails at, and is
    # refused; quantize_aware leaves what is not Keras's own, as LogMel, in float.
    judged = {"teacher": kd.as_teacher(of_samples(teacher), from_logits=True)}
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

    # 3. The speaker whom none of them has heard.
    table = kd.compare(judged, data["judged"], teacher=judged["teacher"])
    print(table)
    table.save(args.output / "comparison.md")
    table.save(args.output / "comparison.json")
    for kind in ("labels {}", "distilled {}", "distilled {}, int8"):
        found = [100 * table[kind.format(seed)].accuracy for seed in range(seeds)]
        average = f"{kind.format('*'):20} {np.mean(found):.2f} % on average"
        print(f"{average}, {min(found):.1f} to {max(found):.1f}")


if __name__ == "__main__":
    main()
