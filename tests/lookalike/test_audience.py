import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lookalike.audience import Audience, Cut, Reach, SeedList, expand, holdout, overlap, seed_centroids
from lookalike.scorer import SLAB, Scorer
from lookalike.selection import Selection

PLAIN = Scorer(np.eye(2, dtype="f"), np.zeros(2, "f"), np.ones(2, "f"), None, None, None, 1.0)


def random_scorer(dim=5, hidden=6, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((dim, hidden), (hidden,), (hidden,), (hidden, hidden), (4, hidden), (4,))
    return Scorer(*(rng.normal(size=shape).astype("float32") for shape in shapes), 0.3)


def population(users, dim=5, seed=0, distinct=None):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(distinct or users, dim)).astype("float32")
    return vectors[rng.integers(len(vectors), size=users)] if distinct else vectors


def seed_list(scorer, vectors, rows, negatives=None, k=3):
    away = None if negatives is None else seed_centroids(scorer, vectors[negatives], k=k)
    return SeedList(*seed_centroids(scorer, vectors[rows], k=k), np.asarray(rows), away)


def pieces(vectors, cuts):
    return np.split(vectors, sorted(cut % (len(vectors) + 1) for cut in cuts))


def same(a: Audience, b: Audience):
    np.testing.assert_array_equal(a.rows, b.rows)
    np.testing.assert_array_equal(a.similarity, b.similarity)
    np.testing.assert_array_equal(a.centroid, b.centroid)
    np.testing.assert_array_equal(a.reach.counts, b.reach.counts)
    assert a.eligible == b.eligible


def test_six_users_by_hand():
    # Nothing is transformed, seeds at (1, 0): the similarity is the cosine to the first axis.
    # Rows: 0 (1, 0) 1; 1 (0, 1) 0; 2 (3, 4) .6; 3 (4, 3) .8; 4 (6, 8) .6; 5 (-1, 0) -1. Row 0 is the seed.
    users = np.array([[1, 0], [0, 1], [3, 4], [4, 3], [6, 8], [-1, 0]], np.float32)
    seeds = SeedList(users[:1], [1], np.array([0]))

    def rows(**cut):
        return expand(PLAIN, [users], [seeds], Cut(**cut), total=6)[0].rows.tolist()

    assert rows(size=5) == [3, 2, 4, 1, 5]  # of the two at .6 the lower row first
    assert rows(size=2) == [3, 2]
    assert rows(percent=40) == [3, 2]  # 2 of 5
    assert rows(percent=40.0001) == [3, 2, 4]  # rounded up
    assert rows(band=(20, 60)) == [2, 4]
    assert rows(threshold=0.6) == [3, 2, 4]  # float32 0.6 is above 0.6
    assert rows(threshold=0) == [3, 2, 4, 1] and rows(threshold=0.9) == []
    found = expand(PLAIN, [users], [seeds], Cut(size=3), total=6)[0]
    np.testing.assert_allclose(found.similarity, [0.8, 0.6, 0.6], atol=1e-6)
    assert found.eligible == 5 and found.centroid.tolist() == [0, 0, 0]
    assert (found.reach.at_least(0.6), found.reach.at_least(0), found.reach.at_least(-1)) == (3, 4, 5)
    assert found.reach.threshold(1) == 0.8 and found.reach.threshold(4) == 0.0 and found.reach.threshold(5) == -1.0
    # Only rows 1, 3 and 5 may be chosen.
    mask = np.array([False, True] * 3)
    assert expand(PLAIN, [users], [seeds], Cut(size=6), total=6, eligible=mask)[0].rows.tolist() == [3, 1, 5]


