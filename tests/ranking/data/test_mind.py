import json

import pytest

from ranking.data.check import check
from ranking.data.mind import import_mind
from ranking.data.mind_toml import dataset_toml
from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.timeline import Timeline

ENTITY = json.dumps([{"Label": "X", "WikidataId": "Q1", "Confidence": 1.0}, {"Label": "Y", "WikidataId": "Q2"}])
NEWS = [
    ("N1", "sports", "golf", 'A "quoted title', "", "https://x", ENTITY, "[]"),
    ("N2", "sports", "tennis", "B\u00e9b\u00e9", "", "https://x", "[]", "[]"),
    ("N3", "news", "world", "C", "", "https://x", "", ""),
    ("N4", "news", "world", "D", "", "https://x", "[]", "[]"),
]
TRAIN = [
    # text order is not time order; 9 to 13 November 2019
    (1, "U1", "11/10/2019 9:00:00 AM", "N3 N1 N3 N99", "N1-1 N2-0"),
    (2, "U1", "11/10/2019 9:30:00 AM", "N3 N1 N3 N99", "N2-1 N3-0 N4-0"),  # golf, then tennis: both sports
    (3, "U1", "11/10/2019 10:30:00 AM", "N3 N1 N3 N99", "N1-1"),  # an hour after N2: in time
    (4, "U1", "11/10/2019 11:30:01 AM", "N3 N1 N3 N99", "N2-1"),  # a second too late for the one before
    (5, "U2", "11/9/2019 12:05:00 AM", "", "N3-1 N4-1 N1-0"),  # two clicks of one category at one time: not again
    (6, "U3", "11/11/2019 1:00:00 PM", "N2", "N4-0 N3-1 N98-0 N1"),  # an unknown story, an exposure without label
    (7, "U3", "2019-11-11", "N2", "N4-0"),
    (8, "U2", "11/12/2019 1:00:00 PM", "", "N1-0"),
]
DEV = [
    (1, "U1", "11/13/2019 11:00:00 PM", "N3 N1 N3 N99 N2", "N4-1 N1-0"),
    (2, "U4", "11/13/2019 8:00:00 AM", "N1", "N2-0"),
]


def write(folder, train=TRAIN, dev=DEV):
    for name, rows in (("MINDdemo_train", train), ("MINDdemo_dev", dev)):
        (folder / name).mkdir(parents=True)
        text = "".join("\t".join(map(str, row)) + "\n" for row in rows)
        (folder / name / "behaviors.tsv").write_text(text, encoding="utf-8")
        text = "".join("\t".join(row) + "\n" for row in NEWS)
        (folder / name / "news.tsv").write_text(text, encoding="utf-8")
    return folder


