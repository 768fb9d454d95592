"""The `dataset.toml` of a KuaiRand import: windows on the log's own days, features, statistics."""

from datetime import datetime, timedelta

from ranking.errors import UserError

__all__ = ["dataset_toml"]

# The log's `date` is the day in China (UTC+8) of a clock that runs about eight minutes ahead of `time_ms`: no row of a
# day is later than 23:52:10. With this boundary 99.7 % of the rows of the slice fall on their own date, and the others
# are late reports of the evening before.
_DAY_ENDS = timedelta(hours=-8) - timedelta(minutes=7, seconds=50)
_LOOKALIKE_UNTIL = datetime(2022, 4, 25)
_HISTORY_FROM = datetime(2022, 4, 8)

_TEXT = """# Written by `seedrank data import kuairand` from {source}.
# KuaiRand: Gao et al., CIKM 2022, doi 10.1145/3511808.3557624, CC BY-SA 4.0.
schema_version = 1

[ids]
user = "int64"
item = "int64"

[labels]
funnel = ["click", "conversion"]   # conversion = {conversion} and click
attribution_hours = {{ click = 0, conversion = 0 }}
observed_until = {observed_until}
seed_event = "behaviors.long_watch"
seed_sample = "behaviors.watch"

[windows]   # the log's own days, {first:%d %B} to {last:%d %B}: each ends at 23:52:10 in China
{windows}

[features.user]
user_active_degree = {{ kind = "categorical" }}
is_lowactive_period = {{ kind = "categorical" }}
is_live_streamer = {{ kind = "categorical" }}
is_video_author = {{ kind = "categorical" }}
follow_user_num = {{ kind = "numeric", transform = "log1p" }}
fans_user_num = {{ kind = "numeric", transform = "log1p" }}
friend_user_num = {{ kind = "numeric", transform = "log1p" }}
register_days = {{ kind = "numeric" }}
{onehot}

[features.item]
author_id = {{ kind = "categorical", min_count = 2 }}
video_type = {{ kind = "categorical" }}
upload_type = {{ kind = "categorical" }}
music_type = {{ kind = "categorical" }}
tag = {{ kind = "multi", separator = "," }}
duration_s = {{ kind = "numeric", transform = "log1p" }}
duration_bucket = {{ kind = "categorical" }}

[features.context]
tab = {{ kind = "categorical" }}

[features.behavior]   # from the history file and from the log itself
long_watch = {{ vocabulary = "item", keep = 50 }}
watch = {{ vocabulary = "item", keep = 50 }}
like = {{ vocabulary = "item", keep = 50 }}

[features.statistic]
{statistics}

[state]
tick = "1d"
k = 20
min_seeds = 30
"""

_LONG = 'event = "behaviors.{counted}long_watch", per = "behaviors.watch"'
_LIKE = 'event = "behaviors.{counted}like", per = "behaviors.watch"'
_CLICK = 'event = "click"'
_CONVERSION = 'event = "conversion", per = "click"'
_STATISTICS = (
    ("item_ctr", ("item_id",), _CLICK, 20),
    ("item_tab_ctr", ("item_id", "tab"), _CLICK, 20),
    ("item_long_rate", ("item_id",), _LONG, 20),
    ("item_like_rate", ("item_id",), _LIKE, 50),
    ("item_cvr", ("item_id",), _CONVERSION, 20),
    ("author_ctr", ("author_id",), _CLICK, 20),
    ("author_long_rate", ("author_id",), _LONG, 20),
    ("author_cvr", ("author_id",), _CONVERSION, 20),
    ("tag_ctr", ("tag",), _CLICK, 50),
    ("tag_long_rate", ("tag",), _LONG, 50),
    ("tag_cvr", ("tag",), _CONVERSION, 50),
    ("duration_ctr", ("duration_bucket",), _CLICK, 50),
    ("duration_cvr", ("duration_bucket",), _CONVERSION, 50),
    ("tab_ctr", ("tab",), _CLICK, 50),
    ("tab_cvr", ("tab",), _CONVERSION, 50),
    ("user_ctr", ("user_id",), _CLICK, 10),
    ("user_tab_ctr", ("user_id", "tab"), _CLICK, 10),
    ("user_long_rate", ("user_id",), _LONG, 10),
    ("user_like_rate", ("user_id",), _LIKE, 10),
    ("user_cvr", ("user_id",), _CONVERSION, 10),
)


def dataset_toml(first: datetime, last: datetime, *, history: bool, conversion: str, source: str) -> str:
    """The text for a log of the days `first` to `last`, both included.

    With a history, rates are of the `counted_` fields: a long watch older than the watches kept has no trial beside it,
    and would push the rates of busy users to one.

    The look-alike window ends on 25 April; the last two days are the test window, the two before it tune and calibrate,
    and what lies between is the train window.

    Raises:
        UserError: the log is too short for five windows.
    """
    begin = _HISTORY_FROM if history else first
    if begin >= _LOOKALIKE_UNTIL or last < _LOOKALIKE_UNTIL + timedelta(days=4):
        raise UserError(
            f"{source}: the logs should begin before 25 April 2022 (or come with a history) and reach 29 April at "
            f"least. Received: {first:%d %B} to {last:%d %B}."
        )
    edges = {
        "lookalike": (begin, _LOOKALIKE_UNTIL),
        "train": (_LOOKALIKE_UNTIL, last - timedelta(days=3)),
        "calibrate": (last - timedelta(days=3), last - timedelta(days=2)),
        "tune": (last - timedelta(days=2), last - timedelta(days=1)),
        "test": (last - timedelta(days=1), last + timedelta(days=1)),
    }
    windows = [f"{name} = [{_moment(start)}, {_moment(end)}]" for name, (start, end) in edges.items()]
    statistics = [
        f"{name} = {{ key = [{', '.join(repr(part) for part in key)}], {event}, prior = {prior} }}"
        for name, key, event, prior in _STATISTICS
    ]
    return _TEXT.format(
        source=source,
        conversion=conversion,
        first=first,
        last=last,
        observed_until=f"{last + timedelta(days=1, hours=-7):%Y-%m-%dT%H:%M:%SZ}",
        windows="\n".join(windows),
        onehot="\n".join(f'onehot_feat{number} = {{ kind = "categorical" }}' for number in range(18)),
        statistics="\n".join(statistics).replace("'", '"').replace("{counted}", "counted_" if history else ""),
    )


def _moment(day: datetime) -> str:
    return f"{day + _DAY_ENDS:%Y-%m-%dT%H:%M:%SZ}"
