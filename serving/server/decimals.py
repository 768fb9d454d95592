"""Floats as TensorFlow Serving prints them: six digits where they read back as the same number, else all.

All are nine for float32 and 17 for float64. A reply for 5,000 candidates has tens of thousands of them, and a call of
`format` for each costs more than scoring does; so float32 of everyday sizes are written by numpy, many at a time.
"""

import numpy as np

__all__ = ["decimals"]

_POWERS = 10.0 ** np.arange(23)  # exact, all of them
_NUMBERS = np.arange(1000)
# Three digits as bytes: row n is n; row 1000 + n is n without its trailing zeros, NUL in their place.
_WHOLE = np.stack([_NUMBERS // 100, _NUMBERS // 10 % 10, _NUMBERS % 10], 1).astype(np.uint8) + ord("0")
_KEPT = np.stack([_NUMBERS > 0, _NUMBERS % 100 > 0, _NUMBERS % 10 > 0], 1)
_DIGITS = np.concatenate([_WHOLE, _WHOLE * _KEPT])
_LOWEST, _HIGHEST = -14, 8  # powers of ten of a float32 that is written by numpy
_TIE = 1e-4  # this near to the middle between two texts, arithmetic that rounds does not decide


def decimals(values: np.ndarray) -> list[bytes]:
    """The numbers as texts, some with NUL bytes in between: who joins them takes those out.

    Args:
        values: float32 or float64 array [N].
    """
    if values.dtype != np.float32 or not values.size:
        return [_exactly(value) for value in values]
    texts = np.empty(len(values), object)
    with np.errstate(all="ignore"):
        wide = np.abs(values).astype(np.float64)
        power = np.floor(np.log10(wide))
    fast = np.isfinite(power) & (power >= _LOWEST) & (power <= _HIGHEST)
    power = np.where(fast, power, 0).astype(np.int64)
    wide = np.where(fast, wide, 1)
    nine = wide * _POWERS[8 - power]
    whole = np.rint(nine)
    fast &= (whole >= 1e8) & (whole < 1e9) & (np.abs(nine - np.floor(nine) - 0.5) > _TIE)
    up, down = _POWERS[np.maximum(5 - power, 0)], _POWERS[np.maximum(power - 5, 0)]
    short = np.rint(wide * up / down)
    fast &= short < 1e6  # else six digits begin a power higher
    # An integer times or over an exact power of ten is rounded once, as reading the text is.
    six = (short * down / up).astype(np.float32) == np.abs(values)
    number = np.where(six, short * 1000, whole).astype(np.int64)
    scientific = (power < -4) | (six & (power >= 6))
    # Numbers of one layout together.
    layout = ((power - _LOWEST) * 2 + scientific) * 2 + np.signbit(values)
    layout = np.where(fast, layout, -1).astype(np.int8)  # sorting bytes takes one pass
    order = np.argsort(layout, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(layout[order])) + 1):
        kind = int(layout[rows[0]])
        if kind < 0:
            texts[rows] = [_exactly(value) for value in values[rows]]
        else:
            texts[rows] = _written(number[rows], kind // 4 + _LOWEST, kind // 2 % 2 == 1, b"-" * (kind % 2))
    return texts.tolist()


def _written(number: np.ndarray, power: int, scientific: bool, sign: bytes) -> list[bytes]:
    """Nine-digit integers as decimals whose first digit stands for 10**power."""
    high, rest = np.divmod(number, 1_000_000)
    middle, low = np.divmod(rest, 1000)
    digits = np.concatenate(
        [_DIGITS[high + 1000 * (rest == 0)], _DIGITS[middle + 1000 * (low == 0)], _DIGITS[1000 + low]], axis=1
    )
    point = np.full((len(number), 1), ord("."), np.uint8)

    def fixed(text: bytes) -> np.ndarray:
        return np.broadcast_to(np.frombuffer(text, np.uint8), (len(number), len(text)))

    if scientific:
        point[digits[:, 1] == 0] = 0
        columns = [fixed(sign), digits[:, :1], point, digits[:, 1:], fixed(b"e%+03d" % power)]
    elif power < 0:
        columns = [fixed(sign + b"0." + b"0" * (-power - 1)), digits]
    else:
        digits[:, : power + 2] = np.maximum(digits[:, : power + 2], ord("0"))  # 120.0: zeros that have to stay
        columns = [fixed(sign), digits[:, : power + 1], point, digits[:, power + 1 :]]
        columns += [fixed(b"0")] if power == 8 else []
    table = np.concatenate(columns, axis=1)
    return table.view(f"S{table.shape[1]}")[:, 0].tolist()  # drops the NULs at the end


def _exactly(value: np.floating) -> bytes:
    if not np.isfinite(value):
        return b"NaN" if np.isnan(value) else b"Infinity" if value > 0 else b"-Infinity"
    plain = float(value)
    text = format(plain, "g")
    if type(value)(text) != value:
        text = format(plain, ".9g" if value.dtype.itemsize == 4 else ".17g")
    return (text if "." in text or "e" in text else text + ".0").encode()
