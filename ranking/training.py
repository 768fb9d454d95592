"""The stages: user representation, look-alike, then ESMM on what the first two say."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import scipy.sparse
import tensorflow as tf

from esmm.embedding import Feature
from esmm.model import build_esmm, losses, targets
from esmm.optimizers import RowAdam
from esmm.strategies import base_losses, base_targets, base_weights, build_base
from lookalike.clustering import Clusters, cluster
from lookalike.representation import UserRepresentation, build_next_item_model
from lookalike.sampling import limit_positives, sample_negatives
from lookalike.similarity import LookalikeModel, build_similarity_trainer
from ranking.batches import Progress, Steps, batches, silent, tf_function
from ranking.errors import UserError
from ranking.features import Arrays, Encoder, gather
from ranking.model import representation_fields
from ranking.state import LLOYD_ITERATIONS, StateBuilder, in_batches, similarity_of
from ranking.timeline import Timeline

__all__ = [
    "Rows",
    "Settings",
    "labelled",
    "train_esmm",
    "train_lookalike",
    "train_representation",
    "training_rows",
]

EPSILON = 1e-5  # of Adam: rows and tasks with few positives have tiny gradients, which 1e-8 makes as loud as any
NEGATIVES = 10  # a positive, RALM 1.1
POSITIVES = 50  # a user at most, RALM 1.1


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the stages are trained.

    Attributes:
        representation_epochs: int. Passes over the positives of the look-alike window.
        lookalike_epochs: int. Passes over its labelled samples; seeds are clustered again before each.
        lookalike_samples: int. At most so many of them.
        epochs: int. ESMM passes to try; the calibrate window chooses how many.
        batch_size: int. Of ESMM.
        learning_rate: float. Of ESMM.
        dropout: float. In ESMM's towers.
    """

    representation_epochs: int = 2
    lookalike_epochs: int = 2
    lookalike_samples: int = 300_000
    epochs: int = 2
    batch_size: int = 1024
    learning_rate: float = 3e-3
    dropout: float = 0.2


@dataclasses.dataclass(frozen=True)
class Rows:
    """Impressions with their features and labels, ready for ESMM.

    Attributes:
        row: int64 `[n]`. Rows of the timeline's impressions.
        features: dict of arrays `[n, ...]`, statistics unscaled; `similarity` is raw, 0 where `has_similarity` is 0.
        click, conversion: float32 `[n]`.
        mature: bool `[n]`. Whether the conversion label is final.
        repeat: bool `[n]`. Whether the user is among the item's seeds already: never trained on.
    """

    row: np.ndarray
    features: Arrays
    click: np.ndarray
    conversion: np.ndarray
    mature: np.ndarray
    repeat: np.ndarray

    def take(self, chosen: np.ndarray) -> "Rows":
        """The chosen rows (bool mask or indices)."""
        return Rows(
            self.row[chosen],
            gather(self.features, chosen),
            self.click[chosen],
            self.conversion[chosen],
            self.mature[chosen],
            self.repeat[chosen],
        )


