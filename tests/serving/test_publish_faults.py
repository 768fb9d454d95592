"""Publishing under faults: killed, out of disk, damaged, half copied, raced, and with the clock set back."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import serving.publish
from serving.errors import ServingError
from serving.layout import check_layout, copy_version, model_folder
from serving.manifest import check_files, complete
from serving.publish import Content, publish, publish_folder, version_content, versions
from serving.retention import live_version, named_versions, prune, version_folders
from serving.rollback import rollback

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "saved_model.pb": b"graph",
    "variables/variables.index": b"index",
    "variables/variables.data-00000-of-00001": b"data",
    "assets.extra/golden.json": b"{}",
}


def build(folder, live=None):
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return Content({"parameters": "p"}, {"seed_watermark": 5})


def states(base):
    """Version -> whether it is whole: complete, and every file as its manifest says."""
    found = {}
    for version, folder in version_folders(base).items():
        check_files(folder)
        found[version] = complete(folder) and version_content(folder).hashes == {"parameters": "p"}
    return found


# Dies at the n-th of the calls that change anything on disk or are a step of publishing: before it or after it.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import serving.manifest, serving.publish, serving.retention
sys.path.insert(0, sys.argv[2])
from test_publish_faults import build

class Accepts:
    def verify(self, folder, known_graph):
        pass

def attempt(base, fatal, after):
    calls = 0
    def counted(call):
        def run(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls == fatal and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            mine = calls
            try:
                return call(*arguments, **named)
            finally:
                if mine == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
        return run
    for module, names in (
        (os, ("mkdir", "fsync", "rename", "unlink", "rmdir", "ftruncate")),
        (Path, ("write_bytes", "write_text")),
        (serving.publish, ("write_manifest", "retain")),
        (Accepts, ("verify",)),
    ):
        for name in names:
            setattr(module, name, counted(getattr(module, name)))
    serving.publish.publish(base, build, keep=2, verifier=Accepts())
    return calls

for after in (False, True):
    for fatal in range(1, 200):
        base = Path(sys.argv[1]) / f"{fatal}-{after}"
        for _ in range(2):
            serving.publish.publish(base, build, keep=2, verify=False)
        child = os.fork()
        if child == 0:
            attempt(base, fatal, after)
            os._exit(7)
        if os.waitpid(child, 0)[1] != signal.SIGKILL:
            break
    print(fatal)
"""


@pytest.mark.slow
def test_killed_at_every_step_leaves_old_or_new_and_never_half(tmp_path):
    line = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    steps = [int(line) for line in done.stdout.split()]
    # At least a folder, 4 files of 3 folders, verify, manifest, a sync of each (9), rename, retain.
    assert len(steps) == 2 and min(steps) > 25
    left_over, grew = 0, set()
    for base in tmp_path.iterdir():
        before = states(base)
        assert all(before.values()) and len(before) in (2, 3)  # 3: dead between the rename and the retention
        left_over += len(list(base.glob(".tmp-*")))
        grew.add(len(before))
        new = publish(base, build, keep=2, verify=False)  # recovers without repair by hand
        after = states(base)
        assert len(after) == 2 and all(after.values()) and max(after) == new > max(before)
        assert sorted(path.name for path in base.iterdir() if path.name.startswith(".")) == [".lease"]
    assert left_over > 20 and grew == {2, 3}


def failing(monkeypatch, number, code):
    """The `number`-th call that changes the disk fails with `code`; returns the counter."""
    calls = itertools.count(1)

    def wrapped(call):
        def run(*arguments, **named):
            if next(calls) == number:
                raise OSError(code, os.strerror(code))
            return call(*arguments, **named)

        return run

    for module, names in ((os, ("mkdir", "fsync", "rename")), (Path, ("write_bytes", "write_text", "mkdir"))):
        for name in names:
            monkeypatch.setattr(module, name, wrapped(getattr(module, name)))
    return calls


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_at_any_step_leaves_old_or_new(tmp_path, monkeypatch, code):
    base = tmp_path / "m"
    publish(base, build, verify=False)
    for number in range(1, 100):
        before = versions(base)
        with monkeypatch.context() as patch:
            calls = failing(patch, number, code)
            try:
                publish(base, build, verify=False)
            except OSError as error:
                assert error.errno == code
            tried = next(calls) - 1
        assert all(states(base).values()) and live_version(base) >= before[-1]
        assert list(base.glob(".tmp-*")) == []
        if tried < number:
            break
    assert 20 < number < 99


