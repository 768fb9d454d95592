"""Who can be reached: the users of a run, or a Parquet file of users that is read in batches and never held."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet  # noqa: F401  (pa.parquet is an attribute only once it has been imported)
from numpy.typing import NDArray

from ranking.data.columns import Column, convert
from ranking.data.schema import Feature
from ranking.errors import UserError

__all__ = ["Chunk", "ParquetPopulation", "Population", "RunPopulation", "forgotten_users"]

BATCH = 65_536  # users a chunk
READ_BYTES = 1 << 20  # of a column at a time
_JOIN = "\x1f"  # joins the values of a list column; no value holds it
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean)
_NUMBER = (pa.types.is_integer, pa.types.is_floating)
_LIST = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


@dataclass(frozen=True)
class Chunk:
    """Some consecutive users.

    Args:
        start: int. Row number of the first.
        ids: int64 or object array of str `[c]`.
        vectors: float32 `[c, m]`, or `[c, 0]` where they were not asked for.
        attributes: pandas.DataFrame `[c]`. Raw: text (NaN where missing) and float64.
    """

    start: int
    ids: NDArray[Any]
    vectors: NDArray[np.float32]
    attributes: pd.DataFrame

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row numbers, int64 `[c]`."""
        return np.arange(self.start, self.start + len(self.ids))


class Population(Protocol):
    """Users in a fixed order; a row number is a user's place in it.

    Attributes:
        kind: str. `"int64"` or `"string"`, of the ids.
        size: int. Users.
        features: name -> `Feature`, of the attributes.
    """

    kind: str
    size: int
    features: dict[str, Feature]

    def chunks(self) -> Iterator[Chunk]:
        """Everybody with everything, in one pass."""

    def vectors(self) -> Iterator[NDArray[np.float32]]:
        """Everybody's vectors, in the same order."""

    def look_up(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], pd.DataFrame]:
        """Ids and attributes of some users; the rows ascend."""


class RunPopulation:
    """The users that a run's state knows.

    Args:
        run: Run.
    """

    def __init__(self, run: Any):
        ids = run.state.user_ids
        self.kind = "int64" if ids.dtype.kind == "i" else "string"
        self.size = len(ids)
        self._ids = ids.to_numpy(np.int64 if self.kind == "int64" else object)
        self._vectors = run.state.user_vectors[:-1]  # the last row is nobody's
        found = run.attributes()
        self.features = {feature.name: feature for feature in run.schema.side("user") if feature.name in found}
        # All of a column may be missing, and then it has no type.
        kinds = {name: "float64" if f.kind == "numeric" else "str" for name, f in self.features.items()}
        self._attributes: pd.DataFrame = found[list(self.features)].astype(kinds)

    def chunks(self) -> Iterator[Chunk]:
        """Everybody with everything, in one pass."""
        for start in range(0, self.size, BATCH):
            part = slice(start, start + BATCH)
            yield Chunk(start, self._ids[part], self._vectors[part], self._attributes.iloc[part])

    def vectors(self) -> Iterator[NDArray[np.float32]]:
        """Everybody's vectors, in the same order."""
        for start in range(0, self.size, BATCH):
            yield self._vectors[start : start + BATCH]

    def look_up(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], pd.DataFrame]:
        """Ids and attributes of some users; the rows ascend."""
        return self._ids[rows], self._attributes.iloc[rows].reset_index(drop=True)


