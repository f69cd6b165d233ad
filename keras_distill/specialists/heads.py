"""What turns a generalist into a specialist: its cluster's logits, and the class mix."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.arguments import KINDS, check_choice
from keras_distill.logits_or_probabilities import (
    gives_logits,
    look_like_probabilities,
    to_logits,
)
from keras_distill.losses.base import PACKAGE
from keras_distill.outputs import symbolic_outputs


@keras.saving.register_keras_serializable(PACKAGE)
class LogProbabilities(keras.layers.Layer):
    """The logarithm of probabilities: logits, up to a constant that softmax removes.

    Args:
        kind: "softmax" (default), or "sigmoid" for `log(p / (1 - p))`.
        **kwargs: passed to `keras.layers.Layer`.
    """

    outputs_are_logits = True

    def __init__(self, kind: str = "softmax", **kwargs: Any) -> None:
        # A cast would hide the softmax that the inputs come from.
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        self.output_kind = check_choice("kind", kind, KINDS[:2])
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """Returns the logits that the activation was given, or else float32 logarithms.

        Args:
            inputs: probabilities `(batch, ..., classes)`.
        """
        return to_logits(inputs, False, self.output_kind)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {**super().get_config(), "kind": self.output_kind}


@keras.saving.register_keras_serializable(PACKAGE)
class ClusterLogits(keras.layers.Layer):
    """The logits of a cluster's classes, and one for all other classes together.

        u[i] = z[cluster[i]]        u[dustbin] = logsumexp of z over all other classes

    so that `softmax(u)` is `softmax(z)` with the other classes' probabilities added up.

    Args:
        cluster: class numbers.
        classes: number of classes of the logits.
        **kwargs: passed to `keras.layers.Layer`.
    """

    outputs_are_logits = True

    def __init__(self, cluster: Sequence[int], classes: int, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.cluster = [int(c) for c in cluster]
        self.classes = classes
        self._others = np.setdiff1d(np.arange(classes), self.cluster).astype("int32")

    def call(self, inputs: Any) -> Any:
        """Returns logits `(batch, len(cluster) + 1)`, the dustbin last.

        Args:
            inputs: logits `(batch, classes)`.
        """
        special = ops.take(inputs, np.asarray(self.cluster, "int32"), axis=-1)
        rest = ops.logsumexp(ops.take(inputs, self._others, axis=-1), -1, keepdims=True)
        return ops.concatenate([special, rest], -1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        own = {"cluster": self.cluster, "classes": self.classes}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(PACKAGE)
class PriorCorrection(keras.layers.Layer):
    """Takes logits from the data's own mix of classes to that of the training set.

    A specialist sees its special classes more often than they are. The posterior under
    the mix it sees is that under the data's own with each class's probability times how
    much the class was oversampled, so the logits differ by the logarithm of that:

        training:    z - log_ratio          inference:    z

    with `log_ratio` = log(oversampling of the special classes / oversampling of the
    class). It is the same as adding `log_ratio` to the dustbin after training: the model
    learns from the mix it sees and answers for the data's own.

    Args:
        log_ratio: one float per output, 0 for special classes, in nats.
        **kwargs: passed to `keras.layers.Layer`.

    Reference: arXiv:1503.02531, section 5.2.
    """

    outputs_are_logits = True

    def __init__(self, log_ratio: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.log_ratio = [float(value) for value in log_ratio]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns logits `(batch, outputs)`."""
        return self.as_sampled(inputs) if training else inputs

    def as_sampled(self, logits: Any) -> Any:
        """Returns logits for the mix of the training set."""
        return logits - ops.cast(np.asarray(self.log_ratio, "float32"), logits.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {**super().get_config(), "log_ratio": self.log_ratio}


def settled_logits(model: keras.Model) -> bool:
    """Tells whether a model gives logits; asks it where its layers do not say."""
    found = gives_logits(model)
    if found is not None:
        return found is True
    rng = np.random.default_rng(0)

    def example(tensor: Any) -> Any:
        shape = [2 if i == 0 else n or 8 for i, n in enumerate(tensor.shape)]
        return ops.cast(rng.uniform(size=shape), tensor.dtype)

    inputs = model.inputs[0] if len(model.inputs) == 1 else model.input
    batch = keras.tree.map_structure(example, inputs)
    found = not look_like_probabilities(model(batch, training=False))
    warnings.warn(
        f"the layers of {model.name!r} do not say whether it gives logits or "
        f"probabilities; by its values they are {'logits' if found else 'probabilities'}. "
        "End it with a Dense or a Softmax layer to settle it.",
        stacklevel=2,
    )
    return found


HEADS = ("dustbin", "all")


def outputs_of(head: str, cluster: Sequence[int], classes: int) -> int:
    """Returns how many outputs a specialist has."""
    return len(cluster) + 1 if head == "dustbin" else classes


def log_ratio(head: str, cluster: Sequence[int], counts: np.ndarray) -> list[float]:
    """Returns the logits' correction for a training set that is half special.

    Args:
        head: "dustbin" or "all".
        cluster: class numbers.
        counts: int `(classes,)`, examples of each class in the data.

    Returns:
        one float per output: 0 for special classes, `log(rest / special)` examples of the
        data for the dustbin, or for every other class.
    """
    special = counts[list(cluster)].sum()
    value = np.log((counts.sum() - special) / special)
    if head == "dustbin":
        return [0.0] * len(cluster) + [float(value)]
    return [0.0 if c in set(cluster) else float(value) for c in range(len(counts))]


def as_specialist(
    model: keras.Model,
    head: str,
    cluster: Sequence[int],
    ratios: Sequence[float],
    classes: int,
    is_generalist: bool,
) -> keras.Model:
    """Returns a model that gives a specialist's logits, with the correction inside.

    Args:
        model: its outputs are the generalist's classes, or already the specialist's.
        head: "dustbin" or "all".
        cluster: class numbers.
        ratios: as `log_ratio` returns them.
        classes: number of classes of the generalist.
        is_generalist: whether the model has the generalist's outputs.
    """
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    outputs = symbolic_outputs(model)
    if not settled_logits(model):
        outputs = LogProbabilities(name="log_probabilities")(outputs)
    if is_generalist and head == "dustbin":
        outputs = ClusterLogits(cluster, classes, name="cluster_logits")(outputs)
    outputs = PriorCorrection(ratios, name="prior_correction")(outputs)
    return keras.Model(inputs, outputs, name="specialist")
