"""Rows on disk: what is written is read, each row once an epoch, in an order that the seed fixes."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking import spool as module
from ranking.errors import UserError
from ranking.spool import Spool, SpoolWriter, supervised


def write(folder, rows, *, chunk=1000):
    """Row r is {"row": r, "x": r / 2, "list": [r, -r, 7], "target:y": r % 2}."""
    row = np.arange(rows, dtype=np.int32)
    arrays = {
        "row": row,
        "x": (row / 2).astype(np.float32),
        "list": np.stack([row, -row, np.full_like(row, 7)], axis=1),
        "target:y": (row % 2).astype(np.float32),
    }
    with SpoolWriter(folder) as writer:
        for first in range(0, rows, chunk):
            writer.append({name: values[first : first + chunk] for name, values in arrays.items()})
    return Spool(folder)


def order(spool, **how):
    how = {"batch_size": 7, "seed": 0, "epoch": 0, "buffer": 64} | how
    return [batch["row"] for batch in spool.batches(["row"], **how).as_numpy_iterator()]


def generated(spool, *, batch_size=7, seed=0, epoch=0, buffer=64):
    """What `batches` hands to TensorFlow, whose start would cost more than the rest."""
    made = spool._generate(["row"], batch_size, np.random.default_rng((seed, epoch)), buffer, 0, (0, 1))
    return [batch["row"] for batch in made]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """1,000 rows in row groups of 16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GROUP", 16)
        return write(tmp_path_factory.mktemp("spool") / "rows", 1000, chunk=33)


def test_a_batch_holds_the_rows_that_were_written(small):
    assert (small.rows, small.names) == (1000, ("row", "x", "list", "target:y"))
    for batch in small.batches(small.names, batch_size=100, seed=1, epoch=0, buffer=128):
        inputs, targets, weights = supervised(batch)
        row = inputs["row"].numpy()
        assert inputs["x"].dtype == "float32" and inputs["list"].shape == (100, 3)
        np.testing.assert_array_equal(inputs["x"], row / 2)
        np.testing.assert_array_equal(inputs["list"], np.stack([row, -row, 0 * row + 7], axis=1))
        np.testing.assert_array_equal(targets["y"], row % 2)
        assert weights == {}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 400),
    group=st.integers(1, 70),
    batch_size=st.integers(1, 90),
    more=st.integers(0, 500),
    seed=st.integers(0, 2**31),
    workers=st.integers(1, 3),
)
def test_every_row_comes_once_in_whole_batches(tmp_path_factory, rows, group, batch_size, more, seed, workers):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GROUP", group)
        spool = write(tmp_path_factory.mktemp("spool") / "rows", rows, chunk=37)

    def order(*, start=0, part=(0, 1)):  # what `batches` hands to TensorFlow, whose start would cost more than the rest
        made = spool._generate(["row"], batch_size, np.random.default_rng(seed), batch_size + more, start, part)
        return [batch["row"] for batch in made]

    whole = order()
    assert sorted(np.concatenate(whole)) == list(range(rows))
    # all batches are full but the last: 10 rows in batches of 4 are 4, 4, 2
    assert [len(batch) for batch in whole[:-1]] == [batch_size] * (len(whole) - 1)
    # the workers' parts side by side are the batches of one
    parts = [order(part=(index, workers)) for index in range(workers)]
    for batch, *of in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate(of), batch)
    # and a later start gives what is left
    for batch, late in zip(whole[2:], order(start=2), strict=True):
        np.testing.assert_array_equal(late, batch)


