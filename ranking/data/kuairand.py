"""KuaiRand (Gao et al., CIKM 2022) -> a dataset: the official folders Pure, 1K and 27K, or a part of one.

What becomes what (docs/data.md has the whole story): an impression is a row of the standard log, a click is `is_click`,
the conversion is `long_view` or any engagement, and counts only where there was a click. There are no slates in this
log: a request is a user's day.
"""

import gzip
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from ranking.data.import_report import ImportReport
from ranking.data.kuairand_history import history_behaviors
from ranking.data.kuairand_toml import dataset_toml
from ranking.data.tables import write_dataset
from ranking.errors import UserError

__all__ = ["import_kuairand"]

ENGAGEMENT = ("is_like", "is_follow", "is_comment", "is_forward", "is_profile_enter")
CONVERSIONS = {"long_view": ("long_view",), "engage": ENGAGEMENT}

_LOG = re.compile(r"log_standard_(\d+_\d+)_to_(\d+_\d+)_(\w+?)(?:_part\d+)?\.csv(?:\.gz)?")
_FLAGS = ("is_click", "long_view", *ENGAGEMENT)
_NUMBERS = ("user_id", "video_id", "date", "time_ms", "play_time_ms", "tab")
_CLICK_AFTER_MS = 7000  # a valid play, in the single-column feed: over 7 s or to the end
_UNKNOWN = -124
_CHUNK_ROWS = 1_000_000
_USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_USER_FLAGS = ("is_lowactive_period", "is_live_streamer", "is_video_author")
_DURATION_EDGES_S = (7, 12, 18, 30, 60, 120, 240)

Progress = Callable[[str, int, int], None]
Tables = Iterator[tuple[str, pd.DataFrame]]


