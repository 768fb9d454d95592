"""From the scores of a reply to a shown slate, with the exact chance of everything that could have been shown."""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serving.errors import ServingError
from serving.race import LARGEST_SPREAD, expected_looks
from serving.slate_pool import candidate_ids, capped, passed

__all__ = ["EXPLORATIONS", "Shown", "Slate", "make_slate"]

EXPLORATIONS = ("none", "epsilon", "plackett_luce")

_PARTS = ("similarity", "pctr", "pcvr", "price")
_NODES = 64


@dataclass(frozen=True)
class Slate:
    """How slates are made of scores.

    Filters and the category cap come **before** the draw: they decide, from scores and facts alone, which candidates
    are in its pool. The draw is over the pool and nothing is changed after it, so that propensities are exact.

    Reserved places are drawn from the new items, the others from all other candidates: two independent draws from two
    pools. New items are shown at reserved places only, until the other candidates run out.

    Args:
        slots: int. Places of a slate; fewer are filled where there are fewer candidates.
        exploration: str. `"none"` (sorted by score), `"epsilon"` (a uniform order with that chance, else sorted) or
            `"plackett_luce"` (each place drawn with odds exp(score / temperature)). Defaults to `"none"`.
        epsilon: float or None. In (0, 1], of `"epsilon"` only. Defaults to `None`.
        temperature: float or None. Above 0, of `"plackett_luce"` only: the larger, the more is explored. Defaults to
            `None`.
        cap: int or None. Most items of a category in a slate: the best by score are in the pool. Of these places up to
            the number of reserved places, and all but one, are kept for the category's best new items. Defaults to
            `None`.
        reserved: tuple of int. Places, from 0, that are held for new items. Defaults to `()`.
        min_similarity: float or None. A candidate less similar is not shown; one without a similarity is not judged.
            Defaults to `None`.
        examination: tuple of float. P(the user looks at place k), `[slots]`, for exposure propensities: what
            dataset.toml states. Without it they are left to the replay, which can estimate it. Defaults to `()`.

    Raises:
        ServingError: an argument breaks its rule.
    """

    slots: int
    exploration: str = "none"
    epsilon: float | None = None
    temperature: float | None = None
    cap: int | None = None
    reserved: tuple[int, ...] = ()
    min_similarity: float | None = None
    examination: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "reserved", tuple(sorted(self.reserved)))
        object.__setattr__(self, "examination", tuple(float(look) for look in self.examination))
        if not isinstance(self.slots, int) or self.slots < 1:
            raise ServingError(f"`slots` should be a positive integer. Received: slots={self.slots!r}.")
        if self.exploration not in EXPLORATIONS:
            names = ", ".join(EXPLORATIONS)
            raise ServingError(f"`exploration` should be one of {names}. Received: exploration={self.exploration!r}.")
        for name, kind, good, rule in (
            ("epsilon", "epsilon", lambda value: 0 < value <= 1, "in (0, 1]"),
            ("temperature", "plackett_luce", lambda value: 0 < value < np.inf, "a positive number"),
        ):
            value = getattr(self, name)
            if self.exploration != kind and value is not None:
                raise ServingError(
                    f"`{name}` should be given with exploration={kind!r} only. Received: {name}={value}."
                )
            if self.exploration == kind and (value is None or not good(value)):
                raise ServingError(f"`{name}` should be {rule}. Received: {name}={value}.")
        if self.cap is not None and (not isinstance(self.cap, int) or self.cap < 1):
            raise ServingError(f"`cap` should be a positive integer. Received: cap={self.cap!r}.")
        places = [place for place in set(self.reserved) if isinstance(place, int) and 0 <= place < self.slots]
        if len(places) < len(self.reserved):
            rule = f"should be different places from 0 to {self.slots - 1}"
            raise ServingError(f"`reserved` {rule}. Received: reserved={self.reserved}.")
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise ServingError(
                f"`min_similarity` should be in [-1, 1]. Received: min_similarity={self.min_similarity}."
            )
        looks = self.examination
        if looks and (len(looks) != self.slots or not all(0 < look <= 1 for look in looks)):
            rule = f"should be {self.slots} numbers above 0 and up to 1, one a place"
            raise ServingError(f"`examination` {rule}. Received: examination={looks}.")


