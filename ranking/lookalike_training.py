"""The look-alike stages: the user representation, then the similarity of users to seeds."""

from typing import Any

import keras
import numpy as np
import pandas as pd

from esmm.optimizers import RowAdam
from lookalike.clustering import Clusters, cluster
from lookalike.representation import UserRepresentation, build_next_item_model
from lookalike.sampling import sample_negatives
from lookalike.similarity import LookalikeModel, build_similarity_trainer
from ranking.batches import Progress, Steps, batches, silent, tf_function
from ranking.board import Board
from ranking.errors import UserError
from ranking.features import Arrays, Encoder, gather
from ranking.lookalike_samples import Samples, Seeds, lookalike_samples, positives
from ranking.lookalike_settings import LookalikeSettings
from ranking.metrics import auc
from ranking.model import representation_fields
from ranking.state import LLOYD_ITERATIONS, in_batches
from ranking.timeline import Timeline

__all__ = ["representation_of", "train_lookalike", "train_next_item"]

NEGATIVES = 10  # a positive, RALM 1.1
OTHERS = 5  # items beside the clicked one in the multi-class task
SCALE = 5.0  # where the learned scale of the similarity starts


def _held_out(timeline: Timeline, share: float) -> np.ndarray:
    """Which users' samples are kept for measuring: chosen by their ids alone, so the same ones whoever comes later."""
    hashes = pd.util.hash_array(timeline.user_ids.to_numpy(), categorize=False)
    return hashes < share * 2.0**64


def representation_of(model: keras.Model) -> UserRepresentation:
    """The user representation inside the model of `train_next_item`."""
    return next(layer for layer in model.layers if isinstance(layer, UserRepresentation))


