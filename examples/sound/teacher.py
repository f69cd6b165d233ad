"""The teacher: several networks, each of which hears a recording as of three throats."""

import keras
from sound.network import network
from sound.stretching import Throat

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(model, x, y, epochs, rate=3e-3):
    """Trains a model, or a `Distiller`, and returns it."""
    rate = keras.optimizers.schedules.CosineDecay(rate, epochs * -(-len(y) // 64))
    model.compile(keras.optimizers.Adam(rate), LOSS)
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
    return model


def train_teacher(x, y, networks, epochs):
    """Returns a model from spectrograms to the mean logits of networks and throats."""
    heard = keras.Input(x.shape[1:])
    voices = [Throat(factor)(heard) for factor in (0.85, 1.0, 1.18)]
    answers = []
    for seed in range(networks):
        keras.utils.set_random_seed(seed)
        one = fit(network((16, 32, 48), dropout=0.2), x, y, epochs)
        answers += [one(voice) for voice in voices]
    logits = keras.layers.average(answers)
    return keras.Sequential([heard, keras.Model(heard, logits)])
