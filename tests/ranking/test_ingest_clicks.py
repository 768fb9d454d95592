"""Clicks as producers send them: taken exactly, or refused by line, field and rule."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.ingest_clicks import ClickFormat, WrongClick

NOW = 1_800_000_000_000
T = 1_767_225_600_000  # 2026-01-01T00:00:00Z: 20,454 days of 86,400,000 ms
NUMBERS = ClickFormat("int64", "int64")
TEXTS = ClickFormat("string", "string")


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows).encode()


def click(**other):
    return {"user_id": 1, "item_id": 2, "time": T, **other}


def test_lines_become_columns():
    body = lines(click(), {"item_id": -5, "user_id": 9007199254740993}, click(kind="unclick", user_id=2**63 - 1))
    found = NUMBERS.from_json(body + b"\r\n\n", now=NOW)
    assert found.user.tolist() == [1, 9007199254740993, 2**63 - 1]  # 2^53 + 1 is no float64
    assert found.item.tolist() == [2, -5, 2]
    assert found.time.tolist() == [T, NOW, T]
    assert found.kind.tolist() == [0, 0, 1]
    assert [column.dtype for column in (found.user, found.time, found.kind)] == [np.int64, np.int64, np.uint8]


def test_columns_become_columns():
    body = lines({"user_id": ["a", "007"], "item_id": ["x", "雪\U0001f600"], "kind": [None, "unclick"]})
    found = TEXTS.from_json(body, now=NOW)
    assert (found.user, found.item) == (["a", "007"], ["x", "雪\U0001f600"])
    assert (found.time.tolist(), found.kind.tolist()) == ([NOW, NOW], [0, 1])


@pytest.mark.parametrize(
    "text, milliseconds",
    [
        ("2026-01-01T00:00:00Z", T),
        ("2026-01-01T08:00:00.0019+08:00", T + 1),  # 1.9 ms: down
        ("2026-01-01 00:00:00+00:00", T),
        ("1999-12-31T23:59:59.999-00:01", 946_684_859_999),  # 2000-01-01 is 946,684,800,000; a minute later less 1 ms
    ],
)
def test_iso_times(text, milliseconds):
    assert NUMBERS.from_json(lines(click(time=text)), now=NOW).time.tolist() == [milliseconds]


@pytest.mark.parametrize(
    "field, value",
    [
        *[("user_id", value) for value in (None, "1", 1.0, True, 2**63, -(2**63) - 1, [], {}, "", "x" * 70)],
        *[("time", value) for value in (0, -T, T // 1000, 4_102_444_800_000, T + 0.5, True, [T], "soon", "", "NaN")],
        *[("time", text) for text in ("2026-01-01T00:00:00", "2026-01-01", "1999-12-31T23:59:59Z", "9999-12-31T23Z")],
        ("time", "2026-01-01T00:00:00Z" + " " * 99),
        *[("kind", value) for value in (0, 1, True, "forget", "Click", "", [], {})],
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_rule(field, value):
    for body in (lines(click(), click(**{field: value})), lines(click()) + b"\n \n" + lines(click(**{field: value}))):
        with pytest.raises(WrongClick) as error:
            NUMBERS.from_json(body, now=NOW)
        assert (error.value.line, error.value.field) == (2 + body.count(b"\n \n"), field)
        assert f"`{field}`: should be " in str(error.value) and "Received: " in str(error.value)
        assert len(str(error.value)) < 300 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "x" * 257, "a\nb", "\x00", "a\x1b[31m", "\x7f", "\x85", "\u2028", "\ud800", "\udfff\ud800"]
)
def test_texts_that_are_no_ids(text):
    for body in (lines({"user_id": text, "item_id": "i"}), lines({"user_id": [text], "item_id": ["i"]})):
        with pytest.raises(WrongClick, match="`user_id`: should be a text of 1 to 256 characters") as error:
            TEXTS.from_json(body, now=NOW)
        assert str(error.value).isprintable() and str(error.value).isascii()


def test_declared_never_guessed():
    with pytest.raises(WrongClick, match=r"line 1, `user_id`.* Received: 7\."):
        TEXTS.from_json(lines({"user_id": 7, "item_id": "i"}), now=NOW)


@pytest.mark.parametrize(
    "line",
    [
        b"7",
        b"null",
        b'"x"',
        b"[]",
        b"{",
        b'{"user_id": 1, "item_id": 2} {"user_id": 1, "item_id": 2}',
        b'{"user_id": 1, "item_id": 2},{"user_id": 1, "item_id": 2}',
        b'{"user_id": 1, "item_id": 2}, ',
        b'{"user_id": 1, "user_id": 1, "item_id": 2}',
        b'{"user_id": 1, "us\\u0065r_id": 1, "item_id": 2}',
        b'{"user_id": 1, "item_id": 2, "timestamp": 1767225600000}',
        b'{"user_id": 1, "item_id": 2, "item_id ": 2}',
        b'{"user_id": 1, "item_id": 2, "kind": "\xff"}',
        b'\xef\xbb\xbf{"user_id": 1, "item_id": 2}',
        b'{"user_id": ' + b"9" * 5000 + b', "item_id": 2}',
        b'{"user_id": ' + b"[" * 100_000 + b', "item_id": 2}',
        b'{"user_id": NaN, "item_id": 2}',
        b'{"user_id": 1}',
        b'{"user_id": [1], "item_id": [2]}',
    ],
)
def test_a_line_that_is_no_click(line):
    for body, number in ((line, 1), (lines(click()) + b"\n" + line + b"\n" + lines(click()), 2)):
        if number == 1 and line.startswith(b'{"user_id": [1]'):
            continue  # columns, when it is alone
        with pytest.raises(WrongClick) as error:
            NUMBERS.from_json(body, now=NOW)
        assert error.value.line == number
        assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "body",
    [
        b'{"user_id": 1, "item_id": 2\n"kind": "click"}\n{"user_id": 1, "item_id": 2},{"user_id": 3, "item_id": 4}',
        b'{"user_id": "a\n{b", "item_id": "c"}\n{"user_id": "d", "item_id": "e"},{"user_id": "f", "item_id": "g"}',
        b'{"user_id": [{}\n{}], "item_id": 2}',
        b'{"user_id": "time", "item_id": "x", "other": 1}',
    ],
)
def test_lines_that_only_together_are_right_are_wrong(body):
    for accepted in (NUMBERS, TEXTS):
        with pytest.raises(WrongClick, match="line 1"):
            accepted.from_json(body, now=NOW)


@pytest.mark.parametrize(
    "row, field",
    [
        ({"user_id": [1, 2], "item_id": [1]}, "item_id"),
        ({"user_id": [1, 2]}, "item_id"),
        ({"user_id": [1], "item_id": [1], "time": T}, "time"),
        ({"user_id": [1], "item_id": [1], "kind": "click"}, "kind"),
        ({"user_id": [1], "item_id": [1], "kind": []}, "kind"),
    ],
)
def test_columns_of_other_lengths(row, field):
    with pytest.raises(WrongClick, match=f"`{field}`: should be a list of {len(row['user_id'])} values"):
        NUMBERS.from_json(lines(row), now=NOW)


def test_the_first_wrong_line_is_named():
    body = lines(click(), click(kind="x"), click(user_id="x"))
    with pytest.raises(WrongClick) as error:
        NUMBERS.from_json(body, now=NOW)
    assert (error.value.line, error.value.field) == (2, "kind")


def test_without_now_a_time_is_required():
    with pytest.raises(WrongClick, match='line 1, `time`.*Received: "nothing"'):
        NUMBERS.from_json(lines({"user_id": 1, "item_id": 2}), now=None)


def test_csv():
    header = ["time", "user_id", "item_id", "kind"]
    block = f'{T},1,2,\r\n\n2026-01-01T00:00:00Z,"3",-4,unclick\n'.encode()
    found = NUMBERS.from_csv(block, header)
    assert (found.user.tolist(), found.item.tolist()) == ([1, 3], [2, -4])
    assert (found.time.tolist(), found.kind.tolist()) == ([T, T], [0, 1])
    found = TEXTS.from_csv(f'{T},007,"a, ""b""",click\n'.encode(), header)
    assert (found.user, found.item) == (["007"], ['a, "b"'])
    assert len(NUMBERS.from_csv(b"\n", header)) == 0