def train_representation(
    timeline: Timeline, encoder: Encoder, settings: Settings, *, seed: int = 0, progress: Progress = silent
) -> tuple[UserRepresentation, dict[str, Any]]:
    """Stage 1: which item will the user click next? Fitted on the look-alike window only.

    Args:
        timeline: Timeline. The dataset.
        encoder: Encoder. Fitted before the end of the look-alike window, items ranked by seed events.
        settings: Settings.
        seed: int. The random seed.
        progress: Progress.

    Returns:
        The fitted layer, and what happened: examples, losses, examples a second.
    """
    start, end = timeline.window("lookalike")
    user, item, moment, order = timeline.seed_events()
    inside = np.flatnonzero((moment >= start) & (moment < end))
    by = inside[np.lexsort((order[inside], moment[inside]))]
    rank = np.empty(len(user), np.int64)
    rank[by] = np.arange(len(by))
    chosen = inside[limit_positives(user[inside], rank[inside], POSITIVES)]
    if not len(chosen):
        raise UserError(
            f"{timeline.dataset.path}: the lookalike window has no {timeline.schema.seed_event!r} events; "
            "widen [windows] lookalike in dataset.toml."
        )
    index = encoder.vocabularies["item"].encode(timeline.item_ids)[item[chosen]]
    profile = encoder.static(timeline, "user")
    profile.pop("user_id")
    if not profile and not timeline.schema.behaviors:
        raise UserError(
            f"{timeline.dataset.path}/dataset.toml: a user representation needs at least one [features.user] or "
            "[features.behavior]."
        )
    shown = moment
    if timeline.schema.seed_event in timeline.schema.funnel:
        # The label came after the impression; what the user did in between may be the answer itself.
        shown = timeline.time[timeline.events(timeline.schema.seed_event)[0]]
    arrays = gather(profile, user[chosen])
    arrays |= encoder.behavior(timeline, user[chosen], shown[chosen], order[chosen])
    items = encoder.vocabularies["item"].size - 2
    keras.utils.set_random_seed(seed)
    generator = np.random.default_rng(seed)
    layer = UserRepresentation(representation_fields(timeline.schema, encoder))
    model = build_next_item_model(layer, items + 2)
    model.compile(RowAdam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    steps = Steps(progress, "user representation", 512, len(chosen), settings.representation_epochs)
    history = []
    for _ in range(settings.representation_epochs):
        negatives = sample_negatives(items, (len(chosen), NEGATIVES), generator) + 2
        arrays["candidates"] = np.concatenate([index[:, None], negatives], axis=1).astype(np.int32)
        data = batches(
            arrays, np.zeros(len(chosen), np.int32), order=generator.permutation(len(chosen)), batch_size=512
        )
        history.append(float(model.fit(data, shuffle=False, verbose=0, callbacks=[steps]).history["loss"][0]))
    return layer, {"examples": len(chosen), "loss": history, "examples_per_second": steps.per_second}


def _lookalike_samples(timeline: Timeline) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """User, item, time, order and label of who was shown an item in the look-alike window."""
    start, end = timeline.window("lookalike")
    source = timeline.schema.seed_sample
    if source == "impressions":
        rows = timeline.rows_in("lookalike")
        event = timeline.schema.seed_event
        event = event if event in timeline.schema.funnel else "click"
        known = timeline.label_time[event][rows] < end  # a label that came later belongs to the future
        label = timeline.impressions[event].to_numpy()[rows] * known
        order = np.full(len(rows), np.iinfo(np.int64).min)
        return timeline.user[rows], timeline.item[rows], timeline.time[rows], order, label
    shown = timeline.behaviors[source.removeprefix("behaviors.")]
    inside = (shown.time >= start) & (shown.time < end)
    user, item, moment, order = (a[inside] for a in (shown.user, shown.value, shown.time, shown.order))
    everything = np.stack([user, item, moment, order], axis=1)
    positive = np.stack(timeline.seed_events(), axis=1)
    _, inverse = np.unique(np.concatenate([positive, everything]), axis=0, return_inverse=True)
    return user, item, moment, order, np.isin(inverse[len(positive) :], inverse[: len(positive)]).astype(np.int8)


def train_lookalike(
    timeline: Timeline,
    encoder: Encoder,
    representation: UserRepresentation,
    settings: Settings,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[LookalikeModel, dict[str, Any]]:
    """Stage 2: do the seeds of this item look like this user? Fitted on the look-alike window only.

    The seeds are those of the window's end; a sample whose user is one of them is taken out of its centroid in closed
    form. The target's own vector is of the moment it was shown the item: the item is not in its history yet.

    Returns:
        The fitted layer, and what happened: samples, losses, examples a second.
    """
    end = timeline.window("lookalike")[1]
    offsets, users = timeline.seeds(end)
    counts = np.diff(offsets)
    enough = counts >= timeline.schema.min_seeds
    user, item, moment, order, label = _lookalike_samples(timeline)
    chosen = np.flatnonzero(enough[item])
    generator = np.random.default_rng(seed)
    if len(chosen) > settings.lookalike_samples:
        chosen = np.sort(generator.choice(chosen, settings.lookalike_samples, replace=False))
    if not len(chosen):
        raise UserError(
            f"{timeline.dataset.path}: no item has min_seeds = {timeline.schema.min_seeds} seeds at the end of the "
            f"lookalike window (the most seeds of one item: {counts.max(initial=0)}); lower [state] min_seeds."
        )
    user, item, moment, order, label = (a[chosen] for a in (user, item, moment, order, label))
    profile = encoder.static(timeline, "user")
    profile.pop("user_id")
    embed = tf_function(representation)
    vectors = in_batches(embed, gather(profile, user) | encoder.behavior(timeline, user, moment, order))
    everybody = np.arange(len(timeline.user_ids) + 1)
    behaviors = encoder.behavior(timeline, everybody, np.full(len(everybody), end), None)
    seed_vectors = in_batches(embed, {**profile, **behaviors})

    kept = users[np.repeat(enough, counts)]
    offsets = np.append(0, np.cumsum(np.where(enough, counts, 0)))
    base = len(everybody)
    pair = np.repeat(np.arange(len(counts)), np.diff(offsets)) * base + kept
    place = np.searchsorted(pair, item * base + user)
    own = np.append(pair, -1)[place] == item * base + user
    keras.utils.set_random_seed(seed)
    layer = LookalikeModel(seed_vectors.shape[1])
    layer.build()
    rate = float(np.clip(label.mean(), 1e-6, 1 - 1e-6))
    trainer: keras.Model | None = None
    steps = Steps(progress, "look-alike", 512, len(user), settings.lookalike_epochs)
    history = []
    for _ in range(settings.lookalike_epochs):  # the embedding space has moved: cluster again
        transformed = in_batches(lambda batch: layer.transform(batch["user"]), {"user": seed_vectors})
        found = cluster(transformed[kept], offsets, timeline.schema.k, iterations=LLOYD_ITERATIONS, seed=seed)
        if trainer is None:
            some = slice(0, 4096)
            seen = {"user": vectors[some], "centroids": found.centroids[item[some]]}
            mean = float(np.mean(layer({**seen, "centroid_counts": found.counts[item[some]]})))
            trainer = build_similarity_trainer(layer, bias=float(np.log(rate / (1 - rate)) - 5.0 * mean))
            trainer.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
        own_cluster = np.where(own, np.append(found.assignment, -1)[np.where(own, place, -1)], -1)
        arrays = {"user": vectors, "own_cluster": own_cluster.astype(np.int32), "item": item, "who": user}
        data = batches(
            arrays,
            label.astype(np.float32)[:, None],
            order=generator.permutation(len(user)),
            batch_size=512,
            tables={
                "centroids": (_cluster_means(seed_vectors[kept], offsets, found), "item"),
                "counts": (found.counts.astype(np.float32), "item"),
                "own_embedding": (seed_vectors, "who"),
            },
        )
        history.append(float(trainer.fit(data, shuffle=False, verbose=0, callbacks=[steps]).history["loss"][0]))
    base_loss = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    return layer, {
        "examples": len(user),
        "items": int(enough.sum()),
        "loss": history,
        "base_rate_loss": float(base_loss),
        "examples_per_second": steps.per_second,
    }


def _cluster_means(vectors: np.ndarray, offsets: np.ndarray, found: Clusters) -> np.ndarray:
    """Untransformed centroids [items, k, m]: the mean user vector of each cluster."""
    items, k = found.counts.shape
    place = np.repeat(np.arange(items), np.diff(offsets)) * k + found.assignment
    members = scipy.sparse.csr_matrix(
        (np.ones(len(place), np.float32), (place, np.arange(len(place)))), shape=(items * k, len(place))
    )
    means = (members @ vectors) / np.maximum(found.counts.reshape(-1, 1), 1)
    return means.reshape(items, k, -1).astype(np.float32)


def training_rows(
    builder: StateBuilder, *windows: str, user_statistics_at: int | None = None, progress: Progress = silent
) -> Rows:
    """Features and labels of the impressions in some windows, each row as of its own tick.

    Args:
        builder: StateBuilder. Gives the state of a tick.
        *windows: names of windows.
        user_statistics_at: int or `None`, ms. See `StateBuilder.at`; evaluation needs it.
        progress: Progress.
    """
    timeline = builder.timeline
    rows = timeline.some_rows_in(*windows)
    parts: list[Arrays] = []
    places, repeat = [], np.zeros(len(rows), bool)
    for tick, place in timeline.by_tick(rows):
        state = builder.at(tick, user_statistics_at=user_statistics_at)
        user, item = timeline.user[rows[place]], timeline.item[rows[place]]
        found = state.features(user, item, gather(builder.context, rows[place]))
        parts.append(found | similarity_of(builder.lookalike, state, user, item))
        offsets, users, _ = builder.seeds(state.tick)
        base = len(timeline.user_ids)
        pair = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)) * base + users
        repeat[place] = np.isin(item * base + user, pair)
        places.append(place)
        progress("features by tick", sum(map(len, places)), len(rows))
    back = np.argsort(np.concatenate(places), kind="stable")
    features = {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}
    return labelled(timeline, rows, features, repeat)


