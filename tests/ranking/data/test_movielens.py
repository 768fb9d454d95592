import numpy as np
import pytest

from ranking.data.check import check
from ranking.data.movielens import SAMPLED, import_movielens
from ranking.data.movielens_toml import dataset_toml
from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.timeline import Timeline

DAY = 86_400
START = 978_300_000


def ratings(users=12, films=40, a_user=20, seed=0):
    """(user, film, rating, time), each film once a user, times over forty days, in no order."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(1, users + 1):
        liked = random.integers(1, 3)
        for film in random.permutation(np.arange(1, films + 1))[:a_user]:
            rating = int(np.clip(random.integers(1, 4) + 2 * (film % 2 == liked - 1), 1, 5))
            rows.append((user, int(film), rating, START + int(random.integers(0, 40 * DAY))))
    return rows


def write(folder, release, rows=None):
    """A folder in the exact format of a release: separators, encodings, headers."""
    folder.mkdir(parents=True)
    rows = ratings() if rows is None else rows
    films = sorted({film for _, film, _, _ in rows})
    titles = {
        film: "Misérables, Les (1995)" if film == 1 else f"Film {film}, The (19{50 + film % 50})" for film in films
    }
    if release == "1m":
        (folder / "ratings.dat").write_bytes("".join(f"{u}::{f}::{r}::{t}\n" for u, f, r, t in rows).encode("latin-1"))
        text = "".join(f"{film}::{titles[film]}::Drama|Children's\n" for film in films)
        (folder / "movies.dat").write_bytes(text.encode("latin-1"))
        (folder / "users.dat").write_text(
            "".join(f"{user}::F::{1 if user == 1 else 25}::10::48067-1\n" for user in range(1, 13))
        )
    elif release == "100k":
        (folder / "u.data").write_text("".join(f"{u}\t{f}\t{r}\t{t}\n" for u, f, r, t in rows))
        flags = {film: "|".join("1" if place in (5, 8) else "0" for place in range(19)) for film in films}
        flags[2] = "1" + "|0" * 18
        text = "".join(
            f"{film}|{'unknown' if film == 2 else titles[film]}|01-Jan-1995||http://x|{flags[film]}\n" for film in films
        )
        (folder / "u.item").write_bytes(text.encode("latin-1"))
        (folder / "u.user").write_text(
            "".join(f"{user}|{7 if user == 1 else 49}|M|student|T8H1N\n" for user in range(1, 13))
        )
    else:
        text = "".join(f"{u},{f},{r - 0.5},{t}\n" for u, f, r, t in rows)
        (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + text)
        text = "".join(
            f'{film},"{titles[film]}",{"(no genres listed)" if film == 2 else "Drama|IMAX"}\n' for film in films
        )
        (folder / "movies.csv").write_text("movieId,title,genres\n" + text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("release", ["100k", "1m", "25m"])
def test_releases(tmp_path, release):
    rows = ratings()
    report = import_movielens(write(tmp_path / "ml" / "inner", release, rows), tmp_path / "out")
    found = Dataset(tmp_path / "out")
    assert report.read == report.accepted == report.clicks == len(rows) == 240 and report.rejected == {}
    shown = found.impressions
    clicked = shown[shown["click"] == 1]
    liked = {(user, film) for user, film, rating, _ in rows if rating - 0.5 * (release == "25m") >= 4}
    given = [(user, film, time * 1000, int((user, film) in liked)) for user, film, _, time in rows]
    columns = ["user_id", "item_id", "timestamp", "conversion"]
    assert sorted(map(tuple, clicked[columns].to_numpy().tolist())) == sorted(given)
    assert report.conversions == len(liked)
    # what is sampled was never rated by the user, and was rated by somebody before
    passed = shown[shown["click"] == 0]
    assert not {(user, film) for user, film, _, _ in rows} & set(zip(passed["user_id"], passed["item_id"], strict=True))
    first = {film: min(time for _, other, _, time in rows if other == film) for _, film, _, _ in rows}
    assert all(first[item] * 1000 <= time for item, time in zip(passed["item_id"], passed["timestamp"], strict=True))
    missing = report.notes[f"of {SAMPLED} sampled films a rating, not found"]
    assert len(passed) == SAMPLED * len(rows) - missing and missing < len(passed)
    assert (shown.groupby("request_id")["user_id"].nunique() == 1).all() and shown["timestamp"].is_monotonic_increasing
    assert (shown.groupby("request_id")["timestamp"].nunique() == 1).all()
    items = found.items.set_index("item_id")
    assert items.loc[1, "year"] == 1995
    assert items.loc[3, "genres"] == {"100k": "Comedy|Drama", "1m": "Drama|Children's", "25m": "Drama|IMAX"}[release]
    if release != "1m":
        assert items["genres"].isna().sum() == 1
    if release == "25m":
        assert not found.has("users")
    else:
        # ages 7 and 49 fall into the groups that begin at 1 and 45
        users = found.users.set_index("user_id")
        assert users["age"].loc[[1, 2]].tolist() == (["1", "45"] if release == "100k" else ["1", "25"])
        assert users.loc[1, "region"] == {"100k": "T8", "1m": "48"}[release]
    checked = check(tmp_path / "out")
    assert checked.ok and checked.windows["(outside)"]["impressions"] == 0
    assert all(checked.windows[name]["conversions"] for name in ("lookalike", "train", "calibrate", "tune", "test"))
    Timeline(found)


def test_the_same_every_time(tmp_path):
    folder = write(tmp_path / "ml", "1m")
    for name in "ab":
        import_movielens(folder, tmp_path / name)
    assert (tmp_path / "a/impressions.parquet").read_bytes() == (tmp_path / "b/impressions.parquet").read_bytes()


def test_an_exact_duplicate_is_counted(tmp_path):
    rows = ratings()
    report = import_movielens(write(tmp_path / "ml", "1m", [*rows, rows[5]]), tmp_path / "out")
    assert report.read == 241 and report.accepted == 240
    assert report.rejected == {"an exact duplicate of another rating": 1}


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("ratings.dat", "::", ";", r"ratings.dat: cannot be read: CSV parse error: Row #1: Expected 7 columns, got 1"),
        ("ratings.dat", "1::", "x::", r"ratings.dat: cannot be read: .*Row #1: CSV conversion error"),
        ("movies.dat", "::Drama", "", r"movies.dat, line 1: should be 3 fields. Received: .1::Mis"),
        ("users.dat", "1::F", "F", "users.dat, line 1: should be 5 fields"),
    ],
)
def test_broken_files(tmp_path, file, old, new, message):
    folder = write(tmp_path / "ml", "1m")
    text = (folder / file).read_text(encoding="latin-1")
    (folder / file).write_text(text.replace(old, new, -1 if old == "::" else 1), encoding="latin-1")
    with pytest.raises(UserError, match=message):
        import_movielens(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_files_and_times(tmp_path):
    with pytest.raises(UserError, match="should hold one of u.data, ratings.dat, ratings.csv"):
        import_movielens(tmp_path, tmp_path / "out")
    folder = write(tmp_path / "ml", "1m")
    (folder / "users.dat").unlink()
    with pytest.raises(UserError, match="should hold users.dat beside ratings.dat"):
        import_movielens(folder, tmp_path / "out")
    with pytest.raises(UserError, match="should spread over five windows"):
        dataset_toml([1, 1, 2, 3, 4, 5], "ml", users=False)
    few = write(tmp_path / "few", "1m", ratings()[:9])
    with pytest.raises(UserError, match="at least 10 ratings. Received: 9"):
        import_movielens(few, tmp_path / "out")


@pytest.mark.slow
def test_trains(tmp_path):
    from ranking.fit import fit_run

    import_movielens(write(tmp_path / "ml", "1m", ratings(60, 40, 30)), tmp_path / "out")
    toml = tmp_path / "out/dataset.toml"
    toml.write_text(toml.read_text().replace("min_seeds = 30", "min_seeds = 2").replace("k = 20", "k = 2"))
    run = fit_run(Dataset(tmp_path / "out"), tmp_path / "run")
    assert (tmp_path / "run").is_dir() and run.info
