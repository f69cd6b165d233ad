"""Pairs and paths of recurrent models, and of layers that a dict holds."""

import keras
import numpy as np
from keras import layers

import keras_distill as kd


def test_directions_of_one_bidirectional_layer_are_no_blocks():
    def model(width):
        inputs = keras.Input((6, 3))
        both = layers.LSTM(width, return_sequences=True)
        hidden = layers.Bidirectional(both, name="both")(inputs)
        return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(hidden)))

    assert kd.suggest_feature_pairs(model(2), model(4)) == [("both", "both")]


def test_layers_of_one_name_in_a_dict_have_paths():
    class Held(keras.Model):
        def __init__(self):
            super().__init__()
            self.held = {key: layers.Dense(4, name="x") for key in ("a", "b")}

        def call(self, inputs):
            return self.held["b"](self.held["a"](inputs))

    found = kd.feature_paths(Held(), np.ones((2, 3), "float32"))
    assert found == {"held.a": (None, 4), "held.b": (None, 4)}
