"""Standard errors of metrics by a bootstrap over users."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ranking.metrics import group_auc, group_ndcg, label_rows, log_losses, prepare_auc, prepare_ece

__all__ = ["AUC", "ECE", "GAUC", "NDCG", "PCOC", "Bootstrap", "LogLoss", "Mean", "Statistic", "user_bootstrap"]

Columns = Mapping[str, np.ndarray]
Prepared = Callable[[np.ndarray], float]  # weight of each row -> value


class Statistic(abc.ABC):
    """A number made of named columns, prepared once and then evaluated for many weightings of the rows."""

    @abc.abstractmethod
    def prepare(self, columns: Columns) -> Prepared:
        """A function of the weight of each row, `[n]` -> value."""

    def __call__(self, columns: Columns, weight: np.ndarray) -> float:
        """The value with `weight[i]` copies of row i."""
        return self.prepare(columns)(weight)


@dataclasses.dataclass(frozen=True)
class Mean(Statistic):
    """The mean of some statistics, such as those of the random seeds of a model.

    Args:
        parts: sequence of Statistic.
    """

    parts: Sequence[Statistic]

    def prepare(self, columns: Columns) -> Prepared:
        """Prepares every part."""
        ready = [part.prepare(columns) for part in self.parts]
        return lambda weight: float(np.mean([value(weight) for value in ready]))


@dataclasses.dataclass(frozen=True)
class _Metric(Statistic):
    """A metric of a label and a score.

    Args:
        label: str. Column of 0 and 1.
        score: str. Column of scores or probabilities.
        where: str. Column whose non-zero rows count (CVR is judged `where="click"`). Defaults to all rows.
    """

    label: str
    score: str
    where: str = ""

    def _masked(self, columns: Columns, *names: str) -> tuple[Any, list[np.ndarray]]:
        kept = np.flatnonzero(columns[self.where]) if self.where else slice(None)
        wanted = dict(zip(("label", "score", "group"), (self.label, self.score, *names), strict=False))
        return kept, label_rows(**{name: np.asarray(columns[column])[kept] for name, column in wanted.items()})


class AUC(_Metric):
    """`auc` of two columns."""

    def prepare(self, columns: Columns) -> Prepared:
        """Sorts the scores."""
        kept, (label, score) = self._masked(columns)
        value = prepare_auc(label, score)
        return lambda weight: value(weight[kept])


class LogLoss(_Metric):
    """`logloss` of two columns."""

    def prepare(self, columns: Columns) -> Prepared:
        """Takes the logarithms."""
        kept, (label, probability) = self._masked(columns)
        each = log_losses(label, probability)
        return lambda weight: _ratio(np.sum(weight[kept] * each), np.sum(weight[kept]))


class PCOC(_Metric):
    """`pcoc` of two columns."""

    def prepare(self, columns: Columns) -> Prepared:
        """Selects the rows."""
        kept, (label, probability) = self._masked(columns)
        label, probability = label.astype(np.float64), probability.astype(np.float64)
        return lambda weight: _ratio(np.sum(weight[kept] * probability), np.sum(weight[kept] * label))


class ECE(_Metric):
    """`ece` of two columns; the bins of a replicate hold equal mass of its own rows."""

    def prepare(self, columns: Columns) -> Prepared:
        """Sorts the probabilities."""
        kept, (label, probability) = self._masked(columns)
        value = prepare_ece(label, probability)
        return lambda weight: value(weight[kept])


@dataclasses.dataclass(frozen=True)
class _Grouped(_Metric):
    """A mean over groups; a group lies within one user, so that its rows have one weight.

    Args:
        label: str. Column of 0 and 1.
        score: str. Column of scores.
        where: str. Column whose non-zero rows count. Defaults to all rows.
        group: str. Column of the groups. Defaults to `"user_id"`.
    """

    group: str = "user_id"

    @abc.abstractmethod
    def groups(self, label: np.ndarray, score: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, ...]:
        """Value (NaN where there is none), weight and one row of every group."""

    def prepare(self, columns: Columns) -> Prepared:
        """The value of every group."""
        kept, (label, score, group) = self._masked(columns, self.group)
        values, sizes, first = self.groups(label, score, group)
        informative = ~np.isnan(values)
        values, sizes = values[informative], sizes[informative]
        rows = np.arange(len(columns[self.label]))[kept][first[informative]]

        def value(weight: np.ndarray) -> float:
            weight = weight[rows] * sizes
            return _ratio(np.sum(weight * values), np.sum(weight))

        return value


class GAUC(_Grouped):
    """`gauc` of three columns."""

    def groups(self, label: np.ndarray, score: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, ...]:
        """AUC, size and one row of every group."""
        return group_auc(label, score, group)


class NDCG(_Grouped):
    """`ndcg` of three columns."""

    def groups(self, label: np.ndarray, score: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, ...]:
        """NDCG, 1 and one row of every group."""
        values, first = group_ndcg(label, score, group)
        return values, np.ones(values.size), first


def _ratio(numerator: float, denominator: float) -> float:
    # its sums are plain np.sum: np.dot would wake BLAS threads for every replicate, 100 times slower on a busy machine
    return float(numerator / denominator) if denominator > 0 else np.nan


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """What `user_bootstrap` found.

    Args:
        estimate: dict. Of each statistic, and of each difference by its name: the value on the rows as they are.
        se: dict. Of the same names: the standard error.
        draws: dict. Of the same names: float64 `[replicates]`, NaN where a replicate does not define it.
    """

    estimate: dict[str, float]
    se: dict[str, float]
    draws: dict[str, np.ndarray]

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """The percentile interval of a statistic or a difference."""
        draws = self.draws[name][~np.isnan(self.draws[name])]
        if draws.size == 0:
            return np.nan, np.nan
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def user_bootstrap(
    user: Any,
    columns: Columns,
    statistics: Mapping[str, Callable[[Columns, np.ndarray], float]],
    *,
    differences: Mapping[str, tuple[str, str]] | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> Bootstrap:
    """Standard errors when users, not impressions, are the sample.

    A replicate draws as many users as there are, with replacement, and every row weighs as often as its user was drawn.
    All statistics see the same replicates, so that the error of a difference between two models is a paired one.

    Args:
        user: array `[n]`, the user of each row.
        columns: dict of arrays `[n]`.
        statistics: dict of functions of (columns, weight of each row `[n]`) -> float. Those of this module (`AUC`,
            `ECE`, `GAUC`, `LogLoss`, `NDCG`, `PCOC`) sort once for all replicates.
        differences: dict of name -> (a, b): `a - b` of two statistics. Defaults to none.
        replicates: int. Defaults to `200`.
        seed: int. Of the draws. Defaults to `0`.

    Returns:
        Bootstrap.

    Example:
        >>> user_bootstrap(
        ...     user, {"click": click, "a": a, "b": b}, {"a": AUC("click", "a"), "b": AUC("click", "b")},
        ...     differences={"a - b": ("a", "b")},
        ... ).se["a - b"]
    """
    if replicates < 2:
        raise ValueError(f"`replicates` should be at least 2. Received: replicates={replicates}.")
    differences = dict(differences or {})
    for name, pair in differences.items():
        if name in statistics or not set(pair) <= set(statistics):
            raise ValueError(
                f"`differences` should be new names of pairs of {sorted(statistics)}. Received: {name}={pair}."
            )
    _, index = np.unique(np.asarray(user), return_inverse=True)
    users = int(index.max()) + 1 if index.size else 0
    for column, values in columns.items():
        if np.shape(values)[:1] != index.shape:
            raise ValueError(f"column {column!r} should have {index.size} rows. Received: shape {np.shape(values)}.")
    prepared = {name: _prepared(statistic, columns) for name, statistic in statistics.items()}
    estimate = {name: value(np.ones(index.size)) for name, value in prepared.items()}
    draws = {name: np.full(replicates, np.nan) for name in prepared}
    generator = np.random.default_rng(seed)
    for replicate in range(replicates if users else 0):
        drawn = np.bincount(generator.integers(users, size=users), minlength=users)
        weight = drawn[index].astype(np.float64)
        for name, value in prepared.items():
            draws[name][replicate] = value(weight)
    for name, (a, b) in differences.items():
        estimate[name] = estimate[a] - estimate[b]
        draws[name] = draws[a] - draws[b]
    defined = {name: values[~np.isnan(values)] for name, values in draws.items()}
    se = {name: float(values.std(ddof=1)) if values.size > 1 else np.nan for name, values in defined.items()}
    return Bootstrap(estimate, se, draws)


def _prepared(statistic: Callable[[Columns, np.ndarray], float], columns: Columns) -> Prepared:
    if isinstance(statistic, Statistic):
        return statistic.prepare(columns)
    return lambda weight: float(statistic(columns, weight))
