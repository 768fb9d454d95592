import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.erasure import Person, columns_of, rows_of, without_rows
from ranking.errors import UserError
from ranking.seeds_file import fingerprint


@pytest.mark.parametrize(
    ("text", "kind", "values", "expected"),
    [
        # Text is exact: "007" is not "7", and a space is part of an id.
        ("007", "string", ["007", "7", " 007", None, "0070"], [1, 0, 0, 0, 0]),
        ("Ann", "string", ["ann", "Ann"], [0, 1]),
        # Numbers are numbers, however a CSV writes them; 2**53 and its neighbour stay apart.
        ("9007199254740993", "int64", ["9007199254740993", "9007199254740992", "+09007199254740993"], [1, 0, 1]),
        ("-5", "int64", ["-5", "5", "x", ""], [1, 0, 0, 0]),
    ],
)
def test_ids_of_a_table(text, kind, values, expected):
    test = Person(text).is_in(kind)
    assert test(values).tolist() == [bool(one) for one in expected]
    assert test(pa.array(values)).tolist() == [bool(one) for one in expected]


def test_ids_of_a_table_of_numbers():
    values = pa.array([2**53 + 1, 2**53, None, -1])
    assert Person(str(2**53 + 1)).is_in("int64")(values).tolist() == [True, False, False, False]
    assert not Person("Ann").is_listed()(values).any() and not Person(str(2**63)).is_listed()(values).any()
    assert Person("7").is_listed()(pa.array([7, 8], pa.uint8())).tolist() == [True, False]


def test_a_list_means_him_in_many_ways():
    test = Person("Ann@X.org").is_listed()
    hashed = fingerprint("ann@x.org")
    values = ["Ann@X.org", " ann@x.ORG ", hashed, f" {hashed.upper()}", "bob@x.org", fingerprint("bob@x.org"), ""]
    assert test(values).tolist() == [True] * 4 + [False] * 3
    assert Person("42").is_listed()(["42", " 042", fingerprint("42"), "4.2", None]).tolist() == [1, 1, 1, 0, 0]


def test_an_id_of_another_kind_is_refused():
    with pytest.raises(UserError, match="data: ids are whole numbers. Received: 'Ann'"):
        Person("Ann").id("int64", "data")
    assert Person("007").id("int64", "data") == 7 and Person("007").id("string", "data") == "007"


def test_parquet_keeps_types_order_compression_and_no_trace(tmp_path):
    users = [f"user-{number:03d}" for number in range(50)]
    table = pa.table(
        {
            "user_id": pa.array(users * 4),
            "city": pa.array(users * 4).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string())),
            "vector": pa.array(np.arange(400.0).reshape(200, 2).tolist(), pa.list_(pa.float32(), 2)),
            "when": pa.array(range(200), pa.timestamp("ms", "UTC")),
        }
    ).replace_schema_metadata({"note": "kept"})
    source, target = tmp_path / "a.parquet", tmp_path / "b"
    pq.write_table(table, source, compression="zstd", row_group_size=60)
    table = pq.read_table(source)
    gone = rows_of(source, "user_id", Person("user-007").is_in("string"))
    assert np.flatnonzero(gone).tolist() == [7, 57, 107, 157]
    without_rows(source, target, gone)
    found = pq.read_table(target)
    assert found.schema.equals(table.schema, check_metadata=True)
    assert found.drop_columns("city").equals(table.filter(pa.array(~gone)).drop_columns("city"))
    assert found["city"].to_pylist() == table.filter(pa.array(~gone))["city"].to_pylist()
    chunks = found["city"].chunks
    assert all("user-007" not in chunk.dictionary.to_pylist() for chunk in chunks)  # a filter alone leaves it there
    metadata = pq.read_metadata(target)
    assert metadata.row_group(0).column(0).compression == "ZSTD" and metadata.num_row_groups == 4
    assert b"user-007" not in target.read_bytes()


def test_a_table_may_become_empty(tmp_path):
    source, target = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pd.DataFrame({"user_id": [7, 7]}).to_parquet(source)
    without_rows(source, target, np.array([True, True]))
    assert pq.read_table(target).num_rows == 0 and pq.read_schema(target).names == ["user_id"]
    without_rows(target, source, np.zeros(0, bool))
    assert pq.read_table(source).num_rows == 0


CSV = 'user_id,text\r\n7,"a, ""b""\nc"\r\n8,x\r\n\r\n7,\r\n9,"é,"\r\n'


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "A.CSV"])
def test_csv_keeps_quotes_line_ends_and_empty_lines(tmp_path, name):
    source, target = tmp_path / name, tmp_path / f"new-{name}"
    data = ("\ufeff" + CSV).encode()
    source.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    gone = rows_of(source, "user_id", Person("7").is_in("int64"))
    assert gone.tolist() == [True, False, False, True, False]
    without_rows(source, target, gone)
    read = gzip.decompress(target.read_bytes()) if name.endswith("gz") else target.read_bytes()
    assert read.decode() == 'user_id,text\r\n8,x\r\n\r\n9,"é,"\r\n'


def test_lists_without_a_header(tmp_path):
    for name, text in (("a.txt", "ann\n bob \n\ncid"), ("a.csv", "ann\n bob \n\ncid\n")):
        path, target = tmp_path / name, tmp_path / f"new-{name}"
        path.write_text(text)
        assert columns_of(path) == ["user_id"]
        gone = rows_of(path, "user_id", Person("Bob").is_listed())
        assert gone.tolist() == [False, True, False, False]
        without_rows(path, target, gone)
        assert target.read_text() == text.replace(" bob \n", "")


def test_what_cannot_be_read_is_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_text("no parquet")
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read"):
        columns_of(path)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=30), st.integers(0, 5), st.integers(1, 7))
def test_the_others_stay_as_they_are(tmp_path_factory, users, him, group):
    folder = tmp_path_factory.mktemp("tables")
    frame = pd.DataFrame({"user_id": pd.Series(users, dtype="int64"), "row": np.arange(len(users))})
    frame.to_csv(folder / "a.csv", index=False)
    pq.write_table(pa.Table.from_pandas(frame), folder / "a.parquet", row_group_size=group)
    expected = frame[frame["user_id"] != him].reset_index(drop=True)
    for name, read in (("a.csv", pd.read_csv), ("a.parquet", pd.read_parquet)):
        gone = rows_of(folder / name, "user_id", Person(str(him)).is_in("int64"))
        without_rows(folder / name, folder / f"new-{name}", gone)
        found = read(folder / f"new-{name}").reset_index(drop=True)
        assert found.to_dict("list") == expected.to_dict("list")
