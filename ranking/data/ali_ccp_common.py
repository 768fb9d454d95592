"""Ali-CCP's common_features: parsed once, kept on disk, and found by common_feature_index."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ranking.data.ali_ccp_lines import FEW_COLUMNS, FINE, Layout, Lines, parse
from ranking.data.ali_ccp_toml import COMMON_MULTI, COMMON_SINGLE, KEEP
from ranking.data.parts import Parts

__all__ = ["CommonFeatures", "common_part", "judged"]

_LAYOUT = Layout(2, 0, tuple(COMMON_SINGLE), tuple(COMMON_MULTI), KEEP)


def judged(lines: Lines, cut: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Which lines are fine, and those that are not by reason.

    Args:
        lines: Lines.
        cut: bool. Whether the last one ends without a line end: then it is fine only if its list is as long as the
            line announces.
    """
    fine = lines.status == FINE
    reasons = {
        "too few columns": lines.status == FEW_COLUMNS,
        "a malformed feature list": ~fine & (lines.status != FEW_COLUMNS),
    }
    last = np.zeros(len(fine), bool)
    if cut and len(last):
        last[-1] = not fine[-1] or lines.counts[-1, 0] != lines.counts[-1, 1]
    return fine & ~last, {"a truncated last line": last, **{name: bad & ~last for name, bad in reasons.items()}}


def common_part(data: np.ndarray, last: bool) -> tuple[pa.Table, dict[str, Any]]:
    """A block of a side file as a table, and what was met in it."""
    lines = parse(data, _LAYOUT)
    fine, reasons = judged(lines, last and data[-1] != ord("\n"))
    columns: dict[str, Any] = {"hash": pa.array(lines.keys), "key": lines.text(0)}
    for place, name in enumerate(COMMON_SINGLE.values()):
        columns[name] = pa.array(lines.single[:, place], mask=lines.single[:, place] < 0)
    columns |= dict(zip(COMMON_MULTI.values(), lines.multi, strict=True))
    info = {"lines": len(fine), "left out": {name: int(bad.sum()) for name, bad in reasons.items() if bad.any()}}
    return pa.table(columns).filter(pa.array(fine)), info | notes(lines, fine)


def notes(lines: Lines, fine: np.ndarray) -> dict[str, Any]:
    """What was met in lines that are fine, by its words."""
    counts = {
        "lines whose list is longer or shorter than announced": int(
            (lines.counts[fine, 0] != lines.counts[fine, 1]).sum()
        ),
        f"values of multi-valued fields beyond the {KEEP} heaviest": lines.cut,
        "second values of single-valued fields": lines.repeated,
        "entries of fields not known": lines.unknown,
    }
    first = {"the first field not known": lines.unknown_field} if lines.unknown_field else {}
    return {"notes": {what: count for what, count in counts.items() if count} | first}


class CommonFeatures:
    """The side records of one file. In memory are 16 bytes a record; the rest is read from disk when it is needed.

    Args:
        parts: Parts. Where the tables are.
        names: list of str. The parts of the file.
    """

    def __init__(self, parts: Parts, names: list[str]) -> None:
        self._tables = [parts.table(name, "common") for name in names]
        self._starts = np.append(0, np.cumsum([table.num_rows for table in self._tables]))
        hashes = np.concatenate([np.zeros(0, np.uint64), *(table["hash"].to_numpy() for table in self._tables)])
        self._order = np.argsort(hashes, kind="stable")  # of equals the first comes first
        self._hashes = hashes[self._order]
        self.repeated = int((np.diff(self._hashes) == 0).sum()) if len(hashes) else 0

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Row of the record of each hash, int64; -1 where there is none."""
        place = np.searchsorted(self._hashes, hashes)
        found = np.append(self._hashes, np.uint64(0))[place] == hashes
        found &= place < len(self._hashes)
        return np.where(found, np.append(self._order, -1)[place], -1)

    def take(self, rows: np.ndarray) -> pa.Table:
        """The records of rising rows."""
        cuts = np.searchsorted(rows, self._starts)
        taken = [
            table.take(pa.array(rows[low:high] - start))
            for table, start, low, high in zip(self._tables, self._starts, cuts[:-1], cuts[1:], strict=False)
            if high > low
        ]
        return pa.concat_tables(taken) if taken else self._tables[0].slice(0, 0)

    def joined(self, lines: Lines, key: int) -> tuple[np.ndarray, np.ndarray, pa.Table]:
        """The record of each line: whether it has one, its row in the table of the records met, and that table."""
        rows = self.find(lines.keys)
        met, inverse = np.unique(rows, return_inverse=True)
        if len(met) and met[0] < 0:
            met, inverse = met[1:], inverse - 1
        table = self.take(met).combine_chunks()
        has = inverse >= 0
        if has.any():  # a hash may agree by chance: the texts decide
            same = pc.equal(lines.text(key), table["key"].take(pa.array(np.maximum(inverse, 0))))
            has &= same.to_numpy()
        return has, np.maximum(inverse, 0), table
