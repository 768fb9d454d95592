"""Numbers that every estimator and gate is made of: what weight settings do to the order of every request."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ranking.replay.rank_kernels import LANES, accumulate

__all__ = ["DIVERSITY", "MATCH", "RankSums", "Totals"]

_STRETCHES = 8  # of requests, for the threads: as many on every machine, so that the sums are the same to the last bit
_SMALL = 100_000  # requests times settings under which threads are not worth their start

DIVERSITY = "diversity"

MATCH = -1  # in `gain_of`: worth 1 where the new place is the logged one, else 0


@dataclass(frozen=True)
class Totals:
    """Over the counted requests, of each output.

    Args:
        sum: dict of str to float64 `[S]`.
        squares: dict of str to float64 `[S]`. Sum of the squares.
        largest: dict of str to float64 `[S]`. The largest value, at least 0.
    """

    sum: dict[str, np.ndarray]
    squares: dict[str, np.ndarray]
    largest: dict[str, np.ndarray]


@dataclass(frozen=True)
class RankSums:
    """Numbers of a request that are linear in how much its candidates would be looked at under new weights.

    Every estimator and every support gate of the replay has this one form, with `sigma` the new order of **all**
    candidates of request `r`:

        v_r = sum_i coefficient(i) * gain(sigma(i)),   gain = 0 from slots_r on

    Args:
        offsets: int64 `[R + 1]`. The candidates of each request.
        terms: float32 `[J, n]`. `z_j` of the fusion: scores are linear in the weights.
        slots: int64 `[R]`. How many places each request has, at most `K`.
        cluster: int64 `[R]`. The user (what intervals resample).
        gains: float64 `[G, K]`. What a place is worth: how much it is looked at, or a discount.
        coefficients: dict of str to float32 `[n]`. A number a candidate, for each output.
        gain_of: dict of str to int. Which row of `gains` an output is worth; `MATCH`: 1 where the new place is `place`,
            else 0. Defaults to the first row for each.
        counted: dict of str to bool `[R]`. Which requests an output is averaged over. Defaults to all of them.
        ratios: dict of str to str. Outputs whose mean is divided by the mean of another. Defaults to none.
        place: int32 `[n]` or None. Where each candidate was shown, for `MATCH`.
        category: int32 `[n]` or None. Adds the output `"diversity"`: the chance that two looks at different places fall
            on different categories, with the first row of `gains` (items without a category, -1, are one category).
    """

    offsets: np.ndarray
    terms: np.ndarray
    slots: np.ndarray
    cluster: np.ndarray
    gains: np.ndarray
    coefficients: dict[str, np.ndarray]
    gain_of: dict[str, int] = field(default_factory=dict)
    counted: dict[str, np.ndarray] = field(default_factory=dict)
    ratios: dict[str, str] = field(default_factory=dict)
    place: np.ndarray | None = None
    category: np.ndarray | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all outputs."""
        return (*self.coefficients, *(() if self.category is None else (DIVERSITY,)))

    def requests_counted(self, name: str) -> np.ndarray:
        """Which requests an output is averaged over, bool `[R]`; of diversity, those with two places."""
        everything = self.slots > 1 if name == DIVERSITY else np.ones(len(self.slots), bool)
        return np.asarray(self.counted.get(name, everything), bool)

    def values(self, settings: np.ndarray, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The outputs of every request under every setting, those that are not counted too.

        Args:
            settings: float32 `[S, J]`. One row of weights a setting.
            names: sequence of str. Which outputs. Defaults to all.

        Returns:
            Dict of str to float32 `[S, R]`.
        """
        every = np.arange(len(self.slots))
        sums = self._prepared(settings, names, every_request=True)(every, every)
        return {name: rows.T for name, rows in sums.items()}

    def totals(self, settings: np.ndarray, names: Sequence[str] | None = None) -> Totals:
        """Sums over the counted requests, see `Totals`; nothing of size settings x requests is held."""
        moments = self._prepared(settings, names)(np.arange(len(self.slots)), None)
        return Totals(*({name: rows[index] for name, rows in moments.items()} for index in range(3)))

    def by_cluster(self, settings: np.ndarray, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Sums over the counted requests of each cluster, float32 `[S, U]`, clusters in the order of their numbers."""
        sums = self._prepared(settings, names)(*self._clusters())
        return {name: rows.T for name, rows in sums.items()}

    def cluster_blocks(
        self, settings: np.ndarray, names: Sequence[str], size: int
    ) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """`by_cluster`, `size` clusters at a time.

        Yields:
            Sums, dict of str to float32 `[u, S]`, and counted requests, dict of str to int64 `[u]`.
        """
        run = self._prepared(settings, names)
        order, bucket = self._clusters()
        counted = {name: self.requests_counted(name)[order] for name in names}
        for begin in range(0, int(bucket[-1]) + 1, size):
            rows = slice(*np.searchsorted(bucket, [begin, begin + size]))
            inside = bucket[rows] - begin
            users = int(inside[-1]) + 1
            counts = {name: np.bincount(inside[counted[name][rows]], minlength=users) for name in names}
            yield run(order[rows], inside), counts

    def _clusters(self) -> tuple[np.ndarray, np.ndarray]:
        """Requests by cluster, and the number of the cluster of each, from 0 on."""
        order = np.argsort(self.cluster, kind="stable")
        ordered = self.cluster[order]
        return order, np.cumsum(np.r_[0, ordered[1:] != ordered[:-1]])

    def _prepared(
        self, settings: np.ndarray, names: Sequence[str] | None, *, every_request: bool = False
    ) -> Callable[[np.ndarray, np.ndarray | None], dict[str, np.ndarray]]:
        """A function of requests `[r]` and their buckets `[r]` that gives the sums `[buckets, S]` of each output.

        Buckets rise. Without them it gives moments `[3, S]`.
        """
        settings = np.ascontiguousarray(settings, np.float32)
        if settings.ndim != 2 or settings.shape[1] != len(self.terms):
            raise ValueError(f"`settings` should have shape [S, {len(self.terms)}]. Received: {settings.shape}.")
        names = list(self.outputs if names is None else names)
        unknown = [name for name in names if name not in self.outputs]
        if unknown:
            raise ValueError(f"`names` should be among {list(self.outputs)}. Received: {unknown}.")
        diverse = DIVERSITY in names
        names = [name for name in names if name != DIVERSITY] + [DIVERSITY] * diverse
        linear = names[: len(names) - diverse]
        size, parts = settings.shape
        weights = np.zeros((-(-size // LANES), -(-parts // 4) * 4, LANES), np.float32)
        for number, block in enumerate(weights):
            rows = settings[number * LANES : (number + 1) * LANES]
            block[:parts, : len(rows)] = rows.T
        coefficients = np.zeros((len(linear), self.terms.shape[1]), np.float32)
        for row, name in zip(coefficients, linear, strict=True):
            row[:] = self.coefficients[name]
        counted = [np.ones(len(self.slots), bool) if every_request else self.requests_counted(name) for name in names]
        none = np.empty(0, np.int32)
        arguments = (
            np.asarray(self.offsets, np.int64),
            np.ascontiguousarray(self.terms, np.float32),
            weights,
            settings.mean(axis=0),
            np.minimum(np.minimum(self.slots, self.gains.shape[1]), np.diff(self.offsets)).astype(np.int64),
            np.ascontiguousarray(self.gains, np.float32),
            np.array([self.gain_of.get(name, 0) for name in linear], np.int64),
            none if self.place is None else np.asarray(self.place, np.int32),
            np.asarray(self.category, np.int32) if diverse else none,
            coefficients,
            coefficients.any(axis=0),
            np.stack(counted),
        )

        def run(requests: np.ndarray, bucket: np.ndarray | None) -> dict[str, np.ndarray]:
            buckets = 0 if bucket is None else int(bucket.max(initial=-1)) + 1
            sums = np.zeros((len(names), buckets, size), np.float32)
            moments = np.zeros((_STRETCHES, len(names), 3 if bucket is None else 0, size))
            cuts = np.linspace(0, len(requests), _STRETCHES + 1).astype(np.int64)
            if bucket is not None:  # a bucket in one stretch only: two threads never write to the same sums
                cuts[1:-1] = np.searchsorted(bucket, bucket[cuts[1:-1]]) if len(requests) else 0

            def stretch(number: int) -> None:
                rows = slice(cuts[number], cuts[number + 1])
                where = requests[rows] if bucket is None else bucket[rows]
                accumulate(*arguments, requests[rows], where, sums, moments[number])

            cores = (os.cpu_count() or 1) if len(requests) * size > _SMALL else 1
            if cores > 1:
                with ThreadPoolExecutor(cores) as pool:
                    list(pool.map(stretch, range(_STRETCHES)))
            else:
                for number in range(_STRETCHES):
                    stretch(number)
            found = sums
            if bucket is None:
                largest = moments[:, :, 2].max(axis=0)
                found = moments.sum(axis=0)
                found[:, 2] = largest
            return dict(zip(names, found, strict=True))

        return run
