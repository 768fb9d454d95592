"""The served fusion: graph, numpy and a loaded version agree; segments and bounds are variables of fixed shape."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.errors import UserError
from ranking.fusion import FORMS, FusionWeights, fuse
from ranking.fusion_layer import MAX_SEGMENTS, FusionLayer, ServedFusion, fusion_arrays
from serving.server.bundle import Bundle

SEGMENTS = {"new": {"similarity": 0.5, "pctr": -0.3}, "loyal": {"price": -2.0}, "张": {"pcvr": 0.25}}
N = 40


def parts_of(seed=0, n=N):
    generator = np.random.default_rng(seed)
    parts = {
        "similarity": generator.uniform(-1, 1, n),
        "has_similarity": generator.random(n) < 0.8,
        "pctr": generator.beta(1, 20, n),
        "pcvr": generator.beta(1, 10, n),
        "price": np.where(generator.random(n) < 0.8, generator.lognormal(3, 1, n), np.nan),
    }
    return {name: values.astype(np.float32) for name, values in parts.items()}


def weights_of(form="product", segments=None, **weights):
    given = weights or {"similarity": 0.2, "pctr": 1, "pcvr": 0.6, "price": -0.5}
    fitted = FusionWeights.fit(parts_of(9, 500), form, given, "p", offsets=np.arange(0, 501, 25))
    return dataclasses.replace(fitted, segments=segments or {})


def saved(folder, weights, *, segmented):
    """A version that answers `rank`: parts (and a segment) in, the score out."""

    class Version(tf.Module):
        def __init__(self):
            super().__init__()
            self.fusion = ServedFusion(weights, segmented=segmented)

        @tf.function
        def rank(self, **inputs):
            segment = inputs.pop("segment", None)
            return {"score": self.fusion.score(inputs, segment=segment)}

    version = Version()
    specs = {name: tf.TensorSpec([None], tf.float32, name=name) for name in parts_of()}
    if segmented:
        specs["segment"] = tf.TensorSpec([1], tf.string, name="segment")
    tf.saved_model.save(version, str(folder), signatures={"rank": version.rank.get_concrete_function(**specs)})
    return version


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("segmented", [False, True])
def test_graph_numpy_and_a_loaded_version_agree(tmp_path, form, segmented):
    weights = weights_of(form, SEGMENTS if segmented else None)
    version = saved(tmp_path / "1", weights, segmented=segmented)
    bundle = Bundle(tmp_path / "1")
    scores = []
    for number, segment in enumerate(["", "new", "loyal", "张", "no such"] if segmented else [None, None]):
        parts = parts_of(number)
        known = {"segment": np.array([segment.encode()], object)} if segmented else {}
        expected = fuse(
            {name: values.astype(np.float64) for name, values in parts.items()},
            weights,
            segment=segment,
            offsets=[0, N],
        )
        graph = version.rank(**{name: tf.constant(values) for name, values in {**parts, **known}.items()})["score"]
        served = bundle.predict({**parts, **known}, signature="rank")["score"]
        in_float32 = fuse(parts, weights, segment=segment, offsets=[0, N])
        scale = np.maximum(1, np.abs(expected))
        for found in (graph.numpy(), served, in_float32):
            assert found.dtype == np.float32
            assert (np.abs(found - expected) < 1e-6 * scale).all()
        np.testing.assert_array_equal(np.argsort(-served, kind="stable"), np.argsort(-expected, kind="stable"))
        scores.append(fuse(parts_of(0), weights, segment=segment, offsets=[0, N]))
    if segmented:
        base, new, loyal, chinese, unknown = scores
        np.testing.assert_array_equal(base, unknown)
        assert all(np.abs(other - base).max() > 0.05 for other in (new, loyal, chinese))


def test_segments_by_hand():
    # mu 0, sd 1, the sum form: score = w . x. Weights .5 and 1, in `new` .5 + .7 = 1.2, clipped to 1, and 1 - .4 = .6
    weights = FusionWeights(
        "sum",
        {"pctr": 0.5, "pcvr": 1.0},
        {"pctr": 0, "pcvr": 0},
        {"pctr": 1, "pcvr": 1},
        segments={"new": {"pctr": 0.7, "pcvr": -0.4}},
    )
    fusion = ServedFusion(weights, segmented=True)
    parts = {"pctr": [0.5, 0.25], "pcvr": [0.5, 1.0], "has_similarity": [1.0, 1.0]}
    parts = {name: tf.constant(values) for name, values in parts.items()}
    assert fusion.score(parts, segment=tf.constant(["new"])).numpy() == pytest.approx([0.8, 0.85])
    assert fusion.score(parts, segment=tf.constant(["old"])).numpy() == pytest.approx([0.75, 1.125])
    # a row each, as `serving_default` has it
    assert fusion.score(parts, segment=tf.constant(["new", "old"])).numpy() == pytest.approx([0.8, 1.125])
    # a request's own weights stand in for the segment's too
    own = {"pctr": tf.constant(1.0), "pcvr": tf.constant(0.0)}
    assert fusion.score(parts, own, segment=tf.constant(["new"])).numpy() == pytest.approx([0.5, 0.25])
    assert fusion.bounds("pcvr").numpy().tolist() == [-1, 1]


names = st.text(min_size=1, max_size=8).filter(lambda name: name.encode("utf-8", "ignore").decode() == name)


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(names, st.floats(-2, 2, width=16).filter(bool), min_size=1, max_size=MAX_SEGMENTS))
def test_every_segment_is_found_and_no_other(segments):
    weights = weights_of(segments={name: {"pcvr": value} for name, value in segments.items()})
    fusion = ServedFusion(weights, segmented=True)
    parts = {name: tf.constant(values[:1]) for name, values in parts_of().items()}
    for name in [*segments, "never one of them"]:
        expected = fuse({n: v.numpy().astype(np.float64) for n, v in parts.items()}, weights, segment=name)
        found = fusion.score(parts, segment=tf.constant([name])).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_shapes_do_not_depend_on_the_weights():
    some = fusion_arrays(weights_of(), segmented=True)
    other = fusion_arrays(weights_of(segments=SEGMENTS, similarity=-1, pcvr=0.1), segmented=True)
    assert {n: (v.shape, v.dtype) for n, v in some.items()} == {n: (v.shape, v.dtype) for n, v in other.items()}
    assert some["segment_keys"].shape == (64,) and some["segment_differences"].shape == (64, 4)
    assert set(fusion_arrays(weights_of(), segmented=False)) == {"weights", "bounds"}


def test_refused_segments():
    with pytest.raises(UserError, match=r"declare \[replay\] `segment` in dataset.toml.*Received: segments \['loyal'"):
        fusion_arrays(weights_of(segments=SEGMENTS), segmented=False)
    many = {f"s{number}": {"pctr": -0.5} for number in range(65)}
    with pytest.raises(UserError, match="`segments` should be at most 64. Received: 65."):
        fusion_arrays(weights_of(segments=many), segmented=True)


def test_the_layer_is_read_back(tmp_path):
    layer = FusionLayer(weights_of("rank", SEGMENTS))
    again = FusionLayer.from_config(layer.get_config())
    assert again.fusion == layer.fusion
    inputs = {name: keras.Input((), name=name) for name in parts_of()}
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(parts_of()), model(parts_of()))
