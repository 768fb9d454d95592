"""Refresh as its users run it: commands, processes, a server that answers; and accounts that were bought to move it."""

import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

import ranking.refresh
from lookalike.clicklog import ClickLog
from lookalike.clustering import cluster
from lookalike.seeds import SeedStore
from ranking.data.tables import Dataset
from ranking.refresh import Refresher
from ranking.scoring import score_rows
from ranking.timeline import Timeline
from ranking.up_metrics import read, total
from ranking.users_export import REDIS_KEY, unpacked
from serving.errors import RequestError
from serving.publish import version_content, versions
from serving.rest import RankClient
from serving.server import Server

pytestmark = pytest.mark.slow

MIN_SEEDS = 8
SCORES = ("similarity", "pctr", "pcvr", "pctcvr", "score")
NEW_ITEM, NEW_USER = 987_654_321, 2**53 + 11


class Place:
    """Copies of a dataset, its models and its click log; the run is shared."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder, self.run = folder, run
        self.data, self.models, self.log = folder / "data", folder / "models", folder / "clicks"

    def words(self, *more):
        found = ["refresh", "--run", self.run, "--models", self.models, "--log", self.log, "--data", self.data]
        return [*found, "--min-seeds", MIN_SEEDS, *more]

    def click(self, users, items, time_ms=None):
        now = int(time.time() * 1000) if time_ms is None else time_ms
        users, items = np.broadcast_arrays(np.array(users, np.int64), np.array(items, np.int64))
        with ClickLog(self.log, user_ids="int64", item_ids="int64") as log:
            log.append(users.ravel(), items.ravel(), np.full(users.size, now))

    def add(self, name, **row):
        """A delta: the table with one row more, put in its place by renaming."""
        path = self.data / f"{name}.parquet"
        table = pd.read_parquet(path)
        first = table.iloc[0].to_dict() | row
        more = pd.DataFrame([first]).astype(table.dtypes.to_dict())
        pd.concat([table, more]).to_parquet(path.with_suffix(".part"), index=False)
        os.replace(path.with_suffix(".part"), path)

    def live(self):
        base = self.models / "seedrank"
        return base / str(versions(base)[-1])


@pytest.fixture(scope="module")
def template(tiny, tmp_path_factory, seedrank):
    """A version, and a log with what the tables know, taken in once."""
    place = Place(tmp_path_factory.mktemp("refresh"), tiny.path)
    shutil.copytree(tiny.data, place.data)
    assert seedrank("export", "--run", tiny.path, "--models", place.models) == 0
    assert seedrank(*place.words("--backfill", "--once", "--json")) == 0
    return place


@pytest.fixture
def place(template, tmp_path):
    shutil.copytree(template.folder, tmp_path / "w")
    return Place(tmp_path / "w", template.run)


@pytest.fixture
def client(place, monkeypatch):
    monkeypatch.setattr("serving.server.runtime.LOAD_NICENESS", 0)  # beside many tests a load would never come about
    with Server(place.models, rest_port=0, grpc_port=0, poll_seconds=0.1) as server:
        found = RankClient(f"http://127.0.0.1:{server.rest_port}", timeout=60)
        found.port = server.rest_port
        yield found
        found.close()


@pytest.fixture
def refresher(tiny, place):
    """One that stays, so that its processes start once."""
    with ClickLog(place.log, user_ids="int64", item_ids="int64", write=False) as log:
        how = {"data": place.data, "min_seeds": MIN_SEEDS}
        with Refresher(tiny.run, place.models, SeedStore(), log, **how) as found:
            yield found


def ask(client, user, items, signature="rank", **more):
    how = {"context": {"tab": "home"}, "price": [float("nan")] * len(items), **more}
    found = client.rank(user, items, **how) if signature == "rank" else client.rank_embedding(*user, items, **how)
    return {name: np.array(values) for name, values in found.items()}


def until(what, seconds=300.0):
    """Waits for a truth, which it returns; no test is about how long it took."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come about")


class Following:
    """The lines of a `refresh --every --json` in another process, and where its metrics are."""

    def __init__(self, process):
        self.process, self.done, self.told = process, [], []
        for stream, take in ((process.stdout, self._take), (process.stderr, self.told.append)):
            threading.Thread(
                target=lambda stream=stream, take=take: [take(line) for line in stream], daemon=True
            ).start()

    def _take(self, line):
        if line.startswith("{"):
            self.done.append(json.loads(line))

    def more(self, count=1):
        wanted = len(self.done) + count
        until(lambda: len(self.done) >= wanted or self.process.poll() is not None)
        assert self.process.poll() is None, self.told
        return self.done[-1]

    def metrics(self):
        line = until(lambda: next((line for line in self.told if "/metrics" in line), None))
        return read(line.split("metrics on ")[1].split(". Ctrl-C")[0], timeout=60)


