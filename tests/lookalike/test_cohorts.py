"""Weights that cap a cohort: by hand, as properties, and against ten thousand new accounts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.clustering import cluster
from lookalike.cohorts import capped_weights, cluster_capped, largest_share, most_owned


def of_sizes(*sizes):
    """One item whose cohorts have these sizes."""
    return np.array([0, sum(sizes)]), np.repeat(np.arange(len(sizes)), sizes)


def by_cohort(weights, cohort):
    return [float(weights[cohort == value][0]) for value in np.unique(cohort)]


def test_known_values():
    offsets, cohort = of_sizes(6, 2, 2)
    # A cap of 0.4: the 6 weigh as much as 0.4 of all, cap = 0.4 (cap + 4), cap = 8/3, each 8/18; the 2 are below it.
    assert by_cohort(capped_weights(offsets, cohort, 0.4), cohort) == pytest.approx([4 / 9, 1, 1])
    # 0.6: 6 of 10 is just allowed.
    assert by_cohort(capped_weights(offsets, cohort, 0.6), cohort) == [1, 1, 1]
    # Two are cut: cap = 0.4 (2 cap + 1), cap = 2.
    offsets, cohort = of_sizes(100, 100, 1)
    weights = capped_weights(offsets, cohort, 0.4)
    assert by_cohort(weights, cohort) == pytest.approx([0.02, 0.02, 1])
    assert largest_share(offsets, cohort, weights)[0] == pytest.approx(0.4)  # 2 of 5
    assert largest_share(offsets, cohort)[0] == pytest.approx(100 / 201)


def test_fewer_cohorts_than_the_share_needs_weigh_alike():
    offsets, cohort = of_sizes(8, 2)
    weights = capped_weights(offsets, cohort, 0.1)  # two cohorts: one has at least a half
    assert by_cohort(weights, cohort) == [0.25, 1] and largest_share(offsets, cohort, weights)[0] == 0.5
    offsets, cohort = of_sizes(5)
    assert capped_weights(offsets, cohort, 0.1).tolist() == [1] * 5
    assert capped_weights(offsets, cohort, 1.0).tolist() == [1] * 5


def test_items_are_judged_alone():
    sizes = ((6, 2, 2), (), (3,), (1, 1, 1, 1))
    parts = [np.repeat(np.arange(len(each)), each) for each in sizes]
    offsets = np.append(0, np.cumsum([len(part) for part in parts]))
    weights = capped_weights(offsets, np.concatenate(parts).astype(np.int64), 0.4)
    alone = [capped_weights(np.array([0, len(part)]), part, 0.4) for part in parts if len(part)]
    assert weights.dtype == np.float32 and np.array_equal(weights, np.concatenate(alone))
    shares = largest_share(offsets, np.concatenate(parts).astype(np.int64), weights)
    assert shares.tolist() == pytest.approx([0.4, 0, 1, 0.25])
    assert capped_weights(np.array([0, 0]), np.zeros(0, np.int64), 0.4).shape == (0,)


@given(st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=12), min_size=1, max_size=5), st.floats(0.01, 1.0))
@settings(max_examples=200, deadline=None)
def test_no_cohort_is_above_its_share_and_nobody_is_cut_in_vain(sizes, max_share):
    parts = [np.repeat(np.arange(len(each)), each) for each in sizes]
    offsets, cohort = np.append(0, np.cumsum([len(part) for part in parts])), np.concatenate(parts)
    weights = capped_weights(offsets, cohort, max_share)
    assert (weights > 0).all() and (weights <= 1).all()
    for item, each in enumerate(sizes):
        allowed = max(max_share, 1 / len(each))
        own = weights[offsets[item] : offsets[item + 1]]
        mass = np.bincount(parts[item], own)
        assert mass.max() <= allowed * mass.sum() * (1 + 1e-5)
        if max(each) <= allowed * sum(each):
            assert (own == 1).all()
        cut = own[np.searchsorted(parts[item], np.arange(len(each)))] < 1
        if cut.any():  # those that are cut are the largest, and all of one mass
            assert min(np.array(each)[cut]) >= max(np.array(each)[~cut], default=0)
            assert np.allclose(mass[cut], mass[cut][0], rtol=1e-4)


@pytest.mark.parametrize(
    ("offsets", "cohort", "share", "words"),
    [
        ([0, 2], [0, 1], 0.0, "`max_share` should be in (0, 1]. Received: max_share=0.0."),
        ([0, 2], [0, 1], 1.1, "`max_share` should be in (0, 1]."),
        ([0, 3], [0, 1], 0.5, "`cohort` should have shape [3]. Received: [2]."),
        ([1, 2], [0, 1], 0.5, "`offsets` should rise from 0."),
        ([0, 2, 1], [0], 0.5, "`offsets` should rise from 0."),
    ],
)
def test_rejected_input(offsets, cohort, share, words):
    with pytest.raises(ValueError) as error:
        capped_weights(np.array(offsets), np.array(cohort), share)
    assert words in str(error.value)


def seeds_and_attack(attackers=10_000, days=40, seed=0):
    """An item's 10,000 seeds, who registered over some days, and accounts of one day elsewhere in the space."""
    random = np.random.default_rng(seed)
    honest = random.normal(0, 1, (10_000, 16)).astype(np.float32) + np.eye(16, dtype=np.float32)[0] * 2
    fake = random.normal(0, 0.3, (attackers, 16)).astype(np.float32) - np.eye(16, dtype=np.float32)[1] * 4
    return honest, fake, random.integers(0, days, len(honest))


