"""The `dataset.toml` of an import of Taobao's display advertisements."""

from datetime import datetime, timedelta

from ranking.data.days import day_windows

__all__ = ["PROFILE", "dataset_toml"]

PROFILE = (
    "cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,new_user_class_level"
).split(",")

_TEXT = """# Written by `seedrank data import taobao` from {source}.
# Taobao display advertisements: https://tianchi.aliyun.com/dataset/56, not for commercial use.
# A proxy: conversion = a purchase in the advertisement's category and brand within {days} days after the click.
schema_version = 1

[ids]
user = "int64"
item = "int64"

[labels]
funnel = ["click", "conversion"]
attribution_hours = {{ click = 0, conversion = {hours} }}
observed_until = {until}
seed_event = "click"

[windows]   # days in China; what comes after the test window is there for its purchases
{windows}

[features.user]
{profile}

[features.item]
cate_id = {{ kind = "categorical" }}
brand = {{ kind = "categorical", min_count = 2 }}
campaign_id = {{ kind = "categorical", min_count = 2 }}
customer = {{ kind = "categorical", min_count = 2 }}
price = {{ kind = "numeric", transform = "log1p" }}

[features.context]
pid = {{ kind = "categorical" }}

[features.behavior]   # the categories of earlier purchases
bought = {{ vocabulary = "own", keep = 20 }}

[features.statistic]
item_ctr = {{ key = ["item_id"], event = "click", prior = 50 }}
item_cvr = {{ key = ["item_id"], event = "conversion", per = "click" }}
cate_ctr = {{ key = ["cate_id"], event = "click", prior = 50 }}
cate_cvr = {{ key = ["cate_id"], event = "conversion", per = "click" }}
brand_ctr = {{ key = ["brand"], event = "click", prior = 50 }}
brand_cvr = {{ key = ["brand"], event = "conversion", per = "click" }}
customer_ctr = {{ key = ["customer"], event = "click", prior = 50 }}
pid_ctr = {{ key = ["pid"], event = "click", prior = 50 }}
user_ctr = {{ key = ["user_id"], event = "click" }}
user_cvr = {{ key = ["user_id"], event = "conversion", per = "click" }}
user_cate_ctr = {{ key = ["user_id", "cate_id"], event = "click" }}

[state]
tick = "1d"
k = 20
min_seeds = 30
"""


def dataset_toml(first: datetime, spanned: int, days: int, source: str) -> str:
    """The text for a log of so many days, whose purchases count for `days` after the click.

    The last `days` lie outside the windows: their purchases are not all known.

    Raises:
        UserError: fewer than five days are left.
    """
    return _TEXT.format(
        source=source,
        days=days,
        hours=24 * days,
        until=f"{first + timedelta(days=spanned):%Y-%m-%dT%H:%M:%SZ}",
        windows=day_windows(first, spanned - days, f"{source}, without the last {days} days"),
        profile="\n".join(f'{name} = {{ kind = "categorical" }}' for name in PROFILE),
    )
