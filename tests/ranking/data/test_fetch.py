import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from typer.testing import CliRunner

from ranking.cli import app
from ranking.data.fetch import ARCHIVES, ELSEWHERE, Archive, fetch
from ranking.errors import UserError

BODY = np.random.default_rng(0).bytes(3_000_000)  # does not compress: three chunks


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; knows ranges unless told not to, and can break off a body once."""

    def do_GET(self):
        server = self.server
        name = self.path[1:]
        server.asked.append((name, self.headers.get("Range")))
        if name not in server.files:
            self.send_error(404)
            return
        body, start, wanted = server.files[name], 0, self.headers.get("Range")
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) + server.shift
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop, server.stop = server.stop, None
        self.wfile.write(body[start:stop])
        if stop is not None:
            self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.files, made.asked, made.stop, made.ranges, made.shift = {}, [], None, True, 0
    made.url = f"http://127.0.0.1:{made.server_address[1]}"
    thread = threading.Thread(target=made.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return buffer.getvalue()


def tarred(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, body, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(body), "/etc/passwd" if kind == tarfile.SYMTYPE else ""
            archive.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def archive_of(server, name="data.zip", body=None, *, md5=True, folder=""):
    body = zipped(**{"ml/ratings.dat": BODY, "ml/README": b"hello"}) if body is None else body
    server.files[name] = body
    return Archive(f"{server.url}/{name}", hashlib.md5(body).hexdigest() if md5 else "", folder)


def test_whole(server, tmp_path):
    told = []
    out = fetch("any", tmp_path / "raw", archives=(archive_of(server),), progress=lambda *step: told.append(step))
    assert (out / "ml/ratings.dat").read_bytes() == BODY and (out / "ml/README").read_text() == "hello"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]
    size = len(server.files["data.zip"])
    assert told[-1] == ("data.zip", size, size) and len(told) == 3
    with pytest.raises(UserError, match="raw exists already"):
        fetch("any", out, archives=(archive_of(server),))


def test_several_archives_and_folders_of_their_own(server, tmp_path):
    parts = ("train", "dev")
    given = tuple(
        archive_of(server, f"{part}.zip", zipped(**{"news.tsv": part.encode()}), folder=f"M_{part}") for part in parts
    )
    out = fetch("any", tmp_path / "raw", archives=given)
    assert {path.parent.name: path.read_text() for path in out.rglob("news.tsv")} == {
        "M_train": "train",
        "M_dev": "dev",
    }


def test_goes_on_after_an_interruption(server, tmp_path):
    archive = archive_of(server)
    server.stop = 1_234_567
    with pytest.raises(UserError, match=r"data.zip: interrupted .*goes on from there"):
        fetch("any", tmp_path / "raw", archives=(archive,))
    part = tmp_path / "raw.download/data.zip.part"
    assert part.stat().st_size == 1_234_567 and not (tmp_path / "raw").exists()
    fetch("any", tmp_path / "raw", archives=(archive,))
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1234567-"]
    assert (tmp_path / "raw/ml/ratings.dat").read_bytes() == BODY


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    archive = archive_of(server)
    server.stop, server.ranges = 1_234_567, False
    with pytest.raises(UserError, match="interrupted"):
        fetch("any", tmp_path / "raw", archives=(archive,))
    fetch("any", tmp_path / "raw", archives=(archive,))
    assert (tmp_path / "raw/ml/ratings.dat").read_bytes() == BODY


def test_what_is_complete_is_not_asked_for_twice(server, tmp_path):
    archive = archive_of(server)
    store = tmp_path / "raw.download"
    store.mkdir()
    (store / "data.zip.part").write_bytes(server.files["data.zip"])  # killed between the last byte and the rename
    fetch("any", tmp_path / "raw", archives=(archive,))
    assert (tmp_path / "raw/ml/ratings.dat").read_bytes() == BODY
    # killed while the second archive came: the first is complete
    server.asked.clear()
    store.mkdir()
    (store / "data.zip").write_bytes(server.files["data.zip"])
    second = archive_of(server, "more.zip", zipped(other=b"1"))
    fetch("any", tmp_path / "both", archives=(second,))
    (tmp_path / "raw").rename(tmp_path / "first")
    fetch("any", tmp_path / "raw", archives=(archive, second))
    assert server.asked == [("more.zip", None), ("more.zip", None)]


@pytest.mark.parametrize("shift", [7, 10**9])
def test_an_answer_for_another_place_is_refused(server, tmp_path, shift):
    archive = archive_of(server)
    server.stop = 1000
    with pytest.raises(UserError, match="interrupted"):
        fetch("any", tmp_path / "raw", archives=(archive,))
    server.shift = shift
    with pytest.raises(UserError, match="does not go on where .*removed; try again"):
        fetch("any", tmp_path / "raw", archives=(archive,))
    server.shift = 0
    fetch("any", tmp_path / "raw", archives=(archive,))


def test_broken_checksum(server, tmp_path):
    archive = archive_of(server)
    server.files["data.zip"] = server.files["data.zip"][:-1] + b"x"
    with pytest.raises(UserError, match=f"md5 should be {archive.md5}. Received: [0-9a-f]{{32}}. It was removed"):
        fetch("any", tmp_path / "raw", archives=(archive,))
    assert list((tmp_path / "raw.download").iterdir()) == [] and not (tmp_path / "raw").exists()


def test_broken_archives_without_checksum(server, tmp_path):
    good = zipped(a=b"12345678" * 100)
    cases = {
        "short.zip": good[:-40],
        "bent.zip": good.replace(b"12345678", b"12345679", 1),
        "short.tar.gz": tarred(("a", BODY, tarfile.REGTYPE))[:-100],
    }
    for name, body in cases.items():
        with pytest.raises(UserError, match="cannot be unpacked: .*removed; try again"):
            fetch("any", tmp_path / "raw", archives=(archive_of(server, name, body, md5=False),))
        assert not (tmp_path / "raw").exists() and not (tmp_path / "raw.download" / name).exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:/evil"])
def test_names_that_lead_outside(server, tmp_path, name):
    for file, body in (("a.zip", zipped(**{"fine": b"1", name: b"2"})), ("a.tar.gz", tarred((name, b"2", b"0")))):
        with pytest.raises(UserError, match="inside itself only. Received: "):
            fetch("any", tmp_path / "in/raw", archives=(archive_of(server, file, body),))
        assert not list(tmp_path.rglob("*evil*")) and not (tmp_path / "in/raw").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(server, tmp_path, kind):
    with pytest.raises(UserError, match="inside itself only"):
        fetch("any", tmp_path / "raw", archives=(archive_of(server, "a.tar.gz", tarred(("x", b"", kind))),))


def test_link_in_a_zip(server, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="inside itself only"):
        fetch("any", tmp_path / "raw", archives=(archive_of(server, body=buffer.getvalue()),))


def test_no_such_file_and_no_server(server, tmp_path):
    with pytest.raises(UserError, match="Received: status 404"):
        fetch("any", tmp_path / "raw", archives=(Archive(f"{server.url}/none.zip"),))
    with pytest.raises(UserError, match="interrupted"):
        fetch("any", tmp_path / "raw", archives=(Archive("http://127.0.0.1:9/none.zip"),))
    with pytest.raises(UserError, match="`name` should be one of kuairand-pure, .*taobao. Received: 'movielens'"):
        fetch("movielens", tmp_path / "raw")


def test_names():
    assert not set(ARCHIVES) & set(ELSEWHERE)
    for archives in ARCHIVES.values():
        for archive in archives:
            assert archive.url.startswith("https://") and archive.name.endswith((".zip", ".tar.gz"))
            assert archive.md5 == "" or len(bytes.fromhex(archive.md5)) == 16
    result = CliRunner().invoke(app, ["data", "fetch", "ali-ccp", "--out", "nowhere"])
    assert result.exit_code != 0 and "https://tianchi.aliyun.com/dataset/408" in str(result.exception)
