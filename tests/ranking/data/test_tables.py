import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.data.tables import Dataset, write_dataset
from ranking.errors import UserError

TOML = """
schema_version = 1
[ids]
user = "int64"
item = "string"
[windows]
train = [1970-01-01, 1970-01-02]
[features.user]
age = { kind = "categorical" }
income = { kind = "numeric" }
[features.item]
tag = { kind = "multi" }
[features.context]
tab = { kind = "categorical" }
[features.behavior]
watched = { keep = 10 }
query = { vocabulary = "own" }
"""
BIG = 9007199254740993  # 2^53 + 1: a float would make it ...992

IMPRESSIONS = f"""request_id,timestamp,user_id,item_id,click,conversion,click_time,tab
r1,1000,{BIG},007,1,1,1500,1
r1,1000,{BIG},7,1,0,,1
"r,2",2000,5,"a/""b""中",0,0,,
"""
USERS = f"user_id,age,income,ignored\n{BIG},18-24,1e3,x\n5,,,y\n"
ITEMS = 'item_id,tag,price\n007,"12,65",1.5\n7,,\n'
BEHAVIORS = f"user_id,field,value,timestamp,order\n{BIG},watched,007,10,-2\n{BIG},query,shoes,11,0\n5,other,zzz,1,0\n"


def folder(tmp_path, **tables):
    (tmp_path / "dataset.toml").write_text(tables.pop("toml", TOML))
    texts = {"impressions": IMPRESSIONS, "users": USERS, "items": ITEMS, "behaviors": BEHAVIORS, **tables}
    for name, text in texts.items():
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
    return Dataset(tmp_path)


def test_csv_keeps_ids_exactly_as_declared(tmp_path):
    dataset = folder(tmp_path)
    rows = dataset.impressions
    assert rows["user_id"].tolist() == [BIG, BIG, 5] and rows["user_id"].dtype == np.int64
    assert rows["item_id"].tolist() == ["007", "7", 'a/"b"中']
    assert rows["request_id"].tolist() == ["r1", "r1", "r,2"]
    assert rows["click_time"].tolist() == [1500, -1, -1] and rows["click_time"].dtype == np.int64
    assert rows["click"].dtype == np.int8
    assert rows["tab"].tolist()[:2] == ["1", "1"] and pd.isna(rows["tab"][2])
    assert dataset.observed_until == 2001  # the last timestamp + 1
    assert dataset.impressions is rows


def test_features_and_missing_values(tmp_path):
    dataset = folder(tmp_path)
    assert "ignored" not in dataset.users
    assert dataset.users["income"].tolist()[0] == 1000.0 and np.isnan(dataset.users["income"][1])
    assert dataset.items["tag"][0] == "12,65" and pd.isna(dataset.items["tag"][1])
    assert not dataset.has("candidates") and dataset.has("items")
    with pytest.raises(UserError, match="should hold a table `candidates`"):
        _ = dataset.candidates


def test_behaviors_keep_only_the_fields_in_use(tmp_path):
    dataset = folder(tmp_path)
    assert dataset.behaviors["field"].tolist() == ["watched", "query"]
    assert dataset.behavior("watched").to_dict("list") == {
        "user_id": [BIG],
        "value": ["007"],
        "timestamp": [10],
        "order": [-2],
    }


def test_integer_item_behaviors_beside_text_ones_stay_exact(tmp_path):
    toml = TOML.replace('item = "string"', 'item = "int64"')
    behaviors = f"user_id,field,value,timestamp\n5,watched,{BIG},1\n5,query,shoes,2\n"
    dataset = folder(tmp_path, toml=toml, behaviors=behaviors)
    assert dataset.behavior("watched")["value"].tolist() == [BIG]
    assert dataset.behavior("watched")["order"].tolist() == [0]
    assert dataset.behavior("query")["value"].tolist() == ["shoes"]


def test_gzipped_csv_and_parquet_give_the_same_table(tmp_path):
    first = tmp_path / "csv"
    first.mkdir()
    expected = folder(first).impressions
    (first / "impressions.csv").unlink()
    with gzip.open(first / "impressions.csv.gz", "wt", encoding="utf-8") as stream:
        stream.write(IMPRESSIONS)
    pd.testing.assert_frame_equal(Dataset(first).impressions, expected)
    write_dataset(tmp_path / "parquet", TOML, {"impressions": expected})
    pd.testing.assert_frame_equal(Dataset(tmp_path / "parquet").impressions, expected)


