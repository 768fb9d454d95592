"""Numba kernels of the scorer: one user a lane, so that the loops over users become vector instructions."""

import numba
import numpy as np

__all__ = ["LANES", "activate", "combine", "exponential", "exponential_of_tanh", "gather", "highest"]

LANES = 16  # users are padded to a multiple of it: no loop has a rest
STRIP = 256  # users whose weights stay in the first-level cache
FUSED = {"contract", "nsz"}  # multiply-adds; nothing is reassociated
_compiled = numba.njit(nogil=True, cache=True, fastmath=FUSED, error_model="numpy")

f32 = np.float32
ZERO, ONE, ALMOST_ZERO = f32(0), f32(1), f32(1e-12)

# tanh as a ratio of polynomials in x and x^2 on [-CAP, CAP], beyond which it is 1 in float32 (Eigen's).
CAP = f32(7.90531110763549805)
A1, A3, A5, A7 = (
    f32(4.89352455891786e-03),
    f32(6.37261928875436e-04),
    f32(1.48572235717979e-05),
    f32(5.12229709037114e-08),
)
A9, A11, A13 = f32(-8.60467152213735e-11), f32(2.00018790482477e-13), f32(-2.76076847742355e-16)
B0, B2, B4, B6 = (
    f32(4.89352518554385e-03),
    f32(2.26843463243900e-03),
    f32(1.18534705686654e-04),
    f32(1.19825839466702e-06),
)

# exp on [-1, 1]: interpolated at the Chebyshev nodes, degree 8, error below 1e-7.
_SERIES = np.polynomial.chebyshev.Chebyshev.interpolate(np.exp, 8).convert(kind=np.polynomial.Polynomial).coef
E0, E1, E2, E3, E4, E5, E6, E7, E8 = (f32(value) for value in _SERIES)

# exp anywhere: 2^n e^r with |r| <= log(2) / 2 (Cephes).
LOG2_E, LOG_2_HIGH, LOG_2_LOW = f32(1.4426950408889634), f32(0.693359375), f32(-2.12194440e-4)
ROUND = f32(12582912.0)  # 1.5 * 2^23: added and taken off, it rounds to an integer
LOWEST = f32(-87.0)  # below it the result is no normal number
P0, P1, P2 = f32(1.9875691500e-4), f32(1.3981999507e-3), f32(8.3334519073e-3)
P3, P4, P5 = f32(4.1665795894e-2), f32(1.6666665459e-1), f32(5.0000001201e-1)


@_compiled
def _tanh(value):
    x = min(max(value, -CAP), CAP)
    s = x * x
    above = x * ((((((A13 * s + A11) * s + A9) * s + A7) * s + A5) * s + A3) * s + A1)
    return above / (((B6 * s + B4) * s + B2) * s + B0)


@_compiled
def _exp_near_zero(x):
    return (((((((E8 * x + E7) * x + E6) * x + E5) * x + E4) * x + E3) * x + E2) * x + E1) * x + E0


@_compiled
def _exp(value):
    x = max(value, LOWEST)
    n = (x * LOG2_E + ROUND) - ROUND
    r = x - n * LOG_2_HIGH - n * LOG_2_LOW
    power = (((((P0 * r + P1) * r + P2) * r + P3) * r + P4) * r + P5) * r * r + r + ONE
    bits = (np.int32(n) + np.int32(127)) << np.int32(23)
    return power * np.int32(bits).view(np.float32)


@_compiled
def exponential_of_tanh(values, out):
    """`exp(tanh(values))`, float32 `[n]`, within 1e-6."""
    for u in range(len(values)):
        out[u] = _exp_near_zero(_tanh(values[u]))


@_compiled
def exponential(values, out):
    """`exp(values)` of float32 `[n]` not above 0, within 1e-6 of it."""
    for u in range(len(values)):
        out[u] = _exp(values[u])


@_compiled
def activate(block, bias, slope, users, scales):
    """PReLU of `block` `[hidden, width]` plus `bias`, in place, zeros from column `users` on; one over its lengths."""
    hidden, width = block.shape
    scales[:] = ZERO
    for i in range(hidden):
        row, b, s = block[i], bias[i], slope[i]
        for u in range(width):
            value = row[u] + b
            row[u] = max(value, ZERO) - s * max(-value, ZERO)
        row[users:] = ZERO
        for u in range(width):
            scales[u] += row[u] * row[u]
    for u in range(width):
        usable = scales[u] > ALMOST_ZERO
        scales[u] = ONE / np.sqrt(scales[u]) if usable else ZERO


