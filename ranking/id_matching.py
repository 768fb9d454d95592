"""Which users of a population a list of ids means, found in one pass over the population."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ranking.errors import UserError
from ranking.seeds_file import Ids, fingerprint, normalised

__all__ = ["AMBIGUOUS", "UNKNOWN", "Found", "Match", "Matcher", "joined", "resolved"]

UNKNOWN, AMBIGUOUS = -1, -2
_RAW, _NORMALISED, _SHA256 = "raw", "normalised", "sha256"


@dataclass(frozen=True)
class Match:
    """What became of the rows of a list.

        rows = blank + malformed + duplicates + unmatched + contradicting + matched

    Args:
        rows: int. Rows of the file.
        blank: int. Empty ones.
        malformed: int. Those without a readable id.
        duplicates: int. Those that mean a user who came before.
        matched: int. Users of the population: the seeds.
        unmatched: int. Ids that mean nobody, or more than one user.
        contradicting: int. Users who are on the negative list too: neither a seed nor a negative.
        ambiguous: int. Of the unmatched, those that more than one user fits once normalised.
        by: dict. How the matched were found: raw, normalised, sha256.
    """

    rows: int
    blank: int
    malformed: int
    duplicates: int
    matched: int
    unmatched: int
    contradicting: int
    ambiguous: int
    by: dict[str, int]

    @property
    def match_rate(self) -> float:
        """Share of the different ids that mean one user, contradicting ones among them."""
        found = self.matched + self.contradicting
        return found / (found + self.unmatched) if found + self.unmatched else 0.0

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        names = ("rows", "blank", "malformed", "duplicates", "matched", "unmatched", "ambiguous", "contradicting")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {**found, "match_rate": self.match_rate, "by": dict(self.by)}

    def plus(self, other: "Match") -> "Match":
        """The two as one list."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__ if name != "by"}
        return Match(**sums, by={name: self.by[name] + other.by[name] for name in self.by})


