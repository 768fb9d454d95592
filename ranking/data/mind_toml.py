"""The `dataset.toml` of a MIND import."""

from datetime import datetime, timedelta

from ranking.data.days import day_windows

__all__ = ["AGAIN_MS", "dataset_toml"]

AGAIN_MS = 3_600_000  # a second click in the category within this time converts the first

_TEXT = """# Written by `seedrank data import mind` from {source}.
# MIND: Wu et al., ACL 2020, https://msnews.github.io, Microsoft Research License: research, not for commercial use.
# Exposures and clicks are real. A proxy: conversion = another click in the same category within an hour.
schema_version = 1

[ids]
user = "string"
item = "string"

[labels]
funnel = ["click", "conversion"]
attribution_hours = {{ click = 0, conversion = {hours} }}
observed_until = {until}
seed_event = "click"

[windows]
{windows}

[features.item]
category = {{ kind = "categorical" }}
subcategory = {{ kind = "categorical" }}
entities = {{ kind = "multi", min_count = 2 }}

[features.behavior]   # the history, and clicks since
read = {{ vocabulary = "item", keep = 50 }}

[features.statistic]
item_ctr = {{ key = ["item_id"], event = "click", prior = 50 }}
item_cvr = {{ key = ["item_id"], event = "conversion", per = "click" }}
category_ctr = {{ key = ["category"], event = "click", prior = 50 }}
category_cvr = {{ key = ["category"], event = "conversion", per = "click" }}
subcategory_ctr = {{ key = ["subcategory"], event = "click", prior = 50 }}
subcategory_cvr = {{ key = ["subcategory"], event = "conversion", per = "click" }}
user_ctr = {{ key = ["user_id"], event = "click", prior = 10 }}
user_cvr = {{ key = ["user_id"], event = "conversion", per = "click", prior = 10 }}
user_category_ctr = {{ key = ["user_id", "category"], event = "click", prior = 10 }}

[state]
tick = "1h"
k = 20
min_seeds = 30
"""


def dataset_toml(first: datetime, days: int, source: str) -> str:
    """The text for a log of so many days.

    Raises:
        UserError: there are fewer than five days.
    """
    return _TEXT.format(
        source=source,
        hours=AGAIN_MS // 3_600_000,
        until=f"{first + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}",
        windows=day_windows(first, days, source),
    )
