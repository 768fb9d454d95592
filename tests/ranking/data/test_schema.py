import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranking.data.schema import Behavior, Feature, Statistic, load_schema, parse_schema
from ranking.data.times import parse_moment, parse_tick
from ranking.errors import UserError

HEAD = """
schema_version = 1
[ids]
user = "int64"
item = "string"
"""
FULL = (
    HEAD
    + """
[labels]
funnel = ["click", "conversion"]
attribution_hours = { conversion = 72 }
observed_until = 2022-05-05T23:59:59Z
seed_event = "behaviors.long_watch"
seed_sample = "behaviors.watch"
[windows]
lookalike = ["2022-04-09", "2022-04-25"]
train     = ["2022-04-25", "2022-05-02"]
calibrate = ["2022-05-02", "2022-05-02T12:00:00+02:00"]
tune      = [2022-05-03, 2022-05-04T00:00:00.250Z]
test      = ["2022-05-04T00:00:00.25", 2022-05-06]
[features.user]
age_range = { kind = "categorical", min_count = 5 }
register_days = { kind = "numeric", transform = "log1p" }
[features.item]
tag = { kind = "multi", separator = "|" }
topic = { kind = "multi", weights = ":", keep = 9 }
[features.context]
tab = { kind = "categorical" }
bid = { kind = "numeric", per = "candidate" }
[features.behavior]
long_watch = { vocabulary = "item", keep = 20 }
query = { vocabulary = "own" }
[features.statistic]
item_tab_ctr = { key = ["item_id", "tab"], event = "click", prior = 20 }
tag_rate = { key = ["tag"], event = "behaviors.long_watch", per = "behaviors.watch", prior = 5.5 }
item_cvr = { key = ["item_id"], event = "conversion", per = "click" }
[state]
tick = "1h"
k = 7
min_seeds = 3
[replay]
examination = [1, 0.5]
segment = "segment"
"""
)


def test_every_key():
    schema = parse_schema(FULL)
    assert (schema.user_id, schema.item_id, schema.time) == ("int64", "string", "epoch")
    assert schema.attribution_ms == {"click": 0, "conversion": 72 * 3_600_000}
    assert schema.observed_until == 1651795199000  # date -u -d 2022-05-05T23:59:59Z +%s
    assert schema.windows["lookalike"] == (1649462400000, 1650844800000)
    assert schema.windows["calibrate"][1] == 1651485600000  # 12:00 at +02:00 is 10:00 UTC
    assert schema.windows["tune"][1] == schema.windows["test"][0] == 1651622400250
    assert schema.features == (
        Feature("age_range", "user", "categorical", min_count=5),
        Feature("register_days", "user", "numeric", transform="log1p"),
        Feature("tag", "item", "multi", separator="|"),
        Feature("topic", "item", "multi", weights=":", keep=9),
        Feature("tab", "context", "categorical"),
        Feature("bid", "context", "numeric", per="candidate"),
    )
    assert [feature.name for feature in schema.side("context")] == ["tab", "bid"]
    assert schema.behaviors == (Behavior("long_watch", keep=20), Behavior("query", "own"))
    assert schema.behavior_fields() == {"long_watch": "item", "query": "own", "watch": "item"}
    assert schema.statistics[0] == Statistic("item_tab_ctr", ("item_id", "tab"), "click")
    assert schema.statistics[1].prior == 5.5 and schema.statistics[2].per == "click"
    assert (schema.tick_ms, schema.k, schema.min_seeds) == (3_600_000, 7, 3)
    assert schema.examination == (1.0, 0.5) and schema.segment == "segment"


def test_defaults():
    schema = parse_schema(HEAD + "[windows]\n")
    assert schema.attribution_ms == {"click": 0, "conversion": 0}
    assert schema.observed_until is None and schema.examination is None and schema.segment == ""
    assert (schema.seed_event, schema.seed_sample) == ("click", "impressions")
    assert (schema.tick_ms, schema.k, schema.min_seeds) == (86_400_000, 20, 30)
    with pytest.raises(UserError, match="should declare `tune`"):
        schema.window("tune")


