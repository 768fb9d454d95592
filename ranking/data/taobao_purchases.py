"""Which click a purchase converts, where the log of purchases names categories and brands only."""

import numpy as np
import pandas as pd

from ranking.errors import UserError

__all__ = ["NEVER", "Purchases"]

NEVER = np.iinfo(np.int64).max


class Purchases:
    """Clicks by (user, category, brand) and time; each purchase converts the latest click before it.

    Args:
        users: int64 array `[users]`, sorted.
        pairs: DataFrame `[clicks]` with `cate_id` and `brand`, missing where one is not known.
        user: int64 array `[clicks]`.
        time: int64 array `[clicks]`, seconds.
        within: int. Seconds after the click in which a purchase converts it.

    Attributes:
        without_pair: int. Clicks that no purchase can convert.
    """

    def __init__(self, users: np.ndarray, pairs: pd.DataFrame, user: np.ndarray, time: np.ndarray, within: int) -> None:
        self._users, self._within = users, within
        known = pairs.notna().all(axis=1).to_numpy()
        self.without_pair = int((~known).sum())
        self._pairs = pd.MultiIndex.from_frame(pairs[known].astype(np.int64).drop_duplicates())
        rows = np.flatnonzero(known)
        self._first = int(time.min()) if len(time) else 0
        self._span = (int(time.max()) if len(time) else 0) - self._first + within + 2
        if len(users) * max(len(self._pairs), 1) * self._span >= 2**63:
            raise UserError("raw_sample.csv: too many users, categories and days to count them together.")
        pair = self._pairs.get_indexer(pd.MultiIndex.from_frame(pairs[known].astype(np.int64)))
        code = self._code(np.searchsorted(users, user[rows]), pair, time[rows])
        by = np.argsort(code, kind="stable")
        self._codes, self._rows = code[by], rows[by]
        self._bought = np.full(len(pairs), NEVER)

    def _code(self, user: np.ndarray, pair: np.ndarray, time: np.ndarray) -> np.ndarray:
        """One number that sorts by user, pair and time."""
        return (user * len(self._pairs) + pair) * self._span + (time - self._first)

    def add(self, user: np.ndarray, time: np.ndarray, cate: np.ndarray, brand: np.ndarray) -> np.ndarray:
        """Purchases: which are of our users, bool `[n]`."""
        place = np.minimum(np.searchsorted(self._users, user), len(self._users) - 1)
        ours = (self._users[place] == user) & (time >= 0) & (cate >= 0)
        rows = np.flatnonzero(ours & (time > self._first) & (time - self._first < self._span))
        if not len(rows) or not len(self._pairs):
            return ours
        pair = self._pairs.get_indexer(pd.MultiIndex.from_arrays([cate[rows], brand[rows]]))
        rows, pair = rows[pair >= 0], pair[pair >= 0]
        code = self._code(place[rows], pair, time[rows])
        last = np.searchsorted(self._codes, code) - 1  # the latest click strictly before, if it is of the same key
        clicked = self._codes[last]
        hit = (last >= 0) & (clicked // self._span == code // self._span) & (code - clicked <= self._within)
        np.minimum.at(self._bought, self._rows[last[hit]], time[rows[hit]])
        return ours

    def times(self) -> np.ndarray:
        """When each click was converted, int64 `[clicks]` in the order given; NEVER where it was not."""
        return self._bought
