import json

import pytest

from ranking.data.check import check, print_report
from ranking.errors import UserError

TOML = """
schema_version = 1
[ids]
user = "int64"
item = "string"
[labels]
observed_until = 1970-01-01T00:00:05Z
attribution_hours = { conversion = 0.001 }   # 3.6 s
[windows]
train = [1970-01-01T00:00:01Z, 1970-01-01T00:00:02Z]
test = [1970-01-01T00:00:04Z, 1970-01-01T00:00:06Z]
[features.user]
age = { kind = "categorical" }
[features.context]
tab = { kind = "categorical" }
[features.behavior]
read = { keep = 5 }
"""
# times in ms; the rows at 2000 and 7000 are in no window; 7000 is after observed_until
IMPRESSIONS = """request_id,timestamp,user_id,item_id,click,conversion,tab,mood
a,1000,1,x,1,1,1,good
a,1000,1,y,0,0,1,good
b,2000,2,x,1,0,2,good
c,7000,3,x,0,0,2,bad
"""
TABLES = {
    "impressions": IMPRESSIONS,
    "users": "user_id,age,click\n1,18,0\n2,,0\n",
    "behaviors": "user_id,field,value,timestamp\n1,read,x,10\n1,liked,x,11\n",
}


def write(tmp_path, toml=TOML, **tables):
    (tmp_path / "dataset.toml").write_text(toml)
    for name, text in {**TABLES, **tables}.items():
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def test_counts_by_hand(tmp_path):
    report = check(write(tmp_path))
    assert report.ok
    numbers = report.tables["impressions"]
    assert (numbers["read"], numbers["accepted"], numbers["rejected"]) == (4, 4, 0)
    assert (numbers["users"], numbers["items"], numbers["requests"]) == (3, 2, 3)
    assert (numbers["clicks"], numbers["click rate"], numbers["conversions"]) == (2, 0.5, 1)
    assert numbers["conversion rate of clicks"] == 0.5
    # 2000 + 3600 and 7000 + 3600 reach past 5000; 1000 + 3600 does not
    assert numbers["immature"] == 2
    assert (numbers["first"], numbers["last"]) == ("1970-01-01T00:00:01Z", "1970-01-01T00:00:07Z")
    assert numbers["columns left out"] == ["mood"]
    assert report.windows == {
        "train": {"impressions": 2, "clicks": 1, "conversions": 1},
        "test": {"impressions": 0, "clicks": 0, "conversions": 0},
        "(outside)": {"impressions": 2, "clicks": 1, "conversions": 0},
    }
    assert report.tables["users"]["missing"] == {"age": "50.0%"}
    assert report.tables["behaviors"]["of fields not in use"] == 1
    assert report.tables["behaviors"]["fields"] == {"read": 1}
    json.dumps(report.as_dict())


@pytest.mark.parametrize(
    "warning",
    [
        "the last timestamp is 7000: seconds?",
        "1 values of `timestamp` are after observed_until",
        "[windows] test: no impression falls into it",
        "users: the column `click` is a label's name",
        "users: 1 of 3 users of the impressions have no row",
    ],
)
def test_warnings(tmp_path, warning):
    assert any(warning in told for told in check(write(tmp_path)).warnings)


def test_a_label_in_disguise_is_pointed_out(tmp_path):
    rows = "".join(f"r,1000,1,x{row},{row % 2},0,{'yes' if row % 2 else 'no'}\n" for row in range(40))
    report = check(write(tmp_path, impressions=IMPRESSIONS.splitlines()[0].removesuffix(",mood") + "\n" + rows))
    assert "context feature `tab` decides `click` alone: a label among the features?" in report.warnings


def test_a_broken_table_is_an_error_and_the_others_are_still_read(tmp_path):
    folder = write(tmp_path, impressions=IMPRESSIONS.replace("y,0,0", "y,0,1").replace("x,0,0", "x,0,1"))
    report = check(folder)
    assert not report.ok and "users" in report.tables
    assert len(report.errors) == 1
    assert "`conversion`: a conversion should be 0 where click is 0" in report.errors[0]
    assert "in row 2 (2 such rows)" in report.errors[0]


def test_candidates_without_their_requests(tmp_path):
    candidates = "request_id,item_id,position,position_propensity\na,x,0,\na,y,-1,\n"
    requests = "request_id,timestamp,user_id,exploration\nb,1,1,none\n"
    report = check(write(tmp_path, candidates=candidates))
    assert any("should come with a `requests` table" in error for error in report.errors)
    report = check(write(tmp_path, candidates=candidates, requests=requests))
    assert any("1 request ids should be in `requests`" in error for error in report.errors)
    assert report.tables["candidates"]["shown without position_propensity"] == 1
    assert report.tables["candidates"]["shown without exposure_propensity"] == "no such column"
    assert report.tables["requests"]["exploration"] == {"none": 1}


def test_a_field_nobody_has_is_an_error(tmp_path):
    report = check(write(tmp_path, behaviors="user_id,field,value,timestamp\n1,liked,x,11\n"))
    assert any("uses the field `read`, and no row has it" in error for error in report.errors)


def test_missing_impressions_and_missing_toml(tmp_path):
    with pytest.raises(UserError, match="dataset.toml does not exist"):
        check(tmp_path)
    folder = write(tmp_path)
    (folder / "impressions.csv").unlink()
    assert any("should hold a table `impressions`" in error for error in check(folder).errors)


def test_printing_escapes_and_tells_all(tmp_path, capsys):
    print_report(check(write(tmp_path)))
    printed = capsys.readouterr().out
    assert "[windows] test: no impression" in printed and "no rule is broken" in printed
