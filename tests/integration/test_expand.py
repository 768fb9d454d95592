"""`seedrank expand`: lists in, audiences out; a mistake is one line, exit code 2, and nothing written."""

import hashlib
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow

SIZE = ("--size", 20)


@pytest.fixture(scope="module")
def buyers(tiny, tmp_path_factory):
    """60 users of the tiny run, those of the awkward ids among them, as CSV."""
    ids = list(dict.fromkeys([*tiny.user_ids, *tiny.run.state.user_ids[:60].tolist()]))[:60]
    path = tmp_path_factory.mktemp("lists") / "buyers.csv"
    path.write_text("user_id\n" + "\n".join(map(str, ids)) + "\n")
    return path


def members(path):
    return pd.read_parquet(path)


def seeds_of(path):
    return pd.read_csv(path)["user_id"].tolist()


def write(path, ids):
    path.write_text("\n".join(map(str, ids)) + "\n")
    return path


@pytest.fixture
def ask(tiny, buyers, cli, tmp_path, monkeypatch):
    """`(argument, ...) -> Answer` of `expand` with the tiny run and its buyers, written to the temporary folder."""
    monkeypatch.setattr("ranking.run.load_run", lambda path: tiny.run)  # seconds a call; the text run is really loaded

    def call(*arguments, seeds=(buyers,)):
        lists = [part for path in seeds for part in ("--seeds", path)]
        out = ("--out", tmp_path / "audience.parquet")
        return cli("expand", "--run", tiny.path, *lists, "--min-seeds", 5, *out, *arguments)

    return call


