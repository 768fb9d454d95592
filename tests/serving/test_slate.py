import itertools
import math
import string
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from serving.errors import ServingError
from serving.race import expected_looks, race
from serving.slate import Slate, make_slate

THETA = (1.0, 0.7, 0.5, 0.4, 0.2)


def orders(slate: Slate, score: list[float]) -> list[tuple[tuple[int, ...], float]]:
    """Every order of one draw and its chance, from the definition of the policy."""
    best = tuple(sorted(range(len(score)), key=lambda i: -np.float32(score[i])))
    found = []
    for order in itertools.permutations(range(len(score))):
        if slate.temperature is not None:
            odds = [math.exp(float(np.float32(score[i])) / slate.temperature) for i in order]
            chance = math.prod(odds[k] / sum(odds[k:]) for k in range(len(odds)))
        else:
            epsilon = slate.epsilon or 0.0
            chance = epsilon / math.factorial(len(score)) + (1 - epsilon) * (order == best)
        found.append((order, chance))
    return found


def enumerated(slate: Slate, pools: list[tuple[list[int], list[float], list[int]]], size: int) -> np.ndarray:
    """P(row at place) [size, slots]: over all pairs of orders of the pools, each (rows, scores, places) by hand."""
    out = np.zeros((size, slate.slots))
    for draws in itertools.product(*(orders(slate, score) for _, score, _ in pools)):
        chance = math.prod(chance for _, chance in draws)
        for (rows, _, places), (order, _) in zip(pools, draws, strict=True):
            for local, place in zip(order, places, strict=False):
                out[rows[local], place] += chance
    return out


def check(shown, places: np.ndarray) -> None:
    """The propensities of a slate against P(candidate of its pool at place)."""
    at = shown.position >= 0
    np.testing.assert_allclose(shown.position_propensity[at], places[at, shown.position[at]], atol=1e-10)
    assert np.isnan(shown.position_propensity[~at]).all()
    if shown.settings.examination:
        np.testing.assert_allclose(shown.exposure_propensity, places @ np.array(shown.settings.examination), atol=1e-10)


POLICIES = [
    {"exploration": "none"},
    {"exploration": "epsilon", "epsilon": 0.3},
    {"exploration": "epsilon", "epsilon": 1.0},
    {"exploration": "plackett_luce", "temperature": 0.7},
]


def test_two_items_by_hand():
    # odds 3 : 1 at temperature 2 (scores 2 log 3 and 0). Item 7: first with 3/4, so looked at 3/4 + 1/4 .5 = .875.
    slate = Slate(2, "plackett_luce", temperature=2.0, examination=(1.0, 0.5))
    first = 0
    for seed in range(20):
        shown = make_slate({"item_id": [7, 8], "score": [2 * math.log(3), 0]}, slate, np.random.default_rng(seed))
        sorted_ = shown.items.tolist() == [7, 8]
        first += sorted_
        np.testing.assert_allclose(shown.position_propensity, [0.75, 0.75] if sorted_ else [0.25, 0.25], rtol=1e-6)
        np.testing.assert_allclose(shown.exposure_propensity, [0.875, 0.625], rtol=1e-6)
    assert 0 < first < 20


def test_epsilon_and_none_by_hand():
    # epsilon .3, three items, two places: .1 anywhere, .7 more where the sorted order (1, 2, 0) has it
    candidates = {"item_id": ["a", "b", "c"], "score": [0.0, 2.0, 1.0]}
    slate = Slate(2, "epsilon", epsilon=0.3, examination=(1.0, 0.5))
    for seed in range(10):
        shown = make_slate(candidates, slate, np.random.default_rng(seed))
        np.testing.assert_allclose(shown.exposure_propensity, [0.15, 0.8 + 0.05, 0.1 + 0.4])
        for row in shown.slate:
            by_order = {1: 0, 2: 1}.get(row) == shown.position[row]
            assert shown.position_propensity[row] == pytest.approx(0.8 if by_order else 0.1)
    shown = make_slate(candidates, Slate(2, examination=(1.0, 0.5)), np.random.default_rng(0))
    assert shown.items.tolist() == ["b", "c"] and shown.slate.tolist() == [1, 2]
    np.testing.assert_array_equal(shown.position_propensity, [np.nan, 1, 1])
    np.testing.assert_array_equal(shown.exposure_propensity, [0, 1, 0.5])


