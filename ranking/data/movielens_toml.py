"""The `dataset.toml` of a MovieLens import."""

from collections.abc import Sequence
from datetime import UTC, datetime

from ranking.errors import UserError

__all__ = ["dataset_toml"]

_NAMES = ("lookalike", "train", "calibrate", "tune", "test")

_TEXT = """# Written by `seedrank data import movielens` from {source}.
# MovieLens: Harper and Konstan, ACM TiiS 2015, doi 10.1145/2827872; not for redistribution without permission.
# A proxy: click = rated, conversion = rated 4 or more; the films not clicked are sampled, nobody logged them.
schema_version = 1

[ids]
user = "int64"
item = "int64"

[labels]
funnel = ["click", "conversion"]
seed_event = "conversion"

[windows]   # 30, 50, 7, 7 and 6 % of the ratings
{windows}

[features.user]
{users}
[features.item]
genres = {{ kind = "multi", separator = "|" }}
year = {{ kind = "numeric" }}

[features.statistic]
item_ctr = {{ key = ["item_id"], event = "click" }}
item_cvr = {{ key = ["item_id"], event = "conversion", per = "click" }}
genre_ctr = {{ key = ["genres"], event = "click", prior = 50 }}
genre_cvr = {{ key = ["genres"], event = "conversion", per = "click", prior = 50 }}
user_cvr = {{ key = ["user_id"], event = "conversion", per = "click", prior = 10 }}

[state]
tick = "1d"
k = 20
min_seeds = 30
"""

_USERS = "".join(f'{name} = {{ kind = "categorical" }}\n' for name in ("gender", "age", "occupation", "region"))


def dataset_toml(edges: Sequence[int], source: str, *, users: bool) -> str:
    """The text for the edges of the five windows, in seconds; the last is the last rating.

    Raises:
        UserError: the ratings' times are too close together for five windows.
    """
    if any(low >= high for low, high in zip(edges, edges[1:], strict=False)):
        raise UserError(f"{source}: the ratings' times should spread over five windows. Received: {list(edges)}.")
    ends = [*edges[1:-1], edges[-1] + 1]
    windows = [
        f"{name} = [{_moment(low)}, {_moment(high)}]" for name, low, high in zip(_NAMES, edges, ends, strict=False)
    ]
    return _TEXT.format(source=source, windows="\n".join(windows), users=_USERS if users else "")


def _moment(seconds: int) -> str:
    return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%dT%H:%M:%SZ}"
