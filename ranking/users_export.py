"""User vectors for a key-value store: what `rank_embedding` is sent."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from ranking.atomic import atomic_file, refuse_file
from ranking.batches import Progress, silent
from ranking.errors import UserError
from ranking.exported.lookup import raw_ids
from ranking.exported.ranker import space_id
from ranking.run import Run
from ranking.state import State

__all__ = ["REDIS_KEY", "packed", "unpacked", "users_to_parquet", "users_to_redis"]

REDIS_KEY = "seedrank:user:"  # and the id
CHUNK, PIPELINE = 65_536, 1_000  # users a row group, and a round trip
SECONDS = 10.0  # that a reply of Redis may take


def users_to_parquet(
    run: Run, state: State, out: str | Path, *, overwrite: bool = False, progress: Progress = silent
) -> int:
    """Writes a Parquet file of `user_id`, `user_vector` (list of float32) and `embedding_space_id` (int64), atomically.

    Args:
        run: Run. Whose embedding space it is.
        state: State. Whose users: the run's own, or one of a refresh.
        out: str or Path. The file.
        overwrite: bool. Whether a file that exists is replaced. Defaults to `False`.
        progress: Progress.

    Returns:
        How many users.
    """
    out = Path(out)
    refuse_file(out, overwrite)
    whole = state.user_ids.dtype.kind == "i"
    kinds = {"user_id": pa.int64() if whole else pa.string(), "user_vector": pa.list_(pa.float32())}
    schema = pa.schema([*kinds.items(), ("embedding_space_id", pa.int64())])
    space = space_id(run)
    with atomic_file(out) as temporary, pa.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for ids, vectors in _users(state, CHUNK, progress):
            offsets = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * vectors.shape[1])
            lists = pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel()))
            spaces = pa.array(np.full(len(ids), space))
            writer.write_table(pa.table([pa.array(ids, kinds["user_id"]), lists, spaces], schema=schema))
    return len(state.user_ids)


def users_to_redis(run: Run, state: State, url: str, *, progress: Progress = silent) -> int:
    """Sets `seedrank:user:ID` to the user's packed vector (`unpacked` reads it) for every user.

    Each value carries its embedding space: a gateway that sends both is refused by a model of another space, and never
    mixes them while the keys are replaced one after the other.

    Args:
        run: Run. Whose embedding space it is.
        state: State. Whose users.
        url: str. `redis://`, `rediss://` (TLS) or `unix://`, of Redis or Valkey.
        progress: Progress.

    Returns:
        How many users.

    Raises:
        UserError: the package `redis` is missing, or the server cannot be reached or refuses.
    """
    try:
        import redis
    except ImportError:
        raise UserError("a key-value store needs the package `redis`: pip install 'seedrank[redis]'.") from None
    space = space_id(run)
    try:
        with redis.Redis.from_url(url, socket_timeout=SECONDS, socket_connect_timeout=SECONDS) as client:
            for ids, vectors in _users(state, PIPELINE, progress):
                with client.pipeline(transaction=False) as pipeline:
                    for user, vector in zip(ids.tolist(), vectors, strict=True):
                        pipeline.set(f"{REDIS_KEY}{user}", packed(vector, space))
                    pipeline.execute()
    except (redis.RedisError, ValueError, OSError) as error:
        place = url.rpartition("@")[2]  # not the password
        raise UserError(f"{place}: {str(error) or type(error).__name__}") from None
    return len(state.user_ids)


def packed(vector: NDArray[np.float32], space: int) -> bytes:
    """A user's value: the embedding space (int64) and the vector (float32), little-endian."""
    return struct.pack("<q", space) + np.ascontiguousarray(vector, "<f4").tobytes()


def unpacked(value: bytes) -> dict[str, NDArray[Any]]:
    """Inputs of `rank_embedding` from a user's value: `user_vector` `[1, m]` and `embedding_space_id` `[1]`.

    Raises:
        ValueError: the value has another length than any vector gives.
    """
    if len(value) < 12 or len(value) % 4:
        raise ValueError(f"`value` should hold 8 bytes and 4 for each number. Received: {len(value)} bytes.")
    vector = np.frombuffer(value, "<f4", offset=8).astype(np.float32)
    return {"user_vector": vector[None], "embedding_space_id": np.array(struct.unpack_from("<q", value), np.int64)}


def _users(state: State, size: int, progress: Progress) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
    """Ids and vectors in chunks; without nobody, the last row."""
    total = len(state.user_ids)
    for start in range(0, total, size):
        some = slice(start, min(start + size, total))
        yield raw_ids(state.user_ids[some]), state.user_vectors[some]
        progress("users", some.stop, total)
