"""`seedrank data fetch`: downloads a public data set, goes on after an interruption, checks it, unpacks it safely."""

import hashlib
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import urllib3

from ranking.atomic import atomic_directory
from ranking.errors import UserError

__all__ = ["ARCHIVES", "ELSEWHERE", "Archive", "fetch"]

_CHUNK = 1 << 20
_ZENODO = "https://zenodo.org/records/10439422/files/"
_GROUPLENS = "https://files.grouplens.org/datasets/movielens/"
_MIND = "https://recodatasets.z20.web.core.windows.net/newsrec/"
_TIMEOUT = urllib3.Timeout(connect=20, read=60)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Archive:
    """One file to download.

    Args:
        url: str. Its address; it ends in `.zip` or `.tar.gz`.
        md5: str. Its published checksum, empty where there is none. Defaults to `""`.
        folder: str. The folder of its own that it is unpacked into, empty where it brings one. Defaults to `""`.
    """

    url: str
    md5: str = ""
    folder: str = ""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[1]


ARCHIVES = {
    "kuairand-pure": (Archive(f"{_ZENODO}KuaiRand-Pure.tar.gz", "0820331067a3784d9691136f772b35a7"),),
    "kuairand-1k": (Archive(f"{_ZENODO}KuaiRand-1K.tar.gz", "6b0b9c8222d67fcd4c676218edca3f1f"),),
    "kuairand-27k": (Archive(f"{_ZENODO}KuaiRand-27K.tar.gz", "3e3c799a24e2d23a4d2c757fbf9adf59"),),
    "movielens-100k": (Archive(f"{_GROUPLENS}ml-100k.zip", "0e33842e24a9c977be4e0107933c0723"),),
    "movielens-1m": (Archive(f"{_GROUPLENS}ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906"),),
    "movielens-25m": (Archive(f"{_GROUPLENS}ml-25m.zip", "6b51fb2759a8657d3bfcbfc42b592ada"),),
    "movielens-latest-small": (Archive(f"{_GROUPLENS}ml-latest-small.zip"),),
    **{
        f"mind-{size}": tuple(
            Archive(f"{_MIND}MIND{size}_{part}.zip", folder=f"MIND{size}_{part}") for part in ("train", "dev")
        )
        for size in ("demo", "small", "large")
    },
}

ELSEWHERE = {
    "ali-ccp": "https://tianchi.aliyun.com/dataset/408 (log in, download sample_train and sample_test, unpack both "
    "into one folder)",
    "taobao": "https://tianchi.aliyun.com/dataset/56 (log in, download raw_sample, ad_feature, user_profile and "
    "behavior_log, unpack all into one folder)",
}


def fetch(
    name: str,
    out: str | Path,
    *,
    progress: Progress | None = None,
    archives: tuple[Archive, ...] | None = None,
) -> Path:
    """Downloads and unpacks a data set; the folder appears complete, or not at all.

    What has been downloaded stays in `OUT.download` until all is well, so that a later call goes on from there.

    Args:
        name: str. A key of `ARCHIVES`.
        out: str or Path. The folder to make.
        progress: callable or None. Called with (file, bytes done, bytes in all).
        archives: tuple of Archive or None: those of `name`.

    Raises:
        UserError: no such name, a data set without an open address, a broken download or a file that fails its
            checksum.
    """
    if name in ELSEWHERE:
        raise UserError(f"{name} has no open address. Get it from {ELSEWHERE[name]}.")
    if archives is None and name not in ARCHIVES:
        raise UserError(f"`name` should be one of {', '.join([*ARCHIVES, *ELSEWHERE])}. Received: {name!r}.")
    chosen = ARCHIVES[name] if archives is None else archives
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already: choose another folder.")
    store = out.with_name(f"{out.name}.download")
    store.mkdir(parents=True, exist_ok=True)
    paths = [_download(archive, store, progress or (lambda stage, done, total: None)) for archive in chosen]
    with atomic_directory(out) as temporary:
        for archive, path in zip(chosen, paths, strict=True):
            _unpack(path, temporary / archive.folder)
    shutil.rmtree(store)
    return out


def _download(archive: Archive, store: Path, progress: Progress) -> Path:
    """The whole archive, checked; what is there already is not asked for again."""
    path, part = store / archive.name, store / f"{archive.name}.part"
    if path.exists():
        return path
    done = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    try:
        with urllib3.PoolManager().request(
            "GET", archive.url, headers=headers, preload_content=False, timeout=_TIMEOUT, decode_content=False
        ) as response:
            start, total = _begin(archive, response, part)
            if start is not None:
                with open(part, "ab" if start else "wb") as stream:
                    while chunk := response.read(_CHUNK):
                        stream.write(chunk)
                        start += len(chunk)
                        progress(archive.name, start, max(total, start))
                    stream.flush()
                    os.fsync(stream.fileno())
    except urllib3.exceptions.HTTPError as error:
        reason = str(error).split("(Caused by")[0].strip()
        raise UserError(f"{archive.url}: interrupted ({reason}); the same command goes on from there.") from None
    size = part.stat().st_size
    if total and size != total:
        raise UserError(f"{archive.url}: {size:,} of {total:,} bytes came; the same command goes on from there.")
    if archive.md5 and (found := _md5(part)) != archive.md5:
        part.unlink()
        raise UserError(
            f"{archive.url}: its md5 should be {archive.md5}. Received: {found}. It was removed; try again."
        )
    os.replace(part, path)
    return path


def _begin(archive: Archive, response: urllib3.BaseHTTPResponse, part: Path) -> tuple[int | None, int]:
    """Where to write from (None: all is there) and the size of the whole, 0 where the server does not say."""
    if response.status == 200:  # the whole: nothing was asked for, or the server knows no ranges
        return 0, int(response.headers.get("Content-Length") or 0)
    done = part.stat().st_size if part.exists() else 0
    place = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", ""))
    if response.status == 206 and place and place[1] and int(place[1]) == done:
        return done, int(place[2])
    if response.status == 416 and place and int(place[2]) == done:
        return None, done
    if response.status in (206, 416):
        part.unlink(missing_ok=True)
        raise UserError(f"{archive.url}: it does not go on where {part} ends. That was removed; try again.")
    raise UserError(f"{archive.url}: the server should send the file. Received: status {response.status}.")


def _md5(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unpack(path: Path, folder: Path) -> None:
    """Files and folders of an archive; a name that leads out of the folder, or a link, refuses all of it."""
    try:
        if path.name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    link = (info.external_attr >> 16) & 0o170000 == 0o120000
                    target = _target(path, folder, info.filename, plain=not link)
                    if not info.is_dir():
                        with archive.open(info) as source:
                            _write(source, target)
        else:
            with tarfile.open(path, "r:*") as archive:
                for member in archive:
                    target = _target(path, folder, member.name, plain=member.isfile() or member.isdir())
                    if (content := archive.extractfile(member)) is not None:
                        _write(content, target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a full disk is not the archive's fault
        path.unlink()
        raise UserError(f"{path.name}: cannot be unpacked: {error}. It was removed; try again.") from None


def _target(path: Path, folder: Path, name: str, *, plain: bool) -> Path:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not plain or not parts or ".." in parts or parts[0] == "/" or ":" in parts[0]:
        raise UserError(f"{path}: an archive should hold files and folders inside itself only. Received: {name!r}.")
    return folder.joinpath(*parts)


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "xb") as stream:
        shutil.copyfileobj(source, stream, _CHUNK)
