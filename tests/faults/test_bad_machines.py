"""A machine on which nothing works must not take job after job."""

import sys
from pathlib import Path

from sqlalchemy import select

from jobs.models import Attempt
from tests.conftest import FAKE_TRAINER
from tests.factories import wait_until
from tests.faults.harness import IS_REAL, PATIENCE, Cluster
from tests.faults.test_disk_and_logs import only_node

REST_SECONDS = 60 if IS_REAL else 4
"""Long enough for a heartbeat to tell of it."""


def test_a_machine_that_fails_three_attempts_rests_says_so_and_takes_jobs_again_later(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Its trainer crashes before it begins, as with a broken driver, until somebody repairs it."""
    program = tmp_path / "trainer.py"
    program.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGBUS)\n")
    dataset_id = cluster.prepare(steps=3)
    settings = {"trainer_command": [sys.executable, str(program)], "rest_seconds": REST_SECONDS}
    with only_node(cluster, tmp_path / "home", **settings):
        job_id = cluster.submit(dataset_id)
        problem = wait_until(lambda: read_problem(cluster), seconds=PATIENCE)
        resting = cluster.client.get(f"/jobs/{job_id}")
        program.write_text(f"import runpy\nrunpy.run_path({FAKE_TRAINER[1]!r}, run_name='__main__')\n")
        job = cluster.wait(job_id)
        wait_until(lambda: not read_problem(cluster))
        with cluster.sessions() as session:
            query = select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)
            attempts = list(session.scalars(query))

    assert "it rests for a while" in problem
    assert (resting["status"], resting["attempt"]) == ("queued", 3)
    assert (job["status"], job["attempt"]) == ("succeeded", 4)
    third_ended, fourth_started = attempts[2].ended_at, attempts[3].started_at
    assert third_ended is not None
    assert (fourth_started - third_ended).total_seconds() >= REST_SECONDS
    cluster.check_history()


def read_problem(cluster: Cluster) -> str:
    """Of the worker that runs jobs, as a client sees it; those of the nodes that are gone stay listed for a while."""
    workers = cluster.client.get("/workers")["data"]
    return next((worker["problem"] for worker in workers if worker["queue"] == "train" and worker["problem"]), "")
