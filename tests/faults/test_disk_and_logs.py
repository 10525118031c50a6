"""Disks that fill up, logs that overflow, and brokers without memory."""

import itertools
import os
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import select

from jobs.models import Worker
from tests.factories import wait_until
from tests.faults.harness import PATIENCE, Cluster
from tests.faults.node import Node

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A disk of 64 MiB; None where nobody may mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        yield None
        return
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_full_disk_stops_the_run_with_a_checkpoint_and_the_job_goes_on_when_there_is_room(
    cluster: Cluster, small_disk: Path | None
) -> None:
    """T19. Where no small disk can be mounted, the refusal alone is seen."""
    if small_disk is None:
        return check_refusal(cluster)
    with only_node(cluster, small_disk, disk_reserve_bytes=32 * MIB) as node:
        job_id = cluster.submit(steps=120, step_seconds=0.05, save_every=50)
        cluster.wait_for_step(job_id, 7)
        filler = small_disk / "filler"
        filler.write_bytes(bytes(52 * MIB))
        job = cluster.wait(job_id, "queued")
        problem = wait_until(lambda: read_problem(cluster, node), seconds=PATIENCE)
        filler.unlink()
        end = cluster.wait(job_id)
        saved = max(row.get("step", 0) for row in cluster.read_journal(job_id) if row["attempt"] == 1)

        assert job["reason"]["code"] == "disk_full"
        assert "disk is nearly full" in problem
        assert (end["status"], end["attempt"]) == ("succeeded", 2)
        assert cluster.get_resumed_step(job_id, 2) == saved
        cluster.check_history()
    return None


def check_refusal(cluster: Cluster) -> None:
    dataset_id = cluster.prepare(steps=3)
    with only_node(cluster, cluster.home / "full", disk_reserve_bytes=1 << 60) as node:
        assert "disk is nearly full" in wait_until(lambda: read_problem(cluster, node))
        job_id = cluster.submit(dataset_id)
        assert cluster.client.get(f"/jobs/{job_id}")["status"] == "queued"
    cluster.heal()
    assert cluster.wait(job_id)["status"] == "succeeded"


@contextmanager
def only_node(cluster: Cluster, home: Path, **settings: Any) -> Iterator[Node]:
    """The others are gone meanwhile."""
    node, others = cluster.build_node("small", home, **settings), list(cluster.nodes)
    for other in others:
        other.kill()
    cluster.nodes[:] = [node]
    try:
        cluster.heal()
        yield node
    finally:
        node.kill()
        cluster.nodes[:] = others


def read_problem(cluster: Cluster, node: Node) -> str:
    with cluster.sessions() as session:
        return session.scalar(select(Worker.problem).where(Worker.pid == node.main.process.pid)) or ""


def test_a_broker_without_memory_refuses_rings_and_no_job_is_lost(cluster: Cluster) -> None:
    """T19"""
    dataset_id = cluster.prepare(steps=3)
    with redis.Redis.from_url(cluster.redis_url) as connection:
        connection.config_set("maxmemory", 1)
        ids = [cluster.submit(dataset_id) for _ in range(3)]
        connection.config_set("maxmemory", 0)
    for job_id in ids:
        assert cluster.wait(job_id)["status"] == "succeeded"
    cluster.check_history()


def test_a_flood_of_logs_is_stored_in_order_though_its_worker_dies(cluster: Cluster) -> None:
    """T20: 8 MB in 20 steps, NULs and bad UTF-8 and a line without end before them; killed in the middle."""
    noise = b"nul \0\nlatin1 \xe9\n10%\r50%\r100%\n" + b"x" * 200_000 + b"\n"
    job_id = cluster.submit(steps=20, step_seconds=0.1, save_every=5, log_lines=40_000, log_hex=noise.hex())
    node = cluster.wait_for_step(job_id, 8)
    node.find_chain(job_id).pool_child.kill()

    job = cluster.wait(job_id, seconds=2 * PATIENCE)

    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    for attempt in cluster.read_history().jobs[0].attempts:
        stored = attempt.stored_log.splitlines()[:-1]  # The last line may have been cut by the death.
        numbers = [int(line.removeprefix("line ")) for line in stored if line.startswith("line ")]
        first = (attempt.resumed_from_step or 0) * 40_000
        assert numbers == list(range(first, first + len(numbers)))
    cluster.check_whole_logs()
    cluster.check_history()


def test_a_flood_of_logs_slows_no_training_and_is_stored_whole(cluster: Cluster) -> None:
    """T20: 50 MB in some seconds, with a line of 10 MB, NULs, bad UTF-8 and progress bars. Nothing of it is dropped:
    the file on the worker's disk is the buffer, and its reserve of disk is what bounds it."""
    noise = b"nul \0\nlatin1 \xe9\n" + b"10%\r50%\r100%\n" * 1000
    calm = cluster.submit(steps=20, step_seconds=0.2)
    assert cluster.wait(calm)["status"] == "succeeded"
    flood: dict[str, Any] = {
        "log_lines": 2000,
        "line_padding": 1000,
        "long_line_bytes": 10 << 20,
        "log_hex": noise.hex(),
    }
    job_id = cluster.submit(steps=20, step_seconds=0.2, **flood)

    job = cluster.wait(job_id, seconds=3 * PATIENCE)

    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert read_pace(cluster, job_id) < 2 * read_pace(cluster, calm) + 0.2, "seconds a step"
    attempt = next(one for one in cluster.read_history().jobs if one.id == job_id).attempts[0]
    assert len(attempt.log or b"") > 50_000_000
    lines = attempt.stored_log.splitlines()
    numbers = [int(line.split()[1]) for line in lines if line.startswith("line ")]
    assert numbers == list(range(20 * 2000))
    assert sum(map(len, (line for line in lines if line.startswith("x")))) == 10 << 20
    cluster.check_whole_logs()
    cluster.check_history()


def read_pace(cluster: Cluster, job_id: str) -> float:
    times = [float(row["time"]) for row in cluster.read_journal(job_id) if row["kind"] == "step"]
    return statistics.median(after - before for before, after in itertools.pairwise(times))