def test_negatives_by_hand():
    # Towards (1, 0), away from (0, 1): (x - y) / 2 of the unit vector. (1, 0) .5; (3, 4) -.1; (4, 3) .1; (0, 1) -.5.
    users = np.array([[1, 0], [3, 4], [4, 3], [0, 1]], np.float32)
    seeds = SeedList(users[:1], [1], None, (users[3:], [1]))
    found = expand(PLAIN, [users], [seeds], Cut(threshold=-0.2))[0]
    assert found.rows.tolist() == [0, 2, 1]
    np.testing.assert_allclose(found.similarity, [0.5, 0.1, -0.1], atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    users=st.integers(10, 400),
    sizes=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    percents=st.tuples(st.integers(0, 100), st.integers(1, 100)),
    cuts=st.lists(st.integers(0, 400), max_size=4),
    few=st.booleans(),
    seed=st.integers(0, 99),
)
def test_audiences_are_nested_and_bands_their_differences(users, sizes, percents, cuts, few, seed):
    scorer, vectors = random_scorer(), population(users, seed=seed, distinct=7 if few else None)
    rng = np.random.default_rng(seed)
    rows = rng.choice(users, 5, replace=False)
    lists = [seed_list(scorer, vectors, rows), seed_list(scorer, vectors, rows[:2], rows[2:])]
    eligible = rng.random(users) < 0.8

    def run(cut, chunks=(vectors,)):
        return expand(scorer, chunks, lists, cut, total=users, eligible=eligible)

    whole = run(Cut(size=users))
    small, large = sorted(min(size, users) for size in sizes)
    low, high = sorted(percents)
    for number, (full, one) in enumerate(zip(whole, lists, strict=True)):
        assert not set(full.rows) & set(one.exclude) and eligible[full.rows].all()
        assert len(full.rows) == full.eligible == full.reach.eligible
        assert full.eligible == eligible.sum() - eligible[one.exclude].sum()
        order = np.lexsort((full.rows, -full.similarity))
        np.testing.assert_array_equal(order, np.arange(len(order)))
        head, more = run(Cut(size=small))[number], run(Cut(size=large))[number]
        np.testing.assert_array_equal(head.rows, full.rows[:small])
        np.testing.assert_array_equal(more.similarity[:small], head.similarity)
        np.testing.assert_array_equal(more.centroid[: len(head.rows)], head.centroid)
        if low < high:
            inner = run(Cut(percent=low))[number].rows if low else np.empty(0)
            outer, band = run(Cut(percent=high))[number].rows, run(Cut(band=(low, high)))[number].rows
            assert len(outer) == -(-high * full.eligible // 100)
            np.testing.assert_array_equal(np.concatenate([inner, band]), outer)
        bar = float(full.similarity[len(full.rows) // 2]) if len(full.rows) else 0.0
        above = run(Cut(threshold=bar))[number]
        np.testing.assert_array_equal(above.rows, full.rows[full.similarity.astype(float) >= bar])
        same(run(Cut(size=small), pieces(vectors, cuts))[number], head)


@pytest.mark.parametrize("cut", [Cut(size=300), Cut(percent=0.7), Cut(threshold=0.8), Cut(band=(1, 2))])
def test_large_populations_in_chunks(cut):
    # More than two slabs, so that rows drop out on the way and the bar rises.
    scorer, vectors = random_scorer(), population(2 * SLAB + 5_000, distinct=9_000)
    rows = np.arange(0, 3000, 30)
    lists = [seed_list(scorer, vectors, rows[:50]), seed_list(scorer, vectors, rows[50:])]
    at_once = expand(scorer, [vectors], lists, cut, total=len(vectors))
    asked = []

    def everyone(start, stop):
        asked.append((start, stop))
        return np.ones(stop - start, bool)

    chunks = iter(pieces(vectors, [1, 700, SLAB + 3, 2 * SLAB]))
    chunked = expand(scorer, chunks, lists, cut, total=len(vectors), eligible=everyone, threads=2)
    assert asked[0] == (0, SLAB) and asked[-1][1] == len(vectors)
    for one, a, b in zip(lists, at_once, chunked, strict=True):
        same(a, b)
        alone = expand(scorer, [vectors], [one], cut, total=len(vectors))[0]
        np.testing.assert_array_equal(alone.rows, a.rows)
        scores = scorer.similarity(vectors, scorer.summarize(one.centroids[None], one.counts[None]))[:, 0]
        scores[one.exclude] = -2
        order = np.lexsort((np.arange(len(scores)), -scores))[: a.eligible]
        low, high = cut.ranks(a.eligible)
        expected = order[scores[order] >= cut.threshold] if cut.threshold else order[low:high]
        np.testing.assert_array_equal(a.rows, expected)
        nearest = scorer.nearest(vectors[a.rows], scorer.summarize(one.centroids[None], one.counts[None]))[:, 0]
        assert (a.centroid == nearest).mean() > 0.999  # but for near-ties: batches of other widths have other kernels


@settings(deadline=None, max_examples=50)
@given(
    most=st.integers(1, 40),
    scores=st.lists(st.integers(-3, 3), max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_a_selection_that_drops_keeps_the_best(most, scores, cuts):
    values = (np.array(scores, np.float32) / 4).astype(np.float32)
    selection, start = Selection(most), 0
    for part in pieces(values, cuts):
        places = selection.admit(part, np.ones(len(part), bool))
        selection.add(places + start, part[places], places.astype(np.int32))
        if selection._held > most:
            selection._drop()
        start += len(part)
    order = np.lexsort((np.arange(len(values)), -values))[:most]
    np.testing.assert_array_equal(selection.best()[0], order)
    assert selection.counts.sum() == len(values)


@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50), edge=st.integers(-10_000, 10_000))
def test_reach_is_exact_to_its_bins(values, edge):
    scores = np.array(values, np.float32)
    selection = Selection(1)
    selection.admit(scores, np.ones(len(scores), bool))
    reach, bar = Reach(selection.counts), edge / 10_000
    assert reach.at_least(bar) == np.sum(scores.astype(float) >= bar)
    for size in (1, len(scores)):
        found = reach.threshold(size)
        best = float(np.sort(scores)[-size])
        assert found <= best < found + 1.0001e-4
    similarity, size = reach.curve(20)
    assert similarity == sorted(similarity, reverse=True) and len(similarity) <= 20
    assert size == [reach.at_least(value) for value in similarity] and size[-1] == len(scores)


def test_the_reach_of_nobody():
    reach = Reach(np.zeros(20_001, np.int64))
    assert reach.eligible == 0 and reach.at_least(-1) == 0 and reach.curve() == ([], [])
    with pytest.raises(ValueError, match="`size` should be between 1 and the 0 who are eligible. Received: size=1"):
        reach.threshold(1)


def test_overlap_by_hand():
    # 2 and 3 are in both; 4 users in a, 3 in b, 5 in all.
    def audience(rows):
        return Audience(np.array(rows, int), np.zeros(len(rows), "f"), np.zeros(len(rows), "i"), 9, Reach(np.zeros(1)))

    assert overlap(audience([3, 1, 2, 0]), audience([7, 2, 3])) == {
        "both": 2, "of_a": 0.5, "of_b": 2 / 3, "jaccard": 0.4,
    }  # fmt: skip
    assert overlap(audience([]), audience([])) == {"both": 0, "of_a": 0, "of_b": 0, "jaccard": 0}


def test_progress_tells_users():
    told = []
    vectors = population(SLAB + 10)
    lists = [seed_list(random_scorer(), vectors, [0, 1, 2])]
    expand(random_scorer(), [vectors], lists, Cut(size=1), total=SLAB + 10, progress=lambda *args: told.append(args))
    assert told == [("users scored", SLAB, SLAB + 10), ("users scored", SLAB + 10, SLAB + 10)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Received: none"),
        ({"size": 1, "percent": 1}, "Received: size and percent"),
        ({"size": 0}, "`size` should be a positive integer. Received: size=0"),
        ({"size": True}, "`size` should be a positive integer"),
        ({"percent": 0}, "`percent` should be above 0"),
        ({"percent": 101}, "`percent` should be above 0 and at most 100. Received: percent=101"),
        ({"percent": float("nan")}, "Received: percent=nan"),
        ({"threshold": 1.5}, r"`threshold` should be in \[-1, 1\]. Received: threshold=1.5"),
        ({"band": (2, 1)}, r"Received: band=\(2, 1\)"),
        ({"band": (-1, 1)}, "`band` should be two percentages"),
    ],
)
def test_cuts_that_are_none(arguments, message):
    with pytest.raises(ValueError, match=message):
        Cut(**arguments)


def test_percentages_are_exact():
    # 7 / 100 * 100 is 7.000000000000001 in floats.
    assert Cut(percent=7.0).ranks(100) == (0, 7) and Cut(percent=0.1).ranks(3000) == (0, 3)
    assert Cut(band=(1, 2)).ranks(150) == (2, 3) and Cut(size=9).ranks(4) == (0, 4)


def test_rejected_input():
    scorer, vectors = random_scorer(), population(50)
    one = seed_list(scorer, vectors, [0, 1, 2])
    with pytest.raises(ValueError, match="`size` should be at most the population of 50. Received: size=51"):
        expand(scorer, [vectors], [one], Cut(size=51), total=50)
    with pytest.raises(ValueError, match="`total` should be given"):
        expand(scorer, [vectors], [one], Cut(percent=1))
    for total in (49, 51):
        with pytest.raises(ValueError, match=f"Received: total={total}"):
            expand(scorer, [vectors], [one], Cut(size=1), total=total)
    with pytest.raises(ValueError, match="`eligible` should be bool"):
        expand(scorer, [vectors], [one], Cut(size=1), eligible=np.ones(49, bool))
    with pytest.raises(ValueError, match="`exclude` of list 0 should be rows of the population. Received: 50"):
        expand(scorer, [vectors], [SeedList(one.centroids, one.counts, np.array([3, 50]))], Cut(size=1), total=50)
    with pytest.raises(ValueError, match="Received: none in list 0"):
        expand(scorer, [vectors], [SeedList(one.centroids, 0 * one.counts)], Cut(size=1))
    vectors[[7, 9], 3] = np.nan
    with pytest.raises(ValueError, match="should be finite. Received: 2 vectors"):
        expand(scorer, [vectors], [one], Cut(size=1))


def two_groups(users=4000, seeds=200):
    """A quarter of the users lies in one direction; the seeds are of them."""
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(users, 5)).astype("float32")
    group = rng.random(users) < 0.25
    vectors[group] += np.array([2, 2, 0, 0, 0], np.float32)
    return vectors, np.sort(rng.choice(np.flatnonzero(group), seeds, replace=False))


def test_holdout_counts_what_a_full_ranking_counts():
    vectors, rows = two_groups()
    scorer = Scorer(np.eye(5, dtype="f"), np.zeros(5, "f"), np.ones(5, "f"), np.eye(5, dtype="f"), None, None, 0.3)
    percents = (0.5, 1, 5, 20, 50, 100)
    found = holdout(scorer, lambda: np.array_split(vectors, 3), vectors[rows], rows, percents=percents, k=4, seed=1)
    assert found.hidden == 40
    mixed = np.random.default_rng(1).permutation(200)
    hidden, shown = rows[np.sort(mixed[:40])], rows[np.sort(mixed[40:])]
    eligible = np.setdiff1d(np.arange(len(vectors)), shown)
    centroids, counts = seed_centroids(scorer, vectors[shown], k=4, seed=1)
    mean = vectors[shown].mean(0)
    scores = {
        "look-alike": scorer.similarity(vectors, scorer.summarize(centroids[None], counts[None]))[:, 0],
        "average embedding": vectors @ mean / np.linalg.norm(vectors, axis=1),
    }
    for name, score in scores.items():
        ranking = eligible[np.lexsort((eligible, -score[eligible]))]
        curve = found.methods[name]
        for percent, recall in zip(percents, curve.recall, strict=True):
            size = int(np.ceil(percent * len(eligible) / 100))
            assert recall == pytest.approx(np.isin(hidden, ranking[:size]).mean(), abs=1 / 40 + 1e-9)
        np.testing.assert_allclose(curve.auc, roc_auc_score(np.isin(eligible, hidden), score[eligible]), atol=1e-4)
        np.testing.assert_allclose(curve.lift, 100 * np.array(curve.recall) / percents)
        np.testing.assert_allclose(curve.se, np.sqrt(np.array(curve.recall) * (1 - np.array(curve.recall)) / 40))
        assert curve.recall[-1] == 1
    assert found.methods["classifier"].auc > 0.8 > 0.5 == found.methods["random"].auc
    assert found.methods["random"].recall == [percent / 100 for percent in percents]
    assert set(found.as_dict()["methods"]["look-alike"]) == {"percent", "recall", "lift", "se", "auc"}


def test_holdout_of_equals_is_chance():
    # Everyone has the same vector: ties go to the lower row, and the AUC is a half.
    rows = np.arange(0, 100, 2)
    vectors = np.ones((1000, 5), np.float32)
    found = holdout(random_scorer(), [vectors], vectors[rows], rows, percents=(5, 100), seed=3)
    for name in ("look-alike", "average embedding", "classifier"):
        assert found.methods[name].auc == 0.5
        assert found.methods[name].recall[1] == 1
    # The hidden of the lowest 100 rows: before row r stand the other eligible rows below r.
    mixed = np.random.default_rng(3).permutation(50)
    hidden, shown = rows[mixed[:10]], rows[mixed[10:]]
    eligible = np.setdiff1d(np.arange(1000), shown)
    expected = np.mean(np.searchsorted(eligible, hidden) < np.ceil(0.05 * 960))
    assert found.methods["look-alike"].recall[0] == expected


def test_holdout_does_not_depend_on_chunks():
    vectors, rows = two_groups(users=SLAB + 3000)
    scorer = random_scorer()
    whole = holdout(scorer, [vectors], vectors[rows], rows, k=4)
    parts = holdout(scorer, pieces(vectors, [5, 6000]), vectors[rows], rows, k=4)
    assert whole == parts


def test_holdout_rejects():
    vectors, rows = two_groups(200, 20)
    scorer = random_scorer()
    with pytest.raises(ValueError, match="two or more different rows"):
        holdout(scorer, [vectors], vectors[[1, 1]], np.array([1, 1]))
    with pytest.raises(ValueError, match="two or more different rows"):
        holdout(scorer, [vectors], vectors[:1], np.array([0]))
    with pytest.raises(ValueError, match="`share` should be between 0 and 1. Received: share=1"):
        holdout(scorer, [vectors], vectors[rows], rows, share=1)
    with pytest.raises(ValueError, match="should leave a seed"):
        holdout(scorer, [vectors], vectors[rows[:2]], rows[:2], share=0.9)
    with pytest.raises(ValueError, match="`percents` should be above 0"):
        holdout(scorer, [vectors], vectors[rows], rows, percents=(0, 1))
    with pytest.raises(ValueError, match="Received: an iterator"):
        holdout(scorer, iter([vectors]), vectors[rows], rows)
    with pytest.raises(ValueError, match="below the population of 100"):
        holdout(scorer, [vectors[:100]], vectors[rows], rows)
