"""What lies between the shared embedding and each task's own tower."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from esmm.architecture import Architecture
from esmm.dropout import ByteDropout

__all__ = ["GatedExperts", "Hierarchy", "SharedBottom", "mixed", "sharing_layer"]


def _hidden(units: int, dropout: float, policy: Any) -> list[keras.layers.Layer]:
    dense = keras.layers.Dense(units, activation="relu", dtype=policy)
    return [dense, ByteDropout(dropout, dtype=policy)]


@keras.saving.register_keras_serializable(package="esmm")
class SharedBottom(keras.layers.Layer):
    """One hidden layer that every task reads: hard sharing.

        output[t] = dropout(relu(W x + b))   for every task t

    Args:
        tasks: int. Number of tasks.
        units: int. Width of the layer.
        dropout: float. In [0, 1). Defaults to `0.0`.

    Returns:
        list of one `[B, units]` a task, all the same tensor.

    Reference: Caruana, Machine Learning 28, 1997.
    """

    def __init__(self, tasks: int, units: int, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _check(tasks, units)
        self.tasks, self.units, self.dropout = int(tasks), int(units), float(dropout)
        self.bottom = keras.Sequential(_hidden(self.units, self.dropout, self.dtype_policy), name="bottom")

    def build(self, input_shape: Any) -> None:
        """Create the layer."""
        self.bottom.build(input_shape)

    def call(self, x: Any, training: bool | None = None) -> list[Any]:
        """What each task's tower reads, of `x` `[B, width]`."""
        return [self.bottom(x, training=training)] * self.tasks

    def freeze(self, task: int) -> None:
        """Stop training what the task reads: all of it."""
        self.trainable = False

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "tasks": self.tasks, "units": self.units, "dropout": self.dropout}


