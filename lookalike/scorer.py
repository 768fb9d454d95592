"""The look-alike model in numpy and numba: similarities of a whole population, without TensorFlow."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lookalike.clustering import cluster
from lookalike.kernels import LANES, activate, combine, gather, highest
from lookalike.threads import one_blas_thread, share_out

__all__ = ["SLAB", "Scorer", "Seeds", "Users", "seed_centroids", "slabs"]

BLOCK = 768  # users a matrix product: what it reads and writes stays in the second-level cache
GROUP = 328  # columns of a matrix product, about: several seed lists at once
SLAB = 16 * BLOCK  # users that a population is walked through by
ALMOST_ZERO = 1e-12  # square of a length that is as good as zero, as in `cosine`


@dataclass(frozen=True)
class Users:
    """Target users as the scorer works on them: transformed, one user a column.

    Args:
        values: float32 array. The blocks, one after the other; zeros past the last user.
        scales: float32 arrays `[width]`. One over the length of each; 0 for a user who is (almost) zero.
        hidden: int. Width of the transformed embeddings.
        rows: int. How many users there are.
    """

    values: NDArray[np.float32]
    scales: list[NDArray[np.float32]]
    hidden: int
    rows: int

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Transformed users `[hidden, n]` of ascending row numbers `[n]`."""
        result = np.empty((self.hidden, len(rows)), np.float32)
        gather(self.values, BLOCK, rows, result)
        return result

    @property
    def blocks(self) -> list[NDArray[np.float32]]:
        """Float32 `[hidden, width]` each, of `BLOCK` users but for the last."""
        sizes = [self.hidden * len(scales) for scales in self.scales]
        return [part.reshape(self.hidden, -1) for part in np.split(self.values, np.cumsum(sizes)[:-1])] if sizes else []


