"""Rollback, pin and retention, alone and in any interleaving with publish, apply and refresh of several processes."""

import json
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.errors import ServingError
from serving.listing import list_versions
from serving.pin import PIN, pinned, refuse_pinned, unpin
from serving.publish import Content, Pinned, publish, version_content, version_folders, versions
from serving.retention import live_version, prune
from serving.rollback import rollback, rolled_back_to

PARTS = ("parameters", "weights", "tables")


def parts_of(folder):
    """What a fake bundle is made of, read from its files."""
    return {part: (folder / "assets.extra" / part).read_text() for part in PARTS}


def change(base, new, **options):
    """Publishes the live version with some parts replaced, as `export` (all), `apply` and a refresh (one) do."""

    def build(folder, live):
        parts = {**(parts_of(live) if live else {}), **new}
        (folder / "assets.extra").mkdir()
        (folder / "saved_model.pb").write_bytes(b"graph")
        for part, value in parts.items():
            (folder / "assets.extra" / part).write_text(value)
        return Content(parts)

    return publish(base, build, verify=False, **options)


def export(base, number, **options):
    return change(base, {part: f"{part[0]}{number}" for part in PARTS}, **options)


def test_rollback_brings_all_three_parts_back_and_pins(tmp_path):
    first = export(tmp_path, 1)
    change(tmp_path, {"weights": "w2"})
    bad = change(tmp_path, {"tables": "t3"})
    assert pinned(tmp_path) is None
    back = rollback(tmp_path, first, verify=False)
    assert back > bad and versions(tmp_path)[-1] == back and len(versions(tmp_path)) == 4
    folder = version_folders(tmp_path)[back]
    assert parts_of(folder) == version_content(folder).hashes == {"parameters": "p1", "weights": "w1", "tables": "t1"}
    assert pinned(tmp_path)["version"] == first and rolled_back_to(tmp_path, back) == first
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["version"] == back and manifest["rolled_back_to"] == first


def test_a_rollback_without_a_version_goes_one_back_each_time(tmp_path):
    one, two, three = (export(tmp_path, number, keep=9) for number in (1, 2, 3))
    assert rolled_back_to(tmp_path, rollback(tmp_path, verify=False)) == two
    assert rolled_back_to(tmp_path, rollback(tmp_path, verify=False)) == one  # not `three`, which was left behind
    with pytest.raises(ServingError, match=f"should hold a version before {one}. Received: {one}, {two}, {three}, "):
        rollback(tmp_path, verify=False)
    assert rolled_back_to(tmp_path, rollback(tmp_path, three, verify=False)) == three
    # A rollback to a rollback, here to the first one, is one to what that went back to.
    via = rollback(tmp_path, versions(tmp_path)[3], verify=False)
    assert rolled_back_to(tmp_path, via) == two and pinned(tmp_path)["version"] == two


def test_a_pin_stops_refreshes_only_and_stays_until_unpin(tmp_path, caplog):
    export(tmp_path, 1)
    export(tmp_path, 2)
    rollback(tmp_path, verify=False)
    before = versions(tmp_path)
    with pytest.raises(Pinned, match=f"is pinned to version {before[0]} since .*: refreshes wait"):
        change(tmp_path, {"tables": "t9"}, when_pinned="refuse")
    assert versions(tmp_path) == before and list(tmp_path.glob(".tmp-*")) == []
    by_hand = change(tmp_path, {"weights": "w9"})
    assert f"version {by_hand} is live; " in caplog.text and "is pinned to version" in caplog.text
    assert pinned(tmp_path)["version"] == before[0]
    assert unpin(tmp_path) and not unpin(tmp_path) and not unpin(tmp_path / "absent")
    refreshed = change(tmp_path, {"tables": "t9"}, when_pinned="refuse")
    assert parts_of(version_folders(tmp_path)[refreshed]) == {"parameters": "p1", "weights": "w9", "tables": "t9"}


def test_a_pin_that_can_not_be_read_is_a_pin(tmp_path):
    export(tmp_path, 1)
    for content in ("", "[", "[]", "3"):
        (tmp_path / PIN).write_text(content)
        assert pinned(tmp_path) == {}
        with pytest.raises(Pinned, match="is pinned to version unknown"):
            refuse_pinned(tmp_path)


def test_a_refused_rollback_leaves_the_model_as_it_was(tmp_path):
    class Refuses:
        def verify(self, folder, known_graph):
            assert pinned(tmp_path) is not None  # pinned first: a crash here pauses refreshes, no more
            raise ServingError("not published: no.")

    one, two = export(tmp_path, 1), export(tmp_path, 2)
    with pytest.raises(ServingError, match="not published: no."):
        rollback(tmp_path, verifier=Refuses())
    assert versions(tmp_path) == [one, two] and pinned(tmp_path) is None
    back = rollback(tmp_path, verify=False)
    was = pinned(tmp_path)
    with pytest.raises(ServingError, match="not published: no."):
        rollback(tmp_path, two, verifier=Refuses())
    assert versions(tmp_path) == [one, two, back] and pinned(tmp_path) == was