def import_kuairand(
    source: str | Path,
    out: str | Path,
    *,
    conversion: str = "long_view",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Writes a dataset from a KuaiRand folder. Files are read in chunks; the log with random videos is left out.

    Args:
        source: str or Path. The folder with the CSV (or CSV.gz) files, or the one above its `data` folder.
        out: str or Path. The dataset folder to make.
        conversion: str. `"long_view"` (dense) or `"engage"`: like, follow, comment, forward or profile visit (sparse).
            Defaults to `"long_view"`.
        overwrite: bool. Whether a folder that exists is replaced. Defaults to `False`.
        progress: callable or None. Called with (stage, bytes done, bytes in all).

    Returns:
        ImportReport.

    Raises:
        UserError: a file or a column is missing, or cannot be read.
    """
    if conversion not in CONVERSIONS:
        raise UserError(f"`conversion` should be one of {', '.join(CONVERSIONS)}. Received: {conversion!r}.")
    folder = _folder(Path(source))
    logs = _logs(folder)
    days = [_LOG.fullmatch(log.name) for log in logs]
    first, last = min(_day(match[1]) for match in days if match), max(_day(match[2]) for match in days if match)
    histories = sorted(folder.glob("user_history_to_*.csv*"))
    report = ImportReport(str(out), conversion)
    toml = dataset_toml(first, last, history=bool(histories), conversion=conversion, source=folder.name)

    def tables() -> Tables:
        yield from _users(_found(folder, "user_features"))
        yield from _items(_found(folder, "video_features_basic"))
        for path in histories:
            for frame, unmatched in history_behaviors(path):
                for name, count in unmatched.items():
                    report.note(f"history {name} older than the watches kept", count)
                yield "behaviors", frame
        yield from _log_tables(logs, report, progress, counted=bool(histories))

    def numbered() -> Tables:
        for name, frame in tables():
            report.rows[name] = report.rows.get(name, 0) + len(frame)
            yield name, frame

    write_dataset(out, toml, numbered(), overwrite=overwrite)
    return report


def _folder(source: Path) -> Path:
    for folder in (source, source / "data"):
        if any(folder.glob("log_standard_*.csv*")):
            return folder
    raise UserError(f"{source} should hold log_standard_*.csv (or .csv.gz), as KuaiRand's `data` folder does.")


def _logs(folder: Path) -> list[Path]:
    logs = sorted(folder.glob("log_standard_*.csv*"))
    for log in logs:
        if not _LOG.fullmatch(log.name):
            rule = "should be named as in KuaiRand, log_standard_4_22_to_5_08_pure.csv"
            raise UserError(f"{folder}: a log {rule}. Received: {log.name}.")
    names = [log.name.removesuffix(".gz") for log in logs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{folder}: a log should be there once, as .csv or .csv.gz. Received: {twice} and {twice}.gz.")
    return logs


def _found(folder: Path, stem: str) -> list[Path]:
    paths = sorted(path for path in folder.glob(f"{stem}_*.csv*") if path.name.endswith((".csv", ".csv.gz")))
    if not paths:
        raise UserError(f"{folder} should hold {stem}_*.csv (or .csv.gz), as KuaiRand's `data` folder does.")
    return paths


def _day(text: str) -> datetime:
    month, day = text.split("_")
    return datetime(2022, int(month), int(day))


def read_chunks(path: Path, columns: list[str], report: Callable[[int], None] | None = None) -> Iterator[pd.DataFrame]:
    """The wanted columns of a CSV file in chunks; `report` gets the bytes of the file read so far."""
    with open(path, "rb") as raw:
        stream = gzip.open(raw) if path.suffix == ".gz" else raw
        try:
            header = stream.readline().decode("utf-8-sig").strip().split(",")
            missing = [column for column in columns if column not in header]
            if missing:
                raise UserError(f"{path}: should have a column `{missing[0]}`. Received: {', '.join(header)}.")
            chunks = pd.read_csv(stream, names=header, index_col=False, chunksize=_CHUNK_ROWS, low_memory=False)
            for chunk in chunks:
                yield chunk[columns]
                if report is not None:
                    report(raw.tell())
        except (
            pd.errors.ParserError,
            pd.errors.EmptyDataError,
            UnicodeDecodeError,
            EOFError,
            gzip.BadGzipFile,
        ) as error:
            raise UserError(f"{path}: cannot be read: {str(error).strip().splitlines()[0]}") from None


def _whole(values: pd.Series) -> pd.Series:
    """Numbers that are whole; anything else is missing."""
    numbers = pd.to_numeric(values, errors="coerce")
    return numbers if numbers.dtype.kind == "i" else numbers.where(numbers % 1 == 0)


def _log_tables(logs: list[Path], report: ImportReport, progress: Progress | None, *, counted: bool) -> Tables:
    total, before = sum(log.stat().st_size for log in logs), 0
    seen = np.empty(0, np.uint64)
    for log in logs:
        told = None if progress is None else lambda done, before=before: progress("log", before + done, total)
        for chunk in read_chunks(log, [*_NUMBERS, *_FLAGS], told):
            rows, seen = _accepted(chunk, seen, report)
            yield "impressions", _impressions(rows, report)
            yield "behaviors", _behaviors(rows, report.accepted, counted)
            report.accepted += len(rows)
        before += log.stat().st_size


def _accepted(chunk: pd.DataFrame, seen: np.ndarray, report: ImportReport) -> tuple[pd.DataFrame, np.ndarray]:
    """The good rows of a chunk as int64, and the keys of all rows so far; the others are counted by reason."""

    def reject(rows: pd.DataFrame, bad: pd.Series | np.ndarray, reason: str) -> pd.DataFrame:
        report.reject(reason, int(bad.sum()))
        return rows[~bad]

    report.read += len(chunk)
    rows = chunk.apply(_whole)
    rows = reject(rows, rows.isna().any(axis=1), "an empty or malformed number").astype(np.int64)
    rows = reject(rows, (rows[list(_NUMBERS)] < 0).any(axis=1), "a negative id, time or page")
    rows = reject(rows, ~rows[list(_FLAGS)].isin((0, 1)).all(axis=1), "a label that is not 0 or 1")
    # the same play logged twice, an hour apart at most: (user, video, time) names an event
    key = pd.util.hash_pandas_object(rows[["user_id", "video_id", "time_ms"]], index=False).to_numpy()
    place = np.searchsorted(seen, key)
    twice = pd.Series(key, rows.index).duplicated() | (np.append(seen, np.uint64(0))[place] == key) & (
        place < len(seen)
    )
    rows, fresh = reject(rows, twice, "a duplicate (user, video, time)"), np.sort(key[~twice.to_numpy()])
    return rows, np.insert(seen, np.searchsorted(seen, fresh), fresh)


def _impressions(rows: pd.DataFrame, report: ImportReport) -> pd.DataFrame:
    label = rows[list(CONVERSIONS[report.conversion])].any(axis=1)
    click = rows["is_click"] == 1
    conversion = label & click
    report.clicks += int(click.sum())
    report.conversions += int(conversion.sum())
    report.dropped_labels += int((label & ~click).sum())
    for day, count in rows["date"].value_counts(sort=False).items():
        report.days[str(day)] = report.days.get(str(day), 0) + int(count)
    valid_play = rows["time_ms"] + rows["play_time_ms"].clip(upper=_CLICK_AFTER_MS)
    over = rows["time_ms"] + rows["play_time_ms"]
    return pd.DataFrame(
        {
            "request_id": rows["user_id"].astype("str") + "-" + rows["date"].astype("str"),
            "timestamp": rows["time_ms"],
            "user_id": rows["user_id"],
            "item_id": rows["video_id"],
            "click": click.astype(np.int8),
            "conversion": conversion.astype(np.int8),
            "click_time": valid_play.where(click).astype("Int64"),
            "conversion_time": over.where(conversion).astype("Int64"),
            "tab": rows["tab"],
        }
    )


def _behaviors(rows: pd.DataFrame, before: int, counted: bool) -> pd.DataFrame:
    """Every impression as a watch, known when it ended; `order` is its row in the log, so that it names the play.

    `counted`: whether the history's fields of entries that have their watch are kept too (here: all of them).
    """
    plays = pd.DataFrame(
        {
            "user_id": rows["user_id"],
            "field": "watch",
            "value": rows["video_id"],
            "timestamp": rows["time_ms"] + rows["play_time_ms"],
            "order": np.arange(before + 1, before + 1 + len(rows)),
        }
    )
    flags = {"long_watch": "long_view", "like": "is_like"}
    flags |= {f"counted_{name}": flag for name, flag in flags.items()} if counted else {}
    return pd.concat([plays, *(plays[rows[flag] == 1].assign(field=name) for name, flag in flags.items())])


def _known(values: pd.Series) -> pd.Series:
    """Without KuaiRand's -124 = unknown; whole numbers with gaps stay whole numbers."""
    values = values.where(values != _UNKNOWN)
    return values.astype("Int64") if values.dtype.kind in "fi" else values


def _users(paths: list[Path]) -> Tables:
    onehot = [f"onehot_feat{number}" for number in range(18)]
    for path in paths:
        for chunk in read_chunks(path, ["user_id", "user_active_degree", *_USER_FLAGS, *_USER_NUMBERS, *onehot]):
            numbers = {name: chunk[name].where(chunk[name] >= 0).astype(float) for name in _USER_NUMBERS}
            yield "users", chunk.assign(**{name: _known(chunk[name]) for name in (*_USER_FLAGS, *onehot)}, **numbers)


def _items(paths: list[Path]) -> Tables:
    columns = ["video_id", "author_id", "video_type", "upload_dt", "upload_type", "video_duration", "music_type", "tag"]
    for path in paths:
        for chunk in read_chunks(path, columns):
            uploaded = pd.to_datetime(chunk["upload_dt"], errors="coerce") - timedelta(hours=8)  # a day in China
            born = (uploaded - pd.Timestamp(0)) // timedelta(milliseconds=1)
            seconds = chunk["video_duration"].astype(float) / 1000
            bucket = pd.Series(np.searchsorted(_DURATION_EDGES_S, seconds), chunk.index).where(seconds.notna())
            yield (
                "items",
                pd.DataFrame(
                    {
                        "item_id": chunk["video_id"],
                        "born": born.astype("Int64"),
                        "author_id": _known(chunk["author_id"]),
                        "video_type": chunk["video_type"].astype("str"),
                        "upload_type": chunk["upload_type"].astype("str"),
                        "music_type": _known(chunk["music_type"]),
                        "tag": chunk["tag"].astype("str"),
                        "duration_s": seconds,
                        "duration_bucket": bucket.astype("Int64"),
                    }
                ),
            )
