"""What the baselines share: seeds and profiles as sparse matrices, and rows of (user, item) taken item by item."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

__all__ = ["by_item", "check_embeddings", "check_pairs", "one_hot", "seed_matrix", "shares"]


def one_hot(profile: Mapping[str, NDArray], *, bins: int | None = None) -> scipy.sparse.csr_matrix:
    """A profile as a matrix of 0 and 1, one column a value of a feature.

    Args:
        profile: dict of arrays. int `[rows]` is categorical, int `[rows, L]` has several values, padded with 0, float
            `[rows]` is a number. 0 stands for missing and has no column; a value that stands twice counts once.
        bins: int, optional. Numbers become so many quantiles of the rows (fewer where they are tied). Without it, a
            number is a column of its own.

    Returns:
        float32 CSR matrix `[rows, columns]`, the features in the order of the dict.

    Raises:
        ValueError: if there is no feature, or a length, dtype or value is off.
    """
    return scipy.sparse.hstack(_blocks(profile, bins), format="csr", dtype=np.float32)


def shares(profile: Mapping[str, NDArray], *, bins: int | None = None) -> scipy.sparse.csr_matrix:
    """`one_hot` with the values of each feature averaged: three tags weigh a third each.

    Args:
        profile: dict of arrays, as in `one_hot`.
        bins: int, optional. As in `one_hot`.

    Returns:
        float32 CSR matrix `[rows, columns]`.

    Raises:
        ValueError: as in `one_hot`.
    """
    blocks = _blocks(profile, bins)
    for values, block in zip(profile.values(), blocks, strict=True):
        if values.ndim == 2:
            sizes = np.diff(block.indptr)
            block.data /= np.repeat(sizes, sizes)
    return scipy.sparse.hstack(blocks, format="csr", dtype=np.float32)


def _blocks(profile: Mapping[str, NDArray], bins: int | None) -> list[scipy.sparse.csr_matrix]:
    """The columns of each feature."""
    if not profile:
        raise ValueError("`profile` should have at least one feature. Received: none.")
    if bins is not None and bins < 2:
        raise ValueError(f"`bins` should be at least 2. Received: bins={bins}.")
    rows = len(next(iter(profile.values())))
    blocks = []
    for name, values in profile.items():
        if len(values) != rows:
            raise ValueError(f"`profile` should have {rows} rows in every feature. Received: {name!r} {len(values)}.")
        is_number = values.dtype.kind == "f"
        blocks.append(_number(name, values, bins) if is_number else _values(name, values))
    return blocks


def _number(name: str, values: NDArray, bins: int | None) -> scipy.sparse.csr_matrix:
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"`profile` should have finite numbers, one a row. Received: {name!r} {list(values.shape)}.")
    if bins is None:
        return scipy.sparse.csr_matrix(values.astype(np.float32).reshape(-1, 1))
    edges = np.unique(np.quantile(values, np.arange(1, bins) / bins)) if len(values) else np.empty(0)
    return _values(name, 1 + np.searchsorted(edges, values, side="right"))


def _values(name: str, values: NDArray) -> scipy.sparse.csr_matrix:
    if values.dtype.kind not in "iu" or values.ndim not in (1, 2) or (values.size and values.min() < 0):
        raise ValueError(
            f"`profile` should have int [rows] or [rows, L] from 0, or float [rows]. "
            f"Received: {name!r} {values.dtype} {list(values.shape)}."
        )
    table = values.reshape(len(values), -1)
    row, column = np.nonzero(table)
    code = table[row, column].astype(np.int64) - 1
    width = int(code.max()) + 1 if code.size else 0
    matrix = scipy.sparse.csr_matrix(
        (np.ones(code.size, np.float32), (row, code)), shape=(len(values), width)
    )  # adds up what stands twice
    matrix.data[:] = 1
    return matrix


def seed_matrix(offsets: NDArray[np.int64], seeds: NDArray[np.int64], population: int) -> scipy.sparse.csr_matrix:
    """Seeds as a matrix of 0 and 1.

    Args:
        offsets: int64 `[items + 1]`. The seeds of item `i` are `seeds[offsets[i]:offsets[i + 1]]`.
        seeds: int64 `[n]`. Rows of users, each at most once an item.
        population: int. How many users there are.

    Returns:
        float32 CSR matrix `[items, population]`.

    Raises:
        ValueError: if `offsets` and `seeds` do not fit together, or a seed stands twice in an item.
    """
    if offsets.ndim != 1 or len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(seeds):
        raise ValueError(f"`offsets` should run from 0 to the number of seeds, {len(seeds)}. Received: {offsets!r}.")
    if np.any(np.diff(offsets) < 0):
        raise ValueError("`offsets` should never fall. Received: a falling step.")
    _check_rows("seeds", seeds, population)
    shape = (len(offsets) - 1, population)
    # Copies: sorting would reach into the caller's arrays.
    matrix = scipy.sparse.csr_matrix((np.ones(len(seeds), np.float32), seeds.copy(), offsets.copy()), shape=shape)
    matrix.sum_duplicates()
    if matrix.nnz < len(seeds):
        raise ValueError(f"`seeds` should be distinct within an item. Received: {len(seeds) - matrix.nnz} repeats.")
    return matrix


def check_pairs(user: NDArray[np.int64], item: NDArray[np.int64], users: int, items: int) -> None:
    """Refuse pairs that are not rows of users and items.

    Args:
        user: int64 `[n]`. Rows of users.
        item: int64 `[n]`. Rows of items.
        users: int. How many users there are.
        items: int. How many items there are.

    Raises:
        ValueError: if the lengths differ or a row is out of range.
    """
    _check_rows("user", user, users)
    _check_rows("item", item, items)
    if user.shape != item.shape:
        raise ValueError(f"`item` should have the {len(user)} rows of `user`. Received: {len(item)}.")


def check_embeddings(embeddings: NDArray) -> None:
    """Refuse what is not finite float32 `[population, dim]`.

    Args:
        embeddings: float32 `[population, dim]`.

    Raises:
        ValueError: if it is something else.
    """
    if embeddings.ndim != 2 or embeddings.dtype != np.float32 or not np.isfinite(embeddings).all():
        raise ValueError(
            f"`embeddings` should be finite float32 [population, dim]. "
            f"Received: {embeddings.dtype} {list(embeddings.shape)}."
        )


def by_item(item: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each item that occurs in `item` `[n]`, with the rows that it occurs in."""
    order = np.argsort(item, kind="stable")
    found, starts = np.unique(item[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, starts[1:]), strict=False)  # no item: one empty part is left over


def _check_rows(name: str, rows: Any, limit: int) -> None:
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or (rows.size and not 0 <= rows.min() <= rows.max() < limit):
        raise ValueError(f"`{name}` should be int [n], rows of {limit}. Received: {rows.dtype} {_range(rows)}.")


def _range(rows: Any) -> str:
    return f"{rows.min()} to {rows.max()}" if rows.size and rows.ndim == 1 else f"{list(rows.shape)}"
