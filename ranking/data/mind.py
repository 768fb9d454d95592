"""MIND (Wu et al., ACL 2020) -> a dataset: real exposures and clicks of a news site, and no conversion.

The conversion is a proxy: within an hour after the click its user clicked another story of the same category.
"""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ranking.atomic import refuse_existing
from ranking.data.arrow_csv import read_batches
from ranking.data.import_report import ImportReport
from ranking.data.mind_toml import AGAIN_MS, dataset_toml
from ranking.data.tables import write_dataset
from ranking.errors import UserError

__all__ = ["import_mind"]

_SPLITS = ("train", "dev")
_BLOCK = 1 << 22  # bytes: a line has forty exposures
_TIME = "%m/%d/%Y %I:%M:%S %p"
_NEWS = ("item_id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
_BEHAVIORS = ("impression_id", "user_id", "time", "history", "impressions")

Progress = Callable[[str, int, int], None]


def import_mind(
    source: str | Path, out: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> ImportReport:
    """Writes a dataset from MIND's folders. Behaviours are streamed; in memory are news, clicks and histories.

    Args:
        source: str or Path. The folder that holds MIND*_train and MIND*_dev, or one with behaviors.tsv and news.tsv.
            A test split has no labels and is left out.
        out: str or Path. The dataset folder to make.
        overwrite: bool. Whether a folder that exists is replaced. Defaults to `False`.
        progress: callable or None. Called with (file, bytes done, bytes in all).

    Raises:
        UserError: a file is missing, a line is broken, or the log has too few days.
    """
    refuse_existing(Path(out), overwrite)
    report = ImportReport(str(out), "another click in the category within an hour")
    work = _Import(_folders(Path(source)), report, progress)
    toml = work.prepare(Path(source).resolve().name)
    write_dataset(out, toml, work.tables(), overwrite=overwrite)
    return report


def _folders(source: Path) -> list[Path]:
    """The splits with labels, in the order of time."""
    found = [source] if (source / "behaviors.tsv").is_file() else []
    for split in _SPLITS:
        found += sorted(path.parent for path in source.glob(f"*{split}/behaviors.tsv"))
    if not found:
        raise UserError(f"{source} should hold behaviors.tsv, or folders named *train and *dev that do.")
    if len({path.name for path in found}) > len(_SPLITS):
        raise UserError(f"{source} should hold one release. Received: {', '.join(path.name for path in found)}.")
    return found


class _Import:
    """What the passes over the files share: the news, the times and the clicks."""

    def __init__(self, folders: list[Path], report: ImportReport, progress: Progress | None) -> None:
        self.folders, self.report = folders, report
        self._progress = progress or (lambda stage, done, total: None)
        self._news = pd.concat([_news(folder / "news.tsv") for folder in folders]).drop_duplicates("item_id")
        self._categories = self._news.set_index("item_id")["category"]

    def prepare(self, source: str) -> str:
        """Reads the clicks; the text of dataset.toml."""
        clicks = []
        edges: list[int] = []
        for stage, batch in self._batches(" (clicks)"):
            time, user, item, label = self._exposures(batch, stage, counted=False)[1:]
            if len(time):
                edges += [int(time.min()), int(time.max())]
                edges = [min(edges), max(edges)]
            hit = label == 1
            clicks.append(pd.DataFrame({"user": user[hit], "item": item[hit], "time": time[hit]}))
        found = pd.concat(clicks, ignore_index=True) if clicks else pd.DataFrame()
        if found.empty:
            raise UserError(f"{self.folders[0] / 'behaviors.tsv'} should have a click (-1). Received: none.")
        self._clicks = _again(found, self._categories)
        first = datetime.fromtimestamp(edges[0] / 1000, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        last = datetime.fromtimestamp(edges[1] / 1000, UTC)
        return dataset_toml(first, (last - first) // timedelta(days=1) + 1, source)

    def tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """The tables of the dataset, in pieces."""
        yield "items", self._counted("items", self._news)
        known: set[str] = set()
        frame = self._clicks.rename(columns={"user": "user_id", "item": "value", "time": "timestamp"})
        yield "behaviors", self._counted("behaviors", frame.drop(columns="again").assign(field="read", order=0))
        for folder in self.folders:
            for frame in self._histories(folder, known):
                yield "behaviors", self._counted("behaviors", frame.assign(field="read"))
        again = self._clicks.drop_duplicates(["user", "item", "time"])
        for stage, batch in self._batches(""):
            request, time, user, item, label = self._exposures(batch, stage, counted=True)
            frame = pd.DataFrame({"user": user, "item": item, "time": time, "click": label.astype(np.int8)})
            frame = frame.merge(again.assign(click=np.int8(1)), how="left", on=["user", "item", "time", "click"])
            frame["conversion"] = frame["again"].notna().astype(np.int8)
            frame.insert(0, "request_id", request)
            self.report.accepted += len(frame)
            self.report.clicks += int(frame["click"].sum())
            self.report.conversions += int(frame["conversion"].sum())
            names = {"user": "user_id", "item": "item_id", "time": "timestamp", "again": "conversion_time"}
            yield "impressions", self._counted("impressions", frame.rename(columns=names))

    def _counted(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        self.report.rows[name] = self.report.rows.get(name, 0) + len(frame)
        return frame

    def _batches(self, pass_: str) -> Iterator[tuple[str, pa.RecordBatch]]:
        for folder in self.folders:
            for batch in _behaviors(folder, self._progress, f"{folder.name}{pass_}"):
                yield folder.name, batch

    def _exposures(
        self, batch: pa.RecordBatch, split: str, *, counted: bool
    ) -> tuple[pd.Series, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One row an exposure: request, time (ms), user, item and label."""
        time = pd.to_datetime(batch["time"].to_pandas(), format=_TIME, errors="coerce")
        lists = pc.split_pattern(batch["impressions"], " ")
        parent = pc.list_parent_indices(lists).to_numpy()
        shown = pc.list_flatten(lists)
        labelled = pc.match_substring_regex(shown, "^.+-[01]$").to_numpy(zero_copy_only=False)
        item = pc.utf8_slice_codeunits(shown, 0, -2).to_pandas().to_numpy()
        known = pd.Series(item).isin(self._categories.index).to_numpy()
        user = batch["user_id"].to_pandas()
        timed = (time.notna() & user.notna()).to_numpy()[parent]
        good = labelled & known & timed
        if counted:
            self.report.read += len(shown)
            self.report.reject("no label (-0 or -1)", int((~labelled).sum()))
            self.report.reject("a story that news.tsv lacks", int((labelled & ~known).sum()))
            self.report.reject(
                "no user, or a time that is not as in 11/13/2019 8:36:57 AM", int((labelled & known & ~timed).sum())
            )
        parent = parent[good]
        label = pc.ends_with(shown, "-1").to_numpy(zero_copy_only=False)[good].astype(np.int8)
        ms = ((time - pd.Timestamp(0)) // pd.Timedelta(milliseconds=1)).fillna(-1).to_numpy(np.int64)
        request = (split + "-" + batch["impression_id"].to_pandas().fillna("")).iloc[parent].reset_index(drop=True)
        return request, ms[parent], user.to_numpy()[parent], item[good], label

    def _histories(self, folder: Path, known: set[str]) -> Iterator[pd.DataFrame]:
        """The first history of every user as reads before the split's first impression; only their order is known."""
        first = None
        for batch in _behaviors(folder, self._progress, f"{folder.name} (times)"):
            time = pd.to_datetime(batch["time"].to_pandas(), format=_TIME, errors="coerce").min()
            first = time if first is None or time < first else first
        before = int((first - pd.Timestamp(0)) // pd.Timedelta(milliseconds=1)) - 1 if first is not None else 0
        for batch in _behaviors(folder, self._progress, f"{folder.name} (histories)"):
            frame = batch.select(["user_id", "history"]).to_pandas().dropna().drop_duplicates("user_id")
            frame = frame[~frame["user_id"].isin(known)]
            known.update(frame["user_id"])
            reads = frame.assign(value=frame.pop("history").str.split(" ")).explode("value", ignore_index=True)
            reads = reads[reads["value"].isin(self._categories.index)]
            if len(reads):
                yield reads.assign(timestamp=before, order=reads.groupby("user_id").cumcount())[
                    ["user_id", "value", "timestamp", "order"]
                ]


def _behaviors(folder: Path, progress: Progress, stage: str) -> Iterator[pa.RecordBatch]:
    columns = dict.fromkeys(_BEHAVIORS, pa.string())
    return read_batches(
        folder / "behaviors.tsv",
        columns,
        delimiter="\t",
        header=False,
        block=_BLOCK,
        told=lambda done, total: progress(stage, done, total),
    )


def _news(path: Path) -> pd.DataFrame:
    """The stories with the entities of their titles (Wikidata's ids)."""
    batches = list(read_batches(path, dict.fromkeys(_NEWS, pa.string()), delimiter="\t", header=False))
    news = pa.Table.from_batches(batches, pa.schema([(name, pa.string()) for name in _NEWS])).to_pandas()
    entities = []
    for number, text in enumerate(news["title_entities"].fillna("[]"), 1):
        try:
            entities.append(",".join(entity["WikidataId"] for entity in json.loads(text) if entity.get("WikidataId")))
        except (ValueError, TypeError, AttributeError):
            raise UserError(
                f"{path}, line {number}: entities should be a JSON list. Received: {text[:60]!r}."
            ) from None
    return news[["item_id", "category", "subcategory"]].assign(entities=entities)


def _again(clicks: pd.DataFrame, categories: pd.Series) -> pd.DataFrame:
    """Beside each click, when its user next clicked in the same category, if within the hour; else missing."""
    keys = pd.DataFrame({"user": clicks["user"], "category": categories.reindex(clicks["item"]).to_numpy()})
    key = keys.groupby(["user", "category"], dropna=False).ngroup().to_numpy()
    by = np.lexsort((clicks["time"], key))
    key, time = key[by], clicks["time"].to_numpy()[by]
    # the first row behind all of the same key and time; its time counts if it has the same key
    change = np.append((np.diff(key) != 0) | (np.diff(time) != 0), True)
    ends = np.flatnonzero(change) + 1
    following = ends[np.searchsorted(ends, np.arange(len(key)), side="right")] if len(key) else ends
    later = np.append(time, 0)[following]
    hit = (np.append(key, -1)[following] == key) & (later - time <= AGAIN_MS)
    again = np.empty(len(key), np.int64)
    again[by] = np.where(hit, later, -1)
    return clicks.assign(again=pd.Series(again).where(again >= 0).astype("Int64"))