def test_ordinal_time():
    schema = parse_schema('time = "ordinal"' + HEAD + "[windows]\ntrain = [0, 42300000]\n[state]\ntick = 100000\n")
    assert schema.windows == {"train": (0, 42_300_000)} and schema.tick_ms == 100_000
    with pytest.raises(UserError, match="because time is ordinal"):
        parse_schema('time = "ordinal"' + HEAD + "[windows]\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema_version = 1", "schema_version = 2", "`schema_version` should be 1. Received: 2"),
        ("schema_version = 1", "schema_version = 1\nwindow = 3", "unknown key `window`; did you mean `windows`"),
        ("min_seeds = 3", "min_seed = 3", r"\[state\]: unknown key `min_seed`; did you mean `min_seeds`.*tick, k"),
        ("k = 7", "k = 0", "`k` should be a positive integer. Received: 0"),
        ("k = 7", "k = true", "`k` should be a positive integer. Received: True"),
        ('tick = "1h"', 'tick = "1 hour"', '`tick` should be a whole number and a unit, as in "1d"'),
        ('user = "int64"', 'user = "int32"', r"\[ids\] `user` should be one of int64, string. Received: 'int32'"),
        ('item = "string"\n', "", r"\[ids\] should have the key `item`"),
        ('["click", "conversion"]', '["click"]', r"`funnel` should be \[\"click\", \"conversion\"\]"),
        ("conversion = 72", "buy = 72", "unknown key `buy`; allowed: click, conversion"),
        ("conversion = 72", "conversion = -1", "number of hours, 0 or more. Received: -1"),
        ('"2022-04-09"', '"9 April"', "`lookalike` should be a date or a datetime"),
        ('"2022-04-09"', '"2022-04-25"', "`lookalike` should start before it ends"),
        ('["2022-04-25", "2022-05-02"]', '["2022-04-24", "2022-05-02"]', "`train` should start at or after the end of"),
        ('["2022-04-25", "2022-05-02"]', '["2022-04-25"]', "`train` should be a pair"),
        ("train     =", "training =", "unknown key `training`; did you mean `train`"),
        ('kind = "multi"', 'kind = "list"', "`kind` should be one of categorical, multi, numeric. Received: 'list'"),
        ('kind = "multi"', 'kind = "numeric"', r"`tag` \(numeric, side item\): unknown key `separator`"),
        ('separator = "|"', 'per = "request"', r"`tag` \(multi, side item\): unknown key `per`"),
        ('transform = "log1p"', 'transform = "log"', "`transform` should be one of minmax, log1p. Received: 'log'"),
        ("keep = 9", 'keep = "9"', "`keep` should be a positive integer. Received: '9'"),
        ('weights = ":"', 'weights = ""', "`weights` should be a text that cannot be a part of a number"),
        ('weights = ":"', 'weights = "."', "`weights` should be a text that cannot be a part of a number"),
        ('weights = ":"', 'weights = ","', "`weights` should differ from the separator ','"),
        ("tag = {", "topic_weight = {", "`topic` should not stand beside `topic_weight`"),
        ('{ kind = "categorical" }', '{ kind = "categorical", keep = 3 }', "unknown key `keep`"),
        ("bid = {", "value = {", "`value` is a label"),
        ("age_range = {", "conversion_time = {", "`conversion_time` is a label"),
        ("bid = {", "position = {", "`position` is a column of the log"),
        ('vocabulary = "own"', 'vocabulary = "self"', "`vocabulary` should be one of item, own"),
        ("keep = 20", "keep = 0", "`keep` should be a positive integer"),
        ('"behaviors.long_watch"\nseed', '"behaviors.query"\nseed', "`seed_event` should name a behaviour whose voc"),
        ('"behaviors.watch"\n[', '"click"\n[', "`seed_sample` should be one of impressions, behaviors.<field>"),
        ('"tab"], event = "click"', '"tabs"], event = "click"', "unknown key `tabs`; did you mean `tab`"),
        ('["item_id", "tab"]', '["item_id", "bid"]', "no numeric feature, and `bid` is one"),
        ('key = ["tag"]', 'key = ["tab"]', "no context column, because behaviors have none: `tab`"),
        ('["item_id", "tab"]', "[]", "non-empty list"),
        ('["item_id", "tab"]', '["item_id", "tag"]', "a multi feature alone"),
        (
            'event = "conversion"',
            'event = "impression"',
            "`event` should be one of click, conversion, behaviors.<field>",
        ),
        ('event = "conversion"', 'event = "click"', "`per` should differ from `event`"),
        ('per = "behaviors.watch"', 'per = "impression"', "`per` should be of the same table"),
        ("prior = 5.5", "prior = 0", "`prior` should be a positive number"),
        ("[1, 0.5]", "[1, 0]", "`examination` should be a list of numbers above 0 and up to 1"),
        ('segment = "segment"', 'segment = ""', r"\[replay\] `segment` should be a non-empty text. Received: ''"),
        ('segment = "segment"', "segment = 3", r"\[replay\] `segment` should be a non-empty text. Received: 3"),
        ("k = 7", "k = ", "not valid TOML"),
    ],
)
def test_broken_rules_name_the_file_and_the_key(old, new, message):
    assert old in FULL
    with pytest.raises(UserError, match=message) as caught:
        parse_schema(FULL.replace(old, new, 1), "here/dataset.toml")
    assert str(caught.value).startswith("here/dataset.toml: ") and "\n" not in str(caught.value)


def test_load_names_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="dataset.toml does not exist"):
        load_schema(tmp_path)
    (tmp_path / "dataset.toml").write_text(FULL)
    assert load_schema(tmp_path) == parse_schema(FULL)


@given(st.integers(1, 999_999), st.sampled_from("smhd"))
def test_tick_units(count, unit):
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    assert parse_tick(f"{count}{unit}") == count * seconds * 1000


@given(st.datetimes())
def test_moment_of_text_and_of_datetime_agree(moment):
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    assert parse_moment(moment.isoformat()) == parse_moment(moment)