@pytest.mark.parametrize("policy", POLICIES)
def test_filters_come_before_the_draw(policy):
    # 12 is bought, 13 blocked, 14 too dissimilar, 15 has no similarity to be judged by: 10, 11, 15, 16 are left
    candidates = {
        "item_id": np.arange(10, 17),
        "score": [0.1, 0.9, 5.0, 6.0, 7.0, 0.5, -0.4],
        "similarity": [0.3, 0.2, 0.9, 0.9, 0.1, -1.0, 0.5],
        "has_similarity": [True, True, True, True, True, False, True],
        "pctr": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
        "table_version": np.full(7, 3),
    }
    slate = Slate(3, **policy, min_similarity=0.15, examination=THETA[:3])
    places = enumerated(slate, [([0, 1, 2, 3], [0.1, 0.9, 0.5, -0.4], [0, 1, 2])], 4)
    for seed in range(5):
        shown = make_slate(candidates, slate, np.random.default_rng(seed), seen={12, 99}, blocked=[13])
        assert shown.item_id.tolist() == [10, 11, 15, 16] and len(shown.slate) == 3
        np.testing.assert_array_equal(shown.items, candidates["item_id"][shown.slate])
        np.testing.assert_array_equal(shown.parts["similarity"], np.float32([0.3, 0.2, np.nan, 0.5]))
        np.testing.assert_array_equal(shown.parts["pctr"], np.float32([0.1, 0.2, 0.6, 0.7]))
        assert set(shown.parts) == {"similarity", "pctr"}
        check(shown, places)


@pytest.mark.parametrize("policy", POLICIES)
def test_cap_against_every_order(policy):
    # cap 1: the best of red (row 1), of blue (row 3), of green (row 4) are the pool
    candidates = {
        "item_id": [0, 1, 2, 3, 4],
        "score": [0.2, 0.8, 0.1, 0.5, -0.3],
        "category": ["red", "red", "blue", "blue", "green"],
    }
    slate = Slate(2, **policy, cap=1, examination=THETA[:2])
    places = enumerated(slate, [([0, 1, 2], [0.8, 0.5, -0.3], [0, 1])], 3)
    for seed in range(5):
        shown = make_slate(candidates, slate, np.random.default_rng(seed))
        assert shown.item_id.tolist() == [1, 3, 4]
        check(shown, places)


@pytest.mark.parametrize("policy", POLICIES)
def test_reserved_places_and_cap_against_every_pair_of_orders(policy):
    # Five places, 1 and 3 reserved, cap 2. Red: new rows 0 and 1, others 2 and 3; of its two places min(2 reserved,
    # 2 - 1) is kept for its best new item, row 1; the other goes to the best of the rest, row 2. Blue: new row 4, and
    # 5, 6: row 4 is kept, then row 6. Green: row 7. So the reserved places are drawn from rows 1 and 4, the other
    # places (0, 2, 4) from rows 2, 6 and 7.
    candidates = {
        "item_id": np.arange(8),
        "score": [-1.0, -0.5, 0.9, 0.3, -0.8, 0.1, 0.6, 0.2],
        "category": np.array([1, 1, 1, 1, 2, 2, 2, 3]),
        "new": [True, True, False, False, True, False, False, False],
    }
    slate = Slate(5, **policy, cap=2, reserved=(3, 1), examination=THETA)
    pools = [([1, 3, 4], [0.9, 0.6, 0.2], [0, 2, 4]), ([0, 2], [-0.5, -0.8], [1, 3])]
    places = enumerated(slate, pools, 5)
    np.testing.assert_allclose(places.sum(0), 1)
    for seed in range(8):
        shown = make_slate(candidates, slate, np.random.default_rng(seed))
        assert shown.item_id.tolist() == [1, 2, 4, 6, 7]
        assert shown.pool.tolist() == [1, 0, 1, 0, 0]
        assert set(shown.position[[0, 2]].tolist()) == {1, 3}
        check(shown, places)


