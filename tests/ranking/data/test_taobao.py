import numpy as np
import pytest

from ranking.data.check import check
from ranking.data.tables import Dataset
from ranking.data.taobao import import_taobao
from ranking.errors import UserError
from ranking.timeline import Timeline

MIDNIGHT = 1_494_000_000  # 6 May 2017 in China
DAY = 86_400
AD = "adgroup_id,cate_id,campaign_id,customer,brand,price\n"
PROFILE = "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,"
PROFILE += "new_user_class_level \n"  # the official header ends in a space
ADS = ["10,6,1,2,77,19.9", "11,6,1,2,88,5.0", "12,7,1,3,NULL,0.5"]


def raw_rows(seed=0):
    """(user, time, ad, click) over the eight days, in no order."""
    random = np.random.default_rng(seed)
    times = MIDNIGHT + random.integers(0, 8 * DAY, 200)
    times[:2] = MIDNIGHT, MIDNIGHT + 8 * DAY - 1
    return [
        (int(random.integers(1, 8)), int(t), int(random.integers(10, 13)), int(random.random() < 0.3)) for t in times
    ]


def logged_rows(rows, seed=1):
    """(user, time, btag, category, brand): some at the times of clicks, some near the ends of their windows."""
    random = np.random.default_rng(seed)
    made = []
    for user, time, ad, click in rows:
        if click and random.random() < 0.6:
            brand = {10: 77, 11: 88, 12: 99}[ad] if random.random() < 0.8 else 5
            later = int(random.choice([0, 1, 3000, DAY, DAY + 1, 2 * DAY]))
            made.append((user, time + later, "buy", 7 if ad == 12 else 6, brand))
    made += [(user, time + 5, str(random.choice(["pv", "cart", "fav"])), 6, 77) for user, time, _, _ in rows]
    made += [
        (1, 1_492_900_000, "buy", 6, 77),
        (999, MIDNIGHT + 10, "buy", 6, 77),
    ]  # early; of a user never shown anything
    return made


def write(folder, rows, logged):
    folder.mkdir(parents=True)
    text = "".join(f"{user},{time},{ad},430548_1007,{1 - click},{click}\n" for user, time, ad, click in rows)
    (folder / "raw_sample.csv").write_text("user,time_stamp,adgroup_id,pid,nonclk,clk\n" + text)
    (folder / "ad_feature.csv").write_text(AD + "".join(f"{line}\n" for line in ADS))
    (folder / "user_profile.csv").write_text(PROFILE + "1,0,5,2,5,,3,0,3\n2,0,5,2,5,1,3,0,\n")
    text = "".join(",".join(map(str, row)) + "\n" for row in logged)
    (folder / "behavior_log.csv").write_text("user,time_stamp,btag,cate,brand\n" + text)
    return folder


def naive(rows, logged, days):
    """When each row converts: each purchase converts the latest click before it of its user, category and brand."""
    pairs = {10: (6, 77), 11: (6, 88)}
    bought = {}
    for user, time, tag, cate, brand in logged:
        if tag != "buy":
            continue
        before = [
            (when, place)
            for place, (who, when, ad, click) in enumerate(rows)
            if click and who == user and pairs.get(ad) == (cate, brand) and when < time
        ]
        if before and time - max(before)[0] <= days * DAY:
            place = max(before)[1]
            bought[place] = min(time, bought.get(place, time))
    return bought