@dataclass(frozen=True)
class Seeds:
    """Seed lists (or items) summarised for scoring: what no target user enters. Made by `Scorer.summarize`.

    The local cosine needs neither the weighted sum of the centroids nor their Gram matrix. With the factors of
    `E^T = Q R`, weights `w` and `y = R w`, it is `y . (Q^T u) / (|y| |u|)`: every product with a user stands in one
    large matrix product, and no square of a small difference loses digits.

    Args:
        columns: float32 `[lists, k + r + 1, hidden]`. What a user is multiplied with: `E W` (the attention logits),
            `Q^T`, and the global embedding at length 1; `r = min(k, hidden)`.
        roots: float32 `[lists, r, k]`. `R`, upper triangular; `[lists, 0, 0]` where there is no local part.
        factors: float32 `[lists, k]`. What a weight is multiplied with: 0 where there is no centroid, else 1, or its
            share of the largest seed count under the size bias.
        directions: float32 `[lists, k, hidden]`. The centroids at length 1.
        live: bool `[lists, k]`. Whether there is a centroid.
        alpha: float. Share of the global part.
        temperature: float. Multiple of the tanh; 0 stands for no tanh.
    """

    columns: NDArray[np.float32]
    roots: NDArray[np.float32]
    factors: NDArray[np.float32]
    directions: NDArray[np.float32]
    live: NDArray[np.bool_]
    alpha: float
    temperature: float

    def __len__(self) -> int:
        """How many lists."""
        return len(self.columns)

    def similarity(self, users: Users, *, threads: int = 1) -> NDArray[np.float32]:
        """Similarity of every user to every list, float32 `[lists, users]`."""
        lists, width, hidden = self.columns.shape
        widths = [len(scales) for scales in users.scales]
        starts = np.concatenate([[0], np.cumsum(widths, dtype=np.int64)])
        result = np.empty((lists, int(starts[-1])), np.float32)
        together = max(1, GROUP // width)
        of_users = users.blocks

        def work(blocks: range) -> None:
            buffer = np.empty(together * width * max((widths[b] for b in blocks), default=0), np.float32)
            for b in blocks:
                out = result[:, starts[b] : starts[b + 1]]
                for low in range(0, lists, together):
                    some = slice(low, min(low + together, lists))
                    columns = self.columns[some].reshape(-1, hidden)
                    products = buffer[: len(columns) * widths[b]].reshape(len(columns), widths[b])
                    np.matmul(columns, of_users[b], out=products)  # [lists * width, users]
                    combine(
                        products,
                        users.scales[b],
                        self.factors[some],
                        self.roots[some],
                        np.float32(self.alpha),
                        np.float32(self.temperature),
                        out[some],
                    )

        share_out(work, len(widths), threads)
        return result[:, : users.rows]

    def nearest(self, users: NDArray[np.float32], number: int) -> NDArray[np.int32]:
        """Centroid of list `number` with the largest cosine to each transformed user `[hidden, n]`: int32 `[n]`."""
        if not self.live[number].any():
            return np.full(users.shape[1], -1, np.int32)
        with one_blas_thread():
            cosines = self.directions[number] @ users  # [k, n], but for the length of the user
        result = np.empty(users.shape[1], np.int32)
        highest(cosines, self.live[number], result)
        return result


@dataclass(frozen=True)
class Scorer:
    """The twin of `LookalikeModel` that scores populations: equal to it within 1e-5, under all of its switches.

    A matrix product takes a block of users to all lists at once; a numba kernel turns what came out into similarities
    while it is in the cache. It works in one thread unless told otherwise: parallel over requests is better.

    Args:
        kernel: float32 `[user_dim, hidden]`. Of the shared layer, as are the next two.
        bias: float32 `[hidden]`.
        slope: float32 `[hidden]`. Of negative values; 0 for ReLU.
        local_kernel: float32 `[hidden, hidden]`, or `None` where there is no local part.
        global_kernel: float32 `[units, hidden]`, or `None` where all centroids weigh alike.
        global_query: float32 `[units]`, or `None`.
        alpha: float. Share of the global part.
        temperature: float. Multiple of the tanh of the local logits; 0 stands for no tanh. Defaults to `1.0`.
        size_bias: bool. Whether centroids weigh by their seeds. Defaults to `False`.

    Reference: Liu et al., KDD 2019, equation 2 and section 4.2.
    """

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]
    slope: NDArray[np.float32]
    local_kernel: NDArray[np.float32] | None
    global_kernel: NDArray[np.float32] | None
    global_query: NDArray[np.float32] | None
    alpha: float
    temperature: float = 1.0
    size_bias: bool = False

    @classmethod
    def of(cls, lookalike: Any) -> "Scorer":
        """Copy the weights of a `LookalikeModel`."""
        if not lookalike.built:
            lookalike.build()
        average, local = lookalike.global_attention.average, lookalike.local_attention
        temperature = {"tanh": 1.0, "linear": 0.0}.get(lookalike.attention)
        if temperature is None:
            temperature = float(_array(local.temperature)) if local is not None else 1.0
        bias = _array(lookalike.projection.bias)
        return cls(
            kernel=_array(lookalike.projection.kernel),
            bias=bias,
            slope=_array(lookalike.slope) if lookalike.activation == "prelu" else np.zeros_like(bias),
            local_kernel=None if local is None else _array(local.kernel),
            global_kernel=None if average else _array(lookalike.global_attention.kernel),
            global_query=None if average else _array(lookalike.global_attention.query).ravel(),
            alpha=lookalike.global_share(),
            temperature=temperature,
            size_bias=lookalike.size_bias,
        )

    @property
    def user_dim(self) -> int:
        """Width of the user embeddings."""
        return self.kernel.shape[0]

    @property
    def hidden(self) -> int:
        """Width of the transformed embeddings."""
        return self.kernel.shape[1]

    def project(self, vectors: NDArray[np.float32], *, threads: int = 1) -> Users:
        """Target users `[n, user_dim]`, ready for `Seeds.similarity`."""
        _check_vectors("vectors", vectors, self.user_dim)
        kernel = np.ascontiguousarray(self.kernel.T)
        parts = [vectors[low : low + BLOCK] for low in range(0, len(vectors), BLOCK)]
        widths = [-(-len(part) // LANES) * LANES for part in parts]
        values = np.zeros(self.hidden * sum(widths), np.float32)
        users = Users(values, [np.empty(width, np.float32) for width in widths], self.hidden, len(vectors))
        blocks = users.blocks

        def work(some: range) -> None:
            for b in some:
                np.matmul(kernel, parts[b].T, out=blocks[b][:, : len(parts[b])])  # [hidden, users]
                activate(blocks[b], self.bias, self.slope, len(parts[b]), users.scales[b])

        share_out(work, len(parts), threads)
        return users

    def transform(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """User embeddings `[n, user_dim]` -> `[n, hidden]`: what seeds are clustered in."""
        users = self.project(vectors)
        result = np.empty((users.rows, self.hidden), np.float32)
        for number, block in enumerate(users.blocks):
            rows = result[number * BLOCK : (number + 1) * BLOCK]
            rows[:] = block[:, : len(rows)].T
        return result

    def summarize(self, centroids: NDArray[np.float32], counts: ArrayLike) -> Seeds:
        """What similarities to these seeds need.

        Args:
            centroids: float32 `[lists, k, hidden]`. Of the transformed seeds.
            counts: array `[lists, k]`. Seeds of each centroid; 0 where there is none.

        Raises:
            ValueError: if the shapes are others, a centroid is not finite, or a count is negative.
        """
        counts = np.asarray(counts, np.float64)  # [lists, k]
        if centroids.ndim != 3 or centroids.shape[2] != self.hidden or counts.shape != centroids.shape[:2]:
            raise ValueError(
                f"`centroids` should be [lists, k, {self.hidden}] and `counts` [lists, k]. "
                f"Received: {list(centroids.shape)} and {list(counts.shape)}."
            )
        if not (counts >= 0).all():
            raise ValueError(f"`counts` should be 0 or more. Received: {counts[~(counts >= 0)][0]}.")
        live = counts > 0  # [lists, k]
        seeds = np.where(live[..., None], centroids, 0).astype(np.float64)  # [lists, k, hidden]
        if not np.isfinite(seeds).all():
            raise ValueError(f"`centroids` should be finite. Received: {np.sum(~np.isfinite(seeds))} other values.")
        sizes = np.where(live, np.maximum(counts, 1) if self.size_bias else 1.0, 0.0)
        factors = sizes / np.maximum(sizes.max(axis=1, keepdims=True, initial=0), 1)
        columns = [_unit(self._global(seeds, factors, live))[:, None]]  # [lists, 1, hidden]
        roots = np.zeros((len(seeds), 0, 0), np.float32)
        if self.local_kernel is not None:
            logits = seeds @ self.local_kernel.astype(np.float64)  # [lists, k, hidden]
            # The largest logit is taken off before the exponential: it must be one of a centroid that exists.
            first = np.argmax(live, axis=1)
            logits = np.where(live[..., None], logits, logits[np.arange(len(logits)), first][:, None])
            q, upper = np.linalg.qr(seeds.transpose(0, 2, 1))  # [lists, hidden, r], [lists, r, k]
            columns = [logits, q.transpose(0, 2, 1), *columns]
            roots = upper.astype(np.float32)
        return Seeds(
            columns=np.concatenate(columns, axis=1).astype(np.float32),
            roots=roots,
            factors=factors.astype(np.float32),
            directions=_unit(seeds).astype(np.float32),
            live=live,
            alpha=self.alpha,
            temperature=self.temperature,
        )

    def _global(
        self, seeds: NDArray[np.float64], factors: NDArray[np.float64], live: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Global embeddings `[lists, hidden]`; zeros for a list without centroids."""
        weights = factors
        if self.global_kernel is not None and self.global_query is not None:
            hidden = np.tanh(seeds @ self.global_kernel.T.astype(np.float64))  # [lists, k, units]
            logits = np.where(live, hidden @ self.global_query.astype(np.float64), -np.inf)  # [lists, k]
            highest = np.where(live.any(1), logits.max(axis=1, initial=-np.inf), 0)
            weights = factors * np.exp(logits - highest[:, None])
        weights = weights / np.maximum(weights.sum(1, keepdims=True), np.finfo(np.float64).tiny)
        return np.einsum("lk,lkh->lh", weights, seeds)

    def similarity(self, vectors: NDArray[np.float32], seeds: Seeds, *, threads: int = 1) -> NDArray[np.float32]:
        """Similarity of every user to every list.

        Args:
            vectors: float32 `[n, user_dim]`. Target users, as the representation made them.
            seeds: `Seeds`. From `summarize`.
            threads: int. Blocks of users worked on at once. Defaults to `1`.

        Returns:
            float32 `[n, lists]` in [-1, 1]; exactly 0 for a list without centroids or a user who is zero when
            transformed.

        Raises:
            ValueError: if `vectors` has another shape or dtype, or a vector is not finite.
        """
        result = np.empty((len(vectors), len(seeds)), np.float32)
        for start, part in slabs([vectors], self.user_dim):
            users = self.project(part, threads=threads)
            result[start : start + len(part)] = seeds.similarity(users, threads=threads).T
        return result

    def nearest(self, vectors: NDArray[np.float32], seeds: Seeds) -> NDArray[np.int32]:
        """Each user's centroid of every list, int32 `[n, lists]`: the one with the largest cosine to him.

        Of equal ones the first; -1 for a list without centroids. The cosine and not the attention decides: it means the
        same under every switch.
        """
        result = np.empty((len(vectors), len(seeds)), np.int32)
        for start, part in slabs([vectors], self.user_dim):
            users = self.project(part)
            every = users.take(np.arange(len(part)))
            for number in range(len(seeds)):
                result[start : start + len(part), number] = seeds.nearest(every, number)
        return result


def seed_centroids(
    scorer: Scorer,
    vectors: NDArray[np.float32],
    *,
    k: int = 20,
    weights: NDArray[np.float32] | None = None,
    seed: int = 0,
    iterations: int = 10,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Centroids of one seed list.

    Args:
        scorer: `Scorer`. Transforms the seeds.
        vectors: float32 `[seeds, user_dim]`.
        k: int. Most centroids. Defaults to `20`.
        weights: float32 `[seeds]`, optional. A seed of weight 2 counts as two.
        seed: int. Random seed of the clustering. Defaults to `0`.
        iterations: int. As in `cluster`. Defaults to `10`.

    Returns:
        `(centroids, counts)`: float32 `[k, hidden]` and int64 `[k]`, 0 where there is none.
    """
    ends = np.array([0, len(vectors)], np.int64)
    found = cluster(scorer.transform(vectors), ends, k, iterations=iterations, seed=seed, weights=weights)
    return found.centroids[0], found.counts[0]


def slabs(chunks: Iterable[NDArray[np.float32]], user_dim: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """A population in slabs `(first row, vectors)` of `SLAB` users, however it was cut before.

    A row's place in a matrix product could change the last bit of its similarity; with slabs that start at fixed rows
    the result does not depend on the chunks. No more than a slab is copied.
    """
    start, filled = 0, 0
    rest = np.empty((0, user_dim), np.float32)
    for chunk in chunks:
        if chunk.ndim != 2 or chunk.shape[1] != user_dim or chunk.dtype != np.float32:
            raise ValueError(
                f"`vectors` should be float32 [users, {user_dim}]. Received: {chunk.dtype} {list(chunk.shape)}."
            )
        low = 0
        while low < len(chunk):
            if filled == 0 and len(chunk) - low >= SLAB:
                yield start, chunk[low : low + SLAB]
                start, low = start + SLAB, low + SLAB
                continue
            if len(rest) == 0:
                rest = np.empty((SLAB, user_dim), np.float32)
            more = min(SLAB - filled, len(chunk) - low)
            rest[filled : filled + more] = chunk[low : low + more]
            filled, low = filled + more, low + more
            if filled == SLAB:
                yield start, rest
                start, filled = start + SLAB, 0
    if filled:
        yield start, rest[:filled]


def _check_vectors(name: str, vectors: Any, user_dim: int) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != user_dim or vectors.dtype != np.float32:
        raise ValueError(
            f"`{name}` should be float32 [n, {user_dim}]. Received: {vectors.dtype} {list(vectors.shape)}."
        )
    finite = np.isfinite(vectors)
    if not finite.all():
        raise ValueError(f"`{name}` should be finite. Received: {np.sum(~finite.all(axis=1))} vectors that are not.")


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """The last axis at length 1; zeros where it is (almost) zero."""
    squares = np.sum(vectors * vectors, axis=-1, keepdims=True)
    return np.where(squares > ALMOST_ZERO, vectors / np.sqrt(np.maximum(squares, ALMOST_ZERO)), 0.0)


def _array(weight: Any) -> NDArray[np.float32]:
    return np.array(weight, np.float32)
