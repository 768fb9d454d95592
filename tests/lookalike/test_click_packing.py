"""Events as a stream's values: known bytes, round trips, and everything that is no event."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.click_packing import pack, unpack, unpack_fields
from lookalike.clicklog import CLICK, FORGET, UNCLICK

INT = {"user_ids": "int64", "item_ids": "int64"}
TEXT = {"user_ids": "string", "item_ids": "string"}
NOW = 1_760_000_000_000

int64 = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)


def listed(clicks):
    return [*zip(list(clicks.user), list(clicks.item), clicks.time.tolist(), clicks.kind.tolist(), strict=True)]


def test_packed_by_hand():
    # Magic, no flags, one event; user 1, item 2, time 3: 9 + 24 bytes.
    value = b"SRC1\x00\x01\x00\x00\x00" + struct.pack("<qqq", 1, 2, 3)
    assert pack([1], [2], [3]) == value
    assert listed(unpack(value, **INT)) == [(1, 2, 3, CLICK)]
    # Users are texts (1) and there are kinds (4): the length 2, then the text.
    value = b"SRC1\x05\x01\x00\x00\x00\x02\x00\x00\x00ab" + struct.pack("<qqB", 2, 3, UNCLICK)
    assert pack(["ab"], [2], [3], [UNCLICK]) == value
    assert listed(unpack(value, user_ids="string", item_ids="int64")) == [("ab", 2, 3, UNCLICK)]


def test_bytes_an_event():
    ids = np.arange(1000)
    assert len(pack(ids, ids, ids)) / 1000 < 24.1 and len(pack(ids, ids, ids, ids * 0)) / 1000 < 25.1


@pytest.mark.parametrize(("ids", "names"), [(int64, INT), (texts, TEXT)])
def test_round_trips(ids, names):
    @settings(max_examples=80, deadline=None)
    @given(st.lists(st.tuples(ids, ids, int64, st.sampled_from([CLICK, UNCLICK, FORGET])), min_size=1, max_size=20))
    def check(events):
        columns = [list(column) for column in zip(*events, strict=True)]
        assert listed(unpack(pack(*columns), **names)) == events
        lines = "\n".join(
            json.dumps(dict(zip(("user_id", "item_id", "time", "kind"), event, strict=True))) for event in events
        )
        assert listed(unpack(lines.encode(), **names)) == events
        for event in events:
            words = dict(zip((b"user_id", b"item_id", b"time", b"kind"), (str(v).encode() for v in event), strict=True))
            assert listed(unpack_fields(words, **names)) == [event]

    check()


def test_names_of_kinds_and_what_may_be_left_out():
    lines = (
        b'{"user_id": 1, "item_id": 2, "time": 3}\r\n\n'
        b'{"user_id": 1, "item_id": 2, "time": 4, "kind": "unclick"}\n'
        b'{"user_id": 1, "time": 5, "kind": "forget"}'
    )
    assert listed(unpack(lines, **INT)) == [(1, 2, 3, CLICK), (1, 2, 4, UNCLICK), (1, 0, 5, FORGET)]
    assert listed(unpack_fields({b"user_id": b"007", b"item_id": b"8", b"time": b"3"}, **TEXT)) == [("007", "8", 3, 0)]


GOOD = {"user_id": 1, "item_id": 2, "time": 3}
WRONG = [
    b"", b"\n", b"{", b"[]", b"1", b"null", b"\xff\xfe", b"[" * 100_000, b'"text"',
    *(json.dumps(GOOD | more).encode() for more in (
        {"user_id": "1"}, {"user_id": 1.0}, {"user_id": True}, {"user_id": None}, {"item_id": None}, {"item_id": [1]},
        {"user_id": 2**63}, {"time": "3"}, {"time": 3.5}, {"time": float("nan")}, {"time": 10**30}, {"kind": "like"},
        {"kind": 3}, {"kind": -1}, {"kind": True}, {"kind": 0.0}, {"kind": [0]}, {"kind": None}, {"more": 1},
    )),
    b'{"user_id": 1, "item_id": 2}', json.dumps(GOOD).encode() + b"\nrubbish", b'{"user_id":' + b"1" * 5000 + b"}",
    b"SRC1", b"SRC1\x00\x00\x00\x00\x00", b"SRC1\x08" + pack([1], [2], [3])[5:], pack([1], [2], [3])[:-1],
    pack([1], [2], [3]) + b"x", b"SRC1\x00\xff\xff\xff\xff" + b"x" * 100, pack(["a"], [2], [3]),
    pack([1], ["b"], [3]),
]  # fmt: skip


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value[:40]))
def test_what_is_no_event(value):
    with pytest.raises(ValueError) as caught:
        unpack(value, **INT)
    assert len(str(caught.value)) < 200


def test_texts_that_do_not_fit():
    whole = pack(["ab", "c"], ["d", "e"], [1, 2])
    for value in (whole[:9] + b"\xff\xff\xff\xff" + whole[13:], whole.replace(b"abc", b"a\xffc"), whole[:-17]):
        with pytest.raises(ValueError):
            unpack(value, **TEXT)
    with pytest.raises(ValueError, match="`user_id` should be int64"):
        unpack(whole, **INT)


@settings(max_examples=300, deadline=None)
@given(value=st.binary(max_size=60), flags=st.integers(0, 255), count=st.integers(0, 6))
def test_random_bytes_are_events_or_refused(value, flags, count):
    for names in (INT, TEXT):
        try:
            clicks = unpack(b"SRC1" + bytes([flags]) + count.to_bytes(4, "little") + value, **names)
        except ValueError:
            continue
        assert len(clicks.user) == len(clicks.item) == len(clicks.time) == len(clicks.kind) == count


@pytest.mark.parametrize(
    "fields",
    [{}, {"user_id": "1"}, {"user_id": "a", "item_id": "2", "time": "3"}, {"user_id": "1", "item_id": "2", "time": ""},
     {"user_id": "1", "item_id": "2", "time": "3", "kind": "x"}, {"user_id": "²", "item_id": "2", "time": "3"},
     {"user_id": "1", "item_id": "2", "time": "3", "events": "x"}, {"user_id": "1_0", "item_id": "2", "time": "3"},
     {"user_id": "9" * 19, "item_id": "2", "time": "3"}, {"user_id": "--1", "item_id": "2", "time": "3"}],
)  # fmt: skip
def test_fields_that_are_no_event(fields):
    with pytest.raises(ValueError):
        unpack_fields({name.encode(): value.encode() for name, value in fields.items()}, **INT)


def test_what_cannot_be_packed():
    for columns in (([1], [2], [3, 4]), ([1.5], [2], [3]), ([[1]], [2], [3]), ([1], [2], [3], [0, 0])):
        with pytest.raises(ValueError):
            pack(*columns)
