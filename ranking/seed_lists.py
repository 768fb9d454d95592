"""The lists of an expansion: read, matched with a population, and refused where they cannot do."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranking.errors import UserError
from ranking.id_matching import Found, Matcher, joined, resolved
from ranking.population import Population
from ranking.seeds_file import Ids, ids_of, read_ids

__all__ = ["Lists", "Reader", "SeedUsers", "refuse_unusable", "seed_users"]

Lists = str | Path | Sequence[str | Path] | Mapping[str, str | Path | Iterable[Any]]


@dataclass(frozen=True)
class SeedUsers:
    """One list of seeds, matched.

    Args:
        name: str.
        source: str. Its file or files, for messages.
        ids: int. How many different ids it has.
        seeds: Found. Its users; who is a negative too is none of them.
        negatives: int64 `[n]`, ascending. Rows of the negatives who are no seeds.
        known: int64 `[n]`, ascending. Rows of all seeds and negatives, contradicting ones too: none of them is in the
            audience.
    """

    name: str
    source: str
    ids: int
    seeds: Found
    negatives: NDArray[np.int64]
    known: NDArray[np.int64]


@dataclass(frozen=True)
class Reader:
    """Reads lists as the ids of a population are.

    Args:
        population: `Population`.
        hashed: bool. Whether they are digests.
        drop_bad: bool. Whether duplicate and malformed ids are left out.
    """

    population: Population
    hashed: bool
    drop_bad: bool

    def read(self, name: str, given: Any, *, least: int = 1, repeats: bool = False) -> Ids:
        """One list, from a path or from ids, of at least so many ids."""
        kind, drop = self.population.kind, self.drop_bad
        if isinstance(given, str | Path):
            ids = read_ids(given, kind, hashed=self.hashed, drop_bad=drop, repeats=repeats)
        else:
            ids = ids_of(given, kind, name=name, hashed=self.hashed, drop_bad=drop, repeats=repeats)
        if len(ids) < least:
            bad = f", {ids.malformed:,} of them malformed" if ids.malformed else ""
            raise UserError(f"{ids.source}: should hold at least one user id. Received: {ids.rows:,} rows{bad}.")
        return ids

    def lists(self, given: Lists, name: str, *, least: int = 1, repeats: bool = False) -> list[Ids]:
        """Several lists, each with a name of its own."""
        if isinstance(given, str | Path):
            given = [given]
        if isinstance(given, Mapping):
            named = [
                dataclasses.replace(self.read(key, value, least=least, repeats=repeats), name=key)
                for key, value in given.items()
            ]
        else:
            named = [self.read("", path, least=least, repeats=repeats) for path in given]
        if not named and least:
            raise UserError(f"`{name}` should be at least one list. Received: none.")
        names = [ids.name for ids in named]
        twice = next((ids for ids in named if names.count(ids.name) > 1), None)
        if least and twice is not None:
            raise UserError(f"`{name}`: the lists should have different names. Received: {twice.name!r} twice.")
        for ids in named:
            if least and len(ids) > self.population.size:
                raise UserError(
                    f"{ids.source}: should hold no more ids than the population has users, "
                    f"{self.population.size:,}. Received: {len(ids):,}."
                )
        return named


def seed_users(
    matcher: Matcher, lists: Sequence[Ids], against: Ids | None, *, together: bool, drop_bad: bool
) -> list[SeedUsers]:
    """Who is meant by the lists, contradicting ones taken out of both sides.

    Args:
        matcher: `Matcher` that has seen the population.
        lists: sequence of `Ids`.
        against: `Ids` or `None`. The negatives.
        together: bool. Whether the lists are one.
        drop_bad: bool. As in `resolved`.

    Raises:
        UserError: nobody is left of the negatives.
    """
    none = np.zeros(0, np.int64)
    negatives = none if against is None else resolved(matcher, against, none, drop_bad=drop_bad).rows
    if against is not None and not len(negatives):
        raise UserError(f"{against.source}: none of its {len(against):,} ids is of a user of the population.")
    meant = [resolved(matcher, ids, none, drop_bad=drop_bad).rows for ids in lists]
    found = [resolved(matcher, ids, negatives, drop_bad=drop_bad) for ids in lists]
    if together:
        sources = " + ".join(ids.source for ids in lists)
        name, size = "+".join(ids.name for ids in lists), sum(map(len, lists))
        meant, found, names = [np.concatenate(meant)], [joined(found)], [(name, sources, size)]
    else:
        names = [(ids.name, ids.source, len(ids)) for ids in lists]
    entries = []
    for (name, source, size), rows, seeds in zip(names, meant, found, strict=True):
        left = np.setdiff1d(negatives, rows)
        if against is not None and not len(left):
            raise UserError(f"{against.source}: should hold somebody who is not on {source} too. Received: nobody.")
        entries.append(SeedUsers(name, source, size, seeds, left, np.union1d(rows, negatives)))
    return entries


def refuse_unusable(users: SeedUsers, eligible: NDArray[np.bool_], *, min_seeds: int, size: int | None) -> None:
    """Refuses a list with too few seeds, or with fewer users to choose from than are wanted.

    Args:
        users: `SeedUsers`.
        eligible: bool `[population]`. Who may be chosen.
        min_seeds: int. Fewest seeds.
        size: int or `None`. How many users are wanted, where it is a number.

    Raises:
        UserError: it cannot do.
    """
    match = users.seeds.match
    if not match.matched and not match.contradicting:
        raise UserError(f"{users.source}: none of its {users.ids:,} ids is of a user of the population.")
    if match.matched < min_seeds:
        also = f" ({match.contradicting:,} more are on the negative list)" if match.contradicting else ""
        raise UserError(
            f"{users.source}: should have at least {min_seeds:,} seeds in the population (--min-seeds). "
            f"Received: {match.matched:,} of {users.ids:,} ids{also}."
        )
    left = int(eligible.sum() - eligible[users.known].sum())
    if not left:
        raise UserError(f"{users.source}: nobody is left to choose from, because everyone who could be is on it.")
    if size is not None and size > left:
        raise UserError(
            f"`size` should be at most {left:,}, the users who can be chosen for {users.name!r}. Received: {size:,}."
        )
