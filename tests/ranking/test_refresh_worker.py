"""The process that clusters: equal to clustering here, and what a refresh sees when it dies, hangs or cannot."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from lookalike.clustering import cluster
from lookalike.cohorts import cluster_capped
from ranking.errors import UserError
from ranking.refresh_worker import ClusterWorker, WorkerFailed


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def worker(points):
    with ClusterWorker(deadline=60.0) as started:
        started.embeddings(*points.shape)[:] = points
        yield started


ROWS = np.arange(0, 3000, 2)
OFFSETS = np.array([0, 700, 700, 703, 1500])


def test_equal_to_clustering_here(worker, points):
    plain = cluster(points[ROWS], OFFSETS, 5, iterations=10, threads=1)
    found = worker.cluster(ROWS, OFFSETS, 5, iterations=10)
    assert np.array_equal(found[0], plain.centroids) and np.array_equal(found[1], plain.counts)
    warm = cluster(points[ROWS], OFFSETS, 5, iterations=2, initial=plain.centroids, threads=1)
    assert np.array_equal(worker.cluster(ROWS, OFFSETS, 5, iterations=2, initial=plain.centroids)[0], warm.centroids)
    cohort = ROWS % 4
    capped = cluster_capped(points[ROWS], OFFSETS, 5, cohort, 0.3, threads=1)
    found = worker.cluster(ROWS, OFFSETS, 5, iterations=10, cohort=cohort, max_share=0.3)
    assert np.array_equal(found[0], capped.centroids) and np.array_equal(found[1], capped.counts)


def test_a_table_that_grows_is_seen(worker, points):
    more = np.concatenate([points, points[:500] + 9])
    worker.embeddings(*more.shape)[:] = more
    rows = np.arange(3000, 3500)
    found = worker.cluster(rows, np.array([0, 500]), 3, iterations=5)
    assert np.array_equal(found[0], cluster(more[rows], np.array([0, 500]), 3, iterations=5).centroids)
    worker.embeddings(*points.shape)[:] = points


def test_what_cannot_be_clustered_is_said_and_the_process_goes_on(worker, points):
    pid = worker.pid
    table = worker.embeddings(*points.shape)
    table[10] = np.nan
    with pytest.raises(WorkerFailed, match="`embeddings` should be finite") as failed:
        worker.cluster(np.arange(20), np.array([0, 20]), 2, iterations=2)
    assert failed.value.reason == "error"
    table[10] = points[10]
    with pytest.raises(WorkerFailed, match="MemoryError") as failed:  # more than any machine has
        worker.cluster(np.arange(20), np.array([0, 20]), 1 << 45, iterations=2)
    assert failed.value.reason == "error" and worker.pid == pid
    assert worker.cluster(np.arange(20), np.array([0, 20]), 2, iterations=2)[1].sum() == 20


def test_killed_it_is_started_again(worker):
    worker.cluster(np.arange(20), np.array([0, 20]), 2, iterations=2)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerFailed, match="ended with -9") as failed:
        worker.cluster(np.arange(20), np.array([0, 20]), 2, iterations=2)
    assert failed.value.reason == "died"
    assert worker.cluster(np.arange(20), np.array([0, 20]), 2, iterations=2)[1].sum() == 20


def test_killed_in_the_middle_of_a_call(worker):
    worker.cluster(np.arange(20), np.array([0, 20]), 2, iterations=2)
    os.kill(worker.pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL)).start()
    with pytest.raises(WorkerFailed) as failed:
        worker.cluster(np.arange(20), np.array([0, 20]), 2, iterations=2)
    assert failed.value.reason == "died"


@pytest.mark.slow
def test_hung_it_is_killed_at_the_deadline(worker, monkeypatch):
    worker.cluster(np.arange(20), np.array([0, 20]), 2, iterations=2)
    old = worker.pid
    os.kill(old, signal.SIGSTOP)
    monkeypatch.setattr(worker, "deadline", 0.3)
    with pytest.raises(WorkerFailed, match=r"no answer in 0\.3 s") as failed:
        worker.cluster(np.arange(20), np.array([0, 20]), 2, iterations=2)
    assert failed.value.reason == "hung" and worker.pid != old
    with pytest.raises(ProcessLookupError):
        os.kill(old, 0)
    monkeypatch.setattr(worker, "deadline", 60.0)
    assert worker.cluster(np.arange(20), np.array([0, 20]), 2, iterations=2)[1].sum() == 20


def test_it_ends_with_its_parent():
    with ClusterWorker() as started:
        pid = started.pid
        started.embeddings(5, 2)[:] = 1
        started.cluster(np.arange(5), np.array([0, 5]), 2, iterations=1)
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}"):
            break
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


def test_rejected(worker):
    with pytest.raises(UserError, match="should be entered"):
        ClusterWorker().embeddings(1, 1)
    with pytest.raises(UserError, match="should be positive"):
        ClusterWorker(deadline=0.0)
    with pytest.raises(UserError, match="`users` and `width` should be positive"):
        worker.embeddings(0, 3)
