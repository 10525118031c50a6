"""Wishes to cancel, pause and resume, while things break."""

import time
from typing import Any

import pytest

from jobs.status import FINAL
from tests.factories import find_stubborn_child, is_alive
from tests.faults.harness import Cluster, check_figure
from tests.faults.node import measure_death

LONG: dict[str, Any] = {"steps": 400, "step_seconds": 0.05, "save_every": 5}


def test_a_queued_job_is_cancelled_at_once_and_never_starts(cluster: Cluster) -> None:
    """T15"""
    running = [cluster.submit(**LONG) for _ in range(4)]
    for job_id in running:
        cluster.wait_for_step(job_id, 1)
    queued = cluster.submit(**LONG)

    answer = cluster.cancel(queued)
    for job_id in running:
        cluster.cancel(job_id)
        cluster.wait(job_id, "cancelled")

    assert answer["status"] == "cancelled"
    assert cluster.read_journal(queued) == []
    cluster.check_history()


@pytest.mark.parametrize(
    ("script", "step"),
    [
        pytest.param({}, 0, id="starting"),
        pytest.param({}, 3, id="running"),
        pytest.param({"save_every": 1, "checkpoint_bytes": 20_000_000}, 2, id="saving"),
        pytest.param({"ignore_term": True, "spawn_setsid": True}, 3, id="ignoring"),
    ],
)
def test_an_owned_job_is_cancelled_in_time_and_nothing_of_it_is_left(
    cluster: Cluster, script: dict[str, Any], step: int
) -> None:
    """T15"""
    job_id = cluster.submit(**LONG | script)
    cluster.wait(job_id, "starting", "running")
    node = cluster.wait_for_step(job_id, step) if step else None
    child = find_stubborn_child(node.get_run_dir(job_id)) if node and "spawn_setsid" in script else None

    cluster.cancel(job_id)
    asked_at = time.time()
    job = cluster.wait(job_id)

    check_figure("a running job is cancelled", cluster.find_change(job_id, "cancelled") - asked_at)
    assert job["status"] == "cancelled"
    assert child is None or not is_alive(child)
    cluster.check_history()


@pytest.mark.parametrize("victim", ["api", "reconciler", "redis", "pool_child", "main"])
def test_a_wish_to_cancel_survives_the_death_of_anything(cluster: Cluster, victim: str) -> None:
    """T15: it dies right after the answer."""
    job_id = cluster.submit(**LONG, ignore_term=True)
    node = cluster.wait_for_step(job_id, 3)
    chain = node.find_chain(job_id)

    cluster.cancel(job_id)
    asked_at = time.time()
    (chain.pool_child if victim == "pool_child" else node.main if victim == "main" else getattr(cluster, victim)).kill()
    died = measure_death(chain.list_alive(), 60)
    cluster.heal()
    job = cluster.wait(job_id)

    check_figure("a running job is cancelled", died)
    check_figure("a running job is cancelled", cluster.find_change(job_id, "cancelled") - asked_at)
    assert job["status"] == "cancelled"
    cluster.check_history()


def test_a_cancelled_job_of_a_lost_node_is_cancelled_and_not_started_again(cluster: Cluster) -> None:
    job_id = cluster.submit(**LONG)
    node = cluster.wait_for_step(job_id, 3)

    killed_at = time.time()
    node.kill()
    cluster.cancel(job_id)
    job = cluster.wait(job_id)

    check_figure("a lost node's lease is taken", cluster.find_change(job_id, "cancelled") - killed_at)
    assert (job["status"], job["attempt"]) == ("cancelled", 1)
    cluster.check_history()


def test_a_paused_job_goes_on_where_it_was_after_its_worker_died_meanwhile(cluster: Cluster) -> None:
    job_id = cluster.submit(steps=60, step_seconds=0.05, save_every=50)
    node = cluster.wait_for_step(job_id, 7)

    cluster.client.post(f"/jobs/{job_id}/pause")
    cluster.wait(job_id, "paused")
    saved = max(row.get("step", 0) for row in cluster.read_journal(job_id))
    node.kill()
    cluster.client.post(f"/jobs/{job_id}/resume")
    job = cluster.wait(job_id)

    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert cluster.get_resumed_step(job_id, 2) == saved >= 7
    cluster.check_history()


def test_a_pausing_job_whose_worker_dies_is_paused(cluster: Cluster) -> None:
    job_id = cluster.submit(**LONG, ignore_term=True)
    chain = cluster.wait_for_step(job_id, 7).find_chain(job_id)

    cluster.client.post(f"/jobs/{job_id}/pause")
    chain.pool_child.kill()
    job = cluster.wait(job_id, "paused", *FINAL)
    answer = cluster.cancel(job_id)

    assert (job["status"], answer["status"]) == ("paused", "cancelled")
    cluster.check_history()
