"""Other tables for a live version: what changes, what stays bit for bit, what is refused; users that no table holds."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest

from ranking.apply import apply_weights
from ranking.errors import UserError
from ranking.export import export_run
from ranking.exported.tables import table_arrays
from ranking.features import OUT_OF_VOCABULARY
from ranking.fusion_layer import fusion_arrays
from ranking.republish import republish_tables
from ranking.rewrite import variable_key
from ranking.scoring import score_rows
from ranking.strangers import with_features, with_vector
from serving.errors import InvalidArgument
from serving.pin import Pinned
from serving.publish import version_content, versions
from serving.rollback import rollback
from serving.server.bundle import Bundle

pytestmark = pytest.mark.slow

SCORES = ("similarity", "pctr", "pcvr", "pctcvr", "score")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def young(tiny):
    """The run as it was with fewer users and items: every third one is not there yet."""
    state = tiny.run.state
    users, items = (np.arange(len(ids)) % 3 != 1 for ids in (state.user_ids, state.item_ids))
    return dataclasses.replace(tiny.run, state=state.only(users, items))


@pytest.fixture(scope="module")
def grown(tiny):
    """The state of a later day, with an item that no vocabulary has."""
    state = tiny.builder.at(tiny.run.state.tick + tiny.timeline.schema.tick_ms)
    last = len(state.item_ids) - 1
    encoded = state.items["item_id"].copy()
    encoded[last] = OUT_OF_VOCABULARY
    ids = state.item_ids[:last].append(pd.Index([987654321]))
    return dataclasses.replace(state, item_ids=ids, items={**state.items, "item_id": encoded})


@pytest.fixture(scope="module")
def other_weights(tiny):
    return dataclasses.replace(
        tiny.run.weights, weights={"similarity": -0.3, "pctr": 1.0, "pcvr": 0.2, "price": 0.5}, segments={}
    )


@pytest.fixture(scope="module")
def exported(young, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    export_run(young, folder)
    return folder


def live(models):
    base = models / "seedrank"
    return base / str(versions(base)[-1])


def variables(folder):
    import tensorflow as tf

    stored = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    found = {name.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"): stored.get_tensor(name)
             for name in stored.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")}  # fmt: skip
    groups = {"tables": {}, "fusion": {}, "parameters": {}}
    for name, values in found.items():
        group = name.split("/")[0]
        groups[group if group in groups else "parameters"][name] = values
    return groups


def same(one, other):
    def equal(name):
        a, b = one[name], other[name]
        return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")

    return one.keys() == other.keys() and all(map(equal, one))


def ask(folder, signature="rank", **inputs):
    bundle = Bundle(folder, warm_up=False)
    try:
        return bundle.predict(inputs, signature=signature)
    finally:
        bundle.close()


def request(run, items, **user):
    priced = np.full(len(items), np.nan, np.float32)
    return {"item_id": np.asarray(items, np.int64), "tab": np.array([b"home"], object), "price": priced, **user}


def expected(run, state, user, items, weights=None):
    run = run if weights is None else dataclasses.replace(run, weights=weights)
    users = pd.Index([user] * len(items), dtype=state.user_ids.dtype)
    items = pd.Index(items, dtype=state.item_ids.dtype)
    return score_rows(run, state, users, items, pd.DataFrame({"tab": ["home"] * len(items)}))


def test_apply_and_republish_in_both_orders(young, grown, other_weights, exported, tmp_path):
    """Each changes its own part and no bit of another; the end is what an export of that content is."""
    steps = {
        "apply": lambda models: apply_weights(models, other_weights),
        "republish": lambda models: republish_tables(models, young, grown),
    }
    first = variables(live(exported))
    new_tables = {variable_key(f"tables/{name}"): values for name, values in table_arrays(young, grown).items()}
    new_fusion = {f"fusion/arrays/{name}": v for name, v in fusion_arrays(other_weights, segmented=False).items()}
    ends = []
    for order in (("apply", "republish"), ("republish", "apply", "republish")):
        models = tmp_path / order[0]
        shutil.copytree(exported, models)
        tables, fusion = first["tables"], first["fusion"]
        for step in order:
            folder = steps[step](models)
            found = variables(folder)
            assert same(found["parameters"], first["parameters"])
            tables, fusion = (new_tables, fusion) if step == "republish" else (tables, new_fusion)
            assert same(found["tables"], tables) and same(found["fusion"], fusion)
            assert (folder / "saved_model.pb").read_bytes() == (live(exported) / "saved_model.pb").read_bytes()
        ends.append(folder)
    assert not same(first["tables"], new_tables) and not same(first["fusion"], new_fusion)
    contents = [version_content(folder) for folder in ends]
    assert contents[0] == contents[1]
    whole = dataclasses.replace(young, state=grown, weights=other_weights)
    fresh = export_run(whole, tmp_path / "fresh")
    assert version_content(fresh) == contents[0]
    assert contents[0].facts["seed_watermark"] == grown.tick and contents[0].facts["items"] == len(grown.item_ids)
    # users and items that came later, one beyond the vocabularies, one that nobody knows
    items = [*grown.item_ids[:7], *grown.item_ids[-3:], 31]
    for user in (*grown.user_ids[:2], 12):
        asked = request(young, items, user_id=np.array([user]))
        answers = [ask(folder, **asked) for folder in (*ends, fresh)]
        for name, values in answers[-1].items():
            for answer in answers[:2]:
                np.testing.assert_allclose(answer[name], values, rtol=1e-6, atol=1e-6, err_msg=name)
        wanted = expected(young, grown, user, items, other_weights)
        for name in SCORES:
            np.testing.assert_allclose(answers[0][name], wanted[name], **CLOSE, err_msg=name)
        assert answers[0]["known_item"].tolist() == [True] * 10 + [False]
        assert answers[0]["known_user"].all() == (user != 12)


def test_a_pinned_model_and_other_runs_are_refused(young, grown, text, exported, other_weights, tmp_path):
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match="`parameters_hash` of the run should be that of"):
        republish_tables(tmp_path, text.run, text.run.state)
    moved = dataclasses.replace(young, info={**young.info, "embedding_space": "moved"})
    with pytest.raises(UserError, match="`embedding_space_id` of the run should be that of"):
        republish_tables(tmp_path, moved, grown)
    with pytest.raises(UserError, match="absent should hold a published version"):
        republish_tables(tmp_path, young, grown, name="absent")
    apply_weights(tmp_path, other_weights)
    rollback(tmp_path / "seedrank")
    before = versions(tmp_path / "seedrank")
    with pytest.raises(Pinned):
        republish_tables(tmp_path, young, grown)
    assert versions(tmp_path / "seedrank") == before


def test_a_user_in_his_own_words_is_himself_but_for_id_and_statistics(tiny, young, exported):
    run, state = young, young.state
    attributes, timeline = tiny.run.attributes(), tiny.timeline
    items = state.item_ids[:20].tolist()
    bundle = Bundle(live(exported), warm_up=False)
    for user in (*state.user_ids[:6], *state.user_ids[-6:]):
        raw = attributes[attributes["user_id"] == user].iloc[0]
        row = timeline.user_ids.get_indexer([user])
        seen = timeline.behaviors["clicked"].latest(row, np.array([state.tick]), None, 50)[0]
        seen = timeline.item_ids[seen[seen >= 0]][::-1]  # the latest last
        inputs = {"clicked": seen.to_numpy(np.int64)}
        features = {feature.name: raw[feature.name] for feature in run.schema.side("user")}
        for feature in run.schema.side("user"):
            value = features[feature.name]
            if feature.kind == "numeric":
                inputs[feature.name] = np.float32([value])
            else:
                inputs[feature.name] = np.array(["" if pd.isna(value) else str(value)], object)
        found = bundle.predict(request(run, items, **inputs), signature="rank_features")
        # himself, with nobody's id and statistics in his row
        place = state.rows("user", pd.Index([user]))[0]
        users = {**state.users, "user_id": state.users["user_id"].copy()}
        users["user_id"][place] = OUT_OF_VOCABULARY
        statistics = {}
        for name, table in state.statistics.items():
            values = table.values.copy()
            if table.side == "user":
                values[place] = values[-1]
            statistics[name] = dataclasses.replace(table, values=values)
        wanted = expected(run, dataclasses.replace(state, users=users, statistics=statistics), user, items)
        stranger = expected(run, with_features(run, state, features, {"clicked": list(seen)}), -1, items)
        for name in SCORES:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-4, err_msg=name)
            np.testing.assert_allclose(found[name], stranger[name], rtol=1e-4, atol=1e-4, err_msg=name)
        assert not found["known_user"].any() and found["known_item"].all()
    many = bundle.predict(request(run, items * 60, **inputs), signature="rank_features")
    np.testing.assert_allclose(many["score"], np.tile(found["score"], 60), rtol=1e-5, atol=1e-5)
    bundle.close()


def test_a_vector_of_this_space(young, exported):
    state, items = young.state, young.state.item_ids[:20].tolist()
    vector, space = state.user_vectors[[3]], version_content(live(exported)).facts["embedding_space_id"]
    asked = request(young, items, user_vector=vector, embedding_space_id=np.array([space]))
    found = ask(live(exported), "rank_embedding", **asked)
    wanted = expected(young, with_vector(state, vector[0]), -1, items)
    for name in SCORES:
        np.testing.assert_allclose(found[name], wanted[name], **CLOSE, err_msg=name)
    many = {**asked, **request(young, items * 60)}  # more than are computed in one piece
    for name, values in ask(live(exported), "rank_embedding", **many).items():
        np.testing.assert_allclose(values, np.tile(found[name], 60), **CLOSE, err_msg=name)
    himself = ask(live(exported), **request(young, items, user_id=state.user_ids[[3]].to_numpy(np.int64)))
    np.testing.assert_allclose(found["similarity"], himself["similarity"], **CLOSE)
    assert not found["known_user"].any()
    with pytest.raises(InvalidArgument, match=rf"of the space of this model,\] \[{space}\] \[; received\] \[42\]"):
        ask(live(exported), "rank_embedding", **{**asked, "embedding_space_id": np.array([42])})
    with pytest.raises(InvalidArgument, match="user_vector: should be finite"):
        ask(live(exported), "rank_embedding", **{**asked, "user_vector": np.full_like(vector, np.inf)})


def test_the_best_in_order_of_equal_ones_the_first(young, exported):
    items = young.state.item_ids[:12].tolist() * 2  # each twice: equal scores
    asked = request(young, items, user_id=young.state.user_ids[[0]].to_numpy(np.int64))
    whole = ask(live(exported), **asked)
    order = np.argsort(-whole["score"], kind="stable")
    assert (np.diff(whole["score"][order].reshape(12, 2)) == 0).all()
    for top in (1, 5, 24, 100):
        found = ask(live(exported), "rank_top", **asked, top=np.array([top], np.int32))
        assert found["item_id"].tolist() == np.array(items)[order][:top].tolist()
        for name, values in whole.items():
            np.testing.assert_array_equal(found[name], values[order][:top], err_msg=name)


def test_too_many_users_for_a_model(young, grown, tmp_path):
    with pytest.raises(UserError, match=r"at most 1,000 bytes .*--without-users.*rank_embedding"):
        export_run(young, tmp_path, user_table_limit=1000)
    assert not (tmp_path / "seedrank").exists()
    folder = export_run(young, tmp_path, user_table_limit=1000, users=False, centroid_dtype="bfloat16")
    facts = version_content(folder).facts
    assert facts["users"] == 0 and not facts["user_table"] and facts["centroid_dtype"] == "bfloat16"
    bundle = Bundle(folder, warm_up=False)
    assert {name for name in bundle.signatures if not name.startswith("__")} == {"rank_features", "rank_embedding"}
    bundle.close()
    again = republish_tables(tmp_path, young, grown)  # stays without users, and half as wide
    vector = grown.user_vectors[[3]]
    asked = request(
        young,
        grown.item_ids[:20],
        user_vector=vector,
        embedding_space_id=np.array([facts["embedding_space_id"]]),
    )
    found = ask(again, "rank_embedding", **asked)
    wanted = expected(young, with_vector(grown, vector[0]), -1, grown.item_ids[:20])
    np.testing.assert_allclose(found["similarity"], wanted["similarity"], atol=0.01)  # 8 bits of a cosine
    assert found["has_similarity"].any() and version_content(again).facts["users"] == 0
