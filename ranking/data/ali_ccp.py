"""Ali-CCP (Ma et al., SIGIR 2018) -> a dataset: the raw files of the download, in bounded memory, resumable.

An impression is a line of sample_skeleton_*.csv, joined with its record of common_features_*.csv; docs/data.md says
what becomes what. The files are cut into blocks; what came of a block is a part on disk, so that an import that was
killed goes on with the block it was at, and ends with the same bytes.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ranking.atomic import refuse_existing
from ranking.data.ali_ccp_common import CommonFeatures, common_part, judged, notes
from ranking.data.ali_ccp_lines import Layout, parse
from ranking.data.ali_ccp_toml import COMMON_MULTI, COMMON_SINGLE, KEEP, SKELETON_MULTI, SKELETON_SINGLE, dataset_toml
from ranking.data.import_report import ImportReport
from ranking.data.parts import Parts, line_blocks
from ranking.data.tables import write_dataset
from ranking.errors import UserError

__all__ = ["import_ali_ccp"]

_LAYOUT = Layout(5, 3, tuple(SKELETON_SINGLE), tuple(SKELETON_MULTI), KEEP)
_KINDS = ("sample_skeleton", "common_features")
_FILES = ("train", "test")
_ITEM = ("category", "shop", "brand", "intentions")

Progress = Callable[[str, int, int], None]


def import_ali_ccp(
    source: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    block_bytes: int = 1 << 25,
) -> ImportReport:
    """Writes a dataset from the four raw files. What is done so far lies in `OUT.parts`, until all is done.

    Args:
        source: str or Path. The folder with sample_skeleton_{train,test}.csv and common_features_{train,test}.csv,
            at any depth.
        out: str or Path. The dataset folder to make.
        overwrite: bool. Whether a folder that exists is replaced. Defaults to `False`.
        progress: callable or None. Called with (stage, lines done, lines in all, estimated until the end).
        block_bytes: int. Bytes of a file that are worked on at once. Defaults to `1 << 25`.

    Raises:
        UserError: a file is missing or is there twice, or the parts are of other files.
    """
    out = Path(out)
    refuse_existing(out, overwrite)
    files = {f"{kind}_{name}": _found(Path(source), f"{kind}_{name}.csv") for kind in _KINDS for name in _FILES}
    stamps = {name: [path.stat().st_size, path.stat().st_mtime_ns] for name, path in files.items()}
    parts = Parts(out.with_name(f"{out.name}.parts"), {"files": stamps, "block": block_bytes, "version": 1})
    told = progress or (lambda stage, done, total: None)
    report = ImportReport(str(out), "a purchase")
    started, made = time.perf_counter(), 0
    names: dict[str, list[str]] = {}
    lines: dict[str, int] = {}
    for file in _FILES:
        side = f"common_features_{file}"
        names[side], _, _ = _parts_of(files[side], side, parts, block_bytes, told, _common)
        common = CommonFeatures(parts, names[side])
        report.note("common features with an index that was there before, left out", common.repeated)
        log, before = f"sample_skeleton_{file}", sum(lines.values())

        def work(
            data: np.ndarray, first: int, last: bool, common: CommonFeatures = common, before: int = before
        ) -> Any:
            return _impressions(data, first, before, last, common)

        names[log], lines[file], fresh = _parts_of(files[log], log, parts, block_bytes, told, work)
        made += fresh
    _count(report, parts, names, files)
    if made:
        report.notes["lines of the skeletons a second"] = f"{made / (time.perf_counter() - started):,.0f}"
    toml = dataset_toml(lines["train"], lines["test"], Path(source).resolve().name)
    write_dataset(out, toml, _tables(parts, names, report, told), overwrite=overwrite)
    shutil.rmtree(parts.folder)
    return report


def _found(source: Path, name: str) -> Path:
    found = sorted(source.rglob(name)) if source.is_dir() else []
    if len(found) != 1:
        raise UserError(f"{source} should hold one {name}. Received: {len(found)} of them.")
    return found[0]


def _parts_of(
    path: Path, name: str, parts: Parts, size: int, told: Progress, work: Callable[..., Any]
) -> tuple[list[str], int, int]:
    """Makes the parts of a file that are not there yet: their names, the file's lines, and how many are new."""
    made, lines, fresh, total = [], 0, 0, path.stat().st_size

    def done(number: int) -> int | None:
        part = f"{name}-{number:05}"
        return parts.info(part)["end"] if part in parts else None

    for number, end, data in line_blocks(path, size, done):
        part = f"{name}-{number:05}"
        if data is not None:
            tables, info = work(data, lines, end == total)
            parts.add(part, tables, {"end": end, **info}, mapped="common" in tables)
            fresh += info["lines"]
        lines += parts.info(part)["lines"]
        made.append(part)
        told(name, lines, round(lines * total / end))
    if not made:
        raise UserError(f"{path} should have at least one line. Received: an empty file.")
    return made, lines, fresh


def _common(data: np.ndarray, first: int, last: bool) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    table, info = common_part(data, last)
    return {"common": table}, info


