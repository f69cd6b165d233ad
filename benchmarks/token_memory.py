"""Peak memory of a loss over tokens, and of the step around it, where the vocabulary is large.

Each figure is of a fresh process. What is counted is what TensorFlow's own allocator has
handed out, at its peak in one call after two others, less what it held before that call: of
a loss and its gradient, all but the logits that they are given, the gradient included; of
`fit`, all but weights, optimizer and data. Given as multiples of the logits of a batch in
float32.

    python benchmarks/token_memory.py --json tokens.json      about ten minutes on one core
    python benchmarks/token_memory.py --quick                 under a minute
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_DISTILL_QUIET", "1")

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd

MODES = ("graph", "eager", "jit")
LOSSES = ("keras", "ours", "top_k")
FITS = ("keras", "live", "cached", "top_k")
SHAPES = ((8, 128, 32_000), (4, 256, 50_257))
TEMPERATURE, K = 2.0, 50
HARD = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def peak_of(function, *args):
    """Returns the bytes that a call takes at its peak, and its seconds."""
    for _ in range(2):  # traces, and makes what lives on
        function(*args)
    tf.config.experimental.reset_memory_stats("CPU:0")
    before = tf.config.experimental.get_memory_info("CPU:0")["current"]
    start = time.perf_counter()
    function(*args)
    seconds = time.perf_counter() - start
    peak = tf.config.experimental.get_memory_info("CPU:0")["peak"]
    return peak - before, seconds


def top_k_of(logits):
    """Returns the `TopKLogits` of a batch, as a store would give them."""
    classes = logits.shape[-1]
    values, indices = tf.math.top_k(logits, K)
    rest = tf.fill((*logits.shape[:-1], 8), float(np.log(classes - K)))
    packed = tf.concat([values, tf.cast(indices, "float32"), rest], -1)
    return kd.TopKLogits(packed)


def loss_case(what, mode, shape, dtype):
    """Measures a loss and its gradient by the student's logits."""
    tf.random.set_seed(0)
    logits = tf.cast(tf.random.normal(shape), dtype)
    labels = tf.random.uniform(shape[:-1], maxval=shape[-1], dtype="int32")
    teacher = None
    if what != "keras":
        teacher = tf.cast(tf.random.normal(shape), dtype)
        teacher = top_k_of(tf.cast(teacher, "float32")) if what == "top_k" else teacher

    def loss_and_gradient(logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            if teacher is None:
                loss = HARD(labels, logits)
            else:
                loss = tf.reduce_mean(
                    kd.SoftTargetLoss().loss_per_example(teacher, logits, TEMPERATURE)
                )
        return loss, tape.gradient(loss, logits)

    if mode != "eager":
        loss_and_gradient = tf.function(
            loss_and_gradient,
            autograph=False,
            jit_compile=mode == "jit",
            input_signature=[tf.TensorSpec((None, None, shape[-1]), dtype)],
        )
    return peak_of(loss_and_gradient, logits)


def causal_model(shape, width):
    import keras_hub

    _, time_steps, vocabulary = shape
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=vocabulary,
        num_layers=1,
        num_heads=2,
        hidden_dim=width,
        intermediate_dim=2 * width,
        max_sequence_length=time_steps,
        dropout=0.0,
    )
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)


def token_batch(shape):
    """Returns one batch of inputs and labels; a quarter of each sequence is padding."""
    batch, time_steps, vocabulary = shape
    tokens = np.random.default_rng(0).integers(vocabulary, size=(batch, time_steps + 1))
    counts = np.arange(time_steps) < 3 * time_steps // 4
    padding = np.tile(counts, (batch, 1))
    x = {"token_ids": tokens[:, :-1].astype("int32"), "padding_mask": padding}
    return x, tokens[:, 1:].astype("int32"), padding.astype("float32")


def fit_case(what, mode, shape, folder):
    """Measures a step of `fit` of a tiny causal model."""
    keras.utils.set_random_seed(0)
    student = causal_model(shape, 16)
    data = tf.data.Dataset.from_tensor_slices(token_batch(shape)).batch(shape[0])
    model = student
    if what != "keras":
        teacher = causal_model(shape, 32)
        if what != "live":
            store = kd.SoftTargets.write(
                folder,
                teacher,
                data,
                top_k=K if what == "top_k" else None,
                batch_size=1,
                verbose=False,
            )
            data, teacher = store.join(data), None
        model = kd.Distiller(student, teacher, temperature=TEMPERATURE, alpha=0.5)
    model.compile(
        keras.optimizers.SGD(0.1),
        HARD,
        jit_compile=mode == "jit",
        run_eagerly=mode == "eager",
    )
    return peak_of(lambda: model.fit(data, verbose=0))


def measured(kind, what, mode, shape, dtype):
    """Returns the figures of one case, from a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        case = json.dumps([kind, what, mode, shape, dtype, folder])
        done = subprocess.run(
            [sys.executable, __file__, "--case", case],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{case}\n{done.stderr[-2000:]}")
    peak, seconds = json.loads(done.stdout.splitlines()[-1])
    return {
        "kind": kind, "what": what, "mode": mode, "shape": shape, "dtype": dtype,
        "bytes": peak, "logits": peak / (4 * np.prod(shape)), "seconds": seconds,
    }  # fmt: skip


def run_case(case):
    kind, what, mode, shape, dtype, folder = json.loads(case)
    if kind == "loss":
        found = loss_case(what, mode, tuple(shape), dtype)
    else:
        found = fit_case(what, mode, tuple(shape), folder)
    print(json.dumps(found))


def cases(quick):
    shapes = ((4, 64, 32_000),) if quick else SHAPES
    for shape in shapes:
        for mode in MODES[:1] if quick else MODES:
            for what in LOSSES:
                yield "loss", what, mode, shape, "float32"
    if not quick:
        for what in LOSSES:
            yield "loss", what, "graph", SHAPES[0], "bfloat16"
    for mode in ("graph",) if quick else ("graph", "jit"):
        for what in FITS[:2] if quick else FITS:
            yield "fit", what, mode, shapes[0], "float32"


def table(results):
    lines = ["| | mode | shape | MiB | of the logits | of Keras's | s |"]
    lines.append("|---|---|---|---:|---:|---:|---:|")
    base = {}
    for r in results:
        key = r["kind"], r["mode"], tuple(r["shape"]), r["dtype"]
        base.setdefault(key, r["bytes"])  # Keras's comes first
        shape = " x ".join(map(str, r["shape"]))
        if r["dtype"] != "float32":
            shape += f", {r['dtype']}"
        lines.append(
            f"| {r['kind']}, {r['what']} | {r['mode']} | {shape} | "
            f"{r['bytes'] / 2**20:.0f} | {r['logits']:.2f} | "
            f"{r['bytes'] / base[key]:.2f} | {r['seconds']:.2f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small, to see it run")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    parser.add_argument("--only", choices=["loss", "fit"], help="one half of the table")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        run_case(args.case)
        return
    results = []
    for case in cases(args.quick):
        if args.only in (None, case[0]):
            results.append(measured(*case))
            if args.json:
                args.json.write_text(json.dumps(results, indent=2))
    print(table(results))


if __name__ == "__main__":
    main()