def train_next_item(
    timeline: Timeline,
    encoder: Encoder,
    settings: LookalikeSettings,
    *,
    seed: int = 0,
    progress: Progress = silent,
    board: Board | None = None,
) -> tuple[keras.Model, dict[str, Any]]:
    """Stage 1: which item will the user click next? Fitted on the look-alike window only.

    What is kept of it is `representation_of` the model; with `merge="concat"` the whole, item table and all, is the
    YouTube DNN.

    Args:
        timeline: Timeline. The dataset.
        encoder: Encoder. Fitted before the end of the look-alike window, items ranked by seed events.
        settings: LookalikeSettings.
        seed: int. The random seed.
        progress: Progress.
        board: Board or `None`. Takes the curves.

    Returns:
        The fitted model, and what happened: examples, losses, AUC of the positive against its negatives on held-out
        users, the weights of the field attention, examples a second.
    """
    user, arrays = positives(timeline, encoder)
    items = encoder.vocabularies["item"].size - 2
    keras.utils.set_random_seed(seed)
    generator = np.random.default_rng(seed)
    layer = UserRepresentation(representation_fields(timeline.schema, encoder), merge=settings.merge)
    model = build_next_item_model(
        layer, items + 2, correct_sampling=settings.correct_sampling, remove_hits=settings.remove_hits
    )
    model.compile(RowAdam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    positive = arrays.pop("positive")

    def with_negatives(rows: np.ndarray) -> Arrays:
        negatives = sample_negatives(items, (len(rows), NEGATIVES), generator) + 2
        candidates = np.concatenate([positive[rows, None], negatives], axis=1).astype(np.int32)
        return gather(arrays, rows) | {"candidates": candidates}

    held = _held_out(timeline, settings.holdout)[user]
    kept, rest = np.flatnonzero(~held), np.flatnonzero(held)
    judged = with_negatives(rest)
    steps = Steps(progress, "user representation", 512, len(kept), settings.representation_epochs)
    losses, areas = [], []
    for epoch in range(settings.representation_epochs):
        seen = with_negatives(kept)
        data = batches(seen, np.zeros(len(kept), np.int32), order=generator.permutation(len(kept)), batch_size=512)
        losses.append(float(model.fit(data, shuffle=False, verbose=0, callbacks=[steps]).history["loss"][0]))
        if len(rest):
            areas.append(_next_item_auc(model.predict(judged, 4096, verbose=0)))
        if board is not None:
            board.scalars("representation", epoch, {"loss": losses[-1], "auc": areas[-1] if areas else np.nan})
            for field, weights in _field_weights(layer, gather(arrays, kept[:4096])).items():
                board.histogram("representation", epoch, f"field attention/{field}", weights)
    return model, {
        "examples": len(kept),
        "loss": losses,
        "auc": areas,
        "examples_per_second": steps.per_second,
        "field_attention": _field_table(layer, gather(arrays, kept[:20_000])),
    }


def _next_item_auc(logits: np.ndarray) -> float:
    """Chance that the positive, in column 0, is above one of its negatives; a tie counts half."""
    positive, others = logits[:, :1], logits[:, 1:]
    return float(np.mean((positive > others) + 0.5 * (positive == others)))


def _field_weights(layer: UserRepresentation, arrays: Arrays) -> dict[str, np.ndarray]:
    """Attention weights of each field over the users who have it; empty without attention."""
    if layer.merge != "attention":
        return {}
    weights = in_batches(tf_function(layer.field_attention), arrays)  # [users, fields]
    return {name: weights[weights[:, place] > 0, place] for place, name in enumerate(layer.field_names)}


def _field_table(layer: UserRepresentation, arrays: Arrays) -> list[dict[str, Any]]:
    """Each field: the share of examples that have it, and its attention weight among them."""
    rows = len(next(iter(arrays.values())))
    found = []
    for field, weights in _field_weights(layer, arrays).items():
        marks = np.quantile(weights, [0.1, 0.5, 0.9]) if len(weights) else [None] * 3
        names = ("mean", "low", "median", "high")
        values = (weights.mean() if len(weights) else None, *marks)
        rounded = {n: None if v is None else round(float(v), 4) for n, v in zip(names, values, strict=True)}
        found.append({"field": field, "present": round(len(weights) / rows, 4), **rounded})
    return found


def train_lookalike(
    timeline: Timeline,
    encoder: Encoder,
    representation: UserRepresentation,
    settings: LookalikeSettings,
    *,
    seed: int = 0,
    progress: Progress = silent,
    board: Board | None = None,
) -> tuple[LookalikeModel, dict[str, Any]]:
    """Stage 2: do the seeds of this item look like this user? Fitted on the look-alike window only.

    The seeds are those of the window's end; a sample whose user is one of them is taken out of its centroid in closed
    form. The target's own vector is of the moment it was shown the item: the item is not in its history yet.

    Args:
        timeline: Timeline. The dataset.
        encoder: Encoder. Of the user representation.
        representation: UserRepresentation. Fitted.
        settings: LookalikeSettings.
        seed: int. The random seed.
        progress: Progress.
        board: Board or `None`. Takes the curves.

    Returns:
        The fitted layer, and what happened: samples, losses, AUC of the similarity on held-out users, samples a second.
    """
    generator = np.random.default_rng(seed)
    seeds = Seeds(timeline)
    samples = lookalike_samples(timeline)
    chosen = np.flatnonzero(seeds.enough[samples.item])
    if len(chosen) > settings.samples:
        chosen = np.sort(generator.choice(chosen, settings.samples, replace=False))
    if not len(chosen):
        raise UserError(
            f"{timeline.dataset.path}: no item has min_seeds = {timeline.schema.min_seeds} seeds at the end of the "
            f"lookalike window (the most seeds of one item: {seeds.counts.max(initial=0)}); lower [state] min_seeds."
        )
    samples = samples.take(chosen)
    vectors, seed_vectors = _user_vectors(timeline, encoder, representation, samples)
    held = _held_out(timeline, settings.holdout)[samples.user]
    several = settings.loss == "multiclass"
    kept = np.flatnonzero(~held & (samples.label > 0) if several else ~held)
    keras.utils.set_random_seed(seed)
    layer = LookalikeModel(seed_vectors.shape[1], **settings.model())
    layer.build()
    k = settings.k or timeline.schema.k
    rate = float(np.clip(samples.label.mean(), 1e-6, 1 - 1e-6))
    trainer: keras.Model | None = None
    judge = build_similarity_trainer(layer, name="judge")  # the binary task, whatever is trained
    steps = Steps(progress, "look-alike", 512, len(kept), settings.epochs)
    losses, areas = [], []
    for epoch in range(settings.epochs):  # the embedding space has moved: cluster again
        transformed = in_batches(lambda batch: layer.transform(batch["user"]), {"user": seed_vectors})
        found = cluster(transformed[seeds.users], seeds.offsets, k, iterations=LLOYD_ITERATIONS, seed=seed)
        tables = {
            "centroids": (seeds.means(seed_vectors, found), "item"),
            "counts": (found.counts.astype(np.float32), "item"),
            "own_embedding": (seed_vectors, "who"),
        }
        if trainer is None:
            trainer = _compiled(layer, k, several, _first_bias(layer, found, vectors, samples.item, rate))
        arrays, target = _inputs(samples.take(kept), vectors[kept], seeds, found, generator if several else None)
        data = batches(arrays, target, order=generator.permutation(len(kept)), batch_size=512, tables=tables)
        losses.append(float(trainer.fit(data, shuffle=False, verbose=0, callbacks=[steps]).history["loss"][0]))
        if 0 < samples.label[held].sum() < held.sum():
            arrays, target = _inputs(samples.take(held), vectors[held], seeds, found, None)
            data = batches(arrays, order=np.arange(len(target)), batch_size=4096, tables=tables)
            areas.append(auc(target[:, 0], judge.predict(data, verbose=0)[:, 0]))
        if board is not None:
            board.scalars("look-alike", epoch, {"loss": losses[-1], "auc": areas[-1] if areas else np.nan})
    base_loss = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    return layer, {
        "examples": len(kept),
        "items": int(seeds.enough.sum()),
        "loss": losses,
        "auc": areas,
        "base_rate_loss": float(np.log(1 + OTHERS) if several else base_loss),
        "examples_per_second": steps.per_second,
    }


def _inputs(
    samples: Samples, vectors: np.ndarray, seeds: Seeds, found: Clusters, generator: np.random.Generator | None
) -> tuple[Arrays, np.ndarray]:
    """Inputs and targets of samples; with a generator, those of the multi-class task."""
    item, user = samples.item, samples.user
    if generator is not None:
        item = np.concatenate([item[:, None], seeds.negatives(item, user, OTHERS, generator)], axis=1)
    own = seeds.own(item, user if generator is None else user[:, None], found.assignment)
    arrays = {"user": vectors, "item": item, "who": user, "own_cluster": own}
    if generator is not None:
        return arrays, np.zeros(len(user), np.int32)
    return arrays, samples.label.astype(np.float32)[:, None]


def _first_bias(layer: LookalikeModel, found: Clusters, vectors: np.ndarray, item: np.ndarray, rate: float) -> float:
    """The bias with which the first logits have the base rate."""
    some = item[:4096]
    inputs = {"user": vectors[:4096], "centroids": found.centroids[some], "centroid_counts": found.counts[some]}
    return float(np.log(rate / (1 - rate)) - SCALE * np.mean(layer(inputs)))


def _compiled(layer: LookalikeModel, k: int, several: bool, bias: float) -> keras.Model:
    if several:
        trainer = build_similarity_trainer(layer, items=1 + OTHERS, k=k)
        loss: keras.Loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        trainer = build_similarity_trainer(layer, bias=bias)
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.Adam(1e-3), loss)
    return trainer


def _user_vectors(
    timeline: Timeline, encoder: Encoder, representation: UserRepresentation, samples: Samples
) -> tuple[np.ndarray, np.ndarray]:
    """The users of the samples as they were when shown, and everybody as of the end of the window."""
    profile = encoder.profile(timeline)
    embed = tf_function(representation)
    shown = encoder.behavior(timeline, samples.user, samples.time, samples.order)
    everybody = np.arange(len(timeline.user_ids) + 1)
    end = np.full(len(everybody), timeline.window("lookalike")[1])
    last = encoder.behavior(timeline, everybody, end, None)
    return in_batches(embed, gather(profile, samples.user) | shown), in_batches(embed, {**profile, **last})