def test_integers_that_became_floats_because_some_were_missing(tmp_path):
    # what pandas writes for a nullable column: 1.0 beside NaN
    frame = pd.DataFrame({"user_id": [1, 2], "age": [3.0, np.nan], "income": [1, 2]})
    write_dataset(tmp_path / "d", TOML, {"users": frame})
    users = Dataset(tmp_path / "d").users
    assert users["age"][0] == "3" and pd.isna(users["age"][1])


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        ("impressions", IMPRESSIONS.replace(",conversion,", ",sold,"), "should have a column `conversion`"),
        ("impressions", IMPRESSIONS.replace(",5,", ",5.0,"), r"column `user_id`.*'5.0' in row 3"),
        ("impressions", IMPRESSIONS.replace(",5,", ",,"), "column `user_id`: row 3 is empty"),
        ("impressions", IMPRESSIONS.replace(",5,", ",9223372036854775808,"), "64 bits.*9223372036854775808.*row 3"),
        ("impressions", IMPRESSIONS.replace(",0,0,,", ",0,1,,"), "`conversion`.*where click is 0.*row 3"),
        ("impressions", IMPRESSIONS.replace(",1,0,,", ",2,0,,"), "a label should be 0 or 1.*'2' in row 2"),
        ("impressions", IMPRESSIONS.replace("1500", "500"), "`click_time`.*not be before.*500 in row 1"),
        ("impressions", IMPRESSIONS.replace(",0,0,,", ",0,0,7,"), "`click_time`.*empty where click is 0"),
        ("impressions", IMPRESSIONS.replace(",2000,", ",2022-04-25,"), "`timestamp`.*milliseconds.*2022-04-25.*row 3"),
        ("impressions", IMPRESSIONS.splitlines()[0] + "\n", "at least one row"),
        ("impressions", IMPRESSIONS + "r9,1\n", "cannot be read.*Expected 8 columns, got 2"),
        ("users", USERS + "5,a,1,z\n", "user_id should be unique.*5 in row 3"),
        ("users", USERS.replace("1e3", "rich"), "column `income`.*finite numbers.*'rich' in row 1"),
        ("users", USERS.replace("1e3", "1e999"), "column `income`.*finite numbers.*in row 1"),
        ("users", USERS.replace(",age,", ",user_id,"), "`user_id` more than once"),
    ],
)
def test_broken_rules_name_file_column_and_row(tmp_path, table, text, message):
    dataset = folder(tmp_path, **{table: text})
    with pytest.raises(UserError, match=message) as caught:
        dataset.table(table)
    assert str(caught.value).startswith(str(tmp_path / f"{table}.csv")) and "\n" not in str(caught.value)


def test_a_float_id_column_is_refused_by_name(tmp_path):
    frame = pd.DataFrame({"user_id": [1.0, 2.0], "age": ["a", "b"], "income": [1, 2]})
    write_dataset(tmp_path / "d", TOML, {"users": frame})
    with pytest.raises(UserError, match="column `user_id`: a float id column"):
        _ = Dataset(tmp_path / "d").users
    write_dataset(tmp_path / "e", TOML, {"items": pd.DataFrame({"item_id": [7, 8], "tag": ["a", "b"]})})
    with pytest.raises(UserError, match='column `item_id`: dataset.toml declares these ids "string"'):
        _ = Dataset(tmp_path / "e").items


def test_two_files_of_one_table_are_refused(tmp_path):
    dataset = folder(tmp_path)
    (tmp_path / "users.csv.gz").write_bytes(gzip.compress(USERS.encode()))
    with pytest.raises(UserError, match="`users` should be one file.*users.csv, users.csv.gz"):
        _ = dataset.users


def test_candidates_and_requests(tmp_path):
    candidates = pd.DataFrame(
        {
            "request_id": ["a", "a"],
            "item_id": ["x", "y"],
            "pctr": [0.25, 0.5],
            "position": pd.array([0, None], dtype="Int64"),
            "position_propensity": [0.5, None],
            "exposure_propensity": [0.5, 0.25],
        }
    )
    requests = pd.DataFrame({"request_id": ["a"], "timestamp": [1], "user_id": [5], "slots": [1], "tab": ["1"]})
    write_dataset(tmp_path / "d", TOML, {"candidates": candidates, "requests": requests})
    dataset = Dataset(tmp_path / "d")
    assert dataset.candidates["position"].tolist() == [0, -1]
    assert np.isnan(dataset.candidates["position_propensity"][1])
    assert dataset.candidates["pctr"].dtype == np.float32
    assert dataset.requests["tab"].tolist() == ["1"]
    write_dataset(tmp_path / "e", TOML, {"candidates": candidates.assign(position_propensity=[1.5, None])})
    with pytest.raises(UserError, match="position_propensity.*at most 1.*1.5 in row 1"):
        _ = Dataset(tmp_path / "e").candidates


def test_write_is_all_or_nothing_and_streams(tmp_path):
    part = pd.DataFrame({"user_id": [1], "age": ["a"], "income": [1.0]})

    def parts():
        yield "users", part
        yield "truth/impressions", part
        yield "users", part.assign(user_id=2, age=None)

    write_dataset(tmp_path / "d", TOML, parts())
    assert Dataset(tmp_path / "d").users["user_id"].tolist() == [1, 2]
    assert (tmp_path / "d" / "truth" / "impressions.parquet").is_file()
    with pytest.raises(UserError, match="exists already"):
        write_dataset(tmp_path / "d", TOML, {})

    def broken():
        yield "users", part
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_dataset(tmp_path / "f", TOML, broken())
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


@settings(max_examples=25, deadline=None)
@given(
    users=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20, unique=True),
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1), min_size=1, max_size=9
    ),
)
def test_any_id_survives_csv(tmp_path_factory, users, texts):
    directory = tmp_path_factory.mktemp("ids")
    rows = [(user, texts[row % len(texts)]) for row, user in enumerate(users)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id"]).assign(
        request_id="r", timestamp=1, click=0, conversion=0, tab="1"
    )
    (directory / "dataset.toml").write_text(TOML)
    frame.to_csv(directory / "impressions.csv", index=False)
    loaded = Dataset(directory).impressions
    assert loaded["user_id"].tolist() == [user for user, _ in rows]
    assert loaded["item_id"].tolist() == [text for _, text in rows]
