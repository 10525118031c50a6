"""Processes of a worker die, one by one and all together, and the job goes on where it was."""

import random
import time
from typing import Any

import pytest

from tests.faults.harness import IS_REAL, Cluster, check_figure
from tests.faults.node import measure_death, wait_for_end

LONG: dict[str, Any] = {"steps": 60, "step_seconds": 0.05, "save_every": 5}


@pytest.mark.parametrize("victim", ["pool_child", "outer", "runner", "trainer"])
def test_a_killed_process_of_an_attempt_ends_its_training_and_the_job_goes_on(cluster: Cluster, victim: str) -> None:
    """T03, and the process around the trainer of T04."""
    job_id = cluster.submit(**LONG)
    node = cluster.wait_for_step(job_id, 12)
    chain = node.find_chain(job_id)

    killed_at = time.time()
    getattr(chain, victim).kill()
    died = measure_death([chain.outer, chain.runner, chain.trainer], 30)
    noticed_at = cluster.find_change(job_id, "queued", after=killed_at)
    job = cluster.wait(job_id)

    check_figure("a dead process takes its training with it", died)
    check_figure("a dead process of a living node is noticed", noticed_at - killed_at)
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert cluster.get_resumed_step(job_id, 2) >= 10
    cluster.check_whole_logs()
    cluster.check_history()


def test_a_killed_celery_main_process_ends_its_training_and_the_job_goes_on(cluster: Cluster) -> None:
    """T04. The other worker of the machine notices; nobody starts the dead one again."""
    job_id = cluster.submit(**LONG)
    node = cluster.wait_for_step(job_id, 12)
    chain = node.find_chain(job_id)

    killed_at = time.time()
    node.main.kill()
    died = measure_death([chain.pool_child, chain.outer, chain.runner, chain.trainer], 30)
    noticed_at = cluster.find_change(job_id, "queued", after=killed_at)
    job = cluster.wait(job_id)

    check_figure("a dead process takes its training with it", died)
    check_figure("a dead process of a living node is noticed", noticed_at - killed_at)
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert cluster.get_resumed_step(job_id, 2) >= 10
    cluster.check_whole_logs()
    cluster.check_history()


def test_a_node_that_loses_its_power_loses_no_job(cluster: Cluster) -> None:
    """T04: everything at once, and nothing of that machine comes back to tell."""
    first = cluster.submit(**LONG)
    node = cluster.wait_for_step(first, 12)

    killed_at = time.time()
    node.kill()
    taken_at = cluster.find_change(first, "queued", after=killed_at)
    started_at = cluster.wait_for_attempt(first, 2)
    job = cluster.wait(first)

    check_figure("a lost node's lease is taken", taken_at - killed_at)
    check_figure("a lost node's job starts elsewhere", started_at - killed_at)
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert cluster.get_resumed_step(first, 2) >= 5
    cluster.check_history()


def test_a_job_that_is_killed_again_and_again_ends_with_the_same_adapter(cluster: Cluster) -> None:
    """T12: at a random step and in a random process each time, and every time at most one interval is lost."""
    random_ = random.Random(12)
    num_kills = 5 if IS_REAL else 8
    job_id = cluster.submit(steps=120, step_seconds=0.05, save_every=5)
    reached = 0
    for attempt in range(1, num_kills + 1):
        reached += random_.randint(7, 13)
        node = cluster.wait_for_step(job_id, reached, attempt)
        chain = node.find_chain(job_id, attempt)
        getattr(chain, random_.choice(["pool_child", "outer", "runner", "trainer"])).kill()
        wait_for_end(chain)

    job = cluster.wait(job_id)

    assert (job["status"], job["attempt"]) == ("succeeded", num_kills + 1)
    for attempt in range(2, num_kills + 2):
        rows = [row for row in cluster.read_journal(job_id) if row["attempt"] == attempt - 1]
        last_step = max(row.get("step", 0) for row in rows)
        assert cluster.get_resumed_step(job_id, attempt) >= last_step - 2 * 5
    cluster.check_history()


def test_a_node_that_stands_still_longer_than_its_lease_changes_nothing_when_it_goes_on(cluster: Cluster) -> None:
    """T14: its job runs elsewhere by then. Its own trainer dies before it makes more than a few steps."""
    job_id = cluster.submit(steps=250, step_seconds=0.05, save_every=5)
    node = cluster.wait_for_step(job_id, 12)
    chain = node.find_chain(job_id)

    frozen_at = time.time()
    node.freeze()
    taken_at = cluster.find_change(job_id, "queued", after=frozen_at)
    cluster.wait_for_attempt(job_id, 2)
    node.thaw()
    overlap = measure_death(chain.list_alive(), 60)
    job = cluster.wait(job_id)

    check_figure("a lost node's lease is taken", taken_at - frozen_at)
    check_figure("old and new run at once after a frozen machine thaws", overlap)
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    cluster.check_history(frozen={job_id})
