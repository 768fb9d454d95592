"""Taobao's display advertisements (Tianchi 56) -> a dataset. The log has clicks only: purchases are inferred.

A click converts when its user buys something of the same category and brand within some days after it: the purchases
log names no advertisement and no item. Each purchase converts the latest such click before it.
"""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ranking.atomic import refuse_existing
from ranking.data.arrow_csv import read_batches
from ranking.data.import_report import ImportReport
from ranking.data.tables import write_dataset
from ranking.data.taobao_purchases import NEVER, Purchases
from ranking.data.taobao_toml import PROFILE, dataset_toml
from ranking.errors import UserError

__all__ = ["import_taobao"]

_DAY_S = 86_400
_CHINA_S = 8 * 3600
Progress = Callable[[str, int, int], None]


def import_taobao(
    source: str | Path, out: str | Path, *, days: int = 1, overwrite: bool = False, progress: Progress | None = None
) -> ImportReport:
    """Writes a dataset from the four CSV files. The logs are streamed: in memory are users, items and clicks.

    Args:
        source: str or Path. The folder with raw_sample.csv, ad_feature.csv, user_profile.csv and behavior_log.csv.
        out: str or Path. The dataset folder to make.
        days: int. How long after its click a purchase still converts it. Defaults to `1`.
        overwrite: bool. Whether a folder that exists is replaced. Defaults to `False`.
        progress: callable or None. Called with (file, bytes done, bytes in all).

    Raises:
        UserError: a file or a column is missing, a line is broken, or the log has too few days.
    """
    if days < 1:
        raise UserError(f"`days` should be a positive integer. Received: {days}.")
    refuse_existing(Path(out), overwrite)
    work = _Import(Path(source), days, ImportReport(str(out), f"a purchase within {days} days"), progress)
    toml = work.prepare()
    write_dataset(out, toml, work.tables(), overwrite=overwrite)
    return work.report


