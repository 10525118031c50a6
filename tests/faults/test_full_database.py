"""The volume of the database is full: the service waits, and goes on by itself when there is room."""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.factories import wait_until
from tests.faults.harness import IS_REAL, PATIENCE, Cluster

MIB = 1 << 20


@pytest.fixture
def cluster_on_a_small_disk(tmp_path: Path) -> Iterator[Cluster]:
    """Only its Postgres is on it."""
    folder = tmp_path / "postgres"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256m,mode=0777", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        with Cluster(tmp_path, num_nodes=1) as cluster:
            yield cluster
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """To the last byte."""
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(MIB))
    assert shutil.disk_usage(path).free == 0


def test_a_full_database_refuses_jobs_and_kills_none_and_all_goes_on_when_there_is_room(
    cluster_on_a_small_disk: Cluster,
) -> None:
    """T19: Postgres may end itself when it cannot write its log; then its supervisor starts it again."""
    cluster = cluster_on_a_small_disk
    steps = 400 if IS_REAL else 200
    dataset_id = cluster.prepare(steps=3)
    job_id = cluster.submit(steps=steps, step_seconds=0.05, save_every=20)
    cluster.wait_for_step(job_id, 5)

    filler = cluster.home / "postgres" / "filler"
    request = cluster.build_request(dataset_id, name="n" * 200)
    codes: list[int] = []

    def post() -> int:
        fill(filler)  # What the server gives back meanwhile is taken, too.
        key = secrets.token_hex(8)
        cluster.log.unanswered_keys.add(key)
        try:
            answer = cluster.client.http.post("/jobs", json=request, headers={"Idempotency-Key": key})
        except httpx.TransportError:
            return 0
        if answer.status_code == 201:
            cluster.note_accepted(answer.json()["id"], dataset_id)
        codes.append(answer.status_code)
        return answer.status_code

    wait_until(post, lambda code: code not in (0, 201), seconds=60, every=0)
    full_at = time.monotonic()
    wait_until(lambda: (post(), time.monotonic() > full_at + 2)[1], seconds=30)
    step_when_full = max(row.get("step", 0) for row in cluster.read_journal(job_id))
    filler.unlink()
    cluster.start_servers()
    cluster.heal()
    job = cluster.wait(job_id, seconds=2 * PATIENCE)
    accepted = cluster.client.post("/jobs", request)["id"]
    cluster.note_accepted(accepted, dataset_id)

    assert set(codes) <= {201, 503}, codes
    assert 503 in codes
    assert step_when_full > 5
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert cluster.wait(accepted)["status"] == "succeeded"
    for other in cluster.client.get("/jobs", limit=100)["data"]:
        assert cluster.wait(other["id"])["status"] == "succeeded"
    cluster.check_history()
