"""Intervals that respect that a user's requests resemble each other: bootstrap over users, paired with production."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

__all__ = ["PairedDeltas", "paired_deltas"]

_CHUNK = 10_000_000  # resampling weights held at once


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


def _resamples(clusters: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Poisson(1) weights of the clusters, a few replicates at a time, float32 `[b, clusters]`."""
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(clusters, 1))
    for begin in range(0, replicates, step):
        yield generator.poisson(1.0, (min(step, replicates - begin), clusters)).astype(np.float32)


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
    """Bootstrap over clusters, the same resample for every setting and production.

    The intervals of all settings hold together (max-t): with `se_s` the bootstrap standard error of the change
    `d_s`, half widths are `c se_s` where `c` is the `level` quantile over replicates of `max_s |d*_s - d_s| / se_s`.
    A pick among ten settings is thus not flattered by having been the luckiest of ten.

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
        `PairedDeltas`. All NaN where production's mean is not positive.

    Reference: Romano & Wolf 2005 (max-t); Oza 2001 (Poisson bootstrap).
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` should be in (0, 1). Received: level={level}.")
    if replicates < 2:
        raise ValueError(f"`replicates` should be at least 2. Received: replicates={replicates}.")
    everything = np.vstack([values, production[None]])[:, counted].astype(np.float64)  # [S + 1, R']
    _, user = np.unique(cluster[counted], return_inverse=True)
    sizes = np.bincount(user)
    clusters = len(sizes)
    nothing = np.full(len(values), np.nan)
    if clusters == 0 or everything[-1].sum() <= 0:
        return PairedDeltas(nothing, nothing, nothing, nothing, nothing)
    by_user = np.stack([np.bincount(user, weights=row, minlength=clusters) for row in everything])  # [S + 1, U]
    means, deltas = [], []
    for weight in _resamples(clusters, replicates, seed):
        sums = weight @ by_user.T.astype(np.float32)  # [b, S + 1]
        usable = sums[:, -1] > 0
        sums = sums[usable].astype(np.float64)
        means.append(sums[:, :-1] / (weight[usable] @ sizes.astype(np.float32))[:, None])
        deltas.append(sums[:, :-1] / sums[:, -1:] - 1)
    total = by_user.sum(axis=1)
    delta = total[:-1] / total[-1] - 1
    drawn = np.concatenate(deltas)  # [B, S]
    error = drawn.std(axis=0, ddof=1)
    error = np.where(error < 1e-7, 0, error)  # the same order as production, up to float32 sums
    errors = NormalDist().inv_cdf((1 + level) / 2)  # half widths in standard errors
    if together:
        deviation = np.abs(drawn - delta) / np.where(error > 0, error, np.inf)
        errors = max(errors, float(np.quantile(deviation.max(axis=1), level)))
    width = errors * error
    return PairedDeltas(
        value=total[:-1] / sizes.sum(),
        value_error=np.concatenate(means).std(axis=0, ddof=1),
        delta=delta,
        low=delta - width,
        high=delta + width,
    )