# What a user does.


def test_clicks_items_and_users_come_in_with_a_refresh_and_are_answered(tiny, place, client, refresher):
    """Clicks in the log, rows in the tables, a refresh, an answer over REST: with what Python makes of the same."""
    state = tiny.run.state
    old = state.item_ids[:5].tolist()
    user = int(state.user_ids[0])
    before = ask(client, user, [*old, NEW_ITEM])
    assert not before["known_item"][-1] and not ask(client, NEW_USER, old)["known_user"].any()
    clickers = state.user_ids[5 : 5 + MIN_SEEDS + 4].tolist()
    place.add("items", item_id=NEW_ITEM, born=place_born(place))
    place.add("users", user_id=NEW_USER)
    latest = int(pd.read_parquet(place.data / "behaviors.parquet")["timestamp"].max())
    place.add("behaviors", user_id=NEW_USER, field="clicked", value=old[0], timestamp=latest)
    place.click(clickers[: MIN_SEEDS - 1], NEW_ITEM, now() - 1000)
    done = refresher.once()
    assert done.new_users == 1 and NEW_ITEM in refresher._table.item_ids
    found = until(lambda: current(ask(client, NEW_USER, [*old, NEW_ITEM]), done.tick))
    assert found["known_item"].all() and found["known_user"].all()
    assert not found["has_similarity"][-1]  # one seed is missing
    place.click(clickers[MIN_SEEDS - 1 :], NEW_ITEM, now() - 1000)
    done = refresher.once()
    assert done.cold == 1 and done.version == int(place.live().name)
    found = until(lambda: current(ask(client, NEW_USER, [*old, NEW_ITEM]), done.tick))
    again = ask(client, user, [*old, NEW_ITEM])
    assert found["has_similarity"][-1] and set(found["seed_watermark"]) == {done.tick}
    assert len(set(found["table_version"]) - set(before["table_version"])) == 1
    assert set(found["embedding_space_id"]) == set(before["embedding_space_id"])
    # The new item is clustered for the first time: exactly as an export would do it.
    exact = tiny.run.builder(Timeline(Dataset(place.data))).at(done.tick)
    exact = with_seeds(tiny.run, exact, clickers)
    for answer, who in ((found, NEW_USER), (again, user)):
        wanted = expected(tiny.run, exact, who, NEW_ITEM)
        np.testing.assert_allclose([answer[name][-1] for name in SCORES], wanted, rtol=1e-5, atol=1e-5)
    # How old it is, is told by the server and by the refresher.
    page = read(f"http://127.0.0.1:{client.port}/monitoring/prometheus/metrics", timeout=60)
    assert total(page, "seedrank_seed_watermark", version=str(done.version)) == done.tick
    told = refresher.metrics.as_dict()
    assert (
        told["watermark_seconds"] == done.tick / 1000
        and 0 <= told["table_age_seconds"] <= 1e-3 * now() - done.tick / 1000
    )
    assert told["new_similar_items_total"] == 1


def test_it_refreshes_on_and_on_until_it_is_told_to_stop(tiny, place, started):
    """`--every` in a process of its own: clicks are taken in, what is due meanwhile is skipped, SIGTERM ends it."""
    follower = Following(started(*place.words("--every", "1s", "--port", 0, "--json")))
    follower.more(1)
    place.click(tiny.run.state.user_ids[:30].to_numpy(), int(tiny.run.state.item_ids[3]))
    done = until(lambda: next((row for row in follower.done if row["events"] == 30), None))
    assert done["warm"] + done["cold"] >= 1 and done["version"] in map(str, versions(place.models / "seedrank"))
    follower.more(1)
    told = follower.metrics()
    assert total(told, "seedrank_refresh_rounds_total") >= 3
    assert total(told, "seedrank_seeds_offset") == total(told, "seedrank_seeds_accepted_total")
    assert total(told, "seedrank_refresh_skipped_ticks_total") >= 1  # a refresh takes longer than a second
    follower.process.send_signal(signal.SIGTERM)
    assert follower.process.wait(300) == 0
    until(lambda: "Stopped" in "".join(follower.told))
    assert not list(place.models.rglob(".tmp-*"))


def now():
    return int(time.time() * 1000)


