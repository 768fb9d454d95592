"""The tables of an exported version: what a refresh replaces, and all that it replaces."""

import hashlib
from typing import Any

import numpy as np

from ranking.data.schema import Schema
from ranking.exported.lookup import lookup_arrays
from ranking.exported.network import SplitNetwork
from ranking.run import Run, state_arrays
from ranking.state import State

__all__ = ["cross_columns", "shapes", "table_arrays", "tables_hash", "user_bytes"]


def cross_columns(state: State) -> dict[str, tuple[str, ...]]:
    """Statistics of a key of several sides -> the names of the arrays that their codes are made of."""
    return {
        f"statistic_{name}": tuple(column for column, _ in table.columns)
        for name, table in state.statistics.items()
        if table.side == "cross"
    }


def table_arrays(run: Run, state: State, network: Any = None, *, users: bool = True) -> dict[str, np.ndarray]:
    """Every table of a version, by `group/name`; the last row of those of users and items is nobody's.

    | group | tables |
    |---|---|
    | `user` | keys, rows (`lookup_arrays`), features, behaviours, `user_vector`, scaled statistics |
    | `item` | keys, rows, `has_similarity`, `log_seed_count` and statistics (scaled), `price`, parts of codes |
    | `codes`, `values`, `sizes` | of cross statistics: sorted codes and one more, values, sizes of code parts |
    | `network` | `SplitNetwork.item_arrays` |
    | `version` | `table_version`, `seed_watermark` |

    Args:
        run: Run. Models, vocabularies and scales.
        state: State. Items and users that the vocabularies lack have the out-of-vocabulary row there.
        network: SplitNetwork of the run, or `None`: made anew. Defaults to `None`.
        users: bool. Whether the users are in the tables, or nobody's row alone. Defaults to `True`.
    """
    version = {"table_version": np.int64(tables_hash(state)[1]), "seed_watermark": np.int64(state.tick)}
    if not users:
        state = state.only(np.zeros(len(state.user_ids), bool), np.ones(len(state.item_ids), bool))
    mean, sd = run.scales.log_seed_count
    has = (state.centroid_counts > 0).any(axis=1)
    user = {**lookup_arrays(state.user_ids, "user ids"), **state.users, "user_vector": state.user_vectors}
    item = {
        **lookup_arrays(state.item_ids, "item ids"),
        "has_similarity": np.asarray(has, np.float32),
        "log_seed_count": np.asarray((np.log1p(state.seed_counts).astype(np.float32) - mean) / sd, np.float32),
        "price": state.prices,
    }
    groups: dict[str, dict[str, Any]] = {"user": user, "item": item, "version": version}
    groups |= {"codes": {}, "values": {}, "sizes": {}}
    for name, table in state.statistics.items():
        means, sds = run.scales.statistics[f"statistic_{name}"]
        values = ((table.values - means) / sds).astype(np.float32)
        groups["values" if table.side == "cross" else table.side][f"statistic_{name}"] = values
        if table.side != "cross":
            continue
        groups["codes"][f"statistic_{name}"] = np.append(table.codes, table.codes[-1:].max(initial=0))
        groups["sizes"][f"statistic_{name}"] = np.array([size for _, size in table.columns], np.int64)
        item |= {column: state.items[column] for column, _ in table.columns if column in state.items}
    groups["network"] = (SplitNetwork(run) if network is None else network).item_arrays(state)
    return {f"{group}/{name}": np.asarray(values) for group, of in groups.items() for name, values in of.items()}


def user_bytes(state: State) -> int:
    """How large the tables of the users are."""
    tables = [state.user_vectors, *state.users.values()]
    tables += [table.values for table in state.statistics.values() if table.side == "user"]
    return sum(table.nbytes for table in tables) + len(state.user_ids) * (8 + 4)  # fingerprints and rows


def tables_hash(state: State) -> tuple[str, int]:
    """Of all that a state holds: SHA-256, and the `table_version` on the wire."""
    digest = hashlib.sha256()
    for name, values in sorted(state_arrays(state).items()):
        array = np.ascontiguousarray(values)
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data if array.dtype.kind != "U" else array.tobytes())
    return digest.hexdigest(), int(digest.hexdigest()[:15], 16)  # 60 bits: never negative


def shapes(tables: dict[str, np.ndarray], schema: Schema) -> dict[str, list[int | None]]:
    """Shapes that new tables fit: any number of rows, and of multi-valued features any number of values."""
    names = {f"{f.side}_{f.name}" for f in schema.features if f.kind == "multi"}
    multi = {f"{group}/{n}{end}" for group in ("user", "item", "network") for n in names for end in ("", "_weight")}
    found: dict[str, list[int | None]] = {}
    for name, values in tables.items():
        inner = [None] * (values.ndim - 1) if name in multi else list(values.shape[1:])
        found[name] = [None, *inner] if values.ndim else []
    return found
