"""Audience expansion from Python: what is in an audience, what is told of it, and what is never told."""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike.audience import Cut
from lookalike.scorer import Scorer, seed_centroids
from lookalike.similarity import LookalikeModel
from ranking.audience_profile import Segments, centroid_profile, list_profile, over_indexing
from ranking.data.schema import Feature
from ranking.errors import UserError
from ranking.expansion import expand_seeds
from ranking.population import ParquetPopulation
from ranking.seeds_file import fingerprint

DIM, USERS = 6, 3000
FEATURES = (
    Feature("city", "user", "categorical"),
    Feature("tags", "user", "multi", separator="|"),
    Feature("income", "user", "numeric"),
)


def attributes_of(group, generator):
    """Group 0 lives in A, mostly; the tag follows the group; the income does not."""
    city = np.where(generator.random(len(group)) < 0.8, np.array(["A", "B", "C"])[group], "D")
    tags = [f"g{g}|all" for g in group]
    income = generator.integers(0, 100, len(group)).astype(float)
    return pd.DataFrame({"city": city, "tags": tags, "income": income}).astype({"city": "str", "tags": "str"})


@pytest.fixture(scope="module")
def run():
    """3,000 users in three directions, a thousand each; user id = 10 * row. Row r is of group r % 3."""
    generator = np.random.default_rng(3)
    group = np.arange(USERS) % 3
    ends = np.eye(3, DIM) * 2
    vectors = (ends[group] + 0.4 * generator.normal(size=(USERS, DIM))).astype(np.float32)
    keras.utils.set_random_seed(0)
    lookalike = LookalikeModel(user_dim=DIM, hidden=8, dropout=0.0)
    lookalike.build()
    lookalike.projection.kernel.assign(np.eye(DIM, 8))  # nothing is learned here: directions stay what they are
    state = SimpleNamespace(
        user_ids=pd.Index(np.arange(USERS) * 10),
        user_vectors=np.vstack([vectors, np.zeros((1, DIM), np.float32)]),
        centroids=np.zeros((1, 4, 8), np.float32),
    )
    table = attributes_of(group, generator)
    table.insert(0, "user_id", state.user_ids)
    schema = SimpleNamespace(k=4, side=lambda side: FEATURES if side == "user" else ())
    return SimpleNamespace(path=None, state=state, lookalike=lookalike, schema=schema, attributes=lambda: table)


@pytest.fixture(scope="module")
def as_file(run, tmp_path_factory):
    """The same users as a Parquet file in small row groups."""
    path = tmp_path_factory.mktemp("users") / "vectors.parquet"
    values = pa.array(run.state.user_vectors[:-1].ravel())
    table = pa.Table.from_pandas(run.attributes(), preserve_index=False)
    table = table.append_column("vector", pa.FixedSizeListArray.from_arrays(values, DIM))
    pq.write_table(table, path, row_group_size=700)
    return path


SEEDS = [30 * n for n in range(200)]  # rows 0, 3, 6, ...: group 0
OTHERS = [30 * n + 10 for n in range(200)]  # rows 1, 4, 7, ...: group 1


def ids(expansion, name=None):
    frame = expansion.frame()
    return frame["user_id"].tolist() if name is None else frame.loc[frame["list"] == name, "user_id"].tolist()