def test_a_full_disk_of_a_real_file_size_limit(tmp_path):
    """The kernel's own refusal: a file may have 4 bytes, the graph has 5."""
    code = (
        "import resource, signal, sys; from serving.publish import publish; sys.path.insert(0, sys.argv[2])\n"
        "from test_publish_faults import build\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "publish(sys.argv[1], build, verify=False)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4, 4))\n"
        "try:\n    publish(sys.argv[1], build, verify=False)\n"
        "except OSError as error:\n    print(error.strerror)\n"
    )
    line = [sys.executable, "-B", "-c", code, str(tmp_path / "m"), str(Path(__file__).parent)]
    done = subprocess.run(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout == "File too large\n", done.stderr
    assert list(states(tmp_path / "m").values()) == [True] and list((tmp_path / "m").glob(".tmp-*")) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_base_that_can_not_be_written_is_an_error_and_stays(tmp_path):
    base = tmp_path / "m"
    version = publish(base, build, verify=False)
    held = {path: path.stat().st_mode for path in (base, base / ".lease")}
    for path in held:
        path.chmod(0o555 if path.is_dir() else 0o444)
    code = (
        "import os, sys; from serving.publish import publish\n"
        "os.getuid() or os.setuid(65534)\n"  # root may write everywhere
        "try:\n    publish('.', lambda folder, live: None, verify=False)\n"
        "except OSError as error:\n    print(error.strerror)\n"
    )
    try:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], cwd=base, env=environment, capture_output=True, text=True)
    finally:
        for path, mode in held.items():
            path.chmod(mode)
    assert done.stdout == "Permission denied\n", done.stderr
    assert versions(base) == [version]


def test_files_that_appear_in_any_order_are_complete_only_at_the_end(tmp_path):
    whole = tmp_path / "m" / str(publish(tmp_path / "m", build, verify=False))
    names = [path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()]
    assert len(names) == 5  # 4 files and the manifest: 120 orders
    for number, order in enumerate(itertools.permutations(names)):
        folder = tmp_path / f"copy-{number}"
        folder.mkdir()
        seen = []
        for name in order:
            (folder / name).parent.mkdir(exist_ok=True)
            content = (whole / name).read_bytes()
            (folder / name).write_bytes(content[: len(content) // 2])  # half a file, then the whole one
            seen.append(complete(folder))
            (folder / name).write_bytes(content)
            seen.append(complete(folder))
        assert seen[-1]
        # With the manifest there nothing is taken for whole that is not. Without it, what a loader needs has to be;
        # a graph alone may be a model without variables, which the loader tells.
        assert not any(seen[2 * order.index("manifest.json") : -1])
        variables = [2 * number for number, name in enumerate(order) if name.startswith("variables/")]
        needed = max(*variables, 2 * order.index("saved_model.pb"))
        assert not any(seen[min(variables) : needed])
        shutil.rmtree(folder)


def test_a_folder_without_a_manifest_needs_every_shard(tmp_path):
    def touch(name):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
        return complete(tmp_path)

    assert not complete(tmp_path / "absent")
    assert touch("saved_model.pb")  # a model without variables
    assert not touch("variables/variables.data-00001-of-00002")
    assert not touch("variables/variables.index")
    assert touch("variables/variables.data-00000-of-00002")
    for broken in (
        "[]",
        "{}",
        '{"files": 3}',
        '{"files": {"saved_model.pb": 1}}',
        '{"files": {"a\\u0000b": {"bytes": 1}}}',
    ):
        (tmp_path / "manifest.json").write_text(broken)
        assert not complete(tmp_path)


def change_first_byte(path):
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_first_byte, "should have the SHA-256 of the manifest"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "should have the SHA-256 of the manifest"),
        (Path.unlink, "should hold .* Received: no such file|no saved_model.pb in it"),
    ],
)
def test_a_damaged_version_is_not_published_again(tmp_path, name, damage, message):
    old, new = (publish(tmp_path / "m", build, verify=False) for _ in range(2))
    damage(tmp_path / "m" / str(old) / name)
    for attempt in (
        lambda: copy_version(tmp_path / "m" / str(old), tmp_path / "copy"),
        lambda: publish_folder(tmp_path / "other", tmp_path / "m" / str(old)),
    ):
        with pytest.raises(ServingError, match=message):
            attempt()
    with pytest.raises(ServingError):
        rollback(tmp_path / "m", old, verify=False)
    assert live_version(tmp_path / "m") == new and serving.publish.pinned(tmp_path / "m") is None
    assert versions(tmp_path / "other") == []


