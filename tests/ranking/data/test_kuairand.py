import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranking.data.check import check
from ranking.data.kuairand import import_kuairand
from ranking.data.kuairand_history import align
from ranking.data.kuairand_toml import dataset_toml
from ranking.data.schema import parse_schema
from ranking.data.tables import Dataset
from ranking.errors import UserError

LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
USER = "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
USER += "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
USER += "register_days_range," + ",".join(f"onehot_feat{number}" for number in range(18)) + "\n"
VIDEO = "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
VIDEO += "music_id,music_type,tag\n"


def log_row(user, video, day, time, *, click=0, like=0, long=0, play=0, tab=1):
    return f"{user},{video},{day},100,{time},{click},{like},0,0,0,0,{long},{play},9000,0,0,0,0,{tab}\n"


def source(tmp_path, suffix="pure", compressed=False, nested=True):
    folder = tmp_path / "KuaiRand" / "data" if nested else tmp_path / "KuaiRand"
    folder.mkdir(parents=True)
    early = log_row(1, 10, 20220410, 1_649_600_000_000, click=1, long=1, play=20_000)
    late = (
        log_row(1, 10, 20220426, 1_650_960_000_000, click=1, long=1, like=1, play=9000)
        + log_row(1, 10, 20220426, 1_650_960_000_000, click=1, long=1, like=1, play=9000)  # the same play again
        + log_row(2, 11, 20220507, 1_651_900_000_000, click=0, long=1, play=3000)  # a label without click
        + log_row(2, "x", 20220507, 1_651_900_000_001)
        + log_row(2, 12, 20220507, 1_651_900_000_002, click=2)
        + log_row(2, 12, 20220507, -5)
        + log_row(2, 12, 20220507, 1_651_900_000_003, click=1, like=1, play=500, tab=0)
    )
    texts = {
        f"log_standard_4_08_to_4_21_{suffix}": LOG + early,
        f"log_standard_4_22_to_5_08_{suffix}": LOG + late,
        f"log_random_4_22_to_5_08_{suffix}": LOG + log_row(9, 9, 20220426, 1_650_960_000_000),
        f"user_features_{suffix}": USER + "1,full_active,0,-124,1,514,500+,150,x,34,x,799,x,1,,2.0" + ",0" * 15 + "\n",
        f"video_features_basic_{suffix}": VIDEO
        + '10,77,NORMAL,2022-04-10,LongImport,0.0,12000.0,720,1280,5,9.0,"12,65"\n'
        + "11,78,AD,,Web,0.0,,720,1280,5,,\n",
    }
    for name, text in texts.items():
        if compressed:
            (folder / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / f"{name}.csv").write_text(text)
    return tmp_path / "KuaiRand"


@pytest.mark.parametrize("suffix", ["pure", "1k", "27k"])
def test_official_folder_by_hand(tmp_path, suffix):
    report = import_kuairand(source(tmp_path, suffix), tmp_path / "out")
    # 8 rows: 1 duplicate, 1 malformed, 1 bad label, 1 negative time; 4 remain
    assert report.read == 8 and report.accepted == 4
    assert report.rejected == {
        "an empty or malformed number": 1,
        "a negative id, time or page": 1,
        "a label that is not 0 or 1": 1,
        "a duplicate (user, video, time)": 1,
    }
    assert report.accepted + sum(report.rejected.values()) == report.read
    assert (report.clicks, report.conversions, report.dropped_labels) == (3, 2, 1)
    assert report.days == {"20220410": 1, "20220426": 1, "20220507": 2}
    assert "a label that is not 0 or 1" in str(report) and report.as_dict()["read"] == 8

    dataset = Dataset(tmp_path / "out")
    rows = dataset.impressions
    assert rows["request_id"].tolist() == ["1-20220410", "1-20220426", "2-20220507", "2-20220507"]
    assert rows["conversion"].tolist() == [1, 1, 0, 0]
    # a click is a valid play: 7 s after the start, or at its end; the conversion is known at the end
    assert (rows["click_time"] - rows["timestamp"]).tolist()[:2] == [7000, 7000]
    assert rows["click_time"].tolist()[2:] == [-1, 1_651_900_000_503]
    assert (rows["conversion_time"] - rows["timestamp"]).tolist()[:2] == [20_000, 9000]
    assert rows["tab"].tolist() == ["1", "1", "1", "0"]

    user = dataset.users.iloc[0]
    assert pd.isna(user["is_live_streamer"]) and pd.isna(user["onehot_feat1"])  # -124 and empty
    assert user["onehot_feat2"] == "2" and user["follow_user_num"] == 514
    items = dataset.items
    assert items["tag"].tolist()[0] == "12,65" and pd.isna(items["tag"][1])
    assert items["born"].tolist() == [1_649_520_000_000, -1]  # 10 April in China is 9 April 16:00 UTC
    assert items["duration_s"].tolist()[0] == 12.0 and np.isnan(items["duration_s"][1])

    watched = dataset.behavior("watch")
    assert watched["timestamp"].tolist()[0] == 1_649_600_020_000  # when the play ended
    assert watched["order"].tolist() == [1, 2, 3, 4]
    assert dataset.behavior("long_watch")["order"].tolist() == [1, 2, 3]
    assert dataset.behavior("like")["value"].tolist() == [10, 12]
    assert check(tmp_path / "out").ok


def test_engagement_as_the_conversion(tmp_path):
    report = import_kuairand(source(tmp_path, compressed=True, nested=False), tmp_path / "out", conversion="engage")
    assert (report.conversions, report.dropped_labels) == (2, 0)
    assert Dataset(tmp_path / "out").impressions["conversion"].tolist() == [0, 1, 0, 1]


