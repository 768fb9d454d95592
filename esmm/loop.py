"""One training step for several workers: what `model.fit` does, under a `tf.distribute` strategy."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

__all__ = ["training_step"]


def training_step(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    losses: Mapping[str, keras.losses.Loss],
    *,
    loss_weights: Mapping[str, float] | None = None,
) -> Callable[[Any, Any, Any], tf.Tensor]:
    """The step that `model.fit` takes, for strategies under which Keras 3's `fit` fails.

    Every replica differentiates its part of the batch's loss; with B rows in all parts together

        loss = sum over outputs o of loss_weight[o] / B * sum over rows of weight[o] * loss[o](target, prediction)

    and the optimizer adds the gradients up, rows of tables as `IndexedSlices`. Parts may be of any size, or empty: the
    step is that of one process with all B rows. Under ParameterServerStrategy a worker steps alone, and B is its own
    batch. A loss that compares rows of one batch, such as the self-normalised ones of `esmm.counterfactual`, compares
    those of one part.

    Args:
        model: keras.Model. Made inside the strategy's scope; its outputs are a dict.
        optimizer: keras optimizer, such as `esmm.RowAdam`. Made there too.
        losses: dict: output -> keras loss of `[B]` values, reduced to their mean; as for `model.compile`.
        loss_weights: dict: output -> float, 1 where left out. Defaults to `None`: all 1.

    Returns:
        A `tf.function` of three dicts, inputs, targets and sample weights (of any of the outputs), each `[b, ...]`: it
        takes a step, and returns the loss of the whole batch, a float32 scalar.

    Raises:
        ValueError: a loss for what is no output, a weight without a loss, or a loss that is not reduced to its mean.

    Example:
        >>> with strategy.scope():
        ...     step = training_step(build_esmm(features), RowAdam(), losses())
        >>> for inputs, targets, weights in batches:
        ...     loss = step(inputs, targets, weights)
    """
    outputs = set(model.output) if isinstance(model.output, Mapping) else set()
    if not losses or set(losses) - outputs:
        raise ValueError(f"`losses` should be of outputs {sorted(outputs)}. Received: {sorted(losses)}.")
    if extra := sorted(set(loss_weights or {}) - set(losses)):
        raise ValueError(f"`loss_weights` should be of outputs with a loss. Received: {extra}.")
    for name, loss in losses.items():
        if loss.reduction != "sum_over_batch_size":
            raise ValueError(
                f"`losses` should have reduction 'sum_over_batch_size'. Received: {loss.reduction!r} of {name!r}."
            )
    counts = {name: float((loss_weights or {}).get(name, 1.0)) for name in losses}
    optimizer.build(model.trainable_variables)

    def replica_step(inputs: Any, targets: Any, weights: Any) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        rows = tf.cast(tf.shape(next(iter(targets.values())))[0], tf.float32)
        every = context.all_reduce(tf.distribute.ReduceOp.SUM, rows)
        with tf.GradientTape() as tape:
            found = model(inputs, training=True)
            # The sums are of one number: Keras leaves a batch that it knows to be empty unreduced.
            means = [
                count * tf.reduce_sum(losses[name](targets[name], found[name], sample_weight=weights.get(name)))
                for name, count in counts.items()
            ]
            # Keras has divided its means, which are over this part's rows, by the number of replicas.
            part = tf.add_n(means) * context.num_replicas_in_sync
            part = tf.add_n([part, *model.losses])
            part = tf.math.multiply_no_nan(part, tf.math.divide_no_nan(rows, every))  # a mean over no rows is no number
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(part, [variable.value for variable in variables]), variables)
        return part

    @tf.function(reduce_retracing=True)
    def step(inputs: Any, targets: Any, weights: Any) -> tf.Tensor:
        strategy = tf.distribute.get_strategy()
        parts = strategy.run(replica_step, args=(inputs, targets, weights))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None)

    return step