class ParquetPopulation:
    """A Parquet file of users: `user_id`, `vector` (a list of as many floats as the run's), and any attributes.

    Memory is bounded by a batch, whatever the number of users. Attributes that the run's dataset declares mean what
    they mean there; others go by their type: text is categorical, numbers are numeric, lists of text are multi.

    Args:
        path: str or Path.
        dim: int. Width of the vectors.
        declared: sequence of `Feature`. User features of the run. Defaults to none.

    Raises:
        UserError: the file is no Parquet, lacks a column, has a column of another type, or nobody in it.
    """

    def __init__(self, path: str | Path, dim: int, declared: Sequence[Feature] = ()):
        self.path, self.dim = Path(path), dim
        if not self.path.is_file():
            raise UserError(f"{self.path} should be a Parquet file of users. Received: no such file.")
        try:
            metadata, schema = pa.parquet.read_metadata(self.path), pa.parquet.read_schema(self.path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.path}: cannot be read: {str(error).splitlines()[0]}") from None
        self.size = metadata.num_rows
        for name in ("user_id", "vector"):
            if schema.names.count(name) != 1:
                raise UserError(f"{self.path}: should have a column `{name}`. Received: {', '.join(schema.names)}.")
        if not self.size:
            raise UserError(f"{self.path}: should have at least one user. Received: none.")
        user = schema.field("user_id").type
        if not (pa.types.is_integer(user) or _is(user, _TEXT[:2])):
            raise UserError(f"{self.path}: `user_id` should be text or whole numbers. Received: type {user}.")
        self.kind = "int64" if pa.types.is_integer(user) else "string"
        vector = schema.field("vector").type
        if not _is(vector, _LIST) or not pa.types.is_floating(vector.value_type):
            raise UserError(f"{self.path}: `vector` should be lists of {dim} floats. Received: type {vector}.")
        known = {feature.name: feature for feature in declared}
        found = [_feature(field, known.get(field.name)) for field in schema if field.name not in ("user_id", "vector")]
        self.features = {feature.name: feature for feature in found if feature is not None}

    def chunks(self) -> Iterator[Chunk]:
        """Everybody with everything, in one pass."""
        for start, batch in self._batches(["user_id", "vector", *self.features]):
            yield Chunk(start, self._users(batch, start), self._matrix(batch, start), self._frame(batch, start))

    def vectors(self) -> Iterator[NDArray[np.float32]]:
        """Everybody's vectors, in the same order."""
        for start, batch in self._batches(["vector"]):
            yield self._matrix(batch, start)

    def look_up(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], pd.DataFrame]:
        """Ids and attributes of some users; the rows ascend. Vectors stay unread."""
        ids, frames = [], []
        for start, batch in self._batches(["user_id", *self.features]):
            low, high = np.searchsorted(rows, [start, start + len(batch)])
            if high > low:
                part = batch.take(pa.array(rows[low:high] - start))
                ids.append(self._users(part, start))
                frames.append(self._frame(part, start))
        if not ids:
            return np.zeros(0, np.int64 if self.kind == "int64" else object), pd.DataFrame(columns=list(self.features))
        return np.concatenate(ids), pd.concat(frames, ignore_index=True)

    def _batches(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        start = 0
        try:
            # Otherwise it reads ahead and keeps what was read: in the end the whole file.
            with pa.parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=READ_BYTES) as file:
                for batch in file.iter_batches(BATCH, columns=list(columns)):
                    yield start, batch
                    start += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.path}: cannot be read: {str(error).splitlines()[0]}") from None

    def _users(self, batch: pa.RecordBatch, start: int) -> NDArray[Any]:
        column = batch.column("user_id")
        if column.null_count:
            row = start + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise UserError(f"{self.path}: `user_id` should be in every row. Received: none in row {row + 1}.")
        if self.kind == "string":
            return column.to_numpy(zero_copy_only=False)
        return column.cast(pa.int64()).to_numpy()

    def _matrix(self, batch: pa.RecordBatch, start: int) -> NDArray[np.float32]:
        column = batch.column("vector")
        lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(lengths != self.dim)
        if len(bad):
            got = "none" if lengths[bad[0]] < 0 else f"{lengths[bad[0]]} numbers"
            raise UserError(
                f"{self.path}: `vector` should hold {self.dim} numbers, as the run's user vectors do. "
                f"Received: {got} in row {start + bad[0] + 1}."
            )
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)
        vectors = np.ascontiguousarray(values, np.float32)
        finite = np.isfinite(vectors.sum(axis=1))
        if not finite.all() and not (finite := np.isfinite(vectors).all(axis=1)).all():
            row = start + int(np.flatnonzero(~finite)[0])
            raise UserError(f"{self.path}: `vector` should hold finite numbers. Received: others in row {row + 1}.")
        return vectors

    def _frame(self, batch: pa.RecordBatch, start: int) -> pd.DataFrame:
        frame = {}
        for name, feature in self.features.items():
            column = batch.column(name)
            if _is(column.type, _LIST):
                column = pc.binary_join(column.cast(pa.list_(pa.string())), _JOIN)
            where = f"{self.path}: column `{name}` (rows from {start + 1})"
            frame[name] = convert(pa.chunked_array([column]), Column(feature.kind, nullable=True), where)
        return pd.DataFrame(frame, index=range(len(batch)))


def _is(kind: pa.DataType, tests: Sequence[Any]) -> bool:
    return any(test(kind) for test in tests)


def _feature(field: pa.Field, declared: Feature | None) -> Feature | None:
    """What a column of a file of users is; `None` for a type without a meaning here, as a time."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if _is(kind, _LIST):
        return Feature(field.name, "user", "multi", separator=_JOIN) if _is(kind.value_type, _TEXT[:2]) else None
    if declared is not None:
        return declared
    if _is(kind, _TEXT):
        return Feature(field.name, "user", "categorical")
    return Feature(field.name, "user", "numeric") if _is(kind, _NUMBER) else None


def forgotten_users(run: Any) -> frozenset[str]:
    """Fingerprints of the users who asked to be forgotten, from the run's folder.

    Raises:
        UserError: the file is not a JSON list of text.
    """
    if run.path is None or not (path := Path(run.path) / "forgotten.json").is_file():
        return frozenset()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} should be JSON. Received: {error}.") from None
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise UserError(f"{path} should be a JSON list of SHA-256 digests. Received: {str(found)[:80]}.")
    return frozenset(found)