def test_start_and_part_of_the_data_set(small):
    whole = order(small)
    data = small.batches(["row"], batch_size=7, seed=0, epoch=0, buffer=64, start=3)
    assert len(data) == len(whole) - 3 == 140  # 1000 / 7 = 142.9
    assert order(small, start=143) == []
    for batch, late in zip(whole[3:], order(small, start=3, part=(1, 2)), strict=True):
        np.testing.assert_array_equal(late, batch[len(batch) // 2 :])


def test_the_order_is_of_the_seed_and_the_epoch(small):
    first = np.concatenate(order(small))
    np.testing.assert_array_equal(first, np.concatenate(order(small)))
    assert not np.array_equal(first, np.concatenate(order(small, seed=1)))
    assert not np.array_equal(first, np.concatenate(order(small, epoch=1)))


def test_the_order_is_mixed(small):
    # Row groups of 16 come in a random order: 63 of them leave the correlation with the order on disk a deviation of
    # at most 1 / sqrt(62) = 0.127, its mean over 20 epochs one of 0.028; five of those are 0.14.
    np.testing.assert_array_equal(np.concatenate(order(small)), np.concatenate(generated(small)))
    found = [np.corrcoef(np.concatenate(generated(small, epoch=e)), np.arange(1000))[0, 1] for e in range(20)]
    assert abs(np.mean(found)) < 0.14
    # 7 rows out of a buffer of 64, of at most 5 groups or so: a row's successor on disk is in the same batch with a
    # chance near 6 / 64; without a buffer it always is.
    together = np.mean([np.isin(batch + 1, batch).mean() for batch in generated(small)])
    assert together < 0.2


def test_a_buffer_of_all_rows_gives_every_order_alike(tmp_path):
    # 3 rows have 6 orders: 2,400 epochs give each 400 times with deviation sqrt(2400 * 1/6 * 5/6) = 18.3; 5.5 of them
    spool = write(tmp_path / "rows", 3)
    counts: dict[tuple, int] = {}
    for epoch in range(2400):
        found = tuple(np.concatenate(generated(spool, batch_size=1, epoch=epoch, buffer=10)))
        counts[found] = counts.get(found, 0) + 1
    assert len(counts) == 6 and all(abs(count - 400) < 100 for count in counts.values())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    # 3 M rows of 28 bytes are 84 MB; a buffer of 20,000 holds 0.6 MB
    write(tmp_path / "rows", 3_000_000, chunk=500_000)
    code = f"""
import resource
from ranking.spool import Spool
spool = Spool({str(tmp_path / "rows")!r})
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def read(epoch, stop):
    for number, batch in enumerate(spool.batches(spool.names, batch_size=2000, seed=0, epoch=epoch, buffer=20_000)):
        if number == stop:
            return peak()
    return peak()
early = read(0, 200)
print(read(1, -1) - early)
"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    assert float(grown) < 30


def test_nothing_is_left_of_a_writer_that_fails(tmp_path):
    with pytest.raises(RuntimeError), SpoolWriter(tmp_path / "rows") as writer:
        writer.append({"row": np.zeros(200_000, np.int32)})
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="no training rows"), SpoolWriter(tmp_path / "rows"):
        pass
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "rows", 3)
    with pytest.raises(UserError, match="exists already"), SpoolWriter(tmp_path / "rows"):
        pass


def test_the_writer_takes_a_copy(tmp_path):
    values = np.arange(3, dtype=np.int32)
    with SpoolWriter(tmp_path / "rows") as writer:
        writer.append({"row": values})
        values[:] = 9
    assert sorted(np.concatenate(order(Spool(tmp_path / "rows")))) == [0, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"row": np.zeros(2, np.int64)}, "int64"),
        ({"row": np.zeros((2, 2, 2), np.int32)}, r"\[2, 2, 2\]"),
        ({"row": np.zeros(2, np.int32), "x": np.zeros(3, np.float32)}, "one length"),
        ({"x": np.zeros(2, np.int32)}, "first call"),
        ({"row": np.zeros(2, np.float32)}, "first call"),
        ({}, "one length"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message), SpoolWriter(tmp_path / "rows") as writer:
        writer.append({"row": np.zeros(5, np.int32)})
        writer.append(arrays)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"names": ["y"]}, "y"),
        ({"names": []}, "names"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"buffer": 6}, "buffer=6"),
        ({"start": -1}, "start=-1"),
        ({"part": (2, 2)}, r"part=\(2, 2\)"),
    ],
)
def test_arguments_out_of_range_are_refused(small, how, message):
    how = {"names": ["row"], "batch_size": 7, "seed": 0, "epoch": 0} | how
    with pytest.raises(ValueError, match=message):
        small.batches(how.pop("names"), **how)


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match="no training rows"):
        Spool(tmp_path)
