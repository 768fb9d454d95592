"""Lists of ids: every row is accounted for, and what is no list is refused in one line."""

import gzip
import hashlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.errors import UserError
from ranking.id_matching import AMBIGUOUS, UNKNOWN, Matcher, joined, resolved
from ranking.seeds_file import fingerprint, ids_of, read_ids


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def seen(lists, ids):
    """A matcher after a population in chunks of 2."""
    matcher = Matcher(lists)
    for start in range(0, len(ids), 2):
        part = ids[start : start + 2]
        matcher.see(np.arange(start, start + len(part)), part)
    return matcher


def texts(*ids):
    return np.array(ids, object)


NONE = np.zeros(0, np.int64)


class TestRead:
    def test_csv_with_header_and_weights(self, tmp_path):
        ids = read_ids(write(tmp_path, "buyers.csv", "name,user_id,weight\na,3,1\nb, 12 ,2.5\n"), "int64")
        assert ids.name == "buyers" and ids.rows == 2
        np.testing.assert_array_equal(ids.keys, [3, 12])
        np.testing.assert_array_equal(ids.weights, np.float32([1, 2.5]))
        np.testing.assert_array_equal(ids.lines, [2, 3])  # the header is line 1

    @pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.csv.gz"])
    @pytest.mark.parametrize("head", ["", "user_id\n", "\ufeffuser_id\r\n"])
    def test_one_column(self, tmp_path, name, head):
        content = f"{head}u1\n\nU 2\n".encode()
        ids = read_ids(write(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content), "string")
        assert ids.name == "a" and list(ids.keys) == ["u1", "U 2"] and (ids.rows, ids.blank) == (3, 1)

    def test_quotes_and_commas_belong_to_an_id(self, tmp_path):
        ids = read_ids(write(tmp_path, "a.csv", 'user_id\n"a,b"\n"say ""x"""\n'), "string")
        assert list(ids.keys) == ["a,b", 'say "x"']
        assert list(read_ids(write(tmp_path, "a.txt", 'a,b\n"x"\n'), "string").keys) == ["a,b", '"x"']

    def test_parquet(self, tmp_path):
        pd.DataFrame({"user_id": [2**53 + 1, 7], "weight": [1, 3]}).to_parquet(tmp_path / "a.parquet")
        ids = read_ids(tmp_path / "a.parquet", "int64")
        assert ids.keys.tolist() == [2**53 + 1, 7] and ids.weights.tolist() == [1, 3]
        assert list(read_ids(tmp_path / "a.parquet", "string").keys) == [str(2**53 + 1), "7"]

    def test_digests(self, tmp_path):
        # Known by `printf 123 | sha256sum`: the digest of the decimal text.
        digest = "a665a45920422f9d417e4867efdc4fb8a04a1f3fff1fa07e998e86f7f7a27ae3"
        assert fingerprint(123) == digest == fingerprint(" 123 ")
        assert fingerprint("Bob ") == hashlib.sha256(b"bob").hexdigest()
        ids = read_ids(write(tmp_path, "a.txt", digest.upper()), "int64", hashed=True)
        assert list(ids.keys) == [digest]

    def test_an_audience_of_ours_holds_ids_all_the_same(self, tmp_path):
        frame = pd.DataFrame({"list": ["a", "b"], "user_id": [5, 5], "rank": [1, 1], "similarity": [0.5, 0.5]})
        frame.to_parquet(tmp_path / "audience.parquet")
        ids = read_ids(tmp_path / "audience.parquet", "int64", hashed=True, repeats=True)
        assert ids.keys.tolist() == [5] and not ids.hashed and ids.duplicates == 1

    def test_in_memory(self):
        assert ids_of(np.array([3, 1]), "int64").keys.tolist() == [3, 1]
        assert list(ids_of(pd.Series(["x", "y"]), "string").keys) == ["x", "y"]


