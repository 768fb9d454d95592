"""What the look-alike stages are fitted on: positives, labelled samples and seeds of the look-alike window."""

import dataclasses

import numpy as np
import scipy.sparse

from lookalike.clustering import Clusters
from lookalike.sampling import limit_positives, sample_negatives
from ranking.errors import UserError
from ranking.features import Arrays, Encoder, gather
from ranking.timeline import Timeline

__all__ = ["Samples", "Seeds", "lookalike_samples", "positives"]

POSITIVES = 50  # a user at most, RALM 1.1


def positives(timeline: Timeline, encoder: Encoder) -> tuple[np.ndarray, Arrays]:
    """Users and inputs of the seed events of the look-alike window, at most 50 a user; `positive` is the item."""
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
    profile = encoder.profile(timeline)
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
    arrays["positive"] = encoder.vocabularies["item"].encode(timeline.item_ids)[item[chosen]]
    return user[chosen], arrays


@dataclasses.dataclass(frozen=True)
class Samples:
    """Who was shown what in the look-alike window, and whether it became a seed event: arrays `[n]`."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    order: np.ndarray
    label: np.ndarray

    def take(self, chosen: np.ndarray) -> "Samples":
        """The chosen samples."""
        return Samples(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


def lookalike_samples(timeline: Timeline) -> Samples:
    """The samples of a timeline: its impressions, or the behaviours that `seed_sample` names."""
    start, end = timeline.window("lookalike")
    source = timeline.schema.seed_sample
    if source == "impressions":
        rows = timeline.rows_in("lookalike")
        event = timeline.schema.seed_event
        event = event if event in timeline.schema.funnel else "click"
        known = timeline.label_time[event][rows] < end  # a label that came later belongs to the future
        label = timeline.impressions[event].to_numpy()[rows] * known
        order = np.full(len(rows), np.iinfo(np.int64).min)
        return Samples(timeline.user[rows], timeline.item[rows], timeline.time[rows], order, label)
    shown = timeline.behaviors[source.removeprefix("behaviors.")]
    inside = (shown.time >= start) & (shown.time < end)
    user, item, moment, order = (a[inside] for a in (shown.user, shown.value, shown.time, shown.order))
    everything = np.stack([user, item, moment, order], axis=1)
    positive = np.stack(timeline.seed_events(), axis=1)
    _, inverse = np.unique(np.concatenate([positive, everything]), axis=0, return_inverse=True)
    label = np.isin(inverse[len(positive) :], inverse[: len(positive)]).astype(np.int8)
    return Samples(user, item, moment, order, label)


class Seeds:
    """The seeds at the end of the look-alike window of the items that have enough: arrays in the order of `cluster`."""

    def __init__(self, timeline: Timeline):
        offsets, users = timeline.seeds(timeline.window("lookalike")[1])
        self.counts = np.diff(offsets)
        self.enough = self.counts >= timeline.schema.min_seeds
        self.users = users[np.repeat(self.enough, self.counts)]
        self.offsets = np.append(0, np.cumsum(np.where(self.enough, self.counts, 0)))
        self._base = len(timeline.user_ids) + 1
        self._pair = np.repeat(np.arange(len(self.counts)), np.diff(self.offsets)) * self._base + self.users

    def own(self, item: np.ndarray, user: np.ndarray, assignment: np.ndarray) -> np.ndarray:
        """The cluster that a user is in among an item's seeds, -1 where he is none of them: int32, broadcast."""
        pair = item * self._base + user
        place = np.searchsorted(self._pair, pair)
        there = np.append(self._pair, -1)[place] == pair
        return np.where(there, np.append(assignment, -1)[place], -1).astype(np.int32)

    def negatives(self, item: np.ndarray, user: np.ndarray, others: int, generator: np.random.Generator) -> np.ndarray:
        """Other items that have seeds, popular ones more often, int64 `[n, others]`; one the user likes is redrawn."""
        ranked = np.flatnonzero(self.enough)
        ranked = ranked[np.argsort(-self.counts[ranked], kind="stable")]
        drawn = ranked[sample_negatives(len(ranked), (len(item), others), generator)]
        nothing = np.zeros(len(self.users), np.int32)
        for _ in range(20):  # of a few items a user may like all: then one stays
            liked = (self.own(drawn, user[:, None], nothing) >= 0) | (drawn == item[:, None])
            if not liked.any():
                break
            drawn[liked] = ranked[sample_negatives(len(ranked), int(liked.sum()), generator)]
        return drawn

    def means(self, vectors: np.ndarray, found: Clusters) -> np.ndarray:
        """Untransformed centroids [items, k, m]: the mean user vector of each cluster."""
        items, k = found.counts.shape
        place = np.repeat(np.arange(items), np.diff(self.offsets)) * k + found.assignment
        members = scipy.sparse.csr_matrix(
            (np.ones(len(place), np.float32), (place, np.arange(len(place)))), shape=(items * k, len(place))
        )
        means = (members @ vectors[self.users]) / np.maximum(found.counts.reshape(-1, 1), 1)
        return means.reshape(items, k, -1).astype(np.float32)
