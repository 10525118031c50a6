"""Redis goes away, forgets, lies, or only looks alive."""

import sys
import time
from pathlib import Path
from typing import Any

import redis

from jobs.task_queue import Queue, build_celery, ring
from tests.factories import wait_until
from tests.faults.harness import FIGURES, PATIENCE, Cluster, check_figure
from tests.faults.node import Part
from tests.faults.test_disk_and_logs import only_node

SHORT: dict[str, Any] = {"steps": 3}
LONG: dict[str, Any] = {"steps": 100, "step_seconds": 0.05, "save_every": 20}


def test_jobs_are_accepted_and_run_on_while_the_broker_is_away_and_the_rest_starts_when_it_is_back(
    cluster: Cluster,
) -> None:
    """T05: it is killed, and comes back empty."""
    dataset_id = cluster.prepare(**SHORT)
    running = [cluster.submit(**LONG) for _ in range(4)]
    for job_id in running:
        cluster.wait_for_step(job_id, 3)

    cluster.redis.kill()
    times = []
    queued = []
    for _ in range(10):
        begun = time.monotonic()
        queued.append(cluster.submit(dataset_id))
        times.append(time.monotonic() - begun)
    jobs = [cluster.wait(job_id) for job_id in running]
    cluster.start_servers()
    back_at = time.time()
    started = [cluster.wait_for_attempt(job_id, 1) for job_id in queued]
    for job_id in queued:
        assert cluster.wait(job_id)["status"] == "succeeded"

    check_figure("a POST while the broker is away", max(times))
    check_figure("the backlog starts when the broker is back", min(started) - back_at)
    assert [(job["status"], job["attempt"]) for job in jobs] == [("succeeded", 1)] * 4
    cluster.check_history()


def test_a_broker_that_forgets_everything_loses_no_job(cluster: Cluster) -> None:
    """T05: FLUSHALL while jobs run and wait."""
    dataset_id = cluster.prepare(**SHORT)
    ids = [cluster.submit(dataset_id) for _ in range(10)]

    for _ in range(3):
        cluster.flush_redis()
        ids.append(cluster.submit(dataset_id))
    flushed_at = time.time()
    started = [cluster.wait_for_attempt(job_id, 1) for job_id in ids]
    jobs = [cluster.wait(job_id) for job_id in ids]

    check_figure("the backlog starts when the broker is back", sorted(started)[3] - flushed_at)
    assert [(job["status"], job["attempt"]) for job in jobs] == [("succeeded", 1)] * len(ids)
    cluster.check_history()


def test_tripled_dropped_and_forged_rings_run_every_job_once(cluster: Cluster) -> None:
    """T06: of the real ones a third is dropped; 1000 are forged, some of them no rings at all."""
    dataset_id = cluster.prepare(**SHORT)
    celery = build_celery(cluster.settings)
    with redis.Redis.from_url(cluster.redis_url) as connection:
        ids = []
        for number in range(12):
            ids.append(cluster.submit(dataset_id))
            if number % 3 == 0:
                connection.delete("medtune:train")
            for _ in range(83):
                ring(celery, Queue.TRAIN)
    celery.close()
    jobs = [cluster.wait(job_id) for job_id in ids]

    assert [(job["status"], job["attempt"]) for job in jobs] == [("succeeded", 1)] * 12
    cluster.check_history()


def test_a_worker_whose_connection_only_looks_alive_hears_again_or_is_started_again(cluster: Cluster) -> None:
    """T07: half-open connections of all workers, while they are idle. Whoever manages processes starts ended ones."""
    dataset_id = cluster.prepare(**SHORT)
    cluster.wait(cluster.submit(dataset_id))
    for node in cluster.nodes:
        node.redis.deafen()

    begun = time.monotonic()
    job_id = cluster.submit(dataset_id)
    deadline = begun + FIGURES["a deaf worker hears again or is restarted"].value + PATIENCE
    while cluster.client.get(f"/jobs/{job_id}")["status"] == "queued" and time.monotonic() < deadline:
        cluster.start_stateless_parts()
        time.sleep(0.1)
    heard_after = time.monotonic() - begun
    job = cluster.wait(job_id)

    check_figure("a deaf worker hears again or is restarted", heard_after)
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    cluster.check_history()


def test_connections_to_the_broker_that_are_reset_again_and_again_stop_no_worker(cluster: Cluster) -> None:
    """T07: a hundred times, of workers that are idle and busy."""
    dataset_id = cluster.prepare(steps=10, step_seconds=0.02)
    ids: list[str] = []
    num_resets = 0
    while num_resets < 100:
        for node in cluster.nodes:
            wait_until(lambda node=node: node.redis.num_connections > 0, seconds=60)  # type: ignore[misc]
            node.redis.reset()
            num_resets += 1
        if num_resets % 12 == 0:
            ids.append(cluster.submit(dataset_id))
    jobs = [cluster.wait(job_id, seconds=3 * PATIENCE) for job_id in ids]

    assert [(job["status"], job["attempt"]) for job in jobs] == [("succeeded", 1)] * 8
    cluster.check_history()


SHORT_VISIBILITY = """
import os, sys
from worker.app import app
app.conf.broker_transport_options |= {"visibility_timeout": 1}
options = ["--concurrency=2", "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=INFO"]
app.worker_main(["worker", "-Q", "train", "-n", f"short-{os.getpid()}@%h", *options])
"""
"""A worker as `medtune worker` starts it, whose broker gives messages that were not acknowledged to others after a
second. It looks for such messages every ten seconds."""


def test_a_job_longer_than_the_brokers_visibility_timeout_runs_once(cluster: Cluster, tmp_path: Path) -> None:
    """T08: the messages are acknowledged before the work begins, so that none comes back while it goes on."""
    with only_node(cluster, tmp_path) as node:
        ordinary = node.main
        ordinary.kill()
        cluster.flush_redis()  # Of what killed workers of other tests never acknowledged.
        command = [sys.executable, "-c", SHORT_VISIBILITY]
        node.workers[Queue.TRAIN] = Part("short", command, ordinary.environment, tmp_path / "short.log")
        cluster.heal()
        job_id = cluster.submit(steps=130, step_seconds=0.1)
        cluster.wait_for_step(job_id, 2)
        with redis.Redis.from_url(cluster.redis_url) as connection:
            waiting = wait_until(lambda: int(connection.hlen("medtune:unacked")), lambda number: number == 0, 5)
        job = cluster.wait(job_id)
        log = node.main.log.read_text()

    assert waiting == 0
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert "run_next_job" in log
    rows = cluster.read_journal(job_id)
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, 131))
    assert not [row for row in rows if row["kind"] == "overlap"]
    cluster.check_history()