class _Import:
    """What the passes over the files share: advertisements, users, and when each click converted."""

    def __init__(self, source: Path, days: int, report: ImportReport, progress: Progress | None) -> None:
        self.source, self.days, self.report = source, days, report
        self._progress = progress or (lambda stage, done, total: None)

    def prepare(self) -> str:
        """Reads the advertisements and the clicks; the text of dataset.toml."""
        columns = dict.fromkeys(("adgroup_id", "cate_id", "campaign_id", "customer", "brand"), pa.int64())
        ads = self._whole("ad_feature", {**columns, "price": pa.float64()}).drop_duplicates("adgroup_id")
        self._ads = ads.sort_values("adgroup_id", ignore_index=True)
        users, clicks = np.zeros(0, np.int64), []
        edges: list[int] = []
        for batch in self._samples("raw_sample (clicks)"):
            user, time, ad = (batch[name].to_numpy() for name in ("user", "time_stamp", "adgroup_id"))
            if len(time):
                edges = [min([*edges, int(time.min())]), max([*edges, int(time.max())])]
            users = np.union1d(users, user)
            hit = batch["clk"].to_numpy() == 1
            clicks.append(np.stack([user[hit], time[hit], ad[hit]]))
        if not edges:
            raise UserError(f"{self.source / 'raw_sample.csv'} should have at least one row. Received: none.")
        user, time, ad = np.concatenate(clicks, axis=1)
        self._purchases = Purchases(users, self._pairs(ad), user, time, self.days * _DAY_S)
        without = self._purchases.without_pair
        self.report.note("clicks on advertisements without a brand: no purchase can be inferred", without)
        first, last = ((edge + _CHINA_S) // _DAY_S for edge in edges)
        begin = datetime(1970, 1, 1) + timedelta(seconds=first * _DAY_S - _CHINA_S)
        return dataset_toml(begin, last - first + 1, self.days, self.source.resolve().name)

    def tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """The tables of the dataset, in pieces."""
        yield "items", self._counted("items", self._ads.rename(columns={"adgroup_id": "item_id"}))
        profile = self._whole("user_profile", dict.fromkeys(("userid", *PROFILE), pa.int64()))
        profile = profile.drop_duplicates("userid").rename(columns={"userid": "user_id"})
        yield "users", self._counted("users", profile)
        numbers = dict.fromkeys(("user", "time_stamp", "cate", "brand"), pa.int64())
        for batch in self._batches("behavior_log", {**numbers, "btag": pa.string()}, "behavior_log"):
            bought = batch.filter(pc.equal(batch["btag"], "buy")).select(list(numbers))
            user, time, cate, brand = (bought[name].fill_null(-1).to_numpy() for name in numbers)
            ours = self._purchases.add(user, time, cate, brand)
            if ours.any():
                rows = {"user_id": user[ours], "field": "bought", "value": cate[ours].astype(str)}
                yield "behaviors", self._counted("behaviors", pd.DataFrame({**rows, "timestamp": time[ours] * 1000}))
        if "behaviors" not in self.report.rows:
            raise UserError(f"{self.source / 'behavior_log.csv'} should have a purchase by a user of raw_sample.csv.")
        done = 0
        for batch in self._samples("raw_sample"):
            click = batch["clk"].to_numpy() == 1
            until = done + int(click.sum())
            yield "impressions", self._counted("impressions", self._impressions(batch, click, done, until))
            done = until

    def _counted(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        self.report.rows[name] = self.report.rows.get(name, 0) + len(frame)
        return frame

    def _batches(self, name: str, columns: dict[str, pa.DataType], stage: str) -> Iterator[pa.RecordBatch]:
        told = self._progress
        return read_batches(self.source / f"{name}.csv", columns, told=lambda done, total: told(stage, done, total))

    def _whole(self, name: str, columns: dict[str, pa.DataType]) -> pd.DataFrame:
        """A small file; its first column may not be empty."""
        table = pa.Table.from_batches(self._batches(name, columns, name), pa.schema(list(columns.items())))
        frame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        key = next(iter(columns))
        if frame[key].isna().any():
            row = int(frame[key].isna().to_numpy().argmax()) + 2
            raise UserError(f"{self.source / f'{name}.csv'}, line {row}: `{key}` should not be empty.")
        return frame

    def _samples(self, stage: str) -> Iterator[pa.RecordBatch]:
        """The rows of raw_sample that are whole; in the pass that writes, the others are counted."""
        numbers = dict.fromkeys(("user", "time_stamp", "adgroup_id", "nonclk", "clk"), pa.int64())
        for batch in self._batches("raw_sample", {**numbers, "pid": pa.string()}, stage):
            empty = np.any([batch[name].is_null().to_numpy(zero_copy_only=False) for name in numbers], axis=0)
            click, other = (batch[name].fill_null(-1).to_numpy() for name in ("clk", "nonclk"))
            odd = ~empty & ((click + other != 1) | (click * other != 0))
            if stage == "raw_sample":
                self.report.read += len(batch)
                self.report.reject("an empty number", int(empty.sum()))
                self.report.reject("clk and nonclk that are not 0 and 1", int(odd.sum()))
            yield batch.filter(pa.array(~empty & ~odd))

    def _pairs(self, ad: np.ndarray) -> pd.DataFrame:
        """Category and brand of advertisements; missing where one is not known."""
        known = self._ads["adgroup_id"].to_numpy(np.int64)
        place = np.searchsorted(known, ad)
        found = np.append(known, -1)[place] == ad
        return self._ads[["cate_id", "brand"]].reindex(np.where(found, place, -1)).reset_index(drop=True)

    def _impressions(self, batch: pa.RecordBatch, click: np.ndarray, done: int, until: int) -> pd.DataFrame:
        user, time = (batch[name].to_numpy() for name in ("user", "time_stamp"))
        bought = np.full(len(user), NEVER)
        bought[click] = self._purchases.times()[done:until]
        conversion = bought < NEVER
        self.report.accepted += len(user)
        self.report.clicks += int(click.sum())
        self.report.conversions += int(conversion.sum())
        request = [batch[name].cast(pa.string()) for name in ("user", "time_stamp")]
        return pd.DataFrame(
            {
                "request_id": pc.binary_join_element_wise(*request, "-").to_pandas(),
                "timestamp": time * 1000,
                "user_id": user,
                "item_id": batch["adgroup_id"].to_numpy(),
                "click": click.astype(np.int8),
                "conversion": conversion.astype(np.int8),
                "conversion_time": pd.Series(np.where(conversion, bought, 0) * 1000).astype("Int64").where(conversion),
                "pid": batch["pid"].to_pandas(),
            }
        )
