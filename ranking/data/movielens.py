"""MovieLens (Harper and Konstan, 2015) -> a dataset: the folders of 100k, 1M, 25M and latest(-small).

A proxy: nobody logged what was shown. A rating is a click, a rating of 4 or more its conversion, and beside each
rating stand sampled films that the user never rated, as if they had been shown and passed over.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from ranking.atomic import refuse_existing
from ranking.data.import_report import ImportReport
from ranking.data.movielens_toml import dataset_toml
from ranking.data.tables import write_dataset
from ranking.errors import UserError

__all__ = ["import_movielens"]

SAMPLED = 4  # unrated films beside a rating
LIKED = 4.0  # a rating from here on is a conversion
_TRIES = 3  # draws for a film that the user did not rate, before the place stays empty
_CHUNK_ROWS = 1_000_000
_COLUMNS = ("user_id", "item_id", "rating", "timestamp")
_GENRES_100K = (
    "unknown,Action,Adventure,Animation,Children's,Comedy,Crime,Documentary,Drama,Fantasy,Film-Noir,Horror,Musical,"
    "Mystery,Romance,Sci-Fi,Thriller,War,Western"
).split(",")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Format:
    """How one release writes its three files."""

    ratings: str
    separator: str
    header: bool
    films: str
    users: str = ""


_FORMATS = (
    _Format("u.data", "\t", False, "u.item", "u.user"),
    _Format("ratings.dat", "::", False, "movies.dat", "users.dat"),
    _Format("ratings.csv", ",", True, "movies.csv"),
)


def import_movielens(
    source: str | Path, out: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> ImportReport:
    """Writes a dataset from an unpacked MovieLens folder. The draws are the same every time.

    Args:
        source: str or Path. The folder with u.data, ratings.dat or ratings.csv, or the one above it.
        out: str or Path. The dataset folder to make.
        overwrite: bool. Whether a folder that exists is replaced. Defaults to `False`.
        progress: callable or None. Called with (stage, ratings done, ratings in all).

    Raises:
        UserError: a file is missing or cannot be read.
    """
    refuse_existing(Path(out), overwrite)
    folder, form = _folder(Path(source))
    report = ImportReport(str(out), f"a rating of {LIKED:.0f} or more")
    ratings = _ratings(folder / form.ratings, form, report)
    times = np.quantile(ratings["timestamp"], (0, 0.3, 0.8, 0.87, 0.94, 1), method="lower").astype(np.int64)
    toml = dataset_toml(times, folder.name, users=bool(form.users))

    def tables() -> Iterator[tuple[str, pd.DataFrame]]:
        yield "items", _counted(report, "items", _films(folder / form.films, form))
        if form.users:
            yield "users", _counted(report, "users", _users(folder / form.users, form))
        for frame in _impressions(ratings, report, progress or (lambda stage, done, total: None)):
            yield "impressions", _counted(report, "impressions", frame)

    write_dataset(out, toml, tables(), overwrite=overwrite)
    return report


def _counted(report: ImportReport, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    report.rows[name] = report.rows.get(name, 0) + len(frame)
    return frame


def _folder(source: Path) -> tuple[Path, _Format]:
    for folder in (source, *(path for path in sorted(source.glob("*")) if path.is_dir())):
        for form in _FORMATS:
            if (folder / form.ratings).is_file():
                for name in (form.films, form.users):
                    if name and not (folder / name).is_file():
                        raise UserError(f"{folder} should hold {name} beside {form.ratings}.")
                return folder, form
    names = ", ".join(form.ratings for form in _FORMATS)
    raise UserError(f"{source} should hold one of {names}, as MovieLens' folders do.")


def _ratings(path: Path, form: _Format, report: ImportReport) -> dict[str, np.ndarray]:
    """Users, films, ratings and times in the order of time (then of the file)."""
    names = [*_COLUMNS[:1], "_1", "item_id", "_2", "rating", "_3", "timestamp"] if form.separator == "::" else _COLUMNS
    # one thread, so that an error names the row
    read = pa.csv.ReadOptions(
        column_names=list(names), skip_rows=int(form.header), encoding="latin-1", use_threads=False
    )
    # `::` is read as two separators with nothing between them
    parse = pa.csv.ParseOptions(delimiter=form.separator[0], quote_char=False)
    types = {"user_id": pa.int64(), "item_id": pa.int64(), "rating": pa.float32(), "timestamp": pa.int64()}
    convert = pa.csv.ConvertOptions(include_columns=list(_COLUMNS), column_types=types)
    try:
        table = pa.csv.read_csv(path, read, parse, convert)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    if table.num_rows < 10:
        raise UserError(f"{path} should have at least 10 ratings. Received: {table.num_rows}.")
    if table.num_rows and any(column.null_count for column in table.columns):
        raise UserError(f"{path}: every rating should have a user, a film, a value and a time. Received: an empty one.")
    by = np.argsort(table["timestamp"].to_numpy(), kind="stable")
    report.read = len(by)
    return {name: table[name].to_numpy()[by] for name in _COLUMNS}


def _impressions(ratings: dict[str, np.ndarray], report: ImportReport, told: Progress) -> Iterator[pd.DataFrame]:
    """Ratings as clicks, each with sampled films; a request is what a user rated in one second (its id: both)."""
    users, user = np.unique(ratings["user_id"], return_inverse=True)
    films, film = np.unique(ratings["item_id"], return_inverse=True)
    rated = np.sort(user * len(films) + film)
    random = np.random.default_rng(0)
    missing = 0
    for start in range(0, len(user), _CHUNK_ROWS):
        rows = np.arange(start, min(start + _CHUNK_ROWS, len(user)))
        row = np.repeat(rows, SAMPLED)
        # Films that somebody rated earlier, as often as they were: what a site would have shown, and nothing later.
        drawn = film[random.integers(0, np.maximum(row, 1))]
        for attempt in range(_TRIES):
            bad = _among(rated, user[row] * len(films) + drawn)
            if attempt < _TRIES - 1:
                drawn[bad] = film[random.integers(0, np.maximum(row[bad], 1))]
        bad |= row == 0
        passed = pd.DataFrame({"row": row[~bad], "film": drawn[~bad]}).drop_duplicates()
        missing += len(row) - len(passed)
        shown = np.concatenate([rows, passed["row"]])
        click = np.arange(len(shown)) < len(rows)
        by = np.lexsort((~click, shown))
        shown, click = shown[by], click[by]
        item = np.concatenate([film[rows], passed["film"]])[by]
        conversion = click & (ratings["rating"][shown] >= LIKED)
        time = ratings["timestamp"][shown] * 1000
        frame = pd.DataFrame(
            {
                "request_id": user[shown] * 10**10 + time // 1000,
                "timestamp": time,
                "user_id": users[user[shown]],
                "item_id": films[item],
                "click": click.astype(np.int8),
                "conversion": conversion.astype(np.int8),
            }
        ).drop_duplicates()  # one film is sampled once a request
        clicks = int(frame["click"].sum())
        report.reject("an exact duplicate of another rating", len(rows) - clicks)
        report.accepted += clicks
        report.clicks += clicks
        report.conversions += int(frame["conversion"].sum())
        yield frame
        told("impressions", int(rows[-1]) + 1, len(user))
    report.note(f"of {SAMPLED} sampled films a rating, not found", missing)


def _among(codes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which of the wanted are among sorted codes."""
    return codes[np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)] == wanted


