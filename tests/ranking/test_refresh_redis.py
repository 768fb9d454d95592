"""A refresh whose seeds lie on Redis: what it publishes is what the store in memory gives; the server may be away."""

import pytest

from lookalike.redis_partition import open_partition
from lookalike.seeds_redis import RedisSeedStore, StoreUnavailable
from tests.ranking.test_refresh import DAY, TRAINED, Place, data, expected, run, same  # noqa: F401  (fixtures)

pytestmark = pytest.mark.slow


def test_what_is_published_is_what_the_store_in_memory_gives(tmp_path, run, monkeypatch, redis_server):  # noqa: F811
    found = []
    for number, store in enumerate((None, RedisSeedStore(redis_server.url(), copy_bytes=0))):
        place = Place(tmp_path / str(number), run, monkeypatch)
        place.feed(TRAINED)
        if store is not None:
            place.store = store
            open_partition(store, place.log)
        with place.refresher() as refresher:
            for tick in (TRAINED + DAY, TRAINED + 2 * DAY):
                place.feed(tick)
                refresher.once(tick)
        found.append(place.published)
    for memory, shared, tick in zip(*found, (TRAINED + DAY, TRAINED + 2 * DAY), strict=True):
        same(shared, memory)
        same(shared, expected(run, tick), centroids=False)


def test_while_the_server_is_away_the_last_version_stays(tmp_path, run, monkeypatch, redis_server):  # noqa: F811
    place = Place(tmp_path / "place", run, monkeypatch)
    place.feed(TRAINED)
    place.store = RedisSeedStore(redis_server.url(), copy_bytes=0)
    place.store._link._rest = 0.01
    with place.refresher() as refresher:
        refresher.once(TRAINED)
        place.feed(TRAINED + DAY)
        redis_server.kill()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                refresher.once(TRAINED + DAY)
        assert len(place.published) == 1 and refresher.metrics.as_dict()["failures_total"] == {"log": 2}
        redis_server.start()
        refresher.once(TRAINED + DAY)
    same(place.published[-1], expected(run, TRAINED + DAY), centroids=False)