@dataclass(frozen=True)
class Shown:
    """A slate, and the candidates that it was drawn from: what the log needs.

    Args:
        slate: int64 `[S]`. What to show, in order: rows of the candidates that were given.
        item_id: int64 or object `[n]`. The candidates that passed the filters and the cap.
        score: float32 `[n]`. As served.
        parts: dict of str to float32 `[n]`. Those of similarity (NaN where there is none), pctr, pcvr, price that were
            given.
        position: int32 `[n]`. From 0; -1 where not shown.
        position_propensity: float64 `[n]`. P(this item at this place); NaN where not shown.
        exposure_propensity: float64 `[n]` or None. Sum over places k of examination(k) P(item at k).
        pool: int8 `[n]`. 1: drawn for the reserved places, 0: for the others.
        settings: `Slate`. What made it.
    """

    slate: np.ndarray
    item_id: np.ndarray
    score: np.ndarray
    parts: dict[str, np.ndarray]
    position: np.ndarray
    position_propensity: np.ndarray
    exposure_propensity: np.ndarray | None
    pool: np.ndarray
    settings: Slate = field(repr=False)

    @property
    def items(self) -> np.ndarray:
        """The ids of the slate, in order."""
        shown = np.flatnonzero(self.position >= 0)
        return self.item_id[shown[np.argsort(self.position[shown])]]


def make_slate(
    candidates: Mapping[str, Any],
    settings: Slate,
    generator: np.random.Generator,
    *,
    seen: Collection[Any] = (),
    blocked: Collection[Any] = (),
) -> Shown:
    """Filters, caps, and draws a slate.

    1,000 candidates and 10 places take about a millisecond, nearly all of it the exact propensities of Plackett-Luce.
    The first call of a process compiles for some seconds (the result is kept on disk): make one before serving.

    Args:
        candidates: dict of arrays `[N]`. `item_id` and `score`; what is given of `similarity` (with `has_similarity`),
            `pctr`, `pcvr` and `price` is logged; `category` where `settings` has a cap; `new` (bool) where it has
            reserved places. Other keys, as the other outputs of a reply, are left alone.
        settings: Slate.
        generator: numpy Generator. One a thread: it is not safe to share.
        seen: collection of ids. Not to be shown to this user, as already bought. A set is the fastest.
        blocked: collection of ids. Not to be shown to anybody. A set is the fastest.

    Returns:
        `Shown`; its slate is empty where no candidate is left.

    Raises:
        ServingError: a candidate twice, a column that is missing or of the wrong length, a score that is not a number,
            ids of another type in `seen` or `blocked`, or scores too far apart for the temperature.
    """
    item_id = candidate_ids(candidates)
    columns = _columns(candidates, settings, len(item_id))
    kept = passed(item_id, {"seen": seen, "blocked": blocked})
    if settings.min_similarity is not None:
        kept = kept[~(columns["similarity"][kept] < settings.min_similarity)]
    new = columns["new"][kept] if settings.reserved else np.zeros(len(kept), bool)
    if settings.cap is not None:
        within = capped(columns["category"][kept], columns["score"][kept], new, settings.cap, len(settings.reserved))
        kept, new = kept[within], new[within]
    score = columns["score"][kept]
    position = np.full(len(kept), -1, np.int32)
    own = np.full(len(kept), np.nan)
    exposure = np.zeros(len(kept))
    reserved, ranked = _places(settings, int(new.sum()), int((~new).sum()))
    explored = settings.epsilon is not None and generator.random() < settings.epsilon
    for pool, places in ((np.flatnonzero(~new), ranked), (np.flatnonzero(new), reserved)):
        if not len(places):
            continue
        order = _order(score[pool], settings, generator, explored)[: len(places)]
        local = np.full(len(pool), -1, np.int64)
        local[order] = np.arange(len(places))
        position[pool[order]] = places
        looks = np.asarray(settings.examination or np.ones(settings.slots))[places]
        own[pool], exposure[pool] = _propensities(score[pool], local, looks, settings)
    shown = np.flatnonzero(position >= 0)
    return Shown(
        slate=kept[shown[np.argsort(position[shown])]],
        item_id=item_id[kept],
        score=score,
        parts={name: columns[name][kept] for name in _PARTS if name in columns},
        position=position,
        position_propensity=own,
        exposure_propensity=exposure if settings.examination else None,
        pool=new.astype(np.int8),
        settings=settings,
    )