def _lines(path: Path, encoding: str = "latin-1") -> Iterator[tuple[int, str]]:
    """The lines that are not empty, counted from 1."""
    with open(path, encoding=encoding, newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, line.rstrip("\r\n")


def _fields(path: Path, separator: str, count: int) -> Iterator[list[str]]:
    for number, line in _lines(path):
        fields = line.split(separator)
        if len(fields) != count or not fields[0].isdigit():
            raise UserError(f"{path}, line {number}: should be {count} fields. Received: {line[:80]!r}.")
        yield fields


def _films(path: Path, form: _Format) -> pd.DataFrame:
    if form.header:
        films = pd.read_csv(path, encoding="utf-8")
        for column in ("movieId", "title", "genres"):
            if column not in films:
                raise UserError(f"{path}: should have a column `{column}`. Received: {', '.join(films.columns)}.")
        number, title, genres = films["movieId"], films["title"], films["genres"]
    elif form.separator == "::":
        rows = pd.DataFrame(_fields(path, "::", 3), columns=["movieId", "title", "genres"])
        number, title, genres = rows["movieId"], rows["title"], rows["genres"]
    else:
        rows = pd.DataFrame(_fields(path, "|", 5 + len(_GENRES_100K)))
        flags = rows.iloc[:, 5:].to_numpy() == "1"
        number, title = rows[0], rows[1]
        genres = pd.Series(["|".join(np.array(_GENRES_100K)[row]) for row in flags], dtype="str")
    year = title.str.extract(r"\((\d{4})\)\s*$")[0].astype(float)
    genres = genres.where(~genres.isin(("(no genres listed)", "unknown", "")))
    return pd.DataFrame({"item_id": number.astype("int64"), "genres": genres, "year": year})


def _users(path: Path, form: _Format) -> pd.DataFrame:
    order = ["user_id", "gender", "age", "occupation"] if form.separator == "::" else ["user_id", "age", "gender"]
    columns = [*order, "zip"] if form.separator == "::" else [*order, "occupation", "zip"]
    separator = "::" if form.separator == "::" else "|"
    users = pd.DataFrame(_fields(path, separator, 5), columns=columns)
    if form.separator != "::":  # the true age, in the groups of the later release
        edges = (18, 25, 35, 45, 50, 56)
        starts = np.array([1, *edges])
        users["age"] = starts[np.searchsorted(edges, users["age"].astype(int), side="right")].astype(str)
    users["region"] = users.pop("zip").str[:2]  # the first two figures of a zip code
    return users.assign(user_id=users["user_id"].astype("int64"))
