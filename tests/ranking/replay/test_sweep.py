from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.replay.ranks import MATCH, RankSums
from ranking.replay.sweep import Line

NAMES = ("a", "b", "matched", "diversity")


def make_sums(seed: int, ties: bool) -> RankSums:
    """Requests of 0 to 8 candidates; with ties all terms are 0 or 1."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 9, 9)
    sizes[0] = 8
    n = int(sizes.sum())
    terms = rng.integers(0, 2, (3, n)) if ties else rng.normal(size=(3, n))
    return RankSums(
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        terms=terms.astype(np.float32),
        slots=np.minimum(sizes, rng.integers(0, 5, 9)),
        cluster=rng.integers(10, 14, 9),
        gains=np.array([[1.0, 0.7, 0.2, 0.1], [1.0, 1.0, 1.0, 1.0]]),
        coefficients={name: (rng.random(n) * (rng.random(n) < 0.6)).astype(np.float32) for name in NAMES[:3]},
        gain_of={"b": 1, "matched": MATCH},
        counted={"b": rng.random(9) < 0.7},
        place=rng.integers(-1, 4, n).astype(np.int32),
        category=rng.integers(-1, 3, n).astype(np.int32),
    )


def by_sorting(sums: RankSums, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of each request by a stable sort, in float64: the first of equal scores comes first."""
    found = {name: np.zeros(len(sums.slots)) for name in NAMES}
    score = weights @ sums.terms.astype(np.float64)
    for r, (start, stop) in enumerate(zip(sums.offsets[:-1], sums.offsets[1:], strict=True)):
        best = start + np.argsort(-score[start:stop], kind="stable")[: sums.slots[r]]
        places = np.arange(len(best))
        found["a"][r] = sums.gains[0][: len(best)] @ sums.coefficients["a"][best]
        found["b"][r] = sums.coefficients["b"][best].sum(dtype=np.float64)
        found["matched"][r] = sums.coefficients["matched"][best] @ (sums.place[best] == places)
        gain = sums.gains[0][: len(best)]
        pairs = np.outer(gain, gain) * (1 - np.eye(len(best)))
        apart = sums.category[best][:, None] != sums.category[best][None]
        found["diversity"][r] = (pairs * apart).sum() / pairs.sum() if len(best) > 1 else 0
    return found


def inside(low: float, high: float) -> float:
    """A weight between two others, of few binary digits: scores of it are exact, equal ones are equal."""
    for digits in range(30):
        found = np.floor(high * 2**digits) / 2**digits
        found -= 2.0**-digits if found >= high else 0
        if low < found < high:
            return found
    return (low + high) / 2


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 100_000), st.booleans(), st.integers(0, 2))
def test_a_curve_is_the_direct_evaluation_between_its_breakpoints(seed, ties, part):
    sums = make_sums(seed, ties)
    rng = np.random.default_rng(seed + 1)
    weights = rng.integers(-2, 3, 3).astype(np.float64) if ties else rng.normal(size=3)
    curve = Line(sums, weights, part, -2, 2, NAMES).trace()[0]
    assert (np.diff(curve.breakpoints) > 0).all()
    edges = np.r_[-2, curve.breakpoints, 2]
    wide = np.flatnonzero(np.diff(edges) > 1e-9)
    weights = np.tile(weights, (len(wide), 1))
    weights[:, part] = [inside(edges[i], edges[i + 1]) for i in wide]
    at = curve.at(weights[:, part])
    direct = sums.values(weights.astype(np.float32), NAMES)
    for row, setting in enumerate(weights):
        expected = by_sorting(sums, setting)
        for name in NAMES:
            counted = sums.requests_counted(name)
            mean = expected[name][counted].sum() / max(counted.sum(), 1)
            assert at[name][row] == pytest.approx(mean, abs=1e-6)
            assert direct[name][row, counted].sum() / max(counted.sum(), 1) == pytest.approx(mean, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000))