def test_an_audience(ask, tiny, buyers, tmp_path):
    answer = ask(*SIZE, "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    frame = members(tmp_path / "audience.parquet")
    assert frame["list"].tolist() == ["buyers"] * 20 and frame["rank"].tolist() == list(range(1, 21))
    assert set(frame["user_id"]) <= set(tiny.run.state.user_ids) - set(seeds_of(buyers))
    (one,) = told["lists"]
    assert one["match"]["matched"] == 60 and one["match"]["by"]["raw"] == 60 and one["size"] == 20
    assert one["holdout"]["hidden"] == 12  # a fifth of 60
    assert told["population"] == len(tiny.run.state.user_ids) == told["eligible"]


def test_similarities_are_those_of_the_model(ask, tiny, buyers, tmp_path):
    """The Keras layer, over centroids of the seeds, gives the column back."""
    from lookalike.clustering import cluster

    assert ask("--percent", 100, "--no-holdout").code == 0
    frame, state, lookalike = members(tmp_path / "audience.parquet"), tiny.run.state, tiny.run.lookalike
    seeds = np.asarray(lookalike.transform(state.user_vectors[state.rows("user", pd.Index(seeds_of(buyers)))]))
    found = cluster(seeds, np.array([0, len(seeds)]), state.centroids.shape[1])
    rows = state.rows("user", pd.Index(frame["user_id"]))
    centroids, counts = (np.repeat(part, len(rows), axis=0) for part in (found.centroids, found.counts))
    inputs = {"user": state.user_vectors[rows], "centroids": centroids, "centroid_counts": counts}
    np.testing.assert_allclose(frame["similarity"], np.asarray(lookalike(inputs)), atol=1e-5)


def test_table(ask, tmp_path):
    answer = ask("--percent", "10%")
    assert answer.code == 0
    assert max(map(len, answer.out.splitlines())) <= 80 and "…" not in answer.out
    said = " ".join(answer.out.split())
    for words in ("match rate", "buyers 60 60 0 0 0 0 0 100.0%", "hold-out", "average embedding", "buyers 54 10.00%"):
        assert words in said, answer.out


def test_nested_sizes(ask, tmp_path):
    found = {}
    for name, size in {"small": ("--percent", 5), "large": ("--percent", 10), "band": ("--band", "5-10")}.items():
        assert ask(*size, "--overwrite", "--no-holdout").code == 0
        found[name] = members(tmp_path / "audience.parquet")["user_id"].tolist()
    assert found["large"] == found["small"] + found["band"]


def test_threshold(ask, tmp_path):
    assert ask("--threshold", "-1", "--no-holdout").code == 0
    similarity = members(tmp_path / "audience.parquet")["similarity"]
    assert ask("--threshold", f"{similarity[9]:.4f}", "--overwrite", "--no-holdout").code == 0
    assert members(tmp_path / "audience.parquet")["similarity"].min() >= round(similarity[9], 4)


def test_several_lists_negatives_and_exclusions(ask, tiny, buyers, tmp_path):
    users = tiny.run.state.user_ids.tolist()
    other, against = write(tmp_path / "other.txt", users[100:140]), write(tmp_path / "against.txt", users[138:200])
    out = write(tmp_path / "out.txt", [*users[200:260], 123])
    arguments = ("--negatives", against, "--exclude", out, "--no-holdout", "--json")
    answer = ask("--percent", 100, *arguments, seeds=(buyers, other))
    assert answer.code == 0, answer.err
    told, frame = json.loads(answer.out), members(tmp_path / "audience.parquet")
    assert frame["list"].unique().tolist() == ["buyers", "other"]
    assert told["lists"][1]["match"]["contradicting"] == 2 and told["lists"][1]["match"]["matched"] == 38
    assert told["excluded"]["lists"] == 60 and told["excluded"]["unknown"] == 1
    for name, path in (("buyers", buyers), ("other", other)):
        mine = set(frame.loc[frame["list"] == name, "user_id"])
        assert not mine & set(users[200:260]) and not mine & set(users[138:200])
        assert not mine & (set(seeds_of(path)) if path == buyers else set(users[100:140]))
    answer = ask(*SIZE, "--together", "--no-holdout", "--json", "--overwrite", seeds=(buyers, other))
    assert [one["name"] for one in json.loads(answer.out)["lists"]] == ["buyers+other"]


def test_an_audience_is_a_list_to_leave_out(ask, tmp_path):
    assert ask(*SIZE, "--no-holdout").code == 0
    first = tmp_path / "audience.parquet"
    first.rename(tmp_path / "reached.parquet")
    assert ask(*SIZE, "--no-holdout", "--exclude", tmp_path / "reached.parquet").code == 0
    assert not set(members(first)["user_id"]) & set(members(tmp_path / "reached.parquet")["user_id"])


def test_where(ask, tiny, tmp_path):
    users = tiny.run.attributes().set_index("user_id")
    city = users["city"].value_counts().index[0]
    answer = ask("--percent", 100, "--where", f"city = '{city}'", "--json", "--no-holdout")
    assert answer.code == 0, answer.err
    frame = members(tmp_path / "audience.parquet")
    assert set(users.loc[frame["user_id"], "city"]) == {city}
    told = json.loads(answer.out)
    assert told["eligible"] == (users["city"] == city).sum() and told["where"] == f"city = '{city}'"


def test_digests(ask, buyers, tmp_path):
    digests = [hashlib.sha256(str(user).encode()).hexdigest() for user in seeds_of(buyers)]
    hashed = write(tmp_path / "buyers.txt", [digest.upper() for digest in digests])
    assert ask(*SIZE, "--no-holdout").code == 0
    plain = members(tmp_path / "audience.parquet")
    assert ask(*SIZE, "--hash", "sha256", "--overwrite", "--no-holdout", seeds=(hashed,)).code == 0
    pd.testing.assert_frame_equal(members(tmp_path / "audience.parquet"), plain)


def test_text_ids(text, cli, tmp_path):
    """Awkward ids as they are; others by another case and white space."""
    seeds = tmp_path / "seeds.csv"
    names = [*text.user_ids, *(f" USER-{number:04d} " for number in range(30, 60))]
    pd.DataFrame({"user_id": names}).to_csv(seeds, index=False)
    ask = ("expand", "--run", text.path, "--seeds", seeds, "--out", tmp_path / "a.parquet", "--min-seeds", 5, *SIZE)
    answer = cli(*ask, "--drop-bad", "--json")
    assert answer.code == 0, answer.err
    match = json.loads(answer.out)["lists"][0]["match"]
    assert match["by"]["raw"] == len(text.user_ids) and match["unmatched"] + match["by"]["normalised"] == 30
    assert members(tmp_path / "a.parquet")["user_id"].isin(text.run.state.user_ids).all()


def test_a_file_of_users(ask, tiny, tmp_path):
    state = tiny.run.state
    frame = tiny.run.attributes().copy()
    frame["vector"] = list(state.user_vectors[:-1])
    frame.to_parquet(tmp_path / "users.parquet", index=False, row_group_size=100)
    assert ask(*SIZE, "--no-holdout").code == 0
    plain = members(tmp_path / "audience.parquet")
    assert ask(*SIZE, "--users", tmp_path / "users.parquet", "--overwrite", "--no-holdout").code == 0
    pd.testing.assert_frame_equal(members(tmp_path / "audience.parquet"), plain)


def test_report(ask, tmp_path):
    assert ask("--percent", 20, "--report", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert "<html" in page and "buyers" in page and (tmp_path / "audience.parquet").exists()


def test_python_gives_the_same(ask, tiny, buyers, tmp_path):
    from lookalike.audience import Cut
    from ranking.expansion import expand_seeds

    told = json.loads(ask("--percent", 5, "--json").out)
    found = expand_seeds(tiny.run, buyers, cut=Cut(percent=5), min_seeds=5)
    pd.testing.assert_frame_equal(found.frame(), members(tmp_path / "audience.parquet"))
    assert {**found.as_dict(), "seconds": 0} == {**told, "seconds": 0}


def test_columns_of_the_file(ask, tmp_path):
    assert ask(*SIZE, "--no-holdout").code == 0
    schema = pq.read_schema(tmp_path / "audience.parquet")
    assert [(field.name, str(field.type)) for field in schema] == [
        ("list", "string"),
        ("user_id", "int64"),
        ("rank", "int64"),
        ("similarity", "float"),
        ("centroid", "int32"),
    ]


# Each: seeds (text of a CSV, or None for the buyers), other arguments, words of the line.
MISTAKES = {
    "empty file": ("", SIZE, ["seeds.csv", "at least one user id"]),
    "empty list": ("user_id\n", SIZE, ["seeds.csv", "at least one user id", "0 rows"]),
    "blank lines only": ("user_id\n\n\n", SIZE, ["seeds.csv", "at least one user id"]),
    "all unknown": ("user_id\n1\n2\n3\n4\n5\n6\n", SIZE, ["seeds.csv", "none of its 6 ids"]),
    "duplicate ids": ("user_id\n7\n8\n7\n", SIZE, ["seeds.csv", "1 duplicate", "line 4", "--drop-bad"]),
    "malformed ids": ("user_id\n7\nx8\n", SIZE, ["seeds.csv", "1 malformed", "line 3", "'x8'"]),
    "all malformed, dropped": ("user_id\nx\ny\n", (*SIZE, "--drop-bad"), ["seeds.csv", "2 rows, 2 of them malformed"]),
    "negative weight": ("user_id,weight\n7,-1\n", SIZE, ["seeds.csv", "line 2", "weight"]),
    "missing column": ("email,city\na,b\n", SIZE, ["seeds.csv", "`user_id`", "email, city"]),
    "larger than the population": ("\n".join(map(str, range(5000))), SIZE, ["seeds.csv", "no more ids", "5,000"]),
    "too few": (None, (*SIZE, "--min-seeds", 61), ["buyers.csv", "--min-seeds", "60 of 60"]),
    "no size": (None, (), ["--size, --percent, --threshold and --band", "none"]),
    "two sizes": (None, (*SIZE, "--percent", 1), ["--size and --percent"]),
    "size 0": (None, ("--size", 0), ["`size`", "0"]),
    "negative size": (None, ("--size", "-3"), ["`size`", "-3"]),
    "size that is no number": (None, ("--size", "many"), ["--size", "'many'"]),
    "size with a fraction": (None, ("--size", "1.5"), ["--size", "'1.5'"]),
    "size above the population": (None, ("--size", 100000), ["`size`", "100,000"]),
    "percent 0": (None, ("--percent", 0), ["`percent`", "0"]),
    "percent above 100": (None, ("--percent", 101), ["`percent`", "101"]),
    "percent that is no number": (None, ("--percent", "nan"), ["`percent`", "nan"]),
    "threshold above 1": (None, ("--threshold", 1.5), ["`threshold`", "1.5"]),
    "threshold that nobody reaches": (None, ("--threshold", 1), ["`threshold`", "highest similarity"]),
    "band without an end": (None, ("--band", "1"), ["--band", "'1'"]),
    "band the wrong way": (None, ("--band", "2-1"), ["`band`", "2.0, 1.0"]),
    "unknown attribute": (None, (*SIZE, "--where", "shoe = 43"), ["`where`", "'shoe'", "city"]),
    "bad syntax": (None, (*SIZE, "--where", "city in"), ["`where`", "'city in'"]),
    "nobody meets the filter": (None, (*SIZE, "--where", "city = Atlantis"), ["`where`", "at least 20"]),
    "another hash": (None, (*SIZE, "--hash", "md5"), ["`hash`", "'md5'"]),
    "not digests": (None, (*SIZE, "--hash", "sha256"), ["buyers.csv", "64 hex digits"]),
    "unknown negatives": (None, (*SIZE, "--negatives", "{folder}/one.txt"), ["one.txt", "none of its 1 ids"]),
    "missing negatives": (None, (*SIZE, "--negatives", "{folder}/no.txt"), ["no.txt", "no such file"]),
    "malformed exclusion": (None, (*SIZE, "--exclude", "{folder}/bad.txt"), ["bad.txt", "line 2"]),
    "users that are no Parquet": (None, (*SIZE, "--users", "{folder}/one.txt"), ["one.txt", "cannot be read"]),
    "users without vectors": (None, (*SIZE, "--users", "{folder}/flat.parquet"), ["flat.parquet", "`vector`"]),
    "out is the seeds": (None, (*SIZE, "--overwrite", "--report", "{seeds}"), ["buyers.csv", "read by this command"]),
    "out is a folder": (None, (*SIZE, "--report", "{folder}"), ["is a folder"]),
    "same file twice": (None, (*SIZE, "--report", "{folder}/audience.parquet"), ["audience.parquet"]),
    "unknown kind of file": (None, (*SIZE, "--exclude", "{folder}/list.xlsx"), ["list.xlsx", ".csv"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, ask, buyers, tmp_path):
    content, arguments, words = MISTAKES[name]
    write(tmp_path / "one.txt", [1])
    write(tmp_path / "bad.txt", [1, "x"])
    pd.DataFrame({"user_id": [1]}).to_parquet(tmp_path / "flat.parquet")
    seeds = buyers
    if content is not None:
        seeds = tmp_path / "seeds.csv"
        seeds.write_text(content)
    before = {path.name for path in tmp_path.iterdir()}
    given = [str(part).format(folder=tmp_path, seeds=buyers) for part in arguments]
    report = () if "--report" in given else ("--report", tmp_path / "page.html")
    kept = buyers.read_bytes()
    ask(*given, *report, seeds=(seeds,)).mistake(*words)
    assert {path.name for path in tmp_path.iterdir()} == before and buyers.read_bytes() == kept


def test_two_lists_of_one_name(ask, buyers, tmp_path):
    other = tmp_path / "buyers.txt"
    write(other, seeds_of(buyers))
    ask(*SIZE, seeds=(buyers, other)).mistake("different names", "'buyers'")


def test_an_existing_file_is_kept(ask, tmp_path):
    (tmp_path / "audience.parquet").write_text("mine")
    ask(*SIZE).mistake("audience.parquet", "--overwrite")
    (tmp_path / "audience.parquet").rename(tmp_path / "page.html")
    ask(*SIZE, "--report", tmp_path / "page.html").mistake("page.html", "--overwrite")
    assert (tmp_path / "page.html").read_text() == "mine" and not (tmp_path / "audience.parquet").exists()
    assert ask(*SIZE, "--report", tmp_path / "page.html", "--overwrite", "--no-holdout").code == 0


def test_no_page_no_audience(ask, tmp_path, monkeypatch):
    """A page that cannot be written takes the audience with it."""

    def fails(found, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("ranking.report.audience.write_page", fails)
    ask(*SIZE, "--report", tmp_path / "page.html", "--no-holdout").mistake("No space left")
    assert list(tmp_path.iterdir()) == []


def test_no_run(buyers, cli, tmp_path):
    out = ("--out", tmp_path / "a.parquet")
    cli("expand", "--run", tmp_path, "--seeds", buyers, *SIZE, *out).mistake(str(tmp_path), "not a run folder")
    assert list(tmp_path.iterdir()) == []