def labelled(timeline: Timeline, rows: np.ndarray, features: Arrays, repeat: np.ndarray) -> Rows:
    """Adds labels, and the position where it is logged, to the features of impressions."""
    click, conversion = (timeline.impressions[label].to_numpy(np.float32)[rows] for label in timeline.schema.funnel[:2])
    if "position" in timeline.impressions:
        features = {**features, "position": timeline.impressions["position"].to_numpy(np.int32)[rows] + 1}
    return Rows(rows, features, click, conversion, timeline.mature(rows), repeat)


def _inside(label: np.ndarray) -> float:
    """The rate of a label, kept inside (0, 1) for a log that has only one class."""
    return float((label.sum() + 0.5) / (len(label) + 1))


def train_esmm(
    rows: Rows,
    features: Sequence[Feature],
    settings: Settings,
    *,
    validation: Rows | None = None,
    strategy: str = "esmm",
    seed: int = 0,
    progress: Progress = silent,
    stage: str = "ESMM",
) -> tuple[keras.Model, dict[str, Any]]:
    """Stage 3: click and conversion over all impressions, with the similarity among the inputs.

    Args:
        rows: Rows. Scaled features; repeats are dropped, immature conversions weigh nothing.
        features: sequence of Feature. The inputs to use.
        settings: Settings. Of them `epochs`: how many passes (the most, with `validation`).
        validation: Rows or `None`. With it, training stops at the epoch whose loss there is lowest.
        strategy: str. `"esmm"`, or `"base"`: click and conversion apart, the conversion on clicked rows only.
        seed: int. The random seed.
        progress: Progress.
        stage: str. What progress calls it.

    Returns:
        The model, and what happened: examples, the best number of epochs, losses, examples a second.
    """
    rows = rows.take(~rows.repeat)
    names = [feature.name for feature in features]
    positions = int(rows.features["position"].max()) if "position" in rows.features else 0
    positions = positions if positions > 1 else 0  # one position explains nothing
    keras.utils.set_random_seed(seed)
    mature = rows.mature & (rows.click > 0)
    build, criteria = (build_base, base_losses()) if strategy == "base" else (build_esmm, losses())
    extra: dict[str, Any] = {"positions": positions} if positions else {}
    model = build(
        features,
        dropout=settings.dropout,
        click_rate=_inside(rows.click),
        conversion_rate=_inside(rows.conversion[mature]),
        **extra,
    )
    model.compile(RowAdam(settings.learning_rate, epsilon=EPSILON), criteria)

    def data(of: Rows, order: np.ndarray, size: int) -> tf.data.Dataset:
        arrays = {name: of.features[name] for name in names + (["position"] if positions else [])}
        mature = of.mature.astype(np.float32)
        if strategy == "base":
            labels, weights = base_targets(of.click, of.conversion), base_weights(of.click)
            weights["conversion_logit"] *= mature
        else:
            labels = targets(of.click, of.conversion)
            weights = {"click_logit": np.ones_like(mature), "log_pctcvr": mature}
        return batches(arrays, labels, weights, order=order, batch_size=size)

    generator = np.random.default_rng(seed)
    steps = Steps(progress, stage, settings.batch_size, len(rows.row), settings.epochs)
    history: list[float] = []
    validated: list[float] = []
    best: Any = None
    for _ in range(settings.epochs):
        order = generator.permutation(len(rows.row))
        fitted = model.fit(data(rows, order, settings.batch_size), shuffle=False, verbose=0, callbacks=[steps])
        history.append(float(fitted.history["loss"][0]))
        if validation is not None:
            loss = model.evaluate(data(validation, np.arange(len(validation.row)), 4096), verbose=0, return_dict=True)[
                "loss"
            ]
            validated.append(float(loss))
            if loss > min(validated):
                break
            best = model.get_weights()
    if best is not None:
        model.set_weights(best)
    progress(stage, steps.total, steps.total)
    return model, {
        "examples": len(rows.row),
        "epochs": int(np.argmin(validated)) + 1 if validated else settings.epochs,
        "loss": history,
        "validation_loss": validated,
        "examples_per_second": steps.per_second,
    }
