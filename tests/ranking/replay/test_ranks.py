from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.replay.rank_kernels import LANES
from ranking.replay.ranks import MATCH, RankSums


def reference(sums: RankSums, settings_: np.ndarray) -> dict[str, np.ndarray]:
    """The same by argsort: a stable sort puts the first of equal scores first."""
    out = {name: np.zeros((len(settings_), len(sums.slots))) for name in sums.outputs}
    for s, weights in enumerate(settings_):
        score = np.float32(weights[0]) * sums.terms[0]
        for weight, term in zip(weights[1:], sums.terms[1:], strict=True):
            score = score + np.float32(weight) * term
        for r, (start, stop) in enumerate(zip(sums.offsets[:-1], sums.offsets[1:], strict=True)):
            places = min(sums.slots[r], sums.gains.shape[1])
            order = start + np.argsort(-score[start:stop], kind="stable")[:places]
            for name, coefficient in sums.coefficients.items():
                table = sums.gain_of.get(name, 0)
                gain = sums.place[order] == np.arange(places) if table == MATCH else sums.gains[table, :places]
                out[name][s, r] = gain @ coefficient[order]
            if sums.category is not None and places > 1:
                pairs = np.outer(sums.gains[0, :places], sums.gains[0, :places])
                np.fill_diagonal(pairs, 0)
                other = sums.category[order][:, None] != sums.category[order]
                out["diversity"][s, r] = (pairs * other).sum() / pairs.sum()
    return out


def make_sums(seed: int, values: int = 0, longest: int = 8, places: int = 3, parts: int = 3) -> RankSums:
    """Seven requests; `a` has a coefficient on most rows, `b` on few, `c` is worth another table, `d` is of matches."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, longest + 1, 7)
    sizes[-1] += 1  # one row at least
    n = int(sizes.sum())
    terms = rng.normal(size=(parts, n)) if not values else rng.integers(0, values, (parts, n))  # few values: many ties
    shares = {"a": 0.9, "b": 0.1, "c": 0.5, "d": 0.5}
    slots = np.minimum(sizes, rng.integers(1, places + 1, 7))
    return RankSums(
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        terms=terms.astype(np.float32),
        slots=slots,
        cluster=np.array([5, 2, 5, 9, 2, 5, 7]),
        gains=np.sort(rng.random((2, places)))[:, ::-1].copy(),
        coefficients={
            name: (rng.random(n) * (rng.random(n) < share)).astype(np.float32) for name, share in shares.items()
        },
        gain_of={"c": 1, "d": MATCH},
        counted={"b": rng.random(7) < 0.7},
        place=np.concatenate([rng.permutation(size) for size in sizes]).astype(np.int32) - 1,
        category=rng.integers(-1, 2, n).astype(np.int32),
    )


def make_settings(seed: int, values: int, parts: int = 3) -> np.ndarray:
    """More than one block of settings goes through the loops."""
    rng = np.random.default_rng(seed + 1)
    return (rng.integers(-2, 3, (LANES + 3, parts)) if values else rng.normal(size=(LANES + 3, parts))).astype(
        np.float32
    )


cases = {
    "seed": st.integers(0, 10_000),
    "values": st.sampled_from([0, 2]),
    "longest": st.sampled_from([8, 40]),
    "places": st.sampled_from([1, 3, 4, 9]),
    "parts": st.sampled_from([1, 3, 6]),
}


@settings(max_examples=40, deadline=None)
@given(**cases)
def test_all_ways_agree_with_argsort_ties_included(seed, values, longest, places, parts):
    # `b` alone is counted; with `a`, that is nearly everywhere, or diversity, the first places are selected.
    sums, chosen = make_sums(seed, values, longest, places, parts), make_settings(seed, values, parts)
    expected = reference(sums, chosen)
    for names in (["b"], ["c", "d"], ["a", "b", "c", "d"], ["diversity", "b"], list(sums.outputs)):
        found = sums.values(chosen, names)
        assert set(found) == set(names)
        for name in names:
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], expected[name], atol=2e-6)


@settings(max_examples=20, deadline=None)
@given(**cases)
def test_totals_and_clusters_are_sums_of_the_counted_values(seed, values, longest, places, parts):
    sums, chosen = make_sums(seed, values, longest, places, parts), make_settings(seed, values, parts)
    found, totals, clusters = sums.values(chosen), sums.totals(chosen), sums.by_cluster(chosen)
    for name, rows in found.items():
        counted = rows[:, sums.requests_counted(name)].astype(np.float64)
        np.testing.assert_allclose(totals.sum[name], counted.sum(axis=1), atol=1e-6)
        np.testing.assert_allclose(totals.squares[name], (counted**2).sum(axis=1), atol=1e-6)
        np.testing.assert_allclose(totals.largest[name], counted.max(axis=1, initial=0), atol=1e-6)
        for column, user in enumerate((2, 5, 7, 9)):
            mine = sums.requests_counted(name) & (sums.cluster == user)
            np.testing.assert_allclose(clusters[name][:, column], rows[:, mine].sum(axis=1), atol=2e-6)
    blocks = list(sums.cluster_blocks(chosen, ["a", "b"], 3))
    assert [len(one["a"]) for one, _ in blocks] == [3, 1]
    np.testing.assert_allclose(np.concatenate([one["a"] for one, _ in blocks]).T, clusters["a"], atol=2e-6)
    counts = np.concatenate([count["b"] for _, count in blocks])
    assert counts.tolist() == [int(sums.counted["b"][sums.cluster == user].sum()) for user in (2, 5, 7, 9)]


def test_by_hand():
    # One request, scores (1, 3, 3, 2): ranks (3, 0, 1, 2), gains (1, .5, .25), two slots.
    # a = 10 * 0 + 20 * 1 + 30 * .5 + 40 * 0 = 35
    sums = RankSums(
        offsets=np.array([0, 4]),
        terms=np.array([[1, 3, 3, 2]], np.float32),
        slots=np.array([2]),
        cluster=np.array([0]),
        gains=np.array([[1.0, 0.5, 0.25], [1.0, 1.0, 1.0]]),
        coefficients={name: np.array([10, 20, 30, 40], np.float32) for name in ("a", "b", "c")},
        gain_of={"b": 1, "c": MATCH},
        place=np.array([0, 1, 1, -1], np.int32),
    )
    # the second table: 20 + 30; matches: 30 stays at place 1, 20 is no longer there
    assert {name: rows.tolist() for name, rows in sums.values(np.ones((1, 1))).items()} == {
        "a": [[35.0]],
        "b": [[50.0]],
        "c": [[30.0]],
    }
    # turned round: scores (-1, -3, -3, -2): ranks (0, 2, 3, 1): 10 + 40 * .5 = 30
    assert sums.values(-np.ones((1, 1)), ["a"])["a"].tolist() == [[30.0]]
    # three places of categories 7, 7, 8: pairs of gains .5, .25, .125, of other categories .25 + .125: .375 / .875
    diverse = replace(sums, slots=np.array([3]), category=np.array([0, 7, 7, 8], np.int32))
    assert diverse.values(np.ones((1, 1)), ["diversity"])["diversity"][0, 0] == pytest.approx(0.375 / 0.875)
    # one place has no pair: it does not count
    assert replace(diverse, slots=np.array([1])).requests_counted("diversity").tolist() == [False]


def test_rejected():
    sums = make_sums(0)
    with pytest.raises(ValueError, match=r"`settings` should have shape \[S, 3\]"):
        sums.values(np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"`names` should be among .* Received: \['e'\]"):
        sums.totals(np.ones((1, 3)), ["e"])