def test_a_damaged_manifest_is_said_to_be(tmp_path):
    folder = tmp_path / str(publish(tmp_path, build, verify=False))
    (folder / "manifest.json").write_text('{"format": 2, "hash')
    with pytest.raises(ServingError, match="manifest.json should be JSON with `files`"):
        check_files(folder)
    (folder / "manifest.json").unlink()
    check_files(folder)  # made elsewhere: there is nothing to compare with
    (folder / "assets.extra" / "more").write_text("more")
    check_layout(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "saved_model.pbtxt").write_text(""), "SavedModel only. Received: saved_model.pbtxt"),
        (lambda folder: (folder / "variables" / "run.sh").write_text(""), "Received: variables/run.sh"),
        (lambda folder: (folder / "bin").mkdir(), "Received: bin"),
        (lambda folder: (folder / "assets.extra" / "more").symlink_to("/etc/passwd"), "a plain file. Received: a link"),
        (lambda folder: (folder / "assets").symlink_to("/etc"), "a plain file. Received: a link"),
        (lambda folder: os.mkfifo(folder / "assets.extra" / "pipe"), "Received: neither a file nor a folder"),
        (lambda folder: (folder / "saved_model.pb").unlink(), "no saved_model.pb in it"),
    ],
)
def test_what_does_not_belong_in_a_version_is_refused(tmp_path, make, message):
    (tmp_path / "made").mkdir()
    build(tmp_path / "made")
    check_layout(tmp_path / "made")
    make(tmp_path / "made")
    with pytest.raises(ServingError, match=message):
        publish_folder(tmp_path / "m", tmp_path / "made")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "", "a/b", "/tmp/x", "a\0b", "a\nb", ".tmp-1", "-x", "a:b", "12", "ä", "a b"]
)
def test_names_that_would_leave_the_folder_of_models_are_refused(tmp_path, name):
    with pytest.raises(ServingError, match="`name` should be of letters"):
        model_folder(tmp_path, name)


def test_a_model_may_be_a_link_inside_the_folder_of_models_only(tmp_path):
    models = tmp_path / "models"
    (models / "real").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (models / "fine").symlink_to("real")
    (models / "away").symlink_to(tmp_path / "outside")
    (tmp_path / "link").symlink_to(models)  # the folder of models itself may be one
    assert model_folder(tmp_path / "link", "fine") == tmp_path / "link" / "fine"
    assert model_folder(models, "new-1.x") == models / "new-1.x"
    with pytest.raises(ServingError, match="should be inside .* Received: a link to .*outside"):
        model_folder(models, "away")


def test_versions_increase_when_the_clock_goes_back(tmp_path, monkeypatch):
    published = [publish(tmp_path, build, keep=9, verify=False)]
    now = time.time()
    for seconds in (-3600, 0, -86400 * 365, -(10**12)):
        monkeypatch.setattr(time, "time", lambda seconds=seconds: now + seconds)
        published.append(publish(tmp_path, build, keep=9, verify=False))
        published.append(rollback(tmp_path, verify=False))
    assert published == sorted(set(published)) == versions(tmp_path)


def test_no_version_comes_after_the_largest_that_servers_read(tmp_path):
    (tmp_path / str((1 << 63) - 1)).mkdir()
    with pytest.raises(ServingError, match=r"should hold versions below 2\^63 - 1. Received: 9223372036854775807"):
        publish(tmp_path, build, verify=False)