def place_born(place):
    return int(pd.read_parquet(place.data / "items.parquet")["born"].max())


def with_seeds(run, state, users):
    """A state with these seeds for the last item: its first centroids are those of `cluster`."""
    row = state.item_ids.get_loc(NEW_ITEM)
    transformed = np.asarray(run.lookalike.transform(state.user_vectors))
    seeds = np.sort(state.user_ids.get_indexer(users))
    found = cluster(transformed[seeds], np.array([0, len(seeds)]), state.centroids.shape[1])
    arrays = {name: getattr(state, name).copy() for name in ("centroids", "centroid_counts", "seed_counts")}
    arrays["centroids"][row], arrays["centroid_counts"][row] = found.centroids[0], found.counts[0]
    arrays["seed_counts"][row] = len(seeds)
    return dataclasses.replace(state, **arrays)


def expected(run, state, user, item):
    one = pd.Index([user], dtype=state.user_ids.dtype), pd.Index([item], dtype=state.item_ids.dtype)
    found = score_rows(run, state, *one, pd.DataFrame({"tab": ["home"]}))
    return [float(found[name][0]) for name in SCORES]


def test_once_tells_what_it_did(tiny, place, cli):
    item = int(tiny.run.state.item_ids[3])
    users = [int(user) for user in tiny.run.state.user_ids[:30]]
    place.click(users, item)
    said = cli(*place.words("--once", "--json"))
    done = json.loads(said.out)
    assert said.code == 0 and done["dirty"] == 1 and done["warm"] + done["cold"] >= 1
    assert done["events"] == 30  # taken in when the store was opened
    assert done["version"] == place.live().name and done["skipped"] == "" and done["failures"] == {}
    assert version_content(place.live()).facts["seed_watermark"] == done["tick"]
    said = cli(*place.words("--once"))
    assert said.code == 0 and f"version {place.live().name}" in said.out and "seconds: publish" in said.out


def test_a_loss_is_refused_until_it_is_accepted(tiny, place, cli, caplog):
    """No snapshot, and a log that begins later than the store would: the dataset's seeds come back, no others."""
    shutil.rmtree(place.log / "seeds")
    with ClickLog(place.log, segment_bytes=1) as log:
        for user in tiny.run.state.user_ids[:3]:
            log.append([int(user)], [int(tiny.run.state.item_ids[3])], [now() - 1000])
        log.retain(log.end - 1)
        start, end = log.start, log.end
    assert 0 < start == end - 1
    cli(*place.words("--once")).mistake(f"begins at offset {start}", "ends at 0", "accept the loss (--accept-loss;")
    said = cli(*place.words("--backfill", "--once", "--accept-loss", "--json"))
    assert said.code == 0 and f"events 0 to {start} are gone, and passed over" in caplog.text
    assert json.loads(said.out)["version"] == place.live().name and list(place.log.glob("seeds/*.snapshot"))


def test_mistakes_are_one_line(tiny, text, place, cli, tmp_path):
    live = place.live()
    said = cli("refresh", "--run", text.path, "--models", place.models, "--log", tmp_path / "texts", "--once")
    said.mistake("texts", "no click log")
    other = ["refresh", "--run", text.path, "--models", place.models, "--data", text.data]
    said = cli(*other, "--log", tmp_path / "texts", "--backfill", "--once")
    said.mistake("embedding space", "never scored with users of another", "seedrank export")
    cli(*place.words("--every", "soon")).mistake("--every", "soon")
    cli(*place.words("--once", "--cohort", "hour")).mistake("should have the column 'hour'", "users.parquet")
    cli(*place.words("--once", "--max-cohort-share", "2")).mistake("max_cohort_share", "(0, 1]")
    (place.data / "items.parquet").write_bytes(b"half")
    cli(*place.words("--once")).mistake("items.parquet", "cannot be read")
    assert place.live() == live