@_compiled
def combine(products, scales, factors, roots, alpha, temperature, out):
    """Similarities from what a block of users was multiplied with.

    Args:
        products: float32 `[lists * (k + r + 1), users]`. `Seeds.columns` times the users.
        scales: float32 `[users]`. One over the length of each.
        factors: float32 `[lists, k]`. What a weight is multiplied with; 0 where there is no centroid.
        roots: float32 `[lists, r, k]`. Upper triangular; `[lists, 0, 0]` where there is no local part.
        alpha: float32. Share of the global part.
        temperature: float32. Multiple of the tanh; 0 stands for no tanh.
        out: float32 `[lists, users]`. Filled.
    """
    lists, r, k = roots.shape
    weights = np.empty((k, STRIP), np.float32)
    scratch = np.empty((5, STRIP), np.float32)
    for low in range(0, products.shape[1], STRIP):
        high = min(low + STRIP, products.shape[1])
        size = high - low
        total, above, below = scratch[2, :size], scratch[3, :size], scratch[4, :size]
        for number in range(lists):
            base = number * (k + r + 1)
            _weigh(products, base, low, factors[number], temperature, weights, total)
            above[:] = ZERO
            below[:] = ZERO
            for i in range(0, r - 1, 2):
                y, z = products[base + k + i, low:high], products[base + k + i + 1, low:high]
                _two_rows(weights, roots[number], i, y, z, scratch, size)
            if r % 2 == 1:
                _last_row(weights, roots[number], r - 1, products[base + k + r - 1, low:high], scratch, size)
            whole, scale, target = products[base + k + r, low:high], scales[low:high], out[number, low:high]
            for u in range(size):
                usable = below[u] > ALMOST_ZERO * total[u] * total[u]
                local = above[u] / np.sqrt(below[u]) if usable else ZERO
                value = (alpha * whole[u] + (ONE - alpha) * local) * scale[u]
                target[u] = min(max(value, -ONE), ONE)  # rounding may pass 1


@_compiled
def _weigh(products, base, low, factors, temperature, weights, total):
    """Weights `[k, users]` of the centroids, but for a factor a user, and their sums."""
    # Rows are cut out one by one: a cut through two axes would hide that they are contiguous.
    k, size = len(weights), len(total)
    total[:] = ZERO
    if temperature == ONE:  # the exponent stays in [-1, 1]
        for j in range(k):
            row, out, factor = products[base + j, low : low + size], weights[j, :size], factors[j]
            for u in range(size):
                out[u] = factor * _exp_near_zero(_tanh(row[u]))
            for u in range(size):
                total[u] += out[u]
        return
    highest = np.full(size, -np.inf, np.float32)
    for j in range(k):
        row, out = products[base + j, low : low + size], weights[j, :size]
        for u in range(size):
            out[u] = temperature * _tanh(row[u]) if temperature != ZERO else row[u]
        for u in range(size):
            highest[u] = max(highest[u], out[u])
    for j in range(k):
        out, factor = weights[j, :size], factors[j]
        for u in range(size):
            out[u] = factor * _exp(out[u] - highest[u])
        for u in range(size):
            total[u] += out[u]


@_compiled
def _two_rows(weights, root, i, y, z, scratch, size):
    """Add rows `i` and `i + 1` of `R w` to its product with the user, and to its own square.

    Two rows at a time, four centroids at a time: each weight is loaded once for two products.
    """
    k = root.shape[1]
    p, q = root[i], root[i + 1]
    first, second, above, below = scratch[0], scratch[1], scratch[3], scratch[4]
    a, b = weights[i], weights[i + 1]
    for u in range(size):
        first[u] = p[i] * a[u] + p[i + 1] * b[u]
        second[u] = q[i + 1] * b[u]
    j = i + 2
    while j + 4 <= k:
        a, b, c, d = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        p0, p1, p2, p3 = p[j], p[j + 1], p[j + 2], p[j + 3]
        q0, q1, q2, q3 = q[j], q[j + 1], q[j + 2], q[j + 3]
        for u in range(size):
            first[u] += p0 * a[u] + p1 * b[u] + p2 * c[u] + p3 * d[u]
            second[u] += q0 * a[u] + q1 * b[u] + q2 * c[u] + q3 * d[u]
        j += 4
    while j < k:
        a, p0, q0 = weights[j], p[j], q[j]
        for u in range(size):
            first[u] += p0 * a[u]
            second[u] += q0 * a[u]
        j += 1
    for u in range(size):
        above[u] += first[u] * y[u] + second[u] * z[u]
        below[u] += first[u] * first[u] + second[u] * second[u]


@_compiled
def _last_row(weights, root, i, y, scratch, size):
    """Row `i` of `R w` alone, as in `_two_rows`."""
    first, above, below = scratch[0], scratch[3], scratch[4]
    first[:] = ZERO
    for j in range(i, root.shape[1]):
        a, p = weights[j], root[i, j]
        for u in range(size):
            first[u] += p * a[u]
    for u in range(size):
        above[u] += first[u] * y[u]
        below[u] += first[u] * first[u]


@_compiled
def highest(values, live, out):
    """Row of the highest of `values` `[k, n]` in each column, among the `live` ones, into int32 `[n]`; the first."""
    best = np.full(values.shape[1], -np.inf, np.float32)
    out[:] = -1
    for j in range(values.shape[0]):
        if live[j]:
            row = values[j]
            for u in range(len(best)):
                higher = row[u] > best[u]
                best[u] = row[u] if higher else best[u]
                out[u] = np.int32(j) if higher else out[u]


@_compiled
def gather(values, block, rows, out):
    """Columns of the blocks that make up `values`, each `[hidden, block]` but for the last, into `[hidden, n]`."""
    hidden = out.shape[0]
    low = 0
    while low < len(rows):
        first = rows[low] // block * block
        width = min(block, len(values) // hidden - first)
        high = low
        while high < len(rows) and rows[high] < first + block:
            high += 1
        for i in range(hidden):
            start = first * hidden + i * width - first
            for n in range(low, high):
                out[i, n] = values[start + rows[n]]
        low = high
