"""Raw samples to a log-mel spectrogram, as a Keras layer that LiteRT can run."""

import keras
import tensorflow as tf

SAMPLES, RATE = 8000, 8000  # one second, in Hz
FRAME, STEP, BANDS = 256, 128, 32  # 32 ms, one every 16 ms
FRAMES = 1 + (SAMPLES - FRAME) // STEP


@keras.saving.register_keras_serializable("spoken_digits")
class LogMel(keras.layers.Layer):
    """log(0.1 + mel |STFT(x / rms(x))|), less its mean over time.

    So loud and quiet recordings look the same, and so do those of any microphone.
    Takes float32 `(batch, samples)` at 8 kHz and gives `(batch, frames, 32, 1)`. LiteRT has
    an FFT of its own, so that a file needs none of TensorFlow's operations.
    """

    def call(self, samples):
        """Returns the spectrogram of each recording."""
        power = tf.reduce_mean(tf.square(samples), 1, keepdims=True)
        spectrum = tf.abs(
            tf.signal.stft(samples / (tf.sqrt(power) + 1e-4), FRAME, STEP)
        )
        mel = tf.signal.linear_to_mel_weight_matrix(
            BANDS, FRAME // 2 + 1, RATE, 60.0, 3800.0
        )
        log_mel = tf.math.log(tf.matmul(spectrum, mel) + 0.1)
        log_mel -= tf.reduce_mean(log_mel, 1, keepdims=True)
        # LiteRT's converter does not take [..., None].
        return tf.expand_dims(log_mel, -1)
