"""The rank form, differences by segment, and that graph, float32 and float64 agree in every form."""

import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from ranking.errors import UserError
from ranking.fusion import FORMS, FusionWeights, fuse, terms, weighted_sum, weights_of_rows

WEIGHTS = {"similarity": 0.2, "pctr": 1.0, "pcvr": 0.6, "price": -0.5}
SEGMENTS = {"new": {"similarity": 0.5, "pctr": -0.25}, "loyal": {"price": -0.9}}


def parts_of(n=200, seed=0, dtype=np.float32):
    """Some parts are missing, and some values are equal."""
    generator = np.random.default_rng(seed)
    parts = {
        "similarity": generator.uniform(-1, 1, n).round(2),
        "has_similarity": (generator.random(n) < 0.8).astype(float),
        "pctr": generator.beta(1, 20, n).round(3) + 0.001,
        "pcvr": generator.beta(1, 10, n),
        "price": np.where(generator.random(n) < 0.8, generator.lognormal(3, 1, n).round(), np.nan),
    }
    return {name: values.astype(np.float32).astype(dtype) for name, values in parts.items()}


def weights_of(form, segments=None):
    fitted = FusionWeights.fit(parts_of(200, seed=1), form, WEIGHTS, "p", offsets=np.arange(0, 201, 20))
    return dataclasses.replace(fitted, segments=segments or {})


def slow_ranks(values, missing, offsets):
    """1 + the number of better ones in the request, the first of equal ones being better; missing ones never are."""
    found = np.zeros(len(values))
    for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
        for i in range(start, stop):
            better = [
                j
                for j in range(start, stop)
                if not missing[j] and (values[j] > values[i] or (values[j] == values[i] and j < i))
            ]
            found[i] = 1 + len(better)
    return found


@functools.cache
def weighed(form, segmented):
    """Weights, and the graph of a kind of segment, for any number of candidates."""
    weights = weights_of(form, SEGMENTS if segmented else {})
    shapes = {name: tf.TensorSpec([None], tf.float32) for name in parts_of(1)}

    @functools.cache
    def graph(kind):
        if kind == "given":
            signature = [shapes, tf.TensorSpec([None], tf.string)]
            return tf.function(lambda parts, given: fuse(parts, weights, segment=given, xp=ops), signature)
        return tf.function(lambda parts: fuse(parts, weights, segment=kind, xp=ops), [shapes])

    return weights, graph


def test_rank_known_values():
    weights = FusionWeights("rank", {"pctr": 1, "price": 2}, {"pctr": 0.0, "price": 0.016}, {"pctr": 1, "price": 0.001})
    parts = {
        "pctr": np.array([0.3, 0.1, 0.3, 0.9, 0.5]),
        "price": np.array([5.0, np.nan, 7.0, np.nan, 1.0]),
    }
    # Requests of 3 and 2 rows. pctr: ranks 1, 3, 2 (of the equal .3 the first is better) and 1, 2.
    # price: ranks 2, none, 1 and none, 1: z = (1/62 - .016) / .001, 0, (1/61 - .016) / .001, 0, (1/61 - .016) / .001
    # canonical weights .5 and 1
    first, second = (1 / 61 - 0.016) / 0.001, (1 / 62 - 0.016) / 0.001
    z = {"pctr": [1 / 61, 1 / 63, 1 / 62, 1 / 61, 1 / 62], "price": [second, 0, first, 0, first]}
    found = terms(parts, weights, offsets=[0, 3, 5])
    for name, expected in z.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, atol=1e-15)
    expected = 0.5 * np.array(z["pctr"]) + z["price"]
    np.testing.assert_allclose(fuse(parts, weights, offsets=[0, 3, 5]), expected, rtol=1e-12)