@pytest.mark.parametrize(
    ("new", "others", "expected"),
    [
        (3, 9, [1, 3]),  # enough of both
        (1, 9, [1]),  # one new item: the first reserved place is its own, the other is open to all others
        (0, 9, []),
        (9, 2, [1, 3, 4]),  # others fill two places: new items take the reserved ones, then from the end
        (9, 0, [0, 1, 2, 3, 4]),
        (1, 1, [1]),  # two items, two places
        (2, 0, [0, 1]),
        (0, 0, []),
    ],
)
def test_reserved_places_when_a_pool_is_short(new, others, expected):
    size = new + others
    slate = Slate(5, "plackett_luce", temperature=1.0, reserved=(1, 3), examination=THETA)
    candidates = {"item_id": np.arange(size), "score": np.linspace(0, 1, size), "new": np.arange(size) < new}
    shown = make_slate(candidates, slate, np.random.default_rng(0))
    assert sorted(shown.position[shown.pool == 1][shown.position[shown.pool == 1] >= 0].tolist()) == expected
    assert sorted(shown.position[shown.position >= 0].tolist()) == list(range(min(size, 5)))
    assert shown.exposure_propensity.sum() == pytest.approx(sum(THETA[: min(size, 5)]))


@pytest.mark.parametrize("policy", [POLICIES[1], *(pytest.param(p, marks=pytest.mark.slow) for p in POLICIES[2:])])
def test_draws_have_the_propensities_that_are_stated(policy):
    # Exact binomial tails, each of the 2 x 40 of them below 1e-6 / 80 in one right run of a million
    candidates = {
        "item_id": np.arange(10),
        "score": np.float32([0.3, -0.2, 1.1, 0.4, 0.0, 0.9, -1.0, 0.7, 0.2, 0.5]),
        "category": [0, 0, 0, 1, 1, 1, 2, 3, 4, 5],
        "new": np.arange(10) % 5 == 0,
    }
    slate = Slate(4, **policy, cap=2, reserved=(2,), examination=THETA[:4])
    generator, draws = np.random.default_rng(11), 6000
    pool = make_slate(candidates, slate, generator).item_id
    counts, stated = np.zeros((len(pool), 4), np.int64), np.full((len(pool), 4), np.nan)
    for _ in range(draws):
        shown = make_slate(candidates, slate, generator)
        rows = np.flatnonzero(shown.position >= 0)
        counts[rows, shown.position[rows]] += 1
        stated[rows, shown.position[rows]] = shown.position_propensity[rows]
    assert (counts[np.isnan(stated)] == 0).all()
    stated = np.nan_to_num(stated)
    tails = np.minimum(stats.binom.cdf(counts, draws, stated), stats.binom.sf(counts - 1, draws, stated))
    assert tails.min() > 1e-6 / 80
    unseen = 1 - stated.sum(0)  # of what was never drawn at a place
    assert (np.abs(unseen) < 0.01).all()
    np.testing.assert_allclose(shown.exposure_propensity, stated @ np.array(THETA[:4]), atol=0.01)


