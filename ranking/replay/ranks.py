"""The one hot loop of the replay: what many weight settings would do to the order of every request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numba
import numpy as np

__all__ = ["MATCH", "RankSums"]

MATCH = -1  # in `gain_of`: worth 1 where the new place is the logged one, else 0


@numba.njit(nogil=True, cache=True)
def _rank(scores, i):
    """How many scores are better than the i-th; of equal ones the first is better."""
    mine, better, equal = scores[i], np.int32(0), np.int32(0)
    for j in range(scores.size):  # int32 casts keep this loop in vector registers
        better = np.int32(better + np.int32(scores[j] > mine))
        equal = np.int32(equal + np.int32(scores[j] == mine))
    rank = np.int64(better)
    if equal > 1:
        for j in range(i):
            rank += np.int64(scores[j] == mine)
    return rank


@numba.njit(nogil=True, cache=True)
def _rank_sums(offsets, terms, settings, gains, gain_of, slots, place, needed, coefficients, out):
    """Fills `out [O, R, S]`; requests outside and settings inside, so that a request's terms stay in the L1 cache."""
    buffer = np.empty(np.max(offsets[1:] - offsets[:-1]), np.float32)
    totals = np.empty(len(coefficients), np.float64)
    for request in range(len(offsets) - 1):
        start, stop = offsets[request], offsets[request + 1]
        rows = np.flatnonzero(needed[start:stop])
        if rows.size == 0:
            out[:, request] = 0.0
            continue
        z, coefficient, scores = terms[:, start:stop], coefficients[:, start:stop], buffer[: stop - start]
        for setting in range(len(settings)):
            weight, column = settings[setting, 0], z[0]
            for i in range(scores.size):
                scores[i] = weight * column[i]
            for part in range(1, len(z)):
                weight, column = settings[setting, part], z[part]
                for i in range(scores.size):
                    scores[i] += weight * column[i]
            totals[:] = 0.0
            for row in rows:
                rank = _rank(scores, row)
                if rank < slots[request]:
                    for output in range(totals.size):
                        if gain_of[output] >= 0:
                            totals[output] += gains[gain_of[output], rank] * coefficient[output, row]
                        elif rank == place[start + row]:
                            totals[output] += coefficient[output, row]
            for output in range(totals.size):
                out[output, request, setting] = totals[output]


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
        category: int32 `[n]` or None. Adds the output `"diversity"`.
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

    def values(self, settings: np.ndarray, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The outputs of every request under every setting.

        Args:
            settings: float32 `[S, J]`. One row of weights a setting.
            names: sequence of str. Which outputs. Defaults to all.

        Returns:
            Dict of str to float32 `[S, R]`.
        """
        settings = np.ascontiguousarray(settings, np.float32)
        if settings.ndim != 2 or settings.shape[1] != len(self.terms):
            raise ValueError(f"`settings` should have shape [S, {len(self.terms)}]. Received: {settings.shape}.")
        names = list(self.coefficients) if names is None else list(names)
        coefficients = np.stack([self.coefficients[name] for name in names]).astype(np.float32)  # [O, n]
        out = np.empty((len(names), len(self.offsets) - 1, len(settings)), np.float32)
        gains = np.asarray(self.gains, np.float64)
        _rank_sums(
            self.offsets,
            self.terms,
            settings,
            gains,
            np.array([self.gain_of.get(name, 0) for name in names], np.int64),
            np.minimum(self.slots, gains.shape[1]),
            np.full(self.terms.shape[1], -1, np.int32) if self.place is None else self.place,
            coefficients.any(axis=0),
            coefficients,
            out,
        )
        return {name: out[index].T for index, name in enumerate(names)}
