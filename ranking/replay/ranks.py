"""The one hot loop of the replay: what many weight settings would do to the order of every request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np

__all__ = ["RankSums"]


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
def _rank_sums(offsets, terms, settings, examination, slots, needed, coefficients, out):
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
                        totals[output] += examination[rank] * coefficient[output, row]
            for output in range(totals.size):
                out[output, request, setting] = totals[output]


@dataclass(frozen=True)
class RankSums:
    """Numbers of a request that are linear in how much its candidates would be looked at under new weights.

    Every estimator and every support gate of the replay has this one form, with `sigma` the new order of **all**
    candidates of request `r`:

        v_r = sum_i coefficient(i) * examination(sigma(i)),   examination = 0 from slots_r on

    Args:
        offsets: int64 `[R + 1]`. The candidates of each request.
        terms: float32 `[J, n]`. `z_j` of the fusion: scores are linear in the weights.
        examination: float64 `[K]`. How much each place is looked at (or its discount).
        slots: int64 `[R]`. How many places each request has, at most `K`.
        coefficients: dict of str to float32 `[n]`. A number a candidate, for each output.
        counted: dict of str to bool `[R]`. Which requests an output is averaged over.
        cluster: int64 `[R]`. The user (what intervals resample).
    """

    offsets: np.ndarray
    terms: np.ndarray
    examination: np.ndarray
    slots: np.ndarray
    coefficients: dict[str, np.ndarray]
    counted: dict[str, np.ndarray]
    cluster: np.ndarray

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
        _rank_sums(
            self.offsets,
            self.terms,
            settings,
            np.asarray(self.examination, np.float64),
            np.minimum(self.slots, len(self.examination)),
            coefficients.any(axis=0),
            coefficients,
            out,
        )
        return {name: out[index].T for index, name in enumerate(names)}
