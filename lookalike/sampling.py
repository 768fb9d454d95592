"""Log-uniform negatives by frequency rank, and the cap on a user's positives."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["limit_positives", "log_uniform_probabilities", "sample_negatives"]


def log_uniform_probabilities(num_items: int) -> NDArray[np.float64]:
    """Chance of each item to be drawn as a negative, by frequency rank.

    Popular items are shown more, so they should also be refused more often:

        p(rank r) = (log(r + 2) - log(r + 1)) / log(num_items + 1)

    Args:
        num_items: int. How many items there are, ordered by falling frequency.

    Returns:
        float64 array `[num_items]` that sums to 1; entry 0 is the most frequent item.

    Raises:
        ValueError: if `num_items` is not positive.

    Example:
        >>> log_uniform_probabilities(2).round(4)
        array([0.6309, 0.3691])

    Reference: Liu et al., KDD 2019, equation 3, with zero-based ranks (a rank that starts at 1 does not sum to 1).
    The same distribution as `tf.random.log_uniform_candidate_sampler`.
    """
    _check_positive("num_items", num_items)
    return np.diff(np.log(np.arange(1, num_items + 2, dtype=np.float64))) / np.log(num_items + 1.0)


def sample_negatives(num_items: int, shape: int | tuple[int, ...], generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw frequency ranks from `log_uniform_probabilities`, with replacement.

    The distribution's inverse is closed, `rank = floor((num_items + 1)^uniform) - 1`: no table is needed. A draw may
    equal the positive it stands beside, as in the paper.

    Args:
        num_items: int. How many items there are.
        shape: int or tuple of ints. Shape of the result.
        generator: `numpy.random.Generator`. The only source of randomness.

    Returns:
        int64 array of `shape`, ranks in `[0, num_items)`. A vocabulary that keeps index 0 for padding and 1 for
        unknown items is indexed by `rank + 2`.

    Raises:
        ValueError: if `num_items` is not positive.
    """
    _check_positive("num_items", num_items)
    draws = np.exp(generator.random(shape) * np.log(num_items + 1.0))
    # Rounding of exp can reach num_items + 1 itself.
    return np.clip(draws.astype(np.int64) - 1, 0, num_items - 1)


def limit_positives(user: ArrayLike, order: ArrayLike, maximum: int = 50) -> NDArray[np.int64]:
    """Rows of the latest `maximum` positives of every user.

    A cap keeps the few most active users from outweighing all others in the loss.

    Args:
        user: array `[n]` of ids. Whose positive it is.
        order: array `[n]`. Sorts in time; of equal values the later row counts as later.
        maximum: int. Positives kept for a user. Defaults to `50`.

    Returns:
        int64 array: the kept rows, ascending.

    Raises:
        ValueError: if `maximum` is not positive or the two arrays differ in length.

    Example:
        >>> limit_positives(["a", "b", "a", "a"], [3, 1, 1, 2], maximum=2)
        array([0, 1, 3])

    Reference: Liu et al., KDD 2019, section 4.1.
    """
    _check_positive("maximum", maximum)
    codes = np.unique(np.asarray(user), return_inverse=True)[1].ravel()
    moments = np.asarray(order)
    if codes.shape != moments.shape:
        raise ValueError(
            f"`user` and `order` should have the same length. Received: {codes.shape[0]} and {moments.shape[0]}."
        )
    by_user = np.lexsort((np.arange(codes.size), moments, codes))  # [n]
    ends = np.cumsum(np.bincount(codes))  # [users], one past the last row of each user
    from_the_end = ends[codes[by_user]] - np.arange(codes.size)  # [n], 1 = latest
    return np.sort(by_user[from_the_end <= maximum])


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"`{name}` should be a positive integer. Received: {name}={value!r}.")