BAD = {
    "duplicate": ("user_id\n1\n2\n1\n", ["0 malformed and 1 duplicate", "line 4", "'1' came before, in line 2"]),
    "not a number": ("user_id\n1\nx7\n", ["1 malformed", "line 3: 'x7': not a whole number"]),
    "a float": ("user_id\n1.0\n", ["'1.0'"]),
    "too large": ("user_id\n9223372036854775808\n", ["above 64 bits"]),
    "too many columns": ("user_id\n1,2\n", ["line 2", "2 columns instead of 1"]),
    "too few columns": ("user_id,weight\n1\n", ["line 2", "1 columns instead of 2"]),
    "weight of 0": ("user_id,weight\n1,0\n", ["line 2: '0'", "positive"]),
    "no weight": ("user_id,weight\n1,\n", ["line 2: ''", "positive"]),
    "infinite weight": ("user_id,weight\n1,inf\n", ["'inf'", "positive"]),
}


class TestRefuses:
    @pytest.mark.parametrize("name", BAD)
    def test_bad_rows(self, tmp_path, name):
        content, words = BAD[name]
        path = write(tmp_path, "seeds.csv", content)
        with pytest.raises(UserError) as error:
            read_ids(path, "int64")
        said = str(error.value)
        assert str(path) in said and "--drop-bad" in said and "\n" not in said
        assert all(word in said for word in words), said
        assert read_ids(path, "int64", drop_bad=True).rows == len(content.splitlines()) - 1

    def test_dropped_rows_are_counted(self, tmp_path):
        # rows 1, x, 1, (blank), 2 -> kept 1 and 2; one malformed, one duplicate, one blank
        ids = read_ids(write(tmp_path, "a.txt", "1\nx\n1\n\n2\n"), "int64", drop_bad=True)
        assert ids.keys.tolist() == [1, 2]
        assert (ids.rows, ids.malformed, ids.duplicates, ids.blank) == (5, 1, 1, 1)

    def test_digests_that_are_none(self, tmp_path):
        with pytest.raises(UserError, match="64 hex digits"):
            read_ids(write(tmp_path, "a.txt", "123\n"), "int64", hashed=True)

    def test_files(self, tmp_path):
        with pytest.raises(UserError, match="no such file"):
            read_ids(tmp_path / "a.csv", "int64")
        with pytest.raises(UserError, match="should be one of .csv"):
            read_ids(write(tmp_path, "a.xlsx", "1"), "int64")
        with pytest.raises(UserError, match="cannot be read"):
            read_ids(write(tmp_path, "a.parquet", "1"), "int64")
        with pytest.raises(UserError, match="cannot be read"):
            read_ids(write(tmp_path, "a.csv.gz", "1"), "int64")
        with pytest.raises(UserError, match="cannot be read"):
            read_ids(write(tmp_path, "a.csv", b"\xff\xfe1\n"), "string")
        with pytest.raises(UserError, match="column `user_id`.*email, city"):
            read_ids(write(tmp_path, "a.csv", "email,city\nx,y\n"), "string")
        pd.DataFrame({"user": [1]}).to_parquet(tmp_path / "b.parquet")
        with pytest.raises(UserError, match="column `user_id`. Received: user"):
            read_ids(tmp_path / "b.parquet", "int64")
        pd.DataFrame({"user_id": [1.0]}).to_parquet(tmp_path / "c.parquet")
        with pytest.raises(UserError, match="type double"):
            read_ids(tmp_path / "c.parquet", "int64")


