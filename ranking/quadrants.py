"""The four quadrants of a dataset's items: what the log says of them, or what a run predicts."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from esmm.quadrants import QUADRANTS, place, quadrants
from ranking.batches import Progress, silent
from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.rows import rows_by_tick
from ranking.run import Run
from ranking.timeline import Timeline

__all__ = ["CERTAIN", "WINDOWS", "ItemQuadrants", "quadrants_of_log", "quadrants_of_run"]

CERTAIN = 0.8  # below this probability of its quadrant an item is undecided
WINDOWS = ("train", "calibrate", "tune")  # the test window decides nothing
_COUNTS = ("impressions", "clicks", "final_clicks", "conversions")
_RATES = ("click_rate", "conversion_rate")


@dataclasses.dataclass(frozen=True)
class ItemQuadrants:
    """The items of some windows by quadrant.

    Attributes:
        items: DataFrame, the most shown first: `item_id`, `impressions`, `clicks`, `final_clicks`, `conversions`
            (of the final clicks), `click_rate`, `conversion_rate`, `quadrant`, `certainty` (NaN where the rates are a
            run's) and `decided`. Without the items under `min_impressions`.
        click_threshold, conversion_threshold: float. From there on a rate is high.
        about: dict. `source` ("log" or "run"), `dataset`, `run`, `windows`, `start`, `end` (ms, or ordinals),
            `ordinal`, `min_impressions`, `left_out` (items under it), `immature_clicks` and `priors` (of the log).
    """

    items: pd.DataFrame
    click_threshold: float
    conversion_threshold: float
    about: dict[str, Any]

    def counts(self) -> dict[str, int]:
        """Items of each quadrant that are decided, and those that are not."""
        of = self.items["quadrant"][self.items["decided"]].value_counts()
        return {name: int(of.get(name, 0)) for name in QUADRANTS} | {"undecided": int((~self.items["decided"]).sum())}

    def of(self, quadrant: str) -> pd.DataFrame:
        """The decided items of a quadrant: hidden gems and winners by conversion rate, the others by clicks spent."""
        found = self.items[self.items["decided"] & (self.items["quadrant"] == quadrant)]
        by = "conversion_rate" if QUADRANTS[quadrant][1] else "clicks"
        return found.sort_values(by, ascending=False, kind="stable")

    def span(self) -> str:
        """The time of the windows in words."""
        first, last = self.about["start"], self.about["end"]
        if not self.about["ordinal"]:
            first, last = (f"{datetime.fromtimestamp(time / 1000, UTC):%Y-%m-%d %H:%M}" for time in (first, last))
        return f"{' + '.join(self.about['windows'])}, {first} to {last}"

    def as_dict(self) -> dict[str, Any]:
        """What `seedrank quadrants --json` prints."""
        certainty = self.items["certainty"].astype(object)
        rows = self.items.assign(certainty=certainty.where(certainty.notna(), None))  # JSON has no NaN
        return {
            **self.about,
            "click_threshold": self.click_threshold,
            "conversion_threshold": self.conversion_threshold,
            "counts": self.counts(),
            "items": rows.to_dict("records"),
        }


def quadrants_of_log(dataset: Dataset, windows: Sequence[str] = WINDOWS, *, min_impressions: int = 1) -> ItemQuadrants:
    """Places the items by what happened: clicks per impression, and conversions per click whose label is final.

    The rates are smoothed and each item has the probability that it really is in its quadrant (`esmm.quadrants`).
    Clicks depend on the position too: an item that was always shown last looks duller than it is; a run's rates do
    not have that, where positions were logged.

    Args:
        dataset: Dataset.
        windows: sequence of str. Names of windows. Defaults to `WINDOWS`: the test window decides nothing.
        min_impressions: int. Items shown less often are left out; they count in the overall rates. Defaults to `1`.

    Raises:
        UserError: no impression in the windows, or no click or conversion to tell items apart by.
    """
    timeline, rows = _rows(dataset, windows, min_impressions)
    frame = timeline.impressions
    click, conversion = (frame[label].to_numpy()[rows] == 1 for label in timeline.schema.funnel[:2])
    final = click & timeline.mature(rows)
    kinds = (np.ones(len(rows), bool), click, final, final & conversion)
    counts = {
        name: np.bincount(timeline.item[rows[kept]], minlength=len(timeline.item_ids))
        for name, kept in zip(_COUNTS, kinds, strict=True)
    }
    shown = np.flatnonzero(counts["impressions"])
    counts = {name: values[shown] for name, values in counts.items()}
    try:
        found = quadrants(*counts.values())
    except ValueError as error:
        raise UserError(f"{dataset.path}: nothing to tell items apart by: {error}") from None
    items = pd.DataFrame(
        {
            "item_id": timeline.item_ids[shown],
            **counts,
            "click_rate": found.click_rate,
            "conversion_rate": found.conversion_rate,
            "quadrant": found.quadrant,
            "certainty": found.certainty,
            "decided": found.certainty >= CERTAIN,
        }
    )
    about = {
        "source": "log",
        "run": None,
        "immature_clicks": int(click.sum() - final.sum()),
        "priors": {
            "click": dataclasses.asdict(found.click_prior),
            "conversion": dataclasses.asdict(found.conversion_prior),
        },
    }
    thresholds = found.click_threshold, found.conversion_threshold
    return _made(items, thresholds, about, timeline, windows, min_impressions)


def quadrants_of_run(
    run: Run,
    dataset: Dataset,
    windows: Sequence[str] = WINDOWS,
    *,
    min_impressions: int = 1,
    progress: Progress = silent,
) -> ItemQuadrants:
    """Places the items by what a run predicts for those whom they were shown to.

    The rates of an item are the means of pctr and pcvr over its impressions, each as of its own tick, examined as at
    the top: whatever its positions were, and all who saw it asked whether they would convert if they clicked, not only
    those who clicked. A rate is high from the mean over all impressions on. The network has smoothed already, and
    nothing says how far it is off: all items are decided, none has a certainty.

    Args:
        run: Run.
        dataset: Dataset.
        windows: sequence of str. Names of windows. Defaults to `WINDOWS`: the test window decides nothing.
        min_impressions: int. Items shown less often are left out; they count in the overall rates. Defaults to `1`.
        progress: Progress.

    Raises:
        UserError: no impression in the windows.
    """
    timeline, rows = _rows(dataset, windows, min_impressions)
    totals = {name: np.zeros(len(timeline.item_ids)) for name in (*_COUNTS, *_RATES)}
    clicks = 0
    for part in rows_by_tick(run.builder(timeline), rows, progress=progress):
        predicted = run.predict(part.features)
        final = (part.click > 0) & part.mature
        clicks += int((part.click > 0).sum())
        sums = (np.ones(len(final)), part.click, final, part.conversion * final, predicted["pctr"], predicted["pcvr"])
        for name, values in zip(totals, sums, strict=True):
            totals[name] += np.bincount(timeline.item[part.row], values, minlength=len(timeline.item_ids))
    click, conversion = (float(totals[name].sum() / len(rows)) for name in _RATES)
    shown = np.flatnonzero(totals["impressions"])
    items = pd.DataFrame({"item_id": timeline.item_ids[shown]} | {name: v[shown] for name, v in totals.items()})
    items = items.astype(dict.fromkeys(_COUNTS, np.int64))
    items[list(_RATES)] = items[list(_RATES)].div(items["impressions"], axis=0)
    items["quadrant"] = place(items["click_rate"].to_numpy(), items["conversion_rate"].to_numpy(), click, conversion)
    items["certainty"], items["decided"] = np.nan, True
    immature = clicks - int(totals["final_clicks"].sum())
    about = {"source": "run", "run": str(run.path), "immature_clicks": immature, "priors": None}
    return _made(items, (click, conversion), about, timeline, windows, min_impressions)


def _rows(dataset: Dataset, windows: Sequence[str], min_impressions: int) -> tuple[Timeline, np.ndarray]:
    if min_impressions < 1:
        raise UserError(f"`min_impressions` should be a positive integer. Received: {min_impressions}.")
    timeline = Timeline(dataset)
    return timeline, timeline.some_rows_in(*windows)


def _made(
    items: pd.DataFrame,
    thresholds: tuple[float, float],
    about: dict[str, Any],
    timeline: Timeline,
    windows: Sequence[str],
    min_impressions: int,
) -> ItemQuadrants:
    kept = items["impressions"] >= min_impressions
    if not kept.any():
        raise UserError(
            f"`min_impressions` should leave an item: the most shown one has {items['impressions'].max():,}. "
            f"Received: {min_impressions:,}."
        )
    spans = [timeline.window(name) for name in windows]
    about = about | {
        "dataset": str(timeline.dataset.path),
        "windows": list(windows),
        "start": min(start for start, _ in spans),
        "end": max(end for _, end in spans),
        "ordinal": timeline.schema.time == "ordinal",
        "min_impressions": min_impressions,
        "left_out": int((~kept).sum()),
    }
    items = items[kept].sort_values("impressions", ascending=False, kind="stable", ignore_index=True)
    return ItemQuadrants(items, thresholds[0], thresholds[1], about)