@keras.saving.register_keras_serializable(package="esmm")
class GatedExperts(keras.layers.Layer):
    """Hidden layers that the tasks mix, each by a gate of its own: soft sharing.

    Tasks that agree can share an expert, tasks that do not can each have theirs:

        expert[e] = relu(W_e x + b_e)
        gate[t] = softmax(V_t x),   one weight for each expert that task t sees
        output[t] = dropout(sum over e of gate[t][e] expert[e])

    With `private` 0 every task sees all experts (MMoE). With `private` n it sees the shared ones and n of its own,
    which no other task sees (CGC, one level of PLE): what only one task needs does not disturb the others.

    Args:
        tasks: int. Number of tasks.
        units: int. Width of an expert.
        experts: int. Experts that all tasks see.
        private: int. Experts of each task alone. Defaults to `0`.
        dropout: float. In [0, 1). Defaults to `0.0`.

    Returns:
        list of one `[B, units]` a task.

    Reference: Ma et al., KDD 2018, equations 5 to 7 (MMoE); Tang et al., RecSys 2020, equations 1 to 3 (CGC).
    Departs from the papers: dropout on the mixture.
    """

    def __init__(
        self, tasks: int, units: int, experts: int, *, private: int = 0, dropout: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        _check(tasks, units)
        if experts < 1:
            raise ValueError(f"`experts` should be a positive integer. Received: experts={experts}.")
        if private < 0:
            raise ValueError(f"`private` should not be negative. Received: private={private}.")
        self.tasks, self.units, self.experts, self.private = int(tasks), int(units), int(experts), int(private)
        self.dropout = float(dropout)
        self.shared = self._experts(self.experts, "shared")
        self.own = [self._experts(self.private, f"own_{task}") for task in range(self.tasks)] if self.private else []
        seen = self.experts + self.private
        self.gates = [
            keras.layers.Dense(seen, activation="softmax", use_bias=False, dtype=self.dtype_policy, name=f"gate_{task}")
            for task in range(self.tasks)
        ]
        self.drop = ByteDropout(self.dropout, dtype=self.dtype_policy)

    def _experts(self, count: int, name: str) -> keras.layers.Dense:
        """Several experts side by side: one matrix product for all of them."""
        return keras.layers.Dense(count * self.units, activation="relu", dtype=self.dtype_policy, name=name)

    def build(self, input_shape: Any) -> None:
        """Create the experts and the gates."""
        limit = (6 / (input_shape[-1] + self.units)) ** 0.5  # Glorot's, of one expert and not of all side by side
        for experts in [self.shared, *self.own]:
            experts.kernel_initializer = keras.initializers.RandomUniform(-limit, limit)
        for layer in [self.shared, *self.own, *self.gates]:
            layer.build(input_shape)

    def call(self, x: Any, training: bool | None = None) -> list[Any]:
        """What each task's tower reads, of `x` `[B, width]`."""
        shared = ops.split(self.shared(x), self.experts, axis=1)  # [B, units] each
        mixtures = []
        for task, gate in enumerate(self.gates):
            own = ops.split(self.own[task](x), self.private, axis=1) if self.private else []
            weights = gate(x)  # [B, experts + private]
            mixtures.append(self.drop(mixed([*shared, *own], weights), training=training))
        return mixtures

    def freeze(self, task: int) -> None:
        """Stop training what the task reads: the shared experts, its own and its gate."""
        for layer in [self.shared, self.gates[task], *self.own[task : task + 1]]:
            layer.trainable = False

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        config = {"tasks": self.tasks, "units": self.units, "experts": self.experts, "private": self.private}
        return {**super().get_config(), **config, "dropout": self.dropout}


@keras.saving.register_keras_serializable(package="esmm")
class Hierarchy(keras.layers.Layer):
    """Hidden layers one task above the other: low levels emit the click, high levels the conversion.

    A task late in the funnel reads what the task before it made of the input, and the input itself:

        output[0] = MLP_0(x),   output[t] = MLP_t(concat(x, output[t - 1]))

    Args:
        tasks: int. Number of tasks, in the order of the funnel.
        units: sequence of int. Widths of each MLP's layers, ReLU.
        dropout: float. After each layer, in [0, 1). Defaults to `0.0`.

    Returns:
        list of one `[B, units[-1]]` a task.

    Reference: Søgaard and Goldberg, ACL 2016; Hashimoto et al., EMNLP 2017 (the shortcut from `x`).
    Departs from the papers: feed-forward layers; all tasks are trained together, without label embeddings.
    """

    def __init__(self, tasks: int, units: Sequence[int], dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _check(tasks, *units)
        self.tasks, self.units, self.dropout = int(tasks), tuple(int(width) for width in units), float(dropout)
        if not self.units:
            raise ValueError("`units` should hold the width of a layer. Received: units=().")
        self.levels = [
            keras.Sequential(
                [layer for width in self.units for layer in _hidden(width, self.dropout, self.dtype_policy)],
                name=f"level_{task}",
            )
            for task in range(self.tasks)
        ]

    def build(self, input_shape: Any) -> None:
        """Create the levels."""
        for task, level in enumerate(self.levels):
            level.build((None, input_shape[-1] + (self.units[-1] if task else 0)))

    def call(self, x: Any, training: bool | None = None) -> list[Any]:
        """What each task's logit reads, of `x` `[B, width]`."""
        made = [self.levels[0](x, training=training)]  # [B, units[-1]] each
        for level in self.levels[1:]:
            made.append(level(ops.concatenate([x, made[-1]], axis=1), training=training))
        return made

    def freeze(self, task: int) -> None:
        """Stop training what the task reads: its level and those below."""
        for level in self.levels[: task + 1]:
            level.trainable = False

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "tasks": self.tasks, "units": self.units, "dropout": self.dropout}


def sharing_layer(architecture: Architecture, tasks: int, policy: Any) -> tuple[Any, tuple[int, ...]]:
    """The layer between embedding and towers (None for `"embedding"`), and the widths left to each task's own tower."""
    widths, dropout = architecture.towers, architecture.dropout
    named: dict[str, Any] = {"dropout": dropout, "dtype": policy, "name": "sharing"}
    if architecture.sharing == "embedding":
        return None, widths
    if architecture.sharing == "hierarchical":
        return Hierarchy(tasks, widths, **named), ()
    if architecture.sharing == "hard":
        return SharedBottom(tasks, widths[0], **named), widths[1:]
    private = 1 if architecture.sharing == "shared_private" else 0
    return GatedExperts(tasks, widths[0], architecture.experts, private=private, **named), widths[1:]


def mixed(experts: Sequence[Any], weights: Any) -> Any:
    """The experts' outputs, each `[B, units]`, weighed by `weights` `[B, experts]`: `[B, units]`."""
    return sum(weights[:, e : e + 1] * expert for e, expert in enumerate(experts))


def _check(tasks: int, *units: int) -> None:
    if tasks < 1:
        raise ValueError(f"`tasks` should be a positive integer. Received: tasks={tasks}.")
    if any(width < 1 for width in units):
        raise ValueError(f"`units` should be positive. Received: units={units}.")
