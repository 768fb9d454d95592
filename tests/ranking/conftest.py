"""Tiny datasets, written to disk and read back as a timeline."""

from collections.abc import Callable, Mapping

import pandas as pd
import pytest

from ranking.data.tables import Dataset, write_dataset
from ranking.timeline import Timeline

COLUMNS = {
    "impressions": ["timestamp", "user_id", "item_id", "click", "conversion", "click_time", "conversion_time", "tab"],
    "behaviors": ["user_id", "field", "value", "timestamp", "order"],
}


@pytest.fixture(scope="session")
def make_timeline(tmp_path_factory) -> Callable[..., Timeline]:
    """`(toml, name=rows or DataFrame, ...) -> Timeline`; impressions and behaviours may be lists of tuples, whose
    columns are the first of `COLUMNS`."""

    def frame(name: str, rows) -> pd.DataFrame:
        if isinstance(rows, pd.DataFrame | Mapping):
            return pd.DataFrame(rows)
        made = pd.DataFrame(rows, columns=COLUMNS[name][: len(rows[0])])
        if name == "impressions":
            made.insert(0, "request_id", range(len(made)))
        return made

    def make(toml: str, **tables) -> Timeline:
        folder = tmp_path_factory.mktemp("dataset") / "data"
        write_dataset(folder, toml, {name: frame(name, rows) for name, rows in tables.items()})
        return Timeline(Dataset(folder))

    return make