class TestAudience:
    def test_finds_the_group_of_the_seeds(self, run):
        found = expand_seeds(run, {"a": SEEDS}, cut=Cut(size=500))
        rows = np.array(ids(found)) // 10
        assert len(rows) == 500 and (rows % 3 == 0).mean() > 0.95
        assert not set(ids(found)) & set(SEEDS)
        frame = found.frame()
        assert frame["rank"].tolist() == list(range(1, 501))
        assert (frame["similarity"].diff().dropna() <= 0).all()
        assert frame["centroid"].between(0, 3).all()

    def test_the_order_is_that_of_the_scorer(self, run):
        found = expand_seeds(run, {"a": SEEDS}, cut=Cut(percent=100), check=False)
        assert len(ids(found)) == USERS - len(SEEDS) == found.as_dict()["lists"][0]["size"]
        assert found.as_dict()["lists"][0]["percent_of_eligible"] == 100
        scorer = Scorer.of(run.lookalike)
        vectors = run.state.user_vectors[:-1]
        centroids, counts = seed_centroids(scorer, vectors[np.array(SEEDS) // 10], k=4, seed=0)
        expected = scorer.similarity(vectors, scorer.summarize(centroids[None], counts[None]))[:, 0]
        np.testing.assert_allclose(found.audiences[0].similarity, expected[np.array(ids(found)) // 10], atol=1e-6)

    def test_cuts_are_nested(self, run):
        whole = ids(expand_seeds(run, {"a": SEEDS}, cut=Cut(percent=2), check=False))
        # 2 % of 2,800 = 56, 1 % = 28
        head = ids(expand_seeds(run, {"a": SEEDS}, cut=Cut(percent=1), check=False))
        band = ids(expand_seeds(run, {"a": SEEDS}, cut=Cut(band=(1, 2)), check=False))
        assert (len(head), len(whole)) == (28, 56) and whole == head + band

    def test_reach_tells_the_size_of_a_threshold(self, run):
        reach = expand_seeds(run, {"a": SEEDS}, cut=Cut(size=1), check=False).as_dict()["lists"][0]["reach"]
        assert reach["size"][-1] == USERS - len(SEEDS) and min(reach["size"]) >= 20
        assert reach["similarity"] == sorted(reach["similarity"], reverse=True)
        place = len(reach["size"]) // 2
        found = expand_seeds(run, {"a": SEEDS}, cut=Cut(threshold=reach["similarity"][place]), check=False)
        assert len(ids(found)) == pytest.approx(reach["size"][place], abs=2)

    def test_several_lists_and_together(self, run):
        found = expand_seeds(run, {"a": SEEDS, "b": OTHERS}, cut=Cut(size=300), check=False)
        alone = expand_seeds(run, {"a": SEEDS}, cut=Cut(size=300), check=False)
        assert ids(found, "a") == ids(alone) and len(ids(found, "b")) == 300
        (overlap,) = found.as_dict()["overlaps"]
        both = len(set(ids(found, "a")) & set(ids(found, "b")))
        assert overlap["both"] == (both if both >= 20 else None)
        one = expand_seeds(
            run, {"a": SEEDS, "b": OTHERS[:100] + SEEDS[:5]}, cut=Cut(size=9), together=True, check=False
        )
        (report,) = one.as_dict()["lists"]
        assert report["name"] == "a+b" and report["match"]["matched"] == 300 and report["match"]["duplicates"] == 5

    def test_identical_audiences_overlap_wholly(self, run):
        (overlap,) = expand_seeds(run, {"a": SEEDS, "b": SEEDS}, cut=Cut(size=50), check=False).as_dict()["overlaps"]
        assert overlap == {"a": "a", "b": "b", "both": 50, "of_a": 1.0, "of_b": 1.0, "jaccard": 1.0}

    def test_negatives(self, run):
        seeds = {"a": SEEDS + OTHERS}
        negatives = [30 * n + 10 for n in range(200, 400)]  # others of group 1
        plain = expand_seeds(run, seeds, cut=Cut(size=600), check=False)
        away = expand_seeds(run, seeds, negatives=negatives, cut=Cut(size=600), check=False)
        of_group_1 = [float((np.array(ids(found)) // 10 % 3 == 1).mean()) for found in (plain, away)]
        assert of_group_1[0] > 0.2 and of_group_1[1] < 0.05
        assert not set(ids(away)) & set(negatives)

    def test_contradicting_users_are_in_no_audience(self, run):
        negatives = SEEDS[:10] + OTHERS
        found = expand_seeds(run, {"a": SEEDS}, negatives=negatives, cut=Cut(percent=100), check=False)
        match = found.as_dict()["lists"][0]["match"]
        assert (match["matched"], match["contradicting"], match["match_rate"]) == (190, 10, 1.0)
        assert not set(ids(found)) & {*SEEDS, *negatives}

    def test_weights_move_the_audience(self, run, tmp_path):
        heavy = pd.DataFrame({"user_id": SEEDS + OTHERS, "weight": [100.0] * 200 + [0.01] * 200})
        heavy.to_csv(tmp_path / "a.csv", index=False)
        plain = expand_seeds(run, {"a": SEEDS + OTHERS}, cut=Cut(size=400), check=False)
        weighted = expand_seeds(run, tmp_path / "a.csv", cut=Cut(size=400), check=False)
        assert ids(weighted) != ids(plain)

    def test_excluded_lists_and_filters(self, run, tmp_path):
        first = expand_seeds(run, {"a": SEEDS}, cut=Cut(size=40), check=False)
        first.save(tmp_path / "reached.parquet")
        (tmp_path / "more.txt").write_text("20\n50\n999999\n")
        out = [tmp_path / "reached.parquet", tmp_path / "more.txt"]
        found = expand_seeds(run, {"a": SEEDS}, cut=Cut(percent=100), exclude=out, where="city = A", check=False)
        cities = run.attributes().set_index("user_id")["city"]
        assert set(cities[ids(found)]) == {"A"}
        assert not set(ids(found)) & {20, 50, *ids(first), *SEEDS}
        told = found.as_dict()
        assert told["excluded"]["lists"] == 42 and told["excluded"]["unknown"] == 1
        assert told["population"] == told["eligible"] + told["excluded"]["lists"] + told["excluded"]["where"]
        assert len(ids(found)) == told["eligible"] - told["excluded"]["seeds"]

    def test_digests(self, run):
        hashed = expand_seeds(run, {"a": [fingerprint(user) for user in SEEDS]}, cut=Cut(size=30), hash="sha256")
        assert ids(hashed) == ids(expand_seeds(run, {"a": SEEDS}, cut=Cut(size=30)))
        assert hashed.as_dict()["lists"][0]["match"]["by"] == {"raw": 0, "normalised": 0, "sha256": 200}

    def test_forgotten_users_are_nowhere(self, run, tmp_path):
        best = ids(expand_seeds(run, {"a": SEEDS}, cut=Cut(size=3), check=False))
        (tmp_path / "forgotten.json").write_text(json.dumps([fingerprint(user) for user in [*best, *SEEDS[:2]]]))
        forgetful = SimpleNamespace(**{**vars(run), "path": tmp_path})
        found = expand_seeds(forgetful, {"a": SEEDS}, cut=Cut(percent=100), check=False)
        assert not set(ids(found)) & {*best, *SEEDS}
        told = found.as_dict()
        assert told["population"] == USERS - 5 and told["lists"][0]["match"]["unmatched"] == 2
        (tmp_path / "forgotten.json").write_text("{")
        with pytest.raises(UserError, match="forgotten.json should be JSON"):
            expand_seeds(forgetful, {"a": SEEDS}, cut=Cut(size=1))


class TestFileOfUsers:
    def test_gives_the_same(self, run, as_file, monkeypatch):
        monkeypatch.setattr("ranking.population.BATCH", 256)
        arguments = {"cut": Cut(percent=5), "where": "tags = g0 and income >= 10", "negatives": OTHERS}
        a = expand_seeds(run, {"a": SEEDS}, **arguments)
        b = expand_seeds(run, {"a": SEEDS}, users=as_file, **arguments)
        pd.testing.assert_frame_equal(a.frame(), b.frame())
        told = [{**found.as_dict(), "seconds": 0} for found in (a, b)]
        assert told[0] == told[1]

    def test_attributes_of_its_own(self, run, tmp_path):
        vectors = run.state.user_vectors[:-1]
        frame = {
            "user_id": [f"U{n}" for n in range(USERS)],
            "vector": pa.array(list(vectors.astype(np.float64)), pa.list_(pa.float64())),
            "vip": [n % 2 == 0 for n in range(USERS)],
            "labels": pa.array([["x", "y"] if n % 3 else [] for n in range(USERS)]),
            "age": pa.array([None if n % 7 == 0 else n % 90 for n in range(USERS)], pa.int32()),
            "since": pa.array([0] * USERS, pa.timestamp("ms")),
        }
        pq.write_table(pa.table(frame), tmp_path / "u.parquet")
        seeds = {"a": [f" u{n} " for n in range(0, 600, 3)]}
        where = "vip = true and labels in y,z and age < 40"
        found = expand_seeds(run, seeds, users=tmp_path / "u.parquet", cut=Cut(percent=100), where=where)
        rows = [int(user[1:]) for user in ids(found)]
        assert rows and all(n % 2 == 0 and n % 3 and n % 7 and n % 90 < 40 for n in rows)
        assert found.as_dict()["lists"][0]["match"]["by"]["normalised"] == 200
        with pytest.raises(UserError, match="Received: 'since'"):
            expand_seeds(run, seeds, users=tmp_path / "u.parquet", cut=Cut(size=1), where="since = 0")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda t: t.drop(["vector"]), "column `vector`"),
            (lambda t: t.drop(["user_id"]), "column `user_id`"),
            (lambda t: t.slice(0, 0), "at least one user"),
            (lambda t: t.set_column(0, "user_id", t["user_id"].cast(pa.float64())), "`user_id`.*type double"),
            (lambda t: t.set_column(4, "vector", pa.array([[1.0]] * USERS)), "hold 6 numbers.*1 numbers in row 1"),
            (lambda t: t.set_column(4, "vector", pa.array([1.0] * USERS)), "lists of 6 floats.*type double"),
            (
                lambda t: t.set_column(4, "vector", pa.array([[0.0] * 6] * 99 + [None] * (USERS - 99))),
                "none in row 100",
            ),
            (
                lambda t: t.set_column(4, "vector", pa.array([[0.0] * 6] * 99 + [[np.nan] * 6] * (USERS - 99))),
                "finite numbers.*row 100",
            ),
            (
                lambda t: t.set_column(0, "user_id", pa.array([1] * 99 + [None] * (USERS - 99))),
                "`user_id` should be in every row.*row 100",
            ),
        ],
    )
    def test_refused(self, run, as_file, tmp_path, change, words):
        pq.write_table(change(pq.read_table(as_file)), tmp_path / "u.parquet")
        with pytest.raises(UserError, match=words) as error:
            expand_seeds(run, {"a": SEEDS}, users=tmp_path / "u.parquet", cut=Cut(size=1))
        assert "u.parquet" in str(error.value) and "\n" not in str(error.value)

    def test_is_read_in_batches(self, run, as_file, monkeypatch):
        """Never more than a batch, and the vectors in two passes."""
        seen = []
        batches = pq.ParquetFile.iter_batches

        def watched(self, size, columns):
            for batch in batches(self, size, columns=columns):
                seen.append(("vector" in columns, len(batch)))
                yield batch

        monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
        monkeypatch.setattr("ranking.population.BATCH", 500)
        expand_seeds(run, {"a": SEEDS, "b": OTHERS}, users=as_file, cut=Cut(size=10))
        assert max(size for _, size in seen) <= 500
        assert sum(size for vector, size in seen if vector) == 2 * USERS
        assert sum(size for vector, size in seen if not vector) == USERS  # ids and attributes of the members

    def test_does_not_keep_what_it_has_read(self, tmp_path, monkeypatch):
        """25 MB of vectors in 20 row groups: what Arrow holds stays at some batches."""
        monkeypatch.setattr("ranking.population.BATCH", 5000)
        values = np.random.default_rng(0).normal(size=200_000 * 32).astype(np.float32)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), 32)
        pq.write_table(pa.table({"user_id": np.arange(200_000), "vector": vectors}), tmp_path / "u.parquet", 10_000)
        del values, vectors
        before = pa.total_allocated_bytes()
        held = [pa.total_allocated_bytes() - before for _ in ParquetPopulation(tmp_path / "u.parquet", 32).chunks()]
        assert len(held) == 40 and max(held) < 8e6


class TestTold:
    def test_the_report_is_plain_json(self, run):
        told = expand_seeds(run, {"a": SEEDS, "b": OTHERS}, cut=Cut(percent=5)).as_dict()
        assert json.loads(json.dumps(told, allow_nan=False)) == told
        assert told["cut"] == {"kind": "percent", "value": 5}
        assert set(told["lists"][0]) == {
            *("name", "match", "size", "percent_of_eligible", "similarity", "reach", "holdout"),
            *("over_indexing", "centroids"),
        }

    def test_a_filter_that_names_a_handful_does_not_count_them(self, run):
        incomes = run.attributes()["income"].value_counts()
        few = incomes[incomes < 20].index[0]
        told = expand_seeds(run, {"a": SEEDS}, cut=Cut(size=1), where=f"income != {few}", check=False).as_dict()
        assert told["excluded"]["where"] is None

    def test_holdout(self, run):
        held = expand_seeds(run, {"a": SEEDS}, cut=Cut(size=1)).as_dict()["lists"][0]["holdout"]
        assert held["hidden"] == 40  # a fifth of 200
        assert set(held["methods"]) == {"look-alike", "average embedding", "classifier", "random"}
        # 800 others of the group are as likely as the hidden, 2,000 less: (800 / 2 + 2000) / 2800 = 0.857 at best
        assert held["methods"]["look-alike"]["auc"] == pytest.approx(0.857, abs=0.06)
        assert held["methods"]["random"]["auc"] == 0.5
        few = expand_seeds(run, {"a": SEEDS[:40]}, cut=Cut(size=1), min_seeds=5).as_dict()["lists"][0]["holdout"]
        assert "50 seeds; there are 40" in few["refused"]

    def test_holdout_and_shares_on_a_sample(self, run, monkeypatch):
        monkeypatch.setattr("ranking.survey.SAMPLE", 900)
        told = expand_seeds(run, {"a": SEEDS}, cut=Cut(size=100)).as_dict()["lists"][0]
        assert told["holdout"]["methods"]["look-alike"]["auc"] == pytest.approx(0.857, abs=0.06)
        (row,) = [row for row in told["over_indexing"] if row["value"] == "g0"]
        assert row["population_share"] == pytest.approx(1 / 3, abs=0.05)

    def test_what_over_indexes(self, run):
        told = expand_seeds(run, {"a": SEEDS}, cut=Cut(size=400)).as_dict()["lists"][0]
        rows = {(row["feature"], row["value"]): row for row in told["over_indexing"]}
        tag = rows["tags", "g0"]
        assert tag["seeds"] == 200 and tag["seed_share"] == 1 and tag["lift"] == pytest.approx(3)
        assert tag["population_share"] == pytest.approx(1 / 3) and tag["audience"] > 380
        assert ("city", "A") in rows and ("tags", "all") not in rows and ("city", "B") not in rows

    def test_centroids_add_up(self, run):
        told = expand_seeds(run, {"a": SEEDS}, cut=Cut(size=500)).as_dict()["lists"][0]
        members = [row["members"] for row in told["centroids"]]
        assert [row["centroid"] for row in told["centroids"]] == [0, 1, 2, 3]
        assert 500 - 4 * 19 <= sum(count or 0 for count in members) <= 500
        assert all(
            row["share"] == (None if row["members"] is None else row["members"] / 500) for row in told["centroids"]
        )

    def test_save(self, run, tmp_path):
        found = expand_seeds(run, {"a": SEEDS, "b": OTHERS}, cut=Cut(size=30), check=False)
        path = found.save(tmp_path / "new" / "audience.parquet")
        schema = pq.read_schema(path)
        assert schema.names == ["list", "user_id", "rank", "similarity", "centroid"]
        assert schema.field("user_id").type == pa.int64()
        pd.testing.assert_frame_equal(pd.read_parquet(path), found.frame())
        with pytest.raises(UserError, match="exists already"):
            found.save(path)
        assert found.save(path, overwrite=True) == path and [p.name for p in path.parent.iterdir()] == [path.name]


REFUSED = {
    "nobody in a list": ({"seeds": {"a": []}}, "at least one user id"),
    "no list": ({"seeds": {}}, "`seeds` should be at least one list"),
    "all unknown": ({"seeds": {"a": [1, 2, 3]}}, "none of its 3 ids"),
    "too few": ({"seeds": {"a": SEEDS[:99]}}, "at least 100 seeds.*Received: 99 of 99 ids"),
    "more than there are users": ({"seeds": {"a": range(USERS + 1)}}, "no more ids than.*3,000. Received: 3,001"),
    "size above the population": ({"cut": Cut(size=2801)}, "`size` should be at most 2,800.*'a'. Received: 2,801"),
    "unknown attribute": ({"where": "shoe = 43"}, "city, tags, income. Received: 'shoe'"),
    "bad filter": ({"where": "city in"}, "`where`"),
    "filter for a handful": ({"where": "income = 3 and city = B"}, "`where` should leave at least 20 users"),
    "everybody left out": ({"exclude": {"x": range(0, USERS * 10, 10)}}, "`exclude` should leave somebody"),
    "everybody is a seed": ({"seeds": {"a": range(0, USERS * 10, 10)}}, "nobody is left to choose from"),
    "unknown negatives": ({"negatives": [1, 2]}, "'negatives': none of its 2 ids"),
    "negatives who are the seeds": ({"negatives": OTHERS, "seeds": {"a": OTHERS + SEEDS}}, "not on"),
    "empty negatives": ({"negatives": []}, "'negatives'.*at least one user id"),
    "threshold that nobody reaches": ({"cut": Cut(threshold=1.0)}, "highest similarity is 0.*Received: 1.0"),
    "another hash": ({"hash": "md5"}, "should be sha256. Received: 'md5'"),
    "min_seeds": ({"min_seeds": 0}, "`min_seeds`.*Received: 0"),
    "twice": ({"seeds": {"a": [*SEEDS, 30]}}, "'a'.*1 duplicate ids"),
    "no id": ({"seeds": {"a": [*SEEDS, "x"]}}, "'a'.*1 malformed.*'x'"),
    "file that is not there": ({"seeds": "nowhere.csv"}, "no such file"),
    "users file that is not there": ({"users": "nowhere.parquet"}, "no such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(run, name):
    changed, words = REFUSED[name]
    with pytest.raises(UserError, match=words) as error:
        expand_seeds(run, **{"seeds": {"a": SEEDS}, "cut": Cut(size=10), "check": False, **changed})
    assert "\n" not in str(error.value)


class TestFloor:
    """No count below 20 of a segment is told, nor its share."""

    FEATURES = {"city": Feature("city", "user", "categorical"), "age": Feature("age", "user", "numeric")}

    def frame(self, **cities):
        city = [name for name, count in cities.items() for _ in range(count)]
        return pd.DataFrame({"city": pd.Series(city, dtype="str"), "age": np.nan})

    def test_seeds(self):
        segments = Segments(self.frame(A=50, B=50, C=900), self.FEATURES)
        # A: 20 of 60 seeds against 5 %; B: 19 of 60 seeds is not told though its lift is as high
        rows = list_profile(segments, self.frame(A=20, B=19, C=21), self.frame(A=19, C=81))
        assert [(row["value"], row["seeds"]) for row in rows] == [("A", 20)]
        assert rows[0]["lift"] == pytest.approx((20 / 60) / 0.05)
        assert rows[0]["audience"] is None and rows[0]["audience_share"] is None

    def test_population(self):
        segments = Segments(self.frame(A=19, C=981), self.FEATURES)
        assert list_profile(segments, self.frame(A=60), self.frame(A=60)) == []

    def test_centroids(self):
        segments = Segments(self.frame(A=100, C=900), self.FEATURES)
        # members: 20 at centroid 0 (all of A), 19 at centroid 1; centroid 2 does not exist
        centroid = np.repeat([0, 1], [20, 19]).astype(np.int32)
        rows = centroid_profile(segments, np.array([20, 19, 0]), centroid, self.frame(A=39))
        assert rows[0]["members"] == 20 and rows[0]["traits"] == [
            {"feature": "city", "value": "A", "lift": pytest.approx(10)}
        ]
        assert rows[1] == {"centroid": 1, "seeds": None, "members": None, "share": None, "traits": []}
        assert len(rows) == 2

    def test_shares_are_of_those_known(self):
        # Half of the seeds and a tenth of the population have a city; A is half of both: no lift.
        sample = pd.concat([self.frame(A=50, B=50), self.frame(**{"": 900})])
        segments = Segments(sample, self.FEATURES)
        seeds = pd.concat([self.frame(A=50, B=50), self.frame(**{"": 100})])
        assert list_profile(segments, seeds, seeds) == []
        assert segments.names == [("city", "A"), ("city", "B"), ("age", "any")]

    def test_numbers_in_bins(self):
        ages = pd.DataFrame({"city": pd.Series([None] * 100, dtype="str"), "age": np.arange(100.0)})
        segments = Segments(ages, self.FEATURES)
        names = [value for feature, value in segments.names if feature == "age"]
        assert names == ["below 20", "20 to below 40", "40 to below 60", "60 to below 80", "80 or more"]
        counts, known = segments.counts(ages.iloc[:50])
        assert counts.tolist() == [20, 20, 10, 0, 0] and known.tolist() == [50] * 5
        assert over_indexing(segments, counts, known, 5)[0][1] == pytest.approx(2)

    def test_values_of_one_user_count_once(self):
        feature = {"tags": Feature("tags", "user", "multi", separator=",")}
        frame = pd.DataFrame({"tags": pd.Series(["a,a,b", "a", "", None], dtype="str")})
        segments = Segments(frame, feature)
        assert dict(zip(segments.names, segments.population.tolist(), strict=True)) == {
            ("tags", "a"): 2,
            ("tags", "b"): 1,
        }
        assert segments.counts(frame)[1].tolist() == [2, 2]

    def test_without_attributes(self):
        segments = Segments(pd.DataFrame(index=range(50)), {})
        assert list_profile(segments, pd.DataFrame(index=range(30)), pd.DataFrame(index=range(30))) == []


def test_unknown_ids_are_counted(run):
    match = expand_seeds(run, {"a": [*SEEDS, 7]}, cut=Cut(size=1), check=False).as_dict()["lists"][0]["match"]
    assert match["unmatched"] == 1 and match["rows"] == 201
    assert match["match_rate"] == pytest.approx(200 / 201)
