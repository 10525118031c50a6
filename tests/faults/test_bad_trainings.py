"""Trainings that hang, crash, give up or tell too much."""

import re
import signal
from typing import Any

import psycopg
import pytest
from psycopg import sql

from jobs.models import Base
from tests.faults.conftest import SECRETS
from tests.faults.harness import PATIENCE, Cluster, check_figure


def test_a_training_that_hangs_is_started_again_and_given_up_after_three_hangs_more(cluster: Cluster) -> None:
    """T16: its worker lives, its lease is renewed and its steps stand still."""
    job_id = cluster.submit(steps=6, hang=True)

    job = cluster.wait(job_id, seconds=4 * PATIENCE)

    assert (job["status"], job["attempt"]) == ("failed", 4)
    assert (job["reason"]["code"], job["reason"]["last_code"]) == ("no_progress", "stalled")
    limit = cluster.settings.stall_seconds
    for attempt in range(1, 5):
        rows = [row for row in cluster.read_journal(job_id) if row["attempt"] == attempt]
        noticed_at = cluster.find_change(job_id, "stopping", after=rows[-1]["time"])
        check_figure("a hang is noticed after the limit", noticed_at - rows[-1]["time"] - limit)
    cluster.check_history()


POISONS: list[tuple[dict[str, Any], str, int]] = [
    ({"exit_code": 1}, "trainer_died", 1),
    ({"error_code": "loss_not_finite"}, "loss_not_finite", 1),
    ({"kill_signal": int(signal.SIGSEGV)}, "no_progress", 4),
    ({"verify_fails": True}, "artifact_invalid", 1),
]
"""What it does, what the job fails with, and after how many attempts."""


def test_poisonous_jobs_fail_as_what_they_are_and_hold_up_no_good_one(cluster: Cluster) -> None:
    """T17: all of them wait in front of the good ones."""
    bad = [(cluster.submit(steps=2, **script), code, num) for script, code, num in POISONS for _ in range(3)]
    good = [cluster.submit(steps=3) for _ in range(3)]

    for job_id in good:
        assert cluster.wait(job_id, seconds=4 * PATIENCE)["status"] == "succeeded"
    for job_id, code, num_attempts in bad:
        job = cluster.wait(job_id, seconds=4 * PATIENCE)
        assert (job["status"], job["reason"]["code"], job["attempt"]) == ("failed", code, num_attempts)
    cluster.check_history()


def test_a_trainer_that_prints_all_it_can_find_out_prints_no_secret(cluster: Cluster) -> None:
    """T24: neither the tables nor the files nor the logs of the service have one."""
    job_id = cluster.submit(tells_all=True)
    assert cluster.wait(job_id)["status"] == "succeeded"
    urls = (cluster.database_url, cluster.redis_url)
    passwords = [found[1] for url in urls if (found := re.search(r":([^:@/]+)@", url))]
    wanted = [*SECRETS.values(), *passwords, cluster.client.http.headers["Authorization"].removeprefix("Bearer ")]
    assert len(wanted) == 5

    tables = [table.name for table in Base.metadata.sorted_tables]
    with psycopg.connect(cluster.database_url) as connection:
        rows = [row for name in tables for row in connection.execute(sql.SQL("TABLE {}").format(sql.Identifier(name)))]
    shown = "\n".join(map(str, rows))
    folders = [*(node.home for node in cluster.nodes), cluster.home / "store", cluster.journals]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files += cluster.home.glob("*.log")
    files += (cluster.home / "nodes").glob("*.log")

    assert "TRAINER_RUN_DIR" in shown  # It did tell.
    assert [word for word in wanted if word in shown] == []
    for path in files:
        content = path.read_bytes()
        assert [word for word in wanted if word.encode() in content] == [], path
    cluster.check_history()


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_checkpoint_is_passed_over_with_an_event(cluster: Cluster, damage: str) -> None:
    """T13: in the store, after its attempt ended."""
    job_id = cluster.submit(steps=60, step_seconds=0.05, save_every=5)
    cluster.wait_for_step(job_id, 17)
    cluster.client.post(f"/jobs/{job_id}/pause")
    cluster.wait(job_id, "paused")
    stored = (cluster.home / "store" / "checkpoints" / job_id).iterdir()
    archives = sorted(stored, key=lambda path: path.stat().st_mtime_ns)
    newest, content = archives[-1], archives[-1].read_bytes()
    if damage == "delete":
        newest.unlink()
    else:
        newest.write_bytes(content[:-700] if damage == "truncate" else content[:600] + b"?" + content[601:])

    cluster.client.post(f"/jobs/{job_id}/resume")
    job = cluster.wait(job_id)

    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert f"step-{cluster.get_resumed_step(job_id, 2)}." in archives[-2].name
    events = cluster.client.get(f"/jobs/{job_id}/events", limit=1000)["data"]
    assert [event for event in events if event["data"].get("code") == "checkpoint_damaged"]
    cluster.check_history()


def test_a_trainer_killed_in_the_middle_of_a_save_goes_on_from_the_save_before(cluster: Cluster) -> None:
    """T13"""
    job_id = cluster.submit(steps=20, step_seconds=0.05, save_every=5, dies_saving_at=15, bad_attempts=1)

    job = cluster.wait(job_id)

    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert cluster.get_resumed_step(job_id, 2) == 10
    cluster.check_history()
