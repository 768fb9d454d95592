"""Ali-CCP's fields, what the dataset calls them, and the `dataset.toml` of an import."""

from ranking.errors import UserError

__all__ = ["COMMON_MULTI", "COMMON_SINGLE", "KEEP", "SKELETON_MULTI", "SKELETON_SINGLE", "dataset_toml"]

KEEP = 16  # values of a multi-valued field that are kept: the heaviest

# field -> column; the first of each single group is the id
COMMON_SINGLE = {
    "101": "user_id",
    "121": "profile_category",
    "122": "profile_group",
    "124": "gender",
    "125": "age",
    "126": "consumption_1",
    "127": "consumption_2",
    "128": "occupation",
    "129": "geography",
}
COMMON_MULTI = {
    "109_14": "history_categories",
    "110_14": "history_shops",
    "127_14": "history_brands",
    "150_14": "history_intentions",
}
SKELETON_SINGLE = {"205": "item_id", "206": "category", "207": "shop", "216": "brand", "301": "place"}
SKELETON_MULTI = {
    "210": "intentions",
    "508": "category_cross",
    "509": "shop_cross",
    "702": "brand_cross",
    "853": "intention_cross",
}

_TEXT = """# Written by `seedrank data import ali-ccp` from {source}.
# Ali-CCP (Ma et al., SIGIR 2018): https://tianchi.aliyun.com/dataset/408, not for commercial use.
schema_version = 1
time = "ordinal"   # the source has no times: the line number, training file first

[ids]
user = "int64"
item = "int64"

[labels]
funnel = ["click", "conversion"]
seed_event = "click"

[windows]   # the first {train} lines are sample_skeleton_train.csv
{windows}

[features.user]
{user}

[features.item]
category = {{ kind = "categorical" }}
shop = {{ kind = "categorical", min_count = 2 }}
brand = {{ kind = "categorical", min_count = 2 }}
intentions = {{ kind = "multi", weights = ":", keep = {keep} }}

[features.context]
place = {{ kind = "categorical", per = "candidate" }}
{context}

[features.statistic]
{statistics}

[state]
tick = {tick}
k = 20
min_seeds = 30
"""

_CLICK, _CONVERSION = 'event = "click"', 'event = "conversion", per = "click"'
_STATISTICS = (
    ("item_ctr", ("item_id",), _CLICK, 50),
    ("item_cvr", ("item_id",), _CONVERSION, 50),
    ("item_place_ctr", ("item_id", "place"), _CLICK, 50),
    ("shop_ctr", ("shop",), _CLICK, 50),
    ("shop_cvr", ("shop",), _CONVERSION, 50),
    ("brand_ctr", ("brand",), _CLICK, 50),
    ("brand_cvr", ("brand",), _CONVERSION, 50),
    ("category_ctr", ("category",), _CLICK, 50),
    ("category_cvr", ("category",), _CONVERSION, 50),
    ("place_ctr", ("place",), _CLICK, 50),
    ("user_ctr", ("user_id",), _CLICK, 20),
    ("user_cvr", ("user_id",), _CONVERSION, 20),
)
_LEAST = 20  # lines of each file: five windows need some
_EDGES = (("lookalike", 0.0, 0.25), ("train", 0.25, 0.9), ("calibrate", 0.9, 0.95), ("tune", 0.95, 1.0))


def dataset_toml(train: int, test: int, source: str) -> str:
    """The text for so many lines of the training and the test file.

    The first quarter of the training file is the look-alike window, its last tenth calibrates and tunes.

    Raises:
        UserError: there are too few lines.
    """
    if min(train, test) < _LEAST:
        raise UserError(
            f"{source}: both skeleton files should have at least {_LEAST} lines. Received: {train} and {test}."
        )
    windows = [f"{name} = [{int(low * train)}, {int(high * train)}]" for name, low, high in _EDGES]
    weighted = f'kind = "multi", weights = ":", keep = {KEEP}'
    context = [f"{name} = {{ {weighted} }}" for name in COMMON_MULTI.values()]
    crosses = [name for name in SKELETON_MULTI.values() if name.endswith("_cross")]
    context += [f'{name} = {{ {weighted}, per = "candidate" }}' for name in crosses]
    statistics = [
        f"{name} = {{ key = [{', '.join(key)}], {event}, prior = {prior} }}"
        for name, key, event, prior in ((n, [f'"{part}"' for part in k], e, p) for n, k, e, p in _STATISTICS)
    ]
    return _TEXT.format(
        source=source,
        train=train,
        windows="\n".join([*windows, f"test = [{train}, {train + test}]"]),
        user="\n".join(f'{name} = {{ kind = "categorical" }}' for name in list(COMMON_SINGLE.values())[1:]),
        keep=KEEP,
        context="\n".join(context),
        statistics="\n".join(statistics),
        tick=max(train // 20, 1),
    )