def test_by_hand(tmp_path):
    report = import_mind(write(tmp_path / "raw"), tmp_path / "out")
    dataset = Dataset(tmp_path / "out")
    rows = dataset.impressions
    # 2 + 3 + 1 + 1 + 3 + 4 + 1 + 1 exposures of train, 2 + 1 of dev
    assert report.read == 19 and report.accepted == len(rows) == 16
    assert report.rejected == {
        "no label (-0 or -1)": 1,
        "a story that news.tsv lacks": 1,
        "no user, or a time that is not as in 11/13/2019 8:36:57 AM": 1,
    }
    shown = [tuple(row) for row in rows[["request_id", "item_id", "click", "conversion"]].itertuples(index=False)]
    assert shown[:7] == [
        ("MINDdemo_train-1", "N1", 1, 1),
        ("MINDdemo_train-1", "N2", 0, 0),
        ("MINDdemo_train-2", "N2", 1, 1),
        ("MINDdemo_train-2", "N3", 0, 0),
        ("MINDdemo_train-2", "N4", 0, 0),
        ("MINDdemo_train-3", "N1", 1, 0),
        ("MINDdemo_train-4", "N2", 1, 0),
    ]
    assert (report.clicks, report.conversions) == (8, 2) == (rows["click"].sum(), rows["conversion"].sum())
    # date -u -d "2019-11-10 09:00" +%s; the conversion is half an hour later
    assert rows["timestamp"].iloc[0] == 1573376400000 and rows["conversion_time"].iloc[0] == 1573378200000
    reads = dataset.behavior("read")
    first = reads[(reads["user_id"] == "U1")].sort_values(["timestamp", "order"])
    # the history (its unknown story left out) lies before the first impression of its split, then come the clicks
    assert first["value"].tolist() == ["N3", "N1", "N3", "N1", "N2", "N1", "N2", "N4"]
    start = 1573257900000  # 2019-11-09 00:05
    assert first["timestamp"].tolist()[:3] == [start - 1] * 3 and first["order"].tolist()[:3] == [0, 1, 2]
    # U4 comes with the second split: its history is known before that split's first impression, 8:00
    assert reads.loc[reads["user_id"] == "U4", "timestamp"].tolist() == [1573632000000 - 1]
    items = dataset.items.set_index("item_id")
    assert items.loc["N1", ["category", "subcategory", "entities"]].tolist() == ["sports", "golf", "Q1,Q2"]
    assert len(items) == 4 and items["entities"].isna().sum() == 3
    checked = check(tmp_path / "out")
    assert checked.ok, checked.errors
    assert checked.windows["(outside)"]["impressions"] == 0 and checked.windows["test"]["impressions"] == 3
    timeline = Timeline(dataset)
    assert timeline.mature(timeline.rows_in("test")).tolist() == [True] * 3


def test_one_split_alone(tmp_path):
    folder = write(tmp_path / "raw", TRAIN + DEV) / "MINDdemo_train"
    assert import_mind(folder, tmp_path / "out").accepted == 16
    with pytest.raises(UserError, match="five whole days of impressions. Received: 4"):
        import_mind(write(tmp_path / "short", dev=TRAIN[:1]), tmp_path / "no")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "behaviors.tsv",
            "1\tU1\n",
            r"behaviors.tsv: cannot be read: CSV parse error: Row #1: Expected 5 columns, got 2",
        ),
        ("behaviors.tsv", "1\tU1\t11/10/2019 9:00:00 AM\t\tN1-0\n", "should have a click"),
        ("news.tsv", "N1\ta\tb\tc\td\te\t{\tg\n", "train/news.tsv, line 1: entities should be a JSON list"),
        ("news.tsv", "N1\ta\tb\tc\td\te\t[1]\tg\n", "train/news.tsv, line 1: entities should be a JSON list"),
    ],
)
def test_broken_files(tmp_path, file, text, message):
    folder = write(tmp_path / "raw", dev=[])
    (folder / "MINDdemo_dev/behaviors.tsv").unlink()
    (folder / "MINDdemo_train" / file).write_text(text)
    with pytest.raises(UserError, match=message):
        import_mind(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_and_mixed(tmp_path):
    with pytest.raises(UserError, match="should hold behaviors.tsv, or folders named"):
        import_mind(tmp_path, tmp_path / "out")
    folder = write(tmp_path / "raw")
    (folder / "MINDdemo_train").rename(folder / "MINDsmall_train")
    write(tmp_path / "other")
    (tmp_path / "other/MINDdemo_train").rename(folder / "MINDdemo_train")
    with pytest.raises(UserError, match="should hold one release"):
        import_mind(folder, tmp_path / "out")


def test_windows():
    from datetime import datetime

    # 9 to 15 November: two days, two days, and a day each
    text = dataset_toml(datetime(2019, 11, 9), 7, "MIND")
    assert "lookalike = [2019-11-09T00:00:00Z, 2019-11-11T00:00:00Z]" in text
    assert "test = [2019-11-15T00:00:00Z, 2019-11-16T00:00:00Z]" in text
