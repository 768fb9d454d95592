"""ESMM cut behind its first layers: each input's share of them can be made where and as often as the input changes."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from esmm.embedding import Feature, SharedEmbedding
from esmm.model import SharedTowers
from esmm.sharing import GatedExperts, Hierarchy, SharedBottom, mixed

__all__ = ["InputShare", "SplitTowers"]


class InputShare(tf.Module):
    """Some features' share of the first layers: `W_f x_f`, summed over them.

    The wide part counts as more columns: an id's row holds its embedding and beside it its wide weights, and the kernel
    passes these on. So one look-up and one matrix product make the share of both.

    Args:
        towers: SharedTowers. Trained.
        names: sequence of str. The features, at least one.
        kernel: float32 `[width of the embedding, columns]`. Of all first layers, side by side.

    Returns:
        float32 `[B, columns + tasks]` (without a wide part `[B, columns]`) of a dict of the features.

    Raises:
        ValueError: no names, or a name that is no feature of the towers.
    """

    def __init__(self, towers: SharedTowers, names: Sequence[str], kernel: np.ndarray) -> None:
        super().__init__()
        whole, wide = towers.embedding, towers.wide
        unknown = sorted(set(names) - {feature.name for feature in whole.features})
        if not names or unknown:
            raise ValueError(f"`names` should be features of the towers. Received: {list(names)}, unknown {unknown}.")
        tasks = len(towers.tasks) if wide is not None else 0
        self.features: list[Feature] = [feature for feature in whole.features if feature.name in set(names)]
        ids = [f for f in (*whole.categorical, *whole.multi) if f in self.features]
        self.numeric = [feature for feature in self.features if feature.kind == "numeric"]
        self._lookup = None
        if ids:
            table = _trimmed_table(towers, ids, whole.dim + tasks)
            # The variable and a function, not the layer: tracked, it would be saved with all that Keras keeps of it.
            self.table, self._lookup = table.table.value, table.lookup
        rows = []
        for feature in ids:
            start = (*whole.categorical, *whole.multi).index(feature) * whole.dim
            rows.append(np.pad(kernel[start : start + whole.dim], ((0, tasks), (0, tasks))))
            rows[-1][whole.dim :, kernel.shape[1] :] = np.eye(tasks)
        start = 0
        for feature in whole.numeric:
            end = start + max(feature.size, 1)
            if feature in self.numeric:
                deep = kernel[len(kernel) - whole.numeric_width :][start:end]
                rows.append(np.hstack([deep, np.asarray(wide.kernel)[start:end]]) if wide is not None else deep)
            start = end
        self.kernel = tf.Variable(np.concatenate(rows).astype(np.float32), trainable=False)

    def vector(self, inputs: Mapping[str, Any]) -> tf.Tensor:
        """The features' part of what the first layers read, `[B, rows of the kernel]`."""
        parts = []
        if self._lookup is not None:
            vectors = self._lookup(inputs)[0]  # [B, F, dim]
            parts.append(tf.reshape(vectors, [-1, vectors.shape[1] * vectors.shape[2]]))
        parts += [tf.reshape(inputs[f.name], [-1, max(f.size, 1)]) for f in self.numeric]
        return tf.concat(parts, axis=1) if len(parts) > 1 else parts[0]

    def __call__(self, inputs: Mapping[str, Any]) -> tf.Tensor:
        """The share, `[B, columns]`."""
        return tf.matmul(self.vector(inputs), self.kernel)


def _trimmed_table(towers: SharedTowers, ids: Sequence[Feature], dim: int) -> SharedEmbedding:
    """A table of the vocabularies of some features: embedding and wide weights side by side."""
    whole, wide = towers.embedding, towers.wide
    values = np.asarray(whole.table)
    if wide is not None:
        values = np.hstack([values, np.asarray(wide.table)])  # the same features in the same order: the same rows
    table = SharedEmbedding(ids, dim, initializer="zeros")
    table.build({name: (None, *f.input_shape) for f in ids for name in (f.name, f.weights) if name})
    blocks = {f.table: values[whole.offsets[f.table] :][: f.size] for f in ids}
    table.table.assign(np.concatenate([blocks[name] for name in table.offsets]))
    return table


class _Layer(tf.Module):
    """A trained dense layer, without dropout."""

    def __init__(self, layer: keras.layers.Dense, rows: slice = slice(None)) -> None:
        super().__init__()
        self.kernel = tf.Variable(np.asarray(layer.kernel, np.float32)[rows], trainable=False)
        self.bias = tf.Variable(np.asarray(layer.bias, np.float32), trainable=False)
        self.relu = layer.activation is keras.activations.relu

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        outputs = tf.nn.bias_add(tf.matmul(x, self.kernel), self.bias)
        return tf.nn.relu(outputs) if self.relu else outputs


