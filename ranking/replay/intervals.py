"""Intervals that respect that a user's requests resemble each other: bootstrap over users, paired with production."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

__all__ = ["USERS", "PairedDeltas", "Resamples", "paired_deltas", "resample"]

USERS = 256  # users whose resampling weights are drawn together


@dataclass(frozen=True)
class PairedDeltas:
    """Means of some settings and their relative changes against production.

    Args:
        value: float64 `[S]`. Mean a request.
        value_error: float64 `[S]`. Its standard error.
        delta: float64 `[S]`. `value / production - 1`.
        low: float64 `[S]`. Lower end of the interval of the change.
        high: float64 `[S]`. Upper end.
    """

    value: np.ndarray
    value_error: np.ndarray
    delta: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Resamples:
    """Means of outputs under some settings, production last, and the same means of each resample.

    Args:
        mean: dict of str to float64 `[S + 1]`.
        drawn: dict of str to float64 `[B, S + 1]`.
    """

    mean: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]

    def deltas(
        self,
        name: str,
        *,
        below: str = "",
        shift: np.ndarray | None = None,
        level: float = 0.95,
        together: bool = True,
    ) -> PairedDeltas:
        """Changes against production, with intervals.

        The intervals of all settings hold together (max-t): with `se_s` the standard error of the change `d_s` over
        resamples, half widths are `c se_s` where `c` is the `level` quantile of `max_s |d*_s - d_s| / se_s`. A pick
        among ten settings is thus not flattered by having been the luckiest of ten.

        Args:
            name: str. An output.
            below: str. The output whose mean divides it, resampled with it. Defaults to none.
            shift: float64 `[B, S + 1]`. Added to the means of each resample: another source of error. Defaults to none.
            level: float. Probability that the intervals hold. Defaults to `0.95`.
            together: bool. Whether they hold all at once, or each for itself. Defaults to `True`.

        Returns:
            `PairedDeltas`. All NaN where production's mean is not positive.

        Reference: Romano & Wolf 2005 (max-t).
        """
        if not 0 < level < 1:
            raise ValueError(f"`level` should be in (0, 1). Received: level={level}.")
        with np.errstate(divide="ignore", invalid="ignore"):
            value = self.mean[name] / (self.mean[below] if below else 1)
            drawn = self.drawn[name] / (self.drawn[below] if below else 1)
        drawn = drawn if shift is None else drawn + shift
        if not value[-1] > 0:
            nothing = np.full(len(value) - 1, np.nan)
            return PairedDeltas(nothing, nothing, nothing, nothing, nothing)
        drawn = drawn[np.isfinite(drawn).all(axis=1) & (drawn[:, -1] > 0)]
        delta, changes = value[:-1] / value[-1] - 1, drawn[:, :-1] / drawn[:, -1:] - 1
        error = changes.std(axis=0, ddof=1)
        error = np.where(error < 1e-7, 0, error)  # the same order as production, up to float32 sums
        errors = NormalDist().inv_cdf((1 + level) / 2)  # half widths in standard errors
        if together and delta.size:
            deviation = np.abs(changes - delta) / np.where(error > 0, error, np.inf)
            errors = max(errors, float(np.quantile(deviation.max(axis=1), level)))
        width = errors * error
        return PairedDeltas(value[:-1], drawn[:, :-1].std(axis=0, ddof=1), delta, delta - width, delta + width)


def resample(
    blocks: Iterable[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]], replicates: int = 1000, seed: int = 0
) -> Resamples:
    """Poisson bootstrap over users: one draw of a user's weight for every setting and every output.

    Users come in blocks, so that what is held grows with `settings * users of a block`. The weights of a user depend
    on the seed and the user's number alone, not on how many settings are asked about.

    Args:
        blocks: iterable of (sums, counts), users in order: dict of str to float32 `[u, S + 1]`, production last, and
            how many requests of each user count, dict of str to int `[u]`. Every block but the last has a multiple of
            `USERS` users.
        replicates: int. Resamples. Defaults to `1000`.
        seed: int. Random seed. Defaults to `0`.

    Reference: Oza 2001 (Poisson bootstrap).
    """
    if replicates < 2:
        raise ValueError(f"`replicates` should be at least 2. Received: replicates={replicates}.")
    total: dict[str, np.ndarray] = {}
    drawn: dict[str, np.ndarray] = {}
    begin = 0
    for sums, counts in blocks:
        users = len(next(iter(sums.values())))
        weight = np.empty((replicates, users), np.float32)
        for low in range(0, users, USERS):
            generator = np.random.default_rng([seed, (begin + low) // USERS])
            weight[:, low : low + USERS] = generator.poisson(1.0, (replicates, USERS))[:, : users - low]
        begin += users
        for name, rows in sums.items():
            if name not in total:
                total[name] = np.zeros(rows.shape[1] + 1)
                drawn[name] = np.zeros((replicates, rows.shape[1] + 1))
            total[name] += np.append(rows.sum(axis=0, dtype=np.float64), counts[name].sum())
            drawn[name][:, :-1] += weight @ rows.astype(np.float32, copy=False)
            drawn[name][:, -1] += weight @ counts[name].astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        for rows in drawn.values():
            rows[:, :-1] /= rows[:, -1:]
        mean = {name: row[:-1] / row[-1] for name, row in total.items()}
    return Resamples(mean, {name: rows[:, :-1] for name, rows in drawn.items()})


def paired_deltas(
    values: np.ndarray,
    production: np.ndarray,
    counted: np.ndarray,
    cluster: np.ndarray,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    together: bool = True,
    seed: int = 0,
) -> PairedDeltas:
    """`resample` and `Resamples.deltas` on the values of each request, where these are at hand.

    Args:
        values: float32 `[S, R]`. The number of each request under each setting.
        production: float32 `[R]`. The same under the production weights.
        counted: bool `[R]`. Which requests count.
        cluster: int64 `[R]`. What is resampled: the user of each request.
        replicates: int. Resamples. Defaults to `1000`.
        level: float. Probability that the intervals hold. Defaults to `0.95`.
        together: bool. Whether they hold all at once, or each for itself. Defaults to `True`.
        seed: int. Random seed. Defaults to `0`.

    Returns:
        `PairedDeltas`.
    """
    everything = np.vstack([values, production[None]])[:, counted].astype(np.float64)  # [S + 1, R']
    if not everything.shape[1]:
        nothing = np.full(len(values), np.nan)
        return PairedDeltas(nothing, nothing, nothing, nothing, nothing)
    _, user = np.unique(cluster[counted], return_inverse=True)
    by_user = np.stack([np.bincount(user, weights=row) for row in everything], axis=1)  # [U, S + 1]
    found = resample([({"": by_user}, {"": np.bincount(user)})], replicates, seed)
    return found.deltas("", level=level, together=together)