def test_rank_constants_are_those_of_the_log():
    parts = {"pctr": np.array([0.2, 0.1, 0.7]), "price": np.array([np.nan, 2.0, 3.0])}
    weights = FusionWeights.fit(parts, "rank", {"pctr": 1}, offsets=[0, 2, 3])
    x = np.array([1 / 61, 1 / 62, 1 / 61])  # ranks 1, 2 | 1
    assert weights.mu["pctr"] == pytest.approx(x.mean()) and weights.sd["pctr"] == pytest.approx(x.std())
    assert weights.mu["price"] == pytest.approx(1 / 61) and weights.sd["price"] == 1.0  # each the first: constant
    z = terms(parts, weights, offsets=[0, 1, 3])  # frozen: other requests do not move them
    np.testing.assert_allclose(z["pctr"], (np.array([1 / 61, 1 / 62, 1 / 61]) - x.mean()) / x.std(), rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_ranks_are_counts_of_better_rows(seed, sizes):
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    n = int(offsets[-1])
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 4, n).astype(np.float32)  # many are equal
    missing = generator.random(n) < 0.3
    parts = {"price": np.where(missing, np.nan, values).astype(np.float32)}
    weights = FusionWeights("rank", {"price": 1}, {"price": 0.0}, {"price": 1.0})
    found = terms(parts, weights, offsets=offsets)["price"]
    expected = np.where(missing, 0, 1 / (60 + slow_ranks(values, missing, offsets)))
    np.testing.assert_allclose(found, expected, rtol=3e-7)
    for start, stop in zip(offsets[:-1], offsets[1:], strict=True):  # a request alone, in the graph
        if stop > start:
            alone = terms({"price": ops.array(parts["price"][start:stop])}, weights, xp=ops)["price"]
            np.testing.assert_allclose(alone, expected[start:stop], rtol=3e-7)


def test_rank_rejects():
    parts, weights = parts_of(20), weights_of("rank")
    with pytest.raises(UserError, match="`offsets` should tell the requests apart.*offsets=None"):
        fuse(parts, weights)
    with pytest.raises(UserError, match="`offsets` should tell"):
        FusionWeights.fit(parts, "rank", {"pctr": 1})
    for offsets in ([0, 19], [1, 20], [0, 12, 9, 20], [0]):
        with pytest.raises(UserError, match="`offsets` should rise from 0 to the number of rows, 20"):
            terms(parts, weights, offsets=offsets)
    with pytest.raises(UserError, match="no label.*'click'"):
        terms({**parts, "click": parts["pctr"]}, weights, offsets=[0, 20])
    broken = {**parts, "pctr": np.where(np.arange(20) == 3, np.nan, parts["pctr"])}
    assert np.isnan(terms(broken, weights, offsets=[0, 20])["pctr"]).sum() == 1  # not hidden by a rank


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("segmented", [False, True], ids=["plain", "segments"])
@pytest.mark.parametrize("n", [1, 50, 5000])
def test_graph_and_float32_and_float64_agree(form, segmented, n):
    weights, graphs = weighed(form, segmented)
    parts = parts_of(n)
    parts["pctr"][:1], parts["similarity"][:1], parts["has_similarity"][:1] = 0, -1, 1
    exact = {name: values.astype(np.float64) for name, values in parts.items()}
    rows = np.array(["new", "loyal", "unheard of", ""], object)[np.arange(n) % 4]
    for segment in (None, "new", np.array(["loyal"], object), rows):
        expected = fuse(exact, weights, segment=segment, offsets=[0, n])
        single = fuse(parts, weights, segment=segment, offsets=[0, n])
        fixed = segment is None or isinstance(segment, str)
        graph = graphs(segment)(parts) if fixed else graphs("given")(parts, tf.constant(list(segment)))
        assert (expected.dtype, single.dtype, graph.dtype) == (np.float64, np.float32, tf.float32)
        # To 1e-6 of what is added up: a sum near 0 has the rounding of its summands.
        z = terms(exact, weights, offsets=[0, n])
        tolerance = 1e-6 * np.maximum(1, sum(abs(weights.weights[name]) * abs(z[name]) for name in z))
        for found in (single, graph.numpy()):
            assert found.shape == (n,) and (abs(found - expected) <= tolerance).all()


def test_segments_known_values():
    weights = FusionWeights(
        "sum",
        {"pctr": 2.0, "price": 1.0},
        {"pctr": 0.0, "price": 0.0},
        {"pctr": 1.0, "price": 1.0},
        bounds={"price": (-0.1, 0.6)},
        segments={"new": {"price": 0.5, "pctr": -1.0}, "old": {"price": -4.0}, "same": {"pctr": 0.0}},
    )
    # Canonical: all divided by 2. new: pctr 1 - .5, price .5 + .25 clipped to .6; old: price .5 - 2 clipped to -.1
    assert weights.segments == {"new": {"pctr": -0.5, "price": 0.25}, "old": {"price": -2.0}}
    assert weights.of_segment("new") == {"pctr": 0.5, "price": 0.6}
    assert weights.of_segment("old") == {"pctr": 1.0, "price": -0.1}
    assert weights.of_segment("other") == weights.of_segment(None) == weights.weights == {"pctr": 1.0, "price": 0.5}
    parts = {"pctr": np.array([1.0, 1, 1, 1]), "price": np.array([10.0, 10, 10, 10])}
    rows = np.array(["new", "old", "other", None], object)
    np.testing.assert_allclose(fuse(parts, weights, segment=rows), [6.5, 0.0, 6.0, 6.0], atol=1e-12)
    np.testing.assert_allclose(fuse(parts, weights, segment="new"), [6.5] * 4)
    np.testing.assert_allclose(fuse(parts, weights), [6.0] * 4)
    # What a request asks for stands in for the weight and its difference, within the bounds: -.1 and not -9.
    np.testing.assert_allclose(fuse(parts, weights, {"price": -9.0}, segment="new"), [-0.5] * 4)
    used = weights_of_rows(weights, terms(parts, weights), rows)
    np.testing.assert_allclose(used["price"], [0.6, -0.1, 0.5, 0.5])
    np.testing.assert_allclose(weighted_sum(terms(parts, weights), used), [6.5, 0.0, 6.0, 6.0], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.floats(-2, 2), st.floats(0.001, 1000), st.sampled_from(["new", "loyal", "other"]), st.sampled_from(FORMS[:2]))