class TestMatch:
    def test_raw_first_then_normalised(self):
        # Bob is written like the user in row 0. "ANN " fits row 2 only once trimmed and without case; zoe is nobody.
        ids = ids_of(["Bob", "ANN ", "zoe"], "string")
        row, how = seen([ids], texts("Bob", "bob", "ann")).match(ids)
        assert row.tolist() == [0, 2, UNKNOWN] and how.tolist() == [0, 1, 1]

    def test_two_users_of_one_normalised_id_are_nobody(self):
        ids = ids_of(["BOB"], "string")
        matcher = seen([ids], texts("Bob", "x", "bob"))
        assert matcher.match(ids)[0].tolist() == [AMBIGUOUS]
        match = resolved(matcher, ids, NONE).match
        assert (match.unmatched, match.ambiguous, match.matched) == (1, 1, 0)
        hashed = ids_of([fingerprint("bob")], "string", hashed=True)
        assert seen([hashed], texts("Bob", "x", "bob")).match(hashed)[0].tolist() == [AMBIGUOUS]

    def test_digests_of_numbers(self):
        ids = ids_of([fingerprint("12"), fingerprint("99")], "int64", hashed=True)
        found = resolved(seen([ids], np.array([7, 12, 5])), ids, NONE)
        assert found.rows.tolist() == [1] and found.match.by == {"raw": 0, "normalised": 0, "sha256": 1}
        assert found.match.match_rate == 0.5

    def test_two_ids_of_one_user(self):
        ids = ids_of(["Bob", "bob "], "string")
        matcher = seen([ids], texts("Bob", "ann"))
        with pytest.raises(UserError, match="1 duplicate ids once normalised.*'bob ' in line 2, the user of line 1"):
            resolved(matcher, ids, NONE)
        assert resolved(matcher, ids, NONE, drop_bad=True).match.duplicates == 1

    def test_contradicting_ones_are_dropped_and_counted(self):
        ids = ids_of([4, 5, 6], "int64")
        found = resolved(seen([ids], np.arange(4, 9)), ids, np.array([1]))  # row 1 is the user 5
        assert found.rows.tolist() == [0, 2] and (found.match.matched, found.match.contradicting) == (2, 1)
        assert found.match.match_rate == 1

    def test_an_id_twice_in_the_population(self):
        ids = ids_of([4], "int64")
        with pytest.raises(UserError, match="each `user_id` once. Received: '4'"):
            seen([ids], np.array([4, 5, 4])).match(ids)

    def test_together(self, tmp_path):
        # a: users 1 (weight 2) and 2; b: users 2 and 3, without weights: user 2 counts once, at the larger weight
        a = read_ids(write(tmp_path, "a.csv", "user_id,weight\n1,2\n2,0.5\n"), "int64")
        b = ids_of([2, 3, 9], "int64")
        matcher = seen([a, b], np.array([1, 2, 3]))
        found = joined([resolved(matcher, ids, NONE) for ids in (a, b)])
        assert found.rows.tolist() == [0, 1, 2] and found.weights.tolist() == [2, 1, 1]
        assert (found.match.rows, found.match.matched, found.match.duplicates, found.match.unmatched) == (5, 3, 1, 1)
        assert sum(found.match.by.values()) == 3

    def test_unknown_ids_of_a_list_to_leave_out(self):
        ids = ids_of(["Bob", "zoe"], "string")
        assert seen([ids], texts("bob")).unknown(ids) == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["", " ", "a", "A", "a ", "b", "B", "c", "\0", "d"]), max_size=12),
    st.lists(st.sampled_from(["a", "A", "b", "c", "C ", "e"]), unique=True, max_size=6),
    st.lists(st.integers(0, 5), max_size=3),
)
def test_every_row_is_accounted_for(rows, users, others):
    ids = ids_of(rows, "string", drop_bad=True)
    found = resolved(seen([ids], texts(*users)), ids, np.array(others, np.int64), drop_bad=True)
    m = found.match
    assert m.rows == m.blank + m.malformed + m.duplicates + m.unmatched + m.contradicting + m.matched == len(rows)
    assert sum(m.by.values()) == m.matched == len(set(found.rows.tolist()))
    assert not set(found.rows.tolist()) & set(others)
    assert all(users[row].strip().casefold() in {r.strip().casefold() for r in rows} for row in found.rows)
