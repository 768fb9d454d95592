import re
from dataclasses import fields
from pathlib import Path

import pandas as pd

from ranking.data.check import check
from ranking.data.schema import Schema, parse_schema
from ranking.data.tables import Dataset

DOCS = Path(__file__).resolve().parents[3] / "docs" / "data.md"


def test_the_worked_example_loads_as_it_is_printed(tmp_path):
    files = re.findall(r"```(?:toml|csv) (\S+)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert [name for name, _ in files] == [
        "dataset.toml",
        "impressions.csv",
        "users.csv",
        "items.csv",
        "behaviors.csv",
    ]
    for name, text in files:
        (tmp_path / name).write_text(text, encoding="utf-8")
    report = check(tmp_path)
    assert report.ok and report.warnings == []
    # by hand from the timestamps: 2 March twice, 5, 6, 7 and 8 March
    assert {name: counts["impressions"] for name, counts in report.windows.items()} == {
        "lookalike": 2,
        "train": 1,
        "calibrate": 1,
        "tune": 1,
        "test": 1,
        "(outside)": 0,
    }
    dataset = Dataset(tmp_path)
    assert dataset.impressions["user_id"][0] == 9007199254740993
    assert dataset.items["item_id"].tolist() == ["007", "a/b", "新闻, 1"]
    assert dataset.items["price"].tolist()[::2] == [19.9, 5.0] and pd.isna(dataset.items["tags"][1])


def test_the_documented_defaults_are_those_of_the_code():
    schema = parse_schema('schema_version = 1\n[ids]\nuser = "int64"\nitem = "int64"\n[windows]\n')
    text = DOCS.read_text(encoding="utf-8")
    assert f"| `k` | `{schema.k}` |" in text and f"| `min_seeds` | `{schema.min_seeds}` |" in text
    assert f'| `seed_event` | `"{schema.seed_event}"` |' in text
    assert f'| `seed_sample` | `"{schema.seed_sample}"` |' in text
    assert schema.tick_ms == 86_400_000 and '`tick` | `"1d"` |' in text
    for name in ("examination", "observed_until", "windows", "funnel"):
        assert name in {field.name for field in fields(Schema)} and name in text