def _impressions(
    data: np.ndarray, first: int, before: int, last: bool, common: CommonFeatures
) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """A block of the skeleton as impressions and items, and what was met in it."""
    lines = parse(data, _LAYOUT)
    fine, reasons = judged(lines, last and data[-1] != ord("\n"))
    has, row, records = common.joined(lines, 3)
    click, conversion = lines.digit(1), lines.digit(2)
    user = np.append(records["user_id"].fill_null(-1).to_numpy(), -1)[np.where(has, row, -1)]
    single = dict(zip(SKELETON_SINGLE.values(), lines.single.T, strict=True))
    for reason, bad in (
        ("a label that is not 0 or 1", (click < 0) | (conversion < 0)),
        ("a conversion without a click", (click == 0) & (conversion == 1)),
        ("a common_feature_index that common_features lacks", ~has),
        ("no user id (field 101)", user < 0),
        ("no item id (field 205)", single["item_id"] < 0),
    ):
        reasons[reason] = fine & bad
        fine = fine & ~bad
    kept = np.flatnonzero(fine)
    info = {
        "lines": len(fine),
        "accepted": len(kept),
        "clicks": int(click[kept].sum()),
        "conversions": int(conversion[kept].sum()),
        "rejected": {
            name: [int(bad.sum()), first + int(bad.argmax()) + 1] for name, bad in reasons.items() if bad.any()
        },
        **notes(lines, fine),
    }
    code, rows = pa.array(row[kept].astype(np.int32)), records.combine_chunks()
    texts = {name: text.take(kept) for name, text in zip(SKELETON_MULTI.values(), lines.multi, strict=True)}
    numbers = {name: pa.array(values[kept], mask=values[kept] < 0) for name, values in single.items()}
    columns: dict[str, Any] = {
        "request_id": _coded(code, rows["key"]),
        "timestamp": before + first + kept,
        "user_id": user[kept],
        "item_id": numbers["item_id"],
        "click": click[kept],
        "conversion": conversion[kept],
        "place": numbers["place"],
        **{name: _coded(code, rows[name]) for name in COMMON_MULTI.values()},
        **{name: text for name, text in texts.items() if name not in _ITEM},
    }
    items = pa.table({name: texts[name] if name in texts else numbers[name] for name in ("item_id", *_ITEM)})
    # the distinct rows, in the order of their first
    shown = pa.Table.from_pandas(_frame(items).drop_duplicates(), items.schema, preserve_index=False)
    return {"impressions": pa.table(columns), "items": shown}, info


def _coded(code: pa.Array, values: pa.ChunkedArray) -> pa.DictionaryArray:
    """Each text stands in the dictionary once: with repeated ones the Parquet file would not be the same every time."""
    distinct = pa.concat_arrays(values.chunks or [pa.array([], values.type)]).dictionary_encode()
    return pa.DictionaryArray.from_arrays(distinct.indices.take(code), distinct.dictionary)


def _frame(table: pa.Table) -> pd.DataFrame:
    """With whole numbers that stay exact where others are missing."""
    return table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)


def _count(report: ImportReport, parts: Parts, names: dict[str, list[str]], files: dict[str, Path]) -> None:
    """Sums what is known of the parts; of each reason and each strange field the first is named."""
    for name, made in names.items():
        for part in made:
            info = parts.info(part)
            for what, count in info["notes"].items():
                if isinstance(count, int):
                    report.note(what, count)
                else:
                    report.notes.setdefault(what, f"{count} in {files[name].name}")
            for reason, count in info.get("left out", {}).items():
                report.note(f"common features left out: {reason}", count)
            for reason, (count, line) in info.get("rejected", {}).items():
                report.reject(reason, count)
                report.notes.setdefault(f"the first with {reason}", f"{files[name].name}, line {line:,}")
            if "accepted" in info:
                report.read += info["lines"]
                report.accepted += info["accepted"]
                report.clicks += info["clicks"]
                report.conversions += info["conversions"]


class _First:
    """Keeps the first row of every id, and counts later rows that differ from it."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.differing = 0
        self._ids, self._hashes = np.zeros(0, np.int64), np.zeros(0, np.uint64)

    def add(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of ids not seen before."""
        hashes = pd.util.hash_pandas_object(frame, index=False).to_numpy()
        ids = frame[self.key].to_numpy(np.int64)
        fresh, first = np.unique(ids, return_index=True)
        place = np.searchsorted(self._ids, fresh)
        new = np.append(self._ids, -1)[place] != fresh
        self._ids = np.insert(self._ids, place[new], fresh[new])
        self._hashes = np.insert(self._hashes, place[new], hashes[first[new]])
        self.differing += int((self._hashes[np.searchsorted(self._ids, ids)] != hashes).sum())
        return frame.iloc[np.sort(first[new])]


def _tables(
    parts: Parts, names: dict[str, list[str]], report: ImportReport, told: Progress
) -> Iterator[tuple[str, pd.DataFrame | pa.Table]]:
    """All parts, the files one after the other; users and items as they were first met."""
    profile = list(COMMON_SINGLE.values())
    users, items = _First("user_id"), _First("item_id")
    done, total = 0, sum(map(len, names.values()))
    for file in _FILES:
        for part in names[f"common_features_{file}"]:
            table = parts.table(part, "common").select(profile)
            found = _frame(table.filter(table["user_id"].is_valid())).drop_duplicates()
            yield "users", _counted(report, "users", users.add(found), table.schema)
            done += 1
            told("writing", done, total)
        for part in names[f"sample_skeleton_{file}"]:
            yield "impressions", parts.table(part, "impressions")
            table = parts.table(part, "items")
            yield "items", _counted(report, "items", items.add(_frame(table)), table.schema)
            done += 1
            told("writing", done, total)
    report.rows["impressions"] = report.accepted
    report.note("later profiles of users that differ from the first", users.differing)
    report.note("later rows of items that differ from the first", items.differing)


def _counted(report: ImportReport, name: str, frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    report.rows[name] = report.rows.get(name, 0) + len(frame)
    return pa.Table.from_pandas(frame, schema, preserve_index=False)
