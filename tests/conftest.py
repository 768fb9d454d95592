"""Shared fixtures. Environment variables are set before TensorFlow is imported anywhere."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pytest
from hypothesis import settings

# A run tries what the last one tried, and a machine that stands still for a moment is no fault.
settings.register_profile("seedrank", derandomize=True, deadline=None)
settings.load_profile("seedrank")


def pytest_collection_finish() -> None:
    """What was imported to collect the tests, TensorFlow above all, stays: no collection looks through it again."""
    gc.collect()
    gc.freeze()


SLICE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kuairand_pure_slice"


@pytest.fixture(scope="session")
def kuairand_slice() -> Path:
    """The folder of the real log, or a skip that says why."""
    if not SLICE.is_dir():
        pytest.skip("the KuaiRand slice is not beside the project (../shared/data/kuairand_pure_slice)")
    return SLICE


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Any]:
    """A real Redis or Valkey of one test, which may stop it; skips where there is none."""
    from tests.lookalike.redis_server import Server, needed

    needed()
    server = Server(tmp_path)
    yield server
    server.stop()