def _dense(sequential: keras.Sequential) -> list[keras.layers.Dense]:
    return [layer for layer in sequential.layers if isinstance(layer, keras.layers.Dense)]


class SplitTowers(tf.Module):
    """A trained `SharedTowers` in two halves: shares of the first layers by input, and all that comes after.

    The first layers of all tasks read one vector, so that they are one matrix product, and this is a sum over features:

        first = b + sum over features f of W_f x_f,   logits = rest(first)

    A feature that is the same for many rows is then multiplied once, and one that seldom changes ahead of time.

    Args:
        towers: SharedTowers. Trained, with any sharing; dropout is left out.

    Attributes:
        sizes: tuple of int. Columns of each first layer, side by side; where there is a wide part, its logits are the
            last columns. Their sum is the width of a share.
        bias: float32 variable `[sum of sizes]`. Belongs in the sum once.

    Example:
        >>> split = SplitTowers(esmm.get_layer("shared_towers"))
        >>> user, item = split.share(["user_id"]), split.share(["item_id"])
        >>> logits = split.logits(user({"user_id": one}) + item({"item_id": many}) + split.bias)
    """

    def __init__(self, towers: SharedTowers) -> None:
        super().__init__()
        width, sharing = towers.embedding.width, towers.sharing
        own = [_dense(tower) for tower in towers.towers]  # the layers of each task alone
        if sharing is None:
            first = [layers.pop(0) for layers in own]
        elif isinstance(sharing, SharedBottom):
            first = _dense(sharing.bottom)
        elif isinstance(sharing, GatedExperts):
            first = [sharing.shared, *sharing.own, *sharing.gates]
        else:
            levels = [_dense(level) for level in sharing.levels]
            first = [layers.pop(0) for layers in levels]
            # What a level reads of the one below it comes after its first layer's share of the input.
            self.below = [tf.Variable(np.asarray(layer.kernel)[width:], trainable=False) for layer in first[1:]]
            self.levels = [[_Layer(layer) for layer in layers] for layers in levels]
        self.sharing = _Plan(sharing)
        self.tasks, self.wide = len(towers.tasks), towers.wide is not None
        self.relu = first[0].activation is keras.activations.relu
        self.own = [[_Layer(layer) for layer in layers] for layers in own]
        wide = (self.tasks,) if self.wide else ()
        self.sizes = (*(layer.units for layer in first), *wide)
        biases = [np.zeros(layer.units) if layer.bias is None else np.asarray(layer.bias) for layer in first]
        self.bias = tf.Variable(np.concatenate([*biases, *map(np.zeros, wide)]).astype(np.float32), trainable=False)
        # Made of the whole kernel when asked for, and not kept: a version holds only the shares that it computes.
        kernel = np.hstack([np.asarray(layer.kernel, np.float32)[:width] for layer in first])
        self.share = lambda names: InputShare(towers, names, kernel)

    def logits(self, first: Sequence[tf.Tensor]) -> tf.Tensor:
        """Logits `[B, tasks]` of the first layers before their activation: one `[B, size]` for each of `sizes`."""
        parts = list(first)
        wide = parts.pop() if self.wide else None
        read = self._read(parts)
        for task, layers in enumerate(self.own):
            for layer in layers:
                read[task] = layer(read[task])
        logits = tf.concat(read, axis=1)  # [B, tasks]
        return logits if wide is None else logits + wide

    def _read(self, first: list[tf.Tensor]) -> list[tf.Tensor]:
        """What each task's own layers read."""
        active = [tf.nn.relu(part) if self.relu else part for part in first]
        plan = self.sharing
        if plan.kind is GatedExperts:
            gates = [tf.nn.softmax(part) for part in first[-self.tasks :]]
            shared = tf.split(active[0], plan.experts, axis=1)
            own = [tf.split(part, plan.private, axis=1) for part in active[1 : -self.tasks]] or [[]] * self.tasks
            return [mixed([*shared, *alone], gate) for alone, gate in zip(own, gates, strict=True)]
        if plan.kind is SharedBottom:
            return active * self.tasks
        if plan.kind is Hierarchy:
            made: list[tf.Tensor] = []
            for level, part in enumerate(first):
                below = part + tf.matmul(made[-1], self.below[level - 1]) if level else part
                outputs = tf.nn.relu(below)
                for layer in self.levels[level]:
                    outputs = layer(outputs)
                made.append(outputs)
            return made
        return active


class _Plan:
    """What is remembered of a sharing layer: not the layer, whose variables would be saved a second time."""

    def __init__(self, sharing: Any) -> None:
        self.kind = type(sharing)
        self.experts = getattr(sharing, "experts", 0)
        self.private = getattr(sharing, "private", 0)