def _columns(candidates: Mapping[str, Any], settings: Slate, size: int) -> dict[str, np.ndarray]:
    """The columns that are used, each `[size]`."""
    needed = {"score": True, "category": settings.cap is not None, "new": bool(settings.reserved)}
    needed["similarity"] = settings.min_similarity is not None
    found = {}
    for name in ("score", *_PARTS, "has_similarity", "category", "new"):
        if name not in candidates:
            if needed.get(name):
                raise ServingError(f"`candidates` should have a column `{name}`. Received: {sorted(candidates)}.")
            continue
        if name in ("category", "new") and not needed[name]:
            continue
        dtype = bool if name in ("new", "has_similarity") else object if name == "category" else np.float32
        found[name] = np.asarray(candidates[name], dtype)
        if found[name].shape != (size,):
            raise ServingError(f"`{name}` should be [{size}], as item_id. Received: {list(found[name].shape)}.")
    if not np.isfinite(found["score"]).all():
        odd = found["score"][~np.isfinite(found["score"])]
        raise ServingError(f"`score` should be finite numbers. Received: {odd[0]} in {odd.size} of {size}.")
    if "similarity" in found and "has_similarity" in found:
        found["similarity"] = np.where(found["has_similarity"], found["similarity"], np.float32(np.nan))
    return found


def _places(settings: Slate, new: int, others: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of the two draws. Told by the sizes of the pools alone: a draw decides nothing of the other."""
    filled = min(settings.slots, new + others)
    reserved = min(new, max(len(settings.reserved), filled - others))
    # Where new items are too few the first of the reserved places are theirs; where others are, so are the last places.
    theirs = [place for place in settings.reserved if place < filled]
    theirs += [place for place in range(filled - 1, -1, -1) if place not in settings.reserved]
    mine = np.sort(np.array(theirs[:reserved], np.int64))
    return mine, np.setdiff1d(np.arange(filled), mine)


def _order(score: np.ndarray, settings: Slate, generator: np.random.Generator, explored: bool) -> np.ndarray:
    """Rows in the order drawn."""
    if explored:
        return generator.permutation(len(score))
    key = score.astype(np.float64)
    if settings.temperature is not None:
        # The order of logits with Gumbel noise is a Plackett-Luce draw.
        key = key / settings.temperature + generator.gumbel(size=len(key))
    return np.argsort(-key, kind="stable")


@functools.cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(_NODES)


def _propensities(
    score: np.ndarray, place: np.ndarray, looks: np.ndarray, settings: Slate
) -> tuple[np.ndarray, np.ndarray]:
    """P(row at its place), NaN where not shown, and the sum over places of looks P(row at place), of one draw."""
    if settings.temperature is not None:
        logit = score.astype(np.float64) / settings.temperature
        spread = float(logit.max() - logit.min())
        if spread > LARGEST_SPREAD:
            raise ServingError(
                f"`temperature` should be larger: scores of one request should span less than {LARGEST_SPREAD:.0f} "
                f"temperatures. Received: temperature={settings.temperature}, a span of {spread:.0f}."
            )
        exposure, own = np.empty(len(score)), np.empty(len(score))
        expected_looks(np.exp(logit - logit.max()), place, looks, *_quadrature(), exposure, own)
        return own, exposure
    epsilon = settings.epsilon or 0.0
    best = np.argsort(-score.astype(np.float64), kind="stable")[: len(looks)]
    exposure = np.full(len(score), epsilon / len(score) * looks.sum())
    exposure[best] += (1 - epsilon) * looks
    own = np.where(place >= 0, epsilon / len(score), np.nan)
    own[best] += np.where(place[best] == np.arange(len(best)), 1 - epsilon, 0.0)
    return own, exposure