HOLDS = """
import sys
from serving.publish import publish
sys.path.insert(0, sys.argv[2])
from test_publish_faults import build
def slow(folder, live):
    print("inside", flush=True)
    sys.stdin.readline()
    return build(folder)
publish(sys.argv[1], slow, verify=False)
"""


def test_who_waits_is_told_for_whom_and_goes_on_from_the_others_result(tmp_path, caplog):
    seen = []
    line = [sys.executable, "-c", HOLDS, str(tmp_path), str(Path(__file__).parent)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes) as other:
        assert other.stdout.readline() == "inside\n"

        def look(folder, live):
            seen.append(live)
            return build(folder)

        class Told(type(caplog.handler)):
            def emit(self, record):  # the message comes before the wait: only now may the other one go on
                super().emit(record)
                other.stdin.write("\n")
                other.stdin.flush()

        handler = Told()
        serving.publish._log.addHandler(handler)
        try:
            version = publish(tmp_path, look, verify=False)
        finally:
            serving.publish._log.removeHandler(handler)
    first, second = versions(tmp_path)
    assert second == version and seen == [tmp_path / str(first)]
    assert f"waiting for another publisher, process {other.pid}" in handler.stream.getvalue()


def test_retention_keeps_the_live_version_and_those_that_models_config_names(tmp_path, caplog):
    base = tmp_path / "m"
    published = [publish(base, build, keep=9, verify=False) for _ in range(6)]
    (base / str(published[-1] + 10)).mkdir()  # half copied by hand: newest by name, but nobody serves it
    assert live_version(base) == published[-1]
    (tmp_path / "models.config").write_text(
        f'model_config_list {{ config {{ name: "m" base_path: "/models/m" model_platform: "tensorflow" '
        f"model_version_policy {{ specific {{ versions: {published[0]} }} }} "
        f'version_labels {{ key: "stable" value: {published[2]} }} }} '
        f'config {{ name: "n" base_path: "/models/n" model_platform: "tensorflow" '
        f'version_labels {{ key: "stable" value: {published[1]} }} }} }}'
    )
    assert named_versions(base) == {published[0]: [], published[2]: ["stable"]}
    assert prune(base, 1) == [published[1], published[3], published[4]]
    assert versions(base) == [published[0], published[2], published[5], published[5] + 10]
    (tmp_path / "models.config").write_text("model_config_list {")
    with pytest.raises(ServingError, match="models.config: Error parsing"):
        prune(base, 1)
    publish(base, build, keep=1, verify=False)  # published all the same; nothing is removed, and that is said
    assert len(versions(base)) == 5 and "older versions stay" in caplog.text


def test_a_version_that_is_a_link_is_removed_as_a_link(tmp_path):
    base = tmp_path / "m"
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(base / str(publish(base, build, verify=False)), elsewhere)
    (base / "5").symlink_to(elsewhere)
    (base / ".tmp-left").symlink_to(elsewhere)
    publish(base, build, keep=1, verify=False)
    assert len(versions(base)) == 1 and list(base.glob(".tmp-*")) == []
    assert complete(elsewhere)  # what it led to is not the model's


def test_rejected_arguments(tmp_path):
    with pytest.raises(ServingError, match="`keep` should be a positive integer. Received: keep=0."):
        prune(tmp_path, 0)
    with pytest.raises(ServingError, match="absent should be the folder of a model"):
        prune(tmp_path / "absent", 1)
    with pytest.raises(ServingError, match="`when_pinned` should be 'go on' or 'refuse'. Received: when_pinned='no'."):
        publish(tmp_path, build, when_pinned="no")


def test_the_manifest_in_full(tmp_path):
    version = publish(tmp_path, build, verify=False)
    manifest = json.loads((tmp_path / str(version) / "manifest.json").read_text())
    assert list(manifest) == ["format", "version", "published_at", "hashes", "facts", "files"]
    assert manifest["format"] == 2 and manifest["facts"] == {"seed_watermark": 5}
    assert sorted(manifest["files"]) == sorted(FILES)