def test_a_worker_that_dies_leaves_what_is_served_and_the_next_refresh_catches_up(tiny, place, client, refresher):
    """Killed at every call: the item's centroids stay, its waiting is told, the tables' other parts go on."""
    item, user = int(tiny.run.state.item_ids[3]), int(tiny.run.state.user_ids[0])
    first = refresher.once()
    before = until(lambda: current(ask(client, user, [item]), first.tick))
    place.click(tiny.run.state.user_ids.to_numpy()[:400], item, now() - 1000)
    for rounds in (1, 2):
        os.kill(refresher.worker.pid, signal.SIGKILL)
        done = refresher.once()
        assert done.failures == {"died": 1} and done.waiting == 1 and done.version is not None
        told = refresher.metrics.as_dict()
        assert told["oldest_waiting_rounds"] == rounds and told["failures_total"] == {"worker died": rounds}
    found = until(lambda: current(ask(client, user, [item]), done.tick))
    assert found["similarity"][0] == before["similarity"][0]
    done = refresher.once()
    assert (
        done.warm + done.cold == 1 and done.waiting == 0 and refresher.metrics.as_dict()["oldest_waiting_rounds"] == 0
    )
    found = until(lambda: current(ask(client, user, [item]), done.tick))
    assert found["similarity"][0] != before["similarity"][0]


def test_what_hangs_is_what_grows_old(place, refresher, monkeypatch):
    """A process that neither answers nor ends is killed at its deadline; without publishing the age goes on rising."""
    refresher.once()
    os.kill(refresher.worker.pid, signal.SIGSTOP)
    refresher.worker.deadline = 1.0
    monkeypatch.setattr("ranking.refresh_worker.START_SECONDS", 1.0)
    place.click(refresher._tables.at(now()).user_ids.to_numpy()[:50], int(refresher._table.item_ids[3]), now() - 1000)
    done = refresher.once()
    assert done.failures == {"hung": 1} and done.waiting == 1 and done.version is not None
    ages = [refresher.metrics.as_dict()["table_age_seconds"] for _ in range(2) if time.sleep(0.05) is None]
    assert 0 < ages[0] < ages[1]


def current(found, tick):
    return found if found["seed_watermark"][0] >= tick else None


def test_a_refresh_that_is_killed_leaves_the_old_version_and_the_next_goes_on(tiny, place, kill_when, cli):
    """SIGKILL while a new version is being built: nothing half-written is seen, no click is lost or counted twice."""
    live = place.live()
    place.click(tiny.run.state.user_ids.to_numpy()[:50], int(tiny.run.state.item_ids[3]))
    words = [str(word) for word in place.words("--once", "--json")]
    kill_when(["-c", f"from ranking.cli import main; import sys; sys.argv = {['seedrank', *words]!r}; main()"],
              place.models / "seedrank", ".tmp-*/variables")  # fmt: skip
    assert place.live() == live and list((place.models / "seedrank").glob(".tmp-*"))
    done = json.loads(cli(*words).out)
    assert done["events"] == 50 and done["dirty"] == 1 and not list((place.models / "seedrank").glob(".tmp-*"))


# Vectors for a key-value store.


def test_vectors_of_a_store_score_as_the_users_themselves(tiny, place, client, cli, redis_server, tmp_path):
    """From Parquet and from Redis: his similarity, with nobody's features beside it; another space is refused."""
    place.add("users", user_id=NEW_USER)  # of the run as it was trained nobody knows him
    out = tmp_path / "users.parquet"
    words = ("users", "export", "--run", place.run, "--data", place.data, "--out", out, "--redis", redis_server.url())
    said = cli(*words, "--json")
    told = json.loads(said.out)
    table = pyarrow.parquet.read_table(out)
    assert said.code == 0 and told["users"] == table.num_rows == len(tiny.run.state.user_ids) + 1
    assert table.schema.field("user_vector").type == pyarrow.list_(pyarrow.float32())
    space = version_content(place.live()).facts["embedding_space_id"]
    assert told["embedding_space_id"] == str(space) and set(table["embedding_space_id"].to_pylist()) == {space}
    cli(*words).mistake("users.parquet", "--overwrite")
    assert cli(*place.words("--once")).code == 0  # what is served knows him, too
    items = tiny.run.state.item_ids.tolist()
    vectors = dict(zip(table["user_id"].to_pylist(), table["user_vector"].to_pylist(), strict=True))
    for user in (int(tiny.run.state.user_ids[0]), *map(int, tiny.user_ids), NEW_USER):
        until(lambda user=user: ask(client, user, items)["known_user"].all())
        himself = ask(client, user, items)
        stored = unpacked(redis_server.admin().get(f"{REDIS_KEY}{user}"))
        assert stored["user_vector"].tolist() == [vectors[user]]
        found = ask(client, (stored["user_vector"][0], int(stored["embedding_space_id"][0])), items, "rank_embedding")
        np.testing.assert_allclose(found["similarity"], himself["similarity"], rtol=1e-5, atol=1e-6)
        assert found["has_similarity"].any() and not found["known_user"].any()
    with pytest.raises(RequestError, match="embedding_space_id: the vector should be of the space of this model"):
        ask(client, (vectors[NEW_USER], space + 1), items, "rank_embedding")