@pytest.mark.parametrize("days", [1, 2])
def test_against_a_naive_reader(tmp_path, days):
    rows = raw_rows()
    logged = logged_rows(rows)
    report = import_taobao(write(tmp_path / "raw", rows, logged), tmp_path / "out", days=days)
    dataset = Dataset(tmp_path / "out")
    found = dataset.impressions
    assert report.read == report.accepted == len(found) == 200
    assert found["user_id"].tolist() == [row[0] for row in rows]
    assert found["timestamp"].tolist() == [row[1] * 1000 for row in rows]
    assert found["click"].tolist() == [row[3] for row in rows]
    bought = naive(rows, logged, days)
    assert len(bought) > 5
    times = [bought[place] * 1000 if place in bought else -1 for place in range(200)]
    assert found["conversion_time"].tolist() == times
    assert found["conversion"].tolist() == [int(time >= 0) for time in times]
    assert report.conversions == len(bought) and report.clicks == sum(row[3] for row in rows)
    assert found["request_id"].iloc[0] == f"{rows[0][0]}-{MIDNIGHT}"
    without = sum(click for _, _, ad, click in rows if ad == 12)
    assert report.notes == {"clicks on advertisements without a brand: no purchase can be inferred": without}
    purchases = [(user, time * 1000, str(cate)) for user, time, tag, cate, _ in logged if tag == "buy" and user < 10]
    behaviors = dataset.behavior("bought")
    assert list(behaviors[["user_id", "timestamp", "value"]].itertuples(index=False, name=None)) == purchases
    items = dataset.items.set_index("item_id")
    assert items.loc[10, ["cate_id", "brand", "price"]].tolist() == ["6", "77", 19.9]
    assert items["brand"].isna().tolist() == [False, False, True]
    users = dataset.users.set_index("user_id")
    assert users["pvalue_level"].isna().tolist() == [True, False]
    assert users["new_user_class_level"].isna().tolist() == [False, True]
    checked = check(tmp_path / "out")
    assert checked.ok, checked.errors
    timeline = Timeline(dataset)
    assert timeline.mature(timeline.rows_in("test")).all()
    # eight days without the last `days`
    assert timeline.window("lookalike")[0] == MIDNIGHT * 1000
    assert timeline.window("test") == ((MIDNIGHT + (7 - days) * DAY) * 1000, (MIDNIGHT + (8 - days) * DAY) * 1000)


def test_rows_left_out_do_not_shift_the_others(tmp_path):
    rows = raw_rows()
    logged = logged_rows(rows)
    folder = write(tmp_path / "raw", rows, logged)
    import_taobao(folder, tmp_path / "clean")
    lines = (folder / "raw_sample.csv").read_text().splitlines()
    lines[50:50] = [f"1,{MIDNIGHT},10,p,1,1", f"1,{MIDNIGHT},10,p,0,2", "1,,10,p,0,1", f"1,{MIDNIGHT},10,p,0,0"]
    (folder / "raw_sample.csv").write_text("\n".join(lines) + "\n")
    report = import_taobao(folder, tmp_path / "out")
    assert report.read == 204 and report.accepted == 200
    assert report.rejected == {"an empty number": 1, "clk and nonclk that are not 0 and 1": 3}
    assert Dataset(tmp_path / "out").impressions.equals(Dataset(tmp_path / "clean").impressions)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "raw_sample.csv",
            "adgroup_id",
            "ad",
            "raw_sample.csv: should have a column `adgroup_id`. Received: user, time",
        ),
        ("raw_sample.csv", ",430548_1007", "", "raw_sample.csv: cannot be read: CSV parse error: Row #2"),
        ("ad_feature.csv", "10,", "x,", "ad_feature.csv: cannot be read: .*invalid value 'x'"),
        ("ad_feature.csv", "11,6", ",6", "ad_feature.csv, line 3: `adgroup_id` should not be empty"),
        ("user_profile.csv", "occupation", "work", "user_profile.csv: should have a column `occupation`"),
        ("behavior_log.csv", "buy", "bought", "behavior_log.csv should have a purchase by a user"),
    ],
)
def test_broken_files(tmp_path, file, old, new, message):
    rows = raw_rows()
    folder = write(tmp_path / "raw", rows, logged_rows(rows))
    text = (folder / file).read_text()
    (folder / file).write_text(text.replace(old, new, -1 if old == "buy" else 1))
    with pytest.raises(UserError, match=message):
        import_taobao(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_days(tmp_path):
    rows = raw_rows()
    folder = write(tmp_path / "raw", rows, logged_rows(rows))
    with pytest.raises(UserError, match="without the last 4 days: five windows need five whole days.*Received: 4"):
        import_taobao(folder, tmp_path / "out", days=4)
    with pytest.raises(UserError, match="`days` should be a positive integer. Received: 0"):
        import_taobao(folder, tmp_path / "out", days=0)
    (folder / "behavior_log.csv").unlink()
    with pytest.raises(UserError, match="behavior_log.csv does not exist"):
        import_taobao(folder, tmp_path / "out")
