"""Postgres goes away: for everybody, or for one node."""

import time
from typing import Any

import pytest

from tests.faults.harness import IS_REAL, Cluster, check_figure, pass_time
from tests.faults.node import measure_death

LONG: dict[str, Any] = {"steps": 250, "step_seconds": 1 if IS_REAL else 0.05, "save_every": 5}
"""Trains for longer than the database is away."""


def test_a_restart_of_the_database_ends_no_training(cluster: Cluster) -> None:
    """T09: away for less than a lease. Four jobs run; none is taken from its worker and none is stopped."""
    ids = [cluster.submit(**LONG) for _ in range(4)]
    for job_id in ids:
        cluster.wait_for_step(job_id, 5)

    begun = time.monotonic()
    cluster.stop_postgres()
    answer = cluster.client.http.post("/jobs", json=cluster.build_request(cluster.prepare(**LONG)))
    pass_time("the database may be away", less=time.monotonic() - begun)
    cluster.start_servers()
    jobs = [cluster.wait(job_id) for job_id in ids]

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert [(job["status"], job["attempt"]) for job in jobs] == [("succeeded", 1)] * 4, cluster.read_reasons(ids)
    cluster.check_history()


def test_trainings_save_and_stop_when_the_database_is_away_for_too_long_and_go_on_later(cluster: Cluster) -> None:
    """T10: nobody can take the jobs meanwhile, and still nobody knows that; none counts as a failure."""
    ids = [cluster.submit(**LONG) for _ in range(4)]
    chains = [cluster.wait_for_step(job_id, 5).find_chain(job_id) for job_id in ids]

    cluster.stop_postgres()
    stopped_after = measure_death([process for chain in chains for process in chain.list_alive()], 200)
    pass_time("the database is away for too long", less=stopped_after)
    cluster.start_servers()
    jobs = [cluster.wait(job_id) for job_id in ids]

    check_figure("a training stops when its worker cannot reach the database", stopped_after)
    assert [(job["status"], job["attempt"]) for job in jobs] == [("succeeded", 2)] * 4
    for job_id in ids:
        saved = max(row.get("step", 0) for row in cluster.read_journal(job_id) if row["attempt"] == 1)
        assert cluster.get_resumed_step(job_id, 2) == saved
    cluster.check_history()


@pytest.mark.parametrize("way", ["cut", "blackhole"])
def test_a_node_without_the_database_stops_its_training_before_another_begins(cluster: Cluster, way: str) -> None:
    """T11: the other node has the database and takes the job. What the first one writes late changes nothing."""
    job_id = cluster.submit(**LONG)
    node = cluster.wait_for_step(job_id, 12)
    cluster.wait_for_checkpoint(job_id, 10)
    chain = node.find_chain(job_id)

    parted_at = time.time()
    getattr(node.postgres, way)()
    stopped_after = measure_death(chain.list_alive(), 200)
    taken_at = cluster.find_change(job_id, "queued", after=parted_at)
    started_at = cluster.wait_for_attempt(job_id, 2)
    node.postgres.restore()
    job = cluster.wait(job_id)

    check_figure("a training stops when its worker cannot reach the database", stopped_after)
    check_figure("a lost node's lease is taken", taken_at - parted_at)
    check_figure("a lost node's job starts elsewhere", started_at - parted_at)
    assert parted_at + stopped_after < started_at
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert cluster.get_resumed_step(job_id, 2) >= 10
    cluster.check_history()