@st.composite
def requests(draw):
    size = draw(st.integers(0, 14))
    slots = draw(st.integers(1, 6))
    reserved = draw(st.lists(st.integers(0, slots - 1), unique=True, max_size=slots))
    policy = draw(st.sampled_from(POLICIES))
    cap = draw(st.none() | st.integers(1, 3))
    text = draw(st.booleans())
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = np.array(list(string.ascii_letters), object)
    candidates = {
        "item_id": generator.permutation(names if text else np.arange(2**62, 2**62 + 50))[:size],
        "score": np.float32(generator.choice([0, 1, 2], size) if draw(st.booleans()) else generator.normal(size=size)),
        "category": generator.integers(0, draw(st.integers(1, 5)), size),
        "new": generator.random(size) < draw(st.floats(0, 1)),
        "similarity": generator.uniform(-1, 1, size),
    }
    theta = tuple(np.sort(generator.uniform(0.05, 1, slots))[::-1].tolist())
    slate = Slate(slots, **policy, cap=cap, reserved=tuple(reserved), min_similarity=-0.5, examination=theta)
    gone = set(candidates["item_id"][generator.random(size) < 0.2].tolist())
    return candidates, slate, generator, gone


@settings(max_examples=150, deadline=None)
@given(requests())
def test_what_every_slate_keeps(request):
    candidates, slate, generator, gone = request
    shown = make_slate(candidates, slate, generator, blocked=gone)
    at = shown.position >= 0
    assert not gone & set(shown.item_id.tolist())
    row = {item: i for i, item in enumerate(candidates["item_id"].tolist())}
    pool = np.array([row[item] for item in shown.item_id.tolist()], int)
    assert (candidates["similarity"][pool] >= np.float32(-0.5)).all() and (np.diff(pool) > 0).all()
    np.testing.assert_array_equal(shown.score, candidates["score"][pool])
    np.testing.assert_array_equal(candidates["item_id"][shown.slate], shown.items)
    assert sorted(shown.position[at].tolist()) == list(range(min(slate.slots, len(pool))))
    if slate.cap is None:
        passed = [i for item, i in row.items() if item not in gone and candidates["similarity"][i] >= np.float32(-0.5)]
        assert sorted(passed) == pool.tolist()
    else:  # no draw can break a cap that the pool keeps
        assert np.bincount(candidates["category"][pool], minlength=1).max() <= slate.cap
    new = candidates["new"][pool]
    if slate.reserved:
        np.testing.assert_array_equal(shown.pool, new)
        held = [place for place in slate.reserved if place < min(slate.slots, len(pool))]
        if new.sum() >= len(slate.reserved):
            assert new[[int(np.flatnonzero(shown.position == place)[0]) for place in held]].all()
        if (~new).sum() >= slate.slots - min(len(slate.reserved), new.sum()):
            assert at[new].sum() == min(len(slate.reserved), new.sum())
    looks = sum(slate.examination[: at.sum()])
    assert shown.exposure_propensity.sum() == pytest.approx(looks, abs=1e-9)
    assert ((shown.position_propensity[at] > 0) & (shown.position_propensity[at] <= 1 + 1e-9)).all()
    assert (shown.exposure_propensity >= -1e-12).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 12), st.floats(0, 40), st.integers(0, 2**32 - 1), st.sampled_from([20, 40, 64])
)
def test_the_two_kernels_agree(items, slots, spread, seed, nodes):
    generator = np.random.default_rng(seed)
    logits = np.clip(spread * generator.normal(size=items), -290, 290)
    x, weight = np.polynomial.legendre.leggauss(nodes)
    rates, filled = np.exp(logits - logits.max()), min(items, slots)
    places = np.zeros((items, filled))
    race(rates, np.ones(items, bool), x, weight, places)
    place = np.full(items, -1)
    place[generator.permutation(items)[:filled]] = np.arange(filled)
    theta, exposure, own = generator.uniform(size=filled), np.empty(items), np.empty(items)
    expected_looks(rates, place, theta, x, weight, exposure, own)
    np.testing.assert_allclose(exposure, places @ theta, rtol=1e-9, atol=1e-12)
    at = place >= 0
    np.testing.assert_allclose(own[at], places[at, place[at]], rtol=1e-9, atol=1e-12)
    assert np.isnan(own[~at]).all()


