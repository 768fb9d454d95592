"""A browser that looks at the pages, where there is one."""

import shutil
import subprocess
from collections.abc import Callable

import pytest


@pytest.fixture
def chromium(tmp_path) -> Callable[..., tuple[str, str]]:
    """`(file, argument, ...) -> (standard output, standard error)` of a browser without a window or a network."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on the PATH")

    def look(path, *arguments: str) -> tuple[str, str]:
        quiet = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        alone = [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
        line = [program, *quiet, *alone, "--enable-logging=stderr", "--v=0", *arguments, path.as_uri()]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return look
