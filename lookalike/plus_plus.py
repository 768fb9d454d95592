"""The start of k-means: greedy k-means++ among a sample of the points."""

import numba
import numpy as np

from lookalike.blocks import BLOCK, REASSOCIATE, ROWS, pack, products, squared_distance, squares

__all__ = ["fill"]

SAMPLE, SAMPLE_PER_CENTROID = 512, 16  # the start is chosen among so many points, or so many a centroid


@numba.njit(nogil=True, cache=True)
def fill(points, weights, centres, seed):
    """Fill the rows of zeros of `centres` by greedy k-means++ on a sample; returns which rows could be filled."""
    k, dim = centres.shape
    alive = np.zeros(k, np.bool_)
    for j in range(k):
        alive[j] = np.any(centres[j] != 0.0)
    if alive.all():
        return alive
    random = np.array([seed], np.uint64)
    sample, masses = _sample(points, weights, max(SAMPLE, SAMPLE_PER_CENTROID * k), random)
    n = len(sample)
    blocks = np.empty(((n + BLOCK - 1) // BLOCK, dim, BLOCK), np.float32)
    pack(sample, blocks)
    lengths = squares(sample)
    nearest = np.full(n, np.inf, np.float32)  # weight x squared distance to the nearest centre
    for j in range(k):
        if alive[j]:
            for i in range(n):
                nearest[i] = min(nearest[i], masses[i] * squared_distance(sample[i], centres[j]))
    ends = np.empty(len(blocks), np.float32)
    trials = min(ROWS, 2 + int(np.log(k)))
    picks = np.empty(trials, np.int64)
    rows, norms = np.zeros((ROWS, dim), np.float32), np.zeros(ROWS, np.float32)
    offered = np.empty((trials, n), np.float32)  # what `nearest` would become
    for j in range(k):
        if alive[j]:
            continue
        _cumulate(nearest, ends)
        if ends[-1] <= 0.0:  # fewer distinct points than centroids
            break
        shares = nearest
        if np.isinf(ends[-1]):  # the first one
            shares = masses
            _cumulate(masses, ends)
        for t in range(trials):
            picks[t] = _draw(shares, ends, random)
            rows[t] = np.float32(-2.0) * sample[picks[t]]
            norms[t] = lengths[picks[t]]
        best = _best_trial(blocks, rows, norms, lengths, masses, nearest, offered)
        centres[j] = sample[picks[best]]
        alive[j] = True
        nearest[:] = offered[best]
    return alive


@numba.njit(nogil=True, cache=True)
def _sample(points, weights, wanted, random):
    """At most `wanted` points without replacement, and their weights."""
    n = min(len(points), wanted)
    chosen = np.arange(len(points))
    for i in range(n if n < len(points) else 0):  # a partial shuffle
        other = i + int(_uniform(random) * (len(points) - i))
        chosen[i], chosen[other] = chosen[other], chosen[i]
    sample, masses = np.empty((n, points.shape[1]), np.float32), np.ones(n, np.float32)
    for i in range(n):
        sample[i] = points[chosen[i]]
        if len(weights):
            masses[i] = weights[chosen[i]]
    return sample, masses


@numba.njit(nogil=True, cache=True)
def _uniform(random):
    """The next number in [0, 1) of the generator whose state is `random` (Steele et al., OOPSLA 2014: SplitMix)."""
    random[0] += np.uint64(0x9E3779B97F4A7C15)
    bits = random[0]
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return float((bits ^ (bits >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


@numba.njit(nogil=True, cache=True)
def _cumulate(shares, ends):
    """Cumulative sums of `shares` at the end of each block of them."""
    total = np.float32(0.0)
    for block in range(len(ends)):
        total += _total(shares[block * BLOCK : (block + 1) * BLOCK])
        ends[block] = total


@numba.njit(nogil=True, cache=True)
def _draw(shares, ends, random):
    """Index drawn in proportion to `shares`: the block first, then the point."""
    rest = _uniform(random) * ends[-1]
    block = 0
    while block < len(ends) - 1 and ends[block] <= rest:
        block += 1
    if block > 0:
        rest -= ends[block - 1]
    last = low = block * BLOCK
    for i in range(low, min(low + BLOCK, len(shares))):
        if shares[i] > 0.0:
            last = i
            rest -= shares[i]
            if rest < 0.0:
                break
    return last


@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def _total(shares):
    total = np.float32(0.0)
    for i in range(len(shares)):
        total += shares[i]
    return total


@numba.njit(nogil=True, cache=True)
def _best_trial(blocks, rows, norms, lengths, masses, nearest, offered):
    """Write what `nearest` would become with each trial into `offered`; the trial with the lowest sum wins."""
    out = np.empty((ROWS, BLOCK), np.float32)
    for block in range(len(blocks)):
        low, high = block * BLOCK, min((block + 1) * BLOCK, len(nearest))
        products(blocks, rows, norms, block, out)
        for t in range(len(offered)):
            for i in range(low, high):
                distance = max(lengths[i] + out[t, i - low], np.float32(0.0))
                offered[t, i] = min(nearest[i], masses[i] * distance)
    best, lowest = 0, _total(offered[0])
    for t in range(1, len(offered)):
        total = _total(offered[t])
        if total < lowest:
            best, lowest = t, total
    return best
