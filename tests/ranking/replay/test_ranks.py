import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.replay.ranks import RankSums


def reference(sums: RankSums, settings_: np.ndarray) -> dict[str, np.ndarray]:
    """The same by argsort: a stable sort puts the first of equal scores first."""
    out = {name: np.zeros((len(settings_), len(sums.offsets) - 1)) for name in sums.coefficients}
    for s, weights in enumerate(settings_):
        score = np.float32(weights[0]) * sums.terms[0]
        for weight, term in zip(weights[1:], sums.terms[1:], strict=True):
            score = score + np.float32(weight) * term
        for r, (start, stop) in enumerate(zip(sums.offsets[:-1], sums.offsets[1:], strict=True)):
            order = np.argsort(-score[start:stop], kind="stable")[: sums.slots[r]]
            order = order[: sums.gains.shape[1]]
            for name, coefficient in sums.coefficients.items():
                out[name][s, r] = sums.gains[0][: len(order)] @ coefficient[start:stop][order]
    return out


def make_sums(seed: int, values: int = 0) -> RankSums:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 9, 7)
    n = max(int(sizes.sum()), 1)
    sizes[-1] += n - sizes.sum()
    terms = rng.normal(size=(3, n)) if not values else rng.integers(0, values, (3, n))  # few values: many ties
    coefficients = {name: (rng.random(n) * (rng.random(n) < 0.6)).astype(np.float32) for name in ("a", "b")}
    return RankSums(
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        terms=terms.astype(np.float32),
        gains=np.array([[1.0, 0.7, 0.2]]),
        slots=np.minimum(sizes, rng.integers(1, 4, 7)),
        coefficients=coefficients,
        counted={},
        cluster=np.arange(7),
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 2]))
def test_agrees_with_argsort_ties_included(seed, values):
    sums = make_sums(seed, values)
    rng = np.random.default_rng(seed + 1)
    chosen = (rng.integers(-2, 3, (4, 3)) if values else rng.normal(size=(4, 3))).astype(np.float32)
    expected = reference(sums, chosen)
    found = sums.values(chosen)
    for name in ("a", "b"):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
    np.testing.assert_array_equal(sums.values(chosen, ["b"])["b"], found["b"])


def test_by_hand():
    # One request, scores (1, 3, 3, 2): ranks (3, 0, 1, 2), examination (1, .5, .25), two slots.
    # a = 10 * 0 + 20 * 1 + 30 * .5 + 40 * 0 = 35
    sums = RankSums(
        offsets=np.array([0, 4]),
        terms=np.array([[1, 3, 3, 2]], np.float32),
        gains=np.array([[1.0, 0.5, 0.25]]),
        slots=np.array([2]),
        coefficients={"a": np.array([10, 20, 30, 40], np.float32)},
        counted={},
        cluster=np.array([0]),
    )
    assert sums.values(np.ones((1, 1)))["a"].tolist() == [[35.0]]
    # turned round: scores (-1, -3, -3, -2): ranks (0, 2, 3, 1): 10 + 40 * .5 = 30
    assert sums.values(-np.ones((1, 1)))["a"].tolist() == [[30.0]]
    with pytest.raises(ValueError, match=r"`settings` should have shape \[S, 1\]"):
        sums.values(np.ones((1, 2)))
