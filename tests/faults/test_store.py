"""A store that hangs, under a whole service: what is done for the job waits, and the worker does not."""

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from jobs.models import Dataset
from tests.factories import wait_until
from tests.faults.harness import IS_REAL, SCALED_CLOCKS, Cluster, check_figure

HANG_SECONDS = 1.5 * float(SCALED_CLOCKS["lease_seconds"])
"""Longer than a lease: only a worker that still renews it has the job then."""


@contextmanager
def hanging(path: Path) -> Iterator[None]:
    """Whoever opens the file stands still in the kernel until the block ends, as with a network file system that is
    gone: the file has a lease of this process, which the kernel (a lease-break-time of 45 s) waits for."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # How the kernel asks for the lease.
    file = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        os.close(file)
        signal.signal(signal.SIGIO, before)


@contextmanager
def hanging_pipe(path: Path) -> Iterator[None]:
    """Whoever writes the file stands still until the block ends; then all that it writes becomes the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    try:
        yield
    finally:
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        path.unlink()
        os.close(reader)


def find_object(cluster: Cluster, dataset_id: str) -> Path:
    with cluster.sessions() as session:
        key = session.scalar(select(Dataset.store_key).where(Dataset.id == dataset_id))
    return cluster.home / "store" / str(key)


def wait_until_stuck(cluster: Cluster, job_id: str) -> None:
    """A thread of a worker waits in the kernel for the store: the job's folder is there, and its rows are not."""
    folders = [node.get_run_dir(job_id) / "data" for node in cluster.nodes]
    wait_until(lambda: any(folder.exists() for folder in folders), seconds=60)


@pytest.mark.skipif(IS_REAL, reason="the kernel lets a store hang for 45 s at most, which is less than a real lease")
def test_a_job_whose_rows_cannot_be_fetched_keeps_its_worker_for_longer_than_a_lease_and_goes_on(
    cluster: Cluster,
) -> None:
    dataset_id = cluster.prepare(steps=3)
    with hanging(find_object(cluster, dataset_id)):
        job_id = cluster.submit(dataset_id)
        wait_until_stuck(cluster, job_id)
        end = time.monotonic() + HANG_SECONDS
        seen = set()

        def look() -> bool:
            job = cluster.client.get(f"/jobs/{job_id}")
            seen.add((job["status"], job["attempt"]))
            return time.monotonic() > end

        wait_until(look, seconds=HANG_SECONDS + 30, every=0.1)
    job = cluster.wait(job_id)

    assert seen == {("starting", 1)}
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    cluster.check_history()


def test_a_job_whose_rows_cannot_be_fetched_can_be_cancelled(cluster: Cluster) -> None:
    """At once, and its worker takes the next job; the rows that come late are removed again."""
    dataset_id, other = cluster.prepare(steps=4), cluster.prepare(steps=3)
    with hanging(find_object(cluster, dataset_id)):
        ids = [cluster.submit(dataset_id) for _ in range(4)]
        for job_id in ids:
            wait_until_stuck(cluster, job_id)
        begun = time.monotonic()
        for job_id in ids:
            cluster.cancel(job_id)
        statuses = [cluster.wait(job_id)["status"] for job_id in ids]
        check_figure("a running job is cancelled", time.monotonic() - begun)
        next_job = cluster.wait(cluster.submit(other))

    assert statuses == ["cancelled"] * 4
    assert (next_job["status"], next_job["attempt"]) == ("succeeded", 1), "all four workers were stuck"
    folders = [node.get_run_dir(job_id) / "data" for node in cluster.nodes for job_id in ids]
    wait_until(lambda: not any(folder.exists() for folder in folders))
    cluster.check_history()


def test_a_job_whose_adapter_cannot_be_stored_can_be_cancelled(cluster: Cluster) -> None:
    dataset_id = cluster.prepare(steps=10, step_seconds=0.1)
    job_id = cluster.submit(dataset_id)
    with hanging_pipe(cluster.home / "store" / "adapters" / job_id / "attempt-1.tar.gz"):
        archives = [node.get_run_dir(job_id) / "adapter.tar.gz" for node in cluster.nodes]
        wait_until(lambda: any(archive.exists() for archive in archives), seconds=60)
        begun = time.monotonic()
        cluster.cancel(job_id)
        job = cluster.wait(job_id)
        check_figure("a running job is cancelled", time.monotonic() - begun)

    assert (job["status"], job["attempt"]) == ("cancelled", 1)
    cluster.check_history()


def test_a_store_that_hangs_for_too_long_gives_the_job_back_and_says_so(cluster: Cluster) -> None:
    """With a limit of three seconds, which is an hour by default."""
    dataset_id = cluster.prepare(steps=3)
    node, others = cluster.build_node("impatient", start_seconds=3), list(cluster.nodes)
    for other in others:
        other.kill()
    cluster.nodes[:] = [node]
    try:
        cluster.heal()
        with hanging(find_object(cluster, dataset_id)):
            job_id = cluster.submit(dataset_id)
            reason = wait_until(lambda: [row[2] for row in cluster.read_reasons([job_id]) if row[2]], seconds=30)[0]
        job = cluster.wait(job_id)
    finally:
        node.kill()
        cluster.nodes[:] = others

    assert reason["code"] == "store_unavailable"
    assert job["status"] == "succeeded"
    assert job["attempt"] >= 2
    cluster.check_history()