def test_moments_are_sums_over_the_requests(seed):
    sums = make_sums(seed, ties=False)
    weights = np.array([0.3, -0.2, 1.0])
    points = np.array([-1.0, -0.3, 0.4, 1.0])
    _, found, by_cluster = Line(sums, weights, 2, -1, 1, NAMES).trace(points, ["b", "a"])
    clusters = np.unique(sums.cluster)
    for column, point in enumerate(points):
        expected = by_sorting(sums, np.array([0.3, -0.2, point]))
        for name in NAMES:
            value = expected[name] * sums.requests_counted(name)
            assert found.sum[name][column] == pytest.approx(value.sum(), abs=1e-6)
            assert found.squares[name][column] == pytest.approx((value**2).sum(), abs=1e-6)
            assert found.largest[name][column] == pytest.approx(value.max(), abs=1e-6)
        for name in ("a", "b"):
            value = expected[name] * sums.counted.get(name, 1)
            wanted = [value[sums.cluster == cluster].sum() for cluster in clusters]
            np.testing.assert_allclose(by_cluster[name][:, column], wanted, atol=1e-6)


def two_lines(**changes) -> RankSums:
    """Scores t and 0.5 of a request with one place: the first wins from t = 0.5 on."""
    sums = RankSums(
        offsets=np.array([0, 2]),
        terms=np.array([[1, 0], [0, 0.5]], np.float32),
        slots=np.array([1]),
        cluster=np.array([0]),
        gains=np.ones((1, 1)),
        coefficients={"a": np.array([3, 1], np.float32), "b": np.array([2, 4], np.float32)},
    )
    return replace(sums, **changes)


def test_two_lines_cross_once():
    curve = Line(two_lines(), np.array([0.0, 1.0]), 0, -1, 1, ["a"]).trace()[0]
    np.testing.assert_allclose(curve.breakpoints, [0.5])
    np.testing.assert_allclose(curve.values["a"], [1, 3])
    np.testing.assert_allclose(curve.middles, [-0.25, 0.75])
    assert curve.at(np.array([0.49, 0.5]))["a"].tolist() == [1, 3]


def test_a_ratio_is_of_means():
    # a / b: 1 / 4 before, 3 / 2 after.
    curve = Line(two_lines(ratios={"a": "b"}), np.array([0.0, 1.0]), 0, -1, 1, ["a"]).trace()[0]
    np.testing.assert_allclose(curve.values["a"], [0.25, 1.5])


def test_all_lines_through_one_point():
    # Nothing is held: the order is that of the term for t > 0 and the reverse below 0; at 0 nine meet.
    n = 9
    sums = RankSums(
        offsets=np.array([0, n]),
        terms=np.arange(n, dtype=np.float32)[None],
        slots=np.array([3]),
        cluster=np.array([0]),
        gains=np.array([[1.0, 0.5, 0.25]]),
        coefficients={"a": np.arange(n, dtype=np.float32)},
    )
    curve = Line(sums, np.zeros(1), 0, -1, 1, ["a"]).trace()[0]
    assert curve.breakpoints.tolist() == [0]
    # 0 * 1 + 1 * .5 + 2 * .25 = 1 and 8 + 3.5 + 1.5 = 13
    assert curve.values["a"].tolist() == [1, 13]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"setting": np.zeros(3)}, "`setting` should have shape"),
        ({"part": 2}, "`part` should be in"),
        ({"low": 1.0}, "`low` should be below `high`"),
        ({"high": np.inf}, "both finite"),
        ({"names": ["c"]}, "`names` should be among"),
        ({"names": []}, "`names` should be among"),
    ],
)
def test_wrong_arguments(changed, words):
    arguments = {"setting": np.zeros(2), "part": 0, "low": -1.0, "high": 1.0, "names": ["a"], **changed}
    with pytest.raises(ValueError, match=words):
        Line(two_lines(), **arguments)


def test_points_must_ascend():
    with pytest.raises(ValueError, match="ascend"):
        Line(two_lines(), np.zeros(2), 0, -1, 1, ["a"]).trace(np.array([0.5, 0.5]))