def test_parts_are_one_log_and_duplicates_are_found_across_them(tmp_path):
    folder = source(tmp_path, "27k", nested=False)
    log = folder / "log_standard_4_22_to_5_08_27k.csv"
    for part in (1, 2):
        (folder / f"log_standard_4_22_to_5_08_27k_part{part}.csv").write_text(log.read_text())
    log.unlink()
    told = []
    report = import_kuairand(folder, tmp_path / "out", progress=lambda *values: told.append(values))
    assert report.read == 15 and report.accepted == 4 and report.rejected["a duplicate (user, video, time)"] == 5
    assert told[-1][1] == told[-1][2]


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match="should hold log_standard"):
        import_kuairand(tmp_path, tmp_path / "out")
    folder = source(tmp_path, nested=False)
    with pytest.raises(UserError, match="`conversion` should be one of long_view, engage. Received: 'buy'"):
        import_kuairand(folder, tmp_path / "out", conversion="buy")
    log = folder / "log_standard_4_22_to_5_08_pure.csv"
    log.write_text(log.read_text().replace("is_like", "liked"))
    with pytest.raises(UserError, match=r"5_08_pure.csv: should have a column `is_like`"):
        import_kuairand(folder, tmp_path / "out")
    log.write_text(LOG + "1,2,3\n" + "1," * 40 + "\n")
    with pytest.raises(UserError, match=r"5_08_pure.csv: cannot be read"):
        import_kuairand(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    log.with_name("log_standard_4_22_to_5_08_pure.csv.gz").write_bytes(gzip.compress(LOG.encode()))
    with pytest.raises(UserError, match="should be there once"):
        import_kuairand(folder, tmp_path / "out")
    log.with_name("log_standard_new.csv").write_text(LOG)
    with pytest.raises(UserError, match="should be named as in KuaiRand"):
        import_kuairand(folder, tmp_path / "out")


def test_windows_of_the_full_log_and_of_the_slice():
    day = pd.Timestamp
    full = parse_schema(dataset_toml(day("2022-04-08"), day("2022-05-08"), history=False, conversion="x", source="s"))
    bounds = {name: [pd.Timestamp(end, unit="ms") for end in window] for name, window in full.windows.items()}
    # a day ends at 23:52:10 in China = 15:52:10 UTC
    assert bounds["lookalike"] == [day("2022-04-07 15:52:10"), day("2022-04-24 15:52:10")]
    assert bounds["train"] == [day("2022-04-24 15:52:10"), day("2022-05-04 15:52:10")]
    assert bounds["calibrate"][1] == bounds["tune"][0] == day("2022-05-05 15:52:10")
    assert bounds["test"] == [day("2022-05-06 15:52:10"), day("2022-05-08 15:52:10")]
    with pytest.raises(UserError, match="should begin before 25 April"):
        dataset_toml(day("2022-04-25"), day("2022-05-05"), history=False, conversion="x", source="s")


def test_align_by_hand():
    # watches, newest last: a=-4 b=-3 a=-2 c=-1; z is older than all of them
    assert align(["a", "b", "a", "c"], ["z", "b", "a"]) == ([-5, -3, -2], 1)
    assert align(["a", "b"], ["z", "y", "b"]) == ([-4, -3, -1], 2)
    assert align([], ["z"]) == ([-1], 1)
    assert align(["a", "a"], ["a"]) == ([-1], 0)
    # y can't be placed before b, so x, which is older still, is not searched for
    assert align(["x", "b"], ["x", "y", "b"]) == ([-4, -3, -1], 2)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=120))
def test_align_finds_every_entry_of_a_true_subsequence(history):
    # both sequences are the latest 50 of one history, as in the file
    watched = [video for video, _ in history][-50:]
    chosen = [video for video, long in history if long][-50:]
    orders, unmatched = align(watched, chosen)
    assert len(orders) == len(chosen) and orders == sorted(set(orders)) and all(order < 0 for order in orders)
    for order, video in zip(orders[unmatched:], chosen[unmatched:], strict=True):
        assert watched[order] == video
    inside = sum(long for _, long in history[-50:])
    assert len(chosen) - unmatched >= inside


@pytest.mark.slow
def test_the_real_slice(tmp_path, kuairand_slice):
    report = import_kuairand(kuairand_slice, tmp_path / "out")
    assert (report.read, report.accepted) == (180_384, 180_022)
    assert report.rejected == {"a duplicate (user, video, time)": 362}
    assert report.dropped_labels == 181
    dataset = Dataset(tmp_path / "out")
    rows, schema = dataset.impressions, dataset.schema
    start, end = schema.windows["test"]
    inside = (rows["timestamp"] >= start) & (rows["timestamp"] < end)
    date = rows["request_id"].str.split("-").str[1].astype(int)
    of_date = date.isin((20220504, 20220505))
    assert (inside == of_date).mean() > 0.999
    # every long watch of a user with at most 50 watches has its watch: same user, value, time and order
    watch, long = dataset.behavior("watch"), dataset.behavior("long_watch")
    assert len(long.merge(watch, how="left", indicator=True).query("_merge == 'left_only'")) == 99_433
    counted = dataset.behavior("counted_long_watch")
    assert len(counted) == len(long) - 99_433
    trials = watch.groupby("user_id").size()
    assert (counted.groupby("user_id").size().reindex(trials.index, fill_value=0) <= trials).all()  # no rate above one
    assert {statistic.event for statistic in schema.statistics if statistic.per == "behaviors.watch"} == {
        "behaviors.counted_long_watch",
        "behaviors.counted_like",
    }
    seeds = long[long["timestamp"] < schema.windows["train"][0]].groupby("value")["user_id"].nunique()
    assert (seeds >= 100).sum() >= 927 and (seeds >= 30).sum() >= 2196