@pytest.mark.parametrize(
    "line, words",
    [
        (b"1,2", "should have 3 fields"),
        (b"1,2,3,4", "should have 3 fields"),
        (b'"1,2,1767225600000', "should be one line of CSV"),
        (b"\xff,2,1767225600000", "should be one line of CSV"),
        (b"1,2,", "`time`: should be"),
        (b"1_0,2,1767225600000", "`user_id`: should be"),
        (b" 1,2,1767225600000", "`user_id`: should be"),
        (b"1.0,2,1767225600000", "`user_id`: should be"),
        (b",2,1767225600000", "`user_id`: should be"),
        (b"9223372036854775808,2,1767225600000", "`user_id`: should be"),
    ],
)
def test_csv_that_is_wrong(line, words):
    with pytest.raises(WrongClick, match=words) as error:
        NUMBERS.from_csv(b"1,2,1767225600000\n" + line + b"\n", ["user_id", "item_id", "time"])
    assert error.value.line == 2


values = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**64), 2**64), st.floats(), st.text(max_size=5), st.just([1]), st.just({})
)
ids = st.one_of(st.integers(0, 9), st.sampled_from(["a", "time", "kind", "é", "\u2028", 'q"', "b\\"]))
rows = st.fixed_dictionaries(
    {"user_id": ids, "item_id": ids},
    optional={"time": st.one_of(st.just(T), values), "kind": st.sampled_from(["click", "unclick", None, "time", 7])},
)
pieces = st.one_of(
    rows.map(lambda row: json.dumps(row).encode()),
    rows.map(lambda row: json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")),
    st.sampled_from([b"", b" ", b"{", b"}", b",", b'"', b"{}", b"[", b"]", b'{"user_id":1', b'"item_id":2}', b"\\"]),
)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.lists(pieces, min_size=1, max_size=4), st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b",", b"\n\n"]))
def test_all_at_once_is_what_each_line_by_itself_is(parts, separator):
    body = separator.join(parts)
    for accepted in (NUMBERS, TEXTS):
        alone, wrong = [], None
        for number, line in enumerate(body.split(b"\n"), 1):
            try:
                found = accepted.from_json(line, now=NOW)
            except WrongClick as error:
                wrong = wrong or (number, error.field, str(error).partition(": ")[2])
            else:
                alone += zip(found.user, found.item, found.time, found.kind, strict=True)
        try:
            found = accepted.from_json(body, now=NOW)
        except WrongClick as error:
            assert wrong == (error.line, error.field, str(error).partition(": ")[2])
        else:
            assert wrong is None
            assert [*zip(found.user, found.item, found.time, found.kind, strict=True)] == alone