def test_threads_draw_what_one_thread_draws():
    generator = np.random.default_rng(5)
    candidates = {"item_id": np.arange(300), "score": generator.normal(size=300)}
    slate = Slate(10, "plackett_luce", temperature=0.5, examination=tuple(np.linspace(1, 0.3, 10)))

    def draw(seed):
        return make_slate(candidates, slate, np.random.default_rng(seed))

    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(draw, range(40)), map(draw, range(40)), strict=True):
            np.testing.assert_array_equal(found.slate, expected.slate)
            np.testing.assert_array_equal(found.exposure_propensity, expected.exposure_propensity)


def test_ids_are_exact():
    large = [2**53 + 1, 2**53 + 2, -5]
    shown = make_slate({"item_id": large, "score": [3, 2, 1]}, Slate(3), np.random.default_rng(0), seen=[2**53])
    assert shown.items.tolist() == large
    shown = make_slate(
        {"item_id": [b"007", "7", "新闻"], "score": [3, 2, 1]}, Slate(3), np.random.default_rng(0), seen=["7"]
    )
    assert shown.items.tolist() == ["007", "新闻"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"slots": 0}, "slots=0"),
        ({"exploration": "softmax"}, "exploration='softmax'"),
        ({"exploration": "epsilon"}, "`epsilon` should be in (0, 1]. Received: epsilon=None"),
        ({"exploration": "epsilon", "epsilon": 1.5}, "epsilon=1.5"),
        ({"exploration": "plackett_luce", "temperature": 0.0}, "temperature=0.0"),
        ({"exploration": "plackett_luce", "temperature": 1.0, "epsilon": 0.1}, "epsilon=0.1"),
        ({"temperature": 1.0}, "exploration='plackett_luce' only"),
        ({"cap": 0}, "cap=0"),
        ({"reserved": (3,)}, "from 0 to 2"),
        ({"reserved": (1, 1)}, "reserved=(1, 1)"),
        ({"min_similarity": 2.0}, "min_similarity=2.0"),
        ({"examination": (1.0, 0.5)}, "3 numbers"),
        ({"examination": (1.0, 0.5, 0.0)}, "above 0"),
    ],
)
def test_settings_that_are_refused(arguments, words):
    with pytest.raises(ServingError) as error:
        Slate(**{"slots": 3, **arguments})
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"item_id": None}, "column `item_id`"),
        ({"item_id": [1.0, 2.0]}, "int64 or text"),
        ({"item_id": [1, "a"]}, "`item_id`"),
        ({"item_id": [2**63, 1]}, "`item_id`"),
        ({"item_id": [4, 4]}, "each candidate once"),
        ({"item_id": ["a", b"a"]}, "each candidate once"),
        ({"score": None}, "column `score`"),
        ({"score": [1.0]}, "[2]"),
        ({"score": [1.0, math.nan]}, "finite"),
        ({"score": [1.0, 900.0]}, "span less than 600"),
        ({"category": None}, "column `category`"),
        ({"new": None}, "column `new`"),
        ({"similarity": None}, "column `similarity`"),
        ({"seen": ["1"]}, "`seen`"),
        ({"blocked": {b"1"}}, "`blocked`"),
    ],
)
def test_candidates_that_are_refused(change, words):
    given_ = {"item_id": [1, 2], "score": [0.0, 1.0], "category": [0, 1], "new": [0, 0], "similarity": [0, 0], **change}
    filters = {name: given_.pop(name) for name in ("seen", "blocked") if name in given_}
    slate = Slate(2, "plackett_luce", temperature=1.0, cap=1, reserved=(1,), min_similarity=-1)
    candidates = {name: column for name, column in given_.items() if column is not None}
    with pytest.raises(ServingError) as error:
        make_slate(candidates, slate, np.random.default_rng(0), **filters)
    assert words in str(error.value) and "\n" not in str(error.value)