def test_segments_are_on_the_scale_of_the_weights_and_bounded(difference, factor, segment, form):
    base = weights_of(form)
    bounds = {name: (min(w - 0.1, 0), max(w + 0.1, 0)) for name, w in base.weights.items()}
    rows = {"new": {name: difference for name in WEIGHTS}, "loyal": {"pctr": 0.05}}
    scaled = {known: {name: d * factor for name, d in row.items()} for known, row in rows.items()}
    one = dataclasses.replace(base, segments=rows, bounds=bounds)
    other = dataclasses.replace(
        base, weights={name: w * factor for name, w in base.weights.items()}, segments=scaled, bounds=bounds
    )
    assert one == other and one.hash == other.hash
    for name, weight in one.of_segment(segment).items():
        low, high = bounds[name]
        assert low <= weight <= high
        wanted = base.weights[name] + rows.get(segment, {}).get(name, 0.0)
        assert weight == pytest.approx(min(max(wanted, low), high), abs=1e-9)


def test_a_part_with_a_weight_in_one_segment_only_is_needed():
    weights = FusionWeights(
        "sum", {"pctr": 1, "price": 0}, {"pctr": 0, "price": 0}, {"pctr": 1, "price": 1}, segments={"a": {"price": 1}}
    )
    assert weights.weighted == ("pctr", "price")
    with pytest.raises(UserError, match=r"without \['price'\]"):
        fuse({"pctr": np.ones(2)}, weights)


def test_files_with_and_without_segments(tmp_path):
    plain = weights_of("product")
    assert "segments" not in plain.to_dict() and FusionWeights(**plain.to_dict()) == plain
    # The hash of weights without segments is that of their content before there were any.
    assert FusionWeights("sum", {"pctr": 1}, {"pctr": 0}, {"pctr": 1}).hash == (
        "93259b087d85f28d1f4d68a58b4a34fccc743a0145db70886b94a791b41df00c"
    )
    with_segments = dataclasses.replace(plain, segments=SEGMENTS)
    assert with_segments.hash != plain.hash
    for weights in (plain, with_segments, weights_of("rank")):
        weights.save(tmp_path / "w.json")
        again = FusionWeights.load(tmp_path / "w.json", parameters_hash="p")
        assert again == weights and again.hash == weights.hash
    content = json.loads((tmp_path / "w.json").read_text())
    (tmp_path / "w.json").write_text(json.dumps({**content, "segment": {}}))
    with pytest.raises(UserError, match="should hold"):
        FusionWeights.load(tmp_path / "w.json")


@pytest.mark.parametrize(
    "segments, message",
    [
        ({"new": {"click": 1.0}}, "no label"),
        ({"new": {"ctr": 1.0}}, "Received: 'ctr'"),
        ({"new": {"price": 1.0}}, r"finite numbers of \['pctr'\]"),
        ({"new": {"pctr": math.inf}}, "finite numbers"),
        ({"new": 1.0}, "name -> part -> number"),
        ({"": {"pctr": 1.0}}, "name -> part -> number"),
        ({3: {"pctr": 1.0}}, "name -> part -> number"),
    ],
)
def test_segments_reject(segments, message):
    with pytest.raises(UserError, match=message):
        FusionWeights("sum", {"pctr": 1.0}, {"pctr": 0.0}, {"pctr": 1.0}, segments=segments)


def test_exponents_drop_the_differences_of_their_reference():
    reference = weights_of("product", SEGMENTS)
    assert FusionWeights.from_exponents(pctr=1, reference=reference).segments == {}