def test_rejected_arguments(tmp_path):
    with pytest.raises(ServingError, match="absent should hold a published version. Received: none."):
        rollback(tmp_path / "absent", verify=False)
    assert not (tmp_path / "absent").exists()
    one, two = export(tmp_path, 1), export(tmp_path, 2)
    with pytest.raises(ServingError, match=f"`to` should be a version of .*: {one}, {two}. Received: to=3."):
        rollback(tmp_path, 3, verify=False)
    with pytest.raises(ServingError, match=f"`to` should be another version than the live one, {two}. Received"):
        rollback(tmp_path, two, verify=False)


def test_the_list_of_versions(tmp_path):
    one, two = export(tmp_path, 1), export(tmp_path, 2)
    back = rollback(tmp_path, verify=False)
    (tmp_path / "7").mkdir()
    listed = list_versions(tmp_path)
    assert [(v.version, v.live, v.pinned, v.complete, v.rolled_back_to) for v in listed] == [
        (back, True, True, True, one),
        (two, False, False, True, None),
        (one, False, False, True, None),
        (7, False, False, False, None),
    ]
    manifest = version_folders(tmp_path)[two] / "manifest.json"
    # graph 5 bytes, three parts of 2 bytes, and the manifest
    assert listed[1].bytes == 5 + 3 * 2 + manifest.stat().st_size
    assert json.loads(json.dumps(listed[0].to_dict()))["rolled_back_to"] == str(one)


class LifeCycle(RuleBasedStateMachine):
    """Any interleaving, each step by one process or by two at once, against a model in memory."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.base = Path(self.folder.name) / "m"
        self.made = {}  # version -> parts, of all that ever were
        self.origins = {}  # version -> the one whose content it has
        self.live = None
        self.pin = None
        self.count = 0

    def teardown(self):
        self.folder.cleanup()

    def new(self, *parts):
        self.count += 1
        return {part: f"{part[0]}{self.count}" for part in parts}

    def appeared(self, version, parts, origin=None):
        assert version > max(self.made, default=-1)  # strictly increasing, over everything that ever was
        self.made[version], self.origins[version] = parts, origin or version
        self.live = version

    @rule(keep=st.integers(1, 4))
    def publish(self, keep):
        parts = self.new(*PARTS)
        self.appeared(change(self.base, parts, keep=keep), parts)

    @precondition(lambda self: self.live)
    @rule(keep=st.integers(1, 4))
    def apply(self, keep):
        parts = self.new("weights")
        self.appeared(change(self.base, parts, keep=keep), {**self.made[self.live], **parts})

    @precondition(lambda self: self.live)
    @rule(keep=st.integers(1, 4))
    def refresh(self, keep):
        parts = self.new("tables")
        if self.pin is None:
            version = change(self.base, parts, keep=keep, when_pinned="refuse")
            self.appeared(version, {**self.made[self.live], **parts})
        else:
            with pytest.raises(Pinned):
                change(self.base, parts, keep=keep, when_pinned="refuse")

    @precondition(lambda self: self.live)
    @rule()
    def apply_and_refresh_at_once(self):
        """Whichever comes first, nothing of the other is lost."""
        weights, tables = self.new("weights"), self.new("tables")
        published = {}
        threads = [
            threading.Thread(target=lambda part=part, new=new: published.update({part: change(self.base, new, keep=9)}))
            for part, new in (("weights", weights), ("tables", tables))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for part in sorted(published, key=published.get):
            new = weights if part == "weights" else tables
            self.appeared(published[part], {**self.made[self.live], **new})

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def rollback(self, data):
        others = [version for version in versions(self.base) if version != self.live]
        if not others:
            with pytest.raises(ServingError, match="should hold a version before"):
                rollback(self.base, verify=False)
            return
        to = data.draw(st.sampled_from(others))
        origin = self.origins[to]
        self.appeared(rollback(self.base, to, verify=False), self.made[to], origin)
        self.pin = origin

    @rule()
    def unpin(self):
        assert unpin(self.base) == (self.pin is not None)
        self.pin = None

    @precondition(lambda self: self.live)
    @rule(keep=st.integers(1, 3))
    def prune(self, keep):
        before = versions(self.base)
        removed = prune(self.base, keep)
        assert removed + versions(self.base) == before and versions(self.base) == before[-keep:]

    @invariant()
    def what_is_on_disk_is_what_was_made(self):
        folders = version_folders(self.base)
        assert live_version(self.base) == self.live  # never pruned, whatever was done
        for version, folder in folders.items():
            assert parts_of(folder) == dict(version_content(folder).hashes) == self.made[version]
            assert (rolled_back_to(self.base, version) or version) == self.origins[version]
        pin = pinned(self.base)
        assert (pin and pin["version"]) == self.pin
        assert not self.base.exists() or list(self.base.glob(".tmp-*")) == []


class LongerLife(LifeCycle):
    pass


FEW = settings(
    max_examples=15, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestLifeCycle = LifeCycle.TestCase
TestLifeCycle.settings = FEW
TestLongerLife = pytest.mark.slow(LongerLife.TestCase)
TestLongerLife.settings = settings(FEW, max_examples=60)