def test_users_export_tells_where_it_cannot_write(place, cli):
    words = ("users", "export", "--run", place.run)
    cli(*words).mistake("Nowhere to write", "--out", "--redis")
    said = cli(*words, "--redis", "redis://app:hidden@127.0.0.1:1/0")
    said.mistake("127.0.0.1:1/0")
    assert "hidden" not in said.err


# Accounts that were bought to move an item.


def poisoned(tiny, place, *, share):
    """What the served table of an item is before and after bought accounts clicked it, and the accounts' own mean.

    Through all there is: their rows in the tables, their clicks in the log, the store, a refresh, a published version.
    """
    users = pd.read_parquet(place.data / "users.parquet")
    users["day"] = np.arange(len(users)) % 30  # of registration: thirty honest cohorts
    bought = users.iloc[[0] * 400].assign(user_id=10**12 + np.arange(400), day=99)
    pd.concat([users, bought]).to_parquet(place.data / "users.parquet", index=False)
    behaviors = pd.read_parquet(place.data / "behaviors.parquet")
    item = int(behaviors["value"].value_counts().index[0])
    liked = behaviors["value"].value_counts().index[-3:]  # what hardly anybody likes, over and over
    first = int(behaviors["timestamp"].min())
    more = [
        {"user_id": user, "field": "clicked", "value": value, "timestamp": first + place_in}
        for user in bought["user_id"]
        for place_in, value in enumerate(liked)
    ]
    more = pd.DataFrame(more).astype(behaviors.dtypes.to_dict())
    pd.concat([behaviors, more]).to_parquet(place.data / "behaviors.parquet", index=False)
    with ClickLog(place.log, user_ids="int64", item_ids="int64", write=False) as log:
        how = {"data": place.data, "min_seeds": MIN_SEEDS, "cohort": "day", "max_cohort_share": share}
        with Refresher(tiny.run, place.models, SeedStore(), log, **how) as refresher:
            refresher.once()
            before = served_table(place, refresher, item)
            place.click(bought["user_id"], item, int(time.time() * 1000) - 1000)
            done = refresher.once()
            after = served_table(place, refresher, item)
            vectors = refresher._tables.at(done.tick)
            theirs = np.asarray(tiny.run.lookalike.transform(
                vectors.user_vectors[vectors.rows("user", pd.Index(bought["user_id"]))]
            )).mean(axis=0)  # fmt: skip
    return before, after, theirs


def served_table(place, refresher, item):
    """Centroids and their counts as the version on the disk has them, and as they were clustered."""
    import tensorflow as tf

    row = refresher._table.item_ids.get_loc(item)
    counts = refresher._table.counts[row]
    stored = tf.train.load_checkpoint(str(place.live() / "variables" / "variables"))
    rows = stored.get_tensor("tables/network/centroids/.ATTRIBUTES/VARIABLE_VALUE")[row]
    centroids = rows.reshape(len(counts) + 1, -1)
    assert np.array_equal(centroids[:-1], np.where(counts[:, None] > 0, refresher._table.centroids[row], 0))
    return SimpleNamespace(centroids=centroids[:-1], counts=counts, summary=centroids[-1])


def moved(before, after, theirs):
    """How far the mean of the table went of its way to the accounts' own, and how many centroids are theirs."""
    mean = [np.average(one.centroids, axis=0, weights=one.counts) for one in (before, after)]
    way = theirs - mean[0]
    share = float((mean[1] - mean[0]) @ way / (way @ way))
    near = np.linalg.norm(after.centroids - theirs, axis=1) < 0.05 * np.linalg.norm(way)
    return share, int((near & (after.counts > 0)).sum())


def test_bought_accounts_move_what_is_served_by_their_share_and_no_more(tiny, place):
    """Four hundred accounts of one day, all of one taste, click an item that has fewer seeds than that."""
    share, owned = moved(*poisoned(tiny, place, share=0.2))
    # A fifth of the weight is theirs, counts are rounded to whole seeds; of four centroids they may have one.
    assert 0 < share <= 0.2 + 0.02 and owned <= 1


def test_without_the_caps_they_move_it_further(tiny, place, monkeypatch):
    """What the bound above is worth: the same accounts, and no weights."""
    monkeypatch.setattr(ranking.refresh, "cohorts_of", lambda *_: None)
    share, _ = moved(*poisoned(tiny, place, share=0.2))
    assert share > 0.4
