"""Models that the tests export as .tflite files, and how they do it."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill.export import litert_converter
from tests.conftest import mlp


def convert_here(function, *given):
    return getattr(litert_converter, function)(*given)


def export(model, folder, **given):
    return kd.export_litert(model, folder / "m.tflite", **{"verbose": False, **given})


#: What an export to m.tflite leaves.
FILES = ["m.tflite", "m.tflite.card.json", "m.tflite.card.md"]
RNG = np.random.default_rng(0)


def numbers(*shape):
    return RNG.normal(size=shape).astype("float32")


def of(*stack, shape, **given):
    return keras.Sequential([keras.Input(shape, name="x", **given), *stack])


def convolutions():
    return of(
        layers.Conv2D(8, 3, strides=2, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(5),
        shape=(12, 12, 3),
    )


def depthwise():
    return of(
        layers.Conv2D(8, 3),
        layers.DepthwiseConv2D(3, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(6.0),
        layers.GlobalAveragePooling2D(),
        layers.Dense(5, activation="softmax"),
        shape=(12, 12, 3),
    )


def unet():
    x = keras.Input((8, 8, 2), name="x")
    a = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    b = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.MaxPooling2D()(a))
    c = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(b)
    mask = layers.Conv2D(1, 1, activation="sigmoid")
    return keras.Model(x, mask(layers.Concatenate()([a, c])))


def transformer():
    tokens = keras.Input((6,), dtype="int32", name="x")
    e = layers.Embedding(10, 8, mask_zero=True)(tokens)
    h = layers.LayerNormalization()(e + layers.MultiHeadAttention(2, 4)(e, e))
    h = layers.LayerNormalization()(h + layers.Dense(8, activation="gelu")(h))
    return keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(h)))


def masked_lstm():
    return of(
        layers.Embedding(10, 4, mask_zero=True),
        layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
        layers.GRU(3, go_backwards=True),
        layers.Dense(3),
        shape=(5,),
        dtype="int32",
    )


def nested_gru():
    inner = keras.Sequential([keras.Input((5, 4)), layers.GRU(3), layers.Dense(3)])
    return of(layers.Dense(4), inner, shape=(5, 4))


class Reader(keras.Model):
    """A subclassed model with an RNN layer, which nobody can clone."""

    def __init__(self):
        super().__init__()
        self.read, self.answer = layers.GRU(3), layers.Dense(3)

    def call(self, x):
        return self.answer(self.read(x))


def two_inputs_three_outputs():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    h = layers.Dense(8, activation="relu")(layers.Concatenate()([a, b]))
    heads = {
        "kind": layers.Dense(3, activation="softmax")(h),
        "tags": layers.Dense(2, activation="sigmoid")(h),
        "size": layers.Dense(2, name="size")(h),
    }
    return keras.Model({"a": a, "b": b}, heads)


def ensemble():
    return kd.SpecialistEnsemble(
        mlp(), [mlp(classes=3), mlp(classes=4)], [[0, 1], [2, 3, 4]]
    )


def words(first=True):
    x = keras.Input((1,), dtype="string", name="x")
    h = layers.Embedding(4, 3)(layers.StringLookup(vocabulary=["ant", "bee"])(x))
    h = h[:, 0] if first else layers.GlobalAveragePooling1D()(h)
    return keras.Model(x, layers.Dense(3)(h))


def half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    return convolutions()


def spec(*shape, dtype=tf.float32):
    return {"input_signature": tf.TensorSpec(shape, dtype, name="x")}


def scaled(raw):
    return tf.image.resize(tf.cast(raw, tf.float32) / 255.0, (12, 12))


TOKENS = RNG.integers(1, 10, size=(40, 6)).astype("int32")
TOKENS[:, 4:] = 0  # padding
IMAGES = numbers(40, 12, 12, 3)
NAMES = ["ant", "bee", "cat", "dog", "eel"]
