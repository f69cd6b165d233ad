"""Bytes on disk for each token of a large vocabulary with `top_k`, and what they cost.

Teachers are drawn: logits of a normal distribution, whose largest have the probabilities
that are printed. The error is the KL of what is read back from what was written, over the k
classes and the rest, in nats: what the student is taught in place of the teacher. Below the
line are codings that the package does not have, tried in NumPy: indices by Elias and Fano's
code, in which k of V sorted numbers take 71 bytes (67.1 are the least at all), values in few
bits between the k-th and the largest.

    python benchmarks/token_bytes.py            half a minute on one core
    python benchmarks/token_bytes.py --quick
"""

import argparse
import math
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_DISTILL_QUIET", "1")

import numpy as np
import tensorflow as tf

import keras_distill as kd

TEMPERATURES = (1.0, 4.0)
VOCABULARY = 32_000


def errors(top_k, logits):
    """Returns the mean KL at each temperature of what is taught from the teacher itself."""
    loss = kd.SoftTargetLoss()
    return [
        float(tf.reduce_mean(loss.loss_per_example(top_k, logits, t))) / t**2
        for t in TEMPERATURES
    ]


def written(logits, k, dtype):
    """Returns bytes per token on disk, all told and of the row alone, and the errors."""
    with tempfile.TemporaryDirectory() as folder:
        store = kd.SoftTargets.write(
            folder,
            lambda x: x * 1.0,
            logits,
            top_k=k,
            dtype=dtype,
            teacher_from_logits=True,
            batch_size=1,
            verbose=False,
        )
        found = tf.concat([block.packed for block in store.logits()], 0)
        per_token = store.bytes_per_example / logits.shape[1]
        row = (store.manifest["row_bytes"] - 8) / logits.shape[1]
    return per_token, row, errors(kd.TopKLogits(found), logits)


def elias_fano_bytes(k, vocabulary):
    """Returns the bytes that the sorted indices of k among the vocabulary take."""
    low = max(0, int(math.log2(vocabulary / k)))
    return math.ceil((k * low + k + math.ceil(vocabulary / 2**low)) / 8)


def coded(logits, k, bits, rest_bits):
    """Returns bytes per token and the errors of values and rest in few bits."""
    with tempfile.TemporaryDirectory() as folder:
        store = kd.SoftTargets.write(
            folder, lambda x: x * 1.0, logits, top_k=k, dtype="float32",
            teacher_from_logits=True, batch_size=1, verbose=False,
        )  # fmt: skip
        packed = tf.concat([b.packed for b in store.logits()], 0).numpy()
    values, rest = packed[..., :k], packed[..., 2 * k + 1 :]
    top, least = values[..., :1], values[..., -1:]
    step = np.float32(np.float16((top - least) / (2**bits - 1)))
    packed[..., :k] = top - step * np.round((top - values) / step)
    if rest_bits < 16:
        # What is known of it without: between its ends it is all but straight.
        betas = np.asarray([1, 3, 6, 10, 13, 15, 16], "float32") / 16
        about = rest - betas * top
        low, high = about.min(-1, keepdims=True), about.max(-1, keepdims=True)
        unit = (high - low) / (2**rest_bits - 1)
        coded_rest = low + unit * np.round((about - low) / unit)
        packed[..., 2 * k + 1 :] = coded_rest + betas * top
    size = elias_fano_bytes(k, VOCABULARY) + math.ceil(k * bits / 8) + 2
    size += math.ceil(7 * rest_bits / 8) + (4 if rest_bits < 16 else 0)
    return size, errors(kd.TopKLogits(tf.constant(packed)), logits)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few tokens")
    args = parser.parse_args()
    examples, time_steps = (2, 4) if args.quick else (8, 32)
    z = np.random.default_rng(0).normal(size=(examples, time_steps, VOCABULARY))
    logits = (4.0 * z).astype("float32")
    p = np.sort(tf.nn.softmax(logits).numpy(), -1)
    print(
        f"largest probability {p[..., -1].mean():.2f}, the 50 largest "
        f"{p[..., -50:].sum(-1).mean():.2f} on average\n"
    )
    names = " | ".join(f"KL at T = {t:g}" for t in TEMPERATURES)
    print(f"| k | coding | bytes per token | of the row | {names} |")
    print("|---:|---|---:|---:|" + "---:|" * len(TEMPERATURES))
    for k in (10, 50, 100):
        for dtype in ("float16", "bfloat16", "float32"):
            size, row, found = written(logits, k, dtype)
            kls = " | ".join(f"{one:.1e}" for one in found)
            print(f"| {k} | {dtype} | {size:.1f} | {row:.0f} | {kls} |")
    for bits, rest_bits in ((8, 16), (6, 8), (5, 8), (4, 8)):
        size, found = coded(logits, 50, bits, rest_bits)
        kls = " | ".join(f"{one:.1e}" for one in found)
        name = f"not built: indices 71 bytes, values {bits} bits, rest {rest_bits} bits"
        print(f"| 50 | {name} | | {size} | {kls} |")


if __name__ == "__main__":
    main()