class Matcher:
    """Looks for the ids of some lists while a population passes.

    An id is looked for as it is written; where nobody has it, without surrounding white space and without case, if that
    fits exactly one user. A hashed id is compared with the digests of normalised ids.

    Args:
        lists: sequence of `Ids`.
    """

    def __init__(self, lists: Sequence[Ids]):
        plain = [ids for ids in lists if not ids.hashed]
        words = {key for ids in plain if ids.keys.dtype == object for key in ids.keys}
        keys = {
            _RAW: _index([ids.keys for ids in plain]),
            _NORMALISED: pd.Index(sorted({normalised(word) for word in words}), dtype=object),
            _SHA256: _index([ids.keys for ids in lists if ids.hashed]),
        }
        self._keys = {how: index for how, index in keys.items() if len(index)}
        self._found: dict[str, list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = {how: [] for how in self._keys}

    def see(self, rows: NDArray[np.int64], ids: NDArray[Any]) -> NDArray[np.int64]:
        """Compares some users with all lists.

        Args:
            rows: int64 `[n]`. Their row numbers.
            ids: int64 or object array `[n]`.

        Returns:
            int64 array: places in `ids` of the users whom a list may mean.
        """
        any_of = np.zeros(len(ids), bool)
        for how, index in self._keys.items():
            place = index.get_indexer(pd.Index(self._written(how, ids)))
            hits = np.flatnonzero(place >= 0)
            self._found[how].append((place[hits].astype(np.int64), rows[hits]))
            any_of[hits] = True
        return np.flatnonzero(any_of)

    @staticmethod
    def _written(how: str, ids: NDArray[Any]) -> NDArray[Any]:
        if how == _RAW:
            return ids
        change = normalised if how == _NORMALISED else fingerprint
        return np.array([change(user) for user in ids] or [], object)

    def _rows(self, how: str, keys: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The row of each key (the last one where there are several, -1 for none) and how many it has."""
        index = self._keys.get(how)
        if index is None or not len(keys):
            return np.full(len(keys), UNKNOWN), np.zeros(len(keys), np.int64)
        pairs = self._found[how]
        place = np.concatenate([place for place, _ in pairs]) if pairs else np.zeros(0, np.int64)
        row = np.full(len(index), UNKNOWN)
        if pairs:
            row[place] = np.concatenate([rows for _, rows in pairs])
        at = index.get_indexer(pd.Index(keys))
        return row[at], np.bincount(place, minlength=len(index))[at]

    def match(self, ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Who each id of a list is, once the whole population has passed.

        Returns:
            `(row, how)`, both int64 `[n]`: the row, `UNKNOWN` or `AMBIGUOUS`; how it was found, by place in the keys
            of `Match.by`.

        Raises:
            UserError: two users of the population have the very same id.
        """
        how = np.full(len(ids), 2 if ids.hashed else 0)
        row, count = self._rows(_SHA256 if ids.hashed else _RAW, ids.keys)
        if ids.hashed:
            row = np.where(count > 1, AMBIGUOUS, row)
        elif (count > 1).any():
            twice = ids.keys[np.flatnonzero(count > 1)[0]]
            raise UserError(f"The population should hold each `user_id` once. Received: {str(twice)!r} more than once.")
        elif ids.keys.dtype == object:
            other, fits = self._rows(_NORMALISED, np.array([normalised(key) for key in ids.keys] or [], object))
            missing = row == UNKNOWN
            row = np.where(missing, np.where(fits > 1, AMBIGUOUS, other), row)
            how[missing] = 1
        return row, how

    def unknown(self, ids: Ids) -> int:
        """How many ids of a list fit nobody at all."""
        counts = self._rows(_SHA256 if ids.hashed else _RAW, ids.keys)[1]
        if not ids.hashed and ids.keys.dtype == object:
            counts = counts + self._rows(_NORMALISED, np.array([normalised(key) for key in ids.keys] or [], object))[1]
        return int((counts == 0).sum())


def _index(keys: Sequence[NDArray[Any]]) -> pd.Index:
    kept = [part for part in keys if len(part)]
    return pd.Index(np.concatenate(kept)).unique() if kept else pd.Index([], dtype=object)


@dataclass(frozen=True)
class Found:
    """The users of a list.

    Args:
        rows: int64 `[n]`. Their rows in the population.
        weights: float32 `[n]` or `None`.
        how: int64 `[n]`. How each was found, by place in `Match.by`.
        match: Match.
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float32] | None
    how: NDArray[np.int64]
    match: Match


def resolved(matcher: Matcher, ids: Ids, others: NDArray[np.int64], *, drop_bad: bool = False) -> Found:
    """The users of a list who are not on another one, in the order of the list.

    Args:
        matcher: `Matcher` that has seen the population.
        ids: `Ids`.
        others: int64 array. Rows of the users who contradict the list.
        drop_bad: bool. Whether two ids of one user are counted as duplicates. Defaults to `False`: refused.

    Raises:
        UserError: two ids of the list mean the same user.
    """
    row, how = matcher.match(ids)
    known = np.flatnonzero(row >= 0)
    _, first = np.unique(row[known], return_index=True)
    kept = np.sort(known[first])
    again = np.setdiff1d(known, kept)
    if len(again) and not drop_bad:
        other = kept[np.flatnonzero(row[kept] == row[again[0]])[0]]
        raise UserError(
            f"{ids.source}: {len(again):,} duplicate ids once normalised; the first is {ids.keys[again[0]]!r} in line "
            f"{ids.lines[again[0]]}, the user of line {ids.lines[other]}. Leave them out with --drop-bad."
        )
    seeds = kept[~np.isin(row[kept], others)]
    match = Match(
        rows=ids.rows,
        blank=ids.blank,
        malformed=ids.malformed,
        duplicates=ids.duplicates + len(again),
        matched=len(seeds),
        unmatched=int((row < 0).sum()),
        contradicting=len(kept) - len(seeds),
        ambiguous=int((row == AMBIGUOUS).sum()),
        by=_by(how[seeds]),
    )
    return Found(row[seeds], None if ids.weights is None else ids.weights[seeds], how[seeds], match)


def joined(parts: Sequence[Found]) -> Found:
    """Several lists as one: a user of several counts once, with the largest of his weights."""
    rows = np.concatenate([part.rows for part in parts])
    weights = np.concatenate([np.ones(len(p.rows), np.float32) if p.weights is None else p.weights for p in parts])
    match = parts[0].match
    for other in parts[1:]:
        match = match.plus(other.match)
    users, first, place = np.unique(rows, return_index=True, return_inverse=True)
    heaviest = np.zeros(len(users), np.float32)
    np.maximum.at(heaviest, place, weights)
    how = np.concatenate([part.how for part in parts])[first]
    again = len(rows) - len(users)
    match = replace(match, matched=len(users), duplicates=match.duplicates + again, by=_by(how))
    return Found(users, None if all(part.weights is None for part in parts) else heaviest, how, match)


def _by(how: NDArray[np.int64]) -> dict[str, int]:
    return dict(zip((_RAW, _NORMALISED, _SHA256), np.bincount(how, minlength=3).tolist(), strict=True))