def test_ten_thousand_new_accounts_move_the_mean_by_their_share():
    honest, fake, day = seeds_and_attack()
    both, cohort = np.concatenate([honest, fake]), np.append(day, np.full(len(fake), 99))
    offsets = np.array([0, len(both)])
    weights = capped_weights(offsets, cohort, 0.1)
    far = np.linalg.norm(fake.mean(axis=0) - honest.mean(axis=0))
    moved = []
    for found, of in (
        (cluster(both, offsets, 20, threads=1), np.ones(len(both))),
        (cluster(both, offsets, 20, weights=weights, threads=1), weights.astype(np.float64)),
    ):
        mass = np.bincount(found.assignment, of, 20)
        moved.append(np.linalg.norm(np.average(found.centroids[0], axis=0, weights=mass) - honest.mean(axis=0)))
    # Half of the seeds are theirs: without a cap the table moves half of the way. With it a tenth, to the digit.
    assert moved == pytest.approx([0.5 * far, 0.1 * far], rel=1e-3)


@pytest.mark.parametrize("accounts", [800, 10_000])  # 7 % of the seeds, which no weight cuts; and half of them
@pytest.mark.parametrize("groups", [1, 20])
def test_no_cohort_owns_more_centroids_than_its_share(accounts, groups):
    random = np.random.default_rng(1)
    honest, _, day = seeds_and_attack()
    places = random.normal(0, 1, (groups, 16))
    places *= 18 / np.linalg.norm(places, axis=1, keepdims=True)  # tight groups far away: k-means loves them
    fake = places[random.integers(0, groups, accounts)] + random.normal(0, 0.1, (accounts, 16))
    both = np.concatenate([honest, fake.astype(np.float32)])
    cohort, offsets = np.append(day, np.full(accounts, 99)), np.array([0, len(both)])
    weights = capped_weights(offsets, cohort, 0.1)
    bare = cluster(both, offsets, 20, weights=weights, threads=1)
    found = cluster_capped(both, offsets, 20, cohort, 0.1, threads=1)
    names, owned, live = most_owned(found.assignment, cohort, weights, 20)
    assert live == 20 and dict(zip(names, owned, strict=True))[99] <= 2
    if groups == 20:  # weights alone leave them most of the table
        assert most_owned(bare.assignment, cohort, weights, 20)[1].max() > 10
    # A centroid is still the mean of its seeds.
    for j in range(20):
        rows = found.assignment == j
        assert found.centroids[0, j] == pytest.approx(np.average(both[rows], axis=0, weights=weights[rows]), abs=1e-3)
    assert found.counts[0].sum() == pytest.approx(weights.sum(), abs=20)


def test_without_a_large_cohort_it_is_cluster():
    random = np.random.default_rng(2)
    points = random.normal(0, 1, (900, 8)).astype(np.float32)
    offsets, cohort = np.array([0, 400, 400, 405, 900]), np.arange(900)
    found, plain = cluster_capped(points, offsets, 6, cohort, 0.2), cluster(points, offsets, 6)
    for name in ("centroids", "counts", "assignment", "inertia"):
        assert np.array_equal(getattr(found, name), getattr(plain, name)), name
    start = cluster_capped(points, offsets, 6, cohort, 0.2, initial=plain.centroids, iterations=1)
    assert np.array_equal(start.counts, cluster(points, offsets, 6, initial=plain.centroids, iterations=1).counts)


def test_few_seeds_of_a_few_cohorts():
    # Seeds at k or fewer are the centroids themselves, and all weigh alike: 6 of 9 accounts would have two thirds.
    points = np.arange(18, dtype=np.float32).reshape(9, 2)
    cohort = np.array([7, 7, 7, 7, 7, 7, 1, 2, 3])
    found = cluster_capped(points, np.array([0, 9]), 10, cohort, 0.3)
    # The other three keep theirs; he may have 3 of 10, and 0.3 / 0.7 * 3 = 1.3 beside three: one.
    assert found.assignment.tolist() == [3] * 6 + [0, 1, 2]
    assert found.centroids[0, :4].tolist() == [[12, 13], [14, 15], [16, 17], [5, 6]]
    # 6 at the cap of 0.3 / 0.7 * 3 = 9/7 together; at least 1 is said.
    assert found.counts[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    alone = cluster_capped(points, np.array([0, 9]), 4, np.zeros(9, np.int64), 0.3)
    assert (alone.counts > 0).sum() == 1  # nobody else is there: `largest_share` says so
